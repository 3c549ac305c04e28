"""Scalars: what an unquoted value of a pipeline file means, as Psych reads it, the library of GitLab."""

import pytest

import minici

#: Unquoted scalars, and the text that Psych 5.0.2 makes of each (`Psych.load("a: ...")['a'].to_s`); None: an error.
SCALARS = {
    '1': '1', '-1': '-1', '+1': '1', '0': '0', '00': '0', '007': '7', '0755': '493', '-0755': '-493', '08': '08',
    '09': '09', '0o17': '0o17', '0x1F': '31', '0xff': '255', '-0x10': '-16', '0b101': '5', '0b2': '0b2', '0x': '0x',
    '1_000': '1000', '1__000': '1__000', '1_': '1_', '1,000': '1000', '80,443': '80443', '8,': '8,', '1.5': '1.5',
    '1.': '1.0', '.5': '0.5', '-.5': '-0.5', '+.5': '0.5', '.': '.', '-.': '-.', '+.': '+.', '1.5.2': '1.5.2',
    '1.0': '1.0', '3.10': '3.1', '3.11': '3.11', '1e3': '1e3', '1e+3': '1e+3', '1.0e+3': '1000.0', '1.5e3': '1.5e3',
    '1.5e-7': '1.5e-07', '1.e+3': '1000.0', '100.0e+20': '1.0e+22', '123456789012345.678': '123456789012345.67',
    '1e16': '1e16', '1.0e+16': '1.0e+16', '12345678901234567890.0': '1.2345678901234567e+19', '0.0001': '0.0001',
    '0.00001': '1.0e-05', '1_000.5': '1000.5', '1,000.5': '1000.5', '12:30': '45000', '1:2:3': '3723', '1:60': '1:60',
    '12:30:45': '45045', '12:30:45.5': '45045.5', '190:20:30': '685230', '-12:30': '-41400', '+1:30': '5400',
    '12:30.5': '45030.0', '1:2:3:4': '1:2:3:4', 'yes': 'true', 'Yes': 'true', 'YES': 'true', 'no': 'false',
    'No': 'false', 'on': 'true', 'On': 'true', 'off': 'false', 'OFF': 'false', 'true': 'true', 'True': 'true',
    'TRUE': 'true', 'false': 'false', 'False': 'false', 'y': 'y', 'n': 'n', 'Y': 'Y', 'N': 'N', 't': 't', 'f': 'f',
    '~': '', 'null': '', 'Null': '', 'NULL': '', 'nul': 'nul', 'none': 'none', 'nil': 'nil', 'yeS': 'true',
    'oN': 'true', '.inf': 'Infinity', '.Inf': 'Infinity', '.INF': 'Infinity', '-.inf': '-Infinity',
    '+.inf': 'Infinity', '.nan': 'NaN', '.NaN': 'NaN', 'inf': 'inf', 'nan': 'nan', ':x': 'x', ':foo': 'foo',
    ':foo bar': 'foo bar', ':"a b"': 'a b', ':1': '1', 'a:b': 'a:b', '::x': ':x', 'abc': 'abc', 'a b': 'a b',
    'a-b': 'a-b', '-a': '-a', '--': '--', '-x': '-x', 'v1.2': 'v1.2', '1.2.3': '1.2.3', '1a': '1a', '1 2': '1 2',
    '12 a': '12 a', '0755a': '0755a', '0 7': '0 7', '$X': '$X', '${X}': '${X}', '^a': '^a', '(a)': '(a)', '<a': '<a',
    '/a': '/a', '\\a': '\\a', ';a': ';a', '=a': '=a', '=': '=', 'a=b': 'a=b', '1=2': '1=2', '1%': '1%', '50%': '50%',
    '1/2': '1/2', '1-2': '1-2', '2020': '2020', '20-1-1': '20-1-1', '1st': '1st', '3d': '3d',
    '5 minutes': '5 minutes', '1h 30m': '1h 30m', '0.5s': '0.5s', '1.2.3.4': '1.2.3.4', '10.0.0.0/8': '10.0.0.0/8',
    'a1': 'a1', 'A': 'A', '_': '_', '__': '__', '_1': '_1', '1_1': '11', '1_1_1': '111', '+': '+', '++1': '++1',
    '0.0': '0.0', '-0': '0', '-0.0': '-0.0', '00.5': '0.5', '0_7': '7', '0_8': '0_8', '0,7': '7', '0b1_0': '2',
    '0xF_F': '255', '1.5_5': '1.5_5', 'é': 'é', 'ünicode': 'ünicode', '日本': '日本', 'ñ1': 'ñ1', '5€': '5€',
    '1 000': '1 000', 'ruby:3.1': 'ruby:3.1', 'node:18-alpine': 'node:18-alpine', 'http://a.b': 'http://a.b',
    '"quoted"': 'quoted', "'single'": 'single', '"5"': '5', "'yes'": 'yes', 'main': 'main', 'master': 'master',
    'feature/x': 'feature/x', '-1.5e+3': '-1500.0', '+1.5': '1.5', '1.5E+3': '1500.0', '1E3': '1E3',
    '6.02e+23': '6.02e+23', '9999999999999999': '9999999999999999', '0.1': '0.1', '1.10': '1.1', '2.0.0': '2.0.0',
    '0.30000000000000004': '0.30000000000000004', '1.23456789012345678': '1.2345678901234567', '5e-324': '5e-324',
    '1.0e-5': '1.0e-05',
}
#: Dates and times: GitLab refuses a file with one of these; here each is its text, and a warning.
DATES = ['2020-01-01', '2020-1-5', '2001-12-14t21:59:43.10-05:00', '2001-12-14 21:59:43']


def variable(text):
    """Return the pipeline of a file that has a variable of this unquoted value."""
    return minici.compile_pipeline(f'variables:\n  A: {text}\ntest: {{script: make}}\n')


@pytest.mark.parametrize('text', SCALARS)
def test_an_unquoted_scalar_means_what_psych_takes_it_for(text):
    if SCALARS[text] is None:
        with pytest.raises(minici.BadRequest, match=':2:6: '):
            variable(text)
    else:
        assert variable(text).jobs[0].variables['A'] == SCALARS[text]


@pytest.mark.parametrize('text', DATES)
def test_a_date_is_its_text_and_a_warning(text):
    spec = variable(text)
    assert spec.jobs[0].variables['A'] == text
    assert spec.warnings == (f".gitlab-ci.yml:2:6: GitLab does not take a date; quote it: '{text}'",)


@pytest.mark.parametrize('text', ['2021-02-30', '2020-13-01', '"2020-01-01"', "'0755'", '"yes"'])
def test_what_is_no_date_or_is_quoted_is_a_text_without_a_warning(text):
    spec = variable(text)
    assert spec.jobs[0].variables['A'] == text.strip('\'"')
    assert spec.warnings == ()
