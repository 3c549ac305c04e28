"""The queue: which runner gets which job when, what a claim costs, and what becomes of claims nobody answers."""

import errno
import json
import os
import sqlite3
import threading
from collections import defaultdict
from pathlib import Path

import pytest
from support import PLAIN, SHA, TWO_STAGES, Client, Runner, archive, fail_of_silence, python

import minici

MANUAL = {'test': {'script': ['make'], 'when': 'manual'}}


def queue(ci, project, *tags_of_jobs):
    """Make a pipeline of a job for each list of tags, named by its place."""
    jobs = {f'job {index}': {'script': ['make'], 'tags': tags} for index, tags in enumerate(tags_of_jobs)}
    return ci.create_pipeline(project, 'main', sha=SHA, content=jobs)


def drain(runner):
    """Claim until there is nothing left; return the jobs' names in order."""
    names = []
    while claim := runner.claim():
        names.append(claim.job['name'])
    return names


# -- which jobs a runner gets

def test_jobs_are_handed_out_oldest_first(ci, project, runner):
    for ref in ('one', 'two'):
        ci.create_pipeline(project, ref, sha=SHA, content={**PLAIN, 'more': {'script': ['make']}})
    assert [(runner.claim().job['id']) for _ in range(4)] == [1, 2, 3, 4]
    assert runner.claim() is None


@pytest.mark.parametrize('settings, expected', [
    ({}, ['job 0']),
    ({'tag_list': ['linux']}, ['job 0', 'job 1']),
    ({'tag_list': ['linux'], 'run_untagged': False}, ['job 1']),
    ({'tag_list': ['docker', 'linux', 'spare']}, ['job 0', 'job 1', 'job 2']),
    ({'tag_list': ['Linux'], 'run_untagged': False}, []),
    ({'tag_list': [' linux ', 'linux', ''], 'run_untagged': False}, ['job 1']),
    ({'active': False}, []),
])
def test_a_runner_gets_the_jobs_all_of_whose_tags_it_has(ci, project, settings, expected):
    before = Runner(ci, **settings)  # one that was there before anybody asked for these tags, one that came later
    queue(ci, project, [], ['linux'], ['docker', 'linux'])
    after = Runner(ci, **settings)
    assert drain(before) == expected
    queue(ci, project, [], ['linux'], ['linux', 'docker'])
    assert drain(after) == expected


def test_a_project_runner_serves_its_project_alone(ci, project):
    other = ci.create_project('group/other')
    runner = Runner(ci, token=other['runners_token'])
    queue(ci, project, [])
    assert runner.claim() is None
    queue(ci, other, [])
    assert runner.claim().job['project_id'] == other['id']


def test_a_project_without_shared_runners_is_served_by_its_own_runners_alone(ci, runner):
    closed = ci.create_project('group/closed', shared_runners_enabled=False)
    queue(ci, closed, [])
    assert runner.claim() is None
    assert Runner(ci, token=closed['runners_token']).claim().job['project_path'] == 'group/closed'


def test_an_edited_runner_gets_what_its_new_settings_allow(ci, project, runner):
    queue(ci, project, ['linux'], [])
    ci.edit_runner(runner.row, active=False)
    assert drain(runner) == []
    ci.edit_runner(runner.row, active=True, run_untagged=False, tag_list=['linux'])
    assert drain(runner) == ['job 0']


def test_a_runner_that_was_removed_gets_nothing_more(ci, client, pipeline, runner):
    ci.unregister_runner(runner.row)
    client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=403)
    assert ci.find_job(1)['status'] == 'pending'


def test_a_claim_makes_the_job_running_with_a_token_and_an_empty_trace_of_its_own(ci, job, runner, clock):
    row = ci.find_job(1)
    assert (row['status'], row['runner_id'], row['started_at']) == ('running', runner.id, clock.now)
    assert ci.find_pipeline(1)['status'] == 'running'
    assert ci.authenticate_job(1, job.token)['id'] == 1
    assert ci.authenticate_job(1, runner.token) is None
    assert ci.read_trace(1) == b''


