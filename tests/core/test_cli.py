"""The command line: `main(argv)` in this process, and `python minici.py` as people run it."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from support import PLAIN, SHA, Runner, commit, git, stamped, until

import minici

PIPELINE = """\
stages: [build, test]
compile:
  stage: build
  script: [make]
check:
  stage: test
  script: [make check]
"""

@pytest.fixture
def working_copy(tmp_path):
    """A repository with a two-stage pipeline on `main`, one job more on `feature/x`, and a tag."""
    directory = tmp_path / 'demo'
    commit(directory, **{'.gitlab-ci.yml': PIPELINE})
    git(directory, 'checkout', '--quiet', '-b', 'feature/x')
    commit(directory, 'Work on feature/x', **{'.gitlab-ci.yml': f'{PIPELINE}extra:\n  script: [make extra]\n'})
    git(directory, 'checkout', '--quiet', 'main')
    git(directory, 'tag', 'v1.0')
    return directory


@pytest.fixture
def db(tmp_path):
    return tmp_path / 'ci.sqlite'


@pytest.fixture
def run(db, capsys):
    """A way to run a command: return its exit status, standard output and standard error."""
    def run(*arguments):
        try:
            status = minici.main(['--db', str(db), *map(str, arguments)])
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()
    return run


@pytest.fixture
def opened(db):
    """A second process's view of the database."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(minici.Coordinator(db, fsync=False))


# -- token and backup

def test_token_is_alone_on_its_line_and_works(run, opened):
    opened()
    status, out, err = run('token')
    assert (status, err) == (0, '')
    assert re.fullmatch(r'mcp-[0-9a-f]{40}\n', out)
    user = opened().find_user(out.strip())
    assert (user['username'], user['scope']) == ('root', 'api')


def test_token_has_the_name_and_the_scope_it_was_asked_for(run, opened):
    opened()
    _, out, _ = run('token', '--name', 'ann', '--scope', 'read_api')
    user = opened().find_user(out.strip())
    assert (user['username'], user['scope']) == ('ann', 'read_api')


@pytest.mark.parametrize('arguments, status', [
    (('--scope', 'sudo'), 2), (('--name', '../evil'), 1), (('--name', ''), 1)])
def test_token_of_an_unknown_scope_or_an_unusable_name_is_refused(run, arguments, status):
    answer, out, err = run('token', *arguments)
    assert (answer, out) == (status, '')
    assert err


def test_tokens_of_the_environment_are_set_when_the_database_is_made(run, opened, monkeypatch):
    monkeypatch.setenv('MINICI_PRIVATE_TOKEN', 'chosen-private')
    monkeypatch.setenv('MINICI_REGISTRATION_TOKEN', 'chosen-registration')
    opened()
    monkeypatch.setenv('MINICI_PRIVATE_TOKEN', 'later-private')
    monkeypatch.setenv('MINICI_REGISTRATION_TOKEN', 'later-registration')
    ci = opened()
    assert ci.find_user('chosen-private')['scope'] == 'api'
    assert ci.find_user('later-private') is None
    assert ci.registration_token == 'chosen-registration'


@pytest.mark.parametrize('command', [('token',), ('why', '1'), ('backup', 'copy'), ('prune',)])
def test_only_what_fills_a_database_makes_one(run, db, command, tmp_path):
    status, out, err = run(*command)
    assert (status, out) == (1, '')
    assert err == f'minici: there is no database {db}; "minici --db {db}" makes one and serves it\n'
    assert list(tmp_path.iterdir()) == []


def test_a_missing_job_is_told_without_words_of_http(run, opened):
    opened()
    assert run('why', '17') == (1, '', 'minici: job 17 does not exist\n')


def test_backup_is_a_consistent_copy_for_its_owner_alone(run, opened, tmp_path):
    ci = opened()
    ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content=PLAIN)
    assert run('backup', tmp_path / 'copy') == (0, '', '')
    assert stat.S_IMODE((tmp_path / 'copy' / 'minici.sqlite').stat().st_mode) == 0o600
    ci.create_project('later')
    with minici.Coordinator(tmp_path / 'copy' / 'minici.sqlite', fsync=False) as copy:
        assert [project['path'] for project in copy.list_projects()[0]] == ['demo']
        assert copy.registration_token == ci.registration_token


