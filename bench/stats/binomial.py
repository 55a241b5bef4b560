"""The binomial, normal and t distributions with NumPy alone: a gate must not wait for SciPy to be imported."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["binomial_cdf", "clopper_pearson", "log_factorials", "normal_quantile", "t_quantile"]


@lru_cache(maxsize=4)
def log_factorials(n: int) -> NDArray[np.float64]:
    """Give ln(k!) for k = 0 … n, float64 of shape [n + 1]."""
    result = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1, dtype=np.float64)))))
    result.flags.writeable = False
    return result


def binomial_cdf(k: int, n: int, probability: float) -> float:
    """Probability that at most `k` of `n` independent trials succeed.

    Args:
        k: Any integer; below 0 the result is 0, from `n` on it is 1.
        n: Number of trials, ≥ 0.
        probability: Of one success, in [0, 1].

    >>> round(binomial_cdf(1, 3, 0.5), 6)
    0.5
    """
    if k < 0:
        return 0.0
    if k >= n or probability <= 0:
        return 1.0
    if probability >= 1:
        return 0.0
    if k > n * probability:  # sum the shorter, smaller tail
        return 1.0 - binomial_cdf(n - k - 1, n, 1 - probability)
    # What lies more than 9 standard deviations below the mean is nothing.
    mean = n * probability
    first = max(0, min(k, math.floor(mean - 9 * math.sqrt(mean * (1 - probability)) - 30)))
    terms = np.arange(first, k + 1, dtype=np.float64)
    log_mass = _log_choose(n, first, k) + terms * math.log(probability) + (n - terms) * math.log1p(-probability)
    return float(min(1.0, np.exp(log_mass).sum()))


def _log_choose(n: int, first: int, last: int) -> NDArray[np.float64]:
    """Give ln of n over i for i = first … last."""
    start = math.lgamma(n + 1) - math.lgamma(first + 1) - math.lgamma(n - first + 1) if first else 0.0
    i = np.arange(first + 1, last + 1, dtype=np.float64)
    return np.concatenate(([start], start + np.cumsum(np.log((n - i + 1) / i))))


@lru_cache(maxsize=4096)
def clopper_pearson(k: int, n: int, confidence: float) -> tuple[float, float]:
    """Bound a proportion from both sides, each side exact at (1 + confidence) / 2.

    Returns:
        Lower and upper bound; the interval covers the truth with at least `confidence`.

    Source: Clopper & Pearson, "The use of confidence or fiducial limits", Biometrika 26 (1934).
    """
    tail = (1 - confidence) / 2
    lower = 0.0 if k == 0 else _bisect(lambda p: (1 - binomial_cdf(k - 1, n, p)) - tail)
    upper = 1.0 if k == n else _bisect(lambda p: tail - binomial_cdf(k, n, p))
    return lower, upper


def _bisect(increasing: Callable[[float], float], low: float = 0.0, high: float = 1.0, steps: int = 60) -> float:
    for _ in range(steps):
        middle = (low + high) / 2
        if increasing(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def normal_quantile(probability: float) -> float:
    """Value that a standard normal variable stays below with `probability`."""
    return NormalDist().inv_cdf(probability)


@lru_cache(maxsize=256)
def t_quantile(probability: float, degrees: float) -> float:
    """Value that Student's t stays below with `probability`, for any number of degrees of freedom > 0.

    Source: the distribution function is an incomplete beta function, NIST Digital Library of Mathematical Functions,
    8.17.22 (continued fraction); inverted by bisection.

    >>> round(t_quantile(0.95, 1), 3), round(t_quantile(0.95, 9), 3)
    (6.314, 1.833)
    """
    if not 0 < probability < 1 or not degrees > 0:
        raise ValueError(f"no quantile of t for probability {probability} and {degrees} degrees of freedom")
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    tail = 1 - probability
    high = 1.0
    while _t_tail(high, degrees) > tail:
        high *= 2
    return _bisect(lambda t: tail - _t_tail(t, degrees), 0.0, high)


def _t_tail(t: float, degrees: float) -> float:
    """Probability that Student's t exceeds t ≥ 0."""
    return _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t)) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularized incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return float(x > 0)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 400):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1 / (1 + step * d)
            c = 1 + step / c
            value *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return math.exp(front) * value / a
