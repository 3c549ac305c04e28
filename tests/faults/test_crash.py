"""Sudden death: the server and its clients are killed at any moment, and what was acknowledged is still there."""

import contextlib
import hashlib
import http.client
import json
import os
import random
import signal
import socket
import sqlite3
import threading

import pytest
from support import FORM, PLAIN, SHA, UPLOAD, Runner, Served, archive, call, fail_of_silence, python

import minici


class Worker(threading.Thread):
    """A client that repeats `step(connection)` until the server dies under it or the test says stop."""

    def __init__(self, server, step):
        super().__init__()
        self.server, self.step, self.steps, self.error = server, step, 0, None
        self.stopping = threading.Event()

    def run(self):
        connection = self.server.connect()
        try:
            while not self.stopping.is_set():
                self.step(connection)
                self.steps += 1
        except (OSError, http.client.HTTPException):
            pass  # the server was killed
        except AssertionError as error:
            self.error = error
        finally:
            connection.close()


class Tracer:
    """A runner's trace and how much of it was acknowledged."""

    def __init__(self, job_id, token, chance):
        self.path, self.headers = f'/ci/api/v1/builds/{job_id}/trace.txt', {'BUILD-TOKEN': token}
        self.job_id, self.chance, self.text = job_id, chance, chance.randbytes(3_000_000)
        self.acknowledged = self.start = 0

    def patch(self, connection, size=None):
        """Send the next chunk; go on from where the server says that the trace ends."""
        size = size or int(2 ** self.chance.uniform(0, 16))
        chunk = self.text[self.start:self.start + size]
        status, headers, _ = call(connection, 'PATCH', self.path, chunk, {
            **self.headers, 'Content-Range': f'{self.start}-{self.start + len(chunk)}'})
        assert status in (202, 416), status
        self.start = int(headers['Range'].partition('-')[2])
        if status == 202:
            self.acknowledged = self.start

    def check(self, connection, ci_token):
        """See that nothing acknowledged is lost or changed, and that a repeated chunk is told the true length."""
        status, _, trace = call(connection, 'GET', f'/api/v4/projects/1/jobs/{self.job_id}/trace',
                                headers={'PRIVATE-TOKEN': ci_token})
        assert status == 200
        assert len(trace) >= self.acknowledged
        assert trace == self.text[:len(trace)]
        if trace:
            status, headers, _ = call(connection, 'PATCH', self.path, self.text[:7], {
                **self.headers, 'Content-Range': '0-7'})
            assert (status, headers['Range']) == (416, f'0-{len(trace)}')
        self.start = len(trace)


class Uploader:
    """A runner that uploads ever new archives of one job, each in the place of the one before."""

    def __init__(self, job_id, token, chance):
        self.path = f'/ci/api/v1/builds/{job_id}/artifacts'
        self.headers, self.chance = {'BUILD-TOKEN': token, **FORM}, chance
        self.acknowledged = self.sent = None

    def upload(self, connection):
        """Upload an archive of chance size."""
        content = self.chance.randbytes(int(2 ** self.chance.uniform(0, 21)))
        self.sent = hashlib.sha256(content).hexdigest()
        status, *_ = call(connection, 'POST', self.path, content.join(UPLOAD), self.headers)
        assert status == 201, status
        self.acknowledged = self.sent

    def check(self, connection):
        """See that the archive is the one acknowledged or the one that was under way, and whole."""
        status, _, content = call(connection, 'GET', self.path, headers={'BUILD-TOKEN': self.headers['BUILD-TOKEN']})
        if status == 404:
            assert self.acknowledged is None
        else:
            assert hashlib.sha256(content).hexdigest() in (self.acknowledged, self.sent)
            self.acknowledged = hashlib.sha256(content).hexdigest()


class Claimer:
    """A runner that claims one job after the other."""

    def __init__(self, token):
        self.body, self.claimed = f'{{"token": "{token}"}}', []

    def claim(self, connection):
        """Claim a job and note its number."""
        status, _, body = call(connection, 'POST', '/api/v4/jobs/request', self.body,
                               {'Content-Type': 'application/json'})
        assert status == 201, status
        self.claimed.append(json.loads(body)['id'])


