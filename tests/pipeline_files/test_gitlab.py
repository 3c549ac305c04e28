"""What GitLab does with a pipeline file that is easily done otherwise, and what it refuses."""

import hashlib
import json
import textwrap

import pytest
from support import SHA, commit, git

import minici

JOB = {'script': ['make']}


def compiled(content, **options):
    """Return the pipeline of a file."""
    text = textwrap.dedent(content) if isinstance(content, str) else content
    return minici.compile_pipeline(text, **options)


def names(content, **options):
    """Return the names of the jobs of a pipeline."""
    return [job.name for job in compiled(content, **options).jobs]


def refusal(content, **options):
    """Return what a file is refused for, as one text."""
    with pytest.raises(minici.BadRequest) as caught:
        compiled(content, **options)
    return '; '.join(caught.value.problems)


def job_refusal(keywords):
    """Return what a job with these keywords is refused for."""
    return refusal(f'test:\n  script: make\n{textwrap.indent(textwrap.dedent(keywords), "  ")}')


# -- what stays as it is written

def test_a_tag_whose_variable_is_unknown_stays_so_that_no_runner_has_it(ci, project, runner):
    ci.create_pipeline(project, 'main', sha=SHA, content={'ship': {'tags': ['$DEPLOY_RUNNER'], **JOB}})
    job, = ci.list_jobs(project=project)
    assert json.loads(job['tags']) == ['$DEPLOY_RUNNER']
    assert runner.claim() is None


def claimed_variables(ci, client, project, runner, content, **options):
    """Return the variables of a claimed job, by name."""
    ci.create_pipeline(project, 'main', sha=SHA, content=content, **options)
    payload = client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=201).json
    return {item['key']: item['value'] for item in payload['variables']}


def test_variables_are_expanded_before_a_runner_sees_them(ci, client, project, runner):
    variables = {'C': 'c-$B', 'B': 'b-$A', 'A': 'a', 'NONE': '${UNKNOWN}', 'COST': '$$A %%A', 'PERCENT': '%A%',
                 'RAW': {'value': '$A', 'expand': False}, 'OF_RAW': 'x-$RAW', 'SELF': '$SELF:x',
                 'REF': '$CI_COMMIT_REF_NAME'}
    found = claimed_variables(ci, client, project, runner, {'test': {'variables': variables, **JOB}})
    assert {name: found[name] for name in variables} == {
        'C': 'c-b-a', 'B': 'b-a', 'A': 'a', 'NONE': '${UNKNOWN}', 'COST': '$$A %%A', 'PERCENT': 'a', 'RAW': '$A',
        'OF_RAW': 'x-$RAW', 'SELF': '$SELF:x', 'REF': 'main'}


def test_a_reference_to_a_file_stays(ci, client, project, runner):
    given = [{'key': 'KEY', 'value': 'secret', 'variable_type': 'file'}]
    found = claimed_variables(ci, client, project, runner, {'test': {'variables': {'A': '$KEY'}, **JOB}},
                              variables=given)
    assert found['A'] == '$KEY'


def test_variables_that_name_each_other_in_a_circle_all_stay(ci, client, project, runner):
    variables = {'A': '$B', 'B': '$A', 'C': '$D', 'D': 'd'}
    found = claimed_variables(ci, client, project, runner, {'test': {'variables': variables, **JOB}})
    assert [found[name] for name in 'ABC'] == ['$B', '$A', '$D']


# -- environments and resource groups

@pytest.mark.parametrize('ref, slug', [('main', 'review-main-yi2y9f'),
                                       ('feature/a-long-branch-name', 'review-feature-a-07x1d8')])
def test_an_environment_is_named_and_slugged_by_its_branch(ci, client, project, runner, ref, slug):
    content = {'ship': {'environment': {'name': 'review/$CI_COMMIT_REF_NAME'}, **JOB}}
    ci.create_pipeline(project, ref, sha=SHA, content=content)
    payload = client.call('POST', '/api/v4/jobs/request', json={'token': runner.token}, status=201).json
    found = {item['key']: item['value'] for item in payload['variables']}
    assert (found['CI_ENVIRONMENT_NAME'], found['CI_ENVIRONMENT_SLUG']) == (f'review/{ref}', slug)


