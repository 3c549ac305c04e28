"""Whatever is sent, the answer is a sane one: never 5xx, nothing logged as an error, no byte of a trace lost."""

import io
import json
import logging
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes
from wsgiref.util import setup_testing_defaults

import minici_pages
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support import PLAIN, SHA, Client, Clock, Runner, archive

import minici


def fuzz(examples=200, **options):
    """Return the settings of a test: the same examples in every run, however long one takes."""
    return settings(derandomize=True, deadline=None, database=None, max_examples=examples,
                    suppress_health_check=list(HealthCheck), **options)


NAMES = [
    'token', 'state', 'trace', 'ref', 'sha', 'content', 'variables', 'scope', 'page', 'per_page', 'pagination',
    'cursor',
    'tag_list', 'info', 'description', 'locked', 'active', 'paused', 'run_untagged', 'access_level', 'maximum_timeout',
    'maintenance_note', 'job_variables_attributes', 'name', 'path', 'import_url', 'build_timeout', 'default_branch',
    'shared_runners_enabled', 'expire_in', 'artifact_type', 'artifact_format', 'exit_code', 'failure_reason', 'file',
    'filesize', 'job', 'search', 'last_update', 'job_age', 'private_token', 'job_token', 'tag', 'include_retried', 'id',
    'status', 'source', 'system_id', 'session', 'checksum', 'output', 'runner_type', 'project_id', 'runner_id',
    'features', 'csrf', 'project', 'key', 'value', 'variable_type', 'masked', 'remove', 'revoke', 'back', 'number',
    'offset', 'errors', 'code', 'next', 'file_type']
WORDS = [
    'success', 'failed', 'running', 'main', SHA, '2 days', 'never', 'archive', 'zip', 'junit', 'gzip', 'keyset', 'true',
    '1',
    '0', '-1', '9' * 18, '9' * 19, '1e400', 'NaN', 'null', '..', '%', '\0', '\u20ac', 'a,b', 'instance_type']
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
    | st.sampled_from(WORDS) | st.integers(-2 ** 80, 2 ** 80)
    | st.text(st.characters(categories=['Cs', 'Cc', 'Lu']), max_size=4))
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
    st.sampled_from([*NAMES, 'key', 'value', 'version', 'script', 'stage', '0']) | st.text(max_size=5), inner,
    max_size=4), max_leaves=8)
PARAMETERS = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4)


