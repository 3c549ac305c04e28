"""The tape: what it keeps, that it holds no secret, and the rules by which it judges a runner."""

import json
import urllib.error
import urllib.request

import pytest
from minici_testing import Fault, MiniciServer, ProtocolError, Tape, replay
from minici_testing.protocol import RULES
from support import EXAMPLES

REQUEST = '/api/v4/jobs/request'


@pytest.fixture
def server():
    with MiniciServer() as running:
        yield running


def send(server, method, path, body=None, **headers):
    """Send a request; return the status and the JSON of the answer, (0, None) when none came."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
    headers = {name.replace('_', '-'): value for name, value in headers.items()}
    request = urllib.request.Request(server.url + path, data, {'Content-Type': 'application/json', **headers},
                                     method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None
    except OSError:
        return 0, None


class BadRunner:
    """A runner that sends what it is told to."""

    def __init__(self, server):
        self.server = server
        server.enqueue('make')
        self.token = send(server, 'POST', '/api/v4/runners', {'token': server.registration_token})[1]['token']
        self.claim()

    def claim(self):
        self.job = send(self.server, 'POST', REQUEST, {'token': self.token})[1]
        self.path = f'/api/v4/jobs/{self.job["id"]}'

    def patch(self, start, data, end=None, token=None):
        last = start + len(data) - 1 if end is None else end
        return send(self.server, 'PATCH', f'{self.path}/trace', data, JOB_TOKEN=token or self.job['token'],
                    Content_Range=f'{start}-{last}')[0]

    def put(self, state):
        return send(self.server, 'PUT', self.path, {'token': self.job['token'], 'state': state})[0]


@pytest.fixture
def runner(server):
    return BadRunner(server)


def broken(server):
    """Return the numbers of the rules that were broken."""
    with pytest.raises(ProtocolError) as caught:
        server.tape.assert_protocol()
    for number in caught.value.broken:
        assert RULES[number] in str(caught.value)
    return caught.value.broken


def test_a_runner_that_keeps_to_the_protocol_passes(server, runner):
    server.faults.add('PATCH', '*', nth=2, fault=Fault.LOST_ANSWER)
    server.faults.add('PUT', '*', status=502)
    assert runner.patch(0, b'one\n') == 202
    assert runner.patch(4, b'two\n') == 0
    assert runner.patch(4, b'two\n') == 202
    assert runner.put('running') == 502
    assert runner.put('running') == 200
    assert runner.put('success') == 200
    server.tape.assert_protocol()


def wrong_start(runner):
    runner.patch(0, b'one\n')
    runner.patch(3, b'two\n')
    runner.patch(4, b'two\n')
    runner.put('success')


def wrong_start_after_416(runner):
    runner.patch(4, b'two\n')
    runner.patch(4, b'two\n')
    runner.patch(0, b'one\n')
    runner.put('success')


def wrong_length(runner):
    runner.patch(0, b'one\n', end=99)
    runner.put('success')


def final_state_twice(runner):
    runner.put('success')
    runner.put('success')


def output_after_the_end(runner):
    runner.put('success')
    runner.patch(0, b'late\n')


def output_after_cancel(runner):
    runner.patch(0, b'one\n')
    runner.server.ci.cancel_job(runner.server.ci.find_job(runner.job['id']))
    runner.patch(4, b'two\n')
    runner.patch(4, b'two\n')


def silence(runner):
    runner.patch(0, b'one\n')
    runner.server.clock.advance(minutes=11)
    runner.put('success')


def no_second_try(runner):
    runner.server.faults.add('PATCH', '*', status=503)
    runner.patch(0, b'one\n')
    runner.put('success')


def no_second_try_at_the_end(runner):
    runner.server.faults.add('PUT', '*', fault=Fault.LOST_ANSWER)
    runner.put('success')


def token_of_another_job(runner):
    first = runner.job['token']
    runner.put('success')
    runner.server.enqueue('make')
    runner.claim()
    runner.patch(0, b'one\n', token=first)
    runner.put('success')


def claimed_and_forgotten(runner):
    runner.patch(0, b'one\n')


@pytest.mark.parametrize('behaviour, rules', [
    (wrong_start, [1]), (wrong_start_after_416, [1, 2]), (wrong_length, [3]), (final_state_twice, [4]),
    (output_after_the_end, [5]), (output_after_cancel, [6]), (silence, [7]), (no_second_try, [8]),
    (no_second_try_at_the_end, [8]), (token_of_another_job, [9]), (claimed_and_forgotten, [10])])
def test_each_rule_is_named_when_it_is_broken(server, runner, behaviour, rules):
    behaviour(runner)
    assert broken(server) == rules
    server.tape.assert_protocol(except_rules=rules)


def test_the_guide_lists_the_rules_as_the_module_has_them():
    guide = (EXAMPLES / 'minici_testing' / 'README.md').read_text(encoding='utf-8')
    assert len(RULES) == 10
    for number, text in RULES.items():
        assert f'\n{number}. {text}\n' in guide


def test_the_tape_holds_no_secret_of_the_run(server):
    server.ci.set_variable(None, 'DEPLOY_KEY', 'masked-value-0815', masked=True)
    runner = BadRunner(server)
    runner.patch(0, b'one\n')
    runner.put('success')
    private = {'PRIVATE_TOKEN': server.private_token}
    _, trigger = send(server, 'POST', '/api/v4/projects/demo/triggers', {'description': 'x'}, **private)
    _, project = send(server, 'GET', '/api/v4/projects/demo', **private)
    send(server, 'GET', f'/api/v4/user?private_token={server.private_token}')
    send(server, 'POST', '/api/v4/projects/demo/trigger/pipeline', {'token': trigger['token'], 'ref': 'main'})
    kept = ''.join(json.dumps(vars(exchange)) for exchange in server.tape)
    secrets = [server.private_token, server.registration_token, runner.token, runner.job['token'], trigger['token'],
               project['runners_token'], 'masked-value-0815']
    assert [secret for secret in secrets if secret in kept] == []
    for name in ('<private token 1>', '<registration token 1>', '<runner token 1>', '<job token 1>',
                 '<trigger token 1>', '<variable DEPLOY_KEY 1>'):
        assert name in kept, name
    assert server.tape.find('GET', '/api/v4/user')[0].actor == '<private token 1>'
    assert server.tape.find('PATCH')[0].actor == '<job token 1>'


def test_exchanges_are_found_and_waited_for(server, runner):
    found = server.tape.find('POST', '/api/v4/*', status=201)
    assert [exchange.path for exchange in found] == ['/api/v4/runners', REQUEST]
    assert found[1].answer_json['id'] == runner.job['id']
    assert server.tape.wait_for('POST', REQUEST, timeout=1) == found[1:]
    with pytest.raises(TimeoutError, match='0 of 2 GET /nowhere came within 0 s'):
        server.tape.wait_for('GET', '/nowhere', count=2, timeout=0)
    assert repr(server.tape).splitlines()[1] == f'#2 <runner token 1>: POST {REQUEST} -> 201'


def test_bodies_are_kept_up_to_a_limit(server, runner):
    runner.patch(0, b'x' * 100_000)
    exchange, = server.tape.find('PATCH')
    assert (exchange.size, len(exchange.body), exchange.cut) == (100_000, 65_536, True)


def test_a_saved_tape_is_replayed_against_a_server_of_the_same_seed(server, runner, tmp_path):
    runner.patch(0, b'one\n')
    runner.put('success')
    server.tape.save(tmp_path / 'tape')
    assert '#3 <job token 1>: PATCH /api/v4/jobs/1/trace -> 202' in (tmp_path / 'tape').read_text()
    exchanges = Tape.load(tmp_path / 'tape')
    with MiniciServer() as other:
        other.enqueue('make')
        assert replay(exchanges, other) == []
        assert other.ci.find_job(1).status == 'success'
        assert other.ci.read_trace(1) == b'one\n'
        assert [status for _, status in replay(exchanges[1:2], other)] == [204]


def test_a_request_that_makes_the_application_raise_is_on_the_tape():
    def application(environ, start_response):
        raise ValueError('broken')

    tape = Tape(application)
    environ = {'REQUEST_METHOD': 'GET', 'PATH_INFO': '/', 'wsgi.input': None}
    with pytest.raises(ValueError, match='broken'):
        tape(environ, None)
    assert repr(tape) == '#1 anonymous: GET / -> no answer'
