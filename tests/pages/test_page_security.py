"""Pages: no other site, no hostile name and no stolen look gets more out of them than they mean to give."""

import contextlib
import dataclasses
import html
import http.client
import os
import re
import sqlite3
import subprocess
import threading
from collections import Counter
from urllib.parse import quote, urlencode, urljoin

import minici_pages
import pytest
from browsing import Browser, crawl, read_page
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support import ASSETS, PLAIN, SHA, Clock, Runner, archive, dispatcher, is_open, is_page

import minici

JOBS = '/group/demo/-/jobs'
PASSWORD = 'hunter2-of-the-url'


class Site:
    """A coordinator in which every form has something to do, and every secret there is."""

    def __init__(self, ci):
        self.ci = ci
        self.token, self.read_token = ci.create_private_token('root'), ci.create_private_token('ann', 'read_api')
        user = ci.find_user(self.token)
        project = ci.create_project('group/demo', import_url=f'https://me:{PASSWORD}@127.0.0.1:1/demo.git')
        ci.set_variable(project, 'KEY', 'value-of-a-variable')
        trigger = ci.create_trigger(project, user, 'nightly')
        runner, paused = Runner(ci, description='one'), Runner(ci, description='two')
        own = Runner(ci, token=project['runners_token'])
        ci.edit_runner(paused.row, active=False)
        ci.create_pipeline(project, 'main', sha=SHA, user=user, content={
            'done': {'script': ['x']}, 'bad': {'script': ['x']}, 'busy': {'script': ['x']},
            'ask': {'script': ['x'], 'when': 'manual'}}, variables=[{'key': 'GIVEN', 'value': 'value-of-a-caller'}])
        claims = [runner.claim() for _ in range(3)]
        for claim, state in zip(claims, ('success', 'failed', None), strict=True):
            ci.append_trace(claim.job, 0, b'hello\n')
            part = ci.artifacts.receive()
            part.filename = 'out.zip'
            part.write(archive(out__a='content'))
            ci.store_artifacts(claim.job, part, expire_in='1 day')
            part.discard()
            if state:
                ci.update_job(ci.authenticate_job(claim.job['id'], claim.token), state)
        self.never = {self.token, self.read_token, runner.token, paused.token, own.token, PASSWORD,
                      ci.create_sign_in_code(), *(claim.token for claim in claims)}
        self.for_owners = {ci.registration_token, project['runners_token'], project['webhook_token'],
                           trigger['token'], 'value-of-a-variable'}
        self.routes = minici.create_app(ci).routes
        #: Every form of the pages, and what it sends when it has something to do, one after another.
        self.forms = {
            f'{JOBS}/4/play': {}, f'{JOBS}/3/cancel': {}, f'{JOBS}/1/keep': {}, f'{JOBS}/1/erase': {},
            f'{JOBS}/1/retry': {}, '/group/demo/-/pipelines/1/retry': {}, '/group/demo/-/pipelines/1/cancel': {},
            '/-/pipelines/new': {'project': 'group/demo', 'ref': 'main', 'sha': SHA, 'content': 'test: {script: x}'},
            '/-/runners/1/pause': {}, '/-/runners/2/resume': {}, '/-/runners/1/remove': {},
            '/-/projects': {'path': 'fresh'}, '/group/demo/-/variables': {'key': 'NEW', 'value': 'x'},
            '/group/demo/-/variables?': {'remove': 'KEY'}, '/group/demo/-/triggers': {'description': 'x'},
            '/group/demo/-/triggers?': {'remove': '1'}, '/-/tokens': {'description': 'x'},
            '/-/tokens?': {'revoke': minici.token_hash(self.read_token)}}

    def stored(self):
        """Return all that is stored: every row, and every file with what it holds."""
        with contextlib.closing(sqlite3.connect(self.ci.db.path)) as connection:
            rows = list(connection.iterdump())
        return rows, sorted((str(path), path.read_bytes()) for path in self.ci.data.rglob('*') if path.is_file())

    def address(self, route):
        """Return the path of a page's route, about something that exists."""
        values = {'project': 'group/demo', 'job': 1, 'pipeline': 1, 'runner': 1, 'action': 'cancel',
                  'path': 'out/a', 'folder': 'out', 'sha': SHA, 'status': 'running', 'rest': 'nothing',
                  'ref': 'main', 'schedule': 1}
        return re.sub(r'<(\w+)(?::\w+)?>', lambda match: str(values[match[1]]), route.path)

    def pages(self, method='GET'):
        """Return the addresses of the pages that are not open to everybody."""
        return [self.address(route) for route in self.routes
                if route.method == method and is_page(route) and not is_open(route)]


