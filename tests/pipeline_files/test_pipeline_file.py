"""Pipeline files: what each keyword of `.gitlab-ci.yml` means, and how a fault in one is told."""

import dataclasses
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import minici


def compiled(content, ref='main', **options):
    """Return the pipeline that a file, its text indented at will, makes for a ref."""
    text = textwrap.dedent(content) if isinstance(content, str) else content
    return minici.compile_pipeline(text, ref=ref, **options)


def job(keywords='', before='', **options):
    """Return the one job of a file that has YAML `before` it and these `keywords` beside its script."""
    body = textwrap.indent(textwrap.dedent(keywords), '  ')
    return compiled(f'{textwrap.dedent(before)}\ntest:\n  script: make\n{body}', **options).jobs[0]


def mapping(text):
    """Return YAML text, none of which is an empty mapping, as plain values."""
    return yaml.safe_load(text) or {}


def refusal(content, **options):
    """Return the complaints with which a pipeline file is refused."""
    with pytest.raises(minici.BadRequest) as refused:
        compiled(content, **options)
    return refused.value.detail['base']


def complaint(keywords, before=''):
    """Return the first complaint about a job with these keywords."""
    body = textwrap.indent(textwrap.dedent(keywords), '  ')
    return refusal(f'{before}test:\n  script: make\n{body}')[0]


# -- stages

def test_stages_are_build_test_and_deploy_unless_the_file_lists_its_own():
    assert list(compiled('test: {script: make}').stages) == ['.pre', 'build', 'test', 'deploy', '.post']
    assert list(compiled('''
        stages: [lint, ship]
        test: {stage: ship, script: make}
        ''').stages) == ['.pre', 'lint', 'ship', '.post']


def test_pre_and_post_stay_first_and_last_wherever_they_are_listed():
    spec = compiled('''
        stages: [.post, build, .pre]
        compile: {stage: build, script: make}
        report: {stage: .post, script: report, dependencies: [compile]}
        ''')
    assert list(spec.stages) == ['.pre', 'build', '.post']


def test_a_job_without_a_stage_is_in_test():
    assert job().stage == 'test'
    assert job('stage: deploy').stage == 'deploy'
    assert job('stage: .pre').stage == '.pre'


@pytest.mark.parametrize('content, place', [
    ('test:\n  script: make\n  stage: verify\n', '3:3: test:stage'),
    ('stages: [build]\ntest:\n  script: make\n', '2:1: test'),
])
def test_a_stage_that_is_not_listed_is_refused_with_those_that_are(content, place):
    only, = refusal(content)
    assert only.startswith(f'.gitlab-ci.yml:{place} ')
    assert '.pre, build, ' in only


def test_jobs_come_in_the_order_of_the_file():
    assert [job.name for job in compiled('''
        zebra: {script: make}
        .hidden: {script: make}
        apple: {script: make}
        unit tests 1/2: {script: make}
        ''').jobs] == ['zebra', 'apple', 'unit tests 1/2']


# -- scripts

@pytest.mark.parametrize('script', ['make', '[make]', '[[make]]', '[[], [[make]]]'])
def test_script_is_a_line_or_a_list_of_lines_nested_by_anchors(script):
    assert list(compiled(f'test: {{script: {script}}}').jobs[0].script) == ['make']


def test_a_block_of_several_lines_is_one_command():
    found = compiled('''
        test:
          script:
            - |
              if true; then
                echo a: b
              fi
        ''').jobs[0]
    assert list(found.script) == ['if true; then\n  echo a: b\nfi\n']


def test_before_script_runs_in_front_of_the_script_and_after_script_apart():
    found = job('before_script: [configure, autogen]\nafter_script: [make clean]')
    assert list(found.script) == ['configure', 'autogen', 'make']
    assert list(found.after_script) == ['make clean']


@pytest.mark.parametrize('text', ['script: []', 'script: ""', 'script:', 'image: ruby', '{}'])
def test_a_job_without_anything_to_run_is_refused(text):
    only, = refusal(f'test:\n  {text}\n')
    assert re.match(r'\.gitlab-ci\.yml:[12]:[1-9]+: test', only)


@pytest.mark.parametrize('keyword', ['script', 'before_script', 'after_script'])
def test_a_colon_that_makes_a_command_a_mapping_is_pointed_at(keyword):
    only, = refusal(f'test:\n  script: [make]\n  {keyword}:\n    - make\n    - echo: done\n')
    assert only.startswith(f'.gitlab-ci.yml:5:7: test:{keyword}:1 must be a text')


def test_a_script_nested_beyond_ten_levels_is_refused():
    assert refusal(f'test: {{script: {"[" * 12}make{"]" * 12}}}')


# -- image and services

@pytest.mark.parametrize('text, image', [
    ('ruby:3.1', {'name': 'ruby:3.1'}),
    ('{name: ruby:3.1}', {'name': 'ruby:3.1'}),
    ('{name: "super/sql", entrypoint: [""]}', {'name': 'super/sql', 'entrypoint': ['']}),
    ('{name: super/sql, entrypoint: [/bin/sh, -c]}', {'name': 'super/sql', 'entrypoint': ['/bin/sh', '-c']}),
])
def test_image_is_a_name_or_an_object(text, image):
    assert job(f'image: {text}').image == image


