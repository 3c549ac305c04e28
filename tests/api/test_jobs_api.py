"""The Jobs API for people and scripts: lists, jobs, traces, artifacts, actions, pipelines, projects."""

import json

import pytest
from support import PLAIN, SHA, TWO_STAGES, Client, Runner, archive, commit, git

import minici

API = '/api/v4'
JOBS = '/api/v4/projects/1/jobs'
OTHER_SHA = 'f' * 40
HOST = 'http://localhost:80'        # what WebTest sends
ZIP = archive(**{'report': 'whole', 'out/deep/app.txt': 'one', 'out/gr\u00fcn 100%+.txt': 'two', 'out/data.json': '{}'})
MANY = {f'job {number:02d}': {'script': ['true']} for number in range(45)}
STATUSES = ('created', 'pending', 'running', 'success', 'failed', 'canceled', 'skipped', 'manual', 'scheduled',
            'preparing', 'waiting_for_resource', 'canceling')


@pytest.fixture
def api(client, token):
    """Call the API with a private token, unless the call brings other headers."""
    def call(method, path, status=200, **options):
        if 'headers' not in options:
            options['token'] = token
        return client.call(method, path, status=status, **options)
    return call


def make(ci, project, content=PLAIN, ref='main', **options):
    """Make a pipeline and return its jobs by name."""
    pipeline = ci.create_pipeline(project, ref, sha=options.pop('sha', SHA), content=content, **options)
    return {row['name']: row for row in ci.list_jobs(pipeline=pipeline, limit=1000)}


def store(ci, claim, content=ZIP, expire_in=None, file_type='archive'):
    """Store an archive, or another file, for a claimed job."""
    part = ci.artifacts.receive()
    part.filename = 'artifacts.zip'
    part.write(content)
    ci.store_artifacts(claim.job, part, expire_in=expire_in, file_type=file_type)
    part.discard()


def finish(ci, state='success', *, trace=b'$ make\n', content=ZIP, expire_in=None, runner=None):
    """Let a runner claim the next job and finish it with a trace and an archive; return the job."""
    claim = (runner or Runner(ci)).claim()
    ci.append_trace(claim.job, 0, trace)
    if content:
        store(ci, claim, content, expire_in)
    ci.update_job(claim.job, state, failure_reason='script_failure' if state == 'failed' else None)
    return ci.find_job(claim.job)


@pytest.fixture
def done(ci, pipeline):
    """A successful job with a trace and an archive."""
    return finish(ci)


def message(answer):
    return answer.json['message']


# -- who may call

@pytest.mark.parametrize('way', ['PRIVATE-TOKEN', 'Bearer', 'bearer', 'query', 'form', 'json'])
def test_private_token_may_come_in_any_of_gitlabs_ways(client, token, job, way):
    headers = {'PRIVATE-TOKEN': {'PRIVATE-TOKEN': token}, 'Bearer': {'Authorization': f'Bearer {token}'},
               'bearer': {'Authorization': f'bearer {token}'}}.get(way, {})
    query = f'?private_token={token}' if way == 'query' else ''
    body = {way: {'private_token': token}} if way in ('form', 'json') else {}
    client.call('POST', f'{JOBS}/1/cancel{query}', headers=headers, status=201, **body)


@pytest.mark.parametrize('headers', [
    {}, {'PRIVATE-TOKEN': 'wrong'}, {'PRIVATE-TOKEN': ''}, {'JOB-TOKEN': 'wrong'}, {'Authorization': 'Bearer wrong'},
    {'Authorization': 'Bearer'}, {'Authorization': 'Basic cm9vdDpyb290'}])
def test_without_a_valid_token_every_call_is_401(client, done, headers):
    for call in ('GET ', 'GET /1', 'GET /1/trace', 'GET /1/artifacts', 'GET /artifacts/main/download?job=test',
                 'POST /1/cancel', 'POST /4711/erase'):
        method, _, path = call.partition(' ')
        assert message(client.call(method, JOBS + path, headers=headers, status=401)) == '401 Unauthorized'


def test_tokens_of_runners_jobs_and_registration_are_no_private_tokens(ci, client, runner, job, project):
    for wrong in (runner.token, job.token, ci.registration_token, project['runners_token']):
        client.call('GET', JOBS, token=wrong, status=401)


def test_read_api_token_reads_and_changes_nothing(ci, client, done):
    reader = ci.create_private_token(scope='read_api')
    for path in (JOBS, f'{JOBS}/1', f'{JOBS}/1/trace', f'{JOBS}/1/artifacts', f'{API}/projects/1/pipelines/1',
                 f'{API}/user'):
        client.call('GET', path, token=reader, status=200)
    for method, path in (('POST', f'{JOBS}/1/cancel'), ('POST', f'{JOBS}/1/retry'), ('POST', f'{JOBS}/1/erase'),
                         ('POST', f'{JOBS}/1/artifacts/keep'), ('POST', f'{JOBS}/1/play'),
                         ('DELETE', f'{JOBS}/1/artifacts'), ('DELETE', f'{API}/projects/1/artifacts'),
                         ('POST', f'{API}/projects/1/pipeline'), ('POST', f'{API}/projects')):
        assert message(client.call(method, path, token=reader, json={}, status=403)).startswith('403 Forbidden')
    assert len(ci.list_jobs()) == 1
    assert ci.read_trace(done) == b'$ make\n'


@pytest.mark.parametrize('way', ['header', 'parameter'])
def test_job_token_reads_jobs_traces_and_artifacts_of_its_own_project_alone(ci, client, project, way):
    make(ci, project, {'first': {'script': ['true']}, 'second': {'script': ['true']}})
    make(ci, ci.create_project('group/other'))
    runner = Runner(ci)
    finish(ci, runner=runner)
    claim = runner.claim()
    headers = {'JOB-TOKEN': claim.token} if way == 'header' else {}
    extra = f'job_token={claim.token}' if way == 'parameter' else ''
    for path in (JOBS, f'{JOBS}/1', f'{JOBS}/1/trace', f'{JOBS}/1/artifacts', f'{JOBS}/1/artifacts/report',
                 f'{API}/projects/1/pipelines/1/jobs', f'{API}/projects/group%2Fdemo/jobs'):
        client.call('GET', f'{path}?{extra}', headers=headers, status=200)
    for path in (f'{API}/projects/2/jobs', f'{API}/projects/2/jobs/3', f'{API}/projects/4711/jobs'):
        assert message(client.call('GET', f'{path}?{extra}', headers=headers, status=404)) == '404 Project Not Found'
    client.call('GET', f'{JOBS}/3?{extra}', headers=headers, status=404)
    ci.update_job(claim.job, 'success')
    client.call('GET', f'{JOBS}?{extra}', headers=headers, status=401)


def test_job_token_changes_nothing_through_the_jobs_api(client, job):
    headers = {'JOB-TOKEN': job.token}
    for method, path in (('POST', f'{JOBS}/1/cancel'), ('POST', f'{JOBS}/1/erase'), ('DELETE', f'{JOBS}/1/artifacts'),
                         ('POST', f'{API}/projects/1/pipeline'), ('GET', f'{API}/projects'), ('GET', f'{API}/user')):
        client.call(method, path, headers=headers, json={'job_token': job.token}, status=401)


