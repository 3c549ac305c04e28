"""The examples: each does what it says, the runner against every trouble it claims to survive."""

import ast
import configparser
import contextlib
import io
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from pathlib import Path

import pytest
import requests
from support import EXAMPLES, SHA, TOP, Runner, archive, commit, git, load, until

import minici

BUILD_AND_TEST = {
    'stages': ['build', 'test'],
    'compile': {'stage': 'build', 'script': ['mkdir out', 'cat source.txt source.txt > out/twice.txt'],
                'artifacts': {'paths': ['out/']}},
    'check': {'stage': 'test', 'script': ['cat out/twice.txt']},
}


shell_runner, mount = load('shell_runner'), load('mount')
with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, 'shell_runner', shell_runner)  # which it imports
    quickstart = load('quickstart')


class Wire:
    """Stands between the coordinator and its clients, notes what passes, and makes trouble on demand."""

    def __init__(self, ci):
        self.app, self.seen = minici.create_app(ci), []
        self.refuse = self.lose = lambda method, path: False

    def __call__(self, environ, start_response):
        method, path, said = environ['REQUEST_METHOD'], environ['PATH_INFO'], []
        trouble = self.refuse(method, path)
        if not trouble:
            body = environ['wsgi.input'].read(int(environ.get('CONTENT_LENGTH') or 0))
            answer = self.app({**environ, 'wsgi.input': io.BytesIO(body)}, lambda *head: said.extend(head))
            parts = list(answer)
            getattr(answer, 'close', lambda: None)()
            self.seen.append((method, environ.get('HTTP_CONTENT_RANGE'), len(body), int(said[0][:3])))
            trouble = self.lose(method, path)
        start_response(*(('503 Trouble', [('Retry-After', '0'), ('Content-Length', '0')]) if trouble else said[:2]))
        return [] if trouble else parts


@pytest.fixture
def wire(ci):
    return Wire(ci)


@pytest.fixture
def repository(tmp_path):
    """A repository of one commit."""
    commit(tmp_path / 'repository', **{'source.txt': 'grüße ☃\n'})
    return tmp_path / 'repository'


@pytest.fixture
def runner(ci, wire, tmp_path):
    """The shell runner, registered at a server of its own."""
    with minici.Server(ci, application=wire) as server:
        tmp_path.joinpath('builds').mkdir()
        runner = shell_runner.Runner(server.url, builds_dir=tmp_path / 'builds', interval=0.02, say=lambda text: None)
        runner.register(ci.registration_token, description='box')
        yield runner


@pytest.fixture
def submit(ci, repository):
    """A function that makes a pipeline of the repository, of one job unless it is given several."""
    project = ci.create_project('group/demo', import_url=f'file://{repository}')

    def make(script=(), jobs=None, sha=None, **keywords):
        content = jobs or {'job': {'script': list(script), **keywords}}
        sha = sha or git(repository, 'rev-parse', 'HEAD').strip()
        return ci.create_pipeline(project, 'main', sha=sha, content=content)
    return make


@pytest.fixture
def run(ci, runner, submit):
    """A function that makes a pipeline, runs all its jobs, and returns them by name with their traces."""
    def make(*arguments, **keywords):
        pipeline = submit(*arguments, **keywords)
        while runner.run_once():
            pass
        return {job['name']: (job['status'], ci.read_trace(job) if job['started_at'] else b'', job)
                for job in ci.list_jobs(pipeline=pipeline, limit=100)}
    return make


@pytest.fixture
def in_background(runner):
    """A function that lets the runner do one job in a thread, which must have ended when the test has."""
    threads = []

    def start():
        threads.append(threading.Thread(target=runner.run_once))
        threads[-1].start()
        return threads[-1]
    yield start
    runner.stopping.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def python(*arguments, **options):
    """Run a Python program of the examples to its end."""
    places = f'{TOP}{os.pathsep}{EXAMPLES}'
    environment = {**os.environ, 'PYTHONPATH': places, 'NO_COLOR': '1', **options.pop('env', {})}
    return subprocess.run([sys.executable, '-W', 'error', *map(str, arguments)], env=environment, text=True,
                          capture_output=True, timeout=60, **options)


# -- the runner

