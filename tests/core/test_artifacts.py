"""Artifacts: uploads that stream, what replaces what, expiry, downloads, files out of archives, and hostile ones."""

import contextlib
import hashlib
import io
import os
import random
import re
import socket
import sqlite3
import struct
import threading
import time
import zipfile
from datetime import datetime, timezone
from urllib.parse import quote

import pytest
from support import PLAIN, SHA, TWO_STAGES, Client, Runner, archive, noting, record_disk

import minici

V1, V4 = '/ci/api/v1/builds/1/artifacts', '/api/v4/jobs/1/artifacts'
JOB = '/api/v4/projects/1/jobs/1'
ZIP = archive(one='first\n', docs__two='second\n')
OTHER = archive(one='another\n')


@pytest.fixture(params=[V1, V4])
def path(request):
    """The address of the upload in each of the two runner protocols."""
    return request.param


def upload(client, claim, content=ZIP, *, path=V4, name='a.zip', query='', status=None):
    """Upload an archive the way runners do."""
    return client.call('POST', path + query, files=[('file', name, content)], status=status,
                       headers={'JOB-TOKEN': claim.token, 'BUILD-TOKEN': claim.token})


def files_of(ci):
    """Return the contents of all files in the data directory but the traces and locks."""
    return [path.read_bytes() for path in sorted(ci.data.rglob('*'))
            if path.is_file() and 'traces' not in path.parts and path.suffix != '.lock']


def kept(ci, job=1):
    """Return a job's archive."""
    with ci.open_artifacts(job)[1] as file:
        return file.read()


# -- uploads

def test_an_uploaded_archive_comes_back_as_it_was(ci, client, job, token, path):
    upload(client, job, path=path, status=201)
    for method, address, options in (
            ('GET', f'{JOB}/artifacts', {'token': token}), ('GET', V1, {'headers': {'BUILD-TOKEN': job.token}}),
            ('GET', V4, {'headers': {'JOB-TOKEN': job.token}})):
        answer = client.call(method, address, status=200, **options)
        assert answer.body == ZIP
        assert answer.headers['Content-Length'] == str(len(ZIP))
        assert answer.headers['X-Content-Type-Options'] == 'nosniff'
        assert answer.headers['Content-Disposition'].startswith('attachment; filename="a.zip"')
    assert files_of(ci) == [ZIP]


class Slow(io.RawIOBase):
    """A request body that calls `between` with the bytes sent so far, before it gives out each next piece."""

    def __init__(self, content, between, size=4096):
        super().__init__()
        self.content, self.between, self.step, self.sent = content, between, size, 0

    def read(self, size=-1):
        self.between(self.sent)
        piece = self.content[self.sent:self.sent + min(self.step, size if size >= 0 else self.step)]
        self.sent += len(piece)
        return piece


def stream(ci, claim, content, between, *, path=V4, length=None):
    """Send an upload piece by piece, without a socket; return the status and the body that was read."""
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.zip"\r\n\r\n'
    body = Slow(head + content + b'\r\n--x--\r\n', between)
    environ = {'REQUEST_METHOD': 'POST', 'PATH_INFO': path, 'SERVER_NAME': 'x', 'SERVER_PORT': '80',
               'wsgi.url_scheme': 'http', 'wsgi.input': body, 'wsgi.errors': io.StringIO(),
               'CONTENT_TYPE': 'multipart/form-data; boundary=x', 'CONTENT_LENGTH': str(length or len(body.content)),
               'HTTP_JOB_TOKEN': claim.token, 'HTTP_BUILD_TOKEN': claim.token}
    started = []
    list(minici.create_app(ci)(environ, lambda status, headers, *_: started.append((status, dict(headers)))))
    return int(started[0][0][:3]), body, started[0][1]


@pytest.fixture
def small(tmp_path, clock):
    """A claimed job of a coordinator whose artifacts may have 100,000 bytes."""
    with minici.Coordinator(tmp_path / 'ci.sqlite', clock=clock, fsync=False, max_artifacts_size=100_000) as ci:
        ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content=PLAIN)
        yield ci, Runner(ci).claim()


def test_an_upload_goes_to_the_disk_as_it_comes_and_nobody_sees_it_before_its_end(small):
    ci, claim = small
    on_disk, content = [], os.urandom(90_000)

    def look(sent):
        on_disk.append(sum(path.stat().st_size for path in ci.artifacts.incoming.iterdir()))
        with pytest.raises(minici.NotFound):
            ci.find_artifact(1)

    assert stream(ci, claim, content, look)[0] == 201
    assert on_disk[0] == 0
    assert kept(ci) == content


