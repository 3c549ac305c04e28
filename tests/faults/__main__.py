"""Run the fault tests in their full forms and print the table of their figures.

    python tests/faults [--times N] [pytest arguments]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ALONE = ('stalls', 'hostile')   # what these time has the machine to itself; the others share two cores
FIRST = ('preloaded', 'model', 'kills', 'two_years', 'storm', 'large', 'deaths')    # the longest


def parts():
    """Return the arguments of each pytest: the files that share two cores, the longest first, and those that do not."""
    names = sorted(file.stem.removeprefix('test_') for file in HERE.glob('test_*.py'))
    shared = [*FIRST, *(name for name in names if name not in (*FIRST, *ALONE))]
    for arguments, files in ((['-n', '2', '--maxschedchunk', '1'], shared), ([], ALONE)):
        yield [*arguments, *(str(HERE / f'test_{name}.py') for name in files)]


def main():
    parser = argparse.ArgumentParser(prog='python tests/faults', description=__doc__)
    parser.add_argument('--times', type=int, default=1, help='how often to run them (default: %(default)s)')
    options, rest = parser.parse_known_args()
    status = 0
    for number in range(options.times):
        with tempfile.TemporaryDirectory() as directory:
            figures = Path(directory, 'figures')
            environment = {**os.environ, 'MINICI_FAULTS': 'full', 'MINICI_FIGURES': str(figures)}
            began = time.monotonic()
            command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *rest]
            for part in parts():
                status |= subprocess.run([*command, *part], env=environment, check=False).returncode
            print(f'\nRun {number + 1} took {(time.monotonic() - began) / 60:.1f} minutes.\n')
            print('| test | target | measured |\n|---|---|---|')
            for line in figures.read_text().splitlines() if figures.exists() else ():
                row = json.loads(line)
                print(f'| {row["test"]} | {row["target"]} | {row["measured"]} |', flush=True)
    return status


if __name__ == '__main__':
    sys.exit(main())
