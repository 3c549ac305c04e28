"""Published clients of today's runner API, unmodified: gitlab-runner-api, python-gitlab and gitlab-python-runner."""

import os
import subprocess
import warnings
from pathlib import Path

import gitlab
import pytest
from support import SHA, Runner, commit

with warnings.catch_warnings():
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated')  # gitlab-runner-api's own, on import
    import gitlab_runner_api as gra

TOP = Path(__file__).parents[2]
SCRIPTS = {'test': {'script': ['make', 'make check'], 'after_script': ['make clean']}}


# -- gitlab-runner-api

@pytest.fixture
def worker(ci, server, project, token):
    """A runner of gitlab-runner-api, and two jobs for it."""
    for _ in range(2):
        ci.create_pipeline(project, 'main', sha=SHA, content=SCRIPTS, user=ci.find_user(token))
    return gra.Runner.register(server.url, ci.registration_token, description='api')


def test_gitlab_runner_api_registers_with_all_its_settings_and_is_stored_and_loaded(ci, server):
    settings = dict(description='rack 2', active=True, locked=True, run_untagged=False, tags=['a', 'b'],
                    maximum_timeout=1200, access_level='not_protected')
    info = dict(name='worker', version='1.2', revision='abc', platform='linux', architecture='arm64', executor='none')
    worker = gra.Runner.register(server.url, ci.registration_token, **settings, **info)
    assert gra.Runner.loads(worker.dumps()) == worker  # asks whether it is still registered
    row = ci.find_runner(worker.token)
    assert (row['id'], row['description'], row['tags'], row['maximum_timeout']) == (
        worker.id, 'rack 2', '["a", "b"]', 1200)
    assert worker.request_job() is None


def test_gitlab_runner_api_knows_a_token_that_is_no_good(ci, server, worker):
    with pytest.raises(gra.AuthException):
        gra.Runner.register(server.url, 'wrong')
    ci.unregister_runner(ci.find_runner_by_id(worker.id))
    with pytest.raises(gra.AuthException):
        worker.check_auth()
    with pytest.raises(gra.AuthException):
        worker.request_job()


def test_gitlab_runner_api_reads_every_property_of_its_job(server, project, worker):
    job = worker.request_job()
    assert (job.id, job.name, job.stage, job.ref, job.is_branch) == (1, 'test', 'test', 'main', True)
    assert (job.script, job.after_script) == (['make', 'make check'], ['make clean'])
    assert (job.commit_sha, job.commit_message, job.username) == (SHA, '', 'root')
    assert (job.project_path, job.project_name, job.pipeline_id) == ('group/demo', 'demo', '1')
    assert job.project_url == f'{server.url}/group/demo'
    assert (job.job_url, job.pipeline_url) == (f'{job.project_url}/-/jobs/1', f'{job.project_url}/-/pipelines/1')
    assert job.repo_url.endswith('/group/demo.git')
    assert {variable.key for variable in job.variables} >= {'CI', 'CI_JOB_TOKEN', 'CI_PROJECT_DIR'}


def test_gitlab_runner_api_runs_a_job_to_success_and_another_to_failed(ci, worker):
    job = worker.request_job()
    job.log += 'line 1\n'
    job.auth()
    job.log += 'line 2\n'
    assert ci.read_trace(job.id).decode() == str(job.log)
    job = gra.Job.loads(job.dumps())
    job.log += 'line 3\n'
    job.set_success()
    assert ci.find_job(job.id)['status'] == 'success'
    assert ci.read_trace(job.id).decode() == str(job.log)
    failing = worker.request_job()
    failing.set_failed(gra.failure_reasons.ScriptFailure())
    row = ci.find_job(failing.id)
    assert (row['status'], row['failure_reason']) == ('failed', 'script_failure')
    with pytest.raises(gra.AuthException):
        failing.auth()


def test_gitlab_runner_api_recovers_when_its_count_of_characters_is_no_count_of_bytes(ci, worker, caplog):
    job = worker.request_job()
    for line in ('plain\n', 'naïve ✓\n', 'plain\n', '日本語\n', 'plain\n', 'end\n'):
        job.log += line
    assert 'invalid content range, resetting' in caplog.text
    assert ci.read_trace(job.id).decode() == str(job.log)
    job.set_success()
    assert ci.read_trace(job.id).decode() == str(job.log)
    assert ci.find_job(job.id)['status'] == 'success'


def test_gitlab_runner_api_learns_of_a_cancel_by_whatever_it_says_next(ci, worker):
    job = worker.request_job()
    ci.cancel_job(ci.find_job(job.id))
    for say in (job.auth, lambda: job.log.__iadd__('more\n'), job.set_success):
        with pytest.raises(gra.JobCancelledException):
            say()
    assert ci.find_job(job.id)['status'] == 'canceled'


# -- python-gitlab

@pytest.fixture
def gl(server, token):
    """python-gitlab, signed in."""
    with gitlab.Gitlab(server.url, private_token=token) as client:
        yield client


def test_python_gitlab_registers_verifies_and_removes_a_runner_by_its_token(ci, gl):
    made = gl.runners.create({'token': ci.registration_token, 'description': 'new', 'tag_list': ['a', 'b']})
    assert ci.find_runner(made.token)['tags'] == '["a", "b"]'
    gl.runners.verify(made.token)
    gl.runners.delete(token=made.token)
    with pytest.raises(gitlab.GitlabVerifyError):
        gl.runners.verify(made.token)
    with pytest.raises(gitlab.GitlabCreateError):
        gl.runners.create({'token': 'wrong'})


