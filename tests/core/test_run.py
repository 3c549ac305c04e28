"""`minici run`: the pipeline of a checkout, here and now, as a person at a terminal gets it."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import commit, git

import minici


@pytest.fixture
def state(tmp_path, monkeypatch):
    """The user's folders, so that no run sees those of whoever runs the tests."""
    monkeypatch.setenv('XDG_STATE_HOME', str(tmp_path / 'state'))
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path / 'config'))
    directory = tmp_path / 'state' / 'minici'
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def run(tmp_path, state, capfd):
    """A way to run the pipeline file of a checkout: return the exit status and what was printed."""
    checkout = tmp_path / 'demo'

    def run(file, *arguments, path=checkout):
        if file is not None:
            checkout.mkdir(exist_ok=True)
            (checkout / '.gitlab-ci.yml').write_text(textwrap.dedent(file))
            if not (checkout / '.git').exists():
                git(checkout, 'init', '--quiet', '--initial-branch=main')
        try:
            status = minici.main(['run', str(path), *map(str, arguments)])
        except SystemExit as error:
            status = error.code
        out, err = capfd.readouterr()
        return status, out, err
    return run


@pytest.fixture
def history(state):
    """The coordinator over the runs so far."""
    with minici.Coordinator(state / 'minici.sqlite', fsync=False) as ci:
        yield ci


def results(out):
    """Return the results of the jobs in the table at the end."""
    table = out[out.index('  stage '):]
    words = '|'.join(word for _, word, _ in minici.OUTCOMES.values())
    return dict(re.findall(rf'^  \S+ +(.+?) +\S ({words})(?:  |$)', table, re.M))


def printed(out, job):
    """Return the lines that a job has printed."""
    return [line.split('│ ', 1)[1] for line in out.splitlines() if re.match(rf'{re.escape(job)} *│ ', line)]


PIPELINE = """
    stages: [build, test, deploy]
    compile:
      stage: build
      script:
        - mkdir -p dist/deep && cp source dist/out.txt && ln -s out.txt dist/link && echo no > dist/deep/skip.tmp
        - printf 'VERSION=1.2\\nNAME=a b\\n' > build.env
      artifacts:
        paths: [dist/]
        exclude: ['**/*.tmp']
        reports: {dotenv: build.env}
    unit:
      stage: test
      script:
        - cat dist/link
        - test ! -e dist/deep/skip.tmp
        - echo "version $VERSION of $NAME"
    ship:
      stage: deploy
      when: manual
      script: [echo shipped]
    """


def test_the_pipeline_runs_on_files_that_are_not_committed(run, tmp_path, history):
    commit(tmp_path / 'demo', source='committed\n')
    (tmp_path / 'demo' / 'source').write_text('not committed\n')
    status, out, err = run(PIPELINE)
    assert (status, err) == (0, '')
    assert results(out) == {'compile': 'passed', 'unit': 'passed', 'ship': 'manual'}
    assert printed(out, 'unit') == [
        'Downloading artifacts for compile (1): 2 files', '$ cat dist/link', 'not committed',
        '$ test ! -e dist/deep/skip.tmp', '$ echo "version $VERSION of $NAME"', 'version 1.2 of a b',
        *printed(out, 'unit')[-1:]]
    assert 'waiting to be started by hand: ship' in out
    assert '\033' not in out
    pipeline, = history.list_pipelines()[0]
    assert (pipeline['source'], pipeline['ref'], pipeline['status']) == ('push', 'main', 'success')
    assert history.list_runners() == []
    assert sorted(path.name for path in (tmp_path / 'demo').iterdir()) == ['.git', '.gitlab-ci.yml', 'source']


def test_a_failure_is_repeated_at_the_end_and_is_the_exit_status(run):
    status, out, _ = run("""
        bad: {script: [echo before, exit 7, echo after]}
        allowed: {script: [exit 3], allow_failure: {exit_codes: [3]}}
        good: {script: ['true']}
        later: {stage: deploy, script: ['true']}
        """)
    assert status == 1
    assert results(out) == {'bad': 'failed', 'allowed': 'failed, allowed', 'good': 'passed', 'later': 'skipped'}
    end = out[out.index('── bad failed: exit code 7'):]
    assert '  before\n' in end
    assert 'after' not in end
    assert re.search(r'^run 1 failed in', out, re.M)


