"""What a claimed job looks like to a runner, held against the types of the structs that real runners decode it into.

A runner that cannot decode the answer says nothing to anybody: the job would stay running for ever.
"""

import contextlib
import gzip
import json
import re
import subprocess

import pytest
from support import PLAIN, SHA, Runner, commit

import minici

ZEROS = '0' * 40

# The tables: a type is met exactly (1.0 is no int, True neither), a list holds items of one kind, a tuple says what
# may stand here. A mapping is a struct: `!` marks what must be there, nothing else may be. None is null.
OPTIONAL_TEXT = (str, None)
IMAGE = {'name!': str, 'entrypoint': [str], 'command': [str], 'alias': str, 'ports': [dict],
         'pull_policy': ([str], None), 'variables': [{'key!': str, 'value!': str}],
         'executor_opts': {'docker': {'platform': str, 'user': (str, int)}, 'kubernetes': {'user': (str, int)}}}
DEPENDENCY = {'id!': int, 'token!': str, 'name!': str, 'artifacts_file': {'filename!': str, 'size!': int}}
V4 = {
    'id!': int, 'token!': str, 'allow_git_fetch!': bool,
    'job_info!': {
        'id': int, 'name!': str, 'stage!': str, 'project_id!': int, 'project_name!': str, 'project_full_path': str,
        'pipeline_id': int, 'namespace_id': int, 'root_namespace_id': int, 'organization_id': int, 'user_id': int,
        'scoped_user_id': (int, None), 'instance_id': str, 'instance_uuid': str, 'queue_size': int, 'queue_depth': int,
        'time_in_queue_seconds': int, 'project_jobs_running_on_instance_runners_count': str},
    'git_info!': {
        'repo_url!': str, 'ref!': str, 'sha!': str, 'before_sha!': str, 'ref_type!': str, 'refspecs!': [str],
        'depth!': int, 'repo_object_format': str, 'protected': (bool, None)},
    'runner_info!': {'timeout!': int, 'runner_session_url': OPTIONAL_TEXT},
    'variables!': [{'key!': str, 'value!': str, 'public!': bool, 'masked!': bool, 'file': bool, 'raw': bool}],
    'steps!': [{'name!': str, 'script!': [str], 'timeout!': int, 'when!': str, 'allow_failure!': bool}],
    'hooks': [{'name!': str, 'script!': [str]}],
    'image!': (IMAGE, None), 'services!': [IMAGE],
    'artifacts!': ([{'name': str, 'untracked!': bool, 'paths!': [str], 'exclude': [str], 'when!': str,
                     'expire_in': str, 'artifact_type!': str, 'artifact_format!': str}], None),
    'cache!': [{'key!': str, 'untracked!': bool, 'paths!': [str], 'policy!': str, 'when': str,
                'fallback_keys': [str]}],
    'credentials!': [{'type!': str, 'url!': str, 'username!': str, 'password!': str}],
    'dependencies!': [DEPENDENCY],
    'features!': {'trace_sections!': bool, 'failure_reasons!': [str], 'token_mask_prefixes': [str]},
}
SUMMARY = {'id!': int, 'ref!': str, 'tag!': bool, 'sha!': str, 'status!': str, 'name!': str, 'token!': str,
           'stage!': str, 'project_id!': int, 'project_name!': str}
V1 = {
    **SUMMARY, 'commands!': str, 'repo_url!': str, 'before_sha!': str, 'allow_git_fetch!': bool, 'timeout!': int,
    'variables!': [{'key!': str, 'value!': str, 'public!': bool, 'file': bool}],
    'options!': {
        'image': str, 'services': [str], 'after_script': [str], 'dependencies': [str],
        'artifacts': {'name': str, 'untracked': bool, 'paths': [str], 'exclude': [str], 'when': str, 'expire_in': str},
        'cache': {'key': str, 'untracked': bool, 'paths': [str]}},
    'depends_on_builds!': [{**SUMMARY, 'artifacts_file': {'filename!': str, 'size!': int}}],
    'credentials!': [{'type!': str, 'url!': str, 'username!': str, 'password!': str}],
}

EVERYTHING = r'''
stages: [prepare, everything]
version: {stage: prepare, script: [x], artifacts: {paths: [out/], reports: {dotenv: build.env}}}
silent: {stage: prepare, script: [x]}
everything:
  stage: everything
  image: {name: "ruby:3.3", entrypoint: ["/bin/sh", "-c"], pull_policy: if-not-present, docker: {platform: arm64}}
  services:
    - redis:7
    - name: postgres:16
      alias: db
      command: [postgres, -c, fsync=off]
      entrypoint: [""]
      pull_policy: [always, if-not-present]
      variables: {POSTGRES_PASSWORD: 1234}
  variables: {NUMBER: 7, HALF: 0.5, FLAG: true, EMPTY: "", NOTHING: null, RAW: {value: $A, expand: false}}
  tags: [linux]
  hooks: {pre_get_sources_script: [echo first]}
  before_script: [cd src, [pwd, ls]]
  script: |
    make
    make check
  after_script: rm -r tmp
  artifacts:
    name: $CI_JOB_NAME
    paths: [out/, "*.log"]
    exclude: [out/tmp/]
    untracked: true
    when: always
    expire_in: 1 week 3 days
    reports:
      junit: [a.xml, b.xml]
      dotenv: build.env
      coverage_report: {coverage_format: cobertura, path: c.xml}
  cache:
    - {key: gems, paths: [vendor/], untracked: true, policy: pull, when: always, fallback_keys: [gems-main]}
    - {key: {files: [package-lock.json], prefix: js}, paths: [node_modules/]}
  dependencies: [version, silent]
  when: on_success
  allow_failure: {exit_codes: [3, 4]}
  timeout: 1.6 hours
  retry: {max: 1, when: runner_system_failure}
  interruptible: true
  coverage: /total \d+/
  environment: {name: production, url: "https://example.com"}
  resource_group: production
  rules: [{if: $CI_COMMIT_BRANCH == "main", variables: {FROM_RULE: "1"}}]
'''
SMALLEST = {'test': {'script': ['make test']}}
OPTIONAL = {'description': 'rack 2', 'tag_list': ['linux', 'gpu'], 'maximum_timeout': 7200}


