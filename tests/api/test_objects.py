"""Every object that the API sends, beside GitLab's documentation: which fields, of which types, and which may be null.

`DOCUMENTED` has the facts of GitLab's API documentation and of the schemas that its own tests hold it to. What
differs here stands in `ADDED` and `ABSENT`, with the reason.
"""

import gzip
import json

import pytest
from support import Client, Clock, Runner, archive, commit, git

import minici

SHA = '0' * 40
BASIC_USER = {'id': 'int', 'username': 'str', 'name': 'str', 'state': 'str', 'locked': 'bool', 'public_email': 'str?',
              'avatar_url': 'str?', 'web_url': 'str'}
USER = {**BASIC_USER, 'created_at': 'str', 'bio': 'str?', 'location': 'str?', 'linkedin': 'str', 'twitter': 'str',
        'discord': 'str', 'website_url': 'str', 'github': 'str', 'job_title': 'str', 'pronouns': 'str?',
        'organization': 'str?', 'bot': 'bool', 'work_information': 'str?', 'followers': 'int', 'following': 'int',
        'local_time': 'str?', 'is_admin': 'bool'}
COMMIT = {'id': 'str', 'short_id': 'str', 'created_at': 'str', 'parent_ids': 'list', 'title': 'str', 'message': 'str',
          'author_name': 'str', 'author_email': 'str', 'authored_date': 'str', 'committer_name': 'str',
          'committer_email': 'str', 'committed_date': 'str', 'trailers': 'dict', 'extended_trailers': 'dict',
          'web_url': 'str'}
BASIC_PIPELINE = {'id': 'int', 'iid': 'int', 'project_id': 'int', 'sha': 'str', 'ref': 'str', 'status': 'str',
                  'source': 'str', 'created_at': 'str', 'updated_at': 'str', 'web_url': 'str'}
BASIC_JOB = {'id': 'int', 'status': 'str', 'stage': 'str', 'name': 'str', 'ref': 'str', 'tag': 'bool',
             'coverage': 'float?', 'allow_failure': 'bool', 'created_at': 'str', 'started_at': 'str?',
             'finished_at': 'str?', 'erased_at': 'str?', 'duration': 'float?', 'queued_duration': 'float?',
             'user': 'dict', 'commit': 'dict?', 'pipeline': 'dict', 'web_url': 'str', 'project': 'dict'}
RUNNER = {'id': 'int', 'description': 'str?', 'ip_address': 'str?', 'active': 'bool', 'paused': 'bool',
          'is_shared': 'bool', 'runner_type': 'str', 'name': 'str?', 'online': 'bool?', 'created_by': 'dict?',
          'created_at': 'str', 'status': 'str', 'job_execution_status': 'str'}
MACHINE = {'version': 'str?', 'revision': 'str?', 'platform': 'str?', 'architecture': 'str?'}
PROJECT = {'id': 'int', 'description': 'str?', 'name': 'str', 'name_with_namespace': 'str', 'path': 'str',
           'path_with_namespace': 'str', 'created_at': 'str'}
COUNTS = {'total_time': 'float', 'total_count': 'int', 'success_count': 'int', 'failed_count': 'int',
          'skipped_count': 'int', 'error_count': 'int'}
ENVIRONMENT = {'id': 'int', 'name': 'str', 'slug': 'str', 'external_url': 'str?', 'created_at': 'str',
               'updated_at': 'str'}
VARIABLE = {'key': 'str', 'variable_type': 'str', 'value': 'str?', 'raw': 'bool'}
ACCESS_LEVEL = {'id': 'int', 'access_level': 'int', 'access_level_description': 'str'}

