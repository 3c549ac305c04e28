"""Why a job is not running: each cause, told by the Jobs API, the command line and `wait`."""

import time

import pytest
from support import SHA, Runner

import minici


@pytest.fixture
def seen(ci, clock):
    """Register a runner that was here just now, or that many seconds ago."""
    clock.now = time.time()  # the command line has no other clock

    def seen(ago=0, **settings):
        runner = Runner(ci, **settings)
        clock.advance(-ago)
        ci.contact(runner.row, {'name': 'seen'}, None)
        clock.advance(ago)
        return runner
    return seen


@pytest.fixture
def why(ci, client, token, project, capsys):
    """Return why a job of a pipeline does not run, after each way of asking has said the same."""
    def why(name, pipeline):
        if isinstance(pipeline, dict):  # a file
            pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=pipeline)
        job = next(job for job in ci.list_jobs(pipeline=pipeline, include_retried=False) if job['name'] == name)
        reason = client.call('GET', f'/api/v4/projects/1/jobs/{job["id"]}', token=token).json['pending_reason']
        assert ci.pending_reason(ci.find_job(job)) == reason
        assert minici.main(['--db', str(ci.db.path), 'why', str(job['id'])]) == 0
        said = f'{name} is {job["status"]}'
        assert capsys.readouterr().out == (f'{said}: {reason}\n' if reason else f'{said}\n')
        if job['status'] not in minici.FINISHED:
            with pytest.raises(TimeoutError) as caught:
                ci.wait(job, timeout=0)
            assert (reason or 'its runner has not finished it') in str(caught.value)
        return reason
    return why


GPU = {'train': {'script': 'x', 'tags': ['linux', 'gpu']}}
PLAIN = {'test': {'script': 'x'}}


# -- runners

def test_no_runner_is_registered(ci, why, seen):
    assert why('test', PLAIN) == 'no runner is registered for its project'
    seen(token=ci.create_project('group/other')['runners_token'])
    assert why('test', PLAIN) == 'no runner is registered for its project'


def test_shared_runners_do_not_count_where_they_are_turned_off(ci, project, why, seen):
    seen()
    ci.edit_project(project, shared_runners_enabled=False)
    assert why('test', PLAIN) == 'no runner is registered for its project'
    seen(token=project['runners_token'])
    assert why('test', PLAIN) == 'runner 2 may take it when it asks again'


def test_tags_that_no_runner_has_are_named_alone(why, seen):
    seen(tag_list=['mac'])
    assert why('train', GPU) == 'no runner has all of its tags; the nearest lacks gpu, linux'
    seen(tag_list=['linux', 'arm'])
    assert why('train', GPU) == 'no runner has all of its tags; the nearest lacks gpu'


def test_a_job_without_tags_finds_only_runners_that_want_some(why, seen):
    seen(tag_list=['linux'], run_untagged=False)
    assert why('test', PLAIN) == 'no runner takes jobs without tags'


def test_every_matching_runner_is_paused(why, seen):
    seen(tag_list=['linux', 'gpu'], active=False)
    seen(tag_list=['mac'])
    assert why('train', GPU) == 'every runner that could take it is paused'


def test_every_matching_runner_is_offline(why, seen):
    seen(ago=7200, tag_list=['linux', 'gpu'])
    seen(tag_list=['linux', 'gpu'], active=False)
    seen(tag_list=['mac'])
    assert why('train', GPU) == 'every runner that could take it is offline'


def test_a_runner_that_was_never_seen_is_offline(ci, why, clock):
    clock.now = time.time()
    ci.create_runner(tag_list=['linux', 'gpu'])
    assert why('train', GPU) == 'every runner that could take it is offline'


def test_every_matching_runner_is_busy(ci, why, seen, project):
    runner = seen()
    seen(ago=7200)
    ci.create_pipeline(project, 'other', sha=SHA, content=PLAIN)
    assert runner.claim()
    assert why('test', PLAIN) == 'every runner that could take it is busy'
    seen()
    assert why('test', PLAIN) == 'runner 3 may take it when it asks again'


