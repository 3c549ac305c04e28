"""What pages ask of a coordinator: who signs in, lists across projects, reasons, folders of archives, old databases."""

import contextlib
import functools
import io
import sqlite3
import struct
import zipfile

import pytest
from minici_pages.archives import list_entries
from support import PLAIN, SHA, TOP, TWO_STAGES, Runner, archive

import minici


def job(**keywords):
    return {'script': ['make'], **keywords}


# -- signing in

def test_sign_in_code_gives_one_session_of_scope_api_for_a_month(ci, clock):
    session = ci.sign_in(ci.create_sign_in_code())
    assert (ci.find_session(session)['username'], ci.find_session(session)['scope']) == ('root', 'api')
    assert ci.find_user(session) is None
    clock.advance(days=30, seconds=-1)
    assert ci.find_session(session)
    clock.advance(1)
    assert ci.find_session(session) is None


def test_sign_in_code_works_once_and_until_the_next_one_is_made(ci):
    old, code = ci.create_sign_in_code(), ci.create_sign_in_code()
    for wrong in (old, '', 'x', code + ' ', code.upper(), ci.registration_token):
        with pytest.raises(minici.Forbidden):
            ci.sign_in(wrong)
    ci.sign_in(code)
    with pytest.raises(minici.Forbidden):
        ci.sign_in(code)


def test_sign_in_code_is_stored_as_a_hash_alone(ci):
    code = ci.create_sign_in_code()
    token = ci.sign_in(ci.create_sign_in_code())
    with contextlib.closing(sqlite3.connect(ci.db.path)) as connection:
        stored = '\n'.join(connection.iterdump())
    assert code not in stored
    assert token not in stored


def test_signing_out_voids_what_signing_in_gave_and_nothing_else(ci):
    mine, other, lasting = ci.sign_in(ci.create_sign_in_code()), ci.sign_in(ci.create_sign_in_code()), \
        ci.create_private_token()
    for token in (mine, lasting, 'nonsense', ''):
        ci.sign_out(token)
    assert [bool(ci.find_session(session)) for session in (mine, other)] == [False, True]
    assert ci.find_user(lasting)


def test_tokens_are_listed_newest_first_and_never_told(ci, clock):
    first = ci.create_private_token('ann', 'read_api', description='for reading')
    clock.advance(5)
    second = ci.create_private_token(lifetime=60)
    rows = ci.list_private_tokens()
    assert [(row['username'], row['scope'], row['description'], row['expires_at']) for row in rows] == [
        ('root', 'api', '', clock.now + 60), ('ann', 'read_api', 'for reading', None)]
    assert not {first, second} & {str(value) for row in rows for value in row}
    clock.advance(60)
    assert [row['username'] for row in ci.list_private_tokens()] == ['ann']


def test_token_that_has_expired_is_removed_when_another_is_made(ci, clock):
    ci.create_private_token('ann', lifetime=60)
    clock.advance(60)
    ci.create_private_token()
    with contextlib.closing(sqlite3.connect(ci.db.path)) as connection:
        assert connection.execute('SELECT count(*) FROM private_token').fetchone() == (1,)


def test_revoked_token_is_void_at_once_and_cannot_be_revoked_again(ci):
    token, other = ci.create_private_token(), ci.create_private_token()
    digest, = {row['token_hash'] for row in ci.list_private_tokens()} - {minici.token_hash(other)}
    ci.revoke_private_token(digest)
    assert (ci.find_user(token), bool(ci.find_user(other))) == (None, True)
    for wrong in (digest, token, '', 'x'):
        with pytest.raises(minici.NotFound):
            ci.revoke_private_token(wrong)


# -- lists

def test_pipelines_of_all_projects_are_listed_together(ci):
    for path in ('a', 'b', 'a', 'c'):
        with contextlib.suppress(minici.BadRequest):
            ci.create_project(path)
        ci.create_pipeline(ci.find_project(path), path, sha=SHA, content=PLAIN)
    rows, total = ci.list_pipelines()
    assert ([row['project_path'] for row in rows], total) == (['c', 'a', 'b', 'a'], 4)
    assert [row['id'] for row in ci.list_pipelines(limit=2, offset=1)[0]] == [3, 2]
    assert [row['id'] for row in ci.list_pipelines(ref='a')[0]] == [3, 1]
    assert [row['id'] for row in ci.list_pipelines(ci.find_project('a'), ref='b')[0]] == []
    assert [row['id'] for row in ci.list_pipelines(status='pending', sort='asc')[0]] == [1, 2, 3, 4]
    assert [ci.list_pipelines(count_to=count)[1] for count in (1, 3, 4, 9)] == [1, 3, 4, 4]