#: What GitLab documents of each object.
DOCUMENTED = {
    'user': BASIC_USER,
    'user, whole': USER,
    'commit': COMMIT,
    'commit, whole': {**COMMIT, 'stats': 'dict', 'status': 'str?', 'project_id': 'int', 'last_pipeline': 'dict?'},
    'pipeline of a list': {**BASIC_PIPELINE, 'name': 'str?'},
    'pipeline': {
        **BASIC_PIPELINE, 'name': 'str?', 'before_sha': 'str?', 'tag': 'bool', 'yaml_errors': 'str?', 'user': 'dict?',
        'started_at': 'str?', 'finished_at': 'str?', 'committed_at': 'str?', 'duration': 'int?',
        'queued_duration': 'int?', 'coverage': 'str?', 'detailed_status': 'dict'},
    'pipeline of a job': BASIC_PIPELINE,
    'detailed status': {
        'icon': 'str', 'text': 'str', 'label': 'str', 'group': 'str', 'tooltip': 'str', 'has_details': 'bool',
        'details_path': 'str', 'illustration': 'dict?', 'favicon': 'str'},
    'job': {
        **BASIC_JOB, 'artifacts_file': 'dict?', 'artifacts': 'list', 'runner': 'dict?', 'runner_manager': 'dict?',
        'artifacts_expire_at': 'str?', 'archived': 'bool', 'tag_list': 'list'},
    'project of a job': {'ci_job_token_scope_enabled': 'bool'},
    'artifact': {'file_type': 'str', 'size': 'int', 'filename': 'str', 'file_format': 'str?'},
    'artifacts file': {'filename': 'str', 'size': 'int'},
    'bridge': {**BASIC_JOB, 'downstream_pipeline': 'dict?'},
    'runner of a list': RUNNER,
    'runner': {
        **RUNNER, **MACHINE, 'tag_list': 'list', 'run_untagged': 'bool', 'locked': 'bool', 'maximum_timeout': 'int?',
        'access_level': 'str', 'contacted_at': 'str?', 'maintenance_note': 'str?', 'projects': 'list',
        'groups': 'list'},
    'runner manager': {
        **MACHINE, 'id': 'int', 'system_id': 'str', 'created_at': 'str', 'contacted_at': 'str?', 'ip_address': 'str?',
        'status': 'str', 'job_execution_status': 'str'},
    'project': PROJECT,
    'namespace': {'id': 'int', 'name': 'str', 'path': 'str', 'kind': 'str', 'full_path': 'str', 'parent_id': 'int?',
                  'avatar_url': 'str?', 'web_url': 'str'},
    'environment of a list': {
        **ENVIRONMENT, 'tier': 'str', 'state': 'str', 'auto_stop_at': 'str?', 'description': 'str?'},
    'environment': {
        **ENVIRONMENT, 'tier': 'str', 'state': 'str', 'auto_stop_at': 'str?', 'description': 'str?',
        'last_deployment': 'dict?'},
    'deployment': {
        'id': 'int', 'iid': 'int', 'ref': 'str', 'sha': 'str', 'created_at': 'str', 'updated_at': 'str',
        'user': 'dict?', 'environment': 'dict', 'deployable': 'dict?', 'status': 'str'},
    'environment of a deployment': ENVIRONMENT,
    'branch': {
        'name': 'str', 'commit': 'dict', 'merged': 'bool', 'protected': 'bool', 'default': 'bool',
        'developers_can_push': 'bool', 'developers_can_merge': 'bool', 'can_push': 'bool', 'web_url': 'str'},
    'tag': {
        'name': 'str', 'message': 'str?', 'target': 'str', 'commit': 'dict', 'release': 'dict?', 'protected': 'bool',
        'created_at': 'str?'},
    'release of a tag': {'tag_name': 'str', 'description': 'str?'},
    'release': {
        'name': 'str', 'tag_name': 'str', 'description': 'str?', 'created_at': 'str', 'released_at': 'str',
        'author': 'dict', 'commit': 'dict', 'upcoming_release': 'bool', 'milestones': 'list', 'commit_path': 'str',
        'tag_path': 'str', 'assets': 'dict', 'evidences': 'list', '_links': 'dict'},
    'assets of a release': {'count': 'int', 'sources': 'list', 'links': 'list'},
    'link of a release': {
        'id': 'int', 'name': 'str', 'url': 'str', 'direct_asset_url': 'str', 'link_type': 'str'},
    'schedule of a list': {
        'id': 'int', 'description': 'str', 'ref': 'str', 'cron': 'str', 'cron_timezone': 'str', 'next_run_at': 'str?',
        'active': 'bool', 'created_at': 'str', 'updated_at': 'str', 'owner': 'dict?'},
    'schedule': {
        'id': 'int', 'description': 'str', 'ref': 'str', 'cron': 'str', 'cron_timezone': 'str', 'next_run_at': 'str?',
        'active': 'bool', 'created_at': 'str', 'updated_at': 'str', 'owner': 'dict?', 'last_pipeline': 'dict?',
        'variables': 'list', 'inputs': 'list'},
    'variable of a schedule': VARIABLE,
    'variable': {
        **VARIABLE, 'hidden': 'bool', 'protected': 'bool', 'masked': 'bool', 'environment_scope': 'str',
        'description': 'str?'},
    'variable of a pipeline': VARIABLE,
    'trigger': {
        'id': 'int', 'token': 'str', 'description': 'str', 'created_at': 'str', 'updated_at': 'str',
        'last_used': 'str?', 'expires_at': 'str?', 'owner': 'dict?'},
    'status of a commit': {
        'id': 'int', 'sha': 'str', 'ref': 'str', 'status': 'str', 'name': 'str', 'target_url': 'str',
        'description': 'str?', 'created_at': 'str', 'started_at': 'str?', 'finished_at': 'str?',
        'allow_failure': 'bool', 'coverage': 'float?', 'pipeline_id': 'int', 'author': 'dict?'},
    'test report': {**COUNTS, 'test_suites': 'list'},
    'test suite': {**COUNTS, 'name': 'str', 'suite_error': 'str?', 'test_cases': 'list'},
    'test case': {
        'status': 'str', 'name': 'str', 'classname': 'str?', 'file': 'str?', 'execution_time': 'float',
        'system_output': 'str?', 'stack_trace': 'str?', 'recent_failures': 'dict?', 'attachment_url': 'str?'},
    'test report in short': {'total': 'dict', 'test_suites': 'list'},
    'total of a test report': {
        'time': 'float', 'count': 'int', 'success': 'int', 'failed': 'int', 'skipped': 'int', 'error': 'int',
        'suite_error': 'str?'},
    'test suite in short': {**COUNTS, 'name': 'str', 'build_ids': 'list', 'suite_error': 'str?'},
    'private token': {
        'id': 'int', 'name': 'str', 'revoked': 'bool', 'created_at': 'str', 'description': 'str?', 'scopes': 'list',
        'user_id': 'int', 'last_used_at': 'str?', 'active': 'bool', 'expires_at': 'str?'},
    'protected branch': {
        'id': 'int', 'name': 'str', 'push_access_levels': 'list', 'merge_access_levels': 'list',
        'allow_force_push': 'bool'},
    'access level': ACCESS_LEVEL,
    'lint': {'valid': 'bool', 'errors': 'list', 'warnings': 'list', 'merged_yaml': 'str?', 'includes': 'list',
             'jobs': 'list'},
    'version': {'version': 'str', 'revision': 'str', 'kas': 'dict', 'enterprise': 'bool'},
}
EVERYWHERE = 'the user of a job has these; GitLab shows fewer elsewhere'
#: Fields that minici sends beyond these, and why.
ADDED = {
    'user': {EVERYWHERE: {*USER, 'skype'} - {*BASIC_USER}},
    'user, whole': {'older GitLabs have it, and so does the oldest page of the API': {'skype'}},
    'job': {'why it waits, and whether its trace came whole': {'pending_reason', 'trace_mismatch'},
            'the oldest page of the API has it': {'download_url'},
            'GitLab sends it for failed jobs alone': {'failure_reason'}},
    'bridge': {'why it waits': {'pending_reason', 'trace_mismatch'},
               'the oldest page of the API has it': {'download_url'}, 'as jobs have it': {'archived'}},
    'project': {'of the whole object of a project, what minici has a setting or an answer for': {
        'archived', 'avatar_url', 'build_git_strategy', 'build_timeout', 'default_branch', 'empty_repo', 'forks_count',
        'ci_allow_fork_pipelines_to_run_in_parent_project', 'ci_config_path', 'http_url_to_repo', 'import_url',
        'jobs_enabled', 'last_activity_at', 'namespace', 'permissions', 'readme_url', 'runners_token',
        'shared_runners_enabled', 'ssh_url_to_repo', 'star_count', 'tag_list', 'topics', 'visibility', 'web_url'},
        'what a forge needs to call minici': {'webhook_token', 'webhook_url'}},
    'protected branch': {'one object serves branches and tags': {'create_access_levels'},
                         'GitLab Premium has it': {'code_owner_approval_required'}},
    'lint': {'older GitLabs have it': {'status'}},
}
#: Documented fields that minici does not send, and why.
ABSENT = {'commit, whole': {'minici counts no changed lines': {'stats'}}}
#: Fields that are null although GitLab's are not, and why.
NULL = {'job': {'nobody started what a webhook or a program in Python made': {'user'}}}


