"""Pipelines on their way: stages, retry, play and cancel in the middle, waiting, variables."""

import random
import re
import textwrap
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import PLAIN, SHA, TWO_STAGES, Clock, Runner

import minici

MANUAL = {'build': {'stage': 'build', 'script': 'make'},
          'ship': {'script': 'ship', 'when': 'manual', 'allow_failure': False},
          'tell': {'stage': 'deploy', 'script': 'tell'}}


@pytest.fixture
def make(ci, project):
    """Make a pipeline of a mapping or a text."""
    return lambda content, **options: ci.create_pipeline(project, 'main', sha=SHA, content=content, **options)


def latest(ci, pipeline):
    """Return the jobs that stand for a pipeline, by name, in the order of stages and then of age."""
    jobs = ci.list_jobs(pipeline=pipeline, include_retried=False, limit=1000)
    return {job['name']: job for job in sorted(jobs, key=lambda job: (job['stage_idx'], job['id']))}


def states(ci, pipeline):
    """Return a pipeline's status and its jobs', as `running: build=success test=running`."""
    jobs = ' '.join(f'{name}={job["status"]}' for name, job in latest(ci, pipeline).items())
    return f'{ci.find_pipeline(pipeline)["status"]}: {jobs}'


def act(ci, runner, pipeline, action):
    """Do one thing: claim a job, finish it `success` or `failed`; cancel, play or retry it, or the whole pipeline."""
    verb, _, name = action.partition(' ')
    if verb in ('success', 'failed'):
        assert runner.run(verb) == name
    elif verb == 'claim':
        assert runner.claim().job['name'] == name
    elif verb != 'start':
        target = latest(ci, pipeline)[name] if name else pipeline
        getattr(ci, f'{verb}_{"job" if name else "pipeline"}')(target)


# -- stages: a pipeline file, then what happens and what everything has come to afterwards

