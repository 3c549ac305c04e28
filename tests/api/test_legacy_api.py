"""The protocol of 2016 at its three addresses: builds, traces, artifacts, runners."""

import json

import pytest
from support import PLAIN, SHA, TWO_STAGES, Client, Runner, archive

import minici

AGENT = 'gitlab-ci-multi-runner 1.5.2 (1-5-stable; go1.6.3; linux/amd64)'
ZEROS = '0' * 40
ZIP = archive(out__app='binary')


def at(client, prefix):
    """Return `client.call` for paths below `prefix`."""
    return lambda method, path, **options: client.call(method, prefix + path, **options)


@pytest.fixture(params=['/ci/api/v1', '/api/v1', '/ci'])
def v1(request, client):
    """Call the old protocol at each of its three addresses: `v1(method, path, ...)`, as `Client.call`."""
    return at(client, request.param)


@pytest.fixture
def api(client):
    """Call it at the address of GitLab 8, for tests that have many cases of their own."""
    return at(client, '/ci/api/v1')


@pytest.fixture
def build(job):
    """The path of a running build."""
    return f'/builds/{job.job["id"]}'


def register(call, runner, status=201, **parameters):
    """Ask for a build as `runner`; return the answer."""
    return call('POST', '/builds/register', json={'token': runner.token, **parameters}, status=status)


def run(ci, project, content, *, done=(), **options):
    """Make a pipeline and let a runner finish as many builds as `done` names statuses; return that runner."""
    ci.create_pipeline(project, options.pop('ref', 'main'), sha=SHA, content=content, **options)
    runner = Runner(ci)
    for status in done:
        assert runner.run(status)
    return runner


def small(tmp_path, clock, **settings):
    """Return a coordinator with other settings, a client for it, a running build's path and token."""
    ci = minici.Coordinator(tmp_path / 'small.sqlite', clock=clock, fsync=False, **settings)
    ci.create_pipeline(ci.create_project('group/small'), 'main', sha=SHA, content=PLAIN)
    claim = Runner(ci).claim()
    return ci, Client(ci), f'/ci/api/v1/builds/{claim.job["id"]}', claim.token


# -- POST builds/register

def test_claimed_build_is_the_whole_object(v1, pipeline, project, runner):
    answer = register(v1, runner)
    build = answer.json
    assert answer.headers['Content-Type'] == 'application/json'
    assert 'X-GitLab-Last-Update' not in answer.headers
    token = build.pop('token')
    variables = build.pop('variables')
    assert build == {
        'id': 1, 'ref': 'main', 'tag': False, 'sha': SHA, 'status': 'running', 'name': 'test', 'stage': 'test',
        'project_id': project['id'], 'project_name': 'demo', 'commands': 'make test', 'options': {}, 'timeout': 3600,
        'repo_url': f'http://gitlab-ci-token:{token}@localhost:80/group/demo.git', 'before_sha': ZEROS,
        'allow_git_fetch': True, 'depends_on_builds': [], 'credentials': []}
    assert all(isinstance(item['value'], str) and isinstance(item['public'], bool) for item in variables)


def test_project_of_a_repository_hands_its_address_to_runners_as_it_is(ci, v1, runner):
    project = ci.create_project('group/remote', import_url='https://git.example.com/demo.git')
    run(ci, project, PLAIN)
    assert register(v1, runner).json['repo_url'] == 'https://git.example.com/demo.git'


def test_oldest_build_comes_first(ci, v1, project):
    runner = run(ci, project, {name: {'script': ['true']} for name in ('b', 'a')})
    assert [register(v1, runner).json['name'] for _ in 'ab'] == ['b', 'a']


@pytest.mark.parametrize('parameters', [{}, {'token': ''}, {'token': 'wrong'}, {'token': None}])
def test_missing_or_unknown_runner_token_is_403(api, pipeline, parameters):
    answer = api('POST', '/builds/register', json=parameters, status=403)
    assert answer.json == {'message': '403 Forbidden'}


def test_paused_runner_is_told_404_and_is_not_noted(ci, v1, pipeline):
    runner = Runner(ci, active=False)
    answer = register(v1, runner, 404, info={'version': '1.5.2'})
    assert answer.json['message'].lower() == '404 not found'
    assert runner.row['contacted_at'] is None
    assert json.loads(runner.row['info']) == {}


def test_runner_is_noted_though_there_is_nothing_to_do(clock, v1, runner):
    info = {'name': 'gitlab-ci-multi-runner', 'version': '1.5.2', 'revision': '76fdacd', 'platform': 'linux',
            'architecture': 'amd64'}
    register(v1, runner, 404, info=info)
    register(v1, runner, 404, info={'version': '', 'unknown': {'features': 1}})
    assert json.loads(runner.row['info']) == info
    assert runner.row['contacted_at'] == clock.now


@pytest.mark.parametrize('agent, status', [
    (AGENT, 204),
    ('gitlab-ci-multi-runner 1.6.0~beta.167.g2b2bacc (1-5-stable; go1.6.3; linux/amd64)', 204),
    ('gitlab-runner 9.0.0 (9-0-stable; go1.7.5; linux/amd64)', 204),
    ('gitlab-ci-multi-runner 1.5.2', 404),
    ('Go-http-client/1.1', 404),
    ('', 404),
])
def test_user_agent_decides_how_nothing_to_do_is_said(api, runner, agent, status):
    answer = api('POST', '/builds/register', json={'token': runner.token}, headers={'User-Agent': agent}, status=status)
    assert answer.headers['X-GitLab-Last-Update']
    if status == 204:
        assert answer.body == b''
    else:
        assert answer.json == {'message': '404 Not Found'}