# -- the queue's value

def requeue(ci, clock, runner):
    clock.advance(121)
    ci.sweep()


BECOMES_CLAIMABLE = {
    'a new pipeline': lambda ci, clock, runner: ci.create_pipeline(1, 'main', sha=SHA, content=PLAIN),
    'the next stage': lambda ci, clock, runner: runner.run(),
    'a retry': lambda ci, clock, runner: (runner.run('failed'), ci.retry_job(ci.find_job(1)))[1],
    'a retried pipeline': lambda ci, clock, runner: (runner.run('failed'), ci.retry_pipeline(ci.find_pipeline(1))),
    'a manual job that is played': lambda ci, clock, runner: ci.play_job(ci.find_job(3)),
    'a claim that was lost': lambda ci, clock, runner: (runner.claim(), requeue(ci, clock, runner)),
    'a runner that is paused no more': lambda ci, clock, runner: ci.edit_runner(runner.row, active=True),
    'a runner with new tags': lambda ci, clock, runner: ci.edit_runner(runner.row, tag_list=['linux']),
    'a runner of a project': lambda ci, clock, runner: Runner(ci, token=ci.find_project(1)['runners_token']),
}


@pytest.mark.parametrize('event', BECOMES_CLAIMABLE)
def test_the_queue_value_changes_with(event, ci, clock, project, runner):
    ci.create_pipeline(project, 'main', sha=SHA, content=TWO_STAGES)
    ci.create_pipeline(project, 'main', sha=SHA, content=MANUAL)
    before = ci.queue_value(runner.row)
    BECOMES_CLAIMABLE[event](ci, clock, runner)
    assert ci.queue_value(runner.row) != before


def test_the_queue_value_stays_while_nothing_becomes_claimable(ci, client, pipeline, runner, clock):
    before = ci.queue_value(runner.row)
    claim = runner.claim()
    job = ci.authenticate_job(1, claim.token)
    ci.append_trace(job, 0, b'line\n')
    clock.advance(minutes=5)
    client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=204)
    ci.update_job(job, 'success')
    assert ci.queue_value(runner.row) == before


def test_last_update_equal_to_the_queue_value_skips_the_search(ci, project, runner):
    stale = runner.row
    ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    assert ci.request_job(stale, last_update=ci.queue_value(stale)) is None
    assert ci.request_job(runner.row, last_update=ci.queue_value(stale)).job['id'] == 1


@pytest.fixture
def idle(ci):
    """A runner that has nothing to do."""
    return Runner(ci, tag_list=['none'], run_untagged=False)


def test_a_runner_that_polled_in_vain_gets_what_another_process_has_made_claimable_since(ci, project, runner, idle):
    assert ci.poll(runner.row) is None
    assert ci.poll(idle.row) is None
    with minici.Coordinator(ci.db.path, ci.data, clock=ci.clock, fsync=False) as other:
        other.create_pipeline(other.find_project(project['id']), 'main', sha=SHA, content=PLAIN)
    assert ci.poll(idle.row) is None
    assert ci.poll(runner.row).job['id'] == 1
    assert ci.poll(runner.row) is None


def test_a_runner_that_polled_in_vain_gets_a_job_once_it_serves_its_tags_or_the_job_is_due(ci, project, idle, clock):
    ci.create_pipeline(project, 'main', sha=SHA, content={'now': {'script': ['x']}, 'later': {
        'script': ['x'], 'when': 'delayed', 'start_in': '10 seconds', 'tags': ['none']}})
    assert ci.poll(idle.row) is None
    clock.advance(10)
    assert ci.poll(idle.row).job['name'] == 'later'
    assert ci.poll(idle.row) is None
    ci.edit_runner(idle.row, run_untagged=True)
    assert ci.poll(idle.row).job['name'] == 'now'


def test_a_poll_that_looked_for_old_jobs_alone_says_nothing_about_younger_ones(ci, project, runner):
    ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    assert ci.poll(runner.row, job_age=60) is None
    assert ci.poll(runner.row).job['id'] == 1


