"""Included files: which they are, how they are put together, and how a fault in one is told."""

import textwrap

import pytest
from support import commit, git

import minici


def compiled(content, files=None, tmp_path=None, **options):
    """Return the pipeline of a file beside which there are other `files`, mapped by path."""
    for path, text in (files or {}).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(textwrap.dedent(text))
    repository = minici.Directory(tmp_path) if tmp_path else None
    return minici.compile_pipeline(textwrap.dedent(content), repository=repository, **options)


def names(*args, **options):
    """Return the names of the jobs of a pipeline."""
    return [job.name for job in compiled(*args, **options).jobs]


def refusal(*args, **options):
    """Return the complaints with which a file is refused."""
    with pytest.raises(minici.BadRequest) as refused:
        compiled(*args, **options)
    return refused.value.problems


JOB = '{script: make}'
ONE = {'ci/one.yml': f'one: {JOB}', 'ci/two.yml': f'two: {JOB}'}


@pytest.mark.parametrize('include, included', [
    ('ci/one.yml', {'one'}), ('/ci/one.yml', {'one'}), ('{local: ci/one.yml}', {'one'}),
    ('{local: /ci/one.yml}', {'one'}), ('[ci/one.yml, {local: ci/two.yml}]', {'one', 'two'}),
    ('[{local: ci/one.yml}]', {'one'}), ('[]', set()), ('', set()), ('$FOLDER/one.yml', {'one'}),
    ('{local: "${FOLDER}/two.yml"}', {'two'}),
])
def test_include_is_a_path_a_mapping_or_a_list_of_them(include, included, tmp_path):
    found = names(f'include: {include}\ntest: {JOB}', ONE, tmp_path, variables={'FOLDER': 'ci'})
    assert set(found) == {'test'} | included


@pytest.mark.parametrize('pattern, included', [
    ('ci/*.yml', {'top'}), ('ci/**.yml', {'top', 'deep', 'deeper'}), ('ci/**/*.yml', {'deep', 'deeper'}),
    ('ci/*/*.yml', {'deep'}), ('ci/*.yaml', {'other'}), ('**/deep*.yml', {'deep', 'deeper'}), ('none/*.yml', set()),
])
def test_one_star_stays_in_a_folder_and_two_reach_into_those_below(pattern, included, tmp_path):
    files = {path: f'{name}: {JOB}' for path, name in (
        ('ci/top.yml', 'top'), ('ci/x/deep.yml', 'deep'), ('ci/x/y/deeper.yml', 'deeper'), ('ci/other.yaml', 'other'))}
    assert set(names(f'include: "{pattern}"\ntest: {JOB}', files, tmp_path)) == {'test'} | included


def test_a_pattern_includes_nothing_where_there_are_no_files():
    spec = minici.compile_pipeline(f'include: "**"\ntest: {JOB}')
    assert [job.name for job in spec.jobs] == ['test']


def test_included_files_include_others_and_one_that_comes_round_again_is_read_once(tmp_path):
    files = {'a.yml': f'include: [b.yml, c.yml]\na: {JOB}', 'b.yml': f'include: [c.yml, a.yml]\nb: {JOB}',
             'c.yml': f'c: {JOB}'}
    assert set(names(f'include: a.yml\ntest: {JOB}', files, tmp_path)) == {'test', 'a', 'b', 'c'}


def test_the_file_itself_wins_over_what_it_includes_and_the_later_include_over_the_earlier(tmp_path):
    files = {
        'a.yml': '''
            variables: {LEVEL: a, A: a}
            stages: [a, shared]
            default: {image: a, tags: [a]}
            test: {stage: a, script: [a], variables: {X: a, Y: a, Z: a}}
            ''',
        'b.yml': '''
            variables: {LEVEL: b, B: b}
            stages: [b, shared]
            test: {stage: b, script: [b, b], variables: {Y: b, Z: b}}
            '''}
    spec = compiled('''
        include: [a.yml, b.yml]
        variables: {LEVEL: root}
        default: {tags: [root]}
        test: {variables: {Z: root}}
        ''', files, tmp_path)
    job, = spec.jobs
    assert list(spec.stages) == ['.pre', 'b', 'shared', '.post']
    assert list(job.script) == ['b', 'b']
    assert job.image == {'name': 'a'}
    assert list(job.tag_list) == ['root']
    assert job.variables == {'LEVEL': 'root', 'A': 'a', 'B': 'b', 'X': 'a', 'Y': 'b', 'Z': 'root'}


