"""Nobody without the right token gets in, no secret gets out, nothing a client writes becomes a path or an option."""

import ast
import contextlib
import hashlib
import json
import logging
import re
import shutil
import sqlite3
import stat
from pathlib import Path
from urllib.parse import quote

import minici_pages
import pytest
from support import ASSETS, DOORS, MONITORED, PLAIN, PUBLIC, SHA, Client, Clock, Runner, archive, is_open, is_page

import minici

PASSWORD, VARIABLE = 'hunter2-of-the-url', 'value-of-a-variable'
#: Parameters with which every route does its work once its guard has let the call in.
GOOD = {'state': 'success', 'ref': 'main', 'sha': SHA, 'content': json.dumps(PLAIN), 'name': 'fresh', 'job': 'test',
        'path': 'fresh', 'runner_type': 'instance_type', 'runner_id': 2, 'key': 'FRESH', 'value': 'fresh',
        'description': 'fresh', 'project': 'group/demo', 'number': 1, 'cron': '0 4 * * *'}


def entitled_in_cookie(route):
    """Return the names of the tokens that open a route in a cookie, beside the CSRF token if it changes anything."""
    if not is_page(route):
        return set()
    if route.method == 'POST' or route.path.endswith(('/-/tokens', '/-/pipelines/new', '/-/pipeline_schedules')):
        return {'session'}
    return {'session', 'reading_session'}


def entitled(route):
    """Return the names of the tokens that may use a route, told from its address alone."""
    method, path = route.method, route.path
    if is_page(route) or '.git/' in path:   # the latter take tokens as passwords
        return set()
    if (method, path) in MONITORED:
        return set()
    if (method, path) == ('GET', '/api/v4/job'):
        return {'job', 'other_job'}
    if path.startswith('/hooks/'):
        return {'webhook'}
    if path.endswith(('/trigger', '/trigger/pipeline')):
        return {'trigger', 'job'}
    if path.endswith('/runners/register') or (method, path) == ('POST', '/api/v4/runners'):
        return {'registration', 'project', 'other_project'}
    if (method, path) == ('DELETE', '/api/v4/runners') or path.endswith((
            '/jobs/request', '/builds/register', '/runners/verify', '/runners/delete', '/runners/managers',
            '/runners/reset_authentication_token')):
        return {'runner', 'other_runner'}
    if path.startswith('/api/v4/jobs/'):
        return {'job'}
    if '/builds/' in path:  # the pages of 2016: trace and artifacts take all three, the PUT two of them
        return {'job', 'runner'} if method == 'PUT' else {'job', 'runner', 'project'}
    if path.endswith('/releases') or '/releases/' in path and method == 'GET':  # the release step of a job
        return {'api', 'read_api', 'job'} if method == 'GET' else {'api', 'job'}
    if method != 'GET':
        return {'api'}
    if path.startswith('/api/v4/projects/<id:project_key>/') and ('/jobs' in path or path.endswith('/bridges')):
        return {'api', 'read_api', 'job'}
    return {'api', 'read_api'}


