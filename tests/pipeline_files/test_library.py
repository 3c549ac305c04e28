"""Files that are included from elsewhere, against local repositories and a local https server."""

import base64
import hashlib
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

import minici

JOB = 'script: make'


@pytest.fixture
def make_repository(tmp_path):
    """Return a function that makes a repository of files and tags, and returns its address."""
    def make(name, *commits):
        path = tmp_path / 'git' / name
        path.mkdir(parents=True)

        def git(*arguments):
            subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@example.com', *arguments], cwd=path,
                           check=True, capture_output=True)
        git('init', '-q', '-b', 'main')
        for files, *tags in commits:
            for file, text in files.items():
                (path / file).parent.mkdir(parents=True, exist_ok=True)
                (path / file).write_text(text)
            git('add', '-A')
            git('commit', '-q', '-m', 'change')
            for tag in tags:
                git('tag', tag)
        return path.as_uri()
    return make


def built(ci, project, **options):
    """Return the names of the jobs of a new pipeline of main."""
    pipeline = ci.create_pipeline(project, 'main', **options)
    return sorted(job['name'] for job in ci.list_jobs(pipeline=pipeline))


def refusal(ci, project, **options):
    """Return what the file of a project's main branch is refused for."""
    with pytest.raises(minici.BadRequest) as caught:
        ci.create_pipeline(project, 'main', **options)
    return '; '.join(caught.value.problems)


# -- other projects

def test_a_file_of_another_project_is_included_with_the_files_beside_it(ci, make_repository):
    ci.create_project('group/ci', import_url=make_repository('ci', (
        {'all.yml': f'include: one.yml\nall: {{{JOB}}}', 'one.yml': f'one: {{{JOB}}}'}, 'v1'), (
        {'all.yml': f'newer: {{{JOB}}}'},)))
    own = {'.gitlab-ci.yml': f'include: {{project: group/ci, ref: v1, file: /all.yml}}\ntest: {{{JOB}}}',
           'one.yml': f'wrong: {{{JOB}}}'}
    project = ci.create_project('group/app', import_url=make_repository('app', (own,)))
    assert built(ci, project) == ['all', 'one', 'test']


def test_a_project_that_is_not_here_is_named_with_the_option_that_brings_it(ci, make_repository):
    own = {'.gitlab-ci.yml': f'include: {{project: far/ci, file: [a.yml]}}\ntest: {{{JOB}}}'}
    project = ci.create_project('group/app', import_url=make_repository('app', (own,)))
    told = refusal(ci, project)
    assert '.gitlab-ci.yml:1:11: include:project names far/ci' in told
    assert '--include-map far/ci=' in told


@pytest.mark.parametrize('prefix', ['far', 'far/ci'])
def test_the_map_says_where_projects_are_that_are_not_here(tmp_path, make_repository, prefix):
    url = make_repository('far/ci.git', ({'a.yml': f'a: {{{JOB}}}'},))
    mapped = url if prefix == 'far/ci' else url.removesuffix('/ci.git')
    with minici.Coordinator(tmp_path / 'ci.sqlite', include_map=f'{prefix}={mapped}', fsync=False) as ci:
        own = {'.gitlab-ci.yml': f'include: {{project: far/ci, file: a.yml}}\ntest: {{{JOB}}}'}
        project = ci.create_project('group/app', import_url=make_repository('app', (own,)))
        assert built(ci, project) == ['a', 'test']


def test_a_file_that_the_other_project_does_not_have_is_named(ci, make_repository):
    ci.create_project('group/ci', import_url=make_repository('ci', ({'a.yml': f'a: {{{JOB}}}'},)))
    own = {'.gitlab-ci.yml': f'include: {{project: group/ci, file: b.yml}}\ntest: {{{JOB}}}'}
    project = ci.create_project('group/app', import_url=make_repository('app', (own,)))
    assert 'b.yml, which that project does not have' in refusal(ci, project)


# -- components

COMPONENT = '''\
spec: {inputs: {name: {default: component}}}
---
$[[ inputs.name ]]: {script: make}
'''


