"""The API around pipelines: lists and their filters, projects, lint, badge, who and what."""

import xml.etree.ElementTree

import pytest
import yaml
from support import PLAIN, SHA, TWO_STAGES, Client, Runner, archive, commit, git

import minici

P = '/api/v4/projects/1'
OTHER_SHA = 'f' * 40
FILE = 'test: {script: [make test]}\n'
WRONG_FILE = 'test: {scrip: [make test]}\nother: {stage: nowhere, script: [x]}\n'


@pytest.fixture
def call(client, token, project):
    """Send a request with a private token; return the answer."""
    return lambda method, path, status=200, **body: client.call(method, path, status=status, token=token, **body)


@pytest.fixture
def ids(call):
    """Return the numbers of the pipelines, or other things, that a list shows."""
    return lambda query, path=f'{P}/pipelines': [item['id'] for item in call('GET', f'{path}?{query}').json]


@pytest.fixture
def five(ci, clock, client, project):
    """Five pipelines, a minute apart: 1 success, 2 failed, 3 canceled, 4 running on a tag, 5 pending."""
    ann = ci.find_user(ci.create_private_token('ann'))
    runner = Runner(ci)
    made = []
    for ref, sha, source, user, tag in (('main', SHA, 'push', None, False), ('main', OTHER_SHA, 'api', ann, False),
                                        ('fix/one', SHA, 'push', None, False), ('v1.0', SHA, 'push', None, True),
                                        ('fix/one', SHA, 'trigger', ann, False)):
        content = {**PLAIN, 'workflow': {'name': f'Build {len(made) + 1}'}}
        made.append(ci.create_pipeline(project, ref, sha=sha, content=content, source=source, user=user, tag=tag))
        clock.advance(60)
        if len(made) == 3:
            ci.cancel_pipeline(made[-1])
        elif len(made) < 3:
            runner.run('success' if len(made) == 1 else 'failed')
        elif len(made) == 4:
            runner.claim()
    return made


def stored(ci):
    """Return the files of all traces and artifacts."""
    return [path for path in ci.data.rglob('*') if path.is_file() and path.parent.name != 'locks']


# -- pipelines

@pytest.mark.parametrize('query, expected', [
    ('', [5, 4, 3, 2, 1]), ('ref=main', [2, 1]), ('ref=fix%2Fone', [5, 3]), ('ref=gone', []),
    (f'sha={OTHER_SHA}', [2]), ('source=push', [4, 3, 1]), ('source=trigger', [5]), ('username=ann', [5, 2]),
    ('name=Build+4', [4]), ('ref=main&source=push', [1]),
    *((f'status={status}', [number]) for number, status in
      enumerate(('success', 'failed', 'canceled', 'running', 'pending'), 1)),
    ('status=manual', []), ('scope=running', [4]), ('scope=pending', [5]), ('scope=finished', [3, 2, 1]),
    ('scope=branches', [5, 2]), ('scope=tags', [4]), ('scope=finished&ref=main', [2, 1]),
])
def test_pipelines_are_filtered(five, ids, query, expected):
    assert ids(query) == expected


@pytest.mark.parametrize('query, expected', [
    ('created_after=2023-11-14T22:15:00Z', [5, 4, 3]), ('created_before=2023-11-14T22:15:00Z', [2, 1]),
    ('created_after=2023-11-14T23:15:00%2B01:00', [5, 4, 3]),
    ('updated_before=2023-11-14T22:15:00.000Z', [1]), ('updated_after=2023-11-14T22:17:00Z', [5, 4]),
    ('created_after=2023-11-14T22:14:00Z&created_before=2023-11-14T22:16:00Z', [3, 2]),
])
def test_pipelines_are_filtered_by_time_whatever_its_zone(five, ids, query, expected):
    assert ids(query) == expected


@pytest.mark.parametrize('query, expected', [
    ('sort=asc', [1, 2, 3, 4, 5]), ('order_by=id&sort=desc', [5, 4, 3, 2, 1]),
    ('order_by=status&sort=asc', [3, 2, 5, 4, 1]), ('order_by=ref&sort=asc', [3, 5, 1, 2, 4]),
    ('order_by=ref', [4, 2, 1, 5, 3]), ('order_by=updated_at&sort=asc', [1, 2, 3, 4, 5]),
])
def test_pipelines_are_sorted(five, ids, query, expected):
    assert ids(query) == expected


def test_changed_pipeline_comes_first_in_the_order_of_changes(ci, clock, five, ids):
    clock.advance(60)
    ci.retry_pipeline(five[0]), ci.retry_pipeline(five[1])
    assert ids('order_by=updated_at')[0] == 2


