"""A lock held outside, a stopped process, a polite end, and clients that are many or slow: nobody else waits."""

import asyncio
import contextlib
import functools
import json
import random
import resource
import signal
import socket
import sqlite3
import statistics
import threading
import time

import pytest
from support import FORM, SHA, UPLOAD, Runner, Served, archive, call, until

import minici

#: What a stall may cost on a machine that does other work besides: this many times its target.
PATIENCE = 3


@pytest.fixture
def world(tmp_path):
    """A server process over a database with a runner and forty claimed jobs."""
    with minici.Coordinator(tmp_path / 'ci.sqlite', fsync=False) as ci:
        jobs = [minici.JobSpec(f'job {number}', ['make']) for number in range(60)]
        ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content=minici.PipelineSpec(['test'], jobs))
        runner = Runner(ci)
        claims = [runner.claim() for _ in range(40)]
        idle = Runner(ci, run_untagged=False, tag_list=['none'])
        token = ci.create_private_token()
    with Served(tmp_path / 'ci.sqlite') as server:
        server.claims, server.runner, server.idle, server.token, server.db = claims, runner, idle, token, ci.db.path
        yield server


def poll(connection, token, **more):
    return call(connection, 'POST', '/api/v4/jobs/request', json.dumps({'token': token, **more}),
                {'Content-Type': 'application/json'})


def patch(connection, claim, start, data):
    return call(connection, 'PATCH', f'/api/v4/jobs/{claim.job["id"]}/trace', data, {
        'JOB-TOKEN': claim.token, 'Content-Range': f'{start}-{start + len(data) - 1}'})


def timed(action, *values):
    began = time.monotonic()
    result = action(*values)
    return time.monotonic() - began, result


def test_a_write_lock_held_outside_delays_no_poll_read_or_trace(world, form, figures):
    seconds = form(3, 10)
    slow, statuses, writes = [], set(), []

    def write(number):
        with contextlib.closing(world.connect()) as connection:
            body = json.dumps({'token': world.claims[number].token, 'state': 'success'})
            took, answer = timed(call, connection, 'PUT', f'/api/v4/jobs/{world.claims[number].job["id"]}', body,
                                 {'Content-Type': 'application/json'})
            writes.append((took, answer[0], answer[1]['Retry-After']))

    later = minici.PipelineSpec(['test'], [minici.JobSpec('later', ['make'], when='delayed', start_in=1)])
    with minici.Coordinator(world.db, fsync=False) as ci:
        ci.create_pipeline(1, 'main', sha=SHA, content=later)   # it is due while nobody can start it
    holder = sqlite3.connect(world.db, isolation_level=None)
    holder.execute('BEGIN IMMEDIATE')
    until_then = time.monotonic() + seconds
    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    [writer.start() for writer in writers]
    size = 0
    while time.monotonic() < until_then:
        with contextlib.closing(world.connect()) as connection:
            jobs = ('GET', '/api/v4/projects/1/jobs', b'', {'PRIVATE-TOKEN': world.token})
            machine = {'system_id': f's_{size}', 'info': {'version': f'18.{size}'}}    # each poll has news to note
            for action, *values in ((functools.partial(poll, **machine), world.idle.token), (call, *jobs),
                                    (patch, world.claims[20], size, b'line\n')):
                took, answer = timed(action, connection, *values)
                slow.append(took)
                statuses.add(answer[0])
        size += 5
        time.sleep(0.05)
    holder.execute('ROLLBACK')
    holder.close()
    [writer.join() for writer in writers]
    assert statuses == {204, 200, 202}
    assert {status for _, status, _ in writes} <= {200, 503}
    assert all(again.isdecimal() for _, status, again in writes if status == 503)
    with contextlib.closing(world.connect()) as connection:
        after, answer = timed(poll, connection, world.runner.token)
    assert answer[0] == 201
    worst, longest = max(slow), max(took for took, *_ in writes)
    assert worst < 1.0 * PATIENCE
    assert longest < 7.0 * PATIENCE
    assert after < 1.0 * PATIENCE
    figures('polls and reads unaffected; writes 200 or 503 within 7 s',
            f'lock held {seconds} s: {len(slow)} polls, reads and traces at most {worst * 1000:.0f} ms, '
            f'writes {sorted({status for _, status, _ in writes})} within {longest:.1f} s')


