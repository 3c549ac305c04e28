"""The protocol of today's runners at /api/v4, and what people do with runners there."""

import gzip
import json

import pytest
from support import PLAIN, SHA, TWO_STAGES, Client, Runner, archive

import minici

ZIP = archive(out__app='binary')
GRACEFUL = {'features': {'cancel_gracefully': True, 'artifacts': True}}


def request(client, runner, status=201, **parameters):
    """Ask for work; return the answer."""
    return client.call('POST', '/api/v4/jobs/request', json={'token': runner.token, **parameters}, status=status)


def put(client, job, status=200, **parameters):
    """Report the state of a claimed job, whose `job` and `token` a claim has; return the answer."""
    return client.call('PUT', f'/api/v4/jobs/{job.job["id"]}', json={'token': job.token, **parameters}, status=status)


def patch(client, job, start, data, status=202, query='', **headers):
    """Send a piece of a claimed job's trace; return the answer."""
    return client.call('PATCH', f'/api/v4/jobs/{job.job["id"]}/trace{query}', data=data, status=status, headers={
        'JOB-TOKEN': job.token, 'Content-Type': 'text/plain',
        'Content-Range': f'{start}-{start + max(0, len(data) - 1)}', **headers})


def upload(client, job, content, status=201, filename='artifacts.zip', **parameters):
    """Upload an artifact of a claimed job; return the answer."""
    return client.call('POST', f'/api/v4/jobs/{job.job["id"]}/artifacts', form=parameters, status=status,
                       headers={'JOB-TOKEN': job.token}, files=[('file', filename, content)])


def download(client, job_id, token='', status=200, query=''):
    """Fetch a job's archive as a runner does; return the answer."""
    return client.call('GET', f'/api/v4/jobs/{job_id}/artifacts{query}', status=status,
                       headers={'JOB-TOKEN': token} if token else {})


def report(text):
    """Return a report as runners send it."""
    return gzip.compress(text.encode(), mtime=0)


def small(tmp_path, clock, **settings):
    """Return a client of a coordinator with other settings, and the claim of its only job."""
    ci = minici.Coordinator(tmp_path / 'small.sqlite', clock=clock, fsync=False, **settings)
    ci.create_pipeline(ci.create_project('group/small'), 'main', sha=SHA, content=PLAIN)
    return Client(ci), Runner(ci).claim()


def shown(client, token, job, **options):
    """Return a job as people see it."""
    return client.call('GET', f'/api/v4/projects/{job.job["project_id"]}/jobs/{job.job["id"]}', token=token,
                       status=200, **options).json


def cancel(client, token, job):
    """Cancel a job as people do; return its status then."""
    return client.call('POST', f'/api/v4/projects/{job.job["project_id"]}/jobs/{job.job["id"]}/cancel', token=token,
                       status=201).json['status']


# -- registration

def register(client, token, status=201, **parameters):
    return client.call('POST', '/api/v4/runners', json={'token': token, **parameters}, status=status)


def test_registration_gives_an_id_and_a_token_that_never_expires(ci, client):
    answer = register(client, ci.registration_token)
    assert answer.headers['Content-Type'] == 'application/json'
    assert answer.json == {'id': 1, 'token': answer.json['token'], 'token_expires_at': None}
    assert answer.json['token'] not in ('', ci.registration_token)
    assert ci.find_runner(answer.json['token'])['id'] == 1


def test_registration_needs_a_registration_token(client, runner):
    for absent in ('', None):
        assert register(client, absent, 400).json == {'error': 'token is missing'}
    for wrong in ('wrong', runner.token):
        assert register(client, wrong, 403).json == {'message': '403 Forbidden - invalid token supplied'}


def test_registration_with_a_setting_that_will_not_do_is_400_and_makes_no_runner(ci, client):
    for settings, word in (
            ({'active': True, 'paused': False}, 'mutually exclusive'),
            ({'run_untagged': False}, 'can not be empty when runner is not allowed to pick untagged jobs'),
            ({'tag_list': [str(number) for number in range(51)]}, 'Too many tags specified'),
            ({'maximum_timeout': 599}, 'needs to be at least 10 minutes'),
            ({'maximum_timeout': 'long'}, 'maximum_timeout is invalid'),
            ({'access_level': 'secret'}, 'access_level does not have a valid value')):
        assert word in register(client, ci.registration_token, 400, **settings).text
    assert ci.list_runners() == []


def test_validation_errors_name_their_field(ci, client):
    answer = register(client, ci.registration_token, 400, run_untagged=False, tag_list=' , ')
    assert answer.json == {'message': {
        'tags_list': ['can not be empty when runner is not allowed to pick untagged jobs']}}


def test_a_runner_is_active_unlocked_and_takes_untagged_jobs_unless_it_says_otherwise(ci, client, token):
    register(client, ci.registration_token, maximum_timeout='')
    runner = client.call('GET', '/api/v4/runners/1', token=token).json
    assert (runner['active'], runner['paused'], runner['run_untagged'], runner['locked']) == (True, False, True, False)
    assert (runner['access_level'], runner['maximum_timeout'], runner['tag_list']) == ('not_protected', None, [])


@pytest.mark.parametrize('sleep', [{'active': False}, {'paused': True}])
def test_registration_stores_every_setting_and_what_the_runner_says_of_itself(ci, client, token, sleep):
    info = {'name': 'gitlab-runner', 'version': '17.9.0', 'revision': 'abc', 'platform': 'linux',
            'architecture': 'arm64', 'executor': 'docker', 'features': {'artifacts': True}, 'labels': {'zone': 'b'}}
    register(client, ci.registration_token, description='rack 2', tag_list=' b,a ', run_untagged=False, locked=True,
             access_level='ref_protected', maximum_timeout=700, maintenance_note='reboot on Sundays', info=info,
             **sleep)
    runner = client.call('GET', '/api/v4/runners/1', token=token).json
    expected = {'description': 'rack 2', 'tag_list': ['a', 'b'], 'run_untagged': False, 'locked': True,
                'access_level': 'ref_protected', 'maximum_timeout': 700, 'maintenance_note': 'reboot on Sundays',
                'active': False, 'paused': True, 'name': 'gitlab-runner', 'version': '17.9.0', 'revision': 'abc',
                'platform': 'linux', 'architecture': 'arm64'}
    assert {name: runner[name] for name in expected} == expected


def test_the_registration_token_decides_what_a_runner_serves(ci, client, token, project):
    register(client, ci.registration_token)
    register(client, project['runners_token'])
    shared, own = (client.call('GET', f'/api/v4/runners/{number}', token=token).json for number in (1, 2))
    assert (shared['runner_type'], shared['is_shared'], shared['projects']) == ('instance_type', True, [])
    assert (own['runner_type'], own['is_shared']) == ('project_type', False)
    assert [item['path_with_namespace'] for item in own['projects']] == ['group/demo']


@pytest.mark.parametrize('settings, address', [
    ({}, '192.0.2.7'),
    ({'external_url': 'https://ci.example'}, '192.0.2.7'),
    ({'trusted_proxies': '192.0.2.8'}, '192.0.2.7'),
    ({'trusted_proxies': '192.0.2.7'}, '10.2.2.2'),
    ({'trusted_proxies': '192.0.2.0/24, 10.2.0.0/16'}, '10.1.1.1'),
    ({'trusted_proxies': '0.0.0.0/0'}, '10.1.1.1')])
