"""Sudden death at any call: what was acknowledged is there, nothing is half there."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import workload

import minici

HERE = Path(__file__).parent
STEPS = 2000    # more than death leaves time for


@contextlib.contextmanager
def mortals(**environment):
    """Start what does the work in processes of its own; yield the function that has it done until death.

    That one returns whether the work came to its end instead.
    """
    process = subprocess.Popen([sys.executable, HERE / 'workload.py'], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               env={**os.environ, **environment}, text=True)

    def die(db, acknowledged, token, seed, at=(), **about):
        arguments = [str(value) for value in (db, acknowledged, token, seed, STEPS, *at)]
        process.stdin.write(json.dumps([arguments, about]) + '\n')
        process.stdin.flush()
        code = int(process.stdout.readline())
        assert code in (0, -9)
        return code == 0

    try:
        yield die
    finally:
        process.communicate()


def test_a_process_killed_at_the_nth_call_that_changes_the_disk_loses_nothing(tmp_path, form, figures):
    token = workload.prepare(tmp_path / 'ci.sqlite', jobs=form(200, 4000))
    points = form(range(1, 200, 45), range(1, 201))
    lines, died = [], 0
    with mortals() as die:
        for number in points:
            acknowledged = tmp_path / f'{number}.acknowledged'
            died += not die(tmp_path / 'ci.sqlite', acknowledged, token, number, [number])
            fresh = workload.Acknowledged.read(acknowledged) if acknowledged.exists() else []
            lines += fresh
            with minici.Coordinator(tmp_path / 'ci.sqlite') as ci:
                assert workload.verify(ci, fresh) == [], number
    with minici.Coordinator(tmp_path / 'ci.sqlite') as ci:
        assert workload.verify(ci, lines) == []
    assert died == len(points)
    assert len(lines) > form(30, 1000)
    figures('n = 1..200, 0 lost', f'{died} deaths at the n-th call of Python, {len(lines):,} acknowledgements, 0 lost')
