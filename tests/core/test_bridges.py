"""Bridges: jobs with `trigger` start child pipelines and pipelines of other projects, and follow them."""

import json
import subprocess

import pytest
from support import SHA, archive

import minici

JOB = {'script': ['make']}


@pytest.fixture
def make_repository(tmp_path):
    """Return a function that makes a repository of files and returns its address."""
    def make(name, **files):
        path = tmp_path / 'git' / name
        path.mkdir(parents=True)
        for file, content in files.items():
            (path / file.replace('_', '.')).write_text(json.dumps(content))

        def git(*arguments):
            subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@example.com', *arguments], cwd=path,
                           check=True, capture_output=True)
        git('init', '-q', '-b', 'main')
        git('add', '-A')
        git('commit', '-q', '-m', 'change')
        return path.as_uri()
    return make


@pytest.fixture
def family(ci, make_repository):
    """Return a function that starts a pipeline with a bridge to child.yml, with these keywords."""
    def start(child=None, *, trigger=None, **keywords):
        content = {'before': {'stage': 'build', **JOB}, 'after': {'stage': 'deploy', **JOB},
                   'down': {'trigger': {'include': 'child.yml', **(trigger or {})}, **keywords}}
        url = make_repository('app', **{'.gitlab-ci_yml': content, 'child_yml': child or {'one': JOB}})
        return ci.create_pipeline(ci.create_project('group/app', import_url=url), 'main')
    return start


def statuses(ci, pipeline):
    """Return the statuses of a pipeline's jobs and bridges, by name."""
    rows = ci.list_jobs(pipeline=pipeline, include_retried=False) + [row for row, _ in ci.list_bridges(pipeline)]
    return {row['name']: row['status'] for row in rows}


def downstream(ci, pipeline):
    """Return the pipeline that the one bridge of a pipeline has started."""
    (_, found), = ci.list_bridges(pipeline)
    return found and ci.find_pipeline(found)


def upload(client, claim, content):
    """Upload the archive of a claimed job, and finish the job."""
    token = {'JOB-TOKEN': claim.token}
    client.call('POST', f'/api/v4/jobs/{claim.job["id"]}/artifacts', headers=token, status=201,
                files=[('file', 'artifacts.zip', content)])
    client.call('PUT', f'/api/v4/jobs/{claim.job["id"]}', json={'token': claim.token, 'state': 'success'})


# -- child pipelines

def test_a_bridge_starts_a_child_pipeline_when_its_turn_comes(ci, family, runner):
    parent = family()
    assert statuses(ci, parent) == {'before': 'pending', 'down': 'created', 'after': 'created'}
    assert downstream(ci, parent) is None
    runner.run()
    assert statuses(ci, parent) == {'before': 'success', 'down': 'success', 'after': 'pending'}
    child = downstream(ci, parent)
    assert (child['source'], child['ref'], child['sha']) == ('parent_pipeline', 'main', parent['sha'])
    assert statuses(ci, child) == {'one': 'pending'}


@pytest.mark.parametrize('status, after', [('success', 'pending'), ('failed', 'skipped')])
def test_with_strategy_depend_a_bridge_has_the_status_of_its_child(ci, family, runner, status, after):
    parent = family(trigger={'strategy': 'depend'}, needs=[])
    assert statuses(ci, parent)['down'] == 'running'
    assert {runner.run(), runner.run(status)} == {'before', 'one'}
    assert statuses(ci, parent) == {'before': 'success', 'down': status, 'after': after}


def test_jobs_that_need_a_bridge_wait_for_it(ci, make_repository, runner):
    content = {'down': {'trigger': {'include': 'child.yml', 'strategy': 'depend'}}, 'next': {'needs': ['down'], **JOB}}
    url = make_repository('app', **{'.gitlab-ci_yml': content, 'child_yml': {'one': JOB}})
    parent = ci.create_pipeline(ci.create_project('app', import_url=url), 'main')
    assert statuses(ci, parent) == {'down': 'running', 'next': 'created'}
    assert runner.run() == 'one'
    assert statuses(ci, parent) == {'down': 'success', 'next': 'pending'}


def test_a_manual_bridge_waits_to_be_played(ci, family):
    parent = family(when='manual', needs=[])
    assert statuses(ci, parent)['down'] == 'manual'
    (bridge, _), = ci.list_bridges(parent)
    ci.play_job(bridge)
    assert statuses(ci, parent)['down'] == 'success'
    assert downstream(ci, parent)


