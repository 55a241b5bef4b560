"""How many processor cores a model may use here."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["choose_threads"]


def choose_threads() -> int:
    """Threads that generate fastest here: one a physical core, of those that this process may use.

    A second thread on a core shares its arithmetic and its cache, and a thread above a container's quota stops
    all others at the next barrier.
    """
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = {_siblings(core) for core in cores}
    quota = _cpu_quota()
    return max(1, min(len(siblings), int(quota) if quota is not None else len(siblings)))


def _siblings(core: int) -> str:
    """The hardware threads of the core that one of them is on; its own number where that is not known."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(core)


def _cpu_quota() -> float | None:
    """Processors that the control group may use at a time; None without a limit."""
    try:
        if (unified := Path("/sys/fs/cgroup/cpu.max")).is_file():
            quota, period = unified.read_text().split()[:2]
        else:
            folder = Path("/sys/fs/cgroup/cpu")
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no control group, or `max`
        return None
