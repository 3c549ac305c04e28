"""The database: its schema's versions, locks, full disks, backups, modes, and processes that share it."""

import contextlib
import errno
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import threading

import pytest
from support import PLAIN, SHA, Client, Runner, archive, python

import minici


def answer(process, line=''):
    """Send a line to a process, wait for its end and return what it printed, read as JSON."""
    out, _ = process.communicate(line, timeout=60)
    assert process.returncode == 0
    return json.loads(out)


def facts(path):
    """Return what a plain SQLite connection sees of a file: versions, schema and settings."""
    with sqlite3.connect(path) as c:
        found = [c.execute(f'PRAGMA {name}').fetchone()[0] for name in ('application_id', 'user_version')]
        found += c.execute('SELECT type, name, sql FROM sqlite_master ORDER BY name').fetchall()
        found += c.execute('SELECT * FROM setting ORDER BY key').fetchall()
    c.close()
    return found


@pytest.fixture
def impatient(monkeypatch):
    """Make writers give up at once instead of after seconds; name it before `ci`, which reads this when made."""
    monkeypatch.setattr(minici, 'LOCK_TIMEOUT', 0.05)
    monkeypatch.setattr(minici, 'BUSY_TIMEOUT', 0.05)


@pytest.fixture
def locked(ci):
    """Another process that holds the write lock until its standard input ends."""
    holder = python('import sqlite3, sys\n'
                    'c = sqlite3.connect(sys.argv[1], isolation_level=None)\n'
                    'c.execute("BEGIN IMMEDIATE")\n'
                    'print("locked", flush=True)\n'
                    'sys.stdin.read()\n'
                    'c.execute("ROLLBACK")\n', ci.db.path)
    assert holder.stdout.readline() == 'locked\n'
    yield holder
    holder.communicate()


# -- the schema

def test_a_new_file_is_marked_as_ours_and_of_the_newest_version(ci):
    assert facts(ci.db.path)[:2] == [minici.APPLICATION_ID, len(minici.MIGRATIONS)]


def test_opening_a_database_again_changes_nothing(tmp_path):
    minici.Coordinator(tmp_path / 'a.sqlite').close()
    before, image = facts(tmp_path / 'a.sqlite'), (tmp_path / 'a.sqlite').read_bytes()
    minici.Coordinator(tmp_path / 'a.sqlite').close()
    assert facts(tmp_path / 'a.sqlite') == before
    assert (tmp_path / 'a.sqlite').read_bytes() == image


def test_eight_processes_that_open_a_new_file_at_once_agree_on_its_tokens(tmp_path, monkeypatch):
    monkeypatch.setenv('MINICI_PRIVATE_TOKEN', 'chosen-by-automation')
    script = ('import json, minici, sys\n'
              'print("ready", flush=True)\n'
              'sys.stdin.readline()\n'
              'with minici.Coordinator(sys.argv[1]) as ci:\n'
              '    user = ci.find_user("chosen-by-automation")\n'
              '    print(json.dumps([ci.registration_token, user["id"]]))\n')
    processes = [python(script, tmp_path / 'ci.sqlite') for _ in range(8)]
    for process in processes:
        assert process.stdout.readline() == 'ready\n'
    for process in processes:
        process.stdin.write('go\n')
        process.stdin.flush()
    answers = [answer(process) for process in processes]
    assert answers == [answers[0]] * 8
    with minici.Coordinator(tmp_path / 'ci.sqlite') as ci, ci.db.read() as c:
        assert ci.registration_token == answers[0][0]
        assert c.execute('SELECT count(*) FROM private_token').fetchone()[0] == 1
        assert c.execute('SELECT version FROM queue_version').fetchall()[0][0] == 1


def test_a_later_step_is_added_to_an_older_database_and_keeps_its_rows(tmp_path, monkeypatch):
    with minici.Coordinator(tmp_path / 'ci.sqlite') as ci:
        ci.create_project('group/demo')
    monkeypatch.setattr(minici, 'MIGRATIONS', (*minici.MIGRATIONS, 'CREATE TABLE extra (id INTEGER);\n'))
    with minici.Coordinator(tmp_path / 'ci.sqlite') as ci:
        assert ci.find_project('group/demo')['id'] == 1
    assert facts(tmp_path / 'ci.sqlite')[1] == len(minici.MIGRATIONS)


