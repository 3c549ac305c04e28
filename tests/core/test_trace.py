"""Traces: offsets, replacement, limits, what reaches the disk before the answer, and many writers at once."""

import errno
import json
import os
import random
import sqlite3
import subprocess
import threading
import urllib.parse
import urllib.request

import pytest
from support import SHA, Client, Runner, noting, python, record_disk, send_all

import minici

TRACES = {'v1': '/ci/api/v1/builds/{}/trace.txt', 'v4': '/api/v4/jobs/{}/trace'}
JOBS = {'v1': '/ci/api/v1/builds/1', 'v4': '/api/v4/jobs/1'}
EURO = 'one € and ünïcödé\n'.encode()


@pytest.fixture(params=TRACES)
def version(request):
    """Each of the two runner protocols in turn."""
    return request.param


def patch(client, claim, start, data, *, version='v4', content_range=None, status=None):
    """Send one chunk the way runners do."""
    end = max(start + len(data) - (version == 'v4'), 0)
    return client.call('PATCH', TRACES[version].format(claim.job['id']), data=data, status=status, headers={
        'JOB-TOKEN': claim.token, 'BUILD-TOKEN': claim.token, 'Content-Type': 'text/plain',
        'Content-Range': content_range or f'{start}-{end}'})


# -- offsets

def test_chunks_are_appended_and_each_answer_tells_the_length(ci, client, job, version):
    length = 0
    for chunk in (b'one\n', b'\x00\xff two\r\n', EURO, b'token=x&trace=y'):
        length += len(chunk)
        answer = patch(client, job, length - len(chunk), chunk, version=version, status=202)
        assert answer.headers['Range'] == f'0-{length}'
        assert answer.headers['Build-Status' if version == 'v1' else 'Job-Status'] == 'running'
        assert answer.body == b''
    assert ci.read_trace(1) == b'one\n\x00\xff two\r\n' + EURO + b'token=x&trace=y'


@pytest.mark.parametrize('start', [0, 2, 5, 6, 99])
def test_a_chunk_at_any_other_offset_answers_416_with_the_current_range(ci, client, job, version, start):
    patch(client, job, 0, b'four', version=version, status=202)
    answer = patch(client, job, start, b'more chunks', version=version, status=416)
    assert answer.headers['Range'] == '0-4'
    assert answer.json == {'error': '416 Range Not Satisfiable'}
    assert ci.read_trace(1) == b'four'


def test_the_range_of_an_empty_trace_is_still_told(client, job, version):
    assert patch(client, job, 5, b'late', version=version, status=416).headers['Range'] == '0-0'


def test_a_chunk_that_overlaps_is_never_appended_even_when_its_bytes_agree(ci, client, job, version):
    patch(client, job, 0, b'abcdef', version=version, status=202)
    assert patch(client, job, 3, b'defghi', version=version, status=416).headers['Range'] == '0-6'
    assert ci.read_trace(1) == b'abcdef'


def test_a_repeat_of_the_last_chunk_is_not_stored_twice(ci, client, job):
    for version, repeated in (('v1', 416), ('v4', 202)):
        start = len(ci.read_trace(1))
        patch(client, job, start, b'same\n', version=version, status=202)
        again = patch(client, job, start, b'same\n', version=version, status=repeated)
        assert again.headers['Range'] == f'0-{start + 5}'
    assert ci.read_trace(1) == b'same\nsame\n'


@pytest.mark.parametrize('end', ['0-5', '0-4', '0-4/5', '0-5/*', '0-0', '0-999', '0-'])
def test_the_end_of_a_content_range_does_not_count(client, job, version, end):
    patch(client, job, 0, b'12345', version=version, content_range=end, status=202)
    assert patch(client, job, 5, b'', version=version, content_range='5-4', status=202).headers['Range'] == '0-5'


@pytest.mark.parametrize('header', ['', '-5', 'x-5', '0', '0-x', '1e2-5', '-1-5', '0x0-5', '٣-5', '0-4/5/6', '0-4, 5-6',
                                    '9' * 40 + '-1'])
