"""Serve a fleet of runners for some seconds; print what it costs and how long its requests take.

    python tests/benchmarks/fleet.py [--runners 300] [--jobs 50] [--builds 1] [--watched 5] [--seconds 30]

Each runner asks for a job every 3 seconds over a connection of its own. `--jobs` of them have a job that
lasts all the time and send 2 KiB of its trace every 30 seconds, the `--watched` ones every 3 seconds. Beside
them `--builds` whole builds a second are created, claimed, run and finished. The server is durable.
"""

import argparse
import contextlib
import heapq
import http.client
import json
import queue
import statistics
import sys
import threading
import time
import urllib.parse
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

from client import JSON, build  # noqa: E402
from stand import Stand, fill, runner_request  # noqa: E402

POLL_EVERY, PIECE_EVERY, WATCHED_EVERY = 3, 30, 3
PIECE = b'a line of the log of a job\n' * 76


class Machine:
    """One runner of the fleet: its connection, its token, and the job that it has, if any."""

    def __init__(self, address, token, claim=None):
        self.client = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
        self.request = runner_request(token)
        self.claim = claim
        self.sent = 0
        self._lock = threading.Lock()   # its next turn may come before the answer

    def act(self):
        """Ask for a job, or send a piece of the trace."""
        with self._lock:
            self._act()

    def _act(self):
        if self.claim is None:
            self._send('POST', '/api/v4/jobs/request', self.request, JSON, 204)
            return
        self._send('PATCH', f'/api/v4/jobs/{self.claim.job["id"]}/trace', PIECE, {
            'JOB-TOKEN': self.claim.token, 'Content-Range': f'{self.sent}-{self.sent + len(PIECE) - 1}',
            'Content-Type': 'text/plain'}, 202)
        self.sent += len(PIECE)

    def _send(self, method, path, body, headers, expected):
        self.client.request(method, path, body, headers)
        answer = self.client.getresponse()
        text = answer.read()
        if answer.status != expected:
            raise SystemExit(f'{method} {path}: {answer.status} {text[:200]}')


def play(machines, builder, builds, seconds):
    """Let everybody act when it is their turn; return how long each request took from that moment on."""
    began = time.monotonic()
    due, taken, tasks = [], [], queue.SimpleQueue()
    for number, (machine, every) in enumerate(machines):
        heapq.heappush(due, (began + every * number / len(machines), number, machine.act, every))
    if builds:
        heapq.heappush(due, (began, len(machines), builder, 1 / builds))

    def work():
        while (task := tasks.get()) is not None:
            moment, act = task
            act()
            taken.append(time.monotonic() - moment)
    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    while due[0][0] < began + seconds:
        moment, number, act, every = heapq.heappop(due)
        time.sleep(max(0, moment - time.monotonic()))
        tasks.put((moment, act))
        heapq.heappush(due, (moment + every, number, act, every))
    for _ in threads:
        tasks.put(None)
    for thread in threads:
        thread.join()
    return taken


def main(argv=None):
    """Run the fleet and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--runners', type=int, default=300)
    parser.add_argument('--jobs', type=int, default=50, help='runners that have a job all the time')
    parser.add_argument('--watched', type=int, default=5, help='jobs whose trace somebody reads')
    parser.add_argument('--builds', type=float, default=1, help='whole builds a second beside them')
    parser.add_argument('--seconds', type=float, default=30)
    parser.add_argument('--directory', help='where the database is made (default: the temporary directory)')
    options = parser.parse_args(argv)
    stand = Stand(options)
    with stand.ends:
        ci = stand.coordinator('fleet')
        token = ci.register_runner(ci.registration_token, tag_list=['linux'])[1]
        fill(ci, ci.create_project('group/demo'), options.jobs)
        claims = [ci.request_job(ci.find_runner(token)) for _ in range(options.jobs)]
        idle = ci.register_runner(ci.registration_token, tag_list=['none'], run_untagged=False)[1]
        private = ci.create_private_token()
        server = stand.serve('fleet')
        address = urllib.parse.urlsplit(server.url)
        machines = [(Machine(address, token, claim), WATCHED_EVERY if number < options.watched else PIECE_EVERY)
                    for number, claim in enumerate(claims)]
        machines += [(Machine(address, idle), POLL_EVERY) for _ in range(options.runners - options.jobs)]
        lock, client = threading.Lock(), http.client.HTTPConnection(address.hostname, address.port, timeout=60)

        def builder():
            with lock:
                build(client, token, private)
        for machine, _ in machines:
            stand.ends.callback(machine.client.close)
        stand.ends.enter_context(contextlib.closing(client))
        before = server.cpu()
        taken = sorted(play(machines, builder, options.builds, options.seconds))
        print(json.dumps({
            'actions a second': round(len(taken) / options.seconds, 1),
            'share of one core': round((server.cpu() - before) / options.seconds, 3),
            'median ms': round(statistics.median(taken) * 1000, 1),
            'p99 ms': round(taken[len(taken) * 99 // 100] * 1000, 1),
            'slowest ms': round(taken[-1] * 1000, 1),
            'resident MiB': round(server.resident()),
        }))


if __name__ == '__main__':
    main()