class World:
    """Two projects with jobs in every state, and a token of every kind."""

    def __init__(self, path, facts):
        self.clock = Clock()
        self.clock.now = facts['now']
        self.ci = minici.Coordinator(path / 'ci.sqlite', clock=self.clock, fsync=False)
        self.tokens, self.jobs = facts['tokens'], facts['jobs']
        self.client, self.routes = Client(self.ci), minici.create_app(self.ci).routes

    def row(self, name):
        return self.ci.find_job(self.jobs[name])

    def address(self, route, name='job'):
        """Return a route's path about the job of that name."""
        job = self.row(name)
        values = {'id': job['project_id' if '/projects/' in route.path else 'id'], 'job_id': job['id'],
                  'pipeline_id': job['pipeline_id'], 'job': job['id'], 'pipeline': job['pipeline_id'], 'ref': 'main',
                  'path': 'out/a', 'folder': 'out', 'sha': SHA,
                  'action': 'pause' if '/runners/' in route.path else 'cancel',
                  'project': 1 if '/hooks/' in route.path else 'group/demo'}
        return re.sub(r'<(\w+)(?::\w+)?>', lambda match: str(values.get(match[1], 1)), route.path)

    def send(self, route, how, token, name='job', **changes):
        """Call a route with a token in all places of one kind, and with everything else as it should be."""
        path, body, headers = self.address(route, name), {**GOOD, **changes}, {'Content-Range': '5-8'}
        if route.path.startswith('/hooks/'):
            headers |= {'X-Gitlab-Event': 'Push Hook', 'X-Gitlab-Token': token, 'X-Gitea-Signature': token,
                        'X-Forgejo-Signature': token, 'X-Hub-Signature-256': f'sha256={token}'}
            return self.client.call('POST', path, json={'ref': 'refs/heads/main', 'before': SHA, 'after': SHA},
                                    headers=headers)
        tokens = {'token': token, 'private_token': token, 'job_token': token}
        if how == 'usual':      # as its owner sends it
            by_header = token.startswith('mcp') or '/projects/' in route.path and '/trigger' not in route.path
            path += '' if by_header else f'?token={quote(token)}'
            headers['PRIVATE-TOKEN' if token.startswith('mcp') else 'JOB-TOKEN'] = token
        elif how == 'header':
            headers |= {'PRIVATE-TOKEN': token, 'JOB-TOKEN': token, 'BUILD-TOKEN': token,
                        'Authorization': f'Bearer {token}'}
        elif how == 'cookie':
            headers['Cookie'] = f'minici_{self.ci.instance}={token}'
            body |= {'csrf': minici_pages.csrf_token(minici.Call(self.ci, route, {'HTTP_COOKIE': headers['Cookie']})),
                     **changes}
        elif how == 'query':
            path += '?' + '&'.join(f'{name}={quote(token)}' for name in tokens)
        else:
            body |= tokens
        if route.method == 'PATCH':
            return self.client.call('PATCH', path, data=b'more', headers=headers)
        if route.method == 'POST' and route.path.endswith('<id:job>/artifacts'):
            form = {name: str(value) for name, value in body.items() if name not in ('path', 'name')}
            return self.client.call('POST', path, form=form, files=[('file', 'a.zip', archive(a='b'))], headers=headers)
        return self.client.call(route.method, path, json=body, headers=headers)

    def stored(self):
        """Return all that is stored: every row, and every file with its size."""
        with contextlib.closing(sqlite3.connect(self.ci.db.path)) as connection:
            rows = list(connection.iterdump())
        return rows, sorted((str(path), path.stat().st_size) for path in self.ci.data.rglob('*') if path.is_file())


def build(ci, clock):
    """Fill a coordinator with all that a World has; return its facts."""
    project = ci.create_project('group/demo', import_url=f'http://user:{PASSWORD}@127.0.0.1:1/demo.git')
    other = ci.create_project('other')
    ci.set_variable(project, '1', VARIABLE)
    runner, foreign, removed = Runner(ci), Runner(ci, token=other['runners_token']), Runner(ci)
    ci.unregister_runner(removed.row)

    def claim(holder=runner, where=project):
        ci.create_pipeline(where, 'main', sha=SHA, content=PLAIN, variables=[{'key': 'SECRET', 'value': VARIABLE}])
        return holder.claim()

    claims = {'requeued_job': claim()}
    clock.advance(121)
    ci.sweep()
    ci.cancel_job(claims['requeued_job'].job)
    for name in ('finished_job', 'canceled_job', 'erased_job', 'job'):
        claims[name] = claim()
        job = ci.authenticate_job(claims[name].job['id'], claims[name].token)
        ci.append_trace(job, 0, b'hello')
        store(ci, job)
        if name in ('finished_job', 'erased_job'):
            ci.update_job(job, 'success')
    ci.cancel_job(claims['canceled_job'].job)
    ci.erase_job(claims['erased_job'].job)
    claims['other_job'] = claim(foreign, other)
    api, read_api = ci.create_private_token(), ci.create_private_token(scope='read_api')
    for token in (api, read_api):
        ci.note_use(ci.find_user(token))
    trigger, other_trigger = (ci.create_trigger(where, ci.find_user(api), '')['token'] for where in (project, other))
    tokens = {'registration': ci.registration_token, 'project': project['runners_token'], 'api': api,
              'read_api': read_api, 'other_project': other['runners_token'], 'runner': runner.token,
              'other_runner': foreign.token, 'removed_runner': removed.token,
              'trigger': trigger, 'other_trigger': other_trigger, 'webhook': project['webhook_token'],
              'other_webhook': other['webhook_token'], 'session': ci.sign_in_with(api),
              'reading_session': ci.sign_in_with(read_api)}
    jobs = {name: claimed.job['id'] for name, claimed in claims.items()}
    ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)  # for those who come to claim
    ci.create_pipeline(other, 'main', sha=SHA, content=PLAIN)
    return {'tokens': {**tokens, **{name: claimed.token for name, claimed in claims.items()}}, 'jobs': jobs,
            'now': clock.now}