class Surface:
    """A coordinator whose every route has something to do, and a way to call it past any client's good manners."""

    def __init__(self, path):
        self.ci = minici.Coordinator(path / 'ci.sqlite', fsync=False)
        self.app = minici.create_app(self.ci)
        self.routes = self.app.routes
        self.token, self.project, self.runner, self.claim = self.ci.create_private_token(), None, None, None
        self.cookie = f'minici_{self.ci.instance}={self.ci.sign_in_with(self.token)}'
        self.csrf = minici_pages.csrf_token(minici.Call(self.ci, self.routes[0], {'HTTP_COOKIE': self.cookie}))

    def ready(self):
        """Make sure that there is a project and a runner with a running job, and that the job has an archive."""
        if self.project is None or not self.ci.list_projects(search='group/demo')[1]:
            self.project = self.ci.create_project('group/demo')
            self.trigger = self.ci.create_trigger(self.project, self.ci.find_user(self.token), '')['token']
        if self.runner is None or self.runner.row is None or not self.runner.row['active']:
            self.runner = Runner(self.ci)
        if self.claim is None or self.ci.find_job_by_token(self.claim.token) is None:
            pipeline = self.ci.create_pipeline(self.project, 'main', sha=SHA, content=PLAIN)
            while self.claim is None or self.claim.job['pipeline_id'] != pipeline['id']:
                self.claim = self.runner.claim()
            part = self.ci.artifacts.receive()
            part.write(archive(a='b'))
            self.ci.store_artifacts(self.claim.job, part)
            part.discard()

    def address(self, route):
        """Return a route's path about the running job."""
        self.ready()
        job = self.claim.job
        values = {'id': self.project['id'] if '/projects/' in route.path else job['id'], 'job_id': job['id'],
                  'pipeline_id': job['pipeline_id'], 'runner_id': self.runner.id, 'job': job['id'],
                  'pipeline': job['pipeline_id'], 'runner': self.runner.id, 'ref': 'main', 'path': 'a',
                  'project': 'group/demo', 'sha': SHA, 'status': 'running',
                  'action': 'pause' if '/runners/' in route.path else 'cancel'}
        return re.sub(r'<(\w+)(?::\w+)?>', lambda match: str(values.get(match[1], 1)), route.path)

    def key(self, route):
        """Return the query parameter that opens a route; a page wants one only if it changes anything."""
        if not re.match(r'/(api/v[0-9]+|ci/(api|builds|runners|projects)|hooks)(/|$)', route.path):
            return f'csrf={self.csrf}' if route.method == 'POST' else ''
        if route.path.endswith(('/trigger', '/trigger/pipeline')):
            return f'token={self.trigger}'
        if '/projects' in route.path or '/user' in route.path or route.path.count('/runners/') and '<' in route.path:
            return f'private_token={self.token}'
        if route.path.endswith(('/runners/register', '/runners')) and route.method == 'POST':
            return f'token={self.ci.registration_token}'
        if '<id:job>' in route.path:
            return f'token={self.claim.token}'
        return f'token={self.runner.token}&private_token={self.token}'

    def send(self, method, path, query='', body=b'', kind='', length=None, **headers):
        """Call the application as a browser that is signed in; return its status, its headers and its body."""
        uri = path + (f'?{query}' if query else '')
        environ = {'REQUEST_METHOD': method, 'PATH_INFO': unquote_to_bytes(path).decode('latin-1'), 'REQUEST_URI': uri,
                   'QUERY_STRING': query, 'CONTENT_TYPE': kind, 'wsgi.input': io.BytesIO(body), **headers,
                   'CONTENT_LENGTH': str(len(body)) if length is None else length}
        environ.setdefault('HTTP_COOKIE', self.cookie)
        setup_testing_defaults(environ)
        started = []
        result = self.app(environ, lambda status, fields, exc_info=None: started.append((status, dict(fields))))
        try:
            content = b''.join(result)
        finally:
            getattr(result, 'close', lambda: None)()
        return int(started[0][0][:3]), started[0][1], content


@pytest.fixture(scope='module')
def surface(tmp_path_factory):
    surface = Surface(tmp_path_factory.mktemp('surface'))
    yield surface
    surface.ci.close()


@pytest.fixture
def calm(caplog):
    """A check that an answer is no failure of ours."""
    def check(answer, *request):
        status, headers, body = answer
        assert 200 <= status < 500 or status == 501, (answer, *request)
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [], request
        if status >= 400 and headers.get('Content-Type', '').startswith('text/html'):  # a page, for a person
            assert headers['Content-Security-Policy'].startswith("default-src 'none'"), (answer, *request)
            assert body.startswith(b'<!doctype html>'), (answer, *request)
            assert body.endswith(b'</html>\n'), (answer, *request)
        elif status >= 400 and status != 501:
            assert headers['Content-Type'] == 'application/json', (answer, *request)
            assert json.loads(body).keys() & {'message', 'error'}, (answer, *request)
    return check


def any_route(surface, data):
    """Return some route."""
    return data.draw(st.sampled_from(surface.routes))


# -- requests

@fuzz(400)
@given(data=st.data(), parameters=PARAMETERS)
def test_json_of_any_shape_gets_a_sane_answer(surface, calm, data, parameters):
    route = any_route(surface, data)
    path, body = surface.address(route), json.dumps(parameters).encode()
    calm(surface.send(route.method, path, surface.key(route), body, 'application/json'), route, body)


