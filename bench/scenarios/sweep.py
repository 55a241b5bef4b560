"""How time grows with the batch and with the length of the texts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.machine.conditions import Conditions, Watch
from bench.machine.limits import ideal_of
from bench.machine.machine import Machine, describe_machine
from bench.machine.operations import count_operations
from bench.machine.peaks import MachinePeaks
from bench.raw import damage_errors, pretty_json, read_json
from bench.scenarios.inputs import Inputs, encode_inputs, num_tokens
from bench.scenarios.timing import time_closed_loop
from bench.strict import check_numbers
from edgesmith.errors import DataError, UsageError
from edgesmith.files import atomic_write
from edgesmith.progress import SILENT, Progress
from edgesmith.tasks import TextTask

if TYPE_CHECKING:
    from edgesmith.artifact import Artifact
    from edgesmith.tasks.base import Example, Task
    from serve.runtime import Engine

__all__ = ["SWEEP", "Sweep", "SweepOptions", "SweepRow", "measure_sweep"]

SWEEP = "sweep.json"
_WARM_UP_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """The grid, and how long each of its cells is timed."""

    batch_sizes: tuple[int, ...] = (1, 4, 16)
    lengths: tuple[int | None, ...] = (None, 32, 128, 256)
    """Tokens of a row; None is the texts' own length. Pictures have none: theirs is one cell for each batch."""
    seconds: float = 1.0
    """Of one cell."""
    min_requests: int = 7
    max_requests: int = 1000
    num_inputs: int = 8
    """Different requests of a cell at the most."""

    def __post_init__(self) -> None:
        sizes = [*self.batch_sizes, *(length for length in self.lengths if length is not None)]
        if not self.batch_sizes or not self.lengths or min(sizes) < 1:
            raise UsageError("a sweep needs batch sizes and lengths of at least 1")


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One cell."""

    batch_size: int
    length: int | None
    """Tokens of every row; None: the texts' own."""
    median_tokens: int
    """Length of the median request, padding included."""
    cpu_ms: float
    """Median CPU time of an example in milliseconds."""
    wall_p50_ms: float
    """Median wall time of a request (the whole batch) in milliseconds."""
    examples_per_second: float
    num_requests: int
    share: float | None
    """Of the machine's limit; None where it was not counted."""
    bound_by: str | None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The cells of a grid, batch by batch."""

    engine: str
    artifact_digest: str | None
    rows: tuple[SweepRow, ...]
    left_out: tuple[str, ...]
    """What could not be timed, and why."""
    threads: int
    machine: Machine
    conditions: Conditions | None = None

    def summary(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "engine": self.engine,
            "artifact_digest": self.artifact_digest,
            "threads": self.threads,
            "rows": [asdict(row) for row in self.rows],
            "left_out": list(self.left_out),
            "machine": self.machine.to_json(),
            "conditions": self.conditions.to_json() if self.conditions else None,
        }

    def save(self, folder: Path) -> None:
        """Write `sweep.json` into a folder.

        Raises:
            StorageError: The folder cannot be written.
        """
        atomic_write(folder / SWEEP, pretty_json({"schema_version": 1} | self.summary()))

    @classmethod
    def load(cls, folder: Path) -> Sweep:
        """Read what `save` wrote.

        Raises:
            UsageError: The folder holds no sweep.
            ArtifactError: It is damaged.
        """
        value = read_json(folder / SWEEP, mend="Make one with `edgesmith bench --sweep`.")
        with damage_errors(folder / SWEEP):
            for row in value["rows"]:
                check_numbers(row, _NUMBERS, optional=("length", "share"))
            conditions = value["conditions"]
            return cls(
                engine=value["engine"],
                artifact_digest=value["artifact_digest"],
                threads=value["threads"],
                rows=tuple(SweepRow(**row) for row in value["rows"]),
                left_out=tuple(value["left_out"]),
                machine=Machine.from_json(value["machine"]),
                conditions=None if conditions is None else Conditions.from_json(conditions),
            )


_NUMBERS = ("batch_size", "median_tokens", "cpu_ms", "wall_p50_ms", "examples_per_second", "num_requests")


def measure_sweep(
    engine: Engine,
    task: Task,
    examples: Sequence[Example],
    *,
    options: SweepOptions | None = None,
    artifact: Artifact | None = None,
    peaks: MachinePeaks | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Sweep:
    """Time every batch size at every length, on real texts.

    Lengths above the model's limit, or above all the tokens at hand, are left out and named.

    Args:
        engine: Opened with the number of threads that is to be measured.
        task: Encodes the texts.
        examples: Real ones, at least one.
        options: The grid.
        artifact: What the engine runs; with `peaks`, an ONNX model's share of the machine's limit is told.
        peaks: Of as many threads.
        threads: What the engine was opened with.
        progress: Shows the cells done.

    Raises:
        DataError: There are no examples.
        UsageError: Threads differ from those of `peaks`.
    """
    if not examples:
        raise DataError("no examples to time", mend="Give a data file with rows.")
    if peaks is not None and peaks.threads != threads:
        raise UsageError(f"times of {threads} threads cannot be held against peaks of {peaks.threads}")
    chosen = options or SweepOptions()
    machine = describe_machine()
    cells, left_out = _cells(task, examples, chosen)
    ideals = _ideals(artifact, peaks, [inputs for _, _, inputs in cells])
    rows = []
    with Watch() as watch:
        for (batch_size, length, inputs), ideal in zip(progress.track(cells, "sweep"), ideals, strict=True):
            rows.append(_time_cell(engine, inputs, chosen, batch_size, length, ideal, threads))
    return Sweep(
        engine=engine.name,
        artifact_digest=artifact.digest if artifact else None,
        rows=tuple(rows),
        left_out=tuple(left_out),
        threads=threads,
        machine=machine,
        conditions=watch.conditions,
    )


_Cell = tuple[int, int | None, Inputs]


def _cells(task: Task, examples: Sequence[Example], options: SweepOptions) -> tuple[list[_Cell], list[str]]:
    cells: list[_Cell] = []
    left_out = []
    # Pictures have no length: one cell for each size of a batch.
    lengths = options.lengths if isinstance(task, TextTask) else (None,)
    for length in lengths:
        if length is not None and task.max_length is not None and length > task.max_length:
            left_out.append(f"{length} tokens: the model takes {task.max_length} at the most")
            continue
        try:
            for batch_size in options.batch_sizes:
                inputs = encode_inputs(
                    task, examples, num_inputs=options.num_inputs, length=length, batch_size=batch_size
                )
                cells.append((batch_size, length, inputs))
        except DataError as error:
            left_out.append(f"{length} tokens: {error.message}")
    return sorted(cells, key=lambda cell: (cell[0], cell[1] or 0)), left_out


def _ideals(
    artifact: Artifact | None, peaks: MachinePeaks | None, cells: Sequence[Inputs]
) -> list[tuple[float, str] | None]:
    """Mean ideal time in milliseconds of each cell's requests, and what bounds the first of them."""
    if artifact is None or peaks is None or artifact.kind != "onnx":
        return [None] * len(cells)
    counted = iter(count_operations(artifact, [arrays for inputs in cells for arrays in inputs.arrays]))
    found: list[tuple[float, str] | None] = []
    for inputs in cells:
        ideals = [ideal_of(next(counted), peaks) for _ in inputs.arrays]
        found.append((float(np.mean([ideal.ms for ideal in ideals])), ideals[0].bound_by))
    return found


