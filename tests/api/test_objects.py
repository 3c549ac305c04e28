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
#: A project in a list to which it is incidental: of a runner, of an allowlist.
BASIC_PROJECT = {
    'id': 'int', 'description': 'str?', 'name': 'str', 'name_with_namespace': 'str', 'path': 'str',
    'path_with_namespace': 'str', 'created_at': 'str', 'default_branch': 'str', 'tag_list': 'list', 'topics': 'list',
    'ssh_url_to_repo': 'str', 'http_url_to_repo': 'str', 'web_url': 'str', 'readme_url': 'str?', 'forks_count': 'int',
    'avatar_url': 'str?', 'star_count': 'int', 'last_activity_at': 'str', 'visibility': 'str', 'namespace': 'dict',
    'repository_storage': 'str'}
ACCESS_LEVELS = ('issues', 'repository', 'merge_requests', 'forking', 'wiki', 'builds', 'snippets', 'pages',
                 'analytics', 'container_registry', 'security_and_compliance', 'releases', 'environments',
                 'feature_flags', 'infrastructure', 'monitor', 'model_experiments', 'model_registry')
PROJECT = {
    **BASIC_PROJECT, **{f'{name}_access_level': 'str' for name in ACCESS_LEVELS},
    'container_registry_image_prefix': 'str', '_links': 'dict', 'packages_enabled': 'bool', 'empty_repo': 'bool',
    'archived': 'bool', 'owner': 'dict', 'resolve_outdated_diff_discussions': 'bool',
    'container_expiration_policy': 'dict', 'repository_object_format': 'str', 'issues_enabled': 'bool',
    'merge_requests_enabled': 'bool', 'wiki_enabled': 'bool', 'jobs_enabled': 'bool', 'snippets_enabled': 'bool',
    'container_registry_enabled': 'bool', 'service_desk_enabled': 'bool', 'service_desk_address': 'str?',
    'can_create_merge_request_in': 'bool', 'emails_disabled': 'bool', 'emails_enabled': 'bool',
    'shared_runners_enabled': 'bool', 'lfs_enabled': 'bool', 'creator_id': 'int', 'mr_default_target_self': 'bool',
    'forked_from_project': 'dict', 'import_url': 'str?', 'import_type': 'str?', 'import_status': 'str',
    'import_error': 'str?', 'open_issues_count': 'int', 'description_html': 'str', 'updated_at': 'str',
    'permissions': 'dict', 'ci_default_git_depth': 'int?', 'ci_delete_pipelines_in_seconds': 'int?',
    'ci_forward_deployment_enabled': 'bool', 'ci_forward_deployment_rollback_allowed': 'bool',
    'ci_job_token_scope_enabled': 'bool', 'ci_separated_caches': 'bool',
    'ci_allow_fork_pipelines_to_run_in_parent_project': 'bool', 'ci_id_token_sub_claim_components': 'list',
    'ci_restrict_pipeline_cancellation_role': 'str', 'build_git_strategy': 'str', 'keep_latest_artifact': 'bool',
    'restrict_user_defined_variables': 'bool', 'ci_pipeline_variables_minimum_override_role': 'str',
    'ci_push_repository_for_job_token_allowed': 'bool', 'group_runners_enabled': 'bool',
    'runner_token_expiration_interval': 'int?', 'auto_cancel_pending_pipelines': 'str', 'build_timeout': 'int',
    'auto_devops_enabled': 'bool', 'auto_devops_deploy_strategy': 'str', 'ci_config_path': 'str?',
    'public_jobs': 'bool', 'shared_with_groups': 'list', 'only_allow_merge_if_pipeline_succeeds': 'bool',
    'allow_merge_on_skipped_pipeline': 'bool', 'request_access_enabled': 'bool',
    'only_allow_merge_if_all_discussions_are_resolved': 'bool', 'remove_source_branch_after_merge': 'bool',
    'printing_merge_request_link_enabled': 'bool', 'merge_method': 'str', 'squash_option': 'str',
    'enforce_auth_checks_on_uploads': 'bool', 'suggestion_commit_message': 'str?', 'merge_commit_template': 'str?',
    'squash_commit_template': 'str?', 'issue_branch_template': 'str?',
    'warn_about_potentially_unwanted_characters': 'bool', 'autoclose_referenced_issues': 'bool',
    'license_url': 'str?', 'license': 'dict?', 'statistics': 'dict', 'custom_attributes': 'list',
    'approvals_before_merge': 'int', 'mirror': 'bool', 'mirror_user_id': 'int', 'mirror_trigger_builds': 'bool',
    'only_mirror_protected_branches': 'bool', 'mirror_overwrites_diverged_branches': 'bool',
    'external_authorization_classification_label': 'str?', 'marked_for_deletion_at': 'str?',
    'marked_for_deletion_on': 'str?', 'compliance_frameworks': 'list', 'secret_push_protection_enabled': 'bool',
    'allow_pipeline_trigger_approve_deployment': 'bool', 'only_allow_merge_if_all_status_checks_passed': 'bool',
    'spp_repository_pipeline_access': 'bool', 'issues_template': 'str?', 'merge_requests_template': 'str?'}