def test_never_more_than_the_limit_is_on_the_disk_and_the_rest_is_not_read(small, path):
    ci, claim = small
    on_disk = []

    def look(sent):
        on_disk.append(sum(file.stat().st_size for file in ci.data.rglob('*') if file.is_file()))

    status, body, _ = stream(ci, claim, os.urandom(900_000), look, path=path)
    assert status == 413
    assert max(on_disk) <= 100_000
    assert body.sent <= 120_000
    assert files_of(ci) == []


def test_a_content_length_beyond_the_limit_is_refused_before_a_byte_is_read(small, path):
    ci, claim = small
    status, body, _ = stream(ci, claim, b'x', lambda sent: None, path=path, length=10 ** 9)
    assert (status, body.sent) == (413, 0)


@pytest.mark.parametrize('size, status', [(100_000, 201), (100_001, 413)])
def test_the_limit_itself_is_still_taken_and_the_refusal_names_the_setting(small, size, status, path):
    ci, claim = small
    answer = upload(Client(ci), claim, b'x' * size, path=path, status=status)
    assert status == 201 or 'max_artifacts_size' in answer.json['message']
    assert len(files_of(ci)) == (status == 201)


def test_a_client_that_goes_away_leaves_nothing_behind(small, path):
    ci, claim = small

    def break_off(sent):
        assert len(list(ci.artifacts.incoming.iterdir())) <= 1
        if sent > 50_000:
            raise ConnectionResetError

    stream(ci, claim, os.urandom(90_000), break_off, path=path)
    assert files_of(ci) == []
    status, *_ = stream(ci, claim, b'short', lambda sent: None, path=path, length=5000)
    assert status == 400
    assert files_of(ci) == []


def test_an_upload_cut_off_on_a_real_socket_leaves_nothing_behind(ci, job, server):
    with socket.create_connection((server.host, server.port)) as connection:
        connection.sendall(f'POST {V4} HTTP/1.1\r\nHost: x\r\nJOB-TOKEN: {job.token}\r\nContent-Length: 5000000\r\n'
                           'Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n'
                           'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n'.encode())
        connection.sendall(os.urandom(2_000_000))
    server.stop()
    assert files_of(ci) == []
    with pytest.raises(minici.NotFound):
        ci.find_artifact(1)


PART = 'Content-Disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'
MALFORMED = {
    'no file': '--x\r\n' + PART.format('metadata', '; filename="m.gz"', 'abc') + '--x--\r\n',
    'a field in place of the file': '--x\r\n' + PART.format('file', '', 'abc') + '--x--\r\n',
    'no end': '--x\r\n' + PART.format('file', '; filename="a.zip"', 'abc'),
    'no boundary': PART.format('file', '; filename="a.zip"', 'abc'),
    'no name': '--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--\r\n',
    'no disposition': '--x\r\n\r\nabc\r\n--x--\r\n',
    'a header without end': '--x\r\nContent-Disposition: form-data; name="file"; filename="' + 'a' * 100_000,
    'too many parts': ('--x\r\n' + PART.format('f', '', 'abc')) * 50 + '--x--\r\n',
    'nothing': '',
}


@pytest.mark.parametrize('body', MALFORMED)
def test_a_malformed_upload_is_refused_with_a_message_and_leaves_nothing(ci, client, job, path, body):
    answer = client.call('POST', path, data=MALFORMED[body].encode(), status=400, headers={
        'JOB-TOKEN': job.token, 'BUILD-TOKEN': job.token, 'Content-Type': 'multipart/form-data; boundary=x'})
    assert answer.json.get('message') or answer.json.get('error')
    assert files_of(ci) == []


@pytest.mark.parametrize('query, status', [
    ('?token=wrong', 403), ('?expire_in=soon', 400), ('?artifact_type=../../x', 400), ('?artifact_format=tar', 400),
    ('?artifact_type=archive&artifact_format=gzip', 400), ('?artifact_type=junit&artifact_format=raw', 400),
    ('?artifact_type=' + 'a' * 200 + '&artifact_format=raw', 400)])
