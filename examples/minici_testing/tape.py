"""A tape of every exchange with a server, without secrets: WSGI middleware to assert on."""

from __future__ import annotations

import fnmatch
import io
import json
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .faults import Answer, Application, Environ, StartResponse, path_of
from .protocol import check_protocol
from .redaction import Secrets, parse_json

MAX_BODY = 64 * 1024    # bytes of a body that a tape keeps
MARGIN = 1024           # bytes more that are looked at, so that no secret is cut in two


@dataclass
class Exchange:
    """One request and its answer. Bodies are texts of at most 64 KiB; secrets are replaced by names."""

    number: int                 # from 1, in the order in which the requests arrived
    method: str
    path: str
    query: str
    headers: dict[str, str]     # of the request
    body: str
    status: int                 # of the answer; 0 when none was sent
    answer_headers: dict[str, str]
    answer: str
    moment: float               # when it arrived, by the server's clock
    actor: str                  # who sent it: '<runner token 1>', '<private token 1>', ..., 'anonymous'
    size: int                   # bytes of the request's whole body
    cut: bool = False           # whether one of the bodies was longer than what is kept
    fault: str = ''             # the fault that was ordered for it

    def __str__(self) -> str:
        query = f'?{self.query}' if self.query else ''
        fault = f' [{self.fault}]' if self.fault else ''
        return f'#{self.number} {self.actor}: {self.method} {self.path}{query} -> {self.status or "no answer"}{fault}'

    __repr__ = __str__

    def header(self, name: str) -> str | None:
        """Return a header of the request, whatever its case, or None."""
        return find_header(self.headers, name)

    def answer_header(self, name: str) -> str | None:
        """Return a header of the answer, whatever its case, or None."""
        return find_header(self.answer_headers, name)

    @property
    def json(self) -> Any:
        """The request's body as JSON, None when it is none."""
        return parse_json(self.body.encode())

    @property
    def answer_json(self) -> Any:
        """The answer's body as JSON, None when it is none."""
        return parse_json(self.answer.encode())

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the request: those of the query, then those of a JSON or form body."""
        found: dict[str, Any] = dict(urllib.parse.parse_qsl(self.query))
        if isinstance(self.json, dict):
            found.update(self.json)
        elif 'urlencoded' in (self.header('Content-Type') or ''):
            found.update(urllib.parse.parse_qsl(self.body))
        return found


def find_header(headers: Mapping[str, str], name: str) -> str | None:
    """Return a header, whatever its case, or None."""
    wanted = name.lower()
    return next((value for header, value in headers.items() if header.lower() == wanted), None)


@dataclass
class Recorded:
    """What goes through one side of an exchange: its first bytes, and how many there were."""

    size: int = 0
    start: bytearray = field(default_factory=bytearray)

    def add(self, data: bytes) -> None:
        """Count some bytes, and keep them while there is room."""
        self.size += len(data)
        room = MAX_BODY + MARGIN - len(self.start)
        if room > 0:
            self.start += data[:room]


class RecordedInput(io.RawIOBase):
    """A request's body that is recorded as the application reads it."""

    def __init__(self, stream: Any, recorded: Recorded) -> None:
        super().__init__()
        self._stream = stream
        self._recorded = recorded

    def read(self, size: int = -1) -> bytes:
        """Read from the body."""
        data = self._stream.read(size)
        self._recorded.add(data)
        return data

    def readline(self, size: int | None = -1) -> bytes:
        """Read a line of the body."""
        data = self._stream.readline(-1 if size is None else size)
        self._recorded.add(data)
        return data