@pytest.mark.parametrize('query', ['order_by=colour', 'sort=sideways'])
def test_unknown_order_of_projects_is_refused(call, query):
    name = query.partition('=')[0]
    assert call('GET', f'/api/v4/projects?{query}', 400).json == {'error': f'{name} does not have a valid value'}


@pytest.mark.parametrize('name', ['scope', 'status', 'order_by', 'sort', 'created_after', 'updated_before'])
def test_unknown_value_of_a_filter_is_refused_by_name(call, name):
    answer = call('GET', f'{P}/pipelines?{name}=sideways', 400).json['error']
    assert answer in (f'{name} does not have a valid value', f'{name} is invalid')


def test_pipelines_come_in_pages_that_keep_their_filters(call, five):
    answer = call('GET', f'{P}/pipelines?scope=finished&per_page=2')
    assert [item['id'] for item in answer.json] == [3, 2]
    assert {name: answer.headers[name] for name in ('X-Total', 'X-Total-Pages', 'X-Page', 'X-Next-Page')} == {
        'X-Total': '3', 'X-Total-Pages': '2', 'X-Page': '1', 'X-Next-Page': '2'}
    following = next(part for part in answer.headers['Link'].split(', ') if 'rel="next"' in part)
    assert [item['id'] for item in call('GET', following[following.index('/api'):following.index('>')]).json] == [1]
    assert call('GET', f'{P}/pipelines?page=9').json == []


def test_pipeline_lists_show_the_documented_fields_and_a_page_of_its_own_more(call, five):
    listed = call('GET', f'{P}/pipelines?per_page=1').json[0]
    assert listed.keys() == {'id', 'iid', 'project_id', 'sha', 'ref', 'status', 'source', 'name', 'created_at',
                             'updated_at', 'web_url'}
    shown = call('GET', f'{P}/pipelines/5').json
    assert shown.items() >= listed.items()
    assert (shown['before_sha'], shown['tag'], shown['user']['username']) == ('0' * 40, False, 'ann')
    assert shown['detailed_status']['group'] == 'pending'


def test_pipelines_of_another_project_are_not_shown(ci, call, five):
    ci.create_project('other')
    assert call('GET', '/api/v4/projects/2/pipelines').json == []
    for path in ('', '/variables', '/bridges', '/jobs'):
        call('GET', f'/api/v4/projects/2/pipelines/1{path}', 404)
    for method, path in (('POST', '/cancel'), ('POST', '/retry'), ('DELETE', '')):
        call(method, f'/api/v4/projects/2/pipelines/1{path}', 404)


@pytest.mark.parametrize('query, expected', [('', 2), ('?ref=main', 2), ('?ref=fix/one', 5), ('?ref=v1.0', 4)])
def test_latest_pipeline_is_the_newest_of_the_ref_or_of_the_default_branch(call, five, query, expected):
    latest = call('GET', f'{P}/pipelines/latest{query}').json
    assert latest == call('GET', f'{P}/pipelines/{expected}').json


def test_latest_pipeline_of_a_ref_without_one_is_not_found(call, five):
    call('GET', f'{P}/pipelines/latest?ref=gone', 404)


@pytest.mark.parametrize('name, expected', [('main', 2), ('fix%2Fone', 5), ('v1.0', 4), (SHA, 5), (OTHER_SHA, 2)])
def test_commit_of_a_ref_or_sha_leads_to_its_newest_pipeline(call, five, name, expected):
    commit = call('GET', f'{P}/repository/commits/{name}').json
    last = call('GET', f'{P}/pipelines/{expected}').json
    assert (commit['id'], commit['status'], commit['project_id']) == (last['sha'], last['status'], 1)
    assert commit['last_pipeline'].items() <= last.items()


def test_commit_without_a_pipeline_is_not_found(ci, call, five):
    ci.create_project('other')
    assert call('GET', f'{P}/repository/commits/gone', 404).json == {'message': '404 Commit Not Found'}
    call('GET', '/api/v4/projects/2/repository/commits/main', 404)


def test_variables_of_a_pipeline_are_shown_with_their_types(ci, call, project):
    ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN, variables=[
        {'key': 'A', 'value': '1'}, {'key': 'B', 'value': 'text', 'variable_type': 'file'}])
    assert call('GET', f'{P}/pipelines/1/variables').json == [
        {'key': 'A', 'value': '1', 'variable_type': 'env_var', 'raw': False},
        {'key': 'B', 'value': 'text', 'variable_type': 'file', 'raw': False}]


