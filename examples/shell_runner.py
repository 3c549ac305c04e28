#!/usr/bin/env python3
"""A complete CI runner of standard library alone: the runner protocol of 2016, from top to bottom.

    python shell_runner.py http://127.0.0.1:8080 --registration-token TOKEN

A runner asks a coordinator for work. A job is a commit to check out and commands to run there; what they print
goes to the coordinator while they run, and so do the files they make, for the jobs of later stages. Jobs run on
this machine as the user who started this: serve only projects that you trust. Needs git and a POSIX system.
"""

import argparse
import contextlib
import fcntl
import glob
import http.client
import io
import itertools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import zipfile
from pathlib import Path

MACHINE, MIB = os.uname(), 1024 * 1024
# Coordinators of 2016 knew by this name that a runner understands 204, "nothing to do"; others got a 404.
AGENT = f'gitlab-ci-multi-runner 1.11.5 (shell_runner; python; {sys.platform}/{MACHINE.machine})'
INFO = {'name': 'shell_runner', 'version': '1.11.5', 'platform': sys.platform, 'architecture': MACHINE.machine}
# All that jobs inherit of the runner's own environment, which may hold its tokens.
INHERITED = ('PATH', 'HOME', 'USER', 'LOGNAME', 'SHELL', 'LANG', 'LC_ALL', 'TZ', 'TMPDIR', 'SSH_AUTH_SOCK')
# Shows a script's lines when they are first reached, as they are written: no variable's value is shown. It is one
# line itself, because bash counts the lines of a trap, too.
BASH_ENV = ('unset BASH_ENV; exec 9>&1; CI_LINE=0; trap \'if ((LINENO > CI_LINE)); then sed -n '
            '"$((CI_LINE + 1)),${LINENO}s/.*/\033[32;1m$ &\033[0m/p" "$0" >&9; CI_LINE=$LINENO; fi\' DEBUG')
RED, GREEN, YELLOW, CYAN = 31, 32, 33, 36


class Unavailable(Exception):
    """The coordinator is out of reach or has trouble of its own."""


class Failed(Exception):
    """A step failed, for this reason."""


class Stopped(Exception):
    """The coordinator does not want the job to go on."""


