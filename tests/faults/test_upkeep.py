"""Upkeep: what is due happens without anybody asking, one bad row stops nothing, and retention holds."""

import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest
from support import PLAIN, SHA, Client, Origin, Runner, until

import minici


@pytest.fixture
def quick(monkeypatch):
    """Servers sweep twenty times a second."""
    monkeypatch.setattr(minici, 'UPKEEP_INTERVAL', 0.05)


def finished(ci, project, runner, ref, size=0, state='success'):
    """Make a pipeline of one job with an artifact of `size` bytes, finish it, and return the pipeline."""
    pipeline = ci.create_pipeline(project, ref, sha=SHA, content=PLAIN)
    claim = runner.claim()
    job = ci.authenticate_job(claim.job['id'], claim.token)
    if size:
        with_artifact(ci, job, os.urandom(size))
    ci.update_job(job, state, failure_reason='script_failure' if state == 'failed' else None)
    return ci.find_pipeline(pipeline)


def with_artifact(ci, job, content, **options):
    part = ci.artifacts.receive()
    part.write(content)
    ci.store_artifacts(job, part, **options)


def stored_bytes(ci):
    return sum(path.stat().st_size for path in ci.data.rglob('*') if path.is_file())


# -- nobody has to poll

def test_a_server_fails_the_job_of_a_dead_runner_while_no_runner_polls(ci, clock, quick, job):
    ci.append_trace(ci.authenticate_job(1, job.token), 0, b'one\n')
    with minici.Server(ci):
        clock.advance(600)
        assert ci.wait(1, timeout=30)['failure_reason'] == 'stuck_or_timeout_failure'


def test_a_server_starts_a_delayed_job_while_no_runner_polls(ci, clock, quick, project):
    later = {'test': {'script': ['make'], 'when': 'delayed', 'start_in': '5 minutes'}}
    ci.create_pipeline(project, 'main', sha=SHA, content=later)
    with minici.Server(ci):
        clock.advance(300)
        until(lambda: ci.find_job(1)['status'] == 'pending')


def test_a_server_removes_expired_artifacts_while_no_runner_polls(ci, clock, quick, job):
    with_artifact(ci, ci.authenticate_job(1, job.token), b'x' * 1000, expire_in='1 hour')
    with minici.Server(ci):
        clock.advance(3600)
        until(lambda: not list(ci.artifacts.stored()))


def test_runners_are_not_blamed_for_the_time_that_the_server_itself_was_stopped(ci, quick, monkeypatch):
    slept = iter([0, 0, 1000])
    real, offset = time.monotonic, [0]

    def monotonic():
        return real() + offset[0]

    heard = []
    monkeypatch.setattr(minici.time, 'monotonic', monotonic)
    monkeypatch.setattr(ci, 'listen_anew', lambda: heard.append(True))
    monkeypatch.setattr(ci, 'sweep', lambda: offset.__setitem__(0, offset[0] + next(slept, 0)))
    with minici.Server(ci) as server:
        until(lambda: next(slept, None) is None or heard)
        offset[0] += 1000
        until(lambda: heard)
        assert server._upkeep.is_working


def test_of_two_servers_over_one_database_one_sweeps_and_the_other_says_so_and_takes_over(ci, quick, caplog):
    caplog.set_level(logging.INFO)
    with minici.Coordinator(ci.db.path, fsync=False) as other, minici.Server(ci) as first:
        with minici.Server(other) as second:
            assert (first._upkeep.is_working, second._upkeep.is_working) == (True, False)
            assert f'(process {os.getpid()} on ' in caplog.text
            first.stop()
            until(lambda: second._upkeep.is_working)


# -- one bad row

def test_a_job_whose_trace_cannot_be_read_stops_no_other_job_and_no_expiry(ci, clock, project, runner, monkeypatch):
    for _ in range(3):
        ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
        claim = runner.claim()
        job = ci.authenticate_job(claim.job['id'], claim.token)
        with_artifact(ci, job, b'x', expire_in='1 minute')
        ci.append_trace(job, 0, b'one\n')
    bad, last_heard = 2, ci.traces.last_heard

    def broken(job_id):
        if job_id == bad:
            raise OSError(28, 'No space left on device')
        return last_heard(job_id)

    monkeypatch.setattr(ci.traces, 'last_heard', broken)
    clock.advance(600)
    ci.sweep()
    assert [ci.find_job(number)['status'] for number in (1, 2, 3)] == ['failed', 'running', 'failed']
    assert list(ci.artifacts.stored()) == []
    monkeypatch.undo()
    ci.sweep()
    assert ci.find_job(2)['status'] == 'failed'


def test_a_file_that_cannot_be_removed_keeps_no_other_from_being_removed(ci, clock, project, runner, caplog):
    for _ in range(3):
        ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
        claim = runner.claim()
        with_artifact(ci, ci.authenticate_job(claim.job['id'], claim.token), b'x', expire_in='1 minute')
    with ci.db.read() as c:
        stored = [row['stored_as'] for row in c.execute('SELECT stored_as FROM artifact ORDER BY job_id')]
    stuck = ci.data / 'artifacts' / stored[0]
    stuck.unlink()
    stuck.mkdir()
    clock.advance(60)
    ci.sweep()
    assert [name for name, _ in ci.artifacts.stored()] == stored[:1]
    assert stored[0] in caplog.text


