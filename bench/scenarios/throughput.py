"""How many examples a second an engine does when all of them are at hand: the offline scenario."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.machine.conditions import Conditions, Watch
from bench.machine.energy import EnergyMeter
from bench.machine.machine import Machine, describe_machine
from bench.raw import damage_errors, pretty_json, read_json
from bench.scenarios.inputs import Arrays, Inputs, num_tokens
from bench.scenarios.timing import without_collector
from bench.scenarios.warm_up import warm_up
from bench.stats.dependence import percentile_inflation
from bench.stats.percentiles import bound_percentile
from bench.stats.resampling import Bounds
from bench.strict import check_numbers
from edgesmith.errors import DataError, UsageError
from edgesmith.files import atomic_write
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgesmith.tasks.base import Example, Task
    from serve.runtime import Engine

__all__ = ["THROUGHPUT", "Throughput", "ThroughputOptions", "encode_batches", "measure_throughput"]

THROUGHPUT = "throughput.json"
_ROUNDS = 40
"""Rounds that the time is divided into."""
_MIN_BATCHES = 4
"""Of a round."""


@dataclass(frozen=True, kw_only=True)
class ThroughputOptions:
    """How large the batches are and how long to measure."""

    batch_size: int = 32
    seconds: float = 15.0
    """Wall time aimed at; a round that was begun is finished."""
    min_rounds: int = 25
    """Each sends every example once. 7 independent ones bound the median round at 99 % confidence; from fewer than
    25 it cannot be told whether they are independent."""
    max_rounds: int = 200
    max_examples: int = 2048
    """Of a round, taken evenly from all, and fewer where a round would take more than a fortieth of the time; the
    result says how many there were."""
    max_warm_up_windows: int = 10

    def __post_init__(self) -> None:
        for name in ("batch_size", "min_rounds", "max_examples"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Times of whole rounds through all examples."""

    engine: str
    artifact_digest: str | None
    inputs: str
    batch_size: int
    num_examples: int
    """In one round."""
    round_seconds: tuple[float, ...]
    """Wall time of each round."""
    round_cpu_seconds: tuple[float, ...]
    """CPU time of this process, all threads, in each round."""
    is_settled: bool
    threads: int
    machine: Machine
    conditions: Conditions | None = None
    energy_mj: float | None = None
    """Energy of the processor's packages for each example; None where the machine does not say."""
    scenario: str = "offline"

    @property
    def rounds(self) -> int:
        """How many rounds were timed."""
        return len(self.round_seconds)

    @property
    def cpu_ms(self) -> float:
        """CPU time of an example in milliseconds, of the median round."""
        return 1000 * float(np.median(self.round_cpu_seconds)) / self.num_examples

    @property
    def inflation(self) -> float:
        """How many rounds say as much about the median one as an independent one, ≥ 1."""
        return percentile_inflation(self.round_seconds, 50)

    def examples_per_second(self, confidence: float = 0.99) -> Bounds:
        """Bound the rate of the median round, without a guess about the shape of the rounds' times.

        Rounds that depend on each other, as while others use the machine, count for fewer.

        Args:
            confidence: Of each bound on its own.

        Returns:
            Examples a second; the bounds are 0 and infinity where the rounds are too few.
        """
        bounds = bound_percentile(self.round_seconds, 50, confidence, self.inflation)
        return Bounds(
            estimate=self.num_examples / float(np.median(self.round_seconds)),
            lower=0.0 if bounds.upper is None else self.num_examples / bounds.upper,
            upper=float("inf") if bounds.lower is None else self.num_examples / bounds.lower,
            confidence=confidence,
        )

    def summary(self) -> dict[str, Any]:
        """JSON-able form. A bound that the rounds cannot support is null."""
        bounds = self.examples_per_second()
        return {
            "scenario": self.scenario,
            "engine": self.engine,
            "artifact_digest": self.artifact_digest,
            "inputs": self.inputs,
            "batch_size": self.batch_size,
            "num_examples": self.num_examples,
            "rounds": self.rounds,
            "rounds_inflation": self.inflation,
            "threads": self.threads,
            "is_settled": self.is_settled,
            "examples_per_second": bounds.estimate,
            "examples_per_second_bounds": {
                "confidence": bounds.confidence,
                "lower": bounds.lower or None,
                "upper": bounds.upper if np.isfinite(bounds.upper) else None,
            },
            "cpu_ms": self.cpu_ms,
            "round_seconds": list(self.round_seconds),
            "round_cpu_seconds": list(self.round_cpu_seconds),
            "energy_mj": self.energy_mj,
            "machine": self.machine.to_json(),
            "conditions": self.conditions.to_json() if self.conditions else None,
        }

    def save(self, folder: Path) -> None:
        """Write `throughput.json` into a folder.

        Raises:
            StorageError: The folder cannot be written.
        """
        atomic_write(folder / THROUGHPUT, pretty_json({"schema_version": 1} | self.summary()))

    @classmethod
    def load(cls, folder: Path) -> Throughput:
        """Read what `save` wrote.

        Raises:
            UsageError: The folder holds no throughput.
            ArtifactError: It is damaged.
        """
        value = read_json(folder / THROUGHPUT, mend="Make one with `edgesmith bench --scenario offline`.")
        with damage_errors(folder / THROUGHPUT):
            seconds = tuple(float(one) for one in value["round_seconds"])
            check_numbers(value, ("batch_size", "num_examples", "threads"), optional=("energy_mj",))
            if (
                not seconds
                or not all(0 < one < math.inf for one in seconds)
                or value["rounds"] != len(seconds)
                or value["num_examples"] < 1
            ):
                raise ValueError(f"{len(seconds)} rounds of {value['num_examples']} examples")
            conditions = value["conditions"]
            return cls(
                **{name: value[name] for name in _PLAIN},
                round_seconds=seconds,
                round_cpu_seconds=tuple(float(one) for one in value["round_cpu_seconds"]),
                machine=Machine.from_json(value["machine"]),
                conditions=None if conditions is None else Conditions.from_json(conditions),
            )