@pytest.fixture
def site(ci):
    return Site(ci)


@pytest.fixture
def browser(ci, site):
    return Browser(ci, site.token)


# -- hosts

OURS = ['localhost', 'localhost:8080', 'LOCALHOST', 'localhost.', 'ci.localhost:80', '127.0.0.1', '127.0.0.1:8080',
        '127.1.2.3', '192.168.1.20:80', '[::1]', '[::1]:8080', '[fe80::1]', 'ci.example.com', 'ci.example.com:8443',
        'CI.Example.COM', 'ci.example.com.']
FOREIGN = ['evil.example', 'evil.example:80', 'localhost.evil.example', '127.0.0.1.evil.example', 'evillocalhost',
           'localhost.evil.example.', 'ci.example.com.evil.example', 'xci.example.com', 'example.com', '0x7f000001',
           '127.1', '2130706433', 'localhost, evil.example', '', ':80', 'localhost@evil.example',
           'localhost evil.example', 'evil.example/.localhost', 'evil.example?.localhost',
           '127.0.0.1:80.evil.example', '::1', '[localhost]']


@pytest.mark.parametrize('host', OURS)
def test_pages_answer_to_addresses_and_to_names_that_nobody_else_can_have(ci, site, host):
    ci.settings = dataclasses.replace(ci.settings, external_url='https://ci.example.com')
    assert Browser(ci, site.token, host=host).open('/').one('h1').text == 'Pipelines'


@pytest.mark.parametrize('host', FOREIGN)
def test_pages_do_not_answer_to_a_name_that_may_be_anybodys(ci, site, host):
    ci.settings = dataclasses.replace(ci.settings, external_url='https://ci.example.com')
    browser = Browser(ci, site.token, host=host)
    answer = browser.send('GET', '/')
    assert answer.status == '421 Misdirected Request'
    page = read_page(answer.text)
    assert '--external-url' in page.one('main').text
    assert 'group/demo' not in answer.text
    assert 'evil' not in answer.text


def test_no_page_and_no_form_answers_to_a_foreign_name(ci, site):
    csrf = Browser(ci, site.token).csrf
    browser = Browser(ci, site.token, host='evil.example')
    before = site.stored()
    for path in (*site.pages(), '/-/sign_in', f'{JOBS}/1/artifacts/file/out/a'):
        browser.get(path, 421)
    for path, fields in {**site.forms, '/-/sign_in': {'token': site.token}, '/-/sign_out': {}}.items():
        browser.submit(path, {'csrf': csrf, **fields}, 421)
    assert site.stored() == before


def test_pages_want_a_host_and_only_one(server, token):
    for hosts in ([], ['localhost', 'evil.example'], ['evil.example', 'localhost'], ['localhost', 'localhost']):
        connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest('GET', '/', skip_host=True)
            for host in hosts:
                connection.putheader('Host', host)
            connection.endheaders()
            assert connection.getresponse().status in (400, 421)


def test_api_answers_to_any_host_for_it_wants_a_token_each_time(client, token):
    client.call('GET', '/api/v4/projects', token=token, headers={'Host': 'evil.example'}, status=200)


# -- forms

def test_each_form_does_something_when_it_comes_from_our_page(ci, site, browser):
    idle = []
    for path, fields in site.forms.items():
        before = site.stored()
        browser.post(path, 200 if path == '/-/tokens' else 303, **fields)
        if site.stored() == before:
            idle.append(path)
    assert idle == []


@pytest.mark.parametrize('how', ['none', 'empty', 'wrong', 'of another browser', 'of nobody', 'in a header'])
def test_form_without_the_csrf_token_of_this_browser_changes_nothing(ci, site, browser, how):
    other = Browser(ci, ci.create_private_token())
    csrf = {'none': None, 'empty': '', 'wrong': 'x' * 64, 'of another browser': other.csrf, 'in a header': None,
            'of nobody': minici_pages.csrf_token(minici.Call(ci, site.routes[0], {}))}[how]
    headers = {'X-CSRF-Token': browser.csrf} if how == 'in a header' else {}
    before = site.stored()
    for path, fields in {**site.forms, '/-/sign_out': {}}.items():
        answer = browser.post(path, 403, headers, **{**fields, 'csrf': csrf})
        assert 'load the page again' in answer.text
    assert site.stored() == before
    assert browser.open('/').one('h1').text == 'Pipelines'