@pytest.fixture(scope='module')
def sent(tmp_path_factory):
    """Return every kind of object that the API sends, by the names of `DOCUMENTED`, from a world that has them all."""
    folder = tmp_path_factory.mktemp('world')
    with minici.Coordinator(folder / 'ci.sqlite', clock=Clock(), fsync=False) as ci:
        token, project = fill(ci, folder)
        client = Client(ci)

        def get(path, method='GET', **body):
            return client.call(method, f'/api/v4{path}', token=token, **body).json

        here = '/projects/1'
        get(f'{here}/pipeline_schedules/1/variables', 'POST', json={'key': 'A', 'value': '1'})
        job, waiting = get(f'{here}/jobs/1'), get(f'{here}/jobs/2')
        pipeline, bridge = get(f'{here}/pipelines/1'), get(f'{here}/pipelines/1/bridges')[0]
        report, short = (get(f'{here}/pipelines/1/{name}') for name in ('test_report', 'test_report_summary'))
        environments, releases = get(f'{here}/environments'), get(f'{here}/releases')
        shown = [get(f'{here}/environments/{one["id"]}') for one in environments]
        branches, tags = get(f'{here}/repository/branches'), get(f'{here}/repository/tags')
        schedule, protected = get(f'{here}/pipeline_schedules/1'), get(f'{here}/protected_branches')
        runner = get('/runners/1')
        deployments = [one['last_deployment'] for one in shown if one['last_deployment']]
        assert deployments
        yield {
            'user': [pipeline['user'], schedule['owner'], releases[0]['author']],
            'user, whole': [job['user'], *get('/users'), get('/user')],
            'commit': [job['commit'], waiting['commit'], branches[0]['commit'], *[tag['commit'] for tag in tags],
                       releases[0]['commit']],
            'commit, whole': [get(f'{here}/repository/commits/main')],
            'pipeline of a list': get(f'{here}/pipelines'),
            'pipeline': [pipeline, get(f'{here}/pipelines/2')],
            'pipeline of a job': [job['pipeline']],
            'detailed status': [pipeline['detailed_status']],
            'job': [*get(f'{here}/jobs'), *get('/runners/1/jobs')],
            'project of a job': [job['project']],
            'artifact': job['artifacts'],
            'artifacts file': [job['artifacts_file']],
            'bridge': [bridge],
            'runner of a list': [*get('/runners/all'), job['runner']],
            'runner': [runner, get('/runners/2')],
            'runner manager': [*get('/runners/1/managers'), job['runner_manager']],
            'project': [get(here), *get('/projects'), *get('/runners/2')['projects']],
            'namespace': [one['namespace'] for one in get('/projects')],
            'environment of a list': environments,
            'environment': shown,
            'deployment': deployments,
            'environment of a deployment': [one['environment'] for one in deployments],
            'branch': branches,
            'tag': tags,
            'release of a tag': [one['release'] for one in tags if one['release']],
            'release': releases,
            'assets of a release': [one['assets'] for one in releases],
            'link of a release': releases[0]['assets']['links'],
            'schedule of a list': get(f'{here}/pipeline_schedules'),
            'schedule': [schedule],
            'variable of a schedule': schedule['variables'],
            'variable': get(f'{here}/variables'),
            'variable of a pipeline': get(f'{here}/pipelines/1/variables'),
            'trigger': get(f'{here}/triggers'),
            'status of a commit': get(f'{here}/repository/commits/main/statuses'),
            'test report': [report],
            'test suite': report['test_suites'],
            'test case': report['test_suites'][0]['test_cases'],
            'test report in short': [short],
            'total of a test report': [short['total']],
            'test suite in short': short['test_suites'],
            'private token': [get('/personal_access_tokens/self')],
            'protected branch': protected,
            'access level': protected[0]['push_access_levels'],
            'lint': [get('/ci/lint', 'POST', json={'content': 'test: {script: make}', 'include_jobs': True})],
            'version': [get('/version'), get('/metadata')],
        }


