"""What published clients of GitLab's API expect at its edges."""

import datetime
import json

import pytest
from support import SHA, Clock, Runner  # noqa: F401

import minici

API = '/api/v4'
P = f'{API}/projects/1'


@pytest.fixture
def api(client, token):
    """Call the API with a private token; return the response."""
    def call(method, path, status=200, **options):
        return client.call(method, path, token=token, status=status, **options)
    return call


@pytest.fixture
def three(ci, project):
    """A pipeline of three stages."""
    stages = ['build', 'test', 'deploy']
    content = {'stages': stages, **{stage: {'stage': stage, 'script': ['x']} for stage in stages}}
    return ci.create_pipeline(project, 'main', sha=SHA, content=content)


# -- parameters

@pytest.mark.parametrize('query, numbers', [('per_page=2&per_page=2', 2), ('per_page=1&per_page=3', 3),
                                            ('page=9&page=1&per_page=1', 1)])
def test_of_a_repeated_parameter_the_last_value_counts(api, three, query, numbers):
    assert len(api('GET', f'{P}/jobs?{query}').json) == numbers


def test_a_repeated_parameter_is_a_list_where_one_is_documented(api, three):
    assert len(api('GET', f'{P}/jobs?scope=pending&scope=created').json) == 3
    assert len(api('GET', f'{P}/jobs?scope[]=created').json) == 2


def test_the_next_page_of_a_repeated_parameter_can_be_followed(api, three):
    link = api('GET', f'{P}/jobs?per_page=2&per_page=2').headers['Link']
    following = link.partition('>; rel="next"')[0].rpartition('<')[2].partition('localhost')[2].partition('/')
    assert len(api('GET', '/' + following[2]).json) == 1


def test_an_empty_scope_in_a_list_is_refused(api, three):
    assert api('GET', f'{P}/jobs?scope[]=', 400).json == {'error': 'scope does not have a valid value'}


def test_a_list_for_a_single_value_in_json_is_refused(api, project):
    assert api('PUT', P, 400, json={'name': ['a', 'b']}).json == {'error': 'name is invalid'}


def test_no_job_waits_for_a_callback(api, three):
    assert api('GET', f'{P}/jobs?scope[]=waiting_for_callback').json == []
    assert api('GET', f'{P}/pipelines?status=waiting_for_callback').json == []


@pytest.mark.parametrize('text, moment', [
    ('2020-05-12T03:34:21.0324z', '2020-05-12T03:34:21.032400+00:00'),
    ('2020-05-12T03:34:21Z', '2020-05-12T03:34:21+00:00'), ('2020-05-12', '2020-05-12T00:00:00+00:00'),
    ('2020-05-12 03:34', '2020-05-12T03:34:00+00:00'), ('20200512T033421Z', '2020-05-12T03:34:21+00:00'),
    ('2020-05-12T03:34:21.5', '2020-05-12T03:34:21.500000+00:00'),
    ('2020-05-12T03:34:21+0200', '2020-05-12T01:34:21+00:00'),
    ('2020-05-12T03:34:21 02:00', '2020-05-12T01:34:21+00:00'),
    ('2020-05-12T03:34:21.123456789-03:30', '2020-05-12T07:04:21.123456+00:00'),
    ('2020-05-12 03:34:21 UTC', '2020-05-12T03:34:21+00:00')])
def test_moments_are_read_in_each_of_their_spellings(text, moment):
    expected = datetime.datetime.fromisoformat(moment).timestamp()
    assert minici.parse_moment(text) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize('text', ['x', '2020', '2020-13-01', '2020-05-12T25:00', '2020-05-12T03:34:61', '12.5.2020',
                                  '2020-05-12T', '99999-01-01', '2020-05-12T03:34:21+', '2020-05-12' * 50])
def test_what_is_no_moment_is_refused(api, project, text):
    assert api('GET', f'{P}/pipelines?updated_after={text.replace("+", "%2B")}', 400).json == {
        'error': 'updated_after is invalid'}


def test_a_time_zone_may_stand_unencoded_in_a_query(api, three):
    assert len(api('GET', f'{P}/pipelines?updated_after=2020-05-12T03:34:21+02:00').json) == 1