def test_variables_of_a_pipeline_are_not_for_strangers(client, pipeline):
    client.call('GET', f'{P}/pipelines/1/variables', status=401)


def test_pipeline_has_no_bridges(call, pipeline):
    answer = call('GET', f'{P}/pipelines/1/bridges')
    assert (answer.json, answer.headers['X-Total']) == ([], '0')
    call('GET', f'{P}/pipelines/9/bridges', 404)


def test_deleted_pipeline_takes_its_jobs_traces_and_artifacts_along(ci, call, client, pipeline, job):
    ci.append_trace(job.job, 0, b'some text')
    client.call('POST', f'/api/v4/jobs/{job.job["id"]}/artifacts', headers={'JOB-TOKEN': job.token},
                files=[('file', 'a.zip', archive(out='fine'))], status=201)
    ci.update_job(job.job, 'success')
    assert len(stored(ci)) == 2
    assert call('DELETE', f'{P}/pipelines/1', 204).body == b''
    for path in ('pipelines/1', 'jobs/1', 'jobs/1/trace', 'jobs/1/artifacts'):
        call('GET', f'{P}/{path}', 404)
    assert stored(ci) == []
    call('DELETE', f'{P}/pipelines/1', 404)


def test_running_pipeline_that_is_deleted_tells_its_runner(call, client, job):
    call('DELETE', f'{P}/pipelines/1', 204)
    answer = client.call('PUT', '/api/v4/jobs/1', json={'token': job.token, 'state': 'success'})
    assert answer.status_int in (403, 404)


# -- projects

def test_project_is_edited_field_by_field(call):
    before = call('GET', P).json
    changes = {'name': 'Demo of it', 'default_branch': 'trunk', 'build_timeout': 600, 'shared_runners_enabled': False,
               'import_url': 'https://example.org/demo.git'}
    for name, value in changes.items():
        assert call('PUT', P, json={name: value}).json[name] == value
    after = call('GET', P).json
    assert {name for name in after if after[name] != before[name]} == {
        *changes, 'name_with_namespace', 'http_url_to_repo', 'ssh_url_to_repo'}


@pytest.mark.parametrize('wrong', [
    {'default_branch': '../main'}, {'default_branch': ''}, {'import_url': 'ext::sh -c id'}, {'build_timeout': 'soon'},
    {'build_timeout': 0}, {'build_timeout': -5}, {'shared_runners_enabled': 'perhaps'}])
def test_unusable_setting_of_a_project_is_refused_and_changes_nothing(call, wrong):
    before = call('GET', P).json
    call('PUT', P, 400, json=wrong)
    assert call('GET', P).json == before


def test_project_without_shared_runners_waits_for_its_own(ci, call, runner, pipeline):
    call('PUT', P, json={'shared_runners_enabled': False})
    assert runner.claim() is None
    own = Runner(ci, token=call('GET', P).json['runners_token'])
    assert own.claim().job['name'] == 'test'


def test_deleted_project_is_gone_with_all_it_held(ci, call, client, pipeline, job):
    ci.append_trace(job.job, 0, b'some text')
    assert call('DELETE', P, 202).json == {'message': '202 Accepted'}
    for path in ('', '/jobs', '/pipelines', '/jobs/1', '/variables', '/triggers'):
        call('GET', P + path, 404)
    assert stored(ci) == []
    client.call('PUT', '/api/v4/jobs/1', json={'token': job.token, 'state': 'success'}, status=403)
    assert ci.create_project('group/demo')['id'] != 1


@pytest.mark.parametrize('query, expected', [
    ('search=demo', [3, 1]), ('search=DEMO', [3, 1]), ('search=zzz', []), ('search=%25', []),
    ('search=group', []), ('search=group&search_namespaces=true', [2, 1]),
    ('', [3, 2, 1]), ('per_page=2', [3, 2]), ('per_page=2&page=2', [1]), ('membership=True&owned=true', [3, 2, 1]),
    ('order_by=path&sort=asc', [3, 1, 2]), ('order_by=name', [2, 1, 3]), ('sort=asc', [1, 2, 3]),
    ('order_by=last_activity_at&sort=desc', [3, 2, 1]), ('order_by=name&per_page=1&page=3', [3])])
def test_projects_are_searched_and_come_newest_first_or_as_asked(ci, ids, call, query, expected):
    ci.create_project('group/other')
    ci.create_project('Demo-two')
    assert ids(query, '/api/v4/projects') == expected


def test_list_of_projects_shows_no_tokens(call):
    listed = call('GET', '/api/v4/projects').json[0]
    assert listed['path_with_namespace'] == 'group/demo'
    assert not {'runners_token', 'webhook_token'} & listed.keys()


