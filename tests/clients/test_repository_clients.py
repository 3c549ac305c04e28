"""Test reports, commit statuses, branches, tags, environments, releases and users, by published clients."""

import asyncio
import gzip

import gidgetlab
import gidgetlab.httpx
import gitlab
import httpx
import pytest
from support import PLAIN, SHA, commit, git

import minici

API = '/api/v4/projects/1'
JUNIT = b"""<testsuites><testsuite name="s"><testcase classname="c" name="good" time="1.5" file="t.py"/>
<testcase classname="c" name="bad" time="0.5"><failure message="1 != 2">trace</failure>
<system-out>[[ATTACHMENT|shots/a.png]]</system-out></testcase>
<testcase name="later"><skipped/></testcase></testsuite></testsuites>"""


@pytest.fixture
def ask(server, token):
    """Ask by gidgetlab; return what it has read."""
    def get(path):
        async def run():
            async with httpx.AsyncClient() as session:
                api = gidgetlab.httpx.GitLabAPI(session, 'tests', access_token=token, url=server.url)
                return await api.getitem(path)
        return asyncio.run(run())
    return get


@pytest.fixture
def repository(ci, project, tmp_path):
    """The project's repository: two branches, a light tag and an annotated one."""
    path = tmp_path / 'demo'
    sha = commit(path, 'first', **{'.gitlab-ci.yml': 'test: {script: make}\n'})
    git(path, 'branch', 'fix/one')
    git(path, 'tag', 'v1')
    git(path, 'tag', '-a', '-m', 'second', 'v2')
    ci.edit_project(project, import_url=f'file://{path}')
    return sha


def types(entity):
    """Return the types of an object's fields."""
    return {name: type(value).__name__ for name, value in entity.items()}


def told(thing):
    """Return the fields that python-gitlab was sent, without those that it adds."""
    return {name: value for name, value in thing.attributes.items() if name not in ('project_id', 'pipeline_id')}


# -- test reports

@pytest.fixture
def tested(ci, project, runner):
    """A pipeline with two parallel jobs, of which the first has reported tests, and a third that has not."""
    content = {'unit': {'script': ['x'], 'parallel': 2}, 'lint': {'script': ['x']}}
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=content)
    for report in (JUNIT, JUNIT.replace(b'good', b'fine'), None):
        claim = runner.claim()
        if report is not None:
            part = ci.artifacts.receive()
            part.write(gzip.compress(report))
            ci.store_artifacts(claim.job, part, file_type='junit', file_format='gzip')
            part.discard()
        ci.update_job(claim.job, 'success')
    return pipeline


def test_a_test_report_is_read(demo, tested, ask, server):
    report = demo.pipelines.get(tested['id']).test_report.get()
    counts = {'total_time': 4.0, 'total_count': 6, 'success_count': 2, 'failed_count': 2, 'skipped_count': 2,
              'error_count': 0}
    assert {name: getattr(report, name) for name in counts} == counts
    suite, = report.test_suites
    assert {**suite, 'test_cases': len(suite['test_cases'])} == {**counts, 'name': 'unit', 'suite_error': None,
                                                                 'test_cases': 6}
    good, bad = suite['test_cases'][:2]
    assert good == {'name': 'good', 'classname': 'c', 'file': 't.py', 'status': 'success', 'execution_time': 1.5,
                    'system_output': None, 'stack_trace': None, 'recent_failures': None, 'attachment_url': None}
    assert (bad['status'], bad['system_output']) == ('failed', 'trace')
    assert bad['attachment_url'] == f'{server.url}/group/demo/-/jobs/1/artifacts/file/shots/a.png'
    assert ask(f'/projects/1/pipelines/{tested["id"]}/test_report') == told(report)