def test_backup_that_cannot_be_written_says_why(run, opened, tmp_path):
    opened()
    status, out, err = run('backup', tmp_path / 'missing' / 'copy')
    assert (status, out) == (1, '')
    assert 'missing' in err
    assert 'Traceback' not in err


# -- submit

def jobs_of(ci):
    return sorted((job['name'], job['status']) for job in ci.list_jobs())


def test_submit_makes_a_project_and_a_pipeline_of_a_working_copy(run, opened, working_copy):
    status, out, err = run('submit', working_copy)
    assert (status, err) == (0, '')
    sha = git(working_copy, 'rev-parse', 'main')
    assert f'pipeline 1 of demo at {sha[:8]}: pending' in out
    ci = opened()
    pipeline, project = ci.find_pipeline(1), ci.find_project('demo')
    assert (pipeline['ref'], pipeline['sha'], pipeline['tag']) == ('main', sha, 0)
    assert (project['import_url'], project['default_branch']) == (f'file://{working_copy}', 'main')
    assert jobs_of(ci) == [('check', 'created'), ('compile', 'pending')]


def test_submit_of_a_bare_repository(run, opened, working_copy, tmp_path):
    git(tmp_path, 'clone', '--quiet', '--bare', str(working_copy), 'bare demo.git')
    assert run('submit', tmp_path / 'bare demo.git')[0] == 0
    assert opened().find_project('bare-demo')['import_url'] == f'file://{tmp_path}/bare%20demo.git'


def test_submitting_again_uses_the_same_project(run, opened, working_copy):
    for _ in range(2):
        assert run('submit', working_copy)[0] == 0
    ci = opened()
    assert (ci.list_projects()[1], ci.list_pipelines(ci.find_project('demo'))[1]) == (1, 2)


def test_another_repository_of_the_same_name_is_another_project(run, opened, working_copy, tmp_path):
    git(tmp_path, 'clone', '--quiet', str(working_copy), 'other/demo')
    for path in (working_copy, tmp_path / 'other' / 'demo', working_copy):
        assert run('submit', path)[0] == 0
    assert run('submit', working_copy, '--project', 'group/mine')[0] == 0
    projects, _ = opened().list_projects()
    assert [project['path'] for project in projects] == ['group/mine', 'demo-2', 'demo']


def test_submit_is_a_push_unless_it_says_otherwise(run, opened, working_copy):
    assert run('submit', working_copy)[0] == 0
    assert run('submit', working_copy, '--source', 'schedule')[0] == 0
    assert [row['source'] for row in opened().list_pipelines()[0]] == ['schedule', 'push']


@pytest.mark.parametrize('ref, tag, jobs', [('feature/x', 0, 3), ('v1.0', 1, 2)])
def test_submit_takes_a_branch_or_a_tag(run, opened, working_copy, ref, tag, jobs):
    assert run('submit', working_copy, '--ref', ref)[0] == 0
    ci = opened()
    pipeline = ci.find_pipeline(1)
    assert (pipeline['ref'], pipeline['tag'], len(ci.list_jobs(pipeline=pipeline))) == (ref, tag, jobs)


def test_variables_of_submit_reach_the_jobs(run, opened, working_copy):
    assert run('submit', working_copy, '--variable', 'A=1=2', '--variable', 'B=')[0] == 0
    pipeline = opened().find_pipeline(1)
    given = {item['key']: item['value'] for item in json.loads(pipeline['variables'])}
    assert given == {'A': '1=2', 'B': ''}


@pytest.mark.parametrize('arguments, says', [
    (('--ref', 'missing'), 'Reference not found'), (('--ref', '--upload-pack=evil'), 'expected one argument'),
    (('--ref=--upload-pack=evil',), 'Reference not found'), (('--variable', 'nonsense'), 'nonsense'),
    (('--variable', 'A-B=1'), 'A-B')])
def test_submit_of_what_cannot_be_says_why(run, opened, working_copy, arguments, says):
    status, out, err = run('submit', working_copy, *arguments)
    assert (status, out) == (2 if 'argument' in says else 1, '')
    assert says in err
    assert 'Traceback' not in err
    assert opened().list_jobs() == []


