#!/usr/bin/env python3
"""A complete CI runner of standard library alone: the runner protocol of 2016, from top to bottom.

    python shell_runner.py http://127.0.0.1:8080 --registration-token TOKEN

A runner asks a coordinator for work. A job is a commit to check out and commands to run there; what they
print goes to the coordinator while they run, and so do the files they make, for the jobs of later stages.
Jobs run as the user who started this, on this machine, with all that this user may do: serve only projects
that you trust. It needs git and a POSIX system.
"""

import argparse
import contextlib
import getpass
import hashlib
import http.client
import json
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

# This name is how coordinators of 2016 knew a runner that understands 204, "nothing to do"; others got a 404.
AGENT = f'gitlab-ci-multi-runner 1.11.5 (shell_runner; python; {sys.platform}/{platform.machine()})'
INFO = {'name': 'shell_runner', 'version': '1.11.5', 'platform': sys.platform, 'architecture': platform.machine(),
        'executor': 'shell', 'features': {'variables': True, 'artifacts': True}}
# What a script inherits from the runner's own environment, where its tokens may be.
INHERITED = {'PATH', 'HOME', 'USER', 'LOGNAME', 'SHELL', 'LANG', 'TZ', 'TMPDIR', 'SSH_AUTH_SOCK', 'http_proxy',
             'https_proxy', 'no_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'NO_PROXY'}
# The trap shows each command before it runs, as it is written, so that no variable's value is shown. It stands
# on the script's first line, so that bash counts the lines as their author did. A plain sh knows neither.
BASH = r'''set -eo pipefail; exec 9>&1; trap 'printf "\033[32;1m$ %s\033[0m\n" "$BASH_COMMAND" >&9' DEBUG; '''
RED, YELLOW, CYAN, MIB = 31, 33, 36, 1024 * 1024


class Unavailable(Exception):
    """The coordinator is out of reach, or has trouble of its own: try again after `wait` seconds (0: as you like)."""

    def __init__(self, message, wait=0.0):
        super().__init__(message)
        self.wait = wait


class Refused(Exception):
    """The coordinator does not accept this runner's token."""


class Failed(Exception):
    """The job fails, for the reason given."""


class Stopped(Exception):
    """Nobody wants the job's result any more."""


class Runner:
    """A runner: registers, claims one job after the other, and runs it. `say` is told of its progress."""

    def __init__(self, url, *, token=None, registration_token=None, tag_list=(), run_untagged=None, name=None,
                 builds_dir='builds', interval=3.0, heartbeat=30.0, say=print):
        self.base = url.rstrip('/').removesuffix('/ci') + '/ci/api/v1'
        self.token, self.registration_token, self.last_update = token, registration_token, None
        self.tag_list, self.run_untagged = list(tag_list), not tag_list if run_untagged is None else run_untagged
        self.name, self.builds_dir = name or socket.gethostname(), Path(builds_dir).resolve()
        self.interval, self.heartbeat, self.say = interval, heartbeat, say
        self.stopping = threading.Event()

    def call(self, method, path, data=None, headers=(), into=None, timeout=30):
        """Send a request; return status, headers and body, which goes to the file `into` if there is one.

        `data` is bytes, a dict to be sent as JSON, or a function that makes an iterator of bytes.
        """
        headers = {'User-Agent': AGENT, 'Accept': 'application/json', **dict(headers)}
        if isinstance(data, dict):
            data, headers['Content-Type'] = json.dumps(data).encode(), 'application/json'
        request = urllib.request.Request(self.base + path, data() if callable(data) else data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                if into is None:
                    return answer.status, answer.headers, answer.read()
                shutil.copyfileobj(answer, into)
                if into.tell() == int(answer.headers.get('Content-Length', into.tell())):
                    return answer.status, answer.headers, b''
                raise Unavailable('the connection broke in the middle of a download')
        except urllib.error.HTTPError as error:
            with error:
                if error.code < 500 and error.code != 429:
                    return error.code, error.headers, error.read()
                # 5xx and 429 mean "later": the coordinator restarts, its disk is full. That is no job's fault.
                wait = error.headers.get('Retry-After', '')
                raise Unavailable(f'{self.base} answers {error.code}', float(wait) if wait.isdigit() else 0) from None
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f'{self.base} cannot be reached: {getattr(error, "reason", error)}') from None

    def insist(self, action, *arguments, **options):
        """Call an action that may raise Unavailable until it does not, for ten minutes or the runner is stopped.

        After that a coordinator has given up on the job anyway.
        """
        deadline, pause = time.monotonic() + 600, 0.5
        while True:
            try:
                return action(*arguments, **options)
            except Unavailable as error:
                pause = min(2 * pause, 30)
                if time.monotonic() + pause > deadline or self.stopping.is_set():
                    raise
                self.say(f'{error}; trying again')
                self.stopping.wait(max(pause, error.wait))

    def register(self):
        """Trade the registration token, which people copy, for a token of this runner's own."""
        # A job goes to a runner that has all of the job's tags; `run_untagged` says whether it takes jobs without.
        status, _, body = self.insist(self.call, 'POST', '/runners/register', {
            'token': self.registration_token, 'description': self.name, 'tag_list': ','.join(self.tag_list),
            'run_untagged': self.run_untagged, 'info': INFO})
        if status != 201:
            raise Refused(f'the registration is refused: {status} {explain(body)}')
        self.token = json.loads(body)['token']

    def unregister(self):
        """Remove this runner from the coordinator's list."""
        self.call('DELETE', '/runners/delete', {'token': self.token})

    def run_forever(self, stop_event=None):
        """Run jobs until the event is set; a job that is running then fails."""
        self.stopping = stop_event or self.stopping
        while not self.stopping.is_set():
            wait = self.interval
            try:
                if self.run_once():
                    continue
            except Unavailable as error:
                self.say(str(error))
                wait = max(wait, error.wait)
            self.stopping.wait(wait)

    def run_once(self):
        """Ask for a job and run it to its end; return whether there was one."""
        # A claim is never repeated on its own: if only its answer was lost, the coordinator puts the job back into
        # its queue. Bringing the queue's last value along spares it the search when nothing has changed since.
        status, headers, body = self.call('POST', '/builds/register', {
            'token': self.token, 'info': INFO, 'last_update': self.last_update})
        if status == 403:
            raise Refused('the coordinator does not know this runner (any more)')
        self.last_update = headers.get('X-GitLab-Last-Update')
        if status != 201:  # 204: nothing to do; 404: the same, or this runner is paused
            return False
        build, started = json.loads(body), time.monotonic()
        label = f'job {build["id"]} ({build["project_name"]}: {build["name"]})'
        self.say(f'{label} starts')
        self.builds_dir.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix='job-', dir=self.builds_dir) as scratch:
                state = Job(self, build, Path(scratch)).run()
            # The last word, with the runner's own token; from now on the job's token changes nothing. Saying it
            # twice does no harm, and 404 only means that the job was canceled meanwhile.
            self.insist(self.call, 'PUT', f'/builds/{build["id"]}', {'token': self.token, 'info': INFO, 'state': state})
        except Stopped as reason:
            state = f'stopped, {reason}'
            self.call('PUT', f'/builds/{build["id"]}', {'token': self.token, 'info': INFO, 'state': 'failed'})
        self.say(f'{label}: {state} after {time.monotonic() - started:.1f} s')
        return True


