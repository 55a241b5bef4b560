"""When requests are sent: seeded Poisson arrivals of a rate that may change, decided before the first one.

Nothing that the server does can move an arrival: that is what makes the load open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import UsageError

__all__ = ["Segment", "Shape", "ShapeName", "arrivals", "constant", "ramp", "soak", "spike", "steps"]

ShapeName: TypeAlias = Literal["constant", "ramp", "spike", "soak", "steps"]

_MAX_ARRIVALS = 50_000_000


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of time in which the rate goes straight from one value to another."""

    seconds: float
    start_rate: float
    """Requests a second at its begin."""
    end_rate: float
    """Requests a second at its end."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.seconds) and self.seconds > 0):
            raise UsageError(f"a load of {self.seconds:g} s", mend="Give a duration above 0 s.")
        for rate in (self.start_rate, self.end_rate):
            if not (np.isfinite(rate) and rate >= 0):
                raise UsageError(f"a rate of {rate:g} requests/s", mend="Give a finite rate that is not negative.")

    @property
    def expected(self) -> float:
        """Expected number of requests."""
        return self.seconds * (self.start_rate + self.end_rate) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A rate over time."""

    name: ShapeName
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if not self.segments or self.expected <= 0:
            raise UsageError("a load that sends nothing", mend="Give a rate above 0 requests/s.")
        if self.expected > _MAX_ARRIVALS:
            raise UsageError(
                f"a load of {self.expected:,.0f} requests; {_MAX_ARRIVALS:,} are the most",
                mend="Lower the rate or the duration.",
            )

    @property
    def seconds(self) -> float:
        """How long requests are sent."""
        return sum(segment.seconds for segment in self.segments)

    @property
    def expected(self) -> float:
        """Expected number of requests."""
        return sum(segment.expected for segment in self.segments)

    @property
    def mean_rate(self) -> float:
        """Requests a second, averaged over the duration."""
        return self.expected / self.seconds

    @property
    def peak_rate(self) -> float:
        """Highest requests a second."""
        return max(max(segment.start_rate, segment.end_rate) for segment in self.segments)

    @property
    def description(self) -> str:
        """Such as `constant, 100 requests/s for 20 s`."""
        parts = [
            f"{segment.start_rate:g} requests/s for {segment.seconds:g} s"
            if segment.start_rate == segment.end_rate
            else f"{segment.start_rate:g} to {segment.end_rate:g} requests/s in {segment.seconds:g} s"
            for segment in self.segments
        ]
        return f"{self.name}, {', '.join(parts)}"

    def rate_at(self, seconds: float) -> float:
        """Rate at a time since the begin; 0 outside of the run."""
        for segment in self.segments:
            if 0 <= seconds < segment.seconds:
                return segment.start_rate + (segment.end_rate - segment.start_rate) * seconds / segment.seconds
            seconds -= segment.seconds
        return 0.0

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "name": self.name,
            "segments": [[segment.seconds, segment.start_rate, segment.end_rate] for segment in self.segments],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Shape:
        """Read what `to_json` gave."""
        if value["name"] not in ("constant", "ramp", "spike", "soak", "steps"):
            raise ValueError(f"{value['name']!r} is no shape of a load")
        segments = tuple(Segment(*(float(number) for number in segment)) for segment in value["segments"])
        return cls(name=cast(ShapeName, value["name"]), segments=segments)


def constant(rate: float, seconds: float) -> Shape:
    """Give the same rate all the time."""
    return Shape(name="constant", segments=(Segment(seconds, rate, rate),))


def soak(rate: float, seconds: float) -> Shape:
    """Give the same rate for so long that leaks and drifts show; the report compares its begin with its end."""
    return Shape(name="soak", segments=(Segment(seconds, rate, rate),))


def ramp(start_rate: float, end_rate: float, seconds: float) -> Shape:
    """Raise or lower the rate evenly."""
    return Shape(name="ramp", segments=(Segment(seconds, start_rate, end_rate),))


