"""Test reports: junit files are read within limits when they arrive, and their cases are kept."""

import gzip
import random

import pytest

import minici

NESTED = b"""<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="all">
  <properties><property name="os" value="linux"/></properties>
  <testsuite name="outer" tests="3">
    <properties><property name="seed" value="1"/></properties>
    <testcase classname="app.Test" name="test_ok" file="app/test.py" time="1,234.5"/>
    <testcase classname="app.Test" name="test_bad" time="0.25">
      <properties><property name="owner" value="x"/></properties>
      <failure message="1 != 2" type="AssertionError">Traceback
  assert 1 == 2</failure>
      <system-out>[[ATTACHMENT|shots/bad.png]] seen</system-out>
    </testcase>
    <testsuite name="inner">
      <testcase name="test_skipped"><skipped message="not today"/></testcase>
      <testcase name="test_error"><error message="boom">deep</error><system-err>noise</system-err></testcase>
    </testsuite>
  </testsuite>
</testsuites>
"""


def cases(*files):
    """Return the cases of junit files by name, and what was wrong with the files."""
    report = minici.read_junit([file[start:start + 7] for start in range(0, len(file), 7)] for file in files)
    return {case.name: case for case in report.cases}, report.error


def test_nested_suites_properties_and_screenshots_are_read():
    found, error = cases(NESTED)
    assert error == ''
    assert found == {
        'test_ok': minici.TestCase('success', 'test_ok', 'app.Test', 'outer', 'app/test.py', 1234.5),
        'test_bad': minici.TestCase('failed', 'test_bad', 'app.Test', 'outer', '', 0.25, '1 != 2',
                                    'Traceback\n  assert 1 == 2', 'shots/bad.png'),
        'test_skipped': minici.TestCase('skipped', 'test_skipped', suite='inner', message='not today'),
        'test_error': minici.TestCase('error', 'test_error', suite='inner', message='boom', output='deep'),
    }


def test_a_rerun_that_passed_is_a_success_and_one_that_failed_again_a_failure():
    found, _ = cases(b"""<testsuite name="s">
        <testcase name="flaky"><flakyFailure message="once"><stackTrace>x</stackTrace></flakyFailure></testcase>
        <testcase name="broken"><failure message="first">one</failure>
            <rerunFailure message="second"><stackTrace>two</stackTrace><system-out>three</system-out></rerunFailure>
        </testcase></testsuite>""")
    assert (found['flaky'].status, found['flaky'].flaky) == ('success', True)
    assert (found['broken'].status, found['broken'].message, found['broken'].output) == ('failed', 'first', 'one')


def test_a_test_that_stands_twice_with_one_status_counts_once():
    suite = b'<testsuite><testcase name="a" classname="c"/><testcase name="a" classname="c"/></testsuite>'
    report = minici.read_junit([[suite], [suite]])
    assert [case.name for case in report.cases] == ['a']


def test_several_files_are_one_report_and_a_broken_one_does_not_hide_the_others():
    found, error = cases(b'<testsuite><testcase name="a"/></testsuite>', b'<testsuite><testcase',
                         b'<testsuite><testcase name="b"/></testsuite>')
    assert sorted(found) == ['a', 'b']
    assert error.startswith('JUnit XML parsing failed: ')


@pytest.mark.parametrize('file', [b'<testcase name="a"/>', b'<html><testsuite><testcase name="a"/></testsuite></html>',
                                  b'<testsuite><p><testcase name="a"/></p></testsuite>', b'<testsuite/>'])
def test_cases_outside_of_suites_are_none(file):
    assert cases(file) == ({}, '')


@pytest.mark.parametrize('time, seconds', [('1', 1), ('.5', 0.5), ('1,000.5', 1000.5), ('', 0), ('NaN', 0), ('inf', 0),
                                           ('-1', 0), ('1e9', 0), ('x', 0), ('9' * 400, 0)])
def test_a_time_that_is_no_number_counts_as_nothing(time, seconds):
    found, _ = cases(f'<testsuite><testcase name="a" time="{time}"/></testsuite>'.encode())
    assert found['a'].time == seconds


