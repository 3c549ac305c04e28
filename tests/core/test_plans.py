"""What users wait for costs the same whatever ANALYZE has seen, and takes as many statements as are written here."""

import contextlib
import sqlite3

import pytest
from support import SHA, Client, Runner

import minici

#: How many statements one request takes, transactions and triggers aside.
STATEMENTS = {
    'idle poll': 1,
    'idle poll with last_update': 1,
    'claim': 6,
    'PATCH': 2,
    'PUT': 6,
    'list of pending jobs': 5,
    'list of finished jobs': 5,
    'list of failed jobs': 4,
    'list by keyset': 4,
    'one job': 5,
    'list of runners': 2,
    'list of pipelines': 4,
    'one pipeline': 4,
    'page of pipelines': 7,
    'page of a pipeline': 6,
    'page of a job': 8,
}
#: What ANALYZE may have seen: jobs by status.
SEEN = {
    'a queue that was empty': {'success': 3000},
    'a queue that was full': {'pending': 3000, 'success': 20},
    'a young database': {'success': 300},
}


def fill(ci, project, statuses):
    """Put jobs into the database, in pipelines of twenty."""
    for status, number in statuses.items():
        for start in range(0, number, 20):
            specs = [minici.JobSpec(f'job {index}', ['make'], tag_list=['linux'])
                     for index in range(min(20, number - start))]
            pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=minici.PipelineSpec(
                ['test'], specs, auto_cancel='none'))
            with ci.db.write() as c:
                c.execute("""
                    UPDATE job SET status = :status, finished_at = CASE :status WHEN 'success' THEN created_at END
                     WHERE pipeline_id = :id
                    """, {'status': status, 'id': pipeline['id']})


@pytest.fixture
def heard(monkeypatch):
    """The statements that SQLite runs, with their values, in a list that can be cleared."""
    statements, connect = [], minici.Database._connect

    def listening(db, *, writer):
        connection = connect(db, writer=writer)
        connection.set_trace_callback(statements.append)
        return connection
    monkeypatch.setattr(minici.Database, '_connect', listening)
    return statements


def requests_of(client, ci, project):
    """Yield what users wait for: a name, and how it is asked."""
    runner = Runner(ci, tag_list=['linux'])
    idle = Runner(ci, tag_list=['none'], run_untagged=False)
    token = {'PRIVATE-TOKEN': ci.create_private_token()}
    session = ci.sign_in_with(ci.create_private_token())
    cookie = {'Cookie': f'minici_{ci.instance}={session}', 'Accept': 'text/html'}
    jobs, pipelines = f'/api/v4/projects/{project["id"]}/jobs', f'/api/v4/projects/{project["id"]}/pipelines'

    job, = ci.list_jobs(project=project, limit=1)

    def poll(**more):
        client.call('POST', '/api/v4/jobs/request', json={'token': idle.token, **more}, status=204)

    def claim():
        claim.job = client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=201).json

    def patch():
        client.call('PATCH', f'/api/v4/jobs/{claim.job["id"]}/trace', data=b'a line\n', status=202,
                    headers={'JOB-TOKEN': claim.job['token'], 'Content-Range': f'{patch.start}-'})
        patch.start += 7
    patch.start = 0

    def put():
        client.call('PUT', f'/api/v4/jobs/{claim.job["id"]}', json={'token': claim.job['token'], 'state': 'success'})

    def get(path, headers):
        return lambda: client.call('GET', path, headers=headers, status=200)
    yield 'idle poll', poll
    yield 'idle poll with last_update', lambda: poll(last_update=ci.queue_value(ci.find_runner(idle.token)))
    yield 'claim', claim
    yield 'PATCH', patch
    yield 'PUT', put
    yield 'list of pending jobs', get(f'{jobs}?scope[]=pending', token)
    yield 'list of finished jobs', get(jobs + '?scope[]=success', token)
    yield 'list of failed jobs', get(jobs + '?scope[]=failed&scope[]=canceled', token)
    yield 'list by keyset', get(jobs + '?pagination=keyset', token)
    yield 'one job', get(f'{jobs}/{job["id"]}', token)
    yield 'list of runners', get('/api/v4/runners/all', token)
    yield 'list of pipelines', get(pipelines, token)
    yield 'one pipeline', get(f'{pipelines}/{job["pipeline_id"]}', token)
    yield 'page of pipelines', get('/', cookie)
    yield 'page of a pipeline', get(f'/group/demo/-/pipelines/{job["pipeline_id"]}', cookie)
    yield 'page of a job', get(f'/group/demo/-/jobs/{job["id"]}', cookie)


def is_counted(statement):
    """Tell whether a statement is one of ours: not a transaction's bounds, and not of a trigger."""
    return not statement.startswith(('--', 'BEGIN', 'COMMIT', 'ROLLBACK', 'PRAGMA'))


def counted(statements):
    """Return how many statements were run; SQLite names one again for each trigger that it fires."""
    ours = [statement for statement in statements if is_counted(statement)]
    return sum(statement != before for before, statement in zip(['', *ours], ours, strict=False))


def plan_of(path, statement):
    """Return how SQLite runs a statement on a database file, by a connection that has read what ANALYZE found."""
    with contextlib.closing(sqlite3.connect(path)) as c:
        steps = [row[3] for row in c.execute(f'EXPLAIN QUERY PLAN {statement}')]
        return [step for step in steps if not step.startswith('BLOOM FILTER')]      # it only spares look-ups


@pytest.mark.parametrize('seen', SEEN)
def test_a_request_keeps_its_plans_whatever_analyze_has_seen(heard, tmp_path, clock, seen):
    bare, analyzed = tmp_path / 'ci.sqlite', tmp_path / 'analyzed.sqlite'
    with minici.Coordinator(bare, clock=clock, fsync=False) as ci:
        project, *others = (ci.create_project(path) for path in ('group/demo', *'abcdefghi'))
        for other in others:    # SQLite scans a table that ANALYZE saw nearly empty, whatever a statement says
            ci.create_pipeline(other, 'main', sha=SHA, content={'test': {'script': ['make'], 'tags': [other['path']]}})
        fill(ci, project, SEEN[seen])
        with contextlib.closing(sqlite3.connect(bare)) as c:
            c.execute('VACUUM INTO ?', (str(analyzed),))
        with contextlib.closing(sqlite3.connect(analyzed)) as c:
            c.execute('ANALYZE')
            c.commit()
        fill(ci, project, {'pending': 10})
        changed = {}
        for name, ask in requests_of(Client(ci), ci, project):
            heard.clear()
            ask()
            for statement in filter(is_counted, heard):
                before, after = plan_of(bare, statement), plan_of(analyzed, statement)
                if before != after:
                    changed[name, statement] = (before, after)
    assert changed == {}


def test_a_request_takes_as_many_statements_as_are_written_down(heard, tmp_path, clock):
    with minici.Coordinator(tmp_path / 'ci.sqlite', clock=clock, fsync=False) as ci:
        project = ci.create_project('group/demo')
        fill(ci, project, {'success': 30, 'failed': 30, 'pending': 30})
        found = {}
        for name, ask in requests_of(Client(ci), ci, project):
            if name != 'PUT':   # a job finishes only once
                ask()   # this makes connections, and looks up what is looked up once
            heard.clear()
            ask()
            found[name] = counted(heard)
    assert found == STATEMENTS
