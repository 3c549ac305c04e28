"""Rules: what decides whether a job or a pipeline runs, and how the decision is told."""

import textwrap

import pytest
from support import commit, git

import minici

SHA, BASE = 'a' * 40, 'b' * 40
VARIABLES = {'PRESENT': 'my variable', 'PATHLIKE': 'a/path/variable/value', 'FULL': '/a/full/path/variable/value',
             'EMPTY': '', 'TEXT': 'abcde', 'PATTERN': '/^ab.*/', 'OTHER_PATTERN': '/^at.*/', 'ONE': '1'}


class Tree:
    """A repository of file names, some of which differ from other commits."""

    def __init__(self, *files, **changed):
        self._files, self._changed = files, changed

    def file(self, sha, path):
        return None

    def files(self, sha):
        return list(self._files)

    def changes(self, base, sha):
        return self._changed.get('since_push' if base == BASE else base)


def compiled(content, where='main', variables=None, tree=None):
    """Return the pipeline for `[tag ]NAME[ by SOURCE]`."""
    ref, _, source = where.removeprefix('tag ').partition(' by ')
    tag, source = where.startswith('tag '), source or 'push'
    known = {'CI_PIPELINE_SOURCE': source, 'CI_DEFAULT_BRANCH': 'main', **(variables or {})}
    if source != 'merge_request_event':
        known['CI_COMMIT_TAG' if tag else 'CI_COMMIT_BRANCH'] = ref
    facts = {'ref': ref, 'tag': tag, 'source': source, 'sha': SHA, 'before_sha': BASE}
    return minici.compile_pipeline(textwrap.dedent(content), facts=facts, variables=known, repository=tree or Tree())


def job(keywords, *args, before='', **options):
    """Return the job `test` with these keywords, or None when it is left out."""
    body = textwrap.indent(textwrap.dedent(keywords), '  ')
    content = f'{textwrap.dedent(before)}\ntest:\n  script: make\n{body}\nother: {{script: make}}'
    spec = compiled(content, *args, **options)
    return next((found for found in spec.jobs if found.name == 'test'), None)


def holds(expression, variables=None):
    """Tell whether an expression lets a job in."""
    quoted = expression.replace("'", "''")
    return job(f"rules: [{{if: '{quoted}'}}]", variables=VARIABLES if variables is None else variables) is not None


def refusal(*args, **options):
    """Return the complaints with which a file is refused."""
    with pytest.raises(minici.BadRequest) as refused:
        job(*args, **options)
    return refused.value.problems


# -- expressions

@pytest.mark.parametrize('expression', [
    '$PRESENT', '$PRESENT == "my variable"', '"my variable" == $PRESENT', "$PRESENT == 'my variable'",
    '"" == $EMPTY', "$EMPTY == ''", '$UNDEFINED == null', 'null == $UNDEFINED', '$PRESENT != null', '$EMPTY != null',
    '$UNDEFINED != ""', '$PRESENT != $EMPTY', '$PRESENT == $PRESENT', '"text"', '$PRESENT=="my variable"',
    '$PRESENT =~ /var.*e$/', '$PRESENT =~ /VAR.*/i', '$PATHLIKE =~ /path\\/variable/', '$PRESENT =~ /^my/',
    '$FULL =~ /^\\/a\\/full\\/path\\/variable\\/value$/', '$PRESENT !~ /^var.*/', '$EMPTY !~ /var.*/',
    '$UNDEFINED !~ /var.*/', '$PRESENT =~ /\\w+ (variable|other)/', '"abc" =~ /bc/', '$ONE == "1"', '$PRESENT =~ /a|b/',
    '$EMPTY =~ /^$/', '$UNDEFINED =~ /^$/', '$UNDEFINED =~ /.*/',
])
def test_an_expression_is_true(expression):
    assert holds(expression)