def test_list_names_every_job_and_why_it_is_in_or_out_and_runs_nothing(run, history):
    status, out, _ = run("""
        first: {script: [exit 1], rules: [{if: $CI_COMMIT_BRANCH == "main"}]}
        second: {script: [exit 1], needs: [first], when: manual}
        nightly: {script: [exit 1], rules: [{if: $CI_PIPELINE_SOURCE == "schedule"}]}
        """, '--list')
    assert status == 0
    rows = [re.split(r'  +', line.strip()) for line in out.splitlines()]
    assert rows[0] == ['stage', 'job', 'when', 'needs', 'why']
    assert [row[:3] for row in rows[1:]] == [
        ['test', 'first', 'on_success'], ['test', 'second', 'manual'], ['-', 'nightly', '-']]
    assert 'left out' in rows[3][-1]
    assert history.list_pipelines()[1] == 0


def test_a_job_is_run_by_name_with_what_it_needs(run):
    status, out, _ = run(PIPELINE.replace('cp source', 'echo made >'), 'ship')
    assert status == 0
    assert results(out) == {'compile': 'passed', 'ship': 'passed'}
    status, out, _ = run(None, 'unit')
    assert results(out) == {'compile': 'passed', 'unit': 'passed'}


def test_a_manual_job_runs_when_it_is_named(run):
    status, out, _ = run(PIPELINE.replace('cp source', 'echo made >'), '--manual', 'ship')
    assert (status, results(out)) == (0, {'compile': 'passed', 'unit': 'passed', 'ship': 'passed'})


@pytest.mark.parametrize('name, says', [
    ('uint', 'there is no job uint; did you mean unit?'), ('xyz', 'the pipeline has unit'),
    ('nightly', 'the job nightly is not part of this pipeline: left out')])
def test_a_job_that_is_not_there_is_refused_with_the_reason(run, name, says):
    status, out, err = run("""
        unit: {script: ['true']}
        nightly: {script: ['true'], rules: [{if: $CI_PIPELINE_SOURCE == "schedule"}]}
        """, name)
    assert (status, out) == (1, '')
    assert says in err


def test_what_failed_last_time_is_run_again(run, tmp_path):
    file = """
        good: {script: ['true']}
        bad: {script: [test -e fixed]}
        """
    assert run(file)[0] == 1
    (tmp_path / 'demo' / 'fixed').touch()
    status, out, _ = run(file, '--failed')
    assert (status, results(out)) == (0, {'bad': 'passed'})
    status, _, err = run(file, '--failed')
    assert (status, err) == (1, 'minici: nothing failed in the last run\n')


SOURCES = """
    branch: {script: ['true'], rules: [{if: $CI_COMMIT_BRANCH}]}
    tag: {script: ['test "$CI_COMMIT_TAG" = v1'], rules: [{if: $CI_COMMIT_TAG}]}
    request:
      script: ['echo "$CI_MERGE_REQUEST_SOURCE_BRANCH_NAME to $CI_MERGE_REQUEST_TARGET_BRANCH_NAME"']
      rules: [{if: $CI_PIPELINE_SOURCE == "merge_request_event"}]
    nightly: {script: ['true'], rules: [{if: $CI_PIPELINE_SOURCE == "schedule"}]}
    """


@pytest.mark.parametrize('arguments, jobs', [
    ((), {'branch'}), (('--as', 'tag', '--ref', 'v1'), {'tag'}), (('--as', 'merge_request'), {'request'}),
    (('--as', 'schedule'), {'branch', 'nightly'})])