def misfits(value, kind, where='payload'):
    """Yield what a runner could not decode: where it stands and what it is."""
    if isinstance(kind, tuple):
        found = [list(misfits(value, choice, where)) for choice in kind]
        yield from () if [] in found else found[0]
    elif isinstance(kind, list) and isinstance(value, list):
        for index, item in enumerate(value):
            yield from misfits(item, kind[0], f'{where}[{index}]')
    elif isinstance(kind, dict) and isinstance(value, dict):
        known = {name.rstrip('!'): item for name, item in kind.items()}
        yield from (f'{where}.{name} is unknown' for name in value if name not in known)
        yield from (f'{where}.{name[:-1]} is absent' for name in kind if name[-1] == '!' and name[:-1] not in value)
        for name in set(value) & set(known):
            yield from misfits(value[name], known[name], f'{where}.{name}')
    elif value is not None if kind is None else type(value) is not kind:
        yield f'{where} is {value!r}'


def claim(client, runner, version='v4', **headers):
    """Claim a job as a runner of either protocol and return the answer."""
    path = {'v4': '/api/v4/jobs/request', 'v1': '/ci/api/v1/builds/register'}[version]
    answer = client.call('POST', path, json={'token': runner.token}, status=201, headers=headers)
    assert answer.headers['Content-Type'] == 'application/json'
    return answer


def variables_of(answer):
    """Return a job's variables by name, the last of each."""
    return {item['key']: item for item in answer.json['variables']}


@pytest.fixture
def everything(ci, client, project):
    """A runner, and a queue whose next job uses every keyword."""
    ci.create_pipeline(project, 'main', sha=SHA, content=EVERYTHING, variables=[
        {'key': 'SECRET', 'value': 'x'}, {'key': 'CERTIFICATE', 'value': 'PEM', 'variable_type': 'file'}])
    runner = Runner(ci, **OPTIONAL)
    job = runner.claim()
    for kind, form, content in (('archive', 'zip', b'PK'), ('dotenv', 'gzip', gzip.compress(b'VERSION=1.2'))):
        client.call('POST', f'/api/v4/jobs/{job.job["id"]}/artifacts', files=[('file', 'artifacts.zip', content)],
                    form={'token': job.token, 'artifact_type': kind, 'artifact_format': form}, status=201)
    client.call('PUT', f'/api/v4/jobs/{job.job["id"]}', json={'token': job.token, 'state': 'success'}, status=200)
    assert runner.run() == 'silent'
    return runner


# -- types

@pytest.mark.parametrize('damage, found', [
    (lambda job: job['runner_info'].update(timeout=3600.0), 'payload.runner_info.timeout is 3600.0'),
    (lambda job: job['variables'][3].update(value=7), 'payload.variables[3].value is 7'),
    (lambda job: job['git_info'].update(depth=True), 'payload.git_info.depth is True'),
    (lambda job: job.update(run=None), 'payload.run is unknown'),
    (lambda job: job.update(steps=None), 'payload.steps is None'),
    (lambda job: job['job_info'].pop('project_id'), 'payload.job_info.project_id is absent')])
def test_the_tables_notice_what_a_runner_could_not_decode(client, pipeline, runner, damage, found):
    job = claim(client, runner).json
    assert list(misfits(job, V4)) == []
    damage(job)
    assert list(misfits(job, V4)) == [found]


@pytest.mark.parametrize('version, kind', [('v4', V4), ('v1', V1)])
def test_a_job_of_every_keyword_has_the_types_that_runners_decode(client, everything, version, kind):
    assert list(misfits(claim(client, everything, version).json, kind)) == []


@pytest.mark.parametrize('version, kind', [('v4', V4), ('v1', V1)])
def test_the_smallest_job_has_the_types_that_runners_decode(ci, client, project, runner, version, kind):
    ci.create_pipeline(project, 'main', sha=SHA, content=SMALLEST)
    job = claim(client, runner, version).json
    assert list(misfits(job, kind)) == []
    assert job['id'] == 1
    assert len(job['token']) > 20