def test_a_refused_upload_leaves_nothing(ci, client, job, query, status):
    upload(client, job, query=query, status=status)
    assert files_of(ci) == []


def test_a_job_that_is_canceled_while_its_upload_comes_keeps_nothing_of_it(ci, job, path):
    def cancel(sent):
        if sent > 50_000:
            ci.cancel_job(ci.find_job(1))

    status, _, headers = stream(ci, job, os.urandom(90_000), cancel, path=path)
    assert status == 403
    assert headers['Build-Status' if path == V1 else 'Job-Status'] == 'canceled'
    assert files_of(ci) == []


def test_a_job_that_is_canceled_while_its_upload_is_put_in_place_keeps_nothing(ci, client, job, path, monkeypatch):
    replace = os.replace

    def cancel_meanwhile(source, target):
        ci.cancel_job(ci.find_job(1))
        replace(source, target)

    monkeypatch.setattr(os, 'replace', cancel_meanwhile)
    upload(client, job, path=path, status=403)
    assert files_of(ci) == []


def test_an_upload_reaches_the_disk_before_it_is_acknowledged(tmp_path, monkeypatch):
    with minici.Coordinator(tmp_path / 'ci.sqlite') as ci:
        ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content=PLAIN)
        claim, events = Runner(ci).claim(), record_disk(monkeypatch)
        upload(Client(ci, noting(minici.create_app(ci), events)), claim, status=201)
        file, = (path for path in (ci.data / 'artifacts').rglob('*') if path.is_file())
        flushed, moved, answered = ('fsync', file.stat().st_ino, len(ZIP)), ('rename', file.name), ('answer', '201')
        folder = events.index(('fsync', file.parent.stat().st_ino, 0))
        assert events.index(flushed) < events.index(moved) < folder < events.index(answered)


# -- a second upload

def test_v1_replaces_an_archive_and_a_reader_of_the_old_one_reads_it_to_its_end(ci, client, job):
    upload(client, job, path=V1, status=201)
    with ci.open_artifacts(1)[1] as reader:
        again = upload(client, job, OTHER, path=V1, name='b.zip', status=201)
        assert again.json['artifacts_file'] == {'filename': 'b.zip', 'size': len(OTHER)}
        assert files_of(ci) == [OTHER]
        assert reader.read() == ZIP
    assert client.call('GET', V1, headers={'BUILD-TOKEN': job.token}, status=200).body == OTHER


def test_v4_takes_the_same_content_again_and_refuses_other_content(ci, client, job):
    upload(client, job, status=201)
    upload(client, job, name='renamed.zip', status=201)
    assert 'already exists' in upload(client, job, OTHER, status=400).json['message']
    assert files_of(ci) == [ZIP]
    assert ci.find_artifact(1)['filename'] == 'a.zip'
    upload(client, job, b'gz', query='?artifact_type=junit&artifact_format=gzip', name='j.gz', status=201)
    assert sorted(files_of(ci)) == sorted([ZIP, b'gz'])


def test_of_two_uploads_at_once_one_is_kept_whole(ci, job):
    both, statuses = threading.Barrier(2), []

    def send(content):
        statuses.append(stream(ci, job, content, lambda sent: sent > 100_000 and not both.broken and both.wait(60))[0])

    contents = [letter * 110_000 for letter in (b'a', b'b')]
    threads = [threading.Thread(target=send, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201, 400]
    assert files_of(ci) in ([contents[0]], [contents[1]])
    assert ci.find_artifact(1)['sha256'] == hashlib.sha256(files_of(ci)[0]).hexdigest()


def test_a_replacement_that_cannot_be_committed_leaves_the_old_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(minici, 'BUSY_TIMEOUT', 0.05)
    with minici.Coordinator(tmp_path / 'ci.sqlite', fsync=False) as ci:
        ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content=PLAIN)
        client, claim = Client(ci), Runner(ci).claim()
        upload(client, claim, path=V1, status=201)
        other = sqlite3.connect(ci.db.path, isolation_level=None)
        other.execute('BEGIN IMMEDIATE')
        upload(client, claim, OTHER, path=V1, status=503)
        other.execute('ROLLBACK')
        other.close()
        assert files_of(ci) == [ZIP]
        assert kept(ci) == ZIP
        upload(client, claim, OTHER, path=V1, status=201)
        assert files_of(ci) == [OTHER]


# -- expiry

