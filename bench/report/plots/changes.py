"""What changed against the baseline: metrics with intervals, classes, and turns of a comparison of speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.gates.verdict import show
from bench.report.figures import show_points, show_short
from bench.report.svg import WIDTH, Canvas, Frame, LinearScale
from bench.stats.resampling import Bounds

__all__ = ["Change", "plot_changes", "plot_shifts", "plot_turns"]

_ROW = 38.0
_MAX_TURNS = 400


@dataclass(frozen=True, kw_only=True)
class Change:
    """A metric's change against the baseline, in the metric's unit, positive when it grew."""

    name: str
    estimate: float
    interval: tuple[float, float] | None
    worst: float | None = None
    """The gate's limit, as a change: below it (above it, where lower is better) nothing ships."""


def plot_changes(changes: Sequence[Change]) -> str:
    """Draw changes in points around zero, each with its interval and its gate's limit.

    Args:
        changes: At least one.
    """
    ends = [0.0] + [one.estimate for one in changes] + [one.worst for one in changes if one.worst is not None]
    ends += [end for one in changes for end in one.interval or ()]
    low, high = 100 * min(ends), 100 * max(ends)
    pad = 0.08 * (high - low) or 1.0
    frame = Frame(left=10, top=6, bottom=10 + _ROW * len(changes))
    x = LinearScale(low - pad, high + pad, frame.left, frame.right)
    spoken = "; ".join(f"{one.name} {show_points(one.estimate)} points" for one in changes)
    canvas = Canvas(frame.bottom + 42, f"Change of each metric against the baseline: {spoken}")
    for value, name in x.ticks():
        canvas.line(x(value), frame.top, x(value), frame.bottom, "grid")
        canvas.text(x(value), frame.bottom + 15, name, "middle")
    canvas.line(x(0), frame.top, x(0), frame.bottom, "axis")
    canvas.text(WIDTH / 2, frame.bottom + 32, "change against the baseline, points", "middle", "label title")
    for row, one in enumerate(changes):
        y = frame.top + _ROW * row + 27
        if one.worst is not None:
            canvas.line(x(100 * one.worst), y - 8, x(100 * one.worst), y + 8, "limit")
        if one.interval is not None:
            canvas.line(x(100 * one.interval[0]), y, x(100 * one.interval[1]), y, "whisker a")
        canvas.circle(x(100 * one.estimate), y, 4.5, "dot a", f"{one.name}: {show_points(one.estimate)} points")
        canvas.text(frame.left, y - 13, one.name, name="label strong ink")
    if any(one.worst is not None for one in changes):
        canvas.text(frame.right, frame.bottom + 32, "┆ limit", "end", "label FAIL")
    return canvas.to_svg()


def plot_shifts(rows: Sequence[tuple[str, float | None, float]], *, quantity: str) -> str:
    """Draw each class's share with the baseline and with the artifact, joined by a line.

    Args:
        rows: Name, baseline's share or None, artifact's share, in [0, 1].
        quantity: What the shares are.
    """
    shares = [share for _, before, after in rows for share in (before, after) if share is not None]
    low = max(0.0, 100 * min(shares) - 4)
    frame = Frame(left=10, top=6, bottom=10 + _ROW * len(rows))
    x = LinearScale(low, 100, frame.left + 6, frame.right - 6, " %")
    canvas = Canvas(frame.bottom + 42, f"{quantity}: " + "; ".join(f"{name} {after:.1%}" for name, _, after in rows))
    for value, name in x.ticks():
        canvas.line(x(value), frame.top, x(value), frame.bottom, "grid")
        canvas.text(x(value), frame.bottom + 15, name, "middle")
    canvas.text(frame.left, frame.bottom + 32, quantity, name="label title")
    if any(before is not None for _, before, _ in rows):
        canvas.text(frame.right, frame.bottom + 32, "● artifact", "end", "label a strong")
        canvas.text(frame.right - 82, frame.bottom + 32, "○ baseline", "end", "label b strong")
    for row, (name, before, after) in enumerate(rows):
        y = frame.top + _ROW * row + 27
        if before is not None:
            canvas.line(x(100 * before), y, x(100 * after), y, "whisker a")
            canvas.circle(x(100 * before), y, 4.5, "ring b", f"{name}: baseline {before:.2%}")
        canvas.circle(x(100 * after), y, 4, "dot a", f"{name}: artifact {after:.2%}")
        canvas.text(frame.left, y - 13, name, name="label strong ink")
    return canvas.to_svg()


