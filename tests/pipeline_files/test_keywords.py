"""Keywords of jobs: what each means, one by one, and how a wrong one is told."""

import dataclasses
import json
import textwrap

import pytest

import minici


def compiled(content, **options):
    """Return the pipeline that a file, its text indented at will, makes."""
    return minici.compile_pipeline(textwrap.dedent(content), **options)


def job(keywords, before='', **options):
    """Return the job `test` of a file that has YAML `before` it and these `keywords` beside its script."""
    body = textwrap.indent(textwrap.dedent(keywords), '  ')
    jobs = compiled(f'{textwrap.dedent(before)}\ntest:\n  script: make\n{body}', **options).jobs
    return next(found for found in jobs if found.name == 'test')


def by_name(content, **options):
    """Return the jobs of a file by their names."""
    return {found.name: found for found in compiled(content, **options).jobs}


def refusal(content, **options):
    """Return the complaints with which a file is refused."""
    with pytest.raises(minici.BadRequest) as refused:
        compiled(content, **options)
    return refused.value.problems


def complaint(keywords):
    """Return the first complaint about a job with these keywords, which start in line 3."""
    return refusal('test:\n  script: make\n' + textwrap.indent(textwrap.dedent(keywords), '  '))[0]


# -- extends

def test_extends_merges_mappings_deeply_and_replaces_lists_and_texts():
    found = by_name('''
        .base:
          script: [base]
          tags: [one, two]
          image: {name: ruby, entrypoint: [""]}
          variables: {A: base, B: base}
          artifacts: {paths: [base/], when: always}
        test:
          extends: .base
          script: [own]
          tags: [three]
          image: {name: python}
          variables: {B: own, C: own}
          artifacts: {paths: [own/]}
        ''')['test']
    assert list(found.script) == ['own']
    assert list(found.tag_list) == ['three']
    assert found.image == {'name': 'python', 'entrypoint': ['']}
    assert found.variables == {'A': 'base', 'B': 'own', 'C': 'own'}
    assert (found.artifacts[0]['paths'], found.artifacts[0]['when']) == (['own/'], 'always')


def test_of_several_jobs_that_one_extends_the_later_wins():
    found = by_name('''
        .a: {script: [a], tags: [a], variables: {X: a, Y: a}}
        .b: {script: [b], variables: {Y: b}}
        test: {extends: [.a, .b]}
        ''')['test']
    assert list(found.script) == ['b']
    assert list(found.tag_list) == ['a']
    assert found.variables == {'X': 'a', 'Y': 'b'}


def test_extends_goes_through_visible_jobs_and_ten_levels_wherever_they_stand():
    levels = '\n'.join(f'.j{number}: {{extends: .j{number + 1}}}' for number in range(9))
    found = by_name(f'test: {{extends: .j0}}\n{levels}\n.j9: {{script: make, tags: [deep]}}')
    assert list(found['test'].tag_list) == ['deep']
    found = by_name('a: {script: make, when: always}\nb: {extends: a, script: other}')
    assert found['b'].when == 'always'


@pytest.mark.parametrize('content, place', [
    ('test: {script: make, extends: .none}', '1:22: test:extends names .none'),
    ('.a: {extends: .b}\n.b: {extends: .a}\ntest: {script: make, extends: .a}', '2:6: .b:extends names .a'),
    ('test: {script: make, extends: test}', '1:22: test:extends names test'),
    ('test: {script: make, extends: {a: b}}', '1:22: test:extends must be a text'),
])
def test_extends_of_nothing_or_in_circles_is_refused(content, place):
    assert any(problem.startswith(f'.gitlab-ci.yml:{place}') for problem in refusal(content))


def test_null_switches_an_extended_keyword_off():
    found = by_name('''
        .base: {script: make, tags: [one], variables: {A: b}, rules: [{when: never}]}
        test: {extends: .base, tags: null, variables: null, rules: null}
        ''')['test']
    assert list(found.tag_list) == []
    assert found.variables == {}