def test_a_runners_address_is_stored_and_a_proxy_is_believed_only_when_there_is_one(tmp_path, clock, settings, address):
    with minici.Coordinator(tmp_path / 'ci.sqlite', clock=clock, fsync=False, **settings) as ci:
        client = Client(ci)
        client.extra_environ['REMOTE_ADDR'] = '192.0.2.7'
        client.call('POST', '/api/v4/runners', json={'token': ci.registration_token}, status=201,
                    headers={'X-Forwarded-For': '10.1.1.1, 10.2.2.2'})
        assert client.call('GET', '/api/v4/runners/1', token=ci.create_private_token()).json['ip_address'] == address


# -- removal, verification, new tokens

def test_what_a_runner_asks_for_itself_needs_its_token(ci, client, pipeline, runner):
    for method, path in (
            ('DELETE', 'runners'), ('DELETE', 'runners/managers'), ('POST', 'runners/verify'),
            ('POST', 'jobs/request'), ('POST', 'runners/reset_authentication_token')):
        for body in ({}, {'token': ''}):
            answer = client.call(method, f'/api/v4/{path}', json={**body, 'system_id': 's_1'}, status=400)
            assert answer.json == {'error': 'token is missing'}
        for token in ('wrong', ci.registration_token):
            answer = client.call(method, f'/api/v4/{path}', json={'token': token, 'system_id': 's_1'}, status=403)
            assert answer.json == {'message': '403 Forbidden'}


def test_an_unregistered_runner_is_unknown_from_then_on_and_the_job_it_ran_stays(ci, client, job, runner):
    answer = client.call('DELETE', '/api/v4/runners', json={'token': runner.token}, status=204)
    assert answer.body == b''
    client.call('POST', '/api/v4/runners/verify', json={'token': runner.token}, status=403)
    request(client, runner, 403)
    put(client, job, state='success')
    assert ci.find_job(job.job)['status'] == 'success'


def test_verification_answers_the_object_and_notes_the_contact(client, clock, runner, token):
    answer = client.call('POST', '/api/v4/runners/verify', json={'token': runner.token}, status=200)
    assert answer.headers['Content-Type'] == 'application/json'
    assert answer.json == {'id': runner.id, 'token': runner.token, 'token_expires_at': None}
    assert runner.row['contacted_at'] == clock.now


def test_a_runner_that_names_ever_more_machines_and_features_takes_little_room(ci, client, clock, runner, monkeypatch):
    monkeypatch.setattr(minici, 'MAX_MANAGERS', 10)
    features = {f'feature_{number}': True for number in range(2000)}
    for number in range(30):
        request(client, runner, 204, system_id=f's_{number}', info={'features': {**features, 'x' * 100_000: True}})
        clock.advance(seconds=number % 2)
    managers = ci.list_managers(runner.row)
    assert sorted(manager['system_id'] for manager in managers) == [f's_{number}' for number in range(20, 30)]
    assert max(len(manager['info']) for manager in managers) < 3000
    refused = request(client, runner, 400, system_id='s' * 65)
    assert refused.json == {'message': {'system_id': ['is too long (maximum is 64 characters)']}}


def test_a_runner_has_fifty_tags_at_most(ci):
    tags = [f'tag-{number}' for number in range(51)]
    assert json.loads(Runner(ci, tag_list=tags[:50]).row['tags']) == sorted(tags[:50])
    with pytest.raises(minici.BadRequest, match='limit the number of tags to 50'):
        Runner(ci, tag_list=tags)


def test_a_machine_that_is_silent_for_a_week_is_forgotten_and_its_runner_is_not(ci, client, clock, runner):
    for system_id in ('s_gone', 's_here'):
        request(client, runner, 204, system_id=system_id)
    clock.advance(days=5)
    request(client, runner, 204, system_id='s_here')
    clock.advance(days=3)
    ci.sweep()
    assert [manager['system_id'] for manager in ci.list_managers(runner.row)] == ['s_here']


def test_machines_that_share_a_runner_are_listed_and_leave_one_by_one(client, clock, runner, token):
    for number in (1, 2):
        client.call('POST', '/api/v4/runners/verify', status=200, json={
            'token': runner.token, 'system_id': f's_{number}', 'info': {'version': f'17.{number}.0'}})
        clock.advance(minutes=40)
    managers = client.call('GET', f'/api/v4/runners/{runner.id}/managers', token=token, status=200).json
    assert [(item['system_id'], item['version'], item['status']) for item in managers] == [
        ('s_1', '17.1.0', 'offline'), ('s_2', '17.2.0', 'online')]

    def leave(status, **parameters):
        client.call('DELETE', '/api/v4/runners/managers', json={'token': runner.token, **parameters}, status=status)
    leave(400)
    leave(404, system_id='s_3')
    leave(204, system_id='s_1')
    leave(404, system_id='s_1')
    managers = client.call('GET', f'/api/v4/runners/{runner.id}/managers', token=token).json
    assert [item['system_id'] for item in managers] == ['s_2']
    request(client, runner, 204)


def test_a_new_token_replaces_the_old_one(ci, client, runner):
    path = '/api/v4/runners/reset_authentication_token'
    answer = client.call('POST', path, json={'token': runner.token}, status=201)
    assert answer.json == {'token': answer.json['token'], 'token_expires_at': None}
    client.call('POST', path, json={'token': runner.token}, status=403)
    assert ci.find_runner(answer.json['token'])['id'] == runner.id


def test_the_newest_runners_are_told_that_there_is_no_job_router(client):
    assert 'message' in client.call('GET', '/api/v4/runners/router/discovery', status=501).json


# -- runners made by people

def create(client, token, status=201, **parameters):
    return client.call('POST', '/api/v4/user/runners', token=token, json=parameters, status=status)


def test_a_person_makes_a_runner_whose_machines_only_verify(ci, client, pipeline, token):
    made = create(client, token, runner_type='instance_type', description='cloud', tag_list=['a'], run_untagged=True)
    assert made.json == {'id': 1, 'token': made.json['token'], 'token_expires_at': None}
    assert made.json['token'].startswith('glrt-')
    for machine in ('s_1', 's_2'):
        answer = client.call('POST', '/api/v4/runners/verify', status=200, json={
            'token': made.json['token'], 'system_id': machine})
        assert answer.json['id'] == 1
    claimed = client.call('POST', '/api/v4/jobs/request', status=201, json={
        'token': made.json['token'], 'system_id': 's_2'}).json
    assert ci.find_job(claimed['id'])['system_id'] == 's_2'
    client.call('DELETE', '/api/v4/runners/managers', status=204, json={
        'token': made.json['token'], 'system_id': 's_1'})
    assert client.call('GET', '/api/v4/runners/1', token=token).json['description'] == 'cloud'


def test_a_person_makes_a_runner_for_one_project(client, token, project):
    create(client, token, runner_type='project_type', project_id=project['id'], locked=True)
    runner = client.call('GET', '/api/v4/runners/1', token=token).json
    assert (runner['runner_type'], runner['locked'], len(runner['projects'])) == ('project_type', True, 1)


def test_a_runner_that_cannot_be_made_is_refused(ci, client, token):
    create(client, token, 400)
    create(client, token, 400, runner_type='else')
    create(client, token, 400, runner_type='project_type')
    create(client, token, 404, runner_type='project_type', project_id=99)
    create(client, token, 400, runner_type='instance_type', run_untagged=False)
    assert ci.list_runners() == []


