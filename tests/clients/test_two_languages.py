"""Each newer route by two published clients that share no code: @gitbeaker/rest, and python-gitlab of 2021."""


import gzip
import json

import pytest
from elsewhere import ClientError, Elsewhere
from support import Clock, Runner, archive, commit, git

import minici

CONTENT = {
    'stages': ['test', 'deploy'],
    'unit': {'stage': 'test', 'script': ['make test']},
    'ship': {'stage': 'deploy', 'script': ['make ship'], 'environment': {'name': 'live', 'url': 'https://live.example'}},
    'child': {'stage': 'deploy', 'trigger': {'include': 'child.yml'}}}
JUNIT = b'<testsuite name="s"><testcase name="good" time="1.5"/><testcase name="bad"><failure/></testcase></testsuite>'


@pytest.fixture(scope='module')
def served(tmp_path_factory):
    """A coordinator with something of everything, its server, and a private token."""
    folder = tmp_path_factory.mktemp('world')
    with minici.Coordinator(folder / 'ci.sqlite', clock=Clock(), fsync=False) as ci, minici.Server(ci) as server:
        token = ci.create_private_token('root')
        user = ci.find_user(token)
        commit(folder / 'demo', 'first', **{'.gitlab-ci.yml': json.dumps(CONTENT),
                                            'child.yml': 'inner: {script: make}'})
        for branch in ('fix/one', 'fix/two'):
            git(folder / 'demo', 'branch', branch)
        git(folder / 'demo', 'tag', 'v1')
        git(folder / 'demo', 'tag', '--annotate', '--message', 'second', 'v2')
        project = ci.create_project('group/demo', import_url=f'file://{folder}/demo')
        for name in ('one', 'two', 'three'):
            ci.create_project(f'group/{name}')
        ci.set_variable(project, 'KEY', 'everywhere')
        ci.set_variable(project, 'KEY', 'live-alone', environment_scope='live', masked=True)
        ci.create_trigger(project, user, 'nightly')
        ci.create_schedule(project, user, description='nightly', ref='main', cron='0 3 * * *')
        ci.create_release(project, 'v1', description='notes', user_id=user['id'])
        ci.create_pipeline(project, 'main', source='push', user=user)
        runner = Runner(ci, description='box', tag_list=['x'], info={'name': 'gitlab-runner', 'version': '18.9.0'})
        claim = runner.claim()
        for content, file_type, file_format in (
                (gzip.compress(JUNIT), 'junit', 'gzip'), (archive(a='b'), 'archive', 'zip')):
            part = ci.artifacts.receive()
            part.filename = 'artifacts.zip'
            part.write(content)
            ci.store_artifacts(claim.job, part, file_type=file_type, file_format=file_format)
            part.discard()
        ci.append_trace(claim.job, 0, b'$ make test\n')
        ci.update_job(claim.job, 'success')
        ci.start_bridges()
        runner.run()
        yield server.url, token


@pytest.fixture(scope='module')
def beaker(served, gitbeaker):
    """@gitbeaker/rest: a function that evaluates an expression of JavaScript, in which `api` is the client."""
    with Elsewhere(gitbeaker, *served) as client:
        yield client


@pytest.fixture(scope='module')
def old(served, old_gitlab):
    """python-gitlab 2.10.1: a function that evaluates an expression of Python, in which `gl` is the client."""
    with Elsewhere(old_gitlab, *served) as client:
        yield client


def without(thing, *added):
    """Return what was sent of an object, without the fields that python-gitlab adds."""
    if isinstance(thing, list):
        return [without(one, *added) for one in thing]
    return {name: value for name, value in thing.items() if name not in added}


