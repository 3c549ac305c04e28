#!/usr/bin/env python3
"""Run a git repository's pipeline on this machine, all in one go: coordinator, runner, traces, artifacts.

    python quickstart.py                       a small repository that it makes itself
    python quickstart.py PATH                  yours: its current branch, as last committed
    python quickstart.py PATH --keep DIR       the same, and leave everything in DIR to look at later

The exit status is 0 when the pipeline succeeds and 1 when it fails; 2 says that it could not be run.
The jobs run in a plain shell, as you: images and services are ignored, and the traces say so.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.parse
import zipfile
from pathlib import Path

import shell_runner

try:
    import minici
except ModuleNotFoundError as error:
    sys.exit(f'{error}. In the directory of minici.py, run:  python -m pip install ".[yaml]"')

DEMO = {
    '.gitlab-ci.yml': r"""
        # Two stages: the second begins when the first is done, with the files it has left.
        stages: [build, test]

        page:
          stage: build
          script:
            - echo "Building $CI_PROJECT_NAME at $CI_COMMIT_SHORT_SHA of $CI_COMMIT_REF_NAME"
            - mkdir -p public
            - sh page.sh notes.txt > public/index.html
            - wc -c public/index.html
          artifacts:
            paths: [public/]
            expire_in: 1 week

        check page:
          stage: test
          script:
            - sh check.sh public/index.html

        count words:
          stage: test
          script:
            - sed 's/<[^>]*>//g' public/index.html | wc -w
          after_script:
            - echo "This runs whatever became of the script."
        """,
    'notes.txt': """
        A coordinator hands out jobs.
        A runner asks for them, and reports what became of them.
        What one job makes, the next may use.
        """,
    'page.sh': r"""
        # Turn the lines of a text into a page.
        echo '<!doctype html><html lang="en"><title>Notes</title><ul>'
        sed 's/.*/<li>&<\/li>/' "$1"
        echo '</ul></html>'
        """,
    'check.sh': r"""
        # Look at a page; the last status decides.
        failed=0
        for wanted in '<!doctype html>' '<li>A runner' '</html>'; do
          if grep -qF "$wanted" "$1"; then
            printf '  \033[32mok\033[0m       %s\n' "$wanted"
          else
            printf '  \033[31mmissing\033[0m  %s\n' "$wanted"
            failed=1
          fi
        done
        exit $failed
        """,
}
COLOURS = {'success': 32, 'failed': 31, 'canceled': 33, 'skipped': 2, 'manual': 33}


class Problem(Exception):
    """Why the pipeline cannot be run, for people."""


class Screen:
    """The terminal, with colours when it is one."""

    def __init__(self):
        self.coloured = sys.stdout.isatty() and 'NO_COLOR' not in os.environ

    def paint(self, text, *codes):
        """Return `text` in a colour, if there are colours."""
        return f'\033[{";".join(map(str, codes))}m{text}\033[0m' if self.coloured and codes else text

    def line(self, text=''):
        """Print a line."""
        print(text, flush=True)

    def fact(self, name, text):
        """Print a line of `name` and what there is to say of it."""
        self.line(f'  {self.paint(f"{name:<11}", 2)} {text}')

    def heading(self, text):
        """Print a heading across the screen."""
        width = min(shutil.get_terminal_size().columns, 100)
        self.line('\n' + self.paint(f'-- {text} '.ljust(width, '-'), 1))

    def trace(self, text):
        """Print some lines of a trace, which has colours of its own."""
        print(text if self.coloured else re.sub(r'\033\[[0-9;]*[A-Za-z]', '', text), end='', flush=True)


def git(directory, *arguments):
    """Run git in a directory and return what it prints; raise Problem if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}
    done = subprocess.run(['git', '-C', str(directory), *arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise Problem(f'{directory}: {done.stderr.strip() or "git failed"}')
    return done.stdout.strip()


def make_demo(directory):
    """Make a repository of one commit to run."""
    directory.mkdir(parents=True)
    for name, text in DEMO.items():
        directory.joinpath(name).write_text(textwrap.dedent(text).strip() + '\n', encoding='utf-8')
    git(directory, 'init', '--quiet')
    git(directory, 'symbolic-ref', 'HEAD', 'refs/heads/main')
    git(directory, 'add', '.')
    git(directory, '-c', 'user.name=quickstart', '-c', 'user.email=quickstart@example.invalid',
        '-c', 'commit.gpgSign=false', '-c', 'core.hooksPath=/dev/null',
        'commit', '--quiet', '--message', 'Notes, and a page made of them')
    return directory


def find_repository(path):
    """Return the repository that holds `path` and its current branch; raise Problem if that cannot be run."""
    if not path.is_dir():
        raise Problem(f'{path}: there is no such directory')
    try:
        bare = git(path, 'rev-parse', '--is-bare-repository') == 'true'
        repository = Path(git(path, 'rev-parse', *(['--absolute-git-dir'] if bare else ['--show-toplevel'])))
    except Problem as problem:
        raise Problem(f'{path} is no git repository, or one that git does not want to read:\n{problem}') from None
    try:
        branch = git(repository, 'symbolic-ref', '--quiet', '--short', 'HEAD')
    except Problem:
        raise Problem(f'{repository} has no branch checked out; "git switch BRANCH" changes that') from None
    try:
        git(repository, 'rev-parse', '--quiet', '--verify', 'HEAD')
    except Problem:
        raise Problem(f'{repository} has no commit yet on its branch {branch}') from None
    return repository, branch, not bare and bool(git(repository, 'status', '--porcelain'))


def submit(ci, repository, branch):
    """Make a pipeline of a repository's branch, and its project if this is the first."""
    url = 'file://' + urllib.parse.quote(str(repository))
    name = re.sub(r'[^A-Za-z0-9_.-]+|\.(git|atom|json)$', '-', repository.name).strip('-.') or 'project'
    name = name if re.match('[A-Za-z_]', name) else f'project-{name}'
    try:
        project = ci.find_project(name)
    except minici.NotFound:
        project = ci.create_project(name, import_url=url, default_branch=branch)
    if project['import_url'] != url:
        raise Problem(f'the directory to keep things in holds a project {name} of another repository already')
    return project, ci.create_pipeline(project, branch)


def follow(ci, pipeline, screen, runner):
    """Show one job after the other until the pipeline has come to an end; return it."""
    shown = set()
    while True:
        pipeline = ci.find_pipeline(pipeline)
        jobs = sorted(ci.list_jobs(pipeline=pipeline, limit=10_000), key=lambda job: job['started_at'] or 0)
        job = next((job for job in jobs if job['started_at'] and job['id'] not in shown), None)
        if job:
            shown.add(job['id'])
            screen.heading(f'[{len(shown)}/{len(jobs)}] {job["stage"]}: {job["name"]}')
            job = follow_job(ci, job, screen)
            screen.line(screen.paint(f'{job["status"]} in {seconds(job)} s', COLOURS.get(job['status'], 0)))
        elif pipeline['status'] in ('success', 'failed', 'canceled', 'skipped', 'manual'):
            return pipeline
        elif not runner.is_alive():
            raise Problem('the runner has ended')
        else:
            time.sleep(0.05)


def follow_job(ci, job, screen):
    """Print a job's trace until the job has finished; return the job."""
    position, rest = 0, b''
    while True:
        job = ci.find_job(job)
        finished = job['status'] != 'running'  # asked before reading: the rest of the trace is there by then
        with contextlib.suppress(minici.NotFound), ci.traces.open(job['id']) as trace:
            trace.seek(position)
            chunk = trace.read()
            position += len(chunk)
            text, newline, rest = (rest + chunk).rpartition(b'\n')
            screen.trace((text + newline).decode('utf-8', 'replace'))
        if finished:
            screen.trace(rest.decode('utf-8', 'replace') + '\n' * bool(rest))
            return job
        time.sleep(0.05)


def seconds(row):
    """Return how long a job or pipeline took, as text."""
    return f'{row["finished_at"] - row["started_at"]:.1f}' if row['started_at'] and row['finished_at'] else '-'


def collect(ci, jobs, directory):
    """Write the traces and artifacts of jobs into a directory; return the names of each job's files."""
    files = {}
    for job in jobs:
        name = f'{job["id"]}-' + re.sub(r'[^\w.-]+', '-', job['name'])
        with contextlib.suppress(minici.NotFound):
            directory.joinpath('traces').mkdir(parents=True, exist_ok=True)
            directory.joinpath('traces', f'{name}.log').write_bytes(ci.read_trace(job))
        with contextlib.suppress(minici.NotFound):
            _, archive = ci.open_artifacts(job)
            with archive, zipfile.ZipFile(archive) as bundle:
                bundle.extractall(directory / 'artifacts' / name)
                files[job['id']] = [entry.filename for entry in bundle.infolist() if not entry.is_dir()]
    return files


def summarize(pipeline, jobs, files, screen):
    """Print what became of each job."""
    screen.heading('summary')
    rows = [('stage', 'job', 'status', 'seconds', 'artifacts')]
    for job in jobs:
        names = files.get(job['id'], [])
        listed = ', '.join(names[:3]) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
        rows.append((job['stage'], job['name'], job['status'], seconds(job), listed))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = [text.rjust(width) if column == 3 else text.ljust(width)
                 for column, (text, width) in enumerate(zip(row, widths, strict=True))]
        if number:
            cells[2] = screen.paint(cells[2], COLOURS.get(row[2], 0))
        screen.line(screen.paint('  ' + '  '.join(cells).rstrip(), 2 if number == 0 else 0))
    status = screen.paint(pipeline['status'], 1, COLOURS.get(pipeline['status'], 0))
    screen.line(f'\n  pipeline {pipeline["id"]}: {status} after {seconds(pipeline)} s')


def run(options, screen, work):
    """Do it all in the directory `work`; return the exit status."""
    if not shutil.which('git'):
        raise Problem('git is missing: it is needed to read the repository, please install it')
    if options.path is None:
        path = work / 'demo'
        repository, branch, dirty = find_repository(path if path.exists() else make_demo(path))
    else:
        repository, branch, dirty = find_repository(Path(options.path).resolve())
    with minici.Coordinator(work / 'ci.sqlite', fsync=options.keep is not None) as ci, minici.Server(ci) as server:
        project, pipeline = submit(ci, repository, branch)
        jobs = sorted(ci.list_jobs(pipeline=pipeline, limit=10_000), key=lambda job: job['id'])
        tags = sorted({tag for job in jobs for tag in json.loads(job['tags'])})
        commit = json.loads(pipeline['commit_info'] or '{}').get('message', '').partition('\n')[0]
        screen.line(screen.paint('minici quickstart', 1))
        screen.fact('repository', f'{repository}{"" if options.path else " (made to have something to build)"}')
        screen.fact('commit', f'{pipeline["sha"][:8]} of {branch}: {commit}')
        if dirty:
            screen.fact('', screen.paint('changes that are not committed are not built', 33))
        stages = list(dict.fromkeys(job['stage'] for job in jobs))
        screen.fact('pipeline', f'{len(jobs)} job(s) in the stages {", ".join(stages)}')
        screen.fact('coordinator', server.url)
        runner = shell_runner.Runner(server.url, builds_dir=work, interval=0.1, say=lambda text: None)
        runner.register(ci.registration_token, description='quickstart', tag_list=tags, run_untagged=True)
        screen.fact('runner', 'shell_runner.py, a plain shell on this machine'
                    + (f' with the tags {", ".join(tags)}' if tags else ''))
        thread = threading.Thread(target=runner.run_forever, name='runner')
        thread.start()
        try:
            pipeline = follow(ci, pipeline, screen, thread)
        finally:
            runner.stopping.set()
            thread.join()
        jobs = sorted(ci.list_jobs(pipeline=pipeline, limit=10_000), key=lambda job: job['id'])
        files = collect(ci, jobs, work)
        summarize(pipeline, jobs, files, screen)
        if pipeline['status'] == 'manual':
            names = ', '.join(job['name'] for job in jobs if job['status'] == 'manual')
            screen.line(f'  waiting to be started by hand: {names}')
    screen.heading('where to look')
    screen.fact('traces', work / 'traces')
    if files:
        screen.fact('artifacts', work / 'artifacts')
    if options.keep:
        command = f'python -m minici --db {work / "ci.sqlite"}'
        screen.fact('serve it', f'{command}   (and open the link that it prints)')
        screen.fact('API', f'http://127.0.0.1:8080/api/v4/projects/{project["id"]}/jobs')
        screen.fact('token', f'{command} token')
    else:
        screen.fact('', 'with --keep DIR the database stays, too, and can be served')
    return 0 if pipeline['status'] == 'success' else 1


def main():
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description="Run a git repository's pipeline on this machine, all in one go.")
    parser.add_argument('path', nargs='?', help='the repository (default: a small one, made for this)')
    parser.add_argument('--keep', metavar='DIR', help='leave the database and the repository in DIR, too')
    options = parser.parse_args()
    sys.stdout.reconfigure(errors='replace')
    screen = Screen()
    work = Path(options.keep or tempfile.mkdtemp(prefix='minici-quickstart-')).resolve()
    try:
        work.mkdir(parents=True, exist_ok=True)
        return run(options, screen, work)
    except KeyboardInterrupt:
        print('\nquickstart: interrupted, the job that was running is stopped', file=sys.stderr)
        return 130
    except minici.CIError as error:
        texts = [error.message] if isinstance(error.message, str) else [
            text for texts in error.message.values() for text in texts]
        print('quickstart: the pipeline cannot be made\n  ' + '\n  '.join(texts), file=sys.stderr)
    except (Problem, shell_runner.Failed, OSError) as error:
        print(f'quickstart: {error}', file=sys.stderr)
    finally:
        if not options.keep:  # what remains is what somebody wants to look at
            for path in work.iterdir():
                if path.name not in ('traces', 'artifacts'):
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
            if not any(work.iterdir()):
                work.rmdir()
    return 2


if __name__ == '__main__':
    sys.exit(main())
