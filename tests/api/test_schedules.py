"""Schedules: the API of GitLab, cron expressions in time zones, and runs by upkeep, on the clock of the test."""

import json
from datetime import datetime, timezone

import pytest
from support import Origin, commit

import minici

P = '/api/v4/projects/1'
FILE = """
always: {script: [make]}
nightly: {script: [make], rules: [{if: $CI_PIPELINE_SOURCE == "schedule"}]}
"""


def moment(text):
    """Return the seconds since 1970 of a time in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp()


@pytest.fixture
def origin(tmp_path):
    repository = Origin(tmp_path / 'demo')
    repository.commit(FILE)
    repository.git('tag', 'v1')
    return repository


@pytest.fixture
def project(ci, origin):
    return ci.create_project('group/demo', import_url=origin.url)


@pytest.fixture
def call(client, token, project):
    """Send a request with a private token."""
    return lambda method, path, status, **body: client.call(method, path, status=status, token=token, **body)


@pytest.fixture
def schedule(ci, project, clock):
    """A schedule at 9 o'clock in Berlin, made on a Monday in winter."""
    clock.now = moment('2026-01-05T10:00:00')
    return ci.create_schedule(project, None, description='morning', ref='main', cron='0 9 * * *',
                              cron_timezone='Europe/Berlin')


def runs(ci, project):
    """Return the refs and sources of the pipelines so far, oldest first."""
    return [(row['ref'], row['source']) for row in ci.list_pipelines(project)[0]][::-1]


# -- the API

def test_a_schedule_is_made_listed_shown_edited_and_removed(call, clock):
    clock.now = moment('2026-01-05T10:00:00')
    made = call('POST', f'{P}/pipeline_schedules', 201, form={
        'description': 'nightly', 'ref': 'main', 'cron': '0 1 * * *', 'cron_timezone': 'Europe/Berlin'}).json
    assert {key: made[key] for key in ('id', 'description', 'ref', 'cron', 'cron_timezone', 'active', 'next_run_at',
                                       'last_pipeline', 'variables', 'inputs')} == {
        'id': 1, 'description': 'nightly', 'ref': 'refs/heads/main', 'cron': '0 1 * * *',
        'cron_timezone': 'Europe/Berlin', 'active': True, 'next_run_at': '2026-01-06T00:00:00.000Z',
        'last_pipeline': None, 'variables': [], 'inputs': []}
    assert made['owner']['username'] == 'root'
    listed, = call('GET', f'{P}/pipeline_schedules', 200).json
    assert listed == {key: made[key] for key in listed}
    assert 'variables' not in listed
    assert call('GET', f'{P}/pipeline_schedules?scope=inactive', 200).json == []
    edited = call('PUT', f'{P}/pipeline_schedules/1', 200, json={'cron': '30 4 * * 0', 'active': False,
                                                                 'ref': 'v1'}).json
    assert (edited['next_run_at'], edited['active'], edited['ref'], edited['description']) == (
        '2026-01-11T03:30:00.000Z', False, 'refs/tags/v1', 'nightly')
    assert call('GET', f'{P}/pipeline_schedules?scope=active', 200).json == []
    assert call('GET', f'{P}/pipeline_schedules/1', 200).json == edited
    call('DELETE', f'{P}/pipeline_schedules/1', 204)
    assert call('GET', f'{P}/pipeline_schedules/1', 404).json == {'message': '404 Pipeline Schedule Not Found'}


@pytest.mark.parametrize('wrong, field', [
    ({'cron': 'often'}, 'cron'), ({'cron': '* * * *'}, 'cron'), ({'cron': '* * * * * *'}, 'cron'),
    ({'cron': '0 0 31 2 *'}, 'cron'), ({'cron': '61 * * * *'}, 'cron'),
    ({'cron_timezone': 'Mars/Olympus'}, 'cron_timezone'), ({'cron_timezone': '../../etc/passwd'}, 'cron_timezone'),
    ({'description': ' '}, 'description'),
    ({'ref': 'missing'}, 'base'), ({'ref': '--upload-pack=x'}, 'base')])
def test_a_schedule_that_cannot_be_is_refused_by_its_field(call, wrong, field):
    body = {'description': 'x', 'ref': 'main', 'cron': '0 1 * * *', **wrong}
    answer = call('POST', f'{P}/pipeline_schedules', 400, json=body).json['message']
    assert list(answer) == [field]
    assert call('GET', f'{P}/pipeline_schedules', 200).json == []