def test_python_gitlab_lists_and_filters_runners(ci, gl, project):
    names = [f'runner {number}' for number in range(25)]
    for name in names:
        Runner(ci, description=name)
    Runner(ci, token=project['runners_token'], description='own', tag_list=['a'], active=False)
    assert [item.description for item in gl.runners.list(iterator=True)] == ['own', *reversed(names)]
    for runners in (gl.runners, gl.runners_all):
        assert len(runners.list(get_all=True)) == 26
        assert [item.description for item in runners.list(type='project_type', get_all=True)] == ['own']
        assert [item.description for item in runners.list(tag_list=['a'], get_all=True)] == ['own']
        assert [item.description for item in runners.list(paused=True, get_all=True)] == ['own']
    assert len(gl.projects.get('group/demo').runners.list(get_all=True)) == 26


def test_python_gitlab_edits_pauses_and_deletes_a_runner(ci, gl, pipeline, runner):
    item = gl.runners.get(runner.id)
    item.description, item.tag_list, item.maximum_timeout = 'edited', ['x'], 900
    item.save()
    gl.runners.update(runner.id, {'paused': True})
    item = gl.runners.get(runner.id)
    assert (item.description, item.tag_list, item.maximum_timeout, item.paused) == ('edited', ['x'], 900, True)
    assert runner.claim() is None
    gl.runners.update(runner.id, {'paused': False})
    assert runner.run() == 'test'
    assert [job.name for job in item.jobs.list(get_all=True)] == ['test']
    assert item.jobs.list(status='failed', get_all=True) == []
    item.delete()
    with pytest.raises(gitlab.GitlabGetError, match='404 Runner Not Found'):
        gl.runners.get(runner.id)


def test_python_gitlab_enables_a_runner_in_another_project_and_disables_it(ci, gl, project):
    runner = Runner(ci, token=project['runners_token'])
    other = gl.projects.create({'path': 'other', 'shared_runners_enabled': False})
    other.runners.create({'runner_id': runner.id})
    assert [item.id for item in other.runners.list(get_all=True)] == [runner.id]
    other.runners.delete(runner.id)
    assert other.runners.list(get_all=True) == []


def test_python_gitlab_makes_a_runner_whose_token_a_gitlab_runner_registers_with(ci, gl, pipeline):
    gl.auth()
    made = gl.user.runners.create({'runner_type': 'instance_type', 'description': 'cloud', 'tag_list': ['a']})
    assert made.token.startswith('glrt-')
    gl.runners.verify(made.token)
    assert ci.request_job(ci.find_runner(made.token)).job['name'] == 'test'
    assert gl.runners.get(made.id).description == 'cloud'


# -- gitlab-python-runner

PIPELINE_FILE = '''
stages: [build, test]
compile:
  stage: build
  tags: [gpr]
  script: [mkdir out, echo "made at $CI_COMMIT_SHA" > out/app]
  artifacts: {paths: [out/]}
check:
  stage: test
  tags: [gpr]
  dependencies: [compile]
  script: [grep "made at $CI_COMMIT_SHA" out/app, echo "checked by $CI_JOB_NAME"]
'''


@pytest.fixture
def repository(tmp_path):
    """A git repository with a pipeline file."""
    home = tmp_path / 'repository'
    commit(home, **{'.gitlab-ci.yml': PIPELINE_FILE})
    return home


def test_gitlab_python_runner_runs_a_pipeline_and_a_failing_job(ci, server, repository, tmp_path, gpr_python):
    def gpr(*words):
        """Run it to its end; return its exit status."""
        environment = {'PATH': os.environ['PATH'], 'HOME': str(tmp_path), 'NO_PROXY': '*', 'LC_ALL': 'C.UTF-8'}
        return subprocess.run([gpr_python, '-m', 'GitlabPyRunner', *words], cwd=tmp_path, env=environment,
                              stdin=subprocess.DEVNULL, timeout=100).returncode

    project = ci.create_project('group/gpr', import_url=repository.as_uri())
    assert gpr('--register', server.url, '--regtoken', ci.registration_token, '--tag', 'gpr', '--desc', 'gpr') == 0
    pipeline = ci.create_pipeline(project, 'main')
    assert [gpr('--start', 'gitlab-runner.yml', '--once') for _ in range(2)] == [0, 0]
    check, compile_ = ci.list_jobs(pipeline=pipeline)
    assert ci.find_pipeline(pipeline)['status'] == 'success'
    assert b'Fetching artifacts from compile' in ci.read_trace(check)
    assert b'checked by check' in ci.read_trace(check)
    _, archive = ci.open_artifacts(compile_)
    archive.close()

    steps = {'script': ['echo these steps came along; exit 3'], 'tags': ['gpr']}  # the file has no such job
    failing = ci.create_pipeline(project, 'main', sha=pipeline['sha'], content={'failing': steps})
    assert gpr('--start', 'gitlab-runner.yml', '--once') == 1
    job, = ci.list_jobs(pipeline=failing)
    assert (job['status'], ci.find_pipeline(failing)['status']) == ('failed', 'failed')
    assert b'these steps came along' in ci.read_trace(job)
    assert gpr('--unregister') == 0
    assert ci.list_runners() == []
