"""Helpers that several test files use: clients, runners, repositories, a clock that tests move."""

import http.client
import importlib.util
import io
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
import zipfile
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote
from wsgiref.validate import validator

import webtest

import minici

TOP = Path(__file__).resolve().parent.parent
EXAMPLES = TOP / 'examples'
SHA = '0123456789abcdef0123456789abcdef01234567'
PLAIN = {'test': {'script': ['make test']}}
TWO_STAGES = {
    'stages': ['build', 'test'],
    'compile': {'stage': 'build', 'script': ['make'], 'artifacts': {'paths': ['out/']}},
    'check': {'stage': 'test', 'script': ['make check']},
}
#: What runners of each version announce in `info.features`, as seen on the wire; 1.x and 9.x misname `artifacts`.
FEATURES = {'1.0.4': {'cache', 'features', 'variables'}}
FEATURES['10.8.2'] = FEATURES['1.0.4'] | {'shared'}
FEATURES['11.8.0'] = FEATURES['10.8.2'] - {'features'} | {
    'artifacts', 'session', 'terminal', 'upload_multiple_artifacts', 'upload_raw_artifacts'}
FEATURES['11.11.4'] = FEATURES['11.8.0'] | {'masking', 'refspecs'}
FEATURES['12.10.3'] = FEATURES['11.11.4'] | {'raw_variables'}
FEATURES['13.12.0'] = FEATURES['12.10.3'] | {
    'artifacts_exclude', 'cancelable', 'multi_build_steps', 'return_exit_code', 'trace_checksum', 'trace_reset',
    'trace_size', 'vault_secrets'}
FEATURES['17.11.4'] = FEATURES['13.12.0'] | {'cancel_gracefully', 'fallback_cache_keys'}
FEATURES['18.6.6'] = FEATURES['17.11.4'] | {'two_phase_job_commit'}
FEATURES['18.9.0'] = FEATURES['18.6.6'] | {'job_inputs'}
#: What goes before and after an archive in a form that uploads it, and the form's headers.
UPLOAD = (b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.zip"\r\n\r\n', b'\r\n--x--\r\n')
FORM = {'Content-Type': 'multipart/form-data; boundary=x'}
DISCOVERY = ('GET', '/api/v4/runners/router/discovery')
#: What pages refer to: they tell nothing of anybody, and the sign-in page needs them.
ASSETS = {('GET', '/favicon.ico'), ('GET', '/-/minici.css'), ('GET', '/-/minici.js'),
          ('GET', '/-/favicon/<status>.svg')}
#: What answers without a guard, for a reason.
PUBLIC = {DISCOVERY, *ASSETS}  # the first says "not implemented" to everybody
#: What answers to monitors on this machine, and elsewhere to the token of --metrics-token.
MONITORED = {('GET', f'/-/{name}') for name in ('health', 'liveness', 'readiness', 'metrics')}
#: What lets everybody in from a proper host: who is not signed in yet signs in here.
DOORS = {('GET', '/-/sign_in'), ('POST', '/-/sign_in'), ('POST', '/-/sign_out')}


def stamped(log, at=1_796_005_331.0):
    """Return a log as runners from 18.7 on write it: a time stamp on each line, cut after CR and after 8 KiB."""
    lines = []
    for line in log.split(b'\n'):
        parts = re.findall(rb'[^\r]*\r|[^\r]+', line) or [b'']
        pieces = [part[start:start + 8192] for part in parts for start in range(0, len(part) or 1, 8192)]
        for number, piece in enumerate(pieces):
            at += 0.001
            moment = datetime.fromtimestamp(at, timezone.utc).strftime('%Y-%m-%dT%H:%M:%S.%fZ').encode()
            lines.append(moment + (b' 01E' if b'error' in piece else b' 01O') + (b'+' if number else b' ') + piece)
    if log.endswith(b'\n'):
        lines[-1] = b''     # the next line has not begun
    return b'\n'.join(lines)


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

    def claim_prepared(self):
        """Return the next claim as a runner with two-phase commit gets it: the job is pending."""
        return self.ci.request_job(self.row, features=[*minici.ASSUMED_FEATURES, 'two_phase_job_commit'])

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


def python(script, *arguments):
    """Start `script` in a process of its own that can import minici and the test files; return the Popen."""
    here = Path(__file__).parent
    places = [Path(minici.__file__).parent, here, *(folder for folder in here.iterdir() if folder.is_dir())]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, places))}
    return subprocess.Popen([sys.executable, '-c', script, *map(str, arguments)], text=True, env=environment,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def send_all(ci, job, text, seed):
    """Append `text` in chunks of chance length, going on from wherever the trace is, until it is there."""
    chance, start = random.Random(seed), 0
    while start < len(text):
        try:
            start = ci.append_trace(job, start, text[start:start + chance.randrange(1, 400)])
        except minici.RangeMismatch as mismatch:
            start = mismatch.size


def call(connection, method, path, body=b'', headers=()):
    """Send a request; return the status, the headers and the body of its answer."""
    connection.request(method, path, body, dict(headers))
    with connection.getresponse() as answer:
        return answer.status, answer.headers, answer.read()


class Served:
    """The standalone server over some files, as a process of its own; it listens once this is made."""

    def __init__(self, db, *options):
        self.log = Path(db).with_suffix('.log')
        with self.log.open('a') as log:
            # As a module it is compiled once for all tests; as a script, half a second long at each start.
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'minici', '--db', str(db), '--port', '0', *options], stdout=subprocess.PIPE,
                stderr=log, text=True, cwd=Path(minici.__file__).parent)
        for line in self.process.stdout:
            if found := re.search(r' at http://127\.0\.0\.1:([0-9]+)', line):
                self.port = int(found[1])
                return
        raise AssertionError(f'the server did not start: {self.log.read_text()}')

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.end(signal.SIGKILL)

    def end(self, number):
        """Send a signal, unless the process has ended already; return its exit status."""
        if self.process.returncode is None:
            self.process.send_signal(number)
            self.process.communicate()
        return self.process.returncode

    def connect(self):
        return http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)