def test_a_poll_in_vain_is_answered_without_a_search_and_still_sweeps(ci, runner, clock, monkeypatch):
    assert ci.poll(runner.row) is None
    searched, swept = [], []
    monkeypatch.setattr(ci, '_claim', lambda *arguments, **details: searched.append(1))
    monkeypatch.setattr(ci, 'sweep', lambda: swept.append(1))
    ci.poll(runner.row)
    assert (searched, swept) == ([], [])
    clock.advance(minutes=1)
    ci.poll(runner.row)
    assert swept == [1]


@pytest.mark.parametrize('path', ['/api/v4/jobs/request', '/ci/api/v1/builds/register'])
def test_an_idle_runner_is_told_the_queue_value_and_brings_it_back(ci, client, project, runner, path):
    agent = {'User-Agent': 'gitlab-ci-multi-runner 1.5.2 (1-5-stable; go1.6.3; linux/amd64)'}
    told = client.call('POST', path, json={'token': runner.token}, headers=agent, status=204)
    value = told.headers['X-GitLab-Last-Update']
    again = client.call('POST', path, json={'token': runner.token, 'last_update': value}, headers=agent, status=204)
    assert again.headers['X-GitLab-Last-Update'] == value
    ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    got = client.call('POST', path, json={'token': runner.token, 'last_update': value}, headers=agent, status=201)
    assert 'X-GitLab-Last-Update' not in got.headers


def test_the_queue_values_of_two_installations_differ(ci, runner):
    with minici.Coordinator() as other:
        assert other.queue_value(Runner(other).row) != ci.queue_value(runner.row)


# -- what a poll and a claim cost

@pytest.fixture
def watch(ci):
    """A function that tells whether anything was committed since it was last asked."""
    connection = sqlite3.connect(ci.db.path)
    seen = [connection.execute('PRAGMA data_version').fetchone()]

    def changed():
        seen.append(connection.execute('PRAGMA data_version').fetchone())
        return seen[-1] != seen[-2]

    yield changed
    connection.close()


@pytest.mark.parametrize('path, body', [
    ('/api/v4/jobs/request', {'info': {'name': 'gitlab-runner', 'version': '17.0.0', 'features': {'variables': True}}}),
    ('/api/v4/jobs/request', {'system_id': 's_0123456789ab', 'info': {'name': 'gitlab-runner', 'version': '17.0.0'}}),
    ('/ci/api/v1/builds/register', {'info': {'name': 'gitlab-ci-multi-runner', 'version': '1.5.2'}}),
])
def test_an_idle_poll_writes_nothing_but_the_last_contact_once_a_minute(ci, client, clock, runner, watch, path, body):
    ci.sweep()      # the first one gives the pages back that the schema's steps have left unused
    watch()
    seconds_written = []
    for second in range(0, 300, 3):
        client.call('POST', path, json={'token': runner.token, **body})
        if watch():
            seconds_written.append(second)
        clock.advance(3)
    assert seconds_written == [0, 60, 120, 180, 240]


def test_the_last_contact_is_written_by_a_poll_and_again_after_a_minute(ci, client, clock, runner):
    for seconds, expected in ((0, clock.now), (59, clock.now), (1, clock.now + 60)):
        clock.advance(seconds)
        client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=204)
        assert runner.row['contacted_at'] == expected


def backlog(ci, project, *, pending=0, finished=0, tags=('linux',)):
    """Put jobs into the database, as many as wanted."""
    for status, number in (('success', finished), ('pending', pending)):
        spec = minici.PipelineSpec(['test'], [minici.JobSpec(f'job {index}', ['make'], tag_list=tags)
                                              for index in range(number)])
        if number:
            pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=spec)
            with ci.db.write() as c:
                c.execute('UPDATE job SET status = :status WHERE pipeline_id = :id', {'status': status, **pipeline})


