"""Repositories: pipelines made from real git repositories, read from disk, over HTTP and over git's own protocol."""

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import socketserver
import stat
import subprocess
import threading
import time
import wsgiref.simple_server
from urllib.parse import quote

import pytest
from support import PLAIN, SHA, Origin

import minici

SECRET = 's3cr3t-t0k3n'


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without git's settings of whoever runs the tests; no proxy."""
    for name in [name for name in os.environ if name.startswith('GIT_') or name.lower().endswith('_proxy')]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path / 'home'))
    (tmp_path / 'home').mkdir()
    return tmp_path / 'home'


@pytest.fixture
def origin(tmp_path):
    return Origin(tmp_path / 'srv' / 'demo')


@pytest.fixture
def scratch(tmp_path):
    (tmp_path / 'scratch').mkdir()
    return tmp_path / 'scratch'


class QuietHandler(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_):
        pass


def http_backend(root, password=''):
    """Return git's own CGI program as a WSGI application; it may ask for a password."""
    environment = dict(os.environ)

    def application(environ, start_response):
        expected = 'Basic ' + base64.b64encode(f'ann:{password}'.encode()).decode()
        if password and environ.get('HTTP_AUTHORIZATION') != expected:
            start_response('401 Unauthorized', [('WWW-Authenticate', 'Basic realm="git"'), ('Content-Length', '0')])
            return [b'']
        body = environ['wsgi.input'].read(int(environ.get('CONTENT_LENGTH') or 0))
        request = {name: environ[name] for name in environ
                   if re.match('(PATH_INFO|QUERY|REQUEST|CONTENT|HTTP|REMOTE)', name)}
        done = subprocess.run(['git', 'http-backend'], input=body, capture_output=True, check=True, env={
            **environment, **request, 'GIT_PROJECT_ROOT': str(root), 'GIT_HTTP_EXPORT_ALL': '1',
            'GIT_PROTOCOL': environ.get('HTTP_GIT_PROTOCOL', '')})
        head, _, payload = done.stdout.partition(b'\r\n\r\n')
        headers = dict(line.split(': ', 1) for line in head.decode().split('\r\n'))
        start_response(headers.pop('Status', '200 OK'), list(headers.items()))
        return [payload]
    return application


@contextlib.contextmanager
def serving(server):
    """Run a socket server in a thread; give its port."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def serving_http(root, password=''):
    return serving(wsgiref.simple_server.make_server(
        '127.0.0.1', 0, http_backend(root, password), handler_class=QuietHandler))


def serving_git(root):
    environment = dict(os.environ)
    options = ['--inetd', '--export-all', '--log-destination=none', f'--base-path={root}']

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            subprocess.run(['git', 'daemon', *options], stdin=self.request, stdout=self.request, env=environment)
    return serving(socketserver.TCPServer(('127.0.0.1', 0), Handler))


@pytest.fixture(params=['file', 'http', 'git'])
def url(request, origin):
    """The origin's address, by each way to read it."""
    if request.param == 'file':
        yield origin.url
    else:
        with {'http': serving_http, 'git': serving_git}[request.param](origin.path.parent) as port:
            yield f'{request.param}://127.0.0.1:{port}/demo/.git'


@pytest.fixture
def made(ci, url):
    """Make pipelines of the origin, read by each way."""
    project = ci.create_project('group/read', import_url=url)
    return lambda ref, **options: ci.create_pipeline(project, ref, **options)


def names(ci, pipeline):
    return {job['name'] for job in ci.list_jobs(pipeline=pipeline)}


def refused(action, *arguments, **options):
    """Return what a BadRequest says."""
    with pytest.raises(minici.BadRequest) as error:
        action(*arguments, **options)
    return str(error.value)


@pytest.fixture
def git_calls(tmp_path, monkeypatch):
    """Record the arguments and the environment of every git that is called."""
    log, program = tmp_path / 'calls', tmp_path / 'bin' / 'git'
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n{{ printf "%s\\0" "$@"; printf "\\n\\0"; }} >> {log}\n'
                       f'env > {log}.env\nexec {shutil.which("git")} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{program.parent}{os.pathsep}{os.environ["PATH"]}')

    def calls():
        text = log.read_text() if log.exists() else ''
        return [call.split('\0')[:-1] for call in text.split('\n\0')[:-1]]
    calls.environment = lambda: dict(
        line.partition('=')[::2] for line in (tmp_path / 'calls.env').read_text().splitlines())
    return calls


