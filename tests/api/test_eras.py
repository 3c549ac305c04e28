"""What runners of each era put on the wire, replayed on a socket: read `Era` and its table as their dialects."""

import contextlib
import dataclasses
import http.client
import json
import secrets
import socket
import threading
import zlib
from dataclasses import dataclass, field

import pytest
from support import FEATURES, SHA, TWO_STAGES, archive, stamped

import minici

ZIP = archive(out__app='binary ' * 500)
LOG = '\x1b[32;1m$ make <all> && echo "déjà vu ✓"\x1b[0;m\r\nsection_start:1700000000:build\r\x1b[0K\n'.encode() * 7

# What a runner calls, and the one status that its era takes for success.
V1 = {'register': ('POST', '/runners/register.json', 201), 'verify': ('PUT', '/builds/-1', 404),
      'unregister': ('DELETE', '/runners/delete', 200), 'claim': ('POST', '/builds/register.json', 201),
      'state': ('PUT', '/builds/{id}.json', 200), 'trace': ('PATCH', '/builds/{id}/trace.txt', 202),
      'upload': ('POST', '/builds/{id}/artifacts', 201), 'download': ('GET', '/builds/{id}/artifacts', 200)}
V4 = {'register': ('POST', '/runners', 201), 'verify': ('POST', '/runners/verify', 200),
      'unregister': ('DELETE', '/runners', 204), 'unregister manager': ('DELETE', '/runners/managers', 204),
      'claim': ('POST', '/jobs/request', 201), 'state': ('PUT', '/jobs/{id}', 200),
      'trace': ('PATCH', '/jobs/{id}/trace', 202), 'upload': ('POST', '/jobs/{id}/artifacts', 201),
      'download': ('GET', '/jobs/{id}/artifacts', 200)}


@dataclass(frozen=True)
class Era:
    """How the runners of some years write their requests; the defaults are those of `gitlab-runner` 9."""

    agent: str                          # on requests with a body; a download came from Go's own client for long
    base: str = '/api/v4'
    calls: dict = field(default_factory=lambda: V4)
    token_header: str = 'Job-Token'     # names the job on PATCH, upload and download; Go's spelling
    status_header: str = 'Job-Status'
    put_token: str = 'job'              # whose token a PUT has in its body
    exclusive: bool = False             # whether the end of Content-Range is one past the last byte
    heartbeat: str = 'trace'            # what a silent build sends every 30 s: an empty PATCH, or a PUT
    empty_is_chunked: bool = False      # Go before 1.8 sent an empty body in chunks
    announces: bool = False             # whether a PUT of `running` follows the claim at once
    stamps: bool = False                # whether lines of the trace begin with time stamps
    final: tuple = ()                   # what else the last PUT tells
    settings: dict = field(default_factory=dict)    # that a registration sends beside the description
    info: dict = field(default_factory=dict)        # that it says of itself
    machine: dict = field(default_factory=dict)     # beside the token in what it asks for itself
    trace_query: str = ''
    upload_query: str = '?'             # without an `expire_in`
    download_query: str = '?'

    def content_range(self, start, length):
        """Return the header of a PATCH: no unit, no total."""
        return f'{start}-{start + length - (0 if self.exclusive else 1)}'


def info(name, version, features=None, **more):
    """Return what a runner says of itself; its features are those of its version, or of an earlier one."""
    return {'name': name, 'version': version, 'revision': '76fdacd', 'platform': 'linux', 'architecture': 'amd64',
            'executor': 'shell', **more, 'features': dict.fromkeys(sorted(FEATURES[features or version]), True)}


OLD = dict(base='/ci/api/v1', calls=V1, token_header='Build-Token', status_header='Build-Status', put_token='runner',
           exclusive=True, empty_is_chunked=True, final=('trace',))
