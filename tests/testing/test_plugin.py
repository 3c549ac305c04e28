"""The pytest plugin: fixtures, reports, and the documentation's tests."""

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from minici_testing import MiniciServer
from support import EXAMPLES, TOP

GUIDE = EXAMPLES / 'minici_testing' / 'README.md'
PASSES = 'def test_it(minici_server):\n    assert minici_server.ci.list_projects() == ([], 0)\n'


def run_pytest(folder, *arguments, plugin=True):
    """Run pytest in a process of its own over a folder; return it finished, with its output."""
    places = [TOP, EXAMPLES]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, places)), 'PYTEST_ADDOPTS': ''}
    plugins = ['-p', 'minici_testing.plugin'] if plugin else []
    return subprocess.run([sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', *plugins, *arguments], cwd=folder,
                          env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run_test(folder, text, *arguments):
    """Run one test file; return pytest's process."""
    (folder / 'test_it.py').write_text(text)
    return run_pytest(folder, *arguments)


def test_the_five_tests_of_the_guide_pass_as_they_stand(tmp_path):
    examples = re.findall(r'^```python\n(.*?)^```', GUIDE.read_text(encoding='utf-8'), re.M | re.S)
    assert len(examples) == 5
    for number, example in enumerate(examples):
        (tmp_path / f'test_example_{number}.py').write_text(example)
    done = run_pytest(tmp_path, '-q', '-W', 'error')
    assert done.returncode == 0, done.stdout
    assert '5 passed' in done.stdout


def test_a_test_for_node_drives_a_server_in_another_process():
    node = shutil.which('node')
    assert node, 'no node here: apt install nodejs'
    environment = {**os.environ, 'PYTHON': sys.executable, 'PYTHONPATH': f'{TOP}{os.pathsep}{EXAMPLES}'}
    done = subprocess.run([node, '--test', EXAMPLES / 'minici_testing' / 'runner.test.mjs'], env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    assert done.returncode == 0, done.stdout
    assert re.search(r'pass 2\b', done.stdout), done.stdout


def test_minici_is_imported_only_when_a_fixture_is_asked_for(tmp_path):
    (tmp_path / 'conftest.py').write_text('import sys\n\ndef pytest_collection_finish():\n'
                                          '    print("imported", sorted({"minici", "bottle"} & sys.modules.keys()))\n')
    done = run_test(tmp_path, PASSES, '--collect-only', '-q', '-s')
    assert 'imported []' in done.stdout


@pytest.mark.parametrize('body, complaint', [
    ('minici_server.ci.list_projects = 0\n    get(minici_server)',
     'the server answered 500, and no fault ordered that'),
    ('minici_server.faults.add("GET", "/nowhere", status=500)', 'these faults never happened'),
])
def test_an_unexpected_500_and_an_unused_fault_fail_the_test(tmp_path, body, complaint):
    done = run_test(tmp_path, f'''
import contextlib
import urllib.error
import urllib.request

def get(server):
    headers = {{'PRIVATE-TOKEN': server.private_token}}
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(urllib.request.Request(server.api_url + '/projects', headers=headers))

def test_it(minici_server):
    {body}
''', '-q')
    assert done.returncode == 1
    assert complaint in done.stdout
    assert '1 passed, 1 error' in done.stdout


def test_an_ordered_500_does_not_fail_the_test(tmp_path):
    done = run_test(tmp_path, '''
import urllib.error
import urllib.request
import pytest

def test_it(minici_server):
    minici_server.faults.add('GET', '/api/v4/version', status=500)
    with pytest.raises(urllib.error.HTTPError, match='500') as caught:
        urllib.request.urlopen(minici_server.api_url + '/version')
    caught.value.close()
''', '-q')
    assert done.returncode == 0, done.stdout


def test_the_report_of_a_failed_test_shows_jobs_traces_and_exchanges_without_secrets(tmp_path):
    done = run_test(tmp_path, '''
import urllib.request

def test_it(minici_server):
    minici_server.enqueue(name='waits', tags=['gpu'])
    running = minici_server.claim()
    running.write('the last line\\n')
    request = urllib.request.Request(minici_server.api_url + '/version',
                                     headers={'PRIVATE-TOKEN': minici_server.private_token})
    urllib.request.urlopen(request).close()
    print('secret', minici_server.private_token)
    assert False, 'on purpose'
''', '-q', '-rN')
    report = done.stdout.partition('minici at http')[2].partition('Captured stdout')[0]
    assert 'job 1 (test: waits) is running' in report
    assert 'the last line' in report
    assert '<private token 1>: GET /api/v4/version -> 200' in report
    secret = re.search('secret (mcp-[0-9a-f]+)', done.stdout)[1]
    assert secret not in report


def test_a_factory_starts_several_servers_and_a_session_may_share_one(tmp_path):
    done = run_test(tmp_path, '''
import pytest

@pytest.fixture(scope='session')
def shared(minici_factory):
    return minici_factory(seed=3)

@pytest.fixture
def clean(shared):
    shared.reset()
    return shared

@pytest.mark.parametrize('turn', range(3))
def test_it(clean, minici_factory, turn):
    assert clean.enqueue().id == 1
    other = minici_factory(seed=4)
    assert other.url != clean.url
    assert other.private_token != clean.private_token
''', '-q')
    assert done.returncode == 0, done.stdout


def test_fixtures_work_side_by_side_in_several_workers(tmp_path):
    text = 'import pytest\n\n@pytest.mark.parametrize("turn", range(8))\n' + PASSES.replace(
        '(minici_server)', '(minici_server, turn)')
    done = run_test(tmp_path, text, '-q', '-n', '2')
    assert done.returncode == 0, done.stdout
    assert '8 passed' in done.stdout


def left_behind():
    """Return the threads and open files of this process."""
    return {thread.name for thread in threading.enumerate()}, len(os.listdir('/proc/self/fd'))


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='the system does not list open files')
def test_two_hundred_starts_leave_no_thread_file_or_folder_behind(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    with MiniciServer():
        pass
    before = left_behind()
    for _ in range(200):
        with MiniciServer() as server:
            server.enqueue()
    assert left_behind() == before
    assert list(tmp_path.iterdir()) == []