def test_the_runner_builds_a_real_repository_in_two_stages_and_leaves_when_told(ci, server, submit, tmp_path):
    pipeline = submit(jobs=BUILD_AND_TEST)
    process = subprocess.Popen(
        [sys.executable, EXAMPLES / 'shell_runner.py', server.url, ci.registration_token],
        env={**os.environ, 'TMPDIR': str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        until(lambda: ci.find_pipeline(pipeline)['status'] in ('success', 'failed'))
    finally:
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=20)[0].decode()
    check, compile = ci.list_jobs(pipeline=pipeline)
    assert (compile['status'], check['status']) == ('success', 'success'), said
    assert 'grüße ☃\ngrüße ☃\n'.encode() in ci.read_trace(check)
    assert process.returncode == 0
    assert ci.registration_token not in said
    assert 'job 1 (demo: compile) starts' in said
    assert not list(tmp_path.glob('tmp*'))
    waiting, = ci.list_jobs(pipeline=submit(['true']))
    assert ci.pending_reason(waiting) == 'no runner is registered for its project'


def test_a_failing_script_fails_its_job_after_the_line_that_failed(run):
    status, trace, job = run(['echo before', '(exit 7)', 'echo never'],
                             after_script=['echo $CI_JOB_NAME is over'])['job']
    assert (status, job['failure_reason']) == ('failed', 'unknown_failure')
    assert b'before\n' in trace
    assert b'exit status 7' in trace
    assert b'never\n' not in trace
    assert b'\njob is over\n' in trace
    assert b'succeeded' not in trace


def test_a_failing_after_script_does_not_fail_the_job(run):
    status, trace, _ = run(['true'], after_script=['echo so far', 'false'])['job']
    assert (status, b'so far\n' in trace) == ('success', True)


def test_a_failure_inside_a_pipe_fails_the_job(run):
    assert run(['false | cat'])['job'][0] == 'failed'


def test_what_a_script_prints_arrives_byte_for_byte(run, tmp_path):
    status, trace, _ = run([
        "printf '\\377\\376 gr\\303\\274\\303\\237e \\342\\230\\203 \\303'", 'printf "\\274\\n"',
        f"seq 200000 | sed 's/$/ ☃ ü/' | tee {tmp_path}/copy"])['job']
    assert status == 'success'
    assert b'\xff\xfe gr\xc3\xbc\xc3\x9fe \xe2\x98\x83 \xc3' in trace
    assert tmp_path.joinpath('copy').stat().st_size > 2_000_000
    assert tmp_path.joinpath('copy').read_bytes() in trace


def test_a_script_that_opens_its_output_anew_does_not_truncate_its_trace(run):
    _, trace, _ = run(['echo one', 'echo two > /dev/stderr', 'echo three > /dev/stdout', 'echo four'])['job']
    assert b'\none\n' in trace
    assert b'\ntwo\n' in trace
    assert b'\nthree\n' in trace
    assert b'\nfour\n' in trace


def test_a_script_of_several_lines_is_one_script(run):
    status, trace, _ = run(['for n in 1 2\ndo\n  echo "number $n"\ndone', 'cat <<END\nhere: $((2 + 3))\nEND'])['job']
    assert status == 'success'
    assert b'number 2\n' in trace
    assert b'here: 5\n' in trace


def test_commands_are_shown_once_and_as_written_without_the_values_of_their_variables(run):
    script = ['echo one', 'for n in 1 2 3; do', '  test "$SECRET" != $n', 'done', 'echo two']
    _, trace, _ = run(script, variables={'SECRET': 'geheim'})['job']
    assert b"""echo one\none\nfor n in 1 2 3; do\n  test "$SECRET" != $n\ndone\necho two\ntwo\n""" in trace
    assert b'geheim' not in trace


def test_variables_see_each_other_and_the_working_copy(run, runner):
    _, trace, _ = run(['echo "<$GREETING> <$WHERE> <$PWD>"'], variables={
        'NAME': 'you', 'GREETING': 'hello ${NAME} at $CI_COMMIT_REF_NAME for $5', 'WHERE': '$CI_PROJECT_DIR'})['job']
    directory = re.escape(str(runner.builds_dir.resolve())).encode()
    assert re.search(rb'<hello you at main for \$5> <(' + directory + rb'/\w+)> <\1>\n', trace)


def test_a_job_sees_nothing_of_the_runners_own_environment(run, runner, monkeypatch):
    monkeypatch.setenv('CANARY', 'bird')
    monkeypatch.setenv('HOME', '/home/somebody')
    _, trace, _ = run(['env'])['job']
    assert b'\nHOME=/home/somebody\n' in trace
    assert b'CANARY' not in trace
    assert runner.token.encode() not in trace


def test_an_image_is_loudly_ignored(run):
    status, trace, _ = run(['true'], image='python:3.12', services=['redis'])['job']
    assert status == 'success'
    assert b'WARNING: this runner has no containers, image and services are ignored' in trace


@pytest.mark.parametrize('keywords, named', [
    ({'cache': {'paths': ['x']}}, 'cache'), ({'artifacts': {'untracked': True}}, 'artifacts:untracked'),
    ({'artifacts': {'paths': ['x'], 'exclude': ['y']}, 'after_script': ['true']}, None)])
def test_each_keyword_that_it_does_not_know_is_warned_of(run, keywords, named):
    status, trace, _ = run(['true'], **keywords)['job']
    assert status == 'success'
    warned = re.findall(rb'WARNING: this runner does not know (\S+), which is ignored', trace)
    assert warned == ([named.encode()] if named else [])


def test_a_canceled_script_ends_with_all_that_it_started(ci, runner, submit, in_background, tmp_path):
    os.mkfifo(tmp_path / 'alive')
    alive = os.open(tmp_path / 'alive', os.O_RDONLY | os.O_NONBLOCK)  # at its end once nobody holds the other one
    runner.heartbeat = 0.05
    pipeline = submit([f'exec 8> {tmp_path}/alive', 'echo started >&8', 'sleep 1000 & sleep 1000'],
                      after_script=[f'touch {tmp_path}/after'])
    thread = in_background()
    assert select.select([alive], [], [], 20)[0]
    assert os.read(alive, 100) == b'started\n'
    job = ci.cancel_job(ci.list_jobs(pipeline=pipeline)[0])
    assert select.select([alive], [], [], 20)[0]
    assert os.read(alive, 100) == b''
    os.close(alive)
    thread.join(20)
    assert ci.find_job(job)['status'] == 'canceled'
    assert not tmp_path.joinpath('after').exists()


def test_a_script_ends_when_its_time_is_up(ci, runner, submit, in_background):
    job, = ci.list_jobs(pipeline=submit(['echo started', 'sleep 1000'], timeout='1 hour'))
    thread = in_background()
    until(lambda: ci.traces.size(job['id']) and b'\nstarted\n' in ci.read_trace(job))
    assert 3000 < runner.deadline - time.monotonic() <= 3600
    runner.deadline = 0
    thread.join(20)
    assert ci.find_job(job)['status'] == 'failed'
    assert b'this takes too long' in ci.read_trace(job)


def test_a_runner_that_is_stopped_fails_its_job(ci, runner, wire, submit, in_background):
    job, = ci.list_jobs(pipeline=submit(['seq 200', 'sleep 1000']))
    thread = in_background()
    until(lambda: sum(size for method, _, size, _ in list(wire.seen) if method == 'PATCH') > 700)
    runner.stopping.set()
    thread.join(20)
    assert ci.find_job(job)['status'] == 'failed'
    assert b'the runner stops' in ci.read_trace(job)


def test_a_silent_script_is_kept_alive_by_empty_patches(ci, runner, wire, submit, in_background, tmp_path):
    runner.heartbeat = 0.05
    job, = ci.list_jobs(pipeline=submit([f'until [ -e {tmp_path}/go ]; do sleep 0.02; done']))
    thread = in_background()
    ranges = until(lambda: [span for method, span, size, status in list(wire.seen)
                            if (method, size, status) == ('PATCH', 0, 202)][2:])
    size = len(ci.read_trace(job))
    assert set(ranges) == {f'{size}-{size}'}
    tmp_path.joinpath('go').touch()
    thread.join(20)
    assert ci.find_job(job)['status'] == 'success'


def test_lost_answers_to_trace_chunks_neither_lose_nor_repeat_a_byte(run, wire):
    patches = iter([True, False, True] + 100 * [False])
    wire.lose = lambda method, path: method == 'PATCH' and next(patches)
    status, trace, _ = run(['for n in 1 2 3 4; do echo "mark $n."; sleep 0.1; done'])['job']
    assert status == 'success'
    assert [trace.count(b'mark %d.\n' % n) for n in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert [seen[3] for seen in wire.seen].count(416) == 2
    assert len(trace) == max(int(seen[1].split('-')[1]) for seen in wire.seen if seen[1])


def test_a_server_in_trouble_is_asked_again_for_everything(run, runner, wire):
    troubled = set()

    def once(method, path):
        kind = method, path.rpartition('/')[2].replace('1', 'id').replace('2', 'id')
        if kind in troubled or '.git/' in path:     # git does not ask again
            return False
        troubled.add(kind)
        return True

    wire.refuse = once
    jobs = run(jobs=BUILD_AND_TEST)
    assert [jobs[name][0] for name in ('compile', 'check')] == ['success', 'success']
    assert troubled == {('POST', 'register'), ('PATCH', 'trace.txt'), ('POST', 'artifacts'), ('GET', 'artifacts'),
                        ('PUT', 'id')}


def test_artifacts_are_the_files_the_job_names(ci, run, runner):
    script = ['mkdir -p out/deep/.hidden', 'touch out/a.txt out/b.o out/deep/.hidden/c extra.log .env',
              'chmod 755 out/a.txt']
    _, trace, job = run(script, artifacts={'name': 'of $CI_JOB_NAME', 'expire_in': '1 day', 'when': 'always',
                                           'paths': ['out/', '*.log', '$CI_PROJECT_DIR/.env', '../']})['job']
    artifact, file = ci.open_artifacts(job)
    with file, zipfile.ZipFile(file) as bundle:
        assert sorted(bundle.namelist()) == ['.env', 'extra.log', 'out/a.txt', 'out/b.o', 'out/deep/.hidden/c']
        assert bundle.getinfo('out/a.txt').external_attr >> 16 & 0o777 == 0o755
    assert artifact['filename'] == 'of job.zip'
    assert artifact['expire_at'] == ci.clock() + 86400


@pytest.mark.parametrize('when, kept', [('on_success', False), ('on_failure', True), ('always', True)])
def test_artifacts_of_a_failed_job_are_kept_when_it_says_so(ci, run, when, kept):
    status, _, job = run(['touch log', 'false'], artifacts={'paths': ['log'], 'when': when})['job']
    assert status == 'failed'
    with contextlib.nullcontext() if kept else pytest.raises(minici.NotFound):
        ci.open_artifacts(job)[1].close()


def test_excluded_files_are_no_artifacts(ci, run):
    artifacts = {'paths': ['out/'], 'exclude': ['out/*.o']}
    _, _, job = run(['mkdir out', 'touch out/a.c out/a.o'], artifacts=artifacts)['job']
    _, file = ci.open_artifacts(job)
    with file, zipfile.ZipFile(file) as bundle:
        assert bundle.namelist() == ['out/a.c']


@pytest.mark.parametrize('paths, exclude, found', [
    (['out'], [], ['out/.h', 'out/a.c', 'out/deep/b.o']),
    (['./out/*.c'], [], ['out/a.c']),
    (['**/*.o'], [], ['out/deep/b.o']),
    (['.'], ['out/**'], ['source.txt']),
    (['out/', 'source.txt'], ['**/*.o', 'out/.*'], ['out/a.c', 'source.txt']),
    (['out', 'source.txt'], ['out'], ['source.txt']),
    (['..', '../*', '/etc/passwd', 'way', '.git', '.git/config'], [], []),
    (['none'], [], []),
])
def test_patterns_stay_within_the_working_copy(ci, run, paths, exclude, found):
    _, _, job = run(['mkdir -p out/deep', 'touch out/a.c out/.h out/deep/b.o', 'ln -s /etc/passwd way'],
                    artifacts={'paths': paths, 'exclude': exclude})['job']
    _, file = ci.open_artifacts(job)
    with file, zipfile.ZipFile(file) as bundle:
        assert bundle.namelist() == found


@pytest.fixture
def unpack(ci, runner, submit):
    """A function that has a job unpack an archive and run a script; it returns its status and trace."""
    def make(content, script):
        submit(jobs={'first': {'stage': 'build', 'script': ['x'], 'artifacts': {'paths': ['x']}},
                     'then': {'script': [script]}})
        first = Runner(ci).claim()
        part = ci.artifacts.receive()
        part.filename = 'artifacts.zip'
        part.write(content)
        ci.store_artifacts(first.job, part)
        part.discard()
        ci.update_job(first.job, 'success')
        assert runner.run_once()
        then = ci.list_jobs()[0]
        return then['status'], ci.read_trace(then)
    return make


@pytest.mark.parametrize('name', ['..__evil', 'in__..__..__evil', '__evil'])
def test_no_name_in_an_archive_leads_out_of_the_working_copy(unpack, tmp_path, name):
    _, trace = unpack(archive(**{'fine': 'x', name: 'x'}), 'find . -name evil')
    assert re.search(rb'\n\./(in/)?evil\n', trace)
    assert not [*tmp_path.rglob('evil'), *Path('/').glob('evil')]


def test_what_is_unpacked_may_be_run_if_it_could_be_before(unpack):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as bundle:
        for name, mode in (('bin/', 0o40755), ('bin/run', 0o100755), ('bin/read', 0o100644), ('bin/plain', 0)):
            entry = zipfile.ZipInfo(name)
            entry.create_system, entry.external_attr = 3, mode << 16
            bundle.writestr(entry, '' if name == 'bin/' else '#!/bin/sh\necho it ran')
    status, trace = unpack(buffer.getvalue(), 'bin/run; test ! -x bin/read; test -r bin/plain')
    assert (status, b'\nit ran\n' in trace) == ('success', True)


def test_a_job_gets_only_the_artifacts_it_depends_on(run):
    build = {'stage': 'build', 'artifacts': {'paths': ['*.out']}}
    jobs = run(jobs={'one': {**build, 'script': ['touch one.out']}, 'two': {**build, 'script': ['touch two.out']},
                     'all': {'script': ['echo got $(ls *.out)']},
                     'some': {'script': ['echo got $(ls *.out)'], 'dependencies': ['two']},
                     'none': {'script': ['echo got $(ls)'], 'dependencies': []}})
    assert b'got one.out two.out\n' in jobs['all'][1]
    assert b'got two.out\n' in jobs['some'][1]
    assert b'got source.txt\n' in jobs['none'][1]


def test_every_job_has_a_clone_of_its_own_and_leaves_nothing(run, runner, repository):
    status, *_ = run(['touch left-over', 'echo changed > source.txt', 'mkdir locked', 'chmod 0 locked'])['job']
    assert status == 'success'
    assert not list(runner.builds_dir.iterdir())
    commit(repository, **{'source.txt': 'second\n'})
    _, trace, _ = run(['ls', 'cat source.txt'])['job']
    assert b'ls\nsource.txt\ncat source.txt\nsecond\n' in trace


def test_an_unreachable_commit_fails_the_job_with_what_git_says(run):
    status, trace, _ = run(['echo never'], sha=SHA)['job']
    assert status == 'failed'
    assert SHA.encode() in trace
    assert b'ERROR: exit status 128' in trace
    assert b'never' not in trace


def test_a_runner_takes_jobs_without_tags_only_if_it_says_so(ci, server, submit):
    def claims(*tags, **settings):
        runner = shell_runner.Runner(server.url)
        runner.register(ci.registration_token, tag_list=','.join(tags), **settings)
        return ci.request_job(ci.find_runner(runner.token)) is not None

    submit(['true'])
    assert not claims('gpu', run_untagged=False)
    assert claims('gpu')
    submit(['true'], tags=['gpu'])
    assert not claims()
    assert claims('gpu', 'big')


def test_a_refused_token_ends_the_runner_without_showing_it(server, tmp_path):
    done = python(EXAMPLES / 'shell_runner.py', server.url, 'geheim', cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith('shell_runner: POST /runners/register is answered 403')
    assert 'Traceback' not in done.stderr
    assert 'geheim' not in done.stdout + done.stderr


def test_a_runner_that_is_registered_already_runs_jobs_until_there_is_none(ci, server, submit, tmp_path):
    token = ci.register_runner(ci.registration_token, description='kept')[1]
    runner = shell_runner.Runner(server.url, token=token, builds_dir=tmp_path, say=lambda text: None)
    job, = ci.list_jobs(pipeline=submit(['true']))
    assert [runner.run_once(), runner.run_once()] == [True, False]
    assert ci.find_job(job)['status'] == 'success'


def test_a_job_goes_on_when_the_coordinator_is_started_anew(ci, submit, tmp_path):
    script = ['echo before', f'until [ -e {tmp_path}/go ]; do sleep 0.02; done', 'echo after']
    (job,), said = ci.list_jobs(pipeline=submit(script)), []
    with minici.Server(ci) as server:
        runner = shell_runner.Runner(server.url, builds_dir=tmp_path, interval=0.02, heartbeat=0.05, say=said.append)
        runner.register(ci.registration_token)
        thread = threading.Thread(target=runner.run_once)
        thread.start()
        until(lambda: ci.find_job(job)['status'] == 'running' and b'\nbefore\n' in ci.read_trace(job))
    until(lambda: [text for text in said if server.url in text])
    with minici.Server(ci, port=server.port):
        tmp_path.joinpath('go').touch()
        thread.join(20)
    assert ci.find_job(job)['status'] == 'success'
    assert [ci.read_trace(job).count(b'\n%s\n' % word) for word in (b'before', b'after')] == [1, 1]


# -- the quickstart

def test_quickstart_makes_builds_and_shows_a_repository(tmp_path):
    done = python(EXAMPLES / 'quickstart.py', cwd=tmp_path, env={'TMPDIR': str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, '')
    for wanted in ('http://127.0.0.1:', '[1/3] build: page', '[3/3] test: ', 'sh page.sh notes.txt', 'success in ',
                   'public/index.html', 'pipeline 1: success'):
        assert wanted in done.stdout
    assert '\033' not in done.stdout
    places = {line.split()[0]: Path(line.split()[1]) for line in done.stdout.splitlines() if '/minici-quick' in line}
    page, = places['artifacts'].glob('*/public/index.html')
    assert '<li>A runner asks' in page.read_text()
    assert len(list(places['traces'].iterdir())) == 3
    assert sorted(path.name for path in places['traces'].parent.iterdir()) == ['artifacts', 'traces']


def test_quickstart_runs_a_given_repository_and_exits_with_its_failure(repository, tmp_path):
    commit(repository, **{'.gitlab-ci.yml': textwrap.dedent('''
        good: {stage: build, script: [echo fine], tags: [gpu]}
        bad: {script: [echo broken, exit 3]}
        late: {stage: deploy, script: [echo never]}
        ''')})
    repository.joinpath('source.txt').write_text('changed')
    done = python(EXAMPLES / 'quickstart.py', repository, '--keep', tmp_path / 'kept')
    assert (done.returncode, done.stderr) == (1, '')
    for wanted in ('exit status 3', 'pipeline 1: failed', 'changes that are not committed are not built',
                   f'--db {tmp_path}/kept/ci.sqlite'):
        assert wanted in done.stdout
    with minici.Coordinator(tmp_path / 'kept' / 'ci.sqlite') as kept:
        assert [job['status'] for job in kept.list_jobs()] == ['skipped', 'failed', 'success']


@pytest.mark.parametrize('make, says', [
    (lambda path: None, 'there is no such directory'),
    (lambda path: path.mkdir(), 'is no git repository'),
    (lambda path: subprocess.run(['git', 'init', '--quiet', path], check=True), 'has no commit yet'),
    (lambda path: git(path, 'checkout', '--detach', commit(path, source='x')), 'has no branch checked out'),
], ids=['missing', 'plain', 'empty', 'detached'])
def test_quickstart_says_what_is_wrong_with_a_path(tmp_path, make, says):
    make(tmp_path / 'path')
    with pytest.raises(quickstart.Problem, match=says):
        quickstart.find_repository(tmp_path / 'path')


def test_quickstart_takes_a_directory_inside_a_repository_and_a_bare_one(repository, tmp_path):
    repository.joinpath('inner').mkdir()
    assert quickstart.find_repository(repository / 'inner') == (repository.resolve(), 'main', False)
    git(tmp_path, 'clone', '--quiet', '--bare', repository, 'bare.git')
    assert quickstart.find_repository(tmp_path / 'bare.git') == (tmp_path.resolve() / 'bare.git', 'main', False)


def test_quickstart_reports_what_it_cannot_run_and_leaves_nothing_behind(repository, tmp_path):
    done = python(EXAMPLES / 'quickstart.py', repository, env={'TMPDIR': str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr.startswith('quickstart: the pipeline cannot be made\n')
    assert '.gitlab-ci.yml is not in the repository' in done.stderr
    assert not list(tmp_path.glob('minici-*'))


def test_quickstart_says_that_git_is_missing(tmp_path):
    done = python(EXAMPLES / 'quickstart.py', env={'PATH': str(tmp_path), 'TMPDIR': str(tmp_path)})
    assert (done.returncode, 'git is missing' in done.stderr) == (2, True)


# -- fixtures, mounting, the unit

def test_the_fixtures_carry_the_tests_of_their_own_docstring(tmp_path):
    shutil.copy(EXAMPLES / 'conftest.py', tmp_path)
    usage = ast.get_docstring(ast.parse(tmp_path.joinpath('conftest.py').read_text())).partition('::\n')[2]
    usage = usage.partition('\nMore is in')[0]
    broken = 'def test_a_failing_coordinator_is_reported(ci):\n    ci.ci.find_user = None\n' \
             '    with pytest.raises(urllib.error.HTTPError, match="500") as caught:\n' \
             '        my_client(ci, "/user")\n    caught.value.close()\n'
    tmp_path.joinpath('test_usage.py').write_text(f'{textwrap.dedent(usage)}\n\n{broken}')
    done = python('-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-p', 'minici_testing.plugin', tmp_path)
    assert '4 passed, 1 error' in done.stdout
    assert 'the server answered 500, and no fault ordered that' in done.stdout


def test_mounted_below_ci_every_address_carries_the_prefix(ci, repository, tmp_path):
    token = {'PRIVATE-TOKEN': ci.create_private_token()}
    with minici.Server(ci, application=mount.make_app(ci)) as server, requests.Session() as session:
        session.trust_env = False
        session.headers.update(token)
        project = session.post(f'{server.url}/ci/api/v4/projects', json={'name': 'demo'}).json()
        body = {'ref': 'main', 'sha': SHA, 'content': '{"a": {"script": ["x"]}, "b": {"script": ["x"]}}'}
        session.post(f'{server.url}/ci/api/v4/projects/{project["id"]}/pipeline', json=body).raise_for_status()
        jobs = session.get(f'{server.url}/ci/api/v4/projects/{project["id"]}/jobs', params={'per_page': 1})
        assert jobs.json()[0]['web_url'].startswith(f'{server.url}/ci/demo/')
        assert jobs.links['next']['url'].startswith(f'{server.url}/ci/api/v4/projects/')
        assert session.get(jobs.links['next']['url']).json()[0]['id'] != jobs.json()[0]['id']
        runner = shell_runner.Runner(f'{server.url}/ci')
        runner.register(ci.registration_token)
        build = session.post(f'{server.url}/ci/api/v1/builds/register', json={'token': runner.token}).json()
        assert build['repo_url'] == f'{server.url}/ci/demo.git'.replace('//', f'//gitlab-ci-token:{build["token"]}@', 1)
        assert 'This is the site' in session.get(f'{server.url}/cider').text
        assert 'This is the site' in session.get(server.url).text


def test_the_runner_works_through_a_prefix(ci, submit, tmp_path):
    job, = ci.list_jobs(pipeline=submit(['true']))
    with minici.Server(ci, application=mount.make_app(ci)) as server:
        runner = shell_runner.Runner(f'{server.url}/ci', builds_dir=tmp_path, interval=0.02, say=lambda text: None)
        runner.register(ci.registration_token)
        assert runner.run_once()
    assert ci.find_job(job)['status'] == 'success'


def test_mount_serves_on_the_command_line_until_it_is_interrupted(tmp_path):
    process = subprocess.Popen([sys.executable, EXAMPLES / 'mount.py', '--port', '0'], cwd=tmp_path, text=True,
                               env={**os.environ, 'PYTHONPATH': str(TOP)}, stdout=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))   # it may be ignored
    try:
        url = process.stdout.readline().split()[-1]
        assert requests.get(f'{url}/api/v4/version', timeout=20).status_code == 401
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert (url.endswith('/ci'), process.returncode) == (True, 0)


def test_the_unit_starts_minici_with_options_that_exist_and_lets_it_finish():
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read(EXAMPLES / 'minici.service')
    service = unit['Service']
    command, *arguments = shlex.split(service['ExecStart'].replace('%S', '/var/lib'))
    options = minici.build_parser().parse_args(arguments)
    assert (Path(command).name, options.action) == ('minici', minici.serve_command)
    assert Path(options.db).parent == Path('/var/lib', service['StateDirectory'])
    assert (service['KillSignal'], service['Restart'], service['DynamicUser']) == ('SIGTERM', 'on-failure', 'yes')
    assert int(service['TimeoutStopSec']) > 30
    assert unit['Install']['WantedBy'] == 'multi-user.target'