def test_a_missing_or_malformed_content_range_answers_400_and_writes_nothing(ci, client, job, version, header):
    headers = {'JOB-TOKEN': job.token, 'BUILD-TOKEN': job.token}
    if header:
        headers['Content-Range'] = header.encode().decode('latin-1')
    answer = client.call('PATCH', TRACES[version].format(1), data=b'12345', headers=headers, status=400)
    assert 'Content-Range' in answer.json['error']
    assert ci.read_trace(1) == b''


def test_offsets_are_bytes_and_a_character_may_be_cut_between_chunks(ci, client, job, token, version):
    for index in range(len(EURO)):
        patch(client, job, index, EURO[index:index + 1], version=version, status=202)
    shown = client.call('GET', '/api/v4/projects/1/jobs/1/trace', token=token, status=200)
    assert shown.text == EURO.decode()
    assert int(shown.headers['Content-Length']) == len(EURO)


def test_an_empty_chunk_is_a_heartbeat_at_the_right_offset_and_refused_elsewhere(ci, client, job, version, clock):
    patch(client, job, 0, b'line\n', version=version, status=202)
    clock.advance(500)
    assert patch(client, job, 5, b'', version=version, content_range='5-4', status=202).headers['Range'] == '0-5'
    patch(client, job, 3, b'', version=version, content_range='3-2', status=416)
    clock.advance(500)
    ci.sweep()
    assert ci.find_job(1)['status'] == 'running'
    assert ci.read_trace(1) == b'line\n'


# -- a whole trace in a PUT

def bodies(token, text):
    """Return one body of each kind a PUT may have, as arguments of `Client.call`."""
    urlencoded = {'headers': {'Content-Type': 'application/x-www-form-urlencoded'},
                  'data': urllib.parse.urlencode({'token': token, 'state': 'running', 'trace': text}).encode()}
    return {'json': {'json': {'token': token, 'state': 'running', 'trace': text}}, 'urlencoded': urlencoded,
            'multipart': {'form': {'token': token, 'state': 'running', 'trace': text}}}


@pytest.mark.parametrize('kind', ['json', 'urlencoded', 'multipart'])
@pytest.mark.parametrize('text', ['', 'two\n', EURO.decode(), 'a=b&c=%20+\r\n"\\\x1b[0m'])
def test_a_put_replaces_the_trace_and_chunks_go_on_from_there(ci, client, job, version, kind, text):
    patch(client, job, 0, b'something much longer than that\n', version=version, status=202)
    client.call('PUT', JOBS[version], status=200, **bodies(job.token, text)[kind])
    assert ci.read_trace(1) == text.encode()
    patch(client, job, len(text.encode()), b'more\n', version=version, status=202)
    assert ci.read_trace(1) == text.encode() + b'more\n'


@pytest.mark.parametrize('kind', ['json', 'urlencoded', 'multipart'])
def test_a_put_takes_a_trace_of_five_megabytes(ci, client, job, version, kind):
    text = ('a line of 32 characters with "§"\n' * 160_000)[:5_000_000]
    client.call('PUT', JOBS[version], status=200, **bodies(job.token, text)[kind])
    assert ci.read_trace(1) == text.encode()


def test_a_put_takes_a_trace_of_five_megabytes_through_a_real_socket(ci, job, server):
    text = 'x' * 79 + '\n'
    form = urllib.parse.urlencode({'token': job.token, 'trace': text * 62_500}).encode()
    request = urllib.request.Request(f'{server.url}/ci/api/v1/builds/1.json', form, method='PUT')
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
    assert ci.read_trace(1) == text.encode() * 62_500


def test_a_reader_of_a_replaced_trace_keeps_the_old_one_whole(ci, client, job):
    patch(client, job, 0, b'the old trace, read slowly\n', status=202)
    with ci.open_trace(1) as reader:
        assert reader.read(8) == b'the old '
        client.call('PUT', '/api/v4/jobs/1', json={'token': job.token, 'trace': 'new'}, status=200)
        assert reader.read() == b'trace, read slowly\n'
    assert ci.read_trace(1) == b'new'


