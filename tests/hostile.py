"""Hostile clients, ten at a time, beside the requests of a runner that must be answered throughout.

`measure(row, seconds)` starts a server, the attack in a process of its own, and asks for what a runner
asks for; it returns the slowest answers and how much the server's memory grew. Run as a program, this
is the attacking process.
"""

import contextlib
import http.client
import io
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from support import FORM, SHA, UPLOAD, Origin, Runner, Served

import minici

SIDE_BY_SIDE = 10
JSON = {'Content-Type': 'application/json'}
MIB = 2 ** 20
ATTACKS = {}


def attack(function):
    """Make a function of the facts about a server an attack, which is repeated until it is stopped."""
    ATTACKS[function.__name__] = function
    return function


def send(facts, method, path, body=b'', headers=(), timeout=20):
    """Send one request and return its status, None if the server hung up."""
    connection = http.client.HTTPConnection('127.0.0.1', facts['port'], timeout=timeout)
    try:
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


@attack
def nested_json(facts):
    """JSON of many empty lists from nobody, as large as it may be."""
    send(facts, 'PUT', '/api/v4/jobs/1', b'{"a":[' + b'[],' * (5 * MIB) + b'[]]}', JSON)


@attack
def unwanted_bodies(facts):
    """Large bodies that no route and no token wants."""
    body = b'x' * (20 * MIB)
    send(facts, 'POST', '/nothing/artifacts', body)
    send(facts, 'POST', '/api/v4/jobs/1/artifacts', body, {'JOB-TOKEN': 'mcb-wrong'})
    send(facts, 'GET', '/favicon.ico', body)


@attack
def many_sections(facts):
    """The plain text of a trace with 17,000 sections that begin on one line."""
    send(facts, 'GET', f'/group/demo/-/jobs/{facts["sections"]}/plain', b'', {'Cookie': facts['cookie']})


@attack
def slow_readers(facts):
    """Readers of a long trace who do not read."""
    with socket.create_connection(('127.0.0.1', facts['port'])) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(f'GET /group/demo/-/jobs/{facts["long"]}/plain HTTP/1.1\r\nHost: localhost\r\n'
                           f'Cookie: {facts["cookie"]}\r\n\r\n'.encode())
        time.sleep(3)


def create(facts, content):
    """Create a pipeline of a file, as the author of a branch can."""
    body = json.dumps({'ref': 'main', 'sha': SHA, 'content': content}).encode()
    send(facts, 'POST', '/api/v4/projects/1/pipeline', body, {**JSON, 'PRIVATE-TOKEN': facts['token']})


@attack
def slow_patterns(facts):
    """Thirty rules with a pattern that backtracks for ever."""
    rules = [{'if': f'"{"a" * 40}!" =~ /^(a|aa)+$/'}] * 30
    create(facts, {'job': {'script': ['x'], 'rules': rules}})


@attack
def many_variables(facts):
    """Twenty thousand global variables for two hundred jobs."""
    jobs = {f'job {number}': {'script': ['x']} for number in range(200)}
    create(facts, {'variables': {f'V{number}': '' for number in range(20_000)}, **jobs})


@attack
def large_variables(facts):
    """A variable of 400 KiB for six hundred jobs."""
    jobs = {f'job {number}': {'script': ['x'], 'variables': {'B': '$A'}} for number in range(600)}
    create(facts, {'variables': {'A': 'x' * 400 * 1024}, **jobs})


@attack
def parallel_jobs(facts):
    """A hundred jobs that ask to run two hundred times."""
    create(facts, {f'job {number}': {'script': ['x'], 'parallel': 200} for number in range(100)})


@attack
def large_yaml(facts):
    """A megabyte of YAML."""
    create(facts, ''.join(f'job {number}: {{script: [a, b, c], tags: [x, y]}}\n' for number in range(20_000)))


@attack
def many_stages(facts):
    """Four thousand stages of one job."""
    stages = [f's{number}' for number in range(4_000)]
    create(facts, {'stages': stages, **{stage: {'stage': stage, 'script': ['x']} for stage in stages}})


@attack
def git_comparisons(facts):
    """Three hundred rules that compare with three hundred refs."""
    send(facts, 'POST', '/api/v4/projects/2/pipeline?ref=compare', b'', {'PRIVATE-TOKEN': facts['token']})


@attack
def git_bomb(facts):
    """A tree of a billion files, made of ten objects."""
    send(facts, 'POST', '/api/v4/projects/2/pipeline?ref=bomb', b'', {'PRIVATE-TOKEN': facts['token']})


