"""A load test second by second: what was sent and failed, and how long the answers took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.report.figures import show_short
from bench.report.svg import Canvas, Frame, LinearScale, LogScale

__all__ = ["Second", "plot_timeline"]

_TIMES = Frame(top=18, bottom=140)
_COUNTS = Frame(top=172, bottom=234)
_HEIGHT = 274.0


@dataclass(frozen=True, kw_only=True)
class Second:
    """What one second of a run saw."""

    start_s: float
    num_sent: int
    num_failed: int
    p50_ms: float | None
    p99_ms: float | None
    """None where nothing was answered; infinite where the percentile falls on a failure."""


def plot_timeline(seconds: Sequence[Second], *, limit: float | None = None, percentile: float = 99) -> str:
    """Draw median and p99 over the counts of requests, on one time axis.

    Args:
        seconds: At least one, in their order.
        limit: In milliseconds, of a percentile; marked by a line.
        percentile: The limit's.
    """
    times = [value for one in seconds for value in (one.p50_ms, one.p99_ms) if value and math.isfinite(value)]
    times += [limit] if limit is not None else []
    length = (seconds[1].start_s - seconds[0].start_s) if len(seconds) > 1 else 1.0
    end = seconds[-1].start_s + length
    x = LinearScale(seconds[0].start_s, end, _TIMES.left, _TIMES.right)
    canvas = Canvas(_HEIGHT, _spoken(seconds))
    if times:
        y = LogScale(min(times) / 1.15, max(times) * 1.25, _TIMES.bottom, _TIMES.top, num_ticks=5)
        for value, name in y.ticks():
            canvas.line(_TIMES.left, y(value), _TIMES.right, y(value), "grid")
            canvas.text(_TIMES.left - 6, y(value) + 4, name, "end")
        canvas.text(2, _TIMES.top - 4, "ms", name="label title")
        _draw_times(canvas, seconds, x, y, length)
        if limit is not None:
            canvas.line(_TIMES.left, y(limit), _TIMES.right, y(limit), "limit")
            spots = [(_TIMES.right - 4, y(limit) - 5, "end"), (_TIMES.right - 4, y(limit) + 14, "end")]
            spots += [(_TIMES.left + 4, y(limit) - 5, "start"), (_TIMES.left + 4, y(limit) + 14, "start")]
            canvas.label(f"limit {limit:g} ms at p{percentile:g}", spots, "label strong", _TIMES)
    _draw_counts(canvas, seconds, x, length)
    return canvas.to_svg()


def _draw_times(canvas: Canvas, seconds: Sequence[Second], x: LinearScale, y: LogScale, length: float) -> None:
    for name, style, values in (
        ("p99", "a", [one.p99_ms for one in seconds]),
        ("median", "b", [one.p50_ms for one in seconds]),
    ):
        run: list[tuple[float, float]] = []
        longest: list[tuple[float, float]] = []
        for one, value in zip(seconds, values, strict=True):
            if value is None or not math.isfinite(value) or value <= 0:
                canvas.path(run, f"series {style}")
                run = []
                continue
            run.append((x(one.start_s + length / 2), y(value)))
            canvas.circle(*run[-1], 2.2, f"dot {style}", f"second {one.start_s:g}: {name} {show_short(value)} ms")
            longest = max(longest, list(run), key=len)
        canvas.path(run, f"series {style}")
        if longest:
            picked = [longest[int(share * (len(longest) - 1))] for share in (0.5, 0.15, 0.85, 0.3, 0.7)]
            places = [(at_x, at_y + shift, "middle") for at_x, at_y in picked for shift in (-8, 17)]
            canvas.label(name, places, f"label strong {style}", _TIMES)


def _draw_counts(canvas: Canvas, seconds: Sequence[Second], x: LinearScale, length: float) -> None:
    most = max(max(one.num_sent for one in seconds), 1)
    y = LinearScale(0, most * 1.1, _COUNTS.bottom, _COUNTS.top, num_ticks=2)
    canvas.axes(x, y, _COUNTS, x_title="seconds since the start", y_title="")
    canvas.text(2, _COUNTS.top - 8, "requests a second", name="label title")
    has_failed = any(one.num_failed for one in seconds)
    for one in seconds:
        left, right = x(one.start_s) + 0.4, x(one.start_s + length) - 0.4
        hint = f"second {one.start_s:g}: {one.num_sent:,} sent, {one.num_failed:,} failed"
        canvas.rect(left, y(one.num_sent), right - left, _COUNTS.bottom - y(one.num_sent), "bar sent", hint)
        if one.num_failed:
            canvas.rect(left, y(one.num_failed), right - left, _COUNTS.bottom - y(one.num_failed), "bar failed", hint)
    if has_failed:
        canvas.text(_COUNTS.right, _COUNTS.top - 8, "■ failed", "end", "label FAIL")


def _spoken(seconds: Sequence[Second]) -> str:
    sent, failed = sum(one.num_sent for one in seconds), sum(one.num_failed for one in seconds)
    return f"Load test over {len(seconds)} seconds: {sent:,} requests sent, {failed:,} failed"