def test_each_source_runs_its_jobs(run, tmp_path, arguments, jobs):
    commit(tmp_path / 'demo', file='text\n')
    git(tmp_path / 'demo', 'checkout', '--quiet', '-b', 'feature')
    status, out, _ = run(SOURCES, *arguments, '--target', 'main')
    assert (status, set(results(out))) == (0, jobs)
    if 'request' in jobs:
        assert 'feature to main\n' in out


def test_changes_are_those_since_a_commit_or_since_the_target(run, tmp_path):
    commit(tmp_path / 'demo', api__file='1\n', web__file='1\n')
    git(tmp_path / 'demo', 'checkout', '--quiet', '-b', 'feature')
    (tmp_path / 'demo' / 'api' / 'file').write_text('2\n')
    file = """
        api: {script: ['true'], rules: [{changes: [api/*]}]}
        web: {script: ['true'], rules: [{changes: [web/*]}]}
        """
    for arguments in (('--changed-since', 'main'), ('--as', 'merge_request', '--target', 'main')):
        assert set(results(run(file, *arguments)[1])) == {'api'}
    assert set(results(run(file)[1])) == {'api', 'web'}     # nothing to compare with
    assert 'no such commit' in run(file, '--changed-since', 'nowhere')[2]


def test_variables_come_from_the_command_line_and_files_and_local_secrets_are_masked(run, tmp_path):
    (tmp_path / 'demo').mkdir()
    (tmp_path / 'demo' / '.minici.env').write_text('# mine\nPASSWORD=hunter2hunter2\nWHO=checkout\n')
    (tmp_path / 'config' / 'minici').mkdir(parents=True)
    (tmp_path / 'config' / 'minici' / 'env').write_text('WHO=user\nUSER_LEVEL="in quotes"\n')
    (tmp_path / 'more').write_text('export WHO=file\n')
    status, out, _ = run("""
        show: {script: ['echo "$WHO, $USER_LEVEL, $PASSWORD, $GIVEN"', test ! -e .minici.env]}
        """, '--variables-file', tmp_path / 'more', '--variable', 'GIVEN=x=y')
    assert status == 0
    assert 'file, in quotes, [MASKED], x=y\n' in out
    assert 'hunter2' not in out


def test_a_cache_is_there_again_in_the_next_run(run):
    file = """
        build:
          cache: {key: deps-$CI_COMMIT_REF_SLUG, paths: [deps/]}
          script: ['cat deps/count || echo none', 'mkdir -p deps', 'echo x >> deps/count']
        """
    assert '\nnone\n' in run(file)[1]
    status, out, _ = run(file)
    assert status == 0
    assert 'Restored 1 file from cache deps-main' in out
    assert '\nx\n' in out


def test_after_script_timeout_retry_and_parallel_are_as_in_gitlab(run):
    status, out, _ = run("""
        slow: {script: [sleep 60], timeout: 1 second, allow_failure: true}
        again: {script: [echo try, exit 1], retry: 1, allow_failure: true, after_script: ['echo "$CI_JOB_STATUS"']}
        copy: {parallel: 2, script: ['echo "$CI_NODE_INDEX of $CI_NODE_TOTAL"']}
        """, '--jobs', '4')
    assert status == 0
    assert results(out) == {'slow': 'failed, allowed', 'again': 'failed, allowed', 'copy 1/2': 'passed',
                            'copy 2/2': 'passed'}
    assert printed(out, 'again').count('try') == 2
    assert printed(out, 'again').count('failed') == 2
    assert '2 of 2' in printed(out, 'copy 2/2')
    assert 'it took longer than 1.0 s' in ''.join(printed(out, 'slow')) or 'job execution timeout' in out


def test_file_variables_and_masked_ones_of_the_project_are_used(run, history):
    file = """
        show: {script: ['cat "$CERTIFICATE"', 'echo "$TOKEN"']}
        """
    run(file)
    project = history.find_project('local/demo')
    history.set_variable(project, 'CERTIFICATE', 'in a file\n', variable_type='file')
    history.set_variable(project, 'TOKEN', 'secretsecret', masked=True)
    status, out, _ = run(file)
    assert status == 0
    assert 'in a file\n' in out
    assert '[MASKED]\n' in out
    assert 'secretsecret' not in out