@pytest.mark.parametrize('missing', ['description', 'ref', 'cron'])
def test_a_schedule_needs_a_description_a_ref_and_an_expression(call, missing):
    body = {'description': 'x', 'ref': 'main', 'cron': '0 1 * * *'}
    del body[missing]
    assert call('POST', f'{P}/pipeline_schedules', 400, json=body).json == {'error': f'{missing} is missing'}


def test_variables_of_a_schedule_are_made_shown_changed_and_removed(call, schedule):
    path = f'{P}/pipeline_schedules/1/variables'
    made = {'key': 'WHERE', 'value': 'here', 'variable_type': 'env_var', 'raw': False}
    assert call('POST', path, 201, form={'key': 'WHERE', 'value': 'here'}).json == made
    assert call('POST', path, 400, form={'key': 'WHERE', 'value': 'x'}).json == {
        'message': {'key': ['(WHERE) has already been taken']}}
    call('POST', path, 400, form={'key': 'A-B', 'value': 'x'})
    changed = {**made, 'value': 'there', 'variable_type': 'file'}
    assert call('PUT', f'{path}/WHERE', 200, json={'value': 'there', 'variable_type': 'file'}).json == changed
    assert call('GET', f'{path}/WHERE', 200).json == changed
    assert call('GET', f'{P}/pipeline_schedules/1', 200).json['variables'] == [changed]
    assert call('DELETE', f'{path}/WHERE', 202).json == changed
    for method in ('GET', 'PUT', 'DELETE'):
        call(method, f'{path}/WHERE', 404)


def test_a_schedule_is_played_now_and_its_next_run_stays(ci, call, project, schedule):
    ci.set_schedule_variable(schedule, 'WHERE', 'here')
    assert call('POST', f'{P}/pipeline_schedules/1/play', 201).json == {'message': '201 Created'}
    shown = call('GET', f'{P}/pipeline_schedules/1', 200).json
    assert (shown['last_pipeline']['id'], shown['last_pipeline']['ref']) == (1, 'main')
    assert shown['next_run_at'] == '2026-01-06T08:00:00.000Z'
    pipeline = ci.find_pipeline(1)
    assert (pipeline['source'], pipeline['username']) == ('schedule', 'root')
    assert sorted(job['name'] for job in ci.list_jobs(pipeline=pipeline)) == ['always', 'nightly']
    assert json.loads(pipeline['variables']) == [{'key': 'WHERE', 'value': 'here', 'variable_type': 'env_var'}]
    listed, = call('GET', f'{P}/pipeline_schedules/1/pipelines', 200).json
    assert (listed['id'], listed['source']) == (1, 'schedule')


def test_ownership_is_taken(ci, call, schedule):
    assert call('GET', f'{P}/pipeline_schedules/1', 200).json['owner'] is None
    assert call('POST', f'{P}/pipeline_schedules/1/take_ownership', 201).json['owner']['username'] == 'root'
    call('POST', f'{P}/pipeline_schedules/1/take_ownership', 200)


def test_a_reading_token_and_another_project_change_nothing(ci, client, call, schedule):
    reader = ci.create_private_token(scope='read_api')
    client.call('POST', f'{P}/pipeline_schedules/1/play', token=reader, status=403)
    assert client.call('GET', f'{P}/pipeline_schedules/1', token=reader, status=200).json['id'] == 1
    ci.create_project('other')
    call('GET', '/api/v4/projects/2/pipeline_schedules/1', 404)
    call('DELETE', '/api/v4/projects/2/pipeline_schedules/1', 404)
    client.call('GET', f'{P}/pipeline_schedules', status=401)


# -- runs by upkeep

def test_a_schedule_runs_when_it_is_due_with_its_source(ci, clock, project, schedule):
    ci.sweep()
    assert runs(ci, project) == []
    clock.now = moment('2026-01-06T08:00:00')
    ci.sweep()
    ci.sweep()
    assert runs(ci, project) == [('main', 'schedule')]
    assert ci.find_schedule(project, 1)['next_run_at'] == moment('2026-01-07T08:00:00')


def test_several_missed_runs_are_made_up_for_by_one(ci, clock, project, schedule):
    clock.now = moment('2026-01-09T12:00:00')
    ci.sweep()
    assert runs(ci, project) == [('main', 'schedule')]
    assert ci.find_schedule(project, 1)['next_run_at'] == moment('2026-01-10T08:00:00')