def test_services_are_names_and_objects():
    assert list(job('''
        services:
          - postgres:15
          - name: docker:dind
            alias: docker
            entrypoint: [dockerd-entrypoint.sh]
            command: [--tls=false]
        ''').services) == [
            {'name': 'postgres:15'},
            {'name': 'docker:dind', 'alias': 'docker', 'entrypoint': ['dockerd-entrypoint.sh'],
             'command': ['--tls=false']}]


def test_without_image_and_services_a_job_has_none():
    assert job().image is None
    assert list(job('image:').services) == []


@pytest.mark.parametrize('keywords, place', [
    ('image: {entrypoint: [""]}', 'test:image'),
    ('image: [ruby]', 'test:image'),
    ('services: [{alias: db}]', 'test:services:0'),
    ('services: [postgres, 10]', 'test:services:1'),
])
def test_an_image_or_service_without_a_name_is_refused(keywords, place):
    assert f' {place} ' in complaint(keywords)


# -- variables

def test_variables_of_the_file_reach_every_job_and_those_of_a_job_win():
    found = job('variables: {COLOUR: green, SHAPE: round}', before='variables: {COLOUR: red, SIZE: large}')
    assert found.variables == {'COLOUR': 'green', 'SHAPE': 'round', 'SIZE': 'large'}


@pytest.mark.parametrize('text, value', [
    ('5432', '5432'), ('-1', '-1'), ('0.5', '0.5'), ('true', 'true'), ('false', 'false'), ('', ''), ('null', ''),
    ('""', ''), ('"012"', '012'), ('"yes"', 'yes'), ('2020-01-01', '2020-01-01'), ('$OTHER/bin', '$OTHER/bin'),
    ('a b', 'a b'), ('naïve 😀', 'naïve 😀'),
])
def test_the_value_of_a_variable_is_a_text_whatever_yaml_calls_it(text, value):
    assert job(f'variables: {{NAME: {text}}}').variables == {'NAME': value}
    assert job(before=f'variables: {{NAME: {text}}}').variables == {'NAME': value}


def test_variables_without_any_are_none():
    assert job('variables:').variables == {}
    assert job('variables: {}', before='variables:').variables == {}


@pytest.mark.parametrize('text, place', [
    ('[A, B]', '3:3: test:variables'), ('A=1', '3:3: test:variables'),
    ('{A: [1]}', '3:15: test:variables:A'), ('{A: {b: c}}', '3:19: test:variables:A:b'),
    ('{"A=B": c}', '3:15: test:variables:A=B'), ('{"A B": c}', '3:15: test:variables:A B'),
])
def test_variables_that_no_job_could_have_are_refused(text, place):
    assert complaint(f'variables: {text}').startswith(f'.gitlab-ci.yml:{place} ')


# -- tags, artifacts, cache, dependencies

def test_tags_are_those_a_runner_must_have():
    assert list(job('tags: [docker, "linux x64"]').tag_list) == ['docker', 'linux x64']
    assert list(job().tag_list) == []


def test_artifacts_hold_what_the_runner_is_told_to_keep():
    archive, = job('''
        artifacts:
          name: "$CI_JOB_NAME"
          paths: [out/, "*.log"]
          exclude: [out/tmp/]
          untracked: true
          when: always
          expire_in: 1 week
        ''').artifacts
    assert archive == {'name': '$CI_JOB_NAME', 'paths': ['out/', '*.log'], 'exclude': ['out/tmp/'], 'untracked': True,
                       'when': 'always', 'expire_in': '1 week', 'artifact_type': 'archive', 'artifact_format': 'zip'}


def test_artifacts_are_kept_on_success_and_without_an_end_unless_they_say_otherwise():
    archive, = job('artifacts: {paths: [out/]}').artifacts
    assert archive['when'] == 'on_success'
    assert archive['untracked'] is False
    assert archive.get('expire_in') is None
    assert list(job().artifacts) == []


def test_untracked_files_alone_are_artifacts():
    archive, = job('artifacts: {untracked: true}').artifacts
    assert archive['untracked'] is True
    assert archive['paths'] == []


@pytest.mark.parametrize('text', ['42', '42 seconds', '3 mins 4 sec', '2 hrs 20 min', '2h20min', '6 mos 1 day',
                                  '47 yrs 6 mos and 4d', '3 weeks and 2 days', '30 days', '7d', 'never'])
def test_artifacts_expire_in_every_form_of_the_documentation(text):
    archive, = job(f'artifacts: {{paths: [out/], expire_in: {text}}}').artifacts
    assert archive['expire_in'] == text


@pytest.mark.parametrize('text, place', [
    ('{paths: [out/], when: manual}', 'test:artifacts:when'),
    ('{paths: [out/], expire_in: 7 elephants}', 'test:artifacts:expire_in'),
    ('{paths: {out: 1}}', 'test:artifacts:paths'),
    ('{paths: [out/], untracked: sometimes}', 'test:artifacts:untracked'),
    ('out/', 'test:artifacts'),
])
def test_artifacts_of_another_kind_are_refused(text, place):
    assert f': {place} ' in complaint(f'artifacts: {text}')