@fuzz()
@given(data=st.data(), value=JSON)
@example(data=None, value=[])
def test_json_that_is_no_object_gets_a_sane_answer(surface, calm, data, value):
    route = any_route(surface, data) if data else surface.routes[0]
    body = json.dumps(value).encode()
    answer = surface.send(route.method, surface.address(route), surface.key(route), body, 'application/json')
    calm(answer, route, body)


@fuzz()
@given(data=st.data(), body=st.binary() | st.sampled_from([
    b'[' * 50_000, b'{"a":' * 50_000, b'{"state": "success", "state": "failed", "state": []}', b'\xef\xbb\xbf{}',
    b'{}{}',
    b'{"a": NaN}', b'{"a": -Infinity}', b'{"exit_code": 1' + b'0' * 5000 + b'}', b'{"a": "\\udead"}', b'{"\\ud800": 1}',
    b'{"a": 1e99999}', b"{'a': 1}"]))
def test_bytes_that_are_no_json_get_a_sane_answer(surface, calm, data, body):
    route = any_route(surface, data)
    calm(surface.send(route.method, surface.address(route), surface.key(route), body, 'application/json'), route, body)


FORM_TEXT = st.lists(st.sampled_from([
    *NAMES, *WORDS, '[', ']', '[]', '=', '&', ';', '%', '%FF', '%00', '%ED%A0%80', '+', '[a]']), max_size=16)


@fuzz(400)
@given(data=st.data(), pieces=FORM_TEXT, raw=st.binary(max_size=8), in_query=st.booleans())
def test_forms_of_any_bytes_get_a_sane_answer(surface, calm, data, pieces, raw, in_query):
    route = any_route(surface, data)
    path, key, text = surface.address(route), surface.key(route), ''.join(pieces)
    if in_query:
        query = f'{text}&{key}' + raw.decode('latin-1')
        calm(surface.send(route.method, path, query), route, query)
    else:
        body = text.encode() + raw
        calm(surface.send(route.method, path, key, body, 'application/x-www-form-urlencoded'), route, body)


def multipart(fields):
    """Return a well-formed multipart body, in pieces that can be mangled."""
    pieces = []
    for name, value in fields:
        pieces += [b'--xyz\r\n', b'Content-Disposition: form-data; ', b'name="' + name.encode() + b'"']
        pieces += [b'; filename="a.zip"\r\n', b'Content-Type: application/zip\r\n'] if name == 'file' else [b'\r\n']
        pieces += [b'\r\n', value, b'\r\n']
    return [*pieces, b'--xyz--', b'\r\n']


@fuzz(400)
@given(data=st.data(), fields=st.lists(st.tuples(st.sampled_from(NAMES), st.binary(max_size=20)), max_size=4),
       kind=st.sampled_from(['; boundary=xyz'] * 5 + [
           '', '; boundary=', '; boundary="x', '; boundary=xyz; boundary=abc', '; boundary=' + 'x' * 500,
           '; boundary=\xe9']))
def test_mangled_multipart_gets_a_sane_answer(surface, calm, data, fields, kind):
    routes = [route for route in surface.routes if route.method == 'POST']
    route = data.draw(st.sampled_from(routes))
    pieces = multipart(fields)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(pieces) - 1))
        pieces[at:at + 1] = data.draw(st.sampled_from([
            [b''], [pieces[at]] * 2, [pieces[at][:-1]], [pieces[at], b'\x00\xff'],
            [b'Content-Length: x\r\n', pieces[at]],
            [b'Content-Type: text/plain; charset=nonsense\r\n', pieces[at]], [b'--xyz--\r\n', pieces[at]]]))
    body = b''.join(pieces)
    kind = f'multipart/form-data{kind}'
    calm(surface.send('POST', surface.address(route), surface.key(route), body, kind), route, body)