@pytest.mark.parametrize('kind', minici.CANDIDATES)
@pytest.mark.parametrize('jobs', [{'finished': 1000}, {'pending': 1000}, {'finished': 900, 'pending': 10}])
def test_after_analyze_a_claim_still_seeks_in_its_index_and_scans_no_jobs(ci, project, kind, jobs):
    Runner(ci, tag_list=['linux'])
    Runner(ci, token=project['runners_token'])
    backlog(ci, project, **jobs)
    with ci.db.write() as c:
        c.execute('ANALYZE')
    c = sqlite3.connect(ci.db.path)  # a fresh connection, which has read what ANALYZE found
    plan = [row[3] for row in c.execute(f'EXPLAIN QUERY PLAN {minici.CANDIDATES[kind]}',
                                        defaultdict(lambda: None, runner_id=1))]
    c.close()
    runner_type, _ = kind
    key = {'instance_type': 'job_pending_shared (tag_set_id=? AND protected=?)',
           'project_type': 'job_pending_project (project_id=? AND tag_set_id=? AND protected=?)'}[runner_type]
    assert any(step.startswith('SEARCH queued') and key in step for step in plan), plan
    scanned = {step for step in plan if step.startswith('SCAN') and '(subquery' not in step}
    assert scanned <= {'SCAN CONSTANT ROW', 'SCAN ref'}, plan   # protected or not
    assert 'SEARCH job USING INTEGER PRIMARY KEY (rowid=?)' in plan


def steps_of_a_claim(folder, *, project_runner=False, done_since=0, **jobs):
    """Return how many instructions SQLite runs for one claim, and whether there was a job to take.

    `done_since` jobs, the oldest, have finished since ANALYZE saw them waiting.
    """
    folder.mkdir()
    with minici.Coordinator(folder / 'ci.sqlite', fsync=False) as ci:
        project, steps = ci.create_project('demo'), []
        runner = Runner(ci, tag_list=['linux'], token=project['runners_token'] if project_runner else
                        ci.registration_token)
        backlog(ci, project, **jobs)
        row = runner.row
        with ci.db.write() as c:
            c.execute('ANALYZE')
            c.execute("UPDATE job SET status = 'success' WHERE id <= :last", {'last': done_since})
            c.set_progress_handler(lambda: steps.append(1), 1)
        claim = ci.request_job(row)
        with ci.db.write() as c:
            c.set_progress_handler(None, 0)
        return len(steps), claim is not None


@pytest.mark.parametrize('project_runner', [False, True])
@pytest.mark.parametrize('small, large', [
    ({'pending': 10}, {'pending': 3000}),
    ({'pending': 10}, {'pending': 10, 'finished': 3000}),
    ({'pending': 10}, {'pending': 3000, 'done_since': 2990}),
    ({'pending': 10, 'tags': ['arm']}, {'pending': 3000, 'tags': ['arm']}),
])
def test_a_claim_costs_the_same_however_many_jobs_wait_or_have_finished(tmp_path, small, large, project_runner):
    few, found_few = steps_of_a_claim(tmp_path / 'small', project_runner=project_runner, **small)
    many, found_many = steps_of_a_claim(tmp_path / 'large', project_runner=project_runner, **large)
    assert found_few == found_many == ('tags' not in small)
    assert few > 0
    assert many <= few * 1.2


# -- claims that nobody answers

@pytest.fixture
def refused(ci, client):
    """A function that tells whether each call of a job's runner is refused as a wrong token."""
    def check(token, runner_token):
        headers = {'JOB-TOKEN': token, 'BUILD-TOKEN': token, 'Content-Range': '0-0'}
        calls = [client.call('PATCH', '/api/v4/jobs/1/trace', headers=headers, data=b''),
                 client.call('PATCH', '/ci/api/v1/builds/1/trace.txt', headers=headers, data=b''),
                 client.call('PUT', '/api/v4/jobs/1', json={'token': token, 'state': 'success'}),
                 client.call('PUT', '/ci/api/v1/builds/1', json={'token': token, 'state': 'success'}),
                 client.call('POST', '/api/v4/jobs/1/artifacts', headers=headers, files=[('file', 'a', b'1')]),
                 client.call('GET', '/api/v4/jobs/1/artifacts', headers=headers),
                 client.call('GET', '/api/v4/job', headers=headers)]
        return all(call.status_int in (401, 403) for call in calls)
    return check