@attack
def huge_file(facts):
    """A pipeline file of a hundred megabytes of zeros."""
    send(facts, 'POST', '/api/v4/projects/2/pipeline?ref=zeros', b'', {'PRIVATE-TOKEN': facts['token']})


@attack
def invented_artifacts(facts):
    """Artifacts of types that do not exist."""
    for number in range(26):
        field = f'--x\r\nContent-Disposition: form-data; name="artifact_type"\r\n\r\ntype_{number}\r\n'.encode()
        send(facts, 'POST', f'/api/v4/jobs/{facts["uploading"]}/artifacts', field + UPLOAD[0] + bytes(MIB) + UPLOAD[1],
             {**FORM, 'JOB-TOKEN': facts['uploading_token']})


@attack
def zip_of_many_entries(facts):
    """Files out of an archive with a directory of 150,000 entries."""
    send(facts, 'GET', f'/api/v4/projects/1/jobs/{facts["zipped"]}/artifacts/x', b'',
         {'PRIVATE-TOKEN': facts['token']})


@attack
def nested_globs(facts):
    """A glob of three thousand opened braces."""
    create(facts, {'job': {'script': ['x'], 'rules': [{'exists': ['{' * 3000]}]}})


@attack
def silent_connections(facts):
    """Connections that say nothing, two hundred of each client."""
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_connection(('127.0.0.1', facts['port']), timeout=5))
        time.sleep(2)


def made_repository(path):
    """Return a repository with a branch for each attack that needs one."""
    origin = Origin(path)
    origin.commit()
    rules = [{'changes': {'paths': ['x'], 'compare_to': f'refs/heads/ref{number}'}} for number in range(300)]
    blob = origin.git('rev-parse', 'HEAD:.gitlab-ci.yml')
    for number in range(300):
        origin.git('update-ref', f'refs/heads/ref{number}', 'HEAD')
    origin.git('checkout', '--quiet', '-b', 'compare')
    origin.commit(json.dumps({'job': {'script': ['x'], 'rules': rules}}))
    origin.git('checkout', '--quiet', '-b', 'zeros')
    origin.commit(b'#' + bytes(100 * MIB))
    origin.git('checkout', '--quiet', 'main')
    origin.commit('job: {script: x, rules: [{exists: ["*.c"]}]}\n')
    blob, kind = origin.git('rev-parse', 'HEAD:.gitlab-ci.yml'), '100644 blob'
    entry = blob
    for _ in range(9):
        lines = ''.join(f'{kind} {entry}\tname{number}\n' for number in range(10))
        entry, kind = tree_of(origin, lines), '040000 tree'
    tree = tree_of(origin, f'100644 blob {blob}\t.gitlab-ci.yml\n040000 tree {entry}\tbomb\n')
    origin.git('update-ref', 'refs/heads/bomb', origin.git('commit-tree', tree, '-m', 'bomb'))
    return origin


def tree_of(origin, lines):
    """Store a tree of these entries in a repository and return its id."""
    return subprocess.run(['git', '-C', origin.path, 'mktree'], input=lines, text=True, check=True,
                          capture_output=True).stdout.strip()


@contextlib.contextmanager
def arena(directory, *, git=False):
    """Start a server with all that the attacks and the runner need; yield it and the facts about it."""
    facts = {}
    with minici.Coordinator(directory / 'ci.sqlite') as ci:
        project = ci.create_project('group/demo')
        origin = made_repository(directory / 'srv') if git else None
        ci.create_project('group/repository', import_url=origin.url if origin else None)
        facts['token'] = ci.create_private_token()
        facts['cookie'] = f'minici_{ci.instance}={ci.sign_in_with(facts["token"])}'
        runner = Runner(ci)
        facts['runner'] = runner.token
        jobs = {f'job {number}': {'script': ['x']} for number in range(100)}
        ci.create_pipeline(project, 'main', sha=SHA, content=jobs)
        claims = [runner.claim() for _ in jobs]
        for name, claim in zip(('sections', 'long', 'uploading', 'zipped'), claims, strict=False):
            facts[name], facts[f'{name}_token'] = claim.job['id'], claim.token
        rows = {claim.job['id']: ci.authenticate_job(claim.job['id'], claim.token) for claim in claims[:4]}
        ci.append_trace(rows[facts['sections']], 0, b'section_start:1:a[' * 17_000 + b'\n')
        for number in range(24):
            ci.append_trace(rows[facts['long']], number * MIB, (b'x' * 1023 + b'\n') * 1024)
        store_large_zip(ci, rows[facts['zipped']])
        facts['jobs'] = [(claim.job['id'], claim.token) for claim in claims[4:]]
    with Served(directory / 'ci.sqlite') as server:
        facts['port'] = server.port
        yield server, facts