class Job:
    """One job. All that it prints is appended to a file, of which `send` sends what the coordinator has not got."""

    def __init__(self, runner, build, scratch):
        self.runner, self.build, self.scratch, self.token = runner, build, scratch, build['token'].encode()
        owner = hashlib.sha256(runner.token.encode()).hexdigest()[:8]  # two runners must not share a working copy
        self.directory = runner.builds_dir / owner / f'project-{build["project_id"]}'
        self.options = build.get('options') or {}
        self.deadline = time.monotonic() + (build.get('timeout') or 3600)
        self.log = open(scratch / 'trace', 'ab+', buffering=0)
        self.sent, self.heard = 0, time.monotonic()

    def run(self):
        """Do all that the job asks for; return 'success' or 'failed'."""
        state = 'success'
        with self.log:
            try:
                self.environment = self.make_environment()
                for step in (self.introduce, self.check_out, self.fetch_artifacts, self.run_script):
                    step()
            except Stopped:
                raise
            except Exception as error:  # whatever it is, the job's author must read of it
                self.note(f'ERROR: {error or type(error).__name__}', RED)
                state = 'failed'
            self.environment['CI_JOB_STATUS'] = state
            with contextlib.suppress(Failed):  # what after_script comes to changes nothing
                if self.options.get('after_script') and self.directory.is_dir():
                    self.note('Running after_script')
                    self.shell('\n'.join(self.options['after_script']), time.monotonic() + 300)
            try:
                self.upload_artifacts(state)
            except (Failed, OSError, ValueError) as error:
                self.note(f'ERROR: {error}', RED)
                state = 'failed'
            self.note('Job succeeded' if state == 'success' else 'ERROR: Job failed', 32 if state == 'success' else RED)
            self.runner.insist(self.send, everything=True)
        return state

    # -- the trace

    def note(self, text, colour=CYAN):
        """Write a line of the runner's own into the trace."""
        self.log.write(f'\033[{colour};1m{text}\033[0m\n'.encode('utf-8', 'backslashreplace'))

    def send(self, everything=False):
        """Send what the trace has grown by, or a sign of life if it has not for long."""
        while True:
            chunk = self.unsent(everything)
            if not chunk and time.monotonic() - self.heard < self.runner.heartbeat:
                return
            # The offset makes it safe to repeat a request whose answer was lost: the coordinator appends only what
            # starts where its copy ends, and else says 416 and, in `Range: 0-N`, that its copy has N bytes.
            status, headers, body = self.runner.call('PATCH', f'/builds/{self.build["id"]}/trace.txt', chunk, {
                'BUILD-TOKEN': self.token.decode(), 'Content-Type': 'text/plain',
                'Content-Range': f'{self.sent}-{self.sent + len(chunk)}'})
            self.heard = time.monotonic()
            if status == 416:
                stored = int(headers['Range'].partition('-')[2])
                if stored == self.sent or stored > os.fstat(self.log.fileno()).st_size:
                    raise Stopped('the coordinator has another trace than this')
                self.sent = stored
                continue
            # Nobody pushes anything to a runner: this header is how it hears that its job was canceled, or failed
            # by the coordinator. A refusal means that the job is gone altogether.
            if status != 202 or headers.get('Build-Status') in ('canceled', 'failed'):
                raise Stopped(f'its status is {headers.get("Build-Status")}' if status == 202 else f'{explain(body)}')
            self.sent += len(chunk)

    def unsent(self, everything):
        """Return the trace's next piece with the job's token blotted out; half a token at its end has to wait."""
        lead = min(self.sent, len(self.token))
        data = os.pread(self.log.fileno(), lead + MIB, self.sent - lead)
        if not everything or len(data) == lead + MIB:
            half = next((n for n in range(len(self.token) - 1, 0, -1) if data.endswith(self.token[:n])), 0)
            data = data[:len(data) - half]
        return data.replace(self.token, b'*' * len(self.token))[lead:]

    # -- the steps

    def make_environment(self):
        """Return the variables of the job's processes: those the runner knows, then those the coordinator sends."""
        build = self.build
        given = {name: value for name, value in os.environ.items() if name in INHERITED or name.startswith('LC_')}
        given.update(
            CI='true', GITLAB_CI='true', CI_SERVER='yes', CI_PROJECT_ID=str(build['project_id']),
            CI_PROJECT_DIR=str(self.directory), CI_BUILDS_DIR=str(self.runner.builds_dir), CI_BUILD_ID=str(build['id']),
            CI_BUILD_TOKEN=build['token'], CI_BUILD_REF=build['sha'], CI_BUILD_REF_NAME=build['ref'],
            CI_BUILD_BEFORE_SHA=build['before_sha'], CI_BUILD_REPO=build['repo_url'])
        for variable in build.get('variables') or []:
            given[variable['key']] = variable['value']
            if variable.get('file'):
                path = self.scratch / Path(variable['key']).name
                path.write_text(variable['value'], encoding='utf-8')
                given[variable['key']] = str(path)
        self.variables = given
        return {name: self.expand(value) for name, value in given.items()} | {
            'GIT_TERMINAL_PROMPT': '0', 'GIT_CEILING_DIRECTORIES': str(self.runner.builds_dir)}

    def expand(self, text):
        """Replace `$NAME` and `${NAME}` by that variable's value; what is none stays."""
        return re.sub(r'\$(?:(\w+)|\{(\w+)\})', lambda match: self.variables.get(match[1] or match[2], match[0]), text)

    def introduce(self):
        """Say where the job runs, and loudly what is not done for it."""
        self.note(f'Running on {self.runner.name} with shell_runner, as {getpass.getuser()}')
        for what in ('image', 'services', 'cache'):
            if self.options.get(what):
                value = json.dumps(self.options[what]).strip('"')
                self.note(f'WARNING: {what} ignored ({value}): the script runs in a plain shell on this machine', YELLOW)

    def check_out(self):
        """Bring the working copy to the job's commit, with what an earlier job has fetched if that is allowed."""
        build, git = self.build, ['git', '-C', str(self.directory)]
        self.note(f'Checking out {build["sha"][:8]} ({build["ref"]})')
        steps = (['git', 'init', '--quiet', str(self.directory)],
                 [*git, 'config', 'remote.origin.url', build['repo_url']],
                 [*git, 'fetch', '--quiet', '--prune', '--force', 'origin',
                  '+refs/heads/*:refs/remotes/origin/*', '+refs/tags/*:refs/tags/*'],
                 [*git, 'checkout', '--force', '--detach', build['sha']],
                 [*git, 'clean', '--quiet', '-ffdx'])
        for fresh in (not build.get('allow_git_fetch'), True):
            if fresh:
                shutil.rmtree(self.directory, ignore_errors=True)
            with contextlib.suppress(Failed):
                for step in steps:
                    self.execute(step, '/', self.deadline)
                return
        raise Failed('the commit cannot be checked out')

    def fetch_artifacts(self):
        """Unpack the artifacts of earlier jobs into the working copy."""
        # The list names all jobs of earlier stages: choosing from it is the runner's part, and so is knowing that
        # no `dependencies` means all of them, an empty list none. Each entry carries the token that opens it.
        wanted = self.options.get('dependencies')
        for other in self.build.get('depends_on_builds') or []:
            if not (other.get('artifacts_file') or {}).get('filename') or wanted is not None and other['name'] not in wanted:
                continue
            self.note(f'Downloading artifacts of {other["name"]} (job {other["id"]})')
            with tempfile.TemporaryFile(dir=self.scratch) as archive:
                status, _, body = self.runner.insist(self.download, other, archive)
                if status != 200:
                    raise Failed(f'the artifacts of {other["name"]} cannot be had: {status} {explain(body)}')
                unpack(archive, self.directory)

    def download(self, other, archive):
        """Fetch another job's artifacts into an open file."""
        archive.seek(0)
        archive.truncate()
        return self.runner.call('GET', f'/builds/{other["id"]}/artifacts', headers={'BUILD-TOKEN': other['token']},
                                into=archive, timeout=600)

    def run_script(self):
        """Run what the job is about: before_script and script, which arrive as one text."""
        self.shell(self.build['commands'], self.deadline)

    def shell(self, script, deadline):
        """Run lines of shell in the working copy."""
        shell = shutil.which('bash') or 'sh'
        file = self.scratch / 'script.sh'
        file.write_text((BASH if shell != 'sh' else 'set -e; ') + script + '\n', encoding='utf-8')
        self.execute([shell, str(file)], self.directory, deadline)

    def execute(self, command, directory, deadline):
        """Run a command to its end while its output is sent; raise Failed if it fails or takes too long."""
        process = subprocess.Popen(command, cwd=directory, env=self.environment, stdin=subprocess.DEVNULL,
                                   stdout=self.log, stderr=self.log, start_new_session=True)
        try:
            while process.poll() is None:
                if self.runner.stopping.is_set():
                    raise Failed('the runner was stopped')
                if time.monotonic() > deadline:
                    raise Failed('the time for this is up')
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(self.runner.interval)
                with contextlib.suppress(Unavailable):  # the next round sends it
                    self.send()
        finally:
            end(process)
        if process.returncode:
            raise Failed(f'exit status {process.returncode}')

    def upload_artifacts(self, state):
        """Send the files that the job is to keep, as one zip archive."""
        artifacts = self.options.get('artifacts') or {}
        when = artifacts.get('when') or 'on_success'
        if not artifacts or not self.directory.is_dir() or when not in ('always', f'on_{state}'.replace('failed', 'failure')):
            return
        untracked = []
        if artifacts.get('untracked'):
            listed = subprocess.run(['git', 'ls-files', '--others', '-z'], cwd=self.directory, env=self.environment,
                                    capture_output=True, check=True).stdout
            untracked = [self.directory / os.fsdecode(name) for name in listed.split(b'\0') if name]
        files = artifact_files(self.directory, [self.expand(path) for path in artifacts.get('paths') or []],
                               [self.expand(path) for path in artifacts.get('exclude') or []], untracked)
        if not files:
            return self.note('WARNING: no file matches the artifacts, so there are none', YELLOW)
        archive = self.scratch / 'artifacts.zip'
        pack(files, self.directory, archive)
        self.note(f'Uploading artifacts: {len(files)} files, {archive.stat().st_size} bytes')
        self.post(archive, self.expand(artifacts.get('name') or 'artifacts'), artifacts.get('expire_in'))

    def post(self, archive, name, expire_in):
        """Upload an archive in one form field called `file`; it must come before the job's final state."""
        boundary, name = secrets.token_hex(16), re.sub(r'["\\\r\n/]', '_', name)
        head = (f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}.zip"\r\n'
                'Content-Type: application/octet-stream\r\n\r\n').encode()
        tail = f'\r\n--{boundary}--\r\n'.encode()

        def form():
            yield head
            with open(archive, 'rb') as file:
                yield from iter(lambda: file.read(MIB), b'')
            yield tail

        query = '?' + urllib.parse.urlencode({'expire_in': expire_in}) if expire_in else ''
        status, _, body = self.runner.insist(
            self.runner.call, 'POST', f'/builds/{self.build["id"]}/artifacts{query}', form, {
                'BUILD-TOKEN': self.build['token'], 'Content-Type': f'multipart/form-data; boundary={boundary}',
                'Content-Length': str(len(head) + archive.stat().st_size + len(tail))}, timeout=600)
        if status != 201:
            raise Failed(f'the artifacts are refused: {status} {explain(body)}')


