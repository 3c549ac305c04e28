"""An error of the system at any call: 503, nothing burned, nothing lost, and all goes on afterwards."""

import contextlib
import errno
import http.client
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import workload
from support import FORM, TOP, UPLOAD, Client, Runner, Served, archive, call, until

import minici

NUMBERS = {'ENOSPC': errno.ENOSPC, 'EIO': errno.EIO, 'EDQUOT': errno.EDQUOT, 'EMFILE': errno.EMFILE,
           'no inodes': errno.ENOSPC, 'EROFS': errno.EROFS}
CALLS = ('open', 'write', 'fsync', 'replace', 'mkdir', 'utime', 'unlink', 'link')


def makes_a_file(name, values):
    """Tell whether a call needs an inode: those that write go on when there is none left."""
    if name == 'open':
        return values[1] & os.O_CREAT and not os.path.lexists(values[0])
    return name in ('mkdir', 'link')


class Failing:
    """Makes the n-th call that changes the disk fail, and all later ones until it is healed."""

    def __init__(self, monkeypatch):
        self.patch, self.count, self.first, self.error = monkeypatch, 0, None, ''
        self.calls = {name: getattr(os, name) for name in CALLS}
        self.lasting = True

    def arm(self, first, error, lasting):
        self.count, self.first, self.error, self.lasting = 0, first, error, lasting
        for name, real in self.calls.items():
            self.patch.setattr(os, name, self.failing(real, name))

    def failing(self, real, name):
        def call(*values, **options):
            if name == 'open' and not values[1] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
                return real(*values, **options)
            if self.error == 'no inodes' and not makes_a_file(name, values):
                return real(*values, **options)
            self.count += 1
            if self.first is not None and (self.count >= self.first if self.lasting else self.count == self.first):
                raise OSError(NUMBERS[self.error], os.strerror(NUMBERS[self.error]))
            return real(*values, **options)
        return call

    def heal(self):
        for name, real in self.calls.items():
            self.patch.setattr(os, name, real)


@pytest.fixture
def world(tmp_path, clock, monkeypatch):
    """A coordinator with 60 jobs, a client, a runner, and a way to make calls fail."""
    with minici.Coordinator(tmp_path / 'ci.sqlite', clock=clock) as ci:
        specs = [minici.JobSpec(f'job {number}', ['make']) for number in range(60)]
        ci.create_pipeline(ci.create_project('demo'), 'main', sha=workload.SHA,
                           content=minici.PipelineSpec(['test'], specs))
        yield ci, Client(ci), Runner(ci), Failing(monkeypatch)


def requests(claim):
    """Return what a runner sends about its job, in order, and what it is answered."""
    own = {'JOB-TOKEN': claim.token}
    path = f'/api/v4/jobs/{claim.job["id"]}'
    return [('PATCH', f'{path}/trace', dict(data=b'line\n', headers={**own, 'Content-Range': '0-4'}), 202),
            ('POST', f'{path}/artifacts', dict(data=archive(a='1').join(UPLOAD), headers={**own, **FORM}), 201),
            ('PUT', path, dict(json={'token': claim.token, 'state': 'success', 'trace': 'line\nmore\n'}), 200)]


@pytest.mark.parametrize('name', [name for name in NUMBERS if name != 'EROFS'])
@pytest.mark.parametrize('lasting', [True, False], ids=['until relief', 'once'])
def test_an_error_at_any_call_is_503_and_costs_nothing(world, clock, name, lasting, form, figures):
    ci, client, runner, failing = world
    answers, sites = {}, 0
    for kind in range(3):
        for site in form(range(1, 12, 3), range(1, 20)):
            claim = runner.claim()
            method, path, options, expected = requests(claim)[kind]
            failing.arm(site, name, lasting)
            status = client.call(method, path, **options).status_int
            reached = failing.count >= site
            failing.heal()
            answers[status] = answers.get(status, 0) + reached
            sites += reached
            assert status in ({expected, 503} if reached else {expected}), (kind, site)
            if status == 503:
                retried = client.call(method, path, **options).status_int
                assert retried in (expected, 416), (kind, site)     # 416: it was written, only its answer failed
            job = ci.find_job(claim.job['id'])
            assert job['attempts'] == 1
            assert job['status'] == ('success' if kind == 2 else 'running')
            if kind != 1:
                assert ci.read_trace(job['id']) == {0: b'line\n', 2: b'line\nmore\n'}[kind]
    assert sites > (1 if name == 'no inodes' else 4)
    assert [finding.text for finding in ci.check(checksums=True) if 'no row' not in finding.text] == []
    for left in ci.artifacts.incoming.iterdir():    # its removal failed
        os.utime(left, (0, 0))
    clock.advance(hours=2)
    ci.sweep()
    assert list(ci.artifacts.incoming.iterdir()) == []
    figures('only 503 (413 for size), 0 burned jobs',
            f'{name} {"until relief" if lasting else "once"}: {sites} call sites, '
            f'{answers.get(503, 0)} x 503, the others done, 0 burned jobs, 0 lost')