def test_job_token_shows_its_own_job_and_a_private_one_none(ci, client, token, job):
    assert client.call('GET', f'{API}/job', headers={'JOB-TOKEN': job.token}, status=200).json['id'] == job.job['id']
    assert client.call('GET', f'{API}/job?job_token={job.token}', status=200).json['name'] == 'test'
    client.call('GET', f'{API}/job', status=401)
    ci.cancel_job(job.job)
    client.call('GET', f'{API}/job', headers={'JOB-TOKEN': job.token}, status=401)


# -- addresses and errors

@pytest.mark.parametrize('project_id', ['1', 'group%2Fdemo', 'group%2fdemo', '%67roup%2Fdemo'])
def test_project_is_addressed_by_number_or_encoded_path(api, pipeline, project_id):
    assert len(api('GET', f'{API}/projects/{project_id}/jobs').json) == 1
    assert api('GET', f'{API}/projects/{project_id}').json['path_with_namespace'] == 'group/demo'


def test_unknown_project_is_404_and_named(api, pipeline):
    for path in ('4711', 'group%2Fnothing', 'demo', '-1', '0'):
        assert message(api('GET', f'{API}/projects/{path}/jobs', 404)) == '404 Project Not Found'


def test_job_or_pipeline_that_is_unknown_or_of_another_project_is_404(ci, api, project):
    other = make(ci, ci.create_project('group/other'))['test']
    for job_id in (other['id'], 4711, 0, -1):
        for path in ('jobs/{}', 'jobs/{}/trace', 'jobs/{}/artifacts', 'pipelines/{}', 'pipelines/{}/jobs',
                     'pipeline/{}/jobs'):
            answer = message(api('GET', f'{API}/projects/1/{path.format(job_id)}', 404)).lower()
            assert (answer[:4], answer[-9:]) == ('404 ', 'not found')


def test_action_on_a_job_that_is_unknown_or_of_another_project_is_404(ci, api, project):
    other = make(ci, ci.create_project('group/other'), {'m': {'script': ['true'], 'when': 'manual'}})['m']
    for action in ('cancel', 'retry', 'erase', 'play', 'artifacts/keep'):
        for job_id in (other['id'], 4711):
            assert message(api('POST', f'{JOBS}/{job_id}/{action}', 404)).lower() == '404 not found'
    assert ci.find_job(other)['status'] == 'manual'


def test_id_that_is_no_number_is_400_and_named(api, pipeline):
    for method, path, name in (('GET', 'jobs/abc', 'job_id'), ('POST', 'jobs/1.5/cancel', 'job_id'),
                               ('GET', 'jobs/1e3/trace', 'job_id'), ('GET', 'pipelines/abc/jobs', 'pipeline_id')):
        assert api(method, f'{API}/projects/1/{path}', 400).json == {'error': f'{name} is invalid'}


def test_unknown_path_and_method_have_the_frameworks_form_of_error(api):
    assert api('GET', f'{API}/nothing', 404).json == {'error': '404 Not Found - minici has no such route'}
    answer = api('DELETE', JOBS, 405)
    assert answer.json == {'error': '405 Not Allowed'}
    assert 'GET' in answer.headers['Allow']


def test_trailing_slash_is_accepted_and_never_redirected(api, pipeline):
    assert api('GET', f'{JOBS}/').json[0]['id'] == 1
    assert api('POST', f'{JOBS}/1/cancel/', 201).json['status'] == 'canceled'


def test_malformed_json_is_400_and_changes_nothing(ci, api, pipeline, token):
    headers = {'Content-Type': 'application/json', 'PRIVATE-TOKEN': token}
    for body in (b'{', b'[]', b'"x"', b'{"a": "\xff"}', b'\xef\xbb\xbf{}', b'{"a": "\\ud800"}', b'{"a": NaN}'):
        assert api('POST', f'{API}/projects/1/pipeline', 400, data=body, headers=headers).json['error']
    assert len(ci.list_jobs()) == 1


# -- lists

def ids(answer):
    return [job['id'] for job in answer.json]


def test_project_jobs_are_newest_first_and_include_retried_ones(ci, api, project):
    make(ci, ci.create_project('group/other'))
    make(ci, project, {'a': {'script': ['true']}, 'b': {'script': ['true']}})
    ci.cancel_job(ci.find_job(2))
    api('POST', f'{JOBS}/2/retry', 201)
    assert ids(api('GET', JOBS)) == [4, 3, 2]


@pytest.fixture
def mixed(ci, project):
    """Seven jobs, each in another status."""
    make(ci, project, {'stages': ['a', 'b'], 'f': {'stage': 'a', 'script': ['true'], 'allow_failure': True},
                       'r': {'stage': 'a', 'script': ['true']}, 'c': {'stage': 'b', 'script': ['true']}})
    runner = Runner(ci)
    runner.run('failed')
    runner.claim()
    make(ci, project, {'stages': ['a', 'b'], 's': {'stage': 'a', 'script': ['true']},
                       'm': {'stage': 'b', 'script': ['true'], 'when': 'manual'},
                       'k': {'stage': 'b', 'script': ['true'], 'when': 'on_failure'}})
    runner.run()
    jobs = make(ci, project, {'x': {'script': ['true']}, 'p': {'script': ['true']}})
    ci.cancel_job(jobs['x'])
    return dict(f='failed', r='running', c='created', s='success', m='manual', k='skipped', x='canceled', p='pending')


def test_scope_selects_statuses_in_every_spelling(api, mixed):
    for query, statuses in (*((f'scope={status}', {status}) for status in STATUSES),
                            ('scope[]=pending&scope[]=running', {'pending', 'running'}),
                            ('scope%5B%5D=failed&scope%5B%5D=success', {'failed', 'success'}),
                            ('scope[0]=canceled&scope[1]=manual', {'canceled', 'manual'}),
                            ('scope[]=skipped', {'skipped'}), ('scope=', set(STATUSES)), ('', set(STATUSES))):
        answer = api('GET', f'{JOBS}?{query}')
        expected = {name: status for name, status in mixed.items() if status in statuses}
        assert {job['name']: job['status'] for job in answer.json} == expected, query


def test_scope_with_an_unknown_word_is_400(api, pipeline):
    for path in (JOBS, f'{API}/projects/1/pipelines/1/jobs', f'{API}/projects/1/pipeline/1/jobs'):
        for query in ('scope=unknown', 'scope[]=unknown', 'scope[0]=unknown', 'scope=Pending',
                      'scope[]=pending&scope[]=unknown', 'scope[]=', 'scope[]=pending&scope[]='):
            assert api('GET', f'{path}?{query}', 400).json == {'error': 'scope does not have a valid value'}


@pytest.mark.parametrize('word', ['pipelines', 'pipeline'])
def test_pipeline_jobs_are_its_own_and_retried_ones_are_asked_for(ci, api, project, word):
    first, second = make(ci, project, TWO_STAGES), make(ci, project, PLAIN)
    ci.cancel_job(first['compile'])
    new = api('POST', f'{JOBS}/{first["compile"]["id"]}/retry', 201).json['id']
    path = f'{API}/projects/1/{word}/{first["check"]["pipeline_id"]}/jobs'
    assert ids(api('GET', path)) == [new, first['check']['id']]
    assert ids(api('GET', f'{path}?include_retried=True')) == [new, first['check']['id'], first['compile']['id']]
    assert ids(api('GET', f'{path}?scope=canceled&include_retried=true')) == [first['compile']['id']]
    assert ids(api('GET', f'{API}/projects/1/{word}/{second["test"]["pipeline_id"]}/jobs')) == [second['test']['id']]