def test_newest_pipelines_of_projects_are_found_together(ci):
    projects = [ci.create_project(path) for path in ('a', 'b', 'empty')]
    for project in (*projects[:2], *projects[:1]):
        ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    newest = ci.newest_pipelines(projects)
    assert {key: (row['id'], row['project_path']) for key, row in newest.items()} == {1: (3, 'a'), 2: (2, 'b')}
    assert list(ci.newest_pipelines(projects[1:2])) == [2]
    assert ci.newest_pipelines([]) == {}


def test_stages_of_many_pipelines_come_in_order_with_the_status_of_each(ci, project, runner):
    allowed = {'stages': ['b', 'a'], 'lint': job(stage='a', allow_failure=True), 'make': job(stage='b')}
    pipelines = [ci.create_pipeline(project, 'main', sha=SHA, content=content)
                 for content in (TWO_STAGES, allowed, PLAIN)]
    ran = [runner.run(state) for state in ('failed', 'success', 'failed', 'success')]
    assert ran == ['compile', 'make', 'lint', 'test']
    stages = ci.list_stages([ci.find_pipeline(row) for row in pipelines])
    assert stages == {1: [('build', 'failed'), ('test', 'skipped')], 2: [('b', 'success'), ('a', 'success')],
                      3: [('test', 'success')]}
    assert ci.list_stages([]) == {}


def test_retried_job_no_longer_counts_for_its_stage(ci, project, runner):
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    runner.run('failed')
    ci.retry_job(ci.find_job(1))
    assert ci.list_stages([pipeline]) == {1: [('test', 'pending')]}
    assert [card['id'] for card in ci.list_cards(pipeline)] == [2]


def test_queue_and_what_runs_are_listed_oldest_first(ci, project, runner):
    for _ in range(5):
        ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    for _ in range(2):
        runner.claim()
    assert [row['id'] for row in ci.list_running()] == [1, 2]
    assert [row['id'] for row in ci.list_queue()] == [3, 4, 5]
    assert [row['id'] for row in ci.list_queue(limit=2)] == [3, 4]
    ci.cancel_job(ci.find_job(1))
    ci.cancel_job(ci.find_job(3))
    assert ([row['id'] for row in ci.list_running()], [row['id'] for row in ci.list_queue()]) == ([2], [4, 5])


def test_job_that_is_being_canceled_is_still_with_its_runner(ci, pipeline, runner):
    ci.contact(runner.row, {'features': ['cancel_gracefully']}, None, '')
    ci.cancel_job(runner.claim().job)
    assert [(row['id'], row['status']) for row in ci.list_running()] == [(1, 'canceling')]


def test_jobs_are_listed_by_name_with_every_attempt(ci, project, runner):
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, content={'a': job(), 'b': job()})
    runner.run('failed')
    ci.retry_job(ci.find_job(1))
    assert [row['id'] for row in ci.list_jobs(pipeline=pipeline, name='a')] == [3, 1]


def test_reasons_of_many_jobs_are_those_of_each(ci, project):
    Runner(ci, tag_list=['x'], run_untagged=False)
    for _ in range(2):
        ci.create_pipeline(project, 'main', sha=SHA, content={
            'stages': ['one', 'two'], 'x': job(stage='one', tags=['x']), 'y': job(stage='one', tags=['x', 'y']),
            'z': job(stage='one'), 'm': job(stage='one', when='manual'),
            'd': job(stage='one', when='delayed', start_in='1h'),
            'r': job(stage='one', resource_group='g'), 's': job(stage='one', resource_group='g'),
            'n': job(stage='two', needs=['z']), 'all': job(stage='two')})
    jobs = ci.list_jobs(limit=100)
    reasons = ci.pending_reasons(jobs)
    assert reasons == {row['id']: ci.pending_reason(row) for row in jobs}
    words = {row['name']: reasons[row['id']] for row in jobs if row['id'] <= 9}
    assert words == {
        'x': 'every runner that could take it is offline', 'z': 'no runner takes jobs without tags',
        'y': 'no runner has all of its tags; the nearest lacks y', 'm': 'waiting to be started by hand',
        'd': 'it is delayed until 2023-11-14T23:13:20.000Z', 'r': 'no runner takes jobs without tags',
        's': 'job 6 (r) holds the resource group g', 'n': 'it waits for z',
        'all': 'it waits for x, y, z, d, r, ...'}
    assert ci.pending_reasons([]) == {}


# -- folders of archives

@pytest.fixture
def stored(ci):
    """A function that stores an archive and returns the name it is stored as."""
    def store(content):
        part = ci.artifacts.receive()
        part.write(content)
        name = ci.artifacts.store(1, part)
        part.discard()
        return name
    return store