#: What both are asked, in JavaScript and in Python, and what python-gitlab adds to the answer.
READS = {
    'projects, page by page': (
        'api.Projects.all({perPage: 2})', 'gl.projects.list(all=True, per_page=2)'),
    'a project': ("api.Projects.show('group/demo')", "gl.projects.get('group/demo')"),
    'pipelines': ('api.Pipelines.all(1)', 'gl.projects.get(1, lazy=True).pipelines.list(all=True)', 'project_id'),
    'a pipeline': ('api.Pipelines.show(1, 1)', 'gl.projects.get(1, lazy=True).pipelines.get(1)', 'project_id'),
    'jobs of a pipeline': (
        'api.Jobs.all(1, {pipelineId: 1})', 'gl.projects.get(1).pipelines.get(1).jobs.list(all=True)', 'project_id',
        'pipeline_id'),
    'bridges': (
        'api.Jobs.allPipelineBridges(1, 1)', 'gl.projects.get(1).pipelines.get(1).bridges.list(all=True)',
        'project_id', 'pipeline_id'),
    'a job': ('api.Jobs.show(1, 1)', 'gl.projects.get(1).jobs.get(1)', 'project_id'),
    'a test report': (
        'api.Pipelines.showTestReport(1, 1)', 'gl.projects.get(1).pipelines.get(1).test_report.get()', 'project_id',
        'pipeline_id'),
    'a test report in short': (
        'api.Pipelines.showTestReportSummary(1, 1)', "gl.http_get('/projects/1/pipelines/1/test_report_summary')"),
    'statuses of a commit': (
        "api.Commits.allStatuses(1, 'main')",
        "gl.projects.get(1).commits.get('main', lazy=True).statuses.list(all=True)", 'project_id', 'commit_id'),
    'branches, page by page': (
        'api.Branches.all(1, {perPage: 2})', 'gl.projects.get(1).branches.list(all=True, per_page=2)', 'project_id'),
    'a branch': ("api.Branches.show(1, 'fix/one')", "gl.projects.get(1).branches.get('fix/one')", 'project_id'),
    'branches that are searched for': (
        "api.Branches.all(1, {search: '^fix'})", "gl.projects.get(1).branches.list(search='^fix')", 'project_id'),
    'tags': ('api.Tags.all(1)', 'gl.projects.get(1).tags.list(all=True)', 'project_id'),
    'a tag': ("api.Tags.show(1, 'v2')", "gl.projects.get(1).tags.get('v2')", 'project_id'),
    'environments': ('api.Environments.all(1)', 'gl.projects.get(1).environments.list(all=True)', 'project_id'),
    'an environment': ('api.Environments.show(1, 1)', 'gl.projects.get(1).environments.get(1)', 'project_id'),
    'releases': ('api.ProjectReleases.all(1)', 'gl.projects.get(1).releases.list(all=True)', 'project_id'),
    'a release': ("api.ProjectReleases.show(1, 'v1')", "gl.projects.get(1).releases.get('v1')", 'project_id'),
    'schedules': (
        'api.PipelineSchedules.all(1)', 'gl.projects.get(1).pipelineschedules.list(all=True)', 'project_id'),
    'a schedule': ('api.PipelineSchedules.show(1, 1)', 'gl.projects.get(1).pipelineschedules.get(1)', 'project_id'),
    'variables': ('api.ProjectVariables.all(1)', 'gl.projects.get(1).variables.list(all=True)', 'project_id'),
    'a variable of an environment': (
        "api.ProjectVariables.show(1, 'KEY', {filter: {environment_scope: 'live'}})",
        "gl.projects.get(1).variables.get('KEY', filter={'environment_scope': 'live'})", 'project_id'),
    'triggers': ('api.PipelineTriggerTokens.all(1)', 'gl.projects.get(1).triggers.list(all=True)', 'project_id'),
    'runners': ('api.Runners.all()', "gl.runners.list(all=True)"),
    'a runner': ('api.Runners.show(1)', 'gl.runners.get(1)'),
    'jobs of a runner': ('api.Runners.allJobs(1)',
                         'gl.runners.get(1).jobs.list(all=True)', 'runner_id'),
    'users': ('api.Users.all()', 'gl.users.list(all=True)'),
    'oneself': ('api.Users.showCurrentUser()', 'gl.http_get("/user")'),
    'protected branches': (
        'api.ProtectedBranches.all(1)', 'gl.projects.get(1).protectedbranches.list(all=True)', 'project_id'),
    'the version': ('api.Metadata.show()', 'gl.http_get("/metadata")'),
}


@pytest.mark.parametrize('what', READS)
def test_both_clients_read_the_same(beaker, old, what):
    script, expression, *added = READS[what]
    read = beaker(script)
    assert read
    assert without(read, *added) == without(old(expression), *added)


# -- what one writes the other reads, changes and removes