@pytest.mark.parametrize('expression', [
    '$EMPTY', '$UNDEFINED', '""', 'null', '$PRESENT == null', '$EMPTY == null', '$UNDEFINED == ""',
    '$PRESENT != "my variable"', '"" != $EMPTY', '$UNDEFINED != null', '$PRESENT == "no match"',
    '$PRESENT =~ /^var.*/', '$EMPTY =~ /var.*/', '$UNDEFINED =~ /var.*/', '$PRESENT =~ /VAR.*/',
    '$PRESENT !~ /var.*e$/', '$PRESENT !~ /VAR.*/i', '$PRESENT == "MY VARIABLE"', '$PRESENT == "$PRESENT"',
    '$UNDEFINED !~ /^(stable)?$/',
])
def test_an_expression_is_false(expression):
    assert not holds(expression)


@pytest.mark.parametrize('expression, true', [
    ('$PRESENT && $PRESENT', True), ('$PRESENT && null', False), ('$UNDEFINED && $PRESENT', False),
    ('$PRESENT || $UNDEFINED', True), ('$UNDEFINED || $PRESENT', True), ('$UNDEFINED || null', False),
    ('$PRESENT && $EMPTY', False), ('$PRESENT && null || $EMPTY == ""', True),
    ('$EMPTY == "" || $PRESENT && null', True), ('($EMPTY == "" || $PRESENT) && null', False),
    ('($PRESENT)', True), ('(($PRESENT && null) || $EMPTY == "")', True), ('("string" || "test") == "string"', True),
    ('(null || ("test" == "string"))', False), ('("string" == ("test" && "string"))', True),
    ('("string" == ("test" || "string"))', False), ('("string" == "test" || "string")', True),
    ('$PRESENT =~ /my var/ && $EMPTY =~ /nope/', False), ('$PRESENT =~ /my var/ || $EMPTY =~ /nope/', True),
    ('$PRESENT && $ONE == "1" && $PATHLIKE =~ /path/', True), ('$UNDEFINED == null && $ONE != "1" || $TEXT', True),
])
def test_and_binds_tighter_than_or_and_parentheses_tighter_than_both(expression, true):
    assert holds(expression) is true


@pytest.mark.parametrize('expression, true', [
    ('$EMPTY && $PRESENT', True), ('$EMPTY && "string"', True), ('$EMPTY || $PRESENT', False),
    ('$EMPTY && null', False),
])
def test_an_empty_text_counts_as_true_between_and_and_or_but_not_as_the_result(expression, true):
    assert holds(expression) is true


@pytest.mark.parametrize('expression, true', [
    ('$TEXT =~ $PATTERN', True), ('$TEXT =~ $OTHER_PATTERN', False), ('$TEXT !~ $OTHER_PATTERN', True),
    ('$TEXT =~ "abcde"', True), ('$TEXT =~ $TEXT', True), ('$TEXT =~ $UNDEFINED', False), ('$TEXT !~ $UNDEFINED', True),
])
def test_what_a_text_is_matched_with_may_stand_in_a_variable(expression, true):
    assert holds(expression) is true


@pytest.mark.parametrize('expression, true', [
    ('$LINES =~ /ONE.TWO/is', True), ('$LINES =~ /one.two/', False), ('$LINES =~ /^two$/m', True),
    ('$LINES =~ /^two/', False), ('$LINES =~ /one.two/m', False), ('$LINES =~ /o+n/U', True),
])
def test_a_pattern_has_the_flags_i_s_m_and_u_of_re2(expression, true):
    assert holds(expression, {'LINES': 'one\ntwo'}) is true


@pytest.mark.parametrize('keywords, named', [
    ('rules: [{if: $LONG =~ /(a|a)*$/}]', "'(a|a)*$'"), ('only: ["/(m|m)*$/"]', "'(m|m)*$'"),
    (f'rules: [{{exists: ["{"{a,a}" * 30}"]}}]', repr('{a,a}' * 30)),
])
def test_a_pattern_that_is_searched_for_too_long_is_refused(monkeypatch, keywords, named):
    monkeypatch.setattr(minici, 'PATTERN_TIMEOUT', 0.05)
    with pytest.raises(minici.BadRequest) as caught:
        compiled(f'test:\n  script: x\n  {keywords}\n', 'm' * 40 + 'x', {'LONG': 'a' * 40 + 'b'}, Tree('a' * 30 + 'b'))
    assert caught.value.problems == [f'the pattern {named} takes too long: all patterns of a pipeline have '
                                     '0.05 seconds together']


