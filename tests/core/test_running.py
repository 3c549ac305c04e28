"""What a coordinator does by itself: delays, retries, resource groups, new commits, retention, word out."""

import json
import os
import stat
import threading
import time
import types

import pytest
from support import PLAIN, SHA, TWO_STAGES, Runner, archive, stamped, until

import minici

OTHER = 'f' * 40


@pytest.fixture
def make(ci, project):
    """Make a pipeline of a mapping."""
    def make(content, *, project=project, ref='main', sha=SHA, **options):
        return ci.create_pipeline(project, ref, sha=sha, content=content, **options)
    return make


@pytest.fixture
def statuses(ci):
    """Tell what a pipeline and the jobs that stand for it have come to."""
    def statuses(pipeline):
        jobs = ci.list_jobs(pipeline=pipeline, include_retried=False, limit=1000)
        return ci.find_pipeline(pipeline)['status'], {job['name']: job['status'] for job in reversed(jobs)}
    return statuses


def named(ci, pipeline, name):
    """Return the newest job of that name."""
    return next(job for job in ci.list_jobs(pipeline=pipeline, limit=1000) if job['name'] == name)


def end(ci, claim, state='success', **said):
    """Finish a claimed job."""
    ci.update_job(ci.authenticate_job(claim.job['id'], claim.token), state, **said)


# -- delayed jobs

LATER = {'build': {'stage': 'build', 'script': 'x'}, 'later': {'script': 'x', 'when': 'delayed', 'start_in': '5 min'}}


def test_a_delayed_job_is_scheduled_when_its_stage_comes_and_queued_when_it_is_due(ci, clock, make, runner, statuses):
    pipeline = make(LATER)
    clock.advance(minutes=10)
    runner.run()
    assert statuses(pipeline) == ('scheduled', {'build': 'success', 'later': 'scheduled'})
    assert named(ci, pipeline, 'later')['scheduled_at'] == clock.now + 300
    clock.advance(299)
    assert runner.claim() is None
    clock.advance(1)
    assert runner.claim().job['name'] == 'later'
    assert named(ci, pipeline, 'later')['queued_at'] == clock.now


def test_a_due_job_is_found_by_a_runner_that_brings_the_queue_value_back(ci, clock, make, runner):
    make(LATER)
    runner.run()
    value = ci.queue_value(runner.row)
    assert ci.request_job(runner.row, last_update=value) is None
    clock.advance(minutes=5)
    assert ci.request_job(runner.row, last_update=value).job['name'] == 'later'


def test_a_delayed_job_is_played_before_its_time(ci, make, runner, statuses):
    pipeline = make(LATER)
    runner.run()
    ci.play_job(named(ci, pipeline, 'later'))
    assert statuses(pipeline)[1]['later'] == 'pending'
    assert runner.run() == 'later'
    assert statuses(pipeline)[0] == 'success'


def test_a_delayed_job_that_was_canceled_does_not_start(ci, clock, make, runner, statuses):
    pipeline = make(LATER)
    runner.run()
    ci.cancel_job(named(ci, pipeline, 'later'))
    clock.advance(hours=1)
    assert runner.claim() is None
    assert statuses(pipeline) == ('canceled', {'build': 'success', 'later': 'canceled'})


def test_a_delayed_job_with_needs_counts_from_when_they_end(ci, clock, make, runner):
    pipeline = make({**LATER, 'slow': {'stage': 'build', 'script': 'x'},
                     'later': {**LATER['later'], 'needs': ['build']}})
    clock.advance(60)
    runner.run()
    assert named(ci, pipeline, 'later')['scheduled_at'] == clock.now + 300


# -- automatic retry

def test_a_failed_job_is_tried_again_as_often_as_it_asked_for(ci, make, runner, statuses):
    pipeline = make({'test': {'stage': 'build', 'script': 'x', 'retry': 2}, 'after': {'script': 'x'}})
    for tries in (1, 2, 3):
        assert statuses(pipeline)[1] == {'test': 'pending', 'after': 'created'}
        assert runner.run('failed') == 'test'
        assert len(ci.list_jobs(pipeline=pipeline)) == min(tries + 1, 3) + 1
    assert statuses(pipeline) == ('failed', {'test': 'failed', 'after': 'skipped'})
    tries = [job for job in ci.list_jobs(pipeline=pipeline) if job['name'] == 'test']
    assert [(job['status'], job['retried']) for job in tries] == [('failed', 0), ('failed', 1), ('failed', 1)]


