"""What operators look for: health, metrics, the access log and the disk reserve."""

import collections
import http.client
import json
import logging
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import types

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support import EXAMPLES, FORM, PLAIN, SHA, UPLOAD, Client, archive, call

import minici

HERE = {'REMOTE_ADDR': '127.0.0.1'}
PATHS = ['/-/health', '/-/liveness', '/-/readiness', '/-/metrics']


def ask(client, path, status=200, headers=None, **environ):
    return client.get(path, status=status, headers=headers, extra_environ={**HERE, **environ})


def samples(text):
    """Return the samples of a text as Prometheus's own client reads them: values by name and labels."""
    found = {}
    for family in text_string_to_metric_families(text):
        for item in family.samples:
            key = (item.name, *sorted(item.labels.items()))
            assert key not in found, f'{key} is there twice'
            found[key] = item.value
    return found


def value(found, name, **labels):
    return found[(name, *sorted(labels.items()))]


# -- who may ask

@pytest.mark.parametrize('path', PATHS)
def test_a_monitor_on_this_machine_needs_no_token(client, path):
    ask(client, path)
    ask(client, path, REMOTE_ADDR='::1', HTTP_HOST='[::1]:8080')


@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize('elsewhere', [
    {'REMOTE_ADDR': '192.0.2.1'}, {'HTTP_HOST': 'ci.example.com'}, {'HTTP_X_FORWARDED_FOR': '192.0.2.1'},
    {'HTTP_FORWARDED': 'for=192.0.2.1'}, {'HTTP_X_REAL_IP': '192.0.2.1'}, {'HTTP_VIA': '1.1 proxy'}])
def test_a_monitor_elsewhere_or_behind_a_proxy_is_refused_without_the_token(client, path, elsewhere):
    ask(client, path, status=401, **elsewhere)


@pytest.mark.parametrize('path', PATHS)
def test_a_monitor_elsewhere_brings_the_metrics_token(tmp_path, path):
    with minici.Coordinator(tmp_path / 'ci.sqlite', metrics_token='open-sesame') as ci:
        client = Client(ci)
        ask(client, path, headers={'Authorization': 'Bearer open-sesame'}, REMOTE_ADDR='192.0.2.1')
        ask(client, f'{path}?token=open-sesame', REMOTE_ADDR='192.0.2.1')
        for wrong in ('open-sesam', 'ümlaut'.encode().decode('latin-1'), ''):
            ask(client, path, headers={'Authorization': f'Bearer {wrong}'}, REMOTE_ADDR='192.0.2.1', status=401)


# -- health

def test_readiness_says_what_is_wrong_and_liveness_does_not_ask_the_database(ci, client):
    assert ask(client, '/-/readiness').json['status'] == 'ok'
    ci.db.damage = 'page 7 is not there'
    answer = ask(client, '/-/readiness', status=503).json
    assert answer['status'] == 'failed'
    assert 'page 7' in answer['db_check'][0]['message']
    assert 'restore' in answer['db_check'][0]['message']
    ask(client, '/-/liveness')
    assert ask(client, '/-/health').text == 'GitLab OK'


def test_a_locked_database_is_ready_because_it_can_be_read(ci, client):
    with sqlite3.connect(ci.db.path, isolation_level=None) as holder:
        holder.execute('BEGIN IMMEDIATE')
        ask(client, '/-/readiness')
        holder.execute('ROLLBACK')
    holder.close()


# -- metrics

def test_metrics_tell_of_jobs_runners_claims_and_the_disk(ci, clock, client, project, runner):
    for _ in range(3):
        ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN)
    claim = client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=201).json
    client.call('PUT', f'/api/v4/jobs/{claim["id"]}', json={'token': claim['token'], 'state': 'success'}, status=200)
    client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=201)
    clock.advance(90)
    ci.sweep()
    found = samples(ask(client, '/-/metrics').text)
    counted = {labels[0][1]: number for (name, *labels), number in found.items() if name == 'minici_jobs'}
    expected = collections.Counter(success=1, running=1, pending=1)
    assert counted == {status: expected[status] for status in minici.JOB_STATUSES}
    assert value(found, 'minici_oldest_pending_seconds') == 90
    assert value(found, 'minici_runners_online') == 1
    assert value(found, 'minici_claims_total') == 2
    assert value(found, 'minici_http_requests_total', method='POST', route='/api/v4/jobs/request', status='201') == 2
    assert value(found, 'minici_last_sweep_timestamp_seconds') == clock.now
    assert value(found, 'minici_disk_free_bytes') > 0
    assert value(found, 'minici_database_bytes') % 4096 == 0


