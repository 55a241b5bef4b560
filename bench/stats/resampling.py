"""Bounds by resampling, for figures without a formula: seeded, so that the same data give the same bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.stats.binomial import t_quantile

__all__ = ["Bounds", "block_bootstrap_ratio", "bootstrap_mean", "paired_bootstrap", "trimmed_mean"]

_CHUNK_VALUES = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """An estimate with a lower and an upper bound, each of which holds with `confidence` on its own."""

    estimate: float
    lower: float
    upper: float
    confidence: float


def paired_bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    num_examples: int,
    *,
    confidence: float,
    seed: int = 0,
    num_resamples: int = 2000,
) -> Bounds:
    """Bound a difference between two systems by drawing the same examples for both.

    Args:
        statistic: Indices of the drawn examples, int64 of shape [n] → the difference on them.
        num_examples: n, at least 2.
        confidence: Of each bound on its own.
        seed: Of the draws.
        num_resamples: How many draws.

    Returns:
        The difference on all examples, with expanded percentile bounds.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 13; for natural language: Koehn,
    "Statistical significance tests for machine translation evaluation", EMNLP 2004.
    """
    rng = np.random.default_rng(seed)
    values = np.array(
        [statistic(rng.integers(0, num_examples, num_examples)) for _ in range(num_resamples)], dtype=np.float64
    )
    return _percentile_bounds(float(statistic(np.arange(num_examples))), values, num_examples, confidence)


def bootstrap_mean(values: ArrayLike, *, confidence: float, seed: int = 0, num_resamples: int = 10_000) -> Bounds:
    """Bound the mean of independent values, such as differences of paired scores.

    Args:
        values: Of shape [n], n ≥ 2.
        confidence: Of each bound on its own.
        seed: Of the draws.
        num_resamples: How many draws.

    Each draw's distance from the mean is measured in its own standard error: rare large losses make the plain
    percentile interval too narrow on the very side that matters.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 12.5 (bootstrap-t).
    """
    data = np.asarray(values, dtype=np.float64)
    n, mean = len(data), float(data.mean())
    error = float(data.std(ddof=1)) / math.sqrt(n)
    if error == 0:
        return Bounds(estimate=mean, lower=mean, upper=mean, confidence=confidence)
    rng = np.random.default_rng(seed)
    at_once = max(1, _CHUNK_VALUES // n)
    distances = []
    for start in range(0, num_resamples, at_once):
        drawn = data[rng.integers(0, n, (min(at_once, num_resamples - start), n))]
        errors = drawn.std(axis=1, ddof=1) / math.sqrt(n)
        # A draw without spread says nothing about it: the original's error stands in.
        distances.append((drawn.mean(axis=1) - mean) / np.where(errors > 0, errors, error))
    low, high = np.quantile(np.concatenate(distances), [1 - confidence, confidence])
    return Bounds(
        estimate=mean, lower=mean - float(high) * error, upper=mean - float(low) * error, confidence=confidence
    )


def trimmed_mean(values: NDArray[np.float64], share: float = 0.2) -> NDArray[np.float64]:
    """Mean along the last axis without the lowest and the highest `share` of the values."""
    ordered = np.sort(values, axis=-1)
    n = ordered.shape[-1]
    cut = int(n * share)
    return np.asarray(ordered[..., cut : n - cut].mean(axis=-1))


def block_bootstrap_ratio(
    first: ArrayLike,
    second: ArrayLike,
    *,
    confidence: float,
    seed: int = 0,
    num_resamples: int = 4000,
    block_length: int | None = None,
) -> Bounds:
    """Bound the ratio of two timings that were taken in turns.

    The estimate is the trimmed mean of the pairs' log ratios: a burst of noise that hits one pair does not decide
    it. Consecutive pairs share the machine's mood, so they are drawn in runs.

    Args:
        first: Time of each of the first system's turns, > 0, of shape [n].
        second: The same of the second, in the same order.
        confidence: Of each bound on its own.
        seed: Of the draws.
        num_resamples: How many draws.
        block_length: Pairs in a run; the cube root of n by default.

    Returns:
        first / second, with its bounds.

    Source: Künsch, "The jackknife and the bootstrap for general stationary observations", Ann. Statist. 17 (1989),
    with wrapped runs as in Politis & Romano (1992); turns: Bulej et al., "Duet benchmarking", ICPE 2020.
    """
    ratios = np.log(np.asarray(first, dtype=np.float64) / np.asarray(second, dtype=np.float64))
    n = len(ratios)
    length = block_length or max(1, round(n ** (1 / 3)))
    num_runs = math.ceil(n / length)
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, n, (num_resamples, num_runs, 1))
    drawn = ((starts + np.arange(length)) % n).reshape(num_resamples, -1)[:, :n]
    logs = _percentile_bounds(float(trimmed_mean(ratios)), trimmed_mean(ratios[drawn]), max(2, num_runs), confidence)
    return Bounds(
        estimate=math.exp(logs.estimate),
        lower=math.exp(logs.lower),
        upper=math.exp(logs.upper),
        confidence=confidence,
    )


def _percentile_bounds(
    estimate: float, resampled: NDArray[np.float64], num_independent: int, confidence: float
) -> Bounds:
    """Quantiles of the resampled figures, taken further out where the data are few."""
    n = num_independent
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * t_quantile(confidence, n - 1))
    lower, upper = np.quantile(resampled, [tail, 1 - tail])
    return Bounds(
        estimate=estimate,
        lower=min(float(lower), estimate),
        upper=max(float(upper), estimate),
        confidence=confidence,
    )