def test_a_schedule_follows_its_zone_when_the_clocks_change(ci, clock, project, schedule):
    started = []
    for day in ('2026-03-28', '2026-03-29', '2026-03-30', '2026-10-24', '2026-10-25', '2026-10-26'):
        for hour in range(24):
            clock.now = moment(f'{day}T{hour:02d}:00:00')
            before = len(runs(ci, project))
            ci.sweep()
            if len(runs(ci, project)) > before and hour:
                started.append((day[5:], hour))
    assert started == [('03-28', 8), ('03-29', 7), ('03-30', 7), ('10-24', 7), ('10-25', 8), ('10-26', 8)]


def test_a_time_that_the_clocks_skip_or_repeat_runs_once(ci, clock, project):
    clock.now = moment('2026-03-28T12:00:00')
    ci.create_schedule(project, None, description='half past two', ref='main', cron='30 2 * * *',
                       cron_timezone='Europe/Berlin')
    for start, minutes in (('2026-03-28T12:00:00', 24 * 60), ('2026-10-24T12:00:00', 24 * 60)):
        clock.now = moment(start)
        ci.sweep()
        before = len(runs(ci, project))
        for _ in range(minutes // 10):
            clock.advance(minutes=10)
            ci.sweep()
        assert len(runs(ci, project)) == before + 1


def test_an_inactive_schedule_does_not_run_until_it_is_active_again(ci, clock, project, schedule):
    ci.edit_schedule(schedule, active=False)
    clock.now = moment('2026-01-06T09:00:00')
    ci.sweep()
    assert runs(ci, project) == []
    ci.edit_schedule(ci.find_schedule(project, 1), active=True)
    ci.sweep()
    assert runs(ci, project) == []      # what was missed while it was inactive is not made up for
    clock.now = moment('2026-01-07T09:00:00')
    ci.sweep()
    assert runs(ci, project) == [('main', 'schedule')]


def test_a_schedule_that_cannot_run_stops_no_other(ci, clock, project, origin, schedule, caplog):
    origin.git('branch', 'doomed')
    clock.now = moment('2026-01-05T10:00:00')
    ci.create_schedule(project, None, description='doomed', ref='doomed', cron='0 1 * * *')
    origin.git('branch', '-D', 'doomed')
    clock.now = moment('2026-01-06T09:00:00')
    ci.sweep()
    assert runs(ci, project) == [('main', 'schedule')]
    assert 'schedule 2 (doomed) made no pipeline: ' in caplog.text
    assert ci.find_schedule(project, 2)['next_run_at'] == moment('2026-01-07T01:00:00')


def test_two_coordinators_run_a_schedule_once(ci, clock, project, schedule, tmp_path):
    clock.now = moment('2026-01-06T09:00:00')
    with minici.Coordinator(tmp_path / 'ci.sqlite', clock=clock, fsync=False) as other:
        due = [dict(ci.find_schedule(project, 1))]
        assert ci._postpone(due[0], clock.now)
        assert not other._postpone(due[0], clock.now)


def test_a_schedule_gives_its_inputs_to_what_is_played_and_to_what_is_due(ci, call, clock, tmp_path):
    file = 'spec: {inputs: {name: {}, count: {type: number, default: 1}}}\n---\n' \
           '"$[[ inputs.name ]]": {script: make, parallel: $[[ inputs.count ]]}\n'
    commit(tmp_path / 'origin', **{'.gitlab-ci.yml': file})
    other = ci.create_project('with/inputs', import_url=(tmp_path / 'origin').as_uri())
    schedules = f'/api/v4/projects/{other["id"]}/pipeline_schedules'
    clock.now = moment('2026-01-05T10:00:00')
    made = call('POST', schedules, 201, json={
        'description': 'nightly', 'ref': 'main', 'cron': '0 1 * * *',
        'inputs': [{'name': 'name', 'value': 'mine'}, {'name': 'count', 'value': 2}]}).json
    call('POST', f'{schedules}/{made["id"]}/play', 201)
    clock.now = moment('2026-01-06T01:00:30')
    ci.sweep()
    pipelines = ci.list_pipelines(other)[0]
    assert [row['source'] for row in pipelines] == ['schedule', 'schedule']
    for pipeline in pipelines:
        assert {job['name'] for job in ci.list_jobs(pipeline=pipeline)} == {'mine 1/2', 'mine 2/2'}


def test_a_tag_is_scheduled_by_its_full_name(ci, clock, project):
    clock.now = moment('2026-01-05T10:00:00')
    schedule = ci.create_schedule(project, None, description='tag', ref='v1', cron='* * * * *')
    pipeline = ci.play_schedule(schedule)
    assert (pipeline['ref'], pipeline['tag']) == ('v1', 1)
