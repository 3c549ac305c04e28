"""A client that calls a WSGI application in the same process: no socket, no faults, nothing on the tape."""

from __future__ import annotations

import io
import json
import sys
from typing import Any
from urllib.parse import urlsplit

from .faults import Answer, Application, collect


class Response:
    """An answer: `status`, `headers` and `body`."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def call(app: Application, url: str, method: str, path: str, *, body: Any = None,
         headers: dict[str, str] | None = None) -> Response:
    """Send a request to an application that is served at `url`; a `body` that is no bytes goes out as JSON."""
    address = urlsplit(url)
    data = body if isinstance(body, bytes) else b'' if body is None else json.dumps(body).encode()
    environ = {
        'REQUEST_METHOD': method,
        'SCRIPT_NAME': '',
        'PATH_INFO': path,
        'QUERY_STRING': '',
        'REQUEST_URI': path,
        'SERVER_NAME': address.hostname,
        'SERVER_PORT': str(address.port),
        'SERVER_PROTOCOL': 'HTTP/1.1',
        'HTTP_HOST': address.netloc,
        'HTTP_USER_AGENT': 'gitlab-runner 18.0.0 (minici_testing)',
        'REMOTE_ADDR': '127.0.0.1',
        'CONTENT_LENGTH': str(len(data)),
        'CONTENT_TYPE': 'application/json',
        'wsgi.version': (1, 0),
        'wsgi.url_scheme': address.scheme,
        'wsgi.input': io.BytesIO(data),
        'wsgi.errors': sys.stderr,
        'wsgi.multithread': True,
        'wsgi.multiprocess': False,
        'wsgi.run_once': False,
    }
    for name, value in (headers or {}).items():
        key = name.upper().replace('-', '_')
        environ[key if key == 'CONTENT_TYPE' else f'HTTP_{key}'] = value
    answer = Answer()
    content = b''.join(collect(app(environ, answer.start_response)))
    return Response(int(answer.status[:3]), dict(answer.headers), content)