def test_a_retry_that_succeeds_lets_its_pipeline_go_on(ci, make, runner, statuses):
    pipeline = make({'test': {'stage': 'build', 'script': 'x', 'retry': 1},
                     'after': {'script': 'x', 'needs': ['test']}})
    first = runner.claim()
    end(ci, first, 'failed', failure_reason='script_failure')
    second = runner.claim()
    assert (second.job['name'], second.job['id'] != first.job['id']) == ('test', True)
    assert ci.authenticate_job(second.job['id'], first.token) is None
    end(ci, second)
    assert statuses(pipeline) == ('running', {'test': 'success', 'after': 'pending'})


@pytest.mark.parametrize('retry, reason, code, again', [
    ({'max': 1, 'when': 'runner_system_failure'}, 'runner_system_failure', None, True),
    ({'max': 1, 'when': 'runner_system_failure'}, 'script_failure', 1, False),
    ({'max': 1, 'when': ['script_failure', 'api_failure']}, 'script_failure', 1, True),
    ({'max': 1, 'when': 'always'}, 'job_execution_timeout', None, True),
    ({'max': 1}, 'script_failure', 1, True),
    ({'max': 0, 'when': 'always'}, 'script_failure', 1, False),
    ({'max': 1, 'exit_codes': [137, 5]}, 'script_failure', 137, True),
    ({'max': 1, 'exit_codes': 137}, 'script_failure', 1, False),
    ({'max': 1, 'exit_codes': [137], 'when': 'script_failure'}, 'script_failure', 1, True),
    ({'max': 1, 'exit_codes': [137], 'when': 'api_failure'}, 'script_failure', 137, True),
])
def test_a_job_is_tried_again_after_the_failures_it_names_alone(ci, make, runner, retry, reason, code, again):
    pipeline = make({'test': {'script': 'x', 'retry': retry}})
    end(ci, runner.claim(), 'failed', failure_reason=reason, exit_code=code)
    assert len(ci.list_jobs(pipeline=pipeline)) == (2 if again else 1)


def test_a_silent_runner_leads_to_a_retry_and_a_cancel_to_none(ci, clock, make, runner, statuses):
    pipeline = make({'test': {'script': 'x', 'retry': {'max': 2, 'when': 'stuck_or_timeout_failure'}}})
    claim = runner.claim()
    ci.append_trace(ci.authenticate_job(claim.job['id'], claim.token), 0, b'working\n')
    clock.advance(hours=1)
    ci.sweep()
    assert statuses(pipeline) == ('pending', {'test': 'pending'})
    ci.cancel_job(runner.claim().job)
    assert statuses(pipeline) == ('canceled', {'test': 'canceled'})
    assert len(ci.list_jobs(pipeline=pipeline)) == 2


# -- exit codes that are allowed, coverage

@pytest.mark.parametrize('code, status', [(5, 'success'), (6, 'failed'), (None, 'failed')])
def test_an_allowed_exit_code_is_a_warning_for_what_needs_the_job_too(ci, make, runner, statuses, code, status):
    pipeline = make({'test': {'stage': 'build', 'script': 'x', 'allow_failure': {'exit_codes': [5]}},
                     'after': {'script': 'x', 'needs': ['test']}})
    end(ci, runner.claim(), 'failed', exit_code=code)
    runner.run()
    assert statuses(pipeline) == (status, {'test': 'failed', 'after': 'success' if code == 5 else 'skipped'})


