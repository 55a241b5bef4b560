"""Under what conditions a measurement was taken: what others took of the machine while it ran."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.machine.machine import control_groups, read_governor, read_text

__all__ = ["Conditions", "Watch"]

_SHARES = ("cpu_pressure_share", "steal_share", "others_share", "own_wait_share")


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the kernel counted between the start and the end of a measurement. What it does not count is None."""

    seconds: float
    """Wall time of the measurement."""
    cpu_pressure_share: float | None
    """Share of the wall time in which at least one task of the machine waited for a processor, in [0, 1]."""
    steal_share: float | None
    """Share of the processor time that was asked for and that the hypervisor gave to other guests, in [0, 1]."""
    others_share: float | None
    """Share of all processors' time that other processes of the machine used, in [0, 1]."""
    governor: str | None
    """Frequency policy at the end; several are joined by commas."""
    load_before: float | None
    """Load average of the last minute."""
    load_after: float | None
    num_throttled: int | None
    """How many scheduling periods this process's control groups spent without a processor: their quota was used."""
    own_wait_share: float | None = None
    """Wait of this process's threads for a processor that others had, as a share of the wall time, at most 1.

    `cpu_pressure_share` counts every task of the machine; this says whether it was the measured one that waited."""

    @property
    def summary(self) -> str:
        """One line: what is known, such as `CPU pressure 1.8 %, steal 0.0 %, others used 3 % of the processors`."""
        parts = []
        if self.cpu_pressure_share is not None:
            parts.append(f"CPU pressure {100 * self.cpu_pressure_share:.1f} %")
        if self.own_wait_share is not None:
            parts.append(f"waited {100 * self.own_wait_share:.1f} % of the time")
        if self.steal_share is not None:
            parts.append(f"steal {100 * self.steal_share:.1f} %")
        if self.others_share is not None:
            parts.append(f"others used {100 * self.others_share:.0f} % of the processors")
        if self.governor is not None:
            parts.append(f"governor {self.governor}")
        if self.load_before is not None and self.load_after is not None:
            parts.append(f"load {self.load_before:.1f} → {self.load_after:.1f}")
        if self.num_throttled:
            parts.append(f"throttled by the CPU quota {self.num_throttled:,} times")
        return ", ".join([*parts, f"{self.seconds:.1f} s"]) if parts else f"unknown, {self.seconds:.1f} s"

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Conditions:
        """Read what `to_json` gave.

        Raises:
            ValueError: A figure is out of range.
            TypeError: A figure is missing, unknown or not a number.
        """
        read = cls(**value)
        if not isinstance(read.governor, str | None):
            raise TypeError(f"governor is {read.governor!r}")
        for name in (field.name for field in fields(read) if field.name != "governor"):
            figure = getattr(read, name)
            if figure is None and name != "seconds":
                continue
            if not isinstance(figure, int | float) or isinstance(figure, bool):
                raise TypeError(f"{name} is {figure!r}")
            if not 0 <= figure <= (1 if name in _SHARES else math.inf) or math.isinf(figure):
                raise ValueError(f"{name} is {figure!r}")
        return read


@dataclass(frozen=True, slots=True)
class _Counters:
    """The kernel's counters at one moment."""

    seconds: float
    own_seconds: float
    stall_us: int | None
    processors: tuple[int, ...] | None
    load: float | None
    num_throttled: int | None
    own_wait_ns: int | None


