"""Run the same builds on Buildbot and on minici, in turns; print what minici takes of what Buildbot takes.

    python tests/benchmarks/beside_buildbot.py --buildbot DIR [--rounds 3] [--builds 50]

DIR is the `bin` of a virtual environment with buildbot, buildbot-www and buildbot-worker. Both servers run with SQLite
and without pages; two workers run `true` for each build.
"""

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

from client import CONTENT, JSON  # noqa: E402
from stand import INSTALLED, ROOT, Figure, Server, Stand, runner_request  # noqa: E402

import minici  # noqa: E402

MASTER = """
from buildbot.plugins import schedulers, steps, util, worker
factory = util.BuildFactory([steps.ShellCommand(command=['true'])])
BuildmasterConfig = {{
    'workers': [worker.Worker(name, 'secret') for name in ('one', 'two')],
    'protocols': {{'pb': {{'port': 'tcp:{workers}:interface=127.0.0.1'}}}},
    'schedulers': [schedulers.ForceScheduler(name='force', builderNames=['true'])],
    'builders': [util.BuilderConfig(name='true', workernames=['one', 'two'], factory=factory)],
    'collapseRequests': False,
    'www': {{'port': 'tcp:{pages}:interface=127.0.0.1', 'plugins': {{}}}},
    'db': {{'db_url': 'sqlite:///state.sqlite'}},
    'buildbotURL': 'http://127.0.0.1:{pages}/',
    'buildbotNetUsageData': None,
}}
"""


def free_port():
    """Return a port of loopback that nobody uses now."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        return listener.getsockname()[1]


def ask(url, body=None, headers=None):
    """Return the JSON that a server answers."""
    data = None if body is None else body.encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers or {}), timeout=60) as answer:
        return json.loads(answer.read() or 'null')


def until(condition, seconds=60):
    """Wait until a condition holds, and return how long that took."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        with contextlib.suppress(OSError, http.client.IncompleteRead):   # Buildbot answers so now and then
            if condition():
                return time.monotonic() - began
        time.sleep(0.02)
    raise SystemExit('a server of the comparison did not do its work in time')


def milliseconds(url, headers=None):
    """Return how long the median of some requests takes."""
    taken = []
    for _ in range(30):
        began = time.monotonic()
        with contextlib.suppress(http.client.IncompleteRead):
            ask(url, headers=headers)
        taken.append(time.monotonic() - began)
    return statistics.median(taken) * 1000


