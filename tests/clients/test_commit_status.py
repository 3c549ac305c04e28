"""The example that tells forges of statuses, behind `--hook`, against a server that speaks their documented API."""

import http.server
import json
import re
import shlex
import sys
import threading

import pytest
from support import EXAMPLES, SHA

import minici

#: What each forge documents: the path, the header with the token, the names of states, and the fields of the body.
FORGES = {
    'github': (r'/repos/group/demo/statuses/[0-9a-f]{40}', ('Authorization', 'Bearer secret-token'),
               {'pending', 'success', 'failure', 'error'}, {'state', 'target_url', 'description', 'context'}),
    'gitea': (r'/api/v1/repos/group/demo/statuses/[0-9a-f]{40}', ('Authorization', 'token secret-token'),
              {'pending', 'success', 'error', 'failure', 'warning'},
              {'state', 'target_url', 'description', 'context'}),
    'gitlab': (r'/api/v4/projects/group%2Fdemo/statuses/[0-9a-f]{40}', ('PRIVATE-TOKEN', 'secret-token'),
               {'pending', 'running', 'success', 'failed', 'canceled', 'skipped'},
               {'state', 'ref', 'name', 'target_url', 'description', 'coverage', 'pipeline_id'}),
}
FORGES['forgejo'] = FORGES['gitea']
SAYS = {'github': ['pending', 'success'], 'gitea': ['pending', 'success'], 'forgejo': ['pending', 'success'],
        'gitlab': ['running', 'success']}


@pytest.fixture
def forge(request):
    """A forge's API: it refuses what its documentation does, and notes what it takes."""
    path, (header, value), states, fields = FORGES[request.param]
    taken, refusals, noted = [], [], threading.Condition()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
            status = 201
            if not re.fullmatch(path, self.path) or not set(body) <= fields or body.get('state') not in states:
                status = 422
            elif self.headers[header] != value:
                status = 401
            elif refusals:
                status = refusals.pop()
            with noted:
                if status == 201:
                    taken.append(body)
                noted.notify_all()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b'{}')

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.kind, server.taken, server.refusals, server.noted = request.param, taken, refusals, noted
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def command(forge, tmp_path, *options):
    """Return the command line of the hook."""
    (tmp_path / 'token').write_text('secret-token\n')
    words = [sys.executable, EXAMPLES / 'commit_status.py', forge.kind, f'http://127.0.0.1:{forge.server_port}',
             '--token-file', tmp_path / 'token', *options]
    return shlex.join(map(str, words))


def states(forge, count):
    """Wait until the forge was told so many statuses; return their states."""
    with forge.noted:
        assert forge.noted.wait_for(lambda: len(forge.taken) >= count, 30), forge.taken
    return [body['state'] for body in forge.taken]


def hook(ci, forge, tmp_path, *options):
    """Return the hook; it is called by hand, so that the order of its messages is certain."""
    return minici.Hook(ci, 'http://ci.example', command(forge, tmp_path, *options))


@pytest.mark.parametrize('forge', FORGES, indirect=True)
@pytest.mark.parametrize('per', ['pipeline', 'job'])
def test_each_forge_is_told_of_running_and_of_success(ci, project, runner, forge, per, tmp_path):
    tell = hook(ci, forge, tmp_path, '--per', per)
    ci.create_pipeline(project, 'main', sha=SHA, content={'test': {'script': ['make']}})
    claim = runner.claim()
    find = ci.find_pipeline if per == 'pipeline' else ci.find_job
    tell(per, find(1), 'pending')
    ci.update_job(claim.job, 'success')
    for kind in ('pipeline', 'job'):    # only one of them is told
        tell(kind, ci.find_pipeline(1) if kind == 'pipeline' else ci.find_job(1), 'running')
    assert states(forge, 2) == SAYS[forge.kind]
    told = forge.taken[-1]
    assert told['target_url'] == f'http://ci.example/group/demo/-/{per}s/1'
    assert told['description'] == f'{per.title()} 1 passed'
    assert told.get('context', told.get('name')) == ('minici' if per == 'pipeline' else 'minici/test')


@pytest.mark.parametrize('forge', ['gitea'], indirect=True)
def test_a_failure_is_told_and_an_allowed_one_is_none(ci, project, runner, forge, tmp_path):
    content = {'bad': {'script': ['x']}, 'allowed': {'script': ['x'], 'allow_failure': True}}
    ci.create_pipeline(project, 'main', sha=SHA, content=content)
    for _ in range(2):
        ci.update_job(runner.claim().job, 'failed')
    tell = hook(ci, forge, tmp_path, '--per', 'job')
    for job in (1, 2):
        tell('job', ci.find_job(job), 'running')
    hook(ci, forge, tmp_path)('pipeline', ci.find_pipeline(1), 'running')
    assert states(forge, 3) == ['failure', 'success', 'failure']


@pytest.mark.parametrize('forge', ['github'], indirect=True)
def test_a_forge_in_trouble_is_told_again(ci, project, runner, forge, tmp_path, monkeypatch):
    monkeypatch.setattr(minici.Hook, 'PAUSES', (0, 0, 0))
    forge.refusals += [500, 502]
    ci.create_pipeline(project, 'main', sha=SHA, content={'test': {'script': ['make']}})
    hook(ci, forge, tmp_path)('pipeline', ci.find_pipeline(1), 'created')
    assert states(forge, 1) == ['pending']
    assert forge.refusals == []


@pytest.mark.parametrize('forge', ['github'], indirect=True)
def test_a_wrong_token_is_logged_without_it(ci, project, forge, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(minici.Hook, 'PAUSES', ())
    ci.create_pipeline(project, 'main', sha=SHA, content={'test': {'script': ['make']}})
    tell = hook(ci, forge, tmp_path)
    (tmp_path / 'token').write_text('wrong-token')
    tell('pipeline', ci.find_pipeline(1), 'created')
    assert 'is answered 401' in caplog.text
    assert 'wrong-token' not in caplog.text
