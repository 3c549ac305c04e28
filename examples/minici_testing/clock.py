"""A clock that stands still until a test moves it."""

from __future__ import annotations

import threading


class Clock:
    """The time of a coordinator, in seconds since 1970; call it to read it."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._start = now
        self._now = now
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self._now

    def __repr__(self) -> str:
        return f'<Clock at {self._now:.3f}>'

    def advance(self, seconds: float = 0, *, minutes: float = 0, hours: float = 0, days: float = 0) -> float:
        """Let time pass, and return the new time."""
        with self._lock:
            self._now += seconds + 60 * minutes + 3600 * hours + 86400 * days
        return self._now

    def set(self, now: float) -> None:
        """Make it `now`, which may be earlier than before."""
        with self._lock:
            self._now = now

    def reset(self) -> None:
        """Go back to the time of the start."""
        self.set(self._start)
