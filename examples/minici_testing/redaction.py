"""Secrets by name: what a tape shows in the place of tokens, passwords and masked values."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

SHORTEST = 8            # characters; shorter texts are no secrets of ours
#: Headers that carry a secret, and what to call it.
HEADERS = {
    'private-token': 'private token',
    'job-token': 'job token',
    'build-token': 'job token',
    'x-gitlab-token': 'webhook token',
    'authorization': 'authorization',
    'cookie': 'cookie',
    'set-cookie': 'cookie',
}
#: Parameters and members of JSON that are secret whatever the address, and what to call them.
FIELDS = {
    'private_token': 'private token',
    'job_token': 'job token',
    'runners_token': 'registration token',
    'webhook_token': 'webhook token',
    'password': 'password',
}
#: What `token` means, by the address that it comes in or goes out with.
ADDRESSES = (
    (re.compile(r'/jobs/request$|/builds/register$'), {'request': 'runner token', 'answer': 'job token'}),
    (re.compile(r'/runners(/register)?$'), {'request': 'registration token', 'answer': 'runner token'}),
    (re.compile(r'/runners/|/user/runners'), {'request': 'runner token', 'answer': 'runner token'}),
    (re.compile(r'/jobs/|/builds/'), {'request': 'job token', 'answer': 'job token'}),
    (re.compile(r'/trigger'), {'request': 'trigger token', 'answer': 'trigger token'}),
)


class Secrets:
    """The secrets that a tape has met, each under a name that is the same in every run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def learn(self, secret: str, kind: str) -> None:
        """Remember a secret under the next name of its kind, such as ``<job token 2>``."""
        if len(secret) < SHORTEST:
            return
        with self._lock:
            if secret in self._names:
                return
            self._counts[kind] += 1
            self._names[secret] = f'<{kind} {self._counts[kind]}>'

    def values(self) -> dict[str, str]:
        """Return the secrets by name."""
        with self._lock:
            return {name: secret for secret, name in self._names.items()}

    def redact(self, text: str) -> str:
        """Return a text with every known secret replaced by its name."""
        with self._lock:
            known = sorted(self._names.items(), key=lambda item: len(item[0]), reverse=True)
        for secret, name in known:
            text = text.replace(secret, name)
        return text

    def restore(self, text: str) -> str:
        """Return a text with the names of secrets replaced by the secrets."""
        for name, secret in self.values().items():
            text = text.replace(name, secret)
        return text

    def learn_from(self, way: str, path: str, headers: Mapping[str, str], parameters: Any) -> None:
        """Learn the secrets of one side of an exchange.

        `way` is ``request`` or ``answer``, `parameters` the body as parsed from JSON or a form.
        """
        for header, value in headers.items():
            kind = HEADERS.get(header.lower())
            if kind:
                self._learn_header(kind, value)
        for name, value, holder in members(parameters):
            self._learn_member(way, path, name, value, holder)

    def _learn_header(self, kind: str, value: str) -> None:
        """Learn the secret in a header: a token, the part behind a scheme, or the value of a cookie."""
        secret = value.rpartition(' ')[2] if kind == 'authorization' else value
        if kind == 'cookie':
            secret = value.partition(';')[0].partition('=')[2]
        self.learn(secret, kind)

    def _learn_member(self, way: str, path: str, name: str, value: str, holder: Mapping[str, Any]) -> None:
        """Learn a member of JSON or a parameter of a form, if it is a secret."""
        if name in FIELDS:
            self.learn(value, FIELDS[name])
        elif name == 'token':
            self.learn(value, kind_of_token(way, path))
        elif name == 'value' and holder.get('masked') is True:
            self.learn(value, f'variable {holder.get("key")}')


def kind_of_token(way: str, path: str) -> str:
    """Return what a parameter or member called `token` is at an address."""
    for pattern, kinds in ADDRESSES:
        if pattern.search(path):
            return kinds[way]
    return 'token'


def members(value: Any) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield the texts in JSON, however deep: name, text, and the object that holds them."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        if not isinstance(item, dict):
            continue
        for name, inner in item.items():
            if isinstance(inner, str):
                yield name, inner, item
            else:
                waiting.append(inner)


def parse_json(body: bytes) -> Any:
    """Return the JSON in a body, or None when it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
