"""Results of loads that were computed, not measured: a queue with one server."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from bench.histogram import Histogram
from bench.load import Failure, LoadPlan, LoadResult
from bench.load.schedule import arrivals, constant
from bench.machine.conditions import Watch
from bench.machine.machine import describe_machine

PLAN = LoadPlan(url="http://127.0.0.1:1/v2/models/intent", shape=constant(100, 10), limit_ms=50.0)


def queue_ms(starts_ns: NDArray[np.int64], service_ms: float) -> NDArray[np.float64]:
    """Time of each request in a queue that works on one request after the other (Lindley's recursion)."""
    times, free = [], 0.0
    services_ms = service_ms * np.random.default_rng(0).uniform(0.98, 1.02, len(starts_ns))
    for start, service in zip(starts_ns / 1e6, services_ms, strict=True):
        free = max(free, start) + service
        times.append(free - start)
    return np.array(times)


def make_result(
    plan: LoadPlan = PLAN,
    *,
    wall_ms: NDArray[np.float64] | None = None,
    service_ms: float = 4.0,
    lag_ms: float = 0.05,
    failed: tuple[int, ...] = (),
    num_dropped: int = 0,
    is_stream: bool = False,
    stopped_because: str = "",
) -> LoadResult:
    """Give the result of a load on a queue; the requests at `failed` have timed out."""
    starts_ns = arrivals(plan.shape, seed=plan.seed)
    n = len(starts_ns)
    wall_ns = ((queue_ms(starts_ns, service_ms) if wall_ms is None else wall_ms) * 1e6).astype(np.int64)
    outcome = np.zeros(n, np.int64)
    outcome[list(failed)] = 1
    histogram, lag = Histogram(), Histogram()
    histogram.record_many(wall_ns[outcome == 0])
    lag_ns = np.full(n, int(lag_ms * 1e6))
    lag.record_many(lag_ns)
    kept = slice(0, n - num_dropped)
    with Watch() as watch:
        pass
    return LoadResult(
        url=plan.url,
        protocol="oip",
        payload="computed",
        server={},
        shape=plan.shape,
        seed=plan.seed,
        num_workers=1,
        timeout_s=30.0,
        limit_ms=plan.limit_ms,
        limit_percentile=plan.limit_percentile,
        start_ns=starts_ns[kept],
        wall_ns=wall_ns[kept],
        lag_ns=lag_ns[kept],
        outcome=outcome[kept],
        ttft_ns=wall_ns[kept] // 2 if is_stream else None,
        num_tokens=np.full(n - num_dropped, 3) if is_stream else None,
        itl_ns=np.full(2 * n, 1_000_000) if is_stream else None,
        failures=(Failure(name="time-out", count=len(failed), sample="no answer"),) if failed else (),
        histogram=histogram,
        lag_histogram=lag,
        num_requests=n,
        num_not_sent=0,
        client_cpu_us=200.0,
        max_in_flight=3,
        num_connections=3,
        is_complete=not stopped_because,
        stopped_because=stopped_because,
        notes=("computed",),
        machine=describe_machine(),
        conditions=watch.conditions,
    )


def same(one: LoadResult, other: LoadResult) -> bool:
    """Whether two results are equal in every field."""
    for field in dataclasses.fields(LoadResult):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if isinstance(first, np.ndarray):
            if not np.array_equal(first, second):
                return False
        elif first != second:
            return False
    return True
