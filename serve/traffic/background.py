"""A thread that does what can wait, at most every so often, and sleeps while there is nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

__all__ = ["Background"]

_LOG = logging.getLogger(__name__)


class Background:
    """Runs one function in a thread after it was woken.

    Args:
        work: Does all that there is to do. An error of it is logged, and the next call comes all the same.
        name: Of the thread.
        apart_s: Between the end of a call and the next.
    """

    def __init__(self, work: Callable[[], None], name: str, *, apart_s: float = 0.1) -> None:
        self._work, self._apart_s = work, apart_s
        self._has_work = threading.Event()
        self._is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """There is something to do. Cheap, from any thread."""
        if not self._has_work.is_set():
            self._has_work.set()

    def close(self, timeout_s: float = 10.0) -> None:
        """Do what is left and end the thread; closing twice, or what was never started, is harmless.

        Args:
            timeout_s: How long to wait for it; with 0 it ends by itself.
        """
        self._is_ending.set()
        self._has_work.set()
        if timeout_s > 0 and self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._is_ending.is_set():
            self._has_work.wait()
            self._has_work.clear()
            self._once()
            self._is_ending.wait(self._apart_s)
        self._once()

    def _once(self) -> None:
        try:
            self._work()
        except Exception:  # noqa: BLE001 - what waits behind it is to be done all the same
            _LOG.exception("%s could not do its work", self._thread.name)