COURSES = {
    'each stage starts when the one before has succeeded': '''
        one: {stage: build, script: x}
        two: {stage: build, script: x}
        test: {script: x}
        ---
        start         pending: one=pending two=pending test=created
        claim one     running: one=running two=pending test=created
        success two   running: one=running two=success test=created
        cancel one    canceled: one=canceled two=success test=skipped
        retry one     running: two=success one=pending test=created
        success one   running: two=success one=success test=pending
        success test  success: two=success one=success test=success
        ''',
    'a failure skips the stages after it but not its own': '''
        one: {stage: build, script: x}
        two: {stage: build, script: x}
        test: {script: x}
        deploy: {stage: deploy, script: x}
        ---
        failed one    running: one=failed two=pending test=created deploy=created
        success two   failed: one=failed two=success test=skipped deploy=skipped
        ''',
    'an allowed failure counts as success': '''
        build: {stage: build, script: x, allow_failure: true}
        test: {script: x}
        rescue: {script: x, when: on_failure}
        deploy: {stage: deploy, script: x}
        ---
        failed build    pending: build=failed test=pending rescue=skipped deploy=created
        success test    running: build=failed test=success rescue=skipped deploy=pending
        success deploy  success: build=failed test=success rescue=skipped deploy=success
        ''',
    'on_failure runs after a failure and does not mend it': '''
        build: {stage: build, script: x}
        test: {script: x}
        rescue: {script: x, when: on_failure}
        deploy: {stage: deploy, script: x}
        ---
        failed build    running: build=failed test=skipped rescue=pending deploy=created
        success rescue  failed: build=failed test=skipped rescue=success deploy=skipped
        ''',
    'on_failure is skipped when all went well and where nothing went before': '''
        first: {stage: build, script: x, when: on_failure}
        build: {stage: build, script: x}
        rescue: {script: x, when: on_failure}
        deploy: {stage: deploy, script: x}
        ---
        start           pending: first=skipped build=pending rescue=created deploy=created
        success build   running: first=skipped build=success rescue=skipped deploy=pending
        success deploy  success: first=skipped build=success rescue=skipped deploy=success
        ''',
    'always runs after a failure': '''
        build: {stage: build, script: x}
        test: {script: x}
        clean: {stage: deploy, script: x, when: always}
        ---
        failed build   running: build=failed test=skipped clean=pending
        success clean  failed: build=failed test=skipped clean=success
        ''',
    'always runs after success, not before': '''
        build: {stage: build, script: x}
        clean: {script: x, when: always}
        ---
        start          pending: build=pending clean=created
        success build  running: build=success clean=pending
        success clean  success: build=success clean=success
        ''',
    'a manual job that may fail holds nothing up': '''
        test: {script: x, when: manual}
        deploy: {stage: deploy, script: x}
        ---
        start           pending: test=manual deploy=pending
        success deploy  success: test=manual deploy=success
        play test       running: test=pending deploy=success
        failed test     success: test=failed deploy=success
        ''',
    'a manual job that may not fail holds the pipeline until it is played': '''
        test: {script: x, when: manual, allow_failure: false}
        deploy: {stage: deploy, script: x}
        ---
        start           manual: test=manual deploy=created
        play test       pending: test=pending deploy=created
        claim test      running: test=running deploy=created
        cancel test     canceled: test=canceled deploy=skipped
        retry test      pending: test=pending deploy=created
        success test    running: test=success deploy=pending
        success deploy  success: test=success deploy=success
        ''',
    'the pipeline is manual once nothing but the blocking job is left': '''
        test: {script: x}
        gate: {script: x, when: manual, allow_failure: false}
        deploy: {stage: deploy, script: x}
        ---
        start         running: test=pending gate=manual deploy=created
        failed test   manual: test=failed gate=manual deploy=created
        play gate     running: test=failed gate=pending deploy=created
        success gate  failed: test=failed gate=success deploy=skipped
        ''',
    'only manual jobs that may fail make a skipped pipeline': '''
        test: {script: x, when: manual}
        rescue: {stage: deploy, script: x, when: on_failure}
        ---
        start         skipped: test=manual rescue=skipped
        play test     pending: test=pending rescue=created
        success test  success: test=success rescue=skipped
        ''',
    'a manual job after a failure is skipped': '''
        build: {stage: build, script: x}
        gate: {script: x, when: manual, allow_failure: false}
        ---
        failed build  failed: build=failed gate=skipped
        ''',
    'stages without jobs are passed over, .pre is first and .post last': '''
        stages: [build, nothing, deploy]
        last: {stage: .post, script: x}
        deploy: {stage: deploy, script: x}
        build: {stage: build, script: x}
        first: {stage: .pre, script: x}
        ---
        start           pending: first=pending build=created deploy=created last=created
        success first   running: first=success build=pending deploy=created last=created
        success build   running: first=success build=success deploy=pending last=created
        success deploy  running: first=success build=success deploy=success last=pending
        success last    success: first=success build=success deploy=success last=success
        ''',
    'a canceled job skips what follows': '''
        build: {stage: build, script: x}
        test: {script: x}
        rescue: {script: x, when: on_failure}
        deploy: {stage: deploy, script: x}
        ---
        cancel build  canceled: build=canceled test=skipped rescue=skipped deploy=skipped
        ''',
    'a canceled job that may fail skips nothing': '''
        build: {stage: build, script: x, allow_failure: true}
        test: {script: x}
        rescue: {script: x, when: on_failure}
        ---
        cancel build  pending: build=canceled test=pending rescue=skipped
        ''',
    'a job may be canceled before its turn': '''
        build: {stage: build, script: x}
        test: {script: x}
        deploy: {stage: deploy, script: x}
        ---
        cancel test    running: build=pending test=canceled deploy=created
        success build  canceled: build=success test=canceled deploy=skipped
        ''',
    'a retried failure lets the skipped stages wait again': '''
        build: {stage: build, script: x}
        test: {script: x}
        deploy: {stage: deploy, script: x}
        ---
        success build   running: build=success test=pending deploy=created
        failed test     failed: build=success test=failed deploy=skipped
        retry test      running: build=success test=pending deploy=created
        success test    running: build=success test=success deploy=pending
        failed deploy   failed: build=success test=success deploy=failed
        retry           running: build=success test=success deploy=pending
        success deploy  success: build=success test=success deploy=success
        ''',
    'a canceled pipeline that is retried starts from its first unfinished stage': '''
        build: {stage: build, script: x}
        test: {script: x}
        deploy: {stage: deploy, script: x}
        ---
        success build   running: build=success test=pending deploy=created
        cancel          canceled: build=success test=canceled deploy=canceled
        retry           running: build=success test=pending deploy=created
        success test    running: build=success test=success deploy=pending
        success deploy  success: build=success test=success deploy=success
        ''',
    'a retried pipeline runs what ran on failure only after a failure': '''
        build: {stage: build, script: x}
        test: {script: x}
        report: {stage: deploy, script: x, when: on_failure}
        ---
        failed build   running: build=failed test=skipped report=pending
        failed report  failed: build=failed test=skipped report=failed
        retry          pending: build=pending test=created report=created
        success build  running: build=success test=pending report=created
        success test   success: build=success test=success report=skipped
        ''',
    'a manual job that failed is retried at once, by a retried pipeline made manual again': '''
        test: {script: x}
        ship: {script: x, when: manual}
        ---
        success test  success: test=success ship=manual
        play ship     running: test=success ship=pending
        failed ship   success: test=success ship=failed
        retry ship    running: test=success ship=pending
        failed ship   success: test=success ship=failed
        retry         success: test=success ship=manual
        ''',
    'a retried pipeline stops at its manual job again': '''
        build: {stage: build, script: x}
        gate: {script: x, when: manual, allow_failure: false}
        deploy: {stage: deploy, script: x}
        ---
        success build  manual: build=success gate=manual deploy=created
        cancel         canceled: build=success gate=canceled deploy=canceled
        retry          manual: build=success gate=manual deploy=created
        ''',
}


