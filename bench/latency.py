"""Time an engine: one client, one request after the other, every sample kept.

Wall time is what a user waits; CPU time is what holds on a machine that others use too.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.machine import Machine, describe_machine
from bench.raw import columns_to_bytes, damage_errors, pretty_json, read_columns, read_json
from bench.stats.percentiles import PercentileBounds, bound_percentile
from edgesmith.errors import DataError, UsageError
from edgesmith.files import atomic_write
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgesmith.tasks.base import Example, Task
    from serve.runtime import Engine

__all__ = ["LATENCY", "Inputs", "Latency", "LatencyOptions", "encode_inputs", "measure_latency", "warm_up"]

LATENCY = "latency.json"
SAMPLES = "latency_ns.csv.gz"
_PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
_AGREEMENT = 1.05
_WINDOW_REQUESTS = 16

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Encoded requests of one example each."""

    arrays: tuple[Arrays, ...]
    description: str
    """Such as `1×128 tokens of real text`."""


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
    engine: str
    artifact_digest: str | None
    inputs: str
    wall_ns: NDArray[np.int64]
    """Time of each request as the caller waits for it, of shape [n], in the order of the requests."""
    cpu_ns: NDArray[np.int64]
    """CPU time of this process, all threads, during each request; of shape [n]."""
    num_warm_up: int
    is_settled: bool
    """Whether three windows in a row agreed within 5 % before the first sample."""
    machine: Machine
    load_after: float | None

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
        """Share of the wall time in which no thread of this process ran, in [0, 1]: others had the processor."""
        return max(0.0, 1 - float(self.cpu_ns.sum()) / float(self.wall_ns.sum()))

    def percentile(self, percentile: float, confidence: float = 0.99) -> PercentileBounds:
        """Bound a percentile of the wall time, in milliseconds."""
        return bound_percentile(self.wall_ns / 1e6, percentile, confidence)

    def percentiles(self, confidence: float = 0.99) -> tuple[PercentileBounds, ...]:
        """Bound the usual percentiles of the wall time, in milliseconds."""
        return tuple(self.percentile(percentile, confidence) for percentile in _PERCENTILES)

    def summary(self) -> dict[str, Any]:
        """Give the figures without the samples, JSON-able. An unsupported percentile is null."""
        bounds = self.percentiles()
        return {
            "scenario": self.scenario,
            "engine": self.engine,
            "artifact_digest": self.artifact_digest,
            "inputs": self.inputs,
            "num_requests": self.num_requests,
            "num_warm_up": self.num_warm_up,
            "is_settled": self.is_settled,
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
            "cpu_ms": {"p50": self.cpu_ms, "mean": float(self.cpu_ns.mean()) / 1e6},
            "machine": self.machine.to_json(),
            "load_after": self.load_after,
        }

    def save(self, folder: Path) -> None:
        """Write `latency.json` and the samples into a folder.

        Raises:
            StorageError: The folder cannot be written.
        """
        atomic_write(folder / SAMPLES, columns_to_bytes({"wall_ns": self.wall_ns, "cpu_ns": self.cpu_ns}))
        atomic_write(folder / LATENCY, pretty_json({"schema_version": 1} | self.summary()))

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
            return cls(
                scenario=summary["scenario"],
                engine=summary["engine"],
                artifact_digest=summary["artifact_digest"],
                inputs=summary["inputs"],
                wall_ns=samples["wall_ns"],
                cpu_ns=samples["cpu_ns"],
                num_warm_up=summary["num_warm_up"],
                is_settled=summary["is_settled"],
                machine=Machine.from_json(summary["machine"]),
                load_after=summary["load_after"],
            )


