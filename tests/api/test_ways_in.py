"""Trigger tokens, variables, webhooks of the three kinds of forge, and a push with the example hook."""

import hashlib
import hmac
import json
import shutil
import urllib.parse

import pytest
from support import EXAMPLES, SHA, Origin, commit, git, load

import minici

ZEROS = '0' * 40
CONTENT = json.dumps({'test': {'script': ['make test']}})
P = '/api/v4/projects/1'
FILE = """
always: {script: [cat notes.txt]}
documented: {script: [ls docs], rules: [{changes: [docs/*]}]}
"""


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    """A repository with a pipeline file on `main`, which no test changes."""
    directory = tmp_path_factory.mktemp('original')
    commit(directory, **{'.gitlab-ci.yml': FILE, 'notes.txt': 'first\n', 'docs__a.txt': 'a\n'})
    return directory


@pytest.fixture
def copy(original, tmp_path):
    """A working copy of it."""
    return shutil.copytree(original, tmp_path / 'copy')


@pytest.fixture
def call(client, token, project):
    """Send a request with a private token."""
    return lambda method, path, status, **body: client.call(method, path, status=status, token=token, **body)


@pytest.fixture
def trigger(call):
    """A trigger of the project."""
    return call('POST', f'{P}/triggers', 201, json={'description': 'nightly'}).json


def given(ci, pipeline_id):
    """Return the variables that a pipeline was made with."""
    return {item['key']: item['value'] for item in json.loads(ci.find_pipeline(pipeline_id)['variables'])}


def received(client, runner):
    """Return the variables of the next job as its runner gets them, by name."""
    payload = client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=201).json
    return {item['key']: item for item in payload['variables']}


# -- triggers

def test_trigger_is_made_listed_shown_renamed_and_removed(call, clock, trigger):
    assert (trigger['description'], trigger['last_used'], trigger['expires_at']) == ('nightly', None, None)
    assert trigger['owner']['username'] == 'root'
    listed = call('GET', f'{P}/triggers', 200)
    assert (listed.json, listed.headers['X-Total']) == ([trigger], '1')
    path = f'{P}/triggers/{trigger["id"]}'
    assert call('GET', path, 200).json == trigger
    clock.advance(60)
    renamed = call('PUT', path, 200, json={'description': 'hourly'}).json
    assert (renamed['description'], renamed['token']) == ('hourly', trigger['token'])
    assert renamed['updated_at'] > trigger['updated_at']
    assert call('DELETE', path, 204).body == b''
    for method in ('GET', 'PUT', 'DELETE'):
        call(method, path, 404, json={'description': 'x'})
    assert call('GET', f'{P}/triggers', 200).json == []


def test_list_of_triggers_is_paged(call, trigger):
    for number in range(2):
        call('POST', f'{P}/triggers', 201, json={'description': f'trigger {number}'})
    pages = [call('GET', f'{P}/triggers?per_page=2&page={number}', 200) for number in (1, 2)]
    assert [[item['id'] for item in page.json] for page in pages] == [[1, 2], [3]]


def test_trigger_needs_a_description_and_a_private_token(client, call):
    assert call('POST', f'{P}/triggers', 400, json={}).json == {'error': 'description is missing'}
    for method in ('GET', 'POST'):
        client.call(method, f'{P}/triggers', status=401, json={'description': 'x'})


def test_a_triggers_token_is_whole_for_its_owner_alone(ci, client, trigger):
    for stranger in (ci.create_private_token('ann'), ci.create_private_token('root', 'read_api')):
        shown = client.call('GET', f'{P}/triggers', token=stranger, status=200).json[0]
        assert shown['token'] == trigger['token'][:4]


@pytest.fixture
def origin(ci, trigger, tmp_path):
    """The repository of the project, whose pipeline file is what triggers start."""
    made = Origin(tmp_path / 'triggered')
    made.commit(json.dumps(CONTENT) if isinstance(CONTENT, dict) else CONTENT)
    ci.edit_project(ci.find_project(1), import_url=made.url)
    return made


@pytest.mark.parametrize('path, body', [
    ('/trigger/pipeline', {'ref': 'main'}),
    ('/ref/main/trigger/pipeline', {}),
    ('/ref/main/trigger/pipeline', {'ref': 'other'}),
])
def test_trigger_token_makes_a_pipeline_without_a_private_token(ci, clock, client, trigger, origin, path, body):
    body = {'token': trigger['token'], **body}
    made = client.call('POST', P + path, json=body, status=201).json
    assert (made['ref'], made['source'], made['sha'], made['status']) == (
        'main', 'trigger', origin.git('rev-parse', 'HEAD'), 'pending')
    assert made['user']['username'] == 'root'
    used = ci.find_trigger(ci.find_project(1), trigger['id'])['last_used']
    assert used == clock.now


@pytest.mark.parametrize('ref', ['fix/one', 'v1.2.3', 'release-1.0.json'])
def test_ref_in_the_path_of_a_trigger_may_have_slashes_and_dots(client, trigger, origin, ref):
    origin.git('branch', ref)
    path = f'{P}/ref/{urllib.parse.quote(ref, safe="")}/trigger/pipeline'
    body = {'token': trigger['token']}
    assert client.call('POST', path, json=body, status=201).json['ref'] == ref