def fill(ci, folder):
    """Make something of everything; return a private token and the project."""
    token = ci.create_private_token('root')
    user = ci.find_user(token)
    content = {
        'stages': ['test', 'deploy'],
        'unit': {'stage': 'test', 'script': ['x'], 'tags': ['x'], 'coverage': '/([0-9]+)%/'},
        'broken': {'stage': 'test', 'script': ['x'], 'allow_failure': True, 'environment': 'review'},
        'ship': {'stage': 'deploy', 'script': ['x'], 'environment': {'name': 'live', 'url': 'https://live.example'}},
        'child': {'stage': 'deploy', 'trigger': {'include': 'child.yml'}}}
    commit(folder / 'demo', 'first', **{'.gitlab-ci.yml': json.dumps(content), 'child.yml': 'inner: {script: make}'})
    git(folder / 'demo', 'tag', 'v1')
    git(folder / 'demo', 'tag', '--annotate', '--message', 'second', 'v2')
    project = ci.create_project('group/demo', import_url=f'file://{folder}/demo')
    ci.create_project('alone')
    ci.set_variable(project, 'KEY', 'value')
    ci.set_variable(project, 'HIDDEN', 'not-to-be-shown', hidden=True)
    ci.create_trigger(project, user, 'nightly')
    ci.create_schedule(project, user, description='nightly', ref='main', cron='0 3 * * *')
    ci.create_release(project, 'v1', description='notes', user_id=user['id'],
                      links=[{'name': 'binary', 'url': 'https://x.example/b'}])
    ci.create_pipeline(project, 'main', source='push', user=user, variables=[{'key': 'A', 'value': '1'}])
    said = {'name': 'gitlab-runner', 'version': '18.9.0', 'revision': 'abc', 'platform': 'linux',
            'architecture': 'amd64'}
    runner = Runner(ci, description='box', tag_list=['x'], info=said)
    Runner(ci, token=project['runners_token'])
    ci.contact(runner.row, said, '192.0.2.1', 's_1')
    claim = ci.request_job(runner.row, system_id='s_1')
    for content, kind, file_format in ((gzip.compress(JUNIT), 'junit', 'gzip'), (archive(a='b'), 'archive', 'zip')):
        part = ci.artifacts.receive()
        part.filename = f'{kind}.{file_format}'
        part.write(content)
        ci.store_artifacts(claim.job, part, file_type=kind, file_format=file_format)
        part.discard()
    ci.append_trace(claim.job, 0, b'90%\n')
    ci.update_job(claim.job, 'success')
    runner.run('failed')
    ci.start_bridges()
    runner.run()
    ci.create_pipeline(project, 'main', sha=SHA, content={'test': {'script': ['x'], 'when': 'manual'}})
    return token, project