def test_cache_is_one_mapping_or_a_list_of_them():
    one = job('cache: {key: "$CI_JOB_NAME", paths: [vendor/], untracked: true, policy: pull, when: always}')
    assert list(one.cache) == [
        {'key': '$CI_JOB_NAME', 'paths': ['vendor/'], 'untracked': True, 'policy': 'pull', 'when': 'always'}]
    several = job('cache: [{key: a, paths: [a/]}, {key: b, paths: [b/]}]')
    assert [(cache['key'], cache['paths']) for cache in several.cache] == [('a', ['a/']), ('b', ['b/'])]


def test_a_cache_is_pulled_pushed_and_called_default_unless_it_says_otherwise():
    cache, = job('cache: {paths: [vendor/]}').cache
    assert cache == {'key': 'default', 'paths': ['vendor/'], 'untracked': False, 'policy': 'pull-push',
                     'when': 'on_success'}


@pytest.mark.parametrize('off', ['[]', '{}'])
def test_an_empty_cache_switches_the_default_one_off(off):
    assert list(job(f'cache: {off}', before='cache: {paths: [vendor/]}').cache) == []


@pytest.mark.parametrize('text, place', [
    ('{paths: [a/], policy: push-pull}', 'test:cache:policy'),
    ('{paths: [a/], when: manual}', 'test:cache:when'),
    ('[{paths: [a/]}, {paths: [b/], untracked: 1}]', 'test:cache:1:untracked'),
    ('vendor/', 'test:cache'),
])
def test_caches_of_another_kind_are_refused(text, place):
    assert f': {place} ' in complaint(f'cache: {text}')


def test_dependencies_name_jobs_of_earlier_stages_none_at_all_or_everything():
    first = 'compile: {stage: build, script: make}\n'
    found = {text: compiled(f'{first}test: {{script: make{text}}}').jobs[1].dependencies
             for text in ('', ', dependencies: []', ', dependencies: [compile]')}
    assert found[''] is None
    assert list(found[', dependencies: []']) == []
    assert list(found[', dependencies: [compile]']) == ['compile']


@pytest.mark.parametrize('name', ['nowhere', 'later', 'test', '.hidden'])
def test_a_dependency_that_is_unknown_later_or_the_job_itself_is_refused(name):
    only, = refusal(f'''
        .hidden: {{stage: build, script: make}}
        later: {{stage: deploy, script: make}}
        test:
          script: make
          dependencies: [{name}]
        ''')
    assert only.startswith('.gitlab-ci.yml:6:')
    assert ' test:dependencies' in only
    assert name in only


# -- when, allow_failure, timeout

@pytest.mark.parametrize('when', ['on_success', 'on_failure', 'always', 'manual'])
def test_when_is_kept(when):
    assert job(f'when: {when}').when == when
    assert job().when == 'on_success'


@pytest.mark.parametrize('when', ['never', 'Manual', '1', '[manual]'])
def test_another_when_is_refused_with_those_there_are(when):
    assert complaint(f'when: {when}').startswith(
        '.gitlab-ci.yml:3:3: test:when must be one of on_success, on_failure, always, manual')


@pytest.mark.parametrize('keywords, allowed, codes', [
    ('', False, []),
    ('allow_failure: true', True, []),
    ('allow_failure: false', False, []),
    ('when: manual', True, []),
    ('{when: manual, allow_failure: false}', False, []),
    ('when: on_failure', False, []),
    ('allow_failure: {exit_codes: 137}', False, [137]),
    ('allow_failure: {exit_codes: [137, 255]}', False, [137, 255]),
    ('{when: manual, allow_failure: {exit_codes: 1}}', False, [1]),
])
def test_a_failure_is_allowed_where_the_job_says_so_or_is_manual(keywords, allowed, codes):
    found = compiled({'test': {'script': 'make', **mapping(keywords)}}).jobs[0]
    assert found.allow_failure is allowed
    assert list(found.allow_failure_exit_codes) == codes


@pytest.mark.parametrize('text', ['maybe', '1', '[true]', '{exit_codes: x}', '{exit_codes: [1, 256]}',
                                  '{exit_codes: -1}', '{exit_codes: true}', '{exit_codes: 1.5}'])
def test_allow_failure_of_another_kind_is_refused(text):
    assert ' test:allow_failure' in complaint(f'allow_failure: {text}')


@pytest.mark.parametrize('text, seconds', [
    ('3 hours 30 minutes', 12600), ('3h 30m', 12600), ('30m', 1800), ('90 minutes', 5400), ('1 week', 604800),
    ('1 hour, 10 minutes and 5 seconds', 4205), ('1.5h', 5400), ('"600"', 600), ('600', 600), ('"1:30:00"', 5400),
])
def test_timeout_is_read_in_every_form_of_a_duration(text, seconds):
    assert job(f'timeout: {text}').timeout == seconds


def test_without_a_timeout_the_projects_holds():
    assert job().timeout is None


@pytest.mark.parametrize('text', ['soon', '10 parsecs', '-5m', '""', '[5m]', '{minutes: 5}', '2 months', '999999999y',
                                  '.inf', '1e300'])
def test_a_timeout_that_is_no_duration_or_beyond_a_month_is_refused(text):
    assert complaint(f'timeout: {text}').startswith('.gitlab-ci.yml:3:3: test:timeout ')


# -- only and except

