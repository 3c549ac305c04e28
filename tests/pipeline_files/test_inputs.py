"""Inputs: `spec:inputs` of a pipeline file, and what its text says with them."""

import textwrap

import pytest
from support import SHA

import minici

HEADER = '''\
spec:
  inputs:
    name: {description: of the job}
    count: {type: number, default: 2}
    quick: {type: boolean, default: false}
    tags: {type: array, default: [a, b]}
    level: {options: [low, high], default: low}
    version: {regex: '^v\\d+$', default: v1}
---
'''


def compiled(body, **inputs):
    """Return the pipeline of a file with HEADER, its other lines and these inputs."""
    return minici.compile_pipeline(HEADER + textwrap.dedent(body), inputs=inputs)


def script(line, **inputs):
    """Return the script of a job of one line."""
    return compiled(f'test:\n  script: [\'{line}\']\n', **{'name': 'test', **inputs}).jobs[0].script[0]


def refusal(body='test: {script: make}\n', header=HEADER, **inputs):
    """Return what a file is refused for with these inputs."""
    with pytest.raises(minici.BadRequest) as caught:
        minici.compile_pipeline(header + body, inputs=inputs)
    return '; '.join(caught.value.problems)


def test_inputs_are_put_into_the_text_wherever_they_stand():
    spec = compiled('''
        "$[[ inputs.name ]] job":
          script: make -j$[[ inputs.count ]]
          interruptible: $[[ inputs.quick ]]
          tags: $[[ inputs.tags ]]
          parallel: $[[ inputs.count ]]
        ''', name='my', quick=True)
    assert [job.name for job in spec.jobs] == ['my job 1/2', 'my job 2/2']
    assert spec.jobs[0].script == ['make -j2']
    assert spec.jobs[0].interruptible is True
    assert spec.jobs[0].tag_list == ['a', 'b']


@pytest.mark.parametrize('block, text', [
    ('$[[ inputs.name | truncate(1,2) ]]', 'es'), ('$[[inputs.name|truncate(0, 9)]]', 'test'),
    ('$[[ inputs.level ]]', 'low'), ('$[[ inputs.quick ]]', 'false'), ('$[[ inputs.count ]]', '2'),
    ('$[[ inputs.tags ]]', '["a", "b"]'), ('$[[ matrix.OS ]]', '$[[ matrix.OS ]]'),
    ('$[ inputs.name ]', '$[ inputs.name ]'),
])
def test_a_block_stands_for_a_value_and_what_functions_make_of_it(block, text):
    assert script(block) == text


def test_expand_vars_replaces_variables_and_posix_escape_quotes():
    assert script('$[[ inputs.name | expand_vars ]]', name='of $CI_COMMIT_REF_NAME $NONE') == 'of main $NONE'
    assert script('$[[ inputs.name | posix_escape ]]', name='a $b;c') == 'a\\ \\$b\\;c'


@pytest.mark.parametrize('inputs, told', [
    ({}, 'must give the input name'),
    ({'name': 'a', 'nmae': 'b'}, 'gives the input nmae, which the file does not have; did you mean "name"?'),
    ({'name': 'a', 'count': 'many'}, 'not a number'), ({'name': 'a', 'count': True}, 'not a number'),
    ({'name': 'a', 'quick': 'maybe'}, 'not a boolean'), ({'name': 'a', 'tags': 'x'}, 'not an array'),
    ({'name': 'a', 'level': ''}, 'none of its options'),
    ({'name': 'a', 'level': 'medium'}, 'none of its options: low, high'),
    ({'name': 'a', 'version': '2'}, 'does not match ^v\\d+$'),
])
def test_inputs_are_what_the_file_says_they_are(inputs, told):
    assert told in refusal(**inputs)


