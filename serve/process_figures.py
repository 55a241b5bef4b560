"""What the server's process uses, from the operating system."""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["ProcessFigures", "read_process"]

_STATUS = Path("/proc/self/status")
_DESCRIPTORS = Path("/proc/self/fd")
_STARTED_S = time.time() - time.process_time()
"""Where the system does not tell when the process was started: about when it was imported."""


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """Of this process alone. None where the system does not say.

    Attributes:
        cpu_s: Processor time of all threads, user and system, in seconds.
        started_s: When it was started, in seconds since 1970.
        resident_bytes: Memory that is in RAM now, mapped files included.
        private_bytes: Resident memory without mapped files: what nobody else could use.
        peak_bytes: The most that was resident.
        num_threads: Threads.
        num_descriptors: Open files and sockets.
        max_descriptors: How many may be open.
    """

    cpu_s: float
    started_s: float
    resident_bytes: int | None = None
    private_bytes: int | None = None
    peak_bytes: int | None = None
    num_threads: int | None = None
    num_descriptors: int | None = None
    max_descriptors: int | None = None


def read_process() -> ProcessFigures:
    """Ask the operating system; costs some tens of microseconds."""
    times = os.times()
    text = _STATUS.read_text(encoding="ascii", errors="replace") if _STATUS.is_file() else ""
    found = {name: int(value) for name, value in re.findall(r"^(\w+):\s*(\d+)", text, re.MULTILINE)}

    def size(name: str) -> int | None:
        return found[name] * 1024 if name in found else None

    return ProcessFigures(
        cpu_s=times.user + times.system,
        started_s=_started_s(),
        resident_bytes=size("VmRSS"),
        private_bytes=size("RssAnon"),
        peak_bytes=size("VmHWM"),
        num_threads=found.get("Threads"),
        num_descriptors=len(os.listdir(_DESCRIPTORS)) - 1 if _DESCRIPTORS.is_dir() else None,  # noqa: PTH208
        max_descriptors=_max_descriptors(),
    )


def _max_descriptors() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


@cache
def _started_s() -> float:
    """Boot time plus the process's start in ticks after it, on Linux."""
    try:
        after_name = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        boot = re.search(r"^btime (\d+)", Path("/proc/stat").read_text(encoding="ascii"), re.MULTILINE)
        return _STARTED_S if boot is None else int(boot[1]) + int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return _STARTED_S
