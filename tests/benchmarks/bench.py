"""Measure minici against itself, side by side in one run, and print ratios.

    python tests/benchmarks/bench.py [pages] [queues] [traces] [browser] [--jobs 100000] [--trace 100]

Times on a shared machine mean little; a ratio taken within one round means something. Each line says
how much longer the second thing takes than the first: the median of the rounds, and their range. The
pages are those of ten jobs in one pipeline, then the same with very many jobs behind a pipeline of 150;
what is asked of a long trace stands beside counting its lines. `browser` needs Chromium and Playwright.
"""

import argparse
import contextlib
import functools
import http.client
import io
import statistics
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

import waitress  # noqa: E402

import minici  # noqa: E402

SHA = '0123456789abcdef0123456789abcdef01234567'


def filled(jobs):
    """Return a coordinator with that many pending jobs of two sets of tags, and the token of a runner for one."""
    ci = minici.Coordinator(fsync=False)
    project = ci.create_project('bench')
    for start in range(0, jobs, 1000):
        specs = [minici.JobSpec(name=f'job {n}', script=['make'], tag_list=['other'] if n % 2 else ['mine'])
                 for n in range(start, min(start + 1000, jobs))]
        ci.create_pipeline(project, 'main', sha=SHA, content=minici.PipelineSpec(stages=('test',), jobs=specs))
    return ci, ci.register_runner(ci.registration_token, tag_list=['mine'])[1]


def seconds(action):
    """Return the seconds that an action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def ratio(first, second, repeat):
    """Return how much longer the second action takes than the first: they take turns, their medians count."""
    turns = [(seconds(first), seconds(second)) for _ in range(repeat)]
    one, other = (statistics.median(times) for times in zip(*turns, strict=True))
    return other / one


def call(app, method, path, body=b'', **headers):
    """Send a request to a WSGI application and return its answer."""
    environ = {'REQUEST_METHOD': method, 'PATH_INFO': path, 'SCRIPT_NAME': '', 'QUERY_STRING': '', 'SERVER_NAME': 'x',
               'SERVER_PORT': '80', 'SERVER_PROTOCOL': 'HTTP/1.1', 'wsgi.url_scheme': 'http', 'REQUEST_URI': path,
               'wsgi.input': io.BytesIO(body), 'wsgi.errors': sys.stderr, 'CONTENT_LENGTH': str(len(body)), **headers}
    return b''.join(app(environ, lambda status, headers, exc_info=None: None))


def claims(ci, token):
    """Return an action that claims a job."""
    return lambda: ci.request_job(ci.find_runner(token))


def lists(ci):
    """Return an action that lists 20 jobs."""
    app, token = minici.create_app(ci), ci.create_private_token()
    return lambda: call(app, 'GET', '/api/v4/projects/1/jobs', HTTP_PRIVATE_TOKEN=token)


def patches(ci, token, size):
    """Return an action that sends `size` bytes of a trace."""
    app, claim, position = minici.create_app(ci), ci.request_job(ci.find_runner(token)), [0]

    def patch():
        call(app, 'PATCH', f'/api/v4/jobs/{claim.job["id"]}/trace', b'x' * size, HTTP_JOB_TOKEN=claim.token,
             HTTP_CONTENT_RANGE=f'{position[0]}-')
        position[0] += size
    return patch


def polls(ci, token, *, known):
    """Return an action that asks for a job in vain, with or without the queue's value."""
    runner = ci.edit_runner(ci.find_runner(token), tag_list=['nobody'], run_untagged=False)
    value = ci.queue_value(ci.find_runner(token)) if known else None
    assert runner['id']
    return lambda: ci.request_job(ci.find_runner(token), last_update=value)


def hellos(options):
    """Return an action that asks waitress with these options for nothing, eight at a time, and its end."""
    def hello(environ, start_response):
        start_response('200 OK', [('Content-Length', '2')])
        return [b'ok']
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        server = waitress.create_server(hello, host='127.0.0.1', port=0, threads=8, **options)
    threading.Thread(target=server.run, daemon=True).start()
    clients = [http.client.HTTPConnection('127.0.0.1', server.effective_port) for _ in range(8)]

    def ask(client):
        for _ in range(25):
            client.request('GET', '/')
            client.getresponse().read()

    def action():
        threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return action