def test_a_repetition_may_stand_in_another():
    assert holds('$LONG =~ /^(a+,?)+$/', {'LONG': 'aa,a,' * 50}) is True
    assert holds('$LONG =~ /^(a+)+$/', {'LONG': 'a' * 50 + 'b'}) is False


def test_the_variables_in_a_variable_are_not_replaced_before_it_is_compared():
    before = 'variables: {FULL_NAME: "${NAME}-b"}'
    assert not job('rules: [{if: $FULL_NAME == "a-b"}]', variables={'NAME': 'a'}, before=before)
    assert job("rules: [{if: '$FULL_NAME == \"${NAME}-b\"'}]", variables={'NAME': 'a'}, before=before)


@pytest.mark.parametrize('clause', ['changes', 'exists'])
def test_the_variables_in_a_variable_are_replaced_before_paths_are_looked_up(clause):
    tree = Tree('src/a.c', since_push=['src/a.c'])
    before = 'variables: {FOLDER: "$NAME", PLACE: "$FOLDER/*"}'
    assert job(f'rules: [{{{clause}: ["$PLACE"]}}]', variables={'NAME': 'src'}, before=before, tree=tree)
    assert not job(f'rules: [{{{clause}: ["$PLACE"]}}]', variables={'NAME': 'lib'}, before=before, tree=tree)


@pytest.mark.parametrize('expression', ['$A ==', '== "a"', '$A "b"', '($A', '$A)', '$A = "b"', '$A && || $B', 'main',
                                        '$A =~ /(/', '$A == "b', '&&', '$A == \'b"'])
def test_what_is_no_expression_is_refused_with_its_line(expression):
    quoted = expression.replace("'", "''")
    assert refusal(f"rules:\n  - if: '{quoted}'")[0].startswith('.gitlab-ci.yml:5:7: test:rules:0:if is not an ')


@pytest.mark.parametrize('keywords', ['rules: [{when: always}, {if: %s}]', 'rules: [{when: never}, {if: %s}]',
                                      'only: {refs: [nowhere], variables: [$A, %s]}'])
def test_what_is_no_expression_is_refused_wherever_it_stands(keywords):
    only, = refusal(keywords % '"$A =="')
    assert ' is not an expression: ' in only


# -- the first rule that fits

def test_the_first_rule_that_fits_decides_and_without_one_the_job_is_left_out():
    rules = '''
        rules:
          - {if: $CI_COMMIT_TAG, when: never}
          - {if: $CI_PIPELINE_SOURCE == "schedule", when: always}
          - {if: $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH, when: manual}
          - {if: $CI_PIPELINE_SOURCE == "merge_request_event"}
        '''
    cases = {'main': 'manual', 'main by schedule': 'always', 'fix by merge_request_event': 'on_success'}
    assert {where: job(rules, where).when for where in cases} == cases
    assert job(rules, 'tag v1') is None
    assert job(rules, 'fix') is None


def test_a_rule_without_a_condition_always_fits():
    assert job('rules: [{when: on_failure}]').when == 'on_failure'


@pytest.mark.parametrize('rules', ['[]', '{if: $A}', '[{}]'])
def test_rules_are_a_list_of_at_least_one(rules):
    assert 'test:rules' in refusal(f'rules: {rules}')[0]


def test_all_clauses_of_a_rule_must_hold():
    rules = 'rules: [{if: $GO, exists: [Makefile], changes: [src/*]}]'
    tree = Tree('Makefile', since_push=['src/a.c'])
    assert job(rules, variables={'GO': '1'}, tree=tree)
    assert job(rules, tree=tree) is None
    assert job(rules, variables={'GO': '1'}, tree=Tree(since_push=['src/a.c'])) is None
    assert job(rules, variables={'GO': '1'}, tree=Tree('Makefile', since_push=['doc/a.md'])) is None


