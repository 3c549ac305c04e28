"""The pages of runners and schedules, the line about a branch, links to environments, badges, old addresses."""


import json

import pytest
from browsing import Browser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import SHA, Runner, commit, git

import minici


@pytest.fixture
def browser(ci):
    return Browser(ci, ci.create_private_token())


def start(ci, project, **jobs):
    return ci.create_pipeline(project, 'main', sha=SHA, content=jobs)


def test_commands_name_the_database_to_whoever_sits_at_the_machine(ci):
    command = f'python -m minici --db {ci.db.path}'
    assert f'{command} token' in Browser(ci).open('/-/sign_in').text
    assert f'{command} submit PATH' in Browser(ci, ci.create_private_token()).open('/').text
    app = minici.create_app(ci)

    def page_for(address):
        browser = Browser(ci, app=lambda environ, start: app({**environ, 'REMOTE_ADDR': address}, start))
        return browser.open('/-/sign_in')

    assert f'{command} token' in page_for('127.0.0.1').text
    assert 'python -m minici --db DATABASE token' in page_for('192.0.2.7').text


# -- what a bridge started, and what a job will miss

def test_what_a_bridge_has_started_stands_beside_it(ci, browser, project, tmp_path):
    commit(tmp_path / 'child', **{'.gitlab-ci.yml': 'other: {script: [x]}'})
    ci.create_project('group/child', import_url=(tmp_path / 'child').as_uri())
    pipeline = start(ci, project, down={'trigger': 'group/child'}, test={'script': ['x']})
    link = browser.open('/group/demo/-/pipelines/1').one('a', href='/group/child/-/pipelines/2')
    assert link.text == 'group/child #2'
    (bridge, _), = ci.list_bridges(pipeline)
    facts = browser.open(f'/group/demo/-/jobs/{bridge["id"]}').one('aside').facts()
    assert facts['Downstream'] == 'group/child #2 pending'


def test_a_job_says_which_id_tokens_it_will_miss(ci, browser, project):
    start(ci, project, test={'script': ['x'], 'id_tokens': {'VAULT': {'aud': 'a'}, 'CLOUD': {'aud': 'b'}}})
    facts = browser.open('/group/demo/-/jobs/1').one('aside').facts()
    assert facts['Missing'] == 'VAULT, CLOUD: minici issues no ID tokens'


# -- a runner

def test_runner_tells_what_it_runs_what_it_could_take_and_why_not_the_rest(ci, browser, project):
    runner = Runner(ci, description='rack', tag_list=['linux'], run_untagged=False)
    start(ci, project, busy={'script': ['x'], 'tags': ['linux']})
    runner.claim()
    start(ci, project, next={'script': ['x'], 'tags': ['linux']}, mac={'script': ['x'], 'tags': ['macos', 'arm']},
          plain={'script': ['x']}, other={'script': ['x']})
    page = browser.open('/-/runners/1')
    assert page.one('h1').text == 'never contacted #1 rack'
    assert page.texts('h2') == ['Runs now', 'Could take from the queue', 'Cannot take']
    lists = [[row.text for row in rows.all('li')] for rows in page.all('ul', class_='rows')]
    assert 'busy #1' in lists[0][0]
    assert 'next #2' in lists[1][0]
    assert lists[2][0].startswith('1 job: it lacks arm, macos mac #3')
    assert lists[2][1].startswith('2 jobs: it takes only jobs with tags plain #4 other #5')
    assert page.one('aside').facts()['Tags'] == 'linux'


def test_paused_runner_could_take_nothing_until_it_is_resumed(ci, browser, project):
    Runner(ci)
    start(ci, project, test={'script': ['x']})
    page = browser.press(browser.open('/-/runners/1'), 'Pause')
    assert page.answer.request.path == '/-/runners/1'
    assert '1 job: it is paused' in page.text
    assert 'Cannot take' not in browser.press(page, 'Resume').text
    assert browser.press(browser.open('/-/runners/1'), 'Remove').answer.request.path == '/-/runners'


