"""Stacked bars: what a whole is made of, one bar a model, with the parts' names beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.report.plots.legend import LEGEND_LINE, break_legend, draw_legend
from bench.report.svg import WIDTH, Canvas, LinearScale, text_width

__all__ = ["NUM_COLOURS", "Part", "plot_stacks"]

NUM_COLOURS = 8
_LEFT, _RIGHT, _BAR = 4.0, WIDTH - 4, 24.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a whole."""

    name: str
    value: float
    colour: int
    """In [0, NUM_COLOURS): the same in every bar for the same part; the last one is for what is left."""


def plot_stacks(
    title: str, bars: Sequence[tuple[str, Sequence[Part]]], write: Callable[[float], str], *, axis: str
) -> str:
    """Draw one bar a model, all on one axis, with a legend of the parts that are large enough to be seen.

    Args:
        title: The text alternative's beginning.
        bars: Each one's name and parts; the name stands above it with its total.
        write: A value with its unit.
        axis: Name of the axis, with its unit.
    """
    totals = [sum(part.value for part in parts) for _, parts in bars]
    x = LinearScale(0, max([*totals, 1e-12]), _LEFT, _RIGHT)
    legend = _legend(bars)
    rows = break_legend(legend)
    bottom = 4 + len(bars) * (_BAR + 26)
    spoken = "; ".join(f"{name} {write(total)}" for (name, _), total in zip(bars, totals, strict=True))
    canvas = Canvas(bottom + 46 + LEGEND_LINE * len(rows), f"{title}: {spoken}")
    for value, name in x.ticks():
        canvas.line(x(value), 4, x(value), bottom, "grid")
        anchor = "start" if x(value) < 20 else "end" if x(value) > _RIGHT - 20 else "middle"
        canvas.text(x(value), bottom + 15, name, anchor)
    canvas.text(WIDTH / 2, bottom + 31, axis, "middle", "label title")
    for number, ((name, parts), total) in enumerate(zip(bars, totals, strict=True)):
        top = 4 + number * (_BAR + 26)
        canvas.text(_LEFT, top + 13, f"{name}: {write(total)}", name="label strong ink")
        start = 0.0
        for part in parts:
            left, right = x(start), x(start + part.value)
            gap = 1.0 if right - left > 3 else 0.0
            hint = f"{name}, {part.name}: {write(part.value)}"
            canvas.rect(left, top + 18, right - left - gap, _BAR, f"k{part.colour}", hint)
            figure = write(part.value).split(" ")[0]
            if right - left > text_width(figure) + 6:
                canvas.text((left + right) / 2, top + 34.5, figure, "middle", "label onbar")
            start += part.value
    draw_legend(canvas, rows, bottom + 54)
    return canvas.to_svg()


def _legend(bars: Sequence[tuple[str, Sequence[Part]]]) -> list[tuple[str, str]]:
    found: dict[str, int] = {}
    for _, parts in bars:
        for part in parts:
            found.setdefault(part.name, part.colour)
    rising = sorted(found.items(), key=lambda entry: entry[1] == NUM_COLOURS - 1)
    return [(name, f"k{colour}") for name, colour in rising]