# -- default and inherit

DEFAULTS = '''
default:
  image: ruby
  tags: [docker]
  retry: 1
  interruptible: true
  before_script: [prepare]
  hooks: {pre_get_sources_script: [echo]}
variables: {A: global, B: global}
'''


def test_every_default_reaches_a_job_that_does_not_say_otherwise():
    found = job('tags: [own]', DEFAULTS)
    assert (found.image, found.retry['max'], found.interruptible) == ({'name': 'ruby'}, 1, True)
    assert list(found.tag_list) == ['own']
    assert found.hooks == {'pre_get_sources_script': ['echo']}


@pytest.mark.parametrize('inherit, image, script, variables', [
    ('{default: false}', None, ['make'], {'A', 'B'}), ('{default: true}', 'ruby', ['prepare', 'make'], {'A', 'B'}),
    ('{default: [image]}', 'ruby', ['make'], {'A', 'B'}), ('{variables: false}', 'ruby', ['prepare', 'make'], set()),
    ('{variables: [B]}', 'ruby', ['prepare', 'make'], {'B'}),
    ('{default: false, variables: [A]}', None, ['make'], {'A'}),
])
def test_inherit_chooses_among_defaults_and_variables(inherit, image, script, variables):
    found = job(f'inherit: {inherit}', DEFAULTS)
    assert found.image == (image and {'name': image})
    assert list(found.script) == script
    assert set(found.variables) == variables


# -- !reference

def test_a_reference_stands_for_a_keyword_of_another_job():
    found = by_name('''
        .setup:
          script: [one, two]
          variables: {A: a, B: b}
          rules: [{if: $NEVER}]
        .deep: {script: [!reference [.setup, script], three]}
        test:
          before_script: [!reference [.setup, script]]
          script:
            - !reference [.deep, script]
            - four
          after_script: !reference [.setup, script]
          image: {name: !reference [.setup, variables, A]}
          variables: {C: !reference [.setup, variables, B]}
          rules:
            - !reference [.setup, rules]
            - when: always
        ''')['test']
    assert list(found.script) == ['one', 'two', 'one', 'two', 'three', 'four']
    assert list(found.after_script) == ['one', 'two']
    assert found.image == {'name': 'a'}
    assert found.variables == {'C': 'b'}
    assert found.when == 'always'


def test_a_reference_sees_what_a_job_extends():
    found = by_name('''
        .base: {variables: {A: base}}
        .setup: {extends: .base, script: [setup]}
        test: {script: [!reference [.setup, script]], variables: !reference [.setup, variables]}
        ''')['test']
    assert found.variables == {'A': 'base'}


@pytest.mark.parametrize('reference', ['[.none, script]', '[.a, tags]', '[]', '[test, script]', '[.a, script, deep]'])
def test_a_reference_to_nothing_or_itself_is_refused_with_its_line(reference):
    only, = refusal(f'.a: {{script: [a]}}\ntest:\n  script:\n    - !reference {reference}\n')
    assert only.startswith('.gitlab-ci.yml:4:7: !reference [')


# -- parallel

def test_parallel_makes_numbered_copies_that_know_their_number():
    jobs = compiled('''
        test: {script: make, parallel: 3}
        last: {stage: deploy, script: make, dependencies: [test]}
        ''').jobs
    assert [found.name for found in jobs] == ['test 1/3', 'test 2/3', 'test 3/3', 'last']
    assert [found.variables for found in jobs[:3]] == [
        {'CI_NODE_INDEX': str(index), 'CI_NODE_TOTAL': '3'} for index in (1, 2, 3)]
    assert list(jobs[3].dependencies) == ['test 1/3', 'test 2/3', 'test 3/3']


MATRIX = '''
build:
  stage: build
  script: make
  tags: [$OS-runner]
  parallel:
    matrix:
      - OS: [linux, mac]
        ARCH: [x64, arm]
      - OS: windows
        VERSION: 11
'''