@pytest.mark.parametrize('course', COURSES)
def test_stages_go_on_as_in_gitlab(ci, make, runner, course):
    content, _, steps = textwrap.dedent(COURSES[course]).partition('---\n')
    pipeline = make(content)
    for step in steps.strip().splitlines():
        action, expected = re.split(r'  +', step, maxsplit=1)
        act(ci, runner, pipeline, action)
        assert states(ci, pipeline) == expected, action


@pytest.mark.parametrize('code, status', [(137, 'success'), (1, 'failed'), (None, 'failed')])
def test_a_failure_with_a_listed_exit_code_is_allowed(ci, make, runner, code, status):
    pipeline = make({'build': {'stage': 'build', 'script': 'x', 'allow_failure': {'exit_codes': [3, 137]}},
                     'test': {'script': 'x'}})
    claim = runner.claim()
    ci.update_job(ci.authenticate_job(claim.job['id'], claim.token), 'failed', failure_reason='script_failure',
                  exit_code=code)
    runner.run()
    assert ci.find_pipeline(pipeline)['status'] == status


# -- making a pipeline

def test_a_pipeline_is_numbered_within_its_project_and_remembers_what_it_was_made_from(ci, make):
    other = ci.create_project('group/other')
    ci.create_pipeline(other, 'main', sha=SHA, content=PLAIN)
    make(PLAIN)
    pipeline = make(PLAIN, source='push', user=ci.find_user(ci.create_private_token('ann')))
    assert {name: pipeline[name] for name in ('iid', 'ref', 'tag', 'sha', 'source', 'username', 'before_sha')} == {
        'iid': 2, 'ref': 'main', 'tag': 0, 'sha': SHA, 'source': 'push', 'username': 'ann', 'before_sha': '0' * 40}


def test_content_may_be_text_a_mapping_or_a_finished_spec(ci, make):
    spec = minici.PipelineSpec(stages=['build', 'test'], jobs=[
        minici.JobSpec('check', ['make check']), minici.JobSpec('compile', ['make'], stage='build')])
    for content in ('compile: {stage: build, script: make}\ncheck: {script: make check}\n', TWO_STAGES, spec):
        assert states(ci, make(content)) == 'pending: compile=pending check=created'


@pytest.mark.parametrize('content, options, complaint', [
    ({'test': {'script': 'make', 'only': ['tags']}}, {}, 'empty'),
    ({'test': {'script': 'make', 'only': ['pushes']}}, {}, 'empty'),
    ({'first': {'stage': '.pre', 'script': 'make'}, 'last': {'stage': '.post', 'script': 'make'}}, {}, 'empty'),
    ({'test': {'script': 'make', 'when': 'never'}}, {}, 'test:when'),
    ({'test': {'script': 'make', 'tags': [f'tag{n}' for n in range(50)]}}, {}, '49'),
    (PLAIN, {'variables': [{'key': 'A-B', 'value': 'c'}]}, 'A-B'),
    (PLAIN, {'variables': [{'key': 'A', 'value': 1}]}, 'A'),
    (PLAIN, {'variables': [{'key': 'A'}]}, 'A'),
    (PLAIN, {'variables': [{'key': 'A', 'value': 'b', 'variable_type': 'secret'}]}, 'variable_type'),
])
def test_a_pipeline_that_cannot_be_is_refused_and_leaves_nothing(ci, project, make, content, options, complaint):
    with pytest.raises(minici.BadRequest, match=complaint):
        make(content, **options)
    assert ci.list_pipelines(project)[0] == []
    assert make(PLAIN)['iid'] == 1


@pytest.mark.parametrize('ref, sha', [
    ('', SHA), ('a b', SHA), ('-x', SHA), ('a..b', SHA), ('a~1', SHA), ('x.lock', SHA), ('a//b', SHA), ('/a', SHA),
    ('x' * 256, SHA), ('a\x00b', SHA), ('a\ud800', SHA),
    ('main', SHA[:8]), ('main', 'g' * 40), ('main', '-' + SHA[1:]), ('main', SHA + '\n'),
])
def test_a_ref_or_sha_that_git_could_not_have_is_refused(ci, project, ref, sha):
    with pytest.raises(minici.BadRequest):
        ci.create_pipeline(project, ref, sha=sha, content=PLAIN)


def test_without_a_repository_sha_and_content_must_come_along(ci, project):
    for options in ({}, {'sha': SHA}, {'content': PLAIN}):
        with pytest.raises(minici.BadRequest, match='import_url'):
            ci.create_pipeline(project, 'main', **options)


def test_only_and_except_see_the_ref_and_the_source_of_the_pipeline(ci, project):
    content = {'branch': {'script': 'x', 'only': ['branches']}, 'tag': {'script': 'x', 'only': ['tags']},
               'push': {'script': 'x', 'only': ['pushes']}}
    assert list(latest(ci, ci.create_pipeline(project, 'main', sha=SHA, content=content, source='push'))) \
        == ['branch', 'push']
    assert list(latest(ci, ci.create_pipeline(project, 'v1', sha=SHA, content=content, tag=True))) == ['tag']