def test_current_queue_value_comes_back_and_a_stale_one_is_replaced_once_there_is_work(ci, v1, project, runner):
    value = register(v1, runner, 404).headers['X-GitLab-Last-Update']
    again = register(v1, runner, 404, last_update=value)
    assert again.headers['X-GitLab-Last-Update'] == value
    run(ci, project, PLAIN)
    assert register(v1, runner, 201, last_update=value).json['name'] == 'test'
    assert register(v1, runner, 404, last_update=value).headers['X-GitLab-Last-Update'] != value


@pytest.mark.parametrize('encoding', ['json', 'form', 'query', 'urlencoded'])
def test_parameters_may_come_in_any_encoding(api, pipeline, runner, encoding):
    query = f'?token={runner.token}' if encoding == 'query' else ''
    body = {'json': {'json': {'token': runner.token}}, 'form': {'form': {'token': runner.token}}, 'query': {},
            'urlencoded': {'data': f'token={runner.token}'.encode(),
                           'headers': {'Content-Type': 'application/x-www-form-urlencoded'}}}[encoding]
    assert api('POST', f'/builds/register{query}', status=201, **body).json['name'] == 'test'


@pytest.mark.parametrize('suffix', ['', '.json', '/', '.json/'])
def test_json_suffix_and_trailing_slash_are_accepted_on_every_old_path(ci, v1, pipeline, suffix):
    registered = v1('POST', f'/runners/register{suffix}', json={'token': ci.registration_token}, status=201)
    token = registered.json['token']
    build = v1('POST', f'/builds/register{suffix}', json={'token': token}, status=201).json
    v1('PUT', f'/builds/{build["id"]}{suffix}', json={'token': token, 'state': 'success'}, status=200)
    v1('PUT', f'/builds/-1{suffix}', json={'token': token}, status=404)
    v1('DELETE', f'/runners/delete{suffix}', json={'token': token}, status=200)
    v1('PUT', f'/builds/-1{suffix}', json={'token': token}, status=403)


def test_malformed_body_is_400_in_json(v1):
    for body in (b'{', b'[1]', b'{"token": "\xff"}', b'{"token": NaN}'):
        answer = v1('POST', '/builds/register', data=body, headers={'Content-Type': 'application/json'}, status=400)
        assert answer.json['error']


def test_unknown_path_and_method_are_refused_in_json(v1):
    assert v1('GET', '/builds/nothing/here', status=404).json == {'error': '404 Not Found'}
    assert v1('DELETE', '/builds/register', status=405).json == {'error': '405 Not Allowed'}


# -- the build object

def variables_of(answer):
    return {item['key']: (item['value'], item['public']) for item in answer.json['variables']}


def test_predefined_variables_have_their_old_names_and_are_public_but_for_the_token(v1, pipeline, project, runner):
    answer = register(v1, runner)
    variables = variables_of(answer)
    for name, value in {
            'CI': 'true', 'GITLAB_CI': 'true', 'CI_BUILD_ID': '1', 'CI_BUILD_REF': SHA, 'CI_BUILD_BEFORE_SHA': ZEROS,
            'CI_BUILD_REF_NAME': 'main', 'CI_BUILD_REF_SLUG': 'main', 'CI_BUILD_NAME': 'test',
            'CI_BUILD_STAGE': 'test', 'CI_PROJECT_ID': str(project['id']), 'CI_PROJECT_NAME': 'demo',
            'CI_PROJECT_PATH': 'group/demo', 'CI_PROJECT_NAMESPACE': 'group', 'CI_PIPELINE_ID': str(pipeline['id']),
            'CI_PROJECT_URL': 'http://localhost:80/group/demo'}.items():
        assert variables[name] == (value, True), name
    assert variables['CI_BUILD_TOKEN'] == (answer.json['token'], False)
    assert {'CI_SERVER_NAME', 'CI_SERVER_VERSION', 'CI_SERVER_REVISION'} <= set(variables)
    assert not {'CI_BUILD_TAG', 'CI_BUILD_MANUAL', 'CI_BUILD_TRIGGERED', 'CI_PROJECT_DIR'} & set(variables)


def test_tag_build_names_its_tag(ci, v1, project):
    answer = register(v1, run(ci, project, PLAIN, ref='v1.0', tag=True))
    assert answer.json['tag'] is True
    assert variables_of(answer)['CI_BUILD_TAG'] == ('v1.0', True)


def test_manual_and_triggered_builds_say_so(ci, v1, project, token):
    runner = run(ci, project, {'deploy': {'script': ['true'], 'when': 'manual'}}, source='trigger')
    ci.play_job(ci.list_jobs()[0], ci.find_user(token))
    variables = variables_of(register(v1, runner))
    assert variables['CI_BUILD_MANUAL'] == variables['CI_BUILD_TRIGGERED'] == ('true', True)
    assert variables['GITLAB_USER_ID'] == ('1', True)


