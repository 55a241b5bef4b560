"""How many samples a question takes, and how small a difference so many can show.

For proportions of paired right answers see `bench.stats.proportions`.
"""

from __future__ import annotations

import math

from bench.stats.binomial import binomial_cdf, normal_quantile
from bench.stats.percentiles import certifying_ranks, required_samples

__all__ = [
    "largest_slow_rate",
    "required_mean_pairs",
    "required_ratio_pairs",
    "required_requests",
    "smallest_mean_difference",
    "smallest_ratio",
]


_MOST_SLOW = 20_000


def required_mean_pairs(distance: float, spread: float, *, confidence: float, power: float = 0.8) -> int:
    """Pairs needed to show, one-sided, on which side of a margin a mean difference lies.

    Args:
        distance: Between the true mean difference and the margin, > 0.
        spread: Standard deviation of one pair's difference, in the same unit.
        confidence: One-sided.
        power: Chance that the data then settle the question.

    Returns:
        At least 2.

    Source: Guenther, "Sample size formulas for normal theory t tests", The American Statistician 35 (1981): the
    normal formula plus z² / 2 is within one sample of the one from the noncentral t.

    >>> required_mean_pairs(0.5, 1.0, confidence=0.95)
    27
    """
    if not distance > 0:
        raise ValueError(f"a distance of {distance} from the margin")
    z = normal_quantile(confidence)
    return max(2, math.ceil(((z + normal_quantile(power)) * spread / distance) ** 2 + z * z / 2 - 1e-9))


def smallest_mean_difference(num_pairs: int, spread: float, *, confidence: float, power: float = 0.8) -> float:
    """Smallest distance from a margin that so many pairs show with that power: their minimum detectable effect.

    Args:
        num_pairs: Any number; too few for the t-test at all give infinity.
        spread: Standard deviation of one pair's difference.
        confidence: One-sided.
        power: Chance of showing it.

    Source: `required_mean_pairs`, solved for the distance.
    """
    z = normal_quantile(confidence)
    left = num_pairs - z * z / 2
    return (z + normal_quantile(power)) * spread / math.sqrt(left) if left > 0 and num_pairs > 1 else math.inf


def required_ratio_pairs(ratio: float, log_spread: float, *, confidence: float, power: float = 0.8) -> int:
    """Pairs of turns needed to tell a ratio of timings from 1.

    Args:
        ratio: The true ratio, > 0 and not 1: 1.05 is 5 % slower.
        log_spread: Standard deviation of the logarithm of one pair's ratio: about the relative noise of a pair. For
            turns in several sessions: that of the sessions' means, and the result counts sessions.
        confidence: One-sided.
        power: Chance of telling.

    Source: `required_mean_pairs` of the logarithms.
    """
    return required_mean_pairs(abs(math.log(ratio)), log_spread, confidence=confidence, power=power)


def smallest_ratio(num_pairs: int, log_spread: float, *, confidence: float, power: float = 0.8) -> float:
    """Smallest ratio of timings above 1 that so many pairs of turns tell from 1 with that power."""
    distance = smallest_mean_difference(num_pairs, log_spread, confidence=confidence, power=power)
    return math.exp(distance) if distance < 700 else math.inf


def required_requests(
    percentile: float, slow_rate: float, *, confidence: float, power: float = 0.8, inflation: float = 1.0
) -> int | None:
    """Requests needed to certify that a percentile is within its limit.

    Args:
        percentile: In per cent, in (0, 100).
        slow_rate: True share of the requests that are over the limit.
        confidence: One-sided.
        power: Chance that the run then certifies it.
        inflation: How many requests say as much as an independent one.

    Returns:
        The smallest number, exact for independent requests; None where the limit is not kept.

    Source: the binomial test of `required_samples`: with t slow ones n(t) requests certify, and no other number of
    requests does so with fewer; the smallest n(t) in which at most t are slow with the asked chance.

    >>> required_requests(99, 0.0, confidence=0.99), required_requests(99, 0.005, confidence=0.95)
    (459, 1941)
    """
    if slow_rate >= (100 - percentile) / 100:
        return None

    def suffices(num_slow: int) -> bool:
        return binomial_cdf(num_slow, required_samples(percentile, confidence, num_slow), slow_rate) >= power

    low, high = -1, 0
    while not suffices(high):
        low, high = high, 2 * high + 1
        if high > _MOST_SLOW:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return math.ceil(inflation * required_samples(percentile, confidence, high))


def largest_slow_rate(num_requests: int, percentile: float, *, confidence: float, power: float = 0.8) -> float | None:
    """Largest true share of slow requests with which so many requests still certify a percentile with that power.

    Returns:
        Below 1 − percentile / 100; None where the requests are too few to certify it at all.
    """
    rank = certifying_ranks(num_requests, percentile, confidence)[1]
    if rank is None:
        return None
    low, high = 0.0, (100 - percentile) / 100
    for _ in range(50):
        middle = (low + high) / 2
        if binomial_cdf(num_requests - rank, num_requests, middle) >= power:
            low = middle
        else:
            high = middle
    return low
