"""The controls over HTTP, for tests in other languages: faults, clock, reset and tape below ``/-/test/``.

They answer to programs on this machine alone: the connection and the name of the host must be of the
loopback, and a request that a browser sends for a web page is refused.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qsl

from .faults import Environ, Fault, StartResponse
from .server import MiniciServer

PREFIX = '/-/test'
STATUSES = {200: '200 OK', 201: '201 Created', 400: '400 Bad Request', 403: '403 Forbidden', 404: '404 Not Found',
            405: '405 Method Not Allowed'}
#: The keywords of `Faults.add` that JSON can carry.
RULE_FIELDS = ('nth', 'times', 'chance', 'status', 'headers', 'body', 'fault', 'delay')
MAX_BODY = 1024 * 1024      # bytes of a request


class Refused(Exception):
    """A request that cannot be served, with its status and what was wrong."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Controls:
    """WSGI middleware in front of a server's application that answers below ``/-/test/``."""

    def __init__(self, server: MiniciServer) -> None:
        self._server = server
        self._tape = server.tape

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a control, or pass the request on."""
        path = environ.get('PATH_INFO', '')
        if path != PREFIX and not path.startswith(f'{PREFIX}/'):
            return self._tape(environ, start_response)
        try:
            check_caller(environ)
            status, value = self._answer(environ, path.removeprefix(PREFIX).strip('/'))
        except Refused as refusal:
            status, value = refusal.status, {'error': str(refusal)}
        body = json.dumps(value).encode()
        headers = [('Content-Type', 'application/json'), ('Content-Length', str(len(body)))]
        start_response(STATUSES[status], headers)
        return [body]

    def _answer(self, environ: Environ, name: str) -> tuple[int, Any]:
        """Return the status and the JSON of an answer."""
        method = environ['REQUEST_METHOD']
        control, _, argument = name.partition('/')
        controls = {
            ('GET', ''): self._describe,
            ('GET', 'faults'): self._list_faults,
            ('POST', 'faults'): self._add_fault,
            ('DELETE', 'faults'): self._remove_fault,
            ('GET', 'clock'): self._read_clock,
            ('POST', 'clock'): self._move_clock,
            ('POST', 'reset'): self._reset,
            ('GET', 'tape'): self._read_tape,
        }
        handler = controls.get((method, control))
        if handler is None:
            known = {wanted for _, wanted in controls}
            raise Refused(405 if control in known else 404, f'there is no {method} {PREFIX}/{name}')
        return handler(environ, argument)

    def _describe(self, environ: Environ, argument: str) -> tuple[int, Any]:
        """Say where the server is and which tokens it takes."""
        return 200, describe(self._server)

    def _list_faults(self, environ: Environ, argument: str) -> tuple[int, Any]:
        """List the rules."""
        return 200, [rule.as_json() for rule in self._server.faults.rules]

    def _add_fault(self, environ: Environ, argument: str) -> tuple[int, Any]:
        """Order a fault."""
        given = read_json(environ)
        unknown = given.keys() - {'method', 'path', *RULE_FIELDS}
        if unknown:
            raise Refused(400, f'unknown: {", ".join(sorted(unknown))}; known: method, path, {", ".join(RULE_FIELDS)}')
        options = {name: given[name] for name in RULE_FIELDS if name in given}
        try:
            rule = self._server.faults.add(given.get('method', '*'), given['path'], **options)
        except KeyError:
            raise Refused(400, 'path is missing') from None
        except (ValueError, TypeError, AttributeError) as error:
            names = ', '.join(fault.value for fault in Fault)
            raise Refused(400, f'{error} (faults are {names})') from None
        return 201, rule.as_json()

    def _remove_fault(self, environ: Environ, argument: str) -> tuple[int, Any]:
        """Take a rule back."""
        try:
            self._server.faults.remove(int(argument))
        except (KeyError, ValueError):
            raise Refused(404, f'there is no fault {argument}') from None
        return 200, {}

    def _read_clock(self, environ: Environ, argument: str) -> tuple[int, Any]:
        """Tell the server's time."""
        return 200, {'now': self._server.clock()}

    def _move_clock(self, environ: Environ, argument: str) -> tuple[int, Any]:
        """Let time pass (`advance`, in seconds) or set it (`now`), and do what is due by then."""
        given = read_json(environ)
        clock = self._server.clock
        for name in ('now', 'advance'):
            if not isinstance(given.get(name, 0), (int, float)):
                raise Refused(400, f'{name} must be a number of seconds')
        if not given.keys() & {'now', 'advance'}:
            raise Refused(400, 'send {"advance": SECONDS} or {"now": SECONDS_SINCE_1970}')
        if 'now' in given:
            clock.set(given['now'])
        clock.advance(given.get('advance', 0))
        self._server.ci.sweep()
        return 200, {'now': clock()}

    def _reset(self, environ: Environ, argument: str) -> tuple[int, Any]:
        """Begin again, and say which faults had never been used."""
        unused = [str(rule) for rule in self._server.faults.unused()]
        self._server.reset()
        return 200, {**describe(self._server), 'unused_faults': unused}

    def _read_tape(self, environ: Environ, argument: str) -> tuple[int, Any]:
        """Return the exchanges, without secrets; `method`, `path` and `status` choose among them."""
        wanted = dict(parse_qsl(environ.get('QUERY_STRING', '')))
        status = wanted.get('status', '')
        if status and not status.isdecimal():
            raise Refused(400, 'status must be a number')
        found = self._tape.find(wanted.get('method', '*'), wanted.get('path', '*'),
                                status=int(status) if status else None)
        return 200, [asdict(exchange) for exchange in found]


def describe(server: MiniciServer) -> dict[str, str]:
    """Return a server's address and tokens."""
    return {
        'url': server.url,
        'registration_token': server.registration_token,
        'private_token': server.private_token,
    }


def check_caller(environ: Environ) -> None:
    """Raise Refused unless a program on this machine is calling."""
    host = environ.get('HTTP_HOST', '').rpartition(':')[0].strip('[]')
    if not is_loopback(environ.get('REMOTE_ADDR', '')) or not (host == 'localhost' or is_loopback(host)):
        raise Refused(403, 'the controls answer to this machine alone')
    if environ.get('HTTP_ORIGIN') or environ.get('HTTP_SEC_FETCH_SITE', 'none') != 'none':
        raise Refused(403, 'the controls do not answer to web pages')


def is_loopback(address: str) -> bool:
    """Tell whether an address is of this machine's loopback."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def read_json(environ: Environ) -> dict[str, Any]:
    """Return the JSON object in a request's body."""
    length = int(environ.get('CONTENT_LENGTH') or 0)
    if length > MAX_BODY:
        raise Refused(400, f'the body has more than {MAX_BODY} bytes')
    try:
        value = json.loads(environ['wsgi.input'].read(length) or b'{}')
    except ValueError:
        raise Refused(400, 'the body is not JSON') from None
    if not isinstance(value, dict):
        raise Refused(400, 'the body must be a JSON object')
    return value