# -- refs

def test_a_pipeline_of_a_branch_is_made_from_its_newest_commit(ci, origin, made):
    origin.commit('old: {script: make}')
    sha = origin.commit('new: {script: make}')
    pipeline = made('main')
    assert (pipeline['sha'], pipeline['ref'], pipeline['tag']) == (sha, 'main', 0)
    assert names(ci, pipeline) == {'new'}


def test_a_tag_lightweight_or_annotated_stands_for_its_commit(ci, origin, made):
    sha = origin.commit('branch: {script: x, only: [branches]}\ntag: {script: x, only: [tags]}\n')
    origin.git('tag', 'light')
    origin.git('tag', '-a', '-m', 'annotated', 'v1.0')
    origin.git('tag', '-a', '-m', 'a tag of a tag', 'v1.0.1', 'v1.0')
    origin.commit(message='later')
    for ref in ('light', 'v1.0', 'v1.0.1'):
        pipeline = made(ref)
        assert (pipeline['sha'], pipeline['ref'], pipeline['tag']) == (sha, ref, 1)
        assert names(ci, pipeline) == {'tag'}


def test_of_a_branch_and_a_tag_of_one_name_the_branch_is_meant(origin, made):
    origin.commit()
    origin.git('tag', 'twin')
    origin.git('checkout', '--quiet', '-b', 'twin')
    sha = origin.commit(message='on the branch')
    pipeline = made('twin')
    assert (pipeline['sha'], pipeline['tag']) == (sha, 0)


def test_any_name_that_git_takes_is_found(origin, url, scratch):
    first, second = origin.commit(), origin.commit(message='second')
    refs = ['feature/some/thing', 'größe-😀', 'a@b%20c', "it's$HOME", 'a+b=c&d']
    for ref in refs:
        origin.git('branch', ref, first)
    with minici.Repository(url, scratch) as repository:
        assert {ref: repository.resolve(ref)[0] for ref in refs} == dict.fromkeys(refs, first)
        assert repository.resolve('main')[0] == second


def test_a_full_name_means_that_ref_whatever_else_is_called_so(origin, url, scratch):
    first, second, third = (origin.commit(message=text) for text in ('first', 'second', 'third'))
    origin.git('branch', 'refs/heads/main', first)
    origin.git('tag', 'main', second)
    with minici.Repository(url, scratch) as repository:
        assert repository.resolve('refs/heads/main') == (third, False)
        assert repository.resolve('refs/tags/main') == (second, True)
        assert repository.resolve('main') == (third, False)


def test_a_ref_that_is_not_a_whole_branch_or_tag_name_is_not_found(ci, origin, made):
    origin.commit()
    origin.git('branch', 'feature/thing')
    origin.git('update-ref', 'refs/heads/x/refs/heads/lost', 'HEAD')
    origin.git('update-ref', 'refs/remotes/refs/heads/nowhere', 'HEAD')
    for ref in ('nowhere', 'feature', 'thing', 'HEAD', 'lost', 'refs/heads/lost', 'm/', SHA):
        assert 'Reference not found' in refused(made, ref)
    assert ci.list_pipelines(ci.find_project('group/read'))[1] == 0


def test_an_empty_repository_has_no_refs(origin, url, made, scratch):
    assert 'Reference not found' in refused(made, 'main')
    with minici.Repository(url, scratch) as repository:
        assert 'name a ref' in refused(repository.default_branch)


def test_the_default_branch_is_what_head_names(origin, url, scratch):
    origin.commit()
    origin.git('checkout', '--quiet', '-b', 'release/2.x')
    with minici.Repository(url, scratch) as repository:
        assert repository.default_branch() == 'release/2.x'
    origin.git('checkout', '--quiet', '--detach')
    with minici.Repository(url, scratch) as repository:
        assert 'name a ref' in refused(repository.default_branch)


# -- a sha that comes along

def test_a_given_sha_is_read_instead_of_the_newest_commit(ci, origin, made):
    older = origin.commit('old: {script: make}')
    origin.commit('new: {script: make}')
    pipeline = made('main', sha=older.upper())
    assert pipeline['sha'] == older
    assert names(ci, pipeline) == {'old'}
    assert names(ci, made('main', sha=older, content=PLAIN)) == {'test'}


