"""Published clients, unmodified: python-gitlab's way around projects, gidgetlab, and gitlab-emulator's glp."""

import asyncio
import json
import os
import subprocess

import gidgetlab
import gidgetlab.httpx
import gitlab
import httpx
import pytest
from support import PLAIN, SHA, TWO_STAGES, commit

FILE = """
workflow: {rules: [{if: '$CI_COMMIT_BRANCH'}]}
build: {stage: build, script: [make]}
test: {script: [make test]}
deploy: {script: [make deploy], rules: [{if: '$TARGET'}]}
"""


@pytest.fixture
def checkout(tmp_path):
    """A git repository with a pipeline file, its branch checked out."""
    directory = tmp_path / 'checkout'
    commit(directory, **{'.gitlab-ci.yml': FILE})
    return directory


# -- python-gitlab

def test_python_gitlab_edits_and_removes_a_project(gl):
    project = gl.projects.create({'name': 'Demo', 'path': 'group/new', 'build_timeout': 600})
    project.name, project.default_branch = 'Other', 'trunk'
    project.save()
    again = gl.projects.get('group/new')
    assert (again.name, again.default_branch, again.build_timeout) == ('Other', 'trunk', 600)
    project.delete()
    with pytest.raises(gitlab.GitlabGetError) as caught:
        gl.projects.get('group/new')
    assert caught.value.response_code == 404


@pytest.mark.parametrize('of', ['project', 'instance'])
def test_python_gitlab_manages_variables(gl, demo, of):
    manager = demo.variables if of == 'project' else gl.variables
    made = manager.create({'key': 'KEY', 'value': 'longer-than-8', 'masked': True, 'variable_type': 'file'})
    assert (made.value, made.masked, made.variable_type) == ('longer-than-8', True, 'file')
    made.value, made.protected = 'another-value', True
    made.save()
    shown = manager.get('KEY')
    assert (shown.value, shown.protected, shown.masked) == ('another-value', True, True)
    assert [item.key for item in manager.list(get_all=True)] == ['KEY']
    with pytest.raises(gitlab.GitlabCreateError, match='has already been taken'):
        manager.create({'key': 'KEY', 'value': '2'})
    shown.delete()
    assert manager.list(get_all=True) == []


def test_python_gitlab_manages_triggers_and_triggers(ci, project, server, demo, checkout):
    ci.edit_project(project, import_url=checkout.as_uri())
    trigger = demo.triggers.create({'description': 'nightly'})
    trigger.description = 'hourly'
    trigger.save()
    assert demo.triggers.get(trigger.id).description == 'hourly'
    with gitlab.Gitlab(server.url) as stranger:
        lazy = stranger.projects.get(demo.id, lazy=True)
        made = lazy.trigger_pipeline('main', trigger.token, variables={'A': '1'})
        with pytest.raises(gitlab.GitlabCreateError) as caught:
            lazy.trigger_pipeline('main', 'wrong')
    assert caught.value.response_code == 404
    pipeline = demo.pipelines.get(made.id)
    assert pipeline.source == 'trigger'
    assert ('A', '1') in [(item.key, item.value) for item in pipeline.variables.list(get_all=True)]
    assert demo.triggers.list(get_all=True)[0].last_used is not None
    trigger.delete()
    assert demo.triggers.list(get_all=True) == []


def test_python_gitlab_creates_a_pipeline_of_a_repository_with_variables(ci, project, demo, checkout):
    ci.edit_project(project, import_url=checkout.as_uri())
    made = demo.pipelines.create({'ref': 'main', 'variables': [{'key': 'TARGET', 'value': 'live'}]})
    assert [job.name for job in made.jobs.list(get_all=True)] == ['deploy', 'test', 'build']
    assert demo.pipelines.latest().id == made.id
    assert made.bridges.list(get_all=True) == []
    with pytest.raises(gitlab.GitlabCreateError, match='Reference not found'):
        demo.pipelines.create({'ref': 'gone'})


def test_python_gitlab_lists_filters_retries_cancels_and_deletes_pipelines(ci, demo, project, runner):
    for ref, source in (('main', 'push'), ('other', 'api'), ('main', 'api')):
        ci.create_pipeline(project, ref, sha=SHA, content=TWO_STAGES, source=source)
    runner.run('failed')
    for query, expected in (({}, [3, 2, 1]), ({'ref': 'main'}, [3, 1]), ({'source': 'push'}, [1]),
                            ({'status': 'failed'}, [1]), ({'scope': 'pending', 'sort': 'asc'}, [2, 3]),
                            ({'scope': 'branches'}, [3, 2]), ({'order_by': 'ref', 'sort': 'asc'}, [1, 3, 2])):
        assert [item.id for item in demo.pipelines.list(get_all=True, **query)] == expected
    first, second = demo.pipelines.get(1), demo.pipelines.get(2)
    first.retry()
    second.cancel()
    assert [demo.pipelines.get(number).status for number in (1, 2)] == ['pending', 'canceled']
    second.delete()
    with pytest.raises(gitlab.GitlabGetError):
        demo.pipelines.get(2)
    with pytest.raises(gitlab.GitlabListError, match='scope does not have a valid value'):
        demo.pipelines.list(scope='sideways', get_all=True)