def test_a_rule_sets_what_it_says_and_leaves_the_rest_to_the_job():
    found = job('''
        variables: {A: job, B: job}
        interruptible: false
        rules:
          - if: $CI_COMMIT_BRANCH
            when: delayed
            start_in: 5 minutes
            allow_failure: true
            interruptible: true
            needs: [other]
            variables: {A: rule, C: rule}
        ''')
    assert (found.when, found.start_in, found.allow_failure, found.interruptible) == ('delayed', 300, True, True)
    assert [need['name'] for need in found.needs] == ['other']
    assert found.variables == {'A': 'rule', 'B': 'job', 'C': 'rule'}
    assert job('when: always\nrules: [{if: $CI_COMMIT_BRANCH}]').when == 'always'


@pytest.mark.parametrize('keywords, allowed', [
    ('rules: [{when: manual}]', False), ('rules: [{when: manual, allow_failure: true}]', True),
    ('allow_failure: true\nrules: [{when: manual}]', True), ('when: manual\nrules: [{if: $CI_COMMIT_BRANCH}]', True),
    ('allow_failure: true\nrules: [{allow_failure: false}]', False), ('rules: [{when: on_success}]', False),
])
def test_a_manual_job_may_fail_unless_it_is_a_rule_that_makes_it_manual(keywords, allowed):
    assert job(keywords).allow_failure is allowed


@pytest.mark.parametrize('rule, place', [
    ('{if: $A, when: sometimes}', '4:20: test:rules:0:when'), ('{unless: $A}', '4:12: test:rules:0:unless'),
    ('{allow_failure: maybe}', '4:12: test:rules:0:allow_failure'), ('{changes: 5}', '4:12: test:rules:0:changes'),
    ('{when: delayed}', '4:11: test:rules:0'), ('{when: delayed, start_in: 8 days}', '4:11: test:rules:0'),
    ('{exists: {paths: [a], project: b}}', '4:33: test:rules:0:exists:project'),
])
def test_a_rule_of_another_kind_is_refused_with_its_place(rule, place):
    assert refusal(f'rules: [{rule}]')[0].startswith(f'.gitlab-ci.yml:{place} ')


@pytest.mark.parametrize('keyword', ['only', 'except'])
def test_rules_and_only_or_except_exclude_each_other(keyword):
    assert 'rules together with only or except' in refusal(f'rules: [{{if: $A}}]\n{keyword}: [main]')[0]


# -- changes and exists

@pytest.mark.parametrize('glob, path', [
    ('Dockerfile', 'Dockerfile'), ('src/*', 'src/a.c'), ('src/**/*', 'src/a.c'), ('src/**/*', 'src/x/y/a.c'),
    ('**/*.md', 'README.md'), ('**/*.md', 'doc/deep/a.md'), ('*.{rb,py,sh}', 'a.py'), ('src/**/*.{h,c}', 'src/x/a.h'),
    ('*', '.hidden'), ('**/*', '.github/x'), ('a?c', 'abc'), ('[ab].txt', 'b.txt'), ('[!a].txt', 'b.txt'),
    ('$DIRECTORY/*', 'from/variable'), ('a.c', 'a.c'), ('more+(x)/*', 'more+(x)/y'), ('src/**', 'src/a.c'),
    ('{doc/**/*.md,src/*}', 'doc/x/a.md'), ('**.c', 'a.c'),
])
def test_a_path_fits_a_glob(glob, path):
    rules = f'rules: [{{%s: ["{glob}"]}}]'
    variables = {'DIRECTORY': 'from'}
    assert job(rules % 'changes', tree=Tree(since_push=['unrelated', path]), variables=variables)
    assert job(rules % 'exists', tree=Tree('unrelated', path), variables=variables)


@pytest.mark.parametrize('glob, path', [
    ('Dockerfile', 'x/Dockerfile'), ('src/*', 'src/x/a.c'), ('*.md', 'doc/a.md'), ('a.c', 'abc'), ('src', 'src/a.c'),
    ('*.{rb,py}', 'a.sh'), ('src/**/*', 'lib/a.c'), ('a?c', 'a/c'), ('[!a].txt', 'a.txt'), ('readme', 'README'),
    ('src/**', 'src/x/a.c'), ('**', 'src/a.c'), ('doc/**.md', 'doc/x/a.md'), ('x**/a.c', 'x/y/a.c'),
    ('/Dockerfile', 'Dockerfile'), ('$UNDEFINED/Dockerfile', 'Dockerfile'),
])
def test_a_path_does_not_fit_a_glob(glob, path):
    rules = f'rules: [{{%s: ["{glob}"]}}]'
    assert job(rules % 'changes', tree=Tree(since_push=[path])) is None
    assert job(rules % 'exists', tree=Tree(path)) is None