def test_a_schedule_is_made_played_changed_and_removed(beaker, old):
    made = beaker("""api.PipelineSchedules.create(1, 'weekly', 'main', '0 4 * * 1', {cronTimezone: 'Europe/Berlin'})""")
    assert (made['active'], made['cron_timezone'], made['ref']) == (True, 'Europe/Berlin', 'refs/heads/main')
    key = made['id']
    old("gl.projects.get(1).pipelineschedules.get(key).variables.create({'key': 'LEVEL', 'value': '3'})", key=key)
    assert beaker('api.PipelineSchedules.show(1, key)', key=key)['variables'] == [
        {'key': 'LEVEL', 'value': '3', 'variable_type': 'env_var', 'raw': False}]
    before = len(beaker('api.Pipelines.all(1)'))
    assert beaker('api.PipelineSchedules.run(1, key)', key=key)['message'] == '201 Created'
    started, *_ = beaker('api.Pipelines.all(1)')
    assert (started['source'], started['id']) == ('schedule', before + 2)   # the child pipeline is not listed
    assert old("gl.projects.get(1).pipelines.get(number).variables.list()", number=started['id'])[0]['key'] == 'LEVEL'
    assert [one['id'] for one in beaker('api.PipelineSchedules.allTriggeredPipelines(1, key)', key=key)] == [
        started['id']]
    assert beaker("api.PipelineSchedules.edit(1, key, {active: false})", key=key)['active'] is False
    assert old("gl.projects.get(1).pipelineschedules.get(key).take_ownership()", key=key) is None
    old("gl.projects.get(1).pipelineschedules.delete(key)", key=key)
    with pytest.raises(ClientError, match='404'):
        beaker('api.PipelineSchedules.show(1, key)', key=key)


def test_a_release_is_made_by_one_and_removed_by_the_other(beaker, old):
    made = beaker("""api.ProjectReleases.create(1, {tagName: 'v2', description: 'notes', assets: {links: [
        {name: 'binary', url: 'https://x.example/b', linkType: 'package'}]}})""")
    assert old("gl.projects.get(1).releases.get('v2')")['assets'] == made['assets']
    assert made['assets']['links'][0]['link_type'] == 'package'
    old("gl.projects.get(1).releases.delete('v2')")
    with pytest.raises(ClientError, match='404'):
        beaker("api.ProjectReleases.show(1, 'v2')")


def test_a_variable_of_an_environment_stands_beside_the_one_for_all(beaker, old):
    made = old("gl.projects.get(1).variables.create({'key': 'A', 'value': '1', 'environment_scope': 'review/*'})")
    assert made['environment_scope'] == 'review/*'
    beaker("api.ProjectVariables.create(1, 'A', '2')")
    changed = beaker("api.ProjectVariables.edit(1, 'A', '3', {filter: {environment_scope: 'review/*'}})")
    assert (changed['value'], changed['environment_scope']) == ('3', 'review/*')
    found = old("[one.attributes for one in gl.projects.get(1).variables.list(all=True) if one.key == 'A']")
    assert {one['environment_scope']: one['value'] for one in found} == {'review/*': '3', '*': '2'}
    for scope in ('review/*', '*'):
        beaker("api.ProjectVariables.remove(1, 'A', {filter: {environment_scope: scope}})", scope=scope)
    with pytest.raises(ClientError, match='404'):
        old("gl.projects.get(1).variables.get('A')")


def test_a_project_is_described_and_what_minici_cannot_do_is_refused_by_name(beaker, old):
    assert beaker("api.Projects.edit(2, {description: 'a <b>', ciConfigPath: 'ci/main.yml'})")['description'] == 'a <b>'
    assert old("gl.projects.get(2)")['ci_config_path'] == 'ci/main.yml'
    with pytest.raises(ClientError, match='archived'):
        old("gl.http_put('/projects/2', post_data={'archived': True})")
    with pytest.raises(ClientError, match='404'):
        beaker('api.Projects.archive(2)')
    assert beaker('api.Projects.all({archived: true})') == []


def test_both_are_told_the_same_of_what_does_not_exist_and_of_what_is_wrong(beaker, old):
    for script, expression in (
            ('api.Pipelines.show(1, 99)', 'gl.projects.get(1).pipelines.get(99)'),
            ("api.Branches.show(1, 'nothing')", "gl.projects.get(1).branches.get('nothing')"),
            ('api.Environments.show(1, 99)', 'gl.projects.get(1).environments.get(99)'),
            ("api.ProjectReleases.create(1, {tagName: 'v1'})",
             "gl.projects.get(1).releases.create({'tag_name': 'v1', 'description': 'x'})"),
            ("api.PipelineSchedules.create(1, 'x', 'main', '61 * * * *')",
             "gl.projects.get(1).pipelineschedules.create({'description': 'x', 'ref': 'main', 'cron': '61 * * * *'})")):
        told = []
        for client, asked in ((beaker, script), (old, expression)):
            with pytest.raises(ClientError) as refusal:
                client(asked)
            told.append(str(refusal.value))
        assert told[0][:3] == told[1][:3]
        assert told[0][:1] == '4'
