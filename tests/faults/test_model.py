"""A job against its model, and every route against any request, for longer than the ordinary suite has time."""

import http.client
import json
import logging
import random
import resource
from urllib.parse import quote, urlencode

import pytest
import test_fuzz
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from support import Served, call

#: Long tests in so many parts, each with chances of its own, so that two processors share the work.
PARTS = pytest.mark.parametrize('part', range(4))


@PARTS
def test_a_job_behaves_as_its_model(form, figures, part):
    runs, steps = form((1, 30), (500, 40))
    machine = seed(part)(type('Machine', (test_fuzz.JobMachine,), {}))
    run_state_machine_as_test(machine, settings=settings(
        max_examples=runs, stateful_step_count=steps, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck)))
    figures('2,000 runs x 40 steps in four parts, 0 divergences', f'{runs} runs x {steps} steps, 0 divergences')


def hostile(chance):
    """Return a text that some parser may trip over."""
    kinds = [lambda: chance.choice(test_fuzz.WORDS), lambda: str(chance.randrange(-2 ** 70, 2 ** 70)),
             lambda: chance.randbytes(chance.randrange(12)).decode('latin-1'), lambda: '[' * chance.randrange(200),
             lambda: '%' + chance.choice(['00', 'ff', 'zz', '2F', 'c0%80']), lambda: 'a' * chance.randrange(5000),
             lambda: chance.choice(['../' * 9, "' OR 1=1 --", '<script>', '{{7*7}}', '\r\nX: y', '${HOME}'])]
    return chance.choice(kinds)()


def request(surface, chance):
    """Return a route and a request for it: half of what it carries is what the route expects."""
    route = chance.choice(surface.routes)
    path, query = surface.address(route), surface.key(route)
    if chance.random() < 0.3:
        path = '/'.join(chance.choice([part, part, hostile(chance)]) for part in path.split('/'))
        path = quote(path, safe="/%-_.~", errors='replace')
    names = [f'{chance.choice(test_fuzz.NAMES)}{chance.choice(["", "", "[]", "[a]"])}' for _ in range(4)]
    values = {name: hostile(chance) for name in names[:chance.randrange(5)]}
    encoded = urlencode(values, errors='replace')
    kind = chance.choice(['application/json', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x',
                          'text/plain', ''])
    body = {'application/json': json.dumps(values).encode(),
            'application/x-www-form-urlencoded': encoded.encode()}.get(kind, chance.randbytes(chance.randrange(300)))
    if chance.random() < 0.2:
        body = body[:chance.randrange(len(body) + 1)]
    headers = {chance.choice(['HTTP_RANGE', 'HTTP_CONTENT_RANGE', 'HTTP_IF_NONE_MATCH', 'HTTP_JOB_TOKEN', 'HTTP_HOST']):
               hostile(chance).encode('utf-8', 'replace').decode('latin-1')} if chance.random() < 0.3 else {}
    return route, path, f'{query}&{encoded}' if chance.random() < 0.3 else query, body, kind, headers


@PARTS
def test_no_request_to_any_route_fails_inside(tmp_path, form, figures, caplog, part):
    surface, chance = test_fuzz.Surface(tmp_path), random.Random(20 + part)
    count = form(125, 45_000)
    failures, statuses, memory = [], {}, 0
    for number in range(count):
        route, path, query, body, kind, headers = request(surface, chance)
        status, *_ = surface.send(route.method, path, query, body, kind, **headers)
        statuses[status] = statuses.get(status, 0) + 1
        if status >= 500 and status != 501:
            failures.append((route.method, path, query, body, kind, headers))
        if number == count // 5:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    surface.ci.close()
    assert failures == []
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert grown < 200
    figures('200,000 requests in four parts with the sockets below, 0 x 500, memory flat',
            f'{count:,} requests in process, 0 x 500, {grown:.0f} MB more at the end than after a fifth')


def test_no_request_over_a_socket_fails_inside(tmp_path, form, figures):
    count, chance, failures = form(100, 20_000), random.Random(30), []
    surface = test_fuzz.Surface(tmp_path)
    surface.ready()
    requests = [request(surface, chance) for _ in range(min(count, 2000))]
    surface.ci.close()
    with Served(tmp_path / 'ci.sqlite') as server:
        connection = server.connect()
        for number in range(count):
            route, path, query, body, kind, _ = requests[number % len(requests)]
            try:
                connection.putrequest(route.method, f'{path}?{query}'.encode().decode('latin-1').replace(' ', '+'))
                connection.putheader('Content-Length', str(len(body)))
                connection.putheader('Content-Type', kind)
                connection.endheaders(body)
                with connection.getresponse() as answer:
                    answer.read()
                    if answer.status >= 500 and answer.status != 501:
                        failures.append((answer.status, route.method, path, query))
            except (http.client.HTTPException, OSError, ValueError):
                connection.close()
        connection.close()
        probe = server.connect()
        assert call(probe, 'GET', '/api/v4/version')[0] == 401
        probe.close()
        log = server.log.read_text()
    assert failures == []
    assert 'Traceback' not in log
    figures('0 x 500', f'{count:,} requests by sockets, 0 x 500')