DAY = 86400
DURATIONS = {'7 days': 7 * DAY, '1h30m': 5400, '2h15min': 8100, '5 mins 6 sec': 306, '6 mos 1 day': 181 * DAY,
             '4 weeks and 3 days': 31 * DAY, '2 yrs 3 mos and 4d': 2 * 31557600 + 94 * DAY, '4:01:01': 14461, '90': 90,
             '1.5 hours': 5400, '10 DAYS': 10 * DAY, '1 hr, 2 min plus 3 s': 3723, ' 3 dys ' : None, '1 dy': DAY,
             '0': 'never', 'never': 'never', 'Never': 'never', '0 seconds': 'never', '': 'never',
             'soon': None, '7 parsecs': None, 'days': None, '-1 day': None, '1 day -1 h': None, '7 days!': None,
             '1e9': None, '٣ days': None, '9' * 400 + ' years': None, 'and': None, '1:99:99': None, '\x00': None}


@pytest.mark.parametrize('text', DURATIONS)
def test_expire_in_speaks_gitlabs_durations_and_nonsense_is_refused(ci, client, job, clock, text):
    expected = DURATIONS[text]
    answer = upload(client, job, path=V1, query=f'?expire_in={quote(text)}', status=201 if expected else 400)
    if expected is None:
        assert files_of(ci) == []
    elif expected == 'never':
        assert answer.json['artifacts_expire_at'] is None
    else:
        at = datetime.strptime(answer.json['artifacts_expire_at'], '%Y-%m-%dT%H:%M:%S.%f%z')
        assert at == datetime.fromtimestamp(clock.now + expected, timezone.utc)


@pytest.mark.parametrize('text', ['99999 years', '999999999 y', '999999999:00:00'])
def test_an_expiry_beyond_all_calendars_is_refused_or_kept_but_never_breaks_the_job(ci, client, job, token, text):
    assert upload(client, job, path=V1, query=f'?expire_in={quote(text)}').status_int in (201, 400)
    client.call('GET', JOB, token=token, status=200)
    client.call('GET', '/api/v4/projects/1/jobs', token=token, status=200)


def test_expire_in_may_come_as_a_field_and_never_beats_the_default(tmp_path, clock):
    with minici.Coordinator(tmp_path / 'ci.sqlite', clock=clock, fsync=False, artifacts_expire_in='1 day') as ci:
        client, runner, project = Client(ci), Runner(ci), ci.create_project('demo')
        cases = ({}, clock.now + DAY), ({'expire_in': '2 days'}, clock.now + 2 * DAY), ({'expire_in': 'never'}, None)
        for number, (fields, expected) in enumerate(cases, 1):
            ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
            client.call('POST', f'/ci/api/v1/builds/{number}/artifacts', form=fields, files=[('file', 'a.zip', ZIP)],
                        headers={'BUILD-TOKEN': runner.claim().token}, status=201)
            assert ci.find_artifact(number)['expire_at'] == expected


def test_expired_artifacts_are_gone_for_everybody_at_once_and_from_the_disk_with_the_next_sweep(
        ci, client, job, token, clock):
    upload(client, job, query='?expire_in=1+hour', status=201)
    ci.update_job(ci.authenticate_job(1, job.token), 'success')
    addresses = [f'{JOB}/artifacts', f'{JOB}/artifacts/one', '/api/v4/projects/1/jobs/artifacts/main/download?job=test',
                 '/api/v4/projects/1/jobs/artifacts/main/raw/one?job=test']
    clock.advance(3599)
    ci.sweep()
    for address in addresses:
        client.call('GET', address, token=token, status=200)
    clock.advance(1)
    for address in addresses:
        client.call('GET', address, token=token, status=404)
    client.call('POST', f'{JOB}/artifacts/keep', token=token, status=404)
    assert client.call('GET', JOB, token=token).json['artifacts_file'] is None
    assert files_of(ci) == [ZIP]
    ci.sweep()
    assert files_of(ci) == []


def test_kept_artifacts_never_expire(ci, client, job, token, clock):
    upload(client, job, query='?expire_in=1+hour', status=201)
    kept = client.call('POST', f'{JOB}/artifacts/keep', token=token, status=200)
    assert kept.json['artifacts_expire_at'] is None
    clock.advance(days=4000)
    ci.sweep()
    assert client.call('GET', f'{JOB}/artifacts', token=token, status=200).body == ZIP