@pytest.mark.parametrize('end', ['canceled', 'success', 'failed'])
def test_a_finished_job_takes_neither_chunks_nor_a_whole_trace(ci, client, job, version, end):
    patch(client, job, 0, b'before\n', status=202)
    if end == 'canceled':
        ci.cancel_job(ci.find_job(1))
    else:
        ci.update_job(ci.authenticate_job(1, job.token), end)
    told = 202 if version == 'v1' and end != 'failed' else 403  # runners before 1.8 heed nothing but a 403
    answer = patch(client, job, 7, b'after\n', version=version, status=told)
    assert answer.headers['Build-Status' if version == 'v1' else 'Job-Status'] == end
    assert answer.headers['Range'] == '0-7'
    client.call('PUT', JOBS[version], json={'token': job.token, 'state': 'running', 'trace': 'after'},
                status={'v1': 404, 'v4': 403}[version])
    assert ci.read_trace(1) == b'before\n'
    assert ci.find_job(1)['status'] == end


@pytest.mark.parametrize('change', ['canceled', 'claimed again'])
def test_a_job_lost_since_its_token_was_checked_takes_no_chunk_and_no_trace(ci, clock, job, runner, change):
    row = ci.authenticate_job(1, job.token)
    if change == 'canceled':
        ci.append_trace(row, 0, b'')
        ci.cancel_job(ci.find_job(1))
    else:
        clock.advance(120)
        assert runner.claim().job['id'] == 1
    with pytest.raises(minici.Forbidden):
        ci.append_trace(row, 0, b'too late\n')
    with pytest.raises(minici.Forbidden):
        ci.update_job(row, 'running', trace=b'too late\n')
    assert ci.read_trace(1) == b''


# -- the limit, and traces that are not there

@pytest.fixture
def small(tmp_path, clock):
    """A job whose trace may have ten bytes: the coordinator, a client and the claim."""
    with minici.Coordinator(tmp_path / 'ci.sqlite', clock=clock, fsync=False, max_trace_size=10) as ci:
        ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content={'test': {'script': ['yes']}})
        yield ci, Client(ci), Runner(ci).claim()


def test_a_trace_may_fill_its_limit_exactly(small, version):
    ci, client, claim = small
    patch(client, claim, 0, b'0123456789', version=version, status=202)
    patch(client, claim, 10, b'', version=version, content_range='10-9', status=202)
    assert ci.find_job(1)['status'] == 'running'


@pytest.mark.parametrize('start, data, kept', [
    (8, b'abcdef', b'01234567ab'), (0, b'01234567890', b'01234567'), (10 ** 12, b'x', b'01234567')])
def test_a_trace_beyond_its_limit_keeps_what_fits_fails_the_job_and_stops_its_runner(
        small, version, start, data, kept):
    ci, client, claim = small
    patch(client, claim, 0, b'01234567', version=version, status=202)
    answer = patch(client, claim, start, data, version=version, status=403)
    assert answer.headers['Build-Status' if version == 'v1' else 'Job-Status'] == 'failed'
    assert answer.headers['Range'] == f'0-{len(kept)}'
    assert (ci.find_job(1)['status'], ci.find_job(1)['failure_reason']) == ('failed', 'trace_size_exceeded')
    assert ci.read_trace(1) == kept


def test_a_first_chunk_beyond_the_limit_is_kept_as_far_as_it_fits(small, version):
    ci, client, claim = small
    patch(client, claim, 0, b'a first chunk that is longer than the limit', version=version, status=403)
    assert ci.read_trace(1) == b'a first ch'


def test_a_whole_trace_beyond_the_limit_fails_the_job_too(small, version):
    ci, client, claim = small
    client.call('PUT', JOBS[version], json={'token': claim.token, 'state': 'success', 'trace': 'x' * 11},
                status={'v1': 404, 'v4': 403}[version])
    assert (ci.find_job(1)['status'], ci.find_job(1)['failure_reason']) == ('failed', 'trace_size_exceeded')
    assert ci.read_trace(1) == b'x' * 10