def store(ci, job, filename='artifacts.zip'):
    """Keep a small archive as the artifacts of a running job."""
    part = ci.artifacts.receive()
    part.filename = filename
    part.write(archive(out__a='content'))
    ci.store_artifacts(job, part)
    part.discard()


@pytest.fixture(scope='module')
def template(tmp_path_factory):
    """A directory with a World in it, and the World's facts."""
    path, clock = tmp_path_factory.mktemp('world'), Clock()
    with minici.Coordinator(path / 'ci.sqlite', clock=clock, fsync=False) as ci:
        facts = build(ci, clock)
    return path, facts


@pytest.fixture
def copies(template, tmp_path):
    """A maker of fresh Worlds, each with the same tokens."""
    with contextlib.ExitStack() as stack:
        def copy():
            path = tmp_path / f'world-{len(list(tmp_path.iterdir()))}'
            shutil.copytree(template[0], path)
            world = World(path, template[1])
            stack.callback(world.ci.close)
            return world
        yield copy


@pytest.fixture
def world(copies):
    return copies()


# -- who gets in

def test_every_route_has_a_guard_and_few_are_public(world):
    assert all(callable(route.auth) for route in world.routes)
    assert {(route.method, route.path) for route in world.routes if route.auth is minici.public} == PUBLIC


def intruders(world, routes, how, token):
    """Return what those routes answered that did not refuse the token."""
    answers = [(route.method, route.path, world.send(route, how, token).status_int) for route in routes]
    return [answer for answer in answers if answer[2] not in (400, 401, 403, 404)]


@pytest.mark.parametrize('name', [
    'registration', 'project', 'other_project', 'api', 'read_api', 'runner', 'other_runner', 'removed_runner',
    'trigger', 'other_trigger', 'webhook', 'other_webhook', 'job', 'other_job', 'requeued_job', 'finished_job',
    'canceled_job', 'erased_job', 'session', 'reading_session'])
def test_token_opens_no_route_that_it_is_not_for(world, name):
    before = world.stored()
    closed = [route for route in world.routes if name not in entitled(route) and not is_open(route)]
    for how in ('header', 'query', 'json'):
        assert intruders(world, closed, how, world.tokens[name]) == []
    closed = [route for route in world.routes if name not in entitled_in_cookie(route) and not is_open(route)]
    assert intruders(world, closed, 'cookie', world.tokens[name]) == []
    assert world.stored() == before


@pytest.mark.parametrize('token', [
    '', ' ', 'nonsense', 'tökén', '\u20ac', "' OR 1=1 --", '%', '*', 'x' * 5000, 'null', 'None', '0', '\0', 'mcp-',
    'mcr-' + '0' * 40])
def test_text_that_is_no_token_opens_nothing(world, token):
    before = world.stored()
    closed = [route for route in world.routes if not is_open(route)]
    for how in ('query', 'json') if token in ('\0', '\u20ac') else ('header', 'cookie', 'query', 'json'):
        assert intruders(world, closed, how, token) == []
    assert world.stored() == before


@pytest.mark.parametrize('twist', [
    str.upper, lambda token: token[:-1], lambda token: token + '0', lambda token: token + '\0',
    lambda token: token[:20], lambda token: hashlib.sha256(token.encode()).hexdigest()],
    ids=['upper', 'shorter', 'longer', 'nul', 'half', 'hash'])
def test_token_that_is_nearly_right_opens_nothing(world, twist):
    for route in world.routes:
        for name in entitled(route) if not is_open(route) else ():
            assert intruders(world, [route], 'json', twist(world.tokens[name])) == []
        for name in entitled_in_cookie(route) if not is_open(route) else ():
            assert intruders(world, [route], 'cookie', twist(world.tokens[name]).replace('\0', '%00')) == []


@pytest.mark.parametrize('wrap', [
    lambda token: None, lambda token: True, lambda token: 0, lambda token: 1.5, lambda token: [], lambda token: {},
    lambda token: [token], lambda token: {'a': token}, lambda token: [[token]], lambda token: {token: token}],
    ids=['null', 'true', 'zero', 'float', 'empty-list', 'empty-object', 'list', 'object', 'lists', 'key'])
