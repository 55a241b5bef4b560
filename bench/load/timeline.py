"""A load test second by second."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.stats.percentiles import percentile_rank

__all__ = ["Second", "count_seconds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Second:
    """The requests that were to start in one second."""

    second: int
    """Since the run's begin."""
    num_sent: int
    num_ok: int
    num_failed: int
    p50_ms: float | None
    """Of the right answers; None if there were none."""
    p99_ms: float | None
    num_in_flight: int
    """Requests that were waiting for an answer at this second's end."""


def count_seconds(
    start_ns: NDArray[np.int64], wall_ns: NDArray[np.int64], outcome: NDArray[np.int64], *, seconds: float
) -> tuple[Second, ...]:
    """Sort requests into the seconds in which they were to start.

    Args:
        start_ns: Intended starts, ascending, of shape [n].
        wall_ns: Time to the end of each, of shape [n].
        outcome: 0 for a right answer, of shape [n].
        seconds: Length of the run.
    """
    edges_ns = np.arange(math.ceil(seconds) + 1, dtype=np.int64) * 1_000_000_000
    places = np.searchsorted(start_ns, edges_ns)
    finished = np.searchsorted(np.sort(start_ns + wall_ns), edges_ns, side="right")
    result = []
    for second, (first, last) in enumerate(zip(places[:-1].tolist(), places[1:].tolist(), strict=True)):
        is_ok = outcome[first:last] == 0
        ok_ms = np.sort(wall_ns[first:last][is_ok]) / 1e6
        result.append(
            Second(
                second=second,
                num_sent=last - first,
                num_ok=len(ok_ms),
                num_failed=last - first - len(ok_ms),
                p50_ms=_percentile(ok_ms, 50.0),
                p99_ms=_percentile(ok_ms, 99.0),
                num_in_flight=last - int(finished[second + 1]),
            )
        )
    return tuple(result)


def _percentile(ordered_ms: NDArray[np.float64], percentile: float) -> float | None:
    return float(ordered_ms[percentile_rank(len(ordered_ms), percentile) - 1]) if len(ordered_ms) else None