def test_a_delayed_job_that_cannot_start_keeps_no_other_from_starting(ci, clock, project, monkeypatch):
    later = {'test': {'script': ['make'], 'when': 'delayed', 'start_in': '5 minutes'}}
    for _ in range(3):
        ci.create_pipeline(project, 'main', sha=SHA, content=later)
    change = ci._change

    def broken(pipeline_id):
        if pipeline_id == 2:
            raise ValueError('a broken row')
        return change(pipeline_id)

    monkeypatch.setattr(ci, '_change', broken)
    clock.advance(300)
    ci.sweep()
    assert [ci.find_job(number)['status'] for number in (1, 2, 3)] == ['pending', 'scheduled', 'pending']


def test_files_of_jobs_that_are_gone_are_removed_and_others_stay(ci, clock, project, runner):
    finished(ci, project, runner, 'main', size=10)
    gone = ci.traces.path(4711)
    gone.parent.mkdir(mode=0o700, exist_ok=True)
    gone.write_bytes(b'left by a crash')
    orphan = ci.data / 'artifacts' / '0000' / '1-orphan'
    orphan.write_bytes(b'left by a crash')
    os.utime(orphan, (0, 0))
    ci.sweep()
    assert not gone.exists()
    assert not orphan.exists()
    assert len(list(ci.artifacts.stored())) == 1


# -- retention

def test_retention_size_wins_over_the_last_success_of_fifty_branches(tmp_path, clock):
    with minici.Coordinator(tmp_path / 'ci.sqlite', clock=clock, fsync=False, retention_size='10M') as ci:
        project, runner = ci.create_project('group/demo'), Runner(ci)
        for number in range(50):
            finished(ci, project, runner, f'branch-{number}', size=1_000_000)
        clock.advance(days=3 * 365)
        ci.sweep()
        assert stored_bytes(ci) <= 10 * 1024 ** 2
        assert [row['ref'] for row in ci.list_pipelines(project)[0]][0] == 'branch-49'
        assert len(list(ci.artifacts.stored())) == 10


def small_and_large(ci):
    """Make a project of one small pipeline and one of five large ones; return the ids of the pipelines."""
    runner, small, large = Runner(ci), ci.create_project('small'), ci.create_project('large')
    found = [finished(ci, small, runner, 'main', size=100_000)]
    found += [finished(ci, large, runner, 'main', size=200_000) for _ in range(5)]
    return [pipeline['id'] for pipeline in found]


def test_the_project_that_has_most_loses_its_oldest_pipelines_first(tmp_path, clock):
    with minici.Coordinator(tmp_path / 'ci.sqlite', clock=clock, fsync=False, retention_size=700_000) as ci:
        small, *large = small_and_large(ci)
        assert [row['id'] for row in ci.prune()] == large[:2]
        assert ci.find_pipeline(small)


def test_a_project_near_its_share_of_the_disk_loses_its_own_oldest_pipelines_alone(tmp_path, clock):
    with minici.Coordinator(tmp_path / 'ci.sqlite', clock=clock, fsync=False, project_share='1M') as ci:
        small, *large = small_and_large(ci)
        assert [row['id'] for row in ci.prune()] == large[:1]
        assert ci.find_pipeline(small)


@pytest.fixture
def cloned(tmp_path, clock):
    """A coordinator whose project has a repository with the branches main and topic, both built once."""
    origin = Origin(tmp_path / 'origin')
    origin.commit()
    origin.git('branch', 'topic')
    with minici.Coordinator(tmp_path / 'ci.sqlite', clock=clock, fsync=False, retention_age='30 days') as ci:
        project, runner = ci.create_project('group/demo', import_url=origin.url), Runner(ci)
        for ref in ('main', 'topic'):
            finished(ci, project, runner, ref)
        yield ci, origin


def left(ci):
    with ci.db.read() as c:
        return [row['ref'] for row in c.execute('SELECT ref FROM pipeline ORDER BY ref')]


def test_the_last_success_of_a_branch_stays_while_the_branch_exists(cloned, clock):
    ci, _ = cloned
    for _ in range(5):
        clock.advance(days=31)
        assert ci.prune() == []
    assert left(ci) == ['main', 'topic']


def test_the_last_success_of_a_deleted_branch_goes_at_its_age(cloned, clock):
    ci, origin = cloned
    origin.git('branch', '-D', 'topic')
    clock.advance(days=29)
    ci.prune()
    assert left(ci) == ['main', 'topic']
    clock.advance(days=1)
    ci.prune()
    assert left(ci) == ['main']