def test_token_of_another_json_type_opens_nothing(world, wrap):
    before = world.stored()
    for route in world.routes:
        for name in entitled(route) if not is_open(route) else ():
            no_json = route.method == 'PATCH' or route.path.endswith('<id:job>/artifacts') or name == 'webhook'
            if not no_json:
                assert intruders(world, [route], 'json', wrap(world.tokens[name])) == []
    assert world.stored() == before


def test_every_route_lets_in_each_token_it_is_for(copies):
    shut = []
    for route in copies().routes:
        if route.path.startswith(('/api/v1', '/ci/builds', '/ci/runners')) or is_open(route):
            continue  # further names of what stands at /ci/api/v1
        for name in sorted(entitled(route)):
            world = copies()
            token = world.tokens[name]
            stranger, owner = (world.send(route, 'usual', text) for text in (token[:-1], token))
            if (stranger.status, stranger.body) == (owner.status, owner.body):
                shut.append((route.method, route.path, name, owner.status))
    assert shut == [], shut


def test_every_page_lets_in_each_private_token_that_it_is_for(copies):
    shut = []
    for route in copies().routes:
        for name in sorted(entitled_in_cookie(route)) if not is_open(route) else ():
            answer = copies().send(route, 'cookie', copies().tokens[name])
            expected = (200, 206, 303)
            if '<rest:' in route.path:
                expected = (404,)
            if 'pipeline_schedules' in route.path:  # the repository cannot be read, and there is no schedule
                expected = (200, 303, 400, 404)
            if answer.status_int not in expected:
                shut.append((route.method, route.path, name, answer.status))
    assert shut == [], shut


@pytest.mark.parametrize('csrf', [None, '', 'wrong', '0' * 64, ['0' * 64], 0, True])
def test_form_without_the_csrf_token_of_its_browser_changes_nothing(world, csrf):
    before = world.stored()
    for route in world.routes:
        if route.method == 'POST' and is_page(route) and not is_open(route):
            answer = world.send(route, 'cookie', world.tokens['session'], csrf=csrf)
            assert answer.status_int in (400, 403), (route.path, answer.status)
    assert world.stored() == before


@pytest.mark.parametrize('name', ['finished_job', 'canceled_job'])
def test_token_of_a_job_that_has_left_running_changes_nothing(copies, name):
    changed = []
    for route in copies().routes:
        if route.method != 'GET' and '<id:job>' in route.path and not route.path.startswith('/api/v4/projects'):
            world = copies()
            before = world.stored()
            for how in ('header', 'query'):
                world.send(route, how, world.tokens[name], name, state='failed')
            if world.stored() != before:
                changed.append((route.method, route.path))
    assert changed == []


@pytest.mark.parametrize('name', ['erased_job', 'requeued_job'])
def test_token_of_an_erased_or_requeued_job_is_refused(world, name):
    routes = [route for route in world.routes
              if '<id:job>' in route.path and not route.path.startswith('/api/v4/projects')]
    answers = {world.send(route, 'query', world.tokens[name], name).status_int for route in routes}
    assert answers <= {401, 403, 404}


def test_only_the_newest_claims_token_works_after_a_requeue(ci, clock, client, pipeline, runner):
    first = runner.claim()
    clock.advance(121)
    ci.sweep()
    second = runner.claim()
    assert second.job['id'] == first.job['id']
    for token, status in ((first.token, 403), (second.token, 202)):
        client.call('PATCH', f'/api/v4/jobs/{first.job["id"]}/trace', data=b'', status=status,
                    headers={'JOB-TOKEN': token, 'Content-Range': '0-0'})


def test_tokens_are_long_random_and_told_apart_by_their_prefix(world):
    for token in world.tokens.values():
        assert re.fullmatch(r'(mc[a-z]-([0-9]+-)?)?[0-9a-f]{40}', token)    # of old runners without a prefix
    assert len(set(world.tokens.values())) == len(world.tokens)


# -- what gets out

def secrets_of(world):
    return [*world.tokens.values(), PASSWORD, VARIABLE]


def test_tokens_of_runners_people_and_jobs_are_not_stored_readably(world):
    rows = '\n'.join(world.stored()[0])
    readable = {name for name, token in world.tokens.items() if token in rows}
    assert readable == {'registration', 'project', 'other_project', 'trigger', 'other_trigger', 'webhook',
                        'other_webhook'}


