"""Tools for test suites that need a GitLab CI: a pytest plugin, faults on cue, and a tape of what was said.

    def test_my_runner_survives_a_lost_answer(minici_server):
        minici_server.faults.add('POST', '/api/v4/jobs/request', fault=Fault.LOST_ANSWER)
        ...

`plugin` holds the fixtures, `faults` and `tape` are WSGI middleware for any application, `server` is what the
fixture `minici_server` returns, and ``python -m minici_testing`` offers the same to other languages over HTTP.
Nothing is imported here until it is asked for, because pytest loads this package at every start.
"""

from __future__ import annotations

import importlib
from typing import Any

#: Where each public name of the package stands.
HOMES = {
    'Clock': 'clock',
    'Exchange': 'tape',
    'Fault': 'faults',
    'Faults': 'faults',
    'JobFailed': 'server',
    'JobState': 'server',
    'ProtocolError': 'protocol',
    'Tape': 'tape',
    'replay': 'tape',
    'MiniciServer': 'server',
}
__all__ = list(HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name of the package when it is first used."""
    if name not in HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module = importlib.import_module(f'{__name__}.{HOMES[name]}')
    return getattr(module, name)
