"""What a job may ask for that runners of some versions would leave out, by the features that each announces."""

import pytest
from support import FEATURES, SHA

JOBS = {
    'nothing': {},
    'artifacts': {'artifacts': {'paths': ['out/']}},
    'reports': {'artifacts': {'reports': {'junit': 'a.xml'}}},
    'exclude': {'artifacts': {'paths': ['out/'], 'exclude': ['out/*.o']}},
    'exit codes': {'allow_failure': {'exit_codes': [3]}},
    'fallback keys': {'cache': {'key': 'a', 'paths': ['x'], 'fallback_keys': ['b']}},
    'release': {'release': {'tag_name': 'v1', 'description': 'the first'}},
}
KEYWORDS = {'reports': 'artifacts:reports', 'exclude': 'artifacts:exclude', 'exit codes': 'allow_failure:exit_codes',
            'fallback keys': 'cache:fallback_keys', 'release': 'release'}
#: What each version cannot run, as GitLab's RUNNER_FEATURES have it.
UNSUPPORTED = {
    '1.0.4': {'reports', 'exclude', 'exit codes', 'fallback keys', 'release'},
    '10.8.2': {'reports', 'exclude', 'exit codes', 'fallback keys', 'release'},
    '11.8.0': {'exclude', 'exit codes', 'fallback keys', 'release'},
    '11.11.4': {'exclude', 'exit codes', 'fallback keys', 'release'},
    '12.10.3': {'exclude', 'exit codes', 'fallback keys', 'release'},
    '13.12.0': {'fallback keys'},
    '17.11.4': set(),
    '18.6.6': set(),
    '18.9.0': set(),
}


def ask(client, runner, version, path='/api/v4/jobs/request', **more):
    features = dict.fromkeys(FEATURES[version], True)
    return client.call('POST', path, json={'token': runner.token, 'info': {'version': version, 'features': features},
                                           **more})


@pytest.mark.parametrize('version', FEATURES)
@pytest.mark.parametrize('name', JOBS)
def test_a_job_fails_at_once_when_its_runner_would_leave_out_what_it_asks_for(
        ci, client, project, runner, version, name):
    ci.create_pipeline(project, 'main', sha=SHA, content={'job': {'script': ['make'], **JOBS[name]}})
    path = '/ci/api/v1/builds/register' if version == '1.0.4' else '/api/v4/jobs/request'
    answer = ask(client, runner, version, path)
    job = ci.find_job(1)
    if name not in UNSUPPORTED[version]:
        assert answer.status_int == 201
        assert job['status'] in ('pending', 'running')
        return
    assert answer.status_int in (204, 404)
    assert (job['status'], job['failure_reason'], job['started_at'], job['runner_id']) == (
        'failed', 'runner_unsupported', None, 1)
    assert job['failure_message'].startswith(f'runner 1 does not support {KEYWORDS[name]};')
    assert ci.find_pipeline(1)['status'] == 'failed'


def test_the_next_job_is_tried_and_the_pipeline_of_the_failed_one_goes_on(ci, client, project, runner):
    ci.create_pipeline(project, 'main', sha=SHA, content={
        'stages': ['a', 'b'],
        **{f'old {number}': {'stage': 'a', 'script': ['x'], **JOBS['exclude']} for number in range(3)},
        'after': {'stage': 'b', 'script': ['x'], 'when': 'on_failure'}})
    assert ask(client, runner, '12.10.3').json['job_info']['name'] == 'after'
    assert [ci.find_job(number)['failure_reason'] for number in (1, 2, 3)] == ['runner_unsupported'] * 3


def test_a_job_that_retries_such_failures_goes_to_the_next_runner(ci, client, project, runner):
    ci.create_pipeline(project, 'main', sha=SHA, content={
        'job': {'script': ['x'], 'retry': {'max': 1, 'when': 'runner_unsupported'}, **JOBS['reports']}})
    ask(client, runner, '10.8.2')   # both fail
    assert [job['failure_reason'] for job in ci.list_jobs(project=project)] == ['runner_unsupported'] * 2


def test_a_merge_request_pipeline_needs_refspecs(ci, client, project, runner):
    for version, status in (('11.8.0', 204), ('11.11.4', 201)):
        ci.create_pipeline(project, 'refs/merge-requests/7/head', sha=SHA, source='merge_request_event',
                           content={'job': {'script': ['x'], 'rules': [{'when': 'on_success'}]}})
        assert ask(client, runner, version).status_int == status
    assert ci.find_job(1)['failure_message'].startswith('runner 1 does not support merge request pipelines;')


def test_nothing_is_told_of_a_job_that_failed_before_it_ran(ci, client, project, runner):
    """No hook sees it running, and a claim that somebody else makes is not counted."""
    ci.create_pipeline(project, 'main', sha=SHA, content={'job': {'script': ['x'], **JOBS['reports']}})
    ask(client, runner, '10.8.2')
    with ci.db.read() as c:
        events = [(row['before'], row['status']) for row in c.execute("SELECT * FROM event WHERE kind = 'job'")]
    assert events == [('created', 'pending'), ('pending', 'failed')]


def test_python_claims_for_a_runner_that_can_do_everything_unless_it_says_otherwise(ci, project, runner):
    for _ in range(2):
        ci.create_pipeline(project, 'main', sha=SHA, content={'job': {'script': ['x'], **JOBS['release']}})
    assert ci.request_job(runner.row).job['status'] == 'running'
    assert ci.request_job(runner.row, features=['multi_build_steps', 'two_phase_job_commit']).job['status'] == 'pending'


def test_a_client_that_announces_nothing_gets_whatever_does_not_need_further_steps(ci, client, project, runner):
    for name in ('reports', 'exclude', 'exit codes', 'fallback keys'):
        ci.create_pipeline(project, 'main', sha=SHA, content={'job': {'script': ['make'], **JOBS[name]}})
        client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=201)