def test_a_pipeline_knows_when_it_was_made_started_and_finished(ci, clock, make, runner):
    def times():
        row = ci.find_pipeline(pipeline)
        return [row[name] and row[name] - born for name in ('created_at', 'started_at', 'finished_at', 'updated_at')]
    born, pipeline = clock.now, make(TWO_STAGES)
    assert times() == [0, None, None, 0]
    clock.advance(10)
    runner.claim()
    assert times() == [0, 10, None, 10]
    clock.advance(10)
    ci.cancel_pipeline(pipeline)
    assert times() == [0, 10, 20, 20]
    clock.advance(10)
    ci.retry_pipeline(pipeline)
    assert times() == [0, 10, None, 30]
    clock.advance(10)
    runner.run()
    clock.advance(10)
    runner.run()
    assert times() == [0, 10, 50, 50]


# -- retry

def test_a_retried_job_is_a_new_one_and_the_old_one_keeps_its_status(ci, clock, make, runner):
    pipeline = make(PLAIN)
    runner.run('failed')
    old = latest(ci, pipeline)['test']
    clock.advance(60)
    new = ci.retry_job(old, user=ci.find_user(ci.create_private_token('ann')))
    assert new['id'] > old['id']
    assert [new[name] for name in ('name', 'stage', 'ref', 'sha', 'status')] == ['test', 'test', 'main', SHA, 'pending']
    assert [new[name] for name in ('runner_id', 'started_at', 'finished_at', 'failure_reason')] == [None] * 4
    assert (new['created_at'], new['username']) == (clock.now, 'ann')
    assert ci.find_job(old)['status'] == 'failed'
    assert [job['id'] for job in ci.list_jobs(pipeline=pipeline)] == [new['id'], old['id']]


def test_a_job_is_retried_once(ci, make, runner):
    pipeline = make(PLAIN)
    runner.run('failed')
    old = latest(ci, pipeline)['test']
    ci.retry_job(old)
    with pytest.raises(minici.Forbidden, match='Job is not retryable'):
        ci.retry_job(old)
    assert len(ci.list_jobs(pipeline=pipeline)) == 2


@pytest.mark.parametrize('state', ['success', 'failed', 'canceled'])
def test_a_finished_job_is_retried(ci, make, runner, state):
    pipeline = make(PLAIN)
    act(ci, runner, pipeline, 'cancel test' if state == 'canceled' else f'{state} test')
    assert latest(ci, pipeline)['test']['status'] == state
    ci.retry_job(latest(ci, pipeline)['test'])
    assert runner.run() == 'test'
    assert states(ci, pipeline) == 'success: test=success'


@pytest.mark.parametrize('actions, name', [
    ([], 'build'), (['claim build'], 'build'), ([], 'ship'), (['success build'], 'ship'), (['failed build'], 'ship')],
    ids=['pending', 'running', 'created', 'manual', 'skipped'])
def test_a_job_that_has_not_run_is_not_retryable(ci, make, runner, actions, name, request):
    pipeline = make(MANUAL)
    for action in actions:
        act(ci, runner, pipeline, action)
    before = states(ci, pipeline)
    assert latest(ci, pipeline)[name]['status'] == request.node.callspec.id
    with pytest.raises(minici.Forbidden, match='Job is not retryable'):
        ci.retry_job(latest(ci, pipeline)[name])
    assert states(ci, pipeline) == before


def test_a_retried_pipeline_leaves_what_succeeded_alone(ci, make, runner):
    pipeline = make({'one': {'script': 'x'}, 'two': {'script': 'x'}, 'three': {'script': 'x'}})
    for action in ('success one', 'failed two', 'cancel three', 'retry', 'success two'):
        act(ci, runner, pipeline, action)
    before = {name: job['id'] for name, job in latest(ci, pipeline).items()}
    act(ci, runner, pipeline, 'success three')
    ci.retry_pipeline(pipeline)
    assert {name: job['id'] for name, job in latest(ci, pipeline).items()} == before
    assert states(ci, pipeline) == 'success: one=success two=success three=success'


def test_retried_jobs_do_not_count_for_their_pipeline(ci, make, runner):
    pipeline = make({'one': {'script': 'x'}, 'two': {'script': 'x'}})
    for action in ('failed one', 'success two', 'retry one', 'success one'):
        act(ci, runner, pipeline, action)
    assert states(ci, pipeline) == 'success: two=success one=success'
    assert ci.count_jobs(pipeline=pipeline, limit=100) == 3


# -- play

def payload_variables(client, runner):
    """Claim a job through the API; return the last value of each of its variables."""
    claimed = client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=201).json
    client.call('PUT', f'/api/v4/jobs/{claimed["id"]}', json={'token': claimed['token'], 'state': 'failed'}, status=200)
    return {variable['key']: variable['value'] for variable in claimed['variables']}


