"""The first runs of a model, before anybody waits for it.

They fill the engine's memory pools, and are timed and compared to find out how many rows it should run together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.artifact import Artifact, Signature
from edgesmith.errors import UsageError
from edgesmith.tasks import Task, TextTask
from serve.models.batch_size import SMALL, best_size, run_cost
from serve.models.batching import BatchLimits, Layout
from serve.models.executor import Run
from serve.runtime.golden import read_golden

__all__ = ["ROUNDING", "WarmUp", "warm_up"]

Arrays = Mapping[str, NDArray[Any]]

ROUNDING = 2e-3
"""Share of the largest output: below it, two answers differ by rounding only."""

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_BUDGET_S, _SIZE_S = 0.25, 0.012  # for all sizes, and for the runs of one
_SHORT, _LONG = 16, 512  # tokens of the rows that are timed, and the most of the longest row that is run once
_FREE_AXES = (16, 64, 224)  # lengths that are tried for free axes of which nothing is known
_QUICK_S = 0.02  # a run that takes longer is not repeated as often


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """What the first runs told.

    Attributes:
        limits: Of batches, from the specification or measured.
        can_mix_lengths: Whether a padded row was answered as an unpadded one is.
        has_rows: Whether outputs had as many rows as inputs, so that a run can be shared.
        batch_effect: Largest difference that other rows in a batch made to a row's outputs, as a share of the largest
            output; about 1e-7 in floating point, and up to 0.3 where activations are quantized with one scale for the
            whole batch.
        padding_effect: The same of padding.
        rows_per_s: Rows in a run → rows per second, as far as they were timed.
        seconds: What it all took.
        notes: What could not be tried, and why.
    """

    limits: BatchLimits
    can_mix_lengths: bool = True
    has_rows: bool = True
    batch_effect: float = 0.0
    padding_effect: float = 0.0
    rows_per_s: Mapping[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass
class _Rows:
    """Sample rows, distinct as far as there are enough; the first axis of each array is theirs.

    Texts have at least `short` tokens, which are what is timed.
    """

    arrays: dict[str, NDArray[Any]]
    layout: Layout
    short: int = _SHORT

    def take(self, num: int, length: int = 0) -> dict[str, NDArray[Any]]:
        """That many rows, for texts of that many tokens or of `short`: repeated where there are fewer."""
        length = length or self.short
        found = {}
        for name, array in self.arrays.items():
            rows = np.resize(array, (num, *array.shape[1:])) if num > len(array) else array[:num]
            if self.layout.fill:
                rows = np.resize(rows, (num, length)) if length > rows.shape[1] else rows[:, :length]
            found[name] = np.ascontiguousarray(rows)
        if self.layout.fill and length > array.shape[1]:
            found["attention_mask"] = np.ones_like(found["attention_mask"])
        return found

    @property
    def row_elements(self) -> int:
        """Elements of a row of the first input, at the length that is timed."""
        first = self.take(1)[self.layout.input_names[0]]
        return max(1, int(first.size))


def warm_up(
    run: Run,
    signature: Signature,
    layout: Layout,
    artifact: Artifact,
    task: Task | None = None,
    *,
    max_batch_size: int | None = None,
    clock: Callable[[], float] = time.thread_time,
) -> WarmUp:
    """Run a model for the first time.

    Small and large inputs are run so that later requests find memory allocated. Unless `max_batch_size` is given,
    batches of 1, 2, 4 … 128 rows are timed, for about a quarter of a second of processor time in all. The smallest
    batch is taken that comes within 2 % of the most rows a second: it answers sooner, and its rows depend less on each
    other where the model's arithmetic lets them (see `WarmUp.batch_effect`). It holds as a number of elements: where 16
    texts of 16 tokens are best, texts of 128 tokens are run two at a time.

    Args:
        run: The engine's.
        signature: Of the graph.
        layout: Of the graph.
        artifact: Its golden inputs are used where there is no task.
        task: Gives real texts.
        max_batch_size: From the specification: taken as it is.
        clock: In seconds; of this thread, so that others do not disturb. For an engine in another process use
            `time.perf_counter`.
    """
    began = time.perf_counter()
    alone_only = BatchLimits(max_rows=1)
    rows, notes = _find_rows(run, signature, layout, artifact, task)
    if layout.rows != "shared":
        return WarmUp(limits=alone_only, notes=tuple(notes), seconds=time.perf_counter() - began)
    if rows is None:
        limits = BatchLimits(max_rows=max_batch_size or 1)
        return WarmUp(limits=limits, notes=tuple(notes), seconds=time.perf_counter() - began)
    alone, together = run(rows.take(1)), run(rows.take(2))
    if any(len(values) != 1 for values in alone.values()) or any(len(values) != 2 for values in together.values()):
        notes.append("outputs do not have the inputs' rows: every request is run alone")
        return WarmUp(limits=alone_only, has_rows=False, notes=tuple(notes))
    sizes = _SIZES if max_batch_size is None else tuple(sorted({1, min(SMALL, max_batch_size), max_batch_size}))
    seconds = _time_sizes(run, rows, sizes, clock)
    batch_effect, padding_effect = _effects(run, rows, 8 if seconds[1] < _QUICK_S else 2)
    best = max_batch_size or best_size({size: size / taken for size, taken in seconds.items()})
    limits = BatchLimits(
        max_rows=best,
        max_elements=None if max_batch_size else best * rows.row_elements,
        run_cost=run_cost(seconds, rows.row_elements) if layout.fill else 0,
    )
    if layout.fill and isinstance(task, TextTask):
        run(rows.take(1, min(task.max_length or _LONG, _LONG)))
    return WarmUp(
        limits=limits,
        can_mix_lengths=padding_effect <= max(ROUNDING, 4 * batch_effect),
        batch_effect=batch_effect,
        padding_effect=padding_effect,
        rows_per_s={size: size / taken for size, taken in seconds.items()},
        seconds=time.perf_counter() - began,
        notes=tuple(notes),
    )


def _find_rows(
    run: Run, signature: Signature, layout: Layout, artifact: Artifact, task: Task | None
) -> tuple[_Rows | None, list[str]]:
    """The first sample rows that the engine takes."""
    notes: list[str] = []
    for what, arrays in _candidates(signature, layout, artifact, task):
        rows = _Rows(arrays, layout, _shortest(arrays) if layout.fill else 0)
        try:
            run(rows.take(1) if layout.rows == "shared" else arrays)
        except UsageError as error:
            notes.append(f"{what} could not be run: {error}")
        else:
            return rows, notes
    return None, notes


def _candidates(
    signature: Signature, layout: Layout, artifact: Artifact, task: Task | None
) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    if layout.fill and isinstance(task, TextTask):
        arrays = task.encode(task.sample_examples())
        lengths = arrays["attention_mask"].sum(axis=1)
        yield "sample texts", {name: array[lengths >= min(_SHORT, lengths.max())] for name, array in arrays.items()}
    golden = read_golden(artifact)
    if golden is not None:
        few = slice(1) if layout.rows == "single" else slice(None)
        yield "golden inputs", {name: array[few] for name, array in golden.inputs.items()}
    for free in _FREE_AXES:
        yield f"inputs with free axes of length {free}", _made_up(signature, layout, free)
        if all(isinstance(axis, int) for spec in signature.inputs for axis in spec.shape[1:]):
            return


def _shortest(arrays: Arrays) -> int:
    """Tokens that every row has."""
    return max(1, min(_SHORT, int(arrays["attention_mask"].sum(axis=1).min())))


def _made_up(signature: Signature, layout: Layout, free: int) -> dict[str, NDArray[Any]]:
    """Arrays of a signature's shapes, of small numbers; integers are 0 or 1, which are valid as ids and as masks."""
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {}
    for spec in signature.inputs:
        shape = [axis if isinstance(axis, int) else free for axis in spec.shape]
        if layout.rows == "shared":
            shape[0] = SMALL
        elif shape and not isinstance(spec.shape[0], int):
            shape[0] = 1
        if spec.dtype == "string":
            arrays[spec.name] = np.full(shape, "text", object)
        elif spec.dtype.startswith("float"):
            arrays[spec.name] = rng.normal(size=shape).astype(spec.dtype)
        else:
            arrays[spec.name] = rng.integers(0, 2, shape).astype(spec.dtype)
    return arrays


