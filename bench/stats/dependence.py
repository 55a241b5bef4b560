"""How much less successive requests say than independent ones: slow ones come in bursts, because they queue."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.stats.percentiles import percentile_rank

__all__ = ["inflation", "percentile_inflation"]

_BATCH = 8
_ERRORS = 1.645


def inflation(is_slow: ArrayLike) -> float:
    """Estimate how many times the variance of the share of slow requests is what independent ones would have.

    n requests then say as much about that share as n / inflation independent ones: a burst of k slow requests in a
    row counts about as one event. The sum of the autocorrelations is taken up to where neighbouring lags cancel, and
    its one-sided 95 % bound is given, since a sum that comes out too small would flatter. Bursts with gaps, whose
    first lags cancel early, are seen in counts of 8 requests; the larger of the two figures is given.

    Args:
        is_slow: Whether each request was over some limit, bool of shape [n], in the order of the requests.

    Returns:
        At least 1, at most n; 1 where no request was slow, or all were. What no request of the run has met is not in
        it: it takes a run of many bursts to learn how often they come.

    Source: Geyer, "Practical Markov chain Monte Carlo", Statistical Science 7 (1992), section 3.3 (initial positive
    sequence); its standard error: Madras & Sokal, J. Stat. Phys. 50 (1988), appendix C; batches: Law & Kelton,
    Simulation Modeling and Analysis, section 9.5.

    >>> inflation([False] * 500)
    1.0
    """
    slow = np.asarray(is_slow, dtype=bool).astype(np.float64)
    n, share = len(slow), float(slow.mean()) if len(slow) else 0.0
    if not 0 < share < 1:
        return 1.0
    single, num_lags = _correlation_time(slow)
    if single > 1:
        single *= 1 + _ERRORS * math.sqrt(2 * (2 * num_lags + 1) / n)
    num_batches = n // _BATCH
    if num_batches < 2:
        return min(float(n), single)
    counts = slow[: num_batches * _BATCH].reshape(num_batches, _BATCH).sum(axis=1)
    batched = float(counts.var()) / (_BATCH * share * (1 - share)) * _correlation_time(counts)[0]
    return min(float(n), max(single, batched))


def percentile_inflation(samples: ArrayLike, percentile: float) -> float:
    """Estimate the inflation of the share of samples above their own percentile.

    Few samples are above it, so the share that is twice as large is looked at too, and the larger figure is given:
    with the percentile alone, bounds on a queue's p99 are too low in 1.5 % of the runs instead of 1 %. Of equal
    samples, as many as the share needs are taken, evenly spread over the run.

    Args:
        samples: In the order of the requests, of shape [n]; a failure is infinity.
        percentile: In per cent, in (0, 100).
    """
    values = np.asarray(samples, dtype=np.float64)
    n = len(values)
    if not n:
        return 1.0
    rank, found = percentile_rank(n, percentile), [1.0]
    for num_fast in (rank, max(n // 2, 2 * rank - n)):
        slowest, limit = _slowest(values, n - num_fast)
        found.append(inflation(slowest))
        if 2 * np.count_nonzero(values >= limit) <= n:  # equal ones may be one burst, such as failures
            found.append(inflation(values >= limit))
    return max(found)


def _slowest(values: NDArray[np.float64], num_slow: int) -> tuple[NDArray[np.bool_], float]:
    """Mark the largest values, and give the smallest one marked; of those that equal it, some evenly spread."""
    n = len(values)
    if not num_slow:
        return np.zeros(n, dtype=bool), math.inf
    limit = float(np.partition(values, n - num_slow)[n - num_slow])
    is_slow = values > limit
    equal = np.flatnonzero(values == limit)
    num_missing = num_slow - int(is_slow.sum())
    is_slow[equal[np.arange(num_missing) * len(equal) // num_missing]] = True
    return is_slow, limit


def _correlation_time(values: NDArray[np.float64]) -> tuple[float, int]:
    """Sum of the autocorrelations of all lags, from minus to plus infinity, at least 1; and the lags summed."""
    covariance = _autocovariance(values)
    if covariance[0] <= 0:
        return 1.0, 0
    num_pairs = len(covariance) // 2
    pairs = covariance[0 : 2 * num_pairs : 2] + covariance[1 : 2 * num_pairs : 2]
    not_positive = np.flatnonzero(pairs <= 0)
    end = int(not_positive[0]) if len(not_positive) else num_pairs
    total = (2 * float(pairs[:end].sum()) - float(covariance[0])) / float(covariance[0])
    return max(1.0, total), max(0, 2 * end - 1)


def _autocovariance(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of lags 0 … n - 1, each divided by n."""
    n = len(values)
    spectrum = np.fft.rfft(values - values.mean(), 1 << (2 * n - 1).bit_length())
    return np.asarray(np.fft.irfft(spectrum * spectrum.conj())[:n] / n)