def test_a_matrix_makes_a_copy_for_every_combination_of_each_entry():
    jobs = compiled(MATRIX).jobs
    assert [found.name for found in jobs] == [
        'build: [linux, x64]', 'build: [linux, arm]', 'build: [mac, x64]', 'build: [mac, arm]', 'build: [windows, 11]']
    assert jobs[1].variables == {'OS': 'linux', 'ARCH': 'arm', 'CI_NODE_INDEX': '2', 'CI_NODE_TOTAL': '5'}
    assert jobs[4].variables['VERSION'] == '11'
    assert [list(found.tag_list) for found in jobs[::2]] == [['linux-runner'], ['mac-runner'], ['windows-runner']]


@pytest.mark.parametrize('need, wanted', [
    ('build', [0, 1, 2, 3, 4]), ('{job: build}', [0, 1, 2, 3, 4]), ('"build: [mac, x64]"', [2]),
    ('{job: build, parallel: {matrix: [{OS: mac, ARCH: arm}]}}', [3]),
    ('{job: build, parallel: {matrix: [{OS: linux, ARCH: [x64, arm]}, {OS: windows, VERSION: 11}]}}', [0, 1, 4]),
])
def test_a_job_needs_all_copies_or_those_it_names(need, wanted):
    *copies, test = compiled(f'{MATRIX}test: {{script: make, needs: [{need}]}}').jobs
    assert [found['name'] for found in test.needs] == [copies[index].name for index in wanted]


def test_rules_and_tags_of_a_copy_see_the_variables_of_its_own():
    found = by_name('''
        build:
          script: make
          variables: {KIND: $OS-iron}
          tags: [$KIND]
          parallel: {matrix: [{OS: [linux, mac]}]}
          rules: [{if: $OS == "mac", when: manual}, {if: $OS != "windows"}]
        ''')
    assert {name: (copy.when, copy.tag_list) for name, copy in found.items()} == {
        'build: [linux]': ('on_success', ['linux-iron']), 'build: [mac]': ('manual', ['mac-iron'])}


def test_artifacts_of_one_copy_may_be_asked_for_by_its_name():
    *_, test = compiled(f'{MATRIX}test: {{script: make, dependencies: ["build: [mac, x64]"]}}').jobs
    assert list(test.dependencies) == ['build: [mac, x64]']


@pytest.mark.parametrize('keywords, wrong', [
    ('stage: .pre, needs: ["build: [mac, arm]"]', 'test:needs:0 needs build: [mac, arm], which is in a later stage'),
    ('stage: .pre, dependencies: ["build: [mac, arm]"]',
     'test:dependencies names build: [mac, arm], which is in a later stage'),
    ('needs: ["build: [mac, mips]"]', 'test:needs:0 needs build: [mac, mips], and there is no such job'),
    ('dependencies: ["build: [mac, mips]"]', 'test:dependencies names build: [mac, mips], and there is no such job'),
    ('needs: ["gone: [1]"]', 'test:needs:0 needs gone: [1], which is not in this pipeline'),
])
def test_a_copy_that_a_job_cannot_wait_for_is_refused(keywords, wrong):
    gone = 'gone: {script: make, parallel: {matrix: [{A: 1}]}, rules: [{when: never}]}\n'
    assert wrong in refusal(f'{MATRIX}{gone}test: {{script: make, {keywords}}}')[0]


@pytest.mark.parametrize('text', ['0', '201', 'many', 'true', '1.5', '{matrix: []}', '{matrix: [a]}',
                                  '{matrix: {A: [b]}, x: 1}', '{matrix: [{A: [], B: [c]}]}', '{matrix: [{A: {b: c}}]}'])
def test_parallel_of_another_kind_or_size_is_refused(text):
    assert complaint(f'parallel: {text}').startswith('.gitlab-ci.yml:3:')


def test_a_matrix_of_more_than_two_hundred_jobs_is_refused_before_they_are_made():
    numbers = list(range(100))
    assert 'test:parallel ' in complaint(f'parallel: {{matrix: [{{A: {numbers}, B: {numbers}, C: {numbers}}}]}}')