def test_a_step_that_fails_leaves_the_older_database_as_it_was(tmp_path, monkeypatch):
    minici.Coordinator(tmp_path / 'ci.sqlite').close()
    before = facts(tmp_path / 'ci.sqlite')
    half = 'CREATE TABLE extra (id INTEGER);\nINSERT INTO extra VALUES (1);\nINSERT INTO nowhere VALUES (1);\n'
    monkeypatch.setattr(minici, 'MIGRATIONS', (*minici.MIGRATIONS, half))
    with pytest.raises((minici.CIError, sqlite3.Error)):
        minici.Coordinator(tmp_path / 'ci.sqlite')
    assert facts(tmp_path / 'ci.sqlite') == before


@pytest.mark.parametrize('mark', ['PRAGMA application_id = 252006674', 'PRAGMA user_version = 0'])
def test_another_programs_database_is_refused_and_not_one_byte_of_it_changes(tmp_path, mark, capsys):
    other = tmp_path / 'fossil.sqlite'
    with sqlite3.connect(other) as c:
        c.execute('CREATE TABLE theirs (id INTEGER)')
        c.execute(mark)
    c.close()
    image = other.read_bytes()
    with pytest.raises(minici.CIError, match='another program'):
        minici.Coordinator(other)
    assert minici.main(['--db', str(other), 'token']) != 0
    assert 'another program' in capsys.readouterr().err
    assert other.read_bytes() == image


def test_a_newer_schema_is_refused_and_not_one_byte_of_it_changes(tmp_path):
    minici.Coordinator(tmp_path / 'ci.sqlite').close()
    with sqlite3.connect(tmp_path / 'ci.sqlite') as c:
        c.execute(f'PRAGMA user_version = {len(minici.MIGRATIONS) + 1}')
    c.close()
    image = (tmp_path / 'ci.sqlite').read_bytes()
    with pytest.raises(minici.CIError, match='newer minici'):
        minici.Coordinator(tmp_path / 'ci.sqlite')
    assert (tmp_path / 'ci.sqlite').read_bytes() == image


@pytest.mark.parametrize('mark', ['PRAGMA application_id = 1', 'PRAGMA user_version = 1000000'])
def test_a_refused_database_is_let_go_of_at_once(tmp_path, mark):
    minici.Coordinator(tmp_path / 'ci.sqlite').close()
    with sqlite3.connect(tmp_path / 'ci.sqlite') as c:
        c.execute(mark)
    c.close()
    before = len(os.listdir('/dev/fd'))
    with pytest.raises(minici.CIError) as refusal:
        minici.Coordinator(tmp_path / 'ci.sqlite')
    assert len(os.listdir('/dev/fd')) == before, refusal


def test_a_file_that_is_no_database_is_refused_with_a_message(tmp_path, capsys):
    (tmp_path / 'notes.txt').write_text('not a database\n' * 100)
    image = (tmp_path / 'notes.txt').read_bytes()
    assert minici.main(['--db', str(tmp_path / 'notes.txt'), 'token']) != 0
    assert 'database' in capsys.readouterr().err
    assert (tmp_path / 'notes.txt').read_bytes() == image


def test_a_too_old_sqlite_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(minici.sqlite3, 'sqlite_version_info', (3, 34, 1))
    with pytest.raises(minici.CIError, match=r'3\.35'):
        minici.Coordinator(tmp_path / 'ci.sqlite')


# -- transactions

def test_a_failed_write_block_leaves_nothing_behind_and_frees_the_lock(ci):
    def fail():
        with ci.db.write() as c:
            c.execute("INSERT INTO setting VALUES ('half', 'done')")
            raise minici.Forbidden('no')

    with pytest.raises(minici.Forbidden):
        fail()
    with ci.db.write() as c:
        assert c.execute("SELECT * FROM setting WHERE key = 'half'").fetchall() == []


def test_what_one_block_committed_every_reader_sees(ci):
    with ci.db.write() as c:
        c.execute("INSERT INTO setting VALUES ('whole', 'done')")
    with ci.db.read() as c:
        assert c.execute("SELECT value FROM setting WHERE key = 'whole'").fetchone()[0] == 'done'


def test_a_reader_cannot_write_not_even_after_a_backup(ci, tmp_path):
    for number in range(2):
        with ci.db.read() as c, pytest.raises(sqlite3.OperationalError, match='readonly'):
            c.execute('DELETE FROM setting')
        ci.backup(tmp_path / f'{number}')
    assert ci.registration_token