def test_given_content_needs_no_file_in_the_repository(ci, origin, made):
    sha = origin.commit(None)
    pipeline = made('main', content=PLAIN)
    assert pipeline['sha'] == sha
    assert names(ci, pipeline) == {'test'}


def test_a_sha_that_is_not_in_the_repository_is_refused_by_name(ci, origin, made):
    origin.commit()
    assert SHA[:8] in refused(made, 'main', sha=SHA)
    assert ci.list_pipelines(ci.find_project('group/read'))[1] == 0


def test_a_sha_that_is_no_commit_is_refused(origin, made):
    origin.commit()
    for what in ('HEAD^{tree}', 'HEAD:.gitlab-ci.yml'):
        assert refused(made, 'main', sha=origin.git('rev-parse', what))


# -- the file

def test_a_missing_file_is_named_with_where_it_was_looked_for(ci, origin, made):
    sha = origin.commit(None)
    said = refused(made, 'main')
    assert 'Missing CI config file' in said
    assert '.gitlab-ci.yml' in said
    assert sha[:8] in said
    assert ci.list_pipelines(ci.find_project('group/read'))[1] == 0


@pytest.mark.parametrize('content, said', [
    ('test: {script: make, wehn: manual}', '.gitlab-ci.yml:1:22: test:wehn '), ('', '.gitlab-ci.yml:1:1: '),
    (b'test: {script: \xff}', 'is not UTF-8 text'), ('test:\n\tscript: make', '.gitlab-ci.yml:2:1: ')])
def test_a_file_that_is_wrong_is_refused_with_its_line(ci, origin, content, said):
    origin.commit(content)
    project = ci.create_project('group/read', import_url=origin.url)
    assert said in refused(ci.create_pipeline, project, 'main')


def test_a_file_of_any_text_arrives_unchanged(origin, url, scratch):
    content = '# größe 😀\r\n\n' + 'x' * 100_000 + '\n'
    sha = origin.commit(content)
    with minici.Repository(url, scratch) as repository:
        assert repository.resolve('main') == (sha, False)
        assert repository.file(sha, '.gitlab-ci.yml') == content.encode()
        assert repository.file(sha, 'no/such/file') is None


def test_the_files_of_a_commit_are_listed(origin, url, scratch):
    empty = origin.commit(None)
    (origin.path / 'größe 😀').mkdir()
    (origin.path / 'größe 😀' / 'a b\nc').touch()
    sha = origin.commit()
    with minici.Repository(url, scratch) as repository:
        repository.resolve('main')
        assert set(repository.files(sha)) == {'.gitlab-ci.yml', 'größe 😀/a b\nc'}
        repository.commit(empty)
        assert repository.files(empty) == []


def test_what_changed_between_two_commits_is_listed_where_it_can_be_told(origin, url, scratch):
    (origin.path / 'größe').write_text('moved')
    first = origin.commit()
    (origin.path / 'größe').rename(origin.path / 'a b')
    second = origin.commit()
    third = origin.commit(message='nothing')
    origin.git('branch', 'before', first)
    with minici.Repository(url, scratch) as repository:
        repository.resolve('main')
        assert set(repository.changes(first, third)) == {'größe', 'a b'}
        assert set(repository.changes('before', third)) == {'größe', 'a b'}
        assert repository.changes(second, third) == []
        assert [repository.changes(base, third) for base in ('0' * 40, SHA, 'nowhere', '--output=x')] == [None] * 4


# -- the commit

def test_a_job_shows_the_commit_it_runs_on(ci, client, token, origin, made):
    sha = origin.commit(message='Größe: 😀 ändern\n\nThe body,\nin two lines.', GIT_AUTHOR_NAME='Jürgen Ångström 😀',
                        GIT_AUTHOR_EMAIL='jürgen@exämple.com', GIT_AUTHOR_DATE='2023-02-03T04:05:06+09:30',
                        GIT_COMMITTER_NAME='Ólafur', GIT_COMMITTER_DATE='2023-02-04T00:00:00-01:00')
    job, = ci.list_jobs(pipeline=made('main'))
    commit = client.call('GET', f'/api/v4/projects/{job["project_id"]}/jobs/{job["id"]}', token=token).json['commit']
    assert {name: commit[name] for name in ('id', 'short_id', 'title', 'message', 'author_name', 'author_email')} == {
        'id': sha, 'short_id': sha[:8], 'title': 'Größe: 😀 ändern',
        'message': 'Größe: 😀 ändern\n\nThe body,\nin two lines.\n', 'author_name': 'Jürgen Ångström 😀',
        'author_email': 'jürgen@exämple.com'}
    assert commit['created_at'].startswith('2023-02-0')