# -- needs

NEEDED = 'a: {stage: build, script: make}\nb: {stage: build, script: make}\nc: {script: make}\n'


@pytest.mark.parametrize('needs, found', [
    ('[a]', [('a', True)]), ('{job: a}', [('a', True)]), ('[]', []), ('[{job: a}, b]', [('a', True), ('b', True)]),
    ('[{job: a, artifacts: false}]', [('a', False)]), ('[c]', [('c', True)]),
    ('[{job: a, artifacts: true, optional: true}]', [('a', True)]), ('[{job: gone, optional: true}]', []),
])
def test_needs_are_names_and_mappings(needs, found):
    test = by_name(f'{NEEDED}test: {{script: make, needs: {needs}}}')['test']
    assert [(need['name'], need['artifacts']) for need in test.needs] == found


def test_without_needs_a_job_waits_for_the_stages_before_it():
    assert job('').needs is None


@pytest.mark.parametrize('needs, word', [
    ('[a, {job: a}]', 'twice'), ('[gone]', 'gone'), ('[later]', 'later stage'), ('[test]', 'circle'),
    ('[.hidden]', '.hidden'), ('[left]', 'optional'),
    ('[{project: group/other, job: a, artifacts: true}]', 'a ref'), ('[{pipeline: $UP}]', 'pipeline'),
    ('[{artifacts: true}]', 'must have a job'), ('[{job: a, artefacts: true}]', 'artefacts'), ('[5]', 'must'),
])
def test_a_need_that_cannot_be_met_is_refused_with_its_line(needs, word):
    problem = refusal(f'''later: {{stage: deploy, script: make}}
left: {{script: make, rules: [{{when: never}}]}}
.hidden: {{script: make}}
a: {{script: make}}
test: {{script: make, needs: {needs}}}''')[0]
    assert problem.startswith('.gitlab-ci.yml:5:')
    assert word in problem


def test_a_job_gets_artifacts_of_jobs_that_it_needs_alone():
    only, = refusal(f'{NEEDED}test:\n  script: make\n  needs: [a]\n  dependencies: [a, b]\n')
    assert only.startswith('.gitlab-ci.yml:7:3: test:dependencies names b, ')


def test_jobs_that_need_each_other_are_refused_by_name_and_not_those_that_need_them():
    only, = refusal('c: {script: make, needs: [b]}\na: {script: make, needs: [b]}\nb: {script: make, needs: [a]}')
    assert only == '.gitlab-ci.yml:2:19: a:needs goes round in a circle: a needs b needs a'


def test_more_than_fifty_needs_are_refused():
    names = [f'j{number}' for number in range(51)]
    jobs = ''.join(f'{name}: {{stage: build, script: make}}\n' for name in names)
    assert '50 are allowed' in refusal(f'{jobs}test: {{script: make, needs: {names}}}')[0]


# -- retry, interruptible, resource_group, coverage, environment

@pytest.mark.parametrize('text, retry', [
    ('2', {'max': 2, 'when': ['always'], 'exit_codes': []}),
    ('{max: 1}', {'max': 1, 'when': ['always'], 'exit_codes': []}),
    ('{max: 2, when: runner_system_failure}', {'max': 2, 'when': ['runner_system_failure'], 'exit_codes': []}),
    ('{max: 1, when: [script_failure, job_execution_timeout]}',
     {'max': 1, 'when': ['script_failure', 'job_execution_timeout'], 'exit_codes': []}),
    ('{max: 1, exit_codes: 137}', {'max': 1, 'when': [], 'exit_codes': [137]}),
])
def test_retry_says_how_often_and_after_which_failures(text, retry):
    assert job(f'retry: {text}').retry == retry