class Runner:
    """Registers, claims one job after the other, and runs it; `say` is told of the progress."""

    def __init__(self, url, *, token=None, registration_token=None, tag_list=(), run_untagged=None, name=None,
                 builds_dir='builds', interval=3.0, heartbeat=30.0, say=print):
        self.url = urllib.parse.urlsplit(url.rstrip('/').removesuffix('/ci') + '/ci/api/v1')
        self.token, self.registration_token, self.last_update = token, registration_token, None
        self.tag_list, self.run_untagged = list(tag_list), not tag_list if run_untagged is None else run_untagged
        self.name, self.builds_dir = name or MACHINE.nodename, Path(builds_dir).resolve()
        self.interval, self.heartbeat, self.say, self.stopping = interval, heartbeat, say, threading.Event()

    def call(self, method, path, data=None, headers=None, *, expect=None, into=None, patience=0):
        """Send a request; return the answer's status, headers and body, or write the body `into` a file.

        `data` is bytes, a dict to be sent as JSON, or a function that makes an iterator of bytes. Raises Failed if
        the status is not the one to `expect`. Connection errors and 5xx are the coordinator's trouble and not the
        job's: after the seconds it asks for the request is sent again, for `patience` seconds.
        """
        headers, deadline = {'User-Agent': AGENT, **(headers or {})}, time.monotonic() + patience
        if isinstance(data, dict):
            data, headers['Content-Type'] = json.dumps(data).encode(), 'application/json'
        connect = http.client.HTTPSConnection if self.url.scheme == 'https' else http.client.HTTPConnection
        while True:
            try:
                with contextlib.closing(connect(self.url.netloc, timeout=120)) as connection:
                    connection.request(method, self.url.path + path, data() if callable(data) else data, headers)
                    answer = connection.getresponse()
                    body = into if into and answer.status == expect else io.BytesIO()
                    body.truncate(body.seek(0))
                    shutil.copyfileobj(answer, body)
                    if answer.status < 500 and not answer.length:  # so many bytes are missing
                        break
                    trouble, wait = f'{answer.status} {answer.reason}', answer.headers.get('Retry-After', '')
            except (OSError, http.client.HTTPException) as error:
                trouble, wait = error, ''
            wait = int(wait) if wait.isdigit() else 3
            if time.monotonic() + wait > deadline or self.stopping.wait(wait):
                raise Unavailable(f'{self.url.geturl()}: {trouble}')
            self.say(f'{self.url.geturl()}: {trouble}; trying again')
        body = b'' if body is into else body.getvalue()
        if expect not in (None, answer.status):
            raise Failed(f'{method} {path} is answered {answer.status} {body.decode()}')
        return answer.status, answer.headers, body

    def register(self):
        """Trade the registration token, which people copy, for a token of this runner's own."""
        # A runner takes the jobs all of whose tags it has, and jobs without tags only if it says so.
        _, _, body = self.call('POST', '/runners/register', {
            'token': self.registration_token, 'description': self.name, 'tag_list': ','.join(self.tag_list),
            'run_untagged': self.run_untagged, 'info': INFO}, expect=201, patience=600)
        self.token = json.loads(body)['token']

    def unregister(self):
        """Leave the coordinator's list of runners."""
        self.call('DELETE', '/runners/delete', {'token': self.token})

    def run_forever(self, stop_event=None):
        """Run jobs until the event is set; a job that is still running then fails."""
        self.stopping = stop_event or self.stopping
        while not self.stopping.is_set():
            try:
                if self.run_once():
                    continue
            except Unavailable as error:
                self.say(str(error))
            self.stopping.wait(self.interval)

    def run_once(self):
        """Ask for a job and run it to its end; return whether there was one."""
        # 201 brings a job, 204 none, 404 none either or that this runner is paused. The queue's value of the last
        # answer spares the coordinator a search when nothing has changed since. A claim is never repeated: if its
        # answer got lost, the job goes back into the queue by itself.
        status, headers, body = self.call('POST', '/builds/register', {
            'token': self.token, 'last_update': self.last_update, 'info': INFO})
        self.last_update = headers.get('X-GitLab-Last-Update')
        if status == 403:
            raise Failed('the coordinator does not know this runner')
        if status != 201:
            return False
        build, started, state = json.loads(body), time.monotonic(), 'failed'
        self.say(f'job {build["id"]} ({build["project_name"]}: {build["name"]}) starts')
        self.builds_dir.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(Stopped), tempfile.TemporaryDirectory(prefix='job-', dir=self.builds_dir) as scratch:
            state = Job(self, build, Path(scratch)).run()
        # The last word takes the runner's token. It may be repeated; 404 means that the job was stopped meanwhile.
        self.call('PUT', f'/builds/{build["id"]}', {'token': self.token, 'state': state, 'info': INFO}, patience=600)
        self.say(f'job {build["id"]}: {state} after {time.monotonic() - started:.1f} s')
        return True