@pytest.mark.parametrize('name, slug', [('production', 'production'), ('1a', 'env-1a-wazbdx'), ('a-', 'a'),
                                        ('Review/x', 'review-x-cnx324')])
def test_a_slug_is_that_of_gitlab(name, slug):
    assert minici.environment_slug(name) == slug


def test_a_resource_group_is_one_for_each_value_of_its_variables():
    job, = compiled({'ship': {'resource_group': 'to-$TARGET', 'variables': {'TARGET': '$CI_COMMIT_REF_NAME'}, **JOB}},
                    ref='fix').jobs
    assert job.resource_group == 'to-fix'


# -- what rules know

@pytest.mark.parametrize('condition', [
    '$CI_JOB_NAME == "test"', '$CI_JOB_STAGE == "test"', '$CI_NODE_TOTAL == "1"', '$CI_JOB_NAME_SLUG == "test"',
    '$CI_ENVIRONMENT_NAME == "to/main"', '$CI_ENVIRONMENT_ACTION == "start"', '$GITLAB_USER_LOGIN == "root"',
    '$CI_SERVER_HOST == "ci.example.com"', '$CI_API_V4_URL == "https://ci.example.com/api/v4"',
    '$CI_PROJECT_URL == "https://ci.example.com/demo"', '$CI_PIPELINE_IID == "1"', '$CI_SERVER_FQDN',
    '$CI_PROJECT_PATH == "demo"', '$CI_DEFAULT_BRANCH == "main"', '$CI_PIPELINE_ID == null', '$CI_JOB_ID == null',
    '$CI_RUNNER_ID == null',
])
def test_rules_know_what_is_known_of_a_job_before_it_exists(tmp_path, condition):
    with minici.Coordinator(tmp_path / 'ci.sqlite', external_url='https://ci.example.com', fsync=False) as ci:
        user = ci.find_user(ci.create_private_token())
        content = {'test': {'environment': 'to/$CI_COMMIT_REF_NAME', 'rules': [{'if': condition}], **JOB}}
        assert ci.create_pipeline(ci.create_project('demo'), 'main', sha=SHA, content=content, user=user)


def test_a_copy_knows_its_number():
    assert names({'test': {'parallel': 3, 'rules': [{'if': '$CI_NODE_INDEX == "2" && $CI_NODE_TOTAL == "3"'}], **JOB},
                  'other': JOB}) == ['test 2/3', 'other']


def test_the_file_overrides_predefined_variables_and_given_ones_override_the_file():
    content = {'variables': {'CI_DEFAULT_BRANCH': 'develop'}, 'other': JOB,
               'test': {'rules': [{'if': '$CI_DEFAULT_BRANCH == "develop"'}], **JOB}}
    assert 'test' in names(content)
    assert 'test' not in names(content, variables={'CI_DEFAULT_BRANCH': 'trunk'})


def test_an_expression_compares_a_variable_as_it_is_written():
    content = {'variables': {'A': 'x', 'B': '$A-y'}, 'other': JOB, 'test': {'rules': [{'if': "$B == 'x-y'"}], **JOB}}
    assert 'test' not in names(content)


@pytest.mark.parametrize('pattern, value, true', [
    ('/foo$/', 'foo\n', False), ('/foo$/', 'foo', True), ('/foo$/m', 'foo\nbar', True), ('/[$]x/', '$x', True),
    (r'/a\$b/', 'a$b', True), (r'/\d\z/', '5', True), (r'/^\w+$/', 'größe', False),
])
def test_a_pattern_means_what_re2_takes_it_for(pattern, value, true):
    found = names({'other': JOB, 'test': {'rules': [{'if': f'$M =~ {pattern}'}], **JOB}}, variables={'M': value})
    assert ('test' in found) is true


def test_a_job_without_rules_runs_in_merge_requests_where_workflow_rules_decide():
    content = {'workflow': {'rules': [{'if': '$CI_PIPELINE_SOURCE == "merge_request_event"'}]}, 'plain': JOB,
               'only': {'only': ['main'], **JOB}, 'except': {'except': ['tags'], **JOB}}
    assert names(content, source='merge_request_event') == ['plain', 'except']
    assert names({'plain': JOB, 'mr': {'only': ['merge_requests'], **JOB}}, source='merge_request_event') == ['mr']