@pytest.mark.parametrize('keywords, where', [
    ('only: [main]', 'main'), ('only: main', 'main'), ('only: [other, main]', 'main'), ('only: {refs: [main]}', 'main'),
    ('only: {refs: main}', 'main'), ('only: [v1]', 'tag v1'), ('only: [branches]', 'main'), ('only: [tags]', 'tag v1'),
    ('only: [/^issue-.*$/]', 'issue-7'), ('only: [/sue-/]', 'issue-7'), ('only: [/^ISSUE-/i]', 'issue-7'),
    ('only: ["/^ISSUE-[0-9]+$/ims"]', 'issue-7'), ('only: ["/^v\\\\d+/"]', 'tag v1'), ('only: [/^a/b/]', 'a/b/c'),
    ('only: [api]', 'main'), ('only: [pushes]', 'main by push'), ('only: [web]', 'main by web'),
    ('only: [schedules]', 'main by schedule'), ('only: [triggers]', 'main by trigger'),
    ('only: [pipelines]', 'main by pipeline'), ('only: [external]', 'main by external'),
    ('only: [merge_requests]', 'main by merge_request_event'), ('only: [push]', 'main by push'),
    ('only: [schedule]', 'main by schedule'), ('only: [merge_request]', 'main by merge_request_event'),
    ('except: [other]', 'main'), ('except: [tags]', 'main'), ('except: [pushes]', 'main'), ('except: [/^v/]', 'main'),
    ('{only: [branches], except: [other]}', 'main'), ('only:', 'main'), ('except:', 'main'),
])
def test_only_and_except_let_a_job_in(keywords, where):
    assert runs(keywords, where)


@pytest.mark.parametrize('keywords, where', [
    ('only: [main]', 'other'), ('only: [main]', 'Main'), ('only: [main]', 'main2'), ('only: [v.1]', 'vx1'),
    ('only: [branches]', 'tag v1'), ('only: [tags]', 'main'), ('only: [/^issue-.*$/]', 'Issue-7'),
    ('only: [/^issue-.*$/]', 'my-issue-7'), ('only: [pushes]', 'main'), ('only: [schedules]', 'schedules'),
    ('only: [merge_requests]', 'main'), ('only: {refs: [tags]}', 'main'),
    ('except: [main]', 'main'), ('except: [branches]', 'main'), ('except: [api]', 'main'),
    ('except: {refs: [/^ma/]}', 'main'), ('except: [v1]', 'tag v1'), ('except: [schedules]', 'main by schedule'),
    ('except: [schedule]', 'main by schedule'),
    ('{only: [main], except: [main]}', 'main'), ('{only: [branches], except: [/^issue/]}', 'issue-7'),
])
def test_only_and_except_keep_a_job_out(keywords, where):
    assert not runs(keywords, where)


def runs(keywords, where):
    """Tell whether a job with these keywords is in a pipeline for `[tag ]NAME[ by SOURCE]`."""
    ref, _, source = where.removeprefix('tag ').partition(' by ')
    content = {'test': {'script': 'make', **mapping(keywords)}}
    return bool(compiled(content, ref=ref, tag=where.startswith('tag '), source=source or 'api').jobs)


@pytest.mark.parametrize('keyword', ['only', 'except'])
@pytest.mark.parametrize('text', ['["/*invalid/"]', '["/(/"]', '[{a: b}]', '[1.10]'])
def test_a_ref_that_can_never_match_is_refused(keyword, text):
    assert f': test:{keyword}' in complaint(f'{keyword}: {text}')


@pytest.mark.parametrize('keyword', ['only', 'except'])
@pytest.mark.parametrize('kind', ['kubernetes', 'branches'])
def test_conditions_that_there_are_not_are_refused_by_name(keyword, kind):
    assert complaint(f'{keyword}:\n  refs: [main]\n  {kind}: active\n').startswith(
        f'.gitlab-ci.yml:5:5: test:{keyword}:{kind} is ')


# -- defaults

INHERITED = {
    'image': ('one', 'two'),
    'services': ('[one]', '[{name: two, alias: db}]'),
    'before_script': ('[one]', '[two]'),
    'after_script': ('[one]', '[two]'),
    'cache': ('{paths: [one/]}', '[{key: b, paths: [two/]}]'),
    'artifacts': ('{paths: [one/]}', '{untracked: true}'),
    'tags': ('[one]', '[two, three]'),
    'timeout': ('1h', '2h'),
}
GLOBAL = [f'default: {{{keyword}: %s}}' for keyword in INHERITED] \
    + [f'{keyword}: %s' for keyword in ('image', 'services', 'before_script', 'after_script', 'cache')]


@pytest.mark.parametrize('place', GLOBAL)
def test_a_default_holds_for_each_job_until_it_says_otherwise(place):
    keyword = re.search(r'(\w+): %s', place)[1]
    first, second = INHERITED[keyword]
    assert job(before=place % first) == job(f'{keyword}: {first}') != job()
    assert job(f'{keyword}: {second}', before=place % first) == job(f'{keyword}: {second}')


@pytest.mark.parametrize('keyword', ['services', 'before_script', 'after_script', 'tags', 'cache'])
def test_an_empty_list_switches_a_default_off(keyword):
    assert list(getattr(job(f'{keyword}: []', before=f'default: {{{keyword}: {INHERITED[keyword][0]}}}'),
                        {'before_script': 'script', 'tags': 'tag_list'}.get(keyword, keyword))) \
        == (['make'] if keyword == 'before_script' else [])