@pytest.mark.parametrize('declared, told', [
    ('{type: number, default: x}', 'default of the input one that is not a number'),
    ('{options: [a, b], default: c}', 'default of the input one that is none of its options: a, b'),
    ('{regex: "^v", default: w}', 'default of the input one that does not match ^v'),
    ('{type: boolean, options: [true], default: true}', 'cannot be given for a boolean'),
    ('{type: number, regex: "^1", default: 1}', 'can be given for a string only'),
    ('{options: yes}', 'must be a list'), (f'{{options: {list(range(51))}}}', 'has 51 options; 50 are allowed'),
    ('{type: array, options: [a], default: [a, b]}', 'none of its options: a'),
    ('{typ: array}', 'did you mean "type"?'), ('{type: list}', 'must be one of string, number, boolean, array'),
])
def test_what_a_file_says_of_an_input_fits_together_even_when_a_value_is_given(declared, told):
    assert told in refusal(header=f'spec: {{inputs: {{one: {declared}}}}}\n---\n', one='v')


def test_a_string_may_be_given_as_any_scalar_and_a_list_of_options_takes_each_of_its_members():
    header = 'spec: {inputs: {one: {options: [1, 2.5, yes]}, two: {type: array, options: [a, b, c]}}}\n---\n'
    body = 'test: {script: "$[[ inputs.one ]]", tags: $[[ inputs.two ]]}'
    for given, text in ((1, '1'), ('2.5', '2.5'), (True, 'true')):
        job = minici.compile_pipeline(header + body, inputs={'one': given, 'two': ['c', 'a']}).jobs[0]
        assert (job.script, job.tag_list) == ([text], ['c', 'a'])


RULED = """\
spec:
  inputs:
    cloud: {options: [aws, gcp, azure], default: aws}
    production: {type: boolean, default: false}
    size:
      rules:
        - if: $[[ inputs.cloud ]] == 'aws' && $[[inputs.production]] == true
          options: [xl, xxl]
          default: xl
        - if: $[[ inputs.cloud ]] == 'aws'
          options: [s, m]
          default: s
        - if: $[[ inputs.cloud ]] =~ /^az/
          default: null
        - options: [small, large]
          default: small
---
test: {script: "size $[[ inputs.size ]]"}
"""


@pytest.mark.parametrize('inputs, size', [
    ({}, 's'), ({'production': True}, 'xl'), ({'production': 'true', 'size': 'xxl'}, 'xxl'),
    ({'cloud': 'gcp'}, 'small'), ({'cloud': 'azure'}, ''), ({'cloud': 'azure', 'size': 'any'}, 'any'),
])
def test_the_first_rule_of_an_input_that_holds_gives_its_options_and_default(inputs, size):
    assert minici.compile_pipeline(RULED, inputs=inputs).jobs[0].script == [f'size {size}']


@pytest.mark.parametrize('change, inputs, told', [
    (('', ''), {'size': 'xl'}, 'input size that is none of its options: s, m'),
    (('      rules:', '      default: s\n      rules:'), {}, 'has rules, which cannot stand beside options or default'),
    (('inputs.cloud ]] =~', 'inputs.clod ]] =~'), {}, 'name clod, which is no input of the file; did you mean "cl'),
    (('options: [small, large]\n          ', ''), {}, 'must have options: it has no if'),
    (('          default: null\n', ''), {}, 'must have options or a default'),
    (("== 'aws' &&", "= 'aws' &&"), {}, 'use == to compare'),
    (('{type: boolean, default: false}', '{rules: [{if: "$[[ inputs.size ]] == \'s\'", options: [a]}]}'), {},
     'go round in a circle'),
])
def test_rules_of_an_input_that_cannot_hold_are_refused(change, inputs, told):
    assert told in refusal(header=RULED.replace(*change), body='', **inputs)


def test_an_input_whose_rules_give_no_default_must_be_given():
    header = """spec: {inputs: {a: {default: x}, b: {rules: [{if: "$[[ inputs.a ]] == 'x'", options: [y]}]}}}\n---\n"""
    assert 'must give the input b' in refusal(header=header)
    job, = minici.compile_pipeline(header + 'test: {script: "$[[ inputs.b ]]"}', inputs={'b': 'y'}).jobs
    assert job.script == ['y']


def test_texts_from_a_form_are_read_as_their_type():
    found = compiled('test: {script: make, parallel: $[[ inputs.count ]], tags: $[[ inputs.tags ]]}',
                     name='a', count='3', tags='["x"]')
    assert (len(found.jobs), found.jobs[0].tag_list) == (3, ['x'])