@pytest.mark.parametrize('pattern, trace, coverage', [
    (r'/Code coverage: \d+\.\d+/', b'Code coverage: 12.5\nCode coverage: 67.89 %\nbye\n', 67.89),
    (r'/TOTAL.*? (100(?:\.0+)?\%|[1-9]?\d(?:\.\d+)?\%)$/', b'TOTAL    1240    56    95%\n', 95.0),
    (r'/\d+%/', b'first 10% then 20%\n', 20.0),
    (r'/coverage: (\d+)/', b'coverage: none\n', None),
    (r'/coverage: \d+/', b'\xff\xfe \x1b[32mcoverage: 7\x1b[0m\n', 7.0),
    (r'/coverage: \d+/', b'', None),
    (r'/^TOTAL.*\s(\d+)%$/', b'TOTAL 1 2 90%\n' + (b'x' * 99 + b'\n') * 12_000, 90.0),     # far from the end
    (r'/^TOTAL.*\s(\d+)%$/', b'TOTAL 1 2 90%\r\n', 90.0),
    (r'/^TOTAL.*\s(\d+)%$/', stamped(b'TOTAL 1 2 80%\nTOTAL 1 2\r 90%\nbye\n'), 90.0),
    (r'/^\d+$/', stamped(b'12\n'), 12.0),
])
def test_coverage_is_the_last_number_that_its_pattern_finds(ci, client, token, make, runner, pattern, trace, coverage):
    make({'test': {'script': 'x', 'coverage': pattern}})
    claim = runner.claim()
    ci.append_trace(ci.authenticate_job(claim.job['id'], claim.token), 0, trace)
    end(ci, claim)
    shown = client.call('GET', f'/api/v4/projects/1/jobs/{claim.job["id"]}', token=token).json
    assert shown['coverage'] == coverage


def test_a_job_whose_coverage_is_searched_for_too_long_ends_without_it(ci, make, runner, monkeypatch):
    monkeypatch.setattr(minici, 'PATTERN_TIMEOUT', 0.05)
    make({'test': {'script': 'x', 'coverage': '/(a|a)*$/'}})
    claim = runner.claim()
    ci.append_trace(claim.job, 0, b'7 %\n' + b'a' * 40 + b'b\n')
    end(ci, claim)
    assert (ci.find_job(claim.job)['status'], ci.find_job(claim.job)['coverage']) == ('success', None)


def test_the_coverage_of_a_pipeline_is_the_mean_of_its_jobs(ci, client, token, make, runner):
    make({name: {'script': 'x', 'coverage': '/[0-9.]+%/'} for name in ('one', 'two', 'three')})
    shown = [client.call('GET', '/api/v4/projects/1/pipelines/1', token=token).json['coverage']]
    for trace in (b'90%', b'45.5%', b'none'):
        claim = runner.claim()
        ci.append_trace(ci.authenticate_job(claim.job['id'], claim.token), 0, trace)
        end(ci, claim)
        shown.append(client.call('GET', '/api/v4/projects/1/pipelines/latest', token=token).json['coverage'])
    assert shown == [None, '90.00', '67.75', '67.75']


# -- resource groups

DEPLOY = {'deploy': {'script': 'x', 'resource_group': 'production'}}


def test_jobs_of_a_resource_group_run_one_at_a_time_oldest_first_in_all_pipelines_of_a_project(ci, make, runner):
    pipelines = [make({'one': DEPLOY['deploy'], 'two': DEPLOY['deploy']}) for _ in range(2)]
    order = []
    while claim := runner.claim():
        assert runner.claim() is None
        order.append((claim.job['pipeline_id'], claim.job['name']))
        end(ci, claim)
    assert order == [(pipeline['id'], name) for pipeline in pipelines for name in ('one', 'two')]
    assert {ci.find_pipeline(pipeline)['status'] for pipeline in pipelines} == {'success'}


def test_resource_groups_of_other_names_and_projects_do_not_wait_for_each_other(ci, make, statuses):
    make(DEPLOY)
    other = make({'deploy': {'script': 'x', 'resource_group': 'staging'}, 'free': {'script': 'x'}})
    foreign = make(DEPLOY, project=ci.create_project('group/other'))
    assert statuses(other)[1] == {'deploy': 'pending', 'free': 'pending'}
    assert statuses(foreign)[1] == {'deploy': 'pending'}
    assert statuses(make(DEPLOY)) == ('waiting_for_resource', {'deploy': 'waiting_for_resource'})