RUNNERS_TOKEN = {'runners_token': 'str'}
COUNTS = {'total_time': 'float', 'total_count': 'int', 'success_count': 'int', 'failed_count': 'int',
          'skipped_count': 'int', 'error_count': 'int'}
ENVIRONMENT = {'id': 'int', 'name': 'str', 'slug': 'str', 'external_url': 'str?', 'created_at': 'str',
               'updated_at': 'str'}
CLUSTER = {'kubernetes_namespace': 'str?', 'flux_resource_path': 'str?', 'auto_stop_setting': 'str',
           'enable_advanced_logs_querying': 'bool', 'logs_api_path': 'str'}
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
        **BASIC_PIPELINE, 'name': 'str?', 'archived': 'bool', 'before_sha': 'str?', 'tag': 'bool',
        'yaml_errors': 'str?', 'user': 'dict?',
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
    'project': {**PROJECT, **RUNNERS_TOKEN},
    'project of a list': PROJECT,
    'project of a runner': BASIC_PROJECT,
    'links of a project': {'self': 'str', 'issues': 'str', 'merge_requests': 'str', 'repo_branches': 'str',
                           'labels': 'str', 'events': 'str', 'members': 'str', 'cluster_agents': 'str'},
    'permissions': {'project_access': 'dict?', 'group_access': 'dict?'},
    'access': {'access_level': 'int', 'notification_level': 'int'},
    'allowed project': {'source_project_id': 'int', 'target_project_id': 'int'},
    'namespace': {'id': 'int', 'name': 'str', 'path': 'str', 'kind': 'str', 'full_path': 'str', 'parent_id': 'int?',
                  'avatar_url': 'str?', 'web_url': 'str'},
    'environment of a list': {
        **ENVIRONMENT, 'tier': 'str', 'state': 'str', 'auto_stop_at': 'str?', 'description': 'str?',
        **CLUSTER},
    'environment': {
        **ENVIRONMENT, 'tier': 'str', 'state': 'str', 'auto_stop_at': 'str?', 'description': 'str?',
        'last_deployment': 'dict?', 'cluster_agent': 'dict?', **CLUSTER},
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
    'links of a release': {
        'self': 'str', 'edit_url': 'str', 'closed_issues_url': 'str', 'closed_merge_requests_url': 'str',
        'merged_merge_requests_url': 'str', 'opened_issues_url': 'str', 'opened_merge_requests_url': 'str'},
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
        'allow_force_push': 'bool', 'code_owner_approval_required': 'bool'},
    'access level': ACCESS_LEVEL,
    'lint': {'valid': 'bool', 'errors': 'list', 'warnings': 'list', 'merged_yaml': 'str?', 'includes': 'list',
             'jobs': 'list'},
    'job of a lint': {
        'name': 'str', 'stage': 'str', 'before_script': 'list', 'script': 'list', 'after_script': 'list',
        'tag_list': 'list', 'only': 'dict?', 'except': 'dict?', 'environment': 'str?', 'when': 'str',
        'allow_failure': 'bool', 'needs': 'list?'},
    'protected tag': {'name': 'str', 'create_access_levels': 'list'},
    'new runner': {'id': 'int', 'token': 'str', 'token_expires_at': 'str?'},
    'new token of a runner': {'token': 'str', 'token_expires_at': 'str?'},
    'new registration token': {'token': 'str'},
    'agent server': {'enabled': 'bool', 'externalUrl': 'str?', 'externalK8sProxyUrl': 'str?', 'version': 'str?'},
    'version': {'version': 'str', 'revision': 'str', 'kas': 'dict', 'enterprise': 'bool'},
}
#: Documented fields of a project that minici does not send, and why.
NO_SUCH = {
    'minici has no issues and no merge requests': {
        'open_issues_count', 'can_create_merge_request_in', 'mr_default_target_self', 'merge_method', 'squash_option',
        'resolve_outdated_diff_discussions', 'only_allow_merge_if_pipeline_succeeds', 'merge_requests_template',
        'allow_merge_on_skipped_pipeline', 'only_allow_merge_if_all_discussions_are_resolved', 'issues_template',
        'remove_source_branch_after_merge', 'printing_merge_request_link_enabled', 'suggestion_commit_message',
        'merge_commit_template', 'squash_commit_template', 'issue_branch_template', 'autoclose_referenced_issues',
        'approvals_before_merge', 'only_allow_merge_if_all_status_checks_passed', 'service_desk_address'},
    'minici writes to no repository, copies none and forks none': {
        'mirror_user_id', 'mirror_trigger_builds', 'only_mirror_protected_branches', 'repository_object_format',
        'mirror_overwrites_diverged_branches', 'forked_from_project', 'import_type', 'import_error',
        'license', 'license_url', 'repository_storage'},
    'a project has one level of access for all of its parts: `permissions`': {
        *(f'{name}_access_level' for name in ACCESS_LEVELS), 'ci_restrict_pipeline_cancellation_role',
        'ci_pipeline_variables_minimum_override_role', 'enforce_auth_checks_on_uploads'},
    'minici keeps no containers': {
        'container_registry_image_prefix', 'container_expiration_policy'},
    'nobody owns a project, and nobody is told of it by mail': {
        'owner', 'creator_id', 'emails_disabled', 'emails_enabled'},
    'minici does not ask, or does not remember': {
        'updated_at', 'description_html', 'statistics', 'custom_attributes', 'runner_token_expiration_interval',
        'warn_about_potentially_unwanted_characters', 'external_authorization_classification_label',
        'auto_devops_deploy_strategy', 'marked_for_deletion_at', 'marked_for_deletion_on', 'compliance_frameworks',
        'secret_push_protection_enabled', 'spp_repository_pipeline_access'},
    'minici has no such setting of CI': {
        'ci_delete_pipelines_in_seconds', 'ci_forward_deployment_rollback_allowed',
        'ci_id_token_sub_claim_components', 'allow_pipeline_trigger_approve_deployment'},
}
NO_CLUSTER = {'minici knows no clusters and no pages of logs of what is deployed': {
    'kubernetes_namespace', 'flux_resource_path', 'auto_stop_setting', 'enable_advanced_logs_querying',
    'logs_api_path'}}