_PLAIN = (
    "scenario",
    "engine",
    "artifact_digest",
    "inputs",
    "batch_size",
    "num_examples",
    "threads",
    "is_settled",
    "energy_mj",
)


def encode_batches(task: Task, examples: Sequence[Example], *, batch_size: int) -> Inputs:
    """Encode every example once, in batches of about equal length so that little is padding.

    Args:
        task: Encodes.
        examples: At least one.
        batch_size: Examples of a batch; the last one may have fewer.

    Raises:
        DataError: There are no examples.
    """
    if not examples:
        raise DataError("no examples to time", mend="Give a data file with rows.")
    lengths = [num_tokens(task.encode([example])) for example in examples]
    order = np.argsort(np.array(lengths), kind="stable")
    batches: list[Arrays] = [
        task.encode([examples[index] for index in order[start : start + batch_size]])
        for start in range(0, len(order), batch_size)
    ]
    spread = f"{min(lengths)} to {max(lengths)} tokens"
    return Inputs(
        arrays=tuple(batches),
        description=f"{len(examples):,} real texts of {spread} in batches of {batch_size}, sorted by length",
    )


def measure_throughput(
    engine: Engine,
    task: Task,
    examples: Sequence[Example],
    *,
    options: ThroughputOptions | None = None,
    artifact_digest: str | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Throughput:
    """Time whole rounds through all examples, batch after batch.

    Args:
        engine: Opened with the number of threads that is to be measured.
        task: Encodes; its time is not counted.
        examples: Real ones, at least one.
        options: Size of the batches, and how long.
        artifact_digest: Of what the engine runs.
        threads: What the engine was opened with.
        progress: Shows the rounds done.

    Raises:
        DataError: There are no examples.
    """
    chosen = options or ThroughputOptions()
    picked = _evenly(examples, chosen.max_examples)
    inputs = encode_batches(task, picked, batch_size=chosen.batch_size)
    machine = describe_machine()
    middle = Inputs(arrays=_evenly(inputs.arrays, _MIN_BATCHES), description="")
    is_settled, _, batch_seconds = warm_up(engine, middle, max_windows=chosen.max_warm_up_windows)
    num_batches = max(_MIN_BATCHES, int(chosen.seconds / _ROUNDS / max(batch_seconds, 1e-9)))
    if num_batches < len(inputs.arrays):
        picked = _evenly(picked, num_batches * chosen.batch_size)
        inputs = encode_batches(task, picked, batch_size=chosen.batch_size)
    left_out = f" (of {len(examples):,})" if len(picked) < len(examples) else ""
    with Watch() as watch, EnergyMeter() as energy:
        wall, cpu = _run_rounds(engine, inputs.arrays, chosen, progress)
    return Throughput(
        engine=engine.name,
        artifact_digest=artifact_digest,
        inputs=inputs.description + left_out,
        batch_size=chosen.batch_size,
        num_examples=len(picked),
        round_seconds=wall,
        round_cpu_seconds=cpu,
        is_settled=is_settled,
        threads=threads,
        machine=machine,
        conditions=watch.conditions,
        energy_mj=energy.per_request_mj(len(picked) * len(wall)),
    )


def _evenly(items: Sequence[Any], most: int) -> tuple[Any, ...]:
    if len(items) <= most:
        return tuple(items)
    return tuple(items[index * len(items) // most] for index in range(most))


def _run_rounds(
    engine: Engine, batches: Sequence[Arrays], options: ThroughputOptions, progress: Progress
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Wall and CPU seconds of each round."""
    wall: list[float] = []
    cpu: list[float] = []
    with without_collector(), progress.bar("time rounds") as advance:
        while len(wall) < options.max_rounds and (len(wall) < options.min_rounds or sum(wall) < options.seconds):
            start_cpu, start = time.process_time(), time.perf_counter()
            for batch in batches:
                engine.run(batch)
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
            advance(1)
    return tuple(wall), tuple(cpu)
