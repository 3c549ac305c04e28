"""Run whole builds against a server for some seconds, with four clients; print how many a second.

    python client.py URL RUNNER-TOKEN PRIVATE-TOKEN SECONDS
"""

import http.client
import json
import sys
import threading
import time
import urllib.parse
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

from stand import SHA, runner_request  # noqa: E402

CONTENT = json.dumps({'ref': 'main', 'sha': SHA, 'content': {
    'test': {'script': ['make', 'make test'], 'tags': ['linux'], 'variables': {'A': '1'}}}})
JSON = {'Content-Type': 'application/json'}


def build(client, token, private):
    """Create a pipeline of one job, claim it, send its trace in two pieces and finish it."""
    def send(method, path, body, expected, headers=JSON):
        client.request(method, path, body, headers)
        answer = client.getresponse()
        text = answer.read()
        if answer.status != expected:
            raise SystemExit(f'{method} {path}: {answer.status} {text[:200]}')
        return text
    send('POST', '/api/v4/projects/1/pipeline', CONTENT, 201, {**JSON, 'PRIVATE-TOKEN': private})
    job = json.loads(send('POST', '/api/v4/jobs/request', runner_request(token), 201))
    piece = b'a line of the log\n' * 50
    for start in (0, len(piece)):
        send('PATCH', f'/api/v4/jobs/{job["id"]}/trace', piece, 202, {
            'JOB-TOKEN': job['token'], 'Content-Range': f'{start}-{start + len(piece) - 1}',
            'Content-Type': 'text/plain'})
    send('PUT', f'/api/v4/jobs/{job["id"]}', json.dumps({'token': job['token'], 'state': 'success'}), 200)


def main():
    """Count the builds of four clients until the time is over."""
    url, token, private, seconds = sys.argv[1:]
    address, counts = urllib.parse.urlsplit(url), [0] * 4
    until = time.monotonic() + float(seconds)

    def work(number):
        client = http.client.HTTPConnection(address.hostname, address.port)
        while time.monotonic() < until:
            build(client, token, private)
            counts[number] += 1
        client.close()
    clients = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    print(sum(counts) / float(seconds))


if __name__ == '__main__':
    main()
