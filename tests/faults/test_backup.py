"""Copies of everything, taken while it is in use, brought back, and compared with the files."""

import contextlib
import errno
import hashlib
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading

import pytest
from support import PLAIN, SHA, Client, Runner, archive

import minici


def filled(ci, count=3):
    """Make `count` finished jobs with traces and artifacts and one that runs; return the running job."""
    project, runner = ci.create_project('group/demo'), Runner(ci)
    for number in range(count + 1):
        ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
        claim = runner.claim()
        job = ci.authenticate_job(claim.job['id'], claim.token)
        ci.append_trace(job, 0, b'line of %d\n' % number)
        with_artifact(ci, job, archive(a=str(number)))
        if number < count:
            ci.update_job(job, 'success')
    return job


def with_artifact(ci, job, content, **options):
    part = ci.artifacts.receive()
    part.write(content)
    ci.store_artifacts(job, part, **options)


def opened(directory):
    return minici.Coordinator(directory / 'minici.sqlite', fsync=False)


def files(directory):
    """Return every file below a directory: its content by its name."""
    return {path.relative_to(directory).as_posix(): path.read_bytes()
            for path in directory.rglob('*') if path.is_file()}


def modes(directory):
    return {stat.S_IMODE(path.stat().st_mode) for path in directory.rglob('*')}


# -- backup

def test_a_backup_holds_database_traces_and_artifacts_and_can_be_served_as_it_is(ci, tmp_path):
    filled(ci)
    ci.backup(tmp_path / 'copy')
    assert modes(tmp_path / 'copy') == {0o600, 0o700}
    with opened(tmp_path / 'copy') as copy:
        assert [copy.read_trace(number) for number in (1, 2, 3, 4)] == [b'line of %d\n' % n for n in range(4)]
        for number in (1, 2, 3, 4):
            with copy.open_artifacts(number)[1] as file:
                assert hashlib.sha256(file.read()).hexdigest() == ci.find_artifact(number)['sha256']
        assert copy.check(checksums=True) == []


def test_what_happens_after_a_backup_does_not_change_it(ci, tmp_path):
    job = filled(ci)
    ci.backup(tmp_path / 'copy')
    before = files(tmp_path / 'copy')
    ci.append_trace(job, 10, b'more\n')
    ci.update_job(job, 'success', trace=b'another\n')
    ci.erase_job(ci.find_job(1))
    ci.delete_pipelines([ci.find_pipeline(2)])
    assert files(tmp_path / 'copy') == before


def test_what_happens_in_a_served_backup_does_not_change_the_original(ci, tmp_path):
    job = filled(ci)
    ci.backup(tmp_path / 'copy')
    with opened(tmp_path / 'copy') as copy:
        copy.append_trace(copy.find_job(job['id']), 10, b'only here\n')
        copy.erase_job(copy.find_job(1))
    assert ci.read_trace(job['id']) == b'line of 3\n'
    assert ci.read_trace(1) == b'line of 0\n'


def test_files_of_finished_jobs_are_links_and_of_running_ones_copies(ci, tmp_path):
    filled(ci)
    ci.backup(tmp_path / 'copy')
    copied = tmp_path / 'copy' / 'minici-data' / 'traces' / '0000'
    linked = {number: os.path.samefile(copied / f'{number}.log', ci.traces.path(number)) for number in (1, 2, 3, 4)}
    assert linked == {1: True, 2: True, 3: True, 4: False}


def test_where_links_are_impossible_files_are_copied(ci, tmp_path, monkeypatch):
    filled(ci)

    def no_link(*names, **options):
        raise OSError(errno.EXDEV, 'Invalid cross-device link')

    monkeypatch.setattr(minici.os, 'link', no_link)
    ci.backup(tmp_path / 'copy')
    with opened(tmp_path / 'copy') as copy:
        assert copy.check(checksums=True) == []
        assert copy.read_trace(1) == b'line of 0\n'