def _time_sizes(run: Run, rows: _Rows, sizes: tuple[int, ...], clock: Callable[[], float]) -> dict[int, float]:
    """Seconds of one run of each size, the least of a few; ends early when the budget is spent or it gets slower."""
    found: dict[int, float] = {}
    began = clock()
    for size in sizes:
        arrays = rows.take(size)
        run(arrays)
        taken: list[float] = []
        while len(taken) < 2 or (len(taken) < 8 and sum(taken) < _SIZE_S):
            start = clock()
            run(arrays)
            taken.append(clock() - start)
        found[size] = max(min(taken), 1e-9)
        if clock() - began > _BUDGET_S:
            break
        speeds = [size / least for size, least in found.items()]
        if len(speeds) > 2 and max(speeds[-2:]) < 0.9 * max(speeds):
            break
    return found


def _effects(run: Run, rows: _Rows, most: int) -> tuple[float, float]:
    """How far other rows, and padding, move a row's outputs; see `WarmUp`."""
    num = min(most, len(next(iter(rows.arrays.values()))))
    batch = rows.take(num)
    together = run(batch)
    by_rows = by_padding = 0.0
    width = rows.short // 3
    for index in range(num):
        single = {name: array[index : index + 1] for name, array in batch.items()}
        alone = run(single)
        among = {name: values[index : index + 1] for name, values in together.items()}
        by_rows = max(by_rows, _difference(alone, among))
        if rows.layout.fill and 2 * index < most and width:
            fewer = _without(single, width, rows.layout, tuple(rows.layout.fill))
            padded = run(_padded(fewer, width, rows.layout))
            by_padding = max(by_padding, _difference(run(fewer), _without(padded, width, rows.layout)))
    return by_rows, by_padding


def _padded(arrays: Arrays, width: int, layout: Layout) -> dict[str, NDArray[Any]]:
    sides = (width, 0) if layout.is_left else (0, width)
    return {name: np.pad(array, ((0, 0), sides), constant_values=layout.fill[name]) for name, array in arrays.items()}


def _without(arrays: Arrays, width: int, layout: Layout, names: tuple[str, ...] = ()) -> dict[str, NDArray[Any]]:
    """Cut `width` tokens off where padding would be, of inputs by name or of outputs that have an axis of tokens."""
    axes = dict.fromkeys(names, 1) or layout.token_axes
    kept = slice(width, None) if layout.is_left else slice(-width)
    return {
        name: values[(slice(None),) * axes[name] + (kept,)] if name in axes else values
        for name, values in arrays.items()
    }


def _difference(one: Arrays, other: Arrays) -> float:
    """The largest difference of any floating-point element, as a share of the largest; infinite for other shapes."""
    largest = 0.0
    for name, values in one.items():
        if values.dtype.kind != "f":
            continue
        if values.shape != other[name].shape:
            return float("inf")
        scale = float(np.abs(values).max(initial=0.0))
        gap = float(np.abs(values.astype(np.float64) - other[name]).max(initial=0.0))
        largest = max(largest, gap / scale if scale else gap)
    return largest
