"""Time an engine as a server meets its users: they come when they come, not when the last one is done."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bench.machine.conditions import Watch
from bench.machine.energy import EnergyMeter
from bench.machine.machine import describe_machine
from bench.scenarios.inputs import Inputs
from bench.scenarios.latency import Latency
from bench.scenarios.timing import NullEngine, time_closed_loop, time_open_loop
from bench.scenarios.warm_up import warm_up
from edgesmith.errors import UsageError
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from serve.runtime import Engine

__all__ = ["ServerOptions", "measure_server", "poisson_arrivals"]

_DEFAULT_UTILIZATION = 0.5
_HALF = f"{100 * _DEFAULT_UTILIZATION:g} % of the measured capacity"
_CAPACITY_SECONDS = 2.0
_NULL_REQUESTS = 300
_NULL_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """At what rate and how long."""

    rate: float | None = None
    """Arrivals a second. None takes half of what the engine does when it is never idle."""
    seconds: float = 30.0
    """Time aimed at; the number of requests is fixed from it and the rate."""
    min_requests: int = 700
    """More than `seconds` asks for where the rate is low: 662 are needed to certify a p99 at 99 % confidence with
    one slow request."""
    max_requests: int = 100_000
    max_seconds: float = 300.0
    """Arrivals end after this whatever the numbers above say; a percentile may then lack its support."""
    seed: int = 0
    max_warm_up_windows: int = 40

    def __post_init__(self) -> None:
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0):
            raise UsageError(f"rate is {self.rate:g} requests a second; it must be positive and finite")
        if not self.seconds > 0:
            raise UsageError(f"seconds is {self.seconds:g}; it must be positive")

    def num_requests(self, rate: float) -> int:
        """How many arrivals at a rate."""
        wanted = max(self.min_requests, min(self.max_requests, round(self.seconds * rate)))
        return max(1, min(wanted, math.ceil(self.max_seconds * rate)))


def poisson_arrivals(rate: float, num_requests: int, seed: int) -> NDArray[np.int64]:
    """Draw the arrivals of independent users.

    Args:
        rate: Mean number a second.
        num_requests: How many.
        seed: Of the draw.

    Returns:
        Nanoseconds since the begin, ascending, int64 of shape [num_requests].
    """
    gaps_s = np.random.default_rng(seed).exponential(1 / rate, num_requests)
    return np.round(np.cumsum(gaps_s) * 1e9).astype(np.int64)


def measure_server(
    engine: Engine,
    inputs: Inputs,
    *,
    options: ServerOptions | None = None,
    artifact_digest: str | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Latency:
    """Time requests that arrive at random, open loop: latency counts from when a request was to start.

    One executor answers them in the order of their arrival. A rate above what the engine can do makes the queue,
    and with it the latency, grow until the end; the result then says `is_saturated`.

    Args:
        engine: Opened with the number of threads that is to be measured.
        inputs: The requests, used in turn.
        options: Rate and duration.
        artifact_digest: Of what the engine runs.
        threads: What the engine was opened with.
        progress: Shows the requests done.

    Raises:
        UsageError: There are no inputs.

    Source: Tene, "How NOT to measure latency" (coordinated omission); MLPerf Inference rules, server scenario.
    """
    if not inputs.arrays:
        raise UsageError("no inputs to time", mend="Give a data file with rows.")
    chosen = options or ServerOptions()
    machine = describe_machine()
    is_settled, num_warm_up, seconds = warm_up(engine, inputs, max_windows=chosen.max_warm_up_windows)
    num_closed = max(8, min(len(inputs.arrays), int(_CAPACITY_SECONDS / max(seconds, 1e-9))))
    closed = time_closed_loop(engine, inputs.arrays, num_closed)
    capacity = 1e9 / max(1.0, float(closed.wall_ns.mean()))
    rate = capacity * _DEFAULT_UTILIZATION if chosen.rate is None else chosen.rate
    start_ns = poisson_arrivals(rate, chosen.num_requests(rate), chosen.seed)
    with Watch() as watch, EnergyMeter() as energy:
        samples = time_open_loop(engine, inputs.arrays, start_ns, progress)
    return Latency(
        scenario="server",
        engine=engine.name,
        artifact_digest=artifact_digest,
        inputs=inputs.description,
        wall_ns=samples.wall_ns,
        cpu_ns=samples.cpu_ns,
        start_ns=samples.start_ns,
        service_ns=samples.service_ns,
        num_warm_up=num_warm_up + num_closed,
        is_settled=is_settled,
        machine=machine,
        load_after=describe_machine().load_1min,
        threads=threads,
        num_inputs=len(inputs.arrays),
        rate=rate,
        rate_source="asked for" if chosen.rate is not None else _HALF,
        capacity=capacity,
        overhead_ns=_overhead_ns(inputs, rate, chosen.seed),
        conditions=watch.conditions,
        energy_mj=energy.per_request_mj(len(start_ns)),
    )


def _overhead_ns(inputs: Inputs, rate: float, seed: int) -> int:
    """Median latency of an engine that answers at once, at the same rate where that does not take long."""
    start_ns = poisson_arrivals(max(rate, _NULL_REQUESTS / _NULL_SECONDS), _NULL_REQUESTS, seed)
    return int(np.median(time_open_loop(NullEngine(), inputs.arrays, start_ns).wall_ns))
