#!/usr/bin/env python3
"""minici under /ci, beside another WSGI application.

    python mount.py --port 8080

Runners are given the address with the prefix (http://127.0.0.1:8080/ci), pages and the Jobs API are below it, and all
addresses that minici makes carry the prefix, because it finds it where WSGI puts it: in SCRIPT_NAME.
"""

import argparse
import threading

import minici


def site(environ, start_response):
    """Answer for all that is not below /ci; your own application, in Flask, Django or anything else."""
    page = b'<!doctype html><title>Site</title><p>This is the site; minici is below /ci.\n'
    start_response('200 OK', [('Content-Type', 'text/html; charset=utf-8'), ('Content-Length', str(len(page)))])
    return [page]


def mount(prefix, inner, outer):
    """Return an application that hands what is below `prefix` to one application and the rest to another."""
    def application(environ, start_response):
        path = environ.get('PATH_INFO', '')
        if path != prefix and not path.startswith(prefix + '/'):
            return outer(environ, start_response)
        return inner({**environ, 'SCRIPT_NAME': environ.get('SCRIPT_NAME', '') + prefix,
                      'PATH_INFO': path.removeprefix(prefix)}, start_response)
    return application


def make_app(coordinator):
    """Return the site, with a coordinator below /ci."""
    return mount('/ci', minici.create_app(coordinator), site)


def main():
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description='minici under /ci, beside another WSGI application.')
    parser.add_argument('--db', default='mount.sqlite', help='the database (default: %(default)s)')
    parser.add_argument('--port', type=int, default=8080, help='port to listen on (default: %(default)s)')
    options = parser.parse_args()
    # Any WSGI server will do; minici.Server is waitress with limits that let large artifacts through.
    with minici.Coordinator(options.db) as ci, \
            minici.Server(ci, port=options.port, application=make_app(ci)) as server:
        try:
            print(f'the site is at {server.url}/, minici at {server.url}/ci\n'
                  f'sign in once with {server.url}/ci/-/sign_in?code={ci.create_sign_in_code()}\n'
                  f'register a runner with --url {server.url}/ci --registration-token {ci.registration_token}',
                  flush=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            print('stopping')


if __name__ == '__main__':
    main()