class Tape:
    """WSGI middleware that keeps each exchange; iterate over it, or `find` what you look for.

    `clock` tells the moment of each exchange; `keep` is how many of the newest are kept.
    """

    def __init__(self, app: Application, *, clock: Callable[[], float] = time.time, keep: int = 10_000) -> None:
        self._app = app
        self._clock = clock
        self._keep = keep
        self._changed = threading.Condition()
        self.reset()

    def reset(self) -> None:
        """Forget every exchange and every secret."""
        with self._changed:
            self._exchanges: list[Exchange] = []
            self._count = 0
            self.secrets = Secrets()

    def __iter__(self) -> Iterator[Exchange]:
        with self._changed:
            return iter([*self._exchanges])

    def __len__(self) -> int:
        return len(self._exchanges)

    def __bool__(self) -> bool:
        return True     # an empty tape is still an application

    def __repr__(self) -> str:
        return '\n'.join(str(exchange) for exchange in self) or '(an empty tape)'

    def find(self, method: str = '*', path: str = '*', *, status: int | None = None,
             actor: str | None = None, when: Callable[[Exchange], bool] | None = None) -> list[Exchange]:
        """Return the exchanges that fit; ``*`` in `path` stands for anything, `when` decides the rest."""
        found = []
        for exchange in self:
            fits = method in ('*', exchange.method) and fnmatch.fnmatchcase(exchange.path, path)
            fits = fits and status in (None, exchange.status) and actor in (None, exchange.actor)
            if fits and (when is None or when(exchange)):
                found.append(exchange)
        return found

    def wait_for(self, method: str = '*', path: str = '*', *, count: int = 1, timeout: float = 10,
                 **wanted: Any) -> list[Exchange]:
        """Return `find(...)` as soon as it finds `count` exchanges.

        Raises TimeoutError, which shows the tape, after `timeout` seconds of real time.
        """
        deadline = time.monotonic() + timeout
        while True:
            found = self.find(method, path, **wanted)
            if len(found) >= count:
                return found
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f'{len(found)} of {count} {method} {path} came within {timeout:g} s:\n{self!r}')
            with self._changed:
                self._changed.wait(min(left, 0.1))

    def assert_protocol(self, *, except_rules: Iterable[int] = ()) -> None:
        """Check that each runner on the tape behaved; raise ProtocolError, which names each rule that broke.

        The rules and their numbers are in `minici_testing.protocol`; `except_rules` leaves some out.
        """
        check_protocol([*self], except_rules)

    # -- recording

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one WSGI request and keep what was said."""
        asked = Recorded()
        told = Recorded()
        answer = Answer()
        moment = self._clock()
        with self._changed:
            self._count += 1
            number = self._count
        environ['wsgi.input'] = RecordedInput(environ['wsgi.input'], asked)

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[..., Any]:
            answer.start_response(status, headers, exc_info)
            return start_response(status, headers, exc_info) if exc_info else start_response(status, headers)

        try:
            pieces = self._app(environ, start)
        except BaseException:
            self._record(environ, number, moment, asked, told, Answer())
            raise
        return self._recorded(pieces, lambda: self._record(environ, number, moment, asked, told, answer), told)

    @staticmethod
    def _recorded(pieces: Iterable[bytes], record: Callable[[], None], told: Recorded) -> Iterator[bytes]:
        """Yield an answer, and record the exchange before its last piece is out."""
        iterator = iter(pieces)
        try:
            held = next(iterator, b'')
            told.add(held)
            try:
                for piece in iterator:
                    yield held
                    told.add(piece)
                    held = piece
            finally:
                record()    # before the client can know that the answer is over
            yield held
        finally:
            close = getattr(pieces, 'close', None)
            if close is not None:
                close()

    def _record(self, environ: Environ, number: int, moment: float, asked: Recorded, told: Recorded,
                answer: Answer) -> None:
        """Keep an exchange without its secrets."""
        path = path_of(environ)
        query = environ.get('QUERY_STRING', '')
        headers = request_headers(environ)
        answer_headers = dict(answer.headers)
        self._learn(path, query, headers, bytes(asked.start), answer_headers, bytes(told.start))
        rule = environ.get('minici_testing.fault')
        redact = self.secrets.redact
        exchange = Exchange(
            number=number, method=environ['REQUEST_METHOD'], path=redact(path), query=redact(query),
            headers={name: redact(value) for name, value in headers.items()}, body=self._text(asked),
            status=int(answer.status[:3] or 0),
            answer_headers={name: redact(value) for name, value in answer_headers.items()}, answer=self._text(told),
            moment=moment, actor='', size=asked.size, cut=max(asked.size, told.size) > MAX_BODY,
            fault=str(rule) if rule else '')
        exchange.actor = actor_of(exchange)
        with self._changed:
            self._exchanges.append(exchange)
            self._exchanges.sort(key=lambda item: item.number)
            del self._exchanges[:-self._keep]
            self._changed.notify_all()

    def _learn(self, path: str, query: str, headers: dict[str, str], asked: bytes, answer_headers: dict[str, str],
               told: bytes) -> None:
        """Learn the secrets of an exchange before any of it is kept."""
        parameters = dict(urllib.parse.parse_qsl(query))
        self.secrets.learn_from('request', path, headers, parameters)
        body: Any = parse_json(asked)
        content_type = find_header(headers, 'Content-Type') or ''
        if 'urlencoded' in content_type:
            body = dict(urllib.parse.parse_qsl(asked.decode('utf-8', 'replace')))
        if 'multipart' in content_type:
            body = form_fields(asked)
        self.secrets.learn_from('request', path, {}, body)
        self.secrets.learn_from('answer', path, answer_headers, parse_json(told))

    def _text(self, recorded: Recorded) -> str:
        """Return the beginning of a body as a text without secrets."""
        text = self.secrets.redact(recorded.start.decode('utf-8', 'replace'))
        return text[:MAX_BODY]

    # -- saving and replaying

    def save(self, path: str | Path) -> None:
        """Write the tape as text, one exchange a line of JSON behind a line for people."""
        with open(path, 'w', encoding='utf-8') as file:
            for exchange in self:
                file.write(f'# {exchange}\n{json.dumps(asdict(exchange))}\n')

    @staticmethod
    def load(path: str | Path) -> list[Exchange]:
        """Return the exchanges of a saved tape."""
        lines = Path(path).read_text(encoding='utf-8').splitlines()
        return [Exchange(**json.loads(line)) for line in lines if not line.startswith('#')]


def replay(exchanges: Iterable[Exchange], server: Replayed) -> list[tuple[Exchange, int]]:
    """Send saved exchanges to another server in their order; return those whose status differs, with the new one.

    A server with the same seed gives the same ids; the names of tokens become the tokens that the
    server has given out by then. Raises ValueError for an exchange that was cut.
    """
    differing = []
    for exchange in exchanges:
        if exchange.cut:
            raise ValueError(f'{exchange} was too long to be kept whole')
        restore = server.tape.secrets.restore
        target = restore(exchange.path + (f'?{exchange.query}' if exchange.query else ''))
        headers = {name: restore(value) for name, value in exchange.headers.items() if name not in NOT_REPLAYED}
        request = urllib.request.Request(server.url + target, restore(exchange.body).encode(), headers,
                                         method=exchange.method)
        status = send(request)
        if status != exchange.status:
            differing.append((exchange, status))
    return differing


#: Headers that the replaying client sets itself.
NOT_REPLAYED = ('Host', 'Connection', 'Content-Length', 'Accept-Encoding', 'Transfer-Encoding')


class Replayed(Protocol):
    """What `replay` wants of a server."""

    url: str
    tape: Tape


def send(request: urllib.request.Request) -> int:
    """Send a request and return the status of its answer, 0 when there is none."""
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


FIELD = re.compile(rb'name="([^"]+)"(?:;[^\r\n]*)?\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]*)\r\n')


def form_fields(body: bytes) -> dict[str, str]:
    """Return the short fields of a multipart form."""
    return {name.decode('utf-8', 'replace'): value.decode('utf-8', 'replace') for name, value in FIELD.findall(body)}


def request_headers(environ: Environ) -> dict[str, str]:
    """Return the headers of a request."""
    headers = {}
    for key, value in environ.items():
        name = key.removeprefix('HTTP_')
        if name != key or key in ('CONTENT_TYPE', 'CONTENT_LENGTH'):
            headers[name.replace('_', '-').title()] = value
    return {name: value for name, value in headers.items() if value}


def actor_of(exchange: Exchange) -> str:
    """Return the name of the secret that an exchange was sent with."""
    for name in ('Job-Token', 'Build-Token', 'Private-Token', 'Authorization', 'Cookie'):
        found = re.search('<[^<>]+>', exchange.header(name) or '')
        if found:
            return found[0]
    token = exchange.parameters.get('token') or exchange.parameters.get('private_token') or ''
    return token if str(token).startswith('<') else 'anonymous'