@pytest.mark.parametrize('keywords, place', [
    ('retry: 3', '3:3: test:retry'), ('retry: -1', '3:3: test:retry'), ('retry: {max: 3}', '3:11: test:retry:max'),
    ('retry: {max: 1, when: bad_luck}', '3:19: test:retry:when'), ('retry: {min: 1}', '3:11: test:retry:min'),
    ('interruptible: sometimes', '3:3: test:interruptible'), ('resource_group: [a]', '3:3: test:resource_group'),
    ('coverage: "/(/"', '3:3: test:coverage'),
    ('environment: {name: x, action: burn}', '3:26: test:environment:action'),
    ('environment: [a]', '3:3: test:environment'), ('start_in: soon', '3:3: test:start_in'),
    ('when: delayed', '1:1: test'), ('hooks: {pre_build: [a]}', '3:11: test:hooks:pre_build'),
    ('inherit: {default: [image], all: true}', '3:31: test:inherit:all'),
    ('secrets: {TOKEN: {vault: a/b}}', '3:3: test:secrets'), ('id_tokens: {T: {}}', '3:15: test:id_tokens:T'),
    ('identity: google_cloud', '3:3: test:identity'), ('run: [{name: a}]', '3:3: test:run'),
])
def test_a_wrong_keyword_is_refused_with_its_place(keywords, place):
    assert complaint(keywords).startswith(f'.gitlab-ci.yml:{place} ')


def test_interruptible_resource_group_and_confirmation_are_kept():
    found = job('interruptible: true\nresource_group: production\nwhen: manual\nmanual_confirmation: Sure?')
    assert (found.interruptible, found.resource_group, found.when) == (True, 'production', 'manual')
    assert (job('').interruptible, job('').resource_group) == (False, None)


def test_coverage_is_the_pattern_without_its_slashes():
    assert job(r"coverage: '/Total: (\d+)%/'").coverage == r'Total: (\d+)%'
    assert job('').coverage is None


def test_environment_is_a_name_or_a_mapping():
    assert job('environment: production').environment == {'name': 'production'}
    stop = 'stop: {script: make, environment: {name: review/x, action: stop}}'
    mapping = {'name': 'review/x', 'url': 'https://x.example.com', 'on_stop': 'stop', 'auto_stop_in': '1 day',
               'deployment_tier': 'testing', 'action': 'start'}
    assert job(f'environment: {mapping}', before=stop).environment == mapping


@pytest.mark.parametrize('text, seconds', [
    ('5', 5), ('5 seconds', 5), ('30 minutes', 1800), ('1 day', 86400), ('1 week', 604800)])
def test_a_delayed_job_starts_after_the_time_it_names(text, seconds):
    found = job(f'when: delayed\nstart_in: {text}')
    assert (found.when, found.start_in, found.allow_failure) == ('delayed', seconds, False)


def test_a_delay_of_more_than_a_week_is_refused():
    assert 'at most a week' in complaint('when: delayed\nstart_in: 8 days')


def test_pages_do_not_keep_a_job_from_running():
    assert list(job('pages: true\npublish: dist').script) == ['make']
    assert by_name('pages: {script: make, artifacts: {paths: [public]}}')['pages'].artifacts[0]['paths'] == ['public']


@pytest.mark.parametrize('keyword', ['script: x, pages: %s', 'trigger: {project: a, inputs: {b: %s}}'])
@pytest.mark.parametrize('number', ['.nan', '-.inf', '1.0e+999'])
def test_what_is_only_kept_can_be_written_in_json(keyword, number):
    found, = compiled(f'test: {{{keyword % number}}}\n').jobs
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_a_release_is_kept_with_its_links():
    links = [{'name': 'manual', 'url': 'https://a.example', 'link_type': 'other'}]
    release = {'tag_name': '$CI_COMMIT_TAG', 'description': 'Notes', 'milestones': ['m1'], 'assets': {'links': links}}
    assert job(f'release: {json.dumps(release)}').release == release


@pytest.mark.parametrize('release, wrong', [
    ('{tag_name: v1}', 'release must have a description'), ('{description: Notes}', 'release must have a tag_name'),
    ('v1', 'release must be a mapping'), ('{tag_name: v1, description: a, title: b}', 'release:title is a keyword'),
    ('{tag_name: v1, description: a, assets: {links: [{name: a}]}}', 'must have a url')])
