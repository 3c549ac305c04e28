"""Test reports: what a job's tests came to, and those that failed."""

from __future__ import annotations

from collections.abc import Iterable

from minici import Call, Row

from .frame import View, project_path, template
from .markup import Markup
from .sessions import root

#: Failed tests that the page of a job shows.
SHOWN_CASES = 20
#: Characters of a failed test's output that the page of a job shows.
EXCERPT = 10_000
#: The statuses of test cases and the words for them, in the order of a summary.
WORDS = {'failed': 'failed', 'error': 'with errors', 'success': 'passed', 'skipped': 'skipped'}


def summary(reports: Iterable[Row]) -> str:
    """Return how many tests failed, passed and were skipped, in words; '' for no test."""
    counts = dict.fromkeys(WORDS, 0)
    for report in reports:
        for status in WORDS:
            counts[status] += report[status]
    told = []
    for status, text in WORDS.items():
        if counts[status]:
            told.append(f'{counts[status]:,} {text}')
    return ', '.join(told)


def tests_panel(call: Call, job: Row) -> Markup:
    """Return the panel of a job's tests: the counts, and the failures with message and output."""
    report = call.ci.find_test_report(job)
    if report is None:
        return Markup()
    cases = []
    if call.actor:      # what tests print is an artifact, which visitors do not get
        cases = call.ci.list_test_cases(job, ('failed', 'error'), limit=SHOWN_CASES + 1)
    view = View()
    counts = summary([report]) or 'no test in the report'
    view.counts = f'{counts} · {report["total_time"]:.1f} s'
    view.suite_error = report['suite_error']
    view.cases = cases
    view.shown = SHOWN_CASES
    view.excerpt = EXCERPT
    view.files = f'{root(call)}{project_path(job)}/jobs/{job["id"]}/artifacts/file'
    view.total = report['failed'] + report['error']
    return Markup(template('tests').render(vars(view)))