def test_a_job_that_wrote_nothing_has_an_empty_trace_until_it_is_erased(ci, client, job, token):
    ci.update_job(ci.authenticate_job(1, job.token), 'success')
    assert not ci.traces.path(1).exists()
    assert ci.read_trace(1) == b''
    ci.erase_job(ci.find_job(1))
    with pytest.raises(minici.NotFound):
        ci.read_trace(1)
    with pytest.raises(minici.Forbidden):
        ci.erase_job(ci.find_job(1))


def test_a_trace_is_watched_before_its_first_byte_too(ci, clock, job):
    ci.traces.looked_at(1)
    assert ci.traces.is_watched(1)
    assert not ci.traces.path(1).exists()
    ci.append_trace(job.job, 0, b'line\n')
    assert ci.traces.is_watched(1)
    clock.advance(61)
    assert not ci.traces.is_watched(1)
    ci.append_trace(job.job, 5, b'line\n')
    assert not ci.traces.is_watched(1)


def test_a_trace_can_be_read_where_nothing_can_be_written(ci, client, job, token, monkeypatch):
    patch(client, job, 0, b'line\n', status=202)

    def read_only(*_, **__):
        raise OSError(errno.EROFS, 'read-only file system')

    for name in ('utime', 'mkdir'):
        monkeypatch.setattr(os, name, read_only)
    monkeypatch.setattr(ci.traces, '_locked', read_only)
    assert client.call('GET', '/api/v4/projects/1/jobs/1/trace', token=token, status=200).body == b'line\n'


def test_a_trace_is_there_from_the_claim_until_it_is_erased(ci, client, pipeline, runner, token):
    path = '/api/v4/projects/1/jobs/1/trace'
    assert client.call('GET', path, token=token, status=404).json == {'message': '404 Trace Not Found'}
    claim = runner.claim()
    assert client.call('GET', path, token=token, status=200).body == b''
    patch(client, claim, 0, b'line\n', status=202)
    ci.update_job(ci.authenticate_job(1, claim.token), 'success')
    assert client.call('GET', path, token=token, status=200).body == b'line\n'
    ci.erase_job(ci.find_job(1))
    client.call('GET', path, token=token, status=404)
    for version in TRACES:
        patch(client, claim, 5, b'more\n', version=version, status=403)
    client.call('GET', path, token=token, status=404)


# -- reading

@pytest.mark.parametrize('asked, status, body, content_range', [
    (None, 200, b'0123456789', None),
    ('bytes=0-', 206, b'0123456789', 'bytes 0-9/10'),
    ('bytes=4-', 206, b'456789', 'bytes 4-9/10'),
    ('bytes=4-6', 206, b'456', 'bytes 4-6/10'),
    ('bytes=4-99', 206, b'456789', 'bytes 4-9/10'),
    ('bytes=-3', 206, b'789', 'bytes 7-9/10'),
    ('bytes=-99', 206, b'0123456789', 'bytes 0-9/10'),
    ('bytes=10-', 416, None, 'bytes */10'),
    ('bytes=99-100', 416, None, 'bytes */10'),
    ('bytes=6-4', 200, b'0123456789', None),
    ('bytes=x-', 200, b'0123456789', None),
    ('lines=1-2', 200, b'0123456789', None),
    ('bytes=0-1,3-4', 200, b'0123456789', None),
])
def test_a_trace_can_be_followed_by_range(client, job, token, asked, status, body, content_range):
    patch(client, job, 0, b'0123456789', status=202)
    answer = client.call('GET', '/api/v4/projects/1/jobs/1/trace', token=token, status=status,
                         headers={'Range': asked} if asked else {})
    assert answer.headers.get('Content-Range') == content_range
    if body is not None:
        assert answer.body == body
        assert answer.headers['Content-Type'] == 'text/plain; charset=utf-8'


def test_looking_at_a_trace_is_no_sign_of_life_of_its_runner(ci, client, clock, job, token):
    clock.advance(119)
    client.call('GET', '/api/v4/projects/1/jobs/1/trace', token=token, status=200)
    clock.advance(1)
    ci.sweep()
    assert ci.find_job(1)['status'] == 'pending'