def test_no_answer_and_no_log_tells_a_secret(world, caplog):
    caplog.set_level(logging.DEBUG)
    echoed = ('/runners/verify', '<id:job>/artifacts')      # runners want their token back from these
    claims = ('/jobs/request', '/builds/register')      # the address and the variables are theirs
    leaks = []
    for route in world.routes:
        for name, token in world.tokens.items():
            if route.method == 'DELETE' or route.path.endswith('/cancel'):
                continue  # the others need what these remove
            answer = world.send(route, 'usual', token)
            told = {secret for secret in secrets_of(world) if secret in f'{answer.headers}{answer.body!r}'}
            if route.path.endswith(echoed) and route.method == 'POST':
                told -= {token}
            if route.path.endswith(claims):
                told -= {PASSWORD, VARIABLE}
            if name == 'api' and route.path.startswith('/api/v4/projects'):
                told -= {world.tokens['project'], world.tokens['webhook'], world.tokens['trigger']}
            if name in ('api', 'read_api') and '/variables' in route.path:
                told -= {VARIABLE}
            leaks += [(route.method, route.path, name, secret) for secret in told]
    assert leaks == []
    assert [secret for secret in secrets_of(world) if secret in caplog.text] == []


def test_runners_token_of_a_project_is_shown_to_api_tokens_on_its_own_page_alone(world):
    pages = {'/api/v4/projects': None, '/api/v4/projects/group%2Fdemo': 'api'}
    for path, reader in pages.items():
        for name in ('api', 'read_api'):
            answer = world.client.call('GET', path, token=world.tokens[name], status=200)
            assert (world.tokens['project'] in answer) is (name == reader), (path, name)