def test_default_and_a_global_keyword_go_together_unless_both_say_the_same_thing():
    found = job(before='image: ruby\ndefault: {tags: [docker]}')
    assert (found.image, list(found.tag_list)) == ({'name': 'ruby'}, ['docker'])
    only, = refusal('image: ruby\ndefault: {image: python}\ntest: {script: make}')
    assert 'image' in only


@pytest.mark.parametrize('keyword', ['stage', 'script', 'when', 'variables', 'only', 'dependencies', 'allow_failure'])
def test_default_takes_only_what_jobs_inherit(keyword):
    only, = refusal(f'default:\n  {keyword}: [test]\ntest: {{script: make}}\n')
    assert only.startswith(f'.gitlab-ci.yml:2:3: default:{keyword} is a keyword that minici does not know here')


@pytest.mark.parametrize('fault', ['image: {name: ruby, nme: ruby}', 'default: {timeout: soon}', 'default: {tags: 3}'])
def test_a_fault_in_a_default_is_told_once_however_many_jobs_have_it_or_override_it(fault):
    assert len(refusal(f'{fault}\none: {{script: make}}\ntwo: {{script: make}}\n')) == 1
    assert len(refusal(f'{fault}\none: {{script: make, image: ruby, timeout: 1h, tags: [a]}}\n')) == 1


# -- hidden jobs, anchors, aliases, merge keys

def test_hidden_jobs_do_not_run_and_need_no_script():
    assert [found.name for found in compiled('''
        .template: {image: ruby, needs: [what is never run is not checked]}
        .list: [a, b]
        test: {script: make}
        ''').jobs] == ['test']


def test_anchors_stand_for_jobs_lists_lines_and_texts():
    one, two = compiled('''
        .setup: &setup [configure, autogen]
        .name: &name ruby
        one: &one
          image: *name
          script:
            - *setup
            - make
        two: *one
        ''').jobs
    assert list(one.script) == ['configure', 'autogen', 'make']
    assert one.image == {'name': 'ruby'}
    assert two == dataclasses.replace(one, name='two')


@pytest.mark.parametrize('lines, image', [
    ('<<: *base, image: own', 'own'), ('image: own, <<: *base', 'base'), ('<<: *other, <<: *base', 'base'),
    ('<<: *base, <<: *other', 'other'), ('<<: [*base, *other]', 'base'), ('image: own, <<: [*other, *base]', 'other'),
])
def test_a_merge_key_overrides_what_stands_before_it_and_not_what_comes_after(lines, image):
    found = compiled(f'''
        .base: &base {{image: base, script: base, variables: {{A: a}}}}
        .other: &other {{image: other}}
        test: {{script: base, variables: {{A: a}}, {lines}}}
        ''').jobs[0]
    assert (found.image, list(found.script), found.variables) == ({'name': image}, ['base'], {'A': 'a'})


def test_of_a_list_of_merged_mappings_the_earlier_wins():
    found = compiled('''
        .a: &a {image: a}
        .b: &b {image: b, tags: [b]}
        .c: &c {<<: *b, tags: [c], script: c}
        test:
          <<: [*a, *c]
        ''').jobs[0]
    assert (found.image, list(found.tag_list), list(found.script)) == ({'name': 'a'}, ['c'], ['c'])


def test_merge_keys_work_inside_keywords_too():
    assert compiled('''
        .variables: &common {A: a, B: b}
        test:
          script: make
          variables:
            <<: *common
            B: own
        ''').jobs[0].variables == {'A': 'a', 'B': 'own'}


def test_an_anchor_of_the_same_name_replaces_the_earlier_one_from_there_on():
    one, two = compiled('''
        .a: &image ruby
        one: {image: *image, script: make}
        .b: &image python
        two: {image: *image, script: make}
        ''').jobs
    assert (one.image, two.image) == ({'name': 'ruby'}, {'name': 'python'})


@pytest.mark.parametrize('content, place', [
    ('test: *nowhere\n', '1:7'),
    ('.a: &a [x]\ntest:\n  <<: *a\n  script: make\n', '1:5'),
    ('test:\n  <<: ruby\n  script: make\n', '2:7'),
    ('test: &t\n  script: make\n  image: *t\n', '1:7'),
    ('test: {script: &s [a, *s]}\n', '1:16'),
    ('test: &t\n  <<: *t\n', '1:7'),
])
def test_an_alias_of_nothing_of_itself_or_of_no_mapping_is_refused(content, place):
    only, = refusal(content)
    assert only.startswith(f'.gitlab-ci.yml:{place}: ')


def test_aliases_that_multiply_beyond_measure_are_refused():
    lines = ['.a0: &a0 [x, x, x, x, x, x, x, x, x, x]'] \
        + [f'.a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 10)}]' for n in range(1, 10)]
    only, = refusal('\n'.join([*lines, 'test: {script: *a9}']))
    assert re.match(r'\.gitlab-ci\.yml:\d+:\d+: ', only)


@pytest.mark.parametrize('content', [
    '.a: &a "{long}"\ntest:\n  script: [{aliases}]\n',
    'before_script: ["{long}"]\n{jobs}',
], ids=['aliases', 'jobs'])
def test_a_long_text_that_is_multiplied_beyond_measure_is_refused(content):
    assert refusal(content.format(long='x' * 500_000, aliases=', '.join(['*a'] * 1000),
                                  jobs=''.join(f'a{n}: {{script: x}}\n' for n in range(1000))))


