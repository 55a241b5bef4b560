"""Figures as the report writes them, and the comparisons that it adds to what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bench.gates.verdict import Rounding, show
from bench.report.blocks import Cell, Noted
from bench.stats.percentiles import PercentileBounds
from bench.stats.resampling import Bounds

if TYPE_CHECKING:
    from bench.accuracy import Evaluation
    from bench.machine.conditions import Conditions

__all__ = [
    "CONFIDENCE",
    "MB",
    "bound_change",
    "count",
    "largest",
    "meanwhile",
    "show_bounds",
    "show_change",
    "show_ms",
    "show_percentiles",
    "show_points",
    "show_rate",
    "show_short",
    "show_significant",
    "times",
]

MB = 1_000_000
CONFIDENCE = 0.975
"""Of each side of an interval that the report adds itself: 95 % between its two bounds."""


def show_short(value: float, digits: int = 3) -> str:
    """Write a figure with so many significant digits, and never fewer than its whole part has.

    >>> show_short(1234.5), show_short(12.345), show_short(0.01234)
    ('1,234', '12.3', '0.0123')
    """
    if value == 0 or not np.isfinite(value):
        return f"{value:g}"
    places = max(0, digits - 1 - int(np.floor(np.log10(abs(value)) + 1e-12)))
    return f"{value:,.{places}f}".replace("-", "−")


def show_significant(value: float, digits: int = 4) -> str:
    """Write a figure with at most so many significant digits, without zeros at the end.

    >>> show_significant(46.5835), show_significant(50.0), show_significant(12345.6)
    ('46.58', '50', '12,346')
    """
    shown = show_short(value, digits)
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def show_ms(value: float | None) -> str | None:
    """Write milliseconds; None stays None."""
    return None if value is None else f"{show(value)} ms" if value < 100 else f"{value:,.0f} ms"


def show_points(value: float) -> str:
    """Write a change of a metric in points of a hundred, with its sign."""
    shown = show(100 * value)
    return f"{'+' if value > 0 and shown.strip('0.') else ''}{shown}".replace("-", "−")


def show_change(bounds: Bounds) -> Noted:
    """Write a change with its interval, in points."""
    lower = show(100 * bounds.lower, rounding="down").replace("-", "−")
    upper = show(100 * bounds.upper, rounding="up").replace("-", "−")
    return Noted(show_points(bounds.estimate), f"{lower} to {upper}")


def show_bounds(bounds: Bounds, *, unit: str = "") -> Noted:
    """Write an estimate and its bounds, rounded outwards."""
    lower = show(bounds.lower, rounding="down").replace("-", "−")
    upper = show(bounds.upper, rounding="up").replace("-", "−")
    return Noted(f"{show(bounds.estimate)}{unit}".replace("-", "−"), f"{lower} to {upper}")


def show_percentiles(found: Sequence[PercentileBounds], limit: float | None = None) -> tuple[Cell, ...]:
    """Write percentiles with their bounds; what the samples do not support is said, never guessed.

    The fewest requests depend on how strongly slow ones follow each other, which differs from one percentile to the
    next: for each the most that it or a lower one needs is said, so that a further nine never seems to need fewer.

    Args:
        found: Of the same samples, rising, in milliseconds.
        limit: That no figure is rounded onto or across.
    """
    needed = np.maximum.accumulate([one.num_required for one in found]).tolist()
    return tuple(_percentile(replace(one, num_required=num), limit) for one, num in zip(found, needed, strict=True))


def _percentile(bounds: PercentileBounds, limit: float | None) -> Noted:
    needs = f"needs ≥ {bounds.num_required:,}"
    if bounds.estimate is None:
        return Noted("–", f"{needs} requests")
    lower = None if bounds.lower is None else _finite(bounds.lower, limit, "down")
    shown = _finite(bounds.estimate, limit, "near")
    if bounds.upper is None:
        return Noted(shown, f"{f'at least {lower}' if lower else 'no bound'}; {needs}")
    return Noted(shown, f"{lower or '–'} to {_finite(bounds.upper, limit, 'up')}")


def _finite(value: float, limit: float | None, rounding: Rounding) -> str:
    return show(value, limit, rounding=rounding) if np.isfinite(value) else "failed"


def times(before: float | None, after: float | None, less: str = "less", more: str = "more") -> str | None:
    """Write a ratio as `3.95× less` or `1.20× more`; None where there is none."""
    if not before or not after:
        return None
    return f"{show(before / after)}× {less}" if before >= after else f"{show(after / before)}× {more}"


def bound_change(metric: str, artifact: Evaluation, baseline: Evaluation) -> Bounds | None:
    """Bound artifact − baseline of a metric on the same examples, each side at 97.5 %.

    Args:
        metric: One that both have.
        artifact: Evaluated on the examples of `baseline`.
        baseline: What the change is measured from.

    Returns:
        The change in the metric's unit, or None where the examples differ.
    """
    from bench.gates.accuracy_bounds import bound_drop_of

    is_paired = artifact.data_digest == baseline.data_digest and artifact.num_examples == baseline.num_examples
    if not is_paired or artifact.num_examples < 2:
        return None
    loss = bound_drop_of(metric, artifact, baseline, margin=0.0, confidence=CONFIDENCE)
    sign = -1.0 if artifact.higher_is_better.get(metric, True) else 1.0
    lower, upper = sorted((sign * loss.lower, sign * loss.upper))
    change = artifact.metrics[metric] - baseline.metrics[metric]
    return Bounds(estimate=change, lower=min(lower, change), upper=max(upper, change), confidence=CONFIDENCE)


def largest(values: Sequence[float]) -> float:
    """Give the largest value, at least a tiny one, to divide by."""
    return max([*values, 1e-12])


def show_rate(value: float) -> str:
    """Write a rate: whole numbers from a hundred on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def count(number: int, noun: str, plural: str = "") -> str:
    """Write a number of things; `plural` where it is not the noun with an s.

    >>> count(1, "thread"), count(2000, "round"), count(2, "process", "processes")
    ('1 thread', '2,000 rounds', '2 processes')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {plural or noun + 's'}"


def meanwhile(conditions: Conditions | None) -> str:
    """Say what the machine did besides; nothing where it was not watched."""
    return f" Meanwhile: {conditions.summary}." if conditions is not None else ""