def links(answer):
    """Return the targets of a Link header by their `rel`."""
    pairs = (part.split('; ') for part in answer.headers.get('Link', '').split(', ') if part)
    return {rel[len('rel="'):-1]: url[1:-1] for url, rel in pairs}


@pytest.mark.parametrize('query, page, previous, following, count', [
    ('', '1', '', '2', 20), ('?page=2', '2', '1', '3', 20), ('?page=3', '3', '2', '', 5), ('?page=4', '4', '3', '', 0)])
def test_page_says_where_it_is_and_one_past_the_end_is_empty(ci, api, project, query, page, previous, following, count):
    make(ci, project, MANY)
    answer = api('GET', JOBS + query)
    assert len(answer.json) == count
    found = {name: answer.headers[f'X-{name}'] for name in ('Page', 'Per-Page', 'Prev-Page', 'Next-Page', 'Total',
                                                            'Total-Pages')}
    assert found == {'Page': page, 'Per-Page': '20', 'Prev-Page': previous, 'Next-Page': following, 'Total': '45',
                     'Total-Pages': '3'}
    expected = {'first': '1', 'last': '3', **({'prev': previous} if previous else {}),
                **({'next': following} if following else {})}
    assert links(answer) == {rel: f'{HOST}{JOBS}?page={number}&per_page=20' for rel, number in expected.items()}


def test_empty_list_has_one_page(api, project):
    answer = api('GET', JOBS)
    assert (answer.json, answer.headers['X-Total'], answer.headers['X-Total-Pages']) == ([], '0', '1')
    assert set(links(answer)) == {'first', 'last'}


def test_link_keeps_the_other_parameters_and_leaves_out_the_token(ci, api, client, project, token):
    make(ci, project, MANY)
    answer = client.call('GET', f'{JOBS}?private_token={token}&scope[]=pending&scope[]=running&per_page=2', status=200)
    assert token not in answer.headers['Link']
    following = api('GET', links(answer)['next'].removeprefix(HOST))
    assert following.request.params.getall('scope[]') == ['pending', 'running']
    assert (following.headers['X-Page'], len(following.json)) == ('2', 2)


def test_page_has_a_hundred_rows_at_most(ci, api, project):
    make(ci, project, {f'j{number}': {'script': ['true']} for number in range(105)})
    answer = api('GET', f'{JOBS}?per_page=1000')
    assert (len(answer.json), answer.headers['X-Per-Page']) == (100, '100')


def test_page_that_cannot_be_is_400_and_named(api, pipeline):
    for path in (JOBS, f'{API}/projects/1/pipelines', f'{API}/projects', f'{API}/projects/1/pipelines/1/jobs'):
        for query in ('page=0', 'per_page=0', 'page=-1', 'per_page=-1', 'page=a', 'per_page=1.5', 'page[]=1',
                      'page=99999999999999999999'):
            name = query.partition('=')[0].removesuffix('[]')
            error = api('GET', f'{path}?{query}', 400).json['error']
            assert error in (f'{name} does not have a valid value', f'{name} is invalid')


def test_keyset_pages_are_linked_by_a_cursor_alone_and_show_each_job_once(ci, api, project):
    make(ci, project, MANY)
    seen, path = [], f'{JOBS}?pagination=keyset&per_page=20&order_by=id&scope[]=pending'
    while path:
        answer = api('GET', path)
        seen += ids(answer)
        assert not [name for name in answer.headers if name.startswith('X-') and 'Page' in name]
        assert set(links(answer)) <= {'next'}
        path = links(answer).get('next', '').removeprefix(HOST)
        if path:
            assert 'cursor=' in path
            make(ci, project)  # what is new does not shift the pages
    assert seen == list(range(45, 0, -1))


def test_cursor_that_is_not_ours_is_400(api, pipeline):
    for cursor in ('x', '==', '%C3%A9', 'null', '1e99', '1.5', 'NaN', '0x1', '99999999999999999999', 'eyJpZCI6IDF9'):
        answer = api('GET', f'{JOBS}?pagination=keyset&cursor={cursor}', None)
        assert (answer.status_int, answer.json) == (400, {'error': 'cursor is invalid'}), cursor


def test_links_and_addresses_are_on_the_callers_host(ci, client, token, project):
    make(ci, project, MANY)
    headers = {'Host': 'ci.example.com:8443', 'PRIVATE-TOKEN': token}
    answer = client.call('GET', JOBS, headers=headers, status=200)
    base = 'http://ci.example.com:8443'
    assert links(answer)['next'].startswith(f'{base}{JOBS}?')
    job = answer.json[0]
    assert job['web_url'] == f'{base}/group/demo/-/jobs/45'
    assert job['pipeline']['web_url'] == f'{base}/group/demo/-/pipelines/1'
    assert client.call('GET', f'{API}/projects/1', headers=headers).json['web_url'] == f'{base}/group/demo'


def test_links_keep_the_encoded_path_of_the_project(ci, api, project):
    make(ci, project, MANY)
    answer = api('GET', f'{API}/projects/group%2Fdemo/jobs')
    assert links(answer)['next'] == f'{HOST}{API}/projects/group%2Fdemo/jobs?page=2&per_page=20'


# -- the job object

FIELDS = {
    'id': int, 'status': str, 'stage': str, 'name': str, 'ref': str, 'tag': bool, 'coverage': float,
    'allow_failure': bool, 'created_at': str, 'started_at': str, 'finished_at': str, 'erased_at': str,
    'duration': float, 'queued_duration': float, 'user': dict, 'commit': dict, 'pipeline': dict, 'runner': dict,
    'runner_manager': dict, 'artifacts_file': dict, 'artifacts': list, 'artifacts_expire_at': str, 'archived': bool,
    'tag_list': list, 'web_url': str, 'project': dict}
NEVER_NULL = ('id', 'status', 'stage', 'name', 'ref', 'tag', 'allow_failure', 'created_at', 'pipeline', 'artifacts',
              'archived', 'tag_list', 'web_url', 'project')


def test_every_job_has_every_field_in_any_status(api, mixed):
    for job in api('GET', JOBS).json:
        assert set(FIELDS) <= set(job)
        for name, kind in FIELDS.items():
            if job[name] is not None or name in NEVER_NULL:
                assert isinstance(job[name], (int, float) if kind is float else kind), name
        assert ('failure_reason' in job) == (job['status'] == 'failed')
        assert {'id', 'iid', 'project_id', 'sha', 'ref', 'status', 'source', 'created_at', 'updated_at',
                'web_url'} <= set(job['pipeline'])


def test_list_and_single_job_show_the_same_object(api, mixed):
    for job in api('GET', JOBS).json:
        assert api('GET', f'{JOBS}/{job["id"]}').json == job


def test_pending_job_has_neither_runner_nor_times(ci, clock, api, project, token):
    content = {'test': {'script': ['true'], 'tags': ['b', 'a'], 'allow_failure': True}}
    make(ci, project, content, 'v1', tag=True, user=ci.find_user(token))
    clock.advance(1.5)
    job = api('GET', f'{JOBS}/1').json
    nulls = {'started_at', 'finished_at', 'erased_at', 'duration', 'runner', 'artifacts_file', 'artifacts_expire_at',
             'coverage'}
    assert {name for name in nulls if job[name] is None} == nulls
    assert (job['ref'], job['tag'], job['tag_list'], job['allow_failure']) == ('v1', True, ['a', 'b'], True)
    assert (job['created_at'], job['queued_duration']) == ('2023-11-14T22:13:20.000Z', 1.5)
    assert (job['artifacts'], job['user']['username']) == ([], 'root')