def test_a_test_report_is_summed_up(demo, tested, ask):
    summary = demo.pipelines.get(tested['id']).test_report_summary.get()
    assert summary.total == {'time': 4.0, 'count': 6, 'success': 2, 'failed': 2, 'skipped': 2, 'error': 0,
                             'suite_error': None}
    suite, = summary.test_suites
    assert (suite['name'], suite['build_ids'], suite['total_count']) == ('unit', [1, 2], 6)
    assert ask(f'/projects/1/pipelines/{tested["id"]}/test_report_summary') == told(summary)


def test_a_pipeline_without_tests_has_an_empty_report(demo, pipeline):
    report = demo.pipelines.get(pipeline['id']).test_report.get()
    assert (report.total_count, report.total_time, report.test_suites) == (0, 0, [])
    assert type(report.total_time) in (int, float)


# -- commits

def test_the_statuses_of_a_commit_are_its_jobs(ci, gl, demo, tested, ask):
    ci.retry_job(ci.find_job(3))
    statuses = demo.commits.get(SHA, lazy=True).statuses.list(get_all=True)
    assert [(status.name, status.status, status.id) for status in statuses] == [
        ('unit 1/2', 'success', 1), ('unit 2/2', 'success', 2), ('lint', 'pending', 4)]
    assert len(demo.commits.get(SHA, lazy=True).statuses.list(get_all=True, all=True)) == 4
    assert [one.name for one in demo.commits.get('main', lazy=True).statuses.list(name='lint')] == ['lint']
    first = ask('/projects/1/repository/commits/main/statuses')[0]
    assert types(first) == {
        'id': 'int', 'sha': 'str', 'ref': 'str', 'status': 'str', 'name': 'str', 'coverage': 'NoneType',
        'pipeline_id': 'int', 'target_url': 'str', 'description': 'NoneType', 'created_at': 'str', 'started_at': 'str',
        'finished_at': 'str', 'allow_failure': 'bool', 'author': 'NoneType'}
    with pytest.raises(gitlab.GitlabHttpError, match='404'):
        gl.http_get('/projects/1/repository/commits/nothing/statuses')


def test_a_commit_is_found_by_branch_tag_and_sha_whether_or_not_it_has_a_pipeline(ci, demo, repository):
    names = ['main', 'fix/one', repository, repository[:8]]
    before = [demo.commits.get(name) for name in names[:3]]
    assert {commit.id for commit in before} == {repository}
    assert [(commit.status, commit.last_pipeline) for commit in before] == [(None, None)] * 3
    assert demo.commits.get('fix/one', lazy=True).statuses.list(get_all=True) == []
    pipeline = ci.create_pipeline(ci.find_project('group/demo'), 'main', sha=repository, content=PLAIN)
    after = [demo.commits.get(name) for name in names]
    assert {(commit.id, commit.status, commit.last_pipeline['id']) for commit in after} == {
        (repository, 'pending', pipeline['id'])}
    assert {before[0].title, *(commit.title for commit in after)} == {before[0].title}
    for name in names:
        assert len(demo.commits.get(name, lazy=True).statuses.list(get_all=True)) == 1


# -- branches and tags

def test_branches_are_those_of_the_repository(demo, repository, ask):
    branches = demo.branches.list(get_all=True)
    assert [(branch.name, branch.default, branch.protected) for branch in branches] == [
        ('fix/one', False, False), ('main', True, True)]
    assert {branch.commit['id'] for branch in branches} == {repository}
    branch = demo.branches.get('fix/one')
    assert (branch.commit['title'], branch.commit['author_name']) == ('first', 'Ann')
    assert [branch.name for branch in demo.branches.list(search='^fix')] == ['fix/one']
    found = ask('/projects/1/repository/branches?search=main')
    assert types(found[0]) == {
        'name': 'str', 'merged': 'bool', 'protected': 'bool', 'default': 'bool', 'developers_can_push': 'bool',
        'developers_can_merge': 'bool', 'can_push': 'bool', 'web_url': 'str', 'commit': 'dict'}
    assert 'NoneType' not in types(found[0]['commit']).values()
    with pytest.raises(gitlab.GitlabGetError, match='404 Branch Not Found'):
        demo.branches.get('nothing')


