"""Measure minici against itself, side by side in one run, and print ratios.

    python tests/benchmarks/bench.py [--jobs 100000] [--rounds 5]

Times on a shared machine mean little; a ratio taken within one round means something. Each line says
how much longer the second thing takes than the first: the median of the rounds, and their range.
"""

import argparse
import io
import statistics
import sys
import time
import warnings
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


def seconds(action, repeat):
    """Return the seconds that one of `repeat` actions takes."""
    began = time.perf_counter()
    for _ in range(repeat):
        action()
    return (time.perf_counter() - began) / repeat


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
    import http.client
    import threading

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


def main(argv=None):
    """Measure each pair in turn and print its ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--jobs', type=int, default=100_000)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--repeat', type=int, default=100)
    options = parser.parse_args(argv)
    (small, small_token), (large, large_token) = filled(1000), filled(options.jobs)
    pairs = [
        (f'claim behind 1,000 pending jobs -> behind {options.jobs:,}', claims(small, small_token),
         claims(large, large_token)),
        (f'list 20 of 1,000 jobs -> of {options.jobs:,}', lists(small), lists(large)),
        ('PATCH of 1 KB -> of 64 KB', patches(small, small_token, 1024), patches(large, large_token, 65536)),
        ('idle poll with the queue value -> without', polls(small, small_token, known=True),
         polls(large, large_token, known=False)),
        ('8 x 25 requests to waitress as minici sets it -> at its defaults',
         hellos({'send_bytes': minici.MIB, 'asyncore_use_poll': True}), hellos({})),
    ]
    for name, first, second in pairs:
        repeat = options.repeat if 'waitress' not in name else 1
        ratios = []
        for _ in range(options.rounds):
            base = seconds(first, repeat)
            ratios.append(seconds(second, repeat) / base)
        print(f'{name}: x {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})')
    small.close()
    large.close()
    return 0


if __name__ == '__main__':
    sys.exit(main())
