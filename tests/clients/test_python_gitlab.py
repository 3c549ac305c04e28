"""python-gitlab, unmodified, against a real socket; its command line too."""

import json
import os
import subprocess
import sys

import gitlab
import pytest
from support import SHA, TWO_STAGES, archive

ZIP = archive(**{'report.txt': 'fine', 'out/deep/app.bin': bytes(range(256)) * 400})
TRACE = '\x1b[32m✓ grün\x1b[0m\r\n'.encode() * 500
MANUAL = {'test': {'script': ['make test']}, 'deploy': {'script': ['make deploy'], 'when': 'manual'}}


def create(demo, content, ref='main', **options):
    """Make a pipeline of a project that has no repository."""
    return demo.pipelines.create({'ref': ref, 'sha': SHA, 'content': json.dumps(content), **options})


def finish(ci, runner, state='success', expire_in=None):
    """Let a runner finish the next job with a trace and an archive; return its id."""
    claim = runner.claim()
    ci.append_trace(claim.job, 0, TRACE)
    part = ci.artifacts.receive()
    part.filename = 'artifacts.zip'
    part.write(ZIP)
    ci.store_artifacts(claim.job, part, expire_in=expire_in)
    part.discard()
    ci.update_job(claim.job, state)
    return claim.job['id']


@pytest.fixture
def done(ci, demo, runner):
    """A successful job with a trace and an archive, the only one of its pipeline."""
    create(demo, {'test': {'script': ['make test']}})
    return demo.jobs.get(finish(ci, runner, expire_in='1 week'))


# -- who and what

@pytest.mark.parametrize('way', ['private_token', 'oauth_token'])
def test_client_signs_in_and_learns_the_version(server, token, way):
    with gitlab.Gitlab(server.url, **{way: token}) as client:
        client.auth()
        assert client.user.username == 'root'
        version, revision = client.version()
        assert version.split('.')[0].isdecimal()
        assert revision.startswith('minici-')


def test_wrong_token_is_an_authentication_error(server):
    with gitlab.Gitlab(server.url, private_token='wrong') as client:
        with pytest.raises(gitlab.GitlabAuthenticationError) as caught:
            client.auth()
    assert caught.value.response_code == 401


def test_projects_are_created_found_by_path_listed_and_searched(gl):
    made = gl.projects.create({'name': 'Demo', 'path': 'group/sub/demo'})
    gl.projects.create({'name': 'other'})
    assert gl.projects.get('group/sub/demo').id == gl.projects.get(made.id).id == made.id
    assert gl.projects.get(made.id).runners_token == made.runners_token
    assert [found.path_with_namespace for found in gl.projects.list(get_all=True)] == ['other', 'group/sub/demo']
    assert [found.id for found in gl.projects.list(search='demo', get_all=True)] == [made.id]
    with pytest.raises(gitlab.GitlabCreateError, match='has already been taken'):
        gl.projects.create({'path': 'group/sub/demo'})


# -- pipelines

def test_pipeline_is_created_listed_read_canceled_and_retried(demo):
    made = create(demo, TWO_STAGES, variables=[{'key': 'A', 'value': '1'}])
    create(demo, TWO_STAGES, ref='fix/one')
    assert [found.id for found in demo.pipelines.list(ref='main', get_all=True)] == [made.id]
    assert [found.ref for found in demo.pipelines.list(get_all=True)] == ['fix/one', 'main']
    pipeline = demo.pipelines.get(made.id)
    assert (pipeline.status, pipeline.sha, pipeline.user['username']) == ('pending', SHA, 'root')
    states = {'compile': 'pending', 'check': 'created'}
    assert {job.name: job.status for job in pipeline.jobs.list(get_all=True)} == states
    pipeline.cancel()
    pipeline.refresh()
    assert pipeline.status == 'canceled'
    pipeline.retry()
    pipeline.refresh()
    assert pipeline.status == 'pending'
    assert {job.name: job.status for job in pipeline.jobs.list(get_all=True)} == states
    assert len(pipeline.jobs.list(include_retried=True, get_all=True)) == 4


def test_variables_of_a_pipeline_reach_its_jobs(gl, demo, runner):
    create(demo, MANUAL, variables=[{'key': 'A', 'value': 'x y'}])
    job = gl.http_post('/jobs/request', post_data={'token': runner.token})
    assert {'key': 'A', 'value': 'x y', 'public': False, 'masked': False} in [
        {name: item[name] for name in ('key', 'value', 'public', 'masked')} for item in job['variables']]


def test_pipeline_without_a_repository_or_file_is_a_create_error_that_says_why(demo):
    with pytest.raises(gitlab.GitlabCreateError, match='import_url') as caught:
        demo.pipelines.create({'ref': 'main'})
    assert caught.value.response_code == 400