def started(ends, command, folder, url):
    """Start a server; return it, and how many seconds passed until it answered."""
    process = subprocess.Popen(command, cwd=folder, env=INSTALLED, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    ends.callback(process.wait, 20)
    ends.callback(process.terminate)
    taken = until(lambda: urllib.request.urlopen(url, timeout=5).status == 200)
    return Server(process.pid, url, folder), taken


def buildbot(options, folder):
    """Return what Buildbot takes: start, memory, builds a second, CPU of each, a list of 20."""
    programs, workers, pages = Path(options.buildbot), free_port(), free_port()
    subprocess.run([programs / 'buildbot', 'create-master', '-r', 'master'], cwd=folder, check=True,
                   stdout=subprocess.DEVNULL)
    (folder / 'master' / 'master.cfg').write_text(MASTER.format(workers=workers, pages=pages))
    url = f'http://127.0.0.1:{pages}/api/v2'
    with contextlib.ExitStack() as ends:
        server, start = started(ends, [programs / 'buildbot', 'start', '--nodaemon', 'master'], folder,
                                f'{url}/builders')
        resident = server.resident()
        for name in ('one', 'two'):
            subprocess.run([programs / 'buildbot-worker', 'create-worker', name, f'127.0.0.1:{workers}', name,
                            'secret'], cwd=folder, check=True, stdout=subprocess.DEVNULL)
            worker = subprocess.Popen([programs / 'buildbot-worker', 'start', '--nodaemon', name], cwd=folder,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            ends.callback(worker.wait, 20)
            ends.callback(worker.terminate)
        until(lambda: sum(bool(worker['connected_to']) for worker in ask(f'{url}/workers')['workers']) == 2)
        force = json.dumps({'method': 'force', 'jsonrpc': '2.0', 'id': 1, 'params': {'builderid': '1'}})

        def finished():
            return not ask(f'{url}/buildrequests?complete=false&limit=1')['buildrequests']
        before, began = server.cpu(), time.monotonic()
        for _ in range(options.builds):
            ask(f'{url}/forceschedulers/force', force, JSON)
        until(finished, 300)
        rate = options.builds / (time.monotonic() - began)
        cpu = (server.cpu() - before) / options.builds * 1000
        return start, resident, rate, cpu, milliseconds(f'{url}/builds?order=-buildid&limit=20')


def run_jobs(url, token, left):
    """Do what a runner does, until no build is left: claim a job, run `true`, send its trace and its state."""
    while left:
        job = ask(f'{url}/api/v4/jobs/request', runner_request(token), JSON)
        if job is None:
            time.sleep(0.05)
            continue
        subprocess.run(['true'], check=True)
        trace = urllib.request.Request(f'{url}/api/v4/jobs/{job["id"]}/trace', b'$ true\n', method='PATCH', headers={
            'JOB-TOKEN': job['token'], 'Content-Range': '0-6', 'Content-Type': 'text/plain'})
        urllib.request.urlopen(trace, timeout=60).close()
        state = json.dumps({'token': job['token'], 'state': 'success'}).encode()
        final = urllib.request.Request(f'{url}/api/v4/jobs/{job["id"]}', state, method='PUT', headers=JSON)
        urllib.request.urlopen(final, timeout=60).close()
        left.pop()


def ours(options, folder):
    """Return what minici takes, as `buildbot` does."""
    database, port = folder / 'ci.sqlite', free_port()
    with minici.Coordinator(database) as ci:
        ci.create_project('group/demo')
        token = ci.register_runner(ci.registration_token, tag_list=['linux'])[1]
        private = {'PRIVATE-TOKEN': ci.create_private_token()}
    url = f'http://127.0.0.1:{port}'
    with contextlib.ExitStack() as ends:
        server, start = started(ends, [sys.executable, '-m', 'minici', '--db', str(database), '--port', str(port)],
                                ROOT, f'{url}/-/liveness')
        resident = server.resident()
        left = [None] * options.builds
        before, began = server.cpu(), time.monotonic()
        workers = [threading.Thread(target=run_jobs, args=(url, token, left)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for _ in range(options.builds):
            ask(f'{url}/api/v4/projects/1/pipeline', CONTENT, {**JSON, **private})
        for worker in workers:
            worker.join()
        rate = options.builds / (time.monotonic() - began)
        cpu = (server.cpu() - before) / options.builds * 1000
        return start, resident, rate, cpu, milliseconds(f'{url}/api/v4/projects/1/jobs', private)


FIGURES = (('start', '<= 0.18'), ('idle memory', '<= 0.42'), ('builds a second', '>= 34'),
           ('CPU of the server for a build', '<= 0.025'), ('a list of 20', '<= 0.1'))


def main(argv=None):
    """Run both and print the ratios, with what each of them took in the last round."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--buildbot', required=True, metavar='DIR', help='where its programs are')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--builds', type=int, default=50)
    parser.add_argument('--directory', help='where the databases are made (default: the temporary directory)')
    options = parser.parse_args(argv)
    options.buildbot = os.path.abspath(options.buildbot)
    figures = [Figure('13', name, 'Buildbot', target, lambda: 0) for name, target in FIGURES]
    stand = Stand(options)
    with stand.ends:
        for number in range(options.rounds):
            folders = [stand.folder / f'{name}-{number}' for name in ('theirs', 'ours')]
            for folder in folders:
                folder.mkdir()
            theirs, mine = buildbot(options, folders[0]), ours(options, folders[1])
            for figure, divisor, value in zip(figures, theirs, mine, strict=True):
                figure.values.append(value / divisor)
    for figure, divisor, value in zip(figures, theirs, mine, strict=True):
        verdict = 'reached' if figure.is_reached else 'MISSED'
        print(f'{figure.name:32} {value:8.3f} / {divisor:8.3f}   {figure.ratio:7.3f}   '
              f'{min(figure.values):.3f}-{max(figure.values):.3f}   {figure.target:9} {verdict}')
    return int(not all(figure.is_reached for figure in figures))


if __name__ == '__main__':
    sys.exit(main())
