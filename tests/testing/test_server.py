"""What a test drives without a runner: jobs in this process, pipelines in any state, seeds, controls over HTTP."""

import ast
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from minici_testing import JobFailed, JobState, MiniciServer

import minici


@pytest.fixture
def server():
    with MiniciServer() as running:
        yield running


def test_one_line_makes_a_pending_job_whose_payload_is_known(server):
    job = server.enqueue(['make', 'make test'], name='unit', tags=['linux'], variables={'MODE': 'fast'})
    assert (job.status, job.name) == ('pending', 'unit')
    running = server.claim()
    assert (running.id, running.name, running.script) == (job.id, 'unit', ['make', 'make test'])
    assert running.variables['MODE'] == 'fast'


def test_a_script_writes_uploads_and_reports(server):
    pipeline = server.add_pipeline({
        'build': {'stage': 'build', 'script': ['make'], 'artifacts': {'paths': ['out'], 'reports': {'dotenv': 'env'}}},
        'test': {'stage': 'test', 'script': ['make test']}})
    seen = {}

    def build(job):
        job.write('compiling\n')
        job.write('done\n')
        job.upload({'out/app': b'\x7fELF'})
        job.report('dotenv', 'VERSION=1.2\n')

    def test(job):
        seen.update(job.variables)
        job.fail('script_failure', exit_code=3)

    jobs = server.run_pending({'build': build, 'test': test})
    assert [(job.name, job.status) for job in jobs] == [('build', 'success'), ('test', 'failed')]
    assert seen['VERSION'] == '1.2'
    assert jobs[1].exit_code == 3
    assert server.ci.read_trace(jobs[0]) == b'compiling\ndone\n'
    assert server.ci.find_artifact(jobs[0].id)['filename'] == 'artifacts.zip'
    assert server.ci.find_pipeline(pipeline).status == 'failed'


@pytest.mark.parametrize('script, status', [
    ('some output\n', 'success'), (lambda job: None, 'success'), (lambda job: False, 'failed')])
def test_a_script_is_a_text_or_a_function_and_decides_the_state(server, script, status):
    server.enqueue()
    assert server.run_job(script).status == status


def test_a_script_that_raises_something_else_is_a_fault_of_the_test(server):
    server.enqueue()
    with pytest.raises(ZeroDivisionError):
        server.run_job(lambda job: 1 / 0)
    with pytest.raises(JobFailed):
        server.claim(server.enqueue()).fail()


def test_a_certain_job_is_run_before_older_ones(server):
    older, wanted = server.enqueue(name='older'), server.enqueue(name='wanted')
    assert server.run_job('mine\n', job=wanted).status == 'success'
    waiting = server.ci.find_job(older)
    assert (waiting.status, waiting.attempts) == ('pending', 0)


def test_what_cannot_be_claimed_is_said_with_its_reason(server):
    with pytest.raises(AssertionError, match='there are no jobs at all'):
        server.run_job()
    job = server.enqueue(when='manual')
    with pytest.raises(AssertionError, match=r'job 1 \(test\) is manual: '):
        server.run_job(job=job)


def test_past_faults_and_tape(server):
    server.faults.add('*', '*', times=None, status=500)
    server.enqueue()
    server.run_job('x\n')
    assert len(server.tape) == 0


STATES = ('success', 'failed', 'canceled', 'skipped', 'running', 'pending', 'manual', 'scheduled', 'created')


def test_a_pipeline_has_its_jobs_in_any_state(server):
    server.enqueue(name='an older one that waits')
    pipeline = server.build_pipeline({state: state for state in STATES})
    assert {job.name: job.status for job in server.jobs(pipeline)} == {state: state for state in STATES}
    assert pipeline.status == 'running'


@pytest.mark.parametrize('states, status', [
    ({'a': 'success'}, 'success'), ({'a': 'success', 'b': 'failed'}, 'failed'), ({'a': 'canceled'}, 'canceled'),
    ({'a': 'pending'}, 'pending'), ({'a': 'running', 'b': 'success'}, 'running'), ({'a': 'skipped'}, 'skipped')])
