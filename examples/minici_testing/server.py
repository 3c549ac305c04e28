"""A started coordinator with everything that a test wants at hand, and a runner that works in the same process."""

from __future__ import annotations

import io
import itertools
import json
import random
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import minici

from .clock import Clock
from .faults import Application, Environ, Faults, StartResponse
from .tape import Tape
from .wsgi import Response, call

Script = str | Callable[['RunningJob'], Any]
SHA = '0123456789abcdef0123456789abcdef01234567'
FEATURES = ('variables', 'image', 'services', 'artifacts', 'cache', 'upload_multiple_artifacts', 'upload_raw_artifacts',
            'artifacts_exclude', 'multi_build_steps', 'return_exit_code', 'fallback_cache_keys', 'refspecs')
MOST_JOBS = 1000        # jobs that one `run_pending` finishes at most


class JobFailed(Exception):
    """Raised by a script to fail its job, with a failure reason of GitLab's and an exit code."""

    def __init__(self, reason: str = 'script_failure', exit_code: int = 1) -> None:
        super().__init__(reason)
        self.reason = reason
        self.exit_code = exit_code


class SeededCoordinator(minici.Coordinator):
    """A temporary coordinator whose ids, tokens and names are the same in every run with the same seed.

    Its tokens can be guessed, so it never has a database of its own choosing.
    """

    def __init__(self, seed: int, **settings: Any) -> None:
        self._random = random.Random(seed)
        super().__init__(None, None, fsync=False, **settings)

    def random_hex(self, size: int) -> str:
        """Return the next `size` bytes of the seed's sequence in hexadecimal."""
        return self._random.randbytes(size).hex()


@dataclass
class JobState:
    """What `MiniciServer.build_pipeline` makes of one job."""

    state: str = 'success'                      # a job's status: success, failed, running, pending, manual, ...
    trace: str | bytes = ''
    artifacts: Mapping[str, str | bytes] = field(default_factory=dict)      # names and contents in its archive
    reports: Mapping[str, str | bytes] = field(default_factory=dict)        # report types and contents
    keywords: Mapping[str, Any] = field(default_factory=dict)               # further keywords of the job


class RunningJob:
    """A job in the hands of the runner in this process; a script is called with it."""

    def __init__(self, server: MiniciServer, payload: dict[str, Any]) -> None:
        self._server = server
        self.payload = payload
        self.id: int = payload['id']
        self.name: str = payload['job_info']['name']
        self.token: str = payload['token']
        self.written = 0

    def __repr__(self) -> str:
        return f'<running job {self.id} ({self.name})>'

    @property
    def variables(self) -> dict[str, str]:
        """The variables of the job as its runner received them."""
        return {item['key']: item['value'] for item in self.payload['variables']}

    @property
    def script(self) -> list[str]:
        """The lines of the job's script."""
        return self.payload['steps'][0]['script']

    def _call(self, method: str, path: str, **options: Any) -> Response:
        headers = {'JOB-TOKEN': self.token, **options.pop('headers', {})}
        return self._server.call(method, f'/api/v4/jobs/{self.id}{path}', headers=headers, **options)

    def write(self, text: str | bytes) -> None:
        """Add to the job's trace."""
        data = text if isinstance(text, bytes) else text.encode()
        if not data:
            return
        content_range = f'{self.written}-{self.written + len(data) - 1}'
        response = self._call('PATCH', '/trace', body=data, headers={'Content-Range': content_range})
        expect(response, 202, f'the trace of job {self.id}')
        self.written += len(data)

    def upload(self, files: Mapping[str, str | bytes]) -> None:
        """Store an archive with files of these names and contents."""
        self._upload(archive(files), 'artifacts.zip', 'archive', 'zip')

    def report(self, kind: str, content: str | bytes) -> None:
        """Store a report such as ``junit`` or ``dotenv``."""
        data = content if isinstance(content, bytes) else content.encode()
        file_format = minici.ARTIFACT_FORMATS.get(kind, 'raw')
        packed = gzipped(data) if file_format == 'gzip' else data
        self._upload(packed, f'{kind}.{file_format}', kind, file_format)

    def _upload(self, data: bytes, filename: str, kind: str, file_format: str) -> None:
        fields = {'artifact_type': kind, 'artifact_format': file_format}
        body = b''.join(form(fields, filename, data))
        response = self._call('POST', '/artifacts', body=body,
                              headers={'Content-Type': 'multipart/form-data; boundary=minici'})
        expect(response, 201, f'the {kind} of job {self.id}')

    def finish(self, state: str = 'success', *, reason: str = 'script_failure', exit_code: int = 0) -> None:
        """Report the job's final state."""
        body = {'token': self.token, 'state': state, 'exit_code': exit_code}
        if state == 'failed':
            body['failure_reason'] = reason
        expect(self._call('PUT', '', body=body), 200, f'the final state of job {self.id}')

    def fail(self, reason: str = 'script_failure', exit_code: int = 1) -> None:
        """Fail the job from within its script."""
        raise JobFailed(reason, exit_code)

    def run(self, script: Script) -> None:
        """Do what `script` says, then report the final state."""
        if not callable(script):
            self.write(script)
            self.finish()
            return
        try:
            result = script(self)
        except JobFailed as failure:
            self.finish('failed', reason=failure.reason, exit_code=failure.exit_code)
            return
        self.finish('failed' if result is False else 'success', exit_code=int(result is False))


