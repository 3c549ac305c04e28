"""Starting, stopping, forking and many at once: nothing is left behind."""

import gc
import json
import os
import threading

from support import PLAIN, SHA, Runner, python

import minici


def open_files():
    """Return what this process has open, the directory that is read for it left out."""
    found = set()
    for name in os.listdir('/dev/fd'):
        try:
            found.add((name, os.stat(f'/dev/fd/{name}').st_ino))
        except OSError:
            continue
    return found


def test_a_server_that_is_started_and_stopped_leaves_no_thread_descriptor_or_file(tmp_path, form, figures, monkeypatch):
    count = form(15, 200)
    monkeypatch.setattr(minici.tempfile, 'tempdir', str(tmp_path))
    gc.collect()
    threads, descriptors = set(threading.enumerate()), open_files()
    for number in range(count):
        with minici.Coordinator() as ci, minici.Server(ci):
            if number % 10 == 0:
                ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content=PLAIN)
                Runner(ci).run()
    gc.collect()
    left = [thread for thread in threading.enumerate() if thread not in threads and thread.is_alive()]
    assert left == []
    assert open_files() - descriptors == set()
    assert list(tmp_path.iterdir()) == []
    figures('0 threads, descriptors, files left', f'{count} starts and stops: 0 threads, 0 descriptors, 0 files left')


def test_fifty_coordinators_in_one_process_leave_nothing_and_share_nothing(tmp_path, form, figures, monkeypatch):
    count = form(10, 50)
    monkeypatch.setattr(minici.tempfile, 'tempdir', str(tmp_path))
    threads, descriptors = set(threading.enumerate()), open_files()
    all_of_them = [minici.Coordinator() for _ in range(count)]
    servers = [minici.Server(ci) for ci in all_of_them]
    assert len({server.port for server in servers}) == count
    for number, ci in enumerate(all_of_them):
        ci.create_pipeline(ci.create_project(f'project-{number}'), 'main', sha=SHA, content=PLAIN)
        assert Runner(ci).run() == 'test'
        assert [row['path'] for row in ci.list_projects()[0]] == [f'project-{number}']
    for server in servers:
        server.stop()
    for ci in all_of_them:
        ci.close()
    gc.collect()
    assert set(threading.enumerate()) - threads == set()
    assert open_files() - descriptors == set()
    assert list(tmp_path.iterdir()) == []
    figures('0 threads, descriptors, files left', f'{count} servers at once: 0 threads, 0 descriptors, 0 files left')


FORK = """
import json, os, sys, threading, minici
ci = minici.Coordinator(sys.argv[1])
server = minici.Server(ci)
for number in range(int(sys.argv[2])):
    child = os.fork()
    if not child:
        ci.create_project(f'child-{number}')
        ci.close()
        os._exit(threading.active_count() - 1)
    assert os.waitpid(child, 0)[1] == 0, number
    ci.create_project(f'parent-{number}')
server.stop()
print(json.dumps([ci.list_projects()[1], [finding.text for finding in ci.check()], threading.active_count()]))
ci.close()
"""


def test_children_of_a_serving_process_write_without_harm(tmp_path, form, figures):
    count = form(5, 100)
    process = python(FORK, tmp_path / 'ci.sqlite', count)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert json.loads(out) == [2 * count, [], 1]
    figures('0 threads, descriptors, files left',
            f'{count} forks of a serving process: {2 * count} projects, none lost')