def test_variables_of_the_file_are_public_those_of_the_pipeline_secret_and_later_ones_win(ci, v1, project):
    content = {'variables': {'A': 'file', 'B': 'file'}, 'test': {'script': ['make'], 'variables': {'B': 'job'}}}
    runner = run(ci, project, content, variables=[{'key': 'A', 'value': 'pipeline'}])
    given = [item for item in register(v1, runner).json['variables'] if item['key'] in 'AB']
    assert given == [{'key': 'A', 'value': 'file', 'public': True}, {'key': 'B', 'value': 'job', 'public': True},
                     {'key': 'A', 'value': 'pipeline', 'public': False}]


def test_options_hold_what_the_job_sets_in_the_shapes_of_2016(ci, v1, project):
    job = {'script': ['make'], 'before_script': ['cd src', 'pwd'], 'after_script': ['rm -r out'],
           'image': {'name': 'ruby:2.1', 'entrypoint': ['/bin/sh']}, 'services': ['mysql', {'name': 'redis:3'}],
           'artifacts': {'name': 'app', 'paths': ['out/'], 'untracked': True, 'when': 'always', 'expire_in': '1 week'},
           'cache': {'key': 'gems', 'paths': ['vendor/'], 'untracked': True}, 'dependencies': []}
    build = register(v1, run(ci, project, {'test': job})).json
    assert build['commands'] == 'cd src\npwd\nmake'
    assert build['options'] == {
        'image': 'ruby:2.1', 'services': ['mysql', 'redis:3'], 'after_script': ['rm -r out'], 'dependencies': [],
        'artifacts': {'name': 'app', 'paths': ['out/'], 'untracked': True, 'when': 'always', 'expire_in': '1 week'},
        'cache': {'key': 'gems-protected', 'paths': ['vendor/'], 'untracked': True}}


@pytest.mark.parametrize('timeout, expected', [(None, 1800), ('10 minutes', 600), ('2h', 7200)])
def test_timeout_is_the_jobs_own_or_its_projects(ci, api, timeout, expected):
    project = ci.create_project('group/slow', build_timeout=1800)
    job = {'script': ['make'], **({'timeout': timeout} if timeout else {})}
    assert register(api, run(ci, project, {'test': job})).json['timeout'] == expected


def test_build_depends_on_every_latest_build_of_the_stages_before_it_or_on_those_it_names(ci, v1, project):
    content = {'stages': ['a', 'b', 'c'], 'one': {'stage': 'a', 'script': ['true'], 'allow_failure': True},
               'two': {'stage': 'b', 'script': ['true']}, 'same': {'stage': 'c', 'script': ['true']},
               'last': {'stage': 'c', 'script': ['true'], 'dependencies': ['two']}}
    runner = run(ci, project, content, done=['failed'])
    ci.retry_job(ci.find_job(1))
    assert [runner.run() for _ in 'ab'] == ['two', 'one']
    builds = [register(v1, runner).json for _ in 'cc']
    assert [build['name'] for build in builds] == ['same', 'last']
    two, one = sorted(builds[0]['depends_on_builds'], key=lambda item: item['id'])
    assert (one['id'], one['name'], one['stage'], one['status']) == (5, 'one', 'a', 'success')
    named, = builds[1]['depends_on_builds']
    for dependency in (two, named):
        assert dependency == {'id': 2, 'ref': 'main', 'tag': False, 'sha': SHA, 'status': 'success', 'name': 'two',
                              'token': dependency['token'], 'stage': 'b', 'project_id': project['id'],
                              'project_name': 'demo'}
    assert builds[1]['options']['dependencies'] == ['two']


def test_dependencys_archive_is_named_and_its_token_fetches_it(ci, v1, project):
    runner = run(ci, project, TWO_STAGES)
    first = register(v1, runner).json
    v1('POST', f'/builds/{first["id"]}/artifacts', form={'token': first['token']},
       files=[('file', 'out.zip', ZIP)], status=201)
    v1('PUT', f'/builds/{first["id"]}', form={'token': runner.token, 'state': 'success'}, status=200)
    dependency, = register(v1, runner).json['depends_on_builds']
    assert dependency['artifacts_file'] == {'filename': 'out.zip', 'size': len(ZIP)}
    headers = {'BUILD-TOKEN': dependency['token']}
    assert v1('GET', f'/builds/{dependency["id"]}/artifacts', headers=headers, status=200).body == ZIP


# -- PUT builds/:id

@pytest.mark.parametrize('state, status', [('success', 'success'), ('failed', 'failed'), ('running', 'running'),
                                           ('nonsense', 'running'), (None, 'running')])
def test_only_success_and_failed_change_a_build(ci, api, build, job, runner, state, status):
    api('PUT', build, json={'token': runner.token, 'state': state, 'unknown': 1, 'info': {'version': '1'}}, status=200)
    assert ci.find_job(job.job)['status'] == status


def test_trace_of_a_put_replaces_the_stored_one_and_without_it_the_trace_stays(ci, v1, build, job, runner):
    v1('PUT', build, form={'token': runner.token, 'trace': 'one'}, status=200)
    v1('PUT', build, form={'token': runner.token, 'trace': 'two ✓'}, status=200)
    v1('PUT', build, form={'token': runner.token, 'state': 'success'}, status=200)
    assert ci.read_trace(job.job) == 'two ✓'.encode()


