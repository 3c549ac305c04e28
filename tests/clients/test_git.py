"""Repositories on this machine, fetched over HTTP by git itself: with a job's token, a person's, and no other."""

import base64
import json
import subprocess
import threading
import time

import pytest
from support import commit, dispatcher, git, load

import minici

FILE = 'test: {script: [cat notes.txt]}\n'


@pytest.fixture
def origin(tmp_path):
    """A repository with a tag and a commit that no branch has, and with settings that nobody may obey."""
    directory = tmp_path / 'origin'
    commit(directory, **{'.gitlab-ci.yml': FILE, 'notes.txt': 'first\n'})
    git(directory, 'tag', 'v1')
    commit(directory, 'Second', **{'notes.txt': 'second\n'})
    git(directory, 'config', 'uploadpack.packObjectsHook', f'touch {tmp_path}/obeyed; exec')
    git(directory, 'config', 'http.receivepack', 'true')
    return directory


@pytest.fixture
def project(ci, origin):
    return ci.create_project('group/demo', import_url=origin.as_uri())


@pytest.fixture(params=['', '/mounted'])
def server(request, ci):
    """A server, at the top of its address and below a prefix."""
    application = minici.create_app(ci)
    if request.param:
        application = dispatcher(application, request.param)
    with minici.Server(ci, application=application) as running:
        running.url += request.param
        yield running


def address(server, token, path='group/demo'):
    """Return the address of a repository with a token as its password."""
    return server.url.replace('//', f'//gitlab-ci-token:{token}@') + f'/{path}.git'


@pytest.fixture
def claim(ci, project, runner):
    ci.create_pipeline(project, 'main')
    return runner.claim()


@pytest.mark.parametrize('version', ['0', '2'])
def test_a_job_clones_fetches_shallowly_and_by_sha(server, claim, tmp_path, origin, version):
    protocol = ('-c', f'protocol.version={version}')
    url = address(server, claim.token)
    git(tmp_path, *protocol, 'clone', '--quiet', url, 'full')
    assert git(tmp_path / 'full', 'log', '--format=%s').splitlines() == ['Second', 'Test']
    git(tmp_path, *protocol, 'clone', '--quiet', '--depth', '1', '--branch', 'v1', url, 'shallow')
    assert (tmp_path / 'shallow' / 'notes.txt').read_text() == 'first\n'
    assert git(tmp_path / 'shallow', 'rev-list', '--count', 'HEAD') == '1'
    older = git(origin, 'rev-parse', 'main^')
    git(tmp_path, 'init', '--quiet', 'bysha')
    git(tmp_path / 'bysha', *protocol, 'fetch', '--quiet', '--depth', '1', url, older)
    assert git(tmp_path / 'bysha', 'rev-parse', 'FETCH_HEAD') == older
    commit(origin, 'Third', **{'notes.txt': 'third\n'})
    git(tmp_path / 'full', *protocol, 'fetch', '--quiet')
    assert git(tmp_path / 'full', 'log', '-1', '--format=%s', 'origin/main') == 'Third'
    assert not (tmp_path / 'obeyed').exists()


def refused(tmp_path, url):
    """Return what git says about an address that it cannot fetch from."""
    done = subprocess.run(['git', 'ls-remote', url], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          env={'PATH': '/usr/bin:/bin', 'GIT_TERMINAL_PROMPT': '0', 'GIT_CONFIG_GLOBAL': '/dev/null'})
    assert done.returncode != 0
    return done.stderr


def test_a_wrong_a_finished_and_a_foreign_token_cannot(ci, server, claim, tmp_path, origin, runner):
    other = ci.create_project('other', import_url=origin.as_uri())
    assert 'not found' in refused(tmp_path, address(server, claim.token, 'other'))
    ci.allow_job_tokens(other, ci.find_project('group/demo'))
    git(tmp_path, 'ls-remote', address(server, claim.token, 'other'))
    assert 'Authentication failed' in refused(tmp_path, address(server, 'wrong'))
    assert 'could not read Username' in refused(tmp_path, f'{server.url}/group/demo.git')
    assert 'Authentication failed' in refused(tmp_path, address(server, runner.token))
    ci.update_job(claim.job, 'success')
    assert 'Authentication failed' in refused(tmp_path, address(server, claim.token))