def test_a_played_job_is_the_same_one_now_pending_and_of_who_played_it(ci, clock, make, runner):
    pipeline = make(MANUAL)
    runner.run()
    gate = latest(ci, pipeline)['ship']
    clock.advance(60)
    played = ci.play_job(gate, user=ci.find_user(ci.create_private_token('ann')))
    assert (played['id'], played['status'], played['username'], played['queued_at']) \
        == (gate['id'], 'pending', 'ann', clock.now)


def test_variables_of_a_play_reach_that_run_alone(ci, client, make, runner):
    pipeline = make({'ship': {'script': 'ship', 'when': 'manual', 'variables': {'WHERE': 'file', 'HOW': 'slowly'}}})
    ci.play_job(latest(ci, pipeline)['ship'], variables=[{'key': 'WHERE', 'value': 'once'}])
    assert payload_variables(client, runner)['WHERE'] == 'once'
    ci.play_job(latest(ci, pipeline)['ship'], variables=[{'key': 'HOW', 'value': 'fast'}])
    second = payload_variables(client, runner)
    assert (second['WHERE'], second['HOW']) == ('file', 'fast')
    ci.retry_job(latest(ci, pipeline)['ship'])
    third = payload_variables(client, runner)
    assert (third['WHERE'], third['HOW']) == ('file', 'slowly')


def test_a_manual_job_that_has_finished_is_played_as_a_new_one(ci, make, runner):
    pipeline = make(MANUAL)
    for action in ('success build', 'play ship', 'success ship', 'success tell'):
        act(ci, runner, pipeline, action)
    old = latest(ci, pipeline)['ship']
    new = ci.play_job(old)
    assert new['id'] > old['id']
    assert (new['status'], ci.find_job(old)['status']) == ('pending', 'success')
    with pytest.raises(minici.BadRequest, match='Unplayable Job'):
        ci.play_job(old)


@pytest.mark.parametrize('actions, name', [
    ([], 'build'), (['claim build'], 'build'), ([], 'ship'), (['success build'], 'build'), (['failed build'], 'build'),
    (['failed build'], 'ship'), (['success build', 'play ship'], 'ship'),
    (['success build', 'play ship', 'claim ship'], 'ship')])
def test_what_is_not_manual_or_not_waiting_is_unplayable(ci, make, runner, actions, name):
    pipeline = make(MANUAL)
    for action in actions:
        act(ci, runner, pipeline, action)
    before = states(ci, pipeline)
    with pytest.raises(minici.BadRequest, match='Unplayable Job'):
        ci.play_job(latest(ci, pipeline)[name])
    assert states(ci, pipeline) == before


def test_a_play_with_a_bad_variable_leaves_the_job_manual(ci, make, runner):
    pipeline = make(MANUAL)
    runner.run()
    for variable in ({'key': 'A B', 'value': 'c'}, {'key': 'A', 'value': None}, {'value': 'c'}):
        with pytest.raises(minici.BadRequest):
            ci.play_job(latest(ci, pipeline)['ship'], variables=[{'key': 'OK', 'value': '1'}, variable])
    assert states(ci, pipeline) == 'manual: build=success ship=manual tell=created'


# -- cancel

@pytest.mark.parametrize('actions, name', [
    ([], 'build'), (['claim build'], 'build'), ([], 'ship'), (['success build'], 'ship')],
    ids=['pending', 'running', 'created', 'manual'])
def test_a_job_that_has_not_finished_is_canceled(ci, clock, make, runner, actions, name, request):
    pipeline = make(MANUAL)
    for action in actions:
        act(ci, runner, pipeline, action)
    assert latest(ci, pipeline)[name]['status'] == request.node.callspec.id
    clock.advance(60)
    canceled = ci.cancel_job(latest(ci, pipeline)[name])
    assert (canceled['status'], canceled['finished_at']) == ('canceled', clock.now)
    assert latest(ci, pipeline)['tell']['status'] in ('created', 'skipped')


@pytest.mark.parametrize('actions, name', [
    (['success build'], 'build'), (['failed build'], 'build'), (['cancel build'], 'build'), (['failed build'], 'ship')],
    ids=['success', 'failed', 'canceled', 'skipped'])
def test_canceling_a_finished_job_changes_nothing(ci, clock, make, runner, actions, name, request):
    pipeline = make(MANUAL)
    for action in actions:
        act(ci, runner, pipeline, action)
    before = states(ci, pipeline), dict(latest(ci, pipeline)[name])
    clock.advance(60)
    assert ci.cancel_job(latest(ci, pipeline)[name])['status'] == request.node.callspec.id
    assert (states(ci, pipeline), dict(latest(ci, pipeline)[name])) == before


def test_a_canceled_job_is_not_handed_out(ci, make, runner):
    ci.cancel_pipeline(make(PLAIN))
    assert runner.claim() is None