@pytest.mark.parametrize('method, path', [
    ('GET', '/api/v4/projects'), ('GET', P), ('PUT', P), ('DELETE', P), ('GET', f'{P}/pipelines'),
    ('GET', f'{P}/pipelines/latest'), ('DELETE', f'{P}/pipelines/1'), ('GET', f'{P}/jobs'), ('POST', '/api/v4/ci/lint'),
    ('GET', f'{P}/repository/commits/main'), ('GET', f'{P}/ci/lint'), ('GET', f'{P}/badges/main/pipeline.svg'),
    ('GET', '/api/v4/user'), ('GET', '/api/v4/version')])
def test_nothing_here_is_for_strangers(client, pipeline, method, path):
    client.call(method, path, status=401)


# -- jobs of a project

def test_jobs_of_a_project_are_listed_newest_first_across_its_pipelines(ci, call, project):
    for ref in ('main', 'other'):
        ci.create_pipeline(project, ref, sha=SHA, content=TWO_STAGES)
    ci.create_pipeline(ci.create_project('other'), 'main', sha=SHA, content=PLAIN)
    answer = call('GET', f'{P}/jobs')
    assert [(job['id'], job['name'], job['ref'], job['pipeline']['id']) for job in answer.json] == [
        (4, 'check', 'other', 2), (3, 'compile', 'other', 2), (2, 'check', 'main', 1), (1, 'compile', 'main', 1)]


@pytest.mark.parametrize('query, expected', [
    ('scope=pending', [3]), ('scope[]=pending&scope[]=running', [3, 1]), ('scope=success', []),
    ('scope=created&per_page=1', [4])])
def test_jobs_of_a_project_are_filtered_by_scope(ci, call, ids, project, runner, query, expected):
    for ref in ('main', 'other'):
        ci.create_pipeline(project, ref, sha=SHA, content=TWO_STAGES)
    runner.claim()
    assert ids(query, f'{P}/jobs') == expected


# -- lint

def lint_in_project(call, project, content):
    return call('POST', f'{P}/ci/lint', json={'content': content}).json


def lint_alone(call, project, content):
    return call('POST', '/api/v4/ci/lint', json={'content': content}).json


LINTS = pytest.mark.parametrize('lint', [lint_in_project, lint_alone])


@LINTS
def test_lint_accepts_a_good_file(ci, call, project, lint):
    answer = lint(call, project, FILE)
    assert (answer['valid'], answer['status'], answer['errors'], answer['warnings']) == (True, 'valid', [], [])
    assert ci.list_pipelines(project)[1] == 0


@LINTS
def test_lint_names_all_that_is_wrong_and_its_line(call, project, lint):
    answer = lint(call, project, WRONG_FILE)
    assert (answer['valid'], answer['status']) == (False, 'invalid')
    text = '\n'.join(answer['errors'])
    assert len(answer['errors']) >= 2
    for word in ('test:scrip ', 'other:stage ', ':1:', ':2:'):
        assert word in text


@LINTS
@pytest.mark.parametrize('content', ['', ' ', 'a: [', '- a\n- b\n', 'just text', '\t', 'stages: [a]\n'])
def test_lint_finds_no_pipeline_in_what_is_none(client, token, project, lint, content):
    path = '/api/v4/ci/lint' if lint is lint_alone else f'{P}/ci/lint'
    answer = client.call('POST', path, token=token, json={'content': content})
    assert answer.status_int == 400 or answer.json['valid'] is False


@pytest.mark.parametrize('content', [1, True, 1.5, [], ['test']])
def test_lint_wants_the_text_of_a_file_or_a_mapping(call, content):
    refused = call('POST', '/api/v4/ci/lint', json={'content': content}, status=400).json
    assert 'content is' in refused['error']


def test_lint_takes_inputs_and_tells_warnings(call):
    content = 'spec: {inputs: {name: {}}}\n---\n"$[[ inputs.name ]]": {script: make, script: make it}'
    answer = call('POST', '/api/v4/ci/lint', json={'content': content, 'inputs': {'name': 'mine'}}).json
    assert answer['valid'] is True
    assert answer['warnings'] == [
        '.gitlab-ci.yml:3:24: script stands here and in line 3: the earlier one has no effect']


@pytest.mark.parametrize('path', ['/api/v4/ci/lint', f'{P}/ci/lint'])
def test_lint_needs_content(call, path):
    assert call('POST', path, 400, json={}).json == {'error': 'content is missing'}