def test_variables_of_a_trigger_come_as_json_form_multipart_and_query(ci, client, trigger, origin):
    fields = {'token': trigger['token'], 'ref': 'main'}
    two = {'variables[A]': '1', 'variables[B]': 'x y&z'}
    flat = {**fields, **two}
    urlencoded = {'data': urllib.parse.urlencode(flat).encode(),
                  'headers': {'Content-Type': 'application/x-www-form-urlencoded'}}
    for path, body in (('', {'json': {**fields, 'variables': {'A': '1', 'B': 'x y&z'}}}), ('', urlencoded),
                       ('', {'form': flat}), (f'?{urllib.parse.urlencode(flat)}', {}),
                       (f'?{urllib.parse.urlencode(fields)}', {'form': two})):
        made = client.call('POST', f'{P}/trigger/pipeline{path}', status=201, **body).json
        found = given(ci, made['id'])
        assert (found['A'], found['B']) == ('1', 'x y&z')


def test_variables_of_a_trigger_reach_the_job_privately_and_its_rules(client, runner, trigger, origin):
    content = {'deploy': {'script': ['x'], 'rules': [{'if': '$TARGET == "live" && $CI_PIPELINE_SOURCE == "trigger"'}]},
               'never': {'script': ['x'], 'rules': [{'if': '$TARGET == "test"'}]}}
    origin.commit(json.dumps(content))
    body = {'token': trigger['token'], 'ref': 'main'}
    client.call('POST', f'{P}/trigger/pipeline', json={**body, 'variables': {'TARGET': 'live'}}, status=201)
    variables = received(client, runner)
    assert variables['TARGET'] == {'key': 'TARGET', 'value': 'live', 'public': False, 'masked': False}
    assert (variables['CI_JOB_NAME']['value'], variables['CI_PIPELINE_TRIGGERED']['value']) == ('deploy', 'true')


def test_payload_of_a_trigger_is_a_file_that_nobody_expands_and_holds_no_token(client, runner, trigger, origin):
    body = {'token': trigger['token'], 'ref': 'main', 'title': 'costs $HOME or ${CI'}
    client.call('POST', f'{P}/trigger/pipeline', json=body, status=201)
    variable = received(client, runner)['TRIGGER_PAYLOAD']
    payload = json.loads(variable['value'])
    assert (payload['title'], payload['ref']) == ('costs $HOME or ${CI', 'main')
    assert trigger['token'] not in variable['value']
    assert (variable['file'], variable['public'], variable.get('raw')) == (True, False, True)


def test_trigger_refuses_with_the_texts_that_clients_know(ci, client, call, trigger, origin):
    ci.create_project('other')
    known = {'token': trigger['token'], 'ref': 'main'}
    for project, change, status, says in (
            (1, {'token': None}, 400, {'error': 'token is missing'}),
            (1, {'ref': None}, 400, {'error': 'ref is missing'}),
            (1, {'token': 'wrong'}, 404, {'message': '404 Not Found'}),
            (2, {}, 404, {'message': '404 Not Found'}),
            (9, {}, 404, {'message': '404 Project Not Found'}),
            (1, {'variables': 'A=1'}, 400, {'error': 'variables is invalid'}),
            (1, {'variables': [{'key': 'A', 'value': '1'}]}, 400, {'error': 'variables is invalid'})):
        answer = client.call('POST', f'/api/v4/projects/{project}/trigger/pipeline', json={**known, **change})
        assert (answer.status_int, answer.json) == (status, says)
    answer = client.call('POST', f'{P}/trigger/pipeline', json={**known, 'variables': {'A': 1}}, status=400)
    assert 'variables needs to be a map of key-valued strings' in answer.json['message']
    call('DELETE', f'{P}/triggers/{trigger["id"]}', 204)
    client.call('POST', f'{P}/trigger/pipeline', json=known, status=404)
    assert ci.list_pipelines(ci.find_project(1))[1] == 0


def test_trigger_of_an_unknown_ref_says_so(ci, client, copy, trigger):
    ci.edit_project(ci.find_project(1), import_url=copy.as_uri())
    answer = client.call('POST', f'{P}/trigger/pipeline', json={'token': trigger['token'], 'ref': 'gone'}, status=400)
    assert answer.json == {'message': {'base': ['Reference not found']}}


def test_a_pipeline_hook_does_not_trigger_a_pipeline_again(ci, client, trigger, origin):
    body = {'token': trigger['token'], 'ref': 'main'}
    for path in ('/trigger/pipeline', '/ref/main/trigger/pipeline'):
        client.call('POST', P + path, json=body, headers={'X-Gitlab-Event': 'Pipeline Hook'}, status=403)
    assert ci.list_pipelines(ci.find_project(1))[1] == 0
    client.call('POST', f'{P}/trigger/pipeline', json=body, headers={'X-Gitlab-Event': 'Push Hook'}, status=201)


def test_trigger_of_2016_makes_a_pipeline_with_variables(ci, client, trigger, origin):
    origin.git('branch', 'fix/one')
    body = {'token': trigger['token'], 'variables[A]': '1'}
    made = client.call('POST', '/ci/api/v1/projects/1/refs/fix/one/trigger', form=body, status=201).json
    assert made['variables'] == {'A': '1'}
    pipeline = ci.find_pipeline(1)
    assert (pipeline['ref'], pipeline['source'], given(ci, 1)['A']) == ('fix/one', 'trigger', '1')
    del body['variables[A]']
    made = client.call('POST', '/ci/api/v1/projects/1/refs/main/trigger', form=body, status=201).json
    assert made['variables'] is None
    client.call('POST', '/ci/api/v1/projects/1/refs/main/trigger', form={'sha': SHA}, status=400)
    client.call('POST', '/ci/api/v1/projects/1/refs/main/trigger', form={'token': 'wrong'}, status=404)


# -- variables

SCOPES = pytest.mark.parametrize('scope', [f'{P}/variables', '/api/v4/admin/ci/variables'], ids=['project', 'instance'])


