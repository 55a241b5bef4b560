"""Wait until a moment, to some ten microseconds, while other greenlets run.

gevent's own timers end at epoll's next whole millisecond, which is as long as the lag that is allowed. A timer of the
kernel's that becomes a readable file wakes the loop when it is time, and costs nothing until then.
"""

from __future__ import annotations

import ctypes
import os
import time

import gevent
from gevent.hub import get_hub

__all__ = ["Alarm"]

_MONOTONIC = 1
_ABSOLUTE = 1
_SPIN_NS = 1_200_000


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """Sleeps until moments of `time.monotonic_ns`.

    Source: timerfd_create(2). Where the system has no such timers, the last millisecond is spent looking at the clock.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = -1
        if hasattr(self._libc, "timerfd_create"):
            self._file = self._libc.timerfd_create(_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        self._watcher = get_hub().loop.io(self._file, 1) if self._file >= 0 else None
        self._setting = _Setting()

    def sleep_until(self, moment_ns: int) -> None:
        """Return at the moment or at once if it is over."""
        if moment_ns <= time.monotonic_ns():
            return
        if self._watcher is None:
            self._spin_until(moment_ns)
            return
        self._setting.value.seconds, self._setting.value.nanoseconds = divmod(moment_ns, 1_000_000_000)
        self._libc.timerfd_settime(self._file, _ABSOLUTE, ctypes.byref(self._setting), None)
        get_hub().wait(self._watcher)

    def _spin_until(self, moment_ns: int) -> None:
        rest = moment_ns - time.monotonic_ns() - _SPIN_NS
        if rest > 0:
            gevent.sleep(rest / 1e9)
        while time.monotonic_ns() < moment_ns:
            gevent.sleep(0)

    def close(self) -> None:
        """Give the timer back."""
        if self._watcher is not None:
            self._watcher.close()
            os.close(self._file)
            self._watcher = None
