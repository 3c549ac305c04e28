"""The benchmarks still start; what they measure is for people to read."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_benchmark_prints_a_ratio_for_each_pair():
    bench = Path(__file__).parent / 'bench.py'
    done = subprocess.run([sys.executable, str(bench), '--jobs', '1000', '--trace', '1', '--rounds', '1',
                           '--repeat', '2'], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 36
    assert all(' -> ' in line and ': x ' in line for line in lines)


@pytest.mark.skipif(not shutil.which('wrk') or not shutil.which('curl'), reason='the load comes from wrk and curl')
def test_the_one_command_prints_a_table_and_writes_it_as_json(tmp_path):
    command = [sys.executable, str(Path(__file__).parent), '--quick', '--rounds', '1', '--only', 'plans', 'polls',
               '--json', str(tmp_path / 'found')]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1), done.stderr
    figures = json.loads((tmp_path / 'found').read_text())
    assert {figure['row'] for figure in figures} == {'3', '6'}
    assert len(done.stdout.splitlines()) == 1 + len(figures)
    assert all(figure['divided_by'] and figure['target'] and len(figure['rounds']) == 1 for figure in figures)


def test_a_fleet_of_runners_is_served_and_its_cost_printed():
    command = [sys.executable, str(Path(__file__).with_name('fleet.py')), '--runners', '6', '--jobs', '2', '--watched',
               '1', '--builds', '1', '--seconds', '4']
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found['actions a second'] >= 2
    assert found['median ms'] > 0
