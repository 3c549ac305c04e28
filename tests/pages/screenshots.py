"""Take pictures of every page, in light and dark, on a desk and on a phone: `python tests/pages/screenshots.py FOLDER`.

`390 dark` after the folder takes those of one width and scheme alone.
"""

import contextlib
import gzip
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from browser import Chromium  # noqa: E402
from support import Runner, archive  # noqa: E402

import minici  # noqa: E402

PIPELINE = """\
stages: [build, test, package, deploy]

variables:
  TESTS: {value: quick, options: [quick, full, nightly], description: How much is tested}
  RELEASE_NOTE: {description: What to say about this release}

default:
  interruptible: true

compile:
  stage: build
  tags: [linux]
  variables: {CFLAGS: -O2, TARGET: x86_64}
  script: [make]
  artifacts: {paths: [build/], expire_in: 1 week}

docs:
  stage: build
  script: [make html]

unit tests:
  stage: test
  needs: [compile]
  script: [make check]
  coverage: '/lines: (\\d+)/'

lint:
  stage: test
  needs: []
  allow_failure: true
  script: [make lint]

browsers:
  stage: test
  parallel: {matrix: [{BROWSER: [chromium, firefox, safari]}]}
  script: [make browser-test]

package:
  stage: package
  script: [make package]

staging:
  stage: deploy
  when: manual
  resource_group: staging
  script: [make deploy]
  environment: {name: staging, url: https://staging.example.com}

production:
  stage: deploy
  when: manual
  manual_confirmation: Deploy to production?
  script: [make deploy]
"""
COMMITS = [('Ada Lovelace', 'Add the analytical engine'), ('Grace Hopper', 'Take the moth out of the relay'),
           ('Alan Turing', 'Decide whether the loop ends'), ('Barbara Liskov', 'Replace a base class by its subtype'),
           ('Donald Knuth', 'Document what is premature'), ('Margaret Hamilton', 'Restart gracefully on alarm 1202')]
TRACE = (
    '\x1b[0KRunning with gitlab-runner 17.5.3 (12030cf4)\x1b[0;m\n'
    'section_start:{0}:get_sources\r\x1b[0K\x1b[0K\x1b[36;1mGetting source from Git repository\x1b[0;m\n'
    '\x1b[32;1mFetching changes with git depth set to 20...\x1b[0;m\n'
    'Checking out \x1b[1m4f9c2d17\x1b[0m as detached HEAD (ref is main)...\n'
    'section_end:{1}:get_sources\r\x1b[0K'
    'section_start:{1}:step_script\r\x1b[0K\x1b[0K\x1b[36;1mExecuting "step_script" stage of the job script\x1b[0;m\n'
    '\x1b[32;1m$ make check\x1b[0;m\n'
    'downloading fixtures  10%\rdownloading fixtures  60%\rdownloading fixtures 100%\n'
    'test_engine.c: \x1b[32mok\x1b[0m (12 assertions)\n'
    'test_relay.c: \x1b[32mok\x1b[0m (31 assertions)\n'
    'test_loop.c: \x1b[33mskipped\x1b[0m: undecidable\n'
    'section_start:{1}:slow[collapsed=true]\r\x1b[0KSlow tests\n'
    'test_memory.c: \x1b[32mok\x1b[0m (1202 assertions)\n'
    'section_end:{2}:slow\r\x1b[0K'
    '\x1b[38;5;208mwarning:\x1b[0m unused variable \x1b[38;2;120;200;255m\u2018moth\u2019\x1b[0m [-Wunused-variable]\n')
FAILED = ('test_alarm.c:120: \x1b[1;31merror:\x1b[0m expected 1201, got 1202\n'
          '\x1b[31mFAILED\x1b[0m 1 of 44 tests; lines: 87%\n'
          'section_end:{2}:step_script\r\x1b[0K\x1b[31;1mERROR: Job failed: exit code 2\n\x1b[0;m')
PASSED = ('44 tests passed; lines: 87%\n'
          'section_end:{2}:step_script\r\x1b[0K\x1b[32;1mJob succeeded\n\x1b[0;m')


REPORT = """<testsuites><testsuite name="engine">
<testcase classname="engine.Alarm" name="test_1202_restarts" file="tests/test_alarm.py" time="0.25">
<failure message="expected 1201, got 1202">Traceback (most recent call last):
  File "tests/test_alarm.py", line 120, in test_1202_restarts
    assert alarm.code == 1201
AssertionError: expected 1201, got 1202</failure></testcase>
<testcase classname="engine.Relay" name="test_no_moth" file="tests/test_relay.py" time="1.5">
<error message="MothError: a moth is in panel F"/></testcase>
""" + ''.join(f'<testcase classname="engine.Mill" name="test_{number}" time="0.1"/>' for number in range(42)) + """
</testsuite></testsuites>"""