def test_trouble_is_logged_without_the_token(world, caplog, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError('broken')

    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(world.ci, 'list_jobs', fail)
    answer = world.client.call('GET', f'/api/v4/projects/1/jobs?private_token={world.tokens["api"]}', status=500)
    assert 'RuntimeError' in caplog.text
    assert world.tokens['api'] not in caplog.text
    assert answer.json == {'message': '500 Internal Server Error'}


def test_failing_clone_does_not_tell_the_password(ci, client, token):
    ci.create_project('demo', import_url=f'http://user:{PASSWORD}@127.0.0.1:1/demo.git')
    answer = client.call('POST', '/api/v4/projects/demo/pipeline', json={'ref': 'main'}, token=token, status=400)
    assert PASSWORD not in answer


# -- headers, in and out

@pytest.mark.parametrize('host', [
    'evil"<script>', 'evil.example/path', 'user@evil.example', 'evil.example:80:80', 'evil example', 'evil.example?x',
    'evil.example#x', "evil'", 'evil\\example', 'evil\tx', '[evil]', '[::1', 'evil.example:port', 'evil.example:999999',
    '<evil>', 'evil,localhost', 'evil;x', 'evil\xe9', 'http://evil.example', '//evil', 'evil%0d%0aX:1'])
def test_hostile_host_header_is_never_echoed(world, host):
    for path in ('/api/v4/projects?per_page=1', f'/api/v4/projects/1/jobs/{world.jobs["job"]}', '/api/v4/user', '/x'):
        answer = world.client.call('GET', path, token=world.tokens['api'], headers={'Host': host})
        assert 'evil' not in f'{answer.headers}{answer.text}'
    claim = world.client.call('POST', '/api/v4/jobs/request', json={'token': world.tokens['other_runner']},
                              headers={'Host': host}, status=201)
    assert 'evil' not in claim


def test_forwarded_headers_of_strangers_change_nothing(world):
    headers = {f'X-Forwarded-{name}': 'evil.example' for name in ('Host', 'Server', 'Proto', 'Port', 'Prefix', 'For')}
    headers |= {'Forwarded': 'host=evil.example;for=evil.example', 'X-Script-Name': '/evil', 'X-Real-IP': 'evil'}
    answer = world.client.call('POST', '/api/v4/jobs/request', json={'token': world.tokens['other_runner']},
                               headers=headers, status=201)
    assert 'evil' not in answer
    assert 'evil' not in str(tuple(world.ci.find_runner(world.tokens['other_runner'])))


def test_every_answer_carries_the_security_headers(world):
    addresses = [(route.method, world.address(route)) for route in world.routes if route.method != 'DELETE']
    assets, doors = ({(method, world.address(route)) for route in world.routes if (route.method, route.path) in paths}
                     for paths, method in ((ASSETS, 'GET'), (DOORS, 'POST')))
    addresses += [('GET', '/'), ('GET', '/nothing/here'), ('PUT', '/api/v4/projects'), ('OPTIONS', '/api/v4/projects'),
                  ('GET', '/api/v4/projects/1/jobs/x'), ('PATCH', '/api/v4/user'), ('GET', '/api/v4/projects/%FF')]
    wrong = []
    for method, path in addresses:
        for token in (None, world.tokens['api'], world.tokens['job']):
            answer = world.client.call(method, path, token=token, headers={
                'Origin': 'https://evil.example', 'Access-Control-Request-Method': 'POST', 'JOB-TOKEN': token or ''})
            kept = 'public, max-age=[0-9]+, immutable' if (method, path) in assets \
                else '(private, )?(no-store|no-cache)'
            barred = ('access-control-',) if (method, path) in doors else ('access-control-', 'set-cookie')
            if (answer.headers.get('X-Content-Type-Options') != 'nosniff'
                    or not re.fullmatch(kept, answer.headers.get('Cache-Control', ''))
                    or [name for name in answer.headers if name.lower().startswith(barred)]):
                wrong.append((method, path, answer.status))
    assert wrong == []


def test_artifacts_are_attachments_and_traces_plain_text(world):
    job = f'/api/v4/projects/1/jobs/{world.jobs["job"]}'
    for path in (f'{job}/artifacts', f'{job}/artifacts/out/a', f'/ci/api/v1/builds/{world.jobs["job"]}/artifacts',
                 f'/api/v4/jobs/{world.jobs["job"]}/artifacts'):
        headers = {'PRIVATE-TOKEN': world.tokens['api'], 'BUILD-TOKEN': world.tokens['job'],
                   **({} if 'projects' in path else {'JOB-TOKEN': world.tokens['job']})}
        answer = world.client.call('GET', path, headers=headers, status=200)
        assert answer.headers['Content-Disposition'].startswith('attachment;')
        assert answer.headers['Content-Security-Policy'].startswith('sandbox')
    trace = world.client.call('GET', f'{job}/trace', token=world.tokens['api'], status=200)
    assert trace.headers['Content-Type'] == 'text/plain; charset=utf-8'


@pytest.mark.parametrize('name', [
    'a"b.zip', 'a\\b.zip', 'a\r\nX-Evil: 1.zip', 'a\nb', 'ünï€.zip', '"; filename="evil.html', '..', '.', '/', '',
    'a;b', "a'b", '%22', 'x' * 4096, '\x00', '\x7f', 'a/b/c.zip', '\u202egpj.exe'])
def test_name_of_an_archive_makes_one_valid_header(ci, client, job, name):
    row = ci.authenticate_job(job.job['id'], job.token)
    store(ci, row, name)
    answer = client.call('GET', f'/api/v4/jobs/{row["id"]}/artifacts', headers={'JOB-TOKEN': job.token}, status=200)
    disposition = answer.headers['Content-Disposition']
    plain, encoded = r'filename="[A-Za-z0-9._ ()+-]+"', r"filename\*=UTF-8''[A-Za-z0-9%._~-]*"
    assert re.fullmatch(f'attachment; {plain}; {encoded}', disposition)
    assert answer.headers.getall('Content-Disposition') == [disposition]
    assert 'X-Evil' not in answer.headers


# -- what clients write

NAME_OF_SECRET = re.compile(r'token|secret|digest|hash', re.I)


TREE = ast.parse(Path(minici.__file__).read_text(encoding='utf-8'))


def test_secrets_are_compared_in_constant_time_alone():
    plain, inside = [], {id(node) for function in ast.walk(TREE) if isinstance(function, ast.FunctionDef)
                         and 'secret' in function.name for node in ast.walk(function)}
    for node in ast.walk(TREE):
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Eq, ast.NotEq)):
            sides = (node.left, *node.comparators)
            named = id(node) in inside or any(NAME_OF_SECRET.search(ast.unparse(side)) for side in sides)
            if named and not any(isinstance(side, ast.Constant) for side in sides):
                plain.append((node.lineno, ast.unparse(node)))
    assert plain == []


