"""Trust before work: what strangers send is refused before it is read, and takes nothing from others."""

import contextlib
import errno
import json
import os
import socket
import tempfile
import threading
import time

import pytest
from support import FORM, UPLOAD, Client

import minici

MIB = 2 ** 20
HUGE = 3 * 2 ** 30


class Wire:
    """A connection to the server on which a test writes bytes as it likes."""

    def __init__(self, server):
        self.socket = socket.create_connection(('127.0.0.1', server.port), timeout=20)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, method, path, body=b'', **headers):
        lines = [f'{method} {path} HTTP/1.1', 'Host: localhost']
        lines += [f'{name.replace("_", "-")}: {value}' for name, value in headers.items()]
        self.socket.sendall('\r\n'.join([*lines, '', '']).encode() + body)

    def answer(self):
        """Return the status and the body of the next answer."""
        head = b''
        while not head.endswith(b'\r\n\r\n'):
            piece = self.socket.recv(1)
            if not piece:
                return None, head
            head += piece
        lengths = [int(line.partition(b':')[2]) for line in head.lower().split(b'\r\n')
                   if line.startswith(b'content-length:')]
        body = b''
        while lengths and len(body) < lengths[0]:
            body += self.socket.recv(lengths[0] - len(body))
        return int(head.split()[1]), body

    def is_closed(self):
        """Wait until the other end has hung up."""
        with contextlib.suppress(ConnectionError):
            while self.socket.recv(4096):
                pass
        return True


@pytest.fixture
def wire(server):
    with Wire(server) as opened:
        yield opened


def json_of(size, **members):
    """Return a JSON object with these members and a last one that makes it `size` bytes long or more."""
    return json.dumps({**members, 'filling': 'x' * size}).encode()


JSON = {'Content_Type': 'application/json'}


# -- refused when the headers are complete

@pytest.mark.parametrize('method, path, headers, expected', [
    ('POST', '/api/v4/nothing/artifacts', {}, 404),
    ('GET', '/favicon.ico', {}, 413),
    ('PUT', '/api/v4/projects', JSON, 405),
    ('POST', '/api/v4/jobs/1/artifacts', {'JOB_TOKEN': 'mcb-wrong'}, 403),
    ('POST', '/ci/api/v1/builds/1/artifacts', {'BUILD_TOKEN': 'mcb-wrong'}, 403),
    ('PATCH', '/api/v4/jobs/1/trace', {'JOB_TOKEN': 'mcb-wrong', 'Content_Range': '0-9'}, 403),
    ('PATCH', '/api/v4/jobs/1/trace', {'Content_Range': '0-9'}, 403),
    ('POST', '/api/v4/projects', {'PRIVATE_TOKEN': 'mcp-wrong', **JSON}, 401),
    ('POST', '/hooks/group/demo', {'X_Gitlab_Token': 'wrong', **JSON}, 403),
    ('POST', '/hooks/group/demo', JSON, 403)])
def test_a_stranger_is_answered_before_the_body_is_sent(job, wire, method, path, headers, expected):
    wire.send(method, path, Content_Length=HUGE, **headers)
    status, _ = wire.answer()
    assert status == expected


def test_a_body_larger_than_anybody_may_send_is_refused_before_it_is_sent(job, token, server):
    for path, headers in (('/api/v4/projects', {'PRIVATE_TOKEN': token, **JSON}),
                          (f'/api/v4/jobs/{job.job["id"]}/artifacts', {'JOB_TOKEN': job.token, **JSON})):
        with Wire(server) as wire:
            wire.send('POST', path, Content_Length=HUGE, **headers)
            status, body = wire.answer()
            assert status == 413
            assert b'bytes' in body


@pytest.mark.parametrize('kind', ['wrong token', 'too large', 'no route'])
def test_no_client_is_asked_to_continue_with_a_body_that_nobody_wants(job, wire, kind):
    path = '/api/v4/nothing' if kind == 'no route' else f'/api/v4/jobs/{job.job["id"]}/artifacts'
    wire.send('POST', path, Expect='100-continue', Content_Length=HUGE if kind == 'too large' else 100_000,
              JOB_TOKEN='mcb-wrong' if kind == 'wrong token' else job.token)
    assert wire.answer()[0] == {'wrong token': 403, 'too large': 413, 'no route': 404}[kind]