def test_submit_of_no_repository_says_so(run, tmp_path):
    (tmp_path / 'empty').mkdir()
    for path in (tmp_path / 'empty', tmp_path / 'missing'):
        status, out, err = run('submit', path)
        assert (status, out) == (1, '')
        assert 'repository' in err


def test_submit_without_a_pipeline_file_says_so(run, working_copy):
    git(working_copy, 'rm', '--quiet', '.gitlab-ci.yml')
    git(working_copy, 'commit', '--quiet', '--message', 'Away with it')
    status, _, err = run('submit', working_copy)
    assert status == 1
    assert 'Missing CI config file' in err


def test_submit_of_a_wrong_pipeline_file_names_the_line(run, working_copy):
    (working_copy / '.gitlab-ci.yml').write_text('test:\n  script: [make]\n  colour: red\n')
    git(working_copy, 'commit', '--quiet', '--all', '--message', 'Paint it')
    status, _, err = run('submit', working_copy)
    assert status == 1
    assert '.gitlab-ci.yml:3:3' in err
    assert 'colour' in err


def follow(db, working_copy, final):
    """Submit and follow, while a runner takes the jobs; return the exit status."""
    result = []
    thread = threading.Thread(target=lambda: result.append(
        minici.main(['--db', str(db), 'submit', str(working_copy), '--follow'])))
    with minici.Coordinator(db, fsync=False) as ci:
        runner = Runner(ci)
        thread.start()
        for state in final:
            while (claim := runner.claim()) is None:
                time.sleep(0.01)
            job = ci.authenticate_job(claim.job['id'], claim.token)
            ci.append_trace(job, 0, f'output of {job["name"]} €\n'.encode())
            ci.update_job(job, state)
        thread.join(30)
    return result[0]


def test_follow_prints_the_traces_and_succeeds_with_the_pipeline(db, working_copy, capsys):
    assert follow(db, working_copy, ['success', 'success']) == 0
    out = capsys.readouterr().out
    assert out.index('output of compile €') < out.index('output of check €') < out.index('pipeline 1: success')


def test_follow_fails_with_the_pipeline(db, working_copy, capsys):
    assert follow(db, working_copy, ['failed']) == 1
    assert 'pipeline 1: failed' in capsys.readouterr().out


@pytest.fixture
def following(ci, project):
    """A pipeline of one job that is followed from a thread: its job, what was printed, and the exit status."""
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    out, status = io.StringIO(), []
    thread = threading.Thread(target=lambda: status.append(minici.follow(ci, pipeline, minici.Screen(out))))
    thread.start()
    yield pipeline, out, status
    ci.cancel_pipeline(pipeline)
    ci.cancel_pipeline(pipeline)
    thread.join(30)
    assert not thread.is_alive()


def test_follow_says_why_nothing_happens_whenever_the_reason_changes(ci, following):
    _, out, _ = following
    until(lambda: 'test is pending: no runner is registered for its project\n' in out.getvalue())
    runner = Runner(ci, active=False)
    until(lambda: 'test is pending: every runner that could take it is paused\n' in out.getvalue())
    ci.edit_runner(runner.row, active=True)
    claim = runner.claim_prepared()
    until(lambda: f'test is pending: runner {runner.id} is preparing it\n' in out.getvalue())
    ci.append_trace(claim.job, 0, b'hello\n')
    until(lambda: 'hello' in out.getvalue())
    assert out.getvalue().count('registered for its project') == 1


def test_follow_marks_a_trace_watched_from_the_start_of_its_job(ci, following):
    _, out, _ = following
    Runner(ci).claim()
    until(lambda: ci.traces.is_watched(1))
    assert not ci.traces.path(1).exists()


def test_follow_shows_what_a_job_prints_while_it_is_being_canceled(ci, following):
    _, out, status = following
    runner = Runner(ci)
    ci.contact(runner.row, {'features': ['cancel_gracefully']}, None)
    job = runner.claim().job
    ci.append_trace(job, 0, b'script\n')
    until(lambda: 'script' in out.getvalue())
    ci.cancel_job(ci.find_job(1))
    assert ci.find_job(1)['status'] == 'canceling'
    time.sleep(0.5)
    ci.append_trace(job, 7, b'after_script\n')
    until(lambda: 'after_script' in out.getvalue())
    assert status == []