def test_a_token_is_accepted_as_access_token(client, token, project):
    answer = client.call('GET', f'{API}/projects?access_token={token}&per_page=1', status=200)
    assert token not in str(answer.headers)


# -- objects

def test_jobs_of_a_pipeline_have_moments_of_creation_in_their_order(api, three):
    jobs = api('GET', f'{P}/pipelines/1/jobs').json
    by_moment = sorted(jobs, key=lambda job: job['created_at'])
    assert [job['name'] for job in by_moment] == ['build', 'test', 'deploy']
    assert len({job['created_at'] for job in jobs}) == 3


def test_a_status_has_the_address_of_its_icon(client, token, three):
    status = client.call('GET', f'{P}/pipelines/1', token=token, status=200).json['detailed_status']
    assert status['favicon'] == '/-/favicon/pending.svg'
    assert {name: type(value) for name, value in status.items()} == {
        'icon': str, 'text': str, 'label': str, 'group': str, 'tooltip': str, 'has_details': bool,
        'details_path': str, 'illustration': type(None), 'favicon': str}


def test_the_duration_of_a_pipeline_leaves_out_what_it_waited(ci, clock, api, project, runner):
    ci.create_pipeline(project, 'main', sha=SHA, content={name: {'script': ['x']} for name in ('a', 'b')})
    assert api('GET', f'{P}/pipelines/1').json['duration'] is None
    first = runner.claim()
    clock.advance(2)
    second = Runner(ci).claim()
    clock.advance(3)
    ci.update_job(first.job, 'failed')
    clock.advance(1)
    ci.update_job(second.job, 'success')
    assert api('GET', f'{P}/pipelines/1').json['duration'] == 6
    clock.advance(1000)
    ci.retry_job(ci.find_job(first.job))
    clock.advance(500)
    again = runner.claim()
    clock.advance(1)
    ci.update_job(again.job, 'success')
    assert api('GET', f'{P}/pipelines/1').json['duration'] == 5


def test_a_commit_is_an_object_without_a_repository(api, three):
    job, commit = api('GET', f'{P}/jobs/1').json, api('GET', f'{P}/repository/commits/main').json
    assert job['commit']['id'] == commit['id'] == SHA
    assert job['commit'] == {name: commit[name] for name in job['commit']}
    texts = ('short_id', 'title', 'message', 'author_name', 'author_email', 'created_at', 'committed_date', 'web_url')
    assert all(isinstance(commit[name], str) for name in texts)
    assert api('GET', f'{P}/jobs').json[0]['commit'] == job['commit']


# -- addresses

def test_a_route_that_does_not_exist_is_told_from_a_thing_that_does_not(api, project):
    for method, path in (('GET', f'{P}/merge_requests'), ('POST', f'{API}/nothing'), ('GET', f'{P}/wikis/x')):
        assert 'minici has no such route' in api(method, path, 404).text
    assert 'minici has no such route' not in api('GET', f'{P}/jobs/99', 404).text


def test_graphql_is_no_method_that_is_not_allowed_but_nothing(client):
    assert client.call('POST', '/api/graphql', json={'query': '{}'}, status=404).json['error']


def test_a_project_is_found_by_its_path_in_any_case(api, project):
    assert api('GET', f'{API}/projects/GROUP%2FDemo').json['id'] == 1
    api('POST', f'{API}/projects', 400, json={'path': 'Group/DEMO'})


def test_a_v1_upload_for_a_build_that_is_not_running_says_so(client, project, pipeline):
    for path in ('artifacts', 'artifacts/authorize'):
        answer = client.call('POST', f'/ci/api/v1/builds/1/{path}?token={project["runners_token"]}', status=403)
        assert 'is not running' in answer.text
    answer = client.call('POST', '/ci/api/v1/builds/1/artifacts?token=wrong', status=403)
    assert 'running' not in answer.text


# -- projects

@pytest.fixture
def projects(ci, clock):
    """Four projects in two namespaces, the first with a pipeline of a day later."""
    rows = [ci.create_project(path) for path in ('group/a', 'group/b', 'alone')]
    rows.append(ci.create_project('other/c', visibility='public', description='the last'))
    clock.advance(86400)
    ci.create_pipeline(rows[0], 'main', sha=SHA, content={'x': {'script': ['x']}})
    return rows


def ids(response):
    return [item['id'] for item in response.json]