@pytest.mark.parametrize('version, job', [
    ('1.0.0', 'old'), ('1.2.0', 'component'), ('1', 'component'), ('1.0', 'old'), ('~latest', 'component'),
    ('main', 'tip'),
])
def test_a_component_has_versions(ci, make_repository, version, job):
    ci.create_project('group/parts', import_url=make_repository(
        'parts', ({'templates/lint.yml': f'old: {{{JOB}}}'}, '1.0.0'), ({'templates/lint.yml': COMPONENT}, '1.2.0'),
        ({'templates/lint.yml': f'tip: {{{JOB}}}'},)))
    own = {'.gitlab-ci.yml': f'include: {{component: $CI_SERVER_FQDN/group/parts/lint@{version}}}\ntest: {{{JOB}}}'}
    project = ci.create_project('group/app', import_url=make_repository('app', (own,)))
    assert built(ci, project) == sorted([job, 'test'])


def test_a_component_may_be_a_folder_and_takes_inputs(ci, make_repository):
    ci.create_project('group/parts', import_url=make_repository('parts', ({'templates/lint/template.yml': COMPONENT},)))
    own = {'.gitlab-ci.yml': 'include: {component: any.example/group/parts/lint@main, inputs: {name: mine}}\n'
                             f'test: {{{JOB}}}'}
    project = ci.create_project('group/app', import_url=make_repository('app', (own,)))
    assert built(ci, project) == ['mine', 'test']


def test_a_component_that_does_not_exist_is_named_with_the_files_that_were_looked_for(ci, make_repository):
    ci.create_project('group/parts', import_url=make_repository('parts', ({'templates/lint.yml': COMPONENT},)))
    own = {'.gitlab-ci.yml': f'include: {{component: a.example/group/parts/lnt@main}}\ntest: {{{JOB}}}'}
    project = ci.create_project('group/app', import_url=make_repository('app', (own,)))
    assert 'templates/lnt.yml' in refusal(ci, project)


# -- https

@pytest.fixture(scope='module')
def certificate(tmp_path_factory):
    """Return the path of a certificate for localhost with its key."""
    path = tmp_path_factory.mktemp('tls') / 'localhost.pem'
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=localhost',
                    '-addext', 'subjectAltName=DNS:localhost', '-keyout', path, '-out', f'{path}.crt'], check=True,
                   capture_output=True)
    path.write_bytes(path.read_bytes() + path.with_name('localhost.pem.crt').read_bytes())
    return path