@pytest.mark.parametrize('method, address, status', [
    ('DELETE', f'{JOB}/artifacts', 204), ('POST', f'{JOB}/erase', 201),
    ('DELETE', '/api/v4/projects/1/artifacts', 202)])
def test_deleted_artifacts_are_gone_from_the_disk_too(ci, client, job, token, method, address, status):
    upload(client, job, status=201)
    ci.update_job(ci.authenticate_job(1, job.token), 'success')
    client.call(method, address, token=token, status=status)
    client.call('GET', f'{JOB}/artifacts', token=token, status=404)
    assert files_of(ci) == []


# -- names

HOSTILE = [
    '../../etc/passwd', '..\\..\\boot.ini', '..', '.', ' ', '/etc/passwd', 'C:\\x', 'a\x00b.zip', 'a"b.zip', "a'b.zip",
    'a;filename=b.zip', 'a%0d%0aX-Evil: 1', 'con', 'nul.zip', '-rf', 'ünïcödé €.zip', '\u202ezip.exe', 'a\tb', 'a\x7fb',
    '\U0001f600' * 300, 'a' * 4000, '~/.ssh/id', '$(reboot).zip', '<script>.zip', '%2e%2e%2f', '.hidden']


@pytest.mark.parametrize('name', HOSTILE, ids=lambda name: ascii(name)[:20])
def test_a_hostile_file_name_chooses_no_path_and_comes_back_in_one_valid_header(ci, client, job, token, name, tmp_path):
    ci.append_trace(ci.find_job(1), 0, b'x')
    before = {path for path in tmp_path.rglob('*') if 'artifacts' not in path.parts}
    quoted = name.replace('"', '%22')
    body = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{quoted}"\r\n\r\nabc\r\n--x--\r\n'.encode()
    client.call('POST', V4, data=body, status=201, headers={
        'JOB-TOKEN': job.token, 'Content-Type': 'multipart/form-data; boundary=x'})
    stored, = (path for path in (ci.data / 'artifacts').rglob('*') if path.is_file())
    assert re.fullmatch(r'0000/1-[0-9a-f]{16}', str(stored.relative_to(ci.data / 'artifacts')))
    assert {path for path in tmp_path.rglob('*') if 'artifacts' not in path.parts} == before
    answer = client.call('GET', f'{JOB}/artifacts', token=token, status=200)
    header, = answer.headers.getall('Content-Disposition')
    plain = re.fullmatch(r"attachment; filename=\"([A-Za-z0-9._ ()+-]+)\"; filename\*=UTF-8''[A-Za-z0-9._~%-]+", header)
    assert plain, header
    assert plain[1].strip(' .'), header
    assert 'X-Evil' not in answer.headers
    assert len(header) < 4096


@pytest.mark.parametrize('name', [b'a\r\nX-Evil: 1', b'\xff\xfe', b'\xed\xa0\x80', b'a\nb', b'a' * 20_000])
def test_a_file_name_that_is_no_text_is_refused_or_cleaned_but_never_an_error_of_ours(ci, client, job, token, name):
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="' + name + b'"\r\n\r\nabc\r\n--x--\r\n'
    answer = client.call('POST', V4, data=body, headers={
        'JOB-TOKEN': job.token, 'Content-Type': 'multipart/form-data; boundary=x'})
    assert answer.status_int in (201, 400)
    download = client.call('GET', f'{JOB}/artifacts', token=token, status=200 if answer.status_int == 201 else 404)
    assert 'X-Evil' not in download.headers


# -- downloads

def test_an_etag_names_the_content_and_saves_a_second_download(client, job, token):
    upload(client, job, status=201)
    etag = client.call('GET', f'{JOB}/artifacts', token=token, status=200).headers['ETag']
    assert etag == f'"{hashlib.sha256(ZIP).hexdigest()}"'
    for known, status in ((etag, 304), ('"other"', 200)):
        answer = client.call('GET', f'{JOB}/artifacts', token=token, headers={'If-None-Match': known}, status=status)
        assert answer.headers['ETag'] == etag
        assert answer.body == (b'' if status == 304 else ZIP)


@pytest.mark.parametrize('asked, status, part', [
    ('bytes=0-9', 206, slice(0, 10)), ('bytes=10-', 206, slice(10, None)), ('bytes=-5', 206, slice(-5, None)),
    ('bytes=0-99999999', 206, slice(0, None)), ('bytes=5-4', 200, slice(None)), ('bytes=99999999-', 416, None),
    ('bytes=-0', 416, None), ('bytes=0-0,2-2', 200, slice(None)), ('nonsense', 200, slice(None))])