def test_a_commit_tells_who_when_and_what_came_before(origin, url, scratch):
    first = origin.commit()
    origin.git('checkout', '--quiet', '-b', 'side')
    side = origin.commit(message='side')
    origin.git('checkout', '--quiet', 'main')
    sha = origin.commit(message='main', GIT_AUTHOR_DATE='2023-02-03T04:05:06+09:30', GIT_COMMITTER_NAME='Bob',
                        GIT_COMMITTER_EMAIL='bob@example.com', GIT_COMMITTER_DATE='2023-02-04T00:00:00-01:00')
    origin.git('merge', '--quiet', '--no-ff', '-m', 'merge', 'side')
    with minici.Repository(url, scratch) as repository:
        assert repository.commit(sha) == {
            'parent_ids': [first], 'author_name': 'Ann', 'author_email': 'ann@example.com',
            'authored_date': '2023-02-03T04:05:06+09:30', 'committer_name': 'Bob',
            'committer_email': 'bob@example.com', 'committed_date': '2023-02-04T00:00:00-01:00', 'message': 'main\n'}
        merge, _ = repository.resolve('main')
        assert repository.commit(merge)['parent_ids'] == [sha, side]


@pytest.mark.parametrize('said, shown', [
    (' 1675400706 +0930', '2023-02-03T14:35:06.000+09:30'), (' 1312735823 +051800', None), ('', None),
    (' 99999999999999 +0000', None)])
def test_a_date_that_is_none_does_not_keep_clients_from_reading_the_rest(ci, client, token, origin, said, shown):
    tree = origin.git('rev-parse', f'{origin.commit()}^{{tree}}')
    (origin.path / 'odd').write_text(
        f'tree {tree}\nauthor Ann <ann@example.com>{said}\ncommitter Bob <b@example.com> 1675400706 +0000\n\nodd\n')
    origin.git('branch', 'odd', origin.git('hash-object', '-t', 'commit', '-w', '--literally', 'odd'))
    ci.create_pipeline(ci.create_project('demo', import_url=origin.url), 'odd')
    commit = client.call('GET', '/api/v4/projects/1/jobs/1', token=token).json['commit']
    created = '2023-11-14T22:13:20.000Z'     # of the pipeline: clients want a moment
    assert (commit['title'], commit['authored_date'], commit['committed_date'][:19]) == (
        'odd', shown or created, '2023-02-03T05:05:06')


def test_a_commit_in_another_encoding_is_read_as_text_whatever_the_user_has_git_print(home, origin, scratch):
    origin.git('config', 'i18n.commitEncoding', 'ISO-8859-1')
    sha = origin.commit(message='Größe'.encode('latin-1'))
    (home / '.gitconfig').write_text('[i18n]\n\tlogOutputEncoding = ISO-8859-1\n[color]\n\tui = always\n')
    with minici.Repository(origin.url, scratch) as repository:
        assert repository.commit(sha)['message'] == 'Größe\n'


def test_an_empty_message_is_a_message(origin, scratch):
    origin.commit()
    origin.git('commit', '--quiet', '--allow-empty', '--allow-empty-message', '-m', '')
    with minici.Repository(origin.url, scratch) as repository:
        assert repository.commit(repository.resolve('main')[0])['message'].strip() == ''


# -- where a repository may be

@pytest.mark.parametrize('name', ['with space', '100%', 'a%20b', 'größe 😀', "it's", '-dash', 'a:b', 'a#b?c', 'x.git'])
def test_a_path_of_any_characters_can_be_read_bare_or_not(ci, tmp_path, origin, name):
    sha = origin.commit()
    if name.endswith('.git'):
        shutil.move(origin.path / '.git', tmp_path / name)
        origin.path = tmp_path / name
        origin.git('config', 'core.bare', 'true')
    else:
        origin.path = shutil.move(origin.path, tmp_path / name)
    project = ci.create_project('group/odd', import_url=origin.url)
    assert ci.create_pipeline(project, 'main')['sha'] == sha