@pytest.mark.parametrize('state', ['success', 'failed', 'running'])
def test_a_canceled_job_stays_so_whatever_its_runner_says(ci, make, runner, state):
    pipeline = make(TWO_STAGES)
    claim = runner.claim()
    ci.cancel_job(claim.job)
    with pytest.raises(minici.Forbidden, match='canceled'):
        ci.update_job(ci.authenticate_job(claim.job['id'], claim.token), state)
    assert states(ci, pipeline) == 'canceled: compile=canceled check=skipped'


def test_a_canceled_pipeline_has_every_unfinished_job_canceled(ci, make, runner):
    pipeline = make({'done': {'stage': 'build', 'script': 'x'}, 'busy': {'script': 'x'}, 'queued': {'script': 'x'},
                     'asked': {'script': 'x', 'when': 'manual'}, 'later': {'stage': 'deploy', 'script': 'x'}})
    for action in ('success done', 'claim busy'):
        act(ci, runner, pipeline, action)
    other = make(PLAIN)
    assert ci.cancel_pipeline(pipeline)['status'] == 'canceled'
    assert states(ci, pipeline) == 'canceled: done=success busy=canceled queued=canceled asked=canceled later=canceled'
    assert states(ci, other) == 'pending: test=pending'


def test_a_finished_pipeline_is_not_changed_by_cancel_or_retry(ci, clock, make, runner):
    pipeline = make(TWO_STAGES)
    runner.run()
    runner.run()
    before = dict(ci.find_pipeline(pipeline))
    clock.advance(60)
    assert dict(ci.cancel_pipeline(pipeline)) == before
    assert dict(ci.retry_pipeline(pipeline)) == before
    assert ci.count_jobs(pipeline=pipeline, limit=100) == 2


# -- waiting

def test_wait_returns_a_job_as_soon_as_it_has_finished(ci, job, runner):
    with pytest.raises(TimeoutError):
        ci.wait(job.job['id'], timeout=0)
    held = ci.authenticate_job(job.job['id'], job.token)
    finisher = threading.Thread(target=ci.update_job, args=(held, 'success'))
    finisher.start()
    try:
        assert ci.wait(job.job['id'], timeout=60)['status'] == 'success'
    finally:
        finisher.join()
    assert ci.wait(job.job, timeout=0)['id'] == job.job['id']


@pytest.mark.parametrize('state', ['failed', 'canceled', 'skipped'])
def test_wait_returns_a_job_that_will_not_run_any_more(ci, make, runner, state):
    pipeline = make(TWO_STAGES)
    act(ci, runner, pipeline, {'failed': 'failed compile', 'canceled': 'cancel', 'skipped': 'failed compile'}[state])
    job = latest(ci, pipeline)['check' if state == 'skipped' else 'compile']
    assert ci.wait(job, timeout=0)['status'] == state


@pytest.mark.parametrize('runners, keywords, state, reason', [
    ([], {}, 'pending', 'no runner'),
    (['other project'], {}, 'pending', 'no runner'),
    ([{'tag_list': ['docker']}], {'tags': ['docker', 'gpu']}, 'pending', 'tags.*gpu'),
    ([{'tag_list': ['docker'], 'run_untagged': False}], {}, 'pending', 'without tags'),
    ([{'active': False}, {'active': False}], {}, 'pending', 'paused'),
    ([{'active': False}, {'tag_list': ['x'], 'run_untagged': False}], {}, 'pending', 'paused'),
    ([{}], {}, 'pending', 'busy|away|offline'),
    ([], {'when': 'manual'}, 'manual', 'by hand'),
    ([{}], {'stage': 'deploy'}, 'created', 'first|stages? before deploy'),
])
def test_a_wait_that_times_out_says_the_state_and_why(ci, make, runners, keywords, state, reason):
    for options in runners:
        if options == 'other project':
            options = {'token': ci.create_project('group/other')['runners_token']}
        Runner(ci, **options)
    before = {'first': {'stage': 'build', 'script': 'x', 'tags': ['none']}} if state == 'created' else {}
    pipeline = make({**before, 'waiting': {'script': 'make', **keywords}})
    with pytest.raises(TimeoutError, match=rf'waiting.* is {state} .*({reason})'):
        ci.wait(latest(ci, pipeline)['waiting'], timeout=0)


def test_a_wait_for_a_running_job_says_that_it_runs(ci, job):
    with pytest.raises(TimeoutError, match='is running .*runner'):
        ci.wait(job.job, timeout=0)


def test_a_wait_for_no_job_is_not_found(ci):
    with pytest.raises(minici.NotFound):
        ci.wait(4711, timeout=0)


# -- variables