def test_a_client_that_may_send_its_body_is_asked_to_continue(ci, job, wire):
    body = UPLOAD[0] + b'x' * 200_000 + UPLOAD[1]
    wire.send('POST', f'/api/v4/jobs/{job.job["id"]}/artifacts', Expect='100-continue', Content_Length=len(body),
              JOB_TOKEN=job.token, Content_Type=FORM['Content-Type'])
    assert wire.answer() == (100, b'')
    wire.socket.sendall(body)
    assert wire.answer()[0] == 201
    assert ci.find_artifact(job.job['id'])['size'] == 200_000


def test_a_client_that_sends_on_sees_its_refusal(job, server):
    for _ in range(20):
        with Wire(server) as wire:
            wire.send('POST', f'/api/v4/jobs/{job.job["id"]}/artifacts', Content_Length=HUGE, JOB_TOKEN=job.token)
            for _ in range(8):
                wire.socket.sendall(b'x' * MIB)
            assert wire.answer()[0] == 413


def test_what_follows_a_refused_request_is_no_request(ci, project, token, wire):
    smuggled = f'DELETE /api/v4/projects/{project["id"]} HTTP/1.1\r\nHost: x\r\nPRIVATE-TOKEN: {token}\r\n\r\n'.encode()
    wire.send('POST', '/api/v4/nothing', smuggled * 3, Content_Length=HUGE)
    assert wire.answer()[0] == 404
    assert wire.answer()[0] is None
    assert ci.find_project(project['id'])


def test_a_refused_client_that_goes_on_for_ever_is_hung_up_on(monkeypatch, wire):
    monkeypatch.setattr(minici, 'MAX_DRAINED', MIB)
    wire.send('POST', '/api/v4/nothing', Content_Length=HUGE)
    assert wire.answer()[0] == 404
    with pytest.raises(ConnectionError):
        wire.socket.sendall(b'x' * 500 * MIB)


def test_a_refused_client_that_stays_is_hung_up_on(monkeypatch, wire):
    monkeypatch.setattr(minici, 'DRAIN_TIMEOUT', 0.2)
    wire.send('POST', '/api/v4/nothing', Content_Length=HUGE)
    assert wire.answer()[0] == 404
    assert wire.is_closed()


# -- tokens in a body

@pytest.mark.parametrize('size', [1000, 500_000])
def test_a_token_at_the_start_of_a_body_is_found_whatever_the_size(ci, client, job, size):
    content = {'token': job.token, 'state': 'success', 'trace': 'x' * size}
    client.call('PUT', f'/api/v4/jobs/{job.job["id"]}', json=content, status=200)
    assert len(ci.read_trace(job.job)) == size


@pytest.mark.parametrize('kind', ['json', 'form', 'multipart'])
@pytest.mark.parametrize('place', ['start', 'end'])
def test_a_token_must_begin_within_the_first_64_kib_of_a_body(ci, server, job, kind, place):
    name = 'token' if kind == 'multipart' else 'private_token'
    secret = job.token if kind == 'multipart' else ci.create_private_token()
    path, filling, expected = '/api/v4/projects', 'x' * 100_000, 201
    if kind == 'json':
        members = {'path': 'one', 'description': filling}
        ordered = {name: secret, **members} if place == 'start' else {**members, name: secret}
        body, content_type = json.dumps(ordered).encode(), 'application/json'
    elif kind == 'form':
        pairs = [f'{name}={secret}', 'path=one', f'description={filling}']
        body = '&'.join(pairs if place == 'start' else pairs[::-1]).encode()
        content_type = 'application/x-www-form-urlencoded'
    else:
        path = f'/api/v4/jobs/{job.job["id"]}/artifacts'
        token = f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{secret}\r\n'.encode()
        file = UPLOAD[0] + filling.encode() + b'\r\n'
        body = (token + file if place == 'start' else file + token) + b'--x--\r\n'
        content_type = FORM['Content-Type']
    with Wire(server) as wire:
        wire.send('POST', path, body, Content_Type=content_type, Content_Length=len(body))
        status, said = wire.answer()
    assert status == (expected if place == 'start' else 413)
    assert place == 'start' or b'must begin within its first 65536 bytes' in said
    assert list(ci.artifacts.incoming.iterdir()) == []


@pytest.mark.parametrize('body', [b'[' * 60_000, b'{"a":' * 10_000, b'{"token": "x', b'{"token": 5, ', b'null', b'\xff',
                                  b'{"token":"a"}' + b' ' * 100_000, b'{"a":[[],' * 20_000])