@pytest.fixture
def https(certificate, monkeypatch):
    """Yield an https server of files, by path; a file that begins with http is a redirect."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found = server.files.get(self.path)
            server.asked.append(self.path)
            self.send_response(404 if found is None else 302 if found.startswith(b'http') else 200)
            if found and found.startswith(b'http'):
                self.send_header('Location', found.decode())
            self.end_headers()
            self.wfile.write(found or b'')

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(('localhost', 0), Handler)
    server.daemon_threads = True
    server.files, server.asked = {}, []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv('SSL_CERT_FILE', str(certificate))
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.05})
    thread.start()
    yield SimpleNamespace(host=f'localhost:{server.server_port}', url=f'https://localhost:{server.server_port}',
                          files=server.files, asked=server.asked)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def online(tmp_path, https):
    """Yield a coordinator that may include files of the https server."""
    with minici.Coordinator(tmp_path / 'online.sqlite', include_hosts=https.host, fsync=False) as ci:
        yield ci


def linted(ci, include):
    """Return the names of the jobs of a file with this include."""
    return sorted(job.name for job in ci.lint(content={'include': include, 'test': {'script': 'make'}}).jobs)


def lint_refusal(ci, include):
    """Return what a file with this include is refused for."""
    with pytest.raises(minici.BadRequest) as caught:
        linted(ci, include)
    return '; '.join(caught.value.problems)


def test_a_remote_file_is_fetched_and_its_own_includes_too(online, https):
    https.files.update({'/a.yml': f'include: {https.url}/b.yml\na: {{{JOB}}}'.encode(),
                        '/b.yml': f'b: {{{JOB}}}'.encode()})
    assert linted(online, f'{https.url}/a.yml') == ['a', 'b', 'test']
    assert linted(online, {'remote': f'{https.url}/b.yml'}) == ['b', 'test']


def test_a_host_that_is_not_allowed_is_not_asked(ci, https):
    https.files['/a.yml'] = b'a: {script: make}'
    assert f'--include-hosts {https.host}' in lint_refusal(ci, f'{https.url}/a.yml')
    assert https.asked == []


def test_the_host_of_an_include_is_looked_up_once_and_must_be_on_the_internet(tmp_path, https, monkeypatch):
    https.files['/a.yml'] = b'a: {script: make}'
    looked_up, look_up = [], minici.socket.getaddrinfo

    def once(host, *arguments, **options):
        looked_up.append(host)
        return look_up('127.0.0.1' if looked_up.count('localhost') == 1 else host, *arguments, **options)

    monkeypatch.setattr(minici.socket, 'getaddrinfo', once)
    with minici.Coordinator(tmp_path / 'ci.sqlite', include_hosts=https.host, public_imports_only=True) as ci:
        assert 'localhost is not on the internet' in lint_refusal(ci, f'{https.url}/a.yml')
        assert https.asked == []
        looked_up.clear()
        monkeypatch.setattr(minici, 'is_public_address', lambda address: True)
        assert linted(ci, f'{https.url}/a.yml') == ['a', 'test']
        assert looked_up == ['localhost', '127.0.0.1']


@pytest.mark.parametrize('target', ['http://127.0.0.1:1/a.yml', 'https://127.0.0.1:1/a.yml'])
def test_a_redirect_leads_to_allowed_https_addresses_alone(online, https, target):
    https.files['/a.yml'] = target.encode()
    told = lint_refusal(online, f'{https.url}/a.yml')
    assert 'is not an https address' in told or 'may not be asked' in told


def test_a_remote_file_must_be_https(online, https):
    assert 'is not an https address' in lint_refusal(online, f'http://{https.host}/a.yml')


def test_integrity_is_checked_and_makes_the_network_unnecessary(online, https):
    content = b'a: {script: make}'
    https.files['/a.yml'] = content
    integrity = 'sha256-' + base64.b64encode(hashlib.sha256(content).digest()).decode()
    include = {'remote': f'{https.url}/a.yml', 'integrity': integrity}
    assert linted(online, include) == linted(online, include) == ['a', 'test']
    assert https.asked == ['/a.yml']
    assert 'integrity' in lint_refusal(online, {**include, 'integrity': 'sha256-AAAA'})


def test_a_remote_file_that_cannot_be_fetched_comes_from_the_cache(online, https):
    https.files['/a.yml'] = b'a: {script: make}'
    assert linted(online, f'{https.url}/a.yml') == ['a', 'test']
    del https.files['/a.yml']
    assert linted(online, f'{https.url}/a.yml') == ['a', 'test']
    assert 'cannot be fetched' in lint_refusal(online, f'{https.url}/b.yml')


def test_a_remote_file_has_a_limit(online, https):
    https.files['/a.yml'] = b'#' * (minici.MAX_FILE_SIZE + 1)
    assert f'more than {minici.MAX_FILE_SIZE} bytes' in lint_refusal(online, f'{https.url}/a.yml')


def test_a_template_comes_from_gitlab_once_and_then_from_the_cache(online, https, monkeypatch):
    monkeypatch.setattr(minici, 'TEMPLATES', f'{https.url}/templates/')
    https.files['/templates/Jobs/Test.gitlab-ci.yml'] = b'template: {script: make}'
    assert linted(online, {'template': 'Jobs/Test.gitlab-ci.yml'}) == ['template', 'test']
    assert linted(online, {'template': 'Jobs/Test.gitlab-ci.yml'}) == ['template', 'test']
    assert https.asked == ['/templates/Jobs/Test.gitlab-ci.yml']


def test_a_template_that_may_not_be_fetched_is_named_with_the_option_that_allows_it(ci):
    assert '--include-hosts gitlab.com' in lint_refusal(ci, {'template': 'Auto-DevOps.gitlab-ci.yml'})


@pytest.mark.parametrize('name', ['../a.gitlab-ci.yml', 'a/../../b.gitlab-ci.yml', '/a.gitlab-ci.yml', 'a.yml'])
def test_a_template_has_a_plain_name(ci, name):
    assert 'template' in lint_refusal(ci, {'template': name})


# -- limits

def test_no_more_files_are_kept_than_the_limit(online, https, monkeypatch):
    monkeypatch.setattr(minici, 'MAX_CACHED_INCLUDES', 3)
    for number in range(5):
        https.files[f'/{number}.yml'] = b'a: {script: make}'
        linted(online, f'{https.url}/{number}.yml')
    assert len(list((online.data / 'includes').iterdir())) == 3


@pytest.mark.parametrize('settings', [{'include_hosts': 'a b'}, {'include_map': 'a'}, {'include_map': 'a=b'},
                                      {'include_map': 'a=file://x'}])
def test_settings_of_includes_are_checked(settings):
    with pytest.raises(ValueError, match='is not'):
        minici.Coordinator(**settings)
