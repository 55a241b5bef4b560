"""Drawing as inline SVG: scales with readable ticks, and a canvas whose labels keep out of each other's way.

Colours come from the page's classes, so that light and dark both work; the same calls give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Protocol

__all__ = ["Canvas", "Frame", "LinearScale", "LogScale", "Scale", "TailScale", "text_width"]

WIDTH = 400.0
"""Of every plot, in its own units: a phone shows it at nine tenths of its size, so 12-unit text stays readable."""
_CHARACTER = 7.2
_LINE = 13.0
_GAP = 2.0


class Scale(Protocol):
    """Values to places on the canvas."""

    def __call__(self, value: float) -> float:
        """Place a value."""
        ...

    def ticks(self) -> list[tuple[float, str]]:
        """Values to mark, with their names."""
        ...


def _place(share: float, start: float, end: float) -> float:
    return start + min(1.0, max(0.0, share)) * (end - start)


@dataclass(frozen=True)
class LinearScale:
    """Equal steps; what is outside is drawn at the edge."""

    low: float
    high: float
    start: float
    end: float
    unit: str = ""
    num_ticks: int = 5

    def __call__(self, value: float) -> float:
        """Place a value."""
        return _place((value - self.low) / (self.high - self.low), self.start, self.end)

    def ticks(self) -> list[tuple[float, str]]:
        """Multiples of 1, 2 or 5 times a power of ten."""
        values, places = _round_values(self.low, self.high, self.num_ticks)
        return [(value, f"{value:,.{places}f}{self.unit}".replace("-", "−")) for value in values]


@dataclass(frozen=True)
class LogScale:
    """Equal ratios; values > 0."""

    low: float
    high: float
    start: float
    end: float
    num_ticks: int = 7

    def __call__(self, value: float) -> float:
        """Place a value."""
        share = (math.log(max(value, 1e-300)) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return _place(share, self.start, self.end)

    def ticks(self) -> list[tuple[float, str]]:
        """Give 1, 2 and 5 times the powers of ten; fewer of them on a long axis, round values on a short one."""
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            values = [digit * 10.0**exponent for exponent in exponents for digit in digits]
            found = [value for value in values if self.low <= value <= self.high]
            if digits == (1, 2, 5) and len(found) < 3:
                values, places = _round_values(self.low, self.high, 5)
                return [(value, f"{value:,.{places}f}") for value in values if value > 0]
            if len(found) <= self.num_ticks:
                break
        return [(value, _short(value)) for value in found]


@dataclass(frozen=True)
class TailScale:
    """Percentiles, so that each further nine takes the same room: 90, 99, 99.9."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Place a percentile, in per cent."""
        nines = [-math.log10(max(1e-12, 1 - one / 100)) for one in (value, self.low, self.high)]
        return _place((nines[0] - nines[1]) / (nines[2] - nines[1]), self.start, self.end)

    def ticks(self) -> list[tuple[float, str]]:
        """The usual percentiles."""
        usual = (50, 75, 90, 95, 99, 99.5, 99.9, 99.99)
        return [(value, f"{value:g}") for value in usual if self.low <= value <= self.high]


def _round_values(low: float, high: float, count: int) -> tuple[list[float], int]:
    """At least `count` - 1 round values between two others, and the decimal places that tell them apart."""
    power = math.floor(math.log10(high - low))
    for step in (digit * 10.0**exponent for exponent in range(power, power - 4, -1) for digit in (5, 2, 1)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 >= max(2, count - 1):
            break
    return [number * step for number in range(first, last + 1)], max(0, -math.floor(math.log10(step) + 1e-9))


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:.{max(0, -math.floor(math.log10(value) + 1e-9))}f}"


def text_width(text: str) -> float:
    """Width of a label, estimated a little on the wide side."""
    return _CHARACTER * len(text)


@dataclass(frozen=True)
class Frame:
    """Where the data are drawn."""

    left: float = 46.0
    right: float = WIDTH - 12
    top: float = 22.0
    bottom: float = 214.0