@pytest.mark.parametrize('sent_from', ['cross-site', 'same-site', 'nonsense'])
def test_form_that_another_site_sent_changes_nothing(ci, site, browser, sent_from):
    before = site.stored()
    for path, fields in {**site.forms, '/-/sign_out': {}, '/-/sign_in': {'token': site.read_token}}.items():
        answer = browser.post(path, 403, {'Sec-Fetch-Site': sent_from}, **fields)
        assert 'Set-Cookie' not in answer.headers
    assert site.stored() == before


@pytest.mark.parametrize('sent_from', ['same-origin', 'none', None])
def test_form_that_this_site_or_its_owner_sent_is_taken(browser, sent_from):
    browser.post('/-/projects', 303, {'Sec-Fetch-Site': sent_from} if sent_from else {}, path='fresh')


def test_who_may_only_read_and_who_is_not_signed_in_change_nothing(ci, site):
    ci.settings = dataclasses.replace(ci.settings, public=True)
    reader, stranger = Browser(ci, site.read_token), Browser(ci)
    before = site.stored()
    for path, fields in site.forms.items():
        reader.post(path, 403, **fields)
        assert stranger.post(path, 303, **fields).headers['Location'] == '/-/sign_in'
    assert site.stored() == before


def test_opening_a_page_changes_nothing_whatever_its_address_says(site, browser):
    before, queries = site.stored(), ['', '?' + urlencode({'csrf': browser.csrf, 'remove': 'KEY', 'path': 'fresh',
                                      'revoke': minici.token_hash(site.read_token), 'key': 'NEW', 'value': 'x'})]
    for query in queries:
        for path in (*site.pages(), *site.pages('POST'), *site.forms):
            answer = browser.send('GET', path.rstrip('?') + query)
            assert answer.status_int in (200, 303, 400, 404, 405), (path, answer.status)
            browser.send('HEAD', path.rstrip('?') + query)
    assert site.stored() == before


# -- cookies and signing in

def test_cookie_is_set_by_signing_in_and_out_alone_and_is_out_of_reach_for_scripts_and_sites(ci, site):
    browser = Browser(ci)
    answer = browser.post('/-/sign_in', token=site.token)
    cookie, = answer.headers.getall('Set-Cookie')
    assert set(cookie.split('; ')[1:]) == {'Path=/', 'Max-Age=2592000', 'HttpOnly', 'SameSite=Strict'}
    for path in (*site.pages(), '/-/sign_in'):
        assert 'Set-Cookie' not in browser.send('GET', path).headers
    cookie, = browser.post('/-/sign_out').headers.getall('Set-Cookie')
    assert set(cookie.split('; ')) == {f'minici_{ci.instance}=', 'Path=/', 'Max-Age=0', 'HttpOnly', 'SameSite=Strict'}


@pytest.mark.parametrize('cookie', ['{name}=', '{name}=wrong', '{name}="{token}x"', 'other={token}', '{token}',
                                    '{name}', '{name}={token}0', 'Minici_x={token}', '{name}=%00', '{name}=\xff'])
def test_cookie_that_is_not_ours_opens_nothing(ci, site, cookie):
    browser = Browser(ci)
    browser.cookie = cookie.format(name=f'minici_{ci.instance}', token=site.token)
    for path in site.pages():
        assert browser.get(path, 303).headers['Location'].startswith('/-/sign_in?next=')


def test_sign_in_link_works_once_and_looking_at_it_does_not_use_it_up(ci, site):
    code = ci.create_sign_in_code()
    for _ in range(3):  # as mail scanners and previews do
        Browser(ci).open(f'/-/sign_in?code={code}')
    first, second = Browser(ci), Browser(ci)
    assert first.post('/-/sign_in', code=code).headers['Location'] == '/'
    page = read_page(second.post('/-/sign_in', 403, code=code).text)
    assert page.one(role='alert').text == 'the sign-in link has been used, or is of an earlier start'
    assert (bool(first.cookie), second.cookie) == (True, None)