def test_running_job_has_its_runner_and_a_growing_duration(clock, api, job, runner):
    for seconds in (2.0, 4.0):
        clock.advance(2)
        shown = api('GET', f'{JOBS}/1').json
        assert (shown['duration'], shown['finished_at']) == (seconds, None)
    assert shown['runner'] == {
        'id': runner.id, 'description': 'fixture', 'ip_address': None, 'active': True, 'paused': False,
        'is_shared': True, 'runner_type': 'instance_type', 'name': None, 'online': None, 'status': 'never_contacted',
        'created_at': '2023-11-14T22:13:20.000Z', 'created_by': None, 'job_execution_status': 'active'}


def test_finished_job_has_its_times_and_files(ci, clock, api, pipeline):
    claim = Runner(ci).claim()
    clock.advance(10.25)
    ci.append_trace(claim.job, 0, b'$ make\n')
    store(ci, claim, expire_in='1 day')
    store(ci, claim, b'gzip', file_type='junit')
    ci.update_job(claim.job, 'failed', failure_reason='script_failure')
    clock.advance(5)
    job = api('GET', f'{JOBS}/1').json
    assert (job['finished_at'], job['duration']) == ('2023-11-14T22:13:30.250Z', 10.25)
    assert job['failure_reason'] == 'script_failure'
    assert job['artifacts_file'] == {'filename': 'artifacts.zip', 'size': len(ZIP)}
    assert job['artifacts_expire_at'] == '2023-11-15T22:13:30.250Z'
    by_type = {item['file_type']: item for item in job['artifacts']}
    assert by_type['archive'] == {'file_type': 'archive', 'size': len(ZIP), 'filename': 'artifacts.zip',
                                  'file_format': 'zip'}
    assert by_type['trace'] == {'file_type': 'trace', 'size': 7, 'filename': 'job.log', 'file_format': None}
    assert by_type['junit']['size'] == 4


def test_user_is_the_owner_of_the_token(ci, client, project):
    token = ci.create_private_token('anna')
    client.call('POST', f'{API}/projects/1/pipeline', token=token, json={'ref': 'main', 'sha': SHA, 'content': PLAIN})
    user = client.call('GET', f'{API}/user', token=token, status=200).json
    assert user['username'] == 'anna'
    assert client.call('GET', f'{JOBS}/1', token=token).json['user'] == user


# -- traces

def test_trace_is_404_before_the_claim_and_after_an_erase_and_empty_in_between(ci, api, pipeline, runner):
    assert message(api('GET', f'{JOBS}/1/trace', 404)).endswith('Not Found')
    claim = runner.claim()
    assert api('GET', f'{JOBS}/1/trace').body == b''
    assert not ci.traces.path(1).exists()
    assert ci.read_trace(claim.job) == b''
    ci.append_trace(claim.job, 0, b'x')
    ci.update_job(claim.job, 'success')
    assert api('GET', f'{JOBS}/1/trace').body == b'x'
    api('POST', f'{JOBS}/1/erase', 201)
    api('GET', f'{JOBS}/1/trace', 404)


def test_trace_is_text_byte_for_byte_and_named_after_its_job(ci, api, job):
    data = '\x1b[32m✓\x1b[0m\r\n'.encode() + bytes(range(256)) + b'<script>'
    ci.append_trace(job.job, 0, data)
    answer = api('GET', f'{JOBS}/1/trace')
    assert answer.body == data
    assert answer.headers['Content-Type'].startswith('text/plain')
    assert answer.headers['X-Content-Type-Options'] == 'nosniff'
    assert 'filename="1.log"' in answer.headers['Content-Disposition']


RANGES = (
    ('bytes=0-4', 206, b'01234', 'bytes 0-4/10'), ('bytes=7-', 206, b'789', 'bytes 7-9/10'),
    ('bytes=-2', 206, b'89', 'bytes 8-9/10'), ('bytes=8-99', 206, b'89', 'bytes 8-9/10'),
    ('bytes=-99', 206, b'0123456789', 'bytes 0-9/10'), ('bytes=10-', 416, None, 'bytes */10'),
    ('bytes=-0', 416, None, 'bytes */10'), ('bytes=5-4', 200, b'0123456789', None),
    ('lines=1-2', 200, b'0123456789', None), ('bytes=0-1,3-4', 200, b'0123456789', None),
    ('bytes=a-b', 200, b'0123456789', None))


@pytest.mark.parametrize('path', ['trace', 'artifacts'])
def test_range_of_a_trace_or_file_is_served(ci, api, token, pipeline, path):
    finish(ci, trace=b'0123456789', content=b'0123456789')
    for asked, status, body, content_range in RANGES:
        answer = api('GET', f'{JOBS}/1/{path}', status, headers={'Range': asked, 'PRIVATE-TOKEN': token})
        assert answer.headers.get('Content-Range') == content_range
        if body is not None:
            assert (answer.body, answer.headers['Content-Length']) == (body, str(len(body)))
            assert answer.headers['Accept-Ranges'] == 'bytes'


def test_growing_trace_is_followed_by_ranges(ci, api, token, job):
    seen = b''
    for chunk in (b'one ', b'two ', b'three'):
        ci.append_trace(job.job, len(seen), chunk)
        answer = api('GET', f'{JOBS}/1/trace', 206, headers={'Range': f'bytes={len(seen)}-', 'PRIVATE-TOKEN': token})
        seen += answer.body
    api('GET', f'{JOBS}/1/trace', 416, headers={'Range': f'bytes={len(seen)}-', 'PRIVATE-TOKEN': token})
    assert seen == b'one two three'


# -- artifacts

def test_archive_is_served_as_an_attachment_with_its_length_and_tag(api, token, done):
    answer = api('GET', f'{JOBS}/1/artifacts')
    assert answer.body == ZIP
    assert answer.headers['Content-Type'] == 'application/octet-stream'
    assert answer.headers['Content-Length'] == str(len(ZIP))
    assert answer.headers['Content-Disposition'].startswith('attachment; filename="artifacts.zip"')
    headers = {'If-None-Match': answer.headers['ETag'], 'PRIVATE-TOKEN': token}
    assert api('GET', f'{JOBS}/1/artifacts', 304, headers=headers).body == b''


def test_no_erased_and_expired_archives_are_404(ci, clock, api, project):
    for name in ('none', 'erased', 'expired'):
        make(ci, project, {name: {'script': ['true']}})
        finish(ci, content=ZIP if name != 'none' else None, expire_in='1 hour' if name == 'expired' else None)
    ci.erase_job(ci.find_job(2))
    api('GET', f'{JOBS}/3/artifacts', 200)
    clock.advance(hours=1)
    for job_id in (1, 2, 3):
        assert message(api('GET', f'{JOBS}/{job_id}/artifacts', 404)).endswith('Not Found')
        api('GET', f'{JOBS}/{job_id}/artifacts/report', 404)