def test_workflow_rules_that_want_no_pipeline_are_the_reason(ci, project):
    content = {'workflow': {'rules': [{'if': '$CI_COMMIT_TAG'}]}, 'test': JOB}
    with pytest.raises(minici.BadRequest, match='filtered out by workflow rules'):
        ci.create_pipeline(project, 'main', sha=SHA, content=content)


# -- git

@pytest.fixture
def forked(ci, tmp_path):
    """A project whose branch `topic` changed src/a.c; after it left main, main changed docs/d.md."""
    path = tmp_path / 'repository'
    commit(path, **{'docs/d.md': '1', 'src/a.c': '1', 'sub/lock.json': '1'})
    git(path, 'checkout', '--quiet', '-b', 'topic')
    commit(path, **{'src/a.c': '2'})
    git(path, 'checkout', '--quiet', 'main')
    commit(path, **{'docs/d.md': '2', 'sub/lock.json': '2'})
    return ci.create_project('forked', import_url=path.as_uri())


def changed_since(ci, project, base, *paths, ref='topic'):
    """Return the names of the jobs `docs` and `code` that run because something changed since a ref."""
    content = {name: {'rules': [{'changes': {'paths': [path], 'compare_to': base}}], **JOB}
               for name, path in (('docs', 'docs/**/*'), ('code', 'src/*'))}
    pipeline = ci.create_pipeline(project, ref, content={**content, 'other': JOB})
    return {job['name'] for job in ci.list_jobs(pipeline=pipeline)} - {'other'}


@pytest.mark.parametrize('base', ['main', 'refs/heads/main'])
def test_changes_are_compared_from_where_the_histories_part(ci, forked, base):
    assert changed_since(ci, forked, base) == {'code'}


def test_an_unknown_ref_to_compare_with_is_an_error(ci, forked):
    with pytest.raises(minici.BadRequest, match='compare_to: nowhere'):
        changed_since(ci, forked, 'nowhere')


def cache_key(ci, project, key, ref='main'):
    """Return the key of a cache."""
    pipeline = ci.create_pipeline(project, ref, content={'test': {'cache': {'key': key, 'paths': ['x']}, **JOB}})
    job, = ci.list_jobs(pipeline=pipeline)
    return json.loads(job['spec'])['cache'][0]['key']


def test_a_cache_key_of_files_changes_with_the_files_that_fit(ci, forked):
    glob = {'files': ['**/lock.json']}
    assert cache_key(ci, forked, glob) != cache_key(ci, forked, glob, 'topic')
    assert cache_key(ci, forked, glob) == cache_key(ci, forked, {'files': ['sub/lock.json', 'gone']})
    # GitLab's key: `printf 2 | git hash-object --stdin | tr -d '\n' | sha1sum`
    assert cache_key(ci, forked, {'files': ['sub/lock.json']}) == hashlib.sha1(
        b'd8263ee9860594d2806b0dfd1bfd17528b0ba2a4').hexdigest()
    assert cache_key(ci, forked, {'files': ['gone'], 'prefix': 'p'}) == 'p-default'


# -- includes and needs

def test_of_a_file_that_is_included_twice_the_last_place_counts():
    class Tree:
        def file(self, sha, path):
            return {'a.yml': b'test: {script: a}', 'b.yml': b'test: {script: b}'}.get(path)

        def files(self, sha):
            return ['a.yml', 'b.yml']

        def changes(self, base, sha):
            return None

    job, = compiled({'include': ['a.yml', 'b.yml', 'a.yml']}, repository=Tree()).jobs
    assert job.script == ['a']


MATRIX = {'parallel': {'matrix': [{'OS': ['deb', 'rpm']}]}, **JOB}


def test_copies_need_the_copies_with_their_own_values():
    needs = [{'job': 'build', 'parallel': {'matrix': [{'OS': ['$[[ matrix.OS ]]']}]}}]
    jobs = compiled({'build': {'stage': 'build', **MATRIX}, 'use': {'needs': needs, **MATRIX}}).jobs
    assert [[need['name'] for need in job.needs] for job in jobs[2:]] == [['build: [deb]'], ['build: [rpm]']]