@pytest.mark.parametrize('version', ['v4', 'v1'])
def test_times_are_whole_numbers_wherever_they_came_from(tmp_path, ci, client, clock, version):
    project = ci.create_project('group/odd', build_timeout=1234)
    for timeout in ('1.61 hours', '90.5 minutes', None):
        job = {'script': ['x'], **({'timeout': timeout} if timeout else {})}
        ci.create_pipeline(project, 'main', sha=SHA, content={'test': job})
    clock.advance(0.7)
    runner = Runner(ci)
    texts = [claim(client, runner, version).text for _ in range(3)]
    assert not any(re.search(r'"(timeout|time_in_queue_seconds|depth)":[0-9]+[.e]', text) for text in texts)
    found = [json.loads(text) for text in texts]
    assert [(job.get('runner_info') or job)['timeout'] for job in found] == [5796, 5430, 1234]


@pytest.mark.parametrize('job', [
    {'image': {'name': 'a', 'docker': 'arm64'}}, {'image': {'name': 'a', 'docker': {'platform': 64}}},
    {'image': {'name': 'a', 'kubernetes': {'user': [1]}}},
    {'services': [{'name': 5.5, 'alias': 7}]}, {'services': [{'name': 'a', 'variables': {'A': {'value': 1}}}]},
    {'script': ['x', 1, 2.5, True]}, {'cache': {'key': 1.5, 'paths': ['a']}}, {'variables': {'A': {'value': 5}}},
    {'artifacts': {'paths': ['a'], 'expire_in': 3600, 'name': 5}}])
def test_a_file_with_the_wrong_type_is_refused_or_put_right_before_a_runner_sees_it(ci, client, project, runner, job):
    with contextlib.suppress(minici.BadRequest):
        ci.create_pipeline(project, 'main', sha=SHA, content={'test': {'script': ['x'], **job}})
        assert list(misfits(claim(client, runner).json, V4)) == []


# -- today's payload, value by value

def test_the_smallest_job_asks_for_nothing_more_than_its_script(ci, client, project, runner, clock):
    ci.create_pipeline(project, 'main', sha=SHA, content=SMALLEST)
    clock.advance(5)
    job = claim(client, runner).json
    assert job['steps'] == [{'name': 'script', 'script': ['make test'], 'timeout': 3600, 'when': 'on_success',
                             'allow_failure': False}]
    assert [job[name] for name in ('image', 'services', 'artifacts', 'cache', 'dependencies', 'credentials')] == [
        None, [], None, [], [], []]
    assert job['job_info']['time_in_queue_seconds'] == 5
    assert (job['allow_git_fetch'], job['features']['trace_sections']) == (True, True)
    assert {'script_failure', 'image_pull_failure'} <= set(job['features']['failure_reasons'])
    assert any(job['token'].startswith(prefix) for prefix in job['features']['token_mask_prefixes'])
    assert not {'run', 'inputs', 'policy_options', 'secrets'} & set(job)


def test_scripts_and_images_arrive_as_they_were_written(client, everything):
    job = claim(client, everything).json
    script, after_script = job['steps']
    assert script == {'name': 'script', 'script': ['cd src', 'pwd', 'ls', 'make\nmake check\n'], 'timeout': 5760,
                      'when': 'on_success', 'allow_failure': False}
    assert after_script == {'name': 'after_script', 'script': ['rm -r tmp'], 'timeout': 5760, 'when': 'always',
                            'allow_failure': True}
    assert job['runner_info']['timeout'] == 5760
    assert job['hooks'] == [{'name': 'pre_get_sources_script', 'script': ['echo first']}]
    assert job['image'] == {'name': 'ruby:3.3', 'entrypoint': ['/bin/sh', '-c'], 'pull_policy': ['if-not-present'],
                            'executor_opts': {'docker': {'platform': 'arm64'}}}
    assert job['services'] == [{'name': 'redis:7'}, {
        'name': 'postgres:16', 'alias': 'db', 'command': ['postgres', '-c', 'fsync=off'], 'entrypoint': [''],
        'pull_policy': ['always', 'if-not-present'], 'variables': [{'key': 'POSTGRES_PASSWORD', 'value': '1234'}]}]


def test_artifacts_and_caches_arrive_as_lists_one_entry_for_each_upload(client, everything):
    job = claim(client, everything).json
    entries = {item['artifact_type']: item for item in job['artifacts']}
    assert entries['archive'] == {
        'name': '$CI_JOB_NAME', 'untracked': True, 'paths': ['out/', '*.log'], 'exclude': ['out/tmp/'],
        'when': 'always', 'expire_in': '1 week 3 days', 'artifact_type': 'archive', 'artifact_format': 'zip'}
    assert {kind: (item['artifact_format'], item['when'], item['paths']) for kind, item in entries.items()
            if kind != 'archive'} == {
        'junit': ('gzip', 'always', ['a.xml', 'b.xml']), 'dotenv': ('gzip', 'always', ['build.env']),
        'coverage_report': ('gzip', 'always', ['c.xml'])}
    gems, modules = job['cache']
    assert gems == {'key': 'gems-protected', 'untracked': True, 'paths': ['vendor/'], 'policy': 'pull',
                    'when': 'always', 'fallback_keys': ['gems-main-protected']}
    assert (modules['key'][:3], modules['policy'], modules['untracked']) == ('js-', 'pull-push', False)


def test_a_dependency_without_an_archive_has_no_artifacts_file(client, everything):
    job = claim(client, everything).json
    assert job['dependencies'] == [
        {'id': 1, 'name': 'version', 'token': job['token'], 'artifacts_file': {'filename': 'artifacts.zip', 'size': 2}},
        {'id': 2, 'name': 'silent', 'token': job['token']}]