@pytest.mark.parametrize('prefix', ['1/artifacts', 'artifacts/main/raw'])
def test_single_file_is_served_out_of_the_archive(api, done, prefix):
    for path, content, kind in (('report', b'whole', 'application/octet-stream'),
                                ('out/deep/app.txt', b'one', 'text/plain'),
                                ('out%2Fdeep%2Fapp.txt', b'one', 'text/plain'),
                                ('out/gr%C3%BCn%20100%25+.txt', b'two', 'text/plain'),
                                ('out/data.json', b'{}', 'application/json')):
        answer = api('GET', f'{JOBS}/{prefix}/{path}?job=test')
        assert answer.body == content
        assert answer.headers['Content-Type'].startswith(kind)
        assert answer.headers['Content-Disposition'].startswith('attachment')
        assert answer.headers['X-Content-Type-Options'] == 'nosniff'


@pytest.mark.parametrize('prefix', ['1/artifacts', 'artifacts/main/raw'])
def test_missing_file_and_directory_are_404(api, done, prefix):
    for path in ('nothing', 'out', 'out/', 'out/deep', 'out/deep/', 'OUT/data.json', 'out/data', 'report/x',
                 'out//data.json', './report'):
        assert api('GET', f'{JOBS}/{prefix}/{path}?job=test', None).status_int == 404, path


@pytest.mark.parametrize('prefix', ['1/artifacts', 'artifacts/main/raw'])
def test_path_that_leaves_the_archive_is_refused(api, done, prefix):
    for path in ('../secret', 'out/../report', '..', 'out/..', '%2e%2e/secret', '..%2Fsecret', '%2Fetc/passwd',
                 'out/%2e%2e/%2E%2e/x'):
        answer = api('GET', f'{JOBS}/{prefix}/{path}?job=test', None)
        assert (answer.status_int, message(answer)[:15]) == (400, '400 Bad request'), path


def test_file_of_something_that_is_no_archive_is_400(ci, api, pipeline):
    finish(ci, content=b'not a zip file')
    api('GET', f'{JOBS}/1/artifacts/report', 400)
    assert api('GET', f'{JOBS}/1/artifacts').body == b'not a zip file'


@pytest.mark.parametrize('path', ['download', 'raw/report'])
def test_job_parameter_is_needed(api, done, path):
    assert api('GET', f'{JOBS}/artifacts/main/{path}', 400).json == {'error': 'job is missing'}


@pytest.mark.parametrize('ref, sent', [('fix/one', 'fix/one'), ('fix/one', 'fix%2Fone'), ('v1.2.3', 'v1.2.3'),
                                       ('a/raw/b', 'a%2Fraw%2Fb'), ('download', 'download'), ('artifacts', 'artifacts'),
                                       ('a/download/b', 'a/download/b'), ('gr\u00fcn', 'gr%C3%BCn')])
def test_ref_may_have_slashes_dots_and_the_paths_own_words(ci, api, project, ref, sent):
    make(ci, project, ref=ref)
    finish(ci)
    assert api('GET', f'{JOBS}/artifacts/{sent}/download?job=test').body == ZIP
    assert api('GET', f'{JOBS}/artifacts/{sent}/raw/report?job=test').body == b'whole'


def test_job_name_may_be_any_text(ci, api, project):
    make(ci, project, {'build: linux/amd64 & ü': {'script': ['true']}})
    finish(ci)
    api('GET', f'{JOBS}/artifacts/main/download?job=build%3A+linux%2Famd64+%26+%C3%BC', 200)


def test_archive_of_a_ref_is_that_of_its_newest_successful_pipeline(ci, api, project):
    runner = Runner(ci)
    path = f'{JOBS}/artifacts/main/download?job=test'
    two = {'stages': ['a', 'b'], 'test': {'stage': 'a', 'script': ['true']}, 'last': {'stage': 'b', 'script': ['true']}}
    api('GET', path, 404)
    make(ci, project, two)
    finish(ci, content=b'first', runner=runner)
    api('GET', path, 404)  # the job succeeded, its pipeline has not
    finish(ci, content=b'last', runner=runner)
    assert api('GET', path).body == b'first'
    make(ci, project, two)
    finish(ci, content=b'second', runner=runner)
    assert api('GET', path).body == b'first'  # the newer one still runs
    finish(ci, 'failed', runner=runner)
    assert api('GET', path).body == b'first'  # and has failed
    make(ci, project, two, ref='other')
    finish(ci, content=b'other', runner=runner)
    finish(ci, runner=runner)
    assert api('GET', path).body == b'first'
    make(ci, project, two)
    finish(ci, content=b'third', runner=runner)
    finish(ci, runner=runner)
    assert api('GET', path).body == b'third'


def test_archive_of_a_ref_is_that_of_the_retry(ci, api, project):
    make(ci, project)
    finish(ci, content=b'before')
    api('POST', f'{JOBS}/1/retry', 201)
    finish(ci, content=b'after')
    assert api('GET', f'{JOBS}/artifacts/main/download?job=test').body == b'after'


def test_archive_of_no_ref_no_job_or_a_job_without_one_is_404(ci, api, project):
    make(ci, project, {'test': {'script': ['true']}, 'bare': {'script': ['true']}})
    runner = Runner(ci)
    finish(ci, runner=runner)
    finish(ci, content=None, runner=runner)
    api('GET', f'{JOBS}/artifacts/main/download?job=test', 200)
    for path in ('nothing/download?job=test', 'main/download?job=nothing', 'main/download?job=bare',
                 'nothing/raw/report?job=test', 'main/raw/report?job=bare', 'MAIN/download?job=test'):
        assert message(api('GET', f'{JOBS}/artifacts/{path}', 404)).endswith('Not Found')


def test_deleting_a_jobs_artifacts_leaves_its_trace(ci, api, done):
    for _ in range(2):
        assert api('DELETE', f'{JOBS}/1/artifacts', 204).body == b''
    api('GET', f'{JOBS}/1/artifacts', 404)
    assert api('GET', f'{JOBS}/1/trace').body == b'$ make\n'
    assert not list(ci.data.glob('artifacts/*/*'))
    api('DELETE', f'{JOBS}/4711/artifacts', 404)


def test_deleting_a_projects_artifacts_spares_running_jobs_and_other_projects(ci, api, project):
    for path in ('group/demo', 'group/other'):
        make(ci, project if path == 'group/demo' else ci.create_project(path))
        finish(ci)
    make(ci, project)
    store(ci, Runner(ci).claim())
    assert api('DELETE', f'{API}/projects/1/artifacts', 202).json == {'message': '202 Accepted'}
    api('GET', f'{JOBS}/1/artifacts', 404)
    api('GET', f'{JOBS}/3/artifacts', 200)
    api('GET', f'{API}/projects/2/jobs/2/artifacts', 200)


# -- actions

def job_in(ci, project, status):
    """Make a job of that status and return it."""
    if status in ('created', 'skipped'):
        make(ci, project, {'stages': ['a', 'b'], 'one': {'stage': 'a', 'script': ['true']},
                           'two': {'stage': 'b', 'script': ['true']}})
        if status == 'skipped':
            finish(ci, 'failed', content=None)
        return ci.find_job(2)
    make(ci, project, {'one': {'script': ['true'], 'when': 'manual' if status == 'manual' else 'on_success'}})
    if status == 'running':
        Runner(ci).claim()
    elif status in ('success', 'failed'):
        finish(ci, status)
    elif status == 'canceled':
        ci.cancel_job(ci.find_job(1))
    return ci.find_job(1)


@pytest.mark.parametrize('status', ['created', 'pending', 'running', 'manual', 'success', 'failed', 'canceled',
                                    'skipped'])