@pytest.mark.parametrize('value, told', [
    ('windows', 'needs build with OS: windows, and no copy'),
    ('$[[ matrix.Os ]]', 'matrix.Os, which use does not have'),
])
def test_a_copy_that_does_not_exist_cannot_be_needed(value, told):
    needs = [{'job': 'build', 'parallel': {'matrix': [{'OS': [value]}]}}]
    assert told in refusal({'build': {'stage': 'build', **MATRIX}, 'use': {'needs': needs, **MATRIX}})


# -- what GitLab refuses

@pytest.mark.parametrize('keywords, told', [
    ('rules: [{if: "${A}"}]', 'without braces'), ('rules: [{if: $A =~ /abc/x}]', 'not an expression'),
    ('rules: [{if: $A =~ /a/}]', 'at least two characters'), ('rules: []', 'at least one rule'),
    ('rules: {if: $A}', 'must be a list'), ('parallel: {matrix: {A: [b]}}', 'must be a list of mappings'),
    ("coverage: '\\d+%'", 'between slashes'), ('cache: {key: a/b, paths: [c]}', 'must not have a "/"'),
    ('cache: {key: a%2Fb, paths: [c]}', 'must not have a "/"'), ('cache: {key: .., paths: [c]}', 'must not be'),
    ('when: delayed\nstart_in: 5 minutes\nrules: [{when: always}]', 'start_in cannot stand beside rules'),
    ('artifacts: {reports: {junnit: a.xml}}', 'did you mean "junit"?'),
    ('rules: [{if: $A =~ /(?=abc)/}]', '(?= is unknown'), ('rules: [{if: $A =~ /(ab)\\1/}]', 'unknown to it'),
    ('rules: [{if: $A =~ /ab++/}]', 'unknown to it'), ('only: ["/(?!ab)/"]', '(?! is unknown'),
    ('environment: {name: a, on_stop: stop}', 'a job of another environment'),
])
def test_what_gitlab_refuses_is_refused(keywords, told):
    stop = 'stop:\n  script: make\n  environment: {name: b, action: stop}\n'
    text = f'{stop}test:\n  script: make\n{textwrap.indent(keywords, "  ")}\n'
    assert told in refusal(text)


@pytest.mark.parametrize('path', ['ci.json', 'ci', 'ci.yml.txt'])
def test_an_included_file_has_the_name_of_a_yaml_file(path):
    assert 'ends in .yml or .yaml' in refusal({'include': path, 'test': JOB})


# -- what GitLab takes

def test_only_may_name_a_project():
    content = {'here': {'only': ['main@group/demo'], **JOB}, 'there': {'only': ['main@group/other'], **JOB}, 'all': JOB}
    facts = {'ref': 'main', 'tag': False, 'source': 'push', 'sha': '', 'before_sha': '0' * 40}
    assert names(content, facts=facts, predefined={}) == ['all']
    facts = {**facts, 'project_path': 'group/demo'}
    assert names(content, facts=facts, predefined={}) == ['here', 'all']


def test_auto_cancel_on_job_failure_is_taken():
    assert compiled({'workflow': {'auto_cancel': {'on_job_failure': 'all'}}, 'a': JOB}).auto_cancel_failure == 'all'


@pytest.mark.parametrize('keywords', [
    {'tags': 'docker'}, {'artifacts': {'paths': 'x'}}, {'artifacts': {'paths': ['x'], 'exclude': 'y'}},
    {'cache': {'paths': 'x'}}, {'cache': {'paths': ['x'], 'fallback_keys': 'k'}}, {'dependencies': 'x'},
    {'services': 'redis'}, {'rules': [{'changes': 'x'}]}, {'rules': [{'exists': 'x'}]}, {'only': {'changes': 'x'}},
    {'rules': [{'changes': {'paths': 'x'}}]}, {'image': {'name': 'x', 'entrypoint': 'sh'}},
    {'only': {'variables': '$X'}}, {'cache': {'key': {'files': 'x'}, 'paths': ['x']}}])
def test_a_single_value_where_gitlab_wants_a_list_is_refused(keywords):
    with pytest.raises(minici.BadRequest, match='must be a list'):
        compiled({'a': {**JOB, **keywords}})


