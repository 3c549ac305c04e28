"""Belief: what the holders of tokens, authors of branches and jobs can make minici do, and what they cannot."""

import json
import subprocess

import pytest
from support import EXAMPLES, PLAIN, SHA, Origin, Runner

import minici

PROBE = 'probe: {script: make, cache: {key: k, paths: [x]}}\n'


@pytest.fixture
def origin(tmp_path):
    made = Origin(tmp_path / 'srv' / 'demo')
    made.commit(PROBE)
    return made


@pytest.fixture
def guarded(ci, origin):
    """A project with a protected variable, whose repository has a commit on `feature` that `main` has not."""
    project = ci.create_project('group/guarded', import_url=origin.url)
    ci.set_variable(project, 'PROD_KEY', 'very-secret-key', masked=True, protected=True)
    origin.git('checkout', '--quiet', '-b', 'feature')
    origin.feature = origin.commit(PROBE, message='of the feature')
    origin.git('checkout', '--quiet', 'main')
    return project


@pytest.fixture
def trigger(ci, guarded, token):
    return ci.create_trigger(guarded, ci.find_user(token), 'of a script')


def payload_of(client, runner):
    """Claim the oldest job and return its payload."""
    return client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=201).json


def values(payload):
    return {item['key']: item['value'] for item in payload['variables']}


def secrets_of_next(client, runner):
    """Return whether the next job is protected, and its protected variable."""
    found = values(payload_of(client, runner))
    return found['CI_COMMIT_REF_PROTECTED'], found.get('PROD_KEY')


@pytest.mark.parametrize('content', [{'j': {'script': ['x']}}, '{"j": {"script": ["x"]}}', [1], 5, True, None])
def test_a_trigger_token_gives_a_ref_and_variables_and_nothing_else(ci, client, guarded, trigger, origin, content):
    body = {'token': trigger['token'], 'ref': 'main', 'sha': origin.feature, 'content': content, 'tag': True}
    made = client.call('POST', f'/api/v4/projects/{guarded["id"]}/trigger/pipeline', json=body, status=201).json
    assert (made['sha'], made['ref'], made['tag']) == (origin.git('rev-parse', 'main'), 'main', False)
    jobs = ci.list_jobs(pipeline=ci.find_pipeline(made['id']))
    assert [job['name'] for job in jobs] == ['probe']
    legacy = client.call('POST', f'/ci/api/v1/projects/{guarded["id"]}/refs/main/trigger', json=body, status=201).json
    jobs = ci.list_jobs(pipeline=ci.find_pipeline(legacy['id']))
    assert [job['name'] for job in jobs] == ['probe']


def test_protected_variables_reach_the_commits_of_protected_refs_alone(ci, client, guarded, runner, origin, token):
    old = origin.git('rev-parse', 'main')
    new = origin.commit(PROBE, message='of main')
    origin.git('tag', 'main', 'feature')
    path = f'/api/v4/projects/{guarded["id"]}/pipeline'
    hook = {'X-Gitlab-Token': guarded['webhook_token'], 'X-Gitlab-Event': 'Push Hook'}

    def pushed(ref, sha):
        client.call('POST', '/hooks/group/guarded', headers=hook, status=201,
                    json={'ref': ref, 'before': '0' * 40, 'after': sha})
        return secrets_of_next(client, runner)

    def asked(**options):
        client.call('POST', path, json=options, token=token, status=201)
        return secrets_of_next(client, runner)

    shown, hidden = ('true', 'very-secret-key'), ('false', None)
    assert pushed('refs/heads/main', new) == shown
    assert pushed('refs/heads/main', old) == shown
    assert pushed('refs/heads/main', origin.feature) == hidden
    assert pushed('refs/heads/feature', origin.feature) == hidden
    assert pushed('refs/tags/main', origin.feature) == hidden
    assert asked(ref='main') == shown
    assert asked(ref='refs/heads/main', sha=old) == shown
    assert asked(ref='main', sha=origin.feature) == hidden
    assert asked(ref='refs/tags/main') == hidden
    assert asked(ref='feature') == hidden