@fuzz()
@given(data=st.data(), body=st.binary(max_size=50) | st.just(b'{"description": "x"}'),
       kind=st.sampled_from(['', 'application/json', 'application/x-www-form-urlencoded', 'text/plain',
                             'multipart/form-data; boundary=xyz']),
       length=st.sampled_from(['', '0', '1', '5', '51', '1000', '9' * 18, '9' * 30, '-1', '+5', '5.0', 'x', '٣', ' 5',
                               '5,5', '0x5']))
def test_lying_content_length_gets_a_sane_answer(surface, calm, data, body, kind, length):
    route = any_route(surface, data)
    answer = surface.send(route.method, surface.address(route), surface.key(route), body, kind, length)
    calm(answer, route, body, length)


SEGMENTS = st.sampled_from([
    '1', 'group%2Fdemo', 'group/demo', 'jobs', 'artifacts', 'main', 'download', 'raw', 'a', '..', '.', '%2e%2e', '',
    '%00', '%FF', '%', '%zz', '%2F', '-1', '9' * 18, '9' * 19, '\xff', '\x00', ' ', '\n', '%C3%A9', 'x' * 3000,
    '.json', 'trace.txt', '<id>', '*',
    '?']) | st.text(st.characters(max_codepoint=255), max_size=5)


@fuzz(400)
@given(data=st.data(), extra=st.lists(SEGMENTS, max_size=2), fallback=st.booleans())
def test_paths_of_any_bytes_get_a_sane_answer(surface, calm, data, extra, fallback):
    route = any_route(surface, data)
    surface.ready()
    method = data.draw(st.sampled_from([route.method] * 5 + ['HEAD', 'OPTIONS', 'TRACE', 'BREW']))
    parts = [data.draw(SEGMENTS) if part.startswith('<') else part for part in re.split(r'(<[^>]+>)', route.path)]
    path = '/'.join([''.join(parts), *extra])
    headers = {'REQUEST_URI': ''} if fallback else {}
    status, fields, body = surface.send(method, path, surface.key(route), **headers)
    calm((status, fields, b'{"message": ""}' if method == 'HEAD' else body), method, path)


HEADERS = st.dictionaries(st.sampled_from([
    'HTTP_RANGE', 'HTTP_CONTENT_RANGE', 'HTTP_IF_RANGE', 'HTTP_IF_NONE_MATCH', 'HTTP_AUTHORIZATION', 'HTTP_JOB_TOKEN',
    'HTTP_PRIVATE_TOKEN', 'HTTP_BUILD_TOKEN', 'HTTP_HOST', 'HTTP_USER_AGENT', 'HTTP_X_FORWARDED_FOR', 'HTTP_COOKIE',
    'HTTP_ACCEPT', 'CONTENT_TYPE']),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30) | st.sampled_from([
        'bytes=0-0', 'bytes=-1', 'bytes=99-', '0-5', '0-', '9' * 18 + '-0', 'Bearer', 'Bearer  ', '"x"', '*',
        'text/html']))


@fuzz(400)
@given(data=st.data(), headers=HEADERS)
def test_headers_of_any_text_get_a_sane_answer(surface, calm, data, headers):
    route = any_route(surface, data)
    path = surface.address(route)
    kind = headers.pop('CONTENT_TYPE', '')
    calm(surface.send(route.method, path, surface.key(route), b'data', kind, **headers), route, headers, kind)


YAML = [
    '', '!!str ', '!!int ', '!!float ', '!!bool ', '!!null ', '!!binary ', '!!timestamp ', '!!set ', '!!omap ', '!x ',
    '!!python/none ', '&a ', '*a', '<<: ', '? ', '- ', '-\n', '|\n  ', '>\n  ', '"', "'", '[', ']', '{', '}', ': ', ',',
    '\n', '\n  ', '\n    ', '#', '---\n', '...\n', '%YAML 9.9\n', '\t', '0o8', '1:60', '.inf', '2001-99-99', 'yes', '~',
    'test:', 'script:', 'stages:', 'only:', 'cache:', 'artifacts:', 'timeout:', 'image:', 'services:', 'variables:',
    'when:', 'dependencies:', 'allow_failure:', 'exit_codes:', '/(/', '1', 'x']