@pytest.mark.parametrize('word, ref, runs', [
    ('/x/', 'axb', True), ('/x/', 'ab', False), ('//@group/demo', 'any', True), ('//@group/other', 'any', False)])
def test_a_pattern_of_refs_may_be_short_or_empty(word, ref, runs):
    facts = {'ref': ref, 'tag': False, 'source': 'push', 'project_path': 'group/demo'}
    content = {'a': {'only': [word], **JOB}, 'b': JOB}
    spec = minici.compile_pipeline(content, facts=facts, predefined={})
    assert ('a' in [job.name for job in spec.jobs]) is runs


def test_id_tokens_are_taken_and_named():
    assert compiled({'a': {'id_tokens': {'TOKEN': {'aud': 'https://x'}}, **JOB}}).jobs[0].id_tokens == ['TOKEN']


@pytest.mark.parametrize('name, keywords, kept', [
    ('pages', {}, ['public']), ('site', {'pages': True}, ['public']),
    ('site', {'pages': {'publish': 'dist'}}, ['dist']),
    ('pages', {'artifacts': {'paths': ['public', 'more']}}, ['public', 'more']), ('pages', {'pages': False}, None),
    ('site', {'pages': True, 'artifacts': {'paths': ['a']}}, ['a', 'public']), ('site', {}, None),
])
def test_pages_keep_what_they_publish(name, keywords, kept):
    artifacts = compiled({name: {**keywords, **JOB}}).jobs[0].artifacts
    assert (artifacts[0]['paths'] if artifacts else None) == kept


# -- said well

@pytest.mark.parametrize('content, told', [
    ('test: {scirpt: make, script: x}', 'did you mean "script"?'),
    ('build: {stage: build, script: x}\ntest: {script: x, needs: [biuld]}', 'did you mean "build"?'),
    ('.base: {script: x}\ntest: {extends: .bsae}', 'did you mean ".base"?'),
    ('test: {script: x, stage: tests}',
     'names the stage tests, which is none of .pre, build, test, deploy, .post; did you mean "test"?'),
    ('test: {script: x, when: manuel}', 'did you mean "manual"?'),
    ('test:\n  script:\n    - echo foo: bar\n',
     '3:7: test:script:0 must be a text, and a ": " makes it a mapping: quote the line'),
    ('test: {script: x, image: 3.11}', "test:image must be a text: write '3.11'"),
    ('test:\n  script: x\n  rules:\n    - if: $A = "main"\n', 'use == to compare'),
    ('test:\n\tscript: x\n', 'indent with spaces'),
    ('test:\n  script: "make\nother: {script: x}\n', '2:11: '),
    ('a: {script: x, needs: [c]}\nb: {script: x, needs: [a]}\nc: {script: x, needs: [b]}',
     '1:16: a:needs goes round in a circle: a needs c needs b needs a'),
])
def test_a_mistake_is_told_with_what_may_have_been_meant(content, told):
    assert told in refusal(content)


def test_a_key_that_stands_twice_is_a_warning_with_both_lines():
    spec = compiled('test:\n  script: one\n  image: a\n  script: two\n')
    assert spec.jobs[0].script == ['two']
    assert spec.warnings == ('.gitlab-ci.yml:4:3: script stands here and in line 2: the earlier one has no effect',)


def test_a_template_that_many_jobs_share_is_complained_about_once():
    jobs = '\n'.join(f'job{number}: {{extends: .base}}' for number in range(30))
    assert refusal(f'.base: {{script: x, wen: manual}}\n{jobs}').count('wen') == 1


# -- budgets

@pytest.mark.parametrize('limit, value, content, told', [
    ('MAX_FILE_SIZE', 50, f'# {"x" * 60}\ntest: {{script: x}}', 'has 80 bytes; 50 are allowed'),
    ('MAX_FILE_DEPTH', 5, 'test: {script: [[[[[[x]]]]]]}', '5 levels are allowed'),
    ('MAX_FILE_NODES', 10, 'test: {script: [1, 2, 3, 4, 5, 6, 7, 8, 9]}', 'more than 10 values'),
    ('MAX_JOBS', 3, 'test: {script: x, parallel: 4}', 'makes 4 jobs; 3 are allowed'),
    ('MAX_SPECS', 100, f'variables: {{A: {"x" * 60}}}\na: {{script: x}}\nb: {{script: x}}', 'come to more than'),
    ('COMPILE_TIMEOUT', -1, 'test: {script: x}', 'to compile'),
])
def test_what_a_file_costs_has_limits_that_the_refusal_names(monkeypatch, limit, value, content, told):
    monkeypatch.setattr(minici, limit, value)
    assert told in refusal(content)


