"""All targets at once: quality against speed, with the size as the dot's area."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.report.figures import show_short
from bench.report.svg import Canvas, Frame, LinearScale, LogScale

__all__ = ["Spot", "plot_tradeoff"]

_FRAME = Frame(bottom=234)
_HEIGHT = 274.0
_MAX_RADIUS = 17.0


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One model's place."""

    name: str
    style: str
    """`a` for a target, `b` for a baseline."""
    speed: float
    """Milliseconds of a request, > 0."""
    quality: float
    """The metric, in per cent or its own unit."""
    interval: tuple[float, float] | None
    """Of the quality."""
    size_mb: float


def plot_tradeoff(spots: Sequence[Spot], *, speed: str, quality: str, higher_is_better: bool = True) -> str:
    """Draw every model's quality against its speed; the area of a dot is its size.

    Args:
        spots: At least one.
        speed: What the x axis shows, with its unit.
        quality: What the y axis shows, with its unit.
        higher_is_better: Of the quality.
    """
    speeds = [spot.speed for spot in spots]
    ends = [end for spot in spots for end in (spot.interval or (spot.quality, spot.quality))]
    low, high = min(ends), max(ends)
    pad = 0.14 * (high - low) or abs(high) * 0.05 or 1.0
    slow = math.log(max(speeds) / min(speeds))
    spread = math.exp(max(0.5, 0.42 * slow))
    x = LogScale(min(speeds) / spread, max(speeds) * spread, _FRAME.left, _FRAME.right)
    y = LinearScale(low - pad, high + pad, _FRAME.bottom, _FRAME.top)
    canvas = Canvas(_HEIGHT, _spoken(spots, speed, quality))
    canvas.axes(x, y, _FRAME, x_title=speed, y_title=quality)
    corner = _FRAME.top + 14 if higher_is_better else _FRAME.bottom - 8
    canvas.text(_FRAME.left + 6, corner, "↖ better" if higher_is_better else "↙ better", name="label faint")
    largest = max(spot.size_mb for spot in spots)
    radii = [max(3.0, _MAX_RADIUS * math.sqrt(spot.size_mb / largest)) for spot in spots]
    for spot, radius in sorted(zip(spots, radii, strict=True), key=lambda pair: -pair[1]):
        at_x, at_y = x(spot.speed), y(spot.quality)
        if spot.interval is not None:
            canvas.path([(at_x, y(spot.interval[0])), (at_x, y(spot.interval[1]))], f"whisker {spot.style}")
        canvas.circle(at_x, at_y, radius, f"blob {spot.style}", _hint(spot))
        canvas.circle(at_x, at_y, 2.5, f"dot {spot.style}")
        canvas.taken.append((at_x - radius, at_y - radius, at_x + radius, at_y + radius))
    for spot, radius in zip(spots, radii, strict=True):
        _name_spot(canvas, spot, x(spot.speed), y(spot.quality), radius)
    return canvas.to_svg()


def _name_spot(canvas: Canvas, spot: Spot, at_x: float, at_y: float, radius: float) -> None:
    """Write name and size near a dot; where others take the room beside it, a line leads to it."""
    places: list[tuple[float, float, str]] = []
    for away in (0, 18, 36, 54, 72, 90):
        for side, anchor in ((1, "start"), (-1, "end")):
            for aside in (5, 30):
                label_x = at_x + side * (radius + aside)
                places += [(label_x, at_y + 4 + away, anchor), (label_x, at_y + 4 - away, anchor)]
    text = f"{spot.name}, {show_short(spot.size_mb)} MB"
    label_x, label_y, _ = canvas.label(text, places, f"label strong {spot.style}", _FRAME)
    away_x, away_y = label_x - at_x, label_y - 4 - at_y
    distance = math.hypot(away_x, away_y)
    if distance > radius + 10:
        share = radius / distance
        start = at_x + share * away_x, at_y + share * away_y
        canvas.line(*start, label_x - math.copysign(3, away_x), label_y - 4, f"leader {spot.style}")


def _hint(spot: Spot) -> str:
    return f"{spot.name}: {show_short(spot.quality, 4)} at {show_short(spot.speed)} ms, {show_short(spot.size_mb)} MB"


def _spoken(spots: Sequence[Spot], speed: str, quality: str) -> str:
    return f"{quality} against {speed}; the area of a dot is its size. " + "; ".join(_hint(spot) for spot in spots)
