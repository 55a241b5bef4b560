"""How long a training took over all its parts, and when it has to end."""

from __future__ import annotations

import time

__all__ = ["Clock"]


class Clock:
    """Time since the start, that of earlier interrupted parts included.

    Args:
        limit_seconds: Time that the training may take; None for as long as it needs.
        before_seconds: Time that interrupted parts took.
    """

    def __init__(self, limit_seconds: float | None = None, before_seconds: float = 0.0) -> None:
        self.limit_seconds = limit_seconds
        self._start = time.monotonic() - before_seconds
        self._agreed = before_seconds  # by the first process's clock, as of the last update: all decide by it

    @property
    def elapsed(self) -> float:
        """Seconds by this process's own clock."""
        return time.monotonic() - self._start

    @property
    def fraction(self) -> float:
        """Share of the time that has passed, as all processes know it; 0 without a limit."""
        return self._agreed / self.limit_seconds if self.limit_seconds else 0.0

    def agree(self, seconds: float) -> None:
        """Take over the first process's time."""
        self._agreed = seconds