def test_patterns_of_a_pipeline_share_one_deadline(monkeypatch):
    monkeypatch.setattr(minici, 'PATTERN_TIMEOUT', 0.2)
    rules = [{'if': f'"{"a" * 40}!{number}" =~ /^(aa|a|a)+$/'} for number in range(30)]
    assert 'all patterns of a pipeline have 0.2 seconds' in refusal({'test': {'rules': rules, **JOB}})


# -- what GitLab's documentation says of a keyword

@pytest.mark.parametrize('keywords, told', [
    ('needs: build', 'write [build]'),
    (f'tags: {[f"t{number}" for number in range(50)]}', '50 items; 49 are allowed'),
    (f'rules: [{{changes: {[f"p{number}" for number in range(51)]}}}]', '51 items; 50 are allowed'),
    (f'rules: [{{exists: {{paths: {[f"p{number}" for number in range(51)]}}}}}]', '51 items; 50 are allowed'),
    ('cache: [{paths: [a]}, {paths: [b]}, {paths: [c]}, {paths: [d]}, {paths: [e]}]', '5 items; 4 are allowed'),
    ('cache: {paths: [a], fallback_keys: [a, b, c, d, e, f]}', '6 items; 5 are allowed'),
    ('image: {name: ruby, pull_policy: sometimes}', 'always, if-not-present, never'),
    ('services: [{name: db, pull_policy: [never, often]}]', 'always, if-not-present, never'),
    ('rules: [{when: manual, start_in: 1 day}]', 'when: delayed'),
    ('start_in: 1 day', 'when: delayed'),
    ('inherit: {default: [imgae]}', 'did you mean "image"'),
    ('rules: [{if: $CI, variables: {A: {value: b, expand: false}}}]', 'must be a text'),
    ('services: [{name: db, variables: {A: {value: b}}}]', 'must be a text'),
    ('variables: {A: {value: b, description: c}}', 'description is a keyword'),
    ('artifacts: {paths: [a], access: developer, public: false}', 'access and public'),
    ('artifacts: {expose_as: site}', 'with expose_as needs paths'),
    ('environment: {name: a, kubernetes: {agnet: b}}', 'did you mean "agent"'),
    ('dast_configuration: {site_profile: a}', 'has no scanners'),
])
def test_what_the_entries_of_gitlab_refuse_is_refused(keywords, told):
    assert told in job_refusal(keywords)


@pytest.mark.parametrize('keyword, told', [
    (f'workflow: {{name: {"n" * 256}}}', '256 characters; 255 are allowed'),
    ('workflow: {rules: [{when: manual}]}', 'must be one of always, never'),
    ('workflow: {rules: [{if: $CI, interruptible: true}]}', 'interruptible is a keyword'),
    ('workflow: {rules: [{variables: {A: {value: b}}}]}', 'must be a text'),
    ('include: {local: a.yml, rules: [{when: on_success}]}', 'must be one of always, never'),
    ('variables: {A: {value: c, options: [a, b]}}', 'must be one of its options'),
    ('bridge: {trigger: ""}', 'must not be empty'),
])
def test_what_the_entries_of_gitlab_refuse_of_a_whole_file_is_refused(keyword, told):
    assert told in refusal(f'{keyword}\ntest: {{script: make}}\n')


def test_the_name_of_a_pipeline_loses_the_spaces_around_it():
    assert compiled('workflow: {name: "  of $CI_COMMIT_BRANCH "}\ntest: {script: make}\n').name == 'of main'
    assert compiled('workflow: {name: " $NONE "}\ntest: {script: make}\n').name is None


@pytest.mark.parametrize('text, seconds', [
    ('one hour', 3600), ('two hours and thirty minutes', 9000), ('twenty-five mins', 1500), ('Forty Two seconds', 42),
    ('nineteen minutes 30 seconds', 1170)])
