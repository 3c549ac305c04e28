"""A corpus of pipeline files that use what real files use, each with the jobs that GitLab would run.

Its first lines say which jobs a push to the default branch, a tag, a schedule and a merge request start,
in the order of their stages; `-` stands for no pipeline. They were worked out by hand from GitLab's
documentation and source.
"""

import re
from pathlib import Path

import pytest

import minici

CORPUS = Path(__file__).parent / 'corpus'
#: What differs between the pipelines: ref, whether it is a tag, source, and more predefined variables.
KINDS = {
    'push': ('main', False, 'push', {'CI_COMMIT_BRANCH': 'main'}),
    'tag': ('v1.0.0', True, 'push', {'CI_COMMIT_TAG': 'v1.0.0'}),
    'schedule': ('main', False, 'schedule', {'CI_COMMIT_BRANCH': 'main'}),
    'merge_request': ('feature', False, 'merge_request_event', {'CI_MERGE_REQUEST_IID': '1'}),
}
FILES = {path.stem: path.read_text() for path in sorted(CORPUS.glob('*.yml'))}


def expected(text, kind):
    """Return the jobs that a file's first lines name; a semicolon parts names that have commas."""
    line = re.search(rf'^# {kind}: (.*)$', text, re.M)[1]
    separator = '; ' if ';' in line or line.count(': [') else ', '
    return [] if line == '-' else line.split(separator)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', FILES)
def test_a_file_makes_the_jobs_that_gitlab_would_make(name, kind):
    ref, tag, source, more = KINDS[kind]
    predefined = {'CI_PIPELINE_SOURCE': source, 'CI_COMMIT_REF_NAME': ref, 'CI_COMMIT_REF_SLUG': ref,
                  'CI_DEFAULT_BRANCH': 'main', **more}
    spec = minici.compile_pipeline(FILES[name], ref=ref, tag=tag, source=source, predefined=predefined,
                                   repository=minici.Directory(CORPUS))
    order = {stage: place for place, stage in enumerate(spec.stages)}
    jobs = sorted(spec.jobs, key=lambda job: order[job.stage])
    assert [job.name for job in jobs] == expected(FILES[name], kind)


def test_the_corpus_is_large_enough():
    assert len(FILES) >= 60