@pytest.mark.parametrize('name', [name for name in NUMBERS if name != 'EROFS'])
def test_a_claim_burns_no_job_whatever_fails(world, name, figures):
    ci, client, runner, failing = world
    for site in range(1, 6):
        failing.arm(site, name, True)
        for _ in range(3):
            answer = client.call('POST', '/api/v4/jobs/request', json={'token': runner.token})
            assert answer.status_int in (201, 503)
        failing.heal()
    with ci.db.read() as c:
        attempts = c.execute("SELECT status, max(attempts), count(*) FROM job GROUP BY status").fetchall()
    burned = [row['status'] for row in attempts if row['status'] not in ('pending', 'running')]
    assert burned == []
    assert all(row[1] <= 1 for row in attempts)
    figures('0 burned jobs', f'{name}: 15 claims under a failing disk, 0 burned jobs')


def test_a_claim_whose_answer_cannot_be_made_is_undone(world, monkeypatch):
    ci, client, runner, _ = world
    real = minici.json_response

    def fails(value, status=200, headers=None):
        if status == 201:
            raise MemoryError
        return real(value, status, headers)

    for _ in range(10):
        with monkeypatch.context() as patch:
            patch.setattr(minici, 'json_response', fails)
            answer = client.call('POST', '/api/v4/jobs/request', json={'token': runner.token})
        assert answer.status_int == 503
    claim = runner.claim()
    assert claim.job['id'] == 1
    assert ci.find_job(1)['attempts'] == 1


def test_a_sweep_under_a_failing_disk_goes_on_after_it(world, clock, form):
    ci, _, runner, failing = world
    claims = [runner.claim() for _ in range(3)]
    for claim in claims:
        ci.append_trace(ci.authenticate_job(claim.job['id'], claim.token), 0, b'x')
    for site in form(range(1, 6), range(1, 30)):
        failing.arm(site, 'ENOSPC', True)
        with contextlib.suppress(AssertionError):
            ci.sweep()
        failing.heal()
    ci.sweep()
    assert {ci.find_job(claim.job['id'])['status'] for claim in claims} == {'running'}


def test_a_trace_is_read_from_a_file_system_that_takes_no_writes(world):
    ci, client, runner, failing = world
    claim = runner.claim()
    ci.append_trace(ci.authenticate_job(claim.job['id'], claim.token), 0, b'line\n')
    token = ci.create_private_token()
    failing.arm(1, 'EROFS', True)
    answers = [client.call('GET', f'/api/v4/projects/1/jobs/1/trace{query}', token=token) for query in ('', '?x=1')]
    failing.heal()
    assert [(answer.status_int, answer.body) for answer in answers] == [(200, b'line\n')] * 2


# -- what a server process answers when its system refuses

JSON = {'Content-Type': 'application/json'}


def large_requests(job):
    """Return what a runner sends, too large for memory where it has a body; with what each is answered."""
    own = {'JOB-TOKEN': job['token']}
    path = f'/api/v4/jobs/{job["id"]}'
    return [(('PATCH', f'{path}/trace', b'x' * 700_000, {**own, 'Content-Range': '0-699999'}), 202),
            (('POST', f'{path}/artifacts', archive(a=os.urandom(700_000)).join(UPLOAD), {**own, **FORM}), 201),
            (('PUT', path, json.dumps({'token': job['token'], 'state': 'success'}), JSON), 200)]


def answer(server, request):
    """Send a request on a connection of its own; return the status and the body, 0 for a reset."""
    with contextlib.closing(server.connect()) as connection:
        try:
            status, _, body = call(connection, *request)
        except OSError:
            return 0, b''
    return status, body


