"""Rows of a data file as a model's inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.load.plan import LoadPlan
from bench.load.protocols.tensors import DTYPES, TensorSpec
from bench.load.rows import PACKAGED, sampled_rows, text_of
from edgesmith.data import Row
from edgesmith.errors import DataError, UsageError

__all__ = ["Batches", "read_batches"]

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """The inputs of each request."""

    arrays: tuple[Arrays, ...]
    description: str
    notes: tuple[str, ...] = ()


def read_batches(plan: LoadPlan, inputs: Sequence[TensorSpec]) -> Batches:
    """Make the inputs of all requests: texts as they are, columns named like inputs, or texts through a tokenizer.

    Raises:
        UsageError: The plan holds nothing from which these inputs could be made.
        DataError: A row does not fit.
    """
    if all(spec.datatype == "BYTES" for spec in inputs):
        return _from_texts(plan, inputs)
    if plan.encoder is not None:
        return _from_encoder(plan, inputs)
    if plan.data is None:
        asked = ", ".join(spec.summary for spec in inputs)
        raise UsageError(
            f"the model takes numbers ({asked}), and there are neither rows with such columns nor a tokenizer",
            mend="Give --data with columns named like the inputs, or --artifact with the served artifact's folder.",
        )
    return _from_columns(plan, inputs)


def _batched(plan: LoadPlan, num: int) -> list[slice]:
    """Cut `num` rows into requests; rows that do not fill one are left out unless there is no other."""
    size = plan.batch_size
    full = [slice(begin, begin + size) for begin in range(0, num - size + 1, size)]
    if not full:
        raise DataError(f"{num} rows are fewer than the {size} of one request", mend="Give more rows.")
    return full


def _from_texts(plan: LoadPlan, inputs: Sequence[TensorSpec]) -> Batches:
    rows, notes = sampled_rows(plan)
    columns = {spec.name: [text_of(row, spec.name, plan, is_only=len(inputs) == 1) for row in rows] for spec in inputs}
    arrays = [
        {spec.name: _shaped(spec, np.array(columns[spec.name][part], dtype=np.object_)) for spec in inputs}
        for part in _batched(plan, len(rows))
    ]
    return Batches(arrays=tuple(arrays), description=_describe(plan, arrays, "texts"), notes=notes)


def _shaped(spec: TensorSpec, texts: NDArray[Any]) -> NDArray[Any]:
    """Give texts of shape [n] the rank of the input: [n] or [n, 1]."""
    shaped = texts.reshape(len(texts), *(1 for _ in spec.shape[1:]))
    if not spec.fits(shaped.shape):
        raise UsageError(
            f"the input {spec.summary} does not take {len(texts)} texts in one request", mend="Change --batch-size."
        )
    return shaped


def _from_encoder(plan: LoadPlan, inputs: Sequence[TensorSpec]) -> Batches:
    from edgesmith.tasks import ImageClassification, load_task

    assert plan.encoder is not None
    task = load_task(plan.encoder, columns=plan.columns or None)
    missing = [spec.summary for spec in inputs if spec.name not in task.input_names]
    if missing:
        raise UsageError(
            f"{plan.encoder} encodes {', '.join(task.input_names)}, and the model also takes {', '.join(missing)}",
            mend="Give the artifact that the server serves.",
        )
    notes: tuple[str, ...] = ()
    if plan.data is None:
        examples, notes = task.sample_examples(), (PACKAGED,)
    else:
        examples = [task.parse(row, labelled=False) for row in sampled_rows(plan)[0]]
    arrays: list[Arrays] = []
    for part in _batched(plan, len(examples)):
        encoded = task.encode(examples[part])
        arrays.append({spec.name: _as_input(spec, encoded[spec.name], str(plan.encoder)) for spec in inputs})
    what = "prepared pictures" if isinstance(task, ImageClassification) else "encoded texts"
    return Batches(arrays=tuple(arrays), description=_describe(plan, arrays, what), notes=notes)


def _from_columns(plan: LoadPlan, inputs: Sequence[TensorSpec]) -> Batches:
    rows, notes = sampled_rows(plan)
    arrays = [
        {spec.name: np.concatenate([_column(spec, row, plan) for row in rows[part]]) for spec in inputs}
        for part in _batched(plan, len(rows))
    ]
    return Batches(arrays=tuple(arrays), description=_describe(plan, arrays, "rows"), notes=notes)


def _column(spec: TensorSpec, row: Row, plan: LoadPlan) -> NDArray[Any]:
    name = plan.columns.get(spec.name, spec.name)
    if name not in row.values:
        there = ", ".join(map(repr, row.values))
        raise DataError(
            f"{row.place}: no column {name!r} for the input {spec.summary}; there: {there}",
            mend="Name the columns like the inputs, or give --artifact for rows of text.",
        )
    try:
        array = np.array(row.values[name], dtype=None if spec.datatype != "BYTES" else np.object_)
    except ValueError as error:
        raise DataError(f"{row.place}: {name!r} is no array: {error}") from error
    if array.ndim == len(spec.shape) - 1:
        array = array[None]
    return _as_input(spec, array, f"{row.place}: {name!r}")


def _as_input(spec: TensorSpec, array: NDArray[Any], place: str) -> NDArray[Any]:
    if array.ndim == 0 or not spec.fits(array.shape):
        raise DataError(f"{place} has the shape {list(array.shape)}; the input is {spec.summary}")
    if spec.datatype == "BYTES":
        return array
    dtype = np.dtype(DTYPES[spec.datatype])
    if array.dtype.kind not in ("biuf" if dtype.kind == "f" else "biu"):
        raise DataError(f"{place} is {array.dtype}; the input is {spec.summary}")
    with np.errstate(over="ignore"):
        result = array.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(result).all():
        raise DataError(f"{place} holds NaN, infinity or a number too large; the input is {spec.summary}")
    if dtype.kind != "f" and not np.array_equal(result, array):
        raise DataError(f"{place} has a number outside of {spec.datatype}; the input is {spec.summary}")
    return result


def _describe(plan: LoadPlan, arrays: Sequence[Arrays], what: str) -> str:
    widths = sorted({math.prod(array.shape[1:]) for inputs in arrays for array in inputs.values() if array.ndim > 1})
    width = f" of {widths[0]} to {widths[-1]} values" if len(widths) > 1 else ""
    return f"{len(arrays)} requests of {plan.batch_size} {what}{width}"