@pytest.mark.parametrize('query, found', [
    ('', [4, 3, 2, 1]), ('id_after=2', [4, 3]), ('id_before=3', [2, 1]), ('id_after=1&id_before=4', [3, 2]),
    ('archived=true', []), ('archived=false', [4, 3, 2, 1]), ('starred=true', []), ('starred=false', [4, 3, 2, 1]),
    ('visibility=public', [4]), ('visibility=private', [3, 2, 1]), ('visibility=internal', []), ('topic=x', []),
    ('last_activity_after=2023-11-15', [1]), ('last_activity_before=2023-11-15', [4, 3, 2]),
    ('owned=true&membership=true&min_access_level=40&simple=true', [4, 3, 2, 1]), ('with_issues_enabled=true', []),
    ('search=OTHER', []), ('search=OTHER&search_namespaces=true', [4]), ('search=Other/C', [4]), ('search=LAST', [4]),
    ('search=B', [2]), ('custom_attributes[a]=b', []), ('order_by=last_activity_at&sort=desc', [1, 4, 3, 2]),
    ('active=false', []), ('marked_for_deletion_on=2020-01-01', [])])
def test_filters_of_projects_are_answered_truthfully(api, projects, query, found):
    answer = api('GET', f'{API}/projects?{query}')
    assert (ids(answer), answer.headers['X-Total']) == (found, str(len(found)))


def test_a_level_of_access_is_one_that_gitlab_has(api, projects):
    assert api('GET', f'{API}/projects?min_access_level=60', 400).json == {
        'error': 'min_access_level does not have a valid value'}


@pytest.mark.parametrize('name', ['repository_storage', 'topic_id', 'with_programming_language'])
def test_a_filter_of_projects_that_has_no_answer_is_refused_by_name(api, projects, name):
    assert api('GET', f'{API}/projects?{name}=1', 400).json == {'error': f'{name} is not supported by minici'}


def test_a_walk_by_id_ends(api, projects):
    last, seen = 0, []
    while page := ids(api('GET', f'{API}/projects?per_page=2&order_by=id&sort=asc&id_after={last}')):
        seen += page
        last = page[-1]
    assert seen == [1, 2, 3, 4]


def test_the_last_activity_of_a_project_is_its_newest_pipeline(api, projects):
    project = api('GET', f'{API}/projects/1').json
    assert (project['created_at'], project['last_activity_at']) == ('2023-11-14T22:13:20.000Z',
                                                                    '2023-11-15T22:13:20.000Z')


def test_a_project_tells_what_may_be_done_with_it_and_its_namespace(api, projects):
    first, second, alone, other = (api('GET', f'{API}/projects/{number}').json for number in (1, 2, 3, 4))
    assert first['permissions']['project_access']['access_level'] == 50
    assert first['namespace'] == second['namespace'] != other['namespace']
    assert {name: type(value) for name, value in first['namespace'].items()} == {
        'id': int, 'name': str, 'path': str, 'kind': str, 'full_path': str, 'parent_id': type(None),
        'avatar_url': type(None), 'web_url': str}
    assert (alone['namespace']['kind'], alone['namespace']['path']) == ('user', 'root')
    assert len({project['namespace']['id'] for project in (first, alone, other)}) == 3


def test_settings_of_a_project_that_are_accepted_do_something(ci, api, client, project):
    answer = api('PUT', P, json={'description': 'new', 'visibility': 'public', 'ci_config_path': 'ci/all.yml'}).json
    assert (answer['description'], answer['visibility'], answer['ci_config_path']) == ('new', 'public', 'ci/all.yml')
    client.call('GET', f'{P}/badges/main/pipeline.svg', status=200)
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, content={'x': {'script': ['x']}})
    variables = minici.pipeline_variables(ci.list_jobs(pipeline=pipeline)[0])
    assert (variables['CI_CONFIG_PATH'], variables['CI_PROJECT_VISIBILITY']) == ('ci/all.yml', 'public')
    api('PUT', P, json={'visibility': 'private', 'ci_config_path': ''})
    client.call('GET', f'{P}/badges/main/pipeline.svg', status=401)
    assert api('GET', P).json['ci_config_path'] == '.gitlab-ci.yml'