def test_a_claim_without_an_answer_is_queued_again_with_a_new_token(ci, clock, job, runner, refused):
    clock.advance(119)
    ci.sweep()
    assert ci.find_job(1)['status'] == 'running'
    clock.advance(1)
    ci.sweep()
    waiting = ci.find_job(1)
    assert (waiting['status'], waiting['runner_id'], waiting['started_at']) == ('pending', None, None)
    assert refused(job.token, runner.token)
    with pytest.raises(minici.NotFound):
        ci.read_trace(1)
    again = runner.claim()
    assert again.job['id'] == 1
    assert again.token != job.token
    assert refused(job.token, runner.token)
    assert ci.append_trace(ci.authenticate_job(1, again.token), 0, b'line\n') == 5


def test_a_job_whose_claims_are_lost_three_times_fails_with_a_reason_that_says_so(ci, clock, project, runner):
    ci.create_pipeline(project, 'main', sha=SHA, content=TWO_STAGES)
    for _ in range(3):
        assert runner.claim().job['id'] == 1
        clock.advance(120)
        ci.sweep()
    assert runner.claim() is None
    failed = ci.find_job(1)
    assert failed['status'] == 'failed'
    assert 'claim' in failed['failure_reason']
    assert ci.find_pipeline(1)['status'] == 'failed'


def test_polling_alone_sweeps_every_half_minute(tmp_path, clock):
    with minici.Coordinator(tmp_path / 'ci.sqlite', clock=clock, claim_timeout=10) as ci:
        ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content=PLAIN)
        lost, other = Runner(ci).claim(), Runner(ci)
        clock.advance(29)
        assert other.claim() is None
        clock.advance(1)
        assert other.claim().job['id'] == lost.job['id']


SIGNS_OF_LIFE = {
    'a chunk': ('PATCH', '/api/v4/jobs/1/trace', {'data': b'line\n', 'headers': {'Content-Range': '0-4'}}),
    'an empty chunk': ('PATCH', '/api/v4/jobs/1/trace', {'data': b'', 'headers': {'Content-Range': '0-0'}}),
    'an empty v1 chunk': ('PATCH', '/ci/api/v1/builds/1/trace.txt', {'data': b'', 'headers': {'Content-Range': '0-0'}}),
    'state=running': ('PUT', '/api/v4/jobs/1', {'json': {'state': 'running'}}),
    'no state': ('PUT', '/ci/api/v1/builds/1', {'json': {}}),
    'a whole trace': ('PUT', '/ci/api/v1/builds/1', {'json': {'state': 'running', 'trace': 'line\n'}}),
    'an upload': ('POST', '/api/v4/jobs/1/artifacts', {'files': [('file', 'a.zip', archive(a='1'))]}),
}


@pytest.mark.parametrize('sign', SIGNS_OF_LIFE)
def test_a_job_is_kept_alive_and_from_requeueing_by(sign, ci, client, clock, job):
    method, path, options = SIGNS_OF_LIFE[sign]
    clock.advance(119)
    tokens = {'JOB-TOKEN': job.token, 'BUILD-TOKEN': job.token}
    body = {'json': {**options['json'], 'token': job.token}} if 'json' in options else {}
    call = client.call(method, path, **{**options, **body, 'headers': {**tokens, **options.get('headers', {})}})
    assert call.status_int in (200, 201, 202)
    fail_of_silence(ci, clock)


def test_a_job_that_fell_silent_lets_its_pipeline_go_on(ci, clock, project, runner):
    ci.create_pipeline(project, 'main', sha=SHA, content={
        'first': {'stage': 'build', 'script': ['make']},
        'after': {'stage': 'test', 'script': ['make'], 'when': 'on_failure'}})
    claim = runner.claim()
    ci.append_trace(ci.authenticate_job(1, claim.token), 0, b'last words\n')
    clock.advance(minutes=10)
    assert runner.claim().job['name'] == 'after'
    assert ci.read_trace(1) == b'last words\n'


