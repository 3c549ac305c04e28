"""Claims from many processes through several servers: each job once, the oldest first."""

import collections
import json
import time

from support import SHA, Runner, Served, python

import minici

CLAIMER = """
import http.client, json, sys, threading

ports, token = sys.argv[1].split(','), sys.argv[2]
claimed, odd, lock = [], [], threading.Lock()

def claim(port):
    connection = http.client.HTTPConnection('127.0.0.1', int(port), timeout=60)
    while True:
        connection.request('POST', '/api/v4/jobs/request', json.dumps({'token': token}),
                           {'Content-Type': 'application/json'})
        with connection.getresponse() as answer:
            body = answer.read()
        if answer.status == 201:
            claimed.append(json.loads(body)['id'])
        elif answer.status == 204:
            return connection.close()
        else:
            odd.append(answer.status)
            if answer.status != 503:
                return

print('ready', flush=True)
sys.stdin.readline()
threads = [threading.Thread(target=claim, args=(ports[number % len(ports)],)) for number in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps([claimed, odd]))
"""
TAG_SETS = ([], ['arm'], ['linux'], ['arm', 'linux'])


def prepare(db, count):
    """Make `count` pending jobs of four sets of tags; return the token of a runner that takes them all."""
    with minici.Coordinator(db, fsync=False) as ci:
        project = ci.create_project('demo')
        for start in range(0, count, 1000):
            jobs = [minici.JobSpec(f'job {number}', ['make'], tag_list=TAG_SETS[number % 4])
                    for number in range(start, min(count, start + 1000))]
            ci.create_pipeline(project, 'main', sha=SHA, content=minici.PipelineSpec(['test'], jobs))
        return Runner(ci, tag_list=['arm', 'linux'], run_untagged=True).token


def order_of_claims(db):
    """Return the ids of the claimed jobs of each set of tags in the order of their claims."""
    claims = collections.defaultdict(list)
    with minici.Coordinator(db, fsync=False) as ci, ci.db.read() as c:
        for row in c.execute("SELECT job.id, job.tag_set_id FROM event JOIN job ON job.id = event.object_id "
                             "WHERE event.kind = 'job' AND event.status = 'running' ORDER BY event.id"):
            claims[row['tag_set_id']].append(row['id'])
    return claims


def test_each_job_is_claimed_once_and_the_oldest_of_its_tags_first(tmp_path, form, figures):
    count, processes = form((240, 2), (10_000, 8))
    db = tmp_path / 'ci.sqlite'
    token = prepare(db, count)
    patient = ('--claim-timeout', '1 day')      # nothing is heard of a job after its claim here
    with Served(db, *patient) as first, Served(db, *patient) as second, Served(db, *patient) as third:
        ports = ','.join(str(server.port) for server in (first, second, third))
        claimers = [python(CLAIMER, ports, token) for _ in range(processes)]
        for claimer in claimers:
            assert claimer.stdout.readline() == 'ready\n'
        began = time.monotonic()
        for claimer in claimers:
            claimer.stdin.write('go\n')
            claimer.stdin.flush()
        answers = [json.loads(claimer.communicate(timeout=600)[0]) for claimer in claimers]
        seconds = time.monotonic() - began
    claimed = [job for ids, _ in answers for job in ids]
    odd = [status for _, statuses in answers for status in statuses]
    assert sorted(claimed) == list(range(1, count + 1))
    assert set(odd) <= {503}
    order = order_of_claims(db)
    assert sum(map(len, order.values())) == count
    assert all(ids == sorted(ids) for ids in order.values())
    figures('each once, order per tag set', f'{count:,} jobs by {processes} x 8 clients through 3 servers: each once, '
            f'in order, {len(odd)} x 503, {count / seconds:.0f} a second')
