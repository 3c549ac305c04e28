"""The test stand: servers in processes of their own, load from wrk, CPU time from the kernel."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'examples')]

import minici  # noqa: E402

SHA = '0123456789abcdef0123456789abcdef01234567'
FEATURES = ('variables', 'image', 'services', 'artifacts', 'cache', 'shared', 'upload_multiple_artifacts',
            'upload_raw_artifacts', 'session', 'terminal', 'refspecs', 'masking', 'proxy', 'raw_variables',
            'artifacts_exclude', 'multi_build_steps', 'trace_reset', 'trace_checksum', 'trace_size',
            'vault_secrets', 'cancelable', 'return_exit_code', 'service_variables', 'service_multiple_aliases')
TICKS = os.sysconf('SC_CLK_TCK')
#: Python keeps its bytecode, as it does where minici is installed.
INSTALLED = {name: value for name, value in os.environ.items() if name != 'PYTHONDONTWRITEBYTECODE'}


@dataclasses.dataclass
class Figure:
    """One line of the table: what is measured, what it is divided by, and what is wanted of the ratio.

    `measure` returns one round's value; `target` is a limit with its sense, as in ``>= 0.20`` (empty: shown only).
    """

    row: str
    name: str
    divided_by: str
    target: str
    measure: Callable[[], float]
    values: list[float] = dataclasses.field(default_factory=list)

    @property
    def ratio(self):
        """The median of the rounds."""
        return statistics.median(self.values)

    @property
    def is_reached(self):
        """Whether the median reaches the target; None without one."""
        if not self.target:
            return None
        sense, limit = self.target.split()
        return self.ratio >= float(limit) if sense == '>=' else self.ratio <= float(limit)

    def as_json(self):
        """Return the figure for a program."""
        return {'row': self.row, 'figure': self.name, 'divided_by': self.divided_by, 'ratio': self.ratio,
                'rounds': self.values, 'target': self.target, 'reached': self.is_reached}


def runner_request(token, **more):
    """Return the body with which a current runner asks for a job: about 700 bytes."""
    info = {'name': 'gitlab-runner', 'version': '17.11.0', 'revision': '0f67ff19', 'platform': 'linux',
            'architecture': 'amd64', 'executor': 'shell', 'shell': 'bash', 'config': {'gpus': ''},
            'features': dict.fromkeys(FEATURES, True)}
    return json.dumps({'info': info, 'token': token, 'system_id': 's_c2d22f638c25', **more})


def job_specs(number, tags):
    """Return that many specs as a real file has them."""
    return [minici.JobSpec(name=f'job {index}', script=['echo "building"', 'make -j2', 'make test'], tag_list=tags,
                           variables={'DEPTH': '3', 'TARGET': 'release'}, image={'name': 'debian:12'},
                           artifacts=[{'name': 'out', 'paths': ['build/'], 'when': 'on_success',
                                       'artifact_type': 'archive', 'artifact_format': 'zip'}])
            for index in range(number)]


def fill(ci, project, jobs, *, tags=('linux',), together=100):
    """Make that many pending jobs, so many of them in one pipeline."""
    for start in range(0, jobs, together):
        specs = job_specs(min(together, jobs - start), list(tags))
        ci.create_pipeline(project, 'main', sha=SHA, content=minici.PipelineSpec(
            stages=('test',), jobs=specs, auto_cancel='none'))


def call(app, method, path, body=b'', **headers):
    """Send a request to a WSGI application; return its status and its body."""
    path, _, query = path.partition('?')
    environ = {'REQUEST_METHOD': method, 'PATH_INFO': path, 'SCRIPT_NAME': '', 'QUERY_STRING': query,
               'SERVER_NAME': '127.0.0.1', 'SERVER_PORT': '80', 'SERVER_PROTOCOL': 'HTTP/1.1',
               'wsgi.url_scheme': 'http', 'REQUEST_URI': path, 'wsgi.input': io.BytesIO(body),
               'wsgi.errors': sys.stderr, 'CONTENT_LENGTH': str(len(body)), 'REMOTE_ADDR': '127.0.0.1',
               'HTTP_HOST': '127.0.0.1', **headers}
    statuses = []
    answer = b''.join(app(environ, lambda status, headers, exc_info=None: statuses.append(status)))
    return int(statuses[0].split()[0]), answer


def best_cpu(action, *, batches=9, repeat=50):
    """Return the CPU seconds of one `action` in this thread: the best of so many batches."""
    best = float('inf')
    for _ in range(batches):
        began = time.thread_time()
        for _ in range(repeat):
            action()
        best = min(best, (time.thread_time() - began) / repeat)
    return best


class Stand:
    """What a benchmark works with; everything that it starts or makes ends with it."""

    def __init__(self, options):
        self.options = options
        self.ends = contextlib.ExitStack()
        self.folder = Path(tempfile.mkdtemp(prefix='minici-bench-', dir=options.directory))
        self.ends.callback(shutil.rmtree, self.folder, ignore_errors=True)

    def coordinator(self, name, *, fsync=False):
        """Return an open coordinator over a database of its own."""
        ci = minici.Coordinator(self.folder / f'{name}.sqlite', fsync=fsync)
        self.ends.callback(ci.close)
        return ci

    def serve(self, name, *, fsync=True, program='serve.py'):
        """Start a server over a database of that name in a process of its own."""
        command = [sys.executable, str(Path(__file__).with_name(program)), str(self.folder / f'{name}.sqlite')]
        process = subprocess.Popen([*command, *([] if fsync else ['--no-fsync'])], stdout=subprocess.PIPE, text=True,
                                   env=INSTALLED)
        self.ends.callback(process.wait, 20)
        self.ends.callback(process.terminate)
        url = process.stdout.readline().strip()
        if not url:
            raise SystemExit('a server of the benchmark did not start')
        return Server(process.pid, url, self.folder)


class Server:
    """A server in another process: minici, and beside it what answers a constant."""

    def __init__(self, pid, url, folder):
        self.pid = pid
        self.url = url
        self.folder = folder

    def cpu(self):
        """Return the CPU seconds that the process has used."""
        words = Path(f'/proc/{self.pid}/stat').read_text().rpartition(')')[2].split()
        return (int(words[11]) + int(words[12])) / TICKS

    def resident(self):
        """Return the MiB that the process has in memory."""
        return int(re.search(r'VmRSS:\s+(\d+)', Path(f'/proc/{self.pid}/status').read_text())[1]) / 1024

    def wrk(self, path, *, method='GET', body='', headers=None, connections=8, script=''):
        """Put the server under load for a second; return what it did."""
        lines = [f'wrk.method = "{method}"', f'wrk.body = [==[{body}]==]']
        lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in (headers or {}).items()]
        lua = self.folder / f'{time.monotonic_ns()}.lua'
        lua.write_text('\n'.join([*lines, script]))
        before = self.cpu()
        done = subprocess.run(['wrk', '-t1', f'-c{connections}', '-d1s', '--latency', '-s', str(lua),
                               f'{self.url}{path}'], capture_output=True, text=True, check=True)
        return Load(done.stdout, self.cpu() - before)


class Load:
    """What wrk saw in one second, and the CPU seconds that the server used."""

    def __init__(self, text, cpu):
        self.rate = float(re.search(r'Requests/sec:\s+([0-9.]+)', text)[1])
        self.requests = int(re.search(r'(\d+) requests in', text)[1])
        self.cpu = cpu
        self.refused = int((re.search(r'Non-2xx or 3xx responses: (\d+)', text) or [0, 0])[1])
        units = {'us': 1e-6, 'ms': 1e-3, 's': 1}
        self.latency = {int(percent): float(number) * units[unit] for percent, number, unit in
                        re.findall(r'(\d+)%\s+([0-9.]+)(us|ms|s)', text)}
        if self.refused:
            raise SystemExit(f'{self.refused} of {self.requests} requests were refused:\n{text}')
