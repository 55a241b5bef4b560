"""Memory of this process and of the engines beside it, and giving back what is no longer used."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["ProcessMemory", "children_of", "read_memory", "release_memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMemory:
    """Of one process, in bytes.

    Attributes:
        resident_bytes: In RAM now, mapped files included, which the system takes back when it needs the room.
        private_bytes: Of them, those that are not of files.
        peak_bytes: The most that was ever resident.
    """

    resident_bytes: int
    private_bytes: int
    peak_bytes: int


def read_memory(pid: int | None = None) -> ProcessMemory | None:
    """Memory of a process, by default this one; None where the system does not say, or there is no such process."""
    try:
        text = Path(f"/proc/{'self' if pid is None else pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = {name: int(value) * 1024 for name, value in re.findall(r"^(Vm\w+|Rss\w+):\s*(\d+) kB", text, re.MULTILINE)}
    if not {"VmRSS", "RssAnon", "VmHWM"} <= found.keys():  # a process that has ended, or a kernel before 4.5
        return None
    return ProcessMemory(resident_bytes=found["VmRSS"], private_bytes=found["RssAnon"], peak_bytes=found["VmHWM"])


def children_of(pid: int | None = None) -> list[int]:
    """Processes that a process started, by default this one, and that still run; none where the system does not say."""
    children: list[int] = []
    for path in Path(f"/proc/{'self' if pid is None else pid}/task").glob("*/children"):
        try:
            children += map(int, path.read_text(encoding="ascii").split())
        except OSError:  # that thread has just ended
            continue
    return sorted(children)


def release_memory() -> None:
    """Give what is no longer used back to the system; takes some milliseconds, on any thread.

    An output of ONNX Runtime keeps all memory of its session, weights included, so that one forgotten request in a
    cycle of references keeps a whole model: cycles are collected first, among what `gc.freeze` set aside too.
    """
    is_frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if is_frozen:
        gc.freeze()
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Any:
    """The function `malloc_trim` of glibc, or None; called without the GIL."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