def test_cancel_stops_what_has_not_finished_and_leaves_the_rest(ci, clock, api, project, status):
    job = job_in(ci, project, status)
    assert job['status'] == status
    before = api('GET', f'{JOBS}/{job["id"]}').json
    clock.advance(1)
    answer = api('POST', f'{JOBS}/{job["id"]}/cancel', 201).json
    if status in ('success', 'failed', 'canceled', 'skipped'):
        assert answer == before
    else:
        assert (answer['id'], answer['status']) == (job['id'], 'canceled')
        assert answer['finished_at'] == '2023-11-14T22:13:21.000Z'


def test_cancel_of_a_running_job_voids_its_token_and_settles_its_pipeline(ci, api, job):
    assert api('POST', f'{JOBS}/1/cancel', 201).json['pipeline']['status'] == 'canceled'
    with pytest.raises(minici.Forbidden):
        ci.append_trace(ci.authenticate_job(1, job.token), 0, b'late')


@pytest.mark.parametrize('options', [
    {'json': {}}, {'headers': {}}, {'headers': {'Content-Type': 'application/json; charset=utf-8'}, 'data': b'{}'},
    {'headers': {'Content-Type': 'application/x-www-form-urlencoded', 'Content-Length': '0'}}])
def test_action_takes_the_empty_bodies_that_clients_send(api, token, job, options):
    if 'headers' in options:
        options = {**options, 'headers': {**options['headers'], 'PRIVATE-TOKEN': token}}
    assert api('POST', f'{JOBS}/1/cancel', 201, **options).json['status'] == 'canceled'


@pytest.mark.parametrize('status', ['success', 'failed', 'canceled'])
def test_retry_makes_a_new_pending_job_and_the_old_one_stays(ci, clock, client, project, status):
    job_in(ci, project, status)
    clock.advance(60)
    token = ci.create_private_token('anna')
    answer = client.call('POST', f'{JOBS}/1/retry', token=token, status=201).json
    assert (answer['id'], answer['status'], answer['name'], answer['stage'], answer['ref']) == (
        2, 'pending', 'one', 'test', 'main')
    nulls = ('runner', 'started_at', 'finished_at', 'artifacts_file', 'erased_at', 'duration')
    assert [answer[name] for name in nulls] == [None] * 6
    assert (answer['user']['username'], answer['created_at']) == ('anna', '2023-11-14T22:14:20.000Z')
    assert answer['pipeline']['id'] == 1
    old = client.call('GET', f'{JOBS}/1', token=token).json
    assert old['status'] == status
    assert Runner(ci).run() == 'one'


@pytest.mark.parametrize('status', ['created', 'pending', 'running', 'skipped', 'manual', 'retried'])
def test_retry_of_anything_else_is_403_and_says_why(ci, api, project, status):
    job = job_in(ci, project, 'failed' if status == 'retried' else status)
    if status == 'retried':
        ci.retry_job(job)
    count = len(ci.list_jobs())
    assert message(api('POST', f'{JOBS}/{job["id"]}/retry', 403)) == '403 Forbidden - Job is not retryable'
    assert len(ci.list_jobs()) == count


def test_retry_lets_the_stages_behind_it_wait_again(ci, api, project):
    job = job_in(ci, project, 'skipped')
    api('POST', f'{JOBS}/1/retry', 201)
    assert ci.find_job(job)['status'] == 'created'
    runner = Runner(ci)
    assert [runner.run(), runner.run()] == ['one', 'two']
    assert api('GET', f'{API}/projects/1/pipelines/1').json['status'] == 'success'


def test_erase_removes_trace_and_every_artifact(ci, clock, api, pipeline):
    claim = Runner(ci).claim()
    ci.append_trace(claim.job, 0, b'$ make\n')
    store(ci, claim, expire_in='1 day')
    store(ci, claim, b'gzip', file_type='junit')
    ci.update_job(claim.job, 'failed')
    clock.advance(1)
    answer = api('POST', f'{JOBS}/1/erase', 201).json
    assert (answer['id'], answer['status'], answer['erased_at']) == (1, 'failed', '2023-11-14T22:13:21.000Z')
    assert (answer['artifacts'], answer['artifacts_file'], answer['artifacts_expire_at']) == ([], None, None)
    for path in ('trace', 'artifacts'):
        api('GET', f'{JOBS}/1/{path}', 404)
    assert not list(ci.data.glob('artifacts/*/*'))


@pytest.mark.parametrize('status', ['created', 'pending', 'running', 'manual', 'skipped', 'canceled', 'erased'])
def test_erase_of_an_unfinished_job_or_of_nothing_is_403_and_says_why(ci, api, project, status):
    job = job_in(ci, project, 'success' if status == 'erased' else status)
    if status == 'erased':
        ci.erase_job(job)
    answer = api('POST', f'{JOBS}/{job["id"]}/erase', 403)
    assert message(answer) == '403 Forbidden - Job is not erasable!'


def test_keep_lets_artifacts_never_expire(ci, clock, api, pipeline):
    finish(ci, expire_in='1 hour')
    assert api('GET', f'{JOBS}/1').json['artifacts_expire_at'] is not None
    answer = api('POST', f'{JOBS}/1/artifacts/keep').json
    assert (answer['id'], answer['artifacts_expire_at']) == (1, None)
    clock.advance(days=365)
    ci.sweep()
    api('GET', f'{JOBS}/1/artifacts', 200)


@pytest.mark.parametrize('expire_in', [None, '1 hour'])
def test_keep_of_no_or_expired_artifacts_is_404(ci, clock, api, pipeline, expire_in):
    finish(ci, content=ZIP if expire_in else None, expire_in=expire_in)
    clock.advance(hours=2)
    ci.sweep()
    assert message(api('POST', f'{JOBS}/1/artifacts/keep', 404)).endswith('Not Found')


def test_play_queues_the_manual_job_itself_for_the_caller(ci, client, project):
    job_in(ci, project, 'manual')
    token = ci.create_private_token('anna')
    answer = client.call('POST', f'{JOBS}/1/play', token=token, json={}, status=200).json
    assert (answer['id'], answer['status'], answer['user']['username']) == (1, 'pending', 'anna')
    assert Runner(ci).run() == 'one'


@pytest.mark.parametrize('status', ['created', 'pending', 'running', 'success', 'failed', 'canceled', 'skipped'])
def test_play_of_a_job_that_is_not_manual_is_400_and_says_why(ci, api, project, status):
    job = job_in(ci, project, status)
    assert message(api('POST', f'{JOBS}/{job["id"]}/play', 400)) == '400 Bad request - Unplayable Job'
    assert ci.find_job(job)['status'] == status


def test_play_of_a_manual_job_that_has_finished_makes_a_new_one(ci, api, project):
    job_in(ci, project, 'manual')
    api('POST', f'{JOBS}/1/play')
    finish(ci)
    answer = api('POST', f'{JOBS}/1/play').json
    assert (answer['id'], answer['status']) == (2, 'pending')


def test_variables_given_to_play_reach_that_run_alone(ci, client, api, project):
    job_in(ci, project, 'manual')
    runner = Runner(ci)
    for given in ([{'key': 'WHO', 'value': 'me'}], []):
        api('POST', f'{JOBS}/1/play', json={'job_variables_attributes': given})
        job = client.call('POST', f'{API}/jobs/request', json={'token': runner.token}, status=201).json
        sent = [item for item in job['variables'] if item['key'] == 'WHO']
        assert [(item['value'], item['public']) for item in sent] == [(item['value'], False) for item in given]
        ci.update_job(ci.find_job(job['id']), 'success')