def test_a_reader_sees_a_trace_that_only_grows(ci, client, job, token):
    whole, seen, done = os.urandom(50_000), [], threading.Event()

    def read():
        while not done.is_set():
            seen.append(ci.read_trace(1))

    reader = threading.Thread(target=read)
    reader.start()
    for start in range(0, len(whole), 500):
        patch(client, job, start, whole[start:start + 500], status=202)
        patch(client, job, 0, b'a chunk from the past', status=416)
    done.set()
    reader.join()
    assert [len(text) for text in seen] == sorted(len(text) for text in seen)
    assert all(whole.startswith(text) for text in seen)
    assert ci.read_trace(1) == whole


# -- what reaches the disk, and when

def test_no_chunk_and_no_heartbeat_writes_to_the_database(ci, client, job, version):
    watcher = sqlite3.connect(ci.db.path)
    before = watcher.execute('PRAGMA data_version').fetchone()
    for index in range(50):
        patch(client, job, index, b'x' if index % 5 else b'y', version=version, status=202)
        patch(client, job, index, b'stale, of another length', version=version, status=416)
        patch(client, job, index + 1, b'', version=version, status=202)
    assert watcher.execute('PRAGMA data_version').fetchone() == before
    watcher.close()
    assert len(ci.read_trace(1)) == 50


@pytest.fixture
def events(monkeypatch):
    """What happened in which order: flushes, renames and answers."""
    return record_disk(monkeypatch)


@pytest.fixture
def durable(tmp_path, request, events):
    """A claimed job of a coordinator with or without fsync, behind a client that notes each answer."""
    with minici.Coordinator(tmp_path / 'ci.sqlite', fsync=request.param) as ci:
        ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content={'test': {'script': ['make']}})
        claim = Runner(ci).claim()
        events.clear()
        path, client = ci.traces.path(1), Client(ci, noting(minici.create_app(ci), events))
        yield client, claim, lambda: (path.stat().st_ino, path.parent.stat().st_ino, path.parent.parent.stat().st_ino)


@pytest.mark.parametrize('durable', [True], indirect=True)
def test_the_bytes_of_a_chunk_are_flushed_before_it_is_acknowledged(durable, events):
    client, claim, inodes = durable
    patch(client, claim, 0, b'one\n')
    file, folder, traces = inodes()
    assert events == [('fsync', file, 4), ('fsync', folder, 0), ('fsync', traces, 0), ('answer', '202')]
    events.clear()
    patch(client, claim, 4, b'two\n')
    assert events == [('fsync', file, 8), ('answer', '202')]


@pytest.mark.parametrize('durable', [True], indirect=True)
def test_a_whole_trace_is_flushed_renamed_and_its_folder_flushed_before_it_is_acknowledged(durable, events):
    client, claim, inodes = durable
    client.call('PUT', '/api/v4/jobs/1', json={'token': claim.token, 'trace': 'whole\n'}, status=200)
    file, folder, traces = inodes()
    assert events == [('fsync', file, 6), ('rename', '1.log'), ('fsync', folder, 0), ('fsync', traces, 0),
                      ('answer', '200')]


@pytest.mark.parametrize('durable', [False], indirect=True)
def test_a_throw_away_database_never_waits_for_the_disk(durable, events):
    client, claim, _ = durable
    patch(client, claim, 0, b'one\n', status=202)
    client.call('PUT', '/api/v4/jobs/1', json={'token': claim.token, 'state': 'success', 'trace': 'two\n'}, status=200)
    assert [event for event in events if event[0] == 'fsync'] == []


def test_short_writes_are_completed(ci, client, job, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, 'write', lambda handle, data: write(handle, data[:7]))
    patch(client, job, 0, EURO, status=202)
    assert ci.read_trace(1) == EURO