def test_a_backup_does_not_replace_what_is_there_unless_it_is_told_to(ci, tmp_path):
    ci.backup(tmp_path / 'copy')
    before = files(tmp_path / 'copy')
    filled(ci)
    with pytest.raises(minici.Conflict, match='--force'):
        ci.backup(tmp_path / 'copy')
    assert files(tmp_path / 'copy') == before
    ci.backup(tmp_path / 'copy', force=True)
    with opened(tmp_path / 'copy') as copy:
        assert copy.read_trace(1) == b'line of 0\n'
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith('copy')) == ['copy']


@pytest.mark.parametrize('broken', ['sync_tree', 'sync_path', 'link_or_copy', 'replace_directory'])
def test_a_backup_that_fails_leaves_nothing_behind_and_keeps_the_older_one(ci, tmp_path, monkeypatch, broken):
    filled(ci)
    ci.backup(tmp_path / 'copy')
    before = files(tmp_path / 'copy')

    def full(*values, **options):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(minici, broken, full)
        with pytest.raises(OSError, match='No space left'):
            ci.backup(tmp_path / 'copy', force=True)
    assert files(tmp_path / 'copy') == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith('copy')) == ['copy']


def test_backups_taken_while_artifacts_come_and_go_are_complete(ci, tmp_path):
    stop, failures = threading.Event(), []
    project, runner = ci.create_project('group/demo'), Runner(ci)

    def work():
        chance = random.Random(1)
        while not stop.is_set():
            pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
            claim = runner.claim()
            job = ci.authenticate_job(claim.job['id'], claim.token)
            for _ in range(3):
                with_artifact(ci, job, chance.randbytes(1000), replace=True)
            ci.append_trace(job, 0, chance.randbytes(1000))
            ci.update_job(job, 'success')
            if chance.random() < 0.5:
                ci.delete_pipelines([pipeline])

    def guarded():
        try:
            work()
        except Exception as error:
            failures.append(error)

    worker = threading.Thread(target=guarded)
    worker.start()
    try:
        for number in range(8):
            ci.backup(tmp_path / f'copy-{number}')
    finally:
        stop.set()
        worker.join()
    assert failures == []
    for number in range(8):
        with opened(tmp_path / f'copy-{number}') as copy:
            assert copy.check(checksums=True) == []


def test_a_backup_is_complete_though_artifacts_are_replaced_during_each_copy_of_the_database(ci, tmp_path, monkeypatch):
    job, copies, replaced = filled(ci), [], []
    monkeypatch.setattr(minici, 'LOCK_TIMEOUT', 0.05)
    copy_to = ci.db.copy_to

    def replace():
        with contextlib.suppress(minici.Busy), minici.Coordinator(ci.db.path, ci.data, fsync=False) as other:
            with_artifact(other, job, os.urandom(1000), replace=True)
            replaced.append(job)

    def copy(target):
        replace()
        copy_to(target)
        copies.append(target)
        replace()

    monkeypatch.setattr(ci.db, 'copy_to', copy)
    ci.backup(tmp_path / 'copy')
    assert len(copies) == minici.BACKUP_TRIES + 1
    assert len(replaced) == 2 * minici.BACKUP_TRIES
    with opened(tmp_path / 'copy') as copied:
        assert copied.check(checksums=True) == []


def test_an_artifact_that_is_missing_prevents_no_backup_and_is_told(ci, tmp_path, caplog):
    filled(ci)
    next(ci.data.glob('artifacts/*/*')).unlink()
    ci.backup(tmp_path / 'copy')
    assert 'lacks the files of 1 artifacts' in caplog.text
    with opened(tmp_path / 'copy') as copied:
        assert len(copied.check()) == len(ci.check()) == 1


# -- restore

def command(*arguments):
    return minici.main([str(argument) for argument in arguments])


