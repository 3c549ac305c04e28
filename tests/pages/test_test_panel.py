"""What people see of test reports: failures above the log, counts on the pipeline."""

import gzip
import random

import pytest
from browsing import Browser
from support import SHA, Runner, archive

import minici

JOB, PIPELINE = '/group/demo/-/jobs/1', '/group/demo/-/pipelines/1'
REPORT = b"""<testsuites><testsuite name="engine">
<testcase classname="engine.Alarm" name="test_1202" file="test_alarm.py" time="0.25">
<failure message="expected 1201, got 1202">Traceback
  assert alarm == 1201</failure><system-out>[[ATTACHMENT|shots/alarm.png]]</system-out></testcase>
<testcase name="test_crash"><error message="boom">deep</error></testcase>
<testcase name="test_ok" time="1.5"/><testcase name="test_later"><skipped/></testcase>
</testsuite></testsuites>"""


def upload(ci, claim, content, file_type, file_format):
    """Upload an artifact of a job that was claimed."""
    part = ci.artifacts.receive()
    part.write(content)
    ci.store_artifacts(ci.authenticate_job(claim.job['id'], claim.token), part, file_type=file_type,
                       file_format=file_format)
    part.discard()


@pytest.fixture
def browser(ci):
    return Browser(ci, ci.create_private_token())


@pytest.fixture
def report(ci):
    """A function that lets a job report its tests and fail."""
    def send(*files):
        project = ci.create_project('group/demo')
        ci.create_pipeline(project, 'main', sha=SHA, content={'test': {'script': ['make test']}})
        claim = Runner(ci).claim()
        upload(ci, claim, b''.join(gzip.compress(file) for file in files), 'junit', 'gzip')
        upload(ci, claim, archive(shots__alarm='picture'), 'archive', 'zip')
        ci.update_job(ci.authenticate_job(claim.job['id'], claim.token), 'failed', failure_reason='script_failure')
    return send


def test_failed_tests_stand_above_the_log_with_message_and_output(browser, report):
    report(REPORT)
    page = browser.open(JOB)
    panel = page.one('section', aria_label='Tests')
    assert panel.all('p', class_='meta')[0].text == '1 failed, 1 with errors, 1 passed, 1 skipped · 1.8 s'
    first, second = panel.all('li', class_='case')
    assert first.one('span', class_='title').text == 'test_1202'
    assert first.one('span', class_='meta').text == 'engine.Alarm · test_alarm.py'
    assert first.one('p', class_='message').text == 'expected 1201, got 1202'
    assert first.one('pre').raw == 'Traceback\n  assert alarm == 1201'
    assert first.one('a')['href'] == f'{JOB}/artifacts/file/shots%2Falarm.png'
    assert second.one('p', class_='message').text == 'boom'
    order = list(page)
    assert order.index(panel) < order.index(page.one('section', id='log'))


def test_pipeline_counts_the_tests_of_its_jobs(browser, report):
    report(REPORT)
    head = browser.open(PIPELINE).one('div', class_='head')
    assert 'Tests: 1 failed, 1 with errors, 1 passed, 1 skipped' in head.text


def test_job_without_a_report_has_no_panel(ci, browser, project):
    ci.create_pipeline(project, 'main', sha=SHA, content={'test': {'script': ['make test']}})
    assert browser.open(JOB).all('section', aria_label='Tests') == []
    assert 'Tests:' not in browser.open(PIPELINE).text


def test_many_failures_are_cut_and_counted(browser, report):
    report(b'<testsuite>' + b''.join(
        f'<testcase name="t{number}"><failure>{"x" * 20_000}</failure></testcase>'.encode() for number in range(50))
        + b'</testsuite>')
    panel = browser.open(JOB).one('section', aria_label='Tests')
    assert len(panel.all('li', class_='case')) == 20
    assert 'and 30 more failed tests' in panel.text
    assert {len(output.raw) for output in panel.all('pre')} <= set(range(10_001))


def test_visitors_see_the_counts_and_nothing_that_tests_print(tmp_path, clock):
    with minici.Coordinator(clock=clock, public=True) as ci:
        project = ci.create_project('group/demo')
        ci.create_pipeline(project, 'main', sha=SHA, content={'test': {'script': ['make test']}})
        upload(ci, Runner(ci).claim(), gzip.compress(REPORT), 'junit', 'gzip')
        panel = Browser(ci).open(JOB).one('section', aria_label='Tests')
        assert '1 failed' in panel.text
        assert '1202' not in panel.text


@pytest.mark.parametrize('seed', range(20))
def test_hostile_reports_show_as_text_or_not_at_all(ci, browser, report, seed):
    chance = random.Random(seed)
    nasty = ['<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', '${x}', '{{7*7}}', '%2e%2e/', '../../etc',
             'javascript:alert(1)', '\u202e', "' x='", '&lt;b&gt;', 'x' * 5000]
    pick = lambda: chance.choice(nasty)     # noqa: E731
    quoted = lambda text: text.replace('&', '&amp;').replace('<', '&lt;').replace('"', '&quot;')    # noqa: E731
    report(f'<testsuite name="{quoted(pick())}"><testcase name="{quoted(pick())}" classname="{quoted(pick())}" '
           f'file="{quoted(pick())}"><failure message="{quoted(pick())}">{quoted(pick())}</failure>'
           f'<system-out>[[ATTACHMENT|{quoted(pick())}]]</system-out></testcase></testsuite>'.encode())
    page = browser.open(JOB)    # read strictly: every element is closed where it must be
    panel = page.one('section', aria_label='Tests')
    assert {element.tag for element in panel} <= {
        'section', 'h2', 'p', 'ul', 'li', 'svg', 'circle', 'path', 'div', 'span', 'a', 'details', 'summary', 'pre'}
    assert all(link['href'].startswith(f'{JOB}/artifacts/file/') for link in panel.all('a'))