@pytest.mark.parametrize('block, told', [
    ('$[[ inputs.nme ]]', 'no inputs.nme, which the file uses; did you mean "name"?'),
    ('$[[ inputs.name | shout ]]', 'shout, which is no function'),
    ('$[[ inputs.count | posix_escape ]]', 'takes a text'),
    ('$[[ inputs.name | posix_escape | posix_escape | posix_escape | posix_escape ]]', 'more than three functions'),
])
def test_a_block_that_means_nothing_is_refused(block, told):
    assert told in refusal(f'test: {{script: ["{block}"]}}', name='a')


def test_lines_are_counted_from_the_beginning_of_the_file():
    assert refusal('test:\n  scirpt: make\n', name='a').startswith('.gitlab-ci.yml:11:3: test:scirpt ')


def test_inputs_for_a_file_without_any_are_refused():
    assert 'gives the inputs a, and the file has no spec:inputs' in refusal(header='', a='b')


def test_a_pipeline_takes_inputs(ci):
    project = ci.create_project('demo')
    content = 'spec: {inputs: {name: {}}}\n---\n"$[[ inputs.name ]]": {script: make}'
    pipeline = ci.create_pipeline(project, 'main', sha=SHA, content=content, inputs={'name': 'mine'})
    assert [job['name'] for job in ci.list_jobs(pipeline=pipeline)] == ['mine']
    with pytest.raises(minici.BadRequest, match='must give the input name'):
        ci.create_pipeline(project, 'main', sha=SHA, content=content)


# -- inputs that are declared in another file

class Shared:
    """A repository of a few files."""

    def __init__(self, **files):
        self.texts = {f'{name}.yml': textwrap.dedent(text) for name, text in files.items()}

    def file(self, sha, path):
        """Return a file."""
        return self.texts[path].encode() if path in self.texts else None

    def files(self, sha):
        """Return the names of all files."""
        return sorted(self.texts)

    def changes(self, base, sha):
        """Return None: nothing is known of what changed."""


SHARING = 'spec: {include: [{local: /shared.yml}], inputs: {own: {default: 1}}}\n---\n' \
          'test: {script: "$[[ inputs.own ]] $[[ inputs.region ]] $[[ inputs.place ]]"}\n'


def test_inputs_may_be_declared_in_other_files():
    tree = Shared(shared='inputs: {region: {default: us}, place: {options: [here, there]}}\n')
    spec = minici.compile_pipeline(SHARING, inputs={'place': 'there'}, repository=tree)
    assert list(spec.jobs[0].script) == ['1 us there']


@pytest.mark.parametrize('shared, told', [
    ('inputs: {own: {}}\n', 'own is declared twice'),
    ('inputs: {place: {default: a}}\njobs: {}\n', 'shared.yml:2:1: jobs is a keyword'),
    ('[a]\n', 'shared.yml:1:1: must be a mapping'),
    ('inputs: {place: {type: nothing}}\n', 'shared.yml:1:18: spec:inputs:place:type must be one of'),
])
def test_a_file_of_shared_inputs_declares_each_once_and_nothing_else(shared, told):
    with pytest.raises(minici.BadRequest) as caught:
        minici.compile_pipeline(SHARING, repository=Shared(shared=shared))
    assert told in '; '.join(caught.value.problems)


def test_inputs_are_shared_by_files_of_some_kinds_alone_and_a_file_that_is_missing_is_named():
    assert 'must name one of local, project, remote' in refusal(header='spec: {include: [{template: a}]}\n---\n')
    assert 'names gone.yml, which is not in the repository' in refusal(header='spec: {include: gone.yml}\n---\n')


def test_the_inputs_of_an_included_file_may_be_declared_beside_it():
    tree = Shared(shared='inputs: {region: {default: us}, place: {}}\n', part=SHARING)
    spec = minici.compile_pipeline('include: {local: part.yml, inputs: {place: x}}\n', repository=tree)
    assert list(spec.jobs[0].script) == ['1 us x']


def test_shared_inputs_count_among_the_files_of_a_pipeline():
    tree = Shared(shared='inputs: {}\n')
    many = 'spec: {include: [' + 'shared.yml, ' * 151 + ']}\n---\ntest: {script: make}\n'
    with pytest.raises(minici.BadRequest) as caught:
        minici.compile_pipeline(many, repository=tree)
    assert 'more than 150 files' in '; '.join(caught.value.problems)
