"""Figures with their unit, sample and interval, what must be reached of them, and how both are printed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bench.stats.binomial import binomial_cdf, t_quantile

__all__ = ["Check", "Estimate", "Outcome", "Report", "at_least", "at_most", "exactly", "median_of", "slope_of"]

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure, with an interval of 95 % where the sample allows one."""

    value: float
    unit: str
    num: int
    """Blocks, starts or samples that it was made of."""
    low: float | None = None
    high: float | None = None
    is_enough: bool = True
    """False where there should be an interval, and the sample is too small for one."""

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" ({_short(self.low)} … {_short(self.high)})"
        return f"{_short(self.value)}{interval} {self.unit}".rstrip()


@dataclass(frozen=True)
class Check:
    """Something that must be reached."""

    what: str
    found: str
    outcome: Outcome


@dataclass
class Report:
    """Tables, notes and checks of one run."""

    machine: str
    sections: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[object]], *notes: str) -> None:
        """Keep a table and print it; the first column is text, the others are figures."""
        cells = [[_cell(cell) for cell in row] for row in rows]
        values = [[asdict(cell) if isinstance(cell, Estimate) else cell for cell in row] for row in rows]
        self.sections.append({"title": title, "head": list(head), "rows": values, "notes": list(notes)})
        lines = [f"\n### {title}\n", f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
        lines += [f"| {' | '.join(row)} |" for row in cells]
        lines += [f"\n{note}" for note in notes]
        print("\n".join(lines), flush=True)

    def check(self, *checks: Check) -> None:
        """Keep checks; they are printed at the end."""
        self.checks += checks

    def finish(self) -> int:
        """Print the checks; give the process's code: 1 if something is not reached, 3 if it cannot be told."""
        print(f"\n### Must reach\n\n{self.machine}\n")
        print("| what | found | outcome |\n| --- | ---: | --- |")
        for check in self.checks:
            print(f"| {check.what} | {check.found} | {check.outcome} |")
        outcomes = {check.outcome for check in self.checks}
        return 1 if "FAIL" in outcomes else 3 if "INCONCLUSIVE" in outcomes else 0

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"machine": self.machine, "sections": self.sections, "checks": [asdict(check) for check in self.checks]}


def median_of(values: Sequence[float], unit: str) -> Estimate:
    """The median with the interval that its order statistics give: no distribution is assumed."""
    ordered = sorted(values)
    n = len(ordered)
    low = high = None
    ranks = [k for k in range(n // 2) if 1 - 2 * binomial_cdf(k, n, 0.5) >= CONFIDENCE]
    if ranks:
        low, high = ordered[ranks[-1]], ordered[n - 1 - ranks[-1]]
    return Estimate(statistics.median(ordered) if ordered else math.nan, unit, n, low, high, is_enough=bool(ranks))


def slope_of(values: Sequence[float], unit: str, *, num_blocks: int = 12) -> Estimate:
    """Slope of a series per step, by regression on means of blocks: neighbours in a series are not independent."""
    size = max(1, len(values) // num_blocks)
    starts = range(len(values) % size, len(values) - size + 1, size)
    x = [start + (size - 1) / 2 for start in starts]
    y = [statistics.fmean(values[start : start + size]) for start in starts]
    n = len(x)
    if n < 4:
        return Estimate(math.nan, unit, len(values), is_enough=False)
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    spread = sum((one - mean_x) ** 2 for one in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    rest = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    half = t_quantile(0.5 + CONFIDENCE / 2, n - 2) * math.sqrt(rest / (n - 2) / spread)
    return Estimate(slope, unit, len(values), slope - half, slope + half)


def at_most(what: str, found: Estimate, limit: float) -> Check:
    """Judge an upper limit: PASS and FAIL only where the whole interval says so."""
    low = found.value if found.low is None else found.low
    high = found.value if found.high is None else found.high
    if not found.is_enough:
        return Check(what, str(found), "INCONCLUSIVE")
    return Check(what, str(found), "PASS" if high <= limit else "FAIL" if low > limit else "INCONCLUSIVE")


def at_least(what: str, found: Estimate, limit: float) -> Check:
    """Judge a lower limit."""
    low = found.value if found.low is None else found.low
    high = found.value if found.high is None else found.high
    if not found.is_enough:
        return Check(what, str(found), "INCONCLUSIVE")
    return Check(what, str(found), "PASS" if low >= limit else "FAIL" if high < limit else "INCONCLUSIVE")


def exactly(what: str, found: int, wanted: int, *, of: int, more: str = "") -> Check:
    """Judge a count; one that was taken of nothing says nothing."""
    outcome: Outcome = "INCONCLUSIVE" if of == 0 else "PASS" if found == wanted else "FAIL"
    return Check(what, f"{found:,} of {of:,}{more}", outcome)


def _cell(cell: object) -> str:
    return _short(cell) if isinstance(cell, float) else str(cell)


def _short(value: float) -> str:
    if math.isnan(value):
        return "—"
    size = abs(value)
    return (
        f"{value:,.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 0.1
        else f"{value:.3g}"
    )
