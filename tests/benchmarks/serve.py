"""Serve a database in a process of its own; print the address. ``/hello`` answers a constant on the same server."""

import argparse
import signal
import sys
import threading
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / 'examples')]

import bottle  # noqa: E402

import minici  # noqa: E402


def hello():
    """Return the smallest Bottle application: it reads the body and answers a constant."""
    app = bottle.Bottle()

    @app.route('/hello', method=['GET', 'POST', 'PATCH'])
    def constant():
        bottle.request.environ['wsgi.input'].read(int(bottle.request.environ.get('CONTENT_LENGTH') or 0))
        return 'ok'
    return app


def main():
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('database')
    parser.add_argument('--no-fsync', action='store_true')
    parser.add_argument('--threads', type=int, default=8)
    options = parser.parse_args()
    ci = minici.Coordinator(options.database, fsync=not options.no_fsync)
    ours, constant = minici.create_app(ci), hello()
    served = minici.Server(ci, threads=options.threads, application=lambda environ, start_response: (
        constant if environ['PATH_INFO'] == '/hello' else ours)(environ, start_response))
    done = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: done.set())
    print(served.url, flush=True)
    done.wait()
    served.stop(1)
    ci.close()


if __name__ == '__main__':
    main()