def test_what_is_not_a_repository_is_refused(ci, tmp_path, origin):
    origin.commit()
    (origin.path / 'sub').mkdir()
    (tmp_path / 'plain file').touch()
    for number, path in enumerate([tmp_path / 'nowhere', tmp_path / 'plain file', tmp_path / 'home',
                                   origin.path / 'sub']):
        project = ci.create_project(f'group/p{number}', import_url='file://' + quote(str(path)))
        said = refused(ci.create_pipeline, project, 'main')
        assert 'The repository cannot be read' in said
        assert str(path) in said


def test_reading_a_repository_changes_nothing_in_it(ci, origin):
    origin.commit()
    (origin.path / '.gitlab-ci.yml').write_text('not: committed')
    (origin.path / '.git' / 'index').touch()

    def everything():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(origin.path.rglob('*'))}
    before = everything()
    pipeline = ci.create_pipeline(ci.create_project('group/read', import_url=origin.url), 'main')
    assert names(ci, pipeline) == {'test'}
    assert everything() == before


# -- what must not happen

def test_a_hostile_ref_is_no_option_pattern_or_refspec_for_git(ci, origin, git_calls, scratch):
    origin.commit()
    project = ci.create_project('group/read', import_url=origin.url)
    before = len(git_calls())
    with minici.Repository(origin.url, scratch) as repository:
        for ref in ('--upload-pack=touch pwned', '-o', '--', '--all', '+main', 'main:evil', ':', '*', 'ma?n', '[m]ain',
                    'main^{}', 'main~1', '@{-1}', 'a b', 'a\nb', 'a\x00b', '../main', '.', '@'):
            assert refused(ci.create_pipeline, project, ref)
            assert refused(repository.resolve, ref)
            assert all(ref not in call[:call.index('--end-of-options')] for call in git_calls()[before:])


def test_a_hostile_address_never_reaches_git(ci, scratch, git_calls):
    for address in (
            '--upload-pack=touch pwned', '-x', '', '/srv/git', 'srv/git', 'ext::sh -c touch% pwned', 'fd::7',
            'git@host:path', 'http://-oProxyCommand=x/y', 'ssh://-oProxyCommand=x/y', 'file://', 'file://host/path',
            'ftp://host/x', 'HTTP:x', 'http://host/a b', 'http://host/a\nb', 'http://host/a\x00b', 'file:///a\nb',
            'http://', 'https:///x', '\nhttp://h/x'):
        assert 'import_url' in refused(minici.Repository, address, scratch)
        assert 'import_url' in refused(ci.create_project, 'group/evil', import_url=address)
    assert git_calls() == []


def test_everything_that_comes_from_outside_stands_behind_the_end_of_options(ci, git_calls, origin, made, url):
    sha = origin.commit()
    before = len(git_calls())
    made('main', sha=sha)
    ours = [call for call in git_calls()[before:] if call[0] not in ('http-backend', 'daemon')]
    assert ours
    for call in ours:
        end = call.index('--end-of-options') if '--end-of-options' in call else len(call)
        assert not any(text in (url, 'main', f'refs/heads/main:{sha}') for text in call[:end])
    environment = git_calls.environment()
    assert environment['GIT_TERMINAL_PROMPT'] == '0'
    assert set(environment['GIT_ALLOW_PROTOCOL'].split(':')) <= {'https', 'http', 'ssh', 'git', 'file'}


def test_the_environment_of_a_hook_does_not_lead_to_another_repository(tmp_path, monkeypatch, origin, made):
    sha = origin.commit()
    other = Origin(tmp_path / 'other')
    other.commit('other: {script: make}')
    for name, value in (('GIT_DIR', other.path / '.git'), ('GIT_WORK_TREE', other.path), ('GIT_CONFIG_COUNT', 'x'),
                        ('GIT_OBJECT_DIRECTORY', other.path / '.git' / 'objects'), ('GIT_INDEX_FILE', '/nowhere'),
                        ('GIT_NAMESPACE', 'other'), ('GIT_QUARANTINE_PATH', '/nowhere'), ('GIT_PREFIX', 'x/')):
        monkeypatch.setenv(name, str(value))
    assert made('main')['sha'] == sha


def test_a_password_in_the_address_is_used_and_needed(ci, origin):
    sha = origin.commit()
    with serving_http(origin.path.parent, SECRET) as port:
        address = f'http://ann:{SECRET}@127.0.0.1:{port}/demo/.git'
        assert ci.create_pipeline(ci.create_project('group/good', import_url=address), 'main')['sha'] == sha
        wrong = ci.create_project('group/wrong', import_url=address.replace(SECRET, f'not-{SECRET}'))
        assert SECRET not in refused(ci.create_pipeline, wrong, 'main')


