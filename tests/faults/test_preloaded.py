"""Deaths, power cuts, disk errors and the order of answers, seen below Python: SQLite's calls are among them.

Only the full form runs these: they need a C compiler. `test_deaths.py`, `test_power.py` and `test_errors.py` have the
short forms.
"""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time

import preload
import pytest
import workload
from support import FORM, UPLOAD, Served, archive, call, until
from test_deaths import HERE, mortals

import minici


@pytest.fixture(scope='module')
def library(tmp_path_factory):
    return preload.library(tmp_path_factory.mktemp('library'))


@pytest.mark.parametrize('kind, files', [('rename', 10), ('unlink', 10), ('fsync', 1), ('pwrite', 1)])
def test_a_process_killed_at_the_nth_fsync_rename_pwrite_or_unlink_loses_nothing(tmp_path, library, figures, kind,
                                                                                 files):
    token = workload.prepare(tmp_path / 'ci.sqlite', jobs=6000)
    lines, died, points = [], 0, range(1, 201)
    with mortals(LD_PRELOAD=str(library)) as die:
        for at in points:
            acknowledged = tmp_path / f'{at}.acknowledged'
            died += not die(tmp_path / 'ci.sqlite', acknowledged, token, at, FAULT_ROOT=str(tmp_path),
                            FAULT_KILL=f'{kind}:{at}', FAULT_FILES=str(files))
            fresh = workload.Acknowledged.read(acknowledged) if acknowledged.exists() else []
            lines += fresh
            with minici.Coordinator(tmp_path / 'ci.sqlite') as ci:
                assert workload.verify(ci, fresh) == [], (kind, at)
    with minici.Coordinator(tmp_path / 'ci.sqlite') as ci:
        assert workload.verify(ci, lines) == []
    assert died == len(points)
    figures('n = 1..200, 0 lost', f'{died} deaths at the n-th {kind}, SQLite\'s included: {len(lines):,} '
            'acknowledgements, 0 lost')


def journal_of(root, library, steps):
    """Work below `root` with a journal; return the disk before the work and the records of it."""
    token = workload.prepare(root / 'ci.sqlite')
    disk, journal = preload.Disk(str(root)), root.with_suffix('.journal')
    subprocess.run([sys.executable, HERE / 'workload.py', root / 'ci.sqlite', root.with_suffix('.marks'), token, '7',
                    str(steps)], env={**os.environ, 'LD_PRELOAD': str(library), 'FAULT_ROOT': str(root),
                                      'FAULT_JOURNAL': str(journal)}, check=True, capture_output=True)
    return disk, list(preload.records(journal))


def test_after_a_power_cut_at_any_point_everything_acknowledged_is_there(tmp_path, library, figures):
    root = tmp_path / 'disk'
    root.mkdir()
    disk, records = journal_of(root, library, 400)
    assert {kind for kind, *_ in records} >= {'create', 'write', 'fsync', 'rename', 'unlink', 'mkdir'}
    points, started = preload.chances(3, 500, len(records)), 0
    lines, chance = [], random.Random(4)
    for number, (kind, name, other, offset, data) in enumerate(records, 1):
        if name.endswith('.marks'):
            lines.append(json.loads(data)) if kind == 'write' else None
        else:
            disk.apply(kind, name, other, offset, data)
        if number not in points:
            continue
        after = tmp_path / 'after'
        after.mkdir()
        disk.build(str(root), after, chance if started % 2 else None)
        with minici.Coordinator(after / 'ci.sqlite') as ci:
            assert workload.verify(ci, lines) == [], (number, kind, name)
            started += 1
        shutil.rmtree(after)
    acknowledged = sum(line[0] not in ('uploading', 'erasing') for line in lines)
    assert acknowledged > 200
    figures('500 of 500 start, 0 acknowledged bytes lost',
            f'{started} of {len(points)} start after a cut, {len(records):,} records, {acknowledged} acknowledgements, '
            '0 lost')