def test_sign_in_link_of_an_earlier_start_and_a_wrong_one_do_not_work(ci, site):
    old, new = ci.create_sign_in_code(), ci.create_sign_in_code()
    for code in (old, new[:-1], new.upper(), f'{new} ', site.token, 'x', minici.token_hash(new)):
        browser = Browser(ci)
        browser.post('/-/sign_in', 403, code=code)
        assert browser.cookie is None
    Browser(ci).post('/-/sign_in', code=new)


def test_sign_in_code_is_no_token(ci, client, site):
    code = ci.create_sign_in_code()
    client.call('GET', '/api/v4/user', token=code, status=401)
    Browser(ci).post('/-/sign_in', 403, token=code)
    assert Browser(ci, code).get('/', 303)


def test_one_of_many_browsers_gets_in_by_one_link(ci):
    code, tokens = ci.create_sign_in_code(), []

    def enter():
        with contextlib.suppress(minici.Forbidden):
            tokens.append(ci.sign_in(code))

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 1


ELSEWHERE = [
    '//evil.example', '///evil.example', '/\\evil.example', '\\\\evil.example', '\\/evil.example', '/\\/evil.example',
    'https://evil.example', 'http:evil.example', 'https:/evil.example', 'javascript:alert(1)', 'data:text/html,x',
    'evil.example', '@evil.example', '.evil.example', '/\tevil', '/\t/evil.example', '/\n/evil.example',
    '\t//evil.example', ' //evil.example', '/\r\nSet-Cookie: a=b', '/a\r\nX-Evil: 1', '/%0d%0aX-Evil:1\n',
    '/\0', '/\x85', '/\u2028', '/é',
    '/\u3002/evil', '', 'x', '?', '#', '/a b', '//', '/\\', '/..//evil.example', '/./../evil', '/a/../../evil',
    '/%2e%2e/evil', '/.%2e/evil']


@pytest.mark.parametrize('prefix', ['', '/ci'])
def test_signing_in_leads_nowhere_else(ci, token, prefix):
    browser = Browser(ci, None, dispatcher(minici.create_app(ci), '/ci') if prefix else None, prefix=prefix)
    outside = ['/', '/cievil', '/ci.evil.example/', '/other', '/ci/../other', '/ci%2f..', '/-/runners', '/ci@evil']
    for following in (*ELSEWHERE, *(prefix + path for path in ELSEWHERE if prefix and path.startswith('/.')),
                      *(outside if prefix else ())):
        browser.cookie = None
        location = browser.post('/-/sign_in', token=token, next=following).headers['Location']
        assert re.fullmatch(r'[\x21-\x7e]+', location)
        reached = urljoin('http://localhost:80/x', re.sub(r'[\t\r\n]', '', location).replace('\\', '/'))
        assert f'{reached}/'.startswith(f'http://localhost:80{prefix}/'), (following, location)
        assert '..' not in location.replace('%2e', '.').partition('?')[0]


@pytest.mark.parametrize('following', [
    '/', '/-/runners', '/group/demo?a=b&c=//x', '/?ref=feature%2Fx#L1', '/group/demo/-/jobs/1#L120', '/?q=../x'])
@pytest.mark.parametrize('prefix', ['', '/ci'])
def test_signing_in_leads_back(ci, token, prefix, following):
    browser = Browser(ci, None, dispatcher(minici.create_app(ci), '/ci') if prefix else None, prefix=prefix)
    answer = browser.post('/-/sign_in', token=token, next=prefix + following)
    assert answer.headers['Location'] == prefix + following


# -- headers, and what pages are made of

POLICY = {
    'Content-Security-Policy': "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
                               "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    'Content-Type': 'text/html; charset=utf-8', 'X-Content-Type-Options': 'nosniff', 'X-Frame-Options': 'DENY',
    'Referrer-Policy': 'same-origin', 'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Resource-Policy': 'same-origin'}


def check_page(answer):
    """Fail unless a page has all its headers, and nothing in it runs, styles or loads what is not ours."""
    assert {name: answer.headers.get(name) for name in POLICY} == POLICY
    assert re.fullmatch('private, no-cache|no-store', answer.headers['Cache-Control'])
    assert not [name for name in answer.headers if name.lower().startswith('access-control-')]
    page = read_page(answer.text)
    assert not page.all('style') + page.all('base') + page.all('iframe') + page.all('object') + page.all('embed')
    for script in page.all('script'):
        assert (script.raw, script['src'].startswith('/-/minici.js?')) == ('', True)
    for element in page:
        assert not [name for name in element.attributes if name.startswith('on') or name in ('style', 'srcdoc', 'ping')]
        for name in ('href', 'src', 'action', 'formaction', 'poster', 'data'):
            assert re.match(r'/(?![/\\])|[?#]', element.attributes.get(name) or '/'), element.attributes
        if element.tag == 'meta':
            assert set(element.attributes) in ({'charset'}, {'name', 'content'})