def test_a_restored_backup_is_what_was_there(ci, tmp_path, capsys):
    filled(ci)
    assert command('--db', ci.db.path, 'backup', tmp_path / 'copy') == 0
    assert command('--db', tmp_path / 'new.sqlite', 'restore', tmp_path / 'copy') == 0
    with minici.Coordinator(tmp_path / 'new.sqlite') as new:
        assert new.registration_token == ci.registration_token
        assert [new.read_trace(number) for number in (1, 2, 3, 4)] == [b'line of %d\n' % n for n in range(4)]
        assert new.check(checksums=True) == []
    assert {path.name for path in tmp_path.iterdir()} >= {'new.sqlite', 'new-data'}
    assert modes(tmp_path / 'new-data') == {0o600, 0o700}
    shutil.rmtree(tmp_path / 'copy')
    assert (tmp_path / 'new-data' / 'traces' / '0000' / '1.log').read_bytes() == b'line of 0\n'


def test_a_restored_database_does_not_replay_what_an_older_one_left_in_its_log(ci, tmp_path, capsys):
    filled(ci)
    ci.backup(tmp_path / 'copy')
    script = ('import minici, os, sys\n'
              'ci = minici.Coordinator(sys.argv[1])\n'
              '[ci.create_project(f"late-{number}") for number in range(30)]\n'
              'os.kill(os.getpid(), 9)\n')
    old = tmp_path / 'old.sqlite'
    subprocess.run([sys.executable, '-c', script, old], check=False)
    assert (tmp_path / 'old.sqlite-wal').stat().st_size > 0
    assert command('--db', old, 'restore', tmp_path / 'copy') == 1
    assert '--force' in capsys.readouterr().err
    assert (tmp_path / 'old.sqlite-wal').exists()
    assert command('--db', old, 'restore', tmp_path / 'copy', '--force') == 0
    with minici.Coordinator(old) as restored:
        assert [row['path'] for row in restored.list_projects()[0]] == ['group/demo']
        assert restored.check() == []


def test_a_database_that_a_server_uses_is_not_replaced(ci, tmp_path, capsys):
    ci.backup(tmp_path / 'copy')
    with minici.Server(ci):
        assert command('--db', ci.db.path, 'restore', tmp_path / 'copy', '--force') == 1
    assert 'stop it first' in capsys.readouterr().err


@pytest.mark.parametrize('kind', ['nothing', 'a file', 'an empty directory', 'no database'])
def test_what_is_no_backup_is_not_restored(tmp_path, kind, capsys):
    source = tmp_path / 'copy'
    if kind == 'a file':
        source.write_text('x')
    elif kind != 'nothing':
        source.mkdir()
    if kind == 'no database':
        (source / 'minici.sqlite').write_text('x')
    assert command('--db', tmp_path / 'new.sqlite', 'restore', source) == 1
    assert 'is not a backup' in capsys.readouterr().err
    assert [path for path in tmp_path.iterdir() if path.name.startswith('new')] == []


def test_a_damaged_backup_is_not_restored_and_what_was_there_stays(ci, tmp_path, capsys):
    filled(ci)
    ci.backup(tmp_path / 'copy')
    path = tmp_path / 'copy' / 'minici.sqlite'
    with sqlite3.connect(path) as c:
        page, = c.execute("SELECT rootpage FROM sqlite_master WHERE name = 'job'").fetchone()
    c.close()
    with open(path, 'r+b') as file:
        file.seek((page - 1) * 4096)
        file.write(b'\xa5' * 4096)
    assert command('--db', tmp_path / 'new.sqlite', 'restore', tmp_path / 'copy') == 1
    assert 'damaged' in capsys.readouterr().err
    assert [path for path in tmp_path.iterdir() if path.name.startswith('new')] == []


def test_a_restore_that_fails_leaves_the_older_database_as_it_was(ci, tmp_path, monkeypatch):
    filled(ci)
    ci.backup(tmp_path / 'copy')
    with minici.Coordinator(tmp_path / 'old.sqlite') as old:
        filled(old, count=1)
        minici.take_upkeep_lock(old.data).close()
    before = files(tmp_path / 'old-data'), (tmp_path / 'old.sqlite').read_bytes()

    def full(*values, **options):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(minici, 'link_or_copy', full)
        with pytest.raises(OSError, match='No space'):
            minici.restore(tmp_path / 'copy', tmp_path / 'old.sqlite', force=True)
    assert (files(tmp_path / 'old-data'), (tmp_path / 'old.sqlite').read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith('old')) == ['old-data', 'old.sqlite']