class Job:
    """A job, its working copy, and a file of all that it has printed, `sent` bytes of which have arrived."""

    def __init__(self, runner, build, scratch):
        self.runner, self.build, self.scratch, self.url = runner, build, scratch, f'/builds/{build["id"]}'
        self.options, self.log = build.get('options') or {}, open(scratch / 'trace', 'ab+', buffering=0)
        self.sent, self.heard, self.deadline = 0, time.monotonic(), time.monotonic() + build['timeout']
        for number in itertools.count(1):  # another runner on this machine may be at work on the same project
            self.directory = runner.builds_dir / f'project-{build["project_id"]}-{number}'
            self.lock = open(f'{self.directory}.lock', 'w')
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                self.lock.close()
        self.variables = {name: os.environ[name] for name in INHERITED if name in os.environ} | {
            'CI': 'true', 'GITLAB_CI': 'true', 'CI_SERVER': 'yes', 'CI_PROJECT_DIR': str(self.directory),
            'CI_BUILD_ID': str(build['id']), 'CI_BUILD_REF': build['sha'], 'CI_BUILD_REF_NAME': build['ref'],
            'GIT_TERMINAL_PROMPT': '0', 'GIT_CEILING_DIRECTORIES': str(runner.builds_dir)}
        for item in build['variables']:  # later ones win over earlier ones, and all over the runner's
            self.variables[item['key']] = item['value']
            if item.get('file'):  # the value goes into a file, whose name goes into the variable
                (scratch / item['key']).write_text(item['value'], encoding='utf-8')
                self.variables[item['key']] = str(scratch / item['key'])
        self.environment = {name: self.expand(value) for name, value in self.variables.items()}

    def expand(self, text):
        """Replace `$NAME` and `${NAME}` by what that variable holds; what is no variable stays."""
        return re.sub(r'\$(?:(\w+)|{(\w+)})', lambda name: self.variables.get(name[1] or name[2], name[0]), text)

    def run(self):
        """Do all that the job asks for; return `success` or `failed`."""
        after_script, artifacts = self.options.get('after_script'), self.options.get('artifacts') or {'when': 'never'}
        with self.log, self.lock:
            self.note(f'Running on {self.runner.name} with shell_runner')
            for name in {'image', 'services', 'cache'}.intersection(self.options):
                self.note(f'WARNING: {name} {json.dumps(self.options[name])} IGNORED, '
                          'the script runs in a plain shell of this machine', YELLOW)
            passed = self.passes(self.check_out) and self.passes(self.fetch_artifacts) and self.passes(
                self.shell, self.build['commands'])
            if after_script and self.directory.is_dir():  # it runs always, and decides nothing
                self.deadline = time.monotonic() + 300
                self.passes(self.shell, '\n'.join(after_script))
            if artifacts.get('when', 'on_success') in ('always', 'on_success' if passed else 'on_failure'):
                passed = self.passes(self.upload_artifacts, **artifacts) and passed
            self.note('Job succeeded' if passed else 'ERROR: Job failed', GREEN if passed else RED)
            self.send(patience=600)
        return 'success' if passed else 'failed'

    def passes(self, step, *arguments, **options):
        """Take a step; if it fails, tell the job's author why."""
        try:
            step(*arguments, **options)
        except Stopped:
            raise
        except Exception as error:
            self.note(f'ERROR: {error or type(error).__name__}', RED)
            return False
        return True

    def note(self, text, colour=CYAN):
        """Write a line of the runner's own into the trace."""
        self.log.write(f'\033[{colour};1m{text}\033[0m\n'.encode('utf-8', 'replace'))

    def send(self, patience=0):
        """Send what the trace has grown by, or a sign of life after a long silence."""
        while True:
            chunk = os.pread(self.log.fileno(), MIB, self.sent)
            if not chunk and time.monotonic() < self.heard + self.runner.heartbeat:
                return
            # A chunk says where in the trace it starts, so a request whose answer was lost can be repeated: when
            # the coordinator's copy does not end there, it appends nothing and answers 416 with `Range: 0-LENGTH`.
            status, headers, _ = self.runner.call('PATCH', f'{self.url}/trace.txt', chunk, {
                'BUILD-TOKEN': self.build['token'], 'Content-Type': 'text/plain',
                'Content-Range': f'{self.sent}-{self.sent + len(chunk)}'}, patience=patience)
            self.heard = time.monotonic()
            # Nobody pushes anything to a runner: this header is how it hears that its job was canceled, or failed
            # by the coordinator. A 403 or 404 says that the job is gone or somebody else's.
            if status not in (202, 416) or headers.get('Build-Status') in ('canceled', 'failed'):
                raise Stopped()
            before, self.sent = self.sent, int(headers['Range'].partition('-')[2])
            if self.sent > os.fstat(self.log.fileno()).st_size or status == 416 and self.sent == before:
                raise Stopped()  # the coordinator has another trace than this

    def check_out(self):
        """Bring the working copy to the job's commit; what earlier jobs fetched stays if the project allows it."""
        build, git = self.build, ['git', '-C', str(self.directory)]
        self.note(f'Checking out {build["sha"][:8]} of {build["ref"]}')
        for fresh in (not build['allow_git_fetch'], True):  # an old copy may be broken: then once more without it
            if fresh:
                shutil.rmtree(self.directory, ignore_errors=True)
            try:
                self.execute(['git', 'init', '--quiet', str(self.directory)])
                self.execute([*git, 'config', 'remote.origin.url', build['repo_url']])
                self.execute([*git, 'fetch', '--quiet', '--prune', '--force', 'origin',
                              '+refs/heads/*:refs/remotes/origin/*', '+refs/tags/*:refs/tags/*'])
                self.execute([*git, 'checkout', '--force', '--detach', build['sha']])
                self.execute([*git, 'clean', '--quiet', '-ffdx'])
                return
            except Failed as error:
                reason = error
        raise Failed(f'the commit cannot be checked out: {reason}')

    def fetch_artifacts(self):
        """Unpack what jobs of earlier stages left."""
        # The coordinator names all those jobs, `dependencies` which of them to take: without it all, if empty none.
        wanted = self.options.get('dependencies')
        for other in self.build['depends_on_builds']:
            if 'artifacts_file' in other and (wanted is None or other['name'] in wanted):
                self.note(f'Downloading the artifacts of {other["name"]} (job {other["id"]})')
                with open(self.scratch / 'download', 'wb+') as archive:
                    self.runner.call('GET', f'/builds/{other["id"]}/artifacts', None, {'BUILD-TOKEN': other['token']},
                                     into=archive, expect=200, patience=60)
                    unpack(archive, self.directory)

    def shell(self, script):
        """Run lines of shell in the working copy."""
        file, echo = self.scratch / 'script', self.scratch / 'echo'
        file.write_text(script + '\n', encoding='utf-8')
        echo.write_text(BASH_ENV)
        command = ['bash', '-eo', 'pipefail'] if shutil.which('bash') else ['sh', '-e']
        self.execute([*command, str(file)], self.directory, {'BASH_ENV': str(echo)})

    def execute(self, command, directory=None, more=()):
        """Run a command, sending what it prints; raise Failed if it fails or takes too long."""
        environment = {**self.environment, **dict(more)}
        process = subprocess.Popen(command, cwd=directory, env=environment, stdin=subprocess.DEVNULL,
                                   stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(self.runner.interval)
                with contextlib.suppress(Unavailable):  # the file keeps what could not be sent
                    self.send()
                if time.monotonic() > self.deadline or self.runner.stopping.is_set():
                    raise Failed('the runner was stopped' if self.runner.stopping.is_set() else 'this takes too long')
        finally:  # all that the command started ends with it: politely, or after five seconds for certain
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(5)
        if process.returncode:
            raise Failed(f'exit status {process.returncode}')

    def upload_artifacts(self, paths=(), exclude=(), untracked=False, name='artifacts', expire_in='', **others):
        """Send the files that the job wants kept as one zip archive, in the form field `file`."""
        paths = [self.expand(path) for path in paths]
        if untracked:
            listed = subprocess.check_output(['git', '-C', self.directory, 'ls-files', '-oz'], env=self.environment)
            paths += map(glob.escape, os.fsdecode(listed).split('\0')[:-1])
        files = artifact_files(self.directory, paths, map(self.expand, exclude))
        if not files:
            return self.note('WARNING: there are no files for the artifacts', YELLOW)
        archive, boundary = self.scratch / 'artifacts', os.urandom(16).hex()
        with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED, strict_timestamps=False) as bundle:
            for path in files:
                bundle.write(path, path.relative_to(self.directory))
        self.note(f'Uploading artifacts: {len(files)} file(s), {archive.stat().st_size} bytes')
        head = (f'--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Disposition: form-data; '
                f'name="file"; filename="{re.sub(r"[^ -!#-.0-~]", "_", self.expand(name))}.zip"\r\n\r\n').encode()
        tail = f'\r\n--{boundary}--\r\n'.encode()

        def form():
            with open(archive, 'rb') as file:
                yield from itertools.chain([head], iter(lambda: file.read(MIB), b''), [tail])

        # This must come before the final state: from then on the job's token changes nothing.
        self.runner.call(
            'POST', f'{self.url}/artifacts?{urllib.parse.urlencode({"expire_in": expire_in})}', form, {
                'BUILD-TOKEN': self.build['token'], 'Content-Type': f'multipart/form-data; boundary={boundary}',
                'Content-Length': str(len(head) + archive.stat().st_size + len(tail))}, expect=201, patience=60)