@pytest.mark.parametrize('encoding', ['json', 'form'])
def test_whole_log_of_an_old_runner_may_be_large(ci, api, build, job, runner, encoding):
    trace = 'line\n' * 200_000
    api('PUT', build, status=200, **{encoding: {'token': runner.token, 'state': 'success', 'trace': trace}})
    assert ci.trace_size(job.job) == len(trace)


def test_finished_build_starts_the_next_stage_at_once(ci, v1, project):
    runner = run(ci, project, TWO_STAGES)
    build = register(v1, runner).json
    v1('PUT', f'/builds/{build["id"]}', json={'token': runner.token, 'state': 'success'}, status=200)
    assert register(v1, runner).json['name'] == 'check'


@pytest.mark.parametrize('id', ['-1', '4711', '999999999999999999'])
def test_registered_runner_asking_after_no_build_is_told_404_a_removed_one_403(api, runner, id):
    answer = api('PUT', f'/builds/{id}', json={'token': runner.token}, status=404)
    assert answer.json['message'].lower() == '404 not found'
    api('PUT', f'/builds/{id}', json={'token': 'gone'}, status=403)
    api('PUT', f'/builds/{id}', json={}, status=403)


@pytest.mark.parametrize('id', ['abc', '1.5', '1e3', '9' * 30])
def test_build_id_that_is_no_number_is_404(v1, runner, id):
    v1('PUT', f'/builds/{id}', json={'token': runner.token}, status=404)


def test_build_of_another_runner_is_404_and_stays(ci, v1, build, job):
    v1('PUT', build, json={'token': Runner(ci).token, 'state': 'failed', 'trace': 'x'}, status=404)
    assert ci.find_job(job.job)['status'] == 'running'
    assert ci.read_trace(job.job) == b''


def test_pending_build_is_404_to_any_runner(ci, v1, pipeline, runner):
    v1('PUT', '/builds/1', json={'token': runner.token, 'state': 'success'}, status=404)
    assert ci.find_job(1)['status'] == 'pending'


def test_canceled_build_is_404_and_stays_canceled(ci, v1, build, job, runner):
    ci.cancel_job(job.job)
    v1('PUT', build, json={'token': runner.token, 'state': 'success', 'trace': 'x'}, status=404)
    assert ci.find_job(job.job)['status'] == 'canceled'
    assert ci.read_trace(job.job) == b''


def test_repeated_final_state_is_200_and_another_one_404(ci, v1, build, job, runner):
    for _ in range(2):
        v1('PUT', build, json={'token': runner.token, 'state': 'failed'}, status=200)
    v1('PUT', build, json={'token': runner.token, 'state': 'success'}, status=404)
    assert ci.find_job(job.job)['status'] == 'failed'


@pytest.mark.parametrize('way', ['parameter', 'header'])
def test_build_token_updates_its_build(ci, api, build, job, way):
    parameters = {'state': 'success', **({'token': job.token} if way == 'parameter' else {})}
    api('PUT', build, json=parameters, headers={'BUILD-TOKEN': job.token} if way == 'header' else {}, status=200)
    assert ci.find_job(job.job)['status'] == 'success'


def test_projects_token_does_not_update_a_build(ci, v1, build, job, project):
    v1('PUT', build, json={'token': project['runners_token'], 'state': 'success'}, status=403)
    assert ci.find_job(job.job)['status'] == 'running'


# -- who may send traces and artifacts

CALLS = {
    'PATCH': ('/trace.txt', {'data': b'x'}, 202),
    'POST': ('/artifacts', {'files': [('file', 'a.zip', ZIP)]}, 201),
    'GET': ('/artifacts', {}, 200),
    'DELETE': ('/artifacts', {}, 200),
}


def try_call(call, build, method, token, way, status=None, *, offset=0):
    """Send one of CALLS with a token as query parameter or header; return the answer."""
    path, options, expected = CALLS[method]
    headers = {'Content-Range': f'{offset}-', **({'BUILD-TOKEN': token} if way == 'header' else {})}
    query = f'?token={token}' if way == 'parameter' else ''
    return call(method, f'{build}{path}{query}', **{**options, 'headers': headers}, status=status or expected)


def keep_file(ci, claim, **options):
    """Store an archive for a claimed job."""
    part = ci.artifacts.receive()
    part.filename = 'kept.zip'
    part.write(ZIP)
    ci.store_artifacts(claim.job, part, **options)
    part.discard()


@pytest.mark.parametrize('way', ['parameter', 'header'])
@pytest.mark.parametrize('method', CALLS)
def test_build_token_project_token_and_holders_token_all_work(ci, api, build, job, runner, project, method, way):
    for count, token in enumerate((job.token, project['runners_token'], runner.token), 1):
        keep_file(ci, job, replace=True)
        try_call(api, build, method, token, way, offset=count - 1)
    assert ci.read_trace(job.job) == (b'xxx' if method == 'PATCH' else b'')