ERAS = {
    # 1.5 did not add /ci to its address; no registration said whether it takes untagged jobs.
    'A 1.5.3': Era('gitlab-ci-multi-runner 1.5.3 (1-5-stable; go1.6.3; linux/amd64)', **{**OLD, 'base': '/api/v1'},
                   info=info('gitlab-ci-multi-runner', '1.5.3', '1.0.4')),
    'A 1.11.5': Era('gitlab-ci-multi-runner 1.11.5 (1-11-stable; go1.7.5; linux/amd64)', **OLD,
                    settings={'tag_list': 'shell,linux', 'run_untagged': True},
                    info=info('gitlab-ci-multi-runner', '1.11.5', '1.0.4')),
    'B 10.8.2': Era('gitlab-runner 10.8.2 (10-8-stable; go1.8.7; linux/amd64)', exclusive=True,
                    final=('trace', 'failure_reason'), info=info('gitlab-runner', '10.8.2'),
                    settings={'tag_list': 'shell,linux', 'run_untagged': True, 'locked': True}),
    'C 12.10.3': Era('gitlab-runner 12.10.3 (12-10-stable; go1.13.8; linux/amd64)', heartbeat='state',
                     final=('failure_reason',), info=info('gitlab-runner', '12.10.3'),
                     upload_query='?artifact_format=zip&artifact_type=archive',
                     settings={'tag_list': 'shell,linux', 'run_untagged': True, 'locked': True, 'active': True,
                               'access_level': 'not_protected'}),
    'D 14.7.1': Era('gitlab-runner 14.7.1 (14-7-stable; go1.13.8; linux/amd64)', heartbeat='state',
                    final=('failure_reason', 'checksum', 'output', 'exit_code'),
                    info=info('gitlab-runner', '14.7.1', '13.12.0', shell='bash', config={'gpus': ''}),
                    upload_query='?artifact_format=zip&artifact_type=archive', download_query='?direct_download=true',
                    settings={'tag_list': 'shell,linux', 'run_untagged': True, 'locked': True, 'active': True,
                              'access_level': 'not_protected'}),
    # From 17.11 on the runner's token, from 18.3 the job's, is in a header too; from 18.1 each request has a number.
    '18.6.6': Era('gitlab-runner 18.6.6 (18-6-stable; go1.24.6; linux/amd64)', heartbeat='state', announces=True,
                  final=('failure_reason', 'checksum', 'output', 'exit_code'), machine={'system_id': 's_0123456789ab'},
                  info=info('gitlab-runner', '18.6.6', shell='bash', config={'gpus': ''}, labels={}),
                  upload_query='?artifact_format=zip&artifact_type=archive', download_query='?direct_download=true',
                  trace_query='?debug_trace=false',
                  settings={'tag_list': 'shell,linux', 'run_untagged': True, 'locked': True, 'paused': False,
                            'access_level': 'not_protected', 'maintenance_note': 'rack 2'}),
}
# From 18.7 on each line of the trace begins with a time stamp.
ERAS['18.9.0'] = dataclasses.replace(
    ERAS['18.6.6'], agent='gitlab-runner 18.9.0 (18-9-stable; go1.25.7; linux/amd64)', stamps=True,
    info=info('gitlab-runner', '18.9.0', shell='bash', config={'gpus': ''}, labels={}))


def go_json(value):
    """Return JSON as Go writes it."""
    text = json.dumps(value, ensure_ascii=False, separators=(',', ':'))
    return text.replace('<', '\\u003c').replace('>', '\\u003e').replace('&', '\\u0026').encode()