def test_a_branch_that_was_deleted_late_keeps_its_last_success_for_the_retention_age(cloned, clock):
    ci, origin = cloned
    clock.advance(days=60)
    ci.prune()
    origin.git('branch', '-D', 'topic')
    clock.advance(days=29)
    ci.prune()
    assert left(ci) == ['main', 'topic']
    clock.advance(days=1)
    ci.prune()
    assert left(ci) == ['main']


def test_a_repository_that_does_not_answer_loses_nothing_by_age(cloned, clock):
    ci, origin = cloned
    shutil.move(origin.path, origin.path.with_name('moved'))
    clock.advance(days=400)
    ci.prune()
    assert left(ci) == ['main', 'topic']


def test_without_a_repository_the_newest_hundred_refs_keep_their_last_success(ci, clock, project, runner):
    for number in range(120):
        finished(ci, project, runner, f'branch-{number}')
    clock.advance(days=400)
    ci.prune()
    assert sorted(left(ci)) == sorted(f'branch-{number}' for number in range(20, 120))


# -- the database

def test_a_new_database_returns_its_unused_pages_to_the_disk(ci, clock, project, runner):
    for number in range(60):
        finished(ci, project, runner, f'branch-{number}')
    with ci.db.write() as c:
        c.execute("INSERT INTO setting VALUES ('ballast', :text)", {'text': 'x' * 2_000_000})
    with ci.db.write() as c:
        c.execute("DELETE FROM setting WHERE key = 'ballast'")
    ci.sweep()
    with ci.db.read() as c:
        assert c.execute('PRAGMA freelist_count').fetchone()[0] == 0
        assert c.execute('PRAGMA page_count').fetchone()[0] < 300


def test_tag_sets_that_no_job_has_any_more_are_removed(ci, clock, project):
    runner = Runner(ci, tag_list=['linux', 'arm'])
    for number in range(20):
        content = {'test': {'script': ['make'], 'tags': [f'tag-{number}']}}
        pipeline = ci.create_pipeline(project, f'branch-{number}', sha=SHA, content=content)
        ci.cancel_pipeline(pipeline)
    ci.create_pipeline(project, 'main', sha=SHA, content={'test': {'script': ['make'], 'tags': ['linux']}})
    clock.advance(days=31)
    ci.sweep()
    with ci.db.read() as c:
        kept = [json.loads(row['tags']) for row in c.execute('SELECT tags FROM tag_set')]
    assert ['linux'] in kept
    assert len(kept) <= 2
    assert runner.claim().job['ref'] == 'main'


def test_a_clock_set_back_does_not_end_the_upkeep(ci, clock, job):
    ci.sweep()
    clock.advance(days=-1)
    with_artifact(ci, ci.authenticate_job(1, job.token), b'x', expire_in='1 minute')
    finished_at = clock.now
    ci.update_job(ci.authenticate_job(1, job.token), 'success')
    assert ci.find_job(1)['finished_at'] >= ci.find_job(1)['started_at'] > finished_at
    clock.advance(minutes=2)
    ci.sweep()
    assert list(ci.artifacts.stored()) == []


def test_a_job_that_ends_while_the_clock_stands_an_hour_back_took_no_negative_time(ci, clock, job):
    clock.advance(hours=-1)
    ci.update_job(ci.authenticate_job(1, job.token), 'success')
    found, token = ci.find_job(1), ci.create_private_token()
    assert found['finished_at'] == found['started_at']
    for path in ('jobs/1', 'pipelines/1'):
        shown = Client(ci).call('GET', f'/api/v4/projects/1/{path}', token=token, status=200).json
        assert shown['duration'] in (0, None), path
        assert (shown['queued_duration'] or 0) >= 0, path


# -- damage

def damage(path, table):
    """Overwrite the page where a table's rows begin."""
    with sqlite3.connect(path) as c:
        page, = c.execute('SELECT rootpage FROM sqlite_master WHERE name = :table', {'table': table}).fetchone()
        size, = c.execute('PRAGMA page_size').fetchone()
    c.close()
    with open(path, 'r+b') as file:
        file.seek((page - 1) * size)
        file.write(b'\xa5' * size)


KILLED = """
import os, sys, minici
ci = minici.Coordinator(sys.argv[1])
for number in range(20):
    ci.create_project(f'project-{number}')
print('ready', flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_database_that_was_damaged_while_its_server_was_killed_is_noticed_and_answers_503(tmp_path, quick, caplog):
    path = tmp_path / 'ci.sqlite'
    subprocess.run([sys.executable, '-c', KILLED, path], stdout=subprocess.PIPE, check=False)
    assert path.with_name('ci.sqlite-wal').exists()
    damage(path, 'project')
    path.with_name('ci.sqlite-wal').touch()     # as the kill left it
    with minici.Coordinator(path) as ci, minici.Server(ci):
        until(lambda: ci.db.damage)
        with pytest.raises(minici.Busy, match='restore'):
            ci.find_project('project-1')
        with pytest.raises(minici.Busy, match='restore'):
            ci.create_project('more')
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
    assert 'restore' in caplog.text