def test_of_variables_the_more_particular_win(client, ci, make, runner):
    pipeline = make({
        'variables': {'A': 'file', 'B': 'file', 'C': 'file', 'D': 'file', 'CI_JOB_NAME': 'file'},
        'test': {'script': 'make', 'when': 'manual', 'variables': {'B': 'job', 'C': 'job', 'D': 'job'}},
    }, variables=[{'key': 'C', 'value': 'pipeline'}, {'key': 'D', 'value': 'pipeline'}])
    ci.play_job(latest(ci, pipeline)['test'], variables=[{'key': 'D', 'value': 'play'}])
    found = payload_variables(client, runner)
    assert {name: found[name] for name in ('A', 'B', 'C', 'D', 'CI_JOB_NAME', 'CI_JOB_STAGE')} == {
        'A': 'file', 'B': 'job', 'C': 'pipeline', 'D': 'play', 'CI_JOB_NAME': 'file', 'CI_JOB_STAGE': 'test'}


def test_variables_of_a_pipeline_reach_each_of_its_jobs_and_no_other_pipeline(client, make, runner):
    make({'one': {'script': 'x'}, 'two': {'script': 'x'}}, variables=[{'key': 'WHO', 'value': 'me'}])
    make(PLAIN)
    assert [payload_variables(client, runner).get('WHO') for _ in range(3)] == ['me', 'me', None]


# -- any pipeline at all

JOB = st.fixed_dictionaries({
    'when': st.sampled_from(['on_success', 'on_success', 'on_failure', 'always', 'manual']),
    'allow_failure': st.booleans(), 'outcome': st.sampled_from(['success', 'success', 'failed'])})


def expected_states(stages):
    """Return what the jobs of `stages` (lists of jobs) come to, worked out stage by stage."""
    found, failed, blocked = [], False, False
    for jobs in stages:
        runs = {'on_success': not failed, 'manual': not failed, 'on_failure': failed, 'always': True}
        for job in jobs:
            played = 'manual' if job['when'] == 'manual' else job['outcome']
            found.append('created' if blocked else played if runs[job['when']] else 'skipped')
        strict = [state for job, state in zip(jobs, found[-len(jobs):], strict=True) if not job['allow_failure']]
        failed, blocked = failed or 'failed' in strict, blocked or 'manual' in strict
    return found


@pytest.fixture(scope='module')
def drained():
    """A coordinator for many examples, a project and a runner."""
    with minici.Coordinator(clock=Clock(), fsync=False) as ci:
        yield ci, ci.create_project('group/many'), Runner(ci)


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(st.lists(st.lists(JOB, min_size=1, max_size=3), min_size=1, max_size=4), st.lists(st.booleans(), max_size=12))
def test_any_pipeline_runs_in_the_order_of_its_stages_to_its_end(drained, stages, finish_first):
    ci, project, runner = drained
    spec = minici.PipelineSpec([str(number) for number in range(len(stages))], [
        minici.JobSpec(f'{number}.{place}', ['x'], stage=str(number), when=job['when'],
                       allow_failure=job['allow_failure'])
        for number, jobs in enumerate(stages) for place, job in enumerate(jobs)])
    outcomes = {f'{number}.{place}': job['outcome'] for number, jobs in enumerate(stages)
                for place, job in enumerate(jobs)}
    pipeline, running, turns = ci.create_pipeline(project, 'main', sha=SHA, content=spec), [], list(finish_first)
    while True:
        claim = None if running and turns and turns.pop() else runner.claim()
        if claim:
            assert all(job['status'] in minici.FINISHED or job['status'] == 'manual' and job['allow_failure']
                       for job in latest(ci, pipeline).values() if job['stage_idx'] < claim.job['stage_idx'])
            running.append(claim)
        elif running:
            claim = running.pop(0)
            ci.update_job(ci.authenticate_job(claim.job['id'], claim.token), outcomes[claim.job['name']])
        else:
            break
    jobs = latest(ci, pipeline).values()
    assert [job['status'] for job in jobs] == expected_states(stages)
    assert ci.find_pipeline(pipeline)['status'] == minici.composite_status(
        (job['status'], job['allow_failure']) for job in jobs)


# -- merge requests, and claims of one pipeline

REQUEST = {'iid': 7, 'source_branch': 'feature/x', 'target_branch': 'main', 'title': 'Add x', 'labels': ['a', 'b'],
           'source_project_path': 'ann/demo'}