class Machine:
    """A runner of an era: sends its requests, byte for byte, on a connection that it keeps."""

    def __init__(self, era, server):
        self.era, self.address, self.socket, self.token, self.last_update = era, server.port, None, '', ''

    def close(self):
        if self.socket:
            self.socket.close()
        self.socket = None

    def send(self, what, body=None, *, id=None, query='', chunked=False, accept=False, **headers):
        """Send a request and return the answer, its body read; `body` may be a mapping, for JSON."""
        method, path, _ = self.era.calls[what]
        if self.era.announces:
            headers['X-Request-Id'] = secrets.token_hex(16)
            headers.update({'Runner-Token': self.token} if id is None else {})
        agent = 'Go-http-client/1.1' if body is None else self.era.agent
        lines = [f'{method} {self.era.base}{path.format(id=id)}{query} HTTP/1.1', f'Host: 127.0.0.1:{self.address}',
                 f'User-Agent: {agent}']
        if isinstance(body, dict):
            body = go_json(body)
            headers = {'Content-Type': 'application/json', **({'Accept': 'application/json'} if accept else {}),
                       **headers}
        if body is not None:
            lines.append('Transfer-Encoding: chunked' if chunked else f'Content-Length: {len(body)}')
        if chunked:
            step = max(700, len(body) // 100)
            pieces = [body[at:at + step] for at in range(0, len(body), step)] + [b'']
            body = b''.join(b'%x\r\n%b\r\n' % (len(piece), piece) for piece in pieces)
        lines += [f'{name}: {value}' for name, value in sorted(headers.items())] + ['Accept-Encoding: gzip', '', '']
        if self.socket is None:
            self.socket = socket.create_connection(('127.0.0.1', self.address), 30)
        self.socket.sendall('\r\n'.join(lines).encode() + (body or b''))
        answer = http.client.HTTPResponse(self.socket, method=method)
        answer.begin()
        answer.content = answer.read()
        if answer.will_close:
            self.close()
        return answer

    def succeeds(self, what, *args, **options):
        """Send a request that must get the status its era waits for; return the answer."""
        answer = self.send(what, *args, **options)
        assert answer.status == self.era.calls[what][2], (what, answer.status, answer.content)
        return answer

    # -- what it asks for itself

    def register(self, registration_token):
        answer = self.succeeds('register', {'info': self.era.info, 'token': registration_token,
                                            'description': 'shell on host', **self.era.settings}, accept=True)
        assert answer.headers['Content-Type'] == 'application/json'
        self.token = json.loads(answer.content)['token']

    def ask(self):
        """Ask for work and return the answer."""
        body = {'info': self.era.info, 'token': self.token, **self.era.machine}
        if self.last_update and self.era.base != '/api/v1':     # 1.9 and later
            body['last_update'] = self.last_update
        answer = self.send('claim', body, accept=True)
        self.last_update = answer.headers['X-GitLab-Last-Update'] or self.last_update
        return answer

    def claim(self):
        """Ask for work that must be there; return the build."""
        build = Build(self, self.ask())
        assert build.announced is None or build.announced.status == 200
        return build


class Build:
    """A job that a machine was given; `announced` is the answer to its first word, where its era says one."""

    def __init__(self, machine, answer):
        assert (answer.status, answer.headers['Content-Type']) == (201, 'application/json')
        self.machine, self.era, self.payload = machine, machine.era, json.loads(answer.content)
        self.id, self.log, self.sent = self.payload['id'], b'', 0
        self.headers = {self.era.token_header: self.payload['token']}
        self.announced = self.put('running', output={}) if self.era.announces else None

    def write(self, data):
        """Add to the log and send what the coordinator does not have; return the last answer."""
        self.log += data
        for _ in range(2):  # a 416 says from where to go on; a second one would be a failure
            answer = self.patch(self.sent, self.log[self.sent:])
            if answer.status != 416:
                break
            self.sent = int(answer.headers['Range'].split('-')[1])
        if answer.status == 202 and answer.headers[self.era.status_header] == 'running':
            self.sent = len(self.log)
            assert answer.headers['Range'] == f'0-{self.sent}'
            assert int(answer.headers.get('X-GitLab-Trace-Update-Interval', 3)) >= 3
        return answer

    def patch(self, start, data):
        return self.machine.send('trace', data, id=self.id, query=self.era.trace_query, **self.headers, **{
            'Content-Type': 'text/plain', 'Content-Range': self.era.content_range(start, len(data))},
            chunked=not data and self.era.empty_is_chunked)

    def beat(self):
        """Say that a silent build is alive; return the answer."""
        return self.patch(self.sent, b'') if self.era.heartbeat == 'trace' else self.put('running')

    def put(self, state, **more):
        token = self.payload['token'] if self.era.put_token == 'job' else self.machine.token
        body = {'info': self.era.info, 'token': token, 'state': state, **more}
        if 'checksum' in self.era.final and 'output' not in more:
            body['checksum'] = f'crc32:{zlib.crc32(self.log):08x}'
            body['output'] = {'checksum': body['checksum'], 'bytesize': len(self.log)}
        headers = {'Job-Token': token} if self.era.announces else {}
        return self.machine.send('state', body, id=self.id, **headers)

    def finish(self, state='success', exit_code=0):
        """Send the last PUT; return the answer."""
        more = {'trace': self.log.decode()} if 'trace' in self.era.final else {}
        if state == 'failed' and 'failure_reason' in self.era.final:
            more['failure_reason'] = 'script_failure'
        if exit_code and 'exit_code' in self.era.final:
            more['exit_code'] = exit_code
        return self.put(state, **more)

    def upload(self, content, expire_in='1+week'):
        """Send an archive: one part, in chunks, without a length."""
        boundary = secrets.token_hex(30)
        head = (f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="artifacts.zip"\r\n'
                'Content-Type: application/octet-stream\r\n\r\n')
        query = self.era.upload_query
        if expire_in:
            query += ('' if query == '?' else '&') + f'expire_in={expire_in}'
        return self.machine.send('upload', head.encode() + content + f'\r\n--{boundary}--\r\n'.encode(), id=self.id,
                                 query=query, chunked=True, **self.headers,
                                 **{'Content-Type': f'multipart/form-data; boundary={boundary}'})

    def dependencies(self):
        """Yield what the era's runner downloads: until 9.0 it chose among all earlier builds itself."""
        wanted = self.payload.get('options', {}).get('dependencies')
        for item in self.payload['depends_on_builds' if self.era.calls is V1 else 'dependencies']:
            if item.get('artifacts_file', {}).get('filename') and (wanted is None or item['name'] in wanted):
                yield item

    def download(self, dependency):
        return self.machine.send('download', id=dependency['id'], query=self.era.download_query,
                                 **{self.era.token_header: dependency['token']})


@pytest.fixture(params=ERAS)
def era(request):
    return ERAS[request.param]


@pytest.fixture
def machine(era, ci, server):
    """A registered runner of each era in turn."""
    with contextlib.closing(Machine(era, server)) as machine:
        machine.register(ci.registration_token)
        yield machine


def queue(ci, project, **jobs):
    """Make a pipeline of two stages, or of the given jobs."""
    return ci.create_pipeline(project, 'main', sha=SHA, content=jobs or TWO_STAGES)


def found(ci, build):
    """Return the row of a build."""
    return ci.find_job(build.id)


# -- the whole of each era

def test_a_chain_of_two_jobs_runs_to_success_with_an_identical_trace(ci, project, machine, era):
    machine.succeeds('verify', {'token': machine.token, **era.machine}, accept=True)
    assert machine.ask().status == 204
    pipeline = queue(ci, project)
    first = machine.claim()
    first.write(LOG[:123])  # inside a character, as eras C and D cut
    first.put('running')
    for _ in range(3):
        assert first.beat().status in (200, 202)
    first.write(LOG[123:])
    assert first.upload(ZIP).status == 201
    assert first.finish().status == 200
    second = machine.claim()
    dependency, = second.dependencies()
    answer = second.download(dependency)
    assert (answer.status, answer.content) == (200, ZIP)
    second.write(b'check\n')
    assert second.finish().status == 200
    assert (ci.read_trace(first.id), ci.read_trace(second.id)) == (LOG, b'check\n')
    assert ci.find_pipeline(pipeline)['status'] == 'success'
    expires = ci.find_artifact(first.id)['expire_at']
    assert expires == ci.clock() + 7 * 86400
    assert machine.ask().status == 204
    machine.succeeds('unregister', {'token': machine.token})
    assert machine.ask().status == 403


def test_what_a_runner_says_of_itself_is_known(ci, machine, era):
    machine.ask()
    runner, = ci.list_runners()
    said = json.loads(runner['info'])
    assert {name: said[name] for name in ('version', 'executor')} == {
        name: era.info[name] for name in ('version', 'executor')}
    assert set(said['features']) == set(era.info['features'])
    assert json.loads(runner['tags']) == sorted(filter(None, era.settings.get('tag_list', '').split(',')))
    assert [manager['system_id'] for manager in ci.list_managers(runner)] == list(era.machine.values())


def test_a_failing_script_fails_the_job(ci, project, machine, era):
    content = {'script': ['exit 3']}
    if 'return_exit_code' in era.info['features']:
        content['allow_failure'] = {'exit_codes': 3}
    pipeline = queue(ci, project, test=content)
    build = machine.claim()
    build.write(LOG)
    assert build.finish('failed', exit_code=3).status == 200
    row = found(ci, build)
    assert (row['status'], ci.read_trace(build.id)) == ('failed', LOG)
    assert row['failure_reason'] == ('script_failure' if 'failure_reason' in era.final else 'unknown_failure')
    told = 'exit_code' in era.final
    assert (row['exit_code'], ci.find_pipeline(pipeline)['status']) == ((3, 'success') if told else (None, 'failed'))


def test_a_build_of_less_than_three_seconds_may_send_its_end_alone(ci, project, machine, era):
    queue(ci, project)
    build = machine.claim()
    if 'trace' in era.final:
        build.log = LOG     # it comes with the last PUT, and no PATCH before
    else:
        build.write(LOG)
    assert build.finish().status == 200
    assert (found(ci, build)['status'], ci.read_trace(build.id)) == ('success', LOG)
    build = machine.claim()
    assert build.finish().status == 200  # without any output
    assert found(ci, build)['status'] == 'success'


def test_a_silent_build_lives_as_long_as_its_heart_beats(ci, clock, project, machine, era):
    queue(ci, project)
    build = machine.claim()
    build.write(b'sleep 1000\n')
    for _ in range(40):
        clock.advance(30)
        answer = build.beat()
        assert answer.status in (200, 202)
        assert answer.headers[era.status_header] == 'running'
        ci.sweep()
    build.write(b'done\n')
    assert ci.read_trace(build.id) == b'sleep 1000\ndone\n'
    clock.advance(minutes=10)
    ci.sweep()
    assert (found(ci, build)['status'], found(ci, build)['failure_reason']) == ('failed', 'stuck_or_timeout_failure')


# -- cancel

def stops(era, what, answer):
    """Tell whether an answer makes a runner of the era stop its script."""
    if answer.headers[era.status_header] in ('canceled', 'failed') or answer.status == 403:
        return what == 'trace' or era.heartbeat == 'state'   # the answer to a PUT was not looked at before 11.11
    return False


@pytest.mark.parametrize('silent', [False, True])
def test_a_canceled_build_stops_at_its_next_word(ci, project, machine, era, silent):
    pipeline = queue(ci, project)
    build = machine.claim()
    build.write(LOG)
    ci.cancel_job(ci.cancel_job(found(ci, build)))  # twice, for a runner that would end in good order
    answer = build.beat() if silent else build.write(b'more\n')
    assert stops(era, era.heartbeat if silent else 'trace', answer)
    assert build.finish('failed').status in (200, 403, 404)     # any of them ends it
    assert (found(ci, build)['status'], ci.read_trace(build.id)) == ('canceled', LOG)
    assert ci.find_pipeline(pipeline)['status'] == 'canceled'
    assert machine.ask().status == 204


def test_only_a_runner_that_can_is_asked_to_end_its_job_in_good_order(ci, project, machine, era):
    queue(ci, project)
    build = machine.claim()
    build.write(LOG)
    able = 'cancel_gracefully' in era.info['features']
    assert ci.cancel_job(found(ci, build))['status'] == ('canceling' if able else 'canceled')
    if able:
        assert build.beat().headers['Job-Status'] == 'canceling'
        answer = build.patch(len(LOG), b'after_script\n')
        assert (answer.status, answer.headers['Job-Status']) == (202, 'canceling')
        build.log += b'after_script\n'
        assert build.finish('failed').status == 200
        assert (found(ci, build)['status'], ci.read_trace(build.id)) == ('canceled', build.log)


@pytest.mark.parametrize('name', ['18.6.6', '18.9.0'])
@pytest.mark.parametrize('kept', [False, True])
def test_a_job_that_was_canceled_while_its_runner_prepared_it_is_given_up(ci, server, project, name, kept):
    queue(ci, project)
    with contextlib.closing(Machine(ERAS[name], server)) as machine:
        machine.register(ci.registration_token)
        answer = machine.ask()
        payload = json.loads(answer.content)
        if kept:
            assert machine.send('state', {'token': payload['token'], 'state': 'pending'}, id=1).content == b'200'
        ci.cancel_job(ci.find_job(1))
        build = Build(machine, answer)  # dropped without another word
        assert (build.announced.status, build.announced.headers['Job-Status']) == (403, 'canceled')
        row = found(ci, build)
        assert (row['status'], row['started_at']) == ('canceled', None)
        assert machine.ask().status == 204


# -- two-phase commit

@pytest.fixture(params=['18.6.6', '18.9.0'])
def preparing(request, ci, server, project):
    """A runner that was given a job and has not said a word of it."""
    queue(ci, project)
    with contextlib.closing(Machine(ERAS[request.param], server)) as machine:
        machine.register(ci.registration_token)
        answer = machine.ask()
        machine.payload = json.loads(answer.content)
        machine.accept = lambda: Build(machine, answer)
        machine.say = lambda state: machine.send('state', {'token': machine.payload['token'], 'state': state}, id=1)
        yield machine


def test_a_job_is_pending_until_its_runner_accepts_it_and_nobody_else_gets_it(ci, clock, server, preparing):
    row = ci.find_job(1)
    assert (row['status'], row['runner_id'], row['started_at']) == ('pending', 1, None)
    assert ci.pending_reason(row) == 'runner 1 (shell on host) is preparing it'
    assert ci.find_pipeline(1)['status'] == 'pending'
    for name in ('A 1.11.5', '18.9.0'):
        with contextlib.closing(Machine(ERAS[name], server)) as other:
            other.register(ci.registration_token)
            assert other.ask().status in (204, 404)
    clock.advance(40)
    build = preparing.accept()
    assert (build.announced.status, build.announced.content, build.announced.headers['Job-Status']) == (
        200, b'200', 'running')
    row = found(ci, build)
    assert (row['status'], row['started_at']) == ('running', clock())
    assert ci.find_pipeline(1)['started_at'] == clock()
    clock.advance(7)
    build.write(LOG)
    assert build.finish().status == 200
    assert found(ci, build)['finished_at'] - found(ci, build)['started_at'] == 7


def test_a_job_that_its_runner_keeps_waits_for_it_beyond_the_claim_timeout(ci, clock, preparing):
    for _ in range(5):
        clock.advance(100)
        answer = preparing.say('pending')
        assert (answer.status, answer.content, answer.headers['Job-Status']) == (200, b'200', 'pending')
        ci.sweep()
        assert ci.find_job(1)['status'] == 'pending'
    build = preparing.accept()
    assert build.announced.status == 200
    assert preparing.say('pending').status == 400   # it runs
    assert build.finish().status == 200
    assert preparing.say('pending').status == 403   # it has left its runner


def test_a_job_that_is_being_canceled_cannot_be_kept(ci, preparing):
    build = preparing.accept()
    ci.cancel_job(ci.find_job(1))
    assert build.put('running').headers['Job-Status'] == 'canceling'
    assert preparing.say('pending').status == 409


def test_a_job_that_is_not_accepted_goes_back_to_the_queue_with_a_new_token(ci, clock, preparing):
    clock.advance(119)
    ci.sweep()
    assert ci.find_job(1)['runner_id'] == 1
    clock.advance(1)
    ci.sweep()
    row = ci.find_job(1)
    assert (row['status'], row['runner_id'], row['claimed_at']) == ('pending', None, None)
    for state in ('pending', 'running', 'success'):
        assert preparing.say(state).status == 403
    again = preparing.claim()
    assert again.id == 1
    assert again.payload['token'] != preparing.payload['token']
    assert again.finish().status == 200


def test_a_job_that_three_runners_prepared_and_none_accepted_fails(ci, clock, preparing):
    for attempt in (1, 2, 3):
        assert ci.find_job(1)['attempts'] == attempt
        clock.advance(120)
        ci.sweep()
        if attempt < 3:
            assert preparing.ask().status == 201
    assert (ci.find_job(1)['status'], ci.find_job(1)['failure_reason']) == ('failed', 'claims_unanswered')


@pytest.mark.parametrize('first', ['trace', 'upload', 'end'])
def test_a_lost_acceptance_kills_no_job_whatever_its_runner_sends_next(ci, clock, preparing, first):
    build = Build.__new__(Build)    # its PUT never arrived
    vars(build).update(machine=preparing, era=preparing.era, payload=preparing.payload, id=1, log=b'', sent=0,
                       headers={'Job-Token': preparing.payload['token']})
    clock.advance(30)
    if first == 'trace':
        assert build.write(LOG).headers['Job-Status'] == 'running'
    elif first == 'upload':
        assert build.upload(ZIP).status == 201
    if first != 'end':
        assert (ci.find_job(1)['status'], ci.find_job(1)['started_at']) == ('running', clock())
    assert build.finish().status == 200
    row = ci.find_job(1)
    assert (row['status'], row['started_at'], row['finished_at']) == ('success', clock(), clock())


def test_an_acceptance_may_be_repeated(ci, clock, preparing):
    build = preparing.accept()
    started = found(ci, build)['started_at']
    clock.advance(5)
    assert build.put('running').status == 200
    assert found(ci, build)['started_at'] == started


def test_a_restart_of_the_server_leaves_a_prepared_job_with_its_runner(ci, clock, preparing):
    clock.advance(90)
    with minici.Coordinator(ci.db.path, clock=clock, fsync=False) as other, minici.Server(other, port=0) as server:
        clock.advance(90)
        other.sweep()   # it could hear no runner before
        preparing.close()
        preparing.address = server.port
        build = preparing.accept()
        assert build.announced.status == 200
        assert build.finish().status == 200
    assert ci.find_job(1)['status'] == 'success'


def test_runners_with_and_without_acceptance_share_one_queue(ci, server, project):
    ci.create_pipeline(project, 'main', sha=SHA, content={f'job {number}': {'script': ['x']} for number in range(6)})
    with contextlib.ExitStack() as stack:
        for name in ('18.9.0', 'D 14.7.1', 'A 1.11.5') * 2:
            machine = stack.enter_context(contextlib.closing(Machine(ERAS[name], server)))
            machine.register(ci.registration_token)
            claimed = json.loads(machine.ask().content)['id']
            assert ci.find_job(claimed)['status'] == ('pending' if name == '18.9.0' else 'running')
    assert [ci.find_job(number)['status'] for number in range(1, 7)] == ['pending', 'running', 'running'] * 2
    assert [ci.find_job(number)['attempts'] for number in range(1, 7)] == [1] * 6


def test_a_stamped_trace_is_stored_as_it_came(ci, project, server):
    queue(ci, project)
    with contextlib.closing(Machine(ERAS['18.9.0'], server)) as machine:
        machine.register(ci.registration_token)
        build = machine.claim()
        log = stamped(LOG)
        for cut in (1, 31, 32, 100):
            build.write(log[build.sent:cut])
        build.write(log[100:])
        assert build.finish().status == 200
    assert ci.read_trace(1) == log
    assert b''.join(ci.traces.plain(1)) == b'$ make <all> && echo "d\xc3\xa9j\xc3\xa0 vu \xe2\x9c\x93"\n' * 7


# -- what went wrong on the way

def test_a_trace_that_lost_its_end_is_filled_up(ci, project, machine):
    queue(ci, project)
    build = machine.claim()
    build.write(LOG[:200])
    ci.traces.path(build.id).write_bytes(LOG[:90])
    build.write(LOG[200:])
    assert ci.read_trace(build.id) == LOG
    assert build.finish().status == 200
    assert ci.read_trace(build.id) == LOG


def test_a_piece_that_is_sent_again_is_stored_once(ci, project, machine):
    queue(ci, project)
    build = machine.claim()
    build.write(LOG[:100])
    build.sent = 0  # the answer was lost
    build.write(LOG[100:200])
    assert ci.read_trace(build.id) == LOG[:200]
    answer = build.patch(100, LOG[100:200])
    assert (answer.status in (202, 416), answer.headers['Range']) == (True, '0-200')
    build.write(LOG[200:])
    assert ci.read_trace(build.id) == LOG


def test_the_end_may_be_told_again(ci, project, machine):
    queue(ci, project)
    build = machine.claim()
    build.write(LOG)
    assert [build.finish('failed').status for _ in range(3)] == [200, 200, 200]
    assert (found(ci, build)['status'], ci.read_trace(build.id)) == ('failed', LOG)


@pytest.mark.parametrize('name', [name for name, era in ERAS.items() if 'checksum' in era.final])
def test_a_damaged_trace_is_asked_for_once_more(ci, server, project, name):
    queue(ci, project)
    with contextlib.closing(Machine(ERAS[name], server)) as machine:
        machine.register(ci.registration_token)
        build = machine.claim()
        build.write(LOG)
        ci.traces.path(build.id).write_bytes(LOG[::-1])
        assert build.finish().status == 412
        build.sent = 0  # rewinds, sends everything again, then the end
        build.write(b'')
        assert build.finish().status == 200
        assert ci.read_trace(build.id) == LOG


def test_an_upload_that_may_not_be_is_403_and_one_too_large_413(tmp_path, clock, era):
    with minici.Coordinator(tmp_path / 'small.sqlite', clock=clock, fsync=False, max_artifacts_size=3000) as ci:
        queue(ci, ci.create_project('group/small'))
        with minici.Server(ci) as server, contextlib.closing(Machine(era, server)) as machine:
            machine.register(ci.registration_token)
            build = machine.claim()
            assert build.upload(b'x' * 3001).status == 413
            assert build.upload(b'x' * 20_000_000).status == 413  # not a reset connection, after which it tries again
            assert build.upload(b'x' * 3000, expire_in='').status == 201
            build.headers = {era.token_header: 'wrong'}
            assert build.upload(b'x').status == 403
            assert ci.find_artifact(build.id)['size'] == 3000
            assert build.finish('failed').status == 200


def test_a_dependency_whose_artifacts_are_gone_is_not_offered(ci, clock, project, machine):
    queue(ci, project)
    build = machine.claim()
    assert build.upload(ZIP, expire_in='1+hour').status == 201
    assert build.finish().status == 200
    clock.advance(hours=2)
    second = machine.claim()
    assert list(second.dependencies()) == []
    assert second.download({'id': build.id, 'token': second.payload['token']}).status == 404


# -- tokens, polling

def test_registering_with_a_bad_token_is_403(era, server):
    with contextlib.closing(Machine(era, server)) as machine:
        answer = machine.send('register', {'info': era.info, 'token': 'bad', 'description': '', **era.settings})
        assert answer.status == 403


def test_a_removed_runner_is_told_403_by_everything(ci, client, token, machine, era):
    client.call('DELETE', '/api/v4/runners/1', token=token, status=204)
    assert machine.send('verify', {'token': machine.token, **era.machine}).status == 403
    assert machine.ask().status == 403
    assert machine.send('unregister', {'token': machine.token}).status == 403


def test_a_person_s_runner_is_verified_and_never_registers(ci, server, project):
    _, token = ci.create_runner()
    era = ERAS['18.6.6']
    with contextlib.closing(Machine(era, server)) as machine:
        machine.token = token
        answer = machine.succeeds('verify', {'token': token, **era.machine}, accept=True)
        assert answer.headers['Content-Type'] == 'application/json'
        assert json.loads(answer.content) == {'id': 1, 'token': token, 'token_expires_at': None}
        queue(ci, project)
        assert machine.claim().finish().status == 200
        machine.succeeds('unregister manager', {'token': token, **era.machine})
        assert machine.send('verify', {'token': token, **era.machine}).status == 200


def test_nothing_to_do_is_204_and_404_to_an_agent_of_2016_that_hides_its_name(server, ci):
    for era, status in ((ERAS['A 1.5.3'], 404), (ERAS['A 1.11.5'], 404), (ERAS['B 10.8.2'], 204)):
        with contextlib.closing(Machine(era, server)) as machine:
            machine.register(ci.registration_token)
            assert machine.ask().status == 204
            hidden = Machine(Era('Go-http-client/1.1', base=era.base, calls=era.calls), server)
            with contextlib.closing(hidden):
                hidden.token = machine.token
                assert hidden.ask().status == status


# -- two eras, one queue

def pairs(count):
    """Return a file of `count` jobs of 2016 and today each, whose artifacts cross over, and as many for anybody."""
    jobs = {'stages': ['build', 'test']}
    for number in range(count):
        for kind, tags, after in (('old', ['old'], ['new']), ('new', ['new'], ['old']), ('any', [], [])):
            name = f'{kind}{number}'
            jobs[name] = {'stage': 'build', 'script': ['x'], 'tags': tags, 'artifacts': {'paths': ['out/']}}
            jobs[f'{name} check'] = {'stage': 'test', 'script': ['x'], 'tags': after, 'dependencies': [name]}
    return jobs


def drain(machine, done, ran):
    """Run builds until `done`; each makes a file of its name, or checks the one of the build it depends on."""
    while True:
        answer = machine.ask()
        if answer.status == 204:
            if done():
                return
            continue
        build = Build(machine, answer)
        name = build.payload.get('name') or build.payload['job_info']['name']
        build.write(f'{name} on {machine.era.agent}\n'.encode())
        fetched = [(item['name'], build.download(item).content) for item in build.dependencies()]
        ok = fetched == [(name[:-6], f'made by {name[:-6]}'.encode())] if name.endswith(' check') else \
            build.upload(f'made by {name}'.encode()).status == 201
        status = build.finish('success' if ok else 'failed').status
        ran.append((build.id, name, machine.era.base, status))


def test_a_v1_and_a_v4_runner_drain_one_queue_and_their_artifacts_cross(ci, server, project):
    pipelines = [queue(ci, project, **pairs(count)) for count in (17, 17)]   # 204 builds
    ran, threads = [], []

    def done():
        return all(ci.find_pipeline(pipeline)['status'] in ('success', 'failed') for pipeline in pipelines)

    with contextlib.ExitStack() as stack:
        for name, tag in (('A 1.11.5', 'old'), ('18.6.6', 'new')) * 2:
            machine = stack.enter_context(contextlib.closing(Machine(ERAS[name], server)))
            _, machine.token = ci.register_runner(ci.registration_token, tag_list=[tag])
            threads.append(threading.Thread(target=drain, args=(machine, done, ran)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(id for id, *_ in ran) == list(range(1, 205))
    assert {status for *_, status in ran} == {200}
    assert [ci.find_pipeline(pipeline)['status'] for pipeline in pipelines] == ['success', 'success']
    bases = {(name, base) for _, name, base, _ in ran}
    assert ('old0', '/ci/api/v1') in bases
    assert ('old0 check', '/api/v4') in bases
    assert ('new0 check', '/ci/api/v1') in bases
    assert all(ci.read_trace(id).startswith(f'{name} on '.encode()) for id, name, *_ in ran)


def test_a_list_of_jobs_says_who_prepares_one(ci, client, token, preparing):
    jobs = client.call('GET', '/api/v4/projects/1/jobs', token=token, status=200).json
    shown = next(job for job in jobs if job['id'] == 1)
    assert (shown['status'], shown['started_at'], shown['runner']['id']) == ('pending', None, 1)