def test_a_body_of_any_shape_from_a_stranger_is_refused_in_words(client, job, body):
    for method, path in (('PUT', f'/api/v4/jobs/{job.job["id"]}'), ('POST', '/api/v4/runners')):
        answer = client.call(method, path, data=body, headers={'Content-Type': 'application/json'})
        assert answer.status_int in (400, 403, 413)
        assert json.loads(answer.body)


def test_the_same_holds_under_any_wsgi_server(ci, client, job):
    read = []

    def counting(environ, start_response):
        class Stream:
            def __init__(self, stream):
                self.stream = stream

            def read(self, size=-1):
                piece = self.stream.read(size)
                read.append(len(piece))
                return piece
        return minici.create_app(ci)({**environ, 'wsgi.input': Stream(environ['wsgi.input'])}, start_response)
    stranger = Client(ci, counting)
    stranger.call('PUT', f'/api/v4/jobs/{job.job["id"]}', data=json_of(5 * MIB), status=413,
                  headers={'Content-Type': 'application/json'})
    assert 0 < sum(read) <= 64 * 1024
    read.clear()
    stranger.call('POST', f'/api/v4/jobs/{job.job["id"]}/artifacts', data=b'x' * MIB, status=403,
                  headers={'JOB-TOKEN': 'mcb-wrong', **FORM})
    assert sum(read) == 0


@pytest.mark.parametrize('chunked', [False, True])
def test_nothing_of_a_stranger_is_stored_on_the_disk(ci, server, job, monkeypatch, chunked):
    stored = []
    monkeypatch.setattr(tempfile, 'TemporaryFile', lambda *_, **__: stored.append(1) or 1 / 0)
    body = json_of(2 * MIB)
    with Wire(server) as wire:
        if chunked:
            wire.send('PUT', f'/api/v4/jobs/{job.job["id"]}', Transfer_Encoding='chunked', **JSON)
            wire.socket.sendall(f'{len(body):x}\r\n'.encode() + body + b'\r\n0\r\n\r\n')
        else:
            wire.send('PUT', f'/api/v4/jobs/{job.job["id"]}', body, Content_Length=len(body), **JSON)
        assert wire.answer()[0] == 413
    assert stored == []


def test_what_all_strangers_send_together_is_limited(ci, server, job, token, monkeypatch):
    monkeypatch.setattr(minici, 'MAX_UNTRUSTED_MEMORY', 200_000)
    body = json_of(60_000)
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(server)) for _ in range(4)]
        for wire in wires:
            wire.send('PUT', '/api/v4/jobs/1', body[:-1000], Content_Length=len(body), **JSON)
        status, said = wires[-1].answer()
        assert status == 503
        assert b'unauthenticated' in said
        known = stack.enter_context(Wire(server))
        known.send('GET', '/api/v4/projects', PRIVATE_TOKEN=token)
        assert known.answer()[0] == 200
        for wire in wires[:3]:
            wire.socket.sendall(body[-1000:])
            assert wire.answer()[0] in (400, 403)
    with Wire(server) as wire:
        wire.send('PUT', '/api/v4/jobs/1', body, Content_Length=len(body), **JSON)
        assert wire.answer()[0] in (400, 403)


# -- connections

@pytest.mark.parametrize('version', ['1.0', '1.1'])
def test_a_body_with_two_lengths_is_refused_and_the_connection_closed(wire, version):
    wire.socket.sendall(f'POST /api/v4/projects HTTP/{version}\r\nHost: x\r\nContent-Length: 5\r\n'
                        'Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n'.encode())
    assert wire.answer()[0] == 400
    assert wire.answer()[0] is None


def test_a_tls_handshake_is_answered_in_words_and_the_connection_closed(wire):
    wire.socket.sendall(bytes.fromhex('16030100c8010000c40303') + os.urandom(180))
    status, said = wire.answer()
    assert status == 400
    assert b'plain HTTP' in said
    wire.socket.shutdown(socket.SHUT_WR)
    assert wire.is_closed()


@pytest.mark.parametrize('sent', [b'', b'GET / HTTP/1.1\r\nHost:',
                                  b'POST /api/v4/runners HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\nx'])
def test_a_client_that_dawdles_is_hung_up_on(monkeypatch, wire, sent):
    monkeypatch.setattr(minici, 'HEADER_TIMEOUT', 0.2)
    wire.socket.sendall(sent)
    assert wire.is_closed()