@pytest.mark.parametrize('write', [bytes, stamped])
def test_follow_prints_characters_whole_and_no_time_stamps(ci, following, write):
    _, out, _ = following
    job = Runner(ci).claim().job
    log, size = write('prüfe ✓\n'.encode() * 3), 0
    for byte in log:
        size = ci.append_trace(job, size, bytes([byte]))
        if size % 9 == 0:
            time.sleep(0.05)
    until(lambda: out.getvalue().count('prüfe ✓\n') == 3)
    assert '\ufffd' not in out.getvalue()
    assert '01O' not in out.getvalue()


def test_ctrl_c_while_following_says_how_to_cancel_the_pipeline(run, working_copy, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(minici, 'follow', interrupted)
    status, out, err = run('submit', working_copy, '--follow')
    assert status == 130
    assert 'pipeline 1 goes on without being followed' in out
    assert 'POST /api/v4/projects/1/pipelines/1/cancel' in out


# -- lint

def test_lint_names_the_jobs_of_each_stage(run, tmp_path):
    (tmp_path / 'ci.yml').write_text(PIPELINE)
    status, out, err = run('lint', tmp_path / 'ci.yml')
    assert (status, out, err) == (0, 'build: compile\ntest: check\n', '')


def test_lint_names_file_line_and_keyword_of_every_problem(run, tmp_path, db):
    (tmp_path / 'ci.yml').write_text('a:\n  script: [x]\n  colour: red\nb:\n  stage: nowhere\n  script: [x]\n')
    status, out, err = run('lint', tmp_path / 'ci.yml')
    assert (status, out) == (1, '')
    assert [re.search(r'ci\.yml:(\d+):\d+: (\w+:\w+)', line).groups() for line in err.splitlines()] == [
        ('3', 'a:colour'), ('5', 'b:stage')]
    assert not db.exists()


@pytest.mark.parametrize('content', ['', 'a: [', '\tx: y', 'a: *b', 'just text', '[]'])
def test_lint_of_what_is_no_pipeline_file_fails_in_words(run, tmp_path, content):
    (tmp_path / 'ci.yml').write_text(content)
    status, out, err = run('lint', tmp_path / 'ci.yml')
    assert (status, out) == (1, '')
    assert 'ci.yml' in err
    assert 'Traceback' not in err


def test_lint_of_a_missing_file_fails_in_words(run, tmp_path):
    status, out, err = run('lint', tmp_path / 'missing.yml')
    assert (status, out) == (1, '')
    assert 'missing.yml' in err


# -- options

@pytest.mark.parametrize('option, value', [
    ('--max-trace-size', 'large'), ('--max-trace-size', '-1'), ('--max-artifacts-size', '1X'),
    ('--artifacts-expire-in', 'soon'), ('--stuck-timeout', 'never'), ('--claim-timeout', ''), ('--job-timeout', '0'),
    ('--external-url', 'ftp://host'), ('--external-url', 'host'), ('--port', 'http'), ('--port', '80000'),
    ('--port', '-1'), ('--nonsense', '1')])
def test_nonsense_is_refused_by_the_name_of_its_option(run, db, option, value):
    status, out, err = run(f'{option}={value}', 'token')
    assert (status, out) == (2, '')
    assert option in err
    assert not db.exists()


def test_ctrl_c_ends_a_command_with_130_and_a_sentence(run, opened, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    opened()
    monkeypatch.setattr(minici.Coordinator, 'find_job', interrupt)
    assert run('why', '1') == (130, '', 'minici: interrupted\n')


def test_a_missing_package_is_named_with_the_way_to_get_it(tmp_path):
    script = tmp_path / 'minici.py'
    shutil.copy(minici.__file__, script)
    (tmp_path / 'bottle.py').write_text("raise ModuleNotFoundError('No module named bottle', name='bottle')\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, '')
    assert 'No module named bottle' in done.stderr
    assert 'pip install bottle cronsim multipart PyYAML regex waitress' in done.stderr
    assert 'Traceback' not in done.stderr


def test_the_script_hands_over_to_the_imported_module(tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(
        'import atexit, sys\n'
        "atexit.register(lambda: print(hasattr(sys.modules['__main__'], 'Coordinator'), 'minici' in sys.modules))\n")
    done = subprocess.run([sys.executable, minici.__file__, '--version'], capture_output=True, text=True, timeout=60,
                          env={**os.environ, 'PYTHONPATH': str(tmp_path)})
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, 'False True')


def test_unknown_command_is_refused(run, db):
    status, _, err = run('explode')
    assert status == 2
    assert 'explode' in err
    assert not db.exists()


def test_version_is_told(run):
    assert run('--version') == (0, f'minici {minici.__version__}\n', '')


def test_help_names_every_setting(run):
    status, out, _ = run('--help')
    assert status == 0
    for name in minici.Settings.__dataclass_fields__:
        assert f'--{name.replace("_", "-")}' in out


def test_database_of_another_program_is_refused_untouched(run, db):
    with contextlib.closing(sqlite3.connect(db)) as connection:
        connection.execute('CREATE TABLE precious (data TEXT)')
    before = db.read_bytes()
    status, out, err = run('token')
    assert (status, out) == (1, '')
    assert 'another program' in err
    assert db.read_bytes() == before


def test_file_that_is_no_database_is_refused_untouched(run, db):
    db.write_bytes(b'Dear diary, ' * 1000)
    status, out, err = run('token')
    assert (status, out) == (1, '')
    assert 'database' in err
    assert db.read_bytes() == b'Dear diary, ' * 1000


# -- serving

@contextlib.contextmanager
def serving(db, *options, **environment):
    """Run `python minici.py` until the end of the block; yield the process and what it printed at the start."""
    process = subprocess.Popen(
        [sys.executable, minici.__file__, '--db', str(db), '--port', '0', *options], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, **environment})
    try:
        lines = [process.stdout.readline()]
        while lines[-1] and 'gitlab-runner register' not in lines[-1]:
            lines.append(process.stdout.readline())
        yield process, ''.join(lines)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ask(url, token='', data=None, **headers):
    """Send a request; return the status and the JSON of the answer."""
    request = urllib.request.Request(url, data, {'PRIVATE-TOKEN': token, **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def address(printed):
    """Return the address that a server printed."""
    return re.search(r'http://[0-9.:]+', printed)[0]


def test_serving_prints_where_and_how_to_register_and_answers(db):
    with serving(db, MINICI_PRIVATE_TOKEN='chosen', MINICI_REGISTRATION_TOKEN='registration') as (_, printed):
        url = address(printed)
        command = f'gitlab-runner register --non-interactive --url {url}/ --registration-token registration'
        assert command in printed
        assert ask(f'{url}/api/v4/projects', 'chosen') == (200, [])
        assert ask(f'{url}/api/v4/projects', 'wrong')[0] == 401
        status, runner = ask(f'{url}/api/v4/runners', data=b'token=registration')
        assert (status, runner['id']) == (201, 1)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_serving_with_status_0(db, number):
    with serving(db) as (process, printed), socket.create_connection(
            ('127.0.0.1', int(address(printed).rpartition(':')[2]))):   # somebody stays connected
        process.send_signal(number)
        assert process.wait(30) == 0
        assert 'Traceback' not in process.stderr.read()


def test_settings_are_options_of_the_same_name(db, tmp_path):
    options = ('--max-artifacts-size', '100K', '--artifacts-expire-in', '2 days', '--data', str(tmp_path / 'elsewhere'),
               '--job-timeout', '2h')
    with serving(db, *options, MINICI_PRIVATE_TOKEN='chosen') as (_, printed):
        url = address(printed)
        with minici.Coordinator(db, tmp_path / 'elsewhere', fsync=False) as ci:
            runner = Runner(ci)
        ask(f'{url}/api/v4/projects', 'chosen', b'path=demo')
        body = json.dumps({'ref': 'main', 'sha': SHA, 'content': PLAIN}).encode()
        ask(f'{url}/api/v4/projects/demo/pipeline', 'chosen', body, **{'Content-Type': 'application/json'})
        _, build = ask(f'{url}/ci/api/v1/builds/register', data=f'token={runner.token}'.encode())
        assert build['timeout'] == 7200
        builds, token = f'{url}/ci/api/v1/builds/{build["id"]}/artifacts', {'BUILD-TOKEN': build['token']}
        assert ask(f'{builds}/authorize', data=b'', **token)[1]['MaximumSize'] == 100 * 1024
        boundary = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.zip"\r\n\r\n'
        kind = {'Content-Type': 'multipart/form-data; boundary=xyz'}
        for size, status in ((200_000, 413), (10, 201)):
            answer = ask(builds, data=boundary + b'x' * size + b'\r\n--xyz--\r\n', **token, **kind)
            assert answer[0] == status
    with minici.Coordinator(db, tmp_path / 'elsewhere', fsync=False) as ci:
        artifact = ci.find_artifact(build['id'])
        assert artifact['expire_at'] - artifact['created_at'] == 2 * 86400
    assert (tmp_path / 'elsewhere').is_dir()
    assert not (tmp_path / 'ci-data').exists()


def test_trace_beyond_max_trace_size_fails_the_job(db):
    with serving(db, '--max-trace-size', '100K') as (_, printed), minici.Coordinator(db, fsync=False) as ci:
        ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content=PLAIN)
        claim = Runner(ci).claim()
        request = urllib.request.Request(f'{address(printed)}/api/v4/jobs/{claim.job["id"]}/trace', b'x' * 102_401, {
            'JOB-TOKEN': claim.token, 'Content-Range': '0-102400'}, method='PATCH')
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=30)
        with caught.value as answer:
            assert (answer.code, answer.headers['Job-Status']) == (403, 'failed')
        assert ci.find_job(claim.job)['failure_reason'] == 'trace_size_exceeded'


def test_open_host_is_served_with_one_line_of_warning(db):
    with serving(db, '--host', '0.0.0.0') as (process, printed):
        port = re.search(r'http://0\.0\.0\.0:([0-9]+)', printed)[1]
        assert ask(f'http://127.0.0.1:{port}/api/v4/projects')[0] == 401
        process.terminate()
        assert process.wait(30) == 0
        warnings = process.stderr.read().splitlines()
    assert len(warnings) == 1
    assert re.search('warning.*0.0.0.0', warnings[0])


def test_loopback_is_served_without_a_warning(db):
    with serving(db) as (process, _):
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr.read() == ''


def test_external_url_is_printed_instead(db):
    with serving(db, '--external-url', 'https://ci.example.com/') as (_, printed):
        assert '--url https://ci.example.com/ ' in printed


def test_taken_port_is_told_in_one_line(db):
    with contextlib.closing(socket.create_server(('127.0.0.1', 0))) as taken:
        done = subprocess.run([sys.executable, minici.__file__, '--db', str(db), '--port', str(taken.getsockname()[1])],
                              capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, '')
    assert 'in use' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_commands_work_while_serving(db, working_copy, tmp_path):
    with serving(db) as (_, printed):
        def command(*arguments):
            return subprocess.run([sys.executable, minici.__file__, '--db', str(db), *arguments], check=True,
                                  capture_output=True, text=True, timeout=60).stdout

        token = command('token').strip()
        assert 'pipeline 1 of demo' in command('submit', str(working_copy))
        assert command('backup', str(tmp_path / 'copy')) == ''
        _, jobs = ask(f'{address(printed)}/api/v4/projects/demo/jobs', token)
    assert [job['name'] for job in jobs] == ['check', 'compile']


def test_database_outlives_the_server(db):
    with serving(db, MINICI_PRIVATE_TOKEN='chosen') as (process, printed):
        ask(f'{address(printed)}/api/v4/projects', 'chosen', b'path=demo')
        process.terminate()
        assert process.wait(30) == 0
    with serving(db) as (_, printed):
        _, projects = ask(f'{address(printed)}/api/v4/projects', 'chosen')
    assert [project['path'] for project in projects] == ['demo']


def test_restore_without_an_option_makes_the_default_database(run, opened, tmp_path, monkeypatch, capsys):
    opened()
    assert run('backup', tmp_path / 'copy')[0] == 0
    monkeypatch.chdir(tmp_path)
    assert minici.main(['restore', str(tmp_path / 'copy')]) == 0
    assert (tmp_path / 'minici.sqlite').exists()