def test_jobs_extend_and_refer_to_those_of_other_files_in_both_directions(tmp_path):
    files = {'base.yml': '''
        .base: {image: ruby, script: [base]}
        up: {extends: .root, script: [!reference [.base, script]]}
        '''}
    jobs = {job.name: job for job in compiled('''
        include: base.yml
        .root: {image: root}
        down: {extends: .base, script: [!reference [.base, script], more]}
        ''', files, tmp_path).jobs}
    assert jobs['down'].image == {'name': 'ruby'}
    assert list(jobs['down'].script) == ['base', 'more']
    assert jobs['up'].image == {'name': 'root'}
    assert list(jobs['up'].script) == ['base']


@pytest.mark.parametrize('rules, included', [
    ('[{if: $CI_COMMIT_TAG}]', False), ('[{if: $CI_COMMIT_BRANCH == "main"}]', True), ('[{when: never}]', False),
    ('[{if: $CI_COMMIT_BRANCH, when: never}, {when: always}]', False), ('[{exists: [ci/two.yml]}]', True),
    ('[{exists: [ci/three.yml]}]', False), ('[{changes: [ci/one.yml]}]', True), ('[{if: $OPTION == "on"}]', True),
])
def test_rules_decide_whether_a_file_is_included(rules, included, tmp_path):
    found = names(f'include: [{{local: ci/one.yml, rules: {rules}}}]\ntest: {JOB}', ONE, tmp_path,
                  variables={'CI_COMMIT_BRANCH': 'main', 'OPTION': 'on'})
    assert ('one' in found) is included


@pytest.mark.parametrize('include, place', [
    ('missing.yml', '1:1: include'), ('{local: missing.yml}', '1:1: include'),
    ('\n  - ci/one.yml\n  - missing.yml', '3:5: include:1'), ('\n  - local: missing.yml', '2:5: include:0'),
])
def test_a_file_that_is_not_there_is_named_with_the_line_that_includes_it(include, place, tmp_path):
    only, = refusal(f'include: {include}\ntest: {JOB}', ONE, tmp_path)
    assert only.startswith(f'.gitlab-ci.yml:{place} ')
    assert 'missing.yml' in only


@pytest.mark.parametrize('path', ['../outside.yml', 'ci/../../outside.yml', '/../outside.yml', 'ci', ''])
def test_nothing_outside_the_repository_is_read(path, tmp_path):
    (tmp_path / 'outside.yml').write_text(f'outside: {JOB}')
    (tmp_path / 'inside').mkdir()
    with pytest.raises(minici.BadRequest):
        compiled(f'include: {{local: "{path}"}}\ntest: {JOB}', ONE, tmp_path / 'inside')


@pytest.mark.parametrize('include, place', [
    ('https://example.com/ci.yml', '1:1: include'), ('http://example.com/ci.yml', '1:1: include'),
    ('{remote: https://example.com/ci.yml}', '1:11: include:remote'),
    ('{template: Python.gitlab-ci.yml}', '1:11: include:template'),
    ('{component: example.com/a/b@1}', '1:11: include:component'),
    ('{project: group/ci, file: /ci.yml, ref: main}', '1:11: include:project'),
    ('\n  - ci/one.yml\n  - template: Python.gitlab-ci.yml', '3:5: include:1:template'),
    ('{local: ci/one.yml, inputs: {a: b}}', '1:30: include:inputs'),
    ('{locale: ci/one.yml}', '1:11: include:locale'), ('{rules: [{when: always}]}', '1:1: include'),
    ('[5, ci/one.yml]', '1:11: include:0'),
])
def test_other_kinds_of_include_are_refused_by_name_and_line(include, place, tmp_path):
    assert refusal(f'include: {include}\ntest: {JOB}', ONE, tmp_path)[0].startswith(f'.gitlab-ci.yml:{place} ')


