"""Work whose every acknowledgement is written down, and a check that what was acknowledged is there.

    python workload.py DB ACKNOWLEDGED TOKEN SEED STEPS [KILL_AT_CALL]

does the work over a database that `prepare` made; without arguments, each line of its input is such work, in JSON.
"""

import hashlib
import json
import os
import random
import signal
import sys
import traceback

import minici

SHA = '0123456789abcdef0123456789abcdef01234567'


def prepare(db, jobs=200):
    """Make a database with pending jobs and a runner; return the runner's token."""
    with minici.Coordinator(db) as ci:
        specs = [minici.JobSpec(f'job {number}', ['make']) for number in range(jobs)]
        ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content=minici.PipelineSpec(['test'], specs))
        return ci.register_runner(ci.registration_token)[1]


def text(job_id):
    """Return all that the trace of a job may ever hold."""
    return random.Random(job_id).randbytes(100_000)


class Acknowledged:
    """A file of what was acknowledged, a JSON list a line."""

    def __init__(self, path):
        self.handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        self.lines = []

    def __call__(self, *line):
        self.lines.append(list(line))
        WRITE(self.handle, json.dumps(line).encode() + b'\n')

    @staticmethod
    def read(path):
        with open(path) as file:
            return [json.loads(line) for line in file]


WRITE = os.write    # the real one, when calls are counted


class Work:
    """Claims, traces, uploads and endings, one after the other, by chance; files come `files` times as often."""

    def __init__(self, ci, token, note, seed, files=1):
        self.ci, self.token, self.note, self.chance = ci, token, note, random.Random(seed)
        self.running, self.finished, self.made = {}, [], 0
        self.seed, self.files = seed, files

    def step(self):
        choices = [self.claim] if len(self.running) < 3 else []
        choices += [self.patch] * 6 + [self.finish] if self.running else []
        choices += [self.replace, self.upload, self.upload] * self.files if self.running else []
        choices += [self.erase] if self.finished else []
        self.chance.choice([*choices, self.make])()

    def job(self):
        job_id = self.chance.choice(sorted(self.running))
        return job_id, self.ci.authenticate_job(job_id, self.running[job_id][0])

    def claim(self):
        claim = self.ci.request_job(self.ci.find_runner(self.token))
        if claim is not None:
            self.running[claim.job['id']] = [claim.token, 0]
            self.note('claim', claim.job['id'])

    def patch(self):
        job_id, job = self.job()
        start = self.running[job_id][1]
        data = text(job_id)[start:start + int(2 ** self.chance.uniform(0, 13))]
        self.running[job_id][1] = self.ci.append_trace(job, start, data)
        self.note('trace', job_id, self.running[job_id][1])

    def replace(self):
        job_id, job = self.job()
        whole = text(job_id)[:self.running[job_id][1] + self.chance.randrange(1000)]
        self.ci.update_job(job, None, trace=whole)
        self.running[job_id][1] = len(whole)
        self.note('trace', job_id, len(whole))

    def upload(self):
        job_id, job = self.job()
        content = self.chance.randbytes(int(2 ** self.chance.uniform(0, 16)))
        digest = hashlib.sha256(content).hexdigest()
        self.note('uploading', job_id, digest)
        part = self.ci.artifacts.receive()
        try:
            part.write(content)
            self.ci.store_artifacts(job, part, replace=True)
        finally:
            part.discard()
        self.note('artifact', job_id, digest)

    def finish(self):
        job_id, job = self.job()
        state = self.chance.choice(['success', 'failed'])
        self.ci.update_job(job, state)
        del self.running[job_id]
        self.finished.append(job_id)
        self.note('state', job_id, state)

    def erase(self):
        job_id = self.finished.pop()
        self.note('erasing', job_id)
        try:
            self.ci.erase_job(self.ci.find_job(job_id))
        except minici.Forbidden:    # it has neither trace nor artifacts
            return
        self.note('erased', job_id)

    def make(self):
        self.made += 1
        name = f'project-{self.seed}-{self.made}'
        self.ci.create_project(name)
        self.note('project', name)


def has_project(ci, path):
    """Tell whether a project is there."""
    try:
        return ci.find_project(path)['path'] == path
    except minici.NotFound:
        return False


def verify(ci, lines):
    """Return what was acknowledged and is not there."""
    missing, traces, artifacts, uploading, erasing = [], {}, {}, {}, set()
    for kind, *rest in lines:
        if kind == 'trace':
            traces[rest[0]] = rest[1]
        elif kind in ('uploading', 'artifact'):
            {'uploading': uploading, 'artifact': artifacts}[kind][rest[0]] = rest[1]
        elif kind == 'erasing':
            erasing.add(rest[0])
        elif kind == 'project':
            missing += [] if has_project(ci, rest[0]) else [f'project {rest[0]}']
        elif kind == 'state':
            status = ci.find_job(rest[0])['status']
            missing += [] if status == rest[1] else [f'job {rest[0]} is {status} instead of {rest[1]}']
        elif kind == 'claim':
            attempts = ci.find_job(rest[0])['attempts']
            missing += [] if attempts == 1 else [f'job {rest[0]} was claimed {attempts} times']
    for job_id, size in traces.items():
        if job_id in erasing:
            continue
        found = ci.read_trace(job_id) if ci.traces.size(job_id) is not None else b''
        if len(found) < size or found != text(job_id)[:len(found)]:
            missing.append(f'trace of job {job_id}: {len(found)} bytes of {size}')
    for job_id, digest in artifacts.items():
        if job_id in erasing:
            continue
        with ci.open_artifacts(job_id)[1] as file:
            found = hashlib.sha256(file.read()).hexdigest()
        if found not in (digest, uploading[job_id]):
            missing.append(f'artifact of job {job_id}')
    claims = [rest[0] for kind, *rest in lines if kind == 'claim']
    missing += [f'job {job_id} twice' for job_id in set(claims) if claims.count(job_id) > 1]
    differing = [finding.text for finding in ci.check(checksums=True) if 'no row refers' not in finding.text]
    return missing + differing


def kill_at(number):
    """Kill this process at the `number`-th call that changes the disk; half of the time after it."""
    count = 0

    def counted(call):
        def wrapped(*values, **options):
            nonlocal count
            count += 1
            if count == number and number % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return call(*values, **options)
            finally:    # a call that fails is one, too
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
        return wrapped

    for name in ('fsync', 'replace', 'write', 'unlink', 'mkdir', 'rename', 'utime'):
        setattr(os, name, counted(getattr(os, name)))


def work(db, acknowledged, token, seed, steps, *at):
    """Do the work, up to the `at`-th call that changes the disk."""
    if at:
        kill_at(int(at[0]))
    with minici.Coordinator(db) as ci:
        steady = Work(ci, token, Acknowledged(acknowledged), int(seed), int(os.environ.get('FAULT_FILES', 1)))
        for _ in range(int(steps)):
            steady.step()


def serve():
    """Do the work of each line of input in a process of its own; print its exit code, negative for a signal.

    To import minici takes longer than most of this work, so these processes are forked.
    """
    for line in sys.stdin:
        arguments, environment = json.loads(line)
        child = os.fork()
        if not child:
            os.environ.update(environment)
            try:
                work(*arguments)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == '__main__':
    work(*sys.argv[1:]) if sys.argv[1:] else serve()
