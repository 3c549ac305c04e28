"""Fixtures: a coordinator with a clock that tests move, and clients for it."""

import io
import json
import os
import zipfile
from wsgiref.validate import validator

import gitlab
import pytest
import webtest
from browser import Chromium

import minici

SHA = '0123456789abcdef0123456789abcdef01234567'
PLAIN = {'test': {'script': ['make test']}}
TWO_STAGES = {
    'stages': ['build', 'test'],
    'compile': {'stage': 'build', 'script': ['make'], 'artifacts': {'paths': ['out/']}},
    'check': {'stage': 'test', 'script': ['make check']},
}


def pytest_configure(config):
    config.addinivalue_line('filterwarnings', 'error')


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self):
        self.now = 1_700_000_000.0

    def __call__(self):
        return self.now

    def advance(self, seconds=0, *, minutes=0, hours=0, days=0):
        self.now += seconds + 60 * minutes + 3600 * hours + 86400 * days


class Client(webtest.TestApp):
    """WebTest over the application, which wsgiref's validator watches."""

    def __init__(self, ci, app=None):
        super().__init__(validator(app or minici.create_app(ci)), lint=False)
        self.ci = ci

    def call(self, method, path, *, status=None, token=None, headers=None, **body):
        """Send a request; `json`, `form`, `files` or `data` is its body; return the response.

        `status` is the one that must come back (None: any); `token` is sent as PRIVATE-TOKEN.
        """
        headers = dict(headers or {})
        if token:
            headers['PRIVATE-TOKEN'] = token
        options = {'method': method, 'headers': headers, 'environ': {'REQUEST_URI': path}}
        if 'json' in body:
            headers['Content-Type'] = 'application/json'
            options['body'] = json.dumps(body['json']).encode()
        elif 'data' in body:
            options['body'] = body['data']
        elif 'form' in body or 'files' in body:
            content_type, options['body'] = self.encode_multipart(
                list(dict(body.get('form', {})).items()), body.get('files', []))
            headers['Content-Type'] = content_type
        return self.request(path, status=status or '*', **options)


class Runner:
    """A registered runner: its row, its token, and what it does most."""

    def __init__(self, ci, **settings):
        self.ci = ci
        row, self.token = ci.register_runner(settings.pop('token', ci.registration_token), **settings)
        self.id = row['id']

    @property
    def row(self):
        return self.ci.find_runner(self.token)

    def claim(self):
        """Return the next claim, or None."""
        return self.ci.request_job(self.row)

    def run(self, state='success'):
        """Claim a job and finish it at once; return its name, or None."""
        claim = self.claim()
        if claim is None:
            return None
        job = self.ci.authenticate_job(claim.job['id'], claim.token)
        self.ci.update_job(job, state, failure_reason='script_failure' if state == 'failed' else None)
        return claim.job['name']


def archive(**files):
    """Return a zip file of the given names and contents; `__` in a name stands for a slash."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as bundle:
        for name, content in files.items():
            bundle.writestr(name.replace('__', '/'), content)
    return buffer.getvalue()


def fail_of_silence(ci, clock):
    """Let the time pass until the job that nothing more is heard of fails, which is after ten minutes sharp."""
    clock.advance(599)
    ci.sweep()
    assert ci.find_job(1)['status'] == 'running'
    clock.advance(1)
    ci.sweep()
    assert (ci.find_job(1)['status'], ci.find_job(1)['failure_reason']) == ('failed', 'stuck_or_timeout_failure')


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ci(tmp_path, clock):
    """A coordinator without fsync, at a moment that tests choose."""
    with minici.Coordinator(tmp_path / 'ci.sqlite', clock=clock, fsync=False) as coordinator:
        yield coordinator


@pytest.fixture
def client(ci):
    return Client(ci)


@pytest.fixture
def token(ci):
    """A private token of scope `api`."""
    return ci.create_private_token()


@pytest.fixture
def project(ci):
    return ci.create_project('group/demo')


@pytest.fixture
def pipeline(ci, project):
    """A pipeline of one pending job."""
    return ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)


@pytest.fixture
def runner(ci):
    return Runner(ci, description='fixture')


@pytest.fixture
def job(ci, pipeline, runner):
    """A claim of the pipeline's job: `job.job` is its row, `job.token` its token."""
    return runner.claim()


@pytest.fixture
def server(ci):
    """The coordinator behind a real socket."""
    with minici.Server(ci) as running:
        yield running


@pytest.fixture(scope='module')
def chromium():
    """Headless Chromium: one process a module, for asyncio.run refuses to work in this thread until it has ended."""
    if Chromium.path is None:
        (pytest.fail if os.environ.get('CI') else pytest.skip)('no Chromium here: apt install chromium')
    with Chromium() as process:
        yield process


@pytest.fixture
def browser(chromium, server):
    """A window on the server, without cookies; its console must be free of errors in the end."""
    with chromium.browser(server.url) as window:
        yield window
        assert window.console() == []


@pytest.fixture
def gl(server, token):
    """python-gitlab with a private token."""
    with gitlab.Gitlab(server.url, private_token=token) as client:
        yield client


@pytest.fixture
def demo(gl, project):
    """The project group/demo as python-gitlab sees it."""
    return gl.projects.get('group/demo')
