"""Faults: each looks on the wire as its name says, happens to the requests that were meant, and is counted."""

import contextlib
import http.client
import socket
import threading
import time
import urllib.parse

import pytest
from minici_testing import Fault, Faults, MiniciServer
from minici_testing.faults import UnusedFault

VERSION = '/api/v4/version'


@pytest.fixture
def server():
    with MiniciServer() as running:
        yield running


def get(server, path=VERSION, method='GET', **headers):
    """Send a request over a connection of its own; return the status and the body of the answer."""
    address = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, headers={'PRIVATE-TOKEN': server.private_token, **headers})
        answer = connection.getresponse()
        with answer:
            return answer.status, answer.read()


@pytest.mark.parametrize('fault, error', [
    (Fault.EMPTY_RESPONSE, http.client.RemoteDisconnected), (Fault.LOST_ANSWER, http.client.RemoteDisconnected),
    (Fault.RESET_BY_PEER, ConnectionResetError), (Fault.MALFORMED_CHUNK, http.client.IncompleteRead),
    (Fault.RANDOM_DATA, http.client.HTTPException), (Fault.LIMITED_BYTES, http.client.IncompleteRead)])
def test_a_fault_is_seen_on_the_wire_once_and_then_all_is_well(server, fault, error):
    server.faults.add('GET', VERSION, fault=fault)
    with pytest.raises(error):
        get(server)
    assert get(server)[0] == 200
    server.faults.assert_used()


@pytest.mark.parametrize('fault, made', [
    (Fault.EMPTY_RESPONSE, 0), (Fault.RESET_BY_PEER, 0), (Fault.MALFORMED_CHUNK, 0), (Fault.LOST_ANSWER, 1)])
def test_only_a_lost_answer_is_to_a_request_that_was_processed(server, fault, made):
    server.faults.add('POST', '/api/v4/projects', fault=fault)
    with pytest.raises((http.client.HTTPException, OSError)):
        get(server, '/api/v4/projects?path=demo', 'POST')
    assert server.ci.list_projects()[1] == made


def test_a_timeout_holds_its_request_alone_and_ends_when_released(server):
    server.faults.add('GET', VERSION, fault=Fault.TIMEOUT)
    seen = []

    def wait():
        with contextlib.suppress(http.client.RemoteDisconnected):
            seen.append(get(server))
        seen.append('over')

    thread = threading.Thread(target=wait)
    thread.start()
    while not server.faults.rules[0].fired:
        time.sleep(0.01)
    assert get(server)[0] == 200
    assert seen == []
    server.faults.release()
    thread.join(20)
    assert seen == ['over']


def test_slow_slices_come_whole(server):
    _, body = get(server)
    server.faults.add('GET', VERSION, fault=Fault.SLOW_SLICES, delay=0.01)
    assert get(server) == (200, body)


def test_status_headers_and_body_stand_in_for_the_application(server):
    server.faults.add('GET', VERSION, status=429, headers={'Retry-After': '7'}, body='slow down')
    assert get(server) == (429, b'slow down')


def test_a_body_is_corrupted(server):
    _, body = get(server)
    server.faults.add('GET', VERSION, corrupt=lambda text: text[::-1])
    assert get(server) == (200, body[::-1])


def statuses(server, count):
    return [get(server)[0] for _ in range(count)]


def test_nth_and_times_count_matching_requests_alone(server):
    server.faults.add('GET', VERSION, nth=2, times=2, status=500)
    results = []
    for _ in range(5):
        results += statuses(server, 1)
        get(server, '/api/v4/user')     # a poll in the background does not use it up
        get(server, VERSION, 'HEAD')
    assert results == [200, 500, 500, 200, 200]


def test_a_rule_without_end_goes_on_until_it_is_removed(server):
    rule = server.faults.add('*', '/api/*', times=None, status=503)
    assert statuses(server, 3) == [503] * 3
    server.faults.remove(rule)
    assert statuses(server, 1) == [200]
    with pytest.raises(KeyError):
        server.faults.remove(rule)


def test_when_decides_by_the_request(server):
    server.faults.add('GET', VERSION, when=lambda environ: environ.get('HTTP_X_FAIL') == 'yes', status=500)
    assert get(server)[0] == 200
    assert get(server, **{'X-Fail': 'yes'})[0] == 500


def test_of_two_rules_that_are_due_the_older_happens_and_the_younger_is_not_used(server):
    server.faults.add('GET', VERSION, status=500)
    server.faults.add('GET', VERSION, status=501)
    assert statuses(server, 2) == [500, 200]
    assert [rule.status for rule in server.faults.unused()] == [501]


def test_chance_is_decided_by_the_seed():
    def outcomes(seed):
        with MiniciServer(seed=seed) as server:
            server.faults.add('GET', VERSION, times=None, chance=0.5, status=500)
            return statuses(server, 20)

    assert outcomes(1) == outcomes(1)
    assert outcomes(1) != outcomes(2)
    assert set(outcomes(1)) == {200, 500}


def test_a_rule_that_was_never_used_is_named(server):
    server.faults.add('PATCH', '/api/v4/jobs/*/trace', nth=3, status=500)
    with pytest.raises(UnusedFault, match=r'PATCH /api/v4/jobs/\*/trace \(number 3, 1 times\): status 500: matched 0'):
        server.faults.assert_used()


@pytest.mark.parametrize('options, complaint', [
    ({}, 'say what goes wrong'), ({'status': 99}, 'not an HTTP status'), ({'status': 500, 'nth': 0}, 'count from 1'),
    ({'status': 500, 'times': 0}, 'count from 1'), ({'status': 500, 'chance': 0}, 'probability'),
    ({'fault': 'nonsense'}, 'nonsense')])
def test_nonsense_is_refused(server, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        server.faults.add('GET', '/', **options)


def test_requests_of_many_threads_are_counted_exactly(server):
    rule = server.faults.add('GET', VERSION, nth=10, times=10, status=500)
    results = []
    threads = [threading.Thread(target=lambda: results.extend(statuses(server, 10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (results.count(500), rule.seen, rule.fired) == (10, 40, 10)


def test_any_wsgi_application_can_be_wrapped():
    def application(environ, start_response):
        start_response('200 OK', [('Content-Type', 'text/plain')])
        return [b'fine']

    faults = Faults(application)
    faults.add('GET', '/there', status=404)
    said = []
    environ = {'REQUEST_METHOD': 'GET', 'PATH_INFO': '/there'}
    assert faults(environ, lambda status, headers: said.append(status)) == [b'']
    assert faults(environ, lambda status, headers: said.append(status)) == [b'fine']
    assert said == ['404 Ordered by the test', '200 OK']


def test_a_fault_that_needs_the_connection_says_so_where_there_is_none():
    faults = Faults(lambda environ, start_response: [])
    faults.add('GET', '/', fault=Fault.RESET_BY_PEER)
    with pytest.raises(RuntimeError, match='waitress'):
        faults({'REQUEST_METHOD': 'GET', 'PATH_INFO': '/'}, None)


def test_the_socket_is_free_after_a_stop(server):
    port = server.port
    server.stop()
    with socket.create_server(('127.0.0.1', port)):
        pass