@pytest.mark.parametrize('dependencies, names', [(None, ['a', 'b']), (['b'], ['b']), ([], [])])
def test_dependencies_are_all_earlier_jobs_or_those_that_are_named(ci, client, project, runner, dependencies, names):
    last = {'stage': 'deploy', 'script': ['x'], **({} if dependencies is None else {'dependencies': dependencies})}
    ci.create_pipeline(project, 'main', sha=SHA, content={
        'a': {'stage': 'build', 'script': ['x']}, 'b': {'stage': 'test', 'script': ['x']}, 'last': last})
    assert [runner.run(), runner.run()] == ['a', 'b']
    assert [item['name'] for item in claim(client, runner).json['dependencies']] == names


ALL_REFS = ['+refs/heads/*:refs/remotes/origin/*', '+refs/tags/*:refs/tags/*']


@pytest.mark.parametrize('depth', ['0', '20'])
@pytest.mark.parametrize('ref, tag, kind, refspec', [
    ('main', False, 'branch', '+refs/heads/main:refs/remotes/origin/main'),
    ('feature/x', False, 'branch', '+refs/heads/feature/x:refs/remotes/origin/feature/x'),
    ('v1.0', True, 'tag', '+refs/tags/v1.0:refs/tags/v1.0')])
def test_a_runner_is_told_which_commit_to_fetch_and_how(ci, client, project, runner, ref, tag, kind, refspec, depth):
    ci.create_pipeline(project, ref, sha=SHA, tag=tag, content={**PLAIN, 'variables': {'GIT_DEPTH': depth}})
    job = claim(client, runner).json
    assert job['git_info'] == {
        'repo_url': f'http://gitlab-ci-token:{job["token"]}@localhost:80/group/demo.git', 'ref': ref, 'sha': SHA,
        'before_sha': ZEROS, 'ref_type': kind, 'refspecs': ALL_REFS if depth == '0' else [refspec],
        'depth': int(depth), 'repo_object_format': 'sha1', 'protected': ref == 'main'}


@pytest.mark.parametrize('given, depth', [('20', 20), ('0', 0), ('', 0), ('deep', 0), ('-1', 0)])
def test_git_depth_is_a_number(ci, client, project, runner, given, depth):
    ci.create_pipeline(project, 'main', sha=SHA, content={**PLAIN, 'variables': {'GIT_DEPTH': given}})
    assert claim(client, runner).json['git_info']['depth'] == depth


def test_a_commit_of_64_digits_is_of_a_sha256_repository(ci, client, project, runner):
    ci.create_pipeline(project, 'main', sha='a' * 64, content=PLAIN)
    git_info = claim(client, runner).json['git_info']
    assert (git_info['sha'], git_info['repo_object_format']) == ('a' * 64, 'sha256')


@pytest.mark.parametrize('version', ['v4', 'v1'])
def test_a_foreign_repository_is_handed_out_without_any_token(ci, client, runner, version):
    project = ci.create_project('group/remote', import_url='https://git.example.com/demo.git')
    ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    answer = claim(client, runner, version)
    assert (answer.json.get('git_info') or answer.json)['repo_url'] == 'https://git.example.com/demo.git'
    assert variables_of(answer)['CI_REPOSITORY_URL']['value'] == 'https://git.example.com/demo.git'


# -- variables

@pytest.mark.parametrize('version', ['v4', 'v1'])
def test_variables_have_texts_whatever_the_file_has(client, everything, version):
    variables = variables_of(claim(client, everything, version))
    assert {name: variables[name]['value'] for name in ('NUMBER', 'HALF', 'FLAG', 'EMPTY', 'NOTHING')} == {
        'NUMBER': '7', 'HALF': '0.5', 'FLAG': 'true', 'EMPTY': '', 'NOTHING': ''}
    assert variables['NUMBER']['public'] is True
    assert (variables['SECRET']['value'], variables['SECRET']['public']) == ('x', False)
    assert (variables['VERSION']['value'], variables['VERSION']['public']) == ('1.2', False)
    assert (variables['CERTIFICATE']['value'], variables['CERTIFICATE']['file']) == ('PEM', True)
    assert [name for name, item in variables.items() if item.get('file')] == ['CERTIFICATE']
    assert [name for name, item in variables.items() if item.get('raw')] == (['RAW'] if version == 'v4' else [])
    assert variables['FROM_RULE']['value'] == '1'


@pytest.mark.parametrize('version', ['v4', 'v1'])
def test_no_variable_with_a_token_in_it_is_public(client, pipeline, runner, version):
    answer = claim(client, runner, version)
    secret = {name for name, item in variables_of(answer).items() if answer.json['token'] in item['value']}
    assert secret == {'CI_JOB_TOKEN', 'CI_BUILD_TOKEN', 'CI_REPOSITORY_URL'}
    variables = variables_of(answer)
    assert not any(variables[name]['public'] for name in secret)
    if version == 'v4':
        assert variables['CI_JOB_TOKEN']['masked'] is True