@pytest.mark.parametrize('glob', ['{' * 3000, '{a,' * 3000, '[' * 3000])
def test_a_glob_that_opens_beyond_measure_fits_nothing_and_is_no_error(glob):
    assert job(f'rules: [{{exists: ["{glob}"]}}]', tree=Tree('a')) is None


def test_changes_hold_when_there_is_nothing_to_compare_with_and_not_when_nothing_changed():
    assert job('rules: [{changes: [a]}]', tree=Tree(since_push=None))
    assert job('rules: [{changes: [a]}]', tree=Tree(since_push=[])) is None
    assert job('rules: [{changes: {paths: [a]}}]', tree=Tree(since_push=['a']))


@pytest.mark.parametrize('base', ['stable', 'refs/heads/stable', '$BASE', '"refs/heads/$BASE"'])
def test_changes_are_compared_to_the_ref_that_is_named(base):
    rules = f'rules: [{{changes: {{paths: [a], compare_to: {base}}}}}]'
    assert job(rules, tree=Tree(since_push=[], stable=['a']), variables={'BASE': 'stable'})
    assert job(rules, tree=Tree(since_push=['a'], stable=['b']), variables={'BASE': 'stable'}) is None


# -- workflow

WORKFLOW = '''
    variables: {LABEL: usual, KEPT: global}
    workflow:
      name: 'Build of $LABEL'
      auto_cancel: {on_new_commit: none}
      rules:
        - {if: $CI_COMMIT_TAG, variables: {LABEL: tag $CI_COMMIT_TAG}}
        - {if: $CI_PIPELINE_SOURCE == "merge_request_event", when: never}
        - {if: $CI_COMMIT_BRANCH == "next", auto_cancel: {on_new_commit: interruptible}}
        - {when: always}
    test: {script: make, rules: [{if: $LABEL == "usual"}]}
    any: {script: make}
    '''


def test_workflow_rules_decide_about_the_whole_pipeline():
    assert [found.name for found in compiled(WORKFLOW).jobs] == ['test', 'any']
    assert not compiled(WORKFLOW, 'fix by merge_request_event').jobs


def test_variables_of_a_workflow_rule_reach_jobs_their_rules_and_the_name():
    spec = compiled(WORKFLOW, 'tag v1')
    assert [found.name for found in spec.jobs] == ['any']
    assert spec.jobs[0].variables == {'LABEL': 'tag $CI_COMMIT_TAG', 'KEPT': 'global'}
    assert spec.name == 'Build of tag v1'
    assert compiled(WORKFLOW).name == 'Build of usual'


def test_a_workflow_rule_may_change_what_is_canceled_for_a_new_commit():
    assert compiled(WORKFLOW).auto_cancel == 'none'
    assert compiled(WORKFLOW, 'next').auto_cancel == 'interruptible'
    assert compiled('test: {script: make}').auto_cancel == 'conservative'
    for wrong in ('5', '{on_new_commit: sometimes}', '{on_commit: none}'):
        with pytest.raises(minici.BadRequest, match='workflow:rules:0:auto_cancel'):
            compiled(f'workflow: {{rules: [{{auto_cancel: {wrong}}}]}}\ntest: {{script: make}}')


def test_workflow_without_a_rule_that_fits_makes_no_pipeline():
    assert not compiled('workflow: {rules: [{if: $NEVER}]}\ntest: {script: make}').jobs


# -- only and except