@pytest.mark.parametrize('file, problem', [
    (b'<!DOCTYPE a [<!ENTITY x "y">]><testsuite><testcase name="&x;"/></testsuite>', 'entities are not allowed'),
    (b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><testsuite>&x;</testsuite>', 'entities are not allowed'),
    (b'<testsuite>' * 101, 'levels deep'),
    (b'<testsuite>' + b''.join(b'<testcase name="%d"/>' % number for number in range(20_001)) + b'</testsuite>',
     'more than 20000 test cases'),
    (b'<testsuite><testcase name="\x1b"/></testsuite>', 'not well-formed'),
    (b'<?xml version="1.0" encoding="nonsense"?><testsuite/>', 'unknown encoding'),
    (b'', 'no element found'), (b'{}', 'not well-formed')])
def test_a_file_that_is_no_harmless_junit_is_named_as_the_error_of_its_suite(file, problem):
    assert problem in cases(file)[1]


def test_no_external_file_and_no_default_entity_of_a_doctype_is_read(tmp_path):
    (tmp_path / 'x.dtd').write_text('<!ENTITY x "secret">')
    found, error = cases(f'<!DOCTYPE testsuite SYSTEM "file://{tmp_path}/x.dtd"><testsuite><testcase name="a">'
                         '<failure>&x;</failure></testcase></testsuite>'.encode())
    assert 'secret' not in f'{found}{error}'


def test_texts_are_cut_at_their_limits(monkeypatch):
    monkeypatch.setattr(minici, 'MAX_REPORT_TEXT', 100)
    long = 'x' * 1000
    found, error = cases(f'<testsuite name="{long}"><testcase name="{long}"><failure message="{long}">{long}</failure>'
                         f'</testcase></testsuite>'.encode())
    case, = found.values()
    assert (len(case.suite), len(case.name), len(case.message) + len(case.output), error) == (255, 255, 100, '')


@pytest.mark.parametrize('printed', [
    b'<system-out>' + b'[[ATTACHMENT|' * 16_000 + b'</system-out>',
    b'<system-out>' + b'x' * 10_000_000 + b'</system-out>' + b'<system-out>a</system-out>' * 30_000,
], ids=['marks that nothing closes', 'many pieces behind a long one'])
def test_what_a_test_printed_is_read_once_however_it_is_cut_up(printed):
    file = b'<testsuite><testcase name="a">' + printed + b'</testcase></testsuite>'
    report = minici.read_junit([[file[start:start + 65536] for start in range(0, len(file), 65536)]])
    assert (report.error, len(report.cases)) == ('', 1)


@pytest.mark.parametrize(('printed', 'path'), [
    (b'[[ATTACHMENT|a b.png]] [[ATTACHMENT|c.png]]', 'a b.png'),
    (b'[[ATTACHMENT|one\n[[ATTACHMENT|two]]', 'two'),
    (b'x [[ATTACHMENT|[[ATTACHMENT|b]]', '[[ATTACHMENT|b'),
    (b'[[ATTACHMENT|]] none', ''),
    (b'[[ATTACHMENT|a', ''),
    (b'a]]', ''),
])
def test_the_first_attachment_that_is_closed_on_its_line_counts(printed, path):
    found, _ = cases(b'<testsuite><testcase name="a"><system-out>' + printed + b'</system-out></testcase></testsuite>')
    assert found['a'].attachment == path


# -- what a runner uploads

def upload(ci, job, content):
    """Store a junit report of a running job."""
    part = ci.artifacts.receive()
    part.write(content)
    ci.store_artifacts(job, part, file_type='junit', file_format='gzip')
    part.discard()


@pytest.fixture
def job(pipeline, runner):
    return runner.claim().job


def test_the_files_of_a_report_are_members_of_one_gzip_file(ci, job, pipeline):
    second = b'<testsuite><testcase name="second"/></testsuite>'
    upload(ci, job, gzip.compress(NESTED) + gzip.compress(b'broken') + gzip.compress(second))
    assert [case['name'] for case in ci.list_test_cases(job)] == [
        'test_ok', 'test_bad', 'test_skipped', 'test_error', 'second']
    assert [case['name'] for case in ci.list_test_cases(job, ['failed', 'error'])] == ['test_bad', 'test_error']
    report, = ci.list_test_reports(pipeline)
    assert dict(report) == {'job_id': job['id'], 'job_name': job['name'], 'success': 2, 'failed': 1, 'skipped': 1,
                            'error': 1, 'total_time': 1234.75, 'suite_error': report['suite_error']}
    assert 'syntax error' in report['suite_error']
    assert tuple(ci.find_test_report(job))[:5] == (job['id'], 2, 1, 1, 1)


def test_an_erased_job_has_no_tests(ci, job, pipeline):
    upload(ci, job, gzip.compress(NESTED))
    ci.update_job(job, 'success')
    ci.erase_job(ci.find_job(job))
    assert ci.find_test_report(job) is None
    assert ci.list_test_cases(job) == ci.list_test_reports(pipeline) == []


def test_the_tests_of_a_retried_job_do_not_count_for_its_pipeline(ci, job, pipeline):
    upload(ci, job, gzip.compress(NESTED))
    ci.update_job(job, 'failed')
    ci.retry_job(ci.find_job(job))
    assert ci.list_test_reports(pipeline) == []


def test_a_damaged_or_huge_upload_is_reported_as_such(ci, monkeypatch):
    monkeypatch.setattr(minici, 'MAX_REPORT', 1000)
    packed = gzip.compress(NESTED)
    for content, problem in ((packed[:-9], 'cut short'), (gzip.compress(b' ' * 1001), 'unpack to more'),
                             (b'no gzip', 'incorrect header check')):
        part = received(ci, content)
        assert problem in minici.read_junit_report(part).error
        part.discard()


def received(ci, content):
    part = ci.artifacts.receive()
    part.write(content)
    return part


def test_hostile_files_are_read_without_an_exception(ci):
    chance = random.Random(7)
    pieces = [NESTED[start:end] for start, end in (sorted(chance.sample(range(len(NESTED)), 2)) for _ in range(200))]
    pieces += [b'<', b'>', b'"', b'&', b'&#0;', b'\x00', b'\xff', b']]>', b'<![CDATA[', b'<?x?>', b'<!--', b'-->']
    for _ in range(1500):
        file = b''.join(chance.choices(pieces, k=chance.randint(1, 6)))
        report = minici.read_junit([[file]])
        assert isinstance(report.error, str)
        part = received(ci, gzip.compress(file)[:chance.randint(1, 60)] + file)
        minici.read_junit_report(part)
        part.discard()