def test_commits_are_flushed_to_the_disk_unless_the_database_is_a_throw_away(tmp_path):
    for fsync, expected in ((True, 2), (False, 0)):
        with minici.Coordinator(tmp_path / f'{expected}.sqlite', fsync=fsync) as ci, ci.db.write() as c:
            assert c.execute('PRAGMA synchronous').fetchone()[0] == expected
            assert c.execute('PRAGMA journal_mode').fetchone()[0] == 'wal'


# -- locks

def test_a_writer_that_waits_too_long_for_another_thread_is_told_busy(impatient, ci):
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with ci.db.write():
            inside.set()
            leave.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait(60)
    try:
        with pytest.raises(minici.Busy):
            ci.create_project('group/late')
    finally:
        leave.set()
        holder.join()
    assert ci.create_project('group/later')['path'] == 'group/later'


def test_a_writer_that_waits_too_long_for_another_process_is_told_busy(impatient, ci, locked):
    with pytest.raises(minici.Busy):
        ci.create_project('group/late')
    assert ci.list_projects()[1] == 0


@pytest.fixture
def requests(ci, job, token, runner):
    """One request of each kind that has to write, as arguments of `Client.call`, and what it answers when it may."""
    ci.create_pipeline(1, 'main', sha=SHA, content=PLAIN)
    v1, upload = {'BUILD-TOKEN': job.token}, {'files': [('file', 'a.zip', archive(a='1'))]}
    project = '/api/v4/projects/1'
    return {
        'register': ('POST', '/api/v4/runners', {'json': {'token': ci.registration_token}}, 201),
        'register v1': ('POST', '/ci/api/v1/runners/register', {'json': {'token': ci.registration_token}}, 201),
        'claim': ('POST', '/api/v4/jobs/request', {'json': {'token': runner.token}}, 201),
        'poll v1': ('POST', '/ci/api/v1/builds/register', {'json': {'token': runner.token}}, 404),
        'upload': ('POST', f'/api/v4/jobs/1/artifacts?token={job.token}', upload, 201),
        'upload v1': ('POST', '/ci/api/v1/builds/1/artifacts', {'headers': v1, **upload}, 201),
        'keep': ('POST', f'{project}/jobs/1/artifacts/keep', {'token': token}, 200),
        'project': ('POST', '/api/v4/projects', {'token': token, 'json': {'path': 'new'}}, 201),
        'pipeline': ('POST', f'{project}/pipeline', {'token': token, 'json': {
            'ref': 'main', 'sha': SHA, 'content': json.dumps(PLAIN)}}, 201),
        'finish': ('PUT', '/api/v4/jobs/1', {'json': {'token': job.token, 'state': 'failed'}}, 200),
        'retry': ('POST', f'{project}/jobs/1/retry', {'token': token}, 201),
        'cancel': ('POST', f'{project}/jobs/2/cancel', {'token': token}, 201),
        'unregister': ('DELETE', '/api/v4/runners', {'json': {'token': runner.token}}, 204),
    }


def test_a_locked_database_answers_503_with_a_delay_and_after_it_all_goes_well(impatient, client, requests, locked):
    client.call('PATCH', '/ci/api/v1/builds/1/trace.txt', data=b'lines\n', status=202,
                headers={'BUILD-TOKEN': requests['upload v1'][2]['headers']['BUILD-TOKEN'], 'Content-Range': '0-6'})
    for name, (method, path, options, _) in requests.items():
        response = client.call(method, path, **options)
        assert response.status_int == 503, (name, response.status)
        assert response.headers['Retry-After'].isdecimal()
        assert 'message' in response.json
    locked.communicate()
    for name, (method, path, options, expected) in requests.items():
        assert client.call(method, path, **options).status_int == expected, name


def test_reading_goes_on_while_the_database_is_locked(impatient, client, job, token, locked):
    client.call('GET', '/api/v4/projects/group%2Fdemo/jobs', token=token, status=200)
    client.call('GET', '/api/v4/projects/1/jobs/1/trace', token=token, status=200)
    client.call('GET', '/api/v4/job', headers={'JOB-TOKEN': job.token}, status=200)


def test_a_closed_coordinator_answers_503_and_never_403_or_404(ci, client, job, token):
    ci.close()
    for method, path, options in (
            ('PATCH', '/api/v4/jobs/1/trace', {'headers': {'JOB-TOKEN': job.token, 'Content-Range': '0-1'}}),
            ('PUT', '/api/v4/jobs/1', {'json': {'token': job.token, 'state': 'success'}}),
            ('GET', '/api/v4/projects/1/jobs', {'token': token})):
        response = client.call(method, path, status=503, **options)
        assert response.headers['Retry-After'].isdecimal()