BRANCH = {
    'CI': 'true', 'GITLAB_CI': 'true', 'CI_SERVER': 'yes', 'CI_SERVER_NAME': 'GitLab', 'CI_NODE_TOTAL': '1',
    'CI_SERVER_URL': 'http://localhost:80', 'CI_SERVER_HOST': 'localhost', 'CI_SERVER_PORT': '80',
    'CI_SERVER_PROTOCOL': 'http', 'CI_API_V4_URL': 'http://localhost:80/api/v4', 'CI_CONFIG_PATH': '.gitlab-ci.yml',
    'CI_PROJECT_ID': '1', 'CI_PROJECT_NAME': 'demo', 'CI_PROJECT_TITLE': 'demo', 'CI_PROJECT_PATH': 'group/sub/demo',
    'CI_PROJECT_PATH_SLUG': 'group-sub-demo', 'CI_PROJECT_NAMESPACE': 'group/sub', 'CI_DEFAULT_BRANCH': 'main',
    'CI_PROJECT_ROOT_NAMESPACE': 'group', 'CI_PROJECT_URL': 'http://localhost:80/group/sub/demo',
    'CI_PROJECT_VISIBILITY': 'private', 'CI_PIPELINE_ID': '1', 'CI_PIPELINE_IID': '1', 'CI_PIPELINE_SOURCE': 'api',
    'CI_PIPELINE_URL': 'http://localhost:80/group/sub/demo/-/pipelines/1',
    'CI_PIPELINE_CREATED_AT': '2023-11-14T22:13:20Z', 'CI_COMMIT_SHA': SHA, 'CI_COMMIT_SHORT_SHA': SHA[:8],
    'CI_COMMIT_BEFORE_SHA': ZEROS, 'CI_COMMIT_REF_NAME': 'Fix/Ümlaut_1.0', 'CI_COMMIT_BRANCH': 'Fix/Ümlaut_1.0',
    'CI_COMMIT_REF_SLUG': 'fix--mlaut-1-0', 'CI_COMMIT_REF_PROTECTED': 'false', 'CI_JOB_ID': '1',
    'CI_JOB_NAME': 'Unit Tests: 1', 'CI_JOB_NAME_SLUG': 'unit-tests--1', 'CI_JOB_STAGE': 'test',
    'CI_JOB_URL': 'http://localhost:80/group/sub/demo/-/jobs/1', 'CI_JOB_STARTED_AT': '2023-11-14T22:13:27Z',
    'CI_RUNNER_ID': '1', 'CI_RUNNER_DESCRIPTION': 'rack 2', 'CI_RUNNER_TAGS': '["gpu", "linux"]',
    'GITLAB_USER_ID': '1', 'GITLAB_USER_LOGIN': 'ada', 'GITLAB_USER_NAME': 'ada', 'CI_JOB_IMAGE': 'ruby:3.3',
    'GITLAB_USER_EMAIL': '1-ada@users.noreply.localhost', 'GITLAB_FEATURES': '', 'CI_PROJECT_NAMESPACE_ID': '1',
    'CI_API_GRAPHQL_URL': 'http://localhost:80/api/graphql', 'CI_JOB_TAGS': '[]', 'CI_JOB_TIMEOUT': '3600',
    'CI_TEMPLATE_REGISTRY_HOST': 'registry.gitlab.com',
    'CI_COMMIT_MESSAGE_IS_TRUNCATED': 'false', 'CI_SERVER_VERSION_PATCH': minici.GITLAB_VERSION.split('.')[2],
}
#: What GitLab documents beside these, and why it is absent from such a job.
ABSENT = {
    'of chats, charts of issues and licenses': (
        'CHAT_CHANNEL', 'CHAT_INPUT', 'CHAT_USER_ID', 'CI_HAS_OPEN_REQUIREMENTS', 'CI_GITLAB_FIPS_MODE',
        'CI_PROJECT_CLASSIFICATION_LABEL', 'CI_DEPLOY_FREEZE'),
    'the runner sets it': (
        'CI_BUILDS_DIR', 'CI_CONCURRENT_ID', 'CI_CONCURRENT_PROJECT_ID', 'CI_DISPOSABLE_ENVIRONMENT', 'CI_JOB_STATUS',
        'CI_PROJECT_DIR', 'CI_RUNNER_EXECUTABLE_ARCH', 'CI_RUNNER_REVISION', 'CI_RUNNER_SHORT_TOKEN',
        'CI_RUNNER_VERSION', 'CI_SERVER_TLS_CA_FILE', 'CI_SERVER_TLS_CERT_FILE', 'CI_SERVER_TLS_KEY_FILE',
        'CI_SHARED_ENVIRONMENT'),
    'there is no such service': (
        'CI_DEPENDENCY_PROXY_DIRECT_GROUP_IMAGE_PREFIX', 'CI_DEPENDENCY_PROXY_GROUP_IMAGE_PREFIX',
        'CI_DEPENDENCY_PROXY_PASSWORD', 'CI_DEPENDENCY_PROXY_SERVER', 'CI_DEPENDENCY_PROXY_USER', 'CI_DEPLOY_PASSWORD',
        'CI_DEPLOY_USER', 'CI_KUBERNETES_ACTIVE', 'CI_PAGES_DOMAIN', 'CI_PAGES_URL', 'CI_REGISTRY', 'CI_REGISTRY_IMAGE',
        'CI_REGISTRY_PASSWORD', 'CI_REGISTRY_USER', 'CI_SERVER_SHELL_SSH_HOST', 'CI_SERVER_SHELL_SSH_PORT',
        'CI_PROJECT_REPOSITORY_LANGUAGES'),
    'only sometimes': (
        'CI_COMMIT_TAG', 'CI_COMMIT_TAG_MESSAGE', 'CI_DEBUG_TRACE', 'CI_DEBUG_SERVICES', 'CI_ENVIRONMENT_NAME',
        'CI_ENVIRONMENT_SLUG', 'CI_ENVIRONMENT_URL', 'CI_ENVIRONMENT_ACTION', 'CI_ENVIRONMENT_TIER', 'CI_JOB_MANUAL',
        'CI_NODE_INDEX', 'CI_OPEN_MERGE_REQUESTS', 'CI_PIPELINE_TRIGGERED', 'CI_PIPELINE_NAME', 'TRIGGER_PAYLOAD',
        'CI_TRIGGER_SHORT_TOKEN', 'CI_PIPELINE_SCHEDULE_DESCRIPTION', 'CI_PROJECT_DESCRIPTION', 'CI_UPSTREAM_JOB_ID',
        'CI_UPSTREAM_PIPELINE_ID', 'CI_UPSTREAM_PROJECT_ID', 'KUBECONFIG'),
    'a commit that could not be read has none': ('CI_COMMIT_AUTHOR', 'CI_COMMIT_TIMESTAMP'),
}
LEGACY = {
    'CI_BUILD_ID': 'CI_JOB_ID', 'CI_BUILD_REF': 'CI_COMMIT_SHA', 'CI_BUILD_BEFORE_SHA': 'CI_COMMIT_BEFORE_SHA',
    'CI_BUILD_REF_NAME': 'CI_COMMIT_REF_NAME', 'CI_BUILD_REF_SLUG': 'CI_COMMIT_REF_SLUG',
    'CI_BUILD_NAME': 'CI_JOB_NAME', 'CI_BUILD_STAGE': 'CI_JOB_STAGE', 'CI_BUILD_TOKEN': 'CI_JOB_TOKEN',
    'CI_BUILD_TAG': 'CI_COMMIT_TAG', 'CI_BUILD_MANUAL': 'CI_JOB_MANUAL', 'CI_BUILD_TRIGGERED': 'CI_PIPELINE_TRIGGERED',
}
SOMETIMES = ('CI_COMMIT_BRANCH', 'CI_COMMIT_TAG', 'CI_JOB_MANUAL', 'CI_PIPELINE_TRIGGERED')


