"""What jobs and people may store, what is never shown again, and what the log says of it."""

import functools
import io
import logging
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support import FORM, PLAIN, SHA, UPLOAD, Client, Origin, Runner

import minici


def upload(client, job, kind, content=b'x'):
    fields = {'artifact_type': kind, 'artifact_format': minici.ARTIFACT_FORMATS.get(kind, 'raw')}
    field = ''.join(f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
                    for name, value in fields.items()).encode()
    path = f'/api/v4/jobs/{job.job["id"]}/artifacts'
    return client.call('POST', path, data=field + UPLOAD[0] + content + UPLOAD[1],
                       headers={**FORM, 'JOB-TOKEN': job.token})


def test_artifacts_of_an_invented_type_are_refused(ci, client, job):
    answer = upload(client, job, 'invented')
    assert (answer.status_int, answer.json) == (400, {'error': 'artifact_type does not have a valid value'})
    assert upload(client, job, 'sast').status_int == 201
    assert list(ci.artifacts.incoming.iterdir()) == []


def test_a_job_has_a_limited_number_of_artifacts(client, job):
    kinds = sorted(minici.ARTIFACT_TYPES - {'dotenv', 'junit'})
    answers = [upload(client, job, kind).status_int for kind in kinds]
    assert answers == [201] * 20 + [413] * (len(kinds) - 20)
    assert '20 artifacts' in upload(client, job, kinds[-1]).text


def test_the_sizes_of_a_jobs_artifacts_are_added_up(tmp_path):
    with minici.Coordinator(tmp_path / 'ci.sqlite', max_artifacts_size='100K') as ci:
        ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content=PLAIN)
        client, job = Client(ci), Runner(ci).claim()
        assert upload(client, job, 'archive', b'x' * 60_000).status_int == 201
        answer = upload(client, job, 'sast', b'x' * 60_000)
        assert answer.status_int == 413
        assert 'max_artifacts_size' in answer.text
        assert upload(client, job, 'sast', b'x' * 30_000).status_int == 201


def test_a_project_that_has_its_share_of_the_disk_uploads_no_more_and_others_go_on(tmp_path):
    with minici.Coordinator(tmp_path / 'ci.sqlite', project_share='100K, 50%') as ci:
        client, runner, jobs = Client(ci), Runner(ci), {}
        for path in ('greedy', 'modest'):
            two = {name: {'script': ['x']} for name in ('a', 'b')}
            ci.create_pipeline(ci.create_project(path), 'main', sha=SHA, content=two)
            jobs[path] = [runner.claim() for _ in two]
        first, second = jobs['greedy']
        assert upload(client, first, 'archive', b'x' * 60_000).status_int == 201
        answer = upload(client, second, 'archive', b'x' * 60_000)
        assert answer.status_int == 413
        assert 'its share of 102400 bytes' in answer.text
        assert 'project_share' in answer.text
        assert upload(client, second, 'sast', b'x' * 30_000).status_int == 201
        for job in jobs['modest']:
            assert upload(client, job, 'archive', b'x' * 45_000).status_int == 201
        assert len(list(ci.artifacts.stored())) == 4
        ci.update_job(ci.authenticate_job(first.job['id'], first.token), 'success')
        ci.erase_job(ci.find_job(first.job['id']))
        assert upload(client, second, 'archive', b'x' * 60_000).status_int == 201


def test_a_file_that_unpacks_to_a_thousand_times_its_size_is_not_unpacked(ci, client, job, token):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr('zeros', bytes(80 * 2 ** 20))
        bundle.writestr('small', 'x')
    assert upload(client, job, 'archive', packed.getvalue()).status_int == 201
    path = f'/api/v4/projects/1/jobs/{job.job["id"]}/artifacts'
    answer = client.call('GET', f'{path}/zeros', token=token, status=413)
    assert 'download the archive' in answer.text
    assert client.call('GET', f'{path}/small', token=token, status=200).body == b'x'
    assert list(ci.artifacts.incoming.iterdir()) == []


def test_a_directory_is_counted_whatever_its_offset_is_called(monkeypatch):
    monkeypatch.setattr(minici, 'MAX_ZIP_ENTRIES', 100)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, 'w') as bundle:
        for number in range(300):
            bundle.writestr(str(number), '')
    content = packed.getvalue()
    directory = content.index(b'PK\1\2')
    size = len(content) - 22 - directory
    offset = int.from_bytes(b'PK\6\6', 'little') + (1 << 40)    # holds the mark of a zip64 record
    record = b'PK\6\6' + (44).to_bytes(8, 'little') + b'\x2d\0\x2d\0' + bytes(8) + (300).to_bytes(8, 'little') * 2 \
        + size.to_bytes(8, 'little') + offset.to_bytes(8, 'little')
    locator = b'PK\6\7' + bytes(4) + (len(content) - 22).to_bytes(8, 'little') + (1).to_bytes(4, 'little')
    end = b'PK\5\6' + bytes(4) + b'\xff' * 12 + bytes(2)
    with pytest.raises(minici.BadRequest, match='too many entries'):
        minici.check_zip_directory(io.BytesIO(content[:-22] + record + locator + end))