def test_python_gitlab_lints_alone_in_a_project_and_in_its_repository(ci, gl, project, demo, checkout):
    ci.edit_project(project, import_url=checkout.as_uri())
    assert gl.ci_lint.create({'content': FILE}).valid is True
    assert demo.ci_lint.create({'content': FILE}).valid is True
    assert demo.ci_lint.get().valid is True
    wrong = 'test: {scrip: [x]}\n'
    for linter in (gl.ci_lint, demo.ci_lint):
        answer = linter.create({'content': wrong})
        assert (answer.valid, 'scrip' in answer.errors[0]) == (False, True)
        with pytest.raises(gitlab.GitlabCiLintError, match='scrip'):
            linter.validate({'content': wrong})


# -- gidgetlab

def ask(server, token, act):
    """Let gidgetlab do something; return what came of it."""
    async def main():
        async with httpx.AsyncClient(trust_env=False) as client:
            return await act(gidgetlab.httpx.GitLabAPI(client, 'tester', access_token=token, url=server.url))
    return asyncio.run(main())


def test_gidgetlab_walks_all_pages(ci, server, token, project):
    for _ in range(25):
        ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)

    async def act(gl):
        listed = gl.getiter('/projects/group%2Fdemo/pipelines', {'per_page': 10, 'ref': 'main'})
        jobs = gl.getiter(f'/projects/{project["id"]}/jobs')
        return [item['id'] async for item in listed], [item['id'] async for item in jobs]
    assert ask(server, token, act) == (list(range(25, 0, -1)),) * 2


def test_gidgetlab_makes_changes_and_removes(server, token, project):
    path = f'/projects/{project["id"]}'

    async def act(gl):
        made = await gl.post(f'{path}/pipeline', data={'ref': 'main', 'sha': SHA, 'content': PLAIN})
        await gl.post(f'{path}/variables', data={'key': 'A', 'value': '1'})
        await gl.put(f'{path}/variables/A', data={'value': '2'})
        variables = await gl.getitem(f'{path}/variables')
        await gl.delete(f'{path}/variables/A')
        canceled = await gl.post(f'{path}/pipelines/{made["id"]}/cancel', data={})
        await gl.delete(f'{path}/pipelines/{made["id"]}')
        lint = await gl.post('/ci/lint', data={'content': FILE})
        return variables[0]['value'], canceled['status'], await gl.getitem(f'{path}/pipelines'), lint['valid']
    assert ask(server, token, act) == ('2', 'canceled', [], True)


@pytest.mark.parametrize('path, right, status', [('/user', False, 401), ('/projects/77', True, 404), (
    '/projects/1/pipelines?scope=x', True, 400)])
def test_gidgetlab_raises_its_own_errors(server, token, project, path, right, status):
    with pytest.raises(gidgetlab.BadRequest) as caught:
        ask(server, token if right else 'wrong', lambda gl: gl.getitem(path))
    assert caught.value.status_code == status


# -- glp

@pytest.fixture
def glp(ci, server, token, project, checkout, gpr_python, tmp_path):  # noqa: F811
    """Run glp in the checkout, whose remotes are the server's and the repository itself; return what it says."""
    ci.edit_project(project, import_url=checkout.as_uri())
    for name, url in (('origin', f'{server.url}/group/demo.git'), ('itself', checkout.as_uri())):
        subprocess.run(['git', '-C', checkout, 'remote', 'add', name, url], check=True)
    settings = {'current_context': 'emulator', 'emulator': {'gitlab': {'version': '15.7', 'servers': [
        {'name': 'mini', 'server': server.url, 'token': token, 'tls_verify': True}]}}}
    tmp_path.joinpath('gle.yml').write_text(json.dumps(settings))  # JSON is YAML, too

    def run(*arguments):
        environment = {'PATH': os.environ['PATH'], 'HOME': str(tmp_path), 'GLE_CONFIG': str(tmp_path / 'gle.yml'),
                       'NO_PROXY': '*'}
        done = subprocess.run([gpr_python, '-m', 'gitlabemu.glp', *arguments], cwd=checkout, env=environment, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        assert done.returncode == 0, done.stdout
        return done.stdout
    return run


def test_glp_builds_lists_shows_and_cancels(ci, server, project, glp):
    assert f'{server.url}/group/demo/-/pipelines/1' in glp('build')
    pipeline = ci.find_pipeline(1)
    ci.create_pipeline(project, 'other', sha=SHA, content=PLAIN)
    assert f'pending  {pipeline["sha"]} main' in glp('list', '--match', 'ref=main', '--limit', '1')
    jobs = [line.split() for line in glp('jobs', '1').splitlines() if line.split()[0] in ('build', 'test', 'deploy')]
    assert jobs == [['build', 'pending'], ['test', 'created']]
    assert 'Cancelling' in glp('cancel', '--match', 'ref=main', '--limit', '1')
    assert [ci.find_pipeline(number)['status'] for number in (1, 2)] == ['canceled', 'pending']