@pytest.mark.parametrize('given, error', [
    ([{'value': 'x'}], 'job_variables_attributes[0][key] is missing'),
    ([{'key': 'A', 'value': 'x'}, {'key': 'B'}], 'job_variables_attributes[1][value] is missing'),
    ('x', 'job_variables_attributes is invalid'), ([1], 'job_variables_attributes is invalid')])
def test_malformed_variables_for_play_are_400_and_the_job_stays_manual(ci, api, project, given, error):
    job_in(ci, project, 'manual')
    assert api('POST', f'{JOBS}/1/play', 400, json={'job_variables_attributes': given}).json == {'error': error}
    assert ci.find_job(1)['status'] == 'manual'


# -- projects

def test_project_is_created_with_what_is_given_and_defaults_for_the_rest(api):
    answer = api('POST', f'{API}/projects', 201, json={
        'name': 'Demo', 'path': 'group/demo', 'import_url': 'https://user:secret@git.example.com/demo.git'}).json
    assert (answer['id'], answer['name'], answer['path']) == (1, 'Demo', 'demo')
    assert answer['path_with_namespace'] == 'group/demo'
    assert (answer['default_branch'], answer['shared_runners_enabled'], answer['build_timeout']) == ('main', True, 3600)
    assert answer['runners_token']
    assert 'secret' not in answer['import_url']


@pytest.mark.parametrize('kind', ['json', 'form'])
@pytest.mark.parametrize('name, path', [
    ('My Project!', 'my-project'), ('v1.0 - (Test_A)', 'v1-0-test_a'), ('My.Project_1', 'My.Project_1')])
def test_projects_path_is_its_name_or_what_is_left_of_it_in_lower_case(api, kind, name, path):
    answer = api('POST', f'{API}/projects', 201, **{kind: {'name': name}}).json
    assert (answer['name'], answer['path_with_namespace']) == (name, path)


BAD_PROJECTS = (
    {}, {'name': ''}, {'path': '1234'}, {'path': 'a b'}, {'path': '../etc'}, {'path': '/a'}, {'path': 'a/'},
    {'path': 'a//b'}, {'path': 'a.git'}, {'path': 'a\n'}, {'path': 'x' * 300}, {'path': ['a']},
    {'path': 'a', 'import_url': 'git@host:a.git'}, {'path': 'a', 'import_url': 'ext::sh -c x'},
    {'path': 'a', 'import_url': '--upload-pack=x'}, {'path': 'a', 'default_branch': '-x'},
    {'path': 'a', 'build_timeout': 'x'}, {'path': 'a', 'shared_runners_enabled': 'x'})


def test_project_that_cannot_be_is_400_and_is_not_made(ci, api):
    for given in BAD_PROJECTS:
        answer = api('POST', f'{API}/projects', None, json=given)
        assert (answer.status_int, len(answer.json)) == (400, 1), given
    assert ci.list_projects() == ([], 0)


def test_path_of_a_project_is_unique(api, project):
    answer = api('POST', f'{API}/projects', 400, json={'path': 'group/demo'})
    assert message(answer) == {'path': ['has already been taken']}


def test_project_shows_its_runners_token_to_an_api_token_alone(ci, client, api, project):
    assert api('GET', f'{API}/projects/1').json['runners_token'] == project['runners_token']
    assert 'runners_token' not in api('GET', f'{API}/projects').json[0]
    reader = ci.create_private_token(scope='read_api')
    assert 'runners_token' not in client.call('GET', f'{API}/projects/1', token=reader, status=200).json


def test_projects_are_listed_newest_first_searched_and_paged(ci, api):
    for path in ('group/one', 'group/two', 'other/One'):
        ci.create_project(path)

    def paths(query):
        return [item['path_with_namespace'] for item in api('GET', f'{API}/projects?{query}').json]

    assert paths('membership=True') == ['other/One', 'group/two', 'group/one']
    assert paths('search=one') == ['other/One', 'group/one']
    assert paths('per_page=2&page=2') == ['group/one']


# -- pipelines

CREATE = f'{API}/projects/1/pipeline'


@pytest.mark.parametrize('content', ['test:\n  script: [make]\n', json.dumps(PLAIN), PLAIN])
def test_pipeline_is_made_of_a_file_as_yaml_json_or_object(ci, api, project, content):
    answer = api('POST', CREATE, 201, json={'ref': 'main', 'sha': SHA.upper(), 'content': content}).json
    assert (answer['id'], answer['iid'], answer['project_id']) == (1, 1, 1)
    assert (answer['ref'], answer['sha'], answer['status'], answer['source']) == ('main', SHA, 'pending', 'api')
    assert [row['name'] for row in ci.list_jobs()] == ['test']


def test_pipeline_detail_has_every_field(ci, clock, api, project, token):
    api('POST', CREATE, 201, json={'ref': 'main', 'sha': SHA, 'content': PLAIN})
    clock.advance(2.5)
    claim = Runner(ci).claim()
    clock.advance(10.25)
    ci.update_job(claim.job, 'success')
    detail = api('GET', f'{API}/projects/1/pipelines/1').json
    assert detail == {**detail, 'before_sha': '0' * 40, 'tag': False, 'yaml_errors': None, 'status': 'success',
                      'name': None, 'started_at': '2023-11-14T22:13:22.500Z', 'finished_at': '2023-11-14T22:13:32.750Z',
                      'created_at': '2023-11-14T22:13:20.000Z', 'updated_at': '2023-11-14T22:13:32.750Z',
                      'duration': 10, 'queued_duration': 2, 'coverage': None, 'committed_at': None}
    assert (type(detail['duration']), type(detail['queued_duration'])) == (int, int)  # Go clients take nothing else
    assert detail['user']['username'] == 'root'
    assert set(detail['detailed_status']) == {'icon', 'text', 'label', 'group', 'tooltip', 'has_details',
                                              'details_path', 'illustration', 'favicon'}
    assert [detail['detailed_status'][name] for name in ('group', 'text', 'label')] == ['success', 'passed', 'passed']
    assert api('GET', f'{API}/projects/1/pipeline/1').json == detail


FORM = {'Content-Type': 'application/x-www-form-urlencoded'}


@pytest.mark.parametrize('query, options, expected', [
    ('', {'json': {'variables': [{'key': 'A', 'value': '1'}, {'key': 'B', 'value': '2', 'variable_type': 'env_var'}]}},
     {'A': '1', 'B': '2'}),
    ('', {'json': {'variables': {}}}, {}),
    ('', {'json': {'variables': []}}, {}),
    ('', {'json': {}}, {}),
    ('?variables[][key]=A&variables[][value]=1&variables[][key]=B&variables[][value]=2', {}, {'A': '1', 'B': '2'}),
    ('', {'form': {'variables[0][key]': 'A', 'variables[0][value]': '1', 'variables[1][key]': 'B',
                   'variables[1][value]': '2'}}, {'A': '1', 'B': '2'}),
    ('', {'data': b'variables%5B%5D%5Bkey%5D=A&variables[][value]=x+y%26'}, {'A': 'x y&'}),
])
def test_variables_come_in_every_shape_that_clients_send(client, ci, project, token, runner, query, options, expected):
    given = f'{query or "?"}&ref=main&sha={SHA}&content=%7B%22test%22%3A%7B%22script%22%3A%22make%22%7D%7D'
    headers = {'PRIVATE-TOKEN': token, **(FORM if 'data' in options else {})}
    client.call('POST', CREATE + given, headers=headers, status=201, **options)
    job = client.call('POST', f'{API}/jobs/request', json={'token': runner.token}, status=201).json
    found = {item['key']: item['value'] for item in job['variables'] if item['key'] in ('A', 'B')}
    assert found == expected