@SCOPES
def test_variable_is_made_listed_shown_changed_and_removed(call, scope):
    made = call('POST', scope, 201, json={'key': 'GREETING', 'value': 'hello', 'description': 'says it'}).json
    assert {'key': 'GREETING', 'value': 'hello', 'variable_type': 'env_var', 'masked': False, 'protected': False,
            'raw': False, 'description': 'says it'}.items() <= made.items()
    call('POST', scope, 201, form={'key': 'A', 'value': ''})
    listed = call('GET', f'{scope}?per_page=1&page=2', 200)
    assert (listed.json, listed.headers['X-Total']) == ([made], '2')
    assert call('GET', f'{scope}/GREETING', 200).json == made
    changed = call('PUT', f'{scope}/GREETING', 200, json={'value': 'hi', 'raw': True}).json
    assert changed == {**made, 'value': 'hi', 'raw': True}
    assert call('PUT', f'{scope}/GREETING', 200, json={'protected': True}).json == {**changed, 'protected': True}
    call('DELETE', f'{scope}/GREETING', 204)
    for method in ('GET', 'PUT', 'DELETE'):
        assert call(method, f'{scope}/GREETING', 404).json == {'message': '404 Variable Not Found'}


@SCOPES
def test_a_variable_that_shall_be_masked_and_hidden_is_at_least_masked(call, scope):
    made = {'key': 'KEY', 'value': 'x' * 20, 'masked_and_hidden': True}
    assert call('POST', scope, 201, json=made).json['masked'] is True
    assert call('PUT', f'{scope}/KEY', 200, json={'value': 'y' * 20}).json['masked'] is True


@SCOPES
def test_variables_are_for_private_tokens_of_scope_api(ci, client, scope):
    reader = ci.create_private_token(scope='read_api')
    client.call('GET', scope, status=401)
    client.call('POST', scope, token=reader, json={'key': 'A', 'value': '1'}, status=403)


@SCOPES
@pytest.mark.parametrize('wrong, field', [
    ({'key': 'A-B'}, 'key'), ({'key': 'A' * 256}, 'key'), ({'masked': True, 'value': 'short'}, 'value'),
    ({'masked': True, 'value': 'two words of it'}, 'value'),
    ({'masked': True, 'value': 'line one\nline two'}, 'value')])
def test_unusable_variable_is_refused_by_its_field(ci, call, scope, wrong, field):
    answer = call('POST', scope, 400, json={'key': 'A', 'value': 'x' * 20, **wrong})
    assert list(answer.json['message']) == [field]
    assert ci.list_variables(None) == ci.list_variables(ci.find_project(1)) == []


@SCOPES
def test_variable_needs_a_key_and_a_value_and_a_known_type(call, scope):
    assert call('POST', scope, 400, json={'value': '1'}).json == {'error': 'key is missing'}
    assert call('POST', scope, 400, json={'key': 'A'}).json == {'error': 'value is missing'}
    wrong = {'key': 'A', 'value': '1', 'variable_type': 'secret'}
    assert call('POST', scope, 400, json=wrong).json == {'error': 'variable_type does not have a valid value'}


@SCOPES
def test_a_variable_for_one_environment_stands_beside_the_one_for_all(call, scope):
    for place in ('*', 'production'):
        call('POST', scope, 201, json={'key': 'A', 'value': place, 'environment_scope': place})
    assert call('GET', f'{scope}/A?filter[environment_scope]=production', 200).json['value'] == 'production'


@SCOPES
def test_second_variable_of_a_name_is_refused_and_the_first_stays(call, scope):
    call('POST', scope, 201, json={'key': 'A', 'value': '1'})
    answer = call('POST', scope, 400, json={'key': 'A', 'value': '2'})
    assert answer.json == {'message': {'key': ['(A) has already been taken']}}
    assert call('GET', f'{scope}/A', 200).json['value'] == '1'


def test_job_gets_masked_file_and_raw_variables_as_such(ci, call, client, project, runner):
    for name, more in (('SECRET', {'masked': True}), ('KEY', {'variable_type': 'file'}), ('PRICE', {'raw': True})):
        call('POST', f'{P}/variables', 201, json={'key': name, 'value': 'costs$5-each', **more})
    ci.create_pipeline(project, 'main', sha=SHA, content=CONTENT)
    variables = received(client, runner)
    plain = {'value': 'costs$5-each', 'public': False, 'masked': False}
    assert variables['SECRET'] == {**plain, 'key': 'SECRET', 'masked': True}
    assert variables['KEY'] == {**plain, 'key': 'KEY', 'file': True}
    assert variables['PRICE'] == {**plain, 'key': 'PRICE', 'raw': True}


@pytest.mark.parametrize('ref, tag, trusted', [('main', False, True), ('feature', False, False), ('main', True, False)])
def test_protected_variables_are_for_the_default_branch_alone(ci, call, client, project, runner, ref, tag, trusted):
    for scope, name in ((f'{P}/variables', 'DEPLOY_KEY'), ('/api/v4/admin/ci/variables', 'SIGNING_KEY')):
        call('POST', scope, 201, json={'key': name, 'value': 'x', 'protected': True})
    call('POST', f'{P}/variables', 201, json={'key': 'OPEN', 'value': 'x'})
    content = {'always': {'script': ['x']}, 'deploy': {'script': ['x'], 'rules': [{'if': '$DEPLOY_KEY'}]}}
    pipeline = ci.create_pipeline(project, ref, tag=tag, sha=SHA, content=content)
    variables = received(client, runner)
    assert variables['OPEN']['value'] == 'x'
    assert variables['CI_COMMIT_REF_PROTECTED']['value'] == str(trusted).lower()
    assert ('DEPLOY_KEY' in variables, 'SIGNING_KEY' in variables) == (trusted, trusted)
    assert ('deploy' in [job['name'] for job in ci.list_jobs(pipeline=pipeline)]) is trusted