@fuzz(400)
@given(content=st.lists(st.sampled_from(YAML), max_size=12).map(''.join) | st.text(max_size=30))
@example(content='test:\n  script: !!bool maybe')
@example(content='test:\n  script: !!int ""')
@example(content='test:\n  script: !!float ""')
@example(content='a: &a [*a]')
@example(content='a: &a {<<: *a}')
@example(content='{"test": {"script": ["x"], "timeout": 1e999}}')
@example(content='[' * 3000)
@example(content='a: ' + '{a: ' * 3000)
def test_pipeline_file_of_any_text_gets_a_sane_answer(surface, calm, content):
    body = json.dumps({'ref': 'main', 'sha': SHA, 'content': content}).encode()
    key = f'private_token={surface.token}'
    calm(surface.send('POST', '/api/v4/projects/group%2Fdemo/pipeline', key, body, 'application/json'), content)


KEYWORDS = st.dictionaries(st.sampled_from([
    'stage', 'image', 'services', 'variables', 'artifacts', 'cache', 'only', 'except', 'when', 'tags', 'timeout',
    'dependencies', 'allow_failure', 'before_script', 'after_script']), st.recursive(SCALARS, lambda inner: st.lists(
        inner, max_size=3) | st.dictionaries(st.sampled_from([
            'name', 'paths', 'expire_in', 'key', 'refs', 'entrypoint', 'exit_codes', 'A', 'when', 'untracked']), inner,
            max_size=3), max_leaves=6), max_size=2)


@fuzz(400)
@given(job=KEYWORDS, rest=st.dictionaries(
    st.sampled_from(['stages', 'variables', 'default', 'image', 'b', '.c']), KEYWORDS, max_size=1))
def test_pipeline_file_of_any_shape_makes_a_job_that_runs_or_is_refused(surface, calm, job, rest):
    body = json.dumps({'ref': 'main', 'sha': SHA, 'content': {**rest, 'a': {'script': ['make'], **job}}}).encode()
    key = f'private_token={surface.token}'
    made = surface.send('POST', '/api/v4/projects/group%2Fdemo/pipeline', key, body, 'application/json')
    calm(made, body)
    assert made[0] in (201, 400)
    surface.ready()
    for path in ('/api/v4/jobs/request', '/ci/api/v1/builds/register'):
        claimed = surface.send('POST', path, f'token={surface.runner.token}')
        calm(claimed, body)
        assert not re.search(rb':\s*-?(NaN|Infinity)', claimed[2])


@fuzz()
@given(expire_in=st.one_of(
    st.text(max_size=10), st.sampled_from(WORDS),
    st.builds('{} {}'.format, st.integers(0, 10 ** 9), st.sampled_from(['s', 'days', 'mos', 'years']))))
@example(expire_in='999999999 years')
@example(expire_in='100 years')
def test_artifacts_of_any_lifetime_can_be_shown(surface, calm, expire_in):
    surface.ready()
    job = surface.claim.job
    body = b''.join(multipart([('file', archive(a='b'))]))
    query = f'token={surface.claim.token}&expire_in={quote(expire_in)}'
    answer = surface.send('POST', f'/ci/api/v1/builds/{job["id"]}/artifacts', query, body,
                          'multipart/form-data; boundary=xyz')
    calm(answer, expire_in)
    shown = surface.send('GET', f'/api/v4/projects/group%2Fdemo/jobs/{job["id"]}', f'private_token={surface.token}')
    assert shown[0] == 200, (expire_in, answer, shown)


# -- parsers