def test_a_release_that_could_not_be_made_is_refused(release, wrong):
    text = complaint(f'release: {release}')
    assert wrong in text
    assert text.startswith('.gitlab-ci.yml:3:')


def test_an_environment_is_stopped_by_a_job_that_exists():
    stop = 'end: {script: make, environment: {name: x, action: stop}}'
    assert job('environment: {name: x, on_stop: end}', before=stop).environment['on_stop'] == 'end'
    assert 'has on_stop: end, and there is no such job' in complaint('environment: {name: x, on_stop: end}')


def test_dependencies_may_name_a_job_of_the_same_stage_but_not_of_a_later_one():
    assert list(job('dependencies: [twin]', before='twin: {script: make}').dependencies) == ['twin']
    later = 'test: {script: make, dependencies: [last]}\nlast: {stage: deploy, script: make}'
    assert 'test:dependencies names last, which is in a later stage' in refusal(later)[0]


@pytest.mark.parametrize('needs', ['', 'needs: [twin]', 'needs: ["twin 1/2", "twin 2/2"]'])
def test_dependencies_may_name_one_copy_of_a_parallel_job(needs):
    found = job(f'dependencies: ["twin 2/2"]\n{needs}', 'twin: {stage: build, script: make, parallel: 2}')
    assert list(found.dependencies) == ['twin 2/2']


def test_a_job_with_trigger_stands_in_the_pipeline_as_a_bridge():
    spec = compiled('''
        down: {stage: build, trigger: {include: child.yml, strategy: depend}, needs: []}
        test: {script: make}
        ''')
    assert [found.name for found in spec.jobs] == ['down', 'test']
    assert (spec.jobs[0].trigger['include'], spec.jobs[0].trigger['strategy']) == ('child.yml', 'depend')
    assert spec.jobs[1].trigger is None


# -- artifacts: reports

def test_each_report_is_an_upload_of_its_own_that_is_always_made():
    found = job('''
        artifacts:
          paths: [out/]
          expire_in: 1 week
          reports:
            junit: [a.xml, b.xml]
            dotenv: build.env
            coverage_report: {coverage_format: cobertura, path: coverage.xml}
            codequality: quality.json
        ''').artifacts
    keys = ('artifact_type', 'artifact_format', 'paths', 'when')
    assert [tuple(report[key] for key in keys) for report in found] == [
        ('archive', 'zip', ['out/'], 'on_success'), ('junit', 'gzip', ['a.xml', 'b.xml'], 'always'),
        ('dotenv', 'gzip', ['build.env'], 'always'), ('coverage_report', 'gzip', ['coverage.xml'], 'always'),
        ('codequality', 'raw', ['quality.json'], 'always')]
    assert {report['expire_in'] for report in found} == {'1 week'}


def test_reports_alone_make_no_archive():
    found = job('artifacts: {reports: {sast: sast.json, junit: a.xml}}').artifacts
    assert [report['artifact_type'] for report in found] == ['sast', 'junit']


@pytest.mark.parametrize('text', ['a.xml', '{junit: {a: b}}', '{coverage_report: a.xml}', '{"Bad Kind": a.xml}',
                                  '{coverage_report: {coverage_format: lcov, path: a}}'])
def test_reports_of_another_kind_are_refused(text):
    assert ' test:artifacts:reports' in complaint(f'artifacts: {{reports: {text}}}')


# -- cache, services, image

def test_a_cache_takes_every_keyword_of_its_own():
    found, = job('''
        cache:
          key: $CI_COMMIT_REF_SLUG
          paths: [vendor/]
          untracked: true
          unprotect: true
          when: always
          policy: pull
          fallback_keys: [main, default]
        ''').cache
    assert found == {'key': '$CI_COMMIT_REF_SLUG', 'paths': ['vendor/'], 'untracked': True, 'unprotect': True,
                     'when': 'always', 'policy': 'pull', 'fallback_keys': ['main', 'default']}