@pytest.mark.parametrize('way', ['parameter', 'header'])
@pytest.mark.parametrize('method', CALLS)
def test_any_other_token_is_403_and_changes_nothing(ci, api, build, job, token, method, way):
    keep_file(ci, job)
    other = ci.create_project('group/other')
    runner = run(ci, other, PLAIN)
    for wrong in (runner.token, runner.claim().token, other['runners_token'], ci.registration_token, token, 'x', ''):
        assert try_call(api, build, method, wrong, way, 403).json['message'].startswith('403 Forbidden')
    assert ci.read_trace(job.job) == b''
    assert ci.find_artifact(job.job['id'])['filename'] == 'kept.zip'


@pytest.mark.parametrize('method', CALLS)
def test_unknown_build_is_404_before_any_token(api, method):
    assert try_call(api, '/builds/4711', method, 'wrong', 'header', 404).json['message'].lower() == '404 not found'


@pytest.mark.parametrize('method', CALLS)
def test_wrong_parameter_beats_a_right_header(ci, api, build, job, method):
    keep_file(ci, job)
    path, options, _ = CALLS[method]
    headers = {'Content-Range': '0-', 'BUILD-TOKEN': job.token}
    api(method, f'{build}{path}?token=wrong', **{**options, 'headers': headers}, status=403)


@pytest.mark.parametrize('method', ['PATCH', 'POST', 'DELETE'])
def test_erased_build_refuses_the_token_it_had(ci, api, build, job, method):
    api('PUT', build, json={'token': job.token, 'state': 'success', 'trace': 'x'}, status=200)
    ci.erase_job(ci.find_job(job.job))
    try_call(api, build, method, job.token, 'header', 403)


@pytest.mark.parametrize('method', ['PATCH', 'POST', 'GET'])
def test_requeued_build_refuses_the_token_it_had(ci, clock, api, build, job, runner, method):
    clock.advance(minutes=3)
    ci.sweep()
    assert register(api, runner).json['id'] == job.job['id']
    try_call(api, build, method, job.token, 'header', 403)


# -- PATCH builds/:id/trace.txt

def patch(call, build, token, content_range, data, status, **headers):
    if content_range is not None:
        headers['Content-Range'] = content_range
    return call('PATCH', f'{build}/trace.txt', data=data, status=status,
              headers={'BUILD-TOKEN': token, 'Content-Type': 'text/plain', **headers})


def test_trace_grows_by_parts_and_each_answer_says_status_and_length(ci, v1, build, job):
    for content_range, data, size in (('0-11', b'first part ', 11), ('11-22', b'second part', 22)):
        answer = patch(v1, build, job.token, content_range, data, 202)
        assert (answer.headers['Build-Status'], answer.headers['Range']) == ('running', f'0-{size}')
        assert answer.body == b''
    assert ci.read_trace(job.job) == b'first part second part'


def test_part_without_content_range_is_400(ci, v1, build, job):
    answer = patch(v1, build, job.token, None, b'x', 400)
    assert answer.json == {'error': '400 Missing header Content-Range'}
    assert ci.read_trace(job.job) == b''


@pytest.mark.parametrize('content_range', ['10-20', '12-22', '0-11', '0-0'])
def test_part_at_another_offset_is_416_with_the_current_length(ci, api, build, job, content_range):
    patch(api, build, job.token, '0-11', b'hello world', 202)
    answer = patch(api, build, job.token, content_range, b'hello world', 416)
    assert answer.headers['Range'] == '0-11'
    assert answer.json == {'error': '416 Range Not Satisfiable'}
    assert ci.read_trace(job.job) == b'hello world'


def test_empty_trace_is_0_0(v1, build, job):
    assert patch(v1, build, job.token, '5-10', b'world', 416).headers['Range'] == '0-0'
    assert patch(v1, build, job.token, '0-0', b'', 202).headers['Range'] == '0-0'


@pytest.mark.parametrize('content_range', ['11-22', '11-21', '11-21/22', '11-', '11-7', '11-99999'])
def test_end_of_the_range_is_not_looked_at(ci, api, build, job, content_range):
    patch(api, build, job.token, '0-11', b'hello world', 202)
    assert patch(api, build, job.token, content_range, b'hello again', 202).headers['Range'] == '0-22'
    assert ci.read_trace(job.job) == b'hello worldhello again'


@pytest.mark.parametrize('content_range', ['eleven', '-11', '0x1-2', '1 1-22', '\u0661-2', '9' * 40 + '-1'])
def test_malformed_range_is_400(ci, api, build, job, content_range):
    patch(api, build, job.token, content_range.encode().decode('latin-1'), b'x', 400)
    assert ci.read_trace(job.job) == b''


@pytest.mark.parametrize('content_range', ['11-10', '11-11', '11-'])
def test_empty_part_at_the_end_is_a_sign_of_life(ci, clock, api, build, job, content_range):
    patch(api, build, job.token, '0-11', b'hello world', 202)
    for _ in range(3):
        clock.advance(minutes=9)
        assert patch(api, build, job.token, content_range, b'', 202).headers['Range'] == '0-11'
        ci.sweep()
    assert ci.find_job(job.job)['status'] == 'running'
    assert ci.read_trace(job.job) == b'hello world'
    clock.advance(minutes=11)
    ci.sweep()
    assert patch(api, build, job.token, content_range, b'', 403).headers['Build-Status'] == 'failed'


