"""Time an engine: one client, one request after the other, every sample kept.

Wall time is what a user waits; CPU time is what holds on a machine that others use too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.histogram import Histogram
from bench.machine.conditions import Conditions, Watch
from bench.machine.energy import EnergyMeter
from bench.machine.machine import Machine, describe_machine
from bench.raw import columns_to_bytes, damage_errors, pretty_json, read_columns, read_json
from bench.scenarios.inputs import Inputs, encode_inputs
from bench.scenarios.timing import NullEngine, time_closed_loop
from bench.scenarios.warm_up import warm_up
from bench.stats.dependence import percentile_inflation
from bench.stats.percentiles import PercentileBounds, bound_percentile
from bench.strict import check_numbers
from edgesmith.errors import UsageError
from edgesmith.files import atomic_write
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from serve.runtime import Engine

__all__ = ["LATENCY", "Inputs", "Latency", "LatencyOptions", "encode_inputs", "measure_latency", "warm_up"]

LATENCY = "latency.json"
SAMPLES = "latency_ns.csv.gz"
_PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
_NULL_REQUESTS = 2000
_MIN_DRIFT_REQUESTS = 20


@dataclass(frozen=True, kw_only=True)
class LatencyOptions:
    """How long to measure."""

    seconds: float = 15.0
    """Wall time aimed at; the number of requests is fixed from it before the first one is timed."""
    min_requests: int = 700
    """Never fewer: 662 are needed to certify a p99 at 99 % confidence with one slow request."""
    max_requests: int = 20_000
    max_warm_up_windows: int = 40


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Samples of one engine under one scenario."""

    scenario: str
    """`single`: closed loop; `server`: open loop, see `bench.scenarios.server`."""
    engine: str
    artifact_digest: str | None
    inputs: str
    wall_ns: NDArray[np.int64]
    """Time of each request from its intended start to its answer, of shape [n], in the order of the requests."""
    cpu_ns: NDArray[np.int64]
    """CPU time of this process, all threads, during each request; of shape [n]."""
    start_ns: NDArray[np.int64]
    """Intended start of each request since the run's begin, of shape [n]."""
    num_warm_up: int
    is_settled: bool
    """Whether three windows in a row agreed within 5 % before the first sample."""
    machine: Machine
    load_after: float | None
    service_ns: NDArray[np.int64] | None = None
    """Time of each request in the engine, without its wait for earlier ones; None where none waits (closed loop)."""
    threads: int = 1
    """Of the engine, for one request."""
    num_inputs: int = 1
    """How many different requests there are, used in turn."""
    overhead_ns: int = 0
    """Median wall time of an engine that answers at once, through the same loop."""
    rate: float | None = None
    """Arrivals a second that were asked for; None in a closed loop."""
    rate_source: str | None = None
    """Who chose the rate; None in a closed loop."""
    capacity: float | None = None
    """Requests a second of the engine when it is never idle, measured before; None in a closed loop."""
    conditions: Conditions | None = None
    energy_mj: float | None = None
    """Energy of the processor's packages for each request, idle time and other processes included; None where
    the machine does not say."""

    @property
    def num_requests(self) -> int:
        """How many requests were timed."""
        return len(self.wall_ns)

    @property
    def cpu_ms(self) -> float:
        """Median CPU time of a request in milliseconds."""
        return float(np.median(self.cpu_ns)) / 1e6

    @property
    def mean_ms(self) -> float:
        """Mean wall time of a request in milliseconds."""
        return float(self.wall_ns.mean()) / 1e6

    @property
    def waiting_share(self) -> float:
        """Share of the engine's time in which it got no processor because others had it, in [0, 1].

        As the kernel counted the waits of this process; where it does not say, the time in which no thread of this
        process ran, which is also what an engine shows that sleeps or waits for a file.
        """
        engine_ns = float(self.engine_ns.sum())
        if self.conditions is not None and self.conditions.own_wait_share is not None:
            return min(1.0, self.conditions.own_wait_share * self.conditions.seconds * 1e9 / max(engine_ns, 1.0))
        return max(0.0, 1 - float(self.cpu_ns.sum()) / engine_ns)

    @property
    def drift(self) -> float | None:
        """Median CPU time of a request in the last third of the run over that in the first third, minus 1.

        Each input is compared with itself, the median over the inputs is taken. None where a third is less than 20
        requests, or does not hold each input once: then nothing can be said.
        """
        num_rounds = self.num_requests // 3 // self.num_inputs
        size = num_rounds * self.num_inputs
        if size < _MIN_DRIFT_REQUESTS:
            return None
        begin = (self.num_requests - size) // self.num_inputs * self.num_inputs
        first, last = (
            np.median(self.cpu_ns[start : start + size].reshape(num_rounds, self.num_inputs), axis=0)
            for start in (0, begin)
        )
        return float(np.median(last / np.maximum(first, 1.0))) - 1

    @property
    def engine_ns(self) -> NDArray[np.int64]:
        """Time of each request in the engine, of shape [n]."""
        return self.wall_ns if self.service_ns is None else self.service_ns

    @property
    def utilization(self) -> float | None:
        """Share of the time in which the engine is busy at the rate asked for; 1 and more cannot be served."""
        return None if self.rate is None else self.rate * float(self.engine_ns.mean()) / 1e9

    @property
    def is_saturated(self) -> bool:
        """Whether requests came faster than the engine answers, so that the queue grew until the end."""
        return self.utilization is not None and self.utilization >= 1

    def percentile(self, percentile: float, confidence: float = 0.99) -> PercentileBounds:
        """Bound a percentile of the wall time, in milliseconds.

        Slow requests come in clusters (a queue, a busy machine): the bounds count their samples for less.
        """
        inflation = percentile_inflation(self.wall_ns, percentile)
        return bound_percentile(self.wall_ns / 1e6, percentile, confidence, inflation=inflation)

    def percentiles(self, confidence: float = 0.99) -> tuple[PercentileBounds, ...]:
        """Bound the usual percentiles of the wall time, in milliseconds."""
        return tuple(self.percentile(percentile, confidence) for percentile in _PERCENTILES)

    def histogram(self) -> Histogram:
        """The wall times as an HDR histogram, in nanoseconds."""
        histogram = Histogram()
        histogram.record_many(self.wall_ns)
        return histogram

    def summary(self) -> dict[str, Any]:
        """Give the figures without the samples, JSON-able. An unsupported percentile is null."""
        bounds = self.percentiles()
        return {
            "scenario": self.scenario,
            "engine": self.engine,
            "artifact_digest": self.artifact_digest,
            "inputs": self.inputs,
            "threads": self.threads,
            "num_inputs": self.num_inputs,
            "num_requests": self.num_requests,
            "num_warm_up": self.num_warm_up,
            "is_settled": self.is_settled,
            "rate": self.rate,
            "rate_source": self.rate_source,
            "capacity": self.capacity,
            "utilization": self.utilization,
            "is_saturated": self.is_saturated,
            "latency_ms": {f"p{bound.percentile:g}": bound.estimate for bound in bounds} | {"mean": self.mean_ms},
            "latency_bounds_ms": {
                f"p{bound.percentile:g}": {
                    "confidence": bound.confidence,
                    "lower": bound.lower,
                    "upper": bound.upper,
                    "num_required": bound.num_required,
                }
                for bound in bounds
            },
            "waiting_share": round(self.waiting_share, 4),
            "drift": None if self.drift is None else round(self.drift, 4),
            "cpu_ms": {"p50": self.cpu_ms, "mean": float(self.cpu_ns.mean()) / 1e6},
            "overhead_ns": self.overhead_ns,
            "energy_mj": self.energy_mj,
            "machine": self.machine.to_json(),
            "load_after": self.load_after,
            "conditions": self.conditions.to_json() if self.conditions else None,
        }

    def save(self, folder: Path) -> None:
        """Write `latency.json` and the samples into a folder.

        Raises:
            StorageError: The folder cannot be written.
        """
        columns = {name: getattr(self, name) for name in _COLUMNS if getattr(self, name) is not None}
        whole = {"schema_version": 1} | self.summary() | {"histogram": self.histogram().encode()}
        atomic_write(folder / SAMPLES, columns_to_bytes(columns))
        atomic_write(folder / LATENCY, pretty_json(whole))

    @classmethod
    def load(cls, folder: Path) -> Latency:
        """Read what `save` wrote.

        Raises:
            UsageError: The folder holds no latency.
            ArtifactError: It is damaged.
        """
        summary = read_json(folder / LATENCY, mend="Make one with `edgesmith bench`.")
        samples = read_columns(folder / SAMPLES)
        with damage_errors(folder / LATENCY):
            if summary["num_requests"] != len(samples["wall_ns"]):
                raise ValueError(f"{len(samples['wall_ns'])} samples instead of {summary['num_requests']}")
            check_numbers(summary, ("threads", "num_inputs", "overhead_ns", "num_warm_up"), optional=_OPTIONAL)
            if min(int(column.min()) for column in samples.values()) < 0:
                raise ValueError("a time below 0")
            if summary["num_inputs"] < 1:
                raise ValueError(f"{summary['num_inputs']} inputs")
            conditions = summary["conditions"]
            return cls(
                wall_ns=samples["wall_ns"],
                cpu_ns=samples["cpu_ns"],
                start_ns=samples["start_ns"],
                service_ns=samples.get("service_ns"),
                **{name: summary[name] for name in _PLAIN},
                machine=Machine.from_json(summary["machine"]),
                conditions=None if conditions is None else Conditions.from_json(conditions),
            )