def test_every_page_has_the_policy_and_nothing_inline_or_from_elsewhere(ci, site, browser):
    for visitor in (browser, Browser(ci, site.read_token)):
        for _, page in crawl(visitor):
            check_page(page.answer)
    for path in ('/-/sign_in', '/-/sign_in?code=x&next=/', '/nope', '/group/demo/-/jobs/99', '/-/runners/1/x'):
        check_page(browser.send('GET', path) if path[-1] != 'x' else browser.send('POST', path))
    check_page(Browser(ci, host='evil.example').send('GET', '/'))
    check_page(browser.post('/-/pipelines/new', 400, project='group/demo', content='['))
    check_page(browser.post('/-/tokens', 200, description='x'))
    check_page(browser.post('/-/projects', 400, path='a b'))
    check_page(browser.post('/-/sign_in', 403, token='x'))


def test_script_makes_no_markup_and_style_and_script_load_nothing(client):
    script, style = (client.call('GET', f'/-/minici.{kind}').text for kind in ('js', 'css'))
    assert not re.search(r'(innerHTML|outerHTML)\s*\+?=|insertAdjacentHTML|document\.write|\beval\b|\bFunction\(|'
                         r'createContextualFragment|setTimeout\([\'"]|javascript:', script)
    assert not re.search(r'url\(|@import|expression\(|</', style)
    for text in (script, style):
        assert not re.search(r'(https?:)?//[\w.]+\.\w', re.sub(r'(?m)(^|\s)//\s.*$', '', text))


def test_other_sites_are_granted_nothing(site, browser):
    headers = {'Origin': 'https://evil.example', 'Access-Control-Request-Method': 'POST'}
    for path in (*site.pages(), *site.pages('POST'), '/-/sign_in', '/-/minici.js', '/-/minici.css'):
        for method in ('GET', 'OPTIONS', 'POST'):
            answer = browser.send(method, path, headers)
            assert not [name for name in answer.headers if name.lower().startswith('access-control-')]
            if method == 'OPTIONS':
                assert answer.status_int == 405


def test_what_jobs_wrote_is_never_a_page_of_ours(ci, project, runner, token):
    browser = Browser(ci, token)
    ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    claim = runner.claim()
    page = b'<!doctype html><script>alert(1)</script>'
    ci.append_trace(claim.job, 0, page)
    for name, kind in (('<x>.html', 'archive'), ('x.svg', 'junit')):
        part = ci.artifacts.receive()
        part.filename = name
        part.write(archive(**{'x.html': page, 'x.svg': page}))
        ci.store_artifacts(claim.job, part, file_type=kind)
        part.discard()
    for path in ('raw', 'plain'):
        answer = browser.get(f'{JOBS}/1/{path}')
        assert answer.headers['X-Content-Type-Options'] == 'nosniff'
        assert answer.headers['Content-Type'] == 'text/plain; charset=utf-8'
        assert answer.headers['Content-Security-Policy'].startswith('sandbox')
    for path in ('file/x.html', 'file/x.svg', 'download', 'download?file_type=junit'):
        answer = browser.get(f'{JOBS}/1/artifacts/{path}')
        assert answer.headers['Content-Disposition'].startswith('attachment; ')
        assert answer.headers['Content-Security-Policy'].startswith('sandbox')
        assert answer.headers['X-Content-Type-Options'] == 'nosniff'


# -- secrets

def test_no_page_tells_a_secret_to_who_must_not_know_it(ci, site):
    seen = {}
    visitors = ('owner', site.token, False), ('reader', site.read_token, False), ('anybody', None, True)
    for who, token, public in visitors:
        ci.settings = dataclasses.replace(ci.settings, public=public)
        browser, told = Browser(ci, token), ''
        for path, page in crawl(browser) if who != 'anybody' else (
                (path, browser.send('GET', path)) for path in (*site.pages(), f'{JOBS}/3', '/-/sign_in')):
            told += f'{path}\n{getattr(page, "answer", page).text}\n{getattr(page, "answer", page).headers}'
        told += browser.send('GET', f'{JOBS}/1/raw').text
        seen[who] = {secret for secret in site.never | site.for_owners | {'value-of-a-caller'} if secret in told}
    assert seen == {'owner': site.for_owners, 'reader': set(), 'anybody': set()}


