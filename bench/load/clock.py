"""When a load begins: one moment for all workers whose clock is the master's, soon for those who only hear of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["HEAD_START_S", "begin_message", "choose_begin", "clock_name"]

HEAD_START_S = 0.2
_FARTHEST_NS = 5_000_000_000
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def clock_name() -> str:
    """Name the machine's clock, new at each boot; empty where the system gives no name."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


def begin_message(now_ns: int) -> dict[str, Any]:
    """Say when to begin: a moment of `time.monotonic_ns` here, and how far away that is."""
    return {"clock": clock_name(), "begin_ns": now_ns + int(HEAD_START_S * 1e9), "delay_s": HEAD_START_S}


def choose_begin(message: Mapping[str, Any], now_ns: int, clock: str) -> tuple[int, bool]:
    """Give the begin on a worker's own clock.

    Args:
        message: What `begin_message` gave.
        now_ns: When it came.
        clock: Name of the worker's clock.

    Returns:
        The moment, and whether it is exactly the master's: the clock is the same one. If not, the begin is late by
        the time that the message took.
    """
    begin_ns = int(message["begin_ns"])
    # Containers may shift the clock of one machine; nobody is told seconds before or after.
    if clock and clock == message["clock"] and abs(begin_ns - now_ns) < _FARTHEST_NS:
        return begin_ns, True
    return now_ns + int(float(message["delay_s"]) * 1e9), False
