"""SIGKILL again and again under eight clients, with a reader of the database and backups on the way."""

import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time

from support import SHA, Runner, Served
from test_crash import Claimer, Tracer, Uploader, Worker

import minici


class Reader(threading.Thread):
    """Another process's view: reads the database every tenth of a second through a connection of its own."""

    def __init__(self, db):
        super().__init__()
        self.db, self.stopping, self.reads, self.error = db, threading.Event(), 0, None

    def run(self):
        while not self.stopping.wait(0.1):
            try:
                with contextlib.closing(sqlite3.connect(f'file:{self.db}?mode=ro', uri=True, timeout=5)) as c:
                    c.execute('SELECT count(*), sum(status = \'running\') FROM job').fetchall()
                    c.execute('SELECT count(*) FROM event').fetchall()
                self.reads += 1
            except sqlite3.OperationalError as error:   # no process has it open, so that its log cannot be read
                if 'unable to open' not in str(error) and 'readonly' not in str(error):
                    self.error = error
            except sqlite3.DatabaseError as error:
                self.error = error


def prepare(db, thousands):
    """Make a database of some thousand jobs, six of them claimed."""
    with minici.Coordinator(db, fsync=False) as ci:
        ci.create_project('demo')
        for part in range(thousands):
            jobs = [minici.JobSpec(f'job {part}-{index}', ['make']) for index in range(1000)]
            ci.create_pipeline('demo', 'main', sha=SHA, content=minici.PipelineSpec(['test'], jobs))
        runner = Runner(ci)
        return ci.create_private_token(), runner.token, [runner.claim() for _ in range(6)]


def back_up(db, target):
    """Take a backup by the command line; return what it said when it failed."""
    done = subprocess.run([sys.executable, minici.__file__, '--db', db, 'backup', target], capture_output=True,
                          check=False, timeout=120)
    return '' if done.returncode == 0 else done.stderr.decode()


def restores(backup, tmp_path, tracers, seen):
    """See that a backup restores, and is a prefix of what is there now that holds what was acknowledged before it."""
    target = tmp_path / 'restored.sqlite'
    minici.restore(backup, target, force=True)
    with minici.Coordinator(target, fsync=False) as copy:
        assert copy.check(checksums=True) == []
        with copy.db.read() as c:
            assert c.execute('PRAGMA integrity_check').fetchone()[0] == 'ok'
        for tracer in tracers:
            found = copy.read_trace(tracer.job_id) if copy.traces.size(tracer.job_id) is not None else b''
            assert found == tracer.text[:len(found)]
            assert len(found) >= seen[tracer.job_id]
        for job in seen['claimed']:
            assert copy.find_job(job)['status'] == 'running'


def test_a_server_killed_again_and_again_loses_nothing_and_its_backups_restore(tmp_path, form, figures):
    kills, backups, longest = form((2, 1, 0.4), (200, 20, 0.4))
    db, chance = tmp_path / 'ci.sqlite', random.Random(2)
    token, runner_token, claims = prepare(db, form(1, 6))
    claimer, second = Claimer(runner_token), Claimer(runner_token)
    tracers = [Tracer(claim.job['id'], claim.token, random.Random(claim.token)) for claim in claims[:4]]
    uploaders = [Uploader(claim.job['id'], claim.token, random.Random(claim.token)) for claim in claims[4:]]
    steps = [*(tracer.patch for tracer in tracers), *(uploader.upload for uploader in uploaders),
             claimer.claim, second.claim]
    reader, steps_done, restored, slowest = Reader(db), 0, 0, 0.0
    reader.start()
    try:
        for number in range(kills):
            began = time.monotonic()
            with Served(db) as server:
                slowest = max(slowest, time.monotonic() - began)
                with contextlib.closing(server.connect()) as connection:
                    for tracer in tracers:
                        tracer.check(connection, token)
                    for uploader in uploaders:
                        uploader.check(connection)
                workers = [Worker(server, step) for step in steps]
                [worker.start() for worker in workers]
                if number % (kills // backups) == 0:
                    seen = {tracer.job_id: tracer.acknowledged for tracer in tracers}
                    seen['claimed'] = list(claimer.claimed)
                    assert back_up(db, tmp_path / 'backup') == ''
                    restores(tmp_path / 'backup', tmp_path, tracers, seen)
                    subprocess.run(['rm', '-r', tmp_path / 'backup'], check=True)
                    restored += 1
                time.sleep(chance.uniform(0.05, longest))
                server.end(signal.SIGKILL)
            for worker in workers:
                worker.join()
                steps_done += worker.steps
                assert worker.error is None
    finally:
        reader.stopping.set()
        reader.join()
    assert reader.error is None
    claimed = [*claimer.claimed, *second.claimed]
    assert len(claimed) == len(set(claimed)) > kills
    with minici.Coordinator(db) as ci:
        assert {ci.find_job(job)['status'] for job in claimed} == {'running'}
        assert [finding.text for finding in ci.check(checksums=True) if 'no row' not in finding.text] == []
    figures('200 kills: 0 bytes lost, 0 double claims, 0 half artifacts, every backup restores',
            f'{kills} kills, {steps_done:,} acknowledged requests of 8 clients, {reader.reads} reads beside, '
            f'{restored} backups restored: 0 lost, 0 double claims ({len(claimed)} claims), 0 half artifacts')
