"""Start a GitLab CI for tests in any language, with its controls over HTTP: ``python -m minici_testing``.

The first line on standard output is JSON with `url`, `registration_token` and `private_token`. It ends
with its standard input, or by SIGTERM or Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import threading

from .controls import describe
from .server import MiniciServer


def main() -> int:
    """Serve until standard input ends or a signal comes."""
    parser = argparse.ArgumentParser(prog='python -m minici_testing', description='A GitLab CI for tests.')
    parser.add_argument('--port', type=int, default=0, help='port on 127.0.0.1 (default: any)')
    parser.add_argument('--seed', type=int, default=0, help='decides ids and tokens (default: %(default)s)')
    parser.add_argument('--detached', action='store_true', help='do not end with standard input')
    options = parser.parse_args()
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    with MiniciServer(port=options.port, seed=options.seed, controls=True) as server:
        print(json.dumps(describe(server)), flush=True)
        if not options.detached:
            threading.Thread(target=wait_for_end, args=(stopped,), daemon=True).start()
        while not stopped.wait(0.5):
            pass
    return 0


def wait_for_end(stopped: threading.Event) -> None:
    """Set `stopped` when standard input has ended."""
    with contextlib.suppress(OSError, ValueError):
        while sys.stdin.read(4096):
            pass
    stopped.set()


if __name__ == '__main__':
    sys.exit(main())