def git(path, *arguments):
    subprocess.run(['git', '-C', str(path), *arguments], check=True, capture_output=True)


def repository(path):
    """Make a repository with a pipeline file and some history; return the ids of its commits, oldest first."""
    path.mkdir()
    git(path, 'init', '--quiet', '--initial-branch=main')
    shas = []
    for author, message in COMMITS:
        (path / '.gitlab-ci.yml').write_text(PIPELINE)
        (path / 'log').write_text(message)
        git(path, 'add', '.')
        git(path, '-c', f'user.name={author}', '-c', 'user.email=dev@example.com', 'commit', '--quiet', '-m', message)
        shas.append(subprocess.run(['git', '-C', str(path), 'rev-parse', 'HEAD'], check=True, capture_output=True,
                                   text=True).stdout.strip())
    return shas


def work(ci, runner, *, broken='', leave_running=False, seconds=0, clock=None):
    """Take the next job, write its log, and finish it; return the claim. The job called `broken` fails."""
    claim = runner.claim()
    if claim is None:
        return None
    state = 'failed' if claim.job['name'] == broken else 'success'
    job, now = ci.authenticate_job(claim.job['id'], claim.token), int(ci.clock())
    text = TRACE + ('' if leave_running else FAILED if state == 'failed' else PASSED)
    ci.append_trace(job, 0, text.format(now, now + 2, now + 2 + seconds).encode())
    if state == 'failed':
        part = ci.artifacts.receive()
        part.filename = 'junit.xml.gz'
        part.write(gzip.compress(REPORT.encode()))
        ci.store_artifacts(job, part, file_type='junit', file_format='gzip')
        part.discard()
    if claim.job['name'] == 'compile':
        part = ci.artifacts.receive()
        part.filename = 'artifacts.zip'
        part.write(archive(build__engine='x' * 70000, build__docs__index='Engine\n', build__VERSION='1.2.0\n'))
        ci.store_artifacts(job, part, expire_in='1 week')
        part.discard()
    if clock:
        clock.now += seconds
    if not leave_running:
        ci.update_job(job, state, failure_reason='script_failure' if state == 'failed' else None,
                      exit_code=2 if state == 'failed' else None)
    return claim


def large(ci, runner, clock):
    """Start a pipeline of 150 jobs in which some failed and some run; return it."""
    stages = ['build', 'lint', 'test', 'package', 'deploy']
    jobs = {}
    for name in ('core', 'web', 'cli', 'docs', 'api', 'db', 'mail', 'auth', 'jobs', 'ui'):
        jobs[f'build {name}'] = {'stage': 'build'}
    for name in ('py', 'js', 'css', 'sql', 'sh', 'md', 'yml', 'c'):
        jobs[f'lint {name}'] = {'stage': 'lint'}
    jobs['lint py']['allow_failure'] = True
    jobs['e2e'] = {'stage': 'test', 'parallel': 60}
    jobs['unit'] = {'stage': 'test', 'parallel': {'matrix': [
        {'OS': ['linux', 'macos', 'windows'], 'PY': ['3.10', '3.11', '3.12', '3.13']}]}}
    jobs.update((f'integration-{number:02d}', {'stage': 'test'}) for number in range(20))
    jobs.update((f'package-{number:02d}', {'stage': 'package'}) for number in range(25))
    jobs.update((f'deploy-{number:02d}', {'stage': 'deploy'}) for number in range(15))
    for job in jobs.values():
        job['script'] = ['make']
    pipeline = ci.create_pipeline(ci.create_project('analytical/monorepo'), 'main', sha='4f9c2d17' * 5,
                                  content={'stages': stages, **jobs})
    broken = ('lint py', 'e2e 7/60', 'e2e 33/60', 'unit: [windows, 3.13]', 'integration-04')
    for number in range(100):
        claim = ci.request_job(runner.row, pipeline=pipeline)
        failed = claim.job['name'] in broken
        clock.now += 3 + number * 37 % 90
        ci.update_job(ci.authenticate_job(claim.job['id'], claim.token), 'failed' if failed else 'success',
                      failure_reason='script_failure' if failed else None)
    for _ in range(4):
        claim = ci.request_job(runner.row, pipeline=pipeline)
        ci.append_trace(ci.authenticate_job(claim.job['id'], claim.token), 0, b'$ make\n')
    return pipeline


class History:
    """A clock that is set back, so that the example has a past."""

    def __init__(self):
        self.now = time.time() - 9 * 3600

    def __call__(self):
        return self.now