@pytest.fixture
def prepared(tmp_path):
    """A database of 500 jobs, six of them claimed: its path, a private token, a runner's token and the claims."""
    with minici.Coordinator(tmp_path / 'ci.sqlite', fsync=False) as ci:
        jobs = [minici.JobSpec(f'job {index}', ['make']) for index in range(500)]
        ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content=minici.PipelineSpec(['test'], jobs))
        runner = Runner(ci)
        return ci.db.path, ci.create_private_token(), runner.token, [runner.claim() for _ in range(6)]


def test_a_server_killed_at_chance_loses_nothing_it_acknowledged_and_shows_no_half(prepared, form):
    db, token, runner_token, claims = prepared
    chance, claimer = random.Random(1), Claimer(runner_token)
    tracers = [Tracer(claim.job['id'], claim.token, random.Random(claim.token)) for claim in claims[:4]]
    uploaders = [Uploader(claim.job['id'], claim.token, random.Random(claim.token)) for claim in claims[4:]]

    def look(server):
        with contextlib.closing(server.connect()) as connection:
            for tracer in tracers:
                tracer.check(connection, token)
            for uploader in uploaders:
                uploader.check(connection)

    steps = [*(tracer.patch for tracer in tracers), *(uploader.upload for uploader in uploaders), claimer.claim]
    for _ in range(form(3, 18)):
        with Served(db) as server:
            look(server)
            workers = [Worker(server, step) for step in steps]
            for worker in workers:
                worker.start()
            victim, enough = chance.choice(workers), chance.randrange(1, 12)
            while victim.is_alive() and victim.steps < enough and len(claimer.claimed) < 480:
                victim.join(0.001)
            server.end(signal.SIGKILL)
        for worker in workers:
            worker.join()
            assert worker.error is None
        with sqlite3.connect(db) as c:
            assert c.execute('PRAGMA integrity_check').fetchall() == [('ok',)]
        c.close()
    with Served(db) as server, contextlib.closing(server.connect()) as connection:
        look(server)
        for tracer in tracers:
            while tracer.start < len(tracer.text):
                tracer.patch(connection, 2 ** 20)
    with minici.Coordinator(db) as ci:
        assert [ci.read_trace(tracer.job_id) for tracer in tracers] == [tracer.text for tracer in tracers]
        assert len(claimer.claimed) == len(set(claimer.claimed)) > form(0, 10)
        assert {ci.find_job(job)['status'] for job in claimer.claimed} == {'running'}


# -- clients

CLIENT = """
import itertools, json, sys, urllib.request

def send(method, path, body, **headers):
    headers = {name.replace('_', '-'): value for name, value in headers.items()}
    return urllib.request.urlopen(urllib.request.Request(sys.argv[1] + path, body, headers, method=method))

job = json.load(send('POST', '/api/v4/jobs/request', json.dumps({'token': sys.argv[2]}).encode(),
                     Content_Type='application/json'))
print('claimed', flush=True)
sys.stdin.readline()
start = 0
for number in itertools.count():
    line = f'line {number}\\n'.encode()
    send('PATCH', f'/api/v4/jobs/{job["id"]}/trace', line, JOB_TOKEN=job['token'],
         Content_Range=f'{start}-{start + len(line) - 1}')
    start += len(line)
    print(start, flush=True)
"""


def test_a_runner_killed_in_the_middle_of_its_trace_has_its_job_failed_and_the_trace_kept(
        ci, clock, pipeline, runner, server):
    client = python(CLIENT, server.url, runner.token)
    assert client.stdout.readline() == 'claimed\n'
    client.stdin.write('go\n')
    client.stdin.flush()
    for _ in range(20):
        client.stdout.readline()
    client.kill()
    rest = client.stdout.read()
    client.communicate()
    fail_of_silence(ci, clock)
    acknowledged = [int(length) for length in rest.splitlines(keepends=True) if length.endswith('\n')]
    whole = ''.join(f'line {number}\n' for number in range(100_000)).encode()
    trace = ci.read_trace(1)
    assert whole.startswith(trace)
    assert len(trace) >= max([150, *acknowledged])


