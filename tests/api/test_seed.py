"""The five pages that minici was built from: each of their curl lines, sent by curl, answers what its page says.

The lines stand here as the pages print them, headers spelled with a colon; `Curl` replaces host, ids and tokens.
"""

import http.client
import io
import json
import re
import shlex
import subprocess

import pytest
from support import SHA, Runner, archive, git

import minici

HOST = 'https://gitlab.example.com'
ARCHIVE = archive(public__index='<p>')
REGISTER_TAG = {
    'stages': ['build', 'test'],
    'build': {'stage': 'build', 'script': ['make'], 'artifacts': {'paths': ['public']}},
    'pages': {'stage': 'test', 'script': ['echo commands'], 'image': 'docker:image',
              'artifacts': {'paths': ['public']}, 'cache': {'paths': ['vendor']}},
}
# What the jobs page prints as null somewhere, or says may be missing.
NULLABLE = ('artifacts_file', 'avatar_url', 'bio', 'coverage', 'download_url', 'finished_at', 'runner', 'started_at')
# The answer of the oldest page's POST /ci/builds/register.
BUILD = json.loads('''{
  "id": 48584, "ref": "0.1.1", "tag": true, "sha": "d63117656af6ff57d99e50cc270f854691f335ad", "status": "success",
  "name": "pages", "token": "9dd60b4f1a439d1765357446c1084c", "stage": "test", "project_id": 479,
  "project_name": "test", "commands": "echo commands",
  "repo_url": "http://gitlab-ci-token:token@gitlab.example/group/test.git",
  "before_sha": "0000000000000000000000000000000000000000", "allow_git_fetch": false,
  "options": {"image": "docker:image", "artifacts": {"paths": ["public"]}, "cache": {"paths": ["vendor"]}},
  "timeout": 3600, "variables": [{"key": "CI_BUILD_TAG", "value": "0.1.1", "public": true}],
  "depends_on_builds": [{
      "id": 48584, "ref": "0.1.1", "tag": true, "sha": "d63117656af6ff57d99e50cc270f854691f335ad",
      "status": "success", "name": "build", "token": "9dd60b4f1a439d1765357446c1084c", "stage": "build",
      "project_id": 479, "project_name": "test", "artifacts_file": {"filename": "artifacts.zip", "size": 0}}]
}''')
# A job of the jobs page's lists.
JOB = json.loads('''{
  "commit": {"author_email": "admin@example.com", "author_name": "Administrator",
             "created_at": "2015-12-24T16:51:14.000+01:00", "id": "0ff3ae198f8601a285adcf5c0fff204ee6fba5fd",
             "message": "Test the CI integration.", "short_id": "0ff3ae19", "title": "Test the CI integration."},
  "coverage": null, "created_at": "2015-12-24T15:51:21.802Z",
  "artifacts_file": {"filename": "artifacts.zip", "size": 1000},
  "finished_at": "2015-12-24T17:54:27.895Z", "id": 7, "name": "teaspoon",
  "pipeline": {"id": 6, "ref": "master", "sha": "0ff3ae198f8601a285adcf5c0fff204ee6fba5fd", "status": "pending"},
  "ref": "master", "runner": null, "stage": "test", "started_at": "2015-12-24T17:54:27.722Z", "status": "failed",
  "tag": false,
  "user": {"avatar_url": "http://www.gravatar.com/avatar/e64c7d89f26bd1972efa854d13d7dd61?s=80&d=identicon",
           "bio": null, "created_at": "2015-12-21T13:14:24.077Z", "id": 1, "is_admin": true, "linkedin": "",
           "name": "Administrator", "skype": "", "state": "active", "twitter": "", "username": "root",
           "web_url": "http://gitlab.dev/root", "website_url": ""}
}''')


