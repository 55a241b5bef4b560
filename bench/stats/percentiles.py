"""Percentiles of samples with bounds that hold for every distribution.

The bounds are order statistics: they assume nothing about the samples' shape. Samples that depend on each other
count as fewer: their inflation (`bench.stats.dependence`) divides n.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.stats.binomial import binomial_cdf, normal_quantile

__all__ = ["PercentileBounds", "bound_percentile", "certifying_ranks", "percentile_rank", "required_samples"]


@dataclass(frozen=True, kw_only=True)
class PercentileBounds:
    """A percentile of samples, as far as their number supports it."""

    percentile: float
    """In per cent."""
    confidence: float
    """Of each bound on its own."""
    num_samples: int
    num_required: int
    """Fewest samples from which the upper bound can be had at all."""
    estimate: float | None
    """The sample percentile; None where the samples are too few to say."""
    lower: float | None
    """The true percentile is at least this; None where the samples are too few."""
    upper: float | None
    """The true percentile is at most this; None where the samples are too few."""
    inflation: float = 1.0
    """How many of the samples say as much as an independent one."""


@lru_cache(maxsize=4096)
def required_samples(percentile: float, confidence: float, num_slow: int = 0) -> int:
    """Fewest samples that certify a percentile when `num_slow` of them are over the limit.

    Args:
        percentile: In per cent, in (0, 100).
        confidence: That the true percentile is within the limit, in (0, 1).
        num_slow: Samples over the limit.

    Source: Wilks, "Determination of sample sizes for setting tolerance limits", Ann. Math. Stat. 12 (1941);
    the same binomial bound as MLPerf's early stopping (MLPerf Inference rules, appendix).

    >>> [required_samples(99, 0.99, slow) for slow in (0, 1, 2, 5, 10)]
    [459, 662, 838, 1307, 2010]
    """
    slow_rate = _slow_rate(percentile)
    z = normal_quantile(confidence)
    guess = (num_slow + 1 + z * z / 2 + z * math.sqrt(num_slow + 1 + z * z / 4)) / slow_rate
    low, high = num_slow, max(num_slow + 1, math.ceil(guess))
    while binomial_cdf(num_slow, high, slow_rate) > 1 - confidence:
        low, high = high, high * 2
    step = max(1, high // 64)
    while high - step > low and binomial_cdf(num_slow, high - step, slow_rate) <= 1 - confidence:
        high, step = high - step, step * 2
    low = max(low, high - step)
    while high - low > 1:  # certified at `high`, not at `low`
        middle = (low + high) // 2
        if binomial_cdf(num_slow, middle, slow_rate) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def certifying_ranks(
    num_samples: int, percentile: float, confidence: float, inflation: float = 1.0
) -> tuple[int | None, int | None]:
    """Which of n ordered samples bound a percentile from below and from above.

    Args:
        num_samples: n.
        percentile: In per cent, in (0, 100).
        confidence: Of each of the two bounds on its own.
        inflation: How many samples say as much as an independent one, ≥ 1.

    Returns:
        Ranks from 1 (the smallest) to n; None where n cannot support the bound. Every rounding goes outwards.

    Source: David & Nagaraja, Order Statistics (3rd ed., 2003), section 7.1, with the effective sample size of Geyer,
    Statistical Science 7 (1992), in place of n.
    """
    slow_rate = _slow_rate(percentile)
    if inflation < 1:
        raise ValueError(f"inflation {inflation} is below 1")
    independent = math.floor(num_samples / inflation)
    lower = upper = None
    if binomial_cdf(0, independent, slow_rate) <= 1 - confidence:
        # The largest number of slow ones that still certifies: the next lower order statistic would not.
        num_slow = _largest(lambda slow: binomial_cdf(slow, independent, slow_rate) <= 1 - confidence, independent)
        upper = num_samples - math.floor(num_slow * inflation)
    if independent and 1 - binomial_cdf(0, independent, 1 - slow_rate) >= confidence:
        # X_(k) ≤ percentile holds when at least k samples are at or below it.
        rank = _largest(lambda k: 1 - binomial_cdf(k - 1, independent, 1 - slow_rate) >= confidence, independent)
        lower = 1 + math.floor((rank - 1) * inflation)
    return lower, upper


def percentile_rank(num_samples: int, percentile: float) -> int:
    """Rank, from 1, of the sample percentile: the smallest sample that so many per cent do not exceed."""
    return max(1, math.ceil(num_samples * (1 - _slow_rate(percentile)) - 1e-9))


def bound_percentile(
    samples: ArrayLike, percentile: float, confidence: float, inflation: float = 1.0
) -> PercentileBounds:
    """Estimate a percentile and bound it from both sides.

    Args:
        samples: Measurements of shape [n], in any unit and order; a failed request is infinity.
        percentile: In per cent, in (0, 100).
        confidence: Of each of the two bounds on its own.
        inflation: How many samples say as much as an independent one: see `bench.stats.dependence`.

    Returns:
        The bounds, in the unit of the samples. What `n` cannot support is None. The estimate is that of the samples
        whatever the inflation.

    Raises:
        ValueError: A sample is NaN.

    Source: see `certifying_ranks`.
    """
    ordered: NDArray[np.float64] = np.sort(np.asarray(samples, dtype=np.float64))
    n = len(ordered)
    if n and math.isnan(ordered[-1]):
        raise ValueError("a sample is NaN: count a failure as infinity")
    required = required_samples(percentile, confidence)
    lower, upper = certifying_ranks(n, percentile, confidence, inflation)
    return PercentileBounds(
        percentile=percentile,
        confidence=confidence,
        num_samples=n,
        num_required=math.ceil(required * inflation),
        estimate=float(ordered[percentile_rank(n, percentile) - 1]) if n >= required else None,
        lower=None if lower is None else float(ordered[lower - 1]),
        upper=None if upper is None else float(ordered[upper - 1]),
        inflation=inflation,
    )


def _slow_rate(percentile: float) -> float:
    if not 0 < percentile < 100:
        raise ValueError(f"percentile {percentile} is not between 0 and 100")
    return (100 - percentile) / 100


def _largest(holds: Callable[[int], bool], n: int) -> int:
    """Largest k in [0, n] for which the monotone `holds(k)` is true; it is true at 0."""
    low, high = 0, n + 1
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