def test_rules_of_a_child_see_where_it_came_from(ci, family):
    parent = family({'yes': {**JOB, 'rules': [{'if': '$CI_PIPELINE_SOURCE == "parent_pipeline"'}]},
                     'no': {**JOB, 'rules': [{'if': '$CI_PIPELINE_SOURCE == "push"'}]}}, needs=[])
    assert statuses(ci, downstream(ci, parent)) == {'yes': 'pending'}


def test_a_bridge_forwards_what_its_environment_is_called(ci, family, runner):
    known = '$WHERE == "review/main start development"'
    parent = family({'one': {'rules': [{'if': known}], **JOB}, 'other': JOB}, environment='review/$CI_COMMIT_REF_NAME',
                    variables={'WHERE': '$CI_ENVIRONMENT_NAME $CI_ENVIRONMENT_ACTION $CI_ENVIRONMENT_TIER'})
    runner.run()
    assert set(statuses(ci, downstream(ci, parent))) == {'one', 'other'}


def test_a_child_of_several_files_takes_inputs(ci, make_repository):
    child = 'spec: {inputs: {name: {}}}\n---\n"$[[ inputs.name ]]": {script: make}'
    content = {'down': {'trigger': {'include': [{'local': 'a.yml', 'inputs': {'name': 'mine'}}, 'b.yml']}}}
    url = make_repository('app', **{'.gitlab-ci_yml': content, 'a_yml': 'x', 'b_yml': {'two': JOB}})
    path = url.removeprefix('file://')
    with open(f'{path}/a.yml', 'w') as file:
        file.write(child)
    subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@example.com', 'commit', '-qam', 'x'], cwd=path,
                   check=True)
    parent = ci.create_pipeline(ci.create_project('app', import_url=url), 'main')
    assert statuses(ci, downstream(ci, parent)) == {'mine': 'pending', 'two': 'pending'}


def test_a_child_may_be_an_artifact_of_a_job(ci, client, runner, project):
    content = {'make': {'stage': 'build', 'script': ['x'], 'artifacts': {'paths': ['a']}},
               'down': {'trigger': {'include': [{'artifact': 'out/child.yml', 'job': 'make'}]}}}
    parent = ci.create_pipeline(project, 'main', sha=SHA, content=content)
    upload(client, runner.claim(), archive(**{'out/child.yml': json.dumps({'made': JOB})}))
    assert statuses(ci, downstream(ci, parent)) == {'made': 'pending'}


def test_a_child_that_cannot_be_compiled_fails_its_bridge_with_the_reason(ci, family):
    parent = family({'one': {'scirpt': 'make'}}, needs=[])
    (bridge, started), = ci.list_bridges(parent)
    assert (bridge['status'], bridge['failure_reason'], started) == (
        'failed', 'downstream_pipeline_creation_failed', None)
    assert 'scirpt' in bridge['failure_message']


def test_children_have_two_levels(ci, make_repository):
    again = {'down': {'trigger': {'include': 'child.yml'}}}
    url = make_repository('app', **{'.gitlab-ci_yml': again, 'child_yml': again})
    level = ci.create_pipeline(ci.create_project('app', import_url=url), 'main')
    for _ in range(2):
        level = downstream(ci, level)
    (bridge, started), = ci.list_bridges(level)
    assert (bridge['failure_reason'], started) == ('reached_max_descendant_pipelines_depth', None)


# -- other projects

@pytest.fixture
def two(ci, make_repository):
    """Return a function that starts a pipeline with a bridge to the project group/other."""
    def start(other=None, here=None, **keywords):
        ci.create_project('group/other', import_url=make_repository('other', **{'.gitlab-ci_yml': other or {'o': JOB}}))
        content = {'down': {'trigger': 'group/other', **keywords}, **(here or {})}
        project = ci.create_project('group/app')
        return ci.create_pipeline(project, 'main', sha=SHA, content=content)
    return start


def test_a_bridge_starts_a_pipeline_of_another_project(ci, two):
    other = downstream(ci, two())
    assert (other['project_path'], other['source'], other['ref']) == ('group/other', 'pipeline', 'main')
    assert statuses(ci, other) == {'o': 'pending'}


def test_a_project_that_is_not_here_skips_the_bridge_with_a_reason(ci, project):
    content = {'down': {'stage': 'build', 'trigger': 'far/away'}, 'after': JOB}
    parent = ci.create_pipeline(project, 'main', sha=SHA, content=content)
    (bridge, started), = ci.list_bridges(parent)
    assert (bridge['status'], started) == ('skipped', None)
    assert 'far/away is not here' in bridge['failure_message']
    assert statuses(ci, parent)['after'] == 'pending'