@pytest.mark.parametrize('change, name', [
    ({'archived': True}, 'archived'), ({'visibility': 'internal'}, 'visibility'),
    ({'ci_config_path': 'ci.yml@group/other'}, 'ci_config_path'), ({'ci_config_path': '../x.yml'}, 'ci_config_path'),
    ({'ci_config_path': 'https://x.example/ci.yml'}, 'ci_config_path'),
    ({'path': 'elsewhere'}, 'path'), ({'jobs_enabled': 'off'}, 'jobs_enabled'), ({'public_jobs': 0}, 'public_jobs'),
    ({'ci_default_git_depth': 20}, 'ci_default_git_depth'), ({'topics': ['a', 'b']}, 'topics'),
    ({'auto_cancel_pending_pipelines': 'disabled'}, 'auto_cancel_pending_pipelines'),
    ({'keep_latest_artifact': True}, 'keep_latest_artifact'), ({'build_git_strategy': 'none'}, 'build_git_strategy')])
def test_settings_of_a_project_that_minici_does_not_have_are_refused_by_name(api, project, change, name):
    before = api('GET', P).json
    assert name in api('PUT', P, 400, json=change).text
    assert api('GET', P).json == before


def test_settings_of_a_project_that_are_what_they_are_anyway_are_accepted(api, project):
    before = api('GET', P).json
    same = {name: before[name] for name in (
        'path', 'archived', 'jobs_enabled', 'public_jobs', 'ci_default_git_depth', 'topics', 'tag_list',
        'auto_cancel_pending_pipelines', 'ci_separated_caches', 'build_git_strategy')}
    assert api('PUT', P, json=same).json == before


@pytest.mark.parametrize('strategy', ['clone', 'fetch'])
def test_the_strategy_that_a_project_is_given_is_the_one_that_its_runners_are_told(ci, api, client, project, strategy):
    other = 'fetch' if strategy == 'clone' else 'clone'
    assert api('POST', f'{API}/projects', 201, json={'name': 'x', 'build_git_strategy': other}).json[
        'build_git_strategy'] == other
    assert api('PUT', P, json={'build_git_strategy': strategy}).json['build_git_strategy'] == strategy
    ci.create_pipeline(project, 'main', sha=SHA, content={'x': {'script': ['x']}})
    assert bool(Runner(ci).claim().job['allow_git_fetch']) == (strategy == 'fetch')


def test_a_namespace_is_given_in_the_path_of_a_project(api, project):
    number = api('GET', P).json['namespace']['id']
    answer = api('POST', f'{API}/projects', 400, json={'name': 'x', 'namespace_id': number}).json
    assert answer == {'error': 'namespace_id is not supported by minici: give the namespace in path'}


@pytest.mark.parametrize('job, only, excepted', [
    ({}, {'refs': ['branches', 'tags']}, None), ({'only': ['main']}, {'refs': ['main']}, None),
    ({'except': ['tags']}, {'refs': ['branches', 'tags']}, {'refs': ['tags']}),
    ({'only': {'variables': ['$A']}}, {'variables': ['$A']}, None), ({'rules': [{'if': '$A'}]}, None, None)])
def test_the_linter_tells_when_a_job_runs_as_gitlab_does(api, project, job, only, excepted):
    content = json.dumps({'test': {'script': ['make'], **job}})
    shown, = api('POST', f'{P}/ci/lint', json={'content': content, 'include_jobs': True}).json['jobs']
    assert (shown['only'], shown['except']) == (only, excepted)


def test_runners_are_found_by_the_beginning_of_their_version(ci, api):
    for version in ('15.4.0', '15.11.0', '16.0.0'):
        ci.register_runner(ci.registration_token, info={'version': version})
    assert ids(api('GET', f'{API}/runners?version_prefix=15.')) == [2, 1]
    assert ids(api('GET', f'{API}/runners/all?version_prefix=17')) == []


# -- variables