@pytest.mark.parametrize('call', ['write', 'fsync'])
def test_a_chunk_that_the_disk_refuses_answers_503_and_can_be_sent_again(tmp_path, monkeypatch, call):
    with minici.Coordinator(tmp_path / 'ci.sqlite') as ci:
        ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content={'test': {'script': ['make']}})
        client, claim, write = Client(ci), Runner(ci).claim(), os.write
        patch(client, claim, 0, b'before\n', status=202)

        def fail(handle, data=b''):
            if len(data) > 10:
                return write(handle, data[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as trouble:
            trouble.setattr(os, call, fail)
            answer = patch(client, claim, 7, b'a chunk in two pieces\n', status=503)
        assert answer.headers['Retry-After'].isdecimal()
        assert ci.read_trace(1) == b'before\n'
        patch(client, claim, 7, b'a chunk in two pieces\n', status=202)
        assert ci.read_trace(1) == b'before\na chunk in two pieces\n'


# -- many writers

def interrupt(monkeypatch, action):
    """Have `action` called within the next write to a file, before its bytes go out."""
    write, actions = os.write, [action]

    def interrupted(handle, data):
        if actions:
            actions.pop()()
        return write(handle, data)

    monkeypatch.setattr(os, 'write', interrupted)


@pytest.mark.parametrize('posix', [True, False])
def test_a_chunk_from_another_thread_waits_for_the_one_that_is_being_written(ci, job, monkeypatch, posix):
    if not posix:
        monkeypatch.setattr(minici, 'fcntl', None)
    row, outcome = ci.authenticate_job(1, job.token), []

    def append():
        try:
            outcome.append(ci.append_trace(row, 0, b'from the thread\n'))
        except minici.RangeMismatch as mismatch:
            outcome.append(('too late', mismatch.size))

    thread = threading.Thread(target=append)
    interrupt(monkeypatch, lambda: (thread.start(), thread.join(0.2)))
    assert ci.append_trace(row, 0, b'first\n') == 6
    thread.join()
    assert outcome == [('too late', 6)]
    assert ci.read_trace(1) == b'first\n'


def test_a_chunk_from_another_process_waits_for_the_one_that_is_being_written(ci, job, tmp_path, monkeypatch):
    (tmp_path / 'text').write_bytes(b'first and more from the process\n')
    process = python(WRITERS, ci.db.path, job.token, tmp_path / 'text', 1)
    assert process.stdout.readline() == 'ready\n'

    def let_it_try():
        process.stdin.write('go\n')
        process.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)

    interrupt(monkeypatch, let_it_try)
    assert ci.append_trace(ci.authenticate_job(1, job.token), 0, b'first ') == 6
    process.communicate()
    assert ci.read_trace(1) == b'first and more from the process\n'


WRITERS = """
import sys
from support import send_all
import minici

with minici.Coordinator(sys.argv[1], fsync=False) as ci:
    job, text = ci.authenticate_job(1, sys.argv[2]), open(sys.argv[3], 'rb').read()
    print('ready', flush=True)
    sys.stdin.readline()
    send_all(ci, job, text, sys.argv[4])
    print('"done"')
"""


def test_writers_with_one_token_in_several_threads_and_processes_leave_one_identical_trace(ci, job, tmp_path):
    text = random.Random(1).randbytes(60_000)
    (tmp_path / 'text').write_bytes(text)
    processes = [python(WRITERS, ci.db.path, job.token, tmp_path / 'text', number) for number in range(2)]
    for process in processes:
        assert process.stdout.readline() == 'ready\n'
    row = ci.authenticate_job(1, job.token)
    threads = [threading.Thread(target=send_all, args=[ci, row, text, number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for process in processes:
        assert json.loads(process.communicate('go\n', timeout=60)[0]) == 'done'
    for thread in threads:
        thread.join()
    assert ci.read_trace(1) == text


def test_sixty_four_jobs_patched_in_parallel_never_mix(ci, project):
    content = {f'job {index}': {'script': ['make']} for index in range(64)}
    ci.create_pipeline(project, 'main', sha=SHA, content=content)
    runner = Runner(ci)
    claims = [runner.claim() for _ in range(64)]
    app = minici.create_app(ci)

    def send(worker):
        client = Client(ci, app)
        for index in range(20):
            for claim in claims[worker::8]:
                line = f'{claim.job["name"]:>7}\n'.encode()
                patch(client, claim, index * len(line), line, status=202)

    threads = [threading.Thread(target=send, args=[worker]) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for claim in claims:
        assert ci.read_trace(claim.job['id']) == f'{claim.job["name"]:>7}\n'.encode() * 20