def test_a_duration_may_have_its_numbers_in_words(text, seconds):
    job, = compiled(f'test: {{script: make, timeout: {text}, artifacts: {{paths: [a], expire_in: {text}}}}}\n').jobs
    assert job.timeout == seconds
    assert minici.parse_duration(text) == seconds


def test_the_later_of_two_copies_with_the_same_values_counts():
    spec = compiled('''
        test:
          script: make
          parallel:
            matrix:
              - {OS: [ubuntu], PROVIDER: [aws, gcp]}
              - {SYSTEM: [ubuntu], PROVIDER: [aws]}
        ''')
    assert [job.name for job in spec.jobs] == ['test: [ubuntu, aws]', 'test: [ubuntu, gcp]']
    assert spec.jobs[0].variables['SYSTEM'] == 'ubuntu'
    assert 'OS' not in spec.jobs[0].variables
    assert spec.warnings == ('.gitlab-ci.yml:2:1: a job of test is called test: [ubuntu, aws], and the matrix makes it '
                             'twice: the later counts',)


def test_a_job_may_stand_in_the_place_of_a_copy_of_another():
    spec = compiled('''
        build: {stage: build, script: make, parallel: {matrix: [{OS: [a, b]}]}}
        'build: [b]': {stage: build, script: special, needs: []}
        test: {script: make, needs: [build]}
        twin: {script: early}
        'twin 1/2': {script: early}
        ''')
    scripts = {job.name: list(job.script) for job in spec.jobs}
    assert scripts == {'build: [a]': ['make'], 'build: [b]': ['special'], 'test': ['make'], 'twin': ['early'],
                       'twin 1/2': ['early']}
    test = next(job for job in spec.jobs if job.name == 'test')
    assert [need['name'] for need in test.needs] == ['build: [a]', 'build: [b]']
    assert spec.warnings == ('.gitlab-ci.yml:3:1: a job of build: [b] is called build: [b], and so is one of build: '
                             'the later counts',)


def test_a_copy_that_is_made_later_counts():
    spec = compiled('"twin 1/2": {script: early}\ntwin: {script: late, parallel: 2}\n')
    assert [(job.name, list(job.script)) for job in spec.jobs] == [('twin 1/2', ['late']), ('twin 2/2', ['late'])]


@pytest.mark.parametrize('row', ['{STACK: app, PROVIDER: aws}', '{PROVIDER: aws}'])
def test_a_needed_copy_is_named_by_all_its_values_in_their_order(row):
    told = refusal(f'''
        build: {{stage: build, script: make, parallel: {{matrix: [{{PROVIDER: aws, STACK: [app, db]}}]}}}}
        test: {{script: make, needs: [{{job: build, parallel: {{matrix: [{row}]}}}}]}}
        ''')
    assert 'no copy of it in this pipeline has that' in told


def test_a_directory_exists_when_a_file_in_it_does(tmp_path):
    tree = minici.Directory(tmp_path)

    def found(path):
        return names(f'test: {{script: make, rules: [{{exists: ["{path}"]}}]}}\n', repository=tree)
    (tmp_path / 'docs' / 'deep').mkdir(parents=True)
    (tmp_path / 'docs/deep/a.md').write_text('text')
    (tmp_path / 'other').write_text('text')
    assert found('docs/') == found('docs/deep/') == found('**/deep/') == ['test']
    assert found('docs') == found('doc/') == found('other/') == []


def test_a_variable_whose_name_shells_do_not_know_is_kept_and_told():
    spec = compiled('variables: {MY-NAME: a}\ntest: {script: make, variables: {dotted.name: b}}\n')
    assert spec.jobs[0].variables == {'MY-NAME': 'a', 'dotted.name': 'b'}
    assert ['MY-NAME' in spec.warnings[0], 'dotted.name' in spec.warnings[1]] == [True, True]
    assert 'is not a name' in refusal('variables: {"A=B": a}\ntest: {script: make}\n')


def test_pages_may_expire_after_a_time_that_a_variable_says():
    job, = compiled('test: {script: make, pages: {expire_in: $LIFETIME, path_prefix: $CI_COMMIT_BRANCH}}\n').jobs
    assert job.pages['expire_in'] == '$LIFETIME'