@pytest.mark.parametrize('release', ['success', 'failed', 'cancel', 'cancel pipeline', 'delete', 'silence'])
def test_a_resource_is_released_by(ci, clock, make, runner, statuses, release):
    first, second = make(DEPLOY), make(DEPLOY)
    claim = runner.claim()
    ci.append_trace(ci.authenticate_job(claim.job['id'], claim.token), 0, b'x')
    assert statuses(second)[1] == {'deploy': 'waiting_for_resource'}
    if release in ('success', 'failed'):
        end(ci, claim, release)
    elif release == 'cancel':
        ci.cancel_job(claim.job)
    elif release == 'cancel pipeline':
        ci.cancel_pipeline(first)
    elif release == 'delete':
        ci.delete_pipelines([first])
    else:
        clock.advance(hours=1)
        ci.sweep()
    assert statuses(second) == ('pending', {'deploy': 'pending'})


def test_a_job_that_is_being_canceled_keeps_its_resource_until_it_has_ended(ci, client, make, statuses):
    graceful = Runner(ci)
    make(DEPLOY)
    waiting = make(DEPLOY)
    answer = client.call('POST', '/api/v4/jobs/request', status=201, json={
        'token': graceful.token, 'system_id': 's_1', 'info': {'features': {'cancel_gracefully': True}}}).json
    assert ci.cancel_job(ci.find_job(answer['id']))['status'] == 'canceling'
    assert statuses(waiting)[1] == {'deploy': 'waiting_for_resource'}
    ci.update_job(ci.authenticate_job(answer['id'], answer['token']), 'failed')
    assert statuses(waiting)[1] == {'deploy': 'pending'}


def test_a_manual_a_delayed_and_a_retried_job_wait_for_their_resource_too(ci, clock, make, runner, statuses):
    done = make(DEPLOY)
    runner.run()
    make(DEPLOY)
    manual = make({'deploy': {**DEPLOY['deploy'], 'when': 'manual'}})
    later = make({'deploy': {**DEPLOY['deploy'], 'when': 'delayed', 'start_in': '1 min'}})
    held = runner.claim()
    ci.play_job(named(ci, manual, 'deploy'))
    ci.retry_job(named(ci, done, 'deploy'))
    clock.advance(60)
    assert runner.claim() is None
    assert [statuses(pipeline)[1]['deploy'] for pipeline in (manual, later, done)] == ['waiting_for_resource'] * 3
    end(ci, held)
    assert [runner.run(), runner.run(), runner.run(), runner.run()] == ['deploy'] * 3 + [None]


# -- what a new commit cancels

BRANCH = {'stages': ['build', 'test'], 'safe': {'stage': 'build', 'script': 'x', 'interruptible': True},
          'deploy': {'stage': 'test', 'script': 'x'}}


def cancels(how):
    return {'workflow': {'auto_cancel': {'on_new_commit': how}}}


@pytest.mark.parametrize('content, started, expected', [
    (BRANCH, 0, ['canceled', 'canceled']),
    (BRANCH, 1, ['canceled', 'canceled']),
    (BRANCH, 2, ['success', 'running']),
    ({**BRANCH, **cancels('interruptible')}, 0, ['canceled', 'skipped']),
    ({**BRANCH, **cancels('interruptible')}, 1, ['canceled', 'skipped']),
    ({**BRANCH, **cancels('interruptible')}, 2, ['success', 'running']),
    ({**BRANCH, **cancels('none')}, 0, ['pending', 'created']),
    ({**BRANCH, **cancels('none')}, 1, ['running', 'created']),
])
def test_a_new_commit_of_a_branch_cancels_what_may_be_interrupted(ci, make, runner, statuses, content, started,
                                                                  expected):
    old = make(content)
    for number in range(started):
        claim = runner.claim()
        if number + 1 < started:
            end(ci, claim)
    make(BRANCH, sha=OTHER)
    assert list(statuses(old)[1].values()) == expected


@pytest.mark.parametrize('first, second', [
    ({}, {'sha': SHA}), ({}, {'ref': 'next'}), ({'ref': 'v1', 'tag': True}, {'ref': 'v1', 'tag': True}),
    ({'ref': 'v1', 'tag': True}, {'ref': 'v1'}), ({'ref': 'v1'}, {'ref': 'v1', 'tag': True}),
], ids=['same commit', 'other branch', 'tag', 'branch with the name of a tag', 'tag with the name of a branch'])
def test_a_new_pipeline_leaves_others_alone(make, statuses, first, second):
    old = make(BRANCH, **first)
    make(BRANCH, **{'sha': OTHER, **second})
    assert statuses(old) == ('pending', {'safe': 'pending', 'deploy': 'created'})


