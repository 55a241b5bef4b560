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
    terms = np.arange(k + 1, dtype=np.float64)
    log_choose = _log_choose(n, k)
    log_mass = log_choose + terms * math.log(probability) + (n - terms) * math.log1p(-probability)
    return float(min(1.0, np.exp(log_mass).sum()))


def _log_choose(n: int, k: int) -> NDArray[np.float64]:
    """Give ln of n over i for i = 0 … k."""
    i = np.arange(1, k + 1, dtype=np.float64)
    return np.concatenate(([0.0], np.cumsum(np.log((n - i + 1) / i))))


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


def t_quantile(probability: float, degrees: int) -> float:
    """Value that Student's t stays below with `probability`: within 1 % from 5 degrees on at usual levels.

    Source: Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    z = normal_quantile(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees ** (order + 1) for order, term in enumerate(terms))
