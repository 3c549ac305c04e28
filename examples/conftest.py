"""Fixtures for a test suite that needs a GitLab CI: copy this file into your tests.

Each test gets a coordinator of its own, behind a real socket, in some milliseconds, and none has to sleep::

    import urllib.error
    import urllib.request

    import pytest

    def my_client(minici, path):             # stands for what you test; a runner would take
        headers = {'PRIVATE-TOKEN': minici.private_token}       # minici.url and minici.registration_token
        with urllib.request.urlopen(urllib.request.Request(minici.url_for(path), headers=headers)) as answer:
            return answer.read()

    def test_the_client_reads_a_trace(minici):
        pipeline = minici.add_pipeline({'unit': {'script': ['make test']}})
        job = minici.run_job(trace=b'3 passed')
        assert my_client(minici, f'/projects/demo/jobs/{job["id"]}/trace') == b'3 passed'
        assert minici.ci.find_pipeline(pipeline)['status'] == 'success'
        assert minici.requests == [('GET', f'/api/v4/projects/demo/jobs/{job["id"]}/trace', 200)]

    def test_the_client_notices_an_outage(minici):
        minici.fail_next(status=503)
        with pytest.raises(urllib.error.HTTPError, match='503'):
            my_client(minici, '/version')
        assert b'version' in my_client(minici, '/version')

    def test_a_silent_job_is_failed_after_ten_minutes(minici):
        minici.add_pipeline({'unit': {'script': ['sleep 9999']}})
        job = minici.run_job(trace=b'zzz', state=None)
        minici.clock.advance(minutes=11)
        minici.ci.sweep()
        assert minici.ci.find_job(job)['failure_reason'] == 'stuck_or_timeout_failure'
"""

import pytest

from minici import Coordinator, NotFound, Server, create_app

SHA = '0123456789abcdef0123456789abcdef01234567'


class Clock:
    """The coordinator's time, which moves only when a test says so."""

    def __init__(self, now=1_700_000_000.0):
        self.now = now

    def __call__(self):
        return self.now

    def advance(self, seconds=0, *, minutes=0, hours=0, days=0):
        """Let time pass."""
        self.now += seconds + 60 * minutes + 3600 * hours + 86400 * days


class MiniCI:
    """A coordinator (`ci`) and its server; tokens are always the same, so that snapshots can hold them."""

    registration_token = 'registration-token'
    private_token = 'private-token'

    def __init__(self, host='127.0.0.1', port=0, **settings):
        self.clock, self._runner = Clock(), None
        self.requests, self.errors, self._faults = [], [], []
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('MINICI_REGISTRATION_TOKEN', self.registration_token)
            patch.setenv('MINICI_PRIVATE_TOKEN', self.private_token)
            self.ci = Coordinator(clock=self.clock, fsync=False, **settings)
        self._app = create_app(self.ci)
        self._server = Server(self.ci, host, port, application=self._observe)
        self.host, self.port, self.url = self._server.host, self._server.port, self._server.url
        self.api_url = f'{self.url}/api/v4'

    def stop(self):
        """Close the socket and remove all that was stored."""
        self._server.stop()
        self.ci.close()

    def url_for(self, path):
        """Return the address of a path below the API."""
        return self.api_url + path

    def _observe(self, environ, start_response):
        """Note each request and its status in `requests`; answer it with a fault if one was ordered."""
        def note(status, headers, exc_info=None):
            self.requests.append((environ['REQUEST_METHOD'], environ['PATH_INFO'], int(status[:3])))
            if status.startswith('500') and not fault:
                self.errors.append(self.requests[-1])
            return start_response(status, headers, exc_info)

        fault = self._faults.pop(0) if self._faults else None
        if fault:
            note(f'{fault} Ordered by the test', [('Content-Length', '0')])
            return []
        return self._app(environ, note)

    def fail_next(self, count=1, status=500):
        """Answer the next requests with an error, whatever they are."""
        self._faults += [status] * count

    def add_project(self, path='demo', **settings):
        """Return a project, made if there is none of that path."""
        try:
            return self.ci.find_project(path)
        except NotFound:
            return self.ci.create_project(path, **settings)

    def add_pipeline(self, content, *, project='demo', ref='main', sha=SHA, **settings):
        """Make a pipeline of a mapping as in a .gitlab-ci.yml; no repository is needed."""
        return self.ci.create_pipeline(self.add_project(project), ref, sha=sha, content=content, **settings)

    def run_job(self, *, trace=b'', state='success'):
        """Do what a runner does with the oldest pending job, without a runner; return the job.

        With `state` None the job is left running.
        """
        if self._runner is None:
            self._runner = self.ci.register_runner(self.registration_token, description='fixture')[1]
        claim = self.ci.request_job(self.ci.find_runner(self._runner))
        assert claim is not None, 'no job is pending that a runner without tags could take'
        job = self.ci.authenticate_job(claim.job['id'], claim.token)
        self.ci.append_trace(job, 0, trace)
        if state:
            self.ci.update_job(job, state, failure_reason='script_failure' if state == 'failed' else None)
        return self.ci.find_job(job)


@pytest.fixture(scope='session')
def minici_listen_address():
    """Where the servers listen; override it for a fixed port."""
    return '127.0.0.1', 0


@pytest.fixture
def make_minici(minici_listen_address):
    """Return a function that starts as many as a test wants; keywords are minici's settings."""
    started = []

    def make(**settings):
        started.append(MiniCI(*minici_listen_address, **settings))
        return started[-1]

    yield make
    for item in started:
        item.stop()
    errors = [request for item in started for request in item.errors]
    assert not errors, f'the coordinator itself failed: {errors}'


@pytest.fixture
def minici(make_minici):
    """A coordinator and its server, fresh for each test."""
    return make_minici()