def test_visitors_see_no_value_that_a_pipeline_was_made_with_and_no_host_of_a_repository(ci, client):
    ci.settings = dataclasses.replace(ci.settings, public=True)
    token, key, host = ci.create_private_token(), 'very-<"secret">&value', 'git.inner.example'
    project = ci.create_project('group/demo', import_url=f'https://{host}/demo.git')
    ci.set_variable(project, 'KEY', key, masked=True)
    ci.set_variable(None, 'OTHER', 'masked-everywhere', masked=True)
    ci.create_pipeline(project, 'main', sha=SHA, variables=[{'key': 'GIVEN', 'value': 'value-of-a-caller'}], content={
        'workflow': {'name': 'deploy $KEY'}, 'variables': {'YAML': 'value-of-the-file'},
        'waits': {'script': ['x'], 'tags': ['tag-$KEY'], 'resource_group': 'group-$KEY'},
        'deploys': {'script': ['x'], 'environment': {'name': 'on/$OTHER', 'url': f'https://{host}/$KEY'}}})
    Runner(ci).claim()
    told = {}
    for who, browser in ('owner', Browser(ci, token)), ('visitor', Browser(ci)):
        pages = [*(page for _, page in crawl(browser)), browser.open('/group/demo'), *(
            browser.open(f'{JOBS}/{number}') for number in (1, 2))]
        told[who] = '\n'.join(page.answer.text + page.text for page in pages)
    secrets = [key, quote(key), html.escape(key), 'masked-everywhere', 'value-of-the-file', host]
    assert [secret for secret in secrets if secret in told['visitor']] == []
    assert [secret for secret in secrets if secret not in told['owner']] == [quote(key)]
    assert f'deploy {"*" * len(key)}' in told['visitor']
    assert client.call('GET', '/api/v4/projects/1/pipelines/1', token=token).json['name'] == f'deploy {"*" * len(key)}'
    for path in ('/projects/1', '/projects/1/pipelines/1', '/projects/1/jobs', '/projects/1/jobs/1', '/projects'):
        assert client.call('GET', f'/api/v4{path}', status=401).json == {'message': '401 Unauthorized'}


def test_strangers_see_nothing_without_public(ci, site):
    stranger = Browser(ci)
    for path in site.pages():
        answer = stranger.get(path, 303)
        assert (answer.body, answer.headers['Location']) == (b'', f'/-/sign_in?next={quote(path, safe="")}')
        answer = stranger.send('GET', path, {'Accept': '*/*'})
        assert (answer.status_int, set(answer.json)) == (401, {'message'})


def test_assets_are_the_same_for_everybody(ci, site, browser):
    for _, path in ASSETS:
        path = path.replace('<status>', 'failed')
        assert Browser(ci).get(path).body == browser.get(path).body


# -- hostile names

PIECES = [
    '<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "'><svg/onload=alert(1)>", "' x='",
    '" onmouseover="x', '</title>', '</textarea>', '</pre>', '</li></ul>', '</form>',
    '<form action=//evil.example>', '<!--', '-->', ']]>',
    '<![CDATA[', '&lt;b&gt;', '&#x3c;b&#62;', '&amp', '&', '<', '>', '"', "'", '`', '{{7*7}}', '{{!x}}', '% end', '\\',
    '${x}', 'javascript:alert(1)', '//evil.example', '\u2028', '\u202e', '\x0b', '\x1b[31m', '\x7f', '=', ' ', '/', '?',
    '#', '%3C', '\ufeff', '\uff1cscript\uff1e', '<a href=x>', '<base href=//evil>', '</body>',
    '<meta http-equiv=refresh content=0>']
ANY = st.characters(exclude_categories=['Cs'], exclude_characters='\0\r\n')
BREAKOUT = '\'"><img x=y></textarea></title><img x=y>'    # gets out of whatever does not escape it
HOSTILE = st.lists(st.sampled_from(PIECES) | st.text(ANY, max_size=4), min_size=1, max_size=4).map(
    lambda pieces: BREAKOUT + ''.join(pieces))
NAMES_AT_ONCE = 25
BENIGN = [f'name {number}' for number in range(NAMES_AT_ONCE)]
QUIET = dict(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck),
             phases=[Phase.explicit, Phase.generate])