@pytest.fixture
def with_repository(ci, project, tmp_path):
    """The project with a repository whose file includes another one; on the branch `broken` it is wrong."""
    directory = tmp_path / 'repository'
    commit(directory, **{'part.yml': 'included: {script: [x]}\n', '.gitlab-ci.yml': f'include: [part.yml]\n{FILE}'})
    git(directory, 'checkout', '--quiet', '-b', 'broken')
    commit(directory, **{'.gitlab-ci.yml': WRONG_FILE})
    return ci.edit_project(project, import_url=directory.as_uri())


def test_lint_reads_the_file_of_the_default_branch_or_of_a_named_one(call, with_repository):
    assert call('GET', f'{P}/ci/lint').json['valid'] is True
    for query in ('content_ref=broken', 'ref=broken'):
        answer = call('GET', f'{P}/ci/lint?{query}').json
        assert answer['valid'] is False
        assert 'scrip' in '\n'.join(answer['errors'])
    gone = call('GET', f'{P}/ci/lint?content_ref=gone').json
    assert (gone['valid'], gone['errors']) == (False, ['Reference not found'])


def test_lint_in_a_project_looks_up_what_the_file_includes(call, with_repository):
    assert lint_in_project(call, None, 'include: [part.yml]\n')['valid'] is True
    answer = lint_in_project(call, None, f'include: [gone.yml]\n{FILE}')
    assert 'gone.yml' in '\n'.join(answer['errors'])


def test_lint_shows_the_file_with_all_that_it_is_made_of(call, with_repository):
    answer = lint_in_project(call, None, '''
        include: [part.yml]
        .base: {script: [x], tags: [größe]}
        test: {extends: .base, script: [!reference [included, script], y]}
        ''')
    assert answer['merged_yaml'].startswith('---\n')
    assert 'größe' in answer['merged_yaml']
    assert yaml.safe_load(answer['merged_yaml']) == {
        'included': {'script': ['x']}, '.base': {'script': ['x'], 'tags': ['größe']},
        'test': {'script': [['x'], 'y'], 'tags': ['größe']}}
    assert lint_in_project(call, None, WRONG_FILE)['merged_yaml'] is None


def test_lint_of_an_empty_text_says_what_it_lacks(ci, with_repository):
    with pytest.raises(minici.BadRequest, match='must be a mapping'):
        ci.lint(with_repository, '')


def test_lint_of_a_project_without_a_repository_says_so(call):
    answer = call('GET', f'{P}/ci/lint').json
    assert answer['valid'] is False
    assert 'import_url' in answer['errors'][0]


# -- the badge

@pytest.mark.parametrize('ref, text', [
    ('main', 'failed'), ('v1.0', 'running'), ('fix/one', 'pending'), ('fix%2Fone', 'pending'), ('gone', 'unknown')])
def test_badge_shows_the_newest_pipeline_of_a_ref(call, five, ref, text):
    answer = call('GET', f'{P}/badges/{ref}/pipeline.svg')
    assert answer.headers['Content-Type'].partition(';')[0] == 'image/svg+xml'
    assert 'no-cache' in answer.headers['Cache-Control']
    root = xml.etree.ElementTree.fromstring(answer.body)
    assert [element.text for element in root.iter('{http://www.w3.org/2000/svg}text')] == ['pipeline', text]


def test_badge_of_a_success_says_passed(ci, call, pipeline, runner):
    runner.run()
    assert b'>passed<' in call('GET', f'{P}/badges/main/pipeline.svg').body


def test_badge_is_open_to_all_with_the_setting_public(tmp_path):
    with minici.Coordinator(tmp_path / 'ci.sqlite', fsync=False, public=True) as ci:
        ci.create_project('group/demo')
        path = '/api/v4/projects/group%2Fdemo/badges/main/pipeline.svg'
        assert b'>unknown<' in Client(ci).call('GET', path, status=200).body


# -- who and what

@pytest.mark.parametrize('path', ['/api/v4/version', '/api/v4/metadata'])
def test_version_is_gitlabs_and_the_revision_minicis(call, path):
    answer = call('GET', path).json
    assert answer['version'].count('.') == 2
    assert answer['revision'] == f'minici-{minici.__version__}'


def test_user_is_the_owner_of_the_token(ci, client):
    shown = client.call('GET', '/api/v4/user', token=ci.create_private_token('ann', 'read_api'), status=200).json
    assert (shown['username'], shown['state']) == ('ann', 'active')
    bearer = {'Authorization': f'Bearer {ci.create_private_token("bob")}'}
    assert client.call('GET', '/api/v4/user', headers=bearer, status=200).json['username'] == 'bob'