def queues(options, ends):
    """Yield pairs about the queue, the API and the server below it."""
    few = 4 * options.rounds * options.repeat  # half of them are for the runner, half of those remain
    (small, small_token), (large, large_token) = filled(few), filled(options.jobs)
    ends.callback(small.close)
    ends.callback(large.close)
    yield (f'claim behind {few:,} pending jobs -> behind {options.jobs:,}', claims(small, small_token),
           claims(large, large_token))
    yield f'list 20 of {few:,} jobs -> of {options.jobs:,}', lists(small), lists(large)
    yield 'PATCH of 1 KB -> of 64 KB', patches(small, small_token, 1024), patches(large, large_token, 65536)
    yield ('idle poll with the queue value -> without', polls(small, small_token, known=True),
           polls(large, large_token, known=False))
    yield ('8 x 25 requests to waitress as minici sets it -> at its defaults',
           hellos({'send_bytes': minici.MIB, 'asyncore_use_poll': True}), hellos({}))


def board(jobs, stages):
    """Return a pipeline file of that many jobs, a tenth of them a matrix, some with needs, in that many stages."""
    names = [f'stage {number}' for number in range(stages)]
    wide = max(2, jobs // 10)
    plain = [(f'job {number}', number * stages // (jobs - wide)) for number in range(jobs - wide)]
    content = {'stages': names, 'default': {'tags': ['linux']}, 'matrix': {
        'stage': names[1], 'script': ['make'],
        'parallel': {'matrix': [{'BROWSER': [f'v{number}' for number in range(wide)]}]}}}
    for number, (name, stage) in enumerate(plain):
        content[name] = {'stage': names[stage], 'script': ['make'], 'variables': {'NUMBER': number}}
        if stage and number % 4 == 0:
            content[name]['needs'] = [other for other, before in plain if before == stage - 1][:2]
    return content


def history(ci, projects, jobs):
    """Make that many finished jobs in pipelines of 20: one ref and one status are rare."""
    stages = ['build'] * 5 + ['test'] * 10 + ['deploy'] * 5
    spec = minici.PipelineSpec(stages=('build', 'test', 'deploy'), auto_cancel='none', jobs=[
        minici.JobSpec(name=f'job {number}', stage=stage, script=['make']) for number, stage in enumerate(stages)])
    for number in range(jobs // len(stages)):
        ref = 'rare' if number % 1000 == 7 else 'main' if number % 3 else f'feature-{number % 50}'
        ci.create_pipeline(projects[number % len(projects)], ref, sha=SHA, content=spec)
    for table, pipeline in (('job', 'pipeline_id'), ('pipeline', 'id')):
        with ci.db.write() as c:
            c.execute(f"UPDATE {table} SET started_at = created_at, finished_at = created_at + 60, status = CASE "
                      f"WHEN {pipeline} % 500 = 7 THEN 'canceled' WHEN {pipeline} % 7 = 0 THEN 'failed' "
                      "ELSE 'success' END")


def bundle(entries):
    """Return a zip file of that many reports."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for number in range(entries):
            archive.writestr(f'report-{number}.html', 'all is well')
    return buffer.getvalue()


def site(ends, jobs):
    """Return how a browser gets a path from a coordinator that has something to see on every page, and three paths."""
    ci = minici.Coordinator(fsync=False)
    ends.callback(ci.close)
    projects = [ci.create_project(f'group/demo-{number}') for number in range(20 if jobs else 1)]
    wide, stages, done = (150, 10, 80) if jobs else (10, 3, 5)
    history(ci, projects, jobs)
    if jobs:
        waiting = {f'job {number}': {'script': ['make'], 'tags': ['windows']} for number in range(30)}
        ci.create_pipeline(projects[1], 'main', sha=SHA, content=waiting)
        for number in range(4):
            ci.register_runner(ci.registration_token, tag_list=['macos'], description=f'mac {number}')
    pipeline = ci.create_pipeline(projects[0], 'main', sha=SHA, content=board(wide, stages))
    token = ci.register_runner(ci.registration_token, tag_list=['linux'])[1]
    first = None
    for number in range(done + max(2, wide // 50)):
        claim = ci.request_job(ci.find_runner(token))
        job = ci.authenticate_job(claim.job['id'], claim.token)
        ci.append_trace(job, 0, b'\x1b[32ma line of the log\x1b[0m\n' * 10_000)
        if first is None:
            first, part = job, ci.artifacts.receive()
            part.write(bundle(entries=100))
            ci.store_artifacts(job, part)
        if number < done:
            ci.update_job(job, 'failed' if number == done - 1 else 'success', failure_reason='script_failure')
    server = minici.Server(ci)
    ends.callback(server.stop)
    here = f'/{pipeline["project_path"]}/-'
    return visitor(ci, server), {'pipeline': f'{here}/pipelines/{pipeline["id"]}', 'job': f'{here}/jobs/{job["id"]}',
                                 'archive': f'{here}/jobs/{first["id"]}/artifacts/browse'}


def visitor(ci, server):
    """Return how a signed-in browser gets a path, over one connection."""
    client = http.client.HTTPConnection(server.host, server.port)
    cookie = f'minici_{ci.instance}={ci.sign_in_with(ci.create_private_token())}'

    def get(path, **headers):
        client.request('GET', path, headers={'Cookie': cookie, 'Accept': 'text/html', **headers})
        answer = client.getresponse()
        answer.read()
        if answer.status not in (200, 206):
            raise SystemExit(f'{path}: {answer.status} {answer.reason}')
    return get


def pages(options, ends):
    """Yield, for each page, how to get it where there are ten jobs, and where there are very many."""
    (get, paths), (get_other, others) = site(ends, 0), site(ends, options.jobs)
    for name, path, other in (
            ('home', '/', '/'), ('home, page 50', '/', '/?page=50'),
            ('home, a project', '/?project=group/demo-0', '/?project=group/demo-0'),
            ('home, a ref', '/?ref=main', '/?ref=main'), ('home, a rare ref', '/?ref=main', '/?ref=rare'),
            ('home, a status', '/?status=running', '/?status=success'),
            ('home, a rare status', '/?status=running', '/?status=canceled'),
            ('home, a status of none', '/?status=scheduled', '/?status=scheduled'),
            ('home, a project and a rare status', '/?project=group/demo-0&status=running',
             '/?project=group/demo-6&status=canceled'),
            ('home, a ref and a rare status', '/?ref=main&status=running', '/?ref=main&status=canceled'),
            ('pipeline', paths['pipeline'], others['pipeline']), ('job', paths['job'], others['job']),
            ('runners', '/-/runners', '/-/runners'), ('projects', '/-/projects', '/-/projects'),
            ('project', '/group/demo-0', '/group/demo-0'), ('new pipeline', '/-/pipelines/new', '/-/pipelines/new'),
            ('tokens', '/-/tokens', '/-/tokens'), ('artifacts', paths['archive'], others['archive'])):
        yield (f'page of 10 jobs -> of {options.jobs:,}: {name}', functools.partial(get, path),
               functools.partial(get_other, other))
    yield (f'page of 10 jobs -> of {options.jobs:,}: the end of a trace',
           functools.partial(get, f'{paths["job"]}/raw', Range='bytes=-65536'),
           functools.partial(get_other, f'{others["job"]}/raw', Range='bytes=-65536'))


def lines(size):
    """Return a trace of about so many bytes: sections, colours, progress bars."""
    part = b''.join(
        b'section_start:%d:step_%d\r\x1b[0K\x1b[36;1mStep %d of the script\x1b[0;m\n' % (number, number, number)
        + b''.join(b'\x1b[32m[%4d]\x1b[0m compiling src/module_%d/file_%d.c with all warnings: ok\n'
                   % (line, number, line) for line in range(98))
        + b'downloading  10%%\rdownloading 100%%\nsection_end:%d:step_%d\r\x1b[0K' % (number + 60, number)
        for number in range(100))
    return part * (size // len(part)) + b'\x1b[31mthe needle\x1b[0m\n'


def colours(size):
    """Return a hostile trace of about so many bytes: a colour for every three letters, and a single line."""
    part = b''.join(b'\x1b[%dmabc' % (31 + number % 7) for number in range(70))
    return part * (size // len(part)) + b'the needle'


def logs(ends, *contents):
    """Return a coordinator, its server, and of a finished job for each trace its path and the trace's file."""
    ci = minici.Coordinator(fsync=False, max_trace_size=minici.GIB)
    ends.callback(ci.close)
    project, runner = ci.create_project('logs'), ci.find_runner(ci.register_runner(ci.registration_token)[1])
    found = []
    for content in contents:
        ci.create_pipeline(project, 'main', sha=SHA, content={'test': {'script': ['make']}})
        claim = ci.request_job(runner)
        job = ci.authenticate_job(claim.job['id'], claim.token)
        ci.append_trace(job, 0, content)
        ci.update_job(job, 'success')
        found.append((f'/logs/-/jobs/{job["id"]}', ci.traces.path(job['id'])))
    server = minici.Server(ci)
    ends.callback(server.stop)
    return ci, server, found


def traces(options, ends):
    """Yield, for what is asked of a long trace, how to count its lines, and how to ask."""
    size = options.trace * minici.MIB
    ci, server, found = logs(ends, lines(size), colours(size))
    get = visitor(ci, server)
    for kind, (job, path) in zip(('a trace', 'a trace of colours alone'), found, strict=True):
        count = functools.partial(subprocess.run, ['wc', '-l', path], stdout=subprocess.DEVNULL, check=True)
        size = path.stat().st_size
        for name, asked in (('a byte near its end', f'lines?offset={size - 524288}'),
                            ('a search that ends there', 'lines?search=the+needle'),
                            ('a search in vain', 'lines?search=nothing+like+that'),
                            ('the first error of none', 'lines?errors=1'), ('plain text', 'plain')):
            yield (f'wc -l of {options.trace} MiB -> {kind}: {name}', count, functools.partial(get, f'{job}/{asked}'))
        yield (f'wc -l of {options.trace} MiB -> {kind}: its last half MiB', count,
               functools.partial(get, f'{job}/raw', Range='bytes=-524288'))


def browser(options, ends):
    """Yield how Chromium opens a job until the end of its log is there: a log of ten lines, then long ones."""
    sys.path[:0] = [str(Path(__file__).parents[1])]
    from browser import Chromium
    size = options.trace * minici.MIB
    ci, server, found = logs(ends, b'a line\n' * 9 + b'the needle\n', lines(size), colours(size))
    window = ends.enter_context(ends.enter_context(Chromium()).browser(server.url))
    session = ci.sign_in_with(ci.create_private_token())
    window.page.context.add_cookies([dict(name=f'minici_{ci.instance}', value=session,
                                          url=server.url)])
    window.page.add_init_script('window.tasks = [0]; new PerformanceObserver(list => tasks.push(...list.getEntries()'
                                ".map(entry => entry.duration))).observe({type: 'longtask', buffered: true});")
    longest = dict.fromkeys(found, 0)

    def visit(log):
        window.open(log[0])
        window.wait(lambda: window.page.evaluate(
            "document.getElementById('trace').lastElementChild && "
            "document.querySelector('#trace .line:last-of-type') && "
            "document.getElementById('trace').textContent.includes('the needle')"))
        longest[log] = max(longest[log], *window.page.evaluate(
            '() => new Promise(done => requestAnimationFrame(() => setTimeout(() => done(tasks), 0)))'))
    short, *long = found
    for kind, log in zip(('a trace', 'a trace of colours alone'), long, strict=True):
        yield (f'browser: a log of ten lines -> of {options.trace} MiB, {kind}', functools.partial(visit, short),
               functools.partial(visit, log))
    print('browser: the longest tasks took', ', '.join(f'{task:.0f} ms' for task in longest.values()))


def main(argv=None):
    """Measure each pair in turn and print its ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    groups = {'pages': pages, 'queues': queues, 'traces': traces, 'browser': browser}
    parser.add_argument('groups', nargs='*', choices=[[], *groups], help='what to measure (default: all but browser)')
    parser.add_argument('--jobs', type=int, default=100_000)
    parser.add_argument('--trace', type=int, default=100, help='MiB of a long trace')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--repeat', type=int, default=100)
    options = parser.parse_args(argv)
    for group in options.groups or [*groups][:3]:
        with contextlib.ExitStack() as ends:
            for name, first, second in groups[group](options, ends):
                repeat = 1 if group in ('traces', 'browser') or 'waitress' in name else options.repeat
                ratios = [ratio(first, second, repeat) for _ in range(options.rounds)]
                print(f'{name}: x {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