@pytest.mark.skipif(not hasattr(resource, 'prlimit'), reason='limits of another process can be set on Linux alone')
def test_a_server_that_may_write_no_larger_file_answers_503_and_goes_on_when_it_may(tmp_path, form, figures):
    token = workload.prepare(tmp_path / 'ci.sqlite')
    claim = ('POST', '/api/v4/jobs/request', json.dumps({'token': token}), JSON)
    refused = done = 0
    limits = form((0, 50_000, 699_999), (0, 1, 100, 4_096, 20_000, 50_000, 100_000, 300_000, 600_000, 699_999))
    with Served(tmp_path / 'ci.sqlite') as server:
        for limit in limits:
            status, body = answer(server, claim)
            assert status == 201
            requests = large_requests(json.loads(body))
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            final = [requests.pop()] if limit else []   # once its state is taken, a job takes nothing more
            for request, expected in [*requests, (claim, 201)]:
                status, _ = answer(server, request)
                assert status in (503, expected), (limit, request[:2])
                refused += status == 503
                done += status == expected
                assert limit > 0 or status == 503, request[:2]
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            for request, expected in [*requests, *final]:
                until(lambda request=request, expected=expected: answer(server, request)[0] in (expected, 416))
    with minici.Coordinator(tmp_path / 'ci.sqlite') as ci:
        assert [finding.text for finding in ci.check(checksums=True) if 'no row' not in finding.text] == []
        finished = ci.count_jobs(scope=['success'], limit=1000)
        attempts = {row['attempts'] for row in ci.list_jobs(limit=1000)}
    assert finished == len(limits)
    assert attempts <= {0, 1}
    figures('only 503, 0 burned jobs', f'RLIMIT_FSIZE at {len(limits)} sizes: {refused} x 503, {done} done, '
            '0 burned jobs, 0 lost')


#: A server on a small file system of its own, which nobody else sees and which goes with it.
SMALL_DISK = 'mount -t tmpfs -o size=40m,nr_inodes=60 tmpfs "$1" && exec "$2" -m minici --db "$1/ci.sqlite" --port 0'


@pytest.fixture
def small_disk(tmp_path):
    """A server on a disk of 60 inodes: what it says when it starts, and the disk as this process sees it."""
    (tmp_path / 'disk').mkdir()
    command = ['unshare', '-rm', 'sh', '-c', SMALL_DISK, 'sh', str(tmp_path / 'disk'), sys.executable]
    with open(tmp_path / 'log', 'w') as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env={
            **os.environ, 'MINICI_REGISTRATION_TOKEN': 'register', 'MINICI_PRIVATE_TOKEN': 'private',
            'PYTHONPATH': str(TOP)})
    try:
        for line in process.stdout:
            if found := re.search(r' at http://127\.0\.0\.1:([0-9]+)', line):
                yield int(found[1]), Path(f'/proc/{process.pid}/root{tmp_path / "disk"}')
                return
        said = (tmp_path / 'log').read_text()
        assert said.startswith(('unshare:', 'mount:')), said
        pytest.skip(f'no file system can be mounted here: {said}')
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(not shutil.which('unshare'), reason='it takes a file system of its own, which Linux alone gives')
def test_a_server_without_inodes_answers_503_and_goes_on_when_there_are_some(small_disk, figures):
    port, disk = small_disk

    def send(method, path, body, headers=JSON):
        with contextlib.closing(http.client.HTTPConnection('127.0.0.1', port, timeout=60)) as connection:
            status, _, answered = call(connection, method, path, body, headers)
            return status, answered and json.loads(answered)

    token = send('POST', '/api/v4/runners', json.dumps({'token': 'register', 'run_untagged': True}))[1]['token']
    content = {f'job {number}': {'script': ['make']} for number in range(40)}
    own = {**JSON, 'PRIVATE-TOKEN': 'private'}
    assert send('POST', '/api/v4/projects', json.dumps({'name': 'demo'}), own)[0] == 201
    made = json.dumps({'ref': 'main', 'sha': workload.SHA, 'content': content})
    assert send('POST', '/api/v4/projects/1/pipeline', made, own)[0] == 201
    fillers = []
    with contextlib.suppress(OSError):
        while True:
            fillers.append(disk / f'filler-{len(fillers)}')
            fillers[-1].touch()
    claim = ('POST', '/api/v4/jobs/request', json.dumps({'token': token}))
    answers = [send(*claim) for _ in range(10)]     # a claim makes no file
    assert {status for status, _ in answers} == {201}
    jobs = [job for _, job in answers]
    statuses = [send(*request)[0] for job in jobs for request, _ in large_requests(job)[:2]]
    for filler in fillers[:-1]:
        filler.unlink()
    for job in jobs:
        for request, expected in large_requests(job):
            assert send(*request)[0] == expected
    after = [job['status'] for job in send('GET', '/api/v4/projects/1/jobs?per_page=100', b'', own)[1]]
    assert set(statuses) == {503}
    assert sorted(after) == ['pending'] * 30 + ['success'] * 10
    figures('only 503, 0 burned jobs', f'a disk without inodes: 10 claims, {len(statuses)} traces and uploads, '
            'each 503, all 10 jobs done after relief, 0 burned')