def test_a_new_commit_leaves_other_projects_and_finished_pipelines_alone(ci, make, runner, statuses):
    done, foreign = make(PLAIN), make(BRANCH, project=ci.create_project('group/other'))
    runner.run('failed')
    make(BRANCH, sha=OTHER)
    assert statuses(done)[0] == 'failed'
    assert statuses(foreign)[0] == 'pending'


def test_a_runner_of_a_superseded_job_is_told(ci, client, make, runner):
    make(BRANCH)
    claim = runner.claim()
    make(BRANCH, sha=OTHER)
    answer = client.call('PATCH', f'/api/v4/jobs/{claim.job["id"]}/trace', data=b'x', headers={
        'JOB-TOKEN': claim.token, 'Content-Range': '0-0', 'Content-Type': 'text/plain'})
    assert (answer.status_int, answer.headers['Job-Status']) == (403, 'canceled')


# -- removal and retention

def keep(ci, runner, state='success', size=1000):
    """Run the next job with a trace and an archive of that many bytes and some; return its row."""
    claim = runner.claim()
    job = ci.authenticate_job(claim.job['id'], claim.token)
    ci.append_trace(job, 0, b't' * size)
    part = ci.artifacts.receive()
    part.write(archive(file=os.urandom(size)))
    ci.store_artifacts(job, part)
    ci.update_job(job, state)
    return ci.find_job(job)


def files(ci):
    """Return how many files of traces and artifacts there are."""
    return sum(path.is_file() and path.parent.name != 'locks'
               for name in ('traces', 'artifacts') for path in (ci.data / name).rglob('*'))


def test_a_deleted_pipeline_is_gone_with_its_jobs_traces_and_artifacts(ci, client, token, make, runner):
    gone, stays = make(TWO_STAGES), make(PLAIN, ref='next')
    job = keep(ci, runner)
    assert files(ci) == 2
    client.call('DELETE', f'/api/v4/projects/1/pipelines/{gone["id"]}', status=204, token=token)
    for path in (f'pipelines/{gone["id"]}', f'jobs/{job["id"]}', f'jobs/{job["id"]}/trace'):
        client.call('GET', f'/api/v4/projects/1/{path}', status=404, token=token)
    with pytest.raises(minici.NotFound):
        ci.find_artifact(job['id'])
    assert [row['id'] for row in ci.list_jobs(limit=100)] == [named(ci, stays, 'test')['id']]
    assert files(ci) == 0


def test_the_runner_of_a_deleted_pipeline_is_refused_and_leaves_nothing(ci, client, pipeline, job):
    ci.delete_pipelines([pipeline])
    answer = client.call('PATCH', f'/api/v4/jobs/{job.job["id"]}/trace', data=b'x', headers={
        'JOB-TOKEN': job.token, 'Content-Range': '0-0', 'Content-Type': 'text/plain'})
    assert answer.status_int in (403, 404)
    assert files(ci) == 0


@pytest.fixture
def pruned(tmp_path, clock):
    """Make a coordinator with settings of its own, a runner, and a pipeline for each ref and outcome given."""
    opened = []

    def pruned(*runs, **settings):
        ci = minici.Coordinator(tmp_path / 'prune.sqlite', clock=clock, fsync=False, **settings)
        opened.append(ci)
        project, runner = ci.create_project('group/kept'), Runner(ci)
        for ref, state in runs:
            ci.create_pipeline(project, ref, sha=SHA, content=PLAIN)
            keep(ci, runner, state)
        return ci
    yield pruned
    for ci in opened:
        ci.close()


RUNS = [('main', 'success'), ('main', 'success'), ('main', 'failed'), ('next', 'success'), ('next', 'failed')]