def test_protection_is_decided_when_a_pipeline_is_created(ci, client, guarded, runner, origin):
    pipeline = ci.create_pipeline(guarded, 'feature')
    ci.edit_project(guarded, default_branch='feature')
    assert secrets_of_next(client, runner) == ('false', None)
    ci.create_pipeline(guarded, 'feature')
    assert secrets_of_next(client, runner) == ('true', 'very-secret-key')
    assert not ci.find_pipeline(pipeline)['protected']


def test_a_project_names_its_protected_refs(ci, client, guarded, runner, origin, token):
    origin.git('tag', 'v1.0', 'feature')
    origin.git('branch', 'release/1/x', 'main')
    ci.edit_project(guarded, protected_refs=['release/*', 'refs/tags/v*'])
    shown, hidden = ('true', 'very-secret-key'), ('false', None)
    for ref, expected in (('main', hidden), ('feature', hidden), ('v1.0', shown), ('release/1/x', shown)):
        ci.create_pipeline(guarded, ref)
        assert secrets_of_next(client, runner) == expected
    with pytest.raises(minici.BadRequest):
        ci.edit_project(guarded, protected_refs=['a b'])


def test_protected_branches_and_tags_are_listed_added_and_removed_as_in_gitlab(ci, client, guarded, token):
    base = f'/api/v4/projects/{guarded["id"]}'
    listed = client.call('GET', f'{base}/protected_branches', token=token, status=200).json
    assert [item['name'] for item in listed] == ['main']
    client.call('POST', f'{base}/protected_branches', json={'name': 'release/*'}, token=token, status=201)
    client.call('POST', f'{base}/protected_branches', json={'name': 'release/*'}, token=token, status=409)
    client.call('POST', f'{base}/protected_tags', json={'name': 'v*'}, token=token, status=201)
    listed = client.call('GET', f'{base}/protected_branches', token=token, status=200).json
    assert [item['name'] for item in listed] == ['main', 'release/*']
    assert client.call('GET', f'{base}/protected_tags', token=token, status=200).json[0]['name'] == 'v*'
    assert json.loads(ci.find_project(guarded)['protected_refs']) == [
        'refs/heads/main', 'refs/heads/release/*', 'refs/tags/v*']
    client.call('DELETE', f'{base}/protected_branches/release%2F*', token=token, status=204)
    client.call('DELETE', f'{base}/protected_branches/release%2F*', token=token, status=404)
    client.call('DELETE', f'{base}/protected_tags/v*', token=token, status=204)
    assert json.loads(ci.find_project(guarded)['protected_refs']) == ['refs/heads/main']


def test_without_a_repository_the_ref_that_its_caller_gave_counts(ci, client, runner, token):
    project = ci.create_project('plain')
    ci.set_variable(project, 'PROD_KEY', 'very-secret-key', protected=True)
    for ref, expected in (('main', ('true', 'very-secret-key')), ('other', ('false', None)),
                          ('refs/tags/main', ('false', None))):
        ci.create_pipeline(project, ref, sha=SHA, content=PLAIN)
        assert secrets_of_next(client, runner) == expected


def test_a_tag_called_like_a_branch_is_no_branch_for_the_hook(ci, tmp_path, server, guarded, origin, runner,
                                                              client):
    bare = tmp_path / 'bare.git'
    origin.git('clone', '--quiet', '--bare', '.', str(bare))
    ci.edit_project(guarded, import_url=f'file://{bare}')
    hook = bare / 'hooks' / 'post-receive'
    hook.parent.mkdir(exist_ok=True)
    hook.write_bytes((EXAMPLES / 'post-receive').read_bytes())
    hook.chmod(0o755)
    for name, value in (('url', server.url), ('project', guarded['path']), ('token', guarded['webhook_token'])):
        subprocess.run(['git', '-C', bare, 'config', f'minici.{name}', value], check=True)
    origin.git('tag', 'main', 'feature')
    origin.git('push', '--quiet', str(bare), 'refs/tags/main')
    payload = payload_of(client, runner)
    assert payload['git_info']['ref_type'] == 'tag'
    assert 'PROD_KEY' not in values(payload)