# -- what is trouble, and what is a fault of ours

TROUBLES = ['database is locked', 'database table is locked: job', 'database or disk is full', 'disk I/O error',
            'unable to open database file', 'database disk image is malformed', 'file is not a database']


@pytest.mark.parametrize('message', TROUBLES)
@pytest.mark.parametrize('block', ['read', 'write'])
def test_trouble_with_locks_disks_and_files_is_busy(ci, message, block):
    with pytest.raises(minici.Busy, match=message), getattr(ci.db, block)():
        raise sqlite3.DatabaseError(message)


@pytest.mark.parametrize('error', [sqlite3.OperationalError('no such column: nme'), sqlite3.IntegrityError('NOT NULL'),
                                   sqlite3.ProgrammingError('You did not supply a value for binding')])
def test_a_fault_in_our_own_sql_is_no_trouble(ci, error):
    with pytest.raises(type(error), match=str(error)), ci.db.write():
        raise error


def test_a_fault_in_our_own_sql_is_answered_500_with_a_traceback_in_the_log(ci, client, token, caplog):
    with ci.db.write() as c:
        c.execute('ALTER TABLE project RENAME COLUMN path TO elsewhere')
    response = client.call('GET', '/api/v4/projects', token=token, status=500)
    assert 'Retry-After' not in response.headers
    assert 'no such column' in caplog.records[-1].exc_text


# -- full disks

FULL_DISK = """
import json, resource, sys
from support import PLAIN, SHA, Client, Runner, archive
import minici

ci = minici.Coordinator(sys.argv[1])
client, runner = Client(ci), Runner(ci)
for ref in ('one', 'two'):
    ci.create_pipeline(ci.create_project(ref), 'main', sha=SHA, content=PLAIN)
claim = runner.claim()
job, trace = {'JOB-TOKEN': claim.token}, '/api/v4/jobs/1/trace'
noise = bytes(range(256)) * 4096
with ci.db.write() as c:  # fill the log of the database up to the limit below
    c.execute("INSERT INTO setting VALUES ('ballast', :noise)", {'noise': noise.hex()})
requests = [
    ('PATCH', trace, {'headers': {**job, 'Content-Range': '0-9'}, 'data': noise}, 202),
    ('POST', '/api/v4/jobs/1/artifacts', {'headers': job, 'files': [('file', 'a.zip', noise)]}, 201),
    ('POST', '/api/v4/jobs/request', {'json': {'token': runner.token}}, 201),
    ('PUT', '/api/v4/jobs/1', {'json': {'token': claim.token, 'state': 'success'}}, 200),
    ('POST', '/api/v4/runners', {'json': {'token': ci.registration_token}}, 201)]
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
full = [client.call(method, path, **options) for method, path, options, _ in requests]
parts = [str(path) for path in ci.artifacts.incoming.iterdir()]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
again = [client.call(method, path, **options).status_int for method, path, options, _ in requests]
with ci.db.read() as c:
    healthy = c.execute('PRAGMA integrity_check').fetchone()[0]
print(json.dumps([[[r.status_int, r.headers.get('Retry-After')] for r in full], parts,
                  again == [expected for *_, expected in requests], healthy,
                  ci.read_trace(1) == noise, ci.open_artifacts(1)[1].read() == noise]))
"""


def test_a_full_disk_answers_503_loses_nothing_and_all_goes_well_once_there_is_room(tmp_path):
    full, parts, recovered, healthy, trace, artifact = answer(python(FULL_DISK, tmp_path / 'ci.sqlite'))
    assert full == [[503, str(minici.RETRY_AFTER)]] * 5
    assert parts == []
    assert recovered
    assert healthy == 'ok'
    assert trace
    assert artifact


# -- copies

def test_a_backup_made_while_others_write_is_a_consistent_database_of_its_own(ci, tmp_path):
    stop = threading.Event()

    def write():
        while not stop.is_set():
            project = ci.create_project(f'p{ci.list_projects()[1]}')
            ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            ci.backup(tmp_path / f'{number}')
    finally:
        stop.set()
        writer.join()
    for number in range(5):
        with minici.Coordinator(tmp_path / f'{number}' / 'minici.sqlite') as copy, copy.db.read() as c:
            assert copy.registration_token == ci.registration_token
            assert c.execute('PRAGMA integrity_check').fetchall()[0][0] == 'ok'
            assert c.execute('PRAGMA foreign_key_check').fetchall() == []
            assert c.execute('SELECT count(*) FROM job').fetchone() == c.execute(
                'SELECT count(*) FROM pipeline').fetchone()