def test_old_pipelines_are_removed_but_for_the_last_success_of_each_ref(pruned, clock):
    ci = pruned(*RUNS, retention_age='7 days')
    clock.advance(days=7, seconds=-1)
    assert ci.prune() == []
    clock.advance(1)
    assert [row['id'] for row in ci.prune(dry_run=True)] == [1, 3, 5]
    assert len(ci.list_jobs()) == 5
    assert [row['id'] for row in ci.prune()] == [1, 3, 5]
    assert [job['pipeline_id'] for job in ci.list_jobs()] == [4, 2]
    assert files(ci) == 4
    assert ci.prune() == []


def test_beyond_the_size_the_oldest_pipelines_are_removed(pruned):
    ci = pruned(*RUNS, retention_size=7500)  # a trace and an archive come to a little over 2000 bytes
    assert [row['id'] for row in ci.prune()] == [1, 3]
    assert files(ci) == 6


def test_what_has_not_finished_is_never_removed(pruned, clock):
    ci = pruned(retention_age='1 day', retention_size=1)
    project, runner = ci.find_project('group/kept'), Runner(ci)
    for _ in range(2):
        ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    claim = runner.claim()
    ci.append_trace(ci.authenticate_job(claim.job['id'], claim.token), 0, b'x' * 100)
    clock.advance(days=9)
    assert ci.prune() == []


def test_without_an_age_only_the_size_counts(pruned, clock):
    ci = pruned(*RUNS, retention_age='never')
    clock.advance(days=5000)
    assert ci.prune() == []


def test_the_sweep_prunes_once_an_hour(pruned, clock):
    ci = pruned(*RUNS, retention_age='1 day')
    ci.sweep()
    clock.advance(days=1)
    ci.sweep()
    assert len(ci.list_jobs()) == 2


def test_the_command_line_prunes_and_lists(pruned, tmp_path, capsys):
    ci = pruned(*RUNS)
    command = ['--db', str(tmp_path / 'prune.sqlite'), '--retention-age', '30 days', 'prune']  # by today's clock
    assert minici.main([*command, '--dry-run']) == 0
    listed = capsys.readouterr().out
    assert [line.split(',')[0] for line in listed.splitlines()] == [
        'pipeline 1 (main', 'pipeline 3 (main', 'pipeline 5 (next']
    assert len(ci.list_jobs()) == 5
    assert minici.main(command) == 0
    assert capsys.readouterr().out == listed
    assert len(ci.list_jobs()) == 2


# -- word out

@pytest.fixture
def told(ci):
    """What `on_change` and `on_finish` told, and from which threads."""
    told = types.SimpleNamespace(changes=[], finished=[], threads=set())

    def change(kind, row, before):
        told.threads.add(threading.current_thread())
        told.changes.append((kind, row['id'], before))

    def finish(row):
        told.threads.add(threading.current_thread())
        told.finished.append(row['status'])
    ci.on_change(change)
    ci.on_finish(finish)
    return told


def test_each_change_of_a_job_and_its_pipeline_is_told_in_order(pipeline, runner, told):
    claim = runner.claim()
    until(lambda: len(told.changes) == 2)  # a status that is left again at once may be passed over
    end(runner.ci, claim)
    until(lambda: len(told.changes) == 4 and len(told.finished) == 2)
    assert [change for change in told.changes if change[0] == 'job'] == [('job', 1, 'pending'), ('job', 1, 'running')]
    assert [change for change in told.changes if change[0] == 'pipeline'] == [
        ('pipeline', 1, 'pending'), ('pipeline', 1, 'running')]
    assert set(told.finished) == {'success'}
    assert len(told.threads) == 2
    assert threading.current_thread() not in told.threads


def test_a_finish_is_told_once_even_to_one_who_listens_late(ci, pipeline, runner):
    heard, entered, go_on = [], threading.Event(), threading.Event()

    def slow(row):
        heard.append((row['ref'], 'job' if 'stage' in row.keys() else 'pipeline', row['status']))  # noqa: SIM118
        entered.set()
        go_on.wait(30)
    ci.on_finish(slow)
    ci.cancel_pipeline(ci.create_pipeline(1, 'first', sha=SHA, content=PLAIN))
    assert entered.wait(30)  # and now it is slow
    assert runner.run() == 'test'
    ci.cancel_pipeline(ci.create_pipeline(1, 'last', sha=SHA, content=PLAIN))
    go_on.set()
    until(lambda: ('last', 'pipeline', 'canceled') in heard)
    assert sorted(heard) == sorted((ref, kind, state) for ref, state in (
        ('first', 'canceled'), ('main', 'success'), ('last', 'canceled')) for kind in ('job', 'pipeline'))


