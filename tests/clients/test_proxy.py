"""The examples for operators: nginx before minici, as a runner meets it, and the unit, as systemd reads it."""

import contextlib
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess

import pytest
from support import EXAMPLES, FORM, SHA, UPLOAD, archive, until

import minici

NGINX = shutil.which('nginx', path='/usr/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin')


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as listener:
        return listener.getsockname()[1]


def configuration(directory, upstream, plain, secure):
    """Return the example with the ports and paths of this machine."""
    text = (EXAMPLES / 'nginx.conf').read_text()
    for before, after in (
            ('listen 80;', f'listen 127.0.0.1:{plain};'), ('listen 443 ssl;', f'listen 127.0.0.1:{secure} ssl;'),
            ('127.0.0.1:8080', f'127.0.0.1:{upstream}'),
            ('/etc/letsencrypt/live/ci.example.com/fullchain.pem', f'{directory}/ci.crt'),
            ('/etc/letsencrypt/live/ci.example.com/privkey.pem', f'{directory}/ci.key'),
            ('client_header_timeout 10s', 'client_header_timeout 1s')):
        assert before in text
        text = text.replace(before, after)
    text = re.sub(r'\n\s*listen \[::\].*', '', text)
    paths = ''.join(f'{kind}_temp_path {directory}/{kind};\n' for kind in (
        'client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'))
    return (f'daemon off;\nmaster_process off;\npid {directory}/pid;\nerror_log {directory}/error.log;\n'
            f'events {{}}\nhttp {{\naccess_log off;\n{paths}{text}\n}}\n')


@pytest.fixture
def proxied(tmp_path):
    """Yield a function that connects through nginx to a coordinator, the coordinator, and the ports of nginx."""
    names = ['-subj', '/CN=ci.example.com', '-addext', 'subjectAltName=DNS:ci.example.com']
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', *names,
                    '-keyout', tmp_path / 'ci.key', '-out', tmp_path / 'ci.crt'], check=True, capture_output=True)
    plain, secure = free_port(), free_port()
    trust = ssl.create_default_context(cafile=str(tmp_path / 'ci.crt'))

    class Connection(http.client.HTTPSConnection):
        """A connection to the name in the certificate, which no resolver knows, from an address of ours."""

        def connect(self):
            stream = socket.create_connection(('127.0.0.1', secure), 30, ('127.0.0.7', 0))
            self.sock = trust.wrap_socket(stream, server_hostname=self.host)

    with minici.Coordinator(tmp_path / 'ci.sqlite', external_url='https://ci.example.com',
                            trusted_proxies='127.0.0.1') as ci, minici.Server(ci) as server:
        (tmp_path / 'nginx.conf').write_text(configuration(tmp_path, server.port, plain, secure))
        with subprocess.Popen([NGINX, '-e', tmp_path / 'start.log', '-c', tmp_path / 'nginx.conf']) as nginx:
            try:
                until(lambda: is_listening(secure))
                yield lambda: contextlib.closing(Connection('ci.example.com')), ci, secure, plain
            finally:
                nginx.terminate()


def is_listening(port):
    with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port), 1):
        return True
    return False


def ask(connect, method, path, body=b'', **headers):
    with connect() as connection:
        headers = {name.replace('_', '-'): value for name, value in headers.items()}
        if isinstance(body, dict):
            body, headers['Content-Type'] = json.dumps(body), 'application/json'
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers


@pytest.mark.skipif(NGINX is None, reason='nginx is not installed')
def test_a_runner_works_through_nginx_and_its_own_address_is_known(proxied):
    connect, ci, _, plain = proxied
    ci.create_pipeline(ci.create_project('group/demo'), 'main', sha=SHA, content={'test': {'script': ['make']}})
    status, body, _ = ask(connect, 'POST', '/api/v4/runners', {'token': ci.registration_token},
                          X_Forwarded_For='6.6.6.6')
    assert status == 201
    runner = json.loads(body)['token']
    status, body, _ = ask(connect, 'POST', '/api/v4/jobs/request', {'token': runner}, X_Forwarded_For='6.6.6.6')
    assert status == 201
    job = json.loads(body)
    assert job['token']
    path, token = f'/api/v4/jobs/{job["id"]}', {'JOB_TOKEN': job['token']}
    chunk = b'line\n' * 1000
    assert ask(connect, 'PATCH', f'{path}/trace', chunk, **token,
               Content_Range=f'0-{len(chunk) - 1}')[0] == 202
    packed = archive(out__a='content' * 100_000)
    assert ask(connect, 'POST', f'{path}/artifacts', UPLOAD[0] + packed + UPLOAD[1], **token,
               Content_Type=FORM['Content-Type'])[0] == 201
    status, body, _ = ask(connect, 'GET', f'{path}/artifacts', **token)
    assert (status, body) == (200, packed)
    status, body, headers = ask(connect, 'POST', f'{path}/artifacts', bytes(8 * minici.MIB), JOB_TOKEN='wrong')
    assert status == 403
    assert headers['Strict-Transport-Security']
    assert ask(connect, 'PUT', path, {'token': job['token'], 'state': 'success'})[0] == 200
    assert ci.find_job(job['id'])['status'] == 'success'
    assert [row['ip_address'] for row in ci.list_runners()] == ['127.0.0.7']
    assert ci.read_trace(job['id']) == chunk
    with contextlib.closing(http.client.HTTPConnection('127.0.0.1', plain)) as connection:
        connection.request('GET', '/x', headers={'Host': 'ci.example.com'})
        assert connection.getresponse().headers['Location'] == 'https://ci.example.com/x'


@pytest.mark.skipif(NGINX is None, reason='nginx is not installed')
def test_nginx_gives_up_a_client_that_sends_no_headers(proxied, tmp_path):
    _, _, secure, _ = proxied
    trust = ssl.create_default_context(cafile=str(tmp_path / 'ci.crt'))
    with socket.create_connection(('127.0.0.1', secure), 30) as stream:
        with trust.wrap_socket(stream, server_hostname='ci.example.com') as secured:
            secured.sendall(b'GET / HTTP/1.1\r\nHost: ci.exa')
            said = b''.join(iter(lambda: secured.recv(1000), b''))
    assert not said or b' 408 ' in said


@pytest.mark.skipif(not shutil.which('systemd-analyze'), reason='there is no systemd')
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    unit = tmp_path / 'minici.service'
    unit.write_text((EXAMPLES / 'minici.service').read_text().replace('/opt/minici/bin/minici', '/bin/true'))
    done = subprocess.run(['systemd-analyze', 'verify', unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, '')