#: Documented fields that minici does not send, and why.
ABSENT = {
    'commit, whole': {'minici counts no changed lines': {'stats'}},
    'project': NO_SUCH,
    'project of a list': NO_SUCH,
    'project of a runner': {'minici writes to no repository': {'repository_storage'}},
    'links of a project': {'minici has none of these': {
        'issues', 'merge_requests', 'labels', 'events', 'members', 'cluster_agents'}},
    'links of a release': {'minici has no issues and no merge requests, and releases are made by calls alone': {
        'closed_issues_url', 'closed_merge_requests_url', 'edit_url', 'merged_merge_requests_url',
        'opened_issues_url', 'opened_merge_requests_url'}},
    'environment of a list': NO_CLUSTER,
    'environment': {**NO_CLUSTER, 'minici knows no agents': {'cluster_agent'}},
}
FORGE = {'what a forge needs to call minici': {'webhook_token', 'webhook_url'}}
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
    'project': FORGE,
    'project of a runner': {'the whole project is sent': (
        {*PROJECT} - {*BASIC_PROJECT} - {name for names in NO_SUCH.values() for name in names})},
    'protected branch': {'one object serves branches and tags': {'create_access_levels'}},
    'protected tag': {'one object serves branches and tags': {
        'id', 'push_access_levels', 'merge_access_levels', 'allow_force_push', 'code_owner_approval_required'}},
    'lint': {'older GitLabs have it': {'status'}},
}
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
        runner, projects = get('/runners/1'), get('/projects')
        allowed = get(f'{here}/job_token_scope/allowlist', 'POST', json={'target_project_id': 2})
        lint = get('/ci/lint', 'POST', json={'content': LINTED, 'include_jobs': True})
        metadata = [get('/version'), get('/metadata')]
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
            'project': [get(here), get('/projects', 'POST', json={'name': 'made'})],
            'project of a list': projects,
            'project of a runner': [*get('/runners/2')['projects'], *get(f'{here}/job_token_scope/allowlist')],
            'links of a project': [one['_links'] for one in projects],
            'permissions': [one['permissions'] for one in projects],
            'access': [one['permissions']['project_access'] for one in projects],
            'allowed project': [allowed],
            'namespace': [one['namespace'] for one in projects],
            'environment of a list': environments,
            'environment': shown,
            'deployment': deployments,
            'environment of a deployment': [one['environment'] for one in deployments],
            'branch': branches,
            'tag': tags,
            'release of a tag': [one['release'] for one in tags if one['release']],
            'release': releases,
            'assets of a release': [one['assets'] for one in releases],
            'links of a release': [one['_links'] for one in releases],
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
            'lint': [lint],
            'job of a lint': lint['jobs'],
            'protected tag': [get(f'{here}/protected_tags', 'POST', json={'name': 'v*'})],
            'new runner': [get('/user/runners', 'POST', json={'runner_type': 'instance_type'})],
            'new token of a runner': [get('/runners/1/reset_authentication_token', 'POST')],
            'new registration token': [get(f'{here}/runners/reset_registration_token', 'POST')],
            'version': metadata,
            'agent server': [one['kas'] for one in metadata],
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


LINTED = '''
test: {script: make}
review: {script: make, environment: {name: review}, tags: [x], needs: [test], except: [tags]}
ship: {script: [make], rules: [{if: $CI_COMMIT_TAG}], when: manual}
'''
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


def test_every_documented_field_is_sent_or_absent_for_a_reason(sent):
    for name, documented in DOCUMENTED.items():
        fields = set().union(*(entity.keys() for entity in sent[name]))
        absent = set().union(*ABSENT.get(name, {}).values())
        assert documented.keys() - fields == absent, name