BAD_PIPELINES = (
    {'variables': [{'key': 'A'}]}, {'variables': [{'value': '1'}]}, {'variables': 'A=1'}, {'variables': {'A': '1'}},
    {'variables': [{'key': 'A', 'value': 1}]}, {'variables': [{'key': 'A B', 'value': '1'}]},
    {'variables': [{'key': 'A', 'value': '1', 'variable_type': 'x'}]}, {'ref': ''}, {'ref': None}, {'ref': ['main']},
    {'ref': 'a..b'}, {'ref': '-x'}, {'sha': 'abc'}, {'sha': 'g' * 40}, {'content': ''}, {'content': 'a: ['},
    {'content': '- a'}, {'content': ['a']}, {'content': {}}, {'content': {'a': {'script': ['x'], 'nonsense': []}}},
    {'content': {'.a': {'script': ['x']}}}, {'content': {'a': {'script': ['x'], 'only': ['other']}}},
    {'content': {'a': {'script': ['x'], 'stage': 'none'}}}, {'content': '"\\uD800": {script: [x]}'},
    {'content': 'a: {script: "\\uD800"}'})


def test_pipeline_that_cannot_be_is_400_and_nothing_is_made(ci, api, project):
    for change in BAD_PIPELINES:
        answer = api('POST', CREATE, None, json={'ref': 'main', 'sha': SHA, 'content': PLAIN, **change})
        assert (answer.status_int, len(answer.json)) == (400, 1), change
    assert ci.list_pipelines(project) == ([], 0)
    assert ci.list_jobs() == []


def test_pipeline_without_a_ref_is_400_and_says_so(api, project):
    assert api('POST', CREATE, 400, json={'sha': SHA, 'content': PLAIN}).json == {'error': 'ref is missing'}


def test_pipeline_of_a_project_without_repository_needs_sha_and_content(api, project):
    for given in ({}, {'sha': SHA}, {'content': PLAIN}):
        answer = api('POST', CREATE, 400, json={'ref': 'main', **given})
        assert 'import_url' in message(answer)['base'][0]


@pytest.fixture
def repository(tmp_path):
    """A git repository with a branch that has a pipeline file, one that has none, and a tag; returns its path."""
    path = tmp_path / 'demo'
    commit(path, 'one', **{'.gitlab-ci.yml': 'test:\n  script: make\n'})
    for line in ('tag -a -m release v1', 'checkout -q -b fix/bare', 'rm -q .gitlab-ci.yml', 'commit -q -m two'):
        git(path, *line.split())
    return path


def test_pipeline_is_read_from_the_repository_at_the_ref(ci, api, repository):
    ci.create_project('group/demo', import_url=repository.as_uri())
    sha = git(repository, 'rev-parse', 'main')
    for ref, tag in (('main', False), ('v1', True)):
        answer = api('POST', f'{CREATE}?ref={ref}', 201, json={}).json
        assert (answer['ref'], answer['sha'], answer['tag']) == (ref, sha, tag)
    commit = api('GET', f'{JOBS}/1').json['commit']
    assert (commit['id'], commit['title'], commit['author_name']) == (sha, 'one', 'Ann')
    assert message(api('POST', CREATE, 400, json={'ref': 'nothing'})) == {'base': ['Reference not found']}
    assert message(api('POST', CREATE, 400, json={'ref': 'fix/bare'}))['base'][0].startswith('Missing CI config file')
    assert api('POST', CREATE, 201, json={'ref': 'fix/bare', 'content': PLAIN}).json['sha'] != sha


def test_pipelines_are_listed_newest_first_filtered_and_paged(ci, api, project):
    make(ci, project)
    make(ci, project, ref='fix/one', sha=OTHER_SHA)
    finish(ci)
    make(ci, ci.create_project('group/other'))
    path = f'{API}/projects/1/pipelines'
    assert ids(api('GET', path)) == [2, 1]
    for query, expected in (('ref=fix/one', [2]), ('ref=fix%2Fone', [2]), (f'sha={SHA}', [1]), ('status=success', [1]),
                            ('status=pending', [2]), ('source=api', [2, 1]), ('source=push', []),
                            ('ref=main&status=pending', []), ('per_page=1&page=2', [1]),
                            ('yaml_errors=true', []), ('yaml_errors=false', [2, 1])):
        assert ids(api('GET', f'{path}?{query}')) == expected, query
    assert api('GET', path).headers['X-Total'] == '2'
    assert api('GET', f'{path}?status=unknown', 400).json == {'error': 'status does not have a valid value'}
    assert {'id', 'iid', 'project_id', 'sha', 'ref', 'status', 'source', 'created_at', 'updated_at', 'web_url',
            'name'} <= set(api('GET', path).json[0])


def test_canceled_pipeline_has_no_unfinished_job_left(ci, api, project):
    make(ci, project, TWO_STAGES)
    for _ in range(2):
        assert api('POST', f'{API}/projects/1/pipelines/1/cancel').json['status'] == 'canceled'
    assert {row['status'] for row in ci.list_jobs()} == {'canceled'}
    assert Runner(ci).claim() is None


def test_retried_pipeline_runs_its_failed_canceled_and_skipped_jobs_again(ci, api, project):
    make(ci, project, {**TWO_STAGES, 'fine': {'stage': 'build', 'script': ['true']}})
    runner = Runner(ci)
    assert [runner.run('failed'), runner.run('success')] == ['compile', 'fine']
    assert api('GET', f'{API}/projects/1/pipelines/1').json['status'] == 'failed'
    answer = api('POST', f'{API}/projects/1/pipelines/1/retry', 201).json
    assert (answer['id'], answer['status'], answer['finished_at']) == (1, 'running', None)
    assert [runner.run(), runner.run(), runner.run()] == ['compile', 'check', None]
    assert api('GET', f'{API}/projects/1/pipelines/1').json['status'] == 'success'


def test_retried_pipeline_runs_its_stages_in_order_again(ci, api, project):
    make(ci, project, TWO_STAGES)
    api('POST', f'{API}/projects/1/pipelines/1/cancel')
    assert api('POST', f'{API}/projects/1/pipelines/1/retry', 201).json['status'] == 'pending'
    jobs = api('GET', f'{API}/projects/1/pipelines/1/jobs').json
    assert {job['name']: job['status'] for job in jobs} == {'compile': 'pending', 'check': 'created'}


# -- the address that people see

def test_external_url_stands_in_every_link(tmp_path, clock):
    with minici.Coordinator(tmp_path / 'proxied.sqlite', clock=clock, fsync=False,
                            external_url='https://ci.example.com/sub/') as ci:
        make(ci, ci.create_project('group/demo'), MANY)
        answer = Client(ci).call('GET', JOBS, token=ci.create_private_token(), status=200)
    assert links(answer)['next'] == f'https://ci.example.com/sub{JOBS}?page=2&per_page=20'
    assert answer.json[0]['web_url'] == 'https://ci.example.com/sub/group/demo/-/jobs/45'
