"""Faults on cue: WSGI middleware that makes chosen requests go wrong.

Wrap any application in `Faults`; it does nothing until a rule is added::

    faults = Faults(app)
    faults.add('PATCH', '/api/v4/jobs/*/trace', nth=3, status=500)
    faults.add('POST', '/api/v4/jobs/request', fault=Fault.LOST_ANSWER)
"""

from __future__ import annotations

import dataclasses
import enum
import fnmatch
import itertools
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

SLICES = 8              # pieces of an answer that is sent in slow slices
DEFAULT_DELAY = 0.05    # seconds between two slices
HANG = 60.0             # seconds after which a request without an answer is given up


class Fault(enum.Enum):
    """What can go wrong on the wire, under the names that WireMock and toxiproxy gave it."""

    EMPTY_RESPONSE = 'empty_response'       # not processed; the connection is closed
    LOST_ANSWER = 'lost_answer'             # processed; the connection is closed instead of an answer
    RESET_BY_PEER = 'reset_by_peer'         # not processed; the connection is reset
    TIMEOUT = 'timeout'                     # not processed; nothing comes back for `delay` seconds
    MALFORMED_CHUNK = 'malformed_chunk'     # not processed; status 200, then nonsense where a chunk should stand
    RANDOM_DATA = 'random_data'             # not processed; bytes that are no HTTP
    SLOW_SLICES = 'slow_slices'             # processed; the answer comes in pieces, `delay` seconds apart
    LIMITED_BYTES = 'limited_bytes'         # processed; the connection is closed after half of the body


#: The faults that need the connection itself, before or instead of an answer.
BREAKS_CONNECTION = frozenset({Fault.EMPTY_RESPONSE, Fault.LOST_ANSWER, Fault.RESET_BY_PEER, Fault.TIMEOUT,
                               Fault.MALFORMED_CHUNK, Fault.RANDOM_DATA})


@dataclass
class Rule:
    """One fault that was ordered; `seen` counts the requests that it matched, `fired` those that it changed."""

    id: int
    method: str
    path: str
    nth: int = 1
    times: int | None = 1
    when: Callable[[Environ], bool] | None = None
    chance: float = 1.0
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b''
    fault: Fault | None = None
    delay: float = 0.0
    corrupt: Callable[[bytes], bytes] | None = None
    seen: int = 0
    fired: int = 0

    def matches(self, environ: Environ) -> bool:
        """Tell whether a request is one that this rule is about."""
        if self.method not in ('*', environ['REQUEST_METHOD']):
            return False
        if not fnmatch.fnmatchcase(path_of(environ), self.path):
            return False
        return self.when is None or bool(self.when(environ))

    def is_due(self) -> bool:
        """Tell whether the request that was just counted is one of those that go wrong."""
        if self.seen < self.nth:
            return False
        return self.times is None or self.seen < self.nth + self.times

    def __str__(self) -> str:
        what = self._what()
        return f'{self.method} {self.path} (number {self.nth}, {self.times or "any number of"} times): {what}'

    def _what(self) -> str:
        """Return in words what goes wrong."""
        said = []
        if self.delay:
            said.append(f'{self.delay:g} s late')
        if self.status is not None:
            said.append(f'status {self.status}')
        if self.fault is not None:
            said.append(self.fault.value)
        if self.corrupt is not None:
            said.append('a corrupted body')
        return ', '.join(said)

    def as_json(self) -> dict[str, Any]:
        """Return the rule as the HTTP controls show it."""
        shown = dataclasses.asdict(dataclasses.replace(self, when=None, corrupt=None))
        del shown['when'], shown['corrupt']
        shown['fault'] = self.fault.value if self.fault else None
        shown['body'] = self.body.decode('utf-8', 'replace')
        return shown


class UnusedFault(AssertionError):
    """A fault was ordered and never happened."""