def as_ref(name):
    """Return what is left of a name when git may have it as that of a branch."""
    left = re.sub(r'[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|\.lock|[./]+', '', name)
    return 'b/' + left[:200]


def said(name):
    """Return what a runner says of itself."""
    return dict.fromkeys(('name', 'version', 'platform', 'architecture', 'executor'), name)


def populate(ci, names):
    """Fill a coordinator with things of these names, wherever somebody else chooses a name."""
    ci.settings = dataclasses.replace(ci.settings, public=True)
    token = ci.create_private_token(description=names[0])
    user, project = ci.find_user(token), ci.create_project('group/demo')
    ci.create_project('far', import_url='https://host/' + re.sub(r'[^!-?A-~]', '', names[6]))
    for number, name in enumerate(names):
        ci.create_trigger(project, user, name)
        ci.set_variable(project, f'V{number}', name)
        ci.create_private_token(description=name)
        ci.register_runner(ci.registration_token, description=name, tag_list=[name, f'{name}b'], info=said(name))
        ci.create_pipeline(project, as_ref(name), sha=SHA, content={
            'workflow': {'name': name.replace('$', '')}, 'test': {'script': ['x']}})
    runner = Runner(ci, description=names[1], info=said(names[1]))
    for _ in names:
        runner.run()
    keywords = [{'when': 'manual', 'manual_confirmation': name} if number % 3 == 0 else
                {'resource_group': name.replace('$', ''), 'tags': [name, f'{name}c']} if number % 3 == 1 else
                {'needs': [names[number - 1]], 'environment': {'name': f'$E{number}'}}
                for number, name in enumerate(names)]
    jobs = {name: {'script': [name], 'stage': name, 'variables': {f'V{number}': name}, **keywords[number]}
            for number, name in enumerate(names)}
    variables = {f'E{number}': name.replace('$', '') for number, name in enumerate(names)}
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, content={
        'stages': names, 'variables': variables, **jobs}, variables=[{'key': 'A', 'value': name} for name in names])
    ci.create_pipeline(project, 'last', sha=SHA, content={names[2]: {'script': ['x'], 'variables': {'A': names[2]}}})
    claim = runner.claim()
    files = {f'{number}{name}/{name}': 'x' for number, name in enumerate(names)}
    for kind, name in (('archive', names[3]), ('junit', names[4])):
        part = ci.artifacts.receive()
        part.filename = name
        part.write(archive(**files))
        ci.store_artifacts(claim.job, part, file_type=kind)
        part.discard()
    ci.update_job(ci.authenticate_job(claim.job['id'], claim.token), 'failed', failure_reason=names[5])
    ci.create_pipeline(project, 'last', sha=SHA, content={names[7]: {'script': ['x']}})
    assert runner.claim()  # and runs
    base, done = '/group/demo/-', f'/group/demo/-/jobs/{claim.job["id"]}'
    folders = [f'{done}/artifacts/browse/{quote(name.split("/")[0], safe="")}' for name in files]
    return token, ['/?per_page=100', '/-/runners', '/-/tokens', '/group/demo', '/far',
                   f'{base}/pipelines/1', f'{base}/pipelines/{pipeline["id"]}', f'{base}/jobs/1',
                   *(f'{base}/jobs/{card["id"]}' for card in ci.list_cards(pipeline)[:6]), done,
                   f'{done}/artifacts/browse', *folders[:1]]


def shape(answer):
    """Return what an answer's page is made of, once it has passed `check_page`."""
    check_page(answer)
    return Counter((element.tag, *element.attributes) for element in read_page(answer.text))


def shapes(ci, names):
    """Return what each page about things of these names is made of: its elements with the names of their attributes."""
    token, paths = populate(ci, names)
    return [shape(browser.get(path)) for browser in (Browser(ci, token), Browser(ci)) for path in paths
            if browser.cookie or path != '/-/tokens']


def world(path, names):
    with minici.Coordinator(path, clock=Clock(), fsync=False) as ci:
        return shapes(ci, names)


@pytest.fixture(scope='module')
def benign(tmp_path_factory):
    return world(tmp_path_factory.mktemp('benign') / 'ci.sqlite', BENIGN)