def test_length_is_counted_in_bytes_and_any_bytes_are_kept(ci, v1, build, job):
    data = '✓ grün\r\n'.encode() + bytes(range(256))
    cut = 2  # within the first character
    patch(v1, build, job.token, '0-2', data[:cut], 202)
    assert patch(v1, build, job.token, '2-9', data[cut:], 202).headers['Range'] == f'0-{len(data)}'
    assert ci.read_trace(job.job) == data


def test_body_of_a_part_is_never_read_as_parameters(ci, v1, build, job):
    for kind, data in (('application/x-www-form-urlencoded', b'token=wrong&x=%'), ('application/json', b'{')):
        size = ci.trace_size(job.job)
        patch(v1, build, job.token, f'{size}-', data, 202, **{'Content-Type': kind})
    assert ci.read_trace(job.job) == b'token=wrong&x=%{'


@pytest.mark.parametrize('end', ['canceled', 'success', 'failed'])
def test_build_that_ended_tells_its_runner_by_the_header_and_takes_no_more(ci, api, build, job, end):
    patch(api, build, job.token, '0-3', b'abc', 202)
    if end == 'canceled':
        ci.cancel_job(job.job)
    else:
        api('PUT', build, json={'token': job.token, 'state': end}, status=200)
    answer = patch(api, build, job.token, '3-6', b'def', 403 if end == 'failed' else 202)
    assert (answer.headers['Build-Status'], answer.headers['Range']) == (end, '0-3')
    assert ci.read_trace(job.job) == b'abc'


def test_trace_that_outgrows_the_limit_fails_the_build(tmp_path, clock):
    ci, client, build, token = small(tmp_path, clock, max_trace_size=10)
    with ci:
        for start, data, code, status in ((0, b'01234567', 202, 'running'), (8, b'xyz', 403, 'failed')):
            answer = client.call('PATCH', f'{build}/trace.txt', data=data, status=code,
                                 headers={'BUILD-TOKEN': token, 'Content-Range': f'{start}-'})
            assert answer.headers['Build-Status'] == status
        assert ci.read_trace(1) == b'01234567xy'
        assert ci.find_job(1)['failure_reason'] == 'trace_size_exceeded'


# -- artifacts

def upload(call, build, token, status=201, content=ZIP, filename='out.zip', query='', **form):
    return call('POST', f'{build}/artifacts{query}', form=form, files=[('file', filename, content)],
              headers={'BUILD-TOKEN': token}, status=status)


def test_upload_answers_the_build_with_the_name_and_size_of_its_file(v1, build, job):
    answer = upload(v1, build, job.token)
    assert answer.headers['Content-Type'] == 'application/json'
    assert answer.json['artifacts_file'] == {'filename': 'out.zip', 'size': len(ZIP)}
    assert answer.json['artifacts_expire_at'] is None
    assert (answer.json['id'], answer.json['name'], answer.json['status']) == (job.job['id'], 'test', 'running')


def test_download_is_the_file_as_an_attachment(v1, build, job):
    upload(v1, build, job.token, query='?')
    answer = v1('GET', f'{build}/artifacts?', headers={'BUILD-TOKEN': job.token}, status=200)
    assert answer.body == ZIP
    assert answer.headers['Content-Type'] == 'application/octet-stream'
    assert answer.headers['Content-Transfer-Encoding'] == 'binary'
    assert answer.headers['Content-Length'] == str(len(ZIP))
    assert answer.headers['Content-Disposition'].startswith('attachment; filename="out.zip"')


def test_download_works_in_any_status_of_the_build(ci, v1, build, job):
    upload(v1, build, job.token)
    v1('PUT', build, json={'token': job.token, 'state': 'failed'}, status=200)
    assert v1('GET', f'{build}/artifacts', headers={'BUILD-TOKEN': job.token}, status=200).body == ZIP


def test_second_upload_replaces_the_first(ci, v1, build, job):
    upload(v1, build, job.token)
    answer = upload(v1, build, job.token, content=b'other', filename='new.zip')
    assert answer.json['artifacts_file'] == {'filename': 'new.zip', 'size': 5}
    assert v1('GET', f'{build}/artifacts', headers={'BUILD-TOKEN': job.token}).body == b'other'


def test_upload_of_nothing_or_of_metadata_alone_is_400_and_stores_nothing(v1, build, job):
    for options in ({'form': {'x': '1'}}, {'form': {'file': 'x'}}, {'json': {}},
                    {'files': [('metadata', 'm.gz', b'x')]}):
        answer = v1('POST', f'{build}/artifacts', headers={'BUILD-TOKEN': job.token}, status=400, **options)
        assert 'Missing artifacts file!' in answer.json['message']
    v1('GET', f'{build}/artifacts', headers={'BUILD-TOKEN': job.token}, status=404)


@pytest.mark.parametrize('status', ['pending', 'success', 'canceled'])
def test_upload_to_a_build_that_is_not_running_is_403(ci, api, project, status):
    runner = run(ci, project, PLAIN)
    token = project['runners_token']
    if status != 'pending':
        claim = runner.claim()
        token = claim.token
        ci.cancel_job(claim.job) if status == 'canceled' else ci.update_job(claim.job, status)
    upload(api, '/builds/1', token, 403)
    with pytest.raises(minici.NotFound):
        ci.find_artifact(1)


