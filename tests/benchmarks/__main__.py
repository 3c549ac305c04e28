"""Measure minici and print one table: figure, what it is divided by, ratio, spread over the rounds, target.

    python tests/benchmarks [--only NAME ...] [--rounds 5] [--json FILE] [--quick]

Times on a shared machine mean little; a ratio taken within one round means something. The figures of
one benchmark take turns in each round. Load comes from wrk in a process of its own; the server is
another process, durable unless the figure says otherwise. Needs wrk and curl.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent)]

from figures import BENCHMARKS, ONCE  # noqa: E402
from stand import Stand  # noqa: E402


def measure(name, options):
    """Return the figures of one benchmark after all rounds."""
    stand = Stand(options)
    with stand.ends:
        figures = list(BENCHMARKS[name](stand))
        rounds = 1 if name in ONCE else options.rounds
        for number in range(rounds):
            print(f'\r{name}: round {number + 1} of {rounds} ', end='', file=sys.stderr, flush=True)
            for figure in figures:
                figure.values.append(figure.measure())
        print('\r' + ' ' * 60, end='\r', file=sys.stderr, flush=True)
    return figures


def line(figure):
    """Return one line of the table."""
    verdict = {None: '', True: 'reached', False: 'MISSED'}[figure.is_reached]
    spread = f'{min(figure.values):.2f}-{max(figure.values):.2f}'
    return (f'{figure.row:>3}  {figure.name:52} {figure.divided_by:24} {figure.ratio:8.2f}  {spread:>16}  '
            f'{figure.target:8} {verdict}')


def main(argv=None):
    """Run the benchmarks that were asked for; return 1 when a target was missed."""
    parser = argparse.ArgumentParser(prog='tests/benchmarks', description=__doc__.partition('\n')[0])
    parser.add_argument('--only', nargs='+', metavar='NAME', choices=[*BENCHMARKS], default=[*BENCHMARKS],
                        help=f'which to run: {", ".join(BENCHMARKS)}')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--json', metavar='FILE', help='write the figures there, too')
    parser.add_argument('--quick', action='store_true', help='small data, to see that the benchmarks start')
    parser.add_argument('--directory', help='where the databases are made (default: the temporary directory)')
    parser.add_argument('--file', help='the pipeline file that `compiles` compiles, with those of its folder')
    options = parser.parse_args(argv)
    missing = [tool for tool in ('wrk', 'curl') if shutil.which(tool) is None]
    if missing:
        parser.error(f'install {" and ".join(missing)} first')
    began, found = time.monotonic(), []
    print(f'{"row":>3}  {"figure":52} {"divided by":24} {"ratio":>8}  {"spread":>16}  target')
    for name in options.only:
        for figure in measure(name, options):
            print(line(figure), flush=True)
            found.append(figure)
    print(f'{len(found)} figures in {time.monotonic() - began:.0f} s', file=sys.stderr)
    if options.json:
        Path(options.json).write_text(json.dumps([figure.as_json() for figure in found], indent=1) + '\n')
    return int(any(figure.is_reached is False for figure in found))


if __name__ == '__main__':
    sys.exit(main())