def artifact_files(root, paths, exclude=()):
    """Return the files within `root` that patterns name; those of `paths` reach into directories."""
    def find(patterns):
        relative = [os.path.relpath(os.path.join(root, pattern), root) for pattern in patterns]
        return {path for pattern in relative if not pattern.startswith('..')
                for path in root.glob(re.sub(r'(^\.|\*\*)$', '**/*', pattern))}

    found = find(paths)
    found |= {path for directory in found if directory.is_dir() for path in directory.rglob('*')}
    return sorted(path for path in found - find(exclude) if path.is_file() and root in path.resolve().parents
                  and path.relative_to(root).parts[0] != '.git')  # which holds the job's token


def unpack(archive, root):
    """Unpack a zip archive, no entry of which may lead out of `root`."""
    with zipfile.ZipFile(archive) as bundle:
        for entry in bundle.infolist():
            path, mode = root / entry.filename, entry.external_attr >> 16
            if root not in (path.parent / '_').resolve().parents:
                raise Failed(f'{entry.filename!r} in the artifacts leads out of the working copy')
            if path.is_symlink():
                path.unlink()
            if stat.S_ISLNK(mode):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(bundle.read(entry).decode())
            else:
                bundle.extract(entry, root)
                if path.is_file() and mode:
                    path.chmod(mode & 0o777)


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description='A CI runner that runs scripts in a plain shell of this machine.')
    parser.add_argument('url', help='the coordinator, for example http://127.0.0.1:8080')
    tokens = parser.add_mutually_exclusive_group(required=True)
    tokens.add_argument('--registration-token', help='register with this token, and unregister at the end')
    tokens.add_argument('--token', help='the token of a runner that is registered already')
    parser.add_argument('--tag-list', default='', metavar='A,B', help='the tags of the jobs it takes')
    parser.add_argument('--once', action='store_true', help='ask once, run the job if there is one, and exit')
    parser.add_argument('--builds-dir', default='builds', help='directory of the working copies (default: %(default)s)')
    parser.add_argument('--name', help="shown beside its jobs (default: this machine's)")
    parser.add_argument('--interval', type=float, default=3, help='seconds between requests (default: %(default)s)')
    options = parser.parse_args()
    runner = Runner(options.url, token=options.token, registration_token=options.registration_token, name=options.name,
                    tag_list=re.findall(r'[^,\s]+', options.tag_list), interval=options.interval,
                    builds_dir=options.builds_dir, say=lambda text: print(text, flush=True))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: runner.stopping.set())
    try:
        if runner.registration_token:
            runner.register()
            runner.say(f'{runner.name} is registered and waits for jobs; Ctrl-C ends it')
        if not options.once:
            runner.run_forever()
        elif not runner.run_once():
            runner.say('there is no job for it')
        if runner.registration_token:
            runner.unregister()
    except (Failed, Unavailable) as error:
        sys.exit(f'shell_runner: {error}')


if __name__ == '__main__':
    main()
