"""Bounds by resampling, for figures without a formula: seeded, so that the same data give the same bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.stats.binomial import t_quantile

__all__ = [
    "Bounds",
    "block_bootstrap_ratio",
    "bootstrap_counts",
    "bootstrap_mean",
    "cluster_ratio",
    "paired_bootstrap",
    "trimmed_mean",
]

_CACHED_VALUES = 200_000
_TRIM = 0.2
_SESSION_TRIM = 0.1
_NUM_RUNS = 8
_SPENT_RISK = 0.8
"""Share of 1 − confidence that bounds over examples use: a bootstrap is exact for endless data only, and simulations
with rare large losses show up to 1.2 times the risk asked for (docs/statistics.md)."""


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
    return _cautious_bounds(float(statistic(np.arange(num_examples))), values, num_examples, confidence)


def bootstrap_counts(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    counts: ArrayLike,
    *,
    confidence: float,
    seed: int = 0,
    num_resamples: int = 2000,
) -> Bounds:
    """Bound a figure that hangs only on how many examples of each kind there are: `paired_bootstrap`, but fast.

    Args:
        statistic: Numbers of examples of each kind, of shape [num_resamples, K] → the figure, of shape
            [num_resamples].
        counts: How many examples of each kind there are, of shape [K].
        confidence: Of each bound on its own.
        seed: Of the draws.
        num_resamples: How many draws.

    Returns:
        The figure on all examples, with expanded percentile bounds.

    Source: see `paired_bootstrap`; n draws with replacement have multinomial counts.
    """
    numbers = np.asarray(counts, dtype=np.float64)
    n = int(numbers.sum())
    drawn = np.random.default_rng(seed).multinomial(n, numbers / n, size=num_resamples).astype(np.float64)
    return _cautious_bounds(float(statistic(numbers[None])[0]), statistic(drawn), n, confidence)


def bootstrap_mean(values: ArrayLike, *, confidence: float, seed: int = 0, num_resamples: int = 4000) -> Bounds:
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
    centred = data - mean
    error = math.sqrt(float(centred @ centred) / (n - 1) / n)
    if error <= 1e-14 * abs(mean):
        return Bounds(estimate=mean, lower=mean, upper=mean, confidence=confidence)
    rng = np.random.default_rng(seed)
    at_once = max(1, _CACHED_VALUES // n)
    distances = []
    for start in range(0, num_resamples, at_once):
        drawn = centred[rng.integers(0, n, (min(at_once, num_resamples - start), n), dtype=np.int32)]
        means = drawn.mean(axis=1)
        errors = np.sqrt(np.maximum(np.einsum("ij,ij->i", drawn, drawn) / n - means**2, 0) / (n - 1))
        # A draw without spread says nothing about it: the original's error stands in.
        distances.append(means / np.where(errors > 1e-9 * error, errors, error))
    tail = _SPENT_RISK * (1 - confidence)
    low, high = np.quantile(np.concatenate(distances), [tail, 1 - tail])
    return Bounds(
        estimate=mean, lower=mean - float(high) * error, upper=mean - float(low) * error, confidence=confidence
    )


def trimmed_mean(values: NDArray[np.float64], share: float = _TRIM) -> NDArray[np.float64]:
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
        block_length: Pairs in a run; an eighth of all by default.

    Returns:
        first / second, with its bounds: 0 and infinity where one pair is all there is.

    Source: Künsch, "The jackknife and the bootstrap for general stationary observations", Ann. Statist. 17 (1989),
    with wrapped runs as in Politis & Romano (1992); fewer than 8 pairs: Student's t over the pairs; turns: Bulej
    et al., "Duet benchmarking", ICPE 2020.
    """
    ratios = np.log(np.asarray(first, dtype=np.float64) / np.asarray(second, dtype=np.float64))
    n = len(ratios)
    if n < 2:
        return _exponential(Bounds(estimate=float(ratios.mean()), lower=-np.inf, upper=np.inf, confidence=confidence))
    if n < _NUM_RUNS:
        return _exponential(_trimmed_t(ratios, confidence))
    length = block_length or _run_length(n)
    estimate = float(trimmed_mean(ratios))
    spread = _draw_runs(ratios, length, np.random.default_rng(seed), num_resamples)
    num_runs = max(2, math.ceil((n - 2 * int(n * _TRIM)) / length))  # trimmed pairs say nothing about the spread
    return _exponential(_percentile_bounds(estimate, estimate + spread, num_runs, confidence))