def test_a_merge_request_pipeline_has_its_variables_and_no_branch(ci, project):
    content = {
        'request': {'script': ['x'], 'rules': [{'if': '$CI_MERGE_REQUEST_TARGET_BRANCH_NAME == "main"'}]},
        'branch': {'script': ['x'], 'rules': [{'if': '$CI_COMMIT_BRANCH'}]},
    }
    pipeline = ci.create_pipeline(project, 'refs/merge-requests/7/head', sha=SHA, content=content,
                                  source='merge_request_event', merge_request=REQUEST)
    job, = ci.list_jobs(pipeline=pipeline)
    variables = minici.pipeline_variables(job)
    assert job['name'] == 'request'
    assert {name: value for name, value in variables.items() if name.startswith('CI_MERGE_') and value is not None} == {
        'CI_MERGE_REQUEST_ID': 7, 'CI_MERGE_REQUEST_IID': 7, 'CI_MERGE_REQUEST_REF_PATH': 'refs/merge-requests/7/head',
        'CI_MERGE_REQUEST_EVENT_TYPE': 'detached', 'CI_MERGE_REQUEST_TITLE': 'Add x',
        'CI_MERGE_REQUEST_LABELS': 'a,b', 'CI_MERGE_REQUEST_DRAFT': 'false',
        'CI_MERGE_REQUEST_SOURCE_BRANCH_NAME': 'feature/x', 'CI_MERGE_REQUEST_TARGET_BRANCH_NAME': 'main',
        'CI_MERGE_REQUEST_TARGET_BRANCH_PROTECTED': 'true', 'CI_MERGE_REQUEST_SOURCE_PROJECT_PATH': 'ann/demo',
        'CI_MERGE_REQUEST_PROJECT_ID': project['id'], 'CI_MERGE_REQUEST_PROJECT_PATH': project['path'],
        'CI_MERGE_REQUEST_SQUASH_ON_MERGE': 'false'}
    assert (variables['CI_COMMIT_REF_NAME'], variables.get('CI_COMMIT_BRANCH')) == ('feature/x', None)
    assert variables['CI_PIPELINE_SOURCE'] == 'merge_request_event'
    assert variables['CI_COMMIT_REF_PROTECTED'] == 'false'


def test_a_plan_changes_nothing_until_it_is_created(ci, project):
    plan = ci.plan_pipeline(project, 'main', sha=SHA, content=PLAIN)
    assert [job.name for job in plan.spec.jobs] == ['test']
    assert ci.list_pipelines(project) == ([], 0)
    assert ci.create_planned(plan)['status'] == 'pending'


def test_a_runner_may_claim_from_one_pipeline_alone(ci, project):
    first, second = (ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN) for _ in range(2))
    for runner in (ci.create_runner()[0], ci.create_runner(project)[0]):
        claim = ci.request_job(runner, pipeline=second)
        assert claim is None or claim.job['pipeline_id'] == second['id']
    assert ci.find_pipeline(first)['status'] == 'pending'
    assert ci.find_pipeline(second)['status'] == 'running'


class Twin(minici.Coordinator):
    """A coordinator that processes the whole pipeline after each finish."""

    def _process_after(self, c, finished):
        self._process(c, finished['pipeline_id'])


def random_pipeline(chance):
    """Return a pipeline of a few stages with needs, manual, delayed, failing and retried jobs."""
    stages = [f's{number}' for number in range(chance.randint(1, 5))]
    specs, made = [], []
    for place, stage in enumerate(stages):
        for number in range(chance.randint(1, 4)):
            needs = None
            if made and chance.random() < 0.5:
                needs = [{'name': name, 'artifacts': True} for name in chance.sample(made, min(len(made), 2))]
            specs.append(minici.JobSpec(
                f'{place}-{number}', ['make'], stage=stage, needs=needs, allow_failure=chance.random() < 0.3,
                when=chance.choice(['on_success'] * 5 + ['on_failure', 'always', 'manual', 'delayed']), start_in=1,
                resource_group=chance.choice([None, None, None, 'one']),
                retry=chance.choice([None, None, {'max': 1, 'when': ['always'], 'exit_codes': []}])))
        made += [spec.name for spec in specs if spec.stage == stage]
    return minici.PipelineSpec(stages, specs, auto_cancel='none')


@pytest.mark.parametrize('seed', range(10))
def test_what_follows_a_finish_is_what_processing_the_whole_pipeline_finds(tmp_path, seed):
    runs = []
    for kind in (minici.Coordinator, Twin):
        chance, states = random.Random(seed), []
        with kind(tmp_path / f'{kind.__name__}.sqlite', fsync=False, clock=lambda: 1000.0) as ci:
            project = ci.create_project('demo')
            ci.create_pipeline(project, 'main', sha=SHA, content=random_pipeline(chance))
            runner = ci.find_runner(ci.register_runner(ci.registration_token)[1])
            for _ in range(30):
                claim = ci.request_job(runner)
                if claim is not None:
                    job = ci.authenticate_job(claim.job['id'], claim.token)
                    ci.update_job(job, chance.choice(['success', 'success', 'failed']))
                elif chance.random() < 0.5:
                    for job in ci.list_jobs(scope=['manual', 'scheduled'], limit=1):
                        ci.play_job(job)
                elif chance.random() < 0.5:
                    for job in ci.list_jobs(scope=['failed'], include_retried=False, limit=1):
                        ci.retry_job(job)
                states.append([(row['id'], row['name'], row['status']) for row in ci.list_jobs(limit=1000)]
                              + [ci.find_pipeline(1)['status']])
        runs.append(states)
    assert runs[0] == runs[1]
    assert len(runs[0][-1]) > 1