@pytest.mark.parametrize('given, expected, same', [
    ('secret', 'secret', True), ('secret', 'Secret', False), ('secret', 'secret ', False), ('', '', False),
    (None, None, False), ('', 'secret', False), (None, 'secret', False), ('secret', None, False),
    ('\u20ac\udc80', 'secret', False)])
def test_missing_secret_equals_nothing(given, expected, same):
    assert minici.same_secret(given, expected) is same


CONTROLS = [chr(code) for code in (*range(33), 127)]
HOSTILE_URLS = [
    '', ' ', '-', '--', '.', '..', '/', '/etc/passwd', './demo', '../demo', 'demo', 'C:\\demo', 'host:demo',
    'git@host:group/demo.git', 'host::demo', 'https:', 'https:/', 'https://', 'https:///demo', 'file:', 'file://',
    'file://host/demo', 'ftp://host/demo', 'ftps://host/demo', 'javascript:alert(1)', 'data:text/plain,x', 'about:x',
    'git+ssh://host/demo', 'ssh+git://host/demo', 'rsync://host/demo', 'bundle://host/demo', 'http:host', '//host/demo',
    *(f'{scheme}::{rest}' for scheme in ('ext', 'fd', 'transport', 'https', 'http', 'file', 'ssh', 'git', 'a', '')
      for rest in ('sh -c touch% /tmp/evil', '17', 'https://host/demo', '/demo', '')),
    *(option for flag in ('-u', '-c', '-o', '--exec', '--upload-pack', '--config', '--template', '-oProxyCommand')
      for option in (flag, f'{flag}=touch /tmp/evil', f'{flag}=evil', f' {flag}=evil')),
    *(f'{scheme}://{user}-{option}/demo' for scheme in ('ssh', 'https', 'http', 'git') for user in ('', 'git@')
      for option in ('oProxyCommand=evil', '-upload-pack=evil', 'x')),
    *(url for character in CONTROLS for url in (
        f'https://host/{character}demo', f'https://{character}host/demo', f'file:///srv/{character}',
        f'{character}https://host/demo')),
]
HOSTILE_REFS = [
    '', '-', '--', '--all', '--upload-pack=evil', '-q', '-oProxyCommand=evil', '@', '.', '..', '/', '//', 'a/', '/a',
    'a//b', 'a..b', 'a...b', '.a', 'a/.b', 'a.', 'a.lock', 'a.lock/b', 'a/b.lock', 'a@{1}', '@{u}', 'a~1', 'a^', 'a^{}',
    'a:b', 'a?', 'a*', 'a[b', 'a\\b', 'HEAD^', 'main:evil', ':evil', '+a:b', '^a', 'x' * 256,
    *(ref for character in CONTROLS for ref in (f'a{character}b', f'{character}a', f'a{character}')),
]
HOSTILE_SHAS = [
    '', ' ', '-', 'HEAD', 'main', '--all', '0', '0' * 39, '0' * 41, '0' * 63, '0' * 65, 'g' * 40, '0x' + '0' * 38,
    '-' + '0' * 39, '0' * 39 + '\n', '0' * 40 + '\n', ' ' + '0' * 40, '0' * 40 + '^', '0' * 40 + ':evil', '٠' * 40,
    '0' * 20 + '\0' + '0' * 19, '0' * 39 + '\uff21', '--upload-pack=' + '0' * 26,
]


def accepted(verb, *arguments, **options):
    """Tell whether a verb takes what it is given."""
    try:
        verb(*arguments, **options)
    except minici.BadRequest:
        return False
    return True


def test_hostile_addresses_are_refused_and_make_no_project(ci):
    assert len(set(HOSTILE_URLS)) + len(set(HOSTILE_REFS)) + len(set(HOSTILE_SHAS)) > 300
    assert [url for number, url in enumerate(HOSTILE_URLS)
            if accepted(ci.create_project, f'demo-{number}', import_url=url)] == []
    assert ci.list_projects()[1] == 0


def test_hostile_refs_and_shas_are_refused_and_make_no_pipeline(ci, project):
    assert [ref for ref in HOSTILE_REFS if accepted(ci.create_pipeline, project, ref, sha=SHA, content=PLAIN)] == []
    assert [sha for sha in HOSTILE_SHAS if accepted(ci.create_pipeline, project, 'main', sha=sha, content=PLAIN)] == []
    assert ci.list_pipelines(project)[1] == 0


def test_hostile_default_branches_are_refused(ci):
    assert [ref for number, ref in enumerate(HOSTILE_REFS)
            if accepted(ci.create_project, f'demo-{number}', default_branch=ref)] == []


