"""Pipeline files of a repository or the network are compiled in processes of their own, which never are in the way."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import SHA, Origin, until

import minici

FILE = minici.Foreign('test: {script: make}')


@pytest.fixture
def pool():
    """Processes of this test alone."""
    pool = minici.CompilerPool()
    yield pool
    pool.stop()


@pytest.fixture
def stored(tmp_path, monkeypatch, pool):
    """A coordinator that serves and has a database of its own; it compiles with these processes."""
    monkeypatch.setattr(minici, 'COMPILERS', pool)
    with minici.Coordinator(tmp_path / 'ci.sqlite', fsync=False) as ci:
        minici.create_app(ci)
        yield ci


@pytest.fixture
def working(pool, tmp_path, monkeypatch):
    """Let the processes do what no pipeline file does: take all time, all memory, or end."""
    (tmp_path / 'minici.py').write_text(textwrap.dedent(f"""
        import importlib.util, os, sys
        spec = importlib.util.spec_from_file_location('minici', {minici.__file__!r})
        module = sys.modules['minici'] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.COMPILE_TIMEOUT = 0.1
        module.WORK.update(
            spin=lambda: sum(range(10 ** 15)), hoard=lambda: bytearray(10 ** 9), leave=lambda: os._exit(3),
            pid=os.getpid, ask=lambda secret: secret.settings())
        """))
    monkeypatch.syspath_prepend(tmp_path)
    return pool.request


def ids(pool):
    return [process._process.pid for process in pool._all]


def plain(spec):
    return json.loads(json.dumps(spec, default=vars))


def put(origin, **files):
    for name, content in files.items():
        path = origin.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)


def test_what_takes_all_time_is_ended_by_the_system_and_the_next_file_is_compiled(working, pool):
    with pytest.raises(minici.BadRequest, match='seconds or 256 MiB to compile'):
        working('spin')
    assert working('pid') in ids(pool)


@pytest.mark.skipif(sys.platform != 'linux', reason='no other system limits it')
def test_what_takes_all_memory_is_refused_and_its_process_ended(working, pool):
    before = working('pid')
    with pytest.raises(minici.BadRequest, match='256 MiB'):
        working('hoard')
    assert before not in ids(pool)
    assert working('pid') != before


def test_a_process_that_ends_is_trouble_of_ours_and_one_that_ended_meanwhile_is_none(working, pool):
    with pytest.raises(minici.Busy, match='has ended'):
        working('leave')
    before = working('pid')
    os.kill(before, signal.SIGKILL)
    until(lambda: not any(process.alive for process in pool._all))
    assert working('pid') != before
    assert len(pool._all) == 1


def test_a_process_asks_for_files_alone(working, pool, tmp_path):
    library = minici.IncludeLibrary(tmp_path, minici.FileCache(tmp_path), str, '', '')
    with pytest.raises(minici.CIError):
        working('ask', secret=library)      # it has no way to the attribute `settings`
    assert not pool._all


def test_processes_compile_what_is_foreign_to_a_coordinator_that_serves_and_lasts(stored, pool, tmp_path):
    project = stored.create_project('demo')
    stored.create_pipeline(project, 'main', sha=SHA, content={'test': {'script': ['make']}})
    with minici.Coordinator() as temporary, minici.Coordinator(tmp_path / 'alone.sqlite') as alone:
        minici.create_app(temporary)
        for other in (temporary, alone):
            other.create_pipeline(other.create_project('demo'), 'main', sha=SHA, content=FILE)
    assert not pool._all
    stored.create_pipeline(project, 'main', sha=SHA, content=FILE)
    stored.create_pipeline(project, 'main', sha=SHA, content=FILE)
    assert len(pool._all) == 1


def test_a_process_compiles_as_this_one_does_with_all_that_a_file_asks_for(stored, tmp_path):
    other = Origin(tmp_path / 'other')
    put(other, **{'shared.yml': 'shared: {script: make}', 'templates/part.yml': 'part: {script: make}'})
    other.commit()
    origin = Origin(tmp_path / 'origin')
    origin.commit('x: {script: x}')
    origin.git('checkout', '--quiet', '-b', 'topic')
    put(origin, **{'local.yml': 'local: {script: make, parallel: 2}'})
    origin.commit(textwrap.dedent("""
        include:
          - local.yml
          - {project: group/other, file: shared.yml}
          - component: $CI_SERVER_HOST/group/other/part@main
        test:
          script: [make, ü]
          cache: {key: {files: [local.yml]}, paths: [x]}
          rules:
            - changes: {paths: [local.yml], compare_to: main}
        absent:
          script: make
          rules: [{exists: [no/*.file]}]
        """))
    found = []
    with minici.Coordinator() as temporary:
        for ci in (stored, temporary):
            ci.create_project('group/other', import_url=other.url)
            plan = ci.plan_pipeline(ci.create_project('group/demo', import_url=origin.url), 'topic')
            found.append(plain(plan.spec))
            linted = ci.lint(ci.find_project('group/demo'), ref='topic')
            assert {'test', 'absent', 'shared', 'part', 'local'} <= set(linted.merged)
            assert 'make' in ci.merged_yaml(linted.merged)
    assert found[0]['merged'] is None
    found[1]['merged'] = None
    assert found[0] == found[1]
    assert [job['name'] for job in found[0]['jobs']] == ['local 1/2', 'local 2/2', 'shared', 'part', 'test']


def test_a_wrong_file_gets_the_same_refusal_from_a_process(stored):
    project = stored.create_project('demo')
    told = []
    for content in ({'a': {'scrip': 'x'}}, minici.Foreign({'a': {'scrip': 'x'}})):
        with pytest.raises(minici.BadRequest) as caught:
            stored.create_pipeline(project, 'main', sha=SHA, content=content)
        told.append(caught.value.problems)
    assert told[0] == told[1]


def test_a_forked_child_has_processes_of_its_own_and_leaves_those_of_its_parent_alone(stored, pool):
    project = stored.create_project('demo')
    stored.create_pipeline(project, 'main', sha=SHA, content=FILE)
    before = ids(pool)
    child = os.fork()
    if not child:
        made = stored.create_pipeline(project, 'main', sha=SHA, content=FILE)
        own = ids(pool)
        pool.stop()
        os._exit(0 if made['id'] == 2 and len(own) == 1 and own != before else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert stored.create_pipeline(project, 'main', sha=SHA, content=FILE)['id'] == 3
    assert ids(pool) == before


def test_the_processes_end_with_a_server_that_is_killed(tmp_path):
    program = textwrap.dedent("""
        import minici, sys
        with minici.Coordinator(sys.argv[1]) as ci:
            minici.create_app(ci)
            ci.lint(content=minici.Foreign('test: {script: make}'))
            print(*(process._process.pid for process in minici.COMPILERS._all), flush=True)
            sys.stdin.read()
        """)
    with subprocess.Popen([sys.executable, '-c', program, tmp_path / 'ci.sqlite'], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as server:
        pid = int(server.stdout.readline())
        os.kill(pid, 0)
        server.kill()
    until(lambda: not is_alive(pid))


def is_alive(pid):
    """Tell whether a process runs; one that has ended and that nobody has asked about does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f'/proc/{pid}/stat')
    return not (status.exists() and status.read_text().rpartition(')')[2].split()[0] == 'Z')