def test_making_a_runner_needs_a_person_who_may(ci, client):
    create(client, None, 401, runner_type='instance_type')
    create(client, ci.create_private_token('guest', 'read_api'), 403, runner_type='instance_type')


def test_a_new_token_of_a_runner_that_a_person_made_keeps_its_prefix(client, token):
    create(client, token, runner_type='instance_type')
    answer = client.call('POST', '/api/v4/runners/1/reset_authentication_token', token=token, status=201)
    assert answer.json['token'].startswith('glrt-')


# -- asking for work

def test_a_claim_is_201_without_the_queue_value(client, pipeline, runner):
    answer = request(client, runner)
    assert answer.headers['Content-Type'] == 'application/json'
    assert 'X-GitLab-Last-Update' not in answer.headers


def test_nothing_to_do_is_204_to_every_agent(client, runner):
    for agent in ('', 'Go-http-client/1.1', 'gitlab-runner 17.9.0 (17-9-stable; go1.23; linux/amd64)'):
        answer = client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=204,
                             headers={'User-Agent': agent})
        assert answer.body == b''
        assert answer.headers['X-GitLab-Last-Update']


def test_a_paused_runner_is_told_204_with_the_queue_value_and_is_noted(ci, client, clock, pipeline):
    runner = Runner(ci, active=False)
    answer = request(client, runner, 204, info={'version': '17.9.0'})
    assert answer.headers['X-GitLab-Last-Update']
    assert json.loads(runner.row['info'])['version'] == '17.9.0'
    assert runner.row['contacted_at'] == clock.now


def test_the_current_queue_value_comes_back_and_a_stale_one_finds_the_work(ci, client, project, runner):
    first = request(client, runner, 204).headers['X-GitLab-Last-Update']
    assert request(client, runner, 204, last_update=first).headers['X-GitLab-Last-Update'] == first
    ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    request(client, runner, 201, last_update=first)
    assert request(client, runner, 204, last_update=first).headers['X-GitLab-Last-Update'] != first


def test_jobs_that_waited_for_less_than_job_age_are_left_alone(client, clock, pipeline, runner):
    clock.advance(59)
    assert request(client, runner, 204, job_age=60).headers['X-GitLab-Last-Update']
    clock.advance(1)
    assert request(client, runner, 201, job_age=60).json['id'] == 1


def test_unknown_parameters_of_a_request_for_work_do_no_harm(client, pipeline, runner, token):
    request(client, runner, info={
        'name': 'gitlab-runner', 'version': 18, 'revision': None, 'platform': ['linux'], 'shell': 'bash',
        'features': {'artifacts': True, 'new': {'x': 1}}, 'config': {'gpus': 'all'}, 'labels': {'zone': 'b'}, 'x': []},
        session={'url': 'https://10.0.0.1:8093', 'certificate': 'PEM', 'authorization': 'secret'}, more=[1, {}])
    runner = client.call('GET', f'/api/v4/runners/{runner.id}', token=token).json
    assert (runner['name'], runner['version'], runner['platform']) == ('gitlab-runner', None, None)


# -- PUT

def test_a_put_needs_the_token_as_a_parameter(ci, client, job):
    for headers in ({'JOB-TOKEN': job.token}, {}):
        answer = client.call('PUT', f'/api/v4/jobs/{job.job["id"]}', json={'state': 'success'}, headers=headers,
                             status=400)
        assert answer.json == {'error': 'token is missing'}
    assert ci.find_job(job.job)['status'] == 'running'


@pytest.mark.parametrize('query', ['token=a&token=b', 'token[]=a', 'token[a]=b'])
def test_a_token_that_is_no_text_is_refused(client, job, query):
    client.call('PUT', f'/api/v4/jobs/{job.job["id"]}?{query}', json={'token': job.token}, status=403)


@pytest.mark.parametrize('call', [
    lambda client, path, token: client.call('PUT', path, json={'token': token, 'state': 'success'}, status=403),
    lambda client, path, token: client.call('PATCH', f'{path}/trace', data=b'x', status=403, headers={
        'JOB-TOKEN': token, 'Content-Range': '0-0', 'Content-Type': 'text/plain'}),
    lambda client, path, token: client.call('POST', f'{path}/artifacts', files=[('file', 'a.zip', ZIP)], status=403,
                                            headers={'JOB-TOKEN': token})])
def test_only_the_jobs_own_token_changes_it(ci, client, job, runner, project, call):
    path = f'/api/v4/jobs/{job.job["id"]}'
    for token in ('wrong', runner.token, project['runners_token'], ci.registration_token):
        call(client, path, token)
    call(client, '/api/v4/jobs/999', job.token)
    assert (ci.find_job(job.job)['status'], ci.read_trace(job.job)) == ('running', b'')
    ci.update_job(ci.authenticate_job(job.job['id'], job.token), 'failed')
    ci.erase_job(job.job)
    call(client, path, job.token)


@pytest.mark.parametrize('state', ['success', 'failed'])
def test_a_final_state_finishes_the_job_and_may_be_repeated(ci, client, job, state):
    for _ in range(3):
        answer = put(client, job, state=state, exit_code=0, more={'unknown': [1]})
        assert answer.json == 200
        assert answer.headers['Job-Status'] == state
        assert 'X-GitLab-Trace-Update-Interval' not in answer.headers
    assert ci.find_job(job.job)['status'] == state


@pytest.mark.parametrize('parameters', [{'state': 'running', 'output': {}}, {}])
def test_a_put_that_ends_nothing_is_a_sign_of_life(ci, client, clock, job, parameters):
    clock.advance(119)
    answer = put(client, job, **parameters)
    assert (answer.headers['Job-Status'], answer.headers['X-GitLab-Trace-Update-Interval']) == ('running', '30')
    clock.advance(2)
    ci.sweep()
    assert ci.find_job(job.job)['status'] == 'running'


def test_an_unknown_state_is_400(ci, client, job):
    assert put(client, job, 400, state='done').json == {'error': 'state does not have a valid value'}
    assert ci.find_job(job.job)['status'] == 'running'


@pytest.mark.parametrize('end, status', [
    (lambda ci, job: ci.cancel_job(job), 'canceled'),
    (lambda ci, job: ci.update_job(job, 'failed'), 'failed'),
    (lambda ci, job: ci.update_job(job, 'success'), 'success')])
def test_a_job_that_has_ended_stays_as_it_is_and_says_so(ci, client, job, end, status):
    patch(client, job, 0, b'log')
    end(ci, ci.authenticate_job(job.job['id'], job.token))
    for state in ('running', 'success', 'failed'):
        answer = put(client, job, 200 if state == status else 403, state=state, trace='other')
        assert answer.headers['Job-Status'] == status
    assert (ci.find_job(job.job)['status'], ci.read_trace(job.job)) == (status, b'log')
    assert patch(client, job, 3, b'more', 403).headers['Job-Status'] == status
    assert ci.read_trace(job.job) == b'log'


def test_a_failure_has_a_reason(ci, client, project, runner, token):
    reasons = {reason: reason for reason in ('script_failure', 'runner_system_failure', 'job_execution_timeout',
                                             'unmet_prerequisites', 'image_pull_failure')}
    for given, stored in {None: 'unknown_failure', 'never_heard_of': 'unknown_failure', **reasons}.items():
        ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
        job = runner.claim()
        put(client, job, state='failed', **({'failure_reason': given} if given else {}))
        assert shown(client, token, job)['failure_reason'] == stored


@pytest.mark.parametrize('allowed, exit_code, pipeline_status', [
    ([137, 3], 3, 'success'), (3, 3, 'success'), ([137, 3], 4, 'failed'), ([137], None, 'failed')])
