"""Sudden death at any call: what was acknowledged is there, nothing is half there."""

import os
import subprocess
import sys
from pathlib import Path

import workload

import minici

HERE = Path(__file__).parent


def die(db, acknowledged, token, seed, at=(), **environment):
    """Work until death; return whether the work came to its end."""
    command = [sys.executable, HERE / 'workload.py', db, acknowledged, token, str(seed), '60', *map(str, at)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == 0


def test_a_process_killed_at_the_nth_call_that_changes_the_disk_loses_nothing(tmp_path, form, figures):
    token = workload.prepare(tmp_path / 'ci.sqlite')
    lines, died = [], 0
    for number in form(range(1, 200, 45), range(1, 201)):
        acknowledged = tmp_path / f'{number}.acknowledged'
        died += not die(tmp_path / 'ci.sqlite', acknowledged, token, number, [number])
        fresh = workload.Acknowledged.read(acknowledged) if acknowledged.exists() else []
        lines += fresh
        with minici.Coordinator(tmp_path / 'ci.sqlite') as ci:
            assert workload.verify(ci, fresh) == [], number
    with minici.Coordinator(tmp_path / 'ci.sqlite') as ci:
        assert workload.verify(ci, lines) == []
    assert died > form(3, 150)
    assert len(lines) > form(30, 1000)
    figures('0 lost', f'{died} deaths at a call of Python, {len(lines):,} acknowledgements, 0 lost')