def test_tags_are_those_of_the_repository(ci, project, demo, repository, ask, tmp_path):
    ci.create_release(project, 'v2', description='notes')
    annotated, light = demo.tags.list(get_all=True)
    assert (annotated.name, annotated.message) == ('v2', 'second')
    assert annotated.created_at == '2023-11-14T22:13:20.000+00:00'
    assert (annotated.target, annotated.commit['id']) == (git(tmp_path / 'demo', 'rev-parse', 'v2'), repository)
    assert (light.name, light.message, light.created_at, light.target) == ('v1', None, None, repository)
    assert demo.tags.get('v2').release == {'tag_name': 'v2', 'description': 'notes'}
    tag = ask('/projects/1/repository/tags/v1')
    assert (tag['release'], tag['commit']['id']) == (None, repository)


def test_a_project_without_a_repository_says_so(gl, demo):
    with pytest.raises(gitlab.GitlabError, match='has no import_url'):
        demo.branches.list()


# -- environments

def test_environments_are_those_that_jobs_name(ci, clock, project, demo, runner, ask):
    content = {
        'stages': ['a', 'b'],
        'deploy': {'stage': 'a', 'script': ['x'], 'environment': {'name': 'review/One', 'url': 'https://one.example'}},
        'live': {'stage': 'a', 'script': ['x'], 'environment': 'production'},
        'stop': {'stage': 'b', 'script': ['x'], 'environment': {'name': 'review/One', 'action': 'stop'}},
    }
    ci.create_pipeline(project, 'main', sha=SHA, content=content)
    names = [(one.name, one.state, one.tier) for one in demo.environments.list(get_all=True)]
    assert names == [('review/One', 'available', 'development'), ('production', 'available', 'production')]
    assert demo.environments.get(1).last_deployment is None
    for state, url in (('available', 'https://one.example'), ('available', 'https://one.example'), ('stopped', None)):
        claim = runner.claim()
        clock.advance(1)
        ci.update_job(claim.job, 'success')
        assert (demo.environments.get(1).state, demo.environments.get(1).external_url) == (state, url)
    shown = demo.environments.get(1)
    assert (shown.slug, shown.last_deployment['deployable']['name']) == (minici.environment_slug('review/One'), 'stop')
    assert [one.name for one in demo.environments.list(states='stopped')] == ['review/One']
    assert [one.name for one in demo.environments.list(search='prod')] == ['production']
    assert types(ask('/projects/1/environments?name=production')[0]) == {
        'id': 'int', 'name': 'str', 'external_url': 'NoneType', 'state': 'str', 'slug': 'str',
        'description': 'NoneType', 'tier': 'str', 'auto_stop_at': 'NoneType', 'created_at': 'str', 'updated_at': 'str'}


# -- releases

def test_releases_are_created_listed_and_removed(demo, repository, ask):
    made = demo.releases.create({'tag_name': 'v1', 'description': 'notes', 'milestones': ['m1'], 'assets': {'links': [
        {'name': 'binary', 'url': 'https://x.example/b', 'direct_asset_path': '/b', 'link_type': 'package'}]}})
    assert (made.name, made.commit['id'], made.author['username']) == ('v1', repository, 'root')
    demo.releases.create({'tag_name': 'v9', 'name': 'Nine', 'ref': 'main', 'released_at': '2099-01-01T00:00:00Z'})
    assert [(one.tag_name, one.upcoming_release) for one in demo.releases.list(get_all=True)] == [
        ('v9', True), ('v1', False)]
    release = ask('/projects/1/releases/v1')
    assert release == told(made)
    assert release['assets']['links'] == [{
        'id': 1, 'name': 'binary', 'url': 'https://x.example/b', 'link_type': 'package',
        'direct_asset_url': release['_links']['self'] + '/downloads/b'}]
    with pytest.raises(gitlab.GitlabCreateError, match='already exists'):
        demo.releases.create({'tag_name': 'v1'})
    demo.releases.delete('v1')
    with pytest.raises(gitlab.GitlabGetError, match='404'):
        demo.releases.get('v1')


