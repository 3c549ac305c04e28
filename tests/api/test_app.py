"""The WSGI application under any prefix and any server, and the server around it."""

import contextlib
import http.client
import json
import os
import queue
import re
import socket
import tempfile
import threading
import warnings
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import bottle
import pytest
import waitress
from support import PLAIN, SHA, TWO_STAGES, Client, Runner, archive, dispatcher
from waitress.adjustments import Adjustments

import minici

ENCODED = '/api/v4/projects/group%2Fdemo'


@contextlib.contextmanager
def waitress_server(app, **options):
    """Run an application under waitress alone; yield its port."""
    server = waitress.create_server(app, host='127.0.0.1', port=0, threads=2, **options)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.effective_port
    finally:
        server.trigger.pull_trigger(lambda: [item.close() for item in list(server._map.values())])
        thread.join(10)
        server.task_dispatcher.shutdown()


@contextlib.contextmanager
def wsgiref_server(app):
    """Run an application under the standard library's server, which knows no REQUEST_URI; yield its port."""
    class Silent(WSGIRequestHandler):
        def log_message(self, *arguments):
            pass

    with make_server('127.0.0.1', 0, validator(app), handler_class=Silent) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join(10)


def fetch(port, method, path, body=None, **headers):
    """Send one request exactly as written; return the status, the headers and the body."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
    try:
        connection.request(method, path, body, {name.replace('_', '-'): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def addresses(value):
    """Yield every address within JSON or a header."""
    yield from re.findall(r'https?://[^\s">;,]+', value if isinstance(value, str) else json.dumps(value))


# -- under a prefix

def mounted_client(how, ci):
    """Return a client of an application under /prefix, mounted in one of several ways."""
    app = minici.create_app(ci)
    if how == 'dispatcher':
        return Client(ci, dispatcher(app, '/prefix')), '/prefix'
    if how == 'two levels':
        return Client(ci, dispatcher(dispatcher(app, '/two'), '/prefix')), '/prefix/two'
    root = bottle.Bottle()
    root.mount('/prefix/', app)
    return Client(ci, root), '/prefix'


@pytest.mark.parametrize('how', ['dispatcher', 'two levels', 'bottle'])
def test_every_address_carries_the_prefix_of_the_mount(ci, project, token, runner, how):
    client, prefix = mounted_client(how, ci)
    base, found = f'http://localhost:80{prefix}/', []
    for _ in range(3):
        ci.create_pipeline(project, 'main', sha=SHA, content=TWO_STAGES)
    for path in (f'{ENCODED}/jobs?per_page=1', f'{ENCODED}/jobs?per_page=1&pagination=keyset', ENCODED, '/api/v4/user',
                 f'{ENCODED}/pipelines?per_page=1', f'{ENCODED}/pipelines/1', '/api/v4/projects?per_page=1'):
        answer = client.call('GET', prefix + path, token=token, status=200)
        found += [*addresses(answer.json), *addresses(answer.headers.get('Link', ''))]
    for path in ('/api/v4/jobs/request', '/ci/api/v1/builds/register'):
        claim = client.call('POST', prefix + path, json={'token': runner.token}, status=201).json
        variables = {item['key']: item['value'] for item in claim['variables']}
        assert {'CI_SERVER_URL', 'CI_API_V4_URL', 'CI_PROJECT_URL', 'CI_PIPELINE_URL', 'CI_JOB_URL',
                'CI_REPOSITORY_URL'} <= variables.keys()
        found += [re.sub('//.*@', '//', url) for url in addresses(claim)]
    assert len(found) > 30
    assert [url for url in found if not f'{url}/'.startswith(base)] == []


@pytest.mark.parametrize('how', ['dispatcher', 'two levels', 'bottle'])
def test_links_of_a_mounted_application_can_be_followed(ci, project, token, how):
    client, prefix = mounted_client(how, ci)
    for _ in range(3):
        ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    seen, path = [], f'{prefix}{ENCODED}/jobs?per_page=1'
    while path:
        answer = client.call('GET', path, token=token, status=200)
        seen += [job['id'] for job in answer.json]
        following = re.search('<([^>]+)>; rel="next"', answer.headers['Link'])
        path = following and urlsplit(following[1])._replace(scheme='', netloc='').geturl()
    assert seen == [3, 2, 1]


def test_mounted_application_runs_a_job(ci, project, pipeline, runner, token):
    client, prefix = mounted_client('bottle', ci)
    job = client.call('POST', f'{prefix}/api/v4/jobs/request', json={'token': runner.token}, status=201).json
    headers = {'JOB-TOKEN': job['token']}
    client.call('PATCH', f'{prefix}/api/v4/jobs/{job["id"]}/trace', data=b'hello', status=202,
                headers={**headers, 'Content-Range': '0-4'})
    client.call('POST', f'{prefix}/api/v4/jobs/{job["id"]}/artifacts', form={}, headers=headers, status=201,
                files=[('file', 'a.zip', archive(a='b'))])
    final = {'token': job['token'], 'state': 'success'}
    client.call('PUT', f'{prefix}/api/v4/jobs/{job["id"]}', json=final, status=200)
    trace = client.call('GET', f'{prefix}{ENCODED}/jobs/{job["id"]}/trace', token=token, status=200)
    kept = client.call('GET', f'{prefix}{ENCODED}/jobs/{job["id"]}/artifacts/a', token=token, status=200)
    assert (trace.body, kept.body) == (b'hello', b'b')


def test_two_applications_side_by_side_do_not_know_each_other(ci, tmp_path, token):
    with minici.Coordinator(tmp_path / 'other.sqlite', fsync=False) as other:
        apps = {'/one': minici.create_app(ci), '/two': minici.create_app(other)}
        client = Client(ci, lambda environ, start: dispatcher(
            apps[environ['PATH_INFO'][:4]], environ['PATH_INFO'][:4])(environ, start))
        client.call('GET', '/one/api/v4/projects', token=token, status=200)
        client.call('GET', '/two/api/v4/projects', token=token, status=401)


def test_prefix_of_waitress_is_in_every_address(ci, pipeline, token):
    with waitress_server(minici.create_app(ci), url_prefix='/prefix') as port:
        status, headers, body = fetch(port, 'GET', f'/prefix{ENCODED}/jobs', PRIVATE_TOKEN=token)
        assert status == 200
        found = [*addresses(body.decode()), *addresses(headers['Link'])]
        assert len(found) > 3
        assert [url for url in found if not url.startswith(f'http://127.0.0.1:{port}/prefix/')] == []


def test_server_carries_an_application_that_mounts_this_one(ci, pipeline, token):
    with minici.Server(ci, application=dispatcher(minici.create_app(ci), '/prefix')) as server:
        status, _, body = fetch(server.port, 'GET', f'/prefix{ENCODED}', PRIVATE_TOKEN=token)
        assert (status, json.loads(body)['web_url']) == (200, f'{server.url}/prefix/group/demo')
        assert fetch(server.port, 'GET', ENCODED, PRIVATE_TOKEN=token)[::2] == (404, b'somebody else')


def test_external_url_is_in_every_address(tmp_path, clock):
    with minici.Coordinator(tmp_path / 'ci.sqlite', clock=clock, fsync=False,
                            external_url='https://ci.example.com/minici/') as ci:
        ci.create_pipeline(ci.create_project('group/demo'), 'main', sha=SHA, content=PLAIN)
        client, runner, token = Client(ci), Runner(ci), ci.create_private_token()
        answer = client.call('GET', f'{ENCODED}/jobs', token=token, status=200)
        claim = client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=201).json
        found = [*addresses(answer.json), *addresses(answer.headers['Link'])]
        found += [re.sub('//.*@', '//', url) for url in addresses(claim)]
        assert [url for url in found if not url.startswith('https://ci.example.com/minici')] == []
        assert {item['value'] for item in claim['variables'] if item['key'] == 'CI_SERVER_PORT'} == {'443'}


def test_addresses_are_on_the_host_that_the_caller_used(server, token, project):
    for host in (f'127.0.0.1:{server.port}', f'localhost:{server.port}', 'ci.internal', '[::1]:8080'):
        _, headers, body = fetch(server.port, 'GET', '/api/v4/projects', PRIVATE_TOKEN=token, Host=host)
        assert json.loads(body)[0]['web_url'] == f'http://{host}/group/demo'
        assert f'<http://{host}/api/v4/projects?' in headers['Link']


# -- undecoded paths

@pytest.fixture
def kept(ci, project, runner):
    """A finished job with an archive on a branch that has a slash in its name; its id."""
    ci.create_pipeline(project, 'feature/x', sha=SHA, content=PLAIN)
    claim = runner.claim()
    job = ci.authenticate_job(claim.job['id'], claim.token)
    part = ci.artifacts.receive()
    part.write(archive(out__a='content'))
    ci.store_artifacts(job, part)
    part.discard()
    ci.update_job(job, 'success')
    return job['id']


def paths_of(project, job):
    """Return addresses of the kept file, with slashes of the project, the ref and the path raw and encoded."""
    return [f'/api/v4/projects/{project}/jobs/{rest}' for rest in (
        f'{job}/artifacts/out/a', f'{job}/artifacts/out%2Fa', 'artifacts/feature/x/raw/out/a?job=test',
        'artifacts/feature%2Fx/raw/out/a?job=test', 'artifacts/feature%2Fx/raw/out%2Fa?job=test',
        'artifacts/feature%2fx/raw/out%2fa?job=test')]


def test_encoded_slashes_are_understood_through_waitress(server, token, kept):
    for path in (*paths_of('group%2Fdemo', kept), *paths_of('group%2fdemo', kept), *paths_of(1, kept)):
        assert fetch(server.port, 'GET', path, PRIVATE_TOKEN=token)[::2] == (200, b'content')


def test_without_the_undecoded_path_projects_are_found_by_number(ci, token, kept):
    with wsgiref_server(minici.create_app(ci)) as port:
        for path in paths_of(1, kept):
            assert fetch(port, 'GET', path, PRIVATE_TOKEN=token)[::2] == (200, b'content')
        status, _, body = fetch(port, 'GET', ENCODED, PRIVATE_TOKEN=token)
        assert (status, list(json.loads(body))) == (404, ['error'])


@pytest.mark.parametrize('name', ['REQUEST_URI', 'RAW_URI'])
@pytest.mark.parametrize('origin', ['', 'http://localhost:80'])
def test_undecoded_path_is_taken_from_what_the_server_offers(ci, token, kept, name, origin):
    client = Client(ci)
    for path in paths_of('group%2Fdemo', kept):
        answer = client.get(path, headers={'PRIVATE-TOKEN': token}, extra_environ={name: origin + path})
        assert answer.body == b'content'


def test_undecoded_path_that_is_another_ones_is_not_believed(ci, token, project):
    client = Client(ci)
    answer = client.get('/api/v4/projects/1', headers={'PRIVATE-TOKEN': token},
                        extra_environ={'REQUEST_URI': '/rewritten/by/a/middleware'})
    assert answer.json['path_with_namespace'] == 'group/demo'


@pytest.mark.parametrize('path', [
    '/api/v4/projects/', '/api/v4/projects.json', f'{ENCODED}/jobs/', f'{ENCODED}/jobs.json'])
def test_trailing_slash_and_json_suffix_are_accepted_without_a_redirect(client, token, project, path):
    client.call('GET', path, token=token, status=200)


# -- methods

def test_head_answers_as_get_without_the_body(server, token, kept):
    for path in ('/api/v4/projects', f'/api/v4/projects/1/jobs/{kept}', f'/api/v4/projects/1/jobs/{kept}/artifacts'):
        status, headers, body = fetch(server.port, 'GET', path, PRIVATE_TOKEN=token)
        bare, bare_headers, nothing = fetch(server.port, 'HEAD', path, PRIVATE_TOKEN=token)
        assert (bare, nothing) == (status, b'')
        assert bare_headers['Content-Length'] == headers['Content-Length'] == str(len(body))
        assert bare_headers['Content-Type'] == headers['Content-Type']


def test_head_needs_the_same_token(ci, server, token):
    assert fetch(server.port, 'HEAD', '/api/v4/projects')[0] == 401
    assert fetch(server.port, 'HEAD', '/')[0] == 401
    assert fetch(server.port, 'HEAD', '/', PRIVATE_TOKEN=token)[0] == 401
    cookie = f'minici_{ci.instance}={ci.sign_in_with(token)}'
    assert fetch(server.port, 'HEAD', '/', Cookie=cookie)[::2] == (200, b'')


def test_unknown_address_is_404_in_json(client):
    for method in ('GET', 'POST', 'DELETE', 'PATCH'):
        answer = client.call(method, '/api/v4/nothing', status=404)
        assert answer.headers['Content-Type'] == 'application/json'
        assert answer.json == {'error': '404 Not Found - minici has no such route'}


@pytest.mark.parametrize('method, path, allowed', [
    ('PUT', '/api/v4/projects', {'GET', 'HEAD', 'POST'}), ('GET', '/api/v4/jobs/request', {'POST'}),
    ('PATCH', '/ci/api/v1/builds/1', {'PUT'}), ('OPTIONS', '/api/v4/jobs/1/trace', {'PATCH'})])
def test_unknown_method_is_405_in_json_and_names_the_others(client, method, path, allowed):
    answer = client.call(method, path, status=405)
    assert answer.json == {'error': '405 Not Allowed'}
    assert {word.strip() for word in answer.headers['Allow'].split(',')} >= allowed - {'HEAD'}


# -- the server

def test_server_accepts_when_it_is_constructed_and_tells_where(ci):
    for _ in range(10):
        with minici.Server(ci, port=0) as server:
            assert server.url == f'http://127.0.0.1:{server.port}'
            assert fetch(server.port, 'GET', '/api/v4/projects')[0] == 401


def test_server_does_not_say_what_software_it_is(server):
    assert 'Server' not in fetch(server.port, 'GET', '/api/v4/projects')[1]


def test_taken_address_is_an_os_error(ci, server):
    with pytest.raises(OSError, match='in use'):
        minici.Server(ci, port=server.port)
    assert fetch(server.port, 'GET', '/api/v4/projects')[0] == 401


def test_stop_may_be_called_twice_and_frees_the_address(ci):
    server = minici.Server(ci)
    server.stop()
    server.stop()
    with minici.Server(ci, port=server.port) as again:
        assert again.port == server.port


def test_fifty_starts_and_stops_with_a_client_connected_leave_nothing_behind(ci, monkeypatch):
    failures = []
    monkeypatch.setattr(threading, 'excepthook', failures.append)
    before = threading.active_count(), len(os.listdir('/dev/fd'))
    for cycle in range(50):
        with minici.Server(ci, threads=2) as server:
            client = http.client.HTTPConnection('127.0.0.1', server.port, timeout=10)
            client.request('GET', '/api/v4/projects')
            assert client.getresponse().read()
            idle = socket.create_connection(('127.0.0.1', server.port)) if cycle % 2 else None
        with pytest.raises(OSError):
            socket.create_connection(('127.0.0.1', server.port))
        client.close()
        if idle:
            idle.close()
    assert (threading.active_count(), len(os.listdir('/dev/fd'))) == before
    assert failures == []


def test_request_in_flight_finishes_while_the_server_stops(ci):
    entered, go_on, answers = threading.Event(), threading.Event(), []

    def slow(environ, start_response):
        entered.set()
        go_on.wait(10)
        start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', '8')])
        return [b'finished']

    server = minici.Server(ci, application=slow)
    client = threading.Thread(target=lambda: answers.append(fetch(server.port, 'GET', '/')))
    stopper = threading.Thread(target=server.stop)
    client.start()
    assert entered.wait(10)
    stopper.start()
    while True:  # until new connections are refused
        try:
            socket.create_connection(('127.0.0.1', server.port)).close()
        except ConnectionRefusedError:
            break
    assert stopper.is_alive()
    go_on.set()
    client.join(10)
    stopper.join(10)
    assert [answer[::2] for answer in answers] == [(200, b'finished')]
    assert not stopper.is_alive()


def test_twenty_coordinators_serve_side_by_side(tmp_path):
    with contextlib.ExitStack() as stack:
        servers = []
        for number in range(20):
            ci = stack.enter_context(minici.Coordinator(tmp_path / f'{number}.sqlite', fsync=False))
            ci.create_project(f'project-{number}')
            servers.append((stack.enter_context(minici.Server(ci, threads=2)), ci.create_private_token()))
        for number, (server, token) in enumerate(servers):
            _, _, body = fetch(server.port, 'GET', '/api/v4/projects', PRIVATE_TOKEN=token)
            assert [project['path'] for project in json.loads(body)] == [f'project-{number}']
            assert fetch(servers[number - 1][0].port, 'GET', '/api/v4/projects', PRIVATE_TOKEN=token)[0] == 401


def test_coordinator_without_a_path_is_gone_when_it_is_closed():
    with minici.Coordinator() as ci, minici.Server(ci) as server:
        assert fetch(server.port, 'GET', '/api/v4/projects', PRIVATE_TOKEN=ci.create_private_token())[0] == 200
        directory = ci.data.parent
    assert not directory.exists()


def test_server_holds_more_connections_than_waitress_does_by_itself(server, token):
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(Adjustments.connection_limit + 20):
            clients.append(stack.enter_context(contextlib.closing(
                http.client.HTTPConnection('127.0.0.1', server.port, timeout=10))))
            clients[-1].request('GET', '/api/v4/version', headers={'PRIVATE-TOKEN': token})
            assert clients[-1].getresponse().read()
        clients[0].request('GET', '/api/v4/version', headers={'PRIVATE-TOKEN': token})
        assert clients[0].getresponse().status == 200


@pytest.mark.parametrize('option', [
    'send_bytes', 'recv_bytes', 'asyncore_use_poll', 'connection_limit', 'threads', 'sockets', 'max_request_body_size',
    'ident', 'inbuf_overflow'])
def test_waitress_still_has_the_option_that_the_server_relies_on(option):
    assert hasattr(Adjustments, option)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        given = {option: getattr(Adjustments, option)}
        assert getattr(Adjustments(**given), option) == given[option]


# -- bodies

def test_large_body_waits_in_the_data_directory(ci, server, job, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', '/nonexistent')    # where waitress alone would put it
    content = os.urandom(3_000_000)
    boundary = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.zip"\r\n\r\n'
    status, _, body = fetch(server.port, 'POST', f'/api/v4/jobs/{job.job["id"]}/artifacts',
                            boundary + content + b'\r\n--xyz--\r\n', JOB_TOKEN=job.token,
                            Content_Type='multipart/form-data; boundary=xyz')
    assert (status, json.loads(body)) == (201, 201)
    with ci.open_artifacts(job.job)[1] as file:
        assert file.read() == content
    assert list(ci.artifacts.incoming.iterdir()) == []


def test_spool_keeps_what_overflows_in_its_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', '/nonexistent')
    spool = minici.SpoolBuffer(100_000)
    spool.directory = tmp_path
    with contextlib.closing(spool):
        for number in range(50):
            spool.append(bytes([number]) * 10_000)
        assert len(spool) == 500_000
        assert spool.getfile().read() == b''.join(bytes([number]) * 10_000 for number in range(50))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('kind', ['json', 'form'])
def test_trace_of_five_megabytes_is_taken_in_one_body(ci, server, job, kind):
    text = 'a line of some log: äöü €\n' * 190_000
    if kind == 'json':
        body, content_type = json.dumps({'token': job.token, 'trace': text}).encode(), 'application/json'
    else:
        body = f'token={job.token}&trace={text.replace(" ", "+")}'.encode()
        content_type = 'application/x-www-form-urlencoded'
    assert len(body) > 5_000_000
    assert fetch(server.port, 'PUT', f'/api/v4/jobs/{job.job["id"]}', body, Content_Type=content_type)[0] == 200
    assert ci.read_trace(job.job) == text.encode()


@pytest.mark.parametrize('size', [100 * 1024 + 1, 1024 * 1024 - 100])
def test_ordinary_body_may_have_a_mebibyte(client, ci, size):
    body = json.dumps({'token': ci.registration_token, 'ignored': 'x' * (size - 100)}).encode()
    client.call('POST', '/api/v4/runners', data=body, headers={'Content-Type': 'application/json'}, status=201)


@pytest.mark.parametrize('method, path, size', [
    ('POST', '/api/v4/projects', 2 * 2 ** 20), ('PUT', '/api/v4/jobs/1', 34 * 2 ** 20),
    ('POST', '/api/v4/runners', 40 * 2 ** 20)])
def test_body_over_the_limit_is_413_and_leaves_nothing(ci, server, token, method, path, size):
    status, headers, body = fetch(server.port, method, path, b'{"name": "' + b'x' * size, PRIVATE_TOKEN=token,
                                  Content_Type='application/json')
    assert status == 413
    assert b'413' in body or b'too large' in body.lower()
    assert ci.list_projects()[1] == 0
    assert list(ci.artifacts.incoming.iterdir()) == []


def test_upload_over_the_limit_is_413_and_leaves_nothing(tmp_path, clock):
    with minici.Coordinator(tmp_path / 'ci.sqlite', clock=clock, fsync=False, max_artifacts_size='100K') as ci:
        ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content=PLAIN)
        claim = Runner(ci).claim()
        boundary = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.zip"\r\n\r\n'
        with minici.Server(ci) as server:
            for size, expected in ((100 * 1024, 201), (100 * 1024 + 1, 413), (5 * 2 ** 20, 413)):
                status, _, _ = fetch(server.port, 'POST', f'/ci/api/v1/builds/{claim.job["id"]}/artifacts',
                                     boundary + b'x' * size + b'\r\n--xyz--\r\n', BUILD_TOKEN=claim.token,
                                     Content_Type='multipart/form-data; boundary=xyz')
                assert status == expected
        assert ci.find_artifact(claim.job['id'])['size'] == 100 * 1024
        assert list(ci.artifacts.incoming.iterdir()) == []


@pytest.mark.parametrize('content_type', ['application/json', 'multipart/form-data', 'multipart/form-data; boundary=x'])
def test_type_of_a_body_that_never_comes_is_no_error(server, token, project, content_type):
    assert fetch(server.port, 'GET', '/api/v4/projects', PRIVATE_TOKEN=token, Content_Type=content_type)[0] == 200


def test_body_in_chunks_is_taken(ci, server, job):
    answer = fetch(server.port, 'PATCH', f'/api/v4/jobs/{job.job["id"]}/trace', iter([b'hello ', b'world']),
                   JOB_TOKEN=job.token, Content_Range='0-10')
    assert (answer[0], answer[1]['Range']) == (202, '0-11')
    assert ci.read_trace(job.job) == b'hello world'


class Gate:
    """A task of a dispatcher that says when it begins, and ends when it is let."""

    def __init__(self, began):
        self.began = began
        self.open = threading.Event()

    def service(self):
        self.began.put(self)
        self.open.wait(30)


@pytest.fixture
def threads():
    dispatcher = minici.Dispatcher()
    dispatcher.set_thread_count(3)
    yield dispatcher
    assert dispatcher.shutdown()
    assert not dispatcher.threads


def test_tasks_that_get_on_are_done_one_after_the_other(threads, monkeypatch):
    monkeypatch.setattr(minici, 'STALL', 30)
    began = queue.Queue()
    gates = [Gate(began) for _ in range(10)]
    for gate in gates:
        threads.add_task(gate)
    for gate in gates:
        assert began.get(timeout=20) is gate
        assert began.empty()
        gate.open.set()


def test_task_that_waits_for_something_keeps_the_others_for_a_moment_only(threads):
    began = queue.Queue()
    kept = [Gate(began) for _ in range(2)]
    quick = [Gate(began) for _ in range(20)]
    for gate in kept:
        threads.add_task(gate)
    for gate in kept:
        assert began.get(timeout=20) is gate
    for gate in quick:
        gate.open.set()
        threads.add_task(gate)
    assert [began.get(timeout=20) for _ in quick] == quick
    for gate in kept:
        gate.open.set()


def test_task_that_fails_ends_no_thread(threads, caplog):
    began = queue.Queue()
    failing = Gate(began)
    failing.open = None
    for _ in range(5):
        threads.add_task(failing)
        assert began.get(timeout=20) is failing
    last = Gate(began)
    last.open.set()
    threads.add_task(last)
    assert began.get(timeout=20) is last
    assert 'outside the application' in caplog.text
