#!/usr/bin/env python3
"""A complete CI runner in the standard library: read it from top to bottom to learn the protocol of 2016.

    python shell_runner.py http://127.0.0.1:8080 --registration-token TOKEN

Jobs run in a plain shell of this machine, as you: serve only projects that you trust. Needs git and bash.
"""

import argparse
import contextlib
import http.client
import io
import json
import mmap
import os
import shutil
import signal
import string
import subprocess
import tempfile
import threading
import time
import urllib.parse
import zipfile
from pathlib import Path

# Coordinators of 2016 know by this name that a runner understands 204, "nothing to do"; others get a 404.
AGENT = 'gitlab-ci-multi-runner 1.11.5 (shell_runner)'
# All that jobs inherit of the runner's own environment, which may hold tokens.
INHERITED = {'PATH', 'HOME', 'USER', 'LOGNAME', 'SHELL', 'LANG', 'LC_ALL', 'TZ', 'TMPDIR', 'SSH_AUTH_SOCK'}
BASH = 'bash', '-evo', 'pipefail', '-c'  # shows a script's lines, and ends with the first that fails
MIB, Failed = 2**20, RuntimeError


class Runner:
    """Takes one job after the other and runs it; `say` is told of the progress."""

    def __init__(self, url, *, token=None, registration_token=None, tag_list=(), run_untagged=True,
                 name='shell_runner', builds_dir=None, interval=3.0, heartbeat=30.0, say=print):
        self.url = urllib.parse.urlsplit(url.rstrip('/').removesuffix('/ci') + '/ci/api/v1')
        self.token, self.registration_token, self.name = token, registration_token, name
        self.tag_list, self.run_untagged, self.builds_dir = tag_list, run_untagged, builds_dir
        self.interval, self.heartbeat, self.say = interval, heartbeat, say
        self.stopping, self.deadline = threading.Event(), float('inf')

    def register(self):
        """Trade the registration token, which people copy, for a token of this runner's own."""
        # 201. The runner will get jobs all of whose tags it has, and jobs without tags if it says so.
        answer = self.call('POST', '/runners/register', {
            'token': self.registration_token, 'description': self.name,
            'tag_list': ','.join(self.tag_list), 'run_untagged': self.run_untagged})
        self.token = json.loads(answer.content)['token']

    def run_forever(self, stop_event=None):
        """Run jobs until the event is set; a job that is still running then fails."""
        self.stopping = stop_event or self.stopping
        while not self.stopping.is_set():
            if not self.run_once():
                self.stopping.wait(self.interval)

    def run_once(self):
        """Claim a job and run it to its end; return whether there was one."""
        # 201 brings a job. 204 says that there is none; so does 404, or that the runner is paused.
        answer = self.call('POST', '/builds/register', {'token': self.token}, accept=[404])
        if answer.status != 201:
            return False
        job = json.loads(answer.content)
        self.say(f'job {job["id"]} ({job["project_name"]}: {job["name"]}) starts')
        os.makedirs(self.builds_dir or '.', exist_ok=True)
        with (tempfile.TemporaryDirectory(dir=self.builds_dir, ignore_cleanup_errors=True) as directory,
              tempfile.TemporaryFile(buffering=0) as self.trace):
            state = self.run(job, Path(directory).resolve())
        # 200, however often it is sent; 404 after a cancel. It takes the runner's token, not the job's.
        self.call('PUT', f'/builds/{job["id"]}', {'token': self.token, 'state': state}, accept=[404])
        self.say(f'job {job["id"]}: {state}')
        return True

    def run(self, job, directory):
        """Take the steps of a job, the first in an empty directory; return `success` or `failed`."""
        self.job, self.directory, self.sent, options = job, directory, 0, job['options'] or {}
        now = time.monotonic()
        self.deadline, self.due = now + job['timeout'], now + self.heartbeat
        variables = {name: os.environ[name] for name in INHERITED & os.environ.keys()}
        variables |= {'CI': 'true', 'CI_PROJECT_DIR': str(directory)}
        variables |= {item['key']: item['value'] for item in job['variables']}  # later ones win
        self.expand = lambda text: string.Template(text).safe_substitute(variables)  # $NAME and ${NAME}
        self.environment = {name: self.expand(value) for name, value in variables.items()}
        artifacts, wanted = options.get('artifacts', {'when': 'never'}), options.get('dependencies')
        self.steps = [
            *[('on_success', self.note, f'WARNING: {name} {json.dumps(options[name])} IGNORED')
              for name in ('image', 'services', 'cache') if name in options],
            ('on_success', self.execute, 'git', 'clone', '--quiet', '--no-checkout', job['repo_url'], '.'),
            ('on_success', self.execute, 'git', 'checkout', '--detach', job['sha']),
            *[('on_success', self.download, other) for other in job['depends_on_builds']
              if other.get('artifacts_file') and (wanted is None or other['name'] in wanted)],
            ('on_success', self.execute, *BASH, job['commands']),
            ('finally', self.execute, *BASH, '\n'.join(options.get('after_script', ()))),
            (artifacts.get('when', 'on_success'), self.upload, artifacts),
            ('on_success', self.note, 'Job succeeded'),
            ('finally', self.send)]
        so_far = 'on_success'
        for when, step, *arguments in self.steps:
            try:
                if when in (so_far, 'always', 'finally'):
                    step(*arguments)
            except Exception as error:
                self.note(f'ERROR: {error}')
                self.deadline = time.monotonic() + 300  # for what is to be done all the same
                so_far = so_far if when == 'finally' else 'on_failure'
        self.deadline = float('inf')
        return 'success' if so_far == 'on_success' else 'failed'

    def note(self, text):
        """Write a line of the runner's own into the trace."""
        self.trace.write(f'\033[1m{text}\033[0m\n'.encode('utf-8', 'replace'))

    def execute(self, *command):
        """Run a command in the working copy, sending what it prints; raise Failed if it fails."""
        # It prints into a pipe: a script that opens /dev/stderr anew would truncate a plain file.
        with subprocess.Popen(
                command, cwd=self.directory, env=self.environment, start_new_session=True, bufsize=0,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            pump = threading.Thread(target=shutil.copyfileobj, args=[process.stdout, self.trace], daemon=True)
            pump.start()
            try:
                while process.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(self.interval)
                    self.send()
                    if self.stopping.is_set() or time.monotonic() > self.deadline:
                        raise Failed('the runner stops' if self.stopping.is_set() else 'this takes too long')
            finally:  # all that the command has started ends with it
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                pump.join(5)
        if process.returncode:
            raise Failed(f'exit status {process.returncode}')

    def send(self):
        """Send what the trace has grown by, or after a long silence nothing, as a sign of life."""
        while (chunk := os.pread(self.trace.fileno(), MIB, self.sent)) or time.monotonic() > self.due:
            # 202 takes the chunk; 416 does not, as the coordinator's copy of the trace ends somewhere else.
            # Both say where, `Range: 0-LENGTH`, and the next chunk starts there: no byte is lost or doubled.
            answer = self.call('PATCH', f'/builds/{self.job["id"]}/trace.txt', chunk, {
                'BUILD-TOKEN': self.job['token'], 'Content-Type': 'text/plain',
                'Content-Range': f'{self.sent}-{self.sent + len(chunk)}'}, accept=[403, 404, 416])
            # Nobody calls a runner: so it hears that its job was canceled, or is not its own any more.
            if answer.status in (403, 404) or answer.headers['Build-Status'] in ('canceled', 'failed'):
                self.steps.clear()
                raise Failed('the job was canceled')
            self.sent, self.due = int(answer.headers['Range'][2:]), time.monotonic() + self.heartbeat

    def download(self, other):
        """Unpack what a job of an earlier stage has left, nothing of it outside the working copy."""
        # 200 and a zip archive. The token comes with each job in `depends_on_builds`.
        answer = self.call('GET', f'/builds/{other["id"]}/artifacts', None, {'BUILD-TOKEN': other['token']})
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            for entry in archive.infolist():
                path = (self.directory / entry.filename).resolve()
                if not path.is_relative_to(self.directory):
                    raise Failed(f'{entry.filename!r} in the artifacts leads out of the working copy')
                archive.extract(entry, self.directory)
                path.chmod(entry.external_attr >> 16 & 0o777 or path.stat().st_mode)

    def upload(self, artifacts):
        """Send the files that the job wants kept, as one zip archive in the form field `file`."""
        files = self.find(artifacts.get('paths', ())) - self.find(artifacts.get('exclude', ()))
        boundary, name = os.urandom(16).hex(), self.expand(artifacts.get('name', 'artifacts'))
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}.zip"\r\n\r\n'
        query = urllib.parse.urlencode({'expire_in': artifacts.get('expire_in', '')})
        self.note(f'Uploading {len(files)} file(s) as artifacts')
        with tempfile.TemporaryFile() as file:
            with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
                for path in sorted(files):
                    archive.write(path, path.relative_to(self.directory))
            content = memoryview(mmap.mmap(file.fileno(), 0))  # it may be larger than the memory
            parts = [content[start:start + MIB] for start in range(0, len(content), MIB)]
            # 201. This must come before the final state: from then on the job's token changes nothing.
            self.call('POST', f'/builds/{self.job["id"]}/artifacts?{query}',
                      [head.encode(), *parts, f'\r\n--{boundary}--\r\n'.encode()], {
                          'BUILD-TOKEN': self.job['token'],
                          'Content-Type': f'multipart/form-data; boundary={boundary}'})

    def find(self, patterns):
        """Return the files in the working copy that patterns name, by themselves or by their directory."""
        root, top = self.directory, self.directory.parent
        names = [os.path.relpath(root / self.expand(pattern), top) for pattern in patterns]
        return {path for name in names if name.startswith(root.name)
                for glob in (name, f'{name}/**/*') for path in top.glob(glob)
                if path.is_file() and root in path.resolve().parents and root / '.git' not in path.parents}

    def call(self, method, path, body=None, headers=(), accept=()):
        """Send a request until it is answered; raise Failed unless by 2xx or a status to `accept`."""
        headers = {'User-Agent': AGENT, **dict(headers)}
        if isinstance(body, dict):
            body, headers['Content-Type'] = json.dumps(body).encode(), 'application/json'
        connect = http.client.HTTPSConnection if self.url.scheme == 'https' else http.client.HTTPConnection
        while True:
            try:
                with contextlib.closing(connect(self.url.netloc, timeout=120)) as connection:
                    connection.request(method, self.url.path + path, body, headers)
                    answer = connection.getresponse()
                    answer.content = answer.read()
                if answer.status < 300 or answer.status in accept:
                    return answer
                if answer.status < 500:
                    reason = answer.content.decode(errors='replace')
                    raise Failed(f'{method} {path} is answered {answer.status} {reason}')
                trouble, wait = answer.reason, answer.headers.get('Retry-After', '')
            except (OSError, http.client.HTTPException) as error:
                trouble, wait = error, ''
            self.say(f'{self.url.geturl()}: {trouble}')  # which is not the job's: the request is sent again
            self.stopping.wait(int(wait) if wait.isdigit() else self.interval)
            if self.stopping.is_set() or time.monotonic() > self.deadline:
                raise Failed(f'{self.url.geturl()}: {trouble}')


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description='Run jobs in a plain shell of this machine.')
    parser.add_argument('url', help='the coordinator, for example http://127.0.0.1:8080')
    parser.add_argument('--registration-token', required=True, help='register with it; unregister at the end')
    parser.add_argument('--tag-list', nargs='*', default=(), metavar='TAG', help='the tags of its jobs')
    runner = Runner(**vars(parser.parse_args()))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: runner.stopping.set())
    try:
        runner.register()
        runner.run_forever()
        runner.call('DELETE', '/runners/delete', {'token': runner.token})  # 200
    except Failed as error:
        parser.exit(1, f'shell_runner: {error}\n')


if __name__ == '__main__':
    main()