class Current:
    """Stands for the coordinator that a `MiniciServer` uses at the moment, whichever that is."""

    def __init__(self, server: MiniciServer) -> None:
        self._server = server

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server.ci, name)


class MiniciServer:
    """A coordinator behind a real socket, with a clock, faults and a tape; use it as a context manager.

    `seed` decides ids, tokens and names, so that snapshots hold from run to run. `host` and `port` say
    where it listens (port 0: anywhere). `settings` are those of `minici.Coordinator`.
    """

    def __init__(self, *, seed: int = 0, host: str = '127.0.0.1', port: int = 0, controls: bool = False,
                 **settings: Any) -> None:
        self._seed = seed
        self._settings = settings
        self._generations: list[minici.Coordinator] = []
        self.clock = Clock()
        self.faults = Faults(self._app, seed=seed)
        self.tape = Tape(self.faults, clock=self.clock)
        self._begin()
        try:
            current = cast(minici.Coordinator, Current(self))
            self._server = minici.Server(current, host, port, application=self._front(controls))
        except BaseException:
            self.ci.close()
            raise
        self.host = self._server.host
        self.port = self._server.port
        self.url = self._server.url
        self.api_url = f'{self.url}/api/v4'

    def _front(self, controls: bool) -> Application:
        """Return the application that the socket leads to."""
        if not controls:
            return self.tape
        from .controls import Controls
        return Controls(self)

    def __enter__(self) -> MiniciServer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f'<MiniciServer at {self.url}>'

    def _begin(self) -> None:
        """Make a new coordinator."""
        self.ci: minici.Coordinator = SeededCoordinator(self._seed, clock=self.clock, **self._settings)
        self._generations.append(self.ci)
        self._application = minici.create_app(self.ci)
        self._runner_token = ''
        self._runner_tags: list[str] = []
        self._refs = itertools.count(1)
        self.registration_token = self.ci.registration_token
        self.private_token = self.ci.create_private_token()
        self.tape.secrets.learn(self.registration_token, 'registration token')
        self.tape.secrets.learn(self.private_token, 'private token')

    def _app(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer with the application of the coordinator that is in use."""
        return self._application(environ, start_response)

    def stop(self) -> None:
        """Close the socket and remove all that was stored."""
        self.faults.release()
        self._server.stop()
        for coordinator in self._generations:
            coordinator.close()

    def reset(self) -> None:
        """Begin again at the same address: an empty coordinator, no faults, an empty tape, the clock at its start.

        With the same calls the same ids and tokens come again.
        """
        self.faults.release()
        self.faults.reset()
        self.clock.reset()
        self.tape.reset()
        for coordinator in self._generations[1:]:   # the first holds the directory in which the server keeps bodies
            coordinator.close()
        del self._generations[1:]
        self._begin()

    def call(self, method: str, path: str, *, body: Any = None, headers: dict[str, str] | None = None) -> Response:
        """Send a request to the application in this process, past faults and tape."""
        return call(self._app, self.url, method, path, body=body, headers=headers)

    # -- what tests begin with

    def add_project(self, path: str = 'demo', **settings: Any) -> minici.Row:
        """Return the project of that path, which is made if there is none."""
        try:
            return self.ci.find_project(path)
        except minici.NotFound:
            return self.ci.create_project(path, **settings)

    def add_pipeline(self, content: Any, *, project: str = 'demo', ref: str = 'main', sha: str = SHA,
                     **options: Any) -> minici.Row:
        """Make a pipeline of a mapping or text as in `.gitlab-ci.yml`; no repository is needed."""
        return self.ci.create_pipeline(self.add_project(project), ref, sha=sha, content=content, **options)

    def enqueue(self, script: str | Sequence[str] = 'make', *, name: str = 'test', project: str = 'demo',
                ref: str = 'main', **keywords: Any) -> minici.Row:
        """Make a pipeline of one job and return the pending job; `keywords` are the job's, such as `tags`."""
        content = {name: {'script': script, **keywords}}
        pipeline = self.add_pipeline(content, project=project, ref=ref)
        return self.jobs(pipeline)[0]

    def jobs(self, pipeline: minici.Row | None = None) -> list[minici.Row]:
        """Return the jobs of a pipeline, or all, oldest first."""
        return self.ci.list_jobs(pipeline=pipeline, limit=MOST_JOBS)[::-1]

    # -- a runner in this process

    def claim(self, job: minici.Row | None = None) -> RunningJob:
        """Claim the oldest pending job, or this one, and return it.

        Raises AssertionError, which says why jobs wait, when there is none to claim.
        """
        others = []
        try:
            while True:
                claimed = self._claim_next()
                if claimed is None:
                    raise AssertionError(f'there is no job to claim: {self._why(job)}')
                if job is None or claimed.id == job['id']:
                    return claimed
                others.append(claimed)
        finally:
            for other in others:
                self._hand_back(other)

    def _claim_next(self) -> RunningJob | None:
        """Claim the oldest pending job, whatever its tags, or return None."""
        self._serve_all_tags()
        info = {'name': 'minici_testing', 'features': dict.fromkeys(FEATURES, True)}
        response = self.call('POST', '/api/v4/jobs/request', body={'token': self._runner_token, 'info': info})
        if response.status == 204:
            return None
        expect(response, 201, 'the request for a job')
        return RunningJob(self, response.json)

    def _hand_back(self, running: RunningJob) -> None:
        """Put a job that was claimed back into the queue, as if it had not been."""
        job = self.ci.authenticate_job(running.id, running.token)
        assert job is not None
        self.ci.return_job(minici.Claim(job, running.token, ()))

    def _serve_all_tags(self) -> None:
        """Register the runner of this process, and give it the tags of all pending jobs."""
        wanted = {tag for job in self.ci.list_queue(limit=MOST_JOBS) for tag in json.loads(job['tags'])}
        tags = sorted(wanted | set(self._runner_tags))[-50:]
        if not self._runner_token:
            _, self._runner_token = self.ci.register_runner(self.registration_token, description='minici_testing')
        if tags != self._runner_tags:
            runner = self.ci.find_runner(self._runner_token)
            assert runner is not None
            self.ci.edit_runner(runner, tag_list=tags)
            self._runner_tags = tags

    def _why(self, job: minici.Row | None) -> str:
        """Return in words why the jobs there are cannot be claimed."""
        waiting = [self.ci.find_job(job)] if job is not None else self.jobs()
        if not waiting:
            return 'there are no jobs at all'
        reasons = [f'job {row["id"]} ({row["name"]}) is {row["status"]}: {self.ci.pending_reason(row) or "no reason"}'
                   for row in waiting[-10:]]
        return '; '.join(reasons)

    def run_job(self, script: Script = '', *, job: minici.Row | None = None) -> minici.Row:
        """Run the oldest pending job, or this one, to its end, and return it.

        A text is written to the trace; a callable is called with the `RunningJob`: it writes, uploads,
        and fails the job by returning False or raising `JobFailed`.
        """
        running = self.claim(job)
        running.run(script)
        return self.ci.find_job(running.id)

    def run_pending(self, script: Script | Mapping[str, Script] = '') -> list[minici.Row]:
        """Run jobs until none is pending, those that become pending on the way too; return them in their order.

        `script` is that of every job, or a mapping of the jobs' names to theirs.
        """
        finished: list[minici.Row] = []
        while len(finished) < MOST_JOBS:
            running = self._claim_next()
            if running is None:
                return finished
            chosen = script.get(running.name, '') if isinstance(script, Mapping) else script
            running.run(chosen)
            finished.append(self.ci.find_job(running.id))
        raise AssertionError(f'{MOST_JOBS} jobs were run, and more are pending')

    # -- pipelines in any state

    def build_pipeline(self, jobs: Mapping[str, str | JobState], *, project: str = 'demo', ref: str = '') -> minici.Row:
        """Make a pipeline whose jobs are in the states that `jobs` gives by name, and return it.

        A state is one of GitLab's statuses of a job (`created` only beside a job that is pending or
        running), or a `JobState` with a trace, artifacts and reports. Raises ValueError for others.
        """
        wanted = {name: JobState(state) if isinstance(state, str) else state for name, state in jobs.items()}
        content = {name: keywords_of(state) for name, state in wanted.items()}
        pipeline = self.add_pipeline(content, project=project, ref=ref or f'branch-{next(self._refs)}')
        for job in self.jobs(pipeline):
            self._bring(job, wanted[job['name']])
        return self.ci.find_pipeline(pipeline)

    def _bring(self, job: minici.Row, wanted: JobState) -> None:
        """Bring a new job into the state that is wanted."""
        if wanted.state in ('success', 'failed', 'running', 'canceled') and job['status'] == 'pending':
            running = self.claim(job)
            self._fill(running, wanted)
            if wanted.state in ('success', 'failed'):
                running.finish(wanted.state, exit_code=int(wanted.state == 'failed'))
        if wanted.state == 'canceled':
            self.ci.cancel_job(self.ci.find_job(job))
        status = self.ci.find_job(job)['status']
        if status != wanted.state:
            raise ValueError(f'job {job["name"]} cannot be brought into the state {wanted.state}: it is {status}')

    @staticmethod
    def _fill(running: RunningJob, wanted: JobState) -> None:
        """Write the trace, artifacts and reports of a job."""
        if wanted.trace:
            running.write(wanted.trace)
        if wanted.artifacts:
            running.upload(wanted.artifacts)
        for kind, content in wanted.reports.items():
            running.report(kind, content)

    # -- waiting and looking

    def wait(self, job: minici.Row | int, timeout: float = 10, *,
             for_: Callable[[minici.Row], bool] | None = None) -> minici.Row:
        """Return a job as soon as it has finished, or as soon as `for_`, called with its row, is true.

        Raises TimeoutError, which says the job's state and why, after `timeout` seconds of real time.
        """
        return self.ci.wait(job, timeout, for_=for_)

    def unexpected_errors(self) -> list[Any]:
        """Return the exchanges that ended with a status of 500 which no fault ordered."""
        return self.tape.find(status=500, when=lambda exchange: not exchange.fault)

    def report(self, lines: int = 10) -> str:
        """Return what a failed test wants to know: each job with its reason and the end of its trace, and the last
        exchanges."""
        told = []
        for job in self.jobs()[-20:]:
            reason = self.ci.pending_reason(job) or job['failure_reason'] or 'no reason given'
            told.append(f'job {job["id"]} ({job["stage"]}: {job["name"]}) is {job["status"]}: {reason}')
            told += [f'    {line}' for line in self._tail(job, lines)]
        told += [str(exchange) for exchange in [*self.tape][-lines:]]
        return self.tape.secrets.redact('\n'.join(told)) or 'nothing happened'

    def _tail(self, job: minici.Row, lines: int) -> list[str]:
        """Return the last lines of a job's trace."""
        try:
            text = self.ci.read_trace(job)
        except minici.NotFound:
            return []
        return text.decode('utf-8', 'replace').splitlines()[-lines:]


def keywords_of(wanted: JobState) -> dict[str, Any]:
    """Return the keywords under which a job can be brought into a state."""
    keywords: dict[str, Any] = {'script': ['true'], 'needs': []}
    if wanted.state == 'manual':
        keywords['when'] = 'manual'
    if wanted.state == 'scheduled':
        keywords.update(when='delayed', start_in='1 hour')
    if wanted.state == 'skipped':
        keywords['when'] = 'on_failure'
    if wanted.state == 'created':
        del keywords['needs']
        keywords['stage'] = 'deploy'    # behind the other jobs
    keywords.update(wanted.keywords)
    return keywords


def expect(response: Response, status: int, what: str) -> None:
    """Raise AssertionError, with what the server said, unless an answer has the status."""
    if response.status != status:
        said = response.body.decode('utf-8', 'replace')
        raise AssertionError(f'{what} was answered {response.status} instead of {status}: {said}')


def archive(files: Mapping[str, str | bytes]) -> bytes:
    """Return a zip file of these names and contents, the same for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as bundle:
        for name, content in files.items():
            bundle.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def gzipped(data: bytes) -> bytes:
    """Return data packed with gzip, the same for the same data."""
    import gzip
    return gzip.compress(data, mtime=0)


def form(fields: Mapping[str, str], filename: str, data: bytes) -> Iterable[bytes]:
    """Yield a multipart form with the boundary ``minici``: some fields and a file."""
    for name, value in fields.items():
        yield f'--minici\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    yield f'--minici\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'.encode()
    yield data
    yield b'\r\n--minici--\r\n'
