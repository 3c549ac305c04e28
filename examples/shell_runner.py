#!/usr/bin/env python3
"""A complete CI runner in the standard library: read it from top to bottom to learn the protocol of 2016.

    python shell_runner.py http://127.0.0.1:8080 REGISTRATION-TOKEN [TAG ...]

Jobs run in a plain shell of this machine, as you: serve only projects that you trust. Needs git and bash.
"""

import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import zipfile
from pathlib import Path

# Coordinators of 2016 know by this name that a runner understands 204, "nothing to do"; others get a 404.
AGENT = 'gitlab-ci-multi-runner 1.11.5 (shell_runner)'
BASH = 'bash', '-evo', 'pipefail', '-c'  # shows a script's lines, and ends with the first that fails
# All that jobs inherit of the runner's own environment, which may hold tokens.
INHERITED = {'PATH', 'HOME', 'USER', 'LOGNAME', 'SHELL', 'LANG', 'LC_ALL', 'TZ', 'TMPDIR', 'SSH_AUTH_SOCK'}
Failed = RuntimeError


class Canceled(BaseException):
    """The job is not this runner's any more: all that it does for it ends."""


class Runner:
    """Takes one job after the other and runs it; `say` is told of the progress."""

    def __init__(self, url, token=None, *, builds_dir=None, interval=3.0, heartbeat=30.0, say=print):
        self.url = urllib.parse.urlsplit(url.rstrip('/').removesuffix('/ci') + '/ci/api/v1')
        self.token, self.builds_dir, self.interval, self.heartbeat = token, builds_dir, interval, heartbeat
        self.say, self.stopping = say, threading.Event()

    def register(self, registration_token, **details):
        """Trade the token that people copy for one of this runner's own; the details describe the runner."""
        # 201. It will get jobs all of whose tags are in `tag_list`; and those without, if it is `run_untagged`.
        answer = self.call('POST', '/runners/register', {'token': registration_token, **details})
        self.token = json.loads(answer.content)['token']

    def run_forever(self):
        """Run jobs until `stopping` is set; a job that is still running then fails."""
        while not self.stopping.is_set():
            if not self.run_once():
                self.stopping.wait(self.interval)

    def run_once(self):
        """Claim a job and run it to its end; return whether there was one."""
        # 201 brings a job. 204 says that there is none; so does 404, or that the runner is paused.
        answer = self.call('POST', '/builds/register', {'token': self.token}, accept=[404])
        if answer.status != 201:
            return False
        job, state = json.loads(answer.content), 'canceled'
        self.say(f'job {job["id"]} ({job["project_name"]}: {job["name"]}) starts')
        with (contextlib.suppress(Canceled), tempfile.TemporaryFile(buffering=0) as self.trace,
              tempfile.TemporaryDirectory(dir=self.builds_dir, ignore_cleanup_errors=True) as directory):
            state = self.run(job, Path(directory).resolve())
            # 200, however often it is sent; 404 after a cancel. It takes the runner's token, not the job's.
            self.call('PUT', f'/builds/{job["id"]}', {'token': self.token, 'state': state}, accept=[404])
        self.say(f'job {job["id"]}: {state}')
        return True

    def run(self, job, directory):
        """Take a job through all its steps in an empty directory; return `success` or `failed`."""
        self.job, self.directory, self.sent, self.due = job, directory, 0, time.monotonic() + self.heartbeat
        self.deadline, options = time.monotonic() + job['timeout'], job['options'] or {}
        variables = {name: os.environ[name] for name in INHERITED & os.environ.keys()}
        variables |= {'CI': 'true', 'CI_PROJECT_DIR': str(directory)}
        variables |= {item['key']: item['value'] for item in job['variables']}  # later ones win
        self.expand = lambda text: string.Template(text).safe_substitute(variables)  # $NAME and ${NAME}
        self.environment = {name: self.expand(value) for name, value in variables.items()}
        passed = self.attempt(self.build, options)
        self.deadline = time.monotonic() + 300  # for what is to be done all the same
        self.attempt(self.execute, *BASH, '\n'.join(options.get('after_script', ())))
        artifacts = options.get('artifacts', {'when': 'never'})
        if artifacts.get('when', 'on_success') in ('always', 'on_success' if passed else 'on_failure'):
            passed = self.attempt(self.upload, artifacts) and passed
        self.note('Job succeeded' if passed else 'Job failed')
        self.attempt(self.send)
        return 'success' if passed else 'failed'

    def attempt(self, step, *arguments):
        """Take a step of the job and return whether it succeeded; the trace says why not."""
        try:
            step(*arguments)
            return True
        except Exception as error:
            self.note(f'ERROR: {error}')
            return False

    def note(self, text):
        """Write a line of the runner's own into the trace."""
        self.trace.write(f'\033[1m{text}\033[0m\n'.encode(errors='replace'))

    def build(self, options):
        """Get the commit and what jobs of earlier stages have made of it, and run the script."""
        for keyword in sorted(unknown_keywords(options)):
            self.note(f'WARNING: this runner does not know {keyword}, which is ignored')
        if 'image' in options or 'services' in options:
            self.note('WARNING: this runner has no containers, image and services are ignored')
        self.execute('git', 'clone', '--quiet', '--no-checkout', self.job['repo_url'], '.')
        self.execute('git', 'checkout', '--detach', self.job['sha'])
        for other in self.job['depends_on_builds']:
            if other.get('artifacts_file') and other['name'] in options.get('dependencies', [other['name']]):
                self.download(other)
        self.execute(*BASH, self.job['commands'])

    def execute(self, *command):
        """Run a command in the working copy, sending what it prints; raise Failed if it fails."""
        # It prints into a pipe: a script that opens /dev/stderr anew would truncate a plain file.
        with subprocess.Popen(command, cwd=self.directory, env=self.environment, start_new_session=True, bufsize=0,
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
        while (chunk := os.pread(self.trace.fileno(), 2**20, self.sent)) or time.monotonic() > self.due:
            # 202 takes the chunk; 416 does not, as the coordinator's copy of the trace ends somewhere else.
            # Both say where, `Range: 0-LENGTH`, and the next chunk starts there: no byte is lost or doubled.
            answer = self.call('PATCH', f'/builds/{self.job["id"]}/trace.txt', chunk, {
                'BUILD-TOKEN': self.job['token'], 'Content-Type': 'text/plain',
                'Content-Range': f'{self.sent}-{self.sent + len(chunk)}'}, accept=[403, 404, 416])
            # Nobody calls a runner: so it hears that its job was canceled, or is not its own any more.
            if answer.status in (403, 404) or answer.headers['Build-Status'] in ('canceled', 'failed'):
                raise Canceled
            self.sent, self.due = int(answer.headers['Range'][2:]), time.monotonic() + self.heartbeat

    def download(self, other):
        """Unpack what a job of an earlier stage has left."""
        # 200 and a zip archive. The token comes with each job in `depends_on_builds`.
        answer = self.call('GET', f'/builds/{other["id"]}/artifacts', None, {'BUILD-TOKEN': other['token']})
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            for entry in archive.infolist():
                path = archive.extract(entry, self.directory)  # nothing gets out of there by its name
                os.chmod(path, entry.external_attr >> 16 & 0o777 or 0o755)

    def upload(self, artifacts):
        """Send the files that the job wants kept, as one zip archive in the form field `file`."""
        files = self.find(artifacts.get('paths', ())) - self.find(artifacts.get('exclude', ()))
        self.note(f'Uploading {len(files)} file(s) as artifacts')
        content = io.BytesIO()
        with zipfile.ZipFile(content, 'w', zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
            for path in sorted(files):
                archive.write(path, path.relative_to(self.directory))
        boundary, name = os.urandom(16).hex(), self.expand(artifacts.get('name', 'artifacts'))
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}.zip"\r\n\r\n'
        body = head.encode() + content.getvalue() + f'\r\n--{boundary}--\r\n'.encode()
        query = urllib.parse.urlencode({'expire_in': artifacts.get('expire_in', '')})
        # 201. This must come before the final state: from then on the job's token changes nothing.
        self.call('POST', f'/builds/{self.job["id"]}/artifacts?{query}', body, {
            'BUILD-TOKEN': self.job['token'], 'Content-Type': f'multipart/form-data; boundary={boundary}'})

    def find(self, patterns):
        """Return the files in the working copy that patterns name, by themselves or by their directory."""
        root, top = self.directory, self.directory.parent
        globs = [os.path.relpath(root / self.expand(pattern), top) for pattern in patterns]
        named = [path for glob in globs if glob.startswith(root.name) for path in top.glob(glob)]
        return {path for base in named for path in (base, *base.rglob('*')) if path.is_file()
                and root in path.resolve().parents and root / '.git' not in path.parents}

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
                trouble = f'{method} {path} is answered {answer.status} {answer.content.decode(errors="replace")}'
                if answer.status < 500:
                    raise Failed(trouble)
            except (OSError, http.client.HTTPException) as error:
                trouble = error
            self.say(f'{self.url.geturl()}: {trouble}')  # which is not the job's: the request is sent again
            if self.stopping.wait(self.interval):
                raise Failed(trouble)


def unknown_keywords(options):
    """Return the keywords that a job uses and this runner does not know."""
    artifacts = {name for name, value in options.get('artifacts', {}).items() if value}
    return {*options.keys() - {'image', 'services', 'artifacts', 'dependencies', 'after_script'},
            *(f'artifacts:{name}' for name in artifacts - {'name', 'paths', 'exclude', 'when', 'expire_in'})}


def main(url, registration_token, *tag_list):
    """Serve a coordinator until SIGINT or SIGTERM."""
    runner = Runner(url)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: runner.stopping.set())
    try:
        runner.register(registration_token, description='shell_runner', tag_list=','.join(tag_list))
        runner.run_forever()
        runner.call('DELETE', '/runners/delete', {'token': runner.token})  # 200
    except Failed as error:
        sys.exit(f'shell_runner: {error}')


if __name__ == '__main__':
    main(*sys.argv[1:]) if len(sys.argv) > 2 else sys.exit(__doc__)
