"""Percentiles of samples with bounds that hold for every distribution.

The bounds are order statistics: they assume independent samples and nothing about their shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.stats.binomial import binomial_cdf

__all__ = ["PercentileBounds", "bound_percentile", "required_samples"]


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
    low, high = num_slow, num_slow + 1
    while binomial_cdf(num_slow, high, slow_rate) > 1 - confidence:
        low, high = high, high * 2
    while high - low > 1:  # certified at `high`, not at `low`
        middle = (low + high) // 2
        if binomial_cdf(num_slow, middle, slow_rate) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def bound_percentile(samples: ArrayLike, percentile: float, confidence: float) -> PercentileBounds:
    """Estimate a percentile and bound it from both sides.

    Args:
        samples: Independent measurements of shape [n], in any unit and order.
        percentile: In per cent, in (0, 100).
        confidence: Of each of the two bounds on its own.

    Returns:
        The bounds, in the unit of the samples. What `n` cannot support is None.

    Source: David & Nagaraja, Order Statistics (3rd ed., 2003), section 7.1.
    """
    ordered: NDArray[np.float64] = np.sort(np.asarray(samples, dtype=np.float64))
    n = len(ordered)
    required = required_samples(percentile, confidence)
    slow_rate = _slow_rate(percentile)
    upper = lower = None
    if n >= required:
        # The largest number of slow ones that still certifies: the next lower order statistic would not.
        num_slow = _largest(lambda slow: binomial_cdf(slow, n, slow_rate) <= 1 - confidence, n)
        upper = float(ordered[n - 1 - num_slow])
    if n and 1 - binomial_cdf(0, n, 1 - slow_rate) >= confidence:
        # X_(k) ≤ percentile holds when at least k samples are at or below it.
        rank = _largest(lambda k: 1 - binomial_cdf(k - 1, n, 1 - slow_rate) >= confidence, n)
        lower = float(ordered[rank - 1])
    estimate = float(ordered[math.ceil(n * (1 - slow_rate) - 1e-9) - 1]) if upper is not None else None
    return PercentileBounds(
        percentile=percentile,
        confidence=confidence,
        num_samples=n,
        num_required=required,
        estimate=estimate,
        lower=lower,
        upper=upper,
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
