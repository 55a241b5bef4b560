"""How much memory this process took at its peak."""

from __future__ import annotations

import ctypes
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["PeakMemory", "release_free_memory"]


class PeakMemory:
    """Measures the peak of resident memory from its creation on.

    On Linux the kernel's high-water mark is set back first, so that what the process did before does not hide
    what is measured. Elsewhere the peak of the whole process stands for it: an upper bound.
    """

    def __init__(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self.start_bytes = _status_bytes("VmRSS") or _process_peak_bytes()

    @property
    def peak_bytes(self) -> int:
        """Peak of resident memory since the creation, code of libraries included."""
        return _status_bytes("VmHWM") or _process_peak_bytes()

    @property
    def added_bytes(self) -> int:
        """Peak above what was resident at the creation."""
        return max(0, self.peak_bytes - self.start_bytes)


def release_free_memory() -> None:
    """Give memory that is free back to the system.

    The C library keeps what was freed in pieces, and tensors of many sizes leave many pieces: without this, a
    model that is handled one tensor at a time still grows to its own size.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _status_bytes(key: str) -> int:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _process_peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