# -- jobs

def test_jobs_are_listed_by_scope(demo, runner):
    create(demo, {**MANUAL, 'lint': {'script': ['make lint']}})
    runner.claim()
    assert [job.name for job in demo.jobs.list(scope='manual', get_all=True)] == ['deploy']
    assert [job.name for job in demo.jobs.list(scope=['pending', 'running'], get_all=True)] == ['lint', 'test']
    assert [job.name for job in demo.jobs.list(get_all=True)] == ['lint', 'deploy', 'test']


@pytest.fixture
def many(demo):
    """250 jobs in one pipeline."""
    return create(demo, {f'job {number}': {'script': ['true']} for number in range(250)})


@pytest.mark.parametrize('options', [{}, {'per_page': 100}])
def test_all_of_250_jobs_come_through_get_all(demo, many, options):
    assert [job.id for job in demo.jobs.list(get_all=True, **options)] == list(range(250, 0, -1))
    assert len(many.jobs.list(get_all=True, **options)) == 250


def test_250_jobs_come_through_the_iterator_which_knows_where_it_is(demo, many):
    jobs = demo.jobs.list(iterator=True, per_page=100)
    assert (jobs.total, jobs.total_pages, jobs.current_page, jobs.per_page) == (250, 3, 1, 100)
    assert (jobs.prev_page, jobs.next_page, len(jobs)) == (None, 2, 250)
    assert [job.id for job in jobs] == list(range(250, 0, -1))
    assert (jobs.current_page, jobs.next_page) == (3, None)
    assert [job.id for job in demo.jobs.list(page=3, per_page=100)] == list(range(50, 0, -1))
    assert demo.jobs.list(page=4, per_page=100) == []


def test_250_jobs_come_through_keyset_pages(server, token, many):
    with gitlab.Gitlab(server.url, private_token=token, pagination='keyset', order_by='id', per_page=60) as client:
        jobs = client.projects.get('group/demo', lazy=True).jobs
        assert [job.id for job in jobs.list(get_all=True)] == list(range(250, 0, -1))
        assert [job.id for job in jobs.list(iterator=True, scope=['pending'])] == list(range(250, 0, -1))


def test_links_follow_the_host_that_the_client_used(server, token, many):
    url = server.url.replace('127.0.0.1', 'localhost')  # python-gitlab warns of links to another host
    with gitlab.Gitlab(url, private_token=token, keep_base_url=False) as client:
        jobs = client.projects.get('group/demo').jobs.list(get_all=True)
    assert len(jobs) == 250
    assert jobs[0].web_url.startswith(f'{url}/group/demo/')


def test_job_is_read_canceled_and_retried(demo, runner):
    create(demo, MANUAL)
    job = demo.jobs.get(1)
    assert (job.name, job.status, job.stage, job.ref, job.artifacts_file) == ('test', 'pending', 'test', 'main', None)
    assert job.cancel()['status'] == 'canceled'
    job.refresh()
    assert job.status == 'canceled'
    again = job.retry()
    assert (again['id'], again['status'], again['name']) == (3, 'pending', 'test')
    assert runner.run() == 'test'


def test_manual_job_is_played(demo, runner):
    create(demo, MANUAL)
    job = demo.jobs.list(scope='manual', get_all=True)[0]
    job.play()
    assert (job.status, job.user['username']) == ('pending', 'root')
    assert [runner.run(), runner.run()] == ['test', 'deploy']


def test_job_is_erased(demo, done):
    done.erase()
    done.refresh()
    assert done.erased_at is not None
    assert (done.attributes['artifacts'], done.artifacts_file) == ([], None)
    for gone in (done.trace, done.artifacts):
        with pytest.raises(gitlab.GitlabGetError) as caught:
            gone()
        assert caught.value.response_code == 404


def test_artifacts_are_kept(ci, clock, demo, done):
    assert done.artifacts_expire_at == '2023-11-21T22:13:20.000Z'
    done.keep_artifacts()
    done.refresh()
    assert done.artifacts_expire_at is None
    clock.advance(days=30)
    ci.sweep()
    assert done.artifacts() == ZIP


def test_artifacts_are_deleted_and_the_trace_stays(demo, done):
    done.delete_artifacts()
    with pytest.raises(gitlab.GitlabGetError):
        done.artifacts()
    assert done.trace() == TRACE


def test_artifacts_of_a_project_are_deleted(demo, done):
    demo.artifacts.delete()
    with pytest.raises(gitlab.GitlabGetError):
        done.artifacts()


# -- downloads