_COLUMNS = ("start_ns", "wall_ns", "service_ns", "cpu_ns")
_OPTIONAL = ("rate", "capacity", "energy_mj", "load_after")
_PLAIN = (
    "scenario",
    "engine",
    "artifact_digest",
    "inputs",
    "threads",
    "num_inputs",
    "num_warm_up",
    "is_settled",
    "rate",
    "rate_source",
    "capacity",
    "overhead_ns",
    "energy_mj",
    "load_after",
)


def measure_latency(
    engine: Engine,
    inputs: Inputs,
    *,
    options: LatencyOptions | None = None,
    artifact_digest: str | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Latency:
    """Time single requests, closed loop: the next one starts when the last one is answered.

    Args:
        engine: Opened with the number of threads that is to be measured.
        inputs: The requests, used in turn.
        options: How long.
        artifact_digest: Of what the engine runs.
        threads: What the engine was opened with.
        progress: Shows the requests done.

    Raises:
        UsageError: There are no inputs.
    """
    if not inputs.arrays:
        raise UsageError("no inputs to time", mend="Give a data file with rows.")
    chosen = options or LatencyOptions()
    machine = describe_machine()
    is_settled, num_warm_up, seconds = warm_up(engine, inputs, max_windows=chosen.max_warm_up_windows)
    wanted = int(chosen.seconds / max(seconds, 1e-9))
    num_requests = max(chosen.min_requests, min(chosen.max_requests, wanted))
    with Watch() as watch, EnergyMeter() as energy:
        samples = time_closed_loop(engine, inputs.arrays, num_requests, progress)
    null = time_closed_loop(NullEngine(), inputs.arrays, _NULL_REQUESTS)
    return Latency(
        scenario="single",
        engine=engine.name,
        artifact_digest=artifact_digest,
        inputs=inputs.description,
        wall_ns=samples.wall_ns,
        cpu_ns=samples.cpu_ns,
        start_ns=samples.start_ns,
        num_warm_up=num_warm_up,
        is_settled=is_settled,
        machine=machine,
        load_after=describe_machine().load_1min,
        threads=threads,
        num_inputs=len(inputs.arrays),
        overhead_ns=int(np.median(null.wall_ns)),
        conditions=watch.conditions,
        energy_mj=energy.per_request_mj(num_requests),
    )