@pytest.mark.parametrize('keywords, runs', [
    ('only: {variables: [$GO, $STOP]}', True), ('only: {variables: [$STOP]}', False),
    ('except: {variables: [$GO]}', False), ('except: {variables: [$STOP, $GO == "2"]}', True),
    ('only: {refs: [main], variables: [$STOP]}', False), ('only: {refs: [main], variables: [$GO]}', True),
    ('except: {refs: [main], variables: [$STOP]}', False), ('except: {refs: [fix], variables: [$GO]}', False),
    ('except: {refs: [fix], variables: [$STOP]}', True),
    ('only: {changes: [src/*]}', True), ('only: {changes: [doc/*]}', False), ('except: {changes: [src/*]}', False),
    ('except: {changes: [doc/*]}', True), ('only: {refs: [main], changes: [doc/*]}', False),
    ('except: {refs: [fix], changes: [src/*]}', False),
])
def test_only_wants_a_member_of_each_kind_and_except_a_member_of_any(keywords, runs):
    tree = Tree(since_push=['src/a.c'])
    assert (job(keywords, variables={'GO': '1', 'STOP': ''}, tree=tree) is not None) is runs


@pytest.mark.parametrize('keywords, runs', [
    ('only: [merge_requests]', True), ('only: [main]', False), ('only: [/.*/]', False), ('', False),
    ('only: {variables: [$GO]}', False), ('only: {changes: [src/*]}', False), ('except: [tags]', False),
    ('only: {refs: [merge_requests], variables: [$GO]}', True), ('only: [branches, merge_requests]', True),
])
def test_names_and_patterns_are_of_branches_and_tags_not_of_merge_requests(keywords, runs):
    found = job(keywords, 'main by merge_request_event', variables={'GO': '1'}, tree=Tree(since_push=['src/a']))
    assert (found is not None) is runs


def test_expressions_of_only_are_refused_with_their_line():
    assert refusal('only:\n  variables: [$A ==]')[0].startswith('.gitlab-ci.yml:5:17: test:only:variables:0 is ')


# -- which rule decided

def test_the_pipeline_tells_which_rule_decided_about_each_job():
    spec = compiled('''
        free: {script: make}
        kept:
          script: make
          rules:
            - if: $CI_COMMIT_TAG
            - if: $CI_COMMIT_BRANCH
        barred: {script: make, rules: [{if: $CI_COMMIT_BRANCH, when: never}]}
        unmet: {script: make, rules: [{if: $CI_COMMIT_TAG}]}
        old: {script: make, only: [tags]}
        each: {script: make, parallel: {matrix: [{A: [b, c]}]}, rules: [{if: $A == "b"}]}
        started: {trigger: group/other}
        ''')
    assert spec.decisions == {
        'free': 'no rules', 'kept': 'rules:1 (line 7): $CI_COMMIT_BRANCH',
        'barred': 'left out: rules:0 (line 8): $CI_COMMIT_BRANCH', 'unmet': 'left out: no rule fits',
        'old': 'left out by only or except', 'each: [b]': 'rules:0 (line 11): $A == "b"',
        'each: [c]': 'left out: no rule fits',
        'started': 'no rules'}


PLANNED = '''
deploy: {stage: deploy, script: make, needs: [check], rules: [{if: $CI_COMMIT_TAG}, {if: $FORCE, when: manual}]}
check: {stage: test, script: make}
nightly: {stage: build, script: make, rules: [{if: $CI_PIPELINE_SOURCE == "schedule"}]}
review: {stage: build, script: make, rules: [{if: $CI_MERGE_REQUEST_IID}]}
branch: {stage: build, script: make, rules: [{if: $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH}]}
'''


