"""What runners fetch, tried with git against real servers: by HTTP, by git's own protocol, and from a directory."""

import os
import socket
import subprocess
import threading
import types
import wsgiref.simple_server

import pytest
from support import PLAIN, Runner, commit, git, until

from minici import git_info, variables_of_job


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_):
        pass


def http_backend(root):
    """Return a WSGI application that serves the repositories below `root` through git's own CGI program."""
    def app(environ, start_response):
        body = environ['wsgi.input'].read(int(environ.get('CONTENT_LENGTH') or 0))
        names = ('REQUEST_METHOD', 'QUERY_STRING', 'CONTENT_TYPE', 'PATH_INFO')
        variables = {name: environ.get(name, '') for name in names}
        if 'HTTP_GIT_PROTOCOL' in environ:
            variables['GIT_PROTOCOL'] = environ['HTTP_GIT_PROTOCOL']
        if 'HTTP_CONTENT_ENCODING' in environ:
            variables['HTTP_CONTENT_ENCODING'] = environ['HTTP_CONTENT_ENCODING']
        done = subprocess.run(['git', 'http-backend'], input=body, capture_output=True, check=True, env={
            **os.environ, **variables, 'GIT_PROJECT_ROOT': str(root), 'GIT_HTTP_EXPORT_ALL': '1',
            'CONTENT_LENGTH': str(len(body)), 'REMOTE_ADDR': '127.0.0.1'})
        head, _, content = done.stdout.partition(b'\r\n\r\n')
        headers = [tuple(line.split(': ', 1)) for line in head.decode().split('\r\n')]
        status = dict(headers).get('Status', '200 OK')
        start_response(status, [header for header in headers if header[0] != 'Status'])
        return [content]
    return app


@pytest.fixture
def origin(tmp_path):
    """A bare repository with two branches, a tag and five commits on main, and a working copy that pushes to it."""
    work, bare = tmp_path / 'work', tmp_path / 'served' / 'origin.git'
    bare.parent.mkdir()
    commit(work, **{'a.txt': '0', '.gitlab-ci.yml': 'test: {script: [make]}'})
    for number in range(1, 5):
        commit(work, **{'a.txt': str(number)})
    git(work, 'branch', 'other', 'HEAD~2')
    git(work, 'tag', 'v1', 'HEAD~1')
    git(tmp_path, 'clone', '--quiet', '--bare', str(work), str(bare))
    return bare


@pytest.fixture(params=['http', 'git', 'file'])
def address(request, origin):
    if request.param == 'file':
        yield f'file://{origin}'
    elif request.param == 'http':
        app = http_backend(origin.parent)
        with wsgiref.simple_server.make_server('127.0.0.1', 0, app, handler_class=Quiet) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
            thread.start()
            yield f'http://127.0.0.1:{server.server_port}/origin.git'
            server.shutdown()
            thread.join()
    else:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        command = ['git', 'daemon', '--listen=127.0.0.1', f'--port={port}', '--export-all', '--reuseaddr',
                   f'--base-path={origin.parent}', str(origin.parent)]
        daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
        url = f'git://127.0.0.1:{port}/origin.git'
        until(lambda: subprocess.run(['git', 'ls-remote', url], capture_output=True).returncode == 0)
        yield url
        os.killpg(daemon.pid, 15)
        daemon.wait()


def fetch(directory, info, protocol):
    """Fetch and check out as gitlab-runner does from 11.9 on."""
    git(directory.parent, 'init', '--quiet', str(directory))
    depth = ['--depth', str(info['depth'])] if info['depth'] else []
    git(directory, 'remote', 'add', 'origin', info['repo_url'])
    git(directory, '-c', f'protocol.version={protocol}', 'fetch', '--quiet', '--prune', *depth, 'origin',
        *info['refspecs'])
    git(directory, 'checkout', '--quiet', '--force', info['sha'])
    return (directory / 'a.txt').read_text()


def claimed(ci, address):
    claim = Runner(ci).claim()
    viewer = types.SimpleNamespace(ci=ci, base_url='http://127.0.0.1')
    return git_info(claim.job, address, variables_of_job(claim, viewer, ci.find_runner_by_id(1)))


CASES = {       # what happened: the commit, counted back from the tip, and a push afterwards
    'the tip': (0, False), 'an older commit': (3, False), 'a commit behind a later push': (0, True)}


@pytest.mark.parametrize('protocol', [0, 2])
@pytest.mark.parametrize('allowed', [False, True])
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('depth', ['0', '1'])
def test_every_commit_of_a_pipeline_can_be_checked_out(ci, tmp_path, origin, address, protocol, allowed, case, depth):
    back, pushed = CASES[case]
    if allowed:
        git(origin, 'config', 'uploadpack.allowAnySHA1InWant', 'true')
    sha = git(origin, 'rev-parse', f'main~{back}').strip()
    project = ci.create_project('demo', import_url=address)
    ci.create_pipeline(project, 'main', sha=sha, variables=[{'key': 'GIT_DEPTH', 'value': depth}])
    info = claimed(ci, address)
    if pushed:
        commit(tmp_path / 'work', **{'a.txt': 'later'})
        git(tmp_path / 'work', 'push', '--quiet', str(origin), 'main')
        ci.create_pipeline(project, 'main')
        ci.cancel_pipeline(ci.find_pipeline(1))
        ci.retry_pipeline(ci.find_pipeline(1))
        info = claimed(ci, address)
        while info['sha'] != sha:
            info = claimed(ci, address)
    assert fetch(tmp_path / 'build', info, protocol) == str(4 - back)
    assert (f'+{sha}:refs/pipelines/1' in info['refspecs']) == allowed
    if depth == '1' and (allowed or case == 'the tip'):
        assert info['depth'] == 1
        assert git(tmp_path / 'build', 'rev-list', '--count', 'HEAD').strip() == '1'
    else:
        assert info['depth'] == 0
        assert git(tmp_path / 'build', 'diff', '--name-only', 'origin/other...HEAD', '--').strip() in ('a.txt', '')
        assert git(tmp_path / 'build', 'tag').split() == ['v1']


def test_a_commit_that_nobody_looked_for_is_fetched_with_the_history_of_everything(ci, tmp_path, origin):
    sha = git(origin, 'rev-parse', 'main~3')
    project = ci.create_project('demo', import_url=f'file://{origin}')
    ci.create_pipeline(project, 'main', sha=sha, content={**PLAIN, 'variables': {'GIT_DEPTH': '1'}})
    assert fetch(tmp_path / 'build', claimed(ci, f'file://{origin}'), 2) == '1'


def test_a_tag_is_fetched_alone_with_a_depth(ci, tmp_path, origin):
    project = ci.create_project('demo', import_url=f'file://{origin}')
    ci.create_pipeline(project, 'v1', variables=[{'key': 'GIT_DEPTH', 'value': '1'}])
    info = claimed(ci, f'file://{origin}')
    assert info['refspecs'] == ['+refs/tags/v1:refs/tags/v1']
    assert fetch(tmp_path / 'build', info, 2) == '3'
