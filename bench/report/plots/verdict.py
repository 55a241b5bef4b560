"""One gate on one line: what was measured, the bound that decided, the limit, and the side that may ship."""

from __future__ import annotations

import math
import re

from bench.gates.verdict import Verdict
from bench.report.svg import WIDTH, Canvas, LinearScale, text_width

__all__ = ["plot_verdict"]

_LEFT, _RIGHT, _Y = 8.0, WIDTH - 8, 34.0
_LENGTHS = frozenset({"ms", "MB", "/s", "×", "nats"})
"""Units whose figures are compared as lengths from 0."""


def plot_verdict(verdict: Verdict) -> str:
    """Draw a verdict; nothing where no figure was measured.

    Args:
        verdict: Its estimate and bound may both be there, or the bound alone.
    """
    values = [value for value in (verdict.estimate, verdict.bound) if value is not None]
    if not values or not all(map(math.isfinite, values)):
        return ""
    scale = _scale([*values, verdict.threshold], is_length=verdict.unit in _LENGTHS)
    canvas = Canvas(68, f"{verdict.gate}: {verdict.verdict.value}. {verdict.reason}")
    limit = scale(verdict.threshold)
    good, bad = ((_LEFT, limit), (limit, _RIGHT))[:: -1 if verdict.at_least else 1]
    canvas.rect(good[0], _Y - 9, good[1] - good[0], 18, "zone-pass")
    canvas.rect(bad[0], _Y - 9, bad[1] - bad[0], 18, "zone-fail")
    canvas.line(limit, _Y - 15, limit, _Y + 13, "limit")
    canvas.text(limit, _Y - 20, f"limit {_limit(verdict)}", "middle", "label strong")
    if values[0] != values[-1]:
        canvas.line(scale(values[0]), _Y, scale(values[-1]), _Y, "span")
        canvas.line(scale(values[-1]), _Y - 6, scale(values[-1]), _Y + 6, "span")
    canvas.circle(scale(values[0]), _Y, 5, f"dot {verdict.verdict.value}")
    for x, text in _names(verdict, scale):
        canvas.text(x, _Y + 27, text, "middle")
    return canvas.to_svg()


def _scale(values: list[float], *, is_length: bool) -> LinearScale:
    low, high = min(values), max(values)
    spread = high - low or abs(high) or 1.0
    if is_length and low > 0 and spread > 0.2 * high:
        return LinearScale(0.0, high + 0.22 * spread, _LEFT, _RIGHT)
    return LinearScale(low - 0.22 * spread, high + 0.22 * spread, _LEFT, _RIGHT)


def _limit(verdict: Verdict) -> str:
    """The limit without the zeros that its figure is filled up with."""
    shown = re.sub(r"(\.\d*?)0+(?=\D*$)", r"\1", verdict.figure(verdict.threshold))
    return re.sub(r"^1 points$", "1 point", re.sub(r"\.(?=\D*$)", "", shown))


def _names(verdict: Verdict, scale: LinearScale) -> list[tuple[float, str]]:
    """What to write below the line, and where: one label where estimate and bound are too close for two."""
    names: list[tuple[float, str]] = []
    if verdict.estimate is not None:
        names.append((scale(verdict.estimate), _minus(verdict.figure(verdict.estimate))))
    if verdict.bound is not None and verdict.bound != verdict.estimate:
        is_upper = verdict.estimate is None or verdict.bound > verdict.estimate
        shown = verdict.figure(verdict.bound, "up" if is_upper else "down")
        names.append((scale(verdict.bound), _minus(f"{'at most' if is_upper else 'at least'} {shown}")))
    if len(names) < 2:
        return names
    (estimate_x, estimate), (bound_x, bound) = names
    if abs(estimate_x - bound_x) >= (text_width(estimate) + text_width(bound)) / 2 + 8:
        return names
    return [((estimate_x + bound_x) / 2, f"{estimate}, {bound}")]


def _minus(text: str) -> str:
    return text.replace("-", "−")