def test_what_stood_in_the_way_last_is_told_no_more(ci, why, project, seen):
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=GPU)
    assert 'no runner is registered' in why('train', pipeline)
    runner = seen(tag_list=['linux'])
    assert 'lacks gpu' in why('train', pipeline)
    ci.edit_runner(runner.row, tag_list=['linux', 'gpu'], active=False)
    assert 'paused' in why('train', pipeline)
    ci.edit_runner(runner.row, active=True)
    assert 'may take it' in why('train', pipeline)
    assert runner.claim()
    assert why('train', pipeline) is None


# -- other jobs

STAGES = {'a': {'stage': 'build', 'script': 'x'}, 'b': {'stage': 'build', 'script': 'x'}, 'last': {'script': 'x'}}


def test_a_job_waits_for_those_of_earlier_stages_that_have_not_finished(ci, why, project, runner):
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=STAGES)
    assert why('last', pipeline) == 'it waits for a, b'
    assert runner.run() == 'a'
    assert why('last', pipeline) == 'it waits for b'
    runner.claim()
    assert why('last', pipeline) == 'it waits for b'


def test_a_job_waits_for_what_it_needs_alone(ci, why, project, runner):
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, content={
        **STAGES, 'last': {'script': 'x', 'needs': ['b']},
        'end': {'stage': 'deploy', 'script': 'x', 'needs': ['last']}})
    assert why('last', pipeline) == 'it waits for b'
    assert why('end', pipeline) == 'it waits for last'


def test_many_jobs_that_one_waits_for_are_cut_short(why):
    assert why('last', {'unit': {'stage': 'build', 'script': 'x', 'parallel': 7}, 'last': {'script': 'x'}}) == \
        'it waits for unit 1/7, unit 2/7, unit 3/7, unit 4/7, unit 5/7, ...'


def test_a_job_waits_for_a_manual_one_that_must_be_played_and_not_for_one_that_need_not(why):
    ask = {'stage': 'build', 'script': 'x', 'when': 'manual'}
    content = {'ask': {**ask, 'allow_failure': False}, 'tell': ask, 'last': {'script': 'x'}}
    assert why('last', content) == 'it waits for ask'
    assert why('ask', content) == why('tell', content) == 'waiting to be started by hand'


def test_a_delayed_job_says_until_when(ci, why, clock):
    reason = why('later', {'later': {'script': 'x', 'when': 'delayed', 'start_in': '30 minutes'}})
    assert reason == f'it is delayed until {minici.iso_time(clock.now + 1800)}'


@pytest.mark.parametrize('state', ['pending', 'running'])
def test_a_job_that_waits_for_a_resource_names_it_and_who_holds_it(ci, why, project, runner, state):
    content = {'deploy': {'script': 'x', 'resource_group': 'production'}}
    ci.create_pipeline(project, 'first', sha=SHA, content={'ship': content['deploy']})
    if state == 'running':
        assert runner.claim().job['name'] == 'ship'
    reason = why('deploy', content)
    assert 'resource group production' in reason
    assert 'ship' in reason
    assert 'job 1' in reason


# -- nothing to explain

def test_a_job_that_runs_or_has_finished_needs_no_reason(ci, why, project, runner):
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=STAGES)
    assert runner.run('failed') == 'a'
    assert runner.claim().job['name'] == 'b'
    assert why('a', pipeline) is None
    assert why('b', pipeline) is None
    ci.cancel_pipeline(pipeline)
    assert why('b', pipeline) is None
    assert why('last', pipeline) is None


def test_no_such_job_is_said_on_the_command_line(ci, capsys):
    assert minici.main(['--db', str(ci.db.path), 'why', '4711']) == 1
    assert 'does not exist' in capsys.readouterr().err
