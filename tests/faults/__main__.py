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
STALLS = HERE / 'test_stalls.py'    # what it times has the machine to itself; the others take both of two cores


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
            others = [str(file) for file in sorted(HERE.glob('test_*.py')) if file != STALLS]
            for part in (['-n', '2', *others], [str(STALLS)]):
                status |= subprocess.run([*command, *part], env=environment, check=False).returncode
            print(f'\nRun {number + 1} took {(time.monotonic() - began) / 60:.1f} minutes.\n')
            print('| test | target | measured |\n|---|---|---|')
            for line in figures.read_text().splitlines() if figures.exists() else ():
                row = json.loads(line)
                print(f'| {row["test"]} | {row["target"]} | {row["measured"]} |', flush=True)
    return status


if __name__ == '__main__':
    sys.exit(main())
