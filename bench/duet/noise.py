"""The noise floor of a comparison: what it shows where there is no difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench.stats.resampling import Bounds

__all__ = ["NoiseFloor", "certain_bias_percent"]


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """What the same run shows between two sessions of the very same baseline (A/A), and its loop's own cost."""

    cpu: Bounds
    """CPU time of the baseline / of the baseline opened a second time: 1 but for chance."""
    wall: Bounds
    """The same of the wall times."""
    bias_percent: float
    """By how much that CPU ratio certainly differs from 1, in per cent, at 99 % confidence; 0 on an honest machine. A
    difference between two artifacts must exceed it to be believed."""
    wall_bias_percent: float
    """The same of the wall times."""
    overhead_cpu_ns: int
    """CPU time of a request to an engine that answers at once."""
    overhead_wall_ns: int

    @property
    def percent(self) -> float:
        """Half-width of the A/A ratio of CPU times, in per cent: what is smaller cannot be seen."""
        return _half_width(self.cpu)

    @property
    def wall_percent(self) -> float:
        """Half-width of the A/A ratio of wall times, in per cent."""
        return _half_width(self.wall)

    @property
    def summary(self) -> str:
        """One sentence part: `the baseline against itself: +0.1 ± 0.4 %`."""
        return f"the baseline against itself: {100 * (self.cpu.estimate - 1):+.1f} ± {self.percent:.1f} % CPU time"

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "confidence": self.cpu.confidence,
            "cpu_percent": self.percent,
            "wall_percent": self.wall_percent,
            "bias_percent": self.bias_percent,
            "wall_bias_percent": self.wall_bias_percent,
            "cpu_ratio": {"estimate": self.cpu.estimate, "lower": self.cpu.lower, "upper": self.cpu.upper},
            "wall_ratio": {"estimate": self.wall.estimate, "lower": self.wall.lower, "upper": self.wall.upper},
            "overhead_cpu_ns": self.overhead_cpu_ns,
            "overhead_wall_ns": self.overhead_wall_ns,
        }


def _half_width(ratio: Bounds) -> float:
    return 50 * (ratio.upper - ratio.lower)


def certain_bias_percent(ratio: Bounds) -> float:
    """By how much a ratio's bounds say that it differs from 1, in per cent; 0 if they do not."""
    return 100 * max(0.0, ratio.lower - 1, 1 - ratio.upper)