def test_an_input_is_split_into_a_list():
    spec = compiled("""
        spec: {inputs: {tags: {default: 'big, fast,,'}}}
        ---
        test: {script: make, tags: "$[[ inputs.tags | split(',') ]]"}
        """.replace('"', ''))
    assert list(spec.jobs[0].tag_list) == ['big', 'fast']


@pytest.mark.parametrize('keywords', [
    'tags: [[a], b]', 'dependencies: [[a]]', 'artifacts: {paths: [[a]]}', 'cache: {paths: [[a]]}',
    'rules: [{changes: [[a], b]}]', 'image: {name: a, entrypoint: [[""]]}'])
def test_a_list_of_texts_has_no_lists_in_it(keywords):
    assert 'must be a text' in job_refusal(keywords)


@pytest.mark.parametrize('text, told', [('3.10', "'3.10'"), ('1_0.50', "'1_0.50'"), ('1.5e+3', "'1.5e+3'")])
def test_a_number_that_should_be_a_text_is_told_as_it_is_written(text, told):
    assert f'write {told}' in job_refusal(f'image: {text}')


def test_a_number_reaches_a_variable_as_ruby_writes_it():
    job, = compiled('test: {script: make, variables: {A: 3.10, B: 1.5e+3}}\n').jobs
    assert job.variables == {'A': '3.1', 'B': '1500.0'}


@pytest.mark.parametrize('condition, told', [
    ('$CI_COMMIT_BRANCH == main', 'put quotes around main'), ('$A && feature-1', 'put quotes around feature-1'),
    ('main == $CI_COMMIT_BRANCH', "cannot be read from 'main == $CI_COMMIT_B' on")])
def test_a_text_without_quotes_in_an_expression_is_told(condition, told):
    assert told in job_refusal(f"rules: [{{if: '{condition}'}}]")


@pytest.mark.parametrize('environment, tier', [
    ('live', 'production'), ('pre-2', 'staging'), ('review/production', 'development'), ('elsewhere', 'other'),
    ({'name': 'live', 'deployment_tier': 'testing'}, 'testing')])
def test_a_job_and_the_api_know_the_tier_of_an_environment(ci, client, project, runner, token, environment, tier):
    content = {'test': {'environment': environment, **JOB}}
    found = claimed_variables(ci, client, project, runner, content)
    assert found['CI_ENVIRONMENT_TIER'] == tier
    client.call('PUT', f'/api/v4/jobs/{found["CI_JOB_ID"]}',
                json={'token': found['CI_JOB_TOKEN'], 'state': 'success'})
    shown, = client.call('GET', f'/api/v4/projects/{project["id"]}/environments',
                         headers={'PRIVATE-TOKEN': token}, status=200).json
    assert shown['tier'] == tier


@pytest.mark.parametrize('keywords, told', [
    ('environment: "a?b"', 'letters, digits, spaces'), ('environment: {name: /a}', 'no / at either end'),
    ('environment: review/$CI_COMMIT_REF_SLUG/', 'no / at either end'),
    ('rules: [{changes: {compare_to: main}}]', 'must have paths'),
    ('rules: [{exists: {project: a/b}}]', 'must have paths'),
    ('rules: [{exists: {paths: [a], ref: main}}]', 'must have a project beside its ref'),
    ('rules: [{changes: {paths: [a], project: a/b}}]', 'project is a keyword that minici does not know here'),
    ('rules: [{changes: {regexp: ^src/}}]', 'name paths'),
    ('artifacts: {reports: {coverage_report: {path: a.xml}}}', 'must have a coverage_format'),
    ('artifacts: {reports: {coverage_report: {coverage_format: jacoco}}}', 'must have a path')])
def test_what_belongs_to_a_keyword_must_be_there_and_nothing_else(keywords, told):
    assert told in job_refusal(keywords)


@pytest.mark.parametrize('name, called', [
    ('a', 'a'), ('Review app/$CI_COMMIT_REF_SLUG', 'Review app/main'), ('x.y_z-${A}', 'x.y_z-')])
def test_an_environment_is_called_what_gitlab_takes(name, called):
    job, = compiled(f'test: {{script: make, environment: "{name}"}}\n').jobs
    assert job.environment['name'] == called