def encode_inputs(
    task: Task, examples: Sequence[Example], *, num_inputs: int = 64, length: int | None = None
) -> Inputs:
    """Encode real examples as requests of one example each.

    Args:
        task: Encodes them.
        examples: Real ones, at least one.
        num_inputs: How many different requests, taken evenly from the examples.
        length: Exact number of tokens of every request: short texts are continued with the next ones, long ones
            are cut, nothing is padded. By default each has its natural length.

    Raises:
        DataError: There are no examples, or all of their tokens are fewer than `length`.
    """
    if not examples:
        raise DataError("no examples to time", mend="Give a data file with rows.")
    step = max(1, len(examples) // num_inputs)
    encoded: list[Arrays] = [task.encode([example]) for example in examples[::step][:num_inputs]]
    if length is None:
        tokens = [next(iter(arrays.values())).shape[1] for arrays in encoded]
        middle = int(np.median(tokens))
        return Inputs(
            arrays=tuple(encoded),
            description=f"{len(encoded)} real texts of {min(tokens)} to {max(tokens)} tokens, median {middle}",
        )
    joined = {name: np.concatenate([arrays[name] for arrays in encoded], axis=1) for name in encoded[0]}
    num_tokens = next(iter(joined.values())).shape[1]
    if num_tokens < length:
        raise DataError(f"the examples have {num_tokens} tokens in all, fewer than the {length} of one request")
    cut = [
        {name: np.ascontiguousarray(values[:, start : start + length]) for name, values in joined.items()}
        for start in range(0, num_tokens - length + 1, length)
    ]
    return Inputs(arrays=tuple(cut[:num_inputs]), description=f"1×{length} tokens of real text")


def warm_up(engine: Engine, inputs: Inputs, *, max_windows: int) -> tuple[bool, int, float]:
    """Run the same requests in windows until three in a row took the same CPU time within 5 %.

    Returns:
        Whether they did, the number of requests made, and the seconds that one takes.
    """
    window = inputs.arrays[:_WINDOW_REQUESTS]
    taken: list[int] = []
    seconds = 0.0
    for _ in range(max_windows):
        start, start_cpu = time.perf_counter(), time.process_time_ns()
        for arrays in window:
            engine.run(arrays)
        taken.append(max(1, time.process_time_ns() - start_cpu))
        seconds = (time.perf_counter() - start) / len(window)
        if len(taken) >= 3 and max(taken[-3:]) <= _AGREEMENT * min(taken[-3:]):
            return True, len(taken) * len(window), seconds
    return False, len(taken) * len(window), seconds


def measure_latency(
    engine: Engine,
    inputs: Inputs,
    *,
    options: LatencyOptions | None = None,
    artifact_digest: str | None = None,
    progress: Progress = SILENT,
) -> Latency:
    """Time single requests, closed loop: the next one starts when the last one is answered.

    Args:
        engine: Opened with the number of threads that is to be measured.
        inputs: The requests, used in turn.
        options: How long.
        artifact_digest: Of what the engine runs.
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
    wall_ns, cpu_ns = _time_requests(engine, inputs.arrays, num_requests, progress)
    return Latency(
        scenario="single",
        engine=engine.name,
        artifact_digest=artifact_digest,
        inputs=inputs.description,
        wall_ns=wall_ns,
        cpu_ns=cpu_ns,
        num_warm_up=num_warm_up,
        is_settled=is_settled,
        machine=machine,
        load_after=describe_machine().load_1min,
    )


def _time_requests(
    engine: Engine, arrays: Sequence[Arrays], num_requests: int, progress: Progress
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    wall_ns = np.empty(num_requests, dtype=np.int64)
    cpu_ns = np.empty(num_requests, dtype=np.int64)
    report_every = max(1, num_requests // 50)
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        with progress.bar("time requests", total=num_requests) as advance:
            for index in range(num_requests):
                request = arrays[index % len(arrays)]
                start_cpu = time.process_time_ns()
                start = time.perf_counter_ns()
                engine.run(request)
                wall_ns[index] = time.perf_counter_ns() - start
                cpu_ns[index] = time.process_time_ns() - start_cpu
                if index % report_every == report_every - 1:
                    advance(report_every)
    finally:
        if was_collecting:
            gc.enable()
    return wall_ns, cpu_ns