def test_alerts_ask_for_metrics_that_there_are(ci, client):
    client.call('GET', '/api/v4/version', status=401)
    names = {name for name, *_ in samples(ask(client, '/-/metrics').text)}
    alerts = yaml.safe_load((EXAMPLES / 'alerts.yml').read_text())
    asked = {name for rule in alerts['groups'][0]['rules'] for name in re.findall('minici_[a-z_]+', rule['expr'])}
    assert len(asked) > 4
    assert asked <= names


def test_histogram_of_request_times_adds_up(client, token):
    for _ in range(5):
        client.call('GET', '/api/v4/version', token=token, status=200)
    found = samples(ask(client, '/-/metrics').text)
    labels = {'method': 'GET', 'route': '/api/v4/version'}
    buckets = [value(found, 'minici_http_request_seconds_bucket', le=str(bound), **labels)
               for bound in minici.TIME_BUCKETS]
    assert buckets == sorted(buckets)
    assert value(found, 'minici_http_request_seconds_bucket', le='+Inf', **labels) == 5
    assert value(found, 'minici_http_request_seconds_count', **labels) == 5


def test_requests_that_no_route_has_are_counted_together(client):
    for path in ('/api/v4/nothing', '/api/v4/else', '/nowhere/at/all"x'):
        client.call('GET', path)
    found = samples(ask(client, '/-/metrics').text)
    assert value(found, 'minici_http_requests_total', method='', route='', status='404') >= 2


def test_answers_of_503_are_counted(ci, client, token):
    ci.db.damage = 'page 7'
    for _ in range(3):
        client.call('GET', '/api/v4/version', token=token, status=503)
    ci.db.damage = ''
    assert value(samples(ask(client, '/-/metrics').text), 'minici_unavailable_total') == 3


# -- the access log

@pytest.fixture
def logged(tmp_path, caplog):
    caplog.set_level(logging.INFO, 'minici.access')
    with minici.Coordinator(tmp_path / 'ci.sqlite', access_log=True, fsync=False) as ci:
        yield types.SimpleNamespace(ci=ci, client=Client(ci), lines=lambda: [
            record.getMessage() for record in caplog.records if record.name == 'minici.access'])


def test_access_log_has_one_line_a_request_without_query_or_token(logged):
    token = logged.ci.create_private_token()
    logged.client.call('GET', f'/api/v4/version?private_token={token}&x=secret', status=200)
    logged.client.call('GET', '/api/v4/projects/a%2Fb%0Ac', status=401)
    first, second = logged.lines()
    assert first.startswith('- GET /api/v4/version 200 ')
    assert first.endswith(' ms')
    assert second.startswith('- GET /api/v4/projects/a%2Fb%0Ac 401 ')
    assert token not in ''.join(logged.lines())
    assert 'secret' not in ''.join(logged.lines())


def test_without_the_setting_no_request_is_logged(client, caplog):
    caplog.set_level(logging.INFO)
    client.call('GET', '/api/v4/version', status=401)
    assert [record for record in caplog.records if record.name == 'minici.access'] == []


# -- the disk reserve

@pytest.mark.parametrize(('text', 'total', 'reserved'), [
    ('512M, 2%', 10 * 2 ** 30, int(0.02 * 10 * 2 ** 30)), ('512M, 2%', 2 ** 40, 512 * 2 ** 20),
    ('1G', 2 ** 30, 2 ** 30), ('0', 2 ** 40, 0), ('12.5%', 800, 100)])
def test_reserve_is_the_smallest_of_its_parts(text, total, reserved):
    assert minici.reserved_bytes(text, total) == reserved


@pytest.mark.parametrize('text', ['much', '', '120%', '-1', '5 %%', '1G;2G'])
def test_reserve_that_is_neither_a_size_nor_a_part_of_the_disk_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match='.'):
        minici.Coordinator(tmp_path / 'ci.sqlite', disk_reserve=text)