def test_exit_codes_that_the_file_allows_do_not_fail_the_pipeline(ci, client, project, runner, allowed, exit_code,
                                                                  pipeline_status):
    content = {'test': {'script': ['make'], 'allow_failure': {'exit_codes': allowed}}}
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=content)
    job = runner.claim()
    put(client, job, state='failed', failure_reason='script_failure', exit_code=exit_code)
    row = ci.find_job(job.job)
    assert (row['status'], bool(row['allow_failure'])) == ('failed', pipeline_status == 'success')
    assert ci.find_pipeline(pipeline)['status'] == pipeline_status


def test_the_trace_of_a_put_replaces_the_stored_one(ci, client, job):
    patch(client, job, 0, b'first')
    put(client, job, state='running', trace='seco\u00f1d')
    patch(client, job, 7, b' and third')
    put(client, job, state='success')
    assert ci.read_trace(job.job).decode() == 'seco\u00f1d and third'


# -- checksums

LOG = b'0123456789'
CRC = 'crc32:a684c7c6'  # of LOG
COUNTED = {'output': {'checksum': CRC, 'bytesize': 10}}


@pytest.mark.parametrize('parameters', [{'checksum': CRC}, COUNTED, {'output': {}}])
def test_a_trace_that_matches_is_taken(client, job, token, parameters):
    patch(client, job, 0, LOG)
    put(client, job, 200, state='success', **parameters)
    assert shown(client, token, job)['trace_mismatch'] is None


@pytest.mark.parametrize('stored, parameters', [
    (b'0123456780', {'checksum': CRC}), (b'0123456780', COUNTED), (b'01234', COUNTED), (b'01235', COUNTED),
    (b'0123456789 and more', {'checksum': CRC, **COUNTED})])
def test_a_runner_sends_a_trace_again_that_was_damaged_and_then_all_is_well(ci, client, job, token, stored, parameters):
    patch(client, job, 0, stored)
    put(client, job, 412, state='success', **parameters)
    assert ci.find_job(job.job)['status'] == 'running'
    start = 0
    while start < len(LOG):  # a runner of 13.4 starts again at 0 and obeys a 416
        answer = patch(client, job, start, LOG[start:], None)
        assert answer.status_int in (202, 416)
        start = int(answer.headers['Range'].partition('-')[2])
    answer = put(client, job, None, state='success', **parameters)
    if answer.status_int == 412:  # what had been filled up was damaged before: now the trace is empty
        patch(client, job, 0, LOG)
        put(client, job, 200, state='success', **parameters)
    assert ci.read_trace(job.job) == LOG
    assert shown(client, token, job)['status'] == 'success'


@pytest.mark.parametrize('output', [{'checksum': 'crc32:00000000', 'bytesize': 10}, {'checksum': CRC, 'bytesize': 9}])
def test_a_trace_that_never_matches_is_refused_twice_and_then_shown(ci, client, job, token, output):
    for _ in range(2):
        patch(client, job, 0, LOG)
        put(client, job, 412, state='failed', failure_reason='script_failure', output=output)
    patch(client, job, 0, LOG)
    put(client, job, 200, state='failed', failure_reason='script_failure', output=output)
    mismatch = shown(client, token, job)['trace_mismatch']
    assert mismatch['expected'] == output
    assert mismatch['stored'] == {'checksum': CRC, 'bytesize': 10}
    assert (ci.find_job(job.job)['status'], ci.read_trace(job.job)) == ('failed', LOG)
    put(client, job, 200, state='failed', failure_reason='script_failure', output=output)


def test_a_trace_that_is_being_sent_again_is_erased_with_all_that_it_held(ci, client, job, token):
    patch(client, job, 0, b'0123456789')
    put(client, job, 412, state='success', output={'checksum': 'crc32:00000000', 'bytesize': 10})
    cancel(client, token, job)
    client.call('POST', f'/api/v4/projects/1/jobs/{job.job["id"]}/erase', token=token, status=201)
    assert [path.name for path in ci.data.rglob(f'{job.job["id"]}.*')] == []


def test_a_trace_that_is_never_sent_again_after_a_cancel_holds_what_it_held(ci, client, clock, job, token):
    patch(client, job, 0, b'0123456789')
    put(client, job, 412, state='success', output={'checksum': 'crc32:00000000', 'bytesize': 10})
    clock.advance(hours=1)
    patch(client, job, 0, b'0123')
    ci.sweep()
    assert ci.read_trace(job.job) == b'0123'
    cancel(client, token, job)
    clock.advance(hours=1)
    ci.sweep()
    assert ci.read_trace(job.job) == b'0123456789'


def test_malformed_output_is_400(ci, client, job):
    for parameters in ({'output': {'bytesize': 'ten'}}, {'output': [1]}, {'output': {'checksum': 7}},
                       {'checksum': ['x']}, {'exit_code': 'x'}, {'trace': {}}):
        put(client, job, 400, state='success', **parameters)
    assert ci.find_job(job.job)['status'] == 'running'


# -- PATCH

def test_a_piece_of_the_trace_is_acknowledged_with_status_range_and_interval(ci, client, job):
    answer = patch(client, job, 0, b'hello', query='?debug_trace=false')
    assert answer.body == b''
    assert (answer.headers['Job-Status'], answer.headers['Range']) == ('running', '0-5')
    answer = client.call('PATCH', f'/api/v4/jobs/{job.job["id"]}/trace?token={job.token}', data=b'!', status=202,
                         headers={'Content-Range': '5-5', 'Content-Type': 'application/x-www-form-urlencoded'})
    assert answer.headers['Range'] == '0-6'
    assert ci.read_trace(job.job) == b'hello!'


def test_a_piece_without_its_range_is_400(client, job):
    answer = patch(client, job, 0, b'hello', 400, **{'Content-Range': ''})
    assert answer.json == {'error': '400 Missing header Content-Range'}


def test_the_range_may_be_written_as_any_runner_writes_it(ci, client, job):
    stored = b''
    for content_range in ('0-9', '10-20', '20-29/30', '30-7', '40-39', '40-40', '40-49/*'):
        data = b'' if content_range in ('40-39', '40-40') else b'ten bytes\n'
        stored += data
        answer = patch(client, job, 0, data, **{'Content-Range': content_range})
        assert answer.headers['Range'] == f'0-{len(stored)}'
    assert ci.read_trace(job.job) == stored


def test_a_piece_at_another_place_is_416_and_the_last_one_again_is_not_stored_twice(ci, client, job):
    for start, data in ((0, b'one'), (3, b'two'), (3, b'two')):
        assert patch(client, job, start, data).headers['Range'] == f'0-{start + 3}'
    for start, data in ((0, b'one'), (2, b'x'), (7, b'x'), (4, b''), (0, b'')):
        answer = patch(client, job, start, data, 416)
        assert answer.headers['Range'] == '0-6'
        assert answer.json == {'error': '416 Range Not Satisfiable'}
    assert ci.read_trace(job.job) == b'onetwo'


def test_a_trace_that_was_lost_is_sent_again_from_the_start(ci, client, job):
    patch(client, job, 0, b'hello')
    ci.traces.path(job.job['id']).unlink()
    assert patch(client, job, 5, b' world', 416).headers['Range'] == '0-0'
    patch(client, job, 0, b'hello world')
    assert ci.read_trace(job.job) == b'hello world'