def plot_turns(
    ratios: NDArray[np.float64],
    bounds: Bounds,
    *,
    noise: float | None = None,
    limit: float | None = None,
    sessions: NDArray[np.int64] | None = None,
) -> str:
    """Draw the ratio of every pair of turns, the estimate with its bounds, and what noise alone may show.

    Args:
        ratios: Baseline's time / artifact's, of shape [num_pairs].
        bounds: Of the ratio.
        noise: Half-width of the ratio that two equal engines show in this run, relative; drawn around 1.
        limit: The ratio that a gate asks for.
        sessions: Which freshly opened engines a pair belongs to, of shape [num_pairs].
    """
    frame = Frame()
    middle = np.quantile(ratios, [0.02, 0.98])
    ends = [float(middle[0]), float(middle[1]), bounds.lower, bounds.upper]
    ends += [limit] if limit is not None else []
    if noise is not None and bounds.lower < 1.6:
        ends += [1 - noise, 1 + noise]
    pad = 0.1 * (max(ends) - min(ends)) or 0.05
    y = LinearScale(min(ends) - pad, max(ends) + pad, frame.bottom, frame.top, "×", 5)
    x = LinearScale(0, len(ratios), frame.left, frame.right)
    said = f"{show(bounds.estimate)}×, {show(bounds.lower, rounding='down')} to {show(bounds.upper, rounding='up')}"
    canvas = Canvas(254, f"Baseline's time over the artifact's in {len(ratios)} pairs of turns: {said}")
    canvas.axes(x, y, frame, x_title="pair of turns", y_title="baseline's time / artifact's")
    if sessions is not None:
        for start in np.flatnonzero(np.diff(sessions)) + 1:
            canvas.line(x(float(start)), frame.top, x(float(start)), frame.bottom, "grid")
    if noise is not None and y.low < 1 + noise and y.high > 1 - noise:
        top = y(1 + noise)
        canvas.rect(frame.left, top, frame.right - frame.left, y(1 - noise) - top, "band b")
        canvas.label("noise alone", [(frame.right - 4, y(1) + 4, "end")], "label b", frame)
    canvas.rect(frame.left, y(bounds.upper), frame.right - frame.left, y(bounds.lower) - y(bounds.upper), "band a")
    canvas.line(frame.left, y(bounds.estimate), frame.right, y(bounds.estimate), "series a")
    picked = np.unique(np.linspace(0, len(ratios) - 1, min(len(ratios), _MAX_TURNS)).astype(int))
    for index in picked.tolist():
        at_x, at_y = x(index + 0.5), y(float(ratios[index]))
        canvas.circle(at_x, at_y, 1.8, "dot a faint")
        canvas.dots.append((at_x, at_y))
    if limit is not None:
        canvas.line(frame.left, y(limit), frame.right, y(limit), "limit")
        canvas.label(
            f"limit {limit:g}×",
            [(frame.left + 4, y(limit) - 5, "start"), (frame.left + 4, y(limit) + 15, "start")],
            "label strong",
            frame,
        )
    spots = [(frame.right - 4, y(bounds.upper) - 6, "end"), (frame.right - 4, y(bounds.lower) + 15, "end")]
    canvas.label(f"{show_short(bounds.estimate)}×", spots, "label strong a", frame)
    return canvas.to_svg()
