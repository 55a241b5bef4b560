"""Which requests are run together, and how their arrays are joined and cut apart again. Pure: no thread, no clock.

A batch begins with the oldest request, so nobody starves, and takes others in the order they came. Those of one shape
are joined as they are. Texts of different lengths are padded together only where the padding costs less than the run
that it saves; nearest lengths are tried first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgesmith.artifact import Signature
from edgesmith.tasks import Task, TextTask
from serve.models.job import Job

__all__ = ["RELEASED", "BatchLimits", "Layout", "Waiting", "choose_batch", "cut", "join", "read_layout", "split_rows"]

_WINDOW = 256  # waiting requests that are looked at for one batch
_MASK = "attention_mask"

RELEASED: Mapping[str, NDArray[Any]] = MappingProxyType({})
"""The arrays of a request that was answered before its turn came; the loop may put them there at any time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where a graph has its rows and, if it is one of texts, its tokens.

    Attributes:
        rows: `shared`: all inputs and outputs have one free axis first, so requests may share a run. `single`: that
            axis has length 1, so each row is a run. `none`: neither; each request is a run, as it is.
        input_names: Of the signature.
        output_names: Of the signature.
        fill: What pads each input to a longer length; empty where lengths are never mixed.
        is_left: Whether padding comes before the tokens.
        token_axes: Output → its axis that is as long as the padded inputs, where it has one.
    """

    rows: Literal["shared", "single", "none"]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    fill: Mapping[str, int]
    is_left: bool = False
    token_axes: Mapping[str, int]


def read_layout(signature: Signature, task: Task | None = None) -> Layout:
    """Find the rows and tokens of a graph by the names of its axes.

    Lengths are mixed only if the task's tokenizer has a padding token, the graph takes the mask that hides it, and no
    output's shape depends on the length in another way than by an axis of the same name.
    """
    inputs, outputs = signature.inputs, signature.outputs
    rows: Literal["shared", "single", "none"] = "none"
    first = {spec.shape[:1] for spec in (*inputs, *outputs)}
    if len(first) == 1 and inputs and outputs and () not in first:
        (axis,) = first.pop()
        elsewhere = {name for spec in (*inputs, *outputs) for name in spec.shape[1:]}
        if isinstance(axis, str) and axis not in elsewhere:
            rows = "shared"
        elif axis == 1:
            rows = "single"
    fill: dict[str, int] = {}
    is_left = False
    shapes = {spec.shape for spec in inputs}
    tokens = next(iter(shapes))[1] if len(shapes) == 1 and len(next(iter(shapes))) == 2 else 0
    if rows == "shared" and isinstance(task, TextTask) and isinstance(tokens, str):
        settings = task.encoder.settings
        names = {spec.name for spec in inputs}
        follows = all(isinstance(axis, int) or axis == tokens for spec in outputs for axis in spec.shape[1:])
        if settings.pad_id is not None and names == set(settings.input_names) and _MASK in names and follows:
            pads = {"input_ids": settings.pad_id, _MASK: 0, "token_type_ids": settings.pad_type_id}
            fill = {name: pads[name] for name in settings.input_names}
            is_left = settings.padding_side == "left"
    return Layout(
        rows=rows,
        input_names=tuple(spec.name for spec in inputs),
        output_names=tuple(spec.name for spec in outputs),
        fill=fill,
        is_left=is_left,
        token_axes={spec.name: spec.shape.index(tokens, 1) for spec in outputs if tokens in spec.shape[1:]}
        if fill
        else {},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """How large a batch may be.

    Attributes:
        max_rows: Rows of one run, at least 1.
        max_elements: Elements of one run's first input (tokens, for texts); one row always fits. None: no such limit.
        run_cost: What a run costs beside its elements, counted in elements: padding up to it is worth saving a run.
    """

    max_rows: int
    max_elements: int | None = None
    run_cost: int = 0

    def rows_of(self, row_elements: int) -> int:
        """Rows of that many elements each that one run may have.

        >>> BatchLimits(max_rows=16, max_elements=256).rows_of(100)
        2
        """
        if self.max_elements is None:
            return self.max_rows
        return max(1, min(self.max_rows, self.max_elements // max(row_elements, 1)))


class Waiting:
    """A request that waits for a run.

    Attributes:
        job: The request.
        arrays: Its arrays, which the job itself may lose meanwhile.
        rows: Its rows.
        shape: Shapes of its inputs without the rows; requests of one shape can be joined as they are.
        length: Tokens of each of its rows, padding of its own included; 0 if lengths are never mixed.
        row_elements: Elements of a row of its first input.
        is_taken: It is in the batch that was chosen, or needs no run any more.
    """

    __slots__ = ("arrays", "is_taken", "job", "length", "row_elements", "rows", "shape")

    def __init__(self, job: Job, layout: Layout) -> None:
        arrays = self.arrays = job.arrays
        self.job = job
        self.rows = job.num_rows
        self.is_taken = False
        self.shape: object = None
        if arrays is RELEASED:
            self.length = self.row_elements = 0
            return
        if layout.fill:
            self.length = self.row_elements = arrays[layout.input_names[0]].shape[1]
            return
        self.length = 0
        if len(layout.input_names) == 1:
            shape = arrays[layout.input_names[0]].shape[1:]
            self.shape = shape
        else:
            shapes = tuple([arrays[name].shape[1:] for name in layout.input_names])
            self.shape, shape = shapes, shapes[0]
        self.row_elements = prod(shape)


def choose_batch(waiting: Sequence[Waiting], limits: BatchLimits, layout: Layout) -> list[Waiting]:
    """Choose what is run next; marks it as taken.

    Args:
        waiting: Live requests, the oldest first; at least one.
        limits: How large the batch may be. A request above them comes alone, to be run in pieces.
        layout: Of the graph.

    Returns:
        The oldest request, then those that are run with it.
    """
    oldest = waiting[0]
    oldest.is_taken = True
    if layout.rows != "shared" or len(waiting) == 1:
        return [oldest]
    room = limits.rows_of(oldest.row_elements) - oldest.rows
    if layout.fill:
        return _choose_near(oldest, waiting[1:_WINDOW], limits) if limits.max_rows > 1 else [oldest]
    batch = [oldest]
    for item in waiting[1:_WINDOW]:
        if room < 1:
            break
        if item.rows <= room and item.shape == oldest.shape:
            room -= item.rows
            item.is_taken = True
            batch.append(item)
    return batch


def _choose_near(oldest: Waiting, others: Iterable[Waiting], limits: BatchLimits) -> list[Waiting]:
    """Take texts of near lengths while padding them costs less than a run of their own."""
    rows, longest, batch = oldest.rows, oldest.length, [oldest]
    most, budget = limits.max_rows, limits.max_elements
    if rows >= most or (budget is not None and (rows + 1) * longest > budget):
        return batch
    for item in sorted(others, key=lambda item: abs(item.length - oldest.length)):  # stable: of equals, the older
        together, length = rows + item.rows, max(longest, item.length)
        if together > most or (budget is not None and together * length > budget):
            continue
        padding = (length - longest) * rows + (length - item.length) * item.rows
        if padding <= limits.run_cost:
            rows, longest = together, length
            item.is_taken = True
            batch.append(item)
            if rows == most:
                break
    return batch


def join(batch: Sequence[Waiting], layout: Layout) -> Mapping[str, NDArray[Any]]:
    """Make one input of several requests', padded to the longest; a single request's arrays are not copied."""
    if len(batch) == 1:
        return batch[0].arrays
    longest = max(item.length for item in batch)
    if all(item.length == longest for item in batch):
        return {name: np.concatenate([item.arrays[name] for item in batch]) for name in layout.input_names}
    rows = sum(item.rows for item in batch)
    joined = {}
    for name in layout.input_names:
        whole = np.full((rows, longest), layout.fill[name], batch[0].arrays[name].dtype)
        start = 0
        for item in batch:
            columns = slice(longest - item.length, None) if layout.is_left else slice(item.length)
            whole[start : start + item.rows, columns] = item.arrays[name]
            start += item.rows
        joined[name] = whole
    return joined


def cut(outputs: Mapping[str, NDArray[Any]], batch: Sequence[Waiting], layout: Layout) -> list[dict[str, NDArray[Any]]]:
    """Give each request of a batch its own rows and tokens, as views.

    Args:
        outputs: Of the run; the first axis of each has the rows of all requests.
        batch: As it was joined.
        layout: Of the graph.
    """
    longest = max(item.length for item in batch)
    answers, start = [], 0
    for item in batch:
        rows = slice(start, start + item.rows)
        start += item.rows
        answer = {name: values[rows] for name, values in outputs.items()}
        if item.length != longest:
            tokens = slice(longest - item.length, None) if layout.is_left else slice(item.length)
            for name, axis in layout.token_axes.items():
                answer[name] = answer[name][(slice(None),) * axis + (tokens,)]
        answers.append(answer)
    return answers


def split_rows(arrays: Mapping[str, NDArray[Any]], num_rows: int, size: int) -> list[dict[str, NDArray[Any]]]:
    """Cut a request into pieces of at most `size` rows, as views.

    >>> [piece["x"].shape for piece in split_rows({"x": np.ones((5, 2))}, 5, 2)]
    [(2, 2), (2, 2), (1, 2)]
    """
    return [{name: array[start : start + size] for name, array in arrays.items()} for start in range(0, num_rows, size)]