def test_the_size_of_a_trace_is_checked_before_its_offset(tmp_path, clock):
    client, job = small(tmp_path, clock, max_trace_size=100)
    with client.ci:
        patch(client, job, 0, b'hello world')
        assert patch(client, job, 100, b'hello world', 403).headers['Job-Status'] == 'failed'
        assert client.ci.find_job(job.job)['failure_reason'] == 'trace_size_exceeded'


def test_a_trace_comes_sooner_while_somebody_reads_it(client, clock, job, token):
    def interval(start):
        return int(patch(client, job, start, b'.').headers['X-GitLab-Trace-Update-Interval'])
    quiet = interval(0)
    assert quiet > 3
    client.call('GET', f'/api/v4/projects/1/jobs/{job.job["id"]}/trace', token=token, status=200)
    assert interval(1) == 3
    clock.advance(minutes=2)
    assert interval(2) == quiet


# -- cancel

def test_a_canceled_job_tells_its_runner_and_whatever_it_says_stays_canceled(ci, client, job, token):
    patch(client, job, 0, b'hello')
    assert cancel(client, token, job) == 'canceled'
    assert patch(client, job, 5, b'more', 403).headers['Job-Status'] == 'canceled'
    assert patch(client, job, 5, b'', 403).headers['Job-Status'] == 'canceled'
    for state in ('running', 'failed', 'success'):
        assert put(client, job, 403, state=state).headers['Job-Status'] == 'canceled'
    upload(client, job, ZIP, 403)
    assert (ci.find_job(job.job)['status'], ci.read_trace(job.job)) == ('canceled', b'hello')


@pytest.mark.parametrize('state', ['success', 'failed'])
def test_a_runner_that_can_ends_a_canceled_job_in_good_order(ci, client, pipeline, runner, token, state):
    request(client, runner, 204, info=GRACEFUL, job_age=10)
    job = runner.claim()
    patch(client, job, 0, b'hello')
    assert cancel(client, token, job) == 'canceling'
    assert ci.find_pipeline(pipeline)['status'] == 'canceling'
    assert patch(client, job, 5, b' after_script').headers['Job-Status'] == 'canceling'
    assert put(client, job, state='running').headers['Job-Status'] == 'canceling'
    upload(client, job, ZIP)
    assert put(client, job, state=state, failure_reason='script_failure').headers['Job-Status'] == 'canceled'
    job_shown = shown(client, token, job)
    assert (job_shown['status'], 'failure_reason' in job_shown) == ('canceled', False)
    assert ci.find_pipeline(pipeline)['status'] == 'canceled'
    assert ci.read_trace(job.job) == b'hello after_script'


@pytest.mark.parametrize('state', ['success', 'failed'])
def test_a_job_that_is_canceled_while_its_last_word_arrives_is_said_to_be_canceled(ci, client, pipeline, runner, token,
                                                                                   state):
    request(client, runner, 204, info=GRACEFUL, job_age=10)
    job = runner.claim()
    as_it_was = ci.authenticate_job(job.job['id'], job.token)
    cancel(client, token, job)
    assert ci.update_job(as_it_was, state) == 'canceled'
    assert shown(client, token, job)['status'] == 'canceled'


def test_a_second_cancel_is_final(ci, client, pipeline, runner, token):
    request(client, runner, 204, info=GRACEFUL, job_age=10)
    job = runner.claim()
    assert [cancel(client, token, job) for _ in range(3)] == ['canceling', 'canceled', 'canceled']
    assert put(client, job, 403, state='running').headers['Job-Status'] == 'canceled'


@pytest.mark.parametrize('machine, status', [('s_new', 'canceling'), ('s_old', 'canceled')])
def test_the_machine_that_has_the_job_decides_how_it_is_canceled(ci, client, pipeline, runner, token, machine, status):
    infos = {'s_new': GRACEFUL, 's_old': {'features': {'artifacts': True}}}
    claimed = request(client, runner, system_id=machine, info=infos.pop(machine)).json
    for other, info in infos.items():
        request(client, runner, 204, system_id=other, info=info)
    answer = client.call('POST', f'/api/v4/projects/1/jobs/{claimed["id"]}/cancel', token=token, status=201)
    assert answer.json['status'] == status


# -- artifacts

def test_an_upload_answers_201_and_comes_back_as_an_attachment(client, job, token):
    answer = upload(client, job, ZIP, filename='my \u00e4rt.zip', artifact_type='archive', artifact_format='zip')
    assert answer.json == 201
    answer = download(client, job.job['id'], job.token, query='?direct_download=true')
    assert answer.body == ZIP
    assert answer.headers['Content-Transfer-Encoding'] == 'binary'
    assert answer.headers['Content-Disposition'] == (
        'attachment; filename="my _rt.zip"; filename*=UTF-8\'\'my%20%C3%A4rt.zip')
    assert shown(client, token, job)['artifacts_file'] == {'filename': 'my \u00e4rt.zip', 'size': len(ZIP)}


@pytest.mark.parametrize('parts', [
    {'form': {'expire_in': '1 day'}}, {'files': [('metadata', 'metadata.gz', b'x')]},
    {'form': {'file.path': '/etc/passwd', 'file.name': 'passwd', 'file.size': '10'}}])
def test_an_upload_without_a_file_is_400(client, job, parts):
    answer = client.call('POST', f'/api/v4/jobs/{job.job["id"]}/artifacts', headers={'JOB-TOKEN': job.token},
                         status=400, **parts)
    assert answer.json == {'error': 'file is missing'}
    download(client, job.job['id'], job.token, 404)


def test_an_upload_over_the_limit_is_413(tmp_path, clock):
    client, job = small(tmp_path, clock, max_artifacts_size=len(ZIP))
    with client.ci:
        answer = upload(client, job, ZIP + b'x', 413)
        assert answer.json['message'].startswith('413 Request Entity Too Large')
        upload(client, job, ZIP)


def test_a_type_in_the_wrong_format_is_400_and_nothing_is_stored(client, job, token):
    for kind, form in (
            ('archive', 'gzip'), ('archive', 'raw'), ('junit', 'raw'), ('junit', 'zip'), ('dotenv', 'raw'),
            ('cobertura', 'zip'), ('sast', 'gzip'), ('metadata', 'raw'), ('../x', 'raw')):
        upload(client, job, ZIP, 400, artifact_type=kind, artifact_format=form)
    assert shown(client, token, job)['artifacts'] == []


def test_each_type_has_a_file_of_its_own(client, job, token):
    files = [('archive', 'zip', ZIP, 'a.zip'), ('junit', 'gzip', report('<x/>'), 'junit.xml.gz'),
             ('cobertura', 'gzip', report('<y/>'), 'c.xml.gz'), ('metadata', 'gzip', report(''), 'metadata.gz'),
             ('sast', 'raw', b'{}', 'gl-sast-report.json')]
    for kind, form, content, filename in files:
        upload(client, job, content, filename=filename, artifact_type=kind, artifact_format=form)
    assert download(client, job.job['id'], job.token).body == ZIP
    found = [(item['file_type'], item['file_format'], item['size'], item['filename'])
             for item in shown(client, token, job)['artifacts']]
    assert sorted(found) == sorted((kind, form, len(content), filename) for kind, form, content, filename in files)


def test_the_same_content_again_is_taken_and_other_content_refused(client, job, token):
    upload(client, job, ZIP, filename='first.zip')
    upload(client, job, ZIP, filename='second.zip')
    assert 'another artifact of the same type already exists' in upload(client, job, archive(x='y'), 400).text
    assert shown(client, token, job)['artifacts_file']['filename'] == 'first.zip'
    assert download(client, job.job['id'], job.token).body == ZIP