def cluster_ratio(
    first: ArrayLike,
    second: ArrayLike,
    session: ArrayLike,
    *,
    confidence: float,
    seed: int = 0,
    num_resamples: int = 4000,
) -> Bounds:
    """Bound the ratio of two timings taken in turns, in several sessions with freshly opened systems.

    An opened system keeps what chance gave it: where its memory lies, which kernel was picked. More turns of the
    same session do not average that away, more sessions do. So each session counts as one observation, the trimmed
    mean of its log ratios, and Student's t over the sessions gives the bounds; they are never narrower than those
    that the spread within the sessions alone asks for.

    Args:
        first: Time of each of the first system's turns, > 0, of shape [n].
        second: The same of the second, in the same order.
        session: Which session each turn belongs to, of shape [n]. One session alone says nothing of the differences
            between sessions: its bounds are those of `block_bootstrap_ratio`, for these opened systems only.
        confidence: Of each bound on its own.
        seed: Of the draws within the sessions.
        num_resamples: How many draws.

    Returns:
        first / second, with its bounds.

    Source: Kalibera & Jones, "Rigorous benchmarking in reasonable time", ISMM 2013 (the highest level that varies
    decides the interval); from 10 sessions on, the lowest and the highest tenth of them are trimmed: Yuen, "The
    two-sample trimmed t for unequal population variances", Biometrika 61 (1974), after Tukey & McLaughlin (1963).
    """
    ratios = np.log(np.asarray(first, dtype=np.float64) / np.asarray(second, dtype=np.float64))
    of_turn = np.asarray(session)
    sessions = [ratios[of_turn == one] for one in np.unique(of_turn)]
    if len(sessions) < 2:
        return block_bootstrap_ratio(first, second, confidence=confidence, seed=seed, num_resamples=num_resamples)
    means = np.array([float(trimmed_mean(values)) for values in sessions])
    between = _trimmed_t(means, confidence)
    rng = np.random.default_rng(seed)
    lengths = [_run_length(len(values)) for values in sessions]
    spreads = [_draw_runs(values, length, rng, num_resamples) for values, length in zip(sessions, lengths, strict=True)]
    num_runs = sum(math.ceil(len(values) / length) for values, length in zip(sessions, lengths, strict=True))
    draws = between.estimate + np.mean(spreads, axis=0)
    within = _percentile_bounds(between.estimate, draws, max(2, num_runs), confidence)
    lower, upper = min(between.lower, within.lower), max(between.upper, within.upper)
    return _exponential(replace(between, lower=lower, upper=upper))


def _trimmed_t(values: NDArray[np.float64], confidence: float) -> Bounds:
    """Student's t for a mean without the lowest and highest tenth, with the spread of the winsorized values."""
    n = len(values)
    cut = int(n * _SESSION_TRIM)
    ordered = np.sort(values)
    winsorized = np.clip(ordered, ordered[cut], ordered[n - 1 - cut])
    kept = n - 2 * cut
    error = float(winsorized.std(ddof=0)) * math.sqrt(n / (kept * (kept - 1)))
    estimate, reach = float(trimmed_mean(values, _SESSION_TRIM)), t_quantile(confidence, kept - 1) * error
    return Bounds(estimate=estimate, lower=estimate - reach, upper=estimate + reach, confidence=confidence)


def _run_length(n: int) -> int:
    """Neighbours that are drawn together: an eighth of all, at least the cube root.

    Few long runs with Student's t for their number keep what they promise where neighbours share much; the cube
    root, which is best for large n and little dependence, does not (6 to 14 % instead of 5 % for 100 pairs whose
    correlation is 0.6 to 0.8).

    Source: Kiefer & Vogelsang, "A new asymptotic theory for heteroskedasticity-autocorrelation robust tests",
    Econometric Theory 21 (2005): a bandwidth in proportion to n, and the distribution that goes with it.
    """
    return max(round(math.cbrt(n)), math.ceil(n / _NUM_RUNS))


def _draw_runs(
    values: NDArray[np.float64], length: int, rng: np.random.Generator, num_resamples: int
) -> NDArray[np.float64]:
    """How far trimmed means of values drawn in runs of neighbours lie from that of all, of shape [num_resamples].

    The values are drawn as the trimmed mean weighs them, winsorized: a burst of noise that is drawn three times
    would otherwise break through the trimming that the estimate has.
    """
    n = len(values)
    cut = int(n * _TRIM)
    ordered = np.sort(values)
    weighed = np.clip(values, ordered[cut], ordered[n - 1 - cut])
    wrapped = np.concatenate(([0.0], np.cumsum(np.concatenate((weighed, weighed[: length - 1])))))
    run_means = (wrapped[length:] - wrapped[:-length]) / length  # of the run that starts at each value: [n]
    num_runs = math.ceil(n / length)
    drawn = run_means[rng.integers(0, n, (num_resamples, num_runs))].mean(axis=1)
    return np.asarray((drawn - weighed.mean()) * math.sqrt(num_runs * length / n) * n / (n - 2 * cut))


def _exponential(logs: Bounds) -> Bounds:
    upper = math.exp(logs.upper) if logs.upper < 700 else math.inf
    return replace(logs, estimate=math.exp(logs.estimate), lower=math.exp(logs.lower), upper=upper)


def _cautious_bounds(estimate: float, resampled: NDArray[np.float64], num_examples: int, confidence: float) -> Bounds:
    """Give bounds over examples that keep a part of the risk in reserve."""
    bounds = _percentile_bounds(estimate, resampled, num_examples, 1 - _SPENT_RISK * (1 - confidence))
    return replace(bounds, confidence=confidence)


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