def store_large_zip(ci, job):
    """Store an archive with more entries than minici reads."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, 'w') as bundle:
        bundle.writestr('x', '')
    content = packed.getvalue()
    entry = content[content.index(b'PK\1\2'):-22]
    count = 150_000
    directory = entry * count
    end = b'PK\5\6' + bytes(4) + (count & 0xffff).to_bytes(2, 'little') * 2 + len(directory).to_bytes(4, 'little') \
        + content.index(b'PK\1\2').to_bytes(4, 'little') + bytes(2)
    part = ci.artifacts.receive()
    part.write(content[:content.index(b'PK\1\2')] + directory + end)
    ci.store_artifacts(job, part)


@dataclass
class Slowest:
    """The slowest answers to a runner during an attack in seconds, and the growth of the server in bytes."""

    poll: float
    patch: float
    final: float
    memory: int
    answers: int


def resident(process):
    """Return the bytes of memory that a process has now, 0 where that cannot be told."""
    status = Path(f'/proc/{process.pid}/status')
    if not status.exists():
        return 0
    return int(re.search(r'VmRSS:\s*([0-9]+) kB', status.read_text())[1]) * 1024


def timed(connection, method, path, body, headers):
    """Send a request of a runner; return its status and how long the answer took."""
    began = time.monotonic()
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status, time.monotonic() - began


def measure(row, seconds):
    """Return the slowest answers to a runner while ten clients attack a server of their own for so many seconds."""
    with tempfile.TemporaryDirectory() as directory:
        with arena(Path(directory), git=row.startswith(('git', 'huge'))) as (server, facts):
            return attacked(server, facts, row, seconds)


def attacked(server, facts, row, seconds):
    """Return the slowest answers to a runner while ten clients carry out an attack for so many seconds.

    The runner has an address of its own: what one address may hold open, the attackers take up.
    """
    runner = http.client.HTTPConnection('127.0.0.1', server.port, timeout=60, source_address=('127.0.0.2', 0))
    with contextlib.closing(runner) as connection:
        poll = json.dumps({'token': facts['runner'], 'last_update': ''}).encode()
        timed(connection, 'POST', '/api/v4/jobs/request', poll, JSON)
        before = resident(server.process)
        attackers = subprocess.Popen([sys.executable, __file__, row], stdin=subprocess.PIPE, text=True)
        try:
            with attackers.stdin:
                json.dump(facts, attackers.stdin)
            found = runner_beside(server, connection, facts, poll, before, seconds)
            assert attackers.poll() is None, 'the attack ended by itself'
            return found
        finally:
            attackers.kill()
            attackers.wait()


def runner_beside(server, connection, facts, poll, before, seconds):
    """Ask for what a runner asks for until the time is over; return the slowest answers."""
    found = Slowest(0, 0, 0, 0, 0)
    ends, next_final, start = time.monotonic() + seconds, time.monotonic() + 1, 0
    job, token = facts['jobs'].pop()
    while time.monotonic() < ends:
        status, took = timed(connection, 'POST', '/api/v4/jobs/request', poll, JSON)
        assert status in (204, 201), status
        found.poll = max(found.poll, took)
        status, took = timed(connection, 'PATCH', f'/api/v4/jobs/{job}/trace', b'x' * 1024,
                             {'JOB-TOKEN': token, 'Content-Range': f'{start}-{start + 1023}'})
        assert status == 202, status
        found.patch = max(found.patch, took)
        start += 1024
        if time.monotonic() > next_final:
            body = json.dumps({'token': token, 'state': 'success'}).encode()
            status, took = timed(connection, 'PUT', f'/api/v4/jobs/{job}', body, JSON)
            assert status == 200, status
            found.final = max(found.final, took)
            (job, token), start, next_final = facts['jobs'].pop(), 0, time.monotonic() + 0.5
        found.memory = max(found.memory, resident(server.process) - before)
        found.answers += 1
        time.sleep(0.01)
    return found


def main(name):
    """Carry out an attack ten times side by side until this process is killed; its input tells the facts."""
    facts = json.load(sys.stdin)

    def repeat():
        while True:
            ATTACKS[name](facts)

    threads = [threading.Thread(target=repeat, daemon=True) for _ in range(SIDE_BY_SIDE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == '__main__':
    main(*sys.argv[1:])