def _time_cell(
    engine: Engine,
    inputs: Inputs,
    options: SweepOptions,
    batch_size: int,
    length: int | None,
    ideal: tuple[float, str] | None,
    threads: int,
) -> SweepRow:
    start = time.perf_counter()
    num_runs = 0
    while num_runs < 2 or time.perf_counter() - start < _WARM_UP_SECONDS:
        engine.run(inputs.arrays[num_runs % len(inputs.arrays)])
        num_runs += 1
    wanted = int(options.seconds * num_runs / (time.perf_counter() - start))
    rounds = -(-max(options.min_requests, min(options.max_requests, wanted)) // len(inputs.arrays))
    samples = time_closed_loop(engine, inputs.arrays, rounds * len(inputs.arrays))  # each request equally often
    wall_s = float(np.median(samples.wall_ns)) / 1e9
    taken_ns = samples.cpu_ns if threads == 1 else samples.wall_ns
    return SweepRow(
        batch_size=batch_size,
        length=length,
        median_tokens=int(np.median([num_tokens(arrays) for arrays in inputs.arrays])),
        cpu_ms=float(np.median(samples.cpu_ns)) / 1e6 / batch_size,
        wall_p50_ms=1000 * wall_s,
        examples_per_second=batch_size / wall_s,
        num_requests=len(samples.wall_ns),
        share=ideal[0] / (float(taken_ns.mean()) / 1e6) if ideal else None,
        bound_by=ideal[1] if ideal else None,
    )