@pytest.mark.parametrize('content', [
    'test: {script: make, timeout: "' + '1dand ' * 50 + '!"}',
    '.a0: [x]\n' + ''.join(f'.a{n}: [{", ".join([f"!reference [.a{n - 1}]"] * 10)}]\n' for n in range(1, 10))
    + 'test: {script: !reference [.a9]}',
    '.a0: {script: x}\n' + ''.join(f'.a{n}: {{extends: [{", ".join([f".a{n - 1}"] * 20)}]}}\n' for n in range(1, 10))
    + 'test: {extends: .a9, when: x}',
    'variables: {' + ', '.join(f'A{n}: "{f"$A{n - 1} " * 50}"' for n in range(1, 6)) + ', A0: x}\n'
    'test: {script: make, tags: ["$A5"], rules: [{if: $A5}]}',
    '{' + ', '.join(f'"job{n}": 0' for n in range(90_000)) + '}',
    json.dumps({f'a{n}': {'script': 'x', 'needs': [f'a{n - 1}'] if n else []} for n in range(8_000)})[:-1]
    + ', "last": {"script": "x", "needs": ["gone"]}}',
], ids=['duration', 'references', 'extends', 'variables', 'faults', 'needs'])
def test_what_multiplies_itself_is_refused_before_it_takes_time_or_memory(content):
    program = ('import contextlib, resource, sys, minici\n'
               'with contextlib.suppress(ValueError):\n'
               '    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n'
               'minici.compile_pipeline(sys.stdin.read(), ref="main")')
    done = subprocess.run([sys.executable, '-c', program], input=content, cwd=Path(minici.__file__).parent,
                          capture_output=True, text=True, timeout=120)
    assert 'minici.BadRequest' in done.stderr


# -- keywords it does not know

@pytest.mark.parametrize('content, place', [
    ('include: /other.yml\ntest: {script: make}\n', '1:1: include'),
    ('test: {script: make}\nretry: 2\n', '2:1: retry'),
    ('workflow:\n  rule: []\ntest: {script: make}\n', '2:3: workflow:rule'),
    ('default:\n  stage: build\ntest: {script: make}\n', '2:3: default:stage'),
    ('test:\n  script: make\n  scirpt: make\n', '3:3: test:scirpt'),
    ('test:\n  script: make\n  needed:\n', '3:3: test:needed'),
    ('test:\n  script: make\n  secrets: {A: b}\n', '3:3: test:secrets'),
    ('test:\n  script: make\n  artifacts:\n    paths: [a]\n    path: [a]\n', '5:5: test:artifacts:path'),
    ('test:\n  script: make\n  cache:\n    - paths: [a]\n    - paths: [b]\n      kee: c\n', '6:7: test:cache:1:kee'),
    ('test:\n  script: make\n  image: {name: ruby, nme: ruby}\n', '3:23: test:image:nme'),
    ('test:\n  script: make\n  image: {name: ruby, command: [irb]}\n', '3:23: test:image:command'),
    ('test:\n  script: make\n  image: {name: ruby, alias: irb}\n', '3:23: test:image:alias'),
    ('test:\n  script: make\n  services: [{name: db, ports: [80]}]\n', '3:25: test:services:0:ports'),
    ('test:\n  script: make\n  allow_failure: {exit_code: 1}\n', '3:19: test:allow_failure:exit_code'),
    ('test:\n  script: make\n  rules:\n    - if: $CI\n      then: x\n', '5:7: test:rules:0:then'),
])
def test_a_keyword_it_does_not_know_is_refused_by_name_line_and_column(content, place):
    assert refusal(content)[0].startswith(f'.gitlab-ci.yml:{place} ')


def test_what_it_does_know_instead_is_listed():
    assert 'it knows name, entrypoint' in complaint('image: {name: ruby, colour: red}')
    assert complaint('image: {name: ruby, nme: ruby}').endswith('; did you mean "name"?')


def test_what_stands_outside_jobs_must_be_a_job():
    assert refusal('test: make')[0].startswith('.gitlab-ci.yml:1:1: test must be a mapping: a job with a script')
    assert refusal('.hidden: {script: make}') == ['.gitlab-ci.yml:1:1: must have at least one job that is not hidden']


@pytest.mark.parametrize('name', ['', '"' + 'x' * 256 + '"'])
def test_a_job_needs_a_name_of_1_to_255_characters(name):
    only, = refusal(f'{name or chr(34) * 2}: {{script: make}}')
    assert only.startswith('.gitlab-ci.yml:1:1: ')
    assert compiled({'x' * 255: {'script': 'make'}}).jobs[0].name == 'x' * 255


# -- errors

def test_several_faults_are_told_at_once_each_with_its_line_and_column():
    assert {tuple(text.split(' ')[:2]) for text in refusal('''\
        stages: [build]
        compile:
          stage: build
          script: make
          when: sometimes
          retries: 2
        check:
          stage: test
          image: {entrypoint: [""]}
          script: [make: check]
        ''')} == {('.gitlab-ci.yml:5:3:', 'compile:when'), ('.gitlab-ci.yml:6:3:', 'compile:retries'),
                  ('.gitlab-ci.yml:8:3:', 'check:stage'), ('.gitlab-ci.yml:9:3:', 'check:image'),
                  ('.gitlab-ci.yml:10:12:', 'check:script:0')}


