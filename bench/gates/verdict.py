"""Verdicts: PASS, FAIL or INCONCLUSIVE, with the figures that decided."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from enum import StrEnum
from typing import Any, Literal

__all__ = ["Outcome", "Verdict", "overall", "places_of", "samples_to_settle", "show", "show_count"]


Rounding = Literal["up", "down", "near"]


class Outcome(StrEnum):
    """What a gate says. Too little evidence is never a PASS."""

    PASS = "PASS"  # noqa: S105
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One gate's outcome and why.

    Infinity and what is no number are kept as None: every verdict can be printed and written as JSON.
    """

    gate: str
    """Such as `accuracy` or `size.max_mb`: its place under `gates:`."""
    verdict: Outcome
    reason: str
    """One or two sentences: the figure, its bound, the limit and how much evidence there was."""
    unit: str
    """Of `estimate`, `bound`, `threshold` and `detectable`: `ms`, `MB`, `×`, `/s`, `nats`, `share`, `perplexity`,
    `ratio` (of perplexities), or a metric's name for an accuracy, which is a loss of it where `at_least` is false."""
    threshold: float
    """What the recipe asks for."""
    estimate: float | None
    """What was measured; None where the evidence supports no figure."""
    bound: float | None
    """The confidence bound that was held against the threshold; None for a figure without noise or evidence."""
    confidence: float | None = None
    """Of `bound`, one-sided."""
    num_samples: int | None = None
    """How much was measured; None for a figure without noise."""
    samples: str = ""
    """What `num_samples` and `num_needed` count: examples, requests, pairs of turns, rounds."""
    detectable: float | None = None
    """The smallest difference that this much evidence could have seen."""
    num_needed: int | None = None
    """Samples that would settle an inconclusive verdict, as far as can be said."""
    at_least: bool = False
    """Whether the figure must be at least `threshold`, not at most."""
    machine: str | None = None
    """Name of the machine that the figure belongs to; None where any machine gives the same."""

    def __post_init__(self) -> None:
        for name in ("estimate", "bound", "detectable"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                object.__setattr__(self, name, None)

    def figure(self, value: float | None, rounding: Rounding = "near") -> str:
        """Write a figure in this verdict's unit for people, never rounded onto or across the limit; `–` for None.

        Infinite times are those of failed requests: they are later than any limit.

        >>> Verdict(gate="g", verdict=Outcome.PASS, reason="", unit="share", threshold=0.02, estimate=None,
        ...         bound=None).figure(0.0123)
        '1.23 %'
        """
        if value is None or math.isnan(value):
            return "–"
        if math.isinf(value):
            return "later than any limit" if self.unit == "ms" else "beyond any limit"
        match self.unit:
            case "ms" | "MB":
                return f"{show(value, self.threshold, rounding=rounding)} {self.unit}"
            case "nats":
                digits = places_of(self.threshold, 4)
                return f"{show(value, self.threshold, digits=digits, rounding=rounding)} nats"
            case "×" | "/s":
                return f"{show(value, self.threshold, rounding=rounding)}{self.unit}"
            case "ratio":
                return f"{show(value, self.threshold, digits=4, rounding=rounding)}×"
            case "perplexity":
                return show(value, self.threshold, rounding=rounding)
            case "share":
                return f"{show(100 * value, 100 * self.threshold, rounding=rounding)} %"
            case _:
                unit = "%" if self.at_least else "points"
                return f"{show(100 * value, 100 * self.threshold, rounding=rounding)} {unit}"

    @property
    def limit(self) -> str:
        """The threshold for people, as the recipe says it: `≤ 1 points`, `≥ 2×`."""
        match self.unit:
            case "nats" if self.threshold < 1e-3:
                shown = f"{self.threshold:.15f}".rstrip("0") + " nats"
            case "ms" | "MB" | "nats":
                shown = f"{self.threshold:,.12g} {self.unit}"
            case "×" | "/s":
                shown = f"{self.threshold:,.12g}{self.unit}"
            case "ratio":
                shown = f"{self.threshold:,.12g}×"
            case "perplexity":
                shown = f"{self.threshold:,.12g}"
            case "share":
                shown = f"{100 * self.threshold:,.12g} %"
            case _:
                shown = f"{100 * self.threshold:,.12g} {'%' if self.at_least else 'points'}"
        return f"{'≥' if self.at_least else '≤'} {shown}"

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
            "samples": self.samples,
            "detectable": self.detectable,
            "num_needed": self.num_needed,
            "at_least": self.at_least,
            "machine": self.machine,
        }


def overall(verdicts: Iterable[Verdict]) -> Outcome:
    """Combine verdicts: one FAIL fails, else one INCONCLUSIVE leaves it open; no verdict at all is no PASS."""
    outcomes = {verdict.verdict for verdict in verdicts}
    if Outcome.FAIL in outcomes:
        return Outcome.FAIL
    return Outcome.PASS if outcomes == {Outcome.PASS} else Outcome.INCONCLUSIVE


def show(value: float, limit: float | None = None, *, digits: int = 2, rounding: Rounding = "near") -> str:
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


def places_of(limit: float, digits: int) -> int:
    """Decimal places that show three significant digits of figures as small as a limit, at least `digits`.

    >>> places_of(0.05, 4), places_of(2e-5, 4)
    (4, 7)
    """
    return max(digits, 2 - math.floor(math.log10(limit))) if 0 < limit < 1 else digits


def samples_to_settle(num_samples: int, width: float, distance: float) -> int | None:
    """Samples at which a bound will have moved from the estimate's far side to the limit, as its width shrinks.

    Args:
        num_samples: Now.
        width: From the estimate to the bound, ≥ 0.
        distance: From the estimate to the limit, ≥ 0.

    Returns:
        More than there are; None if the estimate is the limit itself.

    >>> samples_to_settle(100, 0.2, 0.1)
    400
    """
    if distance <= 0 or not math.isfinite(width / distance):
        return None
    return max(num_samples + 1, math.ceil(num_samples * (width / distance) ** 2 - 1e-9))


def show_count(number: int) -> str:
    """Write a count with separators; what nobody will collect is said in words."""
    return f"{number:,}" if number <= 1_000_000 else "more than a million"