def test_pipeline_beats_project_beats_instance_beats_file(ci, call, client, project, runner):
    names = ('FILE', 'INSTANCE', 'PROJECT', 'PIPELINE')
    values = {name: names[start] for start in range(4) for name in names[start:]}
    content = {'test': {'script': ['x'], 'variables': dict.fromkeys(names, 'FILE')}}
    for start, scope in ((1, '/api/v4/admin/ci/variables'), (2, f'{P}/variables')):
        for name in names[start:]:
            call('POST', scope, 201, json={'key': name, 'value': names[start]})
    ci.create_pipeline(project, 'main', sha=SHA, content=content, variables=[{'key': 'PIPELINE', 'value': 'PIPELINE'}])
    variables = received(client, runner)
    assert {name: variables[name]['value'] for name in names} == values == {name: name for name in names}


def test_variables_of_a_project_are_not_those_of_another_and_go_with_it(ci, call, client, project, runner):
    call('POST', f'{P}/variables', 201, json={'key': 'MINE', 'value': '1'})
    other = ci.create_project('other')
    ci.create_pipeline(other, 'main', sha=SHA, content=CONTENT)
    assert 'MINE' not in received(client, runner)
    call('DELETE', P, 202)
    assert ci.list_variables(project) == []


# -- webhooks: the payloads are those of the forges' documentation, cut to what surrounds the facts

def gitlab_push(ref, before, after):
    kind = 'push' if ref.startswith('refs/heads/') else 'tag_push'
    return {'object_kind': kind, 'event_name': kind, 'before': before, 'after': after, 'ref': ref,
            'checkout_sha': after if after != ZEROS else None, 'user_id': 4, 'user_name': 'John Smith',
            'user_username': 'jsmith', 'project_id': 15, 'total_commits_count': 1,
            'project': {'id': 15, 'name': 'Diaspora', 'path_with_namespace': 'mike/diaspora', 'default_branch': 'main'},
            'commits': [{'id': after, 'message': 'Update', 'added': ['CHANGELOG'], 'modified': [], 'removed': []}]}


def gitea_push(ref, before, after):
    return {'ref': ref, 'before': before, 'after': after, 'total_commits': 1,
            'compare_url': 'http://localhost:3000/gitea/webhooks/compare/a...b',
            'commits': [{'id': after, 'message': 'Webhooks Yay!', 'author': {'name': 'Gitea', 'username': 'gitea'}}],
            'repository': {'id': 140, 'name': 'webhooks', 'full_name': 'gitea/webhooks', 'default_branch': 'main'},
            'pusher': {'id': 1, 'login': 'gitea'}, 'sender': {'id': 1, 'login': 'gitea'}}


def github_push(ref, before, after):
    return {'ref': ref, 'before': before, 'after': after, 'created': before == ZEROS, 'deleted': after == ZEROS,
            'forced': False, 'base_ref': None, 'compare': 'https://github.com/Codertocat/Hello-World/compare/a...b',
            'commits': [], 'head_commit': None, 'repository': {'id': 186853002, 'full_name': 'Codertocat/Hello-World'},
            'pusher': {'name': 'Codertocat'}, 'sender': {'login': 'Codertocat', 'id': 21031067}}


def gitlab_headers(secret, body, event='Push Hook'):
    return {'X-Gitlab-Event': event, 'X-Gitlab-Token': secret, 'X-Gitlab-Instance': 'https://gitlab.com'}


def gitea_headers(secret, body, event='push'):
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {**{f'X-{name}-Event': event for name in ('Gitea', 'Gogs', 'GitHub')}, 'X-Gitea-Signature': digest,
            'X-Gogs-Signature': digest, 'X-Hub-Signature-256': f'sha256={digest}'}


def forgejo_headers(secret, body, event='push'):
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {'X-Forgejo-Event': event, 'X-Forgejo-Signature': digest}


def github_headers(secret, body, event='push'):
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {'X-GitHub-Event': event, 'X-GitHub-Delivery': '72d3162e', 'X-Hub-Signature-256': f'sha256={digest}'}


FORGES = {'gitlab': (gitlab_push, gitlab_headers), 'gitea': (gitea_push, gitea_headers),
          'forgejo': (gitea_push, forgejo_headers), 'github': (github_push, github_headers)}
EACH_FORGE = pytest.mark.parametrize('forge', FORGES)


@pytest.fixture
def hook(ci, client, project, copy):
    """Send a webhook of a forge about the project's repository; return the answer."""
    ci.edit_project(project, import_url=copy.as_uri())
    right = project['webhook_token']

    def send(forge, *facts, status, secret=right, where='1', event=None, body=None):
        payload, headers = FORGES[forge]
        body = json.dumps(payload(*facts) if body is None else body).encode()
        sent = {'Content-Type': 'application/json', **headers(secret, body, **({'event': event} if event else {}))}
        return client.call('POST', f'/hooks/{where}', data=body, headers=sent, status=status).json
    return send


def names(ci, pipeline):
    """Return the names of a pipeline's jobs."""
    return sorted(job['name'] for job in ci.list_jobs(pipeline=ci.find_pipeline(pipeline['id'])))


@pytest.mark.parametrize('forge, where', [
    ('gitlab', '1'), ('gitea', 'group/demo'), ('forgejo', 'group%2Fdemo'), ('github', '1')])