def test_a_download_can_be_resumed_by_range(client, job, token, asked, status, part):
    upload(client, job, status=201)
    answer = client.call('GET', f'{JOB}/artifacts', token=token, headers={'Range': asked}, status=status)
    if status == 416:
        assert answer.headers['Content-Range'] == f'bytes */{len(ZIP)}'
        return
    assert answer.body == ZIP[part]
    assert answer.headers['Content-Length'] == str(len(ZIP[part]))
    start, stop, _ = part.indices(len(ZIP))
    assert answer.headers.get('Content-Range') == (f'bytes {start}-{stop - 1}/{len(ZIP)}' if status == 206 else None)


def test_if_range_sends_the_rest_of_the_same_content_and_the_whole_of_another(client, job, token):
    upload(client, job, status=201)
    etag = client.call('GET', f'{JOB}/artifacts', token=token).headers['ETag']
    for known, status, body in ((etag, 206, ZIP[4:]), ('"older"', 200, ZIP), (f'W/{etag}', 200, ZIP),
                                ('Wed, 21 Oct 2015 07:28:00 GMT', 200, ZIP)):
        answer = client.call('GET', f'{JOB}/artifacts', token=token, status=status,
                             headers={'Range': 'bytes=4-', 'If-Range': known})
        assert answer.body == body


def test_large_downloads_and_ranges_of_them_arrive_whole_through_a_real_socket(ci, job, token, server):
    content = random.Random(1).randbytes(5_000_000)
    part = ci.artifacts.receive()
    part.write(content)
    ci.store_artifacts(ci.authenticate_job(1, job.token), part)
    for asked, expected in ((None, content), ('bytes=1000000-3999999', content[1_000_000:4_000_000]),
                            ('bytes=-4500000', content[-4_500_000:])):
        with socket.create_connection((server.host, server.port)) as connection, connection.makefile('rb') as answer:
            connection.sendall(f'GET {JOB}/artifacts HTTP/1.0\r\nPRIVATE-TOKEN: {token}\r\n'.encode()
                               + (f'Range: {asked}\r\n'.encode() if asked else b'') + b'\r\n')
            head, _, body = answer.read().partition(b'\r\n\r\n')
        assert f'Content-Length: {len(expected)}'.encode() in head
        assert body == expected


# -- one file out of an archive

@pytest.fixture
def entries(ci, client, job):
    """Store an archive that holds files of every kind and finish its job."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as bundle:
        bundle.writestr('docs/', '')
        for name, method in (('docs/stored.txt', zipfile.ZIP_STORED), ('ünï €.txt', zipfile.ZIP_STORED),
                             ('deflated.html', zipfile.ZIP_DEFLATED), ('bzip2', zipfile.ZIP_BZIP2),
                             ('lzma.json', zipfile.ZIP_LZMA)):
            bundle.writestr(name, f'{name} ' * 100_000, method)
        bundle.writestr('../outside', 'outside')
    upload(client, job, buffer.getvalue(), status=201)
    ci.update_job(ci.authenticate_job(1, job.token), 'success')


@pytest.mark.parametrize('name, kind', [
    ('docs/stored.txt', 'text/plain'), ('deflated.html', 'text/html'), ('bzip2', 'application/octet-stream'),
    ('lzma.json', 'application/json'), ('ünï €.txt', 'text/plain')])
@pytest.mark.parametrize('base', [f'{JOB}/artifacts/{{}}', '/api/v4/projects/1/jobs/artifacts/main/raw/{}?job=test'])
def test_one_file_of_an_archive_is_served_alone_as_an_attachment(entries, client, token, name, kind, base):
    for spelling in (quote(name), quote(name, safe='')):
        answer = client.call('GET', base.format(spelling), token=token, status=200)
        assert answer.body.decode() == f'{name} ' * 100_000
        assert answer.headers['Content-Type'].partition(';')[0] == kind
        assert answer.headers['Content-Disposition'].startswith('attachment;')
        assert answer.headers['Content-Security-Policy'] == 'sandbox'
    part = client.call('GET', base.format(quote(name)), token=token, headers={'Range': 'bytes=2-4'}, status=206)
    assert part.body == (f'{name} ' * 2).encode()[2:5]


@pytest.mark.parametrize('name, status', [
    ('missing', 404), ('docs', 404), ('docs/', 404), ('DOCS/stored.txt', 404), ('docs//stored.txt', 404), ('*', 404),
    ('../outside', 400), ('..%2Foutside', 400), ('docs/../../outside', 400), ('%2Fetc%2Fpasswd', 400), ('a%00', 400),
    ('a%ff', 400)])
def test_what_is_no_file_of_the_archive_is_not_served(entries, client, token, name, status):
    client.call('GET', f'{JOB}/artifacts/{name}', token=token, status=status)


def test_serving_one_file_leaves_nothing_on_the_disk(ci, entries, client, token):
    before = files_of(ci)
    client.call('GET', f'{JOB}/artifacts/deflated.html', token=token, status=200)
    assert files_of(ci) == before


# -- hostile archives

def end_of_archive(entries, directory, *, offset=0):
    """Return an archive's end record, whose 16 and 32 bits cannot say more than this."""
    return struct.pack('<4s4H2LH', b'PK\5\6', 0, 0, entries & 0xffff, entries & 0xffff, directory, offset, 0)