def test_folders_are_listed_level_by_level_folders_first(ci, stored):
    name = stored(archive(b='22', a='1', z__y__x='333', z__w='4444', empty__=''))
    entries = functools.partial(list_entries, ci.artifacts)
    assert entries(name) == [('empty/', None), ('z/', None), ('a', 1), ('b', 2)]
    assert entries(name, 'z/') == [('y/', None), ('w', 4)]
    assert entries(name, 'z/y/') == [('x', 3)]
    assert entries(name, 'empty/') == []
    assert entries(stored(archive())) == []
    for missing in ('nope/', 'a/', 'z/w/', 'Z/', '/', '../', 'z/y/x/'):
        with pytest.raises(minici.NotFound):
            entries(name, missing)


def test_hostile_names_in_an_archive_are_names_and_nothing_else(ci, stored, tmp_path):
    names = ['../../evil', '/etc/passwd', 'a//b', './c', 'C:\\x', 'nul\0.txt', 'ü€', 'n\nl', ' ', '.', 'x' * 3000,
             '%2e%2e/f']
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as bundle:
        for name in names:
            bundle.writestr(zipfile.ZipInfo(name), 'content')
    name, found, folders = stored(buffer.getvalue()), set(), ['']
    while folders:
        folder = folders.pop()
        for entry, size in list_entries(ci.artifacts, name, folder):
            if size is None:
                folders.append(folder + entry)
            else:
                found.add(folder + entry)
    assert found == {name.partition('\0')[0] for name in names}
    for entry in found:
        file, size = ci.artifacts.open_entry(name, entry)
        with file:
            assert (file.read(), size) == (b'content', 7)
    assert not list(tmp_path.rglob('*evil*'))


def test_file_and_folder_of_one_name_are_both_listed(ci, stored):
    assert list_entries(ci.artifacts, stored(archive(a='x', a__b='yy'))) == [('a/', None), ('a', 1)]


def damaged():
    """Yield archives that cannot be read, each in a way of its own."""
    whole = archive(a='content', b='more')
    at = whole.index(b'PK\1\2')
    yield from (b'', b'no zip', whole[:-5], whole[:at], whole[at:], whole + b'x' * 70_000)
    yield whole[:at] + b'XX' + whole[at + 2:]                               # the directory's first entry is none
    yield whole[:-6] + struct.pack('<I', 2 ** 31) + whole[-2:]              # the directory stands beyond the end
    yield whole.replace(b'PK\1\2', b'PK\1\2' + b'\xff' * 4, 1)              # shifted
    name = whole.index(b'a', at)
    yield whole[:name] + b'\xff' + whole[name + 1:at + 8] + whole[at + 8:]  # a name that is no text
    yield whole[:at + 8] + b'\x00\x08' + whole[at + 10:name] + b'\xff' + whole[name + 1:]   # and says it is UTF-8


def test_damaged_archives_are_refused_in_words_or_read(ci, stored):
    told = []
    for content in damaged():
        try:
            list_entries(ci.artifacts, stored(content))
        except minici.BadRequest as refusal:
            told.append(str(refusal))
    assert len(told) >= 6
    assert [text for text in told if 'The archive cannot be read' not in text] == []


def test_archive_that_claims_a_million_entries_is_refused_unread(ci, stored, monkeypatch):
    monkeypatch.setattr(zipfile, 'ZipFile', None)
    directory = b'PK\1\2' + bytes(42)
    end = struct.pack('<4s4H2IH', b'PK\5\6', 0, 0, 1, 1, len(directory) * 150_000, 0, 0)
    with pytest.raises(minici.BadRequest, match='too many entries'):
        list_entries(ci.artifacts, stored(directory * 150_000 + end))


def test_archive_that_is_gone_is_not_found(ci, stored):
    name = stored(archive(a='b'))
    ci.artifacts.remove([name])
    with pytest.raises(minici.NotFound):
        list_entries(ci.artifacts, name)


# -- databases of before

def test_database_of_the_first_schema_is_upgraded_and_keeps_its_tokens(tmp_path, clock):
    path = tmp_path / 'ci.sqlite'
    script = (TOP / 'tests' / 'faults' / 'databases' / 'schema-1.sql').read_text()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(script)
        connection.execute("INSERT INTO user (id, username, created_at) VALUES (70, 'ann', 5)")
        connection.execute("INSERT INTO private_token (token_hash, user_id, scope, created_at) "
                           "VALUES (?, 70, 'read_api', 7)", [minici.token_hash('mcp-old')])
    with minici.Coordinator(path, clock=clock, fsync=False) as ci:
        assert (ci.find_user('mcp-old')['username'], ci.find_user('mcp-old')['scope']) == ('ann', 'read_api')
        row, = (row for row in ci.list_private_tokens() if row['username'] == 'ann')
        assert (row['description'], row['expires_at'], row['created_at']) == ('', None, 7)
        clock.advance(days=3650)
        assert ci.find_user('mcp-old')
        assert ci.find_session(ci.sign_in(ci.create_sign_in_code()))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute('PRAGMA user_version').fetchone() == (len(minici.MIGRATIONS),)