def test_of_very_many_faults_the_first_are_told_and_the_rest_counted():
    told = refusal(''.join(f'job{n}:\n  script: make\n  when: x\n' for n in range(50)))
    assert 1 < len(told) < 50
    assert all(text.startswith(f'.gitlab-ci.yml:{3 * n + 3}:3: job{n}:when ') for n, text in enumerate(told[:-1]))
    assert told[-1] == f'and {50 - len(told) + 1} more'


def test_a_fault_inside_an_anchor_is_told_once_where_it_is_written_however_many_jobs_have_it():
    assert [text.partition(' must')[0] for text in refusal('''\
        .base: &base
          script: make
          when: sometimes

        one:
          <<: *base
        two:
          <<: *base
          image: ruby
        ''')] == ['.gitlab-ci.yml:3:3: one:when']


@pytest.mark.parametrize('content, place', [
    ('test:\n\tscript: make\n', '2:1: .*tab|2:1: .*\\\\t'),
    ('test:\n  script: make\n  image: "ruby\n', '3:10: .*quoted scalar.*never closed'),
    ('test: {script: make\n', '2:1: .*flow mapping'),
    ('test:\n  script: make\n image: ruby\n', '3:2: .*'),
    ('invalid: yaml: test\n', '1:14: .*mapping values'),
    ('test: {script: make}\n---\nmore: {script: make}\n', '2:1: .*document'),
    ('test:\n  script: !reference [.a, script]\n', '2:11: .*!reference'),
    ('test:\n  script: !!python/object:os.system [make]\n', '2:11: .*python'),
    ('test:\n  script: make\n  variables: !!set {A}\n', '3:14: .*set'),
    ('? [a, b]\n: {script: make}\n', '1:3: .*key'),
])
def test_text_that_is_not_yaml_is_refused_with_line_and_column(content, place):
    only, = refusal(content)
    assert re.match(rf'\.gitlab-ci\.yml:({place})', only)


@pytest.mark.parametrize('value', ['!!bool maybe', '!!int ""', '!!int x', '!!float ""', '!!float x', '!!binary "?"',
                                   '0x' + 'f' * 5000, '9' * 5000, '"\\ud800"', '"\\udc00\\ud800"', '"a\0b"'])
@pytest.mark.parametrize('keyword', ['timeout', 'image', 'variables: {A', 'allow_failure: {exit_codes'])
def test_values_that_yaml_cannot_mean_are_refused(keyword, value):
    said = refusal(f'test:\n  script: make\n  {keyword}: {value}{"}" if "{" in keyword else ""}\n')
    assert said[0].startswith('.gitlab-ci.yml:')


@pytest.mark.parametrize('content', ['{"\\ud800": {"script": "make"}}', {'\ud800': {'script': 'make'}},
                                     {'test': {'script': ['\udc00']}}, {'test': {'script': 'make', 'stage': '\ud800'}}])
def test_half_a_character_is_refused(content):
    assert refusal(content)


@pytest.mark.parametrize('content', ['', '\n', '# nothing\n', '---\n', 'null', 'make', '42', '[]', '- test', b''])
def test_a_file_that_is_no_mapping_is_refused(content):
    assert refusal(content) == ['.gitlab-ci.yml:1:1: must be a mapping of jobs and keywords']


@pytest.mark.parametrize('content', ['{}', 'stages: [build]', {}])
def test_a_file_without_a_job_is_refused(content):
    assert 'must have at least one job that is not hidden' in refusal(content)[0]


def test_nesting_beyond_reason_is_refused():
    for opening in ('(', '!'):
        content = {'test': {'script': 'make', 'rules': [{'if': opening * 5000 + '$CI'}]}}
        assert 'test:rules:0:if ' in refusal(content)[0]
    assert '100 levels' in refusal('test: {script: ' + '[' * 200 + ']' * 200 + '}')[0]
    assert 'nest' in refusal('test: {script: ' + '[' * 5000 + ']' * 5000 + '}')[0]
    endless = {'script': []}
    endless['script'].append(endless['script'])
    assert refusal({'test': endless}) == ['.gitlab-ci.yml: is nested too deeply']


def test_the_name_of_the_file_stands_in_each_complaint():
    assert refusal('test: {script: make, when: x}', name='ci/other.yml')[0].startswith('ci/other.yml:1:22: test:when ')
    assert refusal('a: b: c', name='ci/other.yml')[0].startswith('ci/other.yml:1:5: ')


def test_a_mapping_is_refused_by_keyword_alone():
    assert refusal({'test': {'script': ['make'], 'when': 'sometimes'}})[0].startswith('test:when must be one of ')


# -- forms of content

@pytest.mark.parametrize('form', [
    lambda text: text.encode(), lambda text: ('\ufeff' + text).encode(), lambda text: text.replace('\n', '\r\n'),
    lambda text: '---\n' + text + '...\n', mapping, lambda text: json.dumps(mapping(text)),
    lambda text: json.dumps(mapping(text), indent='\t'), lambda text: json.dumps(mapping(text)).encode(),
    lambda text: json.dumps(mapping(text), ensure_ascii=False, indent=2),
], ids=['bytes', 'byte order mark', 'CRLF', 'document', 'mapping', 'JSON', 'JSON, tabs', 'JSON bytes', 'JSON UTF-8'])
def test_a_file_may_be_yaml_or_json_text_bytes_or_a_mapping(form):
    text = 'test:\n  image: ruby\n  script: [make, "echo naïve 😀"]\n  variables: {A: 1, B: true, C: null}\n'
    assert compiled(form(text)) == compiled(text)