# -- caches, artifacts and runners

def test_caches_of_protected_refs_are_out_of_reach_for_others(ci, client, guarded, runner, origin):
    keys = {}
    for ref in ('main', 'feature'):
        ci.create_pipeline(guarded, ref)
        payload = payload_of(client, runner)
        keys[ref] = payload['cache'][0]['key']
    assert keys == {'main': 'k-protected', 'feature': 'k-non_protected'}


def test_a_cache_may_be_shared_and_fallback_keys_are_kept_apart_too(ci, client, project, runner):
    cache = [{'key': 'a', 'paths': ['x'], 'unprotect': True}, {'key': 'b', 'paths': ['y'], 'fallback_keys': ['c']}]
    ci.create_pipeline(project, 'main', sha=SHA, content={'test': {'script': ['make'], 'cache': cache}})
    found = [(item['key'], item.get('fallback_keys')) for item in payload_of(client, runner)['cache']]
    assert found == [('a-non_protected', []), ('b-protected', ['c-protected'])]


def test_a_job_reads_the_artifacts_of_its_dependencies_and_no_others(ci, client, project):
    content = {'stages': ['build', 'test'],
               **{name: {'stage': 'build', 'script': ['make'], 'artifacts': {'paths': ['x']}} for name in 'abc'},
               'named': {'stage': 'test', 'script': ['x'], 'dependencies': ['a']},
               'needing': {'stage': 'test', 'script': ['x'], 'needs': ['a', {'job': 'b', 'artifacts': False}]},
               'none': {'stage': 'test', 'script': ['x'], 'dependencies': []},
               'all': {'stage': 'test', 'script': ['x']}}
    ci.create_pipeline(project, 'main', sha=SHA, content=content)
    runner, jobs = Runner(ci), {}
    for _ in 'abc':
        claim = runner.claim()
        jobs[claim.job['name']] = claim.job['id']
        part = ci.artifacts.receive()
        part.write(b'PK\5\6' + bytes(18))
        row = ci.authenticate_job(claim.job['id'], claim.token)
        ci.store_artifacts(row, part)
        ci.update_job(row, 'success')
    readable = {}
    while claim := runner.claim():
        answers = [client.call('GET', f'/api/v4/jobs/{jobs[name]}/artifacts', headers={'JOB-TOKEN': claim.token})
                   for name in 'abc']
        readable[claim.job['name']] = [answer.status_int for answer in answers]
    assert readable == {'named': [200, 403, 403], 'needing': [200, 403, 403], 'none': [403, 403, 403],
                        'all': [200, 200, 200]}


@pytest.mark.parametrize('kind', ['instance', 'project'])
def test_a_runner_for_protected_refs_takes_no_other_jobs(ci, project, kind):
    row, token = ci.create_runner(project if kind == 'project' else None, access_level='ref_protected')
    ci.create_pipeline(project, 'feature', sha=SHA, content=PLAIN)
    assert ci.request_job(ci.find_runner(token)) is None
    pending = ci.list_jobs()[0]
    assert 'protected' in ci.pending_reason(pending)
    made = ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    claim = ci.request_job(ci.find_runner(token))
    assert claim.job['pipeline_id'] == made['id']
    ci.update_job(ci.authenticate_job(claim.job['id'], claim.token), 'failed')
    ci.retry_job(ci.find_job(claim.job))
    assert ci.request_job(ci.find_runner(token)).job['pipeline_id'] == made['id']
    assert ci.edit_runner(row, access_level='not_protected')
    assert ci.request_job(ci.find_runner(token)).job['id'] == pending['id']