@fuzz()
@given(st.text(max_size=20) | st.from_regex(r'\A(bytes )?[0-9]{0,20}-[0-9]{0,20}(/[0-9*]{0,3})?\Z'))
def test_content_range_is_an_offset_or_refused(header):
    try:
        start = minici.trace_offset(header)
    except minici.BadRequest:
        return
    assert 0 <= start < 10 ** 18
    assert str(start) in header


@fuzz()
@given(st.integers(0, 10 ** 17), st.integers(0, 10 ** 17))
def test_start_of_a_content_range_alone_counts(start, end):
    assert minici.trace_offset(f'{start}-{end}') == start


@fuzz()
@given(st.text(max_size=20) | st.from_regex(r'\Abytes=[0-9]{0,4}-[0-9]{0,4}\Z'), st.integers(0, 3000))
def test_range_lies_within_the_file(header, size):
    try:
        part = minici.byte_range(header, size)
    except minici.RangeMismatch:
        return
    assert part is None or 0 <= part[0] < part[1] <= size


@fuzz()
@given(st.text(max_size=30) | st.text('0123456789.:, smhdwoyanteplusi', max_size=30))
def test_duration_is_none_positive_or_refused(text):
    try:
        seconds = minici.parse_duration(text)
    except ValueError:
        return
    assert seconds is None or seconds > 0


@fuzz()
@given(st.lists(st.tuples(st.integers(1, 999), st.sampled_from(['s', 'min', 'hours', 'd', 'weeks'])), min_size=1),
       st.sampled_from([' ', ', ', ' and ', '']))
def test_durations_add_up(parts, joint):
    units = {'s': 1, 'min': 60, 'hours': 3600, 'd': 86400, 'weeks': 604800}
    text = joint.join(f'{number}{unit}' for number, unit in parts)
    assert minici.parse_duration(text) == sum(number * units[unit] for number, unit in parts)


@fuzz()
@given(st.text(max_size=12) | st.from_regex(r'\A[0-9]{1,16}(\.[0-9]{1,3})? ?[kKmMgGtT]?i?[bB]?\Z'))
def test_size_is_a_whole_number_or_refused(text):
    try:
        size = minici.parse_size(text)
    except ValueError:
        return
    assert isinstance(size, int)
    assert size >= 0


@fuzz(250)
@given(st.text('abc./-@{}~^:?*[\\ \x7f\x01lock\u20ac', min_size=1, max_size=8))
def test_ref_that_is_taken_is_one_that_git_takes(ref):
    try:
        assert minici.check_ref(ref) == ref
    except minici.BadRequest:
        return
    assert subprocess.run(['git', 'check-ref-format', f'refs/heads/{ref}']).returncode == 0
    assert not ref.startswith('-')


@fuzz()
@given(st.lists(st.tuples(st.text('ab[]', max_size=8) | st.sampled_from(NAMES), st.text(max_size=3)), max_size=8))
def test_names_of_parameters_nest_or_are_refused(pairs):
    try:
        nested = minici.nest(pairs)
    except minici.BadRequest:
        return
    assert isinstance(nested, dict)
    assert json.loads(json.dumps(nested)) == nested


# -- one job against a model of it