def run(ci, client, clock, version='v4', **options):
    """Return the variables of the one job of a new pipeline."""
    project = ci.create_project('group/sub/demo')
    user = ci.find_user(ci.create_private_token('ada'))
    job = {'script': ['x'], 'image': 'ruby:3.3', **options.pop('job', {})}
    pipeline = ci.create_pipeline(project, options.pop('ref', 'main'), sha=SHA, content={'Unit Tests: 1': job},
                                  user=user, **options)
    clock.advance(7.25)
    if ci.find_pipeline(pipeline)['status'] == 'manual':
        ci.play_job(ci.list_jobs()[0], user)
    return variables_of(claim(client, Runner(ci, **OPTIONAL), version))


@pytest.mark.parametrize('version', ['v4', 'v1'])
def test_predefined_variables_of_a_branch_are_spelled_as_gitlab_spells_them(ci, client, clock, version):
    variables = run(ci, client, clock, version, ref='Fix/Ümlaut_1.0')
    assert {name: variables.get(name, {}).get('value') for name in BRANCH} == BRANCH
    assert all(variables[name]['public'] for name in BRANCH)
    assert not {'CI_COMMIT_TAG', 'CI_JOB_MANUAL', 'CI_PIPELINE_TRIGGERED', 'CI_MERGE_REQUEST_IID',
                'CI_OPEN_MERGE_REQUESTS', 'CI_REGISTRY', 'CI_PROJECT_DIR'} & set(variables)


@pytest.mark.parametrize('reason', ABSENT)
def test_what_gitlab_documents_is_absent_for_a_reason(ci, client, clock, reason):
    assert not set(ABSENT[reason]) & set(run(ci, client, clock))


def test_nothing_is_sent_that_gitlab_does_not_document(ci, client, clock):
    empty = {'CI_COMMIT_MESSAGE', 'CI_COMMIT_TITLE', 'CI_COMMIT_DESCRIPTION'}      # the commit could not be read
    secret = {'CI_JOB_TOKEN', 'CI_REPOSITORY_URL'}
    server = {f'CI_SERVER_{name}' for name in ('FQDN', 'VERSION', 'VERSION_MAJOR', 'VERSION_MINOR', 'REVISION')}
    assert set(run(ci, client, clock)) - set(LEGACY) == set(BRANCH) | empty | secret | server


def test_a_message_that_was_cut_says_so(ci, client, runner, tmp_path):
    commit(tmp_path / 'repository', 'x' * 100_000, **{'.gitlab-ci.yml': 'test: {script: [make]}'})
    project = ci.create_project('cut', import_url=f'file://{tmp_path}/repository')
    ci.create_pipeline(project, 'main')
    values = {name: item['value'] for name, item in variables_of(claim(client, runner)).items()}
    assert values['CI_COMMIT_MESSAGE_IS_TRUNCATED'] == 'true'
    assert 10_000 < len(values['CI_COMMIT_MESSAGE']) < 100_000