@pytest.mark.parametrize('link', [{'name': 'x', 'url': 'javascript:alert(1)'}, {'name': '', 'url': 'https://x.example'},
                                  {'url': 'https://x.example'}, {'name': 'x', 'url': 1}, 'x'])
def test_a_link_that_no_page_should_show_is_refused(demo, link):
    with pytest.raises(gitlab.GitlabCreateError, match='assets'):
        demo.releases.create({'tag_name': 'v1', 'assets': {'links': [link]}})
    assert demo.releases.list() == []


def test_the_release_step_of_a_job_creates_a_release_of_its_project(ci, server, project, pipeline, runner):
    claim, other = runner.claim(), ci.create_project('other')
    with gitlab.Gitlab(server.url, job_token=claim.token) as job:
        made = job.projects.get(1, lazy=True).releases.create({'tag_name': 'v1', 'description': 'notes'})
        assert (made.tag_name, made.commit) == ('v1', None)
        with pytest.raises(gitlab.GitlabCreateError, match='404'):
            job.projects.get(other['id'], lazy=True).releases.create({'tag_name': 'v1'})


# -- people

def test_users_and_the_own_token_are_shown(ci, gl, ask, server):
    ci.create_private_token('ann')
    assert [user.username for user in gl.users.list(username='Ann')] == ['ann']
    assert gl.users.get(1).username == 'root'
    assert sorted(user['username'] for user in ask('/users')) == ['ann', 'root']
    own = gl.personal_access_tokens.get('self')
    assert (own.scopes, own.revoked, own.active, own.user_id) == (['api'], False, True, 1)
    assert types(ask('/personal_access_tokens/self')) == {
        'id': 'int', 'name': 'str', 'description': 'str', 'revoked': 'bool', 'active': 'bool', 'scopes': 'list',
        'user_id': 'int', 'created_at': 'str', 'last_used_at': 'str', 'expires_at': 'NoneType'}
    with pytest.raises(gitlab.GitlabGetError, match='404'):
        gl.users.get(99)


def test_a_page_of_branches_is_read_by_one_fetch_and_then_remembered(demo, repository, tmp_path, monkeypatch):
    asked = []
    run = minici.Git.run
    monkeypatch.setattr(minici.Git, 'run', lambda git, *arguments, **options: (
        asked.append(arguments[0]), run(git, *arguments, **options))[1])
    for number in range(60):
        git(tmp_path / 'demo', 'branch', f'topic/{number}')
    first = demo.branches.list(per_page=100, page=1)
    assert (len(first), {branch.commit['id'] for branch in first}) == (62, {repository})
    assert len(asked) <= 3
    asked.clear()
    assert demo.branches.list(per_page=100, page=1) == first
    assert asked == ['ls-remote']


def test_a_remote_repository_is_told_of_as_a_local_one(ci, server, token, gl, demo, repository, tmp_path):
    commit(tmp_path / 'demo', 'second', file='x')
    git(tmp_path / 'demo', 'tag', '-a', '-m', 'third\n\nwith a body', 'v3')
    address = f'{server.url}/group/demo.git'.replace('//', f'//x:{token}@')
    ci.create_project('mirror', import_url=address)
    mirror = gl.projects.get('mirror')
    for kind in ('branches', 'tags'):
        ours, theirs = ([one.attributes for one in getattr(project, kind).list(get_all=True)]
                        for project in (mirror, demo))
        assert len(ours) >= 2
        for one, other in zip(ours, theirs, strict=True):
            one['commit'].pop('web_url')
            other['commit'].pop('web_url')
            differing = {name for name in one if one[name] != other[name]}
            assert differing <= {'web_url', 'project_id'}
    assert mirror.tags.get('v3').message == 'third\n\nwith a body'
    assert mirror.branches.get('main').commit['parent_ids'] == [repository]