@pytest.mark.parametrize(('between', 'moved'), [(b'', 56), (b'x' * 56, 0)], ids=['elsewhere', 'with more behind it'])
def test_a_zip64_record_that_readers_look_for_in_different_places_is_refused(between, moved):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, 'w') as bundle:
        bundle.writestr('x', '')
    content = packed.getvalue()
    directory = content.index(b'PK\1\2')
    size = len(content) - 22 - directory
    fields = (1).to_bytes(8, 'little') * 2 + size.to_bytes(8, 'little') + directory.to_bytes(8, 'little')
    record = b'PK\6\6' + (44).to_bytes(8, 'little') + b'\x2d\0\x2d\0' + bytes(8) + fields
    locator = b'PK\6\7' + bytes(4) + (len(content) - 22 - moved).to_bytes(8, 'little') + (1).to_bytes(4, 'little')
    with pytest.raises(minici.BadRequest, match='do not follow one another'):
        minici.check_zip_directory(io.BytesIO(content[:-22] + record + between + locator + content[-22:]))
    minici.check_zip_directory(io.BytesIO(
        content[:-22] + record + locator.replace(locator[8:16], (len(content) - 22).to_bytes(8, 'little'))
        + content[-22:]))


def test_a_hidden_variable_is_never_shown_again_and_reaches_its_jobs(ci, client, project, pipeline, runner, token):
    base = f'/api/v4/projects/{project["id"]}/variables'
    given = {'key': 'KEY', 'value': 'long-enough-secret', 'masked_and_hidden': True}
    made = client.call('POST', base, json=given, token=token, status=201)
    assert (made.json['hidden'], made.json['masked'], made.json['value']) == (True, True, None)
    changed = client.call('PUT', f'{base}/KEY', json={'description': 'x', 'masked': False}, token=token, status=200)
    assert (changed.json['hidden'], changed.json['masked'], changed.json['value']) == (True, True, None)
    for text in (client.call('GET', base, token=token).text, client.call('GET', f'{base}/KEY', token=token).text,
                 client.call('GET', '/group/demo', headers={
                     'Cookie': f'minici_{ci.instance}={ci.sign_in_with(token)}'}, status=200).text):
        assert 'long-enough-secret' not in text
    payload = client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=201).json
    found = [item for item in payload['variables'] if item['key'] == 'KEY'][0]
    assert (found['value'], found['masked']) == ('long-enough-secret', True)


def test_the_address_that_a_runner_clones_from_is_masked(ci, client, project, runner):
    ci.edit_project(project, import_url='https://ann:s3cr3t@git.example.com/demo.git')
    from support import PLAIN, SHA
    ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    payload = client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=201).json
    found = [item for item in payload['variables'] if item['key'] == 'CI_REPOSITORY_URL'][0]
    assert (found['masked'], found['public']) == (True, False)


@pytest.mark.parametrize('url', ['file:///srv/git/demo.git', 'http://127.0.0.1/x.git', 'http://10.0.0.1/x.git',
                                 'ssh://git@192.168.1.1/x.git', 'http://[::1]/x.git', 'http://localhost/x.git',
                                 'http://169.254.169.254/latest'])
def test_servers_may_refuse_addresses_on_their_own_machine_and_network(tmp_path, url):
    with minici.Coordinator(tmp_path / 'ci.sqlite', public_imports_only=True) as ci:
        with pytest.raises(minici.BadRequest, match='public-imports-only'):
            ci.create_project('demo', import_url=url)
        assert ci.create_project('other', import_url='https://8.8.8.8/x.git')


def test_git_connects_to_the_address_that_was_checked_and_follows_nobody_elsewhere(tmp_path, monkeypatch):
    origin = Origin(tmp_path / 'srv')
    origin.commit()
    origin.git('update-server-info')
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers['Host'])
            if not self.path.startswith('/moved'):
                return super().do_GET()
            self.send_response(302)
            self.send_header('Location', self.path.removeprefix('/moved'))
            self.end_headers()

        def log_message(self, *arguments):
            pass

    monkeypatch.setattr(minici, 'public_addresses', lambda host: ['127.0.0.1'])     # no other resolver knows the name
    handler = functools.partial(Handler, directory=str(origin.path))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.05})
        thread.start()
        try:
            base = f'http://git.minici.test:{server.server_port}'
            with minici.Repository(f'{base}/.git', tmp_path, public_only=True) as repository:
                assert repository.refs() == {'main'}
            assert set(asked) == {f'git.minici.test:{server.server_port}'}
            with minici.Repository(f'{base}/moved/.git', tmp_path, public_only=True) as repository:
                with pytest.raises(minici.BadRequest, match='302'):
                    repository.refs()
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize('url', ['http://[abc/x', 'http://host:99999/x', 'http://[::1/x', 'http://host:x/y'])
def test_an_address_that_no_library_can_read_makes_no_project(ci, url):
    with pytest.raises(minici.BadRequest, match='import_url'):
        ci.create_project('demo', import_url=url)


def test_whoever_changes_tokens_runners_variables_or_projects_is_logged(ci, client, project, token, caplog):
    caplog.set_level(logging.INFO, 'minici')
    base = f'/api/v4/projects/{project["id"]}'
    client.call('POST', f'{base}/variables', json={'key': 'KEY', 'value': 'not-in-the-log'}, token=token, status=201)
    client.call('PUT', base, json={'name': 'other'}, token=token, status=200)
    client.call('POST', f'{base}/triggers', json={'description': 'x'}, token=token, status=201)
    client.call('POST', '/api/v4/runners', json={'token': ci.registration_token}, status=201)
    client.call('GET', f'{base}/variables', token=token, status=200)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith('audit: ')]
    assert [line.partition(': ')[2].split(' from ')[0] for line in lines] == [
        'user root (private_token)'] * 3 + ['somebody (registration_token)']
    assert f'POST {base}/variables' in lines[0]
    assert 'not-in-the-log' not in caplog.text
    assert token not in caplog.text