@pytest.mark.parametrize('options, jobs', [
    ([], ['build: branch', 'test: check']),
    (['--ref', 'fix'], ['test: check']),
    (['--ref', 'v1', '--tag'], ['test: check', 'deploy: deploy']),
    (['--source', 'schedule'], ['build: nightly', 'build: branch', 'test: check']),
    (['--source', 'merge_request_event', '--ref', 'fix'], ['build: review']),
    (['--variable', 'FORCE=1'], ['build: branch', 'test: check', 'deploy: deploy']),
])
def test_lint_plans_the_jobs_of_a_ref_source_and_variables_in_order(options, jobs, tmp_path, capsys):
    content = PLANNED.replace(', needs: [check]', '') if 'merge_request_event' in options else PLANNED
    (tmp_path / 'ci.yml').write_text(content)
    assert minici.main(['lint', str(tmp_path / 'ci.yml'), '--plan', *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(' (')[0] for line in lines if not line.startswith('-')] == jobs


def test_a_plan_names_when_and_needs_and_the_rule_and_what_is_left_out(tmp_path, capsys):
    (tmp_path / 'ci.yml').write_text(PLANNED)
    minici.main(['lint', str(tmp_path / 'ci.yml'), '--plan', '--variable', 'FORCE=1'])
    lines = capsys.readouterr().out.splitlines()
    assert 'deploy: deploy (manual, needs check; rules:1 (line 2): $FORCE)' in lines
    assert 'test: check (on_success; no rules)' in lines
    assert '-: nightly (left out: no rule fits)' in lines


def test_a_plan_tells_the_clause_that_decided_and_its_file(tmp_path, capsys):
    (tmp_path / 'ci.yml').write_text('include: more.yml\ntest: {script: x, rules: [{changes: [a]}]}\n')
    (tmp_path / 'more.yml').write_text('\nother: {script: x, rules: [{if: $CI_COMMIT_BRANCH}]}\ndown: {trigger: a/b}\n')
    assert minici.main(['lint', str(tmp_path / 'ci.yml'), '--plan']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'test: test (on_success; rules:0 changes: assumed true (line 2))' in lines
    assert 'test: other (on_success; rules:0 (more.yml, line 2): $CI_COMMIT_BRANCH)' in lines
    assert 'test: down (on_success, starts a/b; no rules)' in lines


def test_a_plan_says_why_a_job_without_rules_is_not_in_a_merge_request_pipeline(tmp_path, capsys):
    (tmp_path / 'ci.yml').write_text('test: {script: x}\nmr: {script: x, rules: [{when: always}]}\n')
    assert minici.main(['lint', str(tmp_path / 'ci.yml'), '--plan', '--source', 'merge_request_event']) == 0
    assert '-: test (left out: without rules a job runs for branches and tags only)' in capsys.readouterr().out


def test_a_plan_without_jobs_fails_and_says_why(tmp_path, capsys):
    (tmp_path / 'ci.yml').write_text('workflow: {rules: [{if: $CI_COMMIT_TAG}]}\ntest: {script: x}\n')
    assert minici.main(['lint', str(tmp_path / 'ci.yml'), '--plan']) == 1
    assert 'workflow:rules want no pipeline' in capsys.readouterr().err


def test_lint_refuses_a_source_that_there_is_not(tmp_path, capsys):
    with pytest.raises(SystemExit):
        minici.main(['lint', str(tmp_path / 'ci.yml'), '--source', 'shcedule'])
    assert 'did you mean "schedule"?' in capsys.readouterr().err


def test_lint_takes_the_default_branch_from_git(tmp_path, capsys):
    commit(tmp_path, **{'.gitlab-ci.yml': 'test: {script: x, rules: [{if: $CI_COMMIT_BRANCH == "trunk"}]}\n'})
    git(tmp_path, 'branch', '-m', 'trunk')
    assert minici.main(['lint', str(tmp_path / '.gitlab-ci.yml'), '--plan']) == 0
    assert 'test: test (on_success' in capsys.readouterr().out


def test_lint_takes_inputs_and_warns_of_tokens_that_will_be_missing(tmp_path, capsys):
    (tmp_path / 'ci.yml').write_text('spec: {inputs: {name: {}}}\n---\n'
                                     '"$[[ inputs.name ]]": {script: x, id_tokens: {TOKEN: {aud: y}}}\n')
    assert minici.main(['lint', str(tmp_path / 'ci.yml'), '--input', 'name=mine']) == 0
    printed = capsys.readouterr()
    assert printed.out == 'test: mine\n'
    assert 'the variable TOKEN will be missing' in printed.err


def test_lint_prints_every_complaint_and_fails(tmp_path, capsys):
    file = tmp_path / 'ci.yml'
    file.write_text('test:\n  script: make\n  rules: [{if: $A ==}]\nother: {script: make, colour: red}\n')
    assert minici.main(['lint', str(file)]) == 1
    told = capsys.readouterr().err
    assert f'{file}:3:12: test:rules:0:if ' in told
    assert f'{file}:4:23: other:colour ' in told
