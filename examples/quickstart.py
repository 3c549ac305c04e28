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


class Problem(Exception):
    """Why the pipeline cannot be run, for people."""


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


def follow(ci, pipeline, screen, runner):
    """Show one job after the other until the pipeline has come to an end; return it."""
    shown = set()
    while True:
        pipeline = ci.find_pipeline(pipeline)
        jobs = sorted(ci.list_jobs(pipeline=pipeline, limit=10_000), key=lambda job: job['started_at'] or 0)
        job = next((job for job in jobs if job['started_at'] and job['id'] not in shown), None)
        if job:
            shown.add(job['id'])
            screen.line(screen.paint(f'\n-- [{len(shown)}/{len(jobs)}] {job["stage"]}: {job["name"]} {"-" * 40}', '1'))
            job = follow_job(ci, job, screen)
            screen.line(f'{job["status"]} in {seconds(job)}')
        elif pipeline['status'] in (*minici.FINISHED, 'manual'):
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
            *lines, rest = (rest + chunk).split(b'\n')
            for line in lines + [rest] * (finished and rest != b''):
                screen.line(screen.clean(line))
        if finished:
            return job
        time.sleep(0.05)


def seconds(row):
    """Return how long a job or pipeline took, as text."""
    if row['started_at'] and row['finished_at']:
        return minici.duration_text(row['finished_at'] - row['started_at'])
    return '-'


def collect(ci, jobs, directory):
    """Write the traces and artifacts of jobs into a directory, and return a row about each job."""
    rows = [('stage', 'job', 'status', 'time', 'artifacts')]
    for job in jobs:
        name, names = f'{job["id"]}-' + re.sub(r'[^\w.-]+', '-', job['name']), []
        with contextlib.suppress(minici.NotFound):
            directory.joinpath('traces').mkdir(exist_ok=True)
            directory.joinpath('traces', f'{name}.log').write_bytes(ci.read_trace(job))
        with contextlib.suppress(minici.NotFound):
            _, archive = ci.open_artifacts(job)
            with archive, zipfile.ZipFile(archive) as bundle:
                bundle.extractall(directory / 'artifacts' / name)
                names = [entry.filename for entry in bundle.infolist() if not entry.is_dir()]
        rows.append((job['stage'], job['name'], job['status'], seconds(job), minici.first_of(names)))
    return rows


def run(options, screen, work):
    """Do it all in the directory `work`; return the exit status."""
    if not shutil.which('git'):
        raise Problem('git is missing: it is needed to read the repository, please install it')
    path = Path(options.path).resolve() if options.path else work / 'demo'
    if not options.path and not path.exists():
        make_demo(path)
    repository, branch, dirty = find_repository(path)
    with minici.Coordinator(work / 'ci.sqlite', fsync=options.keep is not None) as ci, minici.Server(ci) as server:
        project = minici.submitted_project(ci, minici.project_name(repository), repository.as_uri(), branch)
        pipeline = ci.create_pipeline(project, branch)
        tags = sorted({tag for job in ci.list_jobs(pipeline=pipeline, limit=10_000) for tag in json.loads(job['tags'])})
        screen.line(f'{screen.paint("minici quickstart", "1")}\n'
                    f'  repository   {repository}{"" if options.path else " (made to have something to build)"}\n'
                    f'  commit       {pipeline["sha"][:8]} of {branch}\n'
                    f'  coordinator  {server.url}\n'
                    f'  runner       shell_runner.py, a plain shell on this machine')
        if dirty:
            screen.line(screen.paint('  changes that are not committed are not built', '33'))
        runner = shell_runner.Runner(server.url, builds_dir=work, interval=0.1, say=lambda text: None)
        runner.register(ci.registration_token, description='quickstart', tag_list=tags, run_untagged=True)
        thread = threading.Thread(target=runner.run_forever, name='runner')
        thread.start()
        try:
            pipeline = follow(ci, pipeline, screen, thread)
        finally:
            runner.stopping.set()
            thread.join()
        rows = collect(ci, sorted(ci.list_jobs(pipeline=pipeline, limit=10_000), key=lambda job: job['id']), work)
    screen.line()
    minici.print_table(screen, rows, ['2', *[''] * len(rows[1:])])
    screen.line(f'\n  pipeline {pipeline["id"]}: {pipeline["status"]} after {seconds(pipeline)}')
    for name in ('traces', 'artifacts'):
        if work.joinpath(name).exists():
            screen.line(f'  {name:<12} {work / name}')
    if options.keep:
        screen.line(f'  serve it     python -m minici --db {work / "ci.sqlite"}   (and open the link that it prints)')
    return int(pipeline['status'] != 'success')


def main():
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description="Run a git repository's pipeline on this machine, all in one go.")
    parser.add_argument('path', nargs='?', help='the repository (default: a small one, made for this)')
    parser.add_argument('--keep', metavar='DIR', help='leave the database and the repository in DIR, too')
    options = parser.parse_args()
    sys.stdout.reconfigure(errors='replace')
    work = Path(options.keep or tempfile.mkdtemp(prefix='minici-quickstart-')).resolve()
    try:
        work.mkdir(parents=True, exist_ok=True)
        return run(options, minici.Screen(sys.stdout), work)
    except KeyboardInterrupt:
        print('\nquickstart: interrupted, the job that was running is stopped', file=sys.stderr)
        return 130
    except minici.CIError as error:
        print('quickstart: the pipeline cannot be made\n  ' + '\n  '.join(error.problems), file=sys.stderr)
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