TAGS = st.lists(st.sampled_from(['a', 'b']), unique=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(own=TAGS, wanted=TAGS, untagged=st.booleans(), protected=st.booleans(), ref=st.sampled_from(['main', 'x']),
       active=st.booleans(), foreign=st.booleans())
def test_what_a_runner_could_take_is_what_it_is_given(own, wanted, untagged, protected, ref, active, foreign):
    with minici.Coordinator() as ci:
        project, other = ci.create_project('group/demo'), ci.create_project('group/other')
        token = (other if foreign else project)['runners_token'] if foreign else ci.registration_token
        row, runner_token = ci.register_runner(
            token, tag_list=own, run_untagged=untagged or not own,
            access_level='ref_protected' if protected else 'not_protected')
        ci.create_pipeline(project, ref, sha=SHA, content={'test': {'script': ['x'], 'tags': wanted}})
        row = ci.edit_runner(row, active=active)
        reason = ci.unfit_reason(row, ci.list_queue()[0])
        claim = ci.request_job(ci.find_runner(runner_token)) if active else None
        assert (claim is None) == (reason is not None), reason


# -- schedules

def test_schedule_is_added_played_paused_and_removed(ci, browser, project):
    ci.edit_project(project, default_branch='main')
    page = browser.open('/group/demo/-/pipeline_schedules')
    assert 'No pipeline runs by the clock yet' in page.text
    page = browser.press(page, 'Add', description='nightly <b>', cron='0 3 * * *', cron_timezone='Europe/Berlin')
    row = page.one('li', class_='schedule')
    assert row.one('span', class_='title').text == 'nightly <b>'
    assert '0 3 * * * Europe/Berlin' in row.text
    assert 'next run 2023-11-15 02:00 UTC' in row.text
    page = browser.press(page, 'Pause nightly <b>')
    assert 'paused' in page.one('li', class_='schedule').text
    page = browser.press(page, 'Resume nightly <b>')
    page = browser.press(page, 'Remove nightly <b>')
    assert page.all('li', class_='schedule') == []


def test_schedule_is_run_now_and_keeps_its_time(ci, browser, tmp_path):
    sha = commit(tmp_path / 'demo', **{'.gitlab-ci.yml': 'test: {script: make, only: [schedules]}'})
    project = ci.create_project('group/timed', import_url=f'file://{tmp_path}/demo')
    ci.create_schedule(project, ci.find_owner({'user_id': 1}), description='nightly', ref='main', cron='0 3 * * *')
    planned = ci.list_schedules(project)[0]['next_run_at']
    page = browser.press(browser.open('/group/timed/-/pipeline_schedules'), 'Run nightly now')
    pipeline = ci.find_pipeline(1)
    assert page.answer.request.path == '/group/timed/-/pipelines/1'
    assert (pipeline['source'], pipeline['sha'], pipeline['ref']) == ('schedule', sha, 'main')
    assert ci.list_schedules(project)[0]['next_run_at'] == planned
    page = browser.open('/group/timed/-/pipeline_schedules')
    assert page.one('li', class_='schedule').one('a')['href'] == '/group/timed/-/pipelines/1'


def test_schedule_without_anything_to_run_says_so(ci, browser, tmp_path):
    commit(tmp_path / 'demo', **{'.gitlab-ci.yml': 'test: {script: make, only: [tags]}'})
    project = ci.create_project('group/timed', import_url=f'file://{tmp_path}/demo')
    ci.create_schedule(project, None, description='nightly', ref='main', cron='0 3 * * *')
    page = browser.press(browser.open('/group/timed/-/pipeline_schedules'), 'Run nightly now', 400)
    assert 'no job' in page.text.lower() or 'No stages' in page.text
    assert ci.list_pipelines(project)[0] == []


def test_schedule_that_cannot_be_is_told_with_what_was_entered(browser, project):
    form = browser.open('/group/demo/-/pipeline_schedules')
    page = browser.press(form, 'Add', 400, description='x', cron='61 * * * *')
    assert page.one(role='alert').text
    assert page.one('input', name='cron')['value'] == '61 * * * *'


# -- a project

def test_line_about_a_branch_tells_how_its_last_pipelines_went(ci, browser, project, runner, clock):
    for state in ('success', 'failed', 'success'):
        start(ci, project, test={'script': ['x']})
        claim = runner.claim()
        clock.advance(60)
        ci.update_job(ci.authenticate_job(claim.job['id'], claim.token), state)
    page = browser.open('/group/demo')
    line = page.one('svg', class_='trend')
    assert line['aria-label'] == '2 of the last 3 passed; half of them took less than 1:00'
    assert [bar['class'] for bar in line.all('rect')] == ['success', 'failed', 'success']
    assert {bar['height'] for bar in line.all('rect')} == {'22'}


def test_badges_are_drawn_for_the_project_that_their_address_names(ci, browser, project, runner):
    start(ci, project, test={'script': ['x'], 'coverage': r'/(\d+)%/'})
    assert 'aria-label="coverage: unknown"' in browser.get('/group/demo/badges/main/coverage.svg').text
    claim = runner.claim()
    job = ci.authenticate_job(claim.job['id'], claim.token)
    ci.append_trace(job, 0, b'87%\n')
    ci.update_job(job, 'success')
    assert 'aria-label="pipeline: passed"' in browser.get('/group/demo/badges/main/pipeline.svg').text
    for path in ('/group/demo/badges/main/coverage.svg', '/api/v4/projects/1/badges/main/coverage.svg'):
        if path.startswith('/api'):
            answer = browser.call('GET', path, headers={'PRIVATE-TOKEN': ci.create_private_token()})
        else:
            answer = browser.get(path)
        assert 'aria-label="coverage: 87.00%"' in answer.text


@pytest.mark.parametrize('path, target', [
    ('/group/demo/pipelines/1', '/group/demo/-/pipelines/1'), ('/group/demo/-/jobs', '/?project=group/demo'),
    ('/group/demo/-/pipelines', '/?project=group/demo')])
def test_addresses_that_gitlab_knows_lead_on(ci, browser, project, path, target):
    start(ci, project, test={'script': ['x']})
    assert browser.get(path, 303).headers['Location'].endswith(target)


# -- environments

@pytest.mark.parametrize('url, linked', [
    ('https://demo.example.com/a?b=1', True), ('http://127.0.0.1:3000', True), ('javascript:alert(1)', False),
    ('data:text/html,x', False), ('ftp://example.com', False), ('https://$HOST/', False), ('//evil.example', False),
    ('https://a b', False), (None, False)])
def test_environment_is_a_link_to_addresses_of_the_web_alone(ci, browser, project, url, linked):
    environment = {'name': 'staging'}
    if url:
        environment['url'] = url
    content = minici.PipelineSpec(stages=['test'], jobs=[
        minici.JobSpec(name='deploy', stage='test', script=['x'], environment=environment)])
    ci.create_pipeline(project, 'main', sha=SHA, content=content)
    facts = browser.open('/group/demo/-/jobs/1').one('aside')
    assert facts.facts()['Environment'] == 'staging'
    assert [link['href'] for link in facts.all('a') if link.text == 'staging'] == ([url] if linked else [])


# -- the form for a new pipeline

FILE = """spec:
  inputs:
    target: {description: Where it goes, options: [staging, production], default: staging}
    replicas: {type: number, default: 2}
    dry: {type: boolean, default: false}
---
variables:
  MODE: {value: quick, options: [quick, full], description: How much is tested}
  NOTE: {description: Printed at the end}
  HIDDEN: not offered
test:
  script: ["echo $MODE $[[ inputs.target ]] $[[ inputs.replicas ]] $[[ inputs.dry ]]"]
"""


@pytest.fixture
def repository(ci, tmp_path):
    """A project with a repository that has two branches and a file with variables and inputs."""
    commit(tmp_path / 'demo', **{'.gitlab-ci.yml': FILE})
    git(tmp_path / 'demo', 'branch', 'feature/x')
    return ci.create_project('group/demo', import_url=f'file://{tmp_path}/demo')


def test_form_offers_branches_and_what_the_file_declares(ci, browser, repository):
    page = browser.open('/-/pipelines/new')
    assert [option['value'] for option in page.one('datalist').all('option')] == ['main', 'feature/x']
    assert page.texts('h2') == ['Inputs', 'Variables']
    assert page.one('select', name='variable[MODE]').texts('option') == ['quick', 'full']
    assert 'How much is tested' in page.text
    assert 'HIDDEN' not in page.text
    assert page.one('select', name='input[dry]').texts('option') == ['true', 'false']
    assert page.one('input', name='input[replicas]')['value'] == '2'
    for word in ('sha', 'content', 'import_url', 'ref_name'):
        assert word not in page.one('main').text.split()
    browser.press(page, 'Run pipeline', **{
        'variable[MODE]': 'full', 'variable[NOTE]': 'well done', 'input[target]': 'production', 'input[replicas]': '3',
        'variables': 'MORE=1'})
    pipeline = ci.find_pipeline(1)
    given = {item['key']: item['value'] for item in json.loads(pipeline['variables'])}
    assert given == {'MODE': 'full', 'NOTE': 'well done', 'MORE': '1'}
    [job] = ci.list_jobs(pipeline=pipeline)
    assert json.loads(job['spec'])['script'] == ['echo $MODE production 3 false']


def test_input_of_another_kind_is_told_and_what_was_chosen_stays(ci, browser, repository):
    page = browser.press(browser.open('/-/pipelines/new'), 'Run pipeline', 400, **{
        'input[replicas]': 'many', 'variable[MODE]': 'full'})
    assert page.one(role='alert').text == 'Input replicas must be a number'
    assert page.one('input', name='input[replicas]')['value'] == 'many'
    mode = page.one('select', name='variable[MODE]')
    assert [option.text for option in mode.all('option') if 'selected' in option.attributes] == ['full']


def test_section_with_the_error_is_open(ci, browser, repository):
    page = browser.press(browser.open('/-/pipelines/new'), 'Run pipeline', 400, sha='12')
    assert page.one(role='alert').text.startswith('Commit ')
    assert 'open' in page.one('details').attributes
    assert 'open' not in browser.open('/-/pipelines/new').one('details').attributes


def test_repository_that_cannot_be_read_is_told_on_the_form(ci, browser, tmp_path):
    ci.create_project('group/demo', import_url=f'file://{tmp_path}/nowhere')
    page = browser.open('/-/pipelines/new')
    assert page.one('p', class_='notice').text
    assert page.all('button')[-1].text == 'Run pipeline'


def test_several_projects_are_offered_first(ci, browser, repository):
    ci.create_project('group/other')
    page = browser.open('/-/pipelines/new')
    assert page.one('select', name='project').texts('option') == ['Choose a project', 'group/other', 'group/demo']
    assert page.all('textarea') == []
    assert page.texts('button')[-1] == 'Go on'
