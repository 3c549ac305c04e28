"""Large archives and traces come and go, and the server's memory hardly notices."""

import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest
from support import FORM, PLAIN, SHA, UPLOAD, Runner, Served, call

import minici

BLOCK = os.urandom(minici.MIB)
GROWTH = 60 * minici.MIB


def peak_memory(process):
    """Return the most bytes of memory a process has had so far; where only the present is known, that."""
    status = Path(f'/proc/{process.pid}/status')
    if status.exists():
        return int(re.search(r'VmHWM:\s*([0-9]+) kB', status.read_text())[1]) * 1024
    shown = subprocess.run(['ps', '-o', 'rss=', '-p', str(process.pid)], capture_output=True, text=True, check=True)
    return int(shown.stdout) * 1024


@pytest.fixture
def served(tmp_path):
    """A server process with a claimed job: the process, its data directory, the claim and a private token."""
    with minici.Coordinator(tmp_path / 'ci.sqlite') as ci:
        ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content=PLAIN)
        claim, token = Runner(ci).claim(), ci.create_private_token()
        cookie = f'minici_{ci.instance}={ci.sign_in_with(token)}'
    with Served(ci.db.path, '--max-trace-size', '300M') as server:
        server.cookie = cookie
        yield server, ci.data, claim, token


@pytest.mark.parametrize('chunked', [False, True], ids=['with its length', 'chunked'])
def test_an_archive_goes_up_and_down_while_the_servers_memory_grows_by_less_than_60_mb(served, chunked, form, figures):
    server, data, claim, token = served
    blocks = form(90, 500)
    size = len(BLOCK) * blocks
    digest, before, head, tail = hashlib.sha256(), peak_memory(server.process), *UPLOAD

    def body():
        yield head
        for number in range(blocks):
            block = number.to_bytes(8, 'big') + BLOCK[8:]
            digest.update(block)
            yield block
        yield tail

    connection = server.connect()
    headers = {**FORM, 'JOB-TOKEN': claim.token,
               **({} if chunked else {'Content-Length': str(len(head) + size + len(tail))})}
    connection.request('POST', '/api/v4/jobs/1/artifacts', body(), headers, encode_chunked=chunked)
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (201, b'201')
    assert peak_memory(server.process) - before < GROWTH

    connection.request('GET', '/api/v4/projects/1/jobs/1/artifacts', headers={'PRIVATE-TOKEN': token})
    answer, received = connection.getresponse(), hashlib.sha256()
    assert int(answer.headers['Content-Length']) == size
    while piece := answer.read(minici.MIB):
        received.update(piece)
    assert received.digest() == digest.digest()
    assert peak_memory(server.process) - before < GROWTH
    assert call(connection, 'DELETE', '/api/v4/projects/1/jobs/1/artifacts', headers={'PRIVATE-TOKEN': token})[0] == 204
    connection.close()
    assert sum(path.stat().st_size for path in data.rglob('*')) < minici.MIB
    grown = (peak_memory(server.process) - before) / minici.MIB
    figures('memory grows by less than 60 MB', f'{blocks} MB up and down: {grown:.0f} MB')


def received(connection, path, **headers):
    """Read an answer piece by piece; return its status and its size."""
    connection.request('GET', path, headers=headers)
    answer, size = connection.getresponse(), 0
    while piece := answer.read(minici.MIB):
        size += len(piece)
    return answer.status, size


def slow_reader(port, path, token):
    """Ask for an answer and read only how it begins; return the connection."""
    stream = socket.socket()
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stream.settimeout(60)
    stream.connect(('127.0.0.1', port))
    stream.sendall(f'GET {path} HTTP/1.1\r\nHost: localhost\r\nPRIVATE-TOKEN: {token}\r\n\r\n'.encode())
    assert stream.recv(12) == b'HTTP/1.1 200'
    return stream


def test_a_large_trace_is_taken_shown_and_read_slowly_in_little_memory(served, form, figures):
    server, _, claim, token = served
    blocks, readers = form((24, 20), (200, 80))
    block = (b'x' * 1023 + b'\n') * 1024
    before, times = peak_memory(server.process), {}
    with contextlib.closing(server.connect()) as connection:
        for start in range(0, blocks * len(block), len(block)):
            status, headers, _ = call(connection, 'PATCH', '/api/v4/jobs/1/trace', block, {
                'JOB-TOKEN': claim.token, 'Content-Range': f'{start}-{start + len(block) - 1}'})
            assert (status, headers['Range']) == (202, f'0-{start + len(block)}')
        log = '/demo/-/jobs/1'
        for path in (log, f'{log}/plain', f'{log}/lines?search=xyz', f'{log}/raw', '/api/v4/projects/1/jobs/1/trace'):
            began = time.monotonic()
            status, size = received(connection, path, **{'PRIVATE-TOKEN': token, 'Cookie': server.cookie})
            times[path] = time.monotonic() - began
            assert status == 200, path
        assert size == blocks * len(block)
        shown = peak_memory(server.process) - before
        slow = [slow_reader(server.port, path, token) for _ in range(readers)]
        began = time.monotonic()
        assert call(connection, 'GET', '/api/v4/version', headers={'PRIVATE-TOKEN': token})[0] == 200
        waited = time.monotonic() - began
        grown = peak_memory(server.process) - before
        for stream in slow:
            stream.close()
        final = json.dumps({'token': claim.token, 'state': 'success'})
        assert call(connection, 'PUT', '/api/v4/jobs/1', final, {'Content-Type': 'application/json'})[0] == 200
        assert call(connection, 'POST', f'{path.removesuffix("/trace")}/erase',
                    headers={'PRIVATE-TOKEN': token})[0] == 201
    assert grown < GROWTH
    assert waited < 3.0     # three times the target
    figures('streamed, capped', f'{blocks} MB of trace: page, plain text, search, raw text and API took '
            f'{shown / minici.MIB:.0f} MB and {max(times.values()):.1f} s at most, {readers} readers who do not read '
            f'{(grown - shown) / minici.MIB:.0f} MB, a probe beside them {waited * 1000:.0f} ms')