@pytest.mark.parametrize('text, place', [
    ('one:\n  script: make\n  scirpt: make\n', 'ci/one.yml:3:3: one:scirpt '),
    ('one:\n  script: make\n  extends: .none\n', 'ci/one.yml:3:3: one:extends '),
    ('one: {script: make}\n.two:\n  - *none\n', 'ci/one.yml:3:5: '),
    ('- one\n', 'ci/one.yml:1:1: '),
    ('one:\n  script: [make]\n  needs: [nothing]\n', 'ci/one.yml:3:11: one:needs:0 '),
    ('include: gone.yml\none: {script: make}\n', 'ci/one.yml:1:1: include '),
    ('one:\n  script:\n    - !reference [.none, script]\n', 'ci/one.yml:3:7: '),
])
def test_a_fault_in_an_included_file_is_told_with_its_name_and_line(text, place, tmp_path):
    assert refusal(f'include: ci/one.yml\ntest: {JOB}', {'ci/one.yml': text}, tmp_path)[0].startswith(place)


def test_an_override_of_an_included_job_keeps_the_places_of_both_files(tmp_path):
    files = {'ci/one.yml': 'one:\n  script: make\n  timeout: soon\n'}
    problems = refusal('include: ci/one.yml\none:\n  retry: 7\n', files, tmp_path)
    assert sorted(problem.partition(' ')[0] for problem in problems) == ['.gitlab-ci.yml:3:3:', 'ci/one.yml:3:3:']


def test_too_many_files_are_refused(tmp_path):
    files = {f'ci/{number}.yml': f'job{number}: {JOB}' for number in range(160)}
    assert 'more than 150 files' in refusal(f'include: ci/*.yml\ntest: {JOB}', files, tmp_path)[0]


# -- through a repository

@pytest.fixture
def repository(tmp_path):
    """A git repository whose pipeline is made of three files; return what commits to it."""
    root = tmp_path / 'project'

    def change(**files):
        return commit(root, **{name.replace('_yml', '.yml'): textwrap.dedent(text) for name, text in files.items()})
    change.url = f'file://{root}'
    return change


ROOT = '''
    include: [{local: /ci/*.yml}]
    test: {extends: .base, script: make}
    '''


def test_a_pipeline_is_made_of_the_files_of_its_commit(ci, repository):
    first = repository(**{'.gitlab-ci_yml': ROOT, 'ci__base_yml': '.base: {tags: [old]}'})
    repository(ci__base_yml='.base: {tags: [new]}', ci__more_yml=f'more: {JOB}')
    project = ci.create_project('demo', import_url=repository.url)
    jobs = ci.list_jobs(pipeline=ci.create_pipeline(project, 'main'))
    assert {job['name'] for job in jobs} == {'test', 'more'}
    before = ci.list_jobs(pipeline=ci.create_pipeline(project, 'main', sha=first))
    assert [job['name'] for job in before] == ['test']


def test_a_fault_in_an_included_file_makes_no_pipeline(ci, repository):
    repository(**{'.gitlab-ci_yml': ROOT, 'ci__base_yml': '.base:\n  tags: [old]\n  tgas: [old]\n'})
    project = ci.create_project('demo', import_url=repository.url)
    with pytest.raises(minici.BadRequest) as refused:
        ci.create_pipeline(project, 'main')
    assert refused.value.problems[0].startswith('ci/base.yml:3:3: test:tgas ')
    assert ci.list_pipelines(project)[1] == 0


def test_changes_since_the_push_and_since_a_branch_decide_over_jobs_and_includes(ci, repository):
    rules = f'''
        include: [{{local: ci/docs.yml, rules: [{{changes: [doc/*]}}]}}]
        code: {{script: make, rules: [{{changes: [src/*]}}]}}
        since: {{script: make, rules: [{{changes: {{paths: [src/*], compare_to: refs/heads/start}}}}]}}
        always: {JOB}
        '''
    first = repository(**{'.gitlab-ci_yml': rules, 'ci__docs_yml': f'docs: {JOB}'})
    git(repository.url.removeprefix('file://'), 'branch', 'start')
    second = repository(src__a='1')
    repository(doc__a='1')
    project = ci.create_project('demo', import_url=repository.url)

    def jobs(sha, before):
        pipeline = ci.create_pipeline(project, 'main', sha=sha, before_sha=before)
        return {job['name'] for job in ci.list_jobs(pipeline=pipeline)}
    assert jobs(second, first) == {'code', 'since', 'always'}
    assert jobs(None, second) == {'docs', 'since', 'always'}
    assert jobs(None, None) == {'code', 'docs', 'since', 'always'}