def test_tags_come_in_the_order_that_is_asked_for(demo, repository, tmp_path):
    commit(tmp_path / 'demo', 'later', **{'file': 'x'})
    for name in ('v10', 'a9'):
        git(tmp_path / 'demo', 'tag', name)

    def names(**order):
        return [tag.name for tag in demo.tags.list(get_all=True, **order)]
    assert names(order_by='name') == ['v2', 'v10', 'v1', 'a9']
    assert names(order_by='name', sort='asc') == ['a9', 'v1', 'v10', 'v2']
    assert names(order_by='version', sort='asc') == ['a9', 'v1', 'v2', 'v10']
    assert sorted(names()) == sorted(names(order_by='updated', sort='asc')) == ['a9', 'v1', 'v10', 'v2']
    with pytest.raises(gitlab.GitlabError, match='order_by does not have a valid value'):
        names(order_by='size')


def test_a_release_needs_a_tag_of_the_repository_or_a_ref(demo, repository):
    with pytest.raises(gitlab.GitlabCreateError, match='Ref is not specified, .* no tag v7') as told:
        demo.releases.create({'tag_name': 'v7', 'name': 'Seven'})
    assert told.value.response_code == 400
    assert demo.releases.list(get_all=True) == []
    assert demo.releases.create({'tag_name': 'v7', 'ref': 'main'}).commit['id'] == repository


def test_releases_come_in_the_order_that_is_asked_for(ci, clock, project, demo):
    for tag, released_at in (('a', 300), ('b', 100), ('c', 200)):
        clock.advance(1)
        ci.create_release(project, tag, released_at=released_at)
    assert [one.tag_name for one in demo.releases.list()] == ['a', 'c', 'b']
    assert [one.tag_name for one in demo.releases.list(sort='asc')] == ['b', 'c', 'a']
    assert [one.tag_name for one in demo.releases.list(order_by='created_at')] == ['c', 'b', 'a']


def test_environments_are_searched_for_by_three_letters_or_more(demo):
    with pytest.raises(gitlab.GitlabError, match='less than 3 characters'):
        demo.environments.list(search='pr')


def test_branches_come_in_the_order_that_is_asked_for(demo, repository, tmp_path):
    git(tmp_path / 'demo', 'commit', '--allow-empty', '--message', 'later', GIT_COMMITTER_DATE='1700000100 +0000')
    names = {order: [one.name for one in demo.branches.list(get_all=True, sort=order)]
             for order in ('name_asc', 'updated_asc', 'updated_desc')}
    assert names == {'name_asc': ['fix/one', 'main'], 'updated_asc': ['fix/one', 'main'],
                     'updated_desc': ['main', 'fix/one']}
    with pytest.raises(gitlab.GitlabError, match='regex is not supported'):
        demo.branches.list(regex='^m')


def test_no_suffix_of_a_commit_is_taken_for_a_part_of_its_name(gl, demo, tested):
    for suffix in ('comments', 'refs', 'diff', 'statuses/1'):
        with pytest.raises(gitlab.GitlabHttpError, match='minici has no such route'):
            gl.http_get(f'/projects/1/repository/commits/main/{suffix}')
    with pytest.raises(gitlab.GitlabHttpError, match='minici has no such route'):
        gl.http_get('/projects/1/releases/v1/assets/links')


def test_filters_of_users_are_answered_or_refused(ci, gl):
    ci.create_private_token('ann')
    assert len(gl.users.list(active=True, humans=True)) == 2
    for name in ('blocked', 'external'):
        assert gl.users.list(**{name: True}) == []
    assert gl.users.list(active=False) == []
    with pytest.raises(gitlab.GitlabError, match='two_factor is not supported'):
        gl.users.list(two_factor='enabled')