# -- who may read it

@pytest.fixture
def full_run(tmp_path):
    """A coordinator, made under a careless umask, that has done everything which writes a file; and its secrets."""
    umask = os.umask(0)
    try:
        with minici.Coordinator(tmp_path / 'ci.sqlite') as ci:
            client, runner, token = Client(ci), Runner(ci), ci.create_private_token()
            ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content=PLAIN)
            claim = client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=201).json
            client.call('PATCH', '/api/v4/jobs/1/trace', data=b'one\n', status=202,
                        headers={'JOB-TOKEN': claim['token'], 'Content-Range': '0-3'})
            for kind in ('archive', 'junit'):
                client.call('POST', f'/api/v4/jobs/1/artifacts?artifact_type={kind}&artifact_format='
                            + ('zip' if kind == 'archive' else 'gzip'), headers={'JOB-TOKEN': claim['token']},
                            files=[('file', 'a.zip', archive(a='1'))], status=201)
            client.call('PUT', '/api/v4/jobs/1', status=200,
                        json={'token': claim['token'], 'state': 'success', 'trace': 'two\n'})
            client.call('GET', '/api/v4/projects/1/jobs/1/artifacts/a', token=token, status=200)
            ci.backup(tmp_path / 'copy')
            yield ci, {'runner': runner.token, 'private': token, 'job': claim['token']}
    finally:
        os.umask(umask)


def test_every_file_of_a_full_run_is_readable_by_its_owner_alone(full_run, tmp_path):
    modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob('*')}
    folders = {name for name in modes if (tmp_path / name).is_dir()}
    assert {'ci.sqlite', 'ci.sqlite-wal', 'copy/minici.sqlite', 'ci-data', 'ci-data/traces/0000/1.log'} <= set(modes)
    assert {name: oct(mode) for name, mode in modes.items() if mode != (0o700 if name in folders else 0o600)} == {}


def test_runner_private_and_job_tokens_stand_nowhere_on_the_disk(full_run, tmp_path):
    ci, secrets = full_run

    def files_with(text):  # by another process: ours must not open its database's files
        return subprocess.run(['grep', '-rlaF', '-e', text, str(tmp_path)], capture_output=True, text=True).stdout

    assert 'ci.sqlite' in files_with(ci.registration_token)
    assert {name: files_with(secret) for name, secret in secrets.items()} == dict.fromkeys(secrets, '')


# -- several of them

def test_a_forked_child_and_its_parent_go_on_writing_without_harm(tmp_path):
    script = ('import json, minici, os, sys\n'
              'ci = minici.Coordinator(sys.argv[1])\n'
              'ci.create_project("before")\n'
              'with ci.db.read() as reader, ci.db.write() as writer:\n'
              '    pass\n'
              'child = os.fork()\n'
              'for number in range(20):\n'
              '    ci.create_project(f"{child > 0}-{number}")\n'
              'if not child:\n'
              '    with ci.db.read() as mine, ci.db.write() as own:\n'
              '        shared = mine is reader or own is writer\n'
              '    ci.close()\n'
              '    os._exit(shared)\n'
              'status = os.waitpid(child, 0)[1]\n'
              'ci.create_project("after")\n'
              'with ci.db.read() as c:\n'
              '    healthy = c.execute("PRAGMA integrity_check").fetchone()[0]\n'
              'print(json.dumps([status, ci.list_projects()[1], healthy]))\n')
    assert answer(python(script, tmp_path / 'ci.sqlite')) == [0, 42, 'ok']


def test_two_coordinators_over_one_database_share_its_queue(ci, clock, runner, pipeline):
    with minici.Coordinator(ci.db.path, clock=clock, fsync=False) as other:
        assert other.registration_token == ci.registration_token
        assert other.request_job(other.find_runner(runner.token)).job['name'] == 'test'
        assert runner.claim() is None
        assert ci.read_trace(1) == b''


