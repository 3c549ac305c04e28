"""Nobody without the right token gets in, no secret gets out, and nothing a client writes becomes a path or option."""

import ast
import json
import logging
import os
import re
import sqlite3
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import webtest
from conftest import PLAIN, SHA, Client, Runner, archive

import minici

#: What answers without a guard, each for a reason.
PUBLIC = {
    ('GET', '/api/v4/runners/router/discovery'),    # says "not implemented" to everybody
    ('GET', '/api/v4/job'),                         # asks for a running job's token itself
}
PEOPLE = ('api', 'read_api')
REGISTRATION = {'registration', 'project_token', 'other_project_token'}


def entitled(route):
    """Return the tokens of the `world` that may use a route, told from its address alone."""
    method, path = route.method, route.path
    if (method, path) == ('GET', '/api/v4/job'):
        return {'job', 'other_job'}
    if path.endswith('/runners/register') or (method, path) == ('POST', '/api/v4/runners'):
        return REGISTRATION
    if path.endswith(('/jobs/request', '/builds/register', '/runners/verify', '/runners/delete',
                      '/runners/reset_authentication_token', '/runners/managers')) \
            or (method, path) == ('DELETE', '/api/v4/runners'):
        return {'runner', 'other_runner'}
    if path.startswith('/api/v4/jobs/'):
        return {'job'}
    if '/builds/' in path:
        return {'job', 'runner'} | (set() if method == 'PUT' else {'project_token'})
    readers = {'job'} if method == 'GET' and '/jobs' in path else set()
    return readers | (set(PEOPLE) if method == 'GET' else {'api'})


@pytest.fixture
def world(ci, clock):
    """Two projects with a running job each, jobs in other states, and a token of every kind."""
    project, other = ci.create_project('group/demo'), ci.create_project('other')
    tokens = {'registration': ci.registration_token, 'project_token': project['runners_token'],
              'other_project_token': other['runners_token'], 'api': ci.create_private_token(),
              'read_api': ci.create_private_token(scope='read_api')}
    runner, foreign = Runner(ci), Runner(ci, token=other['runners_token'])
    removed = Runner(ci)
    ci.unregister_runner(removed.row)
    tokens |= {'runner': runner.token, 'other_runner': foreign.token, 'removed_runner': removed.token}

    def claimed(holder, where=project):
        ci.create_pipeline(where, 'main', sha=SHA, content=PLAIN)
        return holder.claim()

    requeued = claimed(runner)
    clock.advance(121)
    ci.sweep()
    ci.cancel_job(requeued.job)
    states = {'requeued_job': requeued}
    for name in ('finished_job', 'canceled_job', 'erased_job', 'job'):
        states[name] = claim = claimed(runner)
        row = ci.authenticate_job(claim.job['id'], claim.token)
        ci.append_trace(row, 0, b'hello')
        upload(ci, row)
        if name in ('finished_job', 'erased_job'):
            ci.update_job(row, 'success')
    ci.cancel_job(states['canceled_job'].job)
    ci.erase_job(states['erased_job'].job)
    states['other_job'] = claimed(foreign, other)
    tokens |= {name: claim.token for name, claim in states.items()}
    return SimpleNamespace(ci=ci, project=project, other=other, tokens=tokens, jobs=states,
                           client=Client(ci), job=states['job'].job)


def upload(ci, job, filename='artifacts.zip', **options):
    """Store an archive as a job's artifact."""
    part = ci.artifacts.receive()
    part.filename = filename
    part.write(archive(out__a='content'))
    ci.store_artifacts(job, part, **options)
    part.discard()


def state(ci):
    """Return all that is stored: every row, and every file with its size."""
    with sqlite3.connect(ci.db.path) as connection:
        rows = list(connection.iterdump())
    connection.close()
    return rows, sorted((str(path), path.stat().st_size) for path in ci.data.rglob('*') if path.is_file())


def address(route, world, job=None):
    """Return a route's path with the world's things in it, or a job's."""
    job = job or world.job
    values = {'id': str(world.project['id'] if route.path.startswith('/api/v4/projects') else job['id']),
              'job_id': str(job['id']), 'pipeline_id': str(job['pipeline_id']), 'ref': 'main', 'path': 'out/a'}
    return re.sub(r'<(\w+)(?::\w+)?>', lambda match: values.get(match[1], '1'), route.path)


#: Parameters that make every route do its work once the guard has let the call in.
GOOD = {'state': 'success', 'ref': 'main', 'sha': SHA, 'content': json.dumps(PLAIN), 'name': 'fresh', 'path': 'fresh',
        'job': 'test', 'runner_type': 'instance_type'}


def send(world, route, how, value, job=None):
    """Call a route with a token in every place of one kind, and all else as it should be."""
    path, headers, body = address(route, world, job), {'Content-Range': '5-8'}, dict(GOOD)
    parameters = {name: value for name in ('token', 'private_token', 'job_token')}
    request = {}
    if how == 'header':
        headers |= {'PRIVATE-TOKEN': value, 'JOB-TOKEN': value, 'BUILD-TOKEN': value, 'Authorization': f'Bearer {value}'}
    elif how == 'query':
        path += '?' + '&'.join(f'{name}={minici.urllib.parse.quote(value)}' for name, value in parameters.items())
    else:
        body |= parameters
    if route.method == 'PATCH':
        request['data'] = b'more'
    elif route.method == 'POST' and path.partition('?')[0].endswith('/artifacts'):
        request |= {'form': body, 'files': [('file', 'a.zip', archive(a='b'))]}
    else:
        request['json'] = body
    if 'form' in request:
        request['form'] = {name: str(given) for name, given in body.items()}
    return world.client.call(route.method, path, headers=headers, **request)


def intruders(world, routes, how, name, value):
    """Return the routes that a token which they must refuse got something other than a refusal from."""
    allowed = (400, 401, 403, 404) if how != 'header' or value == '' else (400, 401, 403, 404)
    return [(route.method, route.path, how, answer.status_int) for route in routes
            if (route.method, route.path) not in PUBLIC - {('GET', '/api/v4/job')} and name not in entitled(route)
            and (answer := send(world, route, how, value)).status_int not in allowed]


ROUTES = minici.create_app(SimpleNamespace()).routes if False else None