def test_a_clock_that_goes_back_kills_and_requeues_nothing(ci, clock, job):
    clock.advance(days=-1)
    ci.sweep()
    assert ci.find_job(1)['status'] == 'running'
    assert ci.append_trace(ci.authenticate_job(1, job.token), 0, b'line\n') == 5


def test_after_a_restart_runners_have_the_whole_timeout_to_be_heard_again(ci, clock, job):
    ci.append_trace(ci.authenticate_job(1, job.token), 0, b'line\n')
    clock.advance(hours=8)
    with minici.Coordinator(ci.db.path, clock=clock) as restarted:
        restarted.sweep()
        clock.advance(599)
        restarted.sweep()
        assert restarted.find_job(1)['status'] == 'running'
        clock.advance(1)
        restarted.sweep()
        assert restarted.find_job(1)['status'] == 'failed'


@pytest.fixture
def late(ci, clock):
    """A second coordinator over the same database, and what happens between its look at a job and its verdict."""
    with minici.Coordinator(ci.db.path, clock=clock, fsync=False) as other:
        look, meanwhile = other.traces.last_heard, []

        def last_heard(job_id):
            heard = look(job_id)
            while meanwhile:
                meanwhile.pop()()
            return heard

        other.traces.last_heard = last_heard
        yield other, meanwhile


@pytest.mark.parametrize('said', [b'', b'acknowledged\n'])
def test_a_sweep_that_comes_too_late_leaves_the_next_claim_of_the_job_alone(ci, clock, job, runner, late, said):
    other, meanwhile = late
    claims = []

    def claim_again():
        ci.sweep()
        claims.append(runner.claim())
        if said:
            ci.append_trace(ci.authenticate_job(1, claims[0].token), 0, said)

    meanwhile.append(claim_again)
    clock.advance(120)
    other.sweep()
    assert ci.find_job(1)['status'] == 'running'
    assert ci.read_trace(1) == said
    assert ci.append_trace(ci.authenticate_job(1, claims[0].token), len(said), b'more\n') == len(said) + 5


def test_a_runner_that_is_heard_at_the_last_moment_keeps_its_job(ci, clock, job, late):
    other, meanwhile = late
    held = ci.authenticate_job(1, job.token)
    meanwhile.append(lambda: ci.append_trace(held, 0, b'acknowledged\n'))
    clock.advance(120)
    other.sweep()
    assert ci.find_job(1)['status'] == 'running'
    assert ci.append_trace(held, 13, b'more\n') == 18


@pytest.mark.parametrize('fault', [OSError(errno.EMFILE, 'no handles'), minici.Busy('locked'), RuntimeError('a bug')])
def test_a_claim_whose_answer_cannot_be_made_is_undone_and_counts_no_attempt(ci, client, pipeline, runner, monkeypatch,
                                                                             fault):
    def fail(*_):
        raise fault

    for path in ('/api/v4/jobs/request', '/ci/api/v1/builds/register'):
        with monkeypatch.context() as patched:
            patched.setattr(minici, 'variables_of_job', fail)
            for _ in range(5):
                assert client.call('POST', path, json={'token': runner.token}).status_int in (500, 503)
        row = ci.find_job(1)
        assert (row['status'], row['attempts'], row['runner_id'], row['started_at']) == ('pending', 0, None, None)
        assert ci.find_pipeline(1)['status'] == 'pending'
    assert runner.claim().job['id'] == 1
    assert ci.find_job(1)['attempts'] == 1