def test_pushed_branch_becomes_a_pipeline_of_its_commit(ci, copy, hook, forge, where):
    before = git(copy, 'rev-parse', 'HEAD')
    after = commit(copy, **{'notes.txt': 'second\n'})
    made = hook(forge, 'refs/heads/main', before, after, status=201, where=where)
    assert (made['ref'], made['tag'], made['sha'], made['before_sha']) == ('main', False, after, before)
    assert made['source'] == 'push'
    assert names(ci, made) == ['always']


@EACH_FORGE
def test_rules_on_changes_look_at_all_commits_of_a_push(ci, copy, hook, forge):
    before = git(copy, 'rev-parse', 'HEAD')
    commit(copy, docs__b='b\n')
    after = commit(copy, **{'notes.txt': 'third\n'})
    made = hook(forge, 'refs/heads/main', before, after, status=201)
    assert names(ci, made) == ['always', 'documented']


@EACH_FORGE
def test_new_branch_with_a_slash_becomes_a_pipeline(copy, hook, forge):
    git(copy, 'checkout', '--quiet', '-b', 'feature/x')
    after = commit(copy, **{'notes.txt': 'other\n'})
    made = hook(forge, 'refs/heads/feature/x', ZEROS, after, status=201)
    assert (made['ref'], made['sha'], made['before_sha']) == ('feature/x', after, ZEROS)


@EACH_FORGE
@pytest.mark.parametrize('annotated', [False, True])
def test_pushed_tag_becomes_a_pipeline_of_the_commit_it_stands_for(copy, hook, forge, annotated):
    git(copy, 'tag', 'v1.0', *(['--annotate', '--message', 'One'] if annotated else []))
    after, sha = git(copy, 'rev-parse', 'v1.0'), git(copy, 'rev-parse', 'HEAD')
    assert (after != sha) is annotated
    event = {'gitlab': 'Tag Push Hook'}.get(forge)
    made = hook(forge, 'refs/tags/v1.0', ZEROS, after, status=201, event=event)
    assert (made['ref'], made['tag'], made['sha']) == ('v1.0', True, sha)


@EACH_FORGE
@pytest.mark.parametrize('ref', ['refs/heads/main', 'refs/tags/v1.0'])
def test_removed_branch_or_tag_makes_no_pipeline(ci, copy, hook, forge, ref):
    event = 'Tag Push Hook' if forge == 'gitlab' and 'tags' in ref else None
    assert 'removed' in hook(forge, ref, git(copy, 'rev-parse', 'HEAD'), ZEROS, status=200, event=event)['message']
    assert ci.list_pipelines(ci.find_project(1))[1] == 0


@pytest.mark.parametrize('forge, event', [
    ('github', 'ping'), ('github', 'issues'), ('gitea', 'create'), ('forgejo', 'release'), ('gitlab', 'Job Hook'),
    ('gitlab', 'Pipeline Hook')])
def test_ping_and_other_events_are_accepted_and_make_no_pipeline(ci, hook, forge, event):
    answer = hook(forge, status=200, event=event, body={'zen': 'Keep it logically awesome.', 'hook_id': 30})
    assert event.lower() in answer['message'].lower()
    assert ci.list_pipelines(ci.find_project(1))[1] == 0


@EACH_FORGE
@pytest.mark.parametrize('secret', ['', 'wrong'])
def test_webhook_with_a_wrong_secret_or_signature_is_forbidden(ci, copy, hook, forge, secret):
    sha = git(copy, 'rev-parse', 'HEAD')
    hook(forge, 'refs/heads/main', ZEROS, sha, status=403, secret=secret)
    assert ci.list_pipelines(ci.find_project(1))[1] == 0


@pytest.mark.parametrize('header', ['X-Gitlab-Event', 'X-Gitea-Event', 'X-Forgejo-Event', 'X-GitHub-Event'])
def test_webhook_without_a_secret_or_signature_is_forbidden(client, copy, project, header):
    body = json.dumps(github_push('refs/heads/main', ZEROS, SHA)).encode()
    event = 'Push Hook' if 'Gitlab' in header else 'push'
    client.call('POST', '/hooks/1', data=body, headers={header: event}, status=403)


def test_signature_of_another_body_or_project_is_forbidden(ci, client, copy, hook):
    secret = ci.find_project(1)['webhook_token']
    body = json.dumps(github_push('refs/heads/main', ZEROS, git(copy, 'rev-parse', 'HEAD'))).encode()
    headers = github_headers(secret, body)
    client.call('POST', '/hooks/1', data=body + b' ', headers=headers, status=403)
    ci.create_project('other')
    client.call('POST', '/hooks/2', data=body, headers=headers, status=403)
    client.call('POST', '/hooks/1', data=body, headers=headers, status=201)


def test_webhook_of_githubs_default_content_type_is_understood(ci, client, copy, hook):
    push = github_push('refs/heads/main', ZEROS, git(copy, 'rev-parse', 'HEAD'))
    body = urllib.parse.urlencode({'payload': json.dumps(push)}).encode()
    headers = github_headers(ci.find_project(1)['webhook_token'], body)
    headers['Content-Type'] = 'application/x-www-form-urlencoded'
    assert client.call('POST', '/hooks/1', data=body, headers=headers, status=201).json['ref'] == 'main'


@pytest.mark.parametrize('body', [
    [], {}, {'ref': 'main', 'before': ZEROS, 'after': SHA}, {'ref': 'refs/heads/main', 'before': 1, 'after': 2},
    {'ref': ['refs/heads/main'], 'before': ZEROS, 'after': SHA}, {'ref': 'refs/heads/main', 'after': SHA},
    {'ref': 'refs/heads/main', 'before': '\ud800', 'after': SHA}])