def test_twenty_coordinators_in_one_process_do_not_know_of_each_other(tmp_path):
    all_of_them = [minici.Coordinator(tmp_path / f'{number}.sqlite', fsync=False) for number in range(20)]
    runners = [Runner(ci) for ci in all_of_them]
    clients = [Client(ci) for ci in all_of_them]
    assert len({ci.registration_token for ci in all_of_them}) == 20
    busy, other = all_of_them[3], all_of_them[4]
    busy.create_pipeline(busy.create_project('only-here'), 'main', sha=SHA, content=PLAIN)
    for number, client in enumerate(clients):
        for runner in runners:
            status = 403 if runner.ci is not all_of_them[number] else 201 if number == 3 else 204
            client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=status)
    busy.close()
    assert other.list_projects() == ([], 0)
    assert all(ci.registration_token for ci in all_of_them if ci is not busy)
    for ci in all_of_them:
        ci.close()


def test_a_coordinator_without_a_path_leaves_nothing_behind():
    with minici.Coordinator() as ci:
        folder = ci.db.path.parent
        Runner(ci)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


def test_the_tally_of_jobs_is_what_counting_them_finds(ci, project):
    """Jobs come, change, and go with their pipeline and project; a refused transaction counts nothing."""
    other = ci.create_project('other')
    content = {'stages': ['a', 'b'], 'one': {'stage': 'a', 'script': ['make'], 'retry': 1},
               'two': {'stage': 'b', 'script': ['make']},
               'by hand': {'stage': 'b', 'script': ['make'], 'when': 'manual'}}
    first, second, third = (ci.create_pipeline(which, 'main', sha=SHA, content=content)
                            for which in (project, project, other))

    def tally():
        rows = ci._all('SELECT project_id, status, jobs FROM job_tally WHERE jobs <> 0 ORDER BY 1, 2')
        assert [tuple(row) for row in rows] == [tuple(row) for row in ci._all(
            'SELECT project_id, status, count(*) FROM job GROUP BY 1, 2 ORDER BY 1, 2')]
        return sum(row['jobs'] for row in rows)
    assert tally() == 9
    runner = ci.find_runner(ci.register_runner(ci.registration_token)[1])
    claim = ci.request_job(runner)
    tally()
    ci.update_job(ci.authenticate_job(claim.job['id'], claim.token), 'failed')
    assert tally() == 10
    ci.cancel_pipeline(second)
    with pytest.raises(sqlite3.IntegrityError), ci.db.write() as c:
        c.execute("UPDATE job SET status = CASE WHEN id = 2 THEN 'nonsense' ELSE 'success' END")
    tally()
    ci.delete_pipelines([first])
    assert tally() == 6
    assert ci.count_jobs(project=project, limit=100) == 3
    assert ci.count_jobs(project=project, scope=['canceled', 'pending'], limit=100) == 3
    ci.delete_project(ci.find_project(project))
    assert tally() == 3


def test_a_new_database_is_one_that_the_steps_made(tmp_path):
    stepwise = tmp_path / 'stepwise.sqlite'
    stepwise.touch()
    minici.create_database(tmp_path / 'copied.sqlite', fsync=True)
    found = []
    for path in (stepwise, tmp_path / 'copied.sqlite'):
        with contextlib.closing(minici.Database(path)) as database:
            database.migrate()
            with database.read() as c:
                schema = c.execute('SELECT type, name, sql FROM sqlite_master ORDER BY name').fetchall()
                pragmas = [c.execute(f'PRAGMA {name}').fetchone()[0]
                           for name in ('user_version', 'application_id', 'auto_vacuum', 'journal_mode')]
        found.append(([tuple(row) for row in schema], pragmas))
    assert found[0] == found[1]
    assert stat.S_IMODE((tmp_path / 'copied.sqlite').stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ['copied.sqlite', 'stepwise.sqlite']


def test_a_new_database_beside_the_log_of_a_removed_one_is_empty(tmp_path):
    path = tmp_path / 'ci.sqlite'
    with minici.Coordinator(path) as ci:
        ci.create_project('old')
        shutil.copy(tmp_path / 'ci.sqlite-wal', tmp_path / 'kept')
    path.unlink()
    shutil.copy(tmp_path / 'kept', tmp_path / 'ci.sqlite-wal')
    with minici.Coordinator(path) as ci:
        with pytest.raises(minici.NotFound):
            ci.find_project('old')
        assert ci.db.check_pages() == ''


def test_a_file_system_without_links_gets_a_database_too(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(errno.EPERM, 'no links here')

    monkeypatch.setattr(os, 'link', link)
    with minici.Coordinator(tmp_path / 'ci.sqlite') as ci:
        assert ci.create_project('demo')['path'] == 'demo'
        assert [path.name for path in tmp_path.glob('.*')] == []