def test_a_cache_key_of_files_that_are_not_there_is_default_behind_its_prefix():
    def key(text):
        return job(f'cache: {{key: {text}, paths: [a]}}').cache[0]['key']
    assert key('{files: [Gemfile.lock], prefix: $CI_JOB_NAME}') == '$CI_JOB_NAME-default'   # there is no such file
    assert key('{files: [Gemfile.lock]}') == 'default'


def test_two_caches_of_the_same_files_have_keys_of_their_own():
    one = '{key: {files: [a/Gemfile.lock, b]}, paths: [x]}'
    caches = job(f'cache: [{one}, {one}, {{key: {{files_commits: [b]}}, paths: [y]}}]').cache
    assert [cache['key'] for cache in caches] == ['default', '1_a/Gemfile_b-default', '2-default']


@pytest.mark.parametrize('key, told', [
    ('{files: [a, b, c]}', 'names 3 files; 1 to 2 are allowed'), ('{files: []}', 'names 0 files'),
    ('{prefix: p}', 'must have files or files_commits'), ('{files: [a], files_commits: [b]}', 'one of them only'),
])
def test_the_key_of_a_cache_names_one_or_two_files(key, told):
    assert told in complaint(f'cache: {{key: {key}, paths: [a]}}')


def test_a_service_takes_every_keyword_of_its_own():
    found, = job('''
        services:
          - name: postgres:15
            alias: db,database
            entrypoint: [/bin/sh]
            command: [postgres, -c, fsync=off]
            pull_policy: [always, if-not-present]
            variables: {POSTGRES_DB: test}
            docker: {platform: linux/arm64, user: dave}
        ''').services
    assert found == {'name': 'postgres:15', 'alias': 'db,database', 'entrypoint': ['/bin/sh'],
                     'command': ['postgres', '-c', 'fsync=off'], 'pull_policy': ['always', 'if-not-present'],
                     'variables': [{'key': 'POSTGRES_DB', 'value': 'test'}],
                     'executor_opts': {'docker': {'platform': 'linux/arm64', 'user': 'dave'}}}


def test_an_image_takes_every_keyword_of_its_own():
    assert job('image: {name: ruby, entrypoint: [""], pull_policy: always, docker: {user: "1000"}}').image == {
        'name': 'ruby', 'entrypoint': [''], 'pull_policy': ['always'], 'executor_opts': {'docker': {'user': '1000'}}}


# -- variables

def test_a_variable_with_attributes_has_its_value_and_may_be_raw():
    found = job('variables: {C: {value: $B, expand: false}}', '''
        variables:
          A: {value: one, description: Which one, options: [one, two]}
          B: {description: Nothing yet}
        ''')
    assert found.variables == {'A': 'one', 'B': '', 'C': '$B'}
    assert list(found.raw_variables) == ['C']


def test_rules_see_variables_of_the_job_over_those_of_the_file_and_given_ones_over_both():
    content = '''
        variables: {LEVEL: file}
        test: {script: make, variables: {LEVEL: job}, rules: [{if: $LEVEL == "%s"}]}
        other: {script: make}
        '''
    assert 'test' in by_name(content % 'job')
    assert 'test' in by_name(content % 'given', variables={'LEVEL': 'given'})
    assert 'test' not in by_name(content % 'file')


def test_variables_reach_the_runner_as_they_are_written_and_tags_expanded():
    found = job('tags: [$KIND, "${KIND}-$MISSING"]', 'variables: {SIZE: big, KIND: "$SIZE-iron"}')
    assert found.variables == {'SIZE': 'big', 'KIND': '$SIZE-iron'}
    assert list(found.tag_list) == ['big-iron', 'big-iron-$MISSING']    # no runner has such a tag


def test_variables_that_name_each_other_do_not_hang():
    assert job('rules: [{when: always}]', 'variables: {A: $B, B: $A}').variables == {'A': '$B', 'B': '$A'}