def test_a_project_does_not_trigger_itself(ci, project):
    parent = ci.create_pipeline(project, 'main', sha=SHA, content={'down': {'trigger': project['path']}, 'a': JOB})
    (bridge, _), = ci.list_bridges(parent)
    assert (bridge['status'], bridge['failure_reason']) == ('failed', 'invalid_bridge_trigger')


def test_projects_that_trigger_each_other_come_to_an_end(ci, make_repository):
    for own, other in (('a', 'b'), ('b', 'a')):
        url = make_repository(own, **{'.gitlab-ci_yml': {'down': {'trigger': f'group/{other}'}}})
        ci.create_project(f'group/{own}', import_url=url)
    ci.create_pipeline('group/a', 'main')
    assert ci.list_pipelines()[1] < 10


@pytest.mark.parametrize('forward, found', [
    (None, {'OWN': 'x-main', 'RAW': '$A', 'GLOBAL': 'g'}), ({'yaml_variables': False}, {}),
    ({'pipeline_variables': True}, {'OWN': 'x-main', 'RAW': '$A', 'GLOBAL': 'g', 'GIVEN': 'v'}),
])
def test_variables_are_forwarded(ci, make_repository, project, forward, found):
    ci.create_project('group/other', import_url=make_repository('other', **{'.gitlab-ci_yml': {'o': JOB}}))
    trigger = {'project': 'group/other', **({'forward': forward} if forward else {})}
    content = {'variables': {'GLOBAL': 'g', 'A': 'x'}, 'down': {
        'trigger': trigger, 'inherit': {'variables': ['GLOBAL']},
        'variables': {'OWN': 'x-$CI_COMMIT_REF_NAME', 'RAW': {'value': '$A', 'expand': False}}}}
    parent = ci.create_pipeline(project, 'main', sha=SHA, content=content,
                                variables=[{'key': 'GIVEN', 'value': 'v'}])
    given = json.loads(downstream(ci, parent)['variables'])
    assert {item['key']: item['value'] for item in given} == found


# -- cancel and retry

def test_cancel_reaches_the_child(ci, family):
    parent = family(trigger={'strategy': 'depend'}, needs=[])
    child = downstream(ci, parent)
    ci.cancel_pipeline(parent)
    assert set(statuses(ci, parent).values()) == set(statuses(ci, child).values()) == {'canceled'}
    assert ci.find_pipeline(child)['status'] == 'canceled'


def test_cancel_reaches_a_child_that_nobody_waits_for(ci, family):
    parent = family(needs=[])
    ci.cancel_pipeline(parent)
    assert ci.find_pipeline(downstream(ci, parent))['status'] == 'canceled'


def test_a_retried_bridge_starts_a_new_pipeline(ci, family, runner):
    parent = family(trigger={'strategy': 'depend'}, needs=[])
    first = downstream(ci, parent)
    assert {runner.run('failed'), runner.run('failed')} == {'before', 'one'}
    (bridge, _), = ci.list_bridges(parent)
    assert bridge['status'] == 'failed'
    ci.retry_job(bridge)
    assert statuses(ci, parent)['down'] == 'running'
    assert downstream(ci, parent)['id'] > first['id']


def test_a_child_that_is_retried_makes_its_bridge_run_again(ci, family, runner):
    parent = family(trigger={'strategy': 'depend'}, needs=[])
    child = downstream(ci, parent)
    assert {runner.run(), runner.run('failed')} == {'before', 'one'}
    assert statuses(ci, parent) == {'before': 'success', 'down': 'failed', 'after': 'skipped'}
    ci.retry_pipeline(child)
    assert statuses(ci, parent) == {'before': 'success', 'down': 'running', 'after': 'created'}
    assert runner.run() == 'one'
    assert statuses(ci, parent) == {'before': 'success', 'down': 'success', 'after': 'pending'}


