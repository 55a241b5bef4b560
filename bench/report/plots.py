"""Plots as inline SVG: they take their colours from the page, so light and dark both work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from bench.verdict import Verdict, show

__all__ = ["plot_bounds", "plot_ecdf"]

_WIDTH, _LEFT, _RIGHT = 640, 48, 16
_MAX_POINTS = 400


def plot_ecdf(series: Sequence[tuple[str, NDArray[np.float64]]], *, unit: str, limit: float | None = None) -> str:
    """Draw for each series which share of its values is at most x.

    Args:
        series: Names and values of shape [n], n ≥ 1, all > 0. The x axis is logarithmic.
        unit: Of the values.
        limit: Marked by a line.
    """
    top, bottom = 12.0, 214.0
    marks = [limit] if limit is not None else []
    low = min([float(values.min()) for _, values in series] + marks) * 0.95
    high = max([float(values.max()) for _, values in series] + marks) * 1.05

    def x_of(value: float) -> float:
        return _LEFT + (math.log(value) - math.log(low)) / (math.log(high) - math.log(low)) * (_WIDTH - _LEFT - _RIGHT)

    def y_of(share: float) -> float:
        return bottom - share * (bottom - top)

    parts = [_line(_LEFT, y_of(share), _WIDTH - _RIGHT, y_of(share), "grid") for share in (0, 0.25, 0.5, 0.75, 1)]
    parts += [_text(_LEFT - 6, y_of(share) + 4, f"{share:.0%}", "end") for share in (0, 0.5, 1)]
    for tick in _log_ticks(low, high):
        parts.append(_line(x_of(tick), bottom, x_of(tick), bottom + 4, "axis"))
        parts.append(_text(x_of(tick), bottom + 18, f"{tick:g}", "middle"))
    parts.append(_text(_WIDTH - _RIGHT, bottom + 36, unit, "end"))
    for number, (name, values) in enumerate(series):
        ordered = np.sort(values)
        picked = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _MAX_POINTS)).astype(int))
        points = " ".join(f"{x_of(float(ordered[i])):.1f},{y_of((i + 1) / len(ordered)):.1f}" for i in picked)
        parts.append(f'<polyline class="series s{number}" points="{points}"/>')
        parts.append(_text(_LEFT + 8 + 110 * number, bottom + 36, name, "start", f"label s{number}"))
    if limit is not None:
        parts.append(_line(x_of(limit), top, x_of(limit), bottom, "limit"))
        parts.append(_text(x_of(limit) - 4, top + 10, f"limit {limit:g}", "end"))
    return _svg(parts, 256, f"Share of requests answered within a time, in {unit}")


def _log_ticks(low: float, high: float) -> list[float]:
    """Give 1, 2 and 5 times the powers of ten between two values."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**exponent for exponent in exponents for digit in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def plot_bounds(verdict: Verdict) -> str:
    """Draw a verdict's estimate, the bound that decided, and the threshold on one line."""
    if verdict.estimate is None or verdict.bound is None:
        return ""
    values = [verdict.estimate, verdict.bound, verdict.threshold]
    span = max(values) - min(values) or abs(values[0]) or 1.0
    low, high = min(values) - 0.2 * span, max(values) + 0.2 * span

    def x_of(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    y = 30.0
    start, end = sorted((verdict.estimate, verdict.bound))
    parts = [
        _line(_LEFT, y, _WIDTH - _RIGHT, y, "grid"),
        _line(x_of(start), y, x_of(end), y, "span"),
        f'<circle class="point" cx="{x_of(verdict.estimate):.1f}" cy="{y}" r="5"/>',
        _line(x_of(verdict.bound), y - 8, x_of(verdict.bound), y + 8, "bound"),
        _line(x_of(verdict.threshold), y - 18, x_of(verdict.threshold), y + 18, "limit"),
        _text(x_of(verdict.threshold), y + 32, f"limit {verdict.threshold:g}", "middle"),
        _text(x_of(verdict.bound), y - 12, f"bound {show(verdict.bound, verdict.threshold, digits=3)}", "middle"),
    ]
    return _svg(parts, 70, f"{verdict.gate}: estimate, bound and limit in {verdict.unit}")


def _svg(parts: Sequence[str], height: int, title: str) -> str:
    head = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
    return head + "".join(parts) + "</svg>"


def _line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    return f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, name: str = "label") -> str:
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