def test_what_a_callback_raises_is_logged_and_stops_nothing(ci, pipeline, runner, caplog):
    heard = []

    def broken(kind, row, before):
        heard.append((kind, row['status']))
        raise ValueError('no')
    ci.on_change(broken)
    assert runner.run() == 'test'
    until(lambda: ('pipeline', 'success') in heard)
    until(lambda: caplog.text.count('ValueError: no') == len(heard))
    assert ci.find_pipeline(pipeline)['status'] == 'success'


def test_listening_threads_end_with_their_coordinator(tmp_path):
    before = set(threading.enumerate())
    with minici.Coordinator(tmp_path / 'ci.sqlite', fsync=False) as ci:
        ci.on_change(print)
        ci.on_finish(print)
        threads = set(threading.enumerate()) - before
        assert len(threads) == 2
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


# -- the hook

def script(tmp_path, text):
    """Write an executable that keeps what it is given in `got`; return its path."""
    path = tmp_path / 'hook'
    path.write_text(f'#!/bin/sh\ncd {tmp_path}\n{text}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_hook_gets_the_job_or_pipeline_as_json(ci, pipeline, runner, tmp_path):
    ci.on_change(minici.Hook(ci, 'http://ci.example', script(tmp_path, 'cat >> got; echo >> got')))
    assert runner.run('failed') == 'test'
    got = tmp_path / 'got'
    until(lambda: got.exists() and '"kind": "pipeline", "status": "failed"' in got.read_text().rpartition('\n')[0])
    facts = [json.loads(line) for line in got.read_text().splitlines()]
    last = {each['kind']: each for each in facts}
    assert (last['job']['status'], last['job']['before']) == ('failed', 'running')
    assert (last['job']['job']['name'], last['job']['job']['failure_reason']) == ('test', 'script_failure')
    assert last['job']['job']['web_url'].startswith('http://ci.example/group/demo/')
    assert (last['pipeline']['project'], last['pipeline']['status']) == ('group/demo', 'failed')
    assert (last['pipeline']['pipeline']['id'], last['pipeline']['pipeline']['ref']) == (1, 'main')


def test_a_hook_knows_what_the_pipeline_of_the_ref_before_came_to(ci, make, runner, tmp_path):
    hook, got = minici.Hook(ci, 'http://ci', script(tmp_path, 'cat > got')), tmp_path / 'got'
    seen = []
    for ref, state in (('main', 'success'), ('other', 'failed'), ('main', 'failed'), ('main', 'success')):
        pipeline = make(PLAIN, ref=ref)
        runner.run(state)
        hook('pipeline', ci.find_pipeline(pipeline), 'running')
        seen.append(json.loads(got.read_text())['previous_status'])
    assert seen == [None, None, 'success', 'failed']


@pytest.mark.parametrize('failures, runs, complaints', [(0, 1, 0), (2, 3, 0), (9, 4, 1)])
def test_a_hook_that_fails_is_run_again_with_the_same_facts(ci, pipeline, tmp_path, monkeypatch, caplog, failures, runs,
                                                            complaints):
    pauses, sleep = [], time.sleep

    def noted(pause):   # whole seconds are pauses of the hook, anything less is how subprocess waits for its command
        if pause != int(pause):
            return sleep(pause)
        return pauses.append(pause)

    monkeypatch.setattr(minici.time, 'sleep', noted)
    command = script(tmp_path, f'cat >> got; echo >> got; echo oops >&2\n[ $(wc -l < got) -gt {failures} ]')
    minici.Hook(ci, 'http://ci', command)('pipeline', ci.find_pipeline(pipeline), 'created')
    lines = (tmp_path / 'got').read_text().splitlines()
    assert (len(lines), len(set(lines))) == (runs, 1)
    assert pauses == [0, *minici.Hook.PAUSES[:runs - 1]]
    assert caplog.text.count('the hook failed') == complaints
    assert ('oops' in caplog.text) == bool(complaints)