def test_a_runner_killed_before_its_first_word_has_its_job_handed_to_another(ci, clock, pipeline, runner, server):
    client = python(CLIENT, server.url, runner.token)
    assert client.stdout.readline() == 'claimed\n'
    client.kill()
    client.communicate()
    clock.advance(120)
    assert runner.claim().job['id'] == 1


# -- ends that are not sudden

@pytest.fixture
def running(tmp_path):
    """A server process with one claimed job: the process, the database's path, the claim and a private token."""
    with minici.Coordinator(tmp_path / 'ci.sqlite') as ci:
        ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content=PLAIN)
        claim, token = Runner(ci).claim(), ci.create_private_token()
        held = ci.authenticate_job(1, claim.token)
        part = ci.artifacts.receive()
        part.write(os.urandom(20_000_000))
        ci.store_artifacts(held, part, file_type='junit')
    with Served(ci.db.path) as server:
        yield server, ci.db.path, claim, token


def refuses_connections(server):
    """Tell whether the server has closed its door."""
    try:
        socket.create_connection(('127.0.0.1', server.port), timeout=60).close()
    except OSError:
        return True
    return False


def begin_upload(server, claim, length):
    """Return a connection on which the server has already read the headers of an upload."""
    connection = socket.create_connection(('127.0.0.1', server.port), timeout=60)
    connection.sendall(f'POST /api/v4/jobs/1/artifacts HTTP/1.1\r\nHost: x\r\nJOB-TOKEN: {claim.token}\r\n'
                       f'Expect: 100-continue\r\nContent-Type: {FORM["Content-Type"]}\r\n'
                       f'Content-Length: {length}\r\n\r\n'.encode())
    assert connection.recv(100) == b'HTTP/1.1 100 Continue\r\n\r\n'
    return connection


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_server_told_to_end_takes_an_upload_in_flight_to_its_end_and_exits_0(running, number):
    server, db, claim, _ = running
    content = archive(a=os.urandom(3_000_000))
    body = content.join(UPLOAD)
    with begin_upload(server, claim, len(body)) as slow, slow.makefile('rb') as answer:
        slow.sendall(body[:1_000_000])
        server.process.send_signal(number)
        while not refuses_connections(server):
            pass
        for start in range(1_000_000, len(body), 100_000):
            slow.sendall(body[start:start + 100_000])
        assert answer.readline() == b'HTTP/1.1 201 Created\r\n'
    server.process.communicate(timeout=60)
    assert server.process.returncode == 0
    with minici.Coordinator(db) as ci, ci.open_artifacts(1)[1] as kept:
        assert kept.read() == content


def test_a_server_told_to_end_sends_a_download_in_flight_to_its_end(running):
    server, db, claim, token = running
    with minici.Coordinator(db) as ci:
        part = ci.artifacts.receive()
        part.write(bytes(30_000_000))
        ci.store_artifacts(ci.authenticate_job(1, claim.token), part)
    connection = server.connect()
    connection.request('GET', '/api/v4/projects/1/jobs/1/artifacts', headers={'PRIVATE-TOKEN': token})
    answer = connection.getresponse()
    assert answer.read(1_000_000) == bytes(1_000_000)
    server.process.send_signal(signal.SIGTERM)
    while not refuses_connections(server):
        pass
    assert answer.read() == bytes(29_000_000)
    connection.close()
    server.process.communicate(timeout=60)
    assert server.process.returncode == 0


def test_a_server_told_to_end_does_not_wait_for_clients_that_ask_nothing(running):
    server, *_ = running
    idle = [server.connect() for _ in range(3)]
    for connection in idle:
        assert call(connection, 'GET', '/api/v4/version')[0] == 401
    assert server.end(signal.SIGTERM) == 0
    for connection in idle:
        connection.close()


def test_a_second_signal_ends_the_server_at_once(running):
    server, _, claim, _ = running
    with begin_upload(server, claim, 1000):
        server.process.send_signal(signal.SIGTERM)
        while not refuses_connections(server):
            pass
        assert server.end(signal.SIGTERM) != 0