class JobMachine(RuleBasedStateMachine):
    """Runners, people, time and restarts against a model: the job's status, and the bytes of its trace."""

    @initialize(patience=st.sampled_from([20, 10, 5, 0]))
    def start(self, patience):
        self.patience = patience    # steps before somebody ends the job
        self.directory, self.clock = Path(tempfile.mkdtemp()), Clock()
        self.ci = None
        self.restart()
        self.runner, self.person = Runner(self.ci), self.ci.create_private_token()
        self.ci.create_project('demo')
        pipeline = self.ci.create_pipeline('demo', 'main', sha=SHA, content=PLAIN)
        self.expect(self.ci.list_jobs(pipeline=pipeline)[0]['id'])

    def expect(self, job_id):
        """Turn to a job that waits in the queue."""
        self.id, self.status, self.trace, self.token, self.stale, self.claims = job_id, 'pending', None, None, [], 0
        self.heard, self.erased, self.last = False, False, self.clock.now

    def teardown(self):
        if getattr(self, 'ci', None):
            self.ci.close()
            shutil.rmtree(self.directory)

    def call(self, method, path, **request):
        return self.client.call(method, path, **request)

    def patch(self, start, data, dialect='v4', token=None):
        """Send a chunk as a runner of one era does; return the answer's status, Range and job status."""
        path, header, status = {
            'v4': (f'/api/v4/jobs/{self.id}/trace', 'JOB-TOKEN', 'Job-Status'),
            'v1': (f'/ci/api/v1/builds/{self.id}/trace.txt', 'BUILD-TOKEN', 'Build-Status')}[dialect]
        answer = self.call('PATCH', path, data=data, headers={
            header: token or self.token, 'Content-Range': f'{start}-{start + len(data)}'})
        return answer.status_int, answer.headers.get('Range'), answer.headers.get(status)

    def restart(self):
        if self.ci is not None:
            self.ci.close()
            self.last = self.clock.now
        self.ci = minici.Coordinator(self.directory / 'ci.sqlite', clock=self.clock, fsync=False)
        self.client = Client(self.ci)

    @rule()
    def claim(self):
        answer = self.call('POST', '/api/v4/jobs/request', json={'token': self.runner.token})
        assert answer.status_int == (201 if self.status == 'pending' else 204)
        if self.status == 'pending':
            assert answer.json['id'] == self.id
            self.token, self.status, self.trace = answer.json['token'], 'running', b''
            self.heard, self.last, self.claims = False, self.clock.now, self.claims + 1

    def take_up(self):
        if self.status == 'pending':
            self.claim()

    def append(self, data, dialect):
        """Send what comes next; whoever has lost the job is told."""
        size = len(self.trace or b'')
        if self.status == 'running':
            assert self.patch(size, data, dialect) == (202, f'0-{size + len(data)}', 'running')
            self.trace += data
            self.heard, self.last = True, self.clock.now
        else:
            status, _, told = self.patch(size, data, dialect)
            stopped = 202 if dialect == 'v1' and self.status != 'failed' else 403
            assert (status, told) == ((403, None) if self.erased else (stopped, self.status))

    @precondition(lambda self: self.token or self.status == 'pending')
    @rule(data=st.binary(max_size=30), how=st.sampled_from(['next', 'elsewhere', 'twice']), offset=st.integers(-40, 40),
          dialect=st.sampled_from(['v1', 'v4']))
    def send_trace(self, data, how, offset, dialect):
        self.take_up()
        size = len(self.trace or b'')
        if how == 'elsewhere' and self.status == 'running':
            start = max(0, size + offset)
            known = dialect == 'v4' and data and start + len(data) == size  # the end of the trace, once more
            if start != size:
                assert self.patch(start, data, dialect)[:2] == (202 if known else 416, f'0-{size}')
        self.append(data, dialect)  # where the Range says
        if how == 'twice' and self.status == 'running' and data:  # the answer was lost
            answer = self.patch(size, data, dialect)
            assert answer[:2] == (202 if dialect == 'v4' else 416, f'0-{size + len(data)}')

    @precondition(lambda self: self.stale)
    @rule(data=st.binary(max_size=5))
    def append_with_an_old_token(self, data):
        assert self.patch(len(self.trace or b''), data, token=self.stale[-1]) == (403, None, None)

    @precondition(lambda self: self.status in ('pending', 'running'))
    @rule(trace=st.none() | st.text(max_size=20))
    def report(self, trace):
        self.take_up()
        self.put('running', trace)

    @precondition(lambda self: self.token and not self.erased and self.patience <= 0)
    @rule(state=st.sampled_from(['success', 'failed']), trace=st.none() | st.text(max_size=20))
    def finish(self, state, trace):
        self.put(state, trace)

    def put(self, state, trace):
        body = {'token': self.token, 'state': state, **({} if trace is None else {'trace': trace})}
        answer = self.call('PUT', f'/api/v4/jobs/{self.id}', json=body)
        if self.status == 'running':
            assert answer.status_int == 200
            self.status = state
            self.trace = self.trace if trace is None else trace.encode()
            self.heard, self.last = True, self.clock.now
        elif state == self.status:
            assert answer.status_int == 200
        else:
            assert (answer.status_int, answer.headers['Job-Status']) == (403, self.status)

    @precondition(lambda self: self.patience <= 0 and self.status != 'canceled')
    @rule()
    def cancel(self):
        for _ in range(2):
            self.call('POST', f'/api/v4/projects/demo/jobs/{self.id}/cancel', token=self.person, status=201)
        if self.status in ('pending', 'running'):
            self.status = 'canceled'

    @precondition(lambda self: self.token)
    @rule()
    def erase(self):
        answer = self.call('POST', f'/api/v4/projects/demo/jobs/{self.id}/erase', token=self.person)
        erasable = self.status in ('success', 'failed', 'canceled') and self.trace is not None
        assert answer.status_int == (201 if erasable else 403)
        if erasable:
            self.trace, self.erased = None, True

    @precondition(lambda self: self.status in ('success', 'failed', 'canceled'))
    @rule()
    def retry(self):
        path = f'/api/v4/projects/demo/jobs/{self.id}/retry'
        answer = self.call('POST', path, token=self.person, status=201)
        self.call('POST', path, token=self.person, status=403)
        self.expect(answer.json['id'])

    @precondition(lambda self: self.status in ('pending', 'running'))
    @rule(minutes=st.sampled_from([1, 9, 11]), restart=st.booleans())
    def let_time_pass(self, minutes, restart):
        if restart:
            self.restart()
        self.clock.advance(minutes=minutes)
        self.ci.sweep()
        silent = self.clock.now - self.last
        if self.status == 'running' and not self.heard and silent >= 120:
            self.status, self.trace = ('pending', None) if self.claims < 3 else ('failed', self.trace)
            if self.status == 'pending':
                self.stale.append(self.token)
                self.token = None
        elif self.status == 'running' and silent >= 600:
            self.status = 'failed'

    @rule()
    def look(self):
        job = self.call('GET', f'/api/v4/projects/demo/jobs/{self.id}', token=self.person, status=200).json
        self.compare(job)

    @invariant()
    def agree(self):
        if not hasattr(self, 'id'):
            return
        self.patience -= 1
        self.compare(self.ci.find_job(self.id))
        trace = self.call('GET', f'/api/v4/projects/demo/jobs/{self.id}/trace', token=self.person)
        if self.trace is None:
            assert trace.status_int == 404
        else:
            assert (trace.status_int, trace.body) == (200, self.trace)

    def compare(self, job):
        """See that a job is as the model says."""
        assert job['status'] == self.status
        assert bool(job['erased_at']) is self.erased
        assert bool(job['finished_at']) is (self.status in ('success', 'failed', 'canceled'))


def test_job_behaves_as_its_model_through_losses_repeats_and_restarts():
    run_state_machine_as_test(JobMachine, settings=fuzz(
        30, stateful_step_count=30, phases=[Phase.generate]))  # to shrink a failure would take minutes


@pytest.mark.parametrize('minutes, heard', [((1, 1), False), ((9, 9), True), ((1, 1, 1), False), ((1, 9, 1), True)])
def test_restart_gives_a_silent_runner_its_whole_time_again(minutes, heard):
    machine = JobMachine()
    machine.start(0)
    try:
        machine.send_trace(b'hello', 'next', 0, 'v4') if heard else machine.claim()
        for passed in minutes:
            machine.let_time_pass(passed, True)
            machine.agree()
        assert machine.status == 'running'
    finally:
        machine.teardown()