@pytest.mark.parametrize('streamed', [False, True])
def test_trace_and_artifacts_are_downloaded_whole_and_in_pieces(done, streamed):
    for call, arguments, expected in ((done.trace, (), TRACE), (done.artifacts, (), ZIP),
                                      (done.artifact, ('report.txt',), b'fine'),
                                      (done.artifact, ('out/deep/app.bin',), bytes(range(256)) * 400)):
        pieces = []
        whole = call(*arguments, streamed=streamed, action=pieces.append if streamed else None, chunk_size=1000)
        assert (b''.join(pieces) if streamed else whole) == expected
        assert b''.join(call(*arguments, iterator=True)) == expected


@pytest.mark.parametrize('ref', ['main', 'fix/one', 'v1.2.3'])
def test_artifacts_are_downloaded_by_ref_and_job_name(ci, demo, runner, ref):
    create(demo, {'test': {'script': ['make test']}}, ref=ref)
    finish(ci, runner)
    assert demo.artifacts.download(ref_name=ref, job='test') == ZIP
    assert demo.artifacts.raw(ref_name=ref, artifact_path='out/deep/app.bin', job='test') == bytes(range(256)) * 400
    with pytest.raises(gitlab.GitlabGetError):
        demo.artifacts.download(ref_name=ref, job='nothing')


# -- errors

def test_refusals_become_python_gitlabs_own_errors(gl, demo, done):
    create(demo, {'test': {'script': ['true']}})
    waiting = demo.jobs.get(2)
    for call, error, status, text in (
            (lambda: demo.jobs.get(4711), gitlab.GitlabGetError, 404, 'Not found'),
            (lambda: demo.pipelines.get(4711), gitlab.GitlabGetError, 404, 'Not Found'),
            (lambda: gl.projects.get('group/nothing'), gitlab.GitlabGetError, 404, 'Project Not Found'),
            (lambda: demo.jobs.list(scope='x'), gitlab.GitlabListError, 400, 'scope does not have a valid value'),
            (waiting.retry, gitlab.GitlabJobRetryError, 403, 'Job is not retryable'),
            (waiting.erase, gitlab.GitlabJobEraseError, 403, 'Job is not erasable!'),
            (waiting.play, gitlab.GitlabJobPlayError, 400, 'Unplayable Job'),
            (waiting.keep_artifacts, gitlab.GitlabCreateError, 404, 'Not Found'),
            (waiting.trace, gitlab.GitlabGetError, 404, 'Not Found'),
            (waiting.artifacts, gitlab.GitlabGetError, 404, 'Not Found')):
        with pytest.raises(error) as caught:
            call()
        assert caught.value.response_code == status
        assert text.lower() in str(caught.value.error_message).lower()


def test_read_api_token_reads_and_is_refused_everything_else(ci, server, done):
    with gitlab.Gitlab(server.url, private_token=ci.create_private_token(scope='read_api')) as reader:
        demo = reader.projects.get('group/demo')
        assert demo.jobs.get(done.id).trace() == TRACE
        with pytest.raises(gitlab.GitlabJobRetryError, match='read_api') as caught:
            demo.jobs.get(done.id).retry()
    assert caught.value.response_code == 403


def test_job_token_reads_the_jobs_of_its_project(server, demo, done, runner):
    create(demo, {'test': {'script': ['true']}})
    claim = runner.claim()
    with gitlab.Gitlab(server.url, job_token=claim.token) as client:
        jobs = client.projects.get(demo.id, lazy=True).jobs
        assert [job.id for job in jobs.list(get_all=True)] == [claim.job['id'], done.id]
        assert jobs.get(done.id, lazy=True).artifacts() == ZIP
        with pytest.raises(gitlab.GitlabAuthenticationError):
            jobs.get(done.id, lazy=True).retry()


# -- the command line

@pytest.fixture
def cli(server, token, tmp_path):
    """Run `gitlab ...` and return what it printed."""
    environment = {'PATH': os.environ['PATH'], 'HOME': str(tmp_path), 'GITLAB_URL': server.url,
                   'GITLAB_PRIVATE_TOKEN': token, 'NO_PROXY': '*'}

    def run(*arguments):
        return subprocess.run([sys.executable, '-m', 'gitlab', *arguments], env=environment, check=True, timeout=60,
                              stdout=subprocess.PIPE).stdout
    return run


def test_command_line_lists_jobs_cancels_one_and_prints_a_trace(ci, demo, done, cli):
    create(demo, MANUAL)
    listed = json.loads(cli('-o', 'json', 'project-job', 'list', '--project-id', 'group/demo', '--get-all'))
    assert [(job['id'], job['status']) for job in listed] == [(3, 'manual'), (2, 'pending'), (1, 'success')]
    cli('project-job', 'cancel', '--project-id', 'group/demo', '--id', '2')
    assert ci.find_job(2)['status'] == 'canceled'
    assert cli('project-job', 'trace', '--project-id', str(demo.id), '--id', str(done.id)) == TRACE
