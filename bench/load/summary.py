"""A load test's figures without its samples, JSON-able."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.stats.dependence import percentile_inflation
from bench.stats.percentiles import PercentileBounds, bound_percentile

if TYPE_CHECKING:
    from bench.load.result import LoadResult

__all__ = ["PERCENTILES", "summarize", "summarize_streams"]

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


def summarize(result: LoadResult) -> dict[str, Any]:
    """Give all figures; an unsupported or infinite percentile is null."""
    bounds = result.percentiles()
    return {
        "scenario": "load",
        "url": result.url,
        "protocol": result.protocol,
        "payload": result.payload,
        "server": dict(result.server),
        "shape": result.shape.to_json(),
        "seed": result.seed,
        "rate": result.rate,
        "rate_sent": result.rate_sent,
        "duration_s": result.duration_s,
        "num_workers": result.num_workers,
        "timeout_s": result.timeout_s,
        "limit_ms": result.limit_ms,
        "limit_percentile": result.limit_percentile,
        "num_requests": result.num_requests,
        "num_samples": len(result.wall_ns),
        "num_failed": result.num_failed,
        "num_not_sent": result.num_not_sent,
        "failures": [asdict(failure) for failure in result.failures],
        "latency_ms": {f"p{bound.percentile:g}": _finite(bound.estimate) for bound in bounds},
        "latency_bounds_ms": _bounds_json(bounds),
        "streams": result.stream_summary(),
        "lag_ms": {
            "p99": result.lag_p99_ns / 1e6,
            f"p{result.lag_percentile:g}": result.lag_percentile_ns(result.lag_percentile) / 1e6,
            "allowed": result.max_lag_ns / 1e6,
        },
        "begin_uncertainty_s": result.begin_uncertainty_s,
        "tokens_are_chunks": result.tokens_are_chunks,
        "is_open_loop_kept": result.is_open_loop_kept,
        "why_not_kept": result.why_not_kept,
        "is_complete": result.is_complete,
        "stopped_because": result.stopped_because,
        "client_cpu_us": round(result.client_cpu_us, 1),
        "max_in_flight": result.max_in_flight,
        "num_connections": result.num_connections,
        "notes": list(result.notes),
        "machine": result.machine.to_json(),
        "conditions": None if result.conditions is None else result.conditions.to_json(),
    }


def summarize_streams(result: LoadResult, confidence: float = 0.99) -> dict[str, Any] | None:
    """Give time to the first token and between pieces of text, in milliseconds; None if nothing streamed.

    A stream that failed has its first token later than any limit; the time between pieces is of those that ended well.
    Where the server does not count its tokens (`tokens_are_chunks`), a piece of text stands for one.
    """
    if result.ttft_ns is None or result.itl_ns is None or result.num_tokens is None:
        return None
    first_ms = np.where((result.outcome == 0) & (result.ttft_ns >= 0), result.ttft_ns / 1e6, np.inf)
    is_ok = result.outcome == 0
    num_tokens = int(result.num_tokens[is_ok].sum())
    num_chunks = len(result.itl_ns) + int(is_ok.sum())  # between n pieces are n - 1 gaps
    seconds = float((result.start_ns + result.wall_ns).max()) / 1e9 if len(result.start_ns) else 0.0
    return {
        "ttft_ms": _bounds_json([_bound(first_ms, percentile, confidence) for percentile in PERCENTILES]),
        "itl_ms": _bounds_json([_bound(result.itl_ns / 1e6, percentile, confidence) for percentile in PERCENTILES]),
        "num_tokens": num_tokens,
        "tokens_are_chunks": result.tokens_are_chunks,
        "tokens_per_chunk": num_tokens / num_chunks if num_chunks else None,
        "tokens_per_second": num_tokens / seconds if seconds else 0.0,
    }


def _bound(samples_ms: NDArray[np.float64], percentile: float, confidence: float) -> PercentileBounds:
    return bound_percentile(samples_ms, percentile, confidence, percentile_inflation(samples_ms, percentile))


def _bounds_json(bounds: Sequence[PercentileBounds]) -> dict[str, Any]:
    return {
        f"p{bound.percentile:g}": {
            "estimate": _finite(bound.estimate),
            "confidence": bound.confidence,
            "lower": _finite(bound.lower),
            "upper": _finite(bound.upper),
            "num_required": bound.num_required,
            "inflation": round(bound.inflation, 3),
        }
        for bound in bounds
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value
