"""Half a gigabyte goes up and down, and the server's memory hardly notices."""

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from support import FORM, PLAIN, SHA, UPLOAD, Runner, Served, call

import minici

BLOCK, BLOCKS = os.urandom(minici.MIB), 500
SIZE = len(BLOCK) * BLOCKS
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
    with Served(ci.db.path) as server:
        yield server, ci.data, claim, token


@pytest.mark.parametrize('chunked', [False, True], ids=['with its length', 'chunked'])
def test_500_megabytes_go_up_and_down_while_the_servers_memory_grows_by_less_than_60(served, chunked):
    server, data, claim, token = served
    digest, before, head, tail = hashlib.sha256(), peak_memory(server.process), *UPLOAD

    def body():
        yield head
        for number in range(BLOCKS):
            block = number.to_bytes(8, 'big') + BLOCK[8:]
            digest.update(block)
            yield block
        yield tail

    connection = server.connect()
    headers = {**FORM, 'JOB-TOKEN': claim.token,
               **({} if chunked else {'Content-Length': str(len(head) + SIZE + len(tail))})}
    connection.request('POST', '/api/v4/jobs/1/artifacts', body(), headers, encode_chunked=chunked)
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (201, b'201')
    assert peak_memory(server.process) - before < GROWTH

    connection.request('GET', '/api/v4/projects/1/jobs/1/artifacts', headers={'PRIVATE-TOKEN': token})
    answer, received = connection.getresponse(), hashlib.sha256()
    assert int(answer.headers['Content-Length']) == SIZE
    while piece := answer.read(minici.MIB):
        received.update(piece)
    assert received.digest() == digest.digest()
    assert peak_memory(server.process) - before < GROWTH
    assert call(connection, 'DELETE', '/api/v4/projects/1/jobs/1/artifacts', headers={'PRIVATE-TOKEN': token})[0] == 204
    connection.close()
    assert sum(path.stat().st_size for path in data.rglob('*')) < minici.MIB


def test_a_trace_of_a_hundred_megabytes_goes_out_without_passing_through_memory(served):
    server, _, claim, token = served
    connection = server.connect()
    for start in range(0, 100 * minici.MIB, len(BLOCK)):
        status, headers, _ = call(connection, 'PATCH', '/api/v4/jobs/1/trace', BLOCK, {
            'JOB-TOKEN': claim.token, 'Content-Range': f'{start}-{start + len(BLOCK) - 1}'})
        assert (status, headers['Range']) == (202, f'0-{start + len(BLOCK)}')
    before = peak_memory(server.process)
    connection.request('GET', '/api/v4/projects/1/jobs/1/trace', headers={'PRIVATE-TOKEN': token})
    answer = connection.getresponse()
    while piece := answer.read(len(BLOCK)):
        assert piece == BLOCK
    assert peak_memory(server.process) - before < GROWTH / 2
    final = json.dumps({'token': claim.token, 'state': 'success'})
    assert call(connection, 'PUT', '/api/v4/jobs/1', final, {'Content-Type': 'application/json'})[0] == 200
    assert call(connection, 'POST', '/api/v4/projects/1/jobs/1/erase', headers={'PRIVATE-TOKEN': token})[0] == 201
    connection.close()