@pytest.mark.parametrize('default, given, days', [
    ('never', '7 days', 7), ('5 days', None, 5), ('never', None, None), ('0', None, None), ('5 days', 'never', None),
    ('5 days', '1 week', 7)])
def test_artifacts_expire_when_the_job_says_or_else_the_setting(tmp_path, clock, default, given, days):
    client, job = small(tmp_path, clock, artifacts_expire_in=default)
    with client.ci as ci:
        upload(client, job, ZIP, **({'expire_in': given} if given else {}))
        seen = shown(client, ci.create_private_token(), job)['artifacts_expire_at']
        assert seen == (days and minici.iso_time(clock.now + days * 86400))


def test_the_expiry_of_any_type_is_the_jobs(client, clock, job, token):
    upload(client, job, report('<x/>'), artifact_type='junit', artifact_format='gzip', expire_in='3 days')
    assert shown(client, token, job)['artifacts_expire_at'] == minici.iso_time(clock.now + 3 * 86400)


def test_an_upload_is_no_contact_of_the_runner(client, clock, job, runner):
    before = runner.row['contacted_at']
    clock.advance(minutes=5)
    upload(client, job, ZIP)
    assert runner.row['contacted_at'] == before


def dependent(ci, project, runner):
    """Return the claims of two jobs: one with artifacts, which has ended, and one that depends on it."""
    ci.create_pipeline(project, 'main', sha=SHA, content=TWO_STAGES)
    client, first = Client(ci), runner.claim()
    upload(client, first, ZIP)
    put(client, first, state='success')
    return first, runner.claim()


def test_artifacts_are_read_by_the_job_itself_and_by_running_jobs_that_depend_on_it(ci, client, project, runner):
    first, second = dependent(ci, project, runner)
    for token in (first.token, second.token):
        assert download(client, first.job['id'], token).body == ZIP
        assert download(client, first.job['id'], query=f'?token={token}').body == ZIP
    download(client, second.job['id'], second.token, 404)
    download(client, 999, second.token, 403)
    put(client, second, state='success')
    download(client, first.job['id'], second.token, 401)


def test_artifacts_are_refused_to_everybody_else(ci, client, project, runner):
    first, _ = dependent(ci, project, runner)
    for token in ('', 'wrong', runner.token, project['runners_token'], ci.registration_token):
        download(client, first.job['id'], token, 401)
    for path in ('group/demo', 'group/other'):  # a running job of another pipeline, and of another project
        stranger = ci.find_project(path) if path == 'group/demo' else ci.create_project(path)
        ci.create_pipeline(stranger, 'main', sha=SHA, content=PLAIN)
        download(client, first.job['id'], runner.claim().token, 403)


# -- tokens

def test_the_token_of_a_runner_that_registers_the_old_way_begins_like_none_that_is_masked(ci, client, job):
    """Build folders are named after it: a masked prefix would stand in every path of a log."""
    masked = tuple(minici.TOKEN_MASK_PREFIXES)
    for path in ('/api/v4/runners', '/ci/api/v1/runners/register'):
        token = client.call('POST', path, json={'token': ci.registration_token}, status=201).json['token']
        for issued in (token, ci.reset_runner_token(ci.find_runner(token))):
            assert len(issued) == 40
            assert not issued.startswith(masked)
    assert job.token.startswith(masked)


# -- dotenv

def test_a_dotenv_report_that_cannot_be_read_is_400_and_not_stored(client, job, token):
    texts = ('no equals sign', 'A-B=1', '=1', 'A=1\n\nB=2', '# comment', 'A=' + 'x' * 70_000)
    for content in (*map(report, texts), b'A=1', report('A=1')[:-3], report('A=1') + b'more', report('A=1\0002')):
        answer = upload(client, job, content, 400, artifact_type='dotenv', artifact_format='gzip')
        assert 'Invalid Format' in answer.json['message']
    assert shown(client, token, job)['artifacts'] == []


@pytest.mark.parametrize('members, expected', [
    ([b'A=1', b'B=2'], {'A': '1', 'B': '2'}),                                       # two files without a last newline
    ([b'\xef\xbb\xbfA=1\n'], {'A': '1'}),
    ([b'\xef\xbb\xbfA=1\n', b'\xef\xbb\xbfB=2'], {'A': '1', 'B': '2'}),
    (['A=prüfe\r\nB=2\r\n'.encode('utf-16')], {'A': 'prüfe', 'B': '2'}),             # as PowerShell writes it
    (['\ufeffA=1\r\n'.encode('utf-16-be')], {'A': '1'}),
    (['A=pr\u00fcfe\n'.encode('cp1252')], {'A': 'prüfe'}),
    (['A=one\u2028two\x85three\x0cfour\x1cfive\rsix\n'.encode()], {'A': 'one\u2028two\x85three\x0cfour\x1cfive\rsix'}),
    ([b'A=1\nA=2\n', b'A=3'], {'A': '3'}),
    ([b' A \t=\x0b 1=2 \x0c\r\n'], {'A': '1=2'}),
    (['A=\u00a01\u3000\n'.encode()], {'A': '\u00a01\u3000'}),                       # no space in Ruby's eyes
    ([b'', b'A=', b''], {'A': ''}),
    ([b'A=\xe2\x28'], {'A': 'â('}),
], ids=range(12))
def test_a_dotenv_report_is_read_as_gitlab_reads_it(ci, client, job, members, expected):
    content = b''.join(map(gzip.compress, members))
    upload(client, job, content, artifact_type='dotenv', artifact_format='gzip')
    stored = json.loads(ci.find_job(job.job['id'])['dotenv'])
    assert [(item['key'], item['value']) for item in stored] == list(expected.items())


def test_a_dotenv_report_of_endless_empty_files_is_refused(client, job):
    upload(client, job, gzip.compress(b'') * 4000, 400, artifact_type='dotenv', artifact_format='gzip')
    upload(client, job, gzip.compress(b'A=' + b'x' * 60_000) * 3, 400, artifact_type='dotenv', artifact_format='gzip')


@pytest.mark.parametrize('dependencies, expected', [(None, ['1.2', 'two']), (['version'], ['1.2']), ([], [])])
def test_dotenv_variables_reach_the_jobs_that_depend_on_theirs(ci, client, project, runner, dependencies, expected):
    content = {'stages': ['a', 'b'], 'version': {'stage': 'a', 'script': ['x']},
               'other': {'stage': 'a', 'script': ['x']},
               'use': {'stage': 'b', 'script': ['x'], 'variables': {'VERSION': 'file', 'RAW': 'file'}}}
    if dependencies is not None:
        content['use']['dependencies'] = dependencies
    ci.create_pipeline(project, 'main', sha=SHA, content=content, variables=[{'key': 'RAW', 'value': 'pipeline'}])
    for text in ('VERSION = 1.2 \nRAW=report\n', 'OTHER=two'):
        job = runner.claim()
        upload(client, job, report(text), artifact_type='dotenv', artifact_format='gzip', filename='.env.gz')
        put(client, job, state='success')
    variables = request(client, runner).json['variables']
    values = {item['key']: item['value'] for item in variables}
    assert [values[name] for name in ('VERSION', 'OTHER') if values.get(name, 'file') != 'file'] == expected
    assert values['RAW'] == 'pipeline'
    assert all(item['public'] is False for item in variables if item['value'] in ('1.2', 'two'))


