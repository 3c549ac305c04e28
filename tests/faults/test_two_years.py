"""Two years of pipelines by the injected clock: the disk, the database and the sweep stay bounded."""

import os
import random
import time

from support import PLAIN, SHA, Runner

import minici

MIB = 1024 ** 2


def build(ci, runner, project, ref, chance):
    """Make a pipeline, and finish its job with a trace and mostly an artifact."""
    ci.create_pipeline(project, ref, sha=SHA, content={**PLAIN, 'test': {**PLAIN['test'], 'tags': [ref]}}
                       if chance.random() < 0.05 else PLAIN)
    claim = runner.claim()
    if claim is None:   # it has a tag that no runner has
        return
    job = ci.authenticate_job(claim.job['id'], claim.token)
    ci.append_trace(job, 0, b'x' * chance.randrange(4000))
    if chance.random() < 0.7:
        part = ci.artifacts.receive()
        part.write(os.urandom(chance.randrange(60_000)))
        ci.store_artifacts(job, part, expire_in=chance.choice([None, '1 week', '1 day']))
    ci.update_job(job, 'success' if chance.random() < 0.8 else 'failed', failure_reason='script_failure')


def measure(ci):
    """Return the bytes of all files, the pages of the database, and the rows of what may grow."""
    stored = sum(path.stat().st_size for path in ci.data.rglob('*') if path.is_file())
    with ci.db.read() as c:
        pages = c.execute('PRAGMA page_count').fetchone()[0]
        rows = [c.execute(f'SELECT count(*) FROM {table}').fetchone()[0]
                for table in ('pipeline', 'job', 'event', 'tag_set', 'live_ref')]
    return stored, pages, rows


def test_two_years_of_pipelines_stay_within_their_settings(tmp_path, clock, form, figures, monkeypatch):
    daily, days = form((1, 4), (28, 1))     # pipelines each time, and how many days pass between two times
    chance = random.Random(1)
    monkeypatch.setattr(minici, 'UNKNOWN_REFS', form(20, minici.UNKNOWN_REFS))
    settings = dict(retention_age='30 days', retention_size=form('1M', '20M'))
    ci = minici.Coordinator(tmp_path / 'ci.sqlite', clock=clock, fsync=False, **settings)
    limit = ci.settings.retention_size
    project, runner = ci.create_project('demo'), Runner(ci)
    peaks, slowest, made = {}, 0.0, 0
    for day in range(0, 730, days):
        for _ in range(daily):
            ref = 'main' if chance.random() < 0.3 else f'topic-{day}-{chance.randrange(3)}'
            build(ci, runner, project, ref, chance)
            made += 1
        for pipeline in ci.list_pipelines(project, status='pending')[0]:    # no runner has the tag of its job
            ci.cancel_pipeline(pipeline)
        clock.advance(days=days)
        began = time.monotonic()
        ci.sweep()
        slowest = max(slowest, time.monotonic() - began)
        stored, pages, rows = measure(ci)
        assert stored <= limit + 1024, day
        year = day // 365
        peaks[year] = [max(pair) for pair in zip(peaks.get(year, [0] * 7), (stored, pages, *rows), strict=True)]
    final = measure(ci)
    assert ci.check() == []
    ci.close()
    assert final[2][0] <= 31 * daily + minici.UNKNOWN_REFS + 1
    assert final[2][2] <= minici.EVENTS_KEPT + 8 * daily
    assert peaks[1][1] <= peaks[0][1] * 1.2     # the second year needs no more pages than the first
    assert peaks[1][5] <= peaks[0][5] * 1.2     # nor tag sets
    figures('disk, database and sweep bounded as the settings say',
            f'{made:,} pipelines: at most {peaks[1][0] / MIB:.1f} MB stored ({limit / MIB:.0f} MB allowed), '
            f'{peaks[1][2]} pipelines, database {peaks[1][1] * 4 / 1024:.1f} MB, slowest sweep {slowest:.2f} s')
