"""Histograms of tensors that grow with what they see, and the ranges to quantize with: arrays only, no graph.

A histogram has a fixed number of bins over [-limit, limit), the limit a power of two; when a value falls outside,
the limit doubles and neighbouring bins merge, exactly. One pass over the data is enough, and memory is constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Histogram",
    "channel_peaks",
    "entropy_range",
    "min_max_range",
    "mse_range",
    "observe",
    "percentile_range",
]

NUM_BINS = 16384
_NUM_CANDIDATES = 192
_SMALLEST_LIMIT = 2.0**-100


@dataclass(frozen=True)
class Histogram:
    """How often a tensor held which values."""

    counts: NDArray[np.int64]
    """Of shape [NUM_BINS], over [-limit, limit)."""
    limit: float
    """A power of two above every absolute value seen."""
    low: float
    """The smallest value seen."""
    high: float
    """The largest value seen."""

    @property
    def edges(self) -> NDArray[np.float64]:
        """The bounds of the bins, of shape [NUM_BINS + 1]."""
        return np.linspace(-self.limit, self.limit, NUM_BINS + 1)


def observe(values: NDArray[np.floating], seen: Histogram | None = None) -> Histogram:
    """Count `values` into a new histogram, together with what was `seen` before.

    Args:
        values: Any shape, at least one element. Not modified.
        seen: An earlier histogram of the same tensor. Not modified.

    Raises:
        ValueError: There are no values, or one is NaN or infinite.

    >>> observe(np.array([-1.0, 3.0], np.float32)).limit
    4.0
    """
    flat = np.asarray(values, dtype=np.float32).ravel()
    if flat.size == 0:
        raise ValueError("no values")
    low, high = float(flat.min()), float(flat.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("NaN or infinite values")
    limit = max(_power_above(max(-low, high)), seen.limit if seen else 0.0)
    counts = np.zeros(NUM_BINS, np.int64)
    if seen:
        counts += _widen(seen.counts, round(np.log2(limit / seen.limit)))
        low, high = min(low, seen.low), max(high, seen.high)
    # Scaling by a power of two is exact, so a value on an edge always falls into the bin above it.
    index = np.floor(flat * np.float32(NUM_BINS / 2 / limit)).astype(np.int32) + NUM_BINS // 2
    counts += np.bincount(index, minlength=NUM_BINS)
    return Histogram(counts, limit, low, high)


def channel_peaks(values: NDArray[np.floating], seen: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Return the largest absolute value of each entry of the last axis, over `values` and what was `seen`.

    Raises:
        ValueError: There are no values, or one is NaN or infinite.
    """
    if values.size == 0:
        raise ValueError("no values")
    peaks = np.abs(values).max(axis=tuple(range(values.ndim - 1)))
    if not np.isfinite(peaks).all():
        raise ValueError("NaN or infinite values")
    return np.asarray(peaks if seen is None else np.maximum(peaks, seen), dtype=np.float32)


def _power_above(value: float) -> float:
    """Return the smallest power of two above `value`."""
    return max(float(2.0 ** np.frexp(value)[1]), _SMALLEST_LIMIT) if value else _SMALLEST_LIMIT