# -- what a job's token may do besides

def test_a_running_jobs_token_tells_which_job_it_is(client, job, token):
    path = '/api/v4/job'
    for options in ({'headers': {'JOB-TOKEN': job.token}}, {'json': {'job_token': job.token}}):
        assert client.call('GET', path, status=200, **options).json['id'] == job.job['id']
    assert client.call('GET', f'{path}?job_token={job.token}', status=200).json['name'] == 'test'
    client.call('GET', path, status=401)
    client.call('GET', path, headers={'JOB-TOKEN': 'wrong'}, status=401)
    client.call('GET', path, token=token, status=404)
    put(client, job, state='success')
    client.call('GET', path, headers={'JOB-TOKEN': job.token}, status=401)


def test_a_running_job_reads_the_jobs_of_its_own_project(ci, client, project, runner):
    first, second = dependent(ci, project, runner)
    headers = {'JOB-TOKEN': second.token}
    base = '/api/v4/projects/group%2Fdemo'
    paths = ['jobs', 'jobs?scope=success', f'jobs/{first.job["id"]}', f'jobs/{first.job["id"]}/trace',
             f'jobs/{first.job["id"]}/artifacts', f'jobs/{first.job["id"]}/artifacts/out/app',
             f'pipelines/{first.job["pipeline_id"]}/jobs']
    for path in paths:
        client.call('GET', f'{base}/{path}', headers=headers, status=200)
    answer = client.call('GET', f'{base}/jobs/{first.job["id"]}/artifacts?job_token={second.token}', status=200)
    assert answer.body == ZIP
    put(client, second, state='success')
    for path in paths:
        client.call('GET', f'{base}/{path}', headers=headers, status=401)
    third = ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN) and runner.claim()
    answer = client.call('GET', f'{base}/jobs/artifacts/main/raw/out/app?job=compile', status=200,
                         headers={'JOB-TOKEN': third.token})
    assert answer.body == b'binary'


def test_a_running_job_sees_no_other_project_and_changes_nothing(ci, client, job):
    ci.create_project('group/other')
    headers = {'JOB-TOKEN': job.token}
    client.call('GET', '/api/v4/projects/group%2Fother/jobs', headers=headers, status=404)
    for action in ('cancel', 'retry', 'erase', 'play', 'artifacts/keep'):
        client.call('POST', f'/api/v4/projects/1/jobs/{job.job["id"]}/{action}', headers=headers, status=401)
    for path in ('/api/v4/projects/1', '/api/v4/runners', '/api/v4/user', '/api/v4/projects/1/pipelines'):
        client.call('GET', path, headers=headers, status=401)
    assert ci.find_job(job.job)['status'] == 'running'


# -- runners, for people: lists

@pytest.fixture
def fleet(ci, clock, project):
    """Three runners: `shared` was heard just now, `own` (of the project) two hours ago, `idle` is paused."""
    runners = {'own': Runner(ci, token=project['runners_token'], description='own', tag_list=['a', 'b'])}
    ci.contact(runners['own'].row, {'version': '17.9.0'}, '192.0.2.1')
    clock.advance(hours=2)
    runners['shared'] = Runner(ci, description='shared', tag_list=['a'])
    ci.contact(runners['shared'].row, {}, None)
    runners['idle'] = Runner(ci, description='idle', active=False)
    return runners


@pytest.mark.parametrize('path', ['/api/v4/runners', '/api/v4/runners/all', '/api/v4/projects/group%2Fdemo/runners'])
def test_runners_are_listed_newest_first_by_what_is_asked(client, fleet, token, path):
    for query, names in {
            '': 'idle shared own', 'scope=specific': 'own', 'scope=shared': 'idle shared',
            'scope=active': 'shared own', 'scope=paused': 'idle', 'scope=online': 'shared',
            'type=instance_type': 'idle shared', 'type=project_type': 'own', 'type=group_type': '',
            'status=online': 'shared', 'status=offline': 'own', 'status=never_contacted': 'idle', 'status=stale': '',
            'status=active': 'shared own', 'status=paused': 'idle', 'paused=true': 'idle', 'paused=0': 'shared own',
            'tag_list=a': 'shared own', 'tag_list=b,a': 'own', 'tag_list[]=c': '',
            'type=instance_type&paused=no': 'shared'}.items():
        answer = client.call('GET', f'{path}?{query}', token=token, status=200)
        assert [item['description'] for item in answer.json] == names.split(), query
    for query in ('scope=else', 'type=else', 'status=else', 'paused=else', 'page=0'):
        client.call('GET', f'{path}?{query}', token=token, status=400)


def test_a_project_lists_the_runners_that_may_serve_it_alone(ci, client, fleet, token):
    ci.create_project('group/other', shared_runners_enabled=False)
    assert client.call('GET', '/api/v4/projects/group%2Fother/runners', token=token).json == []
    ci.create_project('group/open')
    answer = client.call('GET', '/api/v4/projects/group%2Fopen/runners', token=token)
    assert [item['description'] for item in answer.json] == ['idle', 'shared']


def test_lists_of_runners_are_paged(client, fleet, token):
    answer = client.call('GET', '/api/v4/runners?per_page=2&page=2', token=token, status=200)
    assert [item['description'] for item in answer.json] == ['own']
    assert (answer.headers['X-Total'], answer.headers['X-Total-Pages'], answer.headers['X-Next-Page']) == ('3', '2', '')


def test_only_people_look_at_runners_and_change_them(ci, client, job, runner):
    reader = ci.create_private_token('reader', 'read_api')
    for method, path in (
            ('GET', 'runners'), ('GET', 'runners/all'), ('GET', 'runners/1'), ('PUT', 'runners/1'),
            ('DELETE', 'runners/1'), ('GET', 'runners/1/jobs'), ('GET', 'runners/1/managers'),
            ('GET', 'projects/1/runners'), ('POST', 'projects/1/runners'), ('DELETE', 'projects/1/runners/1'),
            ('POST', 'runners/reset_registration_token'), ('POST', 'runners/1/reset_authentication_token'),
            ('POST', 'projects/1/runners/reset_registration_token')):
        for headers in ({}, {'PRIVATE-TOKEN': runner.token}, {'JOB-TOKEN': job.token}, {'PRIVATE-TOKEN': job.token}):
            client.call(method, f'/api/v4/{path}', headers=headers, status=401)
        client.call(method, f'/api/v4/{path}', token=reader, status=200 if method == 'GET' else 403)


# -- one runner

def test_a_runner_is_shown_with_all_its_fields_and_never_its_token(ci, client, fleet, token, clock):
    answer = client.call('GET', f'/api/v4/runners/{fleet["own"].id}', token=token, status=200)
    runner = answer.json
    project, = runner.pop('projects')
    assert (project['id'], project['path_with_namespace']) == (1, 'group/demo')
    created = minici.iso_time(clock.now - 7200)
    assert runner == {
        'id': 1, 'description': 'own', 'ip_address': '192.0.2.1', 'active': True, 'paused': False, 'is_shared': False,
        'runner_type': 'project_type', 'name': None, 'online': False, 'status': 'offline',
        'job_execution_status': 'idle', 'created_at': created, 'created_by': None, 'tag_list': ['a', 'b'],
        'run_untagged': True, 'locked': False, 'maximum_timeout': None,
        'access_level': 'not_protected', 'version': '17.9.0', 'revision': None, 'platform': None, 'architecture': None,
        'contacted_at': created, 'maintenance_note': None, 'groups': []}
    assert fleet['own'].token not in answer.text


