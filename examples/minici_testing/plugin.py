"""The pytest plugin: fixtures that start a GitLab CI, and a report of it when a test fails.

Nothing of minici is imported until a fixture is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .server import MiniciServer


@pytest.fixture
def minici_server(minici_factory: Callable[..., MiniciServer]) -> Iterator[MiniciServer]:
    """A started server with `ci`, `url`, `registration_token`, `private_token`, `clock`, `faults` and `tape`.

    It is new for each test. At the end the test fails if the server answered 500 without being
    told to, or if a fault that was ordered never happened.
    """
    server = minici_factory()
    yield server
    minici_factory.close(server)    # type: ignore[attr-defined]
    check(server)


@pytest.fixture(scope='session')
def minici_factory() -> Iterator[Callable[..., MiniciServer]]:
    """A function that starts as many servers as are wanted; its keywords are those of `MiniciServer`.

    The servers run until the session ends or `minici_factory.close(server)` is called. For one server
    in a module or session, write a fixture of that scope over this one, and call `server.reset()`
    between tests.
    """
    factory = Factory()
    yield factory
    factory.close_all()


class Factory:
    """Starts servers and knows which are running."""

    def __init__(self) -> None:
        self.running: list[MiniciServer] = []

    def __call__(self, **settings: Any) -> MiniciServer:
        from .server import MiniciServer
        server = MiniciServer(**settings)
        self.running.append(server)
        return server

    def close(self, server: MiniciServer) -> None:
        """Stop a server."""
        self.running.remove(server)
        server.stop()

    def close_all(self) -> None:
        """Stop every server that is still running."""
        for server in [*self.running]:
            self.close(server)


def check(server: MiniciServer) -> None:
    """Fail the test if a server answered 500 unasked or a fault was never used."""
    errors = server.unexpected_errors()
    if errors:
        told = '\n'.join(f'{error}\n    {error.answer}' for error in errors)
        pytest.fail(f'the server answered 500, and no fault ordered that:\n{told}', pytrace=False)
    try:
        server.faults.assert_used()
    except AssertionError as unused:
        pytest.fail(str(unused), pytrace=False)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add the servers' jobs and exchanges to the report of a test that failed."""
    outcome = yield
    report = outcome.get_result()   # type: ignore[attr-defined]
    used = getattr(item, 'funcargs', {})
    if report.when != 'call' or not report.failed:
        return
    factory = used.get('minici_factory')
    for server in getattr(factory, 'running', []):
        report.sections.append((f'minici at {server.url}', server.report()))
