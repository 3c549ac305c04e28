"""The benchmarks still start; what they measure is for people to read."""

import subprocess
import sys
from pathlib import Path


def test_the_benchmark_prints_a_ratio_for_each_pair():
    bench = Path(__file__).parent / 'bench.py'
    done = subprocess.run([sys.executable, str(bench), '--jobs', '1000', '--trace', '1', '--rounds', '1',
                           '--repeat', '2'], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 36
    assert all(' -> ' in line and ': x ' in line for line in lines)