def test_push_event_without_its_facts_is_a_bad_request(hook, body):
    hook('gitlab', status=400, body=body)


@pytest.mark.parametrize(('given', 'variables'), [
    ('A=b', {'A': 'b'}), (['A=b', 'C'], {'A': 'b', 'C': ''}), (5, {'5': ''}), (True, {'True': ''}), (None, {}),
    ([], {}),
])
def test_a_push_option_that_is_no_list_is_one_variable(ci, hook, copy, given, variables):
    push = gitlab_push('refs/heads/main', ZEROS, git(copy, 'rev-parse', 'HEAD'))
    pipeline = hook('gitlab', status=201, body={**push, 'push_options': {'ci': {'variable': given}}})
    found = json.loads(ci.find_pipeline(pipeline['id'])['variables'])
    assert {item['key']: item['value'] for item in found} == variables


@pytest.mark.parametrize('labels', [5, True, 1.5, 'x', None, {}, [5], [{'title': 5}]])
def test_labels_that_are_none_are_passed_over(labels):
    sides = {'source_branch': 'topic', 'target_branch': 'main', 'iid': 5}
    request = minici.read_request({'object_attributes': sides, 'labels': labels}, minici.MERGE_REQUEST)
    assert request['labels'] == []


def test_projects_webhook_address_and_secret_are_shown_to_tokens_that_may_change_it(ci, call, client):
    shown = call('GET', P, 200).json
    assert shown['webhook_url'].endswith('/hooks/1')
    assert shown['webhook_token'] == ci.find_project(1)['webhook_token']
    reader = client.call('GET', P, token=ci.create_private_token(scope='read_api'), status=200).json
    assert 'webhook_token' not in reader


def test_webhook_of_an_unknown_project_is_refused_like_a_wrong_secret(hook):
    hook('github', 'refs/heads/main', ZEROS, SHA, status=403, where='77')


@pytest.mark.parametrize('mark', ['[skip ci]', '[ci skip]', '[CI-SKIP] once'])
def test_push_whose_commit_says_so_makes_no_pipeline(ci, client, project, mark):
    push = {'ref': 'refs/heads/main', 'before': ZEROS, 'after': SHA,
            'head_commit': {'id': SHA, 'message': f'Docs {mark}'}}
    client.call('POST', f'/hooks/{project["id"]}', json=push, status=200,
                headers={'X-Gitlab-Token': project['webhook_token'], 'X-Gitlab-Event': 'Push Hook'})
    assert ci.list_pipelines(project)[1] == 0


# -- a push to a bare repository with the example hook

@pytest.fixture
def bare(ci, server, copy, project, tmp_path):
    """A bare repository with the hook, which the working copy knows as `origin`."""
    directory = tmp_path / 'demo.git'
    git(tmp_path, 'init', '--quiet', '--bare', '--initial-branch=main', str(directory))
    shutil.copy(EXAMPLES / 'post-receive', directory / 'hooks')
    ci.edit_project(project, import_url=directory.as_uri())
    git(directory, 'config', 'receive.advertisePushOptions', 'true')
    for name, value in (('url', server.url), ('project', 'group/demo'), ('token', project['webhook_token'])):
        git(directory, 'config', f'minici.{name}', value)
    git(copy, 'remote', 'add', 'origin', str(directory))
    return directory


def test_push_prints_its_pipeline_which_the_example_runner_makes_green(ci, server, bare, copy, tmp_path):
    said = git(copy, 'push', 'origin', 'main')
    assert f'remote: minici: pipeline 1 {server.url}/group/demo/-/pipelines/1' in said
    pipeline = ci.find_pipeline(1)
    assert (pipeline['ref'], pipeline['sha'], pipeline['source']) == ('main', git(copy, 'rev-parse', 'HEAD'), 'push')
    runner = load('shell_runner').Runner(server.url, builds_dir=tmp_path, interval=0.02, say=lambda text: None)
    runner.register(ci.registration_token)
    while runner.run_once():
        pass
    assert ci.find_pipeline(1)['status'] == 'success'
    assert b'first\n' in ci.read_trace(next(job for job in ci.list_jobs() if job['name'] == 'always'))


def test_push_of_several_refs_makes_a_pipeline_for_each_and_none_for_removed_ones(ci, bare, copy):
    git(copy, 'push', 'origin', 'main:fix/one', 'main')
    git(copy, 'tag', 'v1.0', '--annotate', '--message', 'One')
    said = git(copy, 'push', 'origin', 'main:new', 'v1.0', ':fix/one')
    assert said.count('minici: pipeline ') == 2
    made = {(row['ref'], bool(row['tag'])) for row in ci.list_pipelines(ci.find_project(1))[0]}
    assert made == {('fix/one', False), ('main', False), ('new', False), ('v1.0', True)}
    assert {row['sha'] for row in ci.list_pipelines(ci.find_project(1))[0]} == {git(copy, 'rev-parse', 'HEAD')}


@pytest.mark.parametrize('settings, says', [
    ({'MINICI_TOKEN': 'wrong'}, 'the secret or signature is wrong'),
    ({'MINICI_PROJECT': 'group/gone'}, 'the secret or signature is wrong'),
    ({'MINICI_URL': 'http://127.0.0.1:9'}, 'minici: no pipeline for main: curl: '),
])
def test_push_succeeds_when_no_pipeline_can_be_made_and_says_why(ci, bare, copy, settings, says):
    said = git(copy, 'push', 'origin', 'main', **settings)
    assert says in said.replace('": "', '":"')
    assert git(bare, 'rev-parse', 'main') == git(copy, 'rev-parse', 'HEAD')
    assert ci.list_pipelines(ci.find_project(1))[1] == 0