def test_online_is_null_until_a_runner_was_heard(client, clock, runner, token):
    def seen():
        answer = client.call('GET', f'/api/v4/runners/{runner.id}', token=token).json
        return answer['online'], answer['status']
    assert seen() == (None, 'never_contacted')
    request(client, runner, 204)
    assert seen() == (True, 'online')
    clock.advance(hours=2)
    assert seen() == (False, 'offline')


def test_a_summary_has_the_fields_of_a_summary_alone(client, runner, token):
    summary, = client.call('GET', '/api/v4/runners', token=token).json
    assert set(summary) == {'id', 'description', 'ip_address', 'active', 'paused', 'is_shared', 'runner_type', 'name',
                            'online', 'created_at', 'created_by', 'status', 'job_execution_status'}


def test_an_unknown_runner_is_404(client, token):
    for method, path in (('GET', ''), ('PUT', ''), ('DELETE', ''), ('GET', '/jobs'), ('GET', '/managers'),
                         ('POST', '/reset_authentication_token')):
        client.call(method, f'/api/v4/runners/99{path}', token=token, json={'description': 'x'}, status=404)


def edit(client, token, runner, status=200, **changes):
    return client.call('PUT', f'/api/v4/runners/{runner.id}', token=token, json=changes, status=status).json


def test_every_setting_of_a_runner_can_be_changed(client, runner, token):
    changes = {'description': 'new', 'tag_list': ['x', 'y'], 'run_untagged': False, 'locked': True, 'paused': True,
               'access_level': 'ref_protected', 'maximum_timeout': 1200, 'maintenance_note': 'hot'}
    edited = edit(client, token, runner, **changes)
    assert {name: edited[name] for name in changes} == changes
    assert edited['active'] is False
    assert edit(client, token, runner, active=True)['paused'] is False
    assert client.call('GET', f'/api/v4/runners/{runner.id}', token=token).json == {**edited, 'active': True,
                                                                                 'paused': False}


def test_a_change_that_will_not_do_is_400_and_changes_nothing(client, runner, token):
    path = f'/api/v4/runners/{runner.id}'
    before = client.call('GET', path, token=token).json
    for changes in ({}, {'unknown': 1}, {'run_untagged': False}, {'maximum_timeout': 599}, {'locked': 'maybe'},
                    {'active': True, 'paused': True}, {'access_level': 'else'}):
        edit(client, token, runner, 400, **changes)
    assert client.call('GET', path, token=token).json == before


def test_pausing_and_going_on_change_at_once_what_is_claimable(ci, client, pipeline, runner, token):
    edit(client, token, runner, paused=True)
    value = request(client, runner, 204).headers['X-GitLab-Last-Update']
    edit(client, token, runner, paused=False)
    request(client, runner, 201, last_update=value)


def test_tags_change_at_once_what_is_claimable(ci, client, project, runner, token):
    content = {'tagged': {'script': ['x'], 'tags': ['arm']}, 'plain': {'script': ['x']}}
    ci.create_pipeline(project, 'main', sha=SHA, content=content)
    edit(client, token, runner, tag_list=['arm'], run_untagged=False)
    assert request(client, runner).json['job_info']['name'] == 'tagged'
    value = request(client, runner, 204).headers['X-GitLab-Last-Update']
    edit(client, token, runner, tag_list=['x86'], run_untagged=True)
    assert request(client, runner, last_update=value).json['job_info']['name'] == 'plain'


@pytest.mark.parametrize('own, cap, timeout', [
    (None, None, 3600), (None, 900, 900), ('20m', 900, 900), ('11m', 900, 660)])
def test_a_runners_maximum_timeout_caps_every_jobs(ci, client, project, runner, token, own, cap, timeout):
    ci.create_pipeline(project, 'main', sha=SHA, content={
        'test': {'script': ['x'], **({'timeout': own} if own else {})}})
    if cap:
        edit(client, token, runner, maximum_timeout=cap)
    claimed = request(client, runner).json
    assert claimed['runner_info']['timeout'] == claimed['steps'][0]['timeout'] == timeout


def test_a_removed_runner_is_gone(client, runner, token):
    answer = client.call('DELETE', f'/api/v4/runners/{runner.id}', token=token, status=204)
    assert answer.body == b''
    client.call('DELETE', f'/api/v4/runners/{runner.id}', token=token, status=404)
    request(client, runner, 403)


def test_the_jobs_of_a_runner_are_listed_newest_first(ci, client, project, runner, token):
    for state in ('success', 'failed', 'success'):
        ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
        assert runner.run(state)
    ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    path = f'/api/v4/runners/{runner.id}/jobs'
    assert [item['id'] for item in client.call('GET', path, token=token, status=200).json] == [3, 2, 1]
    assert [item['id'] for item in client.call('GET', f'{path}?status=success', token=token).json] == [3, 1]
    client.call('GET', f'{path}?status=else', token=token, status=400)


# -- enabling in projects, registration tokens

@pytest.fixture
def other(ci):
    """A project that shared runners may not serve, with a job that waits."""
    project = ci.create_project('group/other', shared_runners_enabled=False)
    ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    return '/api/v4/projects/group%2Fother/runners'


def test_a_project_runner_that_is_enabled_elsewhere_takes_its_jobs_at_once(client, fleet, other, token):
    own = fleet['own']
    value = request(client, own, 204).headers['X-GitLab-Last-Update']
    assert client.call('POST', other, token=token, json={'runner_id': own.id}, status=201).json['id'] == own.id
    request(client, own, 201, last_update=value)
    client.call('POST', other, token=token, json={'runner_id': own.id}, status=400)
    client.call('DELETE', f'{other}/{own.id}', token=token, status=204)
    client.call('DELETE', f'{other}/{own.id}', token=token, status=404)
    answer = client.call('DELETE', f'/api/v4/projects/group%2Fdemo/runners/{own.id}', token=token, status=403)
    assert 'Only one project associated with the runner. Please remove the runner instead' in answer.json['message']


def test_locked_and_shared_runners_are_not_enabled(client, fleet, other, token):
    edit(client, token, fleet['own'], locked=True)
    for runner, status in ((fleet['own'], 403), (fleet['shared'], 403)):
        client.call('POST', other, token=token, json={'runner_id': runner.id}, status=status)
    client.call('POST', other, token=token, json={}, status=400)
    client.call('POST', other, token=token, json={'runner_id': 99}, status=404)
    client.call('DELETE', f'{other}/99', token=token, status=404)
    request(client, fleet['own'], 204)


def test_a_locked_runner_still_takes_its_projects_jobs(ci, client, fleet, pipeline, token):
    edit(client, token, fleet['own'], locked=True)
    request(client, fleet['own'], 201)


@pytest.mark.parametrize('path, before', [
    ('runners', lambda ci: ci.registration_token),
    ('projects/group%2Fdemo/runners', lambda ci: ci.find_project('group/demo')['runners_token'])])
def test_a_new_registration_token_replaces_the_old_one_and_runners_stay(ci, client, project, token, path, before):
    old = before(ci)
    runner = Runner(ci, token=old)
    answer = client.call('POST', f'/api/v4/{path}/reset_registration_token', token=token, status=201).json
    assert answer == {'token': before(ci)}
    assert answer['token'] != old
    register(client, old, 403)
    register(client, answer['token'])
    request(client, runner, 204)