def explain(body):
    """Return what an answer's body says, for people."""
    with contextlib.suppress(ValueError):
        answer = json.loads(body)
        return answer.get('message') or answer.get('error') if isinstance(answer, dict) else answer
    return body.decode('utf-8', 'replace')[:200]


def end(process):
    """End a process and all that it has started: politely first, after five seconds for certain."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


def artifact_files(root, paths, exclude=(), untracked=()):
    """Return the files and links below `root` that patterns name: `paths` reach into directories, `exclude` does not."""
    def matches(pattern):
        pattern = os.path.relpath(os.path.join(root, pattern), root)
        if pattern == '.' or pattern.startswith('..'):
            return [root] if pattern == '.' else []
        return root.glob(pattern + '/*' if pattern.endswith('**') else pattern)

    found = set(untracked)
    for path in (path for pattern in paths for path in matches(pattern)):
        found.update(path.rglob('*') if path.is_dir() and not path.is_symlink() else [path])
    found.difference_update(path for pattern in exclude for path in matches(pattern))
    return sorted(path for path in found if (path.is_file() or path.is_symlink())
                  and root in path.parent.resolve().joinpath(path.name).parents
                  and path.relative_to(root).parts[0] != '.git')  # its config holds the job's token


def pack(files, root, archive):
    """Write files into a zip archive under their names below `root`; a link stays a link."""
    with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED, strict_timestamps=False) as bundle:
        for path in files:
            name = str(path.relative_to(root))
            if path.is_symlink():
                entry = zipfile.ZipInfo(name)
                entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
                bundle.writestr(entry, os.readlink(path))
            else:
                bundle.write(path, name)


def unpack(archive, root):
    """Unpack a zip archive whose entries, links included, must not lead out of `root`."""
    with zipfile.ZipFile(archive) as bundle:
        for entry in bundle.infolist():
            path, mode = root / entry.filename, entry.external_attr >> 16
            link = bundle.read(entry).decode() if stat.S_ISLNK(mode) else None
            target = path.parent.resolve() / (path.name if link is None else link)
            if root not in Path(os.path.normpath(target)).parents or root not in path.resolve().parents:
                raise Failed(f'{entry.filename!r} in the artifacts leads out of the working copy')
            if link is None:
                bundle.extract(entry, root)
                if mode and not entry.is_dir():
                    path.chmod(mode & 0o777)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                path.symlink_to(link)


def main():
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description='A CI runner that runs scripts in a plain shell on this machine.')
    parser.add_argument('url', help='the coordinator, for example http://127.0.0.1:8080')
    token = parser.add_mutually_exclusive_group(required=True)
    token.add_argument('--registration-token', help='register with this, and unregister at the end')
    token.add_argument('--token', help="the runner's own token, if it is registered already")
    parser.add_argument('--tag-list', default='', metavar='A,B', help='take jobs with these tags')
    parser.add_argument('--once', action='store_true', help='ask once for a job, run it and exit')
    parser.add_argument('--builds-dir', default='builds', help='where the working copies are (default: ./%(default)s)')
    parser.add_argument('--name', help="shown beside the jobs it runs (default: this machine's name)")
    parser.add_argument('--interval', type=float, default=3, help='seconds between two requests (default: %(default)s)')
    options = parser.parse_args()
    runner = Runner(options.url, token=options.token, registration_token=options.registration_token,
                    tag_list=[tag.strip() for tag in options.tag_list.split(',') if tag.strip()], name=options.name,
                    builds_dir=options.builds_dir, interval=options.interval,
                    say=lambda text: print(text, flush=True))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: runner.stopping.set())
    try:
        if not runner.token:
            runner.register()
            runner.say(f'registered as {runner.name}; waiting for jobs, Ctrl-C ends it')
        if not options.once:
            runner.run_forever()
        elif not runner.run_once():
            runner.say('there is no job to run')
        if runner.registration_token:
            runner.unregister()
    except (Refused, Unavailable) as error:
        sys.exit(f'shell_runner: {error}')


if __name__ == '__main__':
    main()