def test_a_claim_needs_no_room_for_files(ci, pipeline, runner, monkeypatch):
    make = os.mkdir

    def no_inodes(path, *args, **options):
        if 'traces' in Path(path).parts:
            raise OSError(errno.ENOSPC, 'no inodes')
        make(path, *args, **options)

    monkeypatch.setattr(os, 'mkdir', no_inodes)
    claim = runner.claim()
    assert ci.read_trace(claim.job) == b''
    with pytest.raises(OSError, match='no inodes'):
        ci.append_trace(claim.job, 0, b'line\n')
    monkeypatch.undo()
    assert ci.append_trace(claim.job, 0, b'line\n') == 5


# -- many at once

TAG_SETS = ([], ['linux'], ['docker', 'linux'], ['mac'])
RUNNERS = ({}, {'tag_list': ['linux']}, {'tag_list': ['docker', 'linux']}, {'tag_list': ['mac'], 'run_untagged': False},
           {'tag_list': ['docker', 'linux', 'mac'], 'run_untagged': False})
CLAIMERS = """
import json, sys, threading, minici

ci = minici.Coordinator(sys.argv[1], fsync=False)
runners, claims = sys.argv[2:], []

def work(token):
    while True:
        try:
            claim = ci.request_job(ci.find_runner(token))
        except minici.Busy:
            continue
        if claim is None:
            return
        claims.append([claim.job['id'], claim.token, claim.job['runner_id']])

threads = [threading.Thread(target=work, args=[runners[index % len(runners)]]) for index in range(8)]
print('ready', flush=True)
sys.stdin.readline()
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(claims))
"""


def test_eight_threads_in_each_of_four_processes_claim_2000_builds_each_exactly_once_and_oldest_first(ci, project):
    with ci.db.write() as c:  # what the order of claims was, by the database's own word
        c.execute('CREATE TABLE claimed (place INTEGER PRIMARY KEY, job_id INTEGER, tag_set_id INTEGER)')
        c.execute("CREATE TRIGGER claim AFTER UPDATE OF status ON job WHEN NEW.status = 'running' "
                  'BEGIN INSERT INTO claimed (job_id, tag_set_id) VALUES (NEW.id, NEW.tag_set_id); END')
    runners = [Runner(ci, **settings) for settings in RUNNERS]
    tags = {runner.id: set(settings.get('tag_list', [])) for runner, settings in zip(runners, RUNNERS, strict=True)}
    for _ in range(20):
        queue(ci, project, *(TAG_SETS[index % 4] for index in range(100)))
    processes = [python(CLAIMERS, ci.db.path, *(runner.token for runner in runners)) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == 'ready\n'
    answers = [threading.Thread(target=lambda each: claims.extend(json.loads(each.communicate('go\n')[0])), args=[each])
               for each in processes]
    claims = []
    for thread in answers:
        thread.start()
    for thread in answers:
        thread.join()
    assert sorted(job for job, _, _ in claims) == list(range(1, 2001))
    assert len({token for _, token, _ in claims}) == 2000
    assert all(set(json.loads(ci.find_job(job)['tags'])) <= tags[runner] for job, _, runner in claims[::50])
    with ci.db.read() as c:
        order = c.execute('SELECT job_id, tag_set_id FROM claimed ORDER BY place').fetchall()
    for tag_set in {row['tag_set_id'] for row in order}:
        of_this_set = [row['job_id'] for row in order if row['tag_set_id'] == tag_set]
        assert of_this_set == sorted(of_this_set)
    assert all(ci.authenticate_job(job, token)['runner_id'] == runner for job, token, runner in claims[::50])


def test_v1_and_v4_runners_drain_one_queue_and_no_build_runs_twice(ci, project, runner):
    queue(ci, project, *([[]] * 60))
    taken, app = [], minici.create_app(ci)

    def work(path):
        client = Client(ci, app)
        while (answer := client.call('POST', path, json={'token': runner.token})).status_int == 201:
            taken.append(answer.json['id'])

    threads = [threading.Thread(target=work, args=[path]) for path in
               ('/api/v4/jobs/request', '/ci/api/v1/builds/register') * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 61))
    assert not any(Path(ci.traces.path(job)).exists() for job in taken)     # a claim makes no file
