"""Energy of the processor's packages, where the machine counts it (RAPL)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["EnergyMeter"]

_POWERCAP = Path("/sys/class/powercap")


@dataclass(slots=True)
class _Counter:
    path: Path
    range_uj: int
    """The counter starts again from 0 above this."""
    before_uj: int


class EnergyMeter:
    """Energy that all packages took inside a `with` block, what other processes did included.

    A counter that passed its end once is put right; twice cannot be seen (a package of 100 W needs 44 minutes for
    one pass of a usual range of 262 kJ). A machine that shows no counter, or not to this user, gives None.

    Args:
        root: Where the kernel shows its power zones.

    Source: https://docs.kernel.org/power/powercap/powercap.html
    """

    def __init__(self, root: Path = _POWERCAP) -> None:
        self._root = root
        self._counters: list[_Counter] = []
        self._joules: float | None = None

    def __enter__(self) -> Self:
        self._joules = None
        self._counters = [
            counter
            for zone in sorted(self._root.glob("intel-rapl:*"))
            if zone.name.count(":") == 1  # `intel-rapl:0:0` is a part of package 0
            and (counter := _open(zone)) is not None
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        total_uj = 0
        for counter in self._counters:
            after_uj = _read(counter.path)
            if after_uj is None:
                return
            delta_uj = after_uj - counter.before_uj
            total_uj += delta_uj if delta_uj >= 0 else delta_uj + counter.range_uj
        if self._counters:
            self._joules = total_uj / 1e6

    @property
    def joules(self) -> float | None:
        """Energy of the block that ended last; None where the machine does not say."""
        return self._joules

    def per_request_mj(self, num_requests: int) -> float | None:
        """Millijoules for each of so many requests; None where the machine does not say."""
        return None if self._joules is None else 1000 * self._joules / num_requests


def _open(zone: Path) -> _Counter | None:
    energy_uj, range_uj = _read(zone / "energy_uj"), _read(zone / "max_energy_range_uj")
    if energy_uj is None or range_uj is None:
        return None
    return _Counter(path=zone / "energy_uj", range_uj=range_uj, before_uj=energy_uj)


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