def test_a_pipeline_is_in_the_state_that_follows(server, states, status):
    assert server.build_pipeline(states).status == status


def test_a_state_brings_trace_artifacts_and_reports(server):
    pipeline = server.build_pipeline({'unit': JobState('failed', 'boom\n', {'a.txt': 'A'}, {'junit': '<testsuites/>'},
                                                       {'tags': ['x'], 'allow_failure': True})})
    job, = server.jobs(pipeline)
    assert server.ci.read_trace(job) == b'boom\n'
    assert server.ci.find_artifact(job.id, 'junit').file_format == 'gzip'
    assert (json.loads(job.tags), job.allow_failure, pipeline.status) == (['x'], 1, 'success')


@pytest.mark.parametrize('states', [{'a': 'created'}, {'a': 'nonsense'}])
def test_a_state_that_cannot_be_is_refused(server, states):
    with pytest.raises(ValueError, match='cannot be brought into the state'):
        server.build_pipeline(states)


def snapshot(server):
    """Return what a test might compare with a file: ids, tokens, moments."""
    job = server.run_job('x\n', job=server.enqueue())
    _, token = server.ci.register_runner(server.registration_token)
    return server.private_token, server.registration_token, token, job.id, job.created_at, server.ci.instance


def test_a_seed_decides_ids_tokens_and_moments():
    with MiniciServer(seed=7) as one, MiniciServer(seed=7) as same, MiniciServer(seed=8) as other:
        first = snapshot(one)
        assert first == snapshot(same)
        assert set(first[:3]).isdisjoint(snapshot(other)[:3])
        one.clock.advance(days=1)
        one.reset()
        assert first == snapshot(one)


def test_an_ordinary_coordinator_cannot_be_seeded(tmp_path):
    with pytest.raises(TypeError):
        MiniciServer(db=tmp_path / 'ci.sqlite')
    with minici.Coordinator() as one, minici.Coordinator() as other:
        assert one.registration_token != other.registration_token


def test_waiting_ends_when_a_condition_holds(server):
    job = server.enqueue()
    assert server.wait(job, for_=lambda row: row.status == 'pending').id == job.id
    with pytest.raises(TimeoutError, match=r'job 1 \(test\) is pending after 0 s: no runner is registered'):
        server.wait(job, timeout=0)


def test_rows_have_attributes_and_a_repr_without_secrets(server):
    project = server.add_project('group/demo', import_url='https://user:pass-word@host/demo.git')
    assert project.path == project['path'] == 'group/demo'
    assert "path='group/demo'" in repr(project)
    assert 'pass-word' not in repr(project)
    assert project.runners_token not in repr(project)
    with pytest.raises(AttributeError, match="no column 'pathh'; it has id, path, "):
        _ = project.pathh
    assert repr(server.enqueue()).startswith("<Row id=1 project_id=2 pipeline_id=1 name='test' stage='test'")


# -- the controls over HTTP