def load(name):
    """Import an example, which is no package."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def until(condition):
    """Wait for what others bring about; return what the condition came to."""
    deadline = time.monotonic() + 30
    while not (result := condition()):
        assert time.monotonic() < deadline, 'this never came true'
        time.sleep(0.01)
    return result


def git(directory, *arguments, **environment):
    """Run git as Ann, who has no configuration, at one moment; return what it said."""
    names = {f'GIT_{who}_{what}': value for who in ('AUTHOR', 'COMMITTER')
             for what, value in (('NAME', 'Ann'), ('EMAIL', 'ann@example.com'), ('DATE', '1700000000 +0000'))}
    done = subprocess.run(['git', *arguments], cwd=directory, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env={**os.environ, 'GIT_CONFIG_GLOBAL': os.devnull,
                                                         'GIT_CONFIG_NOSYSTEM': '1', **names, **environment})
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


def commit(directory, message='Test', **files):
    """Commit files, `__` in whose names stands for a slash, to a repository, made if need be; return the sha."""
    if not (directory / '.git').exists():
        directory.mkdir(parents=True, exist_ok=True)
        git(directory, 'init', '--quiet', '--initial-branch=main')
    for name, text in files.items():
        path = directory / name.replace('__', '/')
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    git(directory, 'add', '--all')
    git(directory, 'commit', '--quiet', '--message', message)
    return git(directory, 'rev-parse', 'HEAD')


class Origin:
    """A git repository on disk, and what tests do in it."""

    def __init__(self, path):
        self.path = path
        path.mkdir(parents=True)
        self.git('init', '--quiet', '--initial-branch=main')

    def git(self, *arguments, **environment):
        return git(self.path, *arguments, **environment)

    def commit(self, content='test: {script: make}\n', message='change', **environment):
        """Commit a pipeline file, or none if `content` is None; return the sha."""
        file = self.path / '.gitlab-ci.yml'
        if content is None:
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.git('add', '--all')
        self.git('commit', '--quiet', '--allow-empty', '-m', message, **environment)
        return self.git('rev-parse', 'HEAD')

    @property
    def url(self):
        return 'file://' + quote(str(self.path))


def dispatcher(app, prefix):
    """Mount an application the way a plain WSGI dispatcher does."""
    def dispatch(environ, start_response):
        path = environ['PATH_INFO']
        if not path.startswith(f'{prefix}/'):
            start_response('404 Not Found', [('Content-Type', 'text/plain')])
            return [b'somebody else']
        return app({**environ, 'SCRIPT_NAME': environ['SCRIPT_NAME'] + prefix, 'PATH_INFO': path[len(prefix):]},
                   start_response)
    return dispatch


def noting(app, events):
    """Return a WSGI application around another that adds the status of each answer to `events`."""
    def wrapped(environ, start_response):
        def start(status, headers, *rest):
            events.append(('answer', status[:3]))
            return start_response(status, headers, *rest)
        return app(environ, start)
    return wrapped


def record_disk(monkeypatch):
    """Return a list that grows by each flush, with inode and size (0 for a folder), and by each rename."""
    happened, fsync, replace = [], os.fsync, os.replace

    def recorded_fsync(handle):
        fsync(handle)
        found = os.fstat(handle)
        happened.append(('fsync', found.st_ino, 0 if stat.S_ISDIR(found.st_mode) else found.st_size))

    def recorded_replace(source, target):
        replace(source, target)
        happened.append(('rename', os.path.basename(target)))

    monkeypatch.setattr(os, 'fsync', recorded_fsync)
    monkeypatch.setattr(os, 'replace', recorded_replace)
    return happened


def is_open(route):
    """Tell whether a route lets everybody in."""
    return (route.method, route.path) in PUBLIC | DOORS


def is_page(route):
    """Tell whether a route is for browsers: a cookie alone opens it, as it opens nothing else."""
    programs = re.match(r'/(api/v[0-9]+|ci/(api|builds|runners|projects)|hooks)(/|$)', route.path)
    return not programs and '.git/' not in route.path and (route.method, route.path) not in MONITORED


def fail_of_silence(ci, clock):
    """Let the time pass until the job that nothing more is heard of fails, which is after ten minutes sharp."""
    clock.advance(599)
    ci.sweep()
    assert ci.find_job(1)['status'] == 'running'
    clock.advance(1)
    ci.sweep()
    assert (ci.find_job(1)['status'], ci.find_job(1)['failure_reason']) == ('failed', 'stuck_or_timeout_failure')