def end64_of_archive(entries, directory, at):
    """Return the records that precede the end record of a large archive; `at` is where they stand."""
    return (struct.pack('<4sQ2H2L4Q', b'PK\6\6', 44, 45, 45, 0, 0, entries, entries, directory, 0)
            + struct.pack('<4sLQL', b'PK\6\7', 0, at, 1))


ENTRY = struct.pack('<4s4B4HL2L5H2L', b'PK\1\2', 20, 0, 20, 0, 0, 0, 0, 0x21, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b'a'
MANY = ENTRY * 1_000_000
FEWER = ENTRY * 300_000    # a directory that is small enough, with more entries than may be
CROWDED = {
    'a million entries': lambda: MANY + end64_of_archive(1_000_000, len(MANY), len(MANY)) + end_of_archive(
        0xffff, 0xffffffff),
    'a million entries, the old record calling them one': lambda: MANY + end64_of_archive(
        1_000_000, len(MANY), len(MANY)) + end_of_archive(1, 47),
    'a million entries, called one': lambda: MANY + end_of_archive(1, len(MANY)),
    'more entries than may be, called one': lambda: FEWER + end_of_archive(1, len(FEWER)),
    'a directory of 4 GiB': lambda: ENTRY + end_of_archive(1, 0xffffffff),
}


@pytest.mark.parametrize('kind', CROWDED)
def test_an_archive_of_too_many_entries_is_refused_before_they_are_read(ci, client, job, token, monkeypatch, kind):
    upload(client, job, CROWDED[kind](), status=201)
    read = []

    class Entry(zipfile.ZipInfo):
        def __init__(self, *given):
            super().__init__(*given)
            read.append(self)

    monkeypatch.setattr(zipfile, 'ZipInfo', Entry)
    answer = client.call('GET', f'{JOB}/artifacts/a', token=token, status=400)
    assert answer.json['message'].startswith('400 ')
    assert len(read) == 0


def test_an_archive_of_many_entries_that_may_be_is_still_served(ci, client, job, token):
    entries = b''.join(ENTRY[:28] + b'\5\0' + ENTRY[30:46] + b'%05d' % number for number in range(20_000))
    local = struct.pack('<4s5H3L2H', b'PK\3\4', 20, 0, 0, 0, 0x21, 0, 0, 0, 5, 0)
    content = local + b'00000' + entries
    upload(client, job, content + end_of_archive(20_000, len(entries), offset=35), status=201)
    assert client.call('GET', f'{JOB}/artifacts/00000', token=token, status=200).body == b''


def test_a_file_that_unpacks_to_more_than_the_limit_is_refused_and_not_unpacked(small):
    ci, claim = small
    client, token = Client(ci), ci.create_private_token()
    bomb = bytearray(archive(bomb=bytes(20_000_000)))
    assert len(bomb) < 100_000
    upload(client, claim, bytes(bomb), path=V1, status=201)
    client.call('GET', f'{JOB}/artifacts/bomb', token=token, status=413)
    at = bomb.index(b'PK\1\2')
    bomb[at + 24:at + 28] = (10).to_bytes(4, 'little')  # it now says that it unpacks to 10 bytes
    upload(client, claim, bytes(bomb), path=V1, status=201)
    client.call('GET', f'{JOB}/artifacts/bomb', token=token, status=400)
    assert files_of(ci) == [bytes(bomb)]


@pytest.mark.parametrize('content', [
    b'', b'PK', b'PK\5\6', b'not an archive' * 1000, ZIP[:-1], ZIP[:len(ZIP) // 2], ZIP[40:], b'\0' * 100_000,
    end_of_archive(1, 47), end_of_archive(1, 0), b'PK\5\6' * 20_000])
def test_what_is_no_archive_is_kept_as_it_is_and_single_files_of_it_are_refused(ci, client, job, token, content):
    upload(client, job, content, status=201)
    assert client.call('GET', f'{JOB}/artifacts', token=token, status=200).body == content
    assert client.call('GET', f'{JOB}/artifacts/one', token=token).status_int in (400, 404)


def test_an_archive_broken_in_any_way_is_never_an_error_of_ours(ci):
    chance = random.Random(1)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, 'w', method) as bundle:
            bundle.writestr('ö', 'content ' * 20)
        for _ in range(400):
            broken = bytearray(buffer.getvalue())
            for _ in range(chance.randrange(1, 5)):
                broken[chance.randrange(len(broken))] = chance.choice([0, 1, 0x7f, 0x80, 0xff, chance.randrange(256)])
            part = ci.artifacts.receive()
            part.write(broken)
            with contextlib.suppress(minici.BadRequest, minici.NotFound, minici.TooLarge):
                ci.artifacts.open_entry(ci.artifacts.store(1, part), 'ö')[0].close()


def test_an_encrypted_file_is_refused(client, job, token):
    locked = bytearray(ZIP)
    for at in (ZIP.index(b'PK\3\4') + 6, ZIP.index(b'PK\1\2') + 8):
        locked[at] |= 1
    upload(client, job, bytes(locked), status=201)
    client.call('GET', f'{JOB}/artifacts/one', token=token, status=400)


# -- what a crash leaves behind

def test_files_that_a_crash_left_behind_are_removed_after_an_hour_and_no_others(ci, client, job, clock):
    upload(client, job, status=201)
    stored, = (path for path in (ci.data / 'artifacts').rglob('*') if path.is_file())
    orphans = [stored.with_name('1-0123456789abcdef'), ci.artifacts.incoming / 'abc.part',
               ci.traces.path(1).with_name('1.part')]
    for orphan in orphans:
        orphan.write_bytes(b'half of something')
    orphans.append(ci.artifacts.incoming / 'clone.git')
    (orphans[3] / 'objects').mkdir(parents=True)
    long_ago = time.time() - 7200  # the files' own times are the system's
    os.utime(stored, (long_ago, long_ago))
    ci.sweep()
    assert [orphan.exists() for orphan in orphans] == [True] * 4
    for orphan in orphans:
        os.utime(orphan, (long_ago, long_ago))
    clock.advance(hours=1)
    ci.sweep()
    assert [orphan.exists() for orphan in orphans] == [False] * 4
    assert files_of(ci) == [ZIP]


def test_an_archive_whose_file_is_missing_answers_404(ci, client, job, token):
    upload(client, job, status=201)
    for path in (ci.data / 'artifacts').rglob('1-*'):
        path.unlink()
    client.call('GET', f'{JOB}/artifacts', token=token, status=404)
    client.call('GET', f'{JOB}/artifacts/one', token=token, status=404)
    client.call('DELETE', f'{JOB}/artifacts', token=token, status=204)


def test_artifacts_are_handed_to_the_jobs_after_theirs_alone(ci, client, project, runner):
    for _ in range(2):
        ci.create_pipeline(project, 'main', sha=SHA, content=TWO_STAGES)
    first, stranger = runner.claim(), runner.claim()
    upload(client, first, status=201)
    ci.update_job(ci.authenticate_job(1, first.token), 'success')
    second = runner.claim()
    assert [(row['id'], row['artifacts_filename'], row['artifacts_size']) for row in second.dependencies] == [
        (1, 'a.zip', len(ZIP))]
    assert client.call('GET', V4, headers={'JOB-TOKEN': second.token}, status=200).body == ZIP
    assert client.call('GET', V4, headers={'JOB-TOKEN': stranger.token}).status_int in (401, 403)