class Answer:
    """What curl printed with --include: a status, headers, a body."""

    def __init__(self, output):
        head, _, self.body = output.partition(b'\r\n\r\n')
        line, _, fields = head.partition(b'\r\n')
        self.status = int(line.split()[1])
        self.headers = http.client.parse_headers(io.BytesIO(fields + b'\r\n\r\n'))

    @property
    def json(self):
        assert self.headers['Content-Type'] == 'application/json'
        return json.loads(self.body)


class Curl:
    """Runs the pages' command lines against the server, with what must be replaced in them."""

    def __init__(self, server):
        self.words = {HOST: server.url}

    def __call__(self, line, **words):
        words = {**self.words, **words}
        pattern = '|'.join(re.escape(word) for word in sorted(words, key=len, reverse=True))
        command = shlex.split(re.sub(pattern, lambda match: str(words[match[0]]), line))
        assert command.pop(0) == 'curl'
        options = ['--disable', '--silent', '--show-error', '--include', '--noproxy', '*']
        done = subprocess.run(['curl', *options, *command], capture_output=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return Answer(done.stdout)


def assert_like(sample, answer, where='answer'):
    """Check that `answer` has every field of the page's `sample`, of the same type or null where that may be."""
    if answer is None and where.rpartition('.')[2] in NULLABLE:
        return
    if isinstance(sample, dict):
        assert set(sample) <= set(answer), where
        for name, value in sample.items():
            assert_like(value, answer[name], f'{where}.{name}')
    elif isinstance(sample, list):
        assert isinstance(answer, list), where
        for item in answer:
            assert_like(sample[0], item, f'{where}.')
    elif sample is not None:
        assert type(sample) is type(answer), where


@pytest.fixture(scope='module')
def repository(tmp_path_factory):
    """The address of a git repository with the commit of the page's samples on its branch master."""
    path = tmp_path_factory.mktemp('demo')
    (path / '.gitlab-ci.yml').write_text(json.dumps({
        'rubocop': {'script': ['rubocop']}, 'test': {'script': ['rake']}, 'spinach:other': {'script': ['spinach']},
        'teaspoon': {'script': ['teaspoon'], 'when': 'manual'}}))
    person = {f'GIT_{role}_{what}': value for role in ('AUTHOR', 'COMMITTER') for what, value in (
        ('NAME', 'Administrator'), ('EMAIL', 'admin@example.com'), ('DATE', '2015-12-24T16:51:14+01:00'))}
    for command in ('init --quiet --initial-branch=master', 'add .', "commit --quiet -m 'Test the CI integration.'"):
        git(path, *shlex.split(command), **person)
    return path.as_uri()


@pytest.fixture
def curl(server):
    return Curl(server)


@pytest.fixture
def build(curl, job, runner):
    """The running build 1234 of the pages, with the words its command lines are about."""
    curl.words.update({'t0k3n': runner.token, 'build_t0k3n': job.token, '1234': job.job['id']})
    return job.job


@pytest.fixture
def upload(tmp_path, curl):
    """The file at /path/to/file."""
    path = tmp_path / 'artifacts.zip'
    path.write_bytes(ARCHIVE)
    curl.words['/path/to/file'] = path
    return ARCHIVE


def finish(ci, claim, state='success'):
    """Finish a claimed job with a trace and an archive that expires in a week; return the job."""
    job = ci.authenticate_job(claim.job['id'], claim.token)
    ci.append_trace(job, 0, b'$ make\n')
    part = ci.artifacts.receive()
    part.filename = 'artifacts.zip'
    part.write(ARCHIVE)
    ci.store_artifacts(job, part, expire_in='1 week')
    part.discard()
    ci.update_job(job, state)
    return ci.find_job(job)


@pytest.fixture
def page(ci, token, curl, repository):
    """The jobs, by name, of the jobs page's project 1: one failed, two pending, one manual."""
    project = ci.create_project('group/demo', import_url=repository, default_branch='master')
    pipeline = ci.create_pipeline(project, 'master', user=ci.find_user(token))
    jobs = {row['name']: row for row in ci.list_jobs(pipeline=pipeline)}
    jobs['rubocop'] = finish(ci, Runner(ci).claim(), 'failed')
    curl.words.update({'9koXpg98eAheJpvBs5tK': token, 'projects/1': f'projects/{project["id"]}',
                       'pipelines/6': f'pipelines/{pipeline["id"]}', 'pipeline/6': f'pipeline/{pipeline["id"]}'})
    return jobs


# -- Builds API of June 2016 (GitLab 8.9), `curl -X`

def test_oldest_pending_build_is_handed_to_the_runner(curl, pipeline, runner):
    answer = curl('curl -X POST "https://gitlab.example.com/ci/api/v1/builds/register" -F "token=t0k3n"',
                  t0k3n=runner.token)
    assert answer.status == 201
    assert (answer.json['name'], answer.json['status']) == ('test', 'running')


def test_build_is_updated_by_its_runner(ci, curl, build):
    answer = curl('curl -X PUT "https://gitlab.example.com/ci/api/v1/builds/1234" -F "token=t0k3n" -F "state=running" '
                  '-F "trace=Running git clone...\\n"')
    assert answer.status == 200
    assert ci.find_job(build)['status'] == 'running'
    assert ci.read_trace(build) == b'Running git clone...\\n'


def test_trace_part_is_appended_and_answered_with_the_status_and_length(ci, curl, build):
    answer = curl('curl -X PATCH "https://gitlab.example.com/ci/api/v1/builds/1234/trace.txt" '
                  '-H "BUILD-TOKEN: build_t0k3n" -H "Content-Range: 0-21" -d "Running git clone...\\n"')
    assert answer.status == 202
    assert (answer.headers['Build-Status'], answer.headers['Range']) == ('running', '0-22')
    assert ci.read_trace(build) == b'Running git clone...\\n'


def test_next_trace_part_starts_where_the_last_answer_says_and_any_other_is_416(ci, curl, build):
    line = ('curl -X PATCH "https://gitlab.example.com/ci/api/v1/builds/1234/trace.txt" '
            '-H "BUILD-TOKEN: build_t0k3n" -H "Content-Range: START-" -d "Hello World"')
    assert curl(line, START=0).headers['Range'] == '0-11'
    for wrong in (0, 10, 12):
        answer = curl(line, START=wrong)
        assert (answer.status, answer.headers['Range']) == (416, '0-11')
    answer = curl(line, START=11)
    assert (answer.status, answer.headers['Range']) == (202, '0-22')
    assert ci.read_trace(build) == b'Hello WorldHello World'


def test_headers_with_an_equals_sign_as_printed_are_no_headers_and_the_call_is_refused(ci, curl, build):
    answer = curl('curl -X PATCH "https://gitlab.example.com/ci/api/v1/builds/1234/trace.txt" '
                  '-H "BUILD-TOKEN=build_t0k3n" -H "Content-Range=0-21" -d "Running git clone...\\n"')
    assert answer.status == 403
    assert ci.read_trace(build) == b''


def test_artifacts_are_uploaded(ci, curl, build, upload):
    answer = curl('curl -X POST "https://gitlab.example.com/ci/api/v1/builds/1234/artifacts" '
                  '-F "token=build_t0k3n" -F "file=@/path/to/file"')
    assert answer.status == 201
    assert answer.json['artifacts_file'] == {'filename': 'artifacts.zip', 'size': len(upload)}
    assert ci.find_artifact(build['id'])['size'] == len(upload)


def test_artifacts_are_downloaded(curl, build, upload):
    curl('curl -X POST "https://gitlab.example.com/ci/api/v1/builds/1234/artifacts" '
         '-F "token=build_t0k3n" -F "file=@/path/to/file"')
    answer = curl('curl -X GET "https://gitlab.example.com/ci/api/v1/builds/1234/artifacts" -F "token=build_t0k3n"')
    assert answer.status == 200
    assert answer.body == upload


def test_download_line_without_a_method_is_curls_post_and_asks_for_the_file(curl, build):
    answer = curl('curl "https://gitlab.example.com/ci/api/v1/builds/1234/artifacts" -F "token=build_t0k3n"')
    assert answer.status == 400
    assert 'Missing artifacts file!' in answer.json['message']


def test_artifacts_are_removed(curl, build, upload):
    curl('curl -X POST "https://gitlab.example.com/ci/api/v1/builds/1234/artifacts" '
         '-F "token=build_t0k3n" -F "file=@/path/to/file"')
    answer = curl('curl -X DELETE "https://gitlab.example.com/ci/api/v1/builds/1234/artifacts" -F "token=build_t0k3n"')
    assert answer.status == 200
    gone = curl('curl -X GET "https://gitlab.example.com/ci/api/v1/builds/1234/artifacts" -F "token=build_t0k3n"')
    assert gone.status == 404


@pytest.mark.parametrize('authentication', ['-F "token=WORD"', '-H "BUILD-TOKEN: WORD"'])
@pytest.mark.parametrize('whose', ['build', 'project', 'runner'])
def test_both_authentications_are_interchangeable(ci, curl, build, upload, runner, job, project, whose, authentication):
    curl.words['WORD'] = {'build': job.token, 'project': project['runners_token'], 'runner': runner.token}[whose]
    sent = curl(f'curl -X POST "https://gitlab.example.com/ci/api/v1/builds/1234/artifacts" {authentication} '
                '-F "file=@/path/to/file"')
    got = curl(f'curl -X GET "https://gitlab.example.com/ci/api/v1/builds/1234/artifacts" {authentication}')
    assert (sent.status, got.status, got.body) == (201, 200, upload)


# -- Builds API, the oldest page: two calls at /ci, without curl lines of its own

def test_oldest_page_registers_a_build_with_every_field_of_its_object(ci, curl):
    project = ci.create_project('group/test', allow_git_fetch=False)
    ci.create_pipeline(project, '0.1.1', tag=True, sha=BUILD['sha'], content=REGISTER_TAG)
    runner = Runner(ci)
    done = finish(ci, runner.claim())
    answer = curl('curl -X POST "https://gitlab.example.com/ci/builds/register" -F "token=t0k3n"', t0k3n=runner.token)
    assert answer.status == 201
    build = answer.json
    assert_like(BUILD, build)
    assert_like(BUILD['depends_on_builds'][0]['artifacts_file'], build['depends_on_builds'][0]['artifacts_file'])
    for name in ('ref', 'tag', 'sha', 'name', 'stage', 'project_name', 'commands', 'before_sha', 'allow_git_fetch',
                 'timeout'):
        assert build[name] == BUILD[name], name
    for name in ('ref', 'tag', 'sha', 'status', 'name', 'stage', 'project_name'):
        assert build['depends_on_builds'][0][name] == BUILD['depends_on_builds'][0][name], name
    assert build['options']['image'] == 'docker:image'
    assert build['options']['artifacts']['paths'] == ['public']
    assert build['options']['cache']['paths'] == ['vendor']
    assert BUILD['variables'][0] in build['variables']
    assert build['depends_on_builds'][0]['id'] == done['id']
    assert build['project_id'] == project['id']
    host = curl.words[HOST].removeprefix('http://')
    assert build['repo_url'] == f'http://gitlab-ci-token:{build["token"]}@{host}/group/test.git'


def test_oldest_page_updates_a_build(ci, curl, build):
    answer = curl('curl -X PUT "https://gitlab.example.com/ci/builds/1234" -F "token=t0k3n" -F "state=success" '
                  '-F "trace=done"')
    assert answer.status == 200
    assert ci.find_job(build)['status'] == 'success'
    assert ci.read_trace(build) == b'done'


def test_oldest_page_lets_state_and_trace_be_left_out(ci, curl, build):
    answer = curl('curl -X PUT "https://gitlab.example.com/ci/builds/1234" -F "token=t0k3n"')
    assert answer.status == 200
    assert (ci.find_job(build)['status'], ci.read_trace(build)) == ('running', b'')


# -- Builds API of GitLab 9, `curl --request`

def test_register_answers_201_when_a_build_is_scheduled(curl, pipeline, runner):
    answer = curl('curl --request POST "https://gitlab.example.com/ci/api/v1/builds/register" --form "token=t0k3n"',
                  t0k3n=runner.token)
    assert answer.status == 201
    assert_like({**BUILD, 'depends_on_builds': [], 'options': {}}, answer.json)


def test_register_answers_204_when_nothing_is_scheduled_for_a_runner_since_1_3_0(curl, runner):
    answer = curl('curl --request POST "https://gitlab.example.com/ci/api/v1/builds/register" --form "token=t0k3n" '
                  '--header "User-Agent: gitlab-ci-multi-runner 1.3.0 (1-3-stable; go1.6.2; linux/amd64)"',
                  t0k3n=runner.token)
    assert (answer.status, answer.body) == (204, b'')


@pytest.mark.parametrize('form', ['--form "token=wrong"', '--form "token="', '--form "other=1"', ''])
def test_register_answers_403_when_the_token_is_invalid_or_missing(curl, pipeline, form):
    answer = curl(f'curl --request POST "https://gitlab.example.com/ci/api/v1/builds/register" {form}')
    assert answer.status == 403
    assert answer.json == {'message': '403 Forbidden'}


def test_register_answers_404_when_nothing_is_scheduled_for_an_older_runner(curl, runner):
    answer = curl('curl --request POST "https://gitlab.example.com/ci/api/v1/builds/register" --form "token=t0k3n"',
                  t0k3n=runner.token)
    assert answer.status == 404


def test_register_answers_404_to_a_paused_runner(ci, curl, pipeline):
    answer = curl('curl --request POST "https://gitlab.example.com/ci/api/v1/builds/register" --form "token=t0k3n" '
                  '--header "User-Agent: gitlab-ci-multi-runner 1.3.0 (1-3-stable; go1.6.2; linux/amd64)"',
                  t0k3n=Runner(ci, active=False).token)
    assert answer.status == 404


def test_build_is_updated_by_its_runner_in_the_later_spelling(ci, curl, build):
    answer = curl('curl --request PUT "https://gitlab.example.com/ci/api/v1/builds/1234" --form "token=t0k3n" '
                  '--form "state=running" --form "trace=Running git clone...\\n"')
    assert answer.status == 200
    assert ci.read_trace(build) == b'Running git clone...\\n'


def test_trace_part_is_appended_in_the_later_spelling(ci, curl, build):
    answer = curl('curl --request PATCH "https://gitlab.example.com/ci/api/v1/builds/1234/trace.txt" '
                  '--header "BUILD-TOKEN: build_t0k3n" --header "Content-Range: 0-21" --data "Running git clone...\\n"')
    assert (answer.status, answer.headers['Build-Status'], answer.headers['Range']) == (202, 'running', '0-22')
    assert ci.read_trace(build) == b'Running git clone...\\n'


def test_artifacts_are_uploaded_in_the_later_spelling(curl, build, upload):
    answer = curl('curl --request POST "https://gitlab.example.com/ci/api/v1/builds/1234/artifacts" '
                  '--form "token=build_t0k3n" --form "file=@/path/to/file"')
    assert answer.status == 201
    assert answer.json['id'] == build['id']


def test_artifacts_are_downloaded_in_the_later_spelling(curl, build, upload):
    curl('curl --request POST "https://gitlab.example.com/ci/api/v1/builds/1234/artifacts" '
         '--form "token=build_t0k3n" --form "file=@/path/to/file"')
    answer = curl('curl --request GET "https://gitlab.example.com/ci/api/v1/builds/1234/artifacts" '
                  '--form "token=build_t0k3n"')
    assert (answer.status, answer.body) == (200, upload)


def test_artifacts_are_removed_in_the_later_spelling(ci, curl, build, upload):
    curl('curl --request POST "https://gitlab.example.com/ci/api/v1/builds/1234/artifacts" '
         '--form "token=build_t0k3n" --form "file=@/path/to/file"')
    answer = curl('curl --request DELETE "https://gitlab.example.com/ci/api/v1/builds/1234/artifacts" '
                  '--form "token=build_t0k3n"')
    assert answer.status == 200
    with pytest.raises(minici.NotFound):
        ci.find_artifact(build['id'])


# -- Jobs API

def test_project_jobs_are_listed_by_scope(ci, curl, page):
    running = Runner(ci).claim().job
    answer = curl('curl --header "PRIVATE-TOKEN: 9koXpg98eAheJpvBs5tK" '
                  "'https://gitlab.example.com/api/v4/projects/1/jobs?scope[]=pending&scope[]=running'")
    assert answer.status == 200
    assert [(job['name'], job['status']) for job in answer.json] == [('spinach:other', 'pending'), ('test', 'running')]
    assert answer.json[1]['id'] == running['id']
    assert_like([JOB], answer.json)


def test_all_project_jobs_are_listed_without_a_scope(curl, page):
    answer = curl('curl --header "PRIVATE-TOKEN: 9koXpg98eAheJpvBs5tK" "https://gitlab.example.com/api/v4/projects/1/jobs"')
    assert {job['name']: job['status'] for job in answer.json} == {
        'rubocop': 'failed', 'test': 'pending', 'spinach:other': 'pending', 'teaspoon': 'manual'}


@pytest.mark.parametrize('scope', ['created', 'pending', 'running', 'failed', 'success', 'canceled', 'skipped'])
def test_scope_is_one_of_the_seven_words_of_the_page(curl, page, scope):
    answer = curl('curl --header "PRIVATE-TOKEN: 9koXpg98eAheJpvBs5tK" '
                  f'"https://gitlab.example.com/api/v4/projects/1/jobs?scope={scope}"')
    assert answer.status == 200
    assert {job['status'] for job in answer.json} <= {scope}


@pytest.mark.parametrize('word', ['pipelines', 'pipeline'])
def test_pipeline_jobs_are_listed_by_scope_under_both_spellings_of_the_path(ci, curl, page, word):
    Runner(ci).claim()
    other = ci.create_pipeline(ci.find_project(1), 'master', sha=SHA, content={'other': {'script': ['true']}})
    answer = curl('curl --header "PRIVATE-TOKEN: 9koXpg98eAheJpvBs5tK" '
                  f"'https://gitlab.example.com/api/v4/projects/1/{word}/6/jobs?scope[]=pending&scope[]=running'")
    assert answer.status == 200
    assert sorted(job['name'] for job in answer.json) == ['spinach:other', 'test']
    assert_like([JOB], answer.json)
    assert other['id'] not in {job['pipeline']['id'] for job in answer.json}


def test_single_job_has_every_field_of_the_page(curl, page):
    answer = curl('curl --header "PRIVATE-TOKEN: 9koXpg98eAheJpvBs5tK" "https://gitlab.example.com/api/v4/projects/1/jobs/8"',
                  **{'jobs/8': f'jobs/{page["rubocop"]["id"]}'})
    assert answer.status == 200
    job = answer.json
    assert_like(JOB, job)
    assert (job['id'], job['name'], job['status'], job['stage']) == (page['rubocop']['id'], 'rubocop', 'failed', 'test')
    assert (job['ref'], job['tag'], job['coverage']) == ('master', False, None)
    assert job['pipeline'] == {**job['pipeline'], 'ref': 'master', 'sha': job['commit']['id'], 'status': 'running'}
    assert (job['user']['username'], job['user']['state'], job['user']['is_admin']) == ('root', 'active', True)
    assert job['artifacts_file'] == {'filename': 'artifacts.zip', 'size': len(ARCHIVE)}
    for name in ('created_at', 'started_at', 'finished_at'):
        assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z', job[name]), name


def test_commit_of_a_job_is_the_pages(curl, page):
    job = curl('curl --header "PRIVATE-TOKEN: 9koXpg98eAheJpvBs5tK" "https://gitlab.example.com/api/v4/projects/1/jobs/8"',
               **{'jobs/8': f'jobs/{page["rubocop"]["id"]}'}).json
    commit = job['commit']
    assert commit['short_id'] == commit['id'][:8] == job['pipeline']['sha'][:8]
    assert (commit['title'], commit['message'].strip()) == ('Test the CI integration.',) * 2
    assert (commit['author_name'], commit['author_email']) == ('Administrator', 'admin@example.com')
    assert commit['created_at'] == '2015-12-24T16:51:14.000+01:00'


def test_job_without_artifacts_or_runner_says_null(curl, page):
    job = curl('curl --header "PRIVATE-TOKEN: 9koXpg98eAheJpvBs5tK" "https://gitlab.example.com/api/v4/projects/1/jobs/8"',
               **{'jobs/8': f'jobs/{page["test"]["id"]}'}).json
    assert [job[name] for name in ('artifacts_file', 'runner', 'started_at', 'finished_at')] == [None] * 4


def test_job_artifacts_are_served(curl, page):
    answer = curl('curl --header "PRIVATE-TOKEN: 9koXpg98eAheJpvBs5tK" '
                  '"https://gitlab.example.com/api/v4/projects/1/jobs/8/artifacts"',
                  **{'jobs/8': f'jobs/{page["rubocop"]["id"]}'})
    assert (answer.status, answer.body) == (200, ARCHIVE)


def test_artifacts_of_no_job_and_of_a_job_without_any_are_404(curl, page):
    line = ('curl --header "PRIVATE-TOKEN: 9koXpg98eAheJpvBs5tK" '
            '"https://gitlab.example.com/api/v4/projects/1/jobs/8/artifacts"')
    assert curl(line, **{'jobs/8': f'jobs/{page["test"]["id"]}'}).status == 404
    assert curl(line, **{'jobs/8': 'jobs/4711'}).status == 404


def test_artifacts_are_served_by_reference_and_job_name(ci, curl, page):
    ci.create_pipeline(ci.find_project(1), 'master', sha=SHA, content={'test': {'script': ['true']}})
    runner = Runner(ci)
    for _ in range(3):
        finish(ci, runner.claim())
    line = ('curl --header "PRIVATE-TOKEN: 9koXpg98eAheJpvBs5tK" '
            '"https://gitlab.example.com/api/v4/projects/1/jobs/artifacts/master/download?job=test"')
    answer = curl(line)
    assert (answer.status, answer.body) == (200, ARCHIVE)
    assert curl(line, master='nowhere').status == 404
    assert curl(line, **{'=test': '=nothing'}).status == 404


def test_trace_is_served(curl, page):
    answer = curl('curl --header "PRIVATE-TOKEN: 9koXpg98eAheJpvBs5tK" "https://gitlab.example.com/api/v4/projects/1/jobs/8/trace"',
                  **{'jobs/8': f'jobs/{page["rubocop"]["id"]}'})
    assert (answer.status, answer.body) == (200, b'$ make\n')


def test_trace_of_no_job_and_of_a_job_without_one_is_404(curl, page):
    line = 'curl --header "PRIVATE-TOKEN: 9koXpg98eAheJpvBs5tK" "https://gitlab.example.com/api/v4/projects/1/jobs/8/trace"'
    assert curl(line, **{'jobs/8': f'jobs/{page["test"]["id"]}'}).status == 404
    assert curl(line, **{'jobs/8': 'jobs/4711'}).status == 404


def test_job_is_canceled(curl, page):
    answer = curl('curl --request POST --header "PRIVATE-TOKEN: 9koXpg98eAheJpvBs5tK" '
                  '"https://gitlab.example.com/api/v4/projects/1/jobs/1/cancel"',
                  **{'jobs/1': f'jobs/{page["test"]["id"]}'})
    assert answer.status == 201
    assert_like(JOB, answer.json)
    assert (answer.json['id'], answer.json['status']) == (page['test']['id'], 'canceled')
    assert answer.json['started_at'] is None
    assert answer.json['finished_at'] is not None


def test_job_is_retried(curl, page):
    answer = curl('curl --request POST --header "PRIVATE-TOKEN: 9koXpg98eAheJpvBs5tK" '
                  '"https://gitlab.example.com/api/v4/projects/1/jobs/1/retry"',
                  **{'jobs/1': f'jobs/{page["rubocop"]["id"]}'})
    assert answer.status == 201
    assert_like(JOB, answer.json)
    assert (answer.json['name'], answer.json['status']) == ('rubocop', 'pending')
    assert [answer.json[name] for name in ('artifacts_file', 'runner', 'started_at', 'finished_at')] == [None] * 4


def test_job_is_erased(ci, curl, page):
    answer = curl('curl --request POST --header "PRIVATE-TOKEN: 9koXpg98eAheJpvBs5tK" '
                  '"https://gitlab.example.com/api/v4/projects/1/jobs/1/erase"',
                  **{'jobs/1': f'jobs/{page["rubocop"]["id"]}'})
    assert answer.status == 201
    assert_like({**JOB, 'download_url': None}, answer.json)
    assert (answer.json['status'], answer.json['artifacts_file']) == ('failed', None)
    for removed in (ci.read_trace, ci.open_artifacts):
        with pytest.raises(minici.NotFound):
            removed(page['rubocop'])


def test_artifacts_are_kept(ci, clock, curl, page):
    answer = curl('curl --request POST --header "PRIVATE-TOKEN: 9koXpg98eAheJpvBs5tK" '
                  '"https://gitlab.example.com/api/v4/projects/1/jobs/1/artifacts/keep"',
                  **{'jobs/1': f'jobs/{page["rubocop"]["id"]}'})
    assert answer.status == 200
    assert_like({**JOB, 'download_url': None}, answer.json)
    assert (answer.json['status'], answer.json['artifacts_expire_at']) == ('failed', None)
    clock.advance(days=30)
    ci.sweep()
    assert ci.find_artifact(page['rubocop']['id'])['filename'] == 'artifacts.zip'


def test_manual_job_is_played(curl, page):
    answer = curl('curl --request POST --header "PRIVATE-TOKEN: 9koXpg98eAheJpvBs5tK" '
                  '"https://gitlab.example.com/api/v4/projects/1/jobs/1/play"',
                  **{'jobs/1': f'jobs/{page["teaspoon"]["id"]}'})
    assert answer.status == 200
    assert_like(JOB, answer.json)
    assert (answer.json['id'], answer.json['status']) == (page['teaspoon']['id'], 'pending')
    assert [answer.json[name] for name in ('artifacts_file', 'runner', 'started_at', 'finished_at')] == [None] * 4


# -- Runners API

@pytest.mark.parametrize('whose', ['instance', 'project'])
def test_runner_is_registered_with_either_registration_token(ci, curl, project, whose):
    token = {'instance': ci.registration_token, 'project': project['runners_token']}[whose]
    answer = curl('curl -X POST "https://gitlab.example.com/ci/api/v1/runners/register" -F "token=t0k3n"', t0k3n=token)
    assert answer.status == 201
    runner = ci.find_runner(answer.json['token'])
    assert (runner['id'], runner['runner_type']) == (
        answer.json['id'], {'instance': 'instance_type', 'project': 'project_type'}[whose])


def test_runner_is_removed(ci, curl, runner):
    answer = curl('curl -X DELETE "https://gitlab.example.com/ci/api/v1/runners/delete" -F "token=t0k3n"',
                  t0k3n=runner.token)
    assert answer.status == 200
    assert ci.find_runner(runner.token) is None