class Process:
    """`python -m minici_testing` in a process of its own."""

    def __init__(self, *options):
        self.process = subprocess.Popen([sys.executable, '-m', 'minici_testing', *options], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        self.about = json.loads(self.process.stdout.readline())

    def call(self, method, path, body=None, **headers):
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {name.replace('_', '-'): value for name, value in headers.items()}
        request = urllib.request.Request(self.about['url'] + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


@pytest.fixture(scope='module')
def process():
    running = Process()
    yield running
    running.process.communicate(timeout=20)
    assert running.process.returncode == 0


def test_faults_are_ordered_listed_and_removed_over_http(process):
    process.call('POST', '/-/test/reset')
    status, rule = process.call('POST', '/-/test/faults', {'method': 'GET', 'path': '/api/v4/version', 'status': 500})
    assert (status, rule['id'], rule['fired']) == (201, 1, 0)
    private = {'PRIVATE_TOKEN': process.about['private_token']}
    request = urllib.request.Request(process.about['url'] + '/api/v4/version')
    with pytest.raises(urllib.error.HTTPError, match='500') as caught:
        urllib.request.urlopen(request)
    caught.value.close()
    assert process.call('GET', '/api/v4/version', **private)[0] == 200
    assert process.call('GET', '/-/test/faults')[1][0]['fired'] == 1
    assert process.call('DELETE', '/-/test/faults/1') == (200, {})
    assert process.call('DELETE', '/-/test/faults/1')[0] == 404
    assert process.call('GET', '/-/test/faults') == (200, [])


def test_the_clock_moves_over_http_and_what_is_due_is_done(process):
    process.call('POST', '/-/test/reset')
    now = process.call('GET', '/-/test/clock')[1]['now']
    assert process.call('POST', '/-/test/clock', {'advance': 90}) == (200, {'now': now + 90})
    assert process.call('POST', '/-/test/clock', {'now': now}) == (200, {'now': now})
    for nonsense in ({}, {'advance': 'soon'}, {'now': None}):
        assert process.call('POST', '/-/test/clock', nonsense)[0] == 400


def test_a_reset_begins_again_with_the_same_tokens_and_names_unused_faults(process):
    process.call('POST', '/-/test/reset')
    private = {'PRIVATE_TOKEN': process.about['private_token']}
    assert process.call('POST', '/api/v4/projects?path=demo', **private)[1]['id'] == 1
    process.call('POST', '/-/test/faults', {'path': '/nowhere', 'fault': 'lost_answer'})
    status, about = process.call('POST', '/-/test/reset')
    assert (status, about.pop('unused_faults')) == (200, ['* /nowhere (number 1, 1 times): lost_answer'])
    assert about == process.about
    assert process.call('GET', '/api/v4/projects', **private) == (200, [])


def test_the_tape_is_read_over_http_without_secrets(process):
    process.call('POST', '/-/test/reset')
    process.call('GET', '/api/v4/projects', PRIVATE_TOKEN=process.about['private_token'])
    status, tape = process.call('GET', '/-/test/tape?method=GET&path=/api/*&status=200')
    assert (status, [exchange['path'] for exchange in tape]) == (200, ['/api/v4/projects'])
    assert process.about['private_token'] not in json.dumps(tape)
    assert process.call('GET', '/-/test/tape?status=x')[0] == 400


@pytest.mark.parametrize('method, path, body, status', [
    ('POST', '/-/test/faults', {'path': '/x'}, 400), ('POST', '/-/test/faults', {'status': 500}, 400),
    ('POST', '/-/test/faults', {'path': '/x', 'fault': 'nonsense'}, 400),
    ('POST', '/-/test/faults', {'path': '/x', 'status': 500, 'when': 'x'}, 400),
    ('POST', '/-/test/faults', {'path': '/x', 'status': 'x'}, 400), ('POST', '/-/test/faults', b'nonsense', 400),
    ('POST', '/-/test/faults', [], 400), ('GET', '/-/test/nothing', None, 404), ('PUT', '/-/test/clock', {}, 405)])
def test_nonsense_is_answered_with_what_is_wrong(process, method, path, body, status):
    answered, error = process.call(method, path, body)
    assert (answered, error.keys()) == (status, {'error'})


@pytest.mark.parametrize('headers', [
    {'Host': 'evil.example'}, {'Origin': 'https://evil.example'}, {'Sec_Fetch_Site': 'cross-site'}])
def test_the_controls_answer_to_no_web_page(process, headers):
    assert process.call('POST', '/-/test/reset', **headers)[0] == 403


def test_it_ends_by_a_signal_too():
    running = Process('--detached', '--seed', '5')
    running.process.stdin.close()
    assert running.call('GET', '/-/test')[1] == running.about
    running.process.send_signal(signal.SIGTERM)
    running.process.stdout.read()
    running.process.stdout.close()
    assert running.process.wait(20) == 0


def test_the_controls_are_not_in_minici_itself():
    with minici.Coordinator() as ci, minici.Server(ci) as server:
        request = urllib.request.Request(f'{server.url}/-/test/clock')
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        caught.value.close()
        assert caught.value.code in (401, 404)
    source = Path(minici.__file__).read_text(encoding='utf-8')
    texts = [node.value for node in ast.walk(ast.parse(source))
             if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert [text for text in texts if '/-/test' in text] == []