class Watch:
    """Context manager around a measurement: `with Watch() as watch: …`, then `watch.conditions`.

    Args:
        root: Folder in which `proc` and `sys` are.

    Source: Linux, Documentation/accounting/psi.rst; Documentation/filesystems/proc.rst (section 1.7, `/proc/stat`);
    Documentation/admin-guide/cgroup-v2.rst (`cpu.stat`); Documentation/scheduler/sched-stats.rst (schedstat).
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._before: _Counters | None = None
        self._conditions: Conditions | None = None

    def __enter__(self) -> Watch:
        self._conditions = None
        self._before = _read_counters(self._root)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._before is not None
        self._conditions = _between(self._before, _read_counters(self._root), read_governor(self._root))

    @property
    def conditions(self) -> Conditions:
        """What was counted; there is none before the block has ended."""
        assert self._conditions is not None, "the watched block has not ended"
        return self._conditions


def _between(before: _Counters, after: _Counters, governor: str | None) -> Conditions:
    seconds = max(after.seconds - before.seconds, 1e-9)
    pressure = throttled = None
    if before.stall_us is not None and after.stall_us is not None:
        pressure = _share((after.stall_us - before.stall_us) / 1e6, seconds)
    if before.num_throttled is not None and after.num_throttled is not None:
        throttled = max(0, after.num_throttled - before.num_throttled)
    waited = None
    if before.own_wait_ns is not None and after.own_wait_ns is not None:
        waited = _share((after.own_wait_ns - before.own_wait_ns) / 1e9, seconds)
    steal, others = _processor_shares(before, after)
    return Conditions(
        seconds=seconds,
        cpu_pressure_share=pressure,
        steal_share=steal,
        others_share=others,
        governor=governor,
        load_before=before.load,
        load_after=after.load,
        num_throttled=throttled,
        own_wait_share=waited,
    )


def _processor_shares(before: _Counters, after: _Counters) -> tuple[float | None, float | None]:
    """Shares stolen and used by others; None where the kernel did not count one tick."""
    if before.processors is None or after.processors is None:
        return None, None
    # user, nice, system, idle, iowait, irq, softirq, steal; idle and iowait may run backwards by a tick
    ticks = [max(0, b - a) for a, b in zip(before.processors, after.processors, strict=True)]
    total, stolen = sum(ticks), ticks[7]
    used = total - ticks[3] - ticks[4] - stolen
    if total == 0:
        return None, None
    own = (after.own_seconds - before.own_seconds) * os.sysconf("SC_CLK_TCK")
    return _share(stolen, used + stolen), _share(used - own, total)


def _share(part: float, whole: float) -> float:
    return round(min(1.0, max(0.0, part / whole)), 6) if whole > 0 else 0.0


def _read_counters(root: Path) -> _Counters:
    stall = re.search(r"^some .*total=(\d+)", read_text(root / "proc/pressure/cpu") or "", re.MULTILINE)
    processors = re.search(r"^cpu((?: +\d+){8})", read_text(root / "proc/stat") or "", re.MULTILINE)
    load = re.match(r"\d+(?:\.\d+)?", read_text(root / "proc/loadavg") or "")
    times = os.times()
    return _Counters(
        seconds=time.perf_counter(),
        own_seconds=times.user + times.system + times.children_user + times.children_system,
        stall_us=int(stall[1]) if stall else None,
        processors=tuple(int(ticks) for ticks in processors[1].split()) if processors else None,
        load=float(load[0]) if load else None,
        num_throttled=_num_throttled(root),
        own_wait_ns=_own_wait_ns(root),
    )


def _own_wait_ns(root: Path) -> int | None:
    """Time that the living threads of this process waited for a processor; the second figure of each schedstat."""
    texts = [read_text(file) or "" for file in (root / "proc/self/task").glob("*/schedstat")]
    waits = [re.match(r"\d+ (\d+) \d+", text) for text in texts]
    return sum(int(wait[1]) for wait in waits if wait) if any(waits) else None


def _num_throttled(root: Path) -> int | None:
    """Throttled periods of this process's control group and those above it, as far as they can be seen."""
    texts = [read_text(folder / "cpu.stat") or "" for folder in control_groups(root)]
    counts = [re.search(r"^nr_throttled (\d+)", text, re.MULTILINE) for text in texts]
    return sum(int(count[1]) for count in counts if count) if any(counts) else None