def test_artifacts_come_into_the_checkout_only_when_asked_for(run, tmp_path):
    file = PIPELINE.replace('cp source', 'echo made >')
    run(file)
    assert not (tmp_path / 'demo' / 'dist').exists()
    status, out, _ = run(file, '--artifacts')
    assert status == 0
    assert (tmp_path / 'demo' / 'dist' / 'out.txt').read_text() == 'made\n'


def test_working_copies_are_kept_when_asked_for(run, tmp_path):
    run('build: {script: [echo x > made]}', '--keep', tmp_path / 'kept')
    made, = (tmp_path / 'kept').glob('*/demo/made')
    assert made.read_text() == 'x\n'


def test_images_and_services_are_named_once_as_not_used(run):
    _, out, _ = run("""
        default: {image: 'python:3.12'}
        a: {script: ['true'], services: ['postgres:16']}
        b: {script: ['true']}
        """)
    assert out.count('python:3.12') == 1
    assert 'not used in a plain shell: image python:3.12 and service postgres:16\n' in out


def test_id_tokens_that_nobody_issues_are_named(run):
    _, out, _ = run("""
        a: {script: ['echo "<$VAULT>"'], id_tokens: {VAULT: {aud: x}, CLOUD: {aud: y}}}
        b: {script: ['true']}
        """)
    assert '  a runs without VAULT, CLOUD: minici issues no ID tokens\n' in out
    assert '<>' in printed(out, 'a')


IMAGES = """
    default: {image: 'python:3.12'}
    a: {script: [echo from a], tags: [linux], artifacts: {paths: [made]}, before_script: [echo x > made]}
    b: {stage: deploy, script: [cat made, 'echo "$PASSWORD"', exit 3]}
    by hand: {stage: deploy, script: ['true'], when: manual, allow_failure: true}
    """


@pytest.mark.parametrize('found, hint', [
    (True, 'minici run --runner uses images and services, by the gitlab-runner on the PATH'),
    (False, 'images and services need gitlab-runner (https://docs.gitlab.com/runner/install/); then add --runner')])
def test_the_last_line_says_how_to_get_images(run, monkeypatch, tmp_path, found, hint):
    if found:
        (tmp_path / 'gitlab-runner').touch(0o755)
    monkeypatch.setenv('PATH', f'/usr/bin:/bin:{tmp_path}')
    _, out, _ = run('a: {image: x, script: ["true"]}')
    assert out.splitlines()[-1] == hint
    assert 'runner' not in run('a: {script: ["true"]}')[1]