def test_an_address_that_holds_too_many_silent_connections_loses_the_oldest(monkeypatch, server, token):
    monkeypatch.setattr(minici, 'MAX_STRANGERS', 5)
    with contextlib.ExitStack() as stack:
        known = stack.enter_context(Wire(server))
        known.send('GET', '/api/v4/version', PRIVATE_TOKEN=token)
        assert known.answer()[0] == 200
        silent = [stack.enter_context(Wire(server)) for _ in range(12)]
        assert all(wire.is_closed() for wire in silent[:7])
        newest = stack.enter_context(Wire(server))
        for wire in (known, newest):
            wire.send('GET', '/api/v4/version', PRIVATE_TOKEN=token)
            assert wire.answer()[0] == 200


def test_a_full_disk_is_503_and_not_a_reset(server, job, token, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(minici.tempfile, 'TemporaryFile', full)
    jobs = f'/api/v4/jobs/{job.job["id"]}'
    for method, path, headers in (
            ('PATCH', f'{jobs}/trace', {'Content_Range': '0-2097151'}), ('PUT', f'{jobs}?token={job.token}', JSON),
            ('POST', f'{jobs}/artifacts', {'Content_Type': FORM['Content-Type']})):
        with Wire(server) as wire:
            wire.send(method, path, b'x' * 2 * MIB, Content_Length=2 * MIB, JOB_TOKEN=job.token, **headers)
            head = wire.socket.recv(12)
            assert head == b'HTTP/1.1 503'
            assert b'Retry-After' in wire.socket.recv(4096)


@pytest.mark.parametrize(('slow', 'others'), [
    (('GET', '/group/demo/-/jobs/1/plain'), [('PATCH', '/api/v4/jobs/1/trace'), ('GET', '/-/liveness')]),
    (('POST', '/hooks/1'), [('PATCH', '/api/v4/jobs/1/trace'), ('GET', '/api/v4/projects'), ('GET', '/')]),
], ids=['readers', 'pipeline files that take their time'])
def test_who_takes_long_never_takes_the_threads_of_others(ci, slow, others):
    entered, leave = threading.Semaphore(0), threading.Event()

    def application(environ, start_response):
        if environ['PATH_INFO'] == slow[1]:
            entered.release()
            leave.wait(30)
        start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', '2')])
        return [b'ok']

    with minici.Server(ci, application=application, threads=4) as server, contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(Wire(server)) for _ in range(20)]
        for one in crowd:
            one.send(*slow, Content_Length=0)
        assert entered.acquire(timeout=10)
        for method, path in others * 10:
            with Wire(server) as other:
                other.send(method, path, Content_Length=0)
                assert other.answer() == (200, b'ok')
        leave.set()
        assert [one.answer()[0] for one in crowd] == [200] * 20


def test_every_address_that_compiles_pipeline_files_has_threads_of_its_own():
    compiling = {(route.method, route.path) for route in minici.ROUTES if minici.COMPILING_PATH.search(route.path)}
    assert compiling == {
        ('POST', f'{minici.PROJECT}/pipeline'), ('POST', f'{minici.PROJECT}/trigger/pipeline'),
        ('POST', f'{minici.PROJECT}/ref/<ref:path>/trigger/pipeline'), ('POST', '/hooks/<project:project_path>'),
        ('POST', '/api/v4/ci/lint'), ('POST', f'{minici.PROJECT}/ci/lint'), ('GET', f'{minici.PROJECT}/ci/lint'),
        ('POST', f'{minici.SCHEDULE}/play'), ('POST', f'{minici.JOB}/play'),
        *(('POST', f'{start}/projects/<id:project_key>/refs/<ref:path>/trigger')
          for start in ('/ci/api/v1', '/api/v1', '/ci'))}
    for page in ('pipelines/new', 'pipeline_schedules/1/play', 'jobs/1/play'):
        assert minici.COMPILING_PATH.search(f'/group/demo/-/{page}')


def test_every_address_of_running_jobs_and_monitors_is_served_by_their_own_threads():
    for route in minici.ROUTES:
        path = route.path.replace('<id:job>', '7')
        running = route.dialect is not None and ('/jobs/' in path or '/builds/' in path)
        urgent = running or route.auth is minici.monitor
        assert bool(minici.URGENT_PATH.search(path)) == urgent, path


def test_time_is_measured_from_the_first_byte_of_each_request(monkeypatch, wire, token):
    monkeypatch.setattr(minici, 'HEADER_TIMEOUT', 1.5)
    for _ in range(3):
        wire.send('GET', '/api/v4/version', PRIVATE_TOKEN=token)
        assert wire.answer()[0] == 200
        time.sleep(1)
