"""How long requests took: cumulative shares, percentiles with their bounds, and a histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.gates.verdict import show
from bench.report.svg import Canvas, Frame, LinearScale, LogScale, TailScale
from bench.stats.percentiles import PercentileBounds

__all__ = ["Series", "plot_ecdf", "plot_histogram", "plot_percentiles"]

_FRAME = Frame()
_HEIGHT = 254.0
_MAX_POINTS = 240
_NUM_BINS = 36


@dataclass(frozen=True, kw_only=True)
class Series:
    """One sample with its name; the class picks the colour."""

    name: str
    style: str
    """`a` for the artifact, `b` for the baseline."""
    values: NDArray[np.float64]
    """Milliseconds, > 0, of shape [n]; infinite for a request that failed."""


def _time_scale(series: Sequence[Series], limit: float | None) -> LogScale:
    marks = [limit] if limit is not None else []
    finite = [one.values[np.isfinite(one.values)] for one in series]
    low = min([float(values.min()) for values in finite if len(values)] + marks, default=1.0)
    high = max([float(values.max()) for values in finite if len(values)] + marks, default=10.0)
    low = max(low, 1e-6)
    return LogScale(low / 1.06, max(high, low * 1.2) * 1.06, _FRAME.left, _FRAME.right)


def _mark_limit(canvas: Canvas, x: float, limit: float, frame: Frame) -> None:
    canvas.line(x, frame.top, x, frame.bottom, "limit")
    canvas.dots += [(x, frame.top + 8 * step) for step in range(int((frame.bottom - frame.top) // 8))]
    places = [(x - 5, y, "end") for y in (frame.top + 14, frame.bottom - 8)]
    places += [(x + 5, y, "start") for y in (frame.top + 14, frame.bottom - 8)]
    canvas.label(f"limit {limit:g} ms", places, "label strong", frame)


def plot_ecdf(series: Sequence[Series], *, limit: float | None = None) -> str:
    """Draw for each series which share of its requests was answered within a time.

    Args:
        series: At least one, each with at least one finite value.
        limit: Of a gate, in milliseconds; marked by a line.
    """
    x, y = _time_scale(series, limit), LinearScale(0, 100, _FRAME.bottom, _FRAME.top, " %")
    canvas = Canvas(_HEIGHT, f"Share of requests answered within a time: {_spoken(series)}")
    canvas.axes(x, y, _FRAME, x_title="time of a request, ms", y_title="answered within")
    curves = []
    for one in series:
        ordered = np.sort(one.values)
        picked = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _MAX_POINTS)).astype(int))
        finite = [index for index in picked.tolist() if math.isfinite(ordered[index])]
        points = [(x(float(ordered[index])), y(100 * (index + 1) / len(ordered))) for index in finite]
        canvas.path(points, f"series {one.style}")
        curves.append(points)
    if limit is not None:
        _mark_limit(canvas, x(limit), limit, _FRAME)
    _name_curves(canvas, series, curves)
    return canvas.to_svg()


def _name_curves(canvas: Canvas, series: Sequence[Series], curves: Sequence[Sequence[tuple[float, float]]]) -> None:
    """Write each name beside its curve, where there is room."""
    for one, points in zip(series, curves, strict=True):
        if not points:
            continue
        places = []
        for share in (0.55, 0.35, 0.75, 0.2, 0.9):
            x, y = points[int(share * (len(points) - 1))]
            places += [(x + 7, y + 4, "start"), (x - 7, y + 4, "end"), (x, y - 8, "middle"), (x, y + 17, "middle")]
        canvas.label(one.name, places, f"label {one.style} strong", _FRAME)


def plot_percentiles(
    bounds: Sequence[tuple[str, str, Sequence[PercentileBounds]]],
    *,
    limit: tuple[float, float] | None = None,
) -> str:
    """Draw percentiles from the median to the far tail, with distribution-free bounds as a band.

    Args:
        bounds: Name, style and rising percentiles of each series, in milliseconds. A curve ends where its samples
            support no estimate, a band where they lack a bound.
        limit: Percentile and milliseconds of a gate.
    """
    known = [
        (name, style, [one for one in found if one.estimate is not None and math.isfinite(one.estimate)])
        for name, style, found in bounds
    ]
    values = [float(one.estimate or 0) for _, _, found in known for one in found]
    bands = [(style, band) for _, style, found in known for band in _bands(found)]
    values += [end for _, band in bands for _, lower, upper in band for end in (lower, upper)]
    values += [limit[1]] if limit is not None else []
    if not values:
        return ""
    highest = max([one.percentile for _, _, found in known for one in found] + ([limit[0]] if limit else [90.0]))
    x = TailScale(50, max(99.0, highest), _FRAME.left, _FRAME.right)
    low, high = min(values), max(values)
    y = LogScale(max(low, 1e-6) / 1.08, max(high, low * 1.2) * 1.12, _FRAME.bottom, _FRAME.top)
    canvas = Canvas(_HEIGHT, f"Percentiles of the time of a request, with bounds: {_spoken_bounds(known)}")
    canvas.axes(x, y, _FRAME, x_title="percentile", y_title="ms")
    curves = []
    for style, band in bands:
        above = [(x(percentile), y(upper)) for percentile, _, upper in band]
        below = [(x(percentile), y(lower)) for percentile, lower, _ in reversed(band)]
        canvas.path([*above, *below], f"band {style}", is_closed=True)
    for _, style, found in known:
        points = [(x(one.percentile), y(float(one.estimate or 0))) for one in found]
        canvas.path(points, f"series {style}")
        for one, (at_x, at_y) in zip(found, points, strict=True):
            if one.percentile in (50, 90, 95, 99, 99.9):
                hint = f"p{one.percentile:g}: {show(float(one.estimate or 0))} ms"
                canvas.circle(at_x, at_y, 3, f"dot {style}", hint)
        curves.append(points)
    if limit is not None:
        percentile, value = limit
        canvas.line(_FRAME.left, y(value), x(percentile), y(value), "limit")
        canvas.line(x(percentile), y(value), x(percentile), _FRAME.bottom, "limit faint")
        canvas.circle(x(percentile), y(value), 4, "limit-end")
        text = f"limit {value:g} ms at p{percentile:g}"
        spots = [(_FRAME.left + 6, y(value) - 6, "start"), (_FRAME.left + 6, y(value) + 15, "start")]
        spots += [(x(percentile) - 6, y(value) - 6, "end"), (x(percentile) - 6, y(value) + 15, "end")]
        canvas.label(text, spots, "label strong", _FRAME)
    named = [Series(name=name, style=style, values=np.empty(0)) for name, style, _ in known]
    _name_curves(canvas, named, curves)
    return canvas.to_svg()


def _bands(found: Sequence[PercentileBounds]) -> list[list[tuple[float, float, float]]]:
    """Percentile, lower and upper bound of each run of percentiles that have both.

    A higher percentile is never smaller, so each bound is taken as the widest of those that it implies.
    """
    runs: list[list[PercentileBounds]] = [[]]
    for one in found:
        if one.lower is None or one.upper is None or not math.isfinite(one.upper):
            runs.append([])
        else:
            runs[-1].append(one)
    bands = []
    for run in runs:
        uppers = np.maximum.accumulate([one.upper or 0.0 for one in run] or [0.0]).tolist()
        lowers = np.minimum.accumulate([one.lower or 0.0 for one in reversed(run)] or [0.0])[::-1].tolist()
        bands.append([(one.percentile, low, high) for one, low, high in zip(run, lowers, uppers, strict=False)])
    return [band for band in bands if len(band) > 1]


def plot_histogram(series: Sequence[Series], *, limit: float | None = None) -> str:
    """Draw how often each time occurred: the artifact's as bars, the baseline's as a line over them.

    Args:
        series: At least one, the artifact's among them.
        limit: Of a gate, in milliseconds; marked by a line.
    """
    x = _time_scale(series, limit)
    edges = np.geomspace(x.low, x.high, _NUM_BINS + 1)
    shares = [np.histogram(one.values, edges)[0] / len(one.values) * 100 for one in series]
    highest = max(float(share.max()) for share in shares)
    y = LinearScale(0, max(highest, 0.1) * 1.12, _FRAME.bottom, _FRAME.top, " %", 4)
    canvas = Canvas(_HEIGHT, f"Histogram of the time of a request: {_spoken(series)}")
    canvas.axes(x, y, _FRAME, x_title="time of a request, ms", y_title="share of requests")
    tops = []
    for one, share in zip(series, shares, strict=True):
        steps = [
            (x(edge), y(value))
            for left, right, value in zip(edges[:-1], edges[1:], share, strict=True)
            for edge, value in ((float(left), float(value)), (float(right), float(value)))
        ]
        closed = [(steps[0][0], _FRAME.bottom), *steps, (steps[-1][0], _FRAME.bottom)]
        canvas.path(closed, f"band {one.style}", is_closed=True)
        canvas.path(steps, f"series thin {one.style}")
        tops.append(steps[2 * int(share.argmax())])
    if limit is not None:
        _mark_limit(canvas, x(limit), limit, _FRAME)
    for one, (at_x, at_y) in zip(series, tops, strict=True):
        below = max(at_y + 14, _FRAME.top + 14)
        places = [(at_x + 18, below, "start"), (at_x - 8, below, "end"), (at_x + 24, below + 20, "start")]
        places += [(at_x - 12, below + 20, "end"), (at_x, at_y - 5, "middle"), (at_x + 60, below + 40, "start")]
        canvas.label(one.name, places, f"label {one.style} strong", _FRAME)
    return canvas.to_svg()


def _spoken(series: Sequence[Series]) -> str:
    named = [(one.name, float(np.median(one.values))) for one in series if len(one.values)]
    return "; ".join(f"{name}, median {f'{show(one)} ms' if math.isfinite(one) else 'failed'}" for name, one in named)


def _spoken_bounds(known: Sequence[tuple[str, str, Sequence[PercentileBounds]]]) -> str:
    parts = []
    for name, _, found in known:
        picked = [one for one in found if one.percentile in (50, 90, 99, 99.9)]
        parts.append(
            f"{name} " + ", ".join(f"p{one.percentile:g} {show(float(one.estimate or 0))} ms" for one in picked)
        )
    return "; ".join(parts)