def spike(
    rate: float, peak_rate: float, seconds: float, *, after: float | None = None, peak_seconds: float | None = None
) -> Shape:
    """Give a steady rate with one sudden peak.

    Args:
        rate: Before and after the peak.
        peak_rate: During the peak.
        seconds: All together.
        after: When the peak begins; by default after 40 % of the time.
        peak_seconds: How long it lasts; by default 20 % of the time.

    Raises:
        UsageError: The peak does not fit into the time.
    """
    begin = 0.4 * seconds if after is None else after
    length = 0.2 * seconds if peak_seconds is None else peak_seconds
    rest = seconds - begin - length
    if begin <= 0 or length <= 0 or rest < 0:
        raise UsageError(
            f"a peak of {length:g} s after {begin:g} s does not fit into {seconds:g} s",
            mend="Let the load last longer.",
        )
    segments = [Segment(begin, rate, rate), Segment(length, peak_rate, peak_rate)]
    if rest > 0:
        segments.append(Segment(rest, rate, rate))
    return Shape(name="spike", segments=tuple(segments))


def steps(rates: Sequence[float], seconds_each: float) -> Shape:
    """Hold each of several rates for the same time."""
    return Shape(name="steps", segments=tuple(Segment(seconds_each, rate, rate) for rate in rates))


def arrivals(shape: Shape, *, seed: int, worker: int = 0, num_workers: int = 1) -> NDArray[np.int64]:
    """Draw one worker's part of a Poisson process: all workers' parts together are the process of the whole rate.

    Args:
        shape: Rate of all workers together.
        seed: Of the whole load; each worker has a stream of its own.
        worker: Which one, in [0, num_workers).
        num_workers: How many share the load evenly.

    Returns:
        Nanoseconds since the begin, ascending, int64 of shape [n], n itself being Poisson.

    Source: Çinlar, Introduction to Stochastic Processes (1975), section 4.7: arrival i is Λ⁻¹(E₁ + … + Eᵢ), E
    exponential with mean 1 and Λ the cumulative rate; superposition of independent Poisson processes is one.
    Streams: `numpy.random.SeedSequence.spawn`.
    """
    if not 0 <= worker < num_workers:
        raise ValueError(f"worker {worker} of {num_workers}")
    stream = np.random.default_rng(np.random.SeedSequence(seed).spawn(num_workers)[worker])
    total = shape.expected / num_workers
    gaps = [stream.standard_exponential(int(total + 6 * np.sqrt(total)) + 16)]
    while (drawn := sum(float(part.sum()) for part in gaps)) <= total:
        gaps.append(stream.standard_exponential(int(total - drawn) + 16))
    levels = np.cumsum(np.concatenate(gaps))
    return (_invert(shape, levels[levels < total] * num_workers) * 1e9).astype(np.int64)


def _invert(shape: Shape, levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the seconds at which the cumulative rate reaches each level."""
    lengths = np.array([segment.seconds for segment in shape.segments])
    first = np.array([segment.start_rate for segment in shape.segments])
    last = np.array([segment.end_rate for segment in shape.segments])
    begins = np.concatenate(([0.0], np.cumsum(lengths)))
    reached = np.concatenate(([0.0], np.cumsum(lengths * (first + last) / 2)))
    index = np.clip(np.searchsorted(reached, levels, side="right") - 1, 0, len(lengths) - 1)
    rest = levels - reached[index]
    slope = (last - first)[index] / lengths[index]
    # The root of first·t + slope/2·t² = rest, in the form that does not cancel.
    root = np.sqrt(np.maximum(first[index] ** 2 + 2 * slope * rest, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = np.where(rest > 0, 2 * rest / (first[index] + root), 0.0)
    return np.asarray(begins[index] + np.minimum(inside, lengths[index]), dtype=np.float64)
