"""Databases of every schema that was released open, and the jobs that wait in them run.

`databases/` holds them as SQL: three pipelines of six kinds of jobs, one job finished, one running. Before a further
step is added to the schema `python tests/faults/databases/write.py` adds the version before it; none is edited
afterwards. Two steps grew after databases had taken them: those called "early" are from before.
"""

import contextlib
import dataclasses
import json
import re
import sqlite3
from pathlib import Path

import pytest
from support import Client, Clock, python

import minici

DATABASES = sorted((Path(__file__).parent / 'databases').glob('*.sql'))


def build(path, script):
    with sqlite3.connect(path) as c:
        c.executescript(script)
    c.close()


@pytest.fixture(params=DATABASES, ids=[file.stem for file in DATABASES])
def old(request, tmp_path):
    """A coordinator over a database of an older version, and the token of its runner."""
    script = request.param.read_text()
    build(tmp_path / 'ci.sqlite', script)
    clock = Clock()
    clock.advance(days=1)
    with minici.Coordinator(tmp_path / 'ci.sqlite', clock=clock, fsync=False) as ci:
        yield ci, re.search("runner's token is (\\S+)", script)[1]


def test_no_version_is_left_out():
    versions = {int(re.search(r'PRAGMA user_version = (\d+)', file.read_text())[1]) for file in DATABASES}
    assert versions >= set(range(1, len(minici.MIGRATIONS)))


def schema(path):
    """Return what a database is made of: the text of each of its tables, indexes and triggers."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        made = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
    return {(kind, name): re.sub(r'--[^\n]*|\s+', ' ', text).split() for kind, name, text in made}


@pytest.mark.parametrize('file', DATABASES, ids=lambda file: file.stem)
def test_an_upgraded_database_has_the_schema_of_a_new_one(file, tmp_path):
    build(tmp_path / 'old.sqlite', file.read_text())
    for name in ('old', 'new'):
        minici.Coordinator(tmp_path / f'{name}.sqlite', fsync=False).close()
    assert schema(tmp_path / 'old.sqlite') == schema(tmp_path / 'new.sqlite')


def test_every_pending_job_of_an_old_database_is_claimed_and_finished(old):
    ci, token = old
    client = Client(ci)
    ran = []
    while True:
        answer = client.call('POST', '/api/v4/jobs/request', json={'token': token})
        if answer.status_int == 204:
            break
        assert answer.status_int == 201, answer.text
        job = answer.json
        ran.append(job['job_info']['name'])
        assert job['steps'][0]['script']
        client.call('PATCH', f'/api/v4/jobs/{job["id"]}/trace', data=b'12%\n', status=202,
                    headers={'JOB-TOKEN': job['token'], 'Content-Range': '0-3'})
        client.call('PUT', f'/api/v4/jobs/{job["id"]}', json={'token': job['token'], 'state': 'success'}, status=200)
    assert {name.partition(' ')[0] for name in ran} == {'compile', 'unit', 'lint', 'later'}
    assert len(ran) > 10
    with ci.db.read() as c:
        assert c.execute("SELECT count(*) FROM job WHERE attempts > 1").fetchone()[0] == 0


def test_pending_jobs_of_an_old_database_are_claimed_by_the_runners_of_2016(old):
    ci, token = old
    answer = Client(ci).call('POST', '/ci/api/v1/builds/register', json={'token': token}, status=201)
    assert answer.json['commands']


def test_everything_in_an_old_database_is_listed_played_and_retried(old):
    ci, _ = old
    client, token = Client(ci), ci.create_private_token()
    jobs = client.call('GET', '/api/v4/projects/1/jobs?per_page=100', token=token, status=200).json
    assert len(jobs) == 18
    for job in jobs:
        client.call('GET', f'/api/v4/projects/1/jobs/{job["id"]}', token=token, status=200)
        assert ci.pending_reason(ci.find_job(job['id'])) or job['status'] != 'pending'
    done = next(job for job in jobs if job['status'] == 'success')
    client.call('POST', f'/api/v4/projects/1/jobs/{done["id"]}/retry', token=token, status=201)
    pipeline = client.call('POST', '/api/v4/projects/1/pipelines/3/cancel', token=token, status=200)
    assert pipeline.json['status'] == 'canceled'
    client.call('POST', '/api/v4/projects/1/pipelines/3/retry', token=token, status=201)
    ci.sweep()
    assert [finding.text for finding in ci.check() if 'trace' not in finding.text] == []


UPGRADES = """
import os, shutil, sqlite3, sys
import minici

directory, step, count, stop = sys.argv[1], int(sys.argv[2]), 0, 0

class Counting(sqlite3.Connection):
    def execute(self, statement, *values):
        global count
        count += self.in_transaction
        if count == stop:
            os.kill(os.getpid(), 9)
        return super().execute(statement, *values)

connect = sqlite3.connect
minici.sqlite3.connect = lambda *values, **options: connect(*values, factory=Counting, **options)
status = 9
while status:
    stop += step
    path = f'{directory}/{stop}.sqlite'
    shutil.copy(f'{directory}/intact.sqlite', path)
    child = os.fork()
    if not child:
        minici.Coordinator(path).close()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
print(stop)
"""


def test_an_upgrade_that_is_killed_at_any_statement_leaves_the_old_database_or_the_new_one(tmp_path, form):
    step = form(4, 1)
    build(tmp_path / 'intact.sqlite', DATABASES[0].read_text())

    def version(path):
        with contextlib.closing(sqlite3.connect(path)) as c:
            assert c.execute('PRAGMA quick_check').fetchone()[0] == 'ok'
            return c.execute('PRAGMA user_version').fetchone()[0], c.execute('SELECT count(*) FROM job').fetchone()[0]

    upgrades = python(UPGRADES, tmp_path, step)
    count = int(upgrades.communicate(timeout=300)[0])
    assert upgrades.returncode == 0
    assert count > 90
    seen = [version(tmp_path / f'{number}.sqlite') for number in range(step, count + 1, step)]
    assert set(seen) == {(1, 18), (len(minici.MIGRATIONS), 18)}


def test_specs_that_lack_what_is_new_are_read_with_defaults(ci, project, runner):
    ci.create_pipeline(project, 'main', sha='1' * 40, content={'test': {'script': ['make']}})
    with ci.db.write() as c:
        row = c.execute('SELECT spec FROM job').fetchone()
        whole = minici.stored_spec(row)
        assert set(whole) >= {field.name for field in dataclasses.fields(minici.JobSpec)}
        for name in set(json.loads(row['spec'])) - {'name', 'script', 'stage'}:
            bare = {key: value for key, value in json.loads(row['spec']).items() if key != name}
            c.execute('UPDATE job SET spec = :spec', {'spec': json.dumps(bare)})
            assert minici.stored_spec(c.execute('SELECT spec FROM job').fetchone()) | {name: None} \
                == whole | {name: None}
        c.execute('UPDATE job SET spec = :spec', {'spec': json.dumps({'name': 'test', 'script': ['make']})})
    job = Client(ci).call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=201).json
    Client(ci).call('PUT', f'/api/v4/jobs/{job["id"]}', json={'token': job['token'], 'state': 'failed'}, status=200)