def test_bridges_that_a_crash_left_are_started_by_the_sweep(ci, family, clock, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(minici.Bridges, '_start_bridge', lambda self, bridge_id: None)
        parent = family(needs=[])
    assert statuses(ci, parent)['down'] == 'running'
    clock.now += 1000
    ci.sweep()
    assert statuses(ci, parent)['down'] == 'success'


# -- the API

def test_the_api_lists_bridges_with_their_pipelines_and_jobs_without_bridges(ci, client, token, two):
    parent = two()
    path = f'/api/v4/projects/{parent["project_id"]}/pipelines/{parent["id"]}'
    bridge, = client.call('GET', f'{path}/bridges', token=token).json
    assert (bridge['name'], bridge['status']) == ('down', 'success')
    assert bridge['downstream_pipeline']['source'] == 'pipeline'
    assert 'runner' not in bridge
    assert client.call('GET', f'{path}/jobs', token=token).json == []
    assert client.call('GET', f'{path}/bridges?scope[]=failed', token=token).json == []
    answer = client.call('GET', f'/api/v4/projects/{parent["project_id"]}/jobs', token=token)
    assert (answer.json, answer.headers.get('X-Total', '0')) == ([], '0')


def test_child_pipelines_are_listed_when_they_are_asked_for(ci, family):
    parent = family(needs=[])
    child = downstream(ci, parent)
    project = ci.find_project('group/app')
    assert [row['id'] for row in ci.list_pipelines(project)[0]] == [parent['id']]
    assert [row['id'] for row in ci.list_pipelines(project, source='parent_pipeline')[0]] == [child['id']]


# -- artifacts of other pipelines

def test_a_job_gets_artifacts_of_its_parent_and_of_another_project(ci, client, runner, project):
    def built(pipeline):
        claim = runner.claim()
        upload(client, claim, archive(a='b'))
        return claim.job['id'], pipeline

    made = {'make': {'script': ['x'], 'artifacts': {'paths': ['a']}}}
    other = ci.create_project('group/other')
    of_project, _ = built(ci.create_pipeline(other, 'main', sha=SHA, content=made))
    of_pipeline, parent = built(ci.create_pipeline(project, 'main', sha=SHA, content=made))
    needs = [{'pipeline': '$PARENT', 'job': 'make'}, {'project': 'group/other', 'ref': 'main', 'job': 'make'}]
    ci.create_pipeline(project, 'main', sha=SHA, content={'use': {'script': ['x'], 'needs': needs}},
                       variables=[{'key': 'PARENT', 'value': str(parent['id'])}])
    claimed = client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=201).json
    assert {row['id'] for row in claimed['dependencies']} == {of_project, of_pipeline}
    for job_id in (of_project, of_pipeline):
        client.call('GET', f'/api/v4/jobs/{job_id}/artifacts', headers={'JOB-TOKEN': claimed['token']})


@pytest.mark.parametrize('need, told', [
    ({'project': 'group/other', 'ref': 'main', 'job': 'make'}, 'the artifacts of make of group/other, ref main'),
    ({'project': 'group/nowhere', 'ref': 'main', 'job': 'make'}, 'the artifacts of make of group/nowhere, ref main'),
    ({'pipeline': '$PARENT', 'job': 'make'}, 'the artifacts of make of pipeline 1'),
    ({'project': 'group/other', 'ref': 'main', 'job': 'make', 'optional': True}, None),
    ({'project': 'group/other', 'ref': 'main', 'job': 'make', 'artifacts': False}, None),
])
def test_a_job_whose_needed_artifacts_of_elsewhere_never_were_fails_when_it_is_claimed(ci, runner, project, need, told):
    other = ci.create_project('group/other')
    ci.create_pipeline(other, 'main', sha=SHA, content={'make': JOB})
    assert runner.run('failed') == 'make'
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, variables=[{'key': 'PARENT', 'value': '1'}],
                                  content={'use': {'needs': [need], **JOB}, 'next': {'stage': 'deploy', **JOB}})
    claim = runner.claim()
    use, = (job for job in ci.list_jobs(pipeline=pipeline) if job['name'] == 'use')
    if told is None:
        assert claim.job['id'] == use['id']
    else:
        assert claim is None
        assert (use['status'], use['failure_reason']) == ('failed', 'missing_dependency_failure')
        assert told in use['failure_message']
        assert statuses(ci, pipeline)['next'] == 'skipped'


def test_a_job_fails_when_what_it_depends_on_was_erased(ci, runner, project):
    content = {'make': {'stage': 'build', 'artifacts': {'paths': ['a']}, **JOB}, 'use': JOB,
               'free': {'dependencies': [], **JOB}}
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=content)
    assert runner.run() == 'make'
    make, = (job for job in ci.list_jobs(pipeline=pipeline) if job['name'] == 'make')
    ci.erase_job(make)
    assert runner.claim().job['name'] == 'free'
    use, = (job for job in ci.list_jobs(pipeline=pipeline) if job['name'] == 'use')
    assert use['failure_reason'] == 'missing_dependency_failure'
    assert 'were erased: make' in use['failure_message']