def test_a_server_that_is_stopped_for_a_while_goes_on_and_has_lost_nothing(world, form, figures):
    seconds = form(2, 20)
    claim, sent = world.claims[0], b''
    with contextlib.closing(world.connect()) as connection:
        for number in range(20):
            line = f'line {number}\n'.encode()
            assert patch(connection, claim, len(sent), line)[0] == 202
            sent += line
    world.process.send_signal(signal.SIGSTOP)
    answers = []

    def go_on():
        with contextlib.closing(world.connect()) as connection:
            answers.append(patch(connection, claim, len(sent), b'after\n')[0])

    waiting = threading.Thread(target=go_on)
    waiting.start()
    time.sleep(seconds)
    world.process.send_signal(signal.SIGCONT)
    waiting.join()
    with contextlib.closing(world.connect()) as connection:
        _, _, trace = call(connection, 'GET', f'/api/v4/projects/1/jobs/{claim.job["id"]}/trace',
                           headers={'PRIVATE-TOKEN': world.token})
        running = call(connection, 'GET', '/api/v4/projects/1/jobs?scope=running&per_page=100',
                       headers={'PRIVATE-TOKEN': world.token})[2]
    assert answers == [202]
    assert trace == sent + b'after\n'
    assert len(json.loads(running)) == 40
    figures('nothing lost', f'stopped for {seconds} s: 40 of 40 jobs still run, trace whole')


