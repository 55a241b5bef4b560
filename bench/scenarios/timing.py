"""The loops that time requests, and what they cost themselves."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.scenarios.inputs import Arrays
from edgesmith.artifact import Signature
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from serve.runtime import Engine

__all__ = ["NullEngine", "Samples", "time_closed_loop", "time_open_loop", "without_collector"]

_LEAD_NS = 1_000_000
_SPIN_NS = 300_000
"""A sleeping thread wakes up 50 to 200 µs late: the rest of the wait is spent looking at the clock."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Times of requests in nanoseconds, each of shape [n]."""

    start_ns: NDArray[np.int64]
    """Intended start of each, since the run's begin."""
    wall_ns: NDArray[np.int64]
    """From the intended start to the answer."""
    service_ns: NDArray[np.int64]
    """In the engine, without the wait for earlier requests."""
    cpu_ns: NDArray[np.int64]
    """CPU time of this process, all threads, while the engine ran."""


class NullEngine:
    """An engine that answers at once: what a loop measures with it is the loop's own cost."""

    name = "null"
    signature = Signature(inputs=(), outputs=())

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Answer."""
        del arrays
        return {}

    def close(self) -> None:
        """Hold nothing."""


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep the garbage collector from running inside the block."""
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_collecting:
            gc.enable()


def time_closed_loop(
    engine: Engine, arrays: Sequence[Arrays], num_requests: int, progress: Progress = SILENT
) -> Samples:
    """Time requests one after the other: the next one starts when the last one is answered."""
    times = np.empty((3, num_requests), dtype=np.int64)  # start, wall, CPU
    report_every = max(1, num_requests // 50)
    with without_collector(), progress.bar("time requests", total=num_requests) as advance:
        begin = time.perf_counter_ns()
        for index in range(num_requests):
            request = arrays[index % len(arrays)]
            start_cpu = time.process_time_ns()
            start = time.perf_counter_ns()
            engine.run(request)
            end = time.perf_counter_ns()
            times[2, index] = time.process_time_ns() - start_cpu
            times[0, index] = start - begin
            times[1, index] = end - start
            if index % report_every == report_every - 1:
                advance(report_every)
    return Samples(start_ns=times[0], wall_ns=times[1], service_ns=times[1], cpu_ns=times[2])


def time_open_loop(
    engine: Engine, arrays: Sequence[Arrays], start_ns: NDArray[np.int64], progress: Progress = SILENT
) -> Samples:
    """Time requests that arrive at given times, whatever the engine does: one executor, first come, first served.

    A request that arrives while an earlier one runs waits, and its wait is a part of its latency.

    Args:
        engine: Runs one request at a time.
        arrays: The requests, used in turn.
        start_ns: Arrivals since the run's begin, ascending, of shape [n].
        progress: Shows the requests done.
    """
    num_requests = len(start_ns)
    times = np.empty((3, num_requests), dtype=np.int64)  # wall, service, CPU
    due = [int(value) for value in start_ns]
    report_every = max(1, num_requests // 50)
    with without_collector(), progress.bar("time requests", total=num_requests) as advance:
        begin = time.perf_counter_ns() + _LEAD_NS
        for index in range(num_requests):
            request = arrays[index % len(arrays)]
            arrival = begin + due[index]
            _wait_until(arrival)
            start_cpu = time.process_time_ns()
            start = time.perf_counter_ns()
            engine.run(request)
            end = time.perf_counter_ns()
            times[2, index] = time.process_time_ns() - start_cpu
            times[0, index] = end - arrival
            times[1, index] = end - start
            if index % report_every == report_every - 1:
                advance(report_every)
    return Samples(start_ns=start_ns, wall_ns=times[0], service_ns=times[1], cpu_ns=times[2])


def _wait_until(moment_ns: int) -> None:
    """Sleep, then look at the clock, until a moment of `time.perf_counter_ns`."""
    remaining_ns = moment_ns - time.perf_counter_ns()
    if remaining_ns > _SPIN_NS:
        time.sleep((remaining_ns - _SPIN_NS) / 1e9)
    while time.perf_counter_ns() < moment_ns:
        pass