@pytest.mark.parametrize('where', ['query', 'form'])
def test_expire_in_sets_when_the_archive_is_gone(ci, clock, api, build, job, where):
    options = {'query': '?expire_in=7+days'} if where == 'query' else {'expire_in': '7 days'}
    answer = upload(api, build, job.token, **options)
    assert answer.json['artifacts_expire_at'] == '2023-11-21T22:13:20.000Z'
    clock.advance(days=7, seconds=-1)
    api('GET', f'{build}/artifacts', headers={'BUILD-TOKEN': job.token}, status=200)
    clock.advance(seconds=1)
    api('GET', f'{build}/artifacts', headers={'BUILD-TOKEN': job.token}, status=404)


@pytest.mark.parametrize('expire_in', ['never', '0'])
def test_expire_in_may_say_never(api, build, job, expire_in):
    assert upload(api, build, job.token, expire_in=expire_in).json['artifacts_expire_at'] is None


@pytest.mark.parametrize('expire_in', ['soon', '7 fortnights', '-1 day', '9' * 400, '999999999999 years'])
def test_nonsense_in_expire_in_is_400_and_stores_nothing(api, build, job, expire_in):
    assert 'message' in upload(api, build, job.token, 400, expire_in=expire_in).json
    api('GET', f'{build}/artifacts', headers={'BUILD-TOKEN': job.token}, status=404)


@pytest.mark.parametrize('limit', [0, 20])
def test_upload_over_the_limit_is_413_and_leaves_nothing(tmp_path, clock, limit):
    ci, client, build, token = small(tmp_path, clock, max_artifacts_size=limit)
    with ci:
        answer = client.call('POST', f'{build}/artifacts', files=[('file', 'a.zip', b'x' * 40)], status=413,
                             headers={'BUILD-TOKEN': token})
        assert answer.json['message'].startswith('413 Request Entity Too Large')
        client.call('GET', f'{build}/artifacts', headers={'BUILD-TOKEN': token}, status=404)
        assert [path for path in ci.data.rglob('*') if path.is_file() and path.parent.name in ('tmp', '0000')
                and path.suffix != '.log'] == []


def test_authorize_tells_whether_an_upload_would_be_taken(ci, v1, build, job):
    headers = {'BUILD-TOKEN': job.token}
    v1('POST', f'{build}/artifacts/authorize', form={'filesize': '1000'}, headers=headers, status=200)
    v1('POST', f'{build}/artifacts/authorize', form={'filesize': str(2 ** 40)}, headers=headers, status=413)
    v1('POST', f'{build}/artifacts/authorize', form={'filesize': '1000'}, headers={'BUILD-TOKEN': 'wrong'}, status=403)
    ci.cancel_job(job.job)
    v1('POST', f'{build}/artifacts/authorize', headers=headers, status=403)


@pytest.mark.parametrize('options', [{'json': 'TOKEN'}, {'form': 'TOKEN'}, {'headers': 'TOKEN'}])
def test_removed_archive_is_gone_and_removing_it_again_is_200(ci, api, build, job, options):
    name, = options
    options = {name: {'BUILD-TOKEN' if name == 'headers' else 'token': job.token}}
    upload(api, build, job.token)
    for _ in range(2):
        api('DELETE', f'{build}/artifacts', status=200, **options)
        api('GET', f'{build}/artifacts', headers={'BUILD-TOKEN': job.token}, status=404)
    assert not list(ci.data.glob('artifacts/*/*'))


def test_token_of_a_finished_build_no_longer_removes_its_archive_the_projects_does(ci, v1, build, job, project):
    upload(v1, build, job.token)
    v1('PUT', build, json={'token': job.token, 'state': 'success'}, status=200)
    v1('DELETE', f'{build}/artifacts', headers={'BUILD-TOKEN': job.token}, status=403)
    assert ci.find_artifact(job.job['id'])['filename'] == 'out.zip'
    v1('DELETE', f'{build}/artifacts', headers={'BUILD-TOKEN': project['runners_token']}, status=200)


# -- runners

@pytest.mark.parametrize('parameters', [{}, {'token': ''}, {'description': 'x'}])
def test_registration_without_a_token_is_400_and_with_a_wrong_one_403(v1, parameters):
    answer = v1('POST', '/runners/register', json=parameters, status=400)
    assert 'token' in str(answer.json)
    v1('POST', '/runners/register', json={**parameters, 'token': 'wrong'}, status=403)


@pytest.mark.parametrize('whose, kind', [('instance', 'instance_type'), ('project', 'project_type')])
def test_registration_token_decides_the_kind_of_runner_and_the_new_token_differs(ci, v1, project, whose, kind):
    token = {'instance': ci.registration_token, 'project': project['runners_token']}[whose]
    answer = v1('POST', '/runners/register', form={'token': token}, status=201)
    assert answer.headers['Content-Type'] == 'application/json'
    row = ci.find_runner(answer.json['token'])
    assert (row['id'], row['runner_type'], row['run_untagged'], row['locked']) == (answer.json['id'], kind, 1, 0)
    assert answer.json['token'] != token