@contextlib.contextmanager
def example(directory, **settings):
    """Yield a coordinator with projects, runners and pipelines in every state, and the ids worth a picture."""
    clock = History()
    shas = repository(directory / 'engine')
    with minici.Coordinator(directory / 'ci.sqlite', clock=clock, fsync=False, **settings) as ci:
        user = ci.find_user(ci.create_private_token('ada'))
        project = ci.create_project('analytical/engine', import_url=f'file://{directory}/engine')
        ci.create_project('analytical/website', import_url='https://git.example.com/analytical/website.git')
        ci.set_variable(project, 'DEPLOY_KEY', 'not-shown-to-strangers', masked=True, protected=True)
        ci.set_variable(project, 'LOCALE', 'en_GB.UTF-8')
        ci.create_trigger(project, user, 'nightly build')
        said = {'name': 'gitlab-runner', 'version': '17.5.3', 'platform': 'linux', 'architecture': 'amd64',
                'executor': 'docker'}
        linux = Runner(ci, description='rack-1', tag_list=['linux', 'docker'], info=said)
        Runner(ci, description='mac-mini', tag_list=['macos'], run_untagged=False,
               info={**said, 'platform': 'darwin', 'architecture': 'arm64', 'executor': 'shell'})
        ci.contact(linux.row, said, '192.0.2.7')
        ids = {}
        for index, sha in enumerate(shas):
            pipeline = ci.create_pipeline(project, 'main', sha=sha, source='push', user=user)
            clock.now += 20
            for _ in range(2 if index == len(shas) - 1 else 20):
                claim = work(ci, linux, seconds=48 + 7 * index, clock=clock, broken='unit tests' if index == 2 else '')
                if claim is None:
                    break
                name = claim.job['name']
                ids['failed' if index == 2 and name == 'unit tests' else name] = claim.job['id']
            if index < len(shas) - 1:
                clock.now += 5400
        ci.create_schedule(project, user, description='Nightly tests', ref='main', cron='0 3 * * 1-5',
                           cron_timezone='Europe/London')
        ci.edit_schedule(ci.create_schedule(project, user, description='Release candidates', ref='main',
                                            cron='30 12 * * 5'), active=False)
        clock.now = time.time() - 5000
        wide = large(ci, linux, clock)
        clock.now = time.time() - 95
        ci.contact(linux.row, said, '192.0.2.7')
        running = work(ci, linux, leave_running=True)
        ids.update(pipeline=pipeline['id'], running=running.job['id'])
        ci.create_pipeline(project, 'feature/mill', sha='4f9c2d17' * 5, content={
            'compile': {'script': ['make'], 'tags': ['sparc']}, 'check': {'stage': 'deploy', 'script': ['make check']}})
        clock.now = time.time()
        ids['large'] = wide['id']
        yield ci, ids


def pages(ids):
    """Return the pages worth a picture: name and address."""
    base = '/analytical/engine'
    wide = f'/analytical/monorepo/-/pipelines/{ids["large"]}'
    return {'large-pipeline': wide, 'large-pipeline-found': f'{wide}?name=unit', 'runner': '/-/runners/1',
            'schedules': f'{base}/-/pipeline_schedules', 'pipelines': '/',
            'pipeline': f'{base}/-/pipelines/{ids["pipeline"]}',
            'job': f'{base}/-/jobs/{ids["failed"]}', 'running-job': f'{base}/-/jobs/{ids["running"]}',
            'runners': '/-/runners', 'projects': '/-/projects',
            'project': base, 'new-pipeline': '/-/pipelines/new?project=analytical/engine', 'tokens': '/-/tokens',
            'artifacts': f'{base}/-/jobs/{ids["compile"]}/artifacts/browse/build', 'sign-in': '/-/sign_in',
            'error': f'{base}/-/jobs/99999'}


def main(target, widths=(1280, 390), schemes=('light', 'dark')):
    """Write the pictures into a folder."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, example(Path(directory)) as (ci, ids), \
            minici.Server(ci) as server, Chromium(Chromium.camera) as chromium, chromium.browser(server.url) as browser:
        browser.open(f'/-/sign_in?code={ci.create_sign_in_code()}')
        browser.page.wait_for_url(f'{server.url}/')
        for width in map(int, widths):
            for scheme in schemes:
                browser.size(width, 800, dark=scheme == 'dark')
                for name, address in pages(ids).items():
                    browser.open(address)
                    if browser.page.locator('#log').count():
                        browser.page.locator('#trace .line').first.wait_for()
                    browser.screenshot(target / f'{name}-{width}-{scheme}.png')
        for message in browser.console():
            print(message)


if __name__ == '__main__':
    main(Path(sys.argv[1]), *([choice] for choice in sys.argv[2:]))