def test_the_job_names_its_tags_its_timeout_and_the_name_of_its_pipeline(ci, client, project, runner):
    ci.create_pipeline(project, 'main', sha=SHA, content={
        'workflow': {'name': 'Nightly'},
        'test': {'script': ['x'], 'tags': ['linux', 'gpu'], 'timeout': '20 minutes'}})
    values = {name: item['value'] for name, item in variables_of(claim(client, Runner(ci, **OPTIONAL))).items()}
    assert [values[name] for name in ('CI_JOB_TAGS', 'CI_JOB_TIMEOUT', 'CI_PIPELINE_NAME')] == [
        '["gpu", "linux"]', '1200', 'Nightly']


def test_the_job_info_names_whose_job_it_is_and_how_long_the_queue_was(ci, client, project):
    token = ci.create_private_token('ada')
    user = ci.find_user(token)
    second = ci.create_project('group/second')
    for _ in range(3):
        ci.create_pipeline(second, 'main', sha=SHA, content=PLAIN, user=user)
    claims = [claim(client, Runner(ci)).json for _ in range(2)]
    answers = [answer['job_info'] for answer in claims]
    assert [info['queue_size'] for info in answers] == [3, 2]
    namespace = client.call('GET', f'/api/v4/projects/{second["id"]}', token=token).json['namespace']['id']
    assert namespace == client.call('GET', f'/api/v4/projects/{project["id"]}', token=token).json['namespace']['id']
    names = ('user_id', 'namespace_id', 'root_namespace_id', 'queue_depth')
    assert [answers[0][name] for name in names] == [user['id'], namespace, namespace, 1]
    variables = {variable['key']: variable['value'] for variable in claims[0]['variables']}
    assert variables['CI_PROJECT_NAMESPACE_ID'] == str(namespace)


@pytest.mark.parametrize('options, there', [
    ({}, {'CI_COMMIT_BRANCH': 'main'}),
    ({'ref': 'v1.0', 'tag': True}, {'CI_COMMIT_TAG': 'v1.0'}),
    ({'job': {'when': 'manual', 'allow_failure': False}}, {'CI_COMMIT_BRANCH': 'main', 'CI_JOB_MANUAL': 'true'}),
    ({'source': 'trigger'}, {'CI_COMMIT_BRANCH': 'main', 'CI_PIPELINE_TRIGGERED': 'true'})])
def test_what_is_so_only_sometimes_is_said_only_then_and_old_names_say_the_same(ci, client, clock, options, there):
    variables = {name: item['value'] for name, item in run(ci, client, clock, **options).items()}
    assert {name: variables[name] for name in SOMETIMES if name in variables} == there
    assert variables['CI_PIPELINE_SOURCE'] == options.get('source', 'api')
    assert variables['CI_COMMIT_REF_NAME'] == options.get('ref', 'main')
    assert {old: variables.get(old) for old in LEGACY} == {old: variables.get(new) for old, new in LEGACY.items()}


def test_the_addresses_in_variables_are_those_that_the_runner_used(client, pipeline, runner):
    values = {name: item['value'] for name, item in variables_of(
        claim(client, runner, Host='ci.example:8443')).items()}
    assert (values['CI_SERVER_URL'], values['CI_SERVER_HOST'], values['CI_SERVER_PORT'], values['CI_SERVER_FQDN']) == (
        'http://ci.example:8443', 'ci.example', '8443', 'ci.example:8443')
    assert values['CI_JOB_URL'].startswith('http://ci.example:8443/group/')


def test_the_commit_is_told_when_the_repository_can_be_read(ci, client, runner, tmp_path):
    git = ('git', '-c', 'user.name=Ada', '-c', 'user.email=ada@example.com', '-c', 'init.defaultBranch=main')
    (tmp_path / '.gitlab-ci.yml').write_text('test: {script: [make]}')
    for words in (['init', '-q'], ['add', '.gitlab-ci.yml'],
                  ['commit', '-q', '--date=2026-01-31T16:47:55+01:00', '-m', 'Add “tests”\n\nAll of them.']):
        subprocess.run([*git, *words], cwd=tmp_path, check=True, env={
            'PATH': '/usr/local/bin:/usr/bin:/bin', 'HOME': str(tmp_path), 'GIT_COMMITTER_DATE': '1769874475 +0100'})
    project = ci.create_project('group/real', import_url=tmp_path.as_uri())
    pipeline = ci.create_pipeline(project, 'main')
    values = {name: item['value'] for name, item in variables_of(claim(client, runner)).items()}
    assert values['CI_COMMIT_SHA'] == pipeline['sha']
    assert values['CI_COMMIT_TITLE'] == 'Add “tests”'
    assert values['CI_COMMIT_MESSAGE'].startswith('Add “tests”\n\nAll of them.')
    assert values['CI_COMMIT_DESCRIPTION'].strip() == 'All of them.'
    assert values['CI_COMMIT_AUTHOR'] == 'Ada <ada@example.com>'
    assert values['CI_COMMIT_TIMESTAMP'] == '2026-01-31T16:47:55+01:00'