def test_a_password_is_never_an_argument_of_a_program(ci, origin, git_calls):
    origin.commit()
    with serving_http(origin.path.parent, SECRET) as port:
        project = ci.create_project('group/good', import_url=f'http://ann:{SECRET}@127.0.0.1:{port}/demo/.git')
        ci.create_pipeline(project, 'main')
    calls = git_calls()
    assert any('fetch' in call for call in calls)
    assert [call for call in calls if any(SECRET in argument for argument in call)] == []


def test_whether_a_path_exists_on_the_server_is_not_told(ci, tmp_path, origin):
    (tmp_path / 'plain file').touch()
    said = set()
    for number, name in enumerate(['nowhere', 'plain file', 'home', 'srv']):
        path = tmp_path / name
        project = ci.create_project(f'group/p{number}', import_url='file://' + quote(str(path)))
        said.add(refused(ci.create_pipeline, project, 'main').replace(str(path), '...'))
    assert len(said) == 1


@pytest.fixture
def closed_port():
    """A port on which nobody listens, as long as the test lasts."""
    with socket.socket() as held:
        held.bind(('127.0.0.1', 0))
        yield held.getsockname()[1]


@pytest.mark.parametrize('scheme, user', [
    ('http', f'ann:{SECRET}'), ('https', f'oauth2:{SECRET}'), ('ssh', f'ann:{SECRET}'), ('git', f'ann:{SECRET}'),
    ('git', SECRET), ('git', f'ann:%40{SECRET}')])
def test_credentials_in_an_address_are_never_told(ci, closed_port, scheme, user):
    project = ci.create_project('group/read', import_url=f'{scheme}://{user}@127.0.0.1:{closed_port}/x.git')
    said = refused(ci.create_pipeline, project, 'main')
    assert 'The repository cannot be read' in said
    assert SECRET not in said