JUNIT = b"""<testsuite name="s"><testcase name="good" classname="c" file="f" time="1.5"/>
<testcase name="bad"><failure message="no">why</failure></testcase></testsuite>"""


def kind_of(value):
    """Return the type of a JSON value; a whole number is a float, too, where one is documented."""
    return type(value).__name__


def differences(name, entity):
    """Yield how an object differs from what is documented, but for what `ADDED` and `ABSENT` explain."""
    documented = DOCUMENTED[name]
    added = set().union(*ADDED.get(name, {}).values())
    absent = set().union(*ABSENT.get(name, {}).values())
    for field in sorted(documented.keys() - entity.keys() - absent):
        yield f'{field} is missing'
    for field, value in entity.items():
        if field not in documented:
            if field not in added:
                yield f'{field} is not documented'
            continue
        wanted = documented[field].rstrip('?')
        if value is None:
            if not documented[field].endswith('?') and field not in set().union(*NULL.get(name, {}).values()):
                yield f'{field} is null'
        elif kind_of(value) != wanted and (kind_of(value), wanted) != ('int', 'float'):
            yield f'{field} is {kind_of(value)}, not {wanted}'


@pytest.mark.parametrize('name', DOCUMENTED)
def test_an_object_is_as_gitlab_documents_it(sent, name):
    entities = sent[name]
    assert entities
    assert sorted({difference for entity in entities for difference in differences(name, entity)}) == []


def test_every_explained_difference_is_one(sent):
    for name, reasons in ADDED.items():
        fields = set().union(*(entity.keys() for entity in sent[name] if entity))
        assert set().union(*reasons.values()) - fields == set(), name
        assert not set().union(*reasons.values()) & DOCUMENTED[name].keys(), name