def test_hostile_refs_of_a_request_are_refused(client, token, project):
    for ref in HOSTILE_REFS:
        client.call('POST', f'/api/v4/projects/{project["id"]}/pipeline', token=token, status=400,
                    json={'ref': ref, 'sha': SHA, 'content': PLAIN})


HOSTILE_NAMES = [
    '../evil', '../../../../evil', '..\\..\\evil', '/evil', '\\evil', 'C:\\evil', 'evil\0.zip', 'evil:stream', 'evil ',
    '~evil', '$(evil)', '%2e%2e%2fevil', '..%c0%afevil', 'evil/../../evil', 'evil\n', './evil', '....//evil',
    'evil' * 1000]


def test_names_that_clients_choose_never_become_paths(ci, client, token, runner, tmp_path):
    outside = {path for path in tmp_path.parent.iterdir() if path != tmp_path}
    for number, name in enumerate(HOSTILE_NAMES):
        client.call('POST', '/api/v4/projects', token=token, json={'path': name, 'name': name}, status=400)
        project = ci.create_project(f'demo-{number}')
        stage = name.replace('\0', '')  # which no pipeline file may hold
        content = {f'job {stage}'[:255]: {'script': ['make'], 'stage': stage}, 'stages': [stage]}
        ci.create_pipeline(project, 'main', sha=SHA, content=content)
        job = runner.claim()
        row = ci.authenticate_job(job.job['id'], job.token)
        ci.append_trace(row, 0, b'x')
        store(ci, row, name)
        with pytest.raises(minici.CIError):
            ci.artifacts.open_entry(ci.find_artifact(row['id'])['stored_as'], name)
        for kind in ('artifact_type', 'artifact_format'):
            client.call('POST', f'/api/v4/jobs/{row["id"]}/artifacts?{kind}={quote(name)}', status=400, form={},
                        files=[('file', 'a.zip', archive(a='b'))], headers={'JOB-TOKEN': job.token})
    assert not [path for path in tmp_path.rglob('*') if 'evil' in path.name]
    assert {path for path in tmp_path.parent.iterdir() if path != tmp_path} == outside


@pytest.mark.parametrize('path', [
    '../ci.sqlite', '..%2fci.sqlite', '%2e%2e/ci.sqlite', '%2e%2e%2fci.sqlite', '/etc/passwd', '%2fetc%2fpasswd',
    'out/../../x', 'out%00', '..', '.', '%2e%2e', '..%5c..%5cx', '....//x'])
def test_file_out_of_an_archive_is_looked_for_in_the_archive_alone(world, path):
    for base in (f'{world.jobs["job"]}/artifacts', 'artifacts/main/raw'):
        address = f'/api/v4/projects/1/jobs/{base}/{path}?job=test'
        answer = world.client.call('GET', address, token=world.tokens['api'])
        assert answer.status_int in (400, 404)


def test_files_are_readable_by_their_owner_alone(world, tmp_path):
    world.ci.backup(tmp_path / 'backup.sqlite')
    for route in world.routes:
        if route.path == '/ci/api/v1/builds/<id:job>/artifacts' and route.method == 'POST':
            assert world.send(route, 'header', world.tokens['job']).status_int == 201
    found = [path for path in tmp_path.rglob('*') if path.is_file()]
    assert {path.suffix for path in found} >= {'.sqlite', '.log', '.sqlite-wal'}
    assert [path for path in found if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_data_directory_is_open_to_its_owner_alone(tmp_path):
    with minici.Coordinator(tmp_path / 'ci.sqlite', fsync=False) as ci:
        assert stat.S_IMODE(ci.data.stat().st_mode) == 0o700


def test_whatever_makes_a_file_or_directory_makes_it_for_its_owner_alone():
    calls = [node for node in ast.walk(TREE) if isinstance(node, ast.Call)]
    files = [node for node in calls if ast.unparse(node.func) == 'os.open' and 'O_CREAT' in ast.unparse(node.args[1])]
    directories = [node for node in calls if getattr(node.func, 'attr', '') in ('mkdir', 'makedirs')]
    modes = [{item.arg: ast.unparse(item.value) for item in node.keywords}.get('mode') for node in directories]
    assert {ast.unparse(node.args[2]) for node in files} == {str(0o600)}
    assert set(modes) == {str(0o700)}
