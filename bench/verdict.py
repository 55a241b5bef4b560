"""Verdicts: PASS, FAIL or INCONCLUSIVE, with the figures that decided."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from enum import StrEnum
from typing import Any, Literal

__all__ = ["Outcome", "Verdict", "overall", "show", "show_count"]


class Outcome(StrEnum):
    """What a gate says. Too little evidence is never a PASS."""

    PASS = "PASS"  # noqa: S105
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One gate's outcome and why."""

    gate: str
    """Such as `accuracy` or `size.max_mb`: its place under `gates:`."""
    verdict: Outcome
    reason: str
    """One or two sentences: the figure, its bound, the limit and how much evidence there was."""
    unit: str
    """Of `estimate`, `bound`, `threshold` and `detectable`."""
    threshold: float
    """What the recipe asks for."""
    estimate: float | None
    """What was measured; None where the evidence supports no figure."""
    bound: float | None
    """The confidence bound that was held against the threshold; None for a figure without noise or evidence."""
    confidence: float | None = None
    """Of `bound`, one-sided."""
    num_samples: int | None = None
    """Examples, requests or turns; None for a figure without noise."""
    detectable: float | None = None
    """The smallest difference that this much evidence could have seen."""
    num_needed: int | None = None
    """Samples that would settle an inconclusive verdict, as far as can be said."""

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, keys in a fixed order."""
        return {
            "gate": self.gate,
            "verdict": self.verdict.value,
            "reason": self.reason,
            "unit": self.unit,
            "threshold": self.threshold,
            "estimate": self.estimate,
            "bound": self.bound,
            "confidence": self.confidence,
            "num_samples": self.num_samples,
            "detectable": self.detectable,
            "num_needed": self.num_needed,
        }


def overall(verdicts: Iterable[Verdict]) -> Outcome:
    """Combine verdicts: one FAIL fails, else one INCONCLUSIVE leaves it open; no verdict at all is no PASS."""
    outcomes = {verdict.verdict for verdict in verdicts}
    if Outcome.FAIL in outcomes:
        return Outcome.FAIL
    return Outcome.PASS if outcomes == {Outcome.PASS} else Outcome.INCONCLUSIVE


def show(
    value: float, limit: float | None = None, *, digits: int = 2, rounding: Literal["up", "down", "near"] = "near"
) -> str:
    """Write a number so that rounding never moves it onto or across a limit.

    Args:
        value: Finite.
        limit: What it is compared with; digits are added until the two look as different as they are.
        digits: Decimal places to start with.
        rounding: `up` for an upper bound, `down` for a lower one.

    >>> show(94.996, 95)
    '94.996'
    >>> show(1.2345, rounding="up")
    '1.24'
    """
    modes = {"up": ROUND_CEILING, "down": ROUND_FLOOR, "near": ROUND_HALF_EVEN}
    exact = Decimal(repr(float(value)))
    target = None if limit is None else Decimal(repr(float(limit)))
    for places in range(digits, 18):
        shown = exact.quantize(Decimal(1).scaleb(-places), rounding=modes[rounding])
        if target is None or exact == target or (shown - target).compare(0) == (exact - target).compare(0):
            break
    text = f"{shown:,f}"
    return text.removeprefix("-") if not shown else text


def show_count(number: int) -> str:
    """Write a count with separators; what nobody will collect is said in words."""
    return f"{number:,}" if number <= 1_000_000 else "more than a million"
