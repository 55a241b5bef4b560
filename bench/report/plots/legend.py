"""Swatches with their names, below a plot."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.svg import WIDTH, Canvas, text_width

__all__ = ["LEGEND_LINE", "break_legend", "draw_legend"]

LEGEND_LINE = 18.0
"""Height of a line of the legend."""
_LEFT = 4.0


def break_legend(entries: Sequence[tuple[str, str]]) -> list[list[tuple[float, str, str]]]:
    """Break a legend into lines.

    Args:
        entries: Name and class of each swatch.

    Returns:
        Place, name and class of those of each line.
    """
    rows: list[list[tuple[float, str, str]]] = []
    x = WIDTH
    for name, style in entries:
        width = text_width(name) + 30
        if x + width > WIDTH:
            rows.append([])
            x = _LEFT
        rows[-1].append((x, name, style))
        x += width
    return rows


def draw_legend(canvas: Canvas, rows: Sequence[Sequence[tuple[float, str, str]]], y: float) -> None:
    """Draw lines of a legend, the first with its baseline at y."""
    for number, entries in enumerate(rows):
        for x, name, style in entries:
            baseline = y + LEGEND_LINE * number
            canvas.rect(x, baseline - 9, 10, 10, style)
            canvas.text(x + 15, baseline, name)