class Canvas:
    """Collects shapes and writes them as one SVG element."""

    def __init__(self, height: float, title: str) -> None:
        self.height = height
        self.title = title
        self.parts: list[str] = []
        self.taken: list[tuple[float, float, float, float]] = []
        self.dots: list[tuple[float, float]] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, name: str) -> None:
        """Draw a straight line."""
        self.parts.append(f'<line class="{name}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def rect(self, x: float, y: float, width: float, height: float, name: str, hint: str = "") -> None:
        """Draw a filled rectangle; `hint` shows under the pointer."""
        shape = f'class="{name}" x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{max(0.0, height):.1f}"'
        self.parts.append(f"<rect {shape}/>" if not hint else f"<rect {shape}><title>{_text(hint)}</title></rect>")

    def circle(self, x: float, y: float, radius: float, name: str, hint: str = "") -> None:
        """Draw a dot; `hint` shows under the pointer."""
        shape = f'class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"'
        self.parts.append(
            f"<circle {shape}/>" if not hint else f"<circle {shape}><title>{_text(hint)}</title></circle>"
        )

    def path(self, points: Sequence[tuple[float, float]], name: str, *, is_closed: bool = False) -> None:
        """Draw a line through points."""
        if points:
            drawn = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            self.parts.append(f'<path class="{name}" d="M{drawn}{"Z" if is_closed else ""}"/>')
            self.dots += _along(points)

    def text(self, x: float, y: float, text: str, anchor: str = "start", name: str = "label") -> None:
        """Write a label with its baseline at y, kept inside the canvas, and note the room that it takes."""
        width = text_width(text)
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        shift = min(0.0, WIDTH - 1 - (left + width)) if left + width > WIDTH - 1 else max(0.0, 1 - left)
        self.taken.append((left + shift, y - _LINE + 3, left + shift + width, y + 3))
        self.parts.append(
            f'<text class="{name}" x="{x + shift:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_text(text)}</text>'
        )

    def label(
        self, text: str, places: Sequence[tuple[float, float, str]], name: str = "label", frame: Frame | None = None
    ) -> tuple[float, float, str]:
        """Write a label at that of some places where it covers the least of what is drawn already; give the place."""
        best = min(range(len(places)), key=lambda index: (self._covered(text, places[index], frame), index))
        x, y, anchor = places[best]
        self.text(x, y, text, anchor, name)
        return x, y, anchor

    def _covered(self, text: str, place: tuple[float, float, str], frame: Frame | None) -> float:
        x, y, anchor = place
        width = text_width(text)
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor] - _GAP
        right, top, bottom = left + width + 2 * _GAP, y - _LINE + 3 - _GAP, y + 3 + _GAP
        inside = frame or Frame(left=0, right=WIDTH, top=0, bottom=self.height)
        outside = max(0.0, inside.left - left) + max(0.0, right - inside.right)
        outside += max(0.0, inside.top - top) + max(0.0, bottom - inside.bottom)
        hidden = sum(
            max(0.0, min(right, x2) - max(left, x1)) * max(0.0, min(bottom, y2) - max(top, y1))
            for x1, y1, x2, y2 in self.taken
        )
        crossed = sum(left <= dot_x <= right and top <= dot_y <= bottom for dot_x, dot_y in self.dots)
        return 100 * outside + 4 * hidden + 25 * crossed

    def axes(self, x: Scale, y: Scale, frame: Frame, *, x_title: str, y_title: str) -> None:
        """Draw grid, ticks and the titles of both axes."""
        for value, name in y.ticks():
            self.line(frame.left, y(value), frame.right, y(value), "grid")
            self.text(frame.left - 6, y(value) + 4, name, "end")
        last = -math.inf
        for value, name in x.ticks():
            self.line(x(value), frame.bottom, x(value), frame.bottom + 4, "axis")
            if x(value) - text_width(name) / 2 > last + 4:
                self.text(x(value), frame.bottom + 17, name, "middle")
                last = x(value) + text_width(name) / 2
        self.line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")
        self.text((frame.left + frame.right) / 2, frame.bottom + 34, x_title, "middle", "label title")
        if y_title:
            self.text(2, frame.top - 11, y_title, "start", "label title")

    def to_svg(self) -> str:
        """Write the element, with its title as the text alternative."""
        head = f'<svg viewBox="0 0 {WIDTH:g} {self.height:g}" role="img"><title>{_text(self.title)}</title>'
        return head + "".join(self.parts) + "</svg>"


def _along(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points close enough together that no label fits between them."""
    found = []
    for (x1, y1), (x2, y2) in pairwise(points):
        steps = max(1, math.ceil(math.hypot(x2 - x1, y2 - y1) / 8))
        found += [(x1 + (x2 - x1) * step / steps, y1 + (y2 - y1) * step / steps) for step in range(steps)]
    return found


def _text(text: str) -> str:
    return escape("".join(one if one.isprintable() else "\ufffd" for one in text))