def test_push_without_the_hooks_settings_succeeds_and_names_them(bare, copy):
    git(bare, 'config', '--unset', 'minici.token')
    assert 'git config minici.url, minici.project and minici.token are needed' in git(copy, 'push', 'origin', 'main')


def test_environment_goes_before_the_hooks_configuration(ci, bare, copy, server):
    token = git(bare, 'config', 'minici.token')
    for name in ('url', 'project', 'token'):
        git(bare, 'config', f'minici.{name}', 'wrong')
    said = git(copy, 'push', 'origin', 'main', MINICI_URL=f'{server.url}/', MINICI_PROJECT='1', MINICI_TOKEN=token)
    assert f'minici: pipeline 1 {server.url}/group/demo/-/pipelines/1' in said


def test_a_push_runs_the_jobs_of_what_it_changes_and_obeys_its_message_and_options(ci, bare, copy):
    git(copy, 'push', 'origin', 'main')
    commit(copy, 'Only "notes" \\ here', **{'notes.txt': 'second\n'})
    git(copy, 'push', 'origin', 'main', '--push-option', 'ci.variable=WHO=a "b" c')
    commit(copy, 'More docs', docs__a='second\n')
    git(copy, 'push', 'origin', 'main')
    commit(copy, 'Nothing to see [skip ci]', **{'notes.txt': 'third\n'})
    assert 'the commit says to skip CI' in git(copy, 'push', 'origin', 'main')
    commit(copy, 'Again', **{'notes.txt': 'fourth\n'})
    assert 'the push says to skip CI' in git(copy, 'push', 'origin', 'main', '-o', 'ci.skip')
    pipelines = ci.list_pipelines(ci.find_project(1))[0]
    names = [sorted(job['name'] for job in ci.list_jobs(pipeline=row)) for row in reversed(pipelines)]
    assert names == [['always', 'documented'], ['always'], ['always', 'documented']]
    assert given(ci, 2) == {'WHO': 'a "b" c'}


# -- pull requests and merge requests

def github_request(sha, action='opened', fork=False, number=7):
    """A pull request as GitHub tells of it, and as Gitea and Forgejo do, too."""
    source = 'somebody/demo' if fork else 'group/demo'
    return {'action': action, 'number': number, 'pull_request': {
        'number': number, 'title': 'Add more', 'body': 'In detail', 'draft': False, 'labels': [{'name': 'ci'}],
        'head': {'ref': 'feature', 'sha': sha, 'repo': {'full_name': source, 'html_url': f'https://forge/{source}'}},
        'base': {'ref': 'main', 'sha': ZEROS, 'repo': {'full_name': 'group/demo',
                                                       'html_url': 'https://forge/group/demo'}}}}


def gitlab_request(sha, action='open', fork=False, number=7):
    """A merge request as GitLab tells of it."""
    return {'object_kind': 'merge_request', 'labels': [{'title': 'ci'}], 'object_attributes': {
        'iid': number, 'title': 'Add more', 'description': 'In detail', 'action': action, 'draft': False,
        'source_branch': 'feature', 'target_branch': 'main', 'source_project_id': 5 if fork else 4,
        'target_project_id': 4, 'last_commit': {'id': sha, 'message': 'Feature'},
        'source': {'path_with_namespace': 'group/demo', 'web_url': 'https://forge/group/demo'},
        'target': {'path_with_namespace': 'group/demo', 'web_url': 'https://forge/group/demo'},
        **({'oldrev': ZEROS} if action == 'update' else {})}}


REQUESTS = {'gitlab': (gitlab_request, gitlab_headers, 'Merge Request Hook', 'refs/merge-requests/7/head'),
            'gitea': (github_request, gitea_headers, 'pull_request', 'refs/pull/7/head'),
            'forgejo': (github_request, forgejo_headers, 'pull_request', 'refs/pull/7/head'),
            'github': (github_request, github_headers, 'pull_request', 'refs/pull/7/head')}
REQUEST_FILE = """
request:
  script: [make]
  rules: [{if: $CI_PIPELINE_SOURCE == "merge_request_event", changes: [src/*]}]
docs:
  script: [make]
  rules: [{if: $CI_MERGE_REQUEST_IID, changes: [docs/*]}]
branch: {script: [make], rules: [{if: $CI_COMMIT_BRANCH}]}
"""


@pytest.fixture
def requested(ci, client, project, tmp_path):
    """A way to send the event of a forge about a merge request, whose head no branch has."""
    directory = tmp_path / 'requested'
    commit(directory, **{'.gitlab-ci.yml': REQUEST_FILE, 'docs__a.txt': 'a\n'})
    git(directory, 'checkout', '--quiet', '-b', 'feature')
    sha = commit(directory, 'Feature', src__a='a\n')
    git(directory, 'checkout', '--quiet', 'main')
    commit(directory, 'Docs go on', **{'docs__a.txt': 'b\n'})
    for _, _, _, ref in REQUESTS.values():
        git(directory, 'update-ref', ref, sha)
    git(directory, 'branch', '--quiet', '-D', 'feature')
    ci.edit_project(project, import_url=directory.as_uri())

    def send(forge, status, **facts):
        make, headers, event, _ = REQUESTS[forge]
        body = json.dumps(make(sha, **facts)).encode()
        return client.call('POST', '/hooks/1', data=body, status=status, headers={
            'Content-Type': 'application/json', **headers(project['webhook_token'], body, event)}).json
    return send