def test_people_clone_with_a_private_token_and_nobody_pushes(ci, server, project, tmp_path):
    url = address(server, ci.create_private_token(scope='read_api'))
    git(tmp_path, 'clone', '--quiet', url, 'mine')
    commit(tmp_path / 'mine', 'Mine', file='x\n')
    done = subprocess.run(['git', 'push', url, 'HEAD:main'], cwd=tmp_path / 'mine', capture_output=True, text=True,
                          timeout=60)
    assert done.returncode != 0
    assert '403' in done.stderr


def test_a_project_elsewhere_or_without_an_address_is_not_served(ci, server, tmp_path):
    token = ci.create_private_token()
    for path, url in (('remote', 'https://example.invalid/x.git'), ('nowhere', None)):
        ci.create_project(path, import_url=url)
        assert 'not found' in refused(tmp_path, address(server, token, path))
    assert 'not found' in refused(tmp_path, address(server, token, 'missing'))


def test_nothing_is_left_behind_when_a_client_goes_away(ci, server, claim, tmp_path, origin):
    (origin / 'large').write_bytes(bytes(range(256)) * 40_000)
    commit(origin, 'Large')
    git(tmp_path, 'clone', '--quiet', address(server, claim.token), 'full')
    deadline = time.monotonic() + 10
    while list(ci.artifacts.incoming.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(ci.artifacts.incoming.iterdir()) == []


def test_only_so_many_fetch_at_once_and_others_are_told_to_come_again(ci, client, claim, monkeypatch, origin, tmp_path):
    monkeypatch.setattr(minici, 'GIT_SERVERS', threading.BoundedSemaphore(1))
    password = base64.b64encode(f'x:{claim.token}'.encode()).decode()

    def list_refs(status):
        return client.call('GET', '/group/demo.git/info/refs?service=git-upload-pack', status=status,
                           headers={'Authorization': f'Basic {password}'})
    with minici.git_server():
        assert list_refs(503).headers['Retry-After'] == str(minici.RETRY_AFTER)
    for _ in range(3):      # each gives its place back
        assert b'refs/heads/main' in list_refs(200).body
    client.call('GET', '/group/demo.git/info/refs?service=git-upload-pack', status=401)
    (origin / '.git' / 'HEAD').rename(tmp_path / 'HEAD')
    list_refs(400)
    (tmp_path / 'HEAD').rename(origin / '.git' / 'HEAD')
    list_refs(200)


def test_a_runner_that_cannot_see_the_folder_builds_it_with_its_submodule(ci, server, project, origin, tmp_path):
    library = tmp_path / 'library'
    commit(library, file='from the library\n')
    ci.allow_job_tokens(ci.create_project('group/library', import_url=library.as_uri()), project)
    (origin / '.gitmodules').write_text('[submodule "lib"]\n\tpath = lib\n\turl = ../library.git\n')
    git(origin, 'update-index', '--add', '--cacheinfo', f'160000,{git(library, "rev-parse", "HEAD")},lib')
    commit(origin, 'With a library', **{'.gitlab-ci.yml': json.dumps({'test': {'script': [
        'git submodule update --init --quiet', 'cat lib/file', 'git clone --quiet "$CI_REPOSITORY_URL" again',
        'cat again/notes.txt']}})})
    git(origin, 'update-index', '--add', '--cacheinfo', f'160000,{git(library, "rev-parse", "HEAD")},lib')
    git(origin, 'commit', '--quiet', '--amend', '--message', 'With a library')
    pipeline = ci.create_pipeline(project, 'main')
    runner = load('shell_runner').Runner(server.url, builds_dir=tmp_path, interval=0.02, say=lambda text: None)
    runner.register(ci.registration_token)
    assert runner.run_once()
    job, = ci.list_jobs(pipeline=pipeline)
    assert job['status'] == 'success', ci.read_trace(job)
    assert b'from the library\n' in ci.read_trace(job)
    assert b'second\n' in ci.read_trace(job)