def test_sigterm_with_requests_in_flight_finishes_them_and_exits_0(world, figures):
    content = archive(a=random.Random(1).randbytes(300_000))
    body = content.join(UPLOAD)
    streams = []
    for number, claim in enumerate(world.claims[:20]):
        stream = socket.create_connection(('127.0.0.1', world.port), timeout=60)
        if number % 2:
            head = (f'POST /api/v4/jobs/{claim.job["id"]}/artifacts HTTP/1.1\r\nHost: x\r\nJOB-TOKEN: {claim.token}\r\n'
                    f'Content-Type: {FORM["Content-Type"]}\r\nContent-Length: {len(body)}\r\n\r\n').encode() + body
        else:
            head = (f'PATCH /api/v4/jobs/{claim.job["id"]}/trace HTTP/1.1\r\nHost: x\r\nJOB-TOKEN: {claim.token}\r\n'
                    'Content-Range: 0-99999\r\nContent-Length: 100000\r\n\r\n').encode() + b'x' * 100_000
        stream.sendall(head[:len(head) // 2])
        streams.append((stream, head[len(head) // 2:], 201 if number % 2 else 202))
    time.sleep(0.5)     # so that the server has read what was sent
    world.process.send_signal(signal.SIGTERM)
    until(lambda: refused(world.port))
    finished = 0
    for stream, rest, expected in streams:
        stream.sendall(rest)
        with stream.makefile('rb') as answer:
            finished += answer.readline().split()[1] == str(expected).encode()
        stream.close()
    world.process.communicate(timeout=60)
    assert world.process.returncode == 0
    assert finished == 20
    with minici.Coordinator(world.db) as ci:
        assert ci.check() == []
    figures('nothing lost, exit 0', f'{finished} of 20 requests in flight finished, exit 0')


def refused(port):
    try:
        socket.create_connection(('127.0.0.1', port), timeout=60).close()
    except ConnectionError:     # a reset: it was accepted by nobody, because the listener was just closed
        return True
    return False


# -- many and slow clients

async def exchange(port, head, body=b'', source=None):
    """Send one request on a connection of its own; return the seconds and the status."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection('127.0.0.1', port, local_addr=source)
    try:
        writer.write(f'{head}\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n'.encode() + body)
        await writer.drain()
        line = await reader.readline()
        await reader.read(65536)
        return time.monotonic() - began, int(line.split()[1])
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def test_idle_runners_and_running_jobs_are_answered_in_time(world, form, figures):
    idle, patching, seconds, pause = form((60, 5, 3, 1.5), (1000, 20, 60, 3.0))
    polls, patches, odd = [], [], []
    body = json.dumps({'token': world.idle.token}).encode()

    async def runner(until_then, number):
        await asyncio.sleep(pause * number / idle)
        while time.monotonic() < until_then:
            took, status = await exchange(world.port, 'POST /api/v4/jobs/request HTTP/1.1\r\nContent-Type: '
                                          'application/json', body, address_of(number))
            polls.append(took)
            odd.extend([status] if status != 204 else [])
            await asyncio.sleep(max(0, pause - took))

    async def job(until_then, claim):
        size = 0
        while time.monotonic() < until_then:
            took, status = await exchange(
                world.port, f'PATCH /api/v4/jobs/{claim.job["id"]}/trace HTTP/1.1\r\nConnection: close\r\n'
                f'JOB-TOKEN: {claim.token}\r\nContent-Range: {size}-{size + 1999}', b'x' * 2000)
            patches.append(took)
            odd.extend([status] if status != 202 else [])
            size += 2000
            await asyncio.sleep(max(0, pause - took))

    async def everybody():
        until_then = time.monotonic() + seconds
        await asyncio.gather(*(runner(until_then, number) for number in range(idle)),
                             *(job(until_then, claim) for claim in world.claims[:patching]))

    asyncio.run(everybody())
    assert odd == []
    p99 = statistics.quantiles(polls + patches, n=100)[98]
    assert p99 < 0.25 * PATIENCE
    figures('p99 under 250 ms', f'{idle:,} idle runners, {patching} patching, {seconds} s: '
            f'{len(polls) / seconds:.0f} polls a second, p99 {p99 * 1000:.0f} ms, 0 refused')


def probes(world, seconds):
    """Ask for the version with a token now and then; return the longest wait for the answer."""
    worst, until_then = 0.0, time.monotonic() + seconds
    while time.monotonic() < until_then:
        with contextlib.closing(world.connect()) as connection:
            took, answer = timed(call, connection, 'GET', '/api/v4/version', b'', {'PRIVATE-TOKEN': world.token})
        assert answer[0] == 200
        worst = max(worst, took)
        time.sleep(0.1)
    return worst


def test_clients_that_send_a_byte_a_second_keep_nobody_waiting(world, form, figures):
    count, seconds = form((40, 3), (200, 60))
    head = (b'GET /api/v4/version HTTP/1.1\r\nHost: x\r\nX-Slow: ' + b'x' * 200,
            b'PATCH /api/v4/jobs/1/trace HTTP/1.1\r\nHost: x\r\nJOB-TOKEN: ' + world.claims[0].token.encode()
            + b'\r\nContent-Range: 0-999\r\nContent-Length: 1000\r\n\r\n')
    stop = threading.Event()
    dropped = []

    def dribble():
        streams = [(connect_from(number, world.port), bytearray(head[number % 2] * 3)) for number in range(count)]
        for number, (stream, text) in enumerate(streams):
            if number % 2:
                stream.sendall(bytes(text[:len(head[1])]))
        while not stop.wait(1):
            for number, (stream, text) in enumerate(streams):
                try:
                    stream.send(bytes(text[:1]))
                    del text[:1]
                except OSError:
                    dropped.append(number)
        for stream, _ in streams:
            stream.close()

    dribbler = threading.Thread(target=dribble)
    dribbler.start()
    try:
        worst = probes(world, seconds)
    finally:
        stop.set()
        dribbler.join()
    assert worst < 1.0 * PATIENCE
    figures('a probe answered within 1 s throughout',
            f'{count} dribblers for {seconds} s: a probe waited {worst * 1000:.0f} ms at most, '
            f'{len(set(dropped))} dribblers were dropped')


def address_of(number):
    """Return one of many addresses of this machine: one alone may not have very many connections."""
    return f'127.0.1.{1 + number % 50}', 0


def connect_from(number, port):
    """Return a connection from one of many addresses of this machine."""
    return socket.create_connection(('127.0.0.1', port), timeout=60, source_address=address_of(number))


@pytest.mark.parametrize(('machines', 'count'), [(1, 150), (50, 2_100)])
def test_connections_that_say_nothing_keep_nobody_waiting(world, form, figures, machines, count):
    count, seconds = form((count, 3), (2 * count, 20))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 500)), hard))
    silent = []
    try:
        for number in range(count):
            with contextlib.suppress(OSError):
                silent.append(connect_from(number % machines, world.port))
        worst = probes(world, seconds)
    finally:
        for stream in silent:
            stream.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert worst < 1.0 * PATIENCE
    figures('a probe answered within 1 s throughout',
            f'{len(silent):,} silent connections of {machines} machines: a probe waited {worst * 1000:.0f} ms at most')