class Faults:
    """WSGI middleware that makes requests go wrong as its rules say.

    `seed` decides the rules with a `chance`. Requests are counted per rule in the order in which they
    arrive, so that a request which a rule does not match never uses it up.
    """

    def __init__(self, app: Application, *, seed: int = 0) -> None:
        self._app = app
        self._seed = seed
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget all rules, and begin with the seed again."""
        with self._lock:
            self._rules: dict[int, Rule] = {}
            self._random = random.Random(self._seed)
            self._numbers = itertools.count(1)
            self._released = threading.Event()

    def release(self) -> None:
        """End the requests that hang in a timeout or delay at once."""
        self._released.set()

    def add(self, method: str, path: str, *, nth: int = 1, times: int | None = 1,
            when: Callable[[Environ], bool] | None = None, chance: float = 1.0, status: int | None = None,
            headers: Mapping[str, str] | None = None, body: bytes | str = b'', fault: Fault | str | None = None,
            delay: float = 0.0, corrupt: Callable[[bytes], bytes] | None = None) -> Rule:
        """Order a fault and return its rule.

        `method` is a method or ``*``; `path` a path in which ``*`` stands for anything. The fault happens
        to the `nth` matching request and to the `times` - 1 after it (None: to all after it), as far as
        `when`, called with the WSGI environment, says yes, and with the probability `chance`. What
        happens: an answer with `status`, `headers` and `body` instead of the application's; a `fault`;
        a `delay` in seconds before all else; the body of the application's answer changed by
        `corrupt`. Raises ValueError when nothing is to happen, or a number makes no sense.
        """
        kind = Fault(fault) if isinstance(fault, str) else fault
        if status is None and kind is None and corrupt is None and not delay:
            raise ValueError('say what goes wrong: status, fault, corrupt or delay')
        if nth < 1 or (times is not None and times < 1):
            raise ValueError('nth and times count from 1')
        if status is not None and not 100 <= status <= 599:
            raise ValueError(f'{status} is not an HTTP status')
        if not 0 < chance <= 1:
            raise ValueError('chance is a probability, over 0 and at most 1')
        content = body.encode() if isinstance(body, str) else body
        with self._lock:
            rule = Rule(next(self._numbers), method, path, nth, times, when, chance, status, dict(headers or {}),
                        content, kind, delay, corrupt)
            self._rules[rule.id] = rule
        return rule

    def remove(self, rule: Rule | int) -> None:
        """Take a rule back; raise KeyError when there is none."""
        number = rule if isinstance(rule, int) else rule.id
        with self._lock:
            del self._rules[number]

    @property
    def rules(self) -> list[Rule]:
        """The rules, oldest first."""
        with self._lock:
            return [*self._rules.values()]

    def unused(self) -> list[Rule]:
        """Return the rules that never made anything go wrong."""
        return [rule for rule in self.rules if not rule.fired]

    def assert_used(self) -> None:
        """Raise UnusedFault, which names them, when there are rules that never made anything go wrong."""
        unused = self.unused()
        if not unused:
            return
        lines = [f'  {rule}: matched {rule.seen} requests' for rule in unused]
        raise UnusedFault('these faults never happened:\n' + '\n'.join(lines))

    def _due(self, environ: Environ) -> Rule | None:
        """Count a request for all rules that match it, and return the first that is due."""
        due = None
        for rule in self.rules:
            if not rule.matches(environ):
                continue
            with self._lock:
                rule.seen += 1
                happens = rule.is_due() and self._random.random() < rule.chance
                if happens and due is None:
                    rule.fired += 1
                    due = rule
        return due

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one WSGI request, or make it go wrong."""
        rule = self._due(environ)
        if rule is None:
            return self._app(environ, start_response)
        environ['minici_testing.fault'] = rule
        if rule.delay and rule.fault not in (Fault.SLOW_SLICES, Fault.TIMEOUT):
            self._released.wait(rule.delay)
        if rule.fault in BREAKS_CONNECTION:
            self._break(rule, environ)
        if rule.status is not None:
            return answer_of(rule, start_response)
        return self._changed(rule, environ, start_response)

    def _break(self, rule: Rule, environ: Environ) -> NoReturn:
        """Do what needs the connection itself."""
        connection = socket_of(environ)
        if rule.fault is Fault.LOST_ANSWER:
            swallow(self._app(environ, forget_answer))
        if rule.fault is Fault.TIMEOUT:
            self._released.wait(rule.delay or HANG)
        if rule.fault is Fault.RESET_BY_PEER:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        if rule.fault is Fault.MALFORMED_CHUNK:
            connection.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno size\r\n')
        if rule.fault is Fault.RANDOM_DATA:
            connection.sendall(self._random.randbytes(256))
        close_connection()

    def _changed(self, rule: Rule, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Send the application's answer with its body corrupted, slowly, or cut short."""
        answer = Answer()
        body = b''.join(collect(self._app(environ, answer.start_response)))
        if rule.corrupt is not None:
            body = rule.corrupt(body)
        answer.set_header('Content-Length', str(len(body)))
        start_response(answer.status, answer.headers)
        if rule.fault is Fault.SLOW_SLICES:
            return self._slices(body, rule.delay or DEFAULT_DELAY)
        if rule.fault is Fault.LIMITED_BYTES:
            return cut_short(body)
        return [body]

    def _slices(self, body: bytes, delay: float) -> Iterator[bytes]:
        """Yield an answer in pieces with pauses between them."""
        step = max(1, -(-len(body) // SLICES))
        for start in range(0, len(body), step):
            self._released.wait(delay)
            yield body[start:start + step]


class Answer:
    """The status and headers of an answer that is held back; a `start_response` of WSGI fills it in."""

    def __init__(self) -> None:
        self.status = ''
        self.headers: list[tuple[str, str]] = []

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[..., Any]:
        """Take down what the application says; the old `write` of WSGI is not offered."""
        self.status = status
        self.headers = headers
        return no_write

    def set_header(self, name: str, value: str) -> None:
        """Replace a header."""
        kept = [pair for pair in self.headers if pair[0].lower() != name.lower()]
        self.headers = [*kept, (name, value)]


def no_write(data: bytes) -> None:
    """Refuse the `write` of old WSGI applications."""
    raise NotImplementedError('write() of WSGI is not supported here')


def forget_answer(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[..., Any]:
    """Take an answer that nobody is to see."""
    return no_write


def collect(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces of an answer, and close it as WSGI wants."""
    try:
        yield from pieces
    finally:
        close = getattr(pieces, 'close', None)
        if close is not None:
            close()


def swallow(pieces: Iterable[bytes]) -> None:
    """Read an answer to its end."""
    for _ in collect(pieces):
        pass


def path_of(environ: Environ) -> str:
    """Return the path of a request as it was sent, without the query."""
    sent = environ.get('REQUEST_URI') or environ.get('RAW_URI')
    if sent:
        return sent.partition('?')[0]
    return environ.get('SCRIPT_NAME', '') + environ.get('PATH_INFO', '')


def answer_of(rule: Rule, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the status, headers and body of a rule."""
    headers = {'Content-Type': 'text/plain', **rule.headers, 'Content-Length': str(len(rule.body))}
    start_response(f'{rule.status} Ordered by the test', [*headers.items()])
    return [rule.body]


def socket_of(environ: Environ) -> socket.socket:
    """Return the connection of a request; raise RuntimeError when its server hides it."""
    check = environ.get('waitress.client_disconnected')
    channel = getattr(check, '__self__', None)
    if channel is None:
        raise RuntimeError('this fault needs the connection itself, and only waitress (minici.Server) gives it away')
    return channel.socket


def cut_short(body: bytes) -> Iterator[bytes]:
    """Yield half of an answer, then close the connection."""
    yield body[:len(body) // 2]
    yield b''   # whoever looks one piece ahead has passed the half on by now
    close_connection()


def close_connection() -> NoReturn:
    """Make waitress close the connection of a request without an answer."""
    from waitress.channel import ClientDisconnected
    raise ClientDisconnected