def test_below_the_reserve_uploads_are_refused_and_traces_and_states_still_fit(ci, server, job, monkeypatch):
    usage = shutil.disk_usage(ci.data)
    monkeypatch.setattr(minici.shutil, 'disk_usage', lambda path: usage._replace(free=511 * 2 ** 20, total=2 ** 40))
    connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=60)
    token = {'JOB-TOKEN': job.token}
    upload = archive(a='1').join(UPLOAD)
    status, headers, body = call(connection, 'POST', '/api/v4/jobs/1/artifacts', upload, {**token, **FORM})
    assert (status, headers['Retry-After']) == (503, str(minici.RETRY_AFTER))
    assert b'disk_reserve' in body
    status, *_ = call(connection, 'PATCH', '/api/v4/jobs/1/trace', b'one', {**token, 'Content-Range': '0-2'})
    assert status == 202
    monkeypatch.undo()
    status, *_ = call(connection, 'POST', '/api/v4/jobs/1/artifacts', upload, {**token, **FORM})
    assert status == 201
    connection.close()
    assert list(ci.artifacts.incoming.iterdir()) == []


# -- what the log tells

def messages(caplog, text):
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def test_a_new_pipeline_is_logged_with_where_it_came_from(ci, project, caplog):
    caplog.set_level(logging.INFO)
    ci.create_pipeline(project, 'main', sha=SHA, content=PLAIN, source='web')
    assert messages(caplog, 'pipeline 1') == [f'pipeline 1 of group/demo: main at {SHA}, from web']


def test_a_refused_webhook_and_a_refused_registration_are_logged_without_their_token(client, project, caplog):
    caplog.set_level(logging.INFO)
    client.call('POST', '/hooks/group/demo', json={'ref': 'refs/heads/main'}, status=403,
                headers={'X-Gitlab-Token': 'wrong-secret', 'X-Gitlab-Event': 'Push Hook'})
    client.call('POST', '/api/v4/runners', json={'token': 'wrong-secret'}, status=403)
    hook, registration = messages(caplog, 'refused')
    assert hook.startswith('POST /hooks/group/demo from ')
    assert registration.startswith('POST /api/v4/runners from ')
    assert '403' in hook
    assert 'wrong-secret' not in caplog.text


def test_a_flood_of_refusals_leaves_one_line_a_second(client, project, caplog):
    caplog.set_level(logging.INFO)
    for number in range(50):
        client.call('POST', '/api/v4/runners', json={'token': f'wrong-{number}'}, status=403)
    assert 1 <= len(messages(caplog, 'refused')) < 25


# -- hooks

@pytest.fixture
def quick_hooks(monkeypatch):
    monkeypatch.setattr(minici, 'HOOK_TIMEOUT', 0.3)
    monkeypatch.setattr(minici.Hook, 'PAUSES', ())


def test_a_hook_that_hangs_is_killed_with_what_it_started_and_later_news_come_through(
        ci, pipeline, quick_hooks, tmp_path, caplog):
    told = tmp_path / 'told'
    hook = minici.Hook(ci, 'http://ci', f'if [ -e {told} ]; then cat > {told}; else touch {told}; sleep 600 & wait; fi')
    hook('job', ci.find_job(1), 'created')
    assert 'was killed' in caplog.text
    hook('job', ci.find_job(1), 'created')
    assert json.loads(told.read_text())['job']['id'] == 1
    sleeping = subprocess.run(['pgrep', '-f', f'touch {told}'], capture_output=True, text=True, check=False).stdout
    assert sleeping == ''


def test_a_hook_that_fails_is_logged_with_what_it_said(ci, pipeline, quick_hooks, caplog):
    minici.Hook(ci, 'http://ci', 'echo no route to forge >&2; exit 3')('job', ci.find_job(1), 'created')
    assert messages(caplog, 'exit status 3: no route to forge')


def test_a_hook_that_leaves_a_process_behind_is_not_waited_for(ci, pipeline, tmp_path, caplog):
    left = tmp_path / 'left'
    minici.Hook(ci, 'http://ci', f'sleep 600 & echo $! > {left}')('job', ci.find_job(1), 'created')
    os.kill(int(left.read_text()), signal.SIGKILL)  # fails when it has ended
    assert messages(caplog, 'hook') == []