# -- check

@pytest.fixture
def broken(ci, tmp_path):
    """A coordinator with one damage of each kind that `check` knows."""
    filled(ci, count=4)
    with ci.db.read() as c:
        stored = {row['job_id']: row['stored_as'] for row in c.execute('SELECT * FROM artifact')}
    ci.artifacts.stored_path(stored[1]).unlink()
    with open(ci.artifacts.stored_path(stored[2]), 'ab') as file:
        file.write(b'x')
    path = ci.artifacts.stored_path(stored[3])
    path.write_bytes(b'y' * path.stat().st_size)
    for orphan in (ci.data / 'artifacts' / '0000' / '9-orphan', ci.data / 'tmp' / 'old.part'):
        orphan.write_bytes(b'x')
        os.utime(orphan, (0, 0))
    trace = ci.traces.path(4711)
    trace.parent.mkdir()
    trace.write_bytes(b'x')
    with ci.db.write() as c:
        c.execute("UPDATE pipeline SET status = 'running', finished_at = NULL WHERE id = 4")
    return ci


def test_check_finds_nothing_in_a_healthy_installation(ci, capsys):
    filled(ci)
    assert command('--db', ci.db.path, 'check', '--sha256') == 0
    assert capsys.readouterr().out == ''


def test_check_lists_every_kind_of_damage_and_exits_1(broken, capsys):
    assert command('--db', broken.db.path, 'check', '--sha256') == 1
    listed = capsys.readouterr().out.splitlines()
    for expected in ('artifact archive of job 1 has no file', 'artifact archive of job 2 has ',
                     'artifact archive of job 3 has another content', '9-orphan', 'old.part', '4711.log',
                     'pipeline 4 is running, and its jobs are success'):
        assert [line for line in listed if expected in line], expected
    assert len(listed) == 7


def test_without_reading_them_whole_a_changed_artifact_of_the_same_size_is_not_found(broken):
    assert len(broken.check()) == 6


def test_check_repairs_all_of_it_and_touches_nothing_else(broken, capsys):
    assert command('--db', broken.db.path, 'check', '--sha256', '--repair') == 0
    assert capsys.readouterr().out.count('(repaired)') == 7
    assert broken.check(checksums=True) == []
    assert broken.find_pipeline(4)['status'] == 'success'
    assert broken.find_artifact(4)
    with pytest.raises(minici.NotFound):
        broken.find_artifact(1)
    Client(broken).call('GET', '/api/v4/projects/1/jobs/1/artifacts', token=broken.create_private_token(), status=404)


def test_check_says_what_to_do_about_a_damaged_database(ci, monkeypatch):
    ci.db.check_pages = lambda: 'row 7 missing from index job_token'
    assert 'restore' in ci.check(repair=True)[0].text
    assert not ci.check(repair=True)[0].repaired


# -- vacuum

def test_vacuum_converts_a_database_of_before_incremental_vacuum(tmp_path):
    path = tmp_path / 'ci.sqlite'
    with sqlite3.connect(path) as c:
        c.execute('PRAGMA journal_mode = WAL').fetchall()
    c.close()
    with minici.Coordinator(path) as ci:
        with ci.db.write() as c:
            c.execute("INSERT INTO setting VALUES ('ballast', :text)", {'text': 'x' * 4_000_000})
        with ci.db.write() as c:
            c.execute("DELETE FROM setting WHERE key = 'ballast'")
            assert c.execute('PRAGMA auto_vacuum').fetchone()[0] == 0
        before = path.stat().st_size
        assert minici.main(['--db', str(path), 'vacuum']) == 0
        assert path.stat().st_size < before / 2
        with ci.db.write() as c:
            c.execute("INSERT INTO setting VALUES ('ballast', :text)", {'text': 'x' * 4_000_000})
        with ci.db.write() as c:
            c.execute("DELETE FROM setting WHERE key = 'ballast'")
        ci.sweep()
        with ci.db.read() as c:
            assert c.execute('PRAGMA freelist_count').fetchone()[0] == 0
