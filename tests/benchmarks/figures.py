"""The benchmarks by name: each yields its figures."""

import functools
import resource
import subprocess
import sys
import time
from pathlib import Path

from stand import INSTALLED, ROOT, SHA, Figure, best_cpu, call, fill, job_specs, runner_request

import minici

BENCHMARKS = {}
JSON = {'Content-Type': 'application/json'}
#: Measured in one round: each figure is the slowest of ten seconds already.
ONCE = ('hostile',)


def benchmark(function):
    """Make a generator of figures a benchmark, under its name."""
    BENCHMARKS[function.__name__] = function
    return function


class Rounds:
    """Values that several figures of one round share: measured by the first that asks, anew in each round."""

    def __init__(self):
        self._values = {}
        self._asked = {}

    def share(self, name, figure, measure):
        """Return the value called `name` of this round for a figure."""
        turn = self._asked.get((name, figure), 0)
        self._asked[name, figure] = turn + 1
        if (name, turn) not in self._values:
            self._values[name, turn] = measure()
        return self._values[name, turn]


def made(ci, path='group/demo'):
    """Return a project, and the token of a runner with the tag of its jobs."""
    project = ci.create_project(path)
    return project, ci.register_runner(ci.registration_token, tag_list=['linux'])[1]


def claimed(ci):
    """Return how many jobs have been claimed."""
    return ci.count_jobs(scope=['running'], limit=10 ** 9)


@benchmark
def claims(stand):
    """A durable claim with a runner's request of 700 bytes, the whole payload and tags."""
    rounds = stand.options.rounds
    ci = stand.coordinator('claims')
    project, token = made(ci)
    fill(ci, project, 2500 * 2 * rounds if not stand.options.quick else 3000)
    server, shared = stand.serve('claims'), Rounds()
    post = functools.partial(server.wrk, method='POST', body=runner_request(token), headers=JSON)

    def load(connections):
        before = claimed(ci)
        done = post('/api/v4/jobs/request', connections=connections)
        done.claims = claimed(ci) - before
        if done.requests - done.claims > connections:
            raise SystemExit(f'{done.requests} requests claimed {done.claims} jobs: make more of them')
        return done

    def at_eight(figure):
        return shared.share('claim', figure, lambda: load(8))

    inside = stand.coordinator('inside')
    _, own = made(inside)
    fill(inside, inside.find_project(1), 1200 * rounds if not stand.options.quick else 1200)
    app = minici.create_app(inside)
    body = runner_request(own).encode()

    def claim():
        assert call(app, 'POST', '/api/v4/jobs/request', body, CONTENT_TYPE='application/json')[0] == 201

    yield Figure('1', 'claim, 8 connections, durable', 'hello POST', '>= 0.20',
                 lambda: at_eight('rate').rate / post('/hello').rate)
    yield Figure('1', 'CPU of a claim over sockets', '1 ms', '<= 1.2',
                 lambda: at_eight('cpu').cpu / at_eight('count').claims * 1000)
    yield Figure('1', 'CPU of a claim in the application', '1 ms', '<= 0.45',
                 lambda: best_cpu(claim, repeat=100) * 1000)

    def spread():
        done = load(32)
        return done.latency[99] / done.latency[50]
    yield Figure('2', 'claim p99, 32 connections', 'its p50', '<= 2', spread)


@benchmark
def polls(stand):
    """An idle poll, behind jobs that the runner has no tags for."""
    ci = stand.coordinator('polls')
    project, token = made(ci)
    fill(ci, project, 200, tags=['other'])
    server, shared = stand.serve('polls'), Rounds()
    value = ci.queue_value(ci.find_runner(token))
    post = functools.partial(server.wrk, method='POST', headers=JSON)
    post('/api/v4/jobs/request', body=runner_request(token))     # the first poll notes the contact

    def hello(figure):
        return shared.share('hello', figure, lambda: post('/hello', body=runner_request(token)).rate)
    files = [ci.db.path, ci.db.path.with_name(ci.db.path.name + '-wal')]

    def written():
        before = [file.stat() for file in files]
        post('/api/v4/jobs/request', body=runner_request(token))
        after = [file.stat() for file in files]
        return sum(max(new.st_size - old.st_size, new.st_mtime_ns != old.st_mtime_ns)
                   for old, new in zip(before, after, strict=True)) / 1024
    yield Figure('3', 'idle poll', 'hello POST', '>= 0.55',
                 lambda: post('/api/v4/jobs/request', body=runner_request(token)).rate / hello('poll'))
    yield Figure('3', 'idle poll with last_update', 'hello POST', '>= 0.65',
                 lambda: post('/api/v4/jobs/request', body=runner_request(token, last_update=value)).rate
                 / hello('known'))
    yield Figure('3', 'database KiB written by a second of idle polls', '1 KiB', '<= 0', written)