def test_nobody_is_asked_for_a_password(ci, tmp_path, monkeypatch, origin):
    origin.commit()
    program = tmp_path / 'ask'
    program.write_text(f'#!/bin/sh\ntouch {tmp_path}/asked\necho {SECRET}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    for name in ('GIT_ASKPASS', 'SSH_ASKPASS'):
        monkeypatch.setenv(name, str(program))
    with serving_http(origin.path.parent, SECRET) as port:
        project = ci.create_project('group/read', import_url=f'http://ann@127.0.0.1:{port}/demo/.git')
        assert 'The repository cannot be read' in refused(ci.create_pipeline, project, 'main')
    assert not (tmp_path / 'asked').exists()


@pytest.mark.parametrize('scheme', ['http', 'git'])
def test_a_server_that_says_nothing_is_given_up_and_let_go(scratch, scheme):
    with socket.create_server(('127.0.0.1', 0)) as silent:
        silent.settimeout(30)
        with minici.Repository(f'{scheme}://127.0.0.1:{silent.getsockname()[1]}/x.git', scratch) as repository:
            repository._git._deadline = time.monotonic() + 1
            assert 'too long' in refused(repository.resolve, 'main')
        connection, _ = silent.accept()
        with connection:
            connection.settimeout(10)
            while connection.recv(4096):  # until the other end has hung up
                pass
    assert list(scratch.iterdir()) == []


# -- what the repository configures for itself

def test_commands_that_a_repository_configures_are_never_run(tmp_path, ci, origin):
    marker = tmp_path / 'pwned'
    command = tmp_path / 'evil'
    command.write_text(f'#!/bin/sh\ntouch {marker}\nexec git-upload-pack "$@"\n')
    command.chmod(0o755)
    first = origin.commit()
    second = origin.commit('test: {script: make, rules: [{changes: [nothing], when: never}, {exists: [".*"]}]}\n')
    for name in ('core.fsmonitor', 'core.sshCommand', 'core.alternateRefsCommand', 'core.pager', 'diff.external',
                 f'remote.{origin.url}.uploadpack', f'remote.{origin.path}.uploadpack', 'filter.evil.clean',
                 'filter.evil.smudge', 'diff.evil.textconv', 'diff.evil.command', 'gpg.program',
                 'uploadpack.packObjectsHook', 'credential.helper', 'alias.ls-remote', 'core.askPass'):
        origin.git('config', name, str(command))
    origin.git('config', 'core.hooksPath', str(tmp_path))
    (origin.path / '.git' / 'info' / 'attributes').write_text('* filter=evil diff=evil\n')
    project = ci.create_project('group/read', import_url=origin.url)
    pipeline = ci.create_pipeline(project, 'main', before_sha=first)
    assert (pipeline['sha'], names(ci, pipeline)) == (second, {'test'})
    with minici.Repository(origin.url, ci.artifacts.incoming) as repository:
        assert repository.default_branch() == 'main'
        assert repository.changes(first, second) == ['.gitlab-ci.yml']
        assert repository.contains('main', first)
    assert not marker.exists()


@pytest.mark.parametrize('layout', ['bare', 'worktree', 'alternates', 'packed', 'sha256'])
def test_a_local_repository_is_read_however_it_is_stored(tmp_path, scratch, origin, layout):
    sha, path = origin.commit(), origin.path
    if layout == 'bare':
        path = tmp_path / 'bare.git'
        origin.git('clone', '--quiet', '--bare', '.', str(path))
    elif layout == 'worktree':
        path = tmp_path / 'linked'
        origin.git('worktree', 'add', '--quiet', '-b', 'linked', str(path))
    elif layout == 'alternates':
        path = tmp_path / 'shared'
        origin.git('clone', '--quiet', '--shared', '.', str(path))
    elif layout == 'packed':
        origin.git('gc', '--quiet')
        origin.git('pack-refs', '--all')
    else:
        path = tmp_path / 'sha256'
        origin.git('init', '--quiet', '--object-format=sha256', '--initial-branch=main', str(path))
        other = Origin.__new__(Origin)
        other.path = path
        sha = other.commit()
    with minici.Repository('file://' + quote(str(path)), scratch) as repository:
        assert repository.resolve('main') == (sha, False)
        assert repository.default_branch() == ('linked' if layout == 'worktree' else 'main')
        assert repository.file(sha, '.gitlab-ci.yml') == b'test: {script: make}\n'
        assert repository.files(sha) == ['.gitlab-ci.yml']


def test_a_commit_is_part_of_the_branches_that_have_it_in_their_history(origin, url, scratch):
    first, second = origin.commit(), origin.commit()
    origin.git('checkout', '--quiet', '-b', 'feature')
    third = origin.commit(message='of the feature alone')
    origin.git('tag', 'v1')
    with minici.Repository(url, scratch) as repository:
        found = {sha: repository.contains('main', sha) for sha in (first, second, third, SHA)}
        assert found == {first: True, second: True, third: False, SHA: False}
        assert repository.contains('v1', third)
        assert repository.contains('refs/heads/feature', first)
        assert 'not found' in refused(repository.contains, 'nowhere', first)


@pytest.fixture
def parted(origin):
    """An origin whose branch `topic` has changed `code` ten commits after it left main, and main its docs since."""
    def change(**files):
        for name, text in files.items():
            (origin.path / name).write_text(text)
        origin.commit()

    change(docs='1', code='1')
    origin.git('checkout', '--quiet', '-b', 'topic')
    change(code='2')
    for number in range(10):
        origin.git('commit', '--quiet', '--allow-empty', '--message', f'{number}')
    origin.git('checkout', '--quiet', 'main')
    change(docs='2')
    return origin


def test_what_changed_is_told_from_where_histories_part_however_far_back(ci, parted, made):
    def rules(path, base):
        return {'rules': [{'changes': {'paths': [path], 'compare_to': base}}], 'script': ['make']}
    content = {'code': rules('code', 'main'), 'docs': rules('docs', 'refs/heads/main'), 'other': {'script': ['make']}}
    assert names(ci, made('topic', content=content)) == {'code', 'other'}
    assert names(ci, made('main', content={**content, 'back': rules('docs', 'topic')})) == {'back', 'other'}


def test_the_key_of_a_cache_is_made_of_the_last_commits_of_files(ci, parted, made):
    def key(ref, **fields):
        content = {'test': {'script': ['make'], 'cache': {'key': fields, 'paths': ['x']}}}
        job, = ci.list_jobs(pipeline=made(ref, content=content))
        return json.loads(job['spec'])['cache'][0]['key']

    commits = sorted(parted.git('rev-list', '-1', 'topic', '--', path) for path in ('code', 'docs'))
    digest = hashlib.sha1('-'.join(commits).encode()).hexdigest()
    assert key('topic', files_commits=['docs', 'code'], prefix='p') == f'p-{digest}'
    assert key('main', files_commits=['code']) != key('topic', files_commits=['code'])
    assert key('topic', files_commits=['docs']) == hashlib.sha1(
        parted.git('rev-list', '-1', 'topic~11', '--', 'docs').encode()).hexdigest()
    assert key('main', files_commits=['gone']) == 'default'


# -- what a repository may cost

def test_a_file_over_the_limit_is_refused_by_name_and_limit(ci, origin, made):
    origin.commit(b'# ' + b'0' * (3 * 2 ** 20))
    said = refused(made, 'main')
    assert '.gitlab-ci.yml has more than 2097152 bytes' in said


def test_a_message_over_the_limit_is_cut(origin, scratch):
    origin.commit(message='title\n\n' + 'x' * 100_000)
    sha = origin.git('rev-parse', 'HEAD')
    with minici.Repository(origin.url, scratch) as repository:
        found = repository.commit(sha)
    assert found['message'].startswith('title\n\nxxx')
    assert len(found['message']) <= 64 * 1024
    assert found['author_name']


def test_a_tree_of_a_billion_files_is_refused_before_it_is_listed(ci, origin, made):
    origin.commit('test: {script: make, rules: [{exists: ["*.c"]}]}\n')
    blob = origin.git('rev-parse', 'HEAD:.gitlab-ci.yml')
    kind, entry = 'blob', blob
    for _ in range(9):
        mode = '100644' if kind == 'blob' else '040000'
        lines = ''.join(f'{mode} {kind} {entry}\tname{number}\n' for number in range(10))
        entry = subprocess.run(['git', '-C', origin.path, 'mktree'], input=lines, text=True, check=True,
                               capture_output=True).stdout.strip()
        kind = 'tree'
    lines = f'100644 blob {blob}\t.gitlab-ci.yml\n040000 tree {entry}\tbomb\n'
    tree = subprocess.run(['git', '-C', origin.path, 'mktree'], input=lines, text=True, check=True,
                          capture_output=True).stdout.strip()
    origin.git('update-ref', 'refs/heads/bomb', origin.git('commit-tree', tree, '-m', 'bomb'))
    said = refused(made, 'bomb')
    assert 'more than' in said
    assert 'ls-tree' in said


def test_a_pipeline_may_call_git_a_limited_number_of_times(monkeypatch, origin, scratch):
    sha = origin.commit()
    monkeypatch.setattr(minici, 'MAX_GIT_CALLS', 5)
    with minici.Repository(origin.url, scratch) as repository:
        for _ in range(5):
            repository.file(sha, 'nowhere')
        assert 'more than 5 calls' in refused(repository.file, sha, 'nowhere')


# -- what is left behind

@pytest.mark.parametrize('ending', ['no such ref', 'no such commit', 'raised by the caller'])
def test_the_scratch_directory_is_gone_however_it_ended(origin, url, scratch, ending):
    origin.commit()
    with contextlib.suppress(minici.BadRequest, ZeroDivisionError), minici.Repository(url, scratch) as repository:
        repository.resolve('nowhere' if ending == 'no such ref' else 'main')
        assert list(scratch.iterdir()) != []
        repository.commit(SHA if ending == 'no such commit' else origin.git('rev-parse', 'HEAD'))
        raise ZeroDivisionError
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize('program', [None, 'echo no disk >&2; exit 128'], ids=['no git', 'git fails'])
def test_without_a_working_git_the_reason_is_told_and_nothing_is_left(tmp_path, monkeypatch, scratch, program):
    (tmp_path / 'bin').mkdir()
    if program:
        (tmp_path / 'bin' / 'git').write_text(f'#!/bin/sh\n{program}\n')
        (tmp_path / 'bin' / 'git').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path / 'bin'))

    def read():
        with minici.Repository('http://127.0.0.1/x.git', scratch) as repository:
            repository.resolve('main')
    assert ('no disk' if program else 'git') in refused(read)
    assert list(scratch.iterdir()) == []


def test_a_coordinator_keeps_nothing_of_a_repository_it_has_read(ci, origin, made):
    origin.commit()
    made('main')
    refused(made, 'nowhere')
    assert [path for path in ci.data.rglob('*') if path.name.endswith('.git')] == []