def _widen(counts: NDArray[np.int64], times: int) -> NDArray[np.int64]:
    # After as many doublings as there are bits all is in the two middle bins, and stays there.
    for _ in range(min(times, NUM_BINS.bit_length())):
        merged = np.zeros_like(counts)
        merged[NUM_BINS // 4 : 3 * NUM_BINS // 4] = counts.reshape(-1, 2).sum(axis=1)
        counts = merged
    return counts


def min_max_range(seen: Histogram) -> tuple[float, float]:
    """Return the smallest and the largest value seen."""
    return seen.low, seen.high


def percentile_range(seen: Histogram, percentile: float) -> tuple[float, float]:
    """Return bounds that keep `percentile` percent of the values, cutting as many on either side."""
    cumulative = np.cumsum(seen.counts)
    tail = (100 - percentile) / 200 * cumulative[-1]
    first = int(np.searchsorted(cumulative, tail, side="right"))
    last = int(np.searchsorted(cumulative, cumulative[-1] - tail, side="left"))
    edges = seen.edges
    return max(float(edges[first]), seen.low), min(float(edges[last + 1]), seen.high)


def mse_range(seen: Histogram, *, symmetric: bool = False, num_steps: int = 255) -> tuple[float, float]:
    """Return the bounds with the smallest mean squared error of rounding and clipping together.

    Args:
        seen: What the tensor held.
        symmetric: The bounds are to be -t and t.
        num_steps: Steps between the lowest and the highest code.
    """
    lows, highs = _candidates(seen)
    if symmetric:
        highs = np.maximum(highs, -lows[::-1][: len(highs)]) if seen.high <= 0 else highs
        bound = max(-seen.low, seen.high)
        limits = bound * np.arange(1, _NUM_CANDIDATES + 1) / _NUM_CANDIDATES
        error = _clipping(seen, limits, above=True) + _clipping(seen, -limits, above=False)
        error += seen.counts.sum() * (2 * limits / num_steps) ** 2 / 12
        best = float(limits[np.argmin(error)])
        return -best, best
    span = highs[np.newaxis, :] - lows[:, np.newaxis]
    error = _clipping(seen, lows, above=False)[:, np.newaxis] + _clipping(seen, highs, above=True)[np.newaxis, :]
    error = error + seen.counts.sum() * (span / num_steps) ** 2 / 12
    row, column = np.unravel_index(np.argmin(error), error.shape)
    return float(lows[row]), float(highs[column])


def _candidates(seen: Histogram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    shares = np.arange(0, _NUM_CANDIDATES + 1) / _NUM_CANDIDATES
    return min(seen.low, 0.0) * shares, max(seen.high, 0.0) * shares


def _clipping(seen: Histogram, bounds: NDArray[np.float64], *, above: bool) -> NDArray[np.float64]:
    """Return, for each bound, the sum of the squared distances of the values beyond it."""
    edges = seen.edges
    centres = (edges[:-1] + edges[1:]) / 2
    excess = centres[np.newaxis, :] - bounds[:, np.newaxis] if above else bounds[:, np.newaxis] - centres
    used = seen.counts > 0
    np.maximum(excess, 0, out=excess)
    return np.asarray((excess[:, used] ** 2) @ seen.counts[used].astype(np.float64))


def entropy_range(seen: Histogram, *, num_steps: int = 255) -> tuple[float, float]:
    """Return the bounds whose quantized distribution diverges least (Kullback-Leibler) from the one seen.

    Values beyond a bound count as being on it, in the distribution seen too.

    Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017.
    """
    edges = seen.edges
    low_bin = int(np.searchsorted(edges, min(seen.low, 0.0), side="right")) - 1
    high_bin = int(np.searchsorted(edges, max(seen.high, 0.0), side="right"))
    middle = NUM_BINS // 2
    reach = max(middle - low_bin, high_bin - middle)
    best = np.inf, low_bin, high_bin
    for bins in np.unique(np.linspace(max(num_steps // 2, reach // 16), reach, _NUM_CANDIDATES).astype(int)):
        first, last = max(middle - bins, low_bin), min(middle + bins, high_bin)
        divergence = _divergence(seen.counts, first, last, num_steps)
        if divergence < best[0]:
            best = divergence, first, last
    return max(float(edges[best[1]]), min(seen.low, 0.0)), min(float(edges[best[2]]), max(seen.high, 0.0))


def _divergence(counts: NDArray[np.int64], first: int, last: int, num_steps: int) -> float:
    """Kullback-Leibler divergence of what `num_steps` levels keep of bins [first, last), outliers on the edge."""
    inside = counts[first:last].astype(np.float64)
    reference = inside.copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last:].sum()
    levels = np.minimum(np.arange(len(inside)) * num_steps // len(inside), num_steps - 1)
    used = reference > 0
    mass = np.bincount(levels, inside, num_steps)
    width = np.bincount(levels, used, num_steps)
    quantized = np.where(used, (mass / np.maximum(width, 1))[levels], 0.0)
    p, q = reference[used] / reference.sum(), quantized[used]
    if q.sum() == 0:
        return np.inf
    q = np.maximum(q / q.sum(), 1e-12)
    return float((p * np.log(p / q)).sum())