def test_without_pyyaml_a_file_is_json_or_refused(monkeypatch):
    monkeypatch.setattr(minici, 'yaml', None)
    assert compiled('{"test": {"script": "make"}}').jobs[0].name == 'test'
    for content in ('test: {script: make}', '{"test": ', '{"test": ' + '9' * 5000 + '}'):
        only, = refusal(content)
        assert only.startswith('.gitlab-ci.yml: is not JSON: ')
        assert only.endswith('; reading YAML needs PyYAML: python -m pip install PyYAML')


@pytest.mark.parametrize('content', [b'test: {script: \xff}', 'test: {script: make}'.encode('utf-16'), b'\x80'])
def test_bytes_that_are_not_utf8_are_refused(content):
    assert refusal(content) == ['.gitlab-ci.yml: is not UTF-8 text']


# -- a whole file, and what is left of it

WHOLE = '''\
# a bit of everything
stages: [build, test, deploy]
workflow: {name: of $CI_COMMIT_BRANCH, rules: [{if: $CI_COMMIT_TAG, when: never}, {when: always}]}
default:
  image: ruby:3.1
  tags: [docker]
variables: {DEBUG: "1", COUNT: 3, EMPTY: , SHOWN: {value: a, description: b}}
before_script: [bundle install]
cache: &cache
  key: "$CI_COMMIT_REF_SLUG"
  paths: [vendor/]
.base: &base
  services: [{name: "postgres:15", alias: db}]
  timeout: 1h 30m
.lines: {script: [one, two]}
compile:
  <<: *base
  stage: build
  script:
    - make
    - |
      echo "two
      lines"
  artifacts: {paths: [out/], expire_in: 1 week, when: always, reports: {junit: a.xml}}
rspec 1/2:
  <<: [*base, {image: other}]
  script: rspec
  cache: {<<: *cache, policy: pull}
  dependencies: [compile]
  allow_failure: {exit_codes: [3, 4]}
  retry: {max: 2, when: [script_failure]}
lint:
  extends: [.lines, .base]
  needs: [{job: compile, artifacts: false}]
  script: [!reference [.lines, script], three]
  rules: [{if: '$DEBUG == "1" && ($A =~ /bc/i || $C != null)', when: delayed, start_in: 5 minutes}, {changes: [a/**]}]
  parallel: {matrix: [{OS: [a, b], ARCH: c}]}
deploy:
  stage: deploy
  script: [cap deploy, 'echo it''s done']
  when: manual
  only: [main, /^release-/i, tags]
  except: {refs: [schedules], variables: [$NO]}
'''
PIECES = [
    '', '\n', ' ', '  ', '\t', ':', ': ', '- ', '#', '&', '&base ', '<<: *cache', '{', '}', '[', ']', ',', '"', "'",
    '|', '>', '!', '? ', '---\n', '...\n', '.', '%', '@', '\\', '\x00', '\u2028', '😀', '\ud800', 'stages', 'script',
    'x' * 300]
VALUES = [
    '', '~', 'true', '0', '-1', '3', '3.5', '.inf', '0x1f', '1e9', '2001-01-01', '""', '"\\ud800"', '"\\ud83d\\ude00"',
    'build', '[]', '{}', '[build]', '[[a], b]', '[1, {a: b}]', '{a: b}', '[{a: b}]', '{<<: *base}', '*base', '[*base]',
    '*cache', '&base x', '/(/', '"$A =~ /(/"', '"(($A"', '[{if: $A}, 3]', '{matrix: 3}', '!!int ""', '!!binary aGk=',
    '!reference [.base]', '|\n   x']


def outcome(text):
    """Return the pipeline that a file makes, or the complaints about it."""
    try:
        return minici.compile_pipeline(text, ref='main')
    except minici.BadRequest as refused:
        return refused.detail['base']


def test_the_whole_file_compiles_before_it_is_mangled():
    assert [found.name for found in compiled(WHOLE).jobs] == [
        'compile', 'rspec 1/2', 'lint: [a, c]', 'lint: [b, c]', 'deploy']


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 12), st.sampled_from(PIECES)), max_size=2),
       st.lists(st.tuples(st.integers(0, 50), st.sampled_from(VALUES)), max_size=3))
def test_a_mangled_file_compiles_or_is_refused_and_nothing_else(edits, replacements):
    lines = WHOLE.splitlines(keepends=True)
    for number, value in replacements:
        lines[number % len(lines)] = re.sub(r'([:-] +)[^ ].*', lambda match, value=value: match[1] + value,
                                            lines[number % len(lines)], count=1)
    text = ''.join(lines)
    for start, length, piece in edits:
        text = text[:start] + piece + text[start + length:]
    result = outcome(text)
    if isinstance(result, list):
        assert result
        assert all(line.strip() for line in result)
        return
    for found in result.jobs:
        assert found.stage in result.stages
        assert found.script
        assert json.dumps(dataclasses.asdict(found), ensure_ascii=False, allow_nan=False).encode()