def test_every_durable_answer_leaves_after_what_it_tells_of_is_on_disk(tmp_path, library, figures, monkeypatch):
    root = tmp_path / 'disk'
    root.mkdir()
    token = workload.prepare(root / 'ci.sqlite')
    disk, journal = preload.Disk(str(root)), tmp_path / 'journal'
    for name, value in (('LD_PRELOAD', library), ('FAULT_ROOT', root), ('FAULT_JOURNAL', journal)):
        monkeypatch.setenv(name, str(value))
    with Served(root / 'ci.sqlite') as server, contextlib.closing(server.connect()) as connection:
        monkeypatch.undo()
        sent = drive(connection, token)
    answers, late = 0, []
    for kind, name, other, offset, data in preload.records(journal):
        if kind != 'answer':
            disk.apply(kind, name, other, offset, data)
        elif data[9:12] in (b'200', b'201', b'202'):
            answers += 1
            dirty = {path for path in disk.dirty() if not path.endswith(('.part', '.lock', '.log-shm', 'ci.log'))
                     and '/tmp' not in path and '/locks' not in path}
            late += [(answers, sorted(dirty))] if dirty else []
    assert answers == sent
    assert late == []
    figures('100 %', f'{answers} of {answers} answers left after everything was on disk')


def drive(connection, token):
    """Claim, send traces, upload and finish over a connection; return how many answers said that it was done."""
    done = 0
    for _ in range(30):
        status, _, body = call(connection, 'POST', '/api/v4/jobs/request', json.dumps({'token': token}),
                               {'Content-Type': 'application/json'})
        assert status == 201
        job, size = json.loads(body), 0
        own = {'JOB-TOKEN': job['token']}
        for _ in range(3):
            status, *_ = call(connection, 'PATCH', f'/api/v4/jobs/{job["id"]}/trace', b'x' * 500, {
                **own, 'Content-Range': f'{size}-{size + 499}'})
            assert status == 202
            size += 500
        status, *_ = call(connection, 'POST', f'/api/v4/jobs/{job["id"]}/artifacts',
                          archive(a=str(job['id'])).join(UPLOAD), {**own, **FORM})
        assert status == 201
        status, *_ = call(connection, 'PUT', f'/api/v4/jobs/{job["id"]}',
                          json.dumps({'token': job['token'], 'state': 'success'}), {'Content-Type': 'application/json'})
        assert status == 200
        done += 6
    return done


@pytest.mark.parametrize('number', [5, 28, 122, 24])
def test_an_error_of_the_disk_below_everything_is_503_and_passes(tmp_path, library, figures, monkeypatch, number):
    root = tmp_path / 'disk'
    root.mkdir()
    token = workload.prepare(root / 'ci.sqlite')
    control = tmp_path / 'error'
    for name, value in (('LD_PRELOAD', library), ('FAULT_ROOT', root), ('FAULT_ERROR', control)):
        monkeypatch.setenv(name, str(value))
    with Served(root / 'ci.sqlite') as server:
        monkeypatch.undo()
        with contextlib.closing(server.connect()) as connection:
            drive(connection, token)
            job = json.loads(call(connection, 'POST', '/api/v4/jobs/request', json.dumps({'token': token}),
                                  {'Content-Type': 'application/json'})[2])
        own = {'JOB-TOKEN': job['token']}
        patch = ('PATCH', f'/api/v4/jobs/{job["id"]}/trace', b'x' * 700_000, {**own, 'Content-Range': '0-699999'})
        upload = ('POST', f'/api/v4/jobs/{job["id"]}/artifacts',
                  archive(a=os.urandom(700_000)).join(UPLOAD), {**own, **FORM})
        claim = ('POST', '/api/v4/jobs/request', json.dumps({'token': token}), {'Content-Type': 'application/json'})
        state = ('PUT', f'/api/v4/jobs/{job["id"]}', json.dumps({'token': job['token'], 'state': 'success'}),
                 {'Content-Type': 'application/json'})
        (tmp_path / 'writing').write_text(str(number))
        (tmp_path / 'writing').rename(control)
        statuses = [one(server, request) for request in (patch, upload, claim, state) * 2]
        control.unlink()
        began = time.monotonic()
        recovered = [until(lambda request=request: one(server, request) in (201, 202, 200))
                     for request in (patch, upload, claim, state)]
        took = time.monotonic() - began
    assert set(statuses) == {503}
    assert all(recovered)
    assert took < 15
    with minici.Coordinator(root / 'ci.sqlite') as ci:
        assert [finding.text for finding in ci.check(checksums=True) if 'no row' not in finding.text] == []
        attempts = {row['attempts'] for row in ci.list_jobs(limit=1000) if row['status'] == 'running'}
    assert attempts <= {1}
    figures('only 503, 0 burned jobs, goes on within 5 s of relief',
            f'{os.strerror(number)}: {len(statuses)} of {len(statuses)} answers 503, '
            f'all well {took:.1f} s after relief')


def one(server, request):
    """Send a request on a connection of its own; return its status, 0 for a reset."""
    connection = server.connect()
    try:
        status, *_ = call(connection, *request)
        return status
    except OSError:
        return 0
    finally:
        connection.close()