def test_a_variable_has_a_value_for_each_scope(ci, api, project, runner):
    for scope, value in (('*', 'all'), ('review/*', 'review'), ('review/one', 'one'), ('production', 'secret')):
        api('POST', f'{P}/variables', 201, json={'key': 'A', 'value': value, 'environment_scope': scope})
    api('POST', f'{P}/variables', 400, json={'key': 'A', 'value': 'x', 'environment_scope': 'production'})
    assert [item['environment_scope'] for item in api('GET', f'{P}/variables').json] == [
        '*', 'production', 'review/*', 'review/one']
    places = {'none': None, 'one': 'review/one', 'two': 'review/two', 'live': 'production', 'test': 'test'}
    content = {name: {'script': ['x'], **({'environment': place} if place else {})} for name, place in places.items()}
    ci.create_pipeline(project, 'main', sha=SHA, content=content)
    got = {}
    for _ in places:
        claim = runner.claim()
        got[claim.job['name']] = [row['value'] for row in claim.variables]
    assert got == {'none': ['all'], 'one': ['one'], 'two': ['review'], 'live': ['secret'], 'test': ['all']}


def test_a_variable_of_one_scope_is_named_by_a_filter(api, project):
    for scope in ('*', 'production'):
        api('POST', f'{P}/variables', 201, json={'key': 'A', 'value': scope, 'environment_scope': scope})
    assert 'filter[environment_scope]' in api('GET', f'{P}/variables/A', 409).text
    assert api('GET', f'{P}/variables/A?filter[environment_scope]=production').json['value'] == 'production'
    api('GET', f'{P}/variables/A?filter[environment_scope]=nowhere', 404)
    changed = api('PUT', f'{P}/variables/A?filter[environment_scope]=production', json={'value': 'x'}).json
    assert (changed['value'], changed['environment_scope']) == ('x', 'production')
    api('PUT', f'{P}/variables/A?filter[environment_scope]=production', 400,
        json={'value': 'x', 'environment_scope': '*'})
    moved = api('PUT', f'{P}/variables/A?filter[environment_scope]=production', json={'environment_scope': 'live'}).json
    assert moved['environment_scope'] == 'live'
    api('DELETE', f'{P}/variables/A?filter[environment_scope]=live', 204)
    assert api('GET', f'{P}/variables/A').json['environment_scope'] == '*'


@pytest.mark.parametrize('scope, environment, fits', [
    ('*', None, True), ('*', 'x', True),
    ('x', None, False), ('a*', None, False), ('a*', 'abc', True), ('*c', 'abc', True),
    ('a*c', 'abc', True), ('a*c', 'ac', True), ('ab*bc', 'abc', False), ('a**c', 'abc', True), ('*b*', 'abc', True),
    ('a*b*c', 'aXbYc', True), ('a*b*c', 'acb', False), ('abc', 'abc', True), ('abc', 'abcd', False), ('', 'x', False),
    ('a*' * 100, 'a' * 200, True), ('a*' * 100 + 'b', 'a' * 255, False)])
def test_stars_of_a_scope_stand_for_any_text(scope, environment, fits):
    assert minici.scope_fits(scope, environment) is fits


# -- lint

LINTED = 'a: {script: x, rules: [{if: "$NEVER"}]}\nb: {script: [y, z], tags: [t], needs: [], environment: {name: e}}\n'


def test_the_linter_lists_jobs_when_asked(api, project):
    answer = api('POST', f'{P}/ci/lint', json={'content': LINTED, 'include_jobs': True}).json
    assert [job['name'] for job in answer['jobs']] == ['a', 'b']
    assert answer['jobs'][1] == {
        'name': 'b', 'stage': 'test', 'before_script': [], 'script': ['y', 'z'], 'after_script': [], 'tag_list': ['t'],
        'only': {'refs': ['branches', 'tags']}, 'except': None, 'environment': 'e', 'when': 'on_success',
        'allow_failure': False, 'needs': []}
    dry = api('POST', f'{P}/ci/lint', json={'content': LINTED, 'include_jobs': True, 'dry_run': True}).json
    assert [job['name'] for job in dry['jobs']] == ['b']
    assert 'jobs' not in api('POST', f'{P}/ci/lint', json={'content': LINTED}).json


def test_a_dry_run_of_the_linter_wants_a_job(api, project):
    content = 'a: {script: x, rules: [{if: "$NEVER"}]}'
    assert api('POST', f'{P}/ci/lint', json={'content': content}).json['valid'] is True
    answer = api('POST', f'{P}/ci/lint', json={'content': content, 'dry_run': True, 'ref': 'main'}).json
    assert (answer['valid'], len(answer['errors'])) == (False, 1)
