"""How hard the fault tests press, and the table of their figures.

In the ordinary suite each test takes its short form. `python tests/faults` runs the full forms and prints the table.
"""

import json
import os
import sys
from pathlib import Path

import pytest

FULL = os.environ.get('MINICI_FAULTS') == 'full'
collect_ignore = [] if FULL else ['test_preloaded.py']     # it needs a C compiler; the other files have its short forms
sys.path.append(str(Path(__file__).parent.parent / 'api'))     # the model of a job and the fuzzed routes stand there


@pytest.fixture
def form():
    """Choose by form: `form(short, full)`."""
    return lambda short, full: full if FULL else short


@pytest.fixture
def figures(request):
    """Print what a test has measured, and keep it for the table: `figures(target, measured)`."""
    def note(target, measured):
        name = request.node.name.partition('[')[0].removeprefix('test_').replace('_', ' ')
        line = {'test': name, 'target': target, 'measured': measured}
        print(f'\n{name}: {measured} (target: {target})')
        if os.environ.get('MINICI_FIGURES'):
            with open(os.environ['MINICI_FIGURES'], 'a') as file:
                file.write(json.dumps(line) + '\n')
    return note