# -- the status of another pipeline

@pytest.fixture
def mirror(ci):
    """Return a function that starts a pipeline with a job that mirrors the newest pipeline of group/other."""
    def start(needs=None, **keywords):
        content = {'mirror': {'needs': needs or {'pipeline': 'group/$OTHER'}, **keywords},
                   'after': {'stage': 'deploy', **JOB}}
        return ci.create_pipeline(ci.create_project('group/app'), 'main', sha=SHA, content=content,
                                  variables=[{'key': 'OTHER', 'value': 'other'}])
    return start


@pytest.mark.parametrize('status, after', [('success', 'pending'), ('failed', 'skipped')])
def test_a_job_mirrors_the_newest_pipeline_of_another_project(ci, mirror, runner, status, after):
    other = ci.create_project('group/other')
    ci.create_pipeline(other, 'main', sha=SHA, content={'o': JOB})
    parent = mirror([{'pipeline': 'group/other'}])
    assert statuses(ci, parent) == {'mirror': 'running', 'after': 'created'}
    assert runner.run(status) == 'o'
    assert statuses(ci, parent) == {'mirror': status, 'after': after}
    (bridge, started), = ci.list_bridges(parent)
    assert (bridge['failure_message'], started) == ('pipeline 1 of group/other', None)


def test_what_has_finished_already_is_mirrored_at_once_and_only_the_default_branch_counts(ci, mirror, runner):
    other = ci.create_project('group/other')
    ci.create_pipeline(other, 'main', sha=SHA, content={'o': JOB})
    runner.run('failed')
    ci.create_pipeline(other, 'topic', sha=SHA, content={'o': JOB})
    assert statuses(ci, mirror(allow_failure=True)) == {'mirror': 'failed', 'after': 'pending'}


def test_a_mirror_waits_for_the_first_pipeline_and_can_be_canceled(ci, mirror):
    ci.create_project('group/other')
    parent = mirror()
    ci.sweep()
    assert statuses(ci, parent)['mirror'] == 'running'
    ci.cancel_pipeline(parent)
    assert statuses(ci, parent)['mirror'] == 'canceled'


def test_a_pipeline_that_starts_after_its_mirror_is_mirrored_too(ci, mirror, runner):
    other = ci.create_project('group/other')
    parent = mirror()
    ci.create_pipeline(other, 'main', sha=SHA, content={'o': JOB})
    assert runner.run() == 'o'
    assert statuses(ci, parent) == {'mirror': 'success', 'after': 'pending'}


def test_a_mirror_of_a_project_that_is_not_here_is_skipped_with_a_reason(ci, mirror):
    (bridge, _), = ci.list_bridges(mirror())
    assert bridge['status'] == 'skipped'
    assert 'group/other is not here' in bridge['failure_message']


@pytest.mark.parametrize('keywords, told', [
    ({'needs': {'pipeline': 'a/b'}, 'script': ['x']}, 'only a job without script and trigger mirrors a pipeline'),
    ({'needs': {'pipeline': 'a/b'}, 'trigger': 'c/d'}, 'only a job without script and trigger mirrors a pipeline'),
    ({'needs': [{'pipeline': 'a/b'}, {'pipeline': 'c/d'}]}, 'mirrors one only'),
    ({'needs': {'pipeline': 'a/b'}, 'when': 'delayed', 'start_in': '1 day'}, 'must be one of on_success'),
    ({'needs': {'pipeline': 'a/b'}, 'image': 'x'}, 'is a keyword that minici does not know here'),
])
def test_a_mirror_is_a_bridge_and_mirrors_one_pipeline(keywords, told):
    with pytest.raises(minici.BadRequest) as caught:
        minici.compile_pipeline({'mirror': keywords, 'test': JOB})
    assert told in '; '.join(caught.value.problems)


# -- workflow:auto_cancel:on_job_failure

@pytest.mark.parametrize('setting, allowed, other', [
    ('all', False, 'canceled'), ('none', False, 'pending'), ('all', True, 'pending')])
def test_a_failed_job_cancels_the_others_where_the_file_says_so(ci, project, runner, setting, allowed, other):
    content = {'workflow': {'auto_cancel': {'on_job_failure': setting}},
               'a': {'allow_failure': allowed, **JOB}, 'b': JOB}
    parent = ci.create_pipeline(project, 'main', sha=SHA, content=content)
    assert runner.run('failed') == 'a'
    assert statuses(ci, parent) == {'a': 'failed', 'b': other}