def test_project_runner_takes_builds_of_its_project_alone(ci, v1, project):
    run(ci, ci.create_project('group/other'), PLAIN)
    answer = v1('POST', '/runners/register', json={'token': project['runners_token']}, status=201)
    v1('POST', '/builds/register', json={'token': answer.json['token']}, status=404)
    run(ci, project, PLAIN)
    v1('POST', '/builds/register', json={'token': answer.json['token']}, status=201)


def test_registration_stores_everything_a_runner_says_of_itself(ci, v1):
    info = {'name': 'gitlab-ci-multi-runner', 'version': '1.11.5', 'revision': '2f1c6ba', 'platform': 'linux',
            'architecture': 'amd64'}
    answer = v1('POST', '/runners/register', status=201, json={
        'token': ci.registration_token, 'description': 'büro', 'tag_list': 'docker, ruby ', 'run_untagged': False,
        'locked': True, 'info': info, 'unknown': [1]})
    row = ci.find_runner(answer.json['token'])
    assert (row['description'], row['run_untagged'], row['locked']) == ('büro', 0, 1)
    assert json.loads(row['tags']) == ['docker', 'ruby']
    assert json.loads(row['info']) == info


@pytest.mark.parametrize('kind, body, tags', [
    ('json', b'{"token": "TOKEN", "tag_list": "a,b"}', ['a', 'b']),
    ('json', b'{"token": "TOKEN", "tag_list": ["a", "b"]}', ['a', 'b']),
    ('x-www-form-urlencoded', b'token=TOKEN&tag_list=a&tag_list=b', ['a', 'b']),
    ('x-www-form-urlencoded', b'token=TOKEN&tag_list[]=a&tag_list%5B%5D=b', ['a', 'b']),
    ('json', b'{"token": "TOKEN"}', []),
    ('json', b'{"token": "TOKEN", "tag_list": null}', []),
    ('x-www-form-urlencoded', b'token=TOKEN&tag_list=', []),
])
def test_tag_list_comes_in_five_shapes(ci, api, kind, body, tags):
    answer = api('POST', '/runners/register', data=body.replace(b'TOKEN', ci.registration_token.encode()),
                headers={'Content-Type': f'application/{kind}'}, status=201)
    assert json.loads(ci.find_runner(answer.json['token'])['tags']) == tags


def test_runner_without_tags_that_takes_no_untagged_builds_is_404(ci, v1):
    v1('POST', '/runners/register', json={'token': ci.registration_token, 'run_untagged': False}, status=404)
    v1('POST', '/runners/register', form={'token': ci.registration_token, 'run_untagged': 'false', 'tag_list': 'a'},
       status=201)


@pytest.mark.parametrize('encoding', ['json', 'form', 'query'])
def test_removed_runner_is_unknown_from_then_on(ci, api, runner, encoding):
    query = f'?token={runner.token}' if encoding == 'query' else ''
    api('DELETE', f'/runners/delete{query}', status=200,
       **({} if encoding == 'query' else {encoding: {'token': runner.token}}))
    assert ci.find_runner(runner.token) is None
    api('DELETE', '/runners/delete', json={'token': runner.token}, status=403)
    api('POST', '/builds/register', json={'token': runner.token}, status=403)


def test_removing_needs_the_runners_own_token(ci, v1, runner, project):
    v1('DELETE', '/runners/delete', json={}, status=400)
    for token in ('wrong', ci.registration_token, project['runners_token']):
        v1('DELETE', '/runners/delete', json={'token': token}, status=403)
    assert ci.find_runner(runner.token)['id'] == runner.id


# -- a build's whole life, as a runner of 2016 sends it

def test_runner_of_2016_registers_verifies_runs_a_build_and_leaves(ci, v1, project):
    run(ci, project, PLAIN)
    headers = {'User-Agent': AGENT, 'Accept': 'application/json'}
    info = {'name': 'gitlab-ci-multi-runner', 'version': '1.5.2'}
    token = v1('POST', '/runners/register.json', headers=headers, status=201, json={
        'token': ci.registration_token, 'description': 'old', 'info': info}).json['token']
    v1('PUT', '/builds/-1', headers=headers, json={'token': token, 'info': info}, status=404)
    build = v1('POST', '/builds/register.json', headers=headers, json={'token': token, 'info': info}, status=201).json
    path, trace = f'/builds/{build["id"]}', b''
    for chunk in (b'Running with gitlab-ci-multi-runner\n', '✓ tests\n'.encode(), b''):
        answer = patch(v1, path, build['token'], f'{len(trace)}-{len(trace) + len(chunk)}', chunk, 202)
        trace += chunk
        assert answer.headers['Range'] == f'0-{len(trace)}'
    v1('POST', f'{path}/artifacts?expire_in=1+week', files=[('file', 'artifacts.zip', ZIP)],
       headers={'BUILD-TOKEN': build['token']}, status=201)
    v1('PUT', f'{path}.json', headers=headers, status=200, json={
        'token': token, 'state': 'success', 'trace': trace.decode(), 'info': info})
    v1('POST', '/builds/register.json', headers=headers, json={'token': token}, status=204)
    v1('DELETE', '/runners/delete', headers=headers, json={'token': token}, status=200)
    assert ci.find_job(build['id'])['status'] == 'success'
    assert ci.read_trace(build['id']) == trace
