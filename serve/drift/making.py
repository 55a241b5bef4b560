"""Make a reference from calibration rows."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import DataError
from edgesmith.tasks import Task, TaskInput
from serve.drift.features import (
    NUM_BUCKETS,
    bucket_of,
    given_values,
    log_shares,
    output_values,
    row_tokens,
)
from serve.drift.reference import Feature, Reference
from serve.runtime import Engine

__all__ = ["MAX_ROWS", "MIN_ROWS", "make_reference", "make_text_reference"]

MIN_ROWS = 50
MAX_ROWS = 2000
"""Rows that are looked at; a thousand are enough."""
_BATCH = 16
_ROWS_A_BIN = 16
_MAX_BINS = 10
_MAX_VALUES = 20
_SAME = 1e-3
"""Spread, as a share of the largest value, below which values are rounding's."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Vocabulary:
    ignored: Ints
    unknown_id: int | None


def make_reference(engine: Engine, task: Task, examples: Sequence[TaskInput], *, is_held_out: bool = True) -> Reference:
    """Run rows through a graph, and describe what it is given and what it gives.

    Args:
        engine: Runs the graph as it will be served.
        task: Encodes rows, and reads the outputs.
        examples: Rows as they will be asked; the first `MAX_ROWS` are looked at. A thousand make a good reference.
        is_held_out: Whether the model was not trained on them. It is surer of what it was trained on, so that without
            this its confidence is no reference.

    Raises:
        DataError: There are too few rows.
    """
    rows: list[Ints] = []
    outputs: list[dict[str, float]] = []
    for begin in range(0, min(len(examples), MAX_ROWS), _BATCH):
        arrays = task.encode(examples[begin : min(begin + _BATCH, MAX_ROWS)])
        vectors = task.vectors(engine.run(arrays), arrays)
        rows.extend(row_tokens(arrays, row) for row in range(len(vectors)))
        outputs.extend(output_values(vector, task.output_kind) for vector in vectors)
    if not is_held_out:
        for values in outputs:
            values.pop("confidence", None)
    labels = tuple(getattr(task, "labels", ()))
    return _describe(rows, outputs, _vocabulary(task), task.output_kind, labels)


def make_text_reference(tokenize: Callable[[str], Sequence[int]], texts: Sequence[str]) -> Reference:
    """Describe the prompts of a language model.

    Args:
        tokenize: Splits a text as the model reads it, without the tokens that every text has.
        texts: Prompts as they will be asked; the first `MAX_ROWS` are looked at.

    Raises:
        DataError: There are too few.
    """
    rows = [np.array(tokenize(text), np.int64) for text in texts[:MAX_ROWS]]
    nothing = _Vocabulary(ignored=np.zeros(0, np.int64), unknown_id=None)
    return _describe(rows, [{} for _ in rows], nothing, "text", ())


def _vocabulary(task: Task) -> _Vocabulary:
    """Special tokens of a task's tokenizer, where it has one."""
    tokenizer = getattr(getattr(task, "encoder", None), "tokenizer", None)
    if tokenizer is None:
        return _Vocabulary(ignored=np.zeros(0, np.int64), unknown_id=None)
    model: Mapping[str, Any] = json.loads(tokenizer.to_str())["model"]
    name, unknown = model.get("unk_token"), model.get("unk_id")
    if isinstance(name, str):
        unknown = tokenizer.token_to_id(name)
    special = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special} - {unknown}
    return _Vocabulary(ignored=np.array(sorted(special)[:1024], np.int64), unknown_id=unknown)


def _describe(
    rows: Sequence[Ints],
    outputs: Sequence[dict[str, float]],
    vocabulary: _Vocabulary,
    output: Literal["logits", "embedding", "text"],
    labels: tuple[str, ...],
) -> Reference:
    if len(rows) < MIN_ROWS:
        raise DataError(
            f"{len(rows)} rows are too few for a reference of drift",
            mend=f"Give {MIN_ROWS} or more, better a thousand.",
        )
    columns = _columns(rows, outputs, vocabulary)
    features = [_feature(name, np.array(column), labels) for name, column in columns.items()]
    kept = tuple(feature for feature in features if feature is not None)
    names = {feature.name for feature in kept}
    counts = sum(_bucket_counts(row, vocabulary) for row in rows)
    return Reference(
        output=output,
        num_rows=len(rows),
        ignored_tokens=tuple(vocabulary.ignored.tolist()),
        unknown_id=vocabulary.unknown_id,
        bucket_counts=tuple(np.asarray(counts, np.int64).tolist()),
        features=kept,
        skipped=tuple(name for name in columns if name not in names),
    )


def _bucket_counts(row: Ints, vocabulary: _Vocabulary) -> Ints:
    text = row[~np.isin(row, vocabulary.ignored)]
    return np.bincount(bucket_of(text), minlength=NUM_BUCKETS)


def _columns(
    rows: Sequence[Ints], outputs: Sequence[dict[str, float]], vocabulary: _Vocabulary
) -> dict[str, list[float]]:
    """Values by feature. A row's surprise is taken against the other rows, as a served row's will be."""
    counts = [_bucket_counts(row, vocabulary) for row in rows]
    total = np.sum(counts, axis=0)
    draw = random.Random(0)  # noqa: S311 - picks tokens
    columns: dict[str, list[float]] = {}
    for row, own, output in zip(rows, counts, outputs, strict=True):
        values = given_values(
            row,
            ignored=vocabulary.ignored,
            unknown_id=vocabulary.unknown_id,
            logs=log_shares((total - own).astype(np.float64)),
            draw=draw,
        )
        for name, value in (values | output).items():
            columns.setdefault(name, []).append(value)
    return columns


def _feature(name: str, values: NDArray[np.float64], labels: tuple[str, ...]) -> Feature | None:
    """Count a feature's values; None where they do not differ, so that they say nothing."""
    if name in ("label", "token"):
        return _named(name, values.astype(np.int64), labels if name == "label" else ())
    if name == "unknown":  # even where no row has one: served rows may
        edges = np.unique(np.append(0.0, np.quantile(values, [0.5, 0.9])))
    elif name == "length" and np.ptp(values) == 0:  # all were cut to the longest; served ones may be shorter
        edges = np.array([values[0] - 1, values[0]])
    else:
        if not np.isfinite(values).all() or np.ptp(values) <= _SAME * np.abs(values).max():
            return None
        num_bins = min(max(len(values) // _ROWS_A_BIN, 2), _MAX_BINS)
        edges = np.unique(np.quantile(values, np.arange(1, num_bins) / num_bins))
    edges = np.unique([float(f"{edge:.6g}") for edge in edges])
    counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
    return Feature(name=name, edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def _named(name: str, values: Ints, labels: tuple[str, ...]) -> Feature:
    found, counts = np.unique(values, return_counts=True)
    if labels and len(labels) <= _MAX_VALUES:
        kept = list(range(len(labels)))
    else:
        most = min(_MAX_VALUES, max(len(values) // _ROWS_A_BIN, 1))
        kept = sorted(found[np.lexsort((found, -counts))][:most].tolist())
    by_value = dict(zip(found.tolist(), counts.tolist(), strict=True))
    in_bins = [by_value.get(value, 0) for value in kept]
    return Feature(
        name=name,
        values=tuple(kept),
        labels=tuple(labels[value][:200] if value < len(labels) else str(value) for value in kept) if labels else (),
        counts=(*in_bins, len(values) - sum(in_bins)),
    )