@pytest.mark.parametrize('played', [False, True])
def test_the_nearest_of_several_variables_of_one_name_comes_last(ci, client, project, runner, token, played):
    content = {'variables': {'A': 'file', 'B': 'file', 'C': 'file', 'CI_JOB_NAME': 'mine'},
               'test': {'script': ['x'], 'when': 'manual', 'variables': {'B': 'job', 'C': 'job', 'D': 'job'}}}
    ci.create_pipeline(project, 'main', sha=SHA, content=content, variables=[
        {'key': 'C', 'value': 'pipeline'}, {'key': 'D', 'value': 'pipeline'}])
    ci.play_job(ci.list_jobs()[0], variables=[{'key': 'D', 'value': 'played'}] if played else [])
    values = {name: item['value'] for name, item in variables_of(claim(client, runner)).items()}
    assert [values[name] for name in ('A', 'B', 'C', 'D', 'CI_JOB_NAME')] == [
        'file', 'job', 'pipeline', 'played' if played else 'pipeline', 'mine']


# -- the payload of 2016

def test_the_build_of_every_keyword_has_the_shapes_of_2016(client, everything):
    build = claim(client, everything, 'v1').json
    assert build['commands'] == 'cd src\npwd\nls\nmake\nmake check\n'
    assert build['options'] == {
        'image': 'ruby:3.3', 'services': ['redis:7', 'postgres:16'], 'after_script': ['rm -r tmp'],
        'dependencies': ['version', 'silent'],
        'artifacts': {'name': '$CI_JOB_NAME', 'untracked': True, 'paths': ['out/', '*.log'],
                      'exclude': ['out/tmp/'], 'when': 'always',
                      'expire_in': '1 week 3 days'},
        'cache': {'key': 'gems-protected', 'untracked': True, 'paths': ['vendor/']}}
    version, silent = build['depends_on_builds']
    assert (version['name'], version['artifacts_file']) == ('version', {'filename': 'artifacts.zip', 'size': 2})
    assert 'artifacts_file' not in silent
    assert build['timeout'] == 5760


def test_the_smallest_build_has_no_options(client, pipeline, runner):
    build = claim(client, runner, 'v1').json
    assert (build['options'], build['depends_on_builds'], build['commands']) == ({}, [], 'make test')


@pytest.mark.parametrize('environment, expected', [
    ('prod', {'NAME': 'prod', 'SLUG': 'prod', 'ACTION': 'start', 'TIER': 'production'}),
    ({'name': 'Review/x', 'url': 'https://x.example', 'action': 'stop'},
     {'NAME': 'Review/x', 'SLUG': 'review-x-cnx324', 'URL': 'https://x.example', 'ACTION': 'stop',
      'TIER': 'development'}),
    (None, {}),
])
def test_the_environment_of_a_job_is_in_its_variables(ci, client, project, runner, environment, expected):
    ci.create_pipeline(project, 'main', sha=SHA, content={'ship': {'script': 'make', 'environment': environment}})
    job = client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=201).json
    assert {item['key'].removeprefix('CI_ENVIRONMENT_'): item['value'] for item in job['variables']
            if item['key'].startswith('CI_ENVIRONMENT_')} == expected


# -- releases

RELEASE = {'tag_name': '$CI_COMMIT_TAG', 'name': 'Release $CI_COMMIT_TAG', 'description': 'A "quoted" `note`',
           'milestones': ['m1', 'm2'], 'assets': {'links': [{'name': 'manual', 'url': 'https://a.example/$CI_COMMIT_TAG'}]}}


def release_job(ci, project):
    return ci.create_pipeline(project, 'v1', sha=SHA, tag=True, content={
        'publish': {'script': ['make'], 'release': RELEASE, 'after_script': ['make clean']}})


def test_a_release_is_a_step_between_the_script_and_what_comes_after_it(ci, client, project, runner, tmp_path):
    release_job(ci, project)
    job = client.call('POST', '/api/v4/jobs/request', status=201, json={
        'token': runner.token, 'info': {'features': {'multi_build_steps': True}}}).json
    assert list(misfits(job, V4)) == []
    assert [(step['name'], step['when'], step['allow_failure']) for step in job['steps']] == [
        ('script', 'on_success', False), ('release', 'on_success', False), ('after_script', 'always', True)]
    tool = tmp_path / 'release-cli'
    tool.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    tool.chmod(0o755)
    said = subprocess.run(['bash', '-c', job['steps'][1]['script'][0]], capture_output=True, text=True, check=True,
                          env={'PATH': f'{tmp_path}:/usr/bin:/bin', 'CI_COMMIT_TAG': 'v1'}).stdout.splitlines()
    assert said == ['create', '--name', 'Release v1', '--description', 'A "quoted" `note`', '--tag-name', 'v1',
                    '--milestone', 'm1', '--milestone', 'm2',
                    '--assets-link', '{"name":"manual","url":"https://a.example/v1"}']


@pytest.mark.parametrize('path', ['/api/v4/jobs/request', '/ci/api/v1/builds/register'])
def test_a_runner_that_would_leave_the_release_out_gets_the_next_job_instead(ci, client, project, runner, path):
    release_job(ci, project)
    ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    assert 'make test' in client.call('POST', path, json={'token': runner.token}, status=201).text
    dropped, = ci.list_jobs(project=project, scope=['failed'])
    assert (dropped['name'], dropped['failure_reason']) == ('publish', 'runner_unsupported')