@settings(max_examples=6, **QUIET)
@given(names=st.lists(HOSTILE, min_size=NAMES_AT_ONCE, max_size=NAMES_AT_ONCE))
def test_pages_about_hostile_names_are_made_of_what_pages_about_harmless_ones_are(tmp_path_factory, benign, names):
    names = [f'{name[:90]}{number}' for number, name in enumerate(names)]
    assert world(tmp_path_factory.mktemp('hostile') / 'ci.sqlite', names) == benign


def commits(path, names):
    """Make a repository with a commit by an author and with a message of each of these names; return their shas."""
    path.mkdir()
    stream = b''
    for number, name in enumerate(names, 1):
        who, message = re.sub('[<>\n]', '', name).encode(), f'{name}\n\n{name}\n'.encode()
        stream += b'commit refs/heads/main\nmark :%d\nauthor A %s <a@b> 1700000000 +0000\n' % (number, who)
        stream += b'committer C <c@d> 1700000000 +0000\ndata %d\n%s\n' % (len(message), message)
    environment = {**os.environ, 'GIT_CONFIG_NOSYSTEM': '1', 'HOME': str(path)}
    for command, given_to in (['init', '--quiet', '--initial-branch=main'], b''), (['fast-import', '--quiet'], stream):
        subprocess.run(['git', *command], cwd=path, input=given_to, env=environment, check=True)
    listed = subprocess.run(['git', 'rev-list', '--reverse', 'main'], cwd=path, capture_output=True, check=True)
    return listed.stdout.decode().split()


def pages_of_commits(path, names):
    shas = commits(path, names)
    with minici.Coordinator(clock=Clock(), fsync=False) as ci:
        browser = Browser(ci, ci.create_private_token())
        project = ci.create_project('group/demo', import_url=f'file://{path}')
        for sha in shas:
            ci.create_pipeline(project, 'main', sha=sha, content=PLAIN)
        paths = [f'/group/demo/-/{kind}/{number}' for number in range(1, len(names) + 1)
                 for kind in ('pipelines', 'jobs')]
        return [browser.get(path) for path in ('/?per_page=100', '/group/demo', *paths)]


@settings(max_examples=1, **QUIET)
@given(names=st.lists(HOSTILE, min_size=NAMES_AT_ONCE, max_size=NAMES_AT_ONCE))
def test_pages_about_hostile_commits_are_made_of_what_pages_about_harmless_ones_are(tmp_path_factory, names):
    path = tmp_path_factory.mktemp('commits')
    names = [f'{name}{number}' for number, name in enumerate([*PIECES, *names])]
    harmless = pages_of_commits(path / 'benign', [f'name {number}' for number in range(len(names))])
    assert list(map(shape, pages_of_commits(path / 'hostile', names))) == list(map(shape, harmless))


def echoes(browser, names):
    """Send names with every form that shows again what it was given; return the answers."""
    one, two, three, four = names
    return [
        browser.post('/-/pipelines/new', 404, project=one, ref=two, sha=three, content=four, variables='A=1'),
        browser.post('/-/pipelines/new', 400, project='group/demo', ref=f'{one} ', variables=f'A={two}', content=three),
        browser.post('/-/pipelines/new', 400, project='group/demo', ref='x', sha=SHA, content=f'[{one}', variables=two),
        browser.post('/-/projects', 400, path=f'{one} ', import_url=two, default_branch=three),
        browser.post('/group/demo/-/variables', 400, key=f'{one} ', value=two),
        browser.post('/-/sign_in', 403, token=one, next=two),
        *(browser.send('GET', path + urlencode(fields)) for path, fields in (
            ('/?', {'ref': f'{one}x', 'status': two}), ('/?', {'project': f'{one}x'}),
            ('/-/projects?', {'search': f'{one}x'}), ('/-/sign_in?', {'next': one, 'code': f'{two}x'}),
            ('/-/pipelines/new?', {'ref': one, 'project': two}),
            (f'/{quote(one, safe="")}x?', {}), ('/group/demo?', {'page': one})))]


@settings(max_examples=25, **QUIET)
@given(names=st.tuples(HOSTILE, HOSTILE, HOSTILE, HOSTILE))
def test_forms_show_again_what_they_were_given_and_no_more(tmp_path_factory, names):
    with minici.Coordinator(clock=Clock(), fsync=False) as ci:
        ci.create_project('group/demo')
        browser = Browser(ci, ci.create_private_token())
        harmless = echoes(browser, ['one', 'two', 'three', 'four'])
        assert list(map(shape, echoes(browser, names))) == list(map(shape, harmless))