@pytest.mark.parametrize('forge', REQUESTS)
def test_a_merge_request_runs_its_jobs_with_its_variables(ci, requested, forge):
    answer = requested(forge, 201)
    pipeline = ci.find_pipeline(answer['id'])
    assert (pipeline['source'], pipeline['ref']) == ('merge_request_event', REQUESTS[forge][3])
    job, = ci.list_jobs(pipeline=pipeline)
    variables = minici.pipeline_variables(job)
    assert (job['name'], variables['CI_MERGE_REQUEST_IID'], variables['CI_MERGE_REQUEST_SOURCE_BRANCH_NAME'],
            variables['CI_MERGE_REQUEST_TARGET_BRANCH_NAME'], variables['CI_MERGE_REQUEST_TITLE'],
            variables['CI_MERGE_REQUEST_LABELS'], variables['CI_COMMIT_REF_NAME']) == (
        'request', 7, 'feature', 'main', 'Add more', 'ci', 'feature')
    assert 'CI_COMMIT_BRANCH' not in variables or variables['CI_COMMIT_BRANCH'] is None


@pytest.mark.parametrize('forge, action, status', [
    ('github', 'synchronize', 201), ('gitea', 'synchronized', 201), ('forgejo', 'reopened', 201),
    ('gitlab', 'update', 201), ('gitlab', 'reopen', 201), ('github', 'closed', 200), ('github', 'labeled', 200),
    ('gitlab', 'merge', 200), ('gitlab', 'approved', 200)])
def test_new_commits_make_a_pipeline_and_other_news_none(ci, requested, forge, action, status):
    requested(forge, status, action=action)
    assert ci.list_pipelines()[1] == (status == 201)


@pytest.mark.parametrize('forge', ['gitlab', 'github'])
def test_a_fork_makes_a_pipeline_only_when_the_project_allows_it_and_gets_nothing_protected(
        ci, client, token, requested, project, forge):
    ci.set_variable(project, 'SECRET', 'protected value', protected=True)
    assert 'forks make no pipelines' in requested(forge, 200, fork=True)['message']
    shown = client.call('PUT', P, token=token, status=200,
                        json={'ci_allow_fork_pipelines_to_run_in_parent_project': True}).json
    assert shown['ci_allow_fork_pipelines_to_run_in_parent_project'] is True
    requested(forge, 201, fork=True)
    runner, runner_token = ci.create_runner()
    payload = client.call('POST', '/api/v4/jobs/request', json={'token': runner_token}, status=201).json
    received_names = {item['key']: item['value'] for item in payload['variables']}
    assert 'SECRET' not in received_names
    assert received_names['CI_COMMIT_REF_PROTECTED'] == 'false'
    assert payload['git_info']['refspecs'][0] == f'+{REQUESTS[forge][3]}:{REQUESTS[forge][3]}'


@pytest.mark.parametrize('forge, broken', [
    ('github', {'pull_request': None}), ('github', {'pull_request': {'number': 7, 'head': 'x'}}), ('github', {}),
    ('gitlab', {'object_attributes': {'action': 'open'}}),
    ('gitlab', {'object_attributes': {'action': 'open', 'iid': 1}})])
def test_a_broken_event_is_refused_by_what_it_lacks(ci, client, project, forge, broken):
    _, headers, event, _ = REQUESTS[forge]
    body = json.dumps({'action': 'opened', **broken}).encode()
    answer = client.call('POST', '/hooks/1', data=body, status=400, headers={
        'Content-Type': 'application/json', **headers(project['webhook_token'], body, event)}).json
    assert 'the event has no' in answer['message']


# -- triggers by the token of a running job

def test_a_running_job_starts_pipelines_of_its_project_and_of_those_that_allow_it(ci, client, token, project, runner):
    ci.create_pipeline(project, 'main', sha=SHA, content=json.loads(CONTENT))
    claim = runner.claim()
    ci.create_project('other')
    target = '/api/v4/projects/2'

    def trigger(path, status, job_token=claim.token):
        return client.call('POST', f'{path}/trigger/pipeline', status=status, form={
            'token': job_token, 'ref': 'main', 'variables[WHO]': 'upstream'})

    assert 'import_url' in trigger(P, 400).text        # let in, but it has nothing to read
    trigger(target, 404)
    allowed = client.call('POST', f'{target}/job_token_scope/allowlist', token=token, status=201,
                          json={'target_project_id': 1}).json
    assert allowed == {'source_project_id': 2, 'target_project_id': 1}
    listed = client.call('GET', f'{target}/job_token_scope/allowlist', token=token, status=200).json
    assert [row['id'] for row in listed] == [2, 1]
    trigger(target, 400)
    trigger(target, 404, job_token='wrong')
    client.call('DELETE', f'{target}/job_token_scope/allowlist/1', token=token, status=204)
    trigger(target, 404)
    ci.update_job(claim.job, 'success')
    trigger(P, 404)


def test_a_pipeline_started_by_a_job_has_the_source_pipeline_and_its_variables(ci, client, project, copy, runner):
    ci.create_pipeline(project, 'main', sha=SHA, content=json.loads(CONTENT))
    claim = runner.claim()
    ci.edit_project(project, import_url=copy.as_uri())
    made = client.call('POST', f'{P}/trigger/pipeline', status=201, form={
        'token': claim.token, 'ref': 'main', 'variables[WHO]': 'upstream'}).json
    assert made['source'] == 'pipeline'
    assert given(ci, made['id']) == {'WHO': 'upstream'}