#: Sends the trace in pieces over one connection: each begins where the answer to the one before says.
PIECES = """
position = 0
request = function()
  wrk.headers["Content-Range"] = position .. "-" .. position + #wrk.body
  return wrk.format(nil, nil, wrk.headers, wrk.body)
end
response = function(status, headers)
  position = tonumber((headers["Range"] or headers["range"] or "0-0"):match("-(%d+)"))
end
"""


@benchmark
def traces(stand):
    """A PATCH of a trace, one connection, not durable, divided by a PATCH that does nothing."""
    ci = stand.coordinator('traces')
    project, token = made(ci)
    fill(ci, project, 100)
    server, runner = stand.serve('traces', fsync=False), ci.find_runner(token)

    def patch(size, path, job_token=''):
        return server.wrk(path, method='PATCH', body='x' * size, connections=1, script=PIECES,
                          headers={'JOB-TOKEN': job_token, 'Content-Type': 'text/plain'}).rate

    def ratio(size):
        claim = ci.request_job(runner)
        done = patch(size, f'/api/v4/jobs/{claim.job["id"]}/trace', claim.token) / patch(size, '/hello')
        ci.update_job(ci.authenticate_job(claim.job['id'], claim.token), 'success')
        ci.erase_job(ci.find_job(claim.job['id']))
        return done
    yield Figure('4', 'PATCH of 1 KB', 'PATCH that does nothing', '>= 0.70', lambda: ratio(1024))
    yield Figure('4', 'PATCH of 64 KB', 'PATCH that does nothing', '>= 0.60', lambda: ratio(65536 // 4)
                 if stand.options.quick else ratio(65536))
    app, claim, position = minici.create_app(ci), ci.request_job(runner), [0]

    def inside():
        status, _ = call(app, 'PATCH', f'/api/v4/jobs/{claim.job["id"]}/trace', b'x' * 1024,
                         HTTP_JOB_TOKEN=claim.token, HTTP_CONTENT_RANGE=f'{position[0]}-', CONTENT_TYPE='text/plain')
        assert status == 202
        position[0] += 1024
    yield Figure('4', 'CPU of a PATCH of 1 KB in the application', '100 us', '<= 1.1',
                 lambda: best_cpu(inside, repeat=200) * 10_000)


@benchmark
def lists(stand):
    """Lists of jobs over HTTP."""
    ci = stand.coordinator('lists')
    project, token = made(ci)
    fill(ci, project, 12_000 if not stand.options.quick else 500)
    other = ci.create_project('group/done')
    fill(ci, other, 200, tags=['done'])
    with ci.db.write() as c:
        c.execute("""UPDATE job SET status = 'success', started_at = created_at + 1, finished_at = created_at + 60,
                  runner_id = 1 WHERE project_id = :id""", {'id': other['id']})
    headers = {'PRIVATE-TOKEN': ci.create_private_token()}
    newest, = ci.list_jobs(project=other, limit=1)
    server, shared = stand.serve('lists'), Rounds()

    def ratio(name, path):
        hello = shared.share('hello', name, lambda: server.wrk('/hello').rate)
        return server.wrk(path, headers=headers).rate / hello
    for name, path, target in (('list of 20 pending jobs', f'/api/v4/projects/{project["id"]}/jobs', '>= 0.30'),
                               ('list of 20 finished jobs', f'/api/v4/projects/{other["id"]}/jobs', '>= 0.35'),
                               ('one job', f'/api/v4/projects/{other["id"]}/jobs/{newest["id"]}', '>= 0.45')):
        yield Figure('5', name, 'hello GET', target, functools.partial(ratio, name, path))


def history(ci, jobs, *, projects=10):
    """Put that many finished jobs into the database, in pipelines of 20: one in 10,000 failed."""
    token = ci.register_runner(ci.registration_token, tag_list=['linux'])[1]
    made_projects = [ci.create_project(f'group/old-{number}') for number in range(projects)]
    for project in made_projects:
        fill(ci, project, 20, together=20)
    with ci.db.write() as c:
        names = {table: [row['name'] for row in c.execute(f'PRAGMA table_info({table})').fetchall()]
                 for table in ('pipeline', 'job')}
        copied = {'pipeline': {'id': 'next', 'iid': 'next', 'project_id': f'1 + next % {projects}'},
                  'job': {'id': 'next', 'pipeline_id': f'{projects} + 1 + (next - {20 * projects} - 1) / 20',
                          'project_id': f'1 + ({projects} + 1 + (next - {20 * projects} - 1) / 20) % {projects}',
                          'name': "'job ' || next % 20", 'runner_id': '1', 'started_at': 'created_at + 1',
                          'finished_at': 'created_at + 60',
                          'status': "CASE WHEN next % 10000 = 77 THEN 'failed' ELSE 'success' END"}}
        for table, first, last in (('pipeline', projects + 1, projects + jobs // 20),
                                   ('job', 20 * projects + 1, 20 * projects + jobs)):
            columns = ', '.join(names[table])
            values = ', '.join(copied[table].get(name, f'template.{name}') for name in names[table])
            c.execute(f"""
                INSERT INTO {table} ({columns})
                WITH RECURSIVE numbers (next) AS (SELECT {first} UNION ALL SELECT next + 1 FROM numbers
                                                   WHERE next < {last})
                SELECT {values} FROM numbers CROSS JOIN {table} AS template WHERE template.id = 1
                """)
        c.execute("UPDATE pipeline SET status = 'success', finished_at = created_at + 60")
    return made_projects[0], token


#: What dashboards and clients ask: a name, and the query of a project's list of jobs.
QUERIES = {
    'plain': '',
    'keyset': '?pagination=keyset',
    'page 500': '?page=500',
    'a frequent status': '?scope[]=success',
    'a rare status': '?scope[]=failed',
}


def steps(app, ci, path, headers):
    """Return how many thousands of instructions SQLite runs for a request."""
    counted = []
    with ci.db.read() as c:
        c.set_progress_handler(lambda: counted.append(1), 1)
    status, _ = call(app, 'GET', path, **headers)
    with ci.db.read() as c:
        c.set_progress_handler(None, 0)
    assert status == 200, status
    return len(counted)


@benchmark
def plans(stand):
    """The lists before and after ANALYZE, by the instructions that SQLite runs."""
    ci = stand.coordinator('plans')
    project, _ = history(ci, 100_000 if not stand.options.quick else 5000)
    for tag in ('linux', *'abcdefghi'):     # a table that ANALYZE saw nearly empty is scanned, which costs no more
        fill(ci, project, 10, tags=[tag])
        ci.register_runner(ci.registration_token, tag_list=[tag])
        ci.create_private_token(tag)
    headers = {'HTTP_PRIVATE_TOKEN': ci.create_private_token()}
    paths = {name: f'/api/v4/projects/{project["id"]}/jobs{query}' for name, query in QUERIES.items()}
    before = {name: steps(minici.create_app(ci), ci, path, headers) for name, path in paths.items()}
    with ci.db.write() as c:
        c.execute('ANALYZE')
    other = minici.Coordinator(ci.db.path, fsync=False)
    stand.ends.callback(other.close)
    for name, path in paths.items():
        yield Figure('6', f'list of jobs after ANALYZE: {name}', 'before', '<= 1', functools.partial(
            lambda name, path: steps(minici.create_app(other), other, path, headers) / before[name], name, path))


def finish_cpu(ci, pipeline, token):
    """Return the CPU seconds of finishing one job of a pipeline."""
    claim = ci.request_job(ci.find_runner(token), pipeline=pipeline)
    job = ci.authenticate_job(claim.job['id'], claim.token)
    began = time.thread_time()
    ci.update_job(job, 'success')
    return time.thread_time() - began


@benchmark
def finishes(stand):
    """The finish of one job in pipelines of several sizes in turns, by CPU in the process, the best of nine."""
    ci = stand.coordinator('finishes')
    project, token = made(ci)
    shapes = {
        '10 jobs in one stage': (10, 1),
        '1,000 jobs in 10 stages': (1000, 10),
        '4,000 stages of one job': (4000, 4000),
    }
    specs_of = {}
    for name, (jobs, stages) in shapes.items():
        if stand.options.quick:
            jobs, stages = min(jobs, 100), min(stages, 100)
        specs = [minici.JobSpec(**{**vars(spec), 'stage': f's{number * stages // jobs}'})
                 for number, spec in enumerate(job_specs(jobs, ['linux']))]
        specs_of[name] = minici.PipelineSpec(stages=[f's{number}' for number in range(stages)], jobs=specs,
                                             auto_cancel='none')
    shared = Rounds()

    def all_shapes():
        """Finish nine jobs of a new pipeline of each shape, in turns; return the best time of each shape."""
        pipelines = {name: ci.create_pipeline(project, 'main', sha=SHA, content=spec)
                     for name, spec in specs_of.items()}
        best = dict.fromkeys(shapes, float('inf'))
        for _ in range(9):
            for name, pipeline in pipelines.items():
                best[name] = min(best[name], finish_cpu(ci, pipeline, token))
        for pipeline in pipelines.values():
            ci.cancel_pipeline(pipeline)
        return best

    def ratio(name):
        best = shared.share('all', name, all_shapes)
        return best[name] / best[small]
    small, *large = shapes
    for name, target in zip(large, ('<= 1.3', '<= 1.5'), strict=True):
        yield Figure('7', f'finish of a job of {name}', f'of {small}', target, functools.partial(ratio, name))


@benchmark
def pages(stand):
    """The pages that people open."""
    ci = stand.coordinator('pages')
    project, token = made(ci)
    fill(ci, project, 100, together=10)
    wide = ci.create_pipeline(project, 'main', sha=SHA, content=minici.PipelineSpec(
        stages=[f's{number}' for number in range(10)], auto_cancel='none', jobs=[
            minici.JobSpec(name=f'job {number}', stage=f's{number // 15}', script=['make'], tag_list=['linux'])
            for number in range(150)]))
    claim = ci.request_job(ci.find_runner(token))
    job = ci.authenticate_job(claim.job['id'], claim.token)
    ci.append_trace(job, 0, b'\x1b[32ma line of the log\x1b[0m\n' * 2000)
    cookie = {'Cookie': f'minici_{ci.instance}={ci.sign_in_with(ci.create_private_token())}', 'Accept': 'text/html'}
    server, shared = stand.serve('pages'), Rounds()
    here = '/group/demo/-'

    def ratio(name, path):
        hello = shared.share('hello', name, lambda: server.wrk('/hello').rate)
        return server.wrk(path, headers=cookie).rate / hello
    for name, path, target in (
            ('home', '/', '>= 0.25'),
            ('pipeline of 150', f'{here}/pipelines/{wide["id"]}', '>= 0.12'),
            ('job', f'{here}/jobs/{job["id"]}', '>= 0.30')):
        yield Figure('8', f'page: {name}', 'hello GET', target, functools.partial(ratio, name, path))


@benchmark
def depth(stand):
    """The same lists with few and with very many jobs behind them."""
    sizes = (100_000, 2_000_000) if not stand.options.quick else (2000, 4000)
    apps = []
    for size in sizes:
        ci = stand.coordinator(f'depth-{size}')
        project, _ = history(ci, size)
        apps.append((minici.create_app(ci), project, {'HTTP_PRIVATE_TOKEN': ci.create_private_token()}))

    def p50(number, query):
        app, project, headers = apps[number]
        times = []
        for _ in range(21):
            began = time.perf_counter()
            call(app, 'GET', f'/api/v4/projects/{project["id"]}/jobs{query}', **headers)
            times.append(time.perf_counter() - began)
        return sorted(times)[10]
    for name, query in QUERIES.items():
        yield Figure('9', f'list behind {sizes[1]:,} jobs: {name}', f'behind {sizes[0]:,}', '<= 1.2', functools.partial(
            lambda query: p50(1, query) / p50(0, query), query))


@benchmark
def uploads(stand):
    """Small requests while an archive of 500 MB arrives."""
    ci = stand.coordinator('uploads')
    project, token = made(ci)
    fill(ci, project, 10 * stand.options.rounds)
    server, runner = stand.serve('uploads'), ci.find_runner(token)
    archive = stand.folder / 'archive.zip'
    with open(archive, 'wb') as file:
        file.truncate((500 if not stand.options.quick else 5) * minici.MIB)

    def kept():
        calm = server.wrk('/hello').rate
        claim = ci.request_job(runner)
        upload = subprocess.Popen(['curl', '-sS', '-o', '/dev/null', '-H', f'JOB-TOKEN: {claim.token}', '-F',
                                   f'file=@{archive}', f'{server.url}/api/v4/jobs/{claim.job["id"]}/artifacts'])
        busy = server.wrk('/hello').rate
        upload.wait(120)
        return busy / calm
    yield Figure('10', 'hello GET during an upload of 500 MB', 'without', '>= 0.7', kept)


@benchmark
def memory(stand):
    """What an idle server has in memory, and what importing costs."""
    def resident(jobs):
        name = f'memory-{time.monotonic_ns()}'
        with minici.Coordinator(stand.folder / f'{name}.sqlite', fsync=False) as ci:
            if jobs:
                history(ci, jobs)
        server = stand.serve(name)
        for _ in range(20):
            subprocess.run(['curl', '-sS', '-o', '/dev/null', f'{server.url}/hello'], check=True)
        return server.resident()

    def once(code):
        """Return the CPU seconds of a Python that runs some code."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, env=INSTALLED)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def importing():
        """Return what importing minici costs beside what it needs: the best of nine turns, without Python's start."""
        turns = [(once(''), once('import bottle, waitress'), once('import minici')) for _ in range(9)]
        empty, others, ours = (min(times) for times in zip(*turns, strict=True))
        return (ours - empty) / (others - empty)
    yield Figure('11', 'idle memory of a new server', '1 MiB', '<= 38', lambda: resident(0))
    yield Figure('11', 'idle memory with 10,000 jobs', '1 MiB', '<= 40', lambda: resident(10_000))
    yield Figure('11', 'import minici', 'import bottle, waitress', '<= 1.8', importing)


@benchmark
def builds(stand):
    """Whole builds from four clients, durable: create, claim, two PATCHes, PUT."""
    ci = stand.coordinator('builds')
    _, token = made(ci)
    server = stand.serve('builds')
    private = ci.create_private_token()
    program = str(Path(__file__).with_name('client.py'))

    def run():
        before = server.cpu()
        done = subprocess.run([sys.executable, program, server.url, token, private,
                               '3' if not stand.options.quick else '1'], capture_output=True, text=True, check=True)
        run.builds = float(done.stdout)
        return run.builds, (server.cpu() - before) / (run.builds * (3 if not stand.options.quick else 1)) * 1000
    shared = Rounds()
    yield Figure('12', 'whole builds a second, 4 clients, durable', '1 a second', '>= 200',
                 lambda: shared.share('run', 'rate', run)[0])
    yield Figure('12', 'CPU of the server for a build', '1 ms', '<= 4', lambda: shared.share('run', 'cpu', run)[1])


def large_file(jobs=120):
    """Return a pipeline file as large ones are: anchors, extends, rules, a matrix, needs."""
    lines = ['stages: [build, test, deploy]', 'variables: {A: "1", B: "2"}',
             '.rules: &rules', '  - if: $CI_COMMIT_BRANCH == "main" || $CI_COMMIT_TAG',
             '  - if: $CI_PIPELINE_SOURCE == "schedule" && $A =~ /^[0-9]+$/', '    when: never',
             '.base:', '  image: debian:12', '  before_script: [apt-get update]',
             '  cache: {key: $CI_COMMIT_REF_SLUG, paths: [vendor/]}', '  retry: 2']
    for number in range(jobs):
        stage = ('build', 'test', 'deploy')[number * 3 // jobs]
        lines += [f'job-{number}:', '  extends: .base', f'  stage: {stage}', '  rules: *rules',
                  f'  variables: {{NUMBER: "{number}", NAME: "job $NUMBER of $A"}}', '  script:',
                  '    - echo "$NAME"', '    - make -j4 all', '    - make check',
                  '  artifacts: {paths: [out/], expire_in: 1 week, reports: {junit: report.xml}}']
        if stage == 'test':
            lines.append(f'  needs: [job-{number * 3 // jobs}]')
            lines.append('  parallel: {matrix: [{OS: [linux, mac], V: ["1", "2", "3"]}]}')
    return '\n'.join(lines) + '\n'


@benchmark
def compiles(stand):
    """Pipeline files: a large one with what it includes from its folder, and small ones a second."""
    large, tree = large_file(), minici.NoFiles()
    if stand.options.file:
        path = Path(stand.options.file)
        large, tree = path.read_text(), minici.Directory(path.parent)
    small = 'test:\n  script:\n    - make\n    - make test\n  rules:\n    - if: $CI_COMMIT_BRANCH\n'
    jobs = len(minici.compile_pipeline(large, repository=tree).jobs)
    yield Figure('14', f'compile a file of {jobs} jobs', '1 s', '<= 0.2',
                 lambda: best_cpu(lambda: minici.compile_pipeline(large, repository=tree), batches=3, repeat=1))
    yield Figure('14', 'small files compiled in a second', '1 a second', '>= 100',
                 lambda: 1 / best_cpu(lambda: minici.compile_pipeline(small), batches=3, repeat=30))


@benchmark
def logs(stand):
    """A log of 15 MB with a runner's time stamps, divided by the same log without them."""
    ci = stand.coordinator('logs')
    project, token = made(ci)
    fill(ci, project, 2)
    size = 15_000_000 if not stand.options.quick else 100_000
    line = 'compiling src/module/file.c with all warnings: ok'
    plain = f'{line}\n' * (size // (len(line) + 1))
    stamped = f'2026-01-02T03:04:05.123456Z 01O {line}\n' * (size // (len(line) + 33))
    server, found = stand.serve('logs', fsync=False), {}
    for name, text in (('plain', plain), ('stamped', stamped)):
        claim = ci.request_job(ci.find_runner(token))
        job = ci.authenticate_job(claim.job['id'], claim.token)
        ci.append_trace(job, 0, text.encode())
        ci.update_job(job, 'success')
        found[name] = f'/group/demo/-/jobs/{job["id"]}'
    cookie = f'minici_{ci.instance}={ci.sign_in_with(ci.create_private_token())}'

    def seconds(path):
        began = time.perf_counter()
        subprocess.run(['curl', '-sS', '-f', '-o', '/dev/null', '-H', f'Cookie: {cookie}', '-H', 'Accept: text/html',
                        f'{server.url}{path}'], check=True)
        return time.perf_counter() - began

    def ratio(view):
        return min(seconds(found['stamped'] + view) for _ in range(3)) / min(
            seconds(found['plain'] + view) for _ in range(3))
    yield Figure('15', 'page of a stamped log', 'without stamps', '<= 1.3', lambda: ratio(''))
    yield Figure('15', 'plain text of a stamped log', 'without stamps', '<= 1.3', lambda: ratio('/plain'))


@benchmark
def hostile(stand):
    """The slowest answer to a runner in ten seconds of each attack, ten times side by side, and the memory it takes."""
    sys.path.insert(0, str(ROOT / 'tests'))
    from hostile import ATTACKS, MIB, measure
    rounds, rows = Rounds(), [*ATTACKS][:2] if stand.options.quick else ATTACKS
    seconds = 2 if stand.options.quick else 10

    def figure(row, kind, divisor):
        def value():
            found = rounds.share(row, kind, lambda: measure(row, seconds))
            return getattr(found, kind) / divisor
        return value

    for row in rows:
        for kind in ('poll', 'patch', 'final'):
            yield Figure('12', f'{row}: slowest {kind}', '1 s', '<= 1.0', figure(row, kind, 1))
        yield Figure('12', f'{row}: memory', '1 MiB', '<= 200', figure(row, 'memory', MIB))