@pytest.fixture
def gitlab_runner(tmp_path, monkeypatch):
    """Put a program on the PATH that has gitlab-runner's command line, and does its work as shell_runner does."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    program = folder / 'gitlab-runner'
    runner = Path(minici.__file__).parent / 'examples'
    program.write_text(textwrap.dedent(f"""\
        #!{sys.executable}
        import json, pathlib, re, signal, sys
        sys.path.insert(0, {str(runner)!r})
        import shell_runner
        command, *arguments = sys.argv[1:]
        with open({str(folder / 'calls')!r}, 'a') as calls:
            print(command, *arguments, file=calls)
        given = dict(zip(arguments, arguments[1:]))
        config = pathlib.Path(given['--config'])
        text = config.read_text()
        if command == 'register':
            assert '--non-interactive' in arguments and 'concurrent = ' in text
            config.write_text(text + json.dumps([given['--url'], given['--token']]))
            sys.exit()
        url, token = json.loads(text.splitlines()[-1])
        runner = shell_runner.Runner(url, token, builds_dir=config.parent, interval=0.05, say=lambda text: None)
        if command == 'unregister':
            runner.call('DELETE', '/runners/delete', {{'token': token}})
            sys.exit()
        assert command == 'run'
        signal.signal(signal.SIGTERM, lambda *_: runner.stopping.set())
        runner.run_forever()
        """))
    program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{folder}:/usr/bin:/bin')
    return lambda: [line.split(' ')[0] for line in (folder / 'calls').read_text().splitlines()]


def test_a_gitlab_runner_on_the_path_runs_the_jobs_when_asked_to(run, tmp_path, history, gitlab_runner):
    (tmp_path / 'demo').mkdir()
    (tmp_path / 'demo' / '.minici.env').write_text('PASSWORD=hunter2hunter2\n')
    status, out, err = run(IMAGES, '--runner', '--jobs', '2')
    assert (status, err) == (1, '')
    assert results(out) == {'a': 'passed', 'b': 'failed', 'by hand': 'manual'}
    assert 'from a' in printed(out, 'a')
    assert 'x' in printed(out, 'b')
    assert 'the jobs run in gitlab-runner, with its executor shell' in out
    assert 'waiting to be started by hand: by hand' in out
    assert gitlab_runner() == ['register', 'run', 'unregister']
    assert history.list_runners() == []
    assert out.splitlines()[-1] == 'images and services need Docker, too'


def test_a_gitlab_runner_that_cannot_be_had_or_used_is_told_and_leaves_nothing(run, monkeypatch, tmp_path, history,
                                                                               gitlab_runner):
    program = tmp_path / 'bin' / 'gitlab-runner'
    working = program.read_text()
    for text, told in (('#!/bin/sh\necho no such executor >&2\nexit 2\n', 'register ended with 2: no such executor'),
                       (working.replace('runner.run_forever()', 'sys.exit("crashed")'), 'run ended with 1: crashed')):
        program.write_text(text)
        status, out, err = run('a: {script: ["true"]}', '--runner')
        assert (status, err.strip()) == (1, f'minici: gitlab-runner {told}')
    monkeypatch.setenv('PATH', '/usr/bin:/bin')
    status, out, err = run(None, '--runner')
    assert (status, 'https://docs.gitlab.com/runner/install/' in err) == (1, True)
    assert history.list_runners() == []
    assert {row['status'] for row in history.list_pipelines()[0]} == {'canceled'}


def test_submodules_are_checked_out_when_a_job_asks_for_them(run, tmp_path, history):
    checkout = tmp_path / 'demo'
    commit(tmp_path / 'inner', file='of the inner one\n')
    commit(tmp_path / 'library', file='of the library\n')
    add = ('-c', 'protocol.file.allow=always', 'submodule', '--quiet', 'add')
    git(tmp_path / 'library', *add, str(tmp_path / 'inner'), 'deep/inner')
    git(tmp_path / 'library', 'commit', '--quiet', '--message', 'Add')
    commit(checkout, file='')
    git(checkout, *add, str(tmp_path / 'library'), 'lib')
    git(checkout, '-c', 'protocol.file.allow=always', 'submodule', '--quiet', 'update', '--init', '--recursive')
    git(checkout, 'commit', '--quiet', '--message', 'Add')
    (tmp_path / 'library').rename(tmp_path / 'gone')    # what is checked out is enough
    (tmp_path / 'inner').rename(tmp_path / 'gone too')
    status, out, _ = run("""
        without: {script: [test ! -e lib/file]}
        normal:
          variables: {GIT_SUBMODULE_STRATEGY: normal}
          script: [cat lib/file, test ! -e lib/deep/inner/file]
        recursive:
          variables: {GIT_SUBMODULE_STRATEGY: recursive}
          script: [cat lib/file lib/deep/inner/file, git submodule status --recursive]
        wrong: {variables: {GIT_SUBMODULE_STRATEGY: all}, script: ['true'], allow_failure: true}
        """)
    assert status == 0, out
    assert 'of the library' in printed(out, 'normal')
    assert {'of the library', 'of the inner one'} <= set(printed(out, 'recursive'))
    log = history.read_trace(next(job for job in history.list_jobs() if job['name'] == 'wrong'))
    assert b'unknown GIT_SUBMODULE_STRATEGY: all' in log


def test_untracked_files_are_artifacts_and_a_cache_may_only_be_pushed_or_pulled(run):
    file = """
        build:
          stage: build
          script: [echo new > made, mkdir -p deep, echo more > deep/file, echo no > skip.tmp, touch tracked]
          artifacts: {untracked: true, exclude: ['*.tmp']}
          cache: {key: k, paths: [deep/], policy: push}
        test:
          script: [cat made deep/file, test ! -e skip.tmp]
          cache: {key: k, paths: [deep/], policy: pull}
        only cache:
          script: [cat deep/file, echo changed > deep/file]
          needs: []
          when: manual
          cache: {key: k, paths: [deep/], policy: pull}
        """
    status, out, _ = run(file)
    assert status == 0, out
    assert 'Restored' not in '\n'.join(printed(out, 'build'))      # it has none yet, and is not asked for
    assert {'new', 'more'} <= set(printed(out, 'test'))
    assert 'Restored 1 file from cache k' in '\n'.join(printed(out, 'test'))
    for _ in range(2):      # what a job that only pulls has changed is not kept
        status, out, _ = run(file, 'only cache')
        assert (status, 'more\n' in out) == (0, True)
    assert 'Restored' not in '\n'.join(printed(run(file)[1], 'build'))


def test_sections_are_folded_when_they_pass_and_shown_when_they_fail(run):
    status, out, _ = run(r"""
        fold:
          script:
            - printf 'section_start:1700000000:deps\r\033[0KInstalling\ninside\nsection_end:1700000004:deps\r\033[0K'
            - printf 'section_start:1700000000:tests\r\033[0KTesting\nbroken here\n'
            - exit 1
        """)
    lines = out.splitlines()
    assert '▸ Installing · 1 line (4 s)' in lines
    assert lines.index('broken here') < next(place for place, line in enumerate(lines) if line.startswith('── fold'))
    assert status == 1


def test_a_detached_head_an_unborn_branch_and_a_plain_directory_run(run, tmp_path):
    file = 'show: {script: [echo "on $CI_COMMIT_BRANCH"]}'
    assert run(file)[0] == 0    # no commit yet
    git(tmp_path / 'demo', 'add', '.')
    git(tmp_path / 'demo', 'commit', '--quiet', '--message', 'First')
    git(tmp_path / 'demo', 'checkout', '--quiet', '--detach')
    assert run(file)[0] == 0
    plain = tmp_path / 'plain'
    plain.mkdir()
    (plain / '.gitlab-ci.yml').write_text(file)
    status, out, _ = run(None, path=plain)
    assert (status, results(out)) == (0, {'show': 'passed'})


def test_neither_the_database_nor_its_data_gets_into_what_jobs_see(run, tmp_path, capfd):
    checkout = tmp_path / 'demo'
    commit(checkout, **{'.gitlab-ci.yml': 'show: {script: [ls -A]}\n'})
    shas = set()
    for _ in range(2):
        assert minici.main(['--db', str(checkout / 'ci.sqlite'), 'run', str(checkout)]) == 0
        out = capfd.readouterr().out
        assert re.search(r'^\.git\n\.gitlab-ci.yml\n✔', out, re.M)
        with minici.Coordinator(checkout / 'ci.sqlite', fsync=False) as ci:
            shas |= {row['sha'] for row in ci.list_pipelines()[0]}
    assert shas == {git(checkout, 'rev-parse', 'HEAD')}


def test_two_repositories_of_one_name_do_not_collide(run, tmp_path, history):
    run('a: {script: [echo first]}')
    other = tmp_path / 'other' / 'demo'
    commit(other, **{'.gitlab-ci.yml': 'b: {script: [echo second]}\n'})
    status, out, _ = run(None, path=other)
    assert (status, results(out)) == (0, {'b': 'passed'})
    assert history.list_projects()[1] == 2


def test_a_directory_without_a_pipeline_file_is_refused(run, tmp_path, state):
    status, out, err = run(None, path=tmp_path)
    assert (status, out) == (1, '')
    assert f'there is no .gitlab-ci.yml in {tmp_path}' in err


def test_a_wrong_pipeline_file_names_the_line(run):
    status, out, err = run('a:\n  script: [x]\n  colour: red\n')
    assert (status, out) == (1, '')
    assert '.gitlab-ci.yml:3:3' in err


def test_the_history_holds_fifty_runs(run, history, monkeypatch):
    monkeypatch.setattr(minici, 'RUNS_KEPT', 2)
    for _ in range(4):
        run("a: {script: ['true']}")
    assert [row['id'] for row in history.list_pipelines()[0]] == [4, 3]


@pytest.fixture
def process(tmp_path, state):
    """A way to start `minici run` as a process of its own in a checkout with a slow job."""
    commit(tmp_path / 'demo', **{'.gitlab-ci.yml': 'slow: {script: [echo $$ > pid, echo started, sleep 100]}\n'})
    started = []

    def start(**options):
        started.append(subprocess.Popen(
            [sys.executable, '-m', 'minici', 'run', str(tmp_path / 'demo'), '--keep', str(tmp_path / 'kept')],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),    # in the background it may be ignored
            env={**os.environ, 'PYTHONPATH': os.path.dirname(minici.__file__)}, **options))
        return started[-1]
    yield start
    for item in started:
        if item.poll() is None:
            item.kill()
        item.communicate()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_the_jobs_and_ends_with_130_and_a_sentence(process, tmp_path, history, number):
    started = process()
    for line in started.stdout:
        if line.strip() == 'started':
            break
    started.send_signal(number)
    out, err = started.communicate(timeout=30)
    assert (started.returncode, err) == (130, '')
    assert re.search('run 1 was interrupted after .*; its jobs are stopped', out)
    assert results(out) == {'slow': 'canceled'}
    pid, = (tmp_path / 'kept').glob('*/demo/pid')
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert history.find_pipeline(1)['status'] in ('canceled', 'failed')


def test_a_reader_that_goes_away_ends_the_run_quietly(process):
    started = process()
    for line in started.stdout:
        if line.strip() == 'started':
            break
    started.stdout.close()
    started.send_signal(signal.SIGINT)
    assert started.wait(30) in (130, 141)
    assert started.stderr.read() == ''


def test_failed_tests_of_a_junit_report_are_named_and_counted(run, tmp_path):
    commit(tmp_path / 'demo', **{'junit.xml': textwrap.dedent("""\
        <testsuite name="unit" tests="3" failures="1">
        <testcase name="test_good" classname="tests.unit" time="0.1"/>
        <testcase name="test_other" classname="tests.unit" time="0.1"/>
        <testcase name="test_bad" classname="tests.unit" file="tests/unit.py" time="0.2">
        <failure message="assert 1 == 2">assert 1 == 2
        more</failure></testcase></testsuite>
        """)})
    status, out, _ = run("""
        unit:
          script: [echo "TOTAL 87%", exit 1]
          coverage: '/TOTAL (\\d+)%/'
          artifacts: {when: always, reports: {junit: junit.xml}}
        """)
    assert status == 1
    assert '  ✘ test_bad (tests/unit.py)\n      assert 1 == 2\n' in out
    assert '1 of 3 tests failed, coverage 87%' in out


def test_a_child_pipeline_runs_too(run, tmp_path):
    commit(tmp_path / 'demo', **{'child.yml': 'inner: {script: [echo "in $CI_PIPELINE_SOURCE"], tags: [special]}\n'})
    status, out, _ = run("""
        outer: {trigger: {include: child.yml, strategy: depend}}
        other: {script: ['true']}
        """)
    assert status == 0, out
    assert 'in parent_pipeline' in out
    assert results(out) == {'outer': 'passed', 'other': 'passed', 'inner': 'passed'}


def test_inputs_are_given_on_the_command_line(run):
    status, out, _ = run("""
        spec: {inputs: {who: {default: nobody}}}
        ---
        greet: {script: ['echo "hello $[[ inputs.who ]]"']}
        """, '--input', 'who=world')
    assert status == 0
    assert 'hello world\n' in out
