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
from edgesmith.tasks import ImageClassification, Task, TaskInput
from serve.drift.answers import answer_values
from serve.drift.features import (
    NUM_BUCKETS,
    bucket_of,
    given_values,
    holds_pictures,
    log_shares,
    picture_values,
    row_tokens,
)
from serve.drift.reference import Feature, Reference, num_counted_rows
from serve.runtime import Engine

__all__ = ["MAX_ROWS", "MIN_ROWS", "make_reference", "make_text_reference"]

MIN_ROWS = 50
MAX_ROWS = 2000
"""Rows that are looked at; a thousand are enough."""
_BATCH = 16
_ROWS_A_BIN = 16
"""Of those that are counted."""
_MAX_BINS = 10
_MAX_VALUES = 20
_SAME = 1e-3
"""Spread, as a share of the largest value, below which values are rounding's."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Vocabulary:
    ignored: Ints
    unknown_id: int | None
    has_tokens: bool = True
    """Whether rows are texts: of pictures there is nothing to look at here."""


_NO_TOKENS: Ints = np.zeros(0, np.int64)


def make_reference(engine: Engine, task: Task, examples: Sequence[TaskInput], *, is_held_out: bool = True) -> Reference:
    """Run rows, texts or pictures, through a graph, and describe what it is given and what it gives.

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
    vocabulary, draw = _vocabulary(task), random.Random(3)  # noqa: S311 - picks tokens
    for begin in range(0, min(len(examples), MAX_ROWS), _BATCH):
        arrays = task.encode(examples[begin : min(begin + _BATCH, MAX_ROWS)])
        found = answer_values(task, engine.run(arrays), arrays, ignored=vocabulary.ignored, draw=draw)
        if holds_pictures(arrays):
            rows.extend([_NO_TOKENS] * len(found))
            found = [picture_values(arrays, row) | values for row, values in enumerate(found)]
        else:
            rows.extend(row_tokens(arrays, row) for row in range(len(found)))
        outputs.extend(found)
    if not is_held_out:
        for values in outputs:
            values.pop("confidence", None)
    labels = tuple(getattr(task, "labels", getattr(task, "tags", ())))
    return _describe(rows, outputs, vocabulary, task.output_kind, labels)


def make_text_reference(tokenize: Callable[[str], Sequence[int]], texts: Sequence[str]) -> Reference:
    """Describe the prompts of a language model.

    Args:
        tokenize: Splits a text as the model reads it, without the tokens that every text has.
        texts: Prompts as they will be asked; the first `MAX_ROWS` are looked at.

    Raises:
        DataError: There are too few.
    """
    rows = [np.array(tokenize(text), np.int64) for text in texts[:MAX_ROWS]]
    nothing = _Vocabulary(ignored=_NO_TOKENS, unknown_id=None)
    return _describe(rows, [{} for _ in rows], nothing, "text", ())


def _vocabulary(task: Task) -> _Vocabulary:
    """Special tokens of a task's tokenizer, where it has one."""
    tokenizer = getattr(getattr(task, "encoder", None), "tokenizer", None)
    if tokenizer is None:
        return _Vocabulary(ignored=_NO_TOKENS, unknown_id=None, has_tokens=not isinstance(task, ImageClassification))
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
    chooses = _choosers(len(rows))
    buckets = np.concatenate([_buckets(rows[index], vocabulary) for index in np.flatnonzero(chooses).tolist()])
    bucket_counts = np.bincount(buckets, minlength=NUM_BUCKETS)
    columns = _columns(rows, outputs, vocabulary, bucket_counts, chooses)
    features: list[Feature | None] = []
    for name, column in columns.items():
        values = np.array(column)
        if name == "label" and 0 < len(labels) <= _MAX_VALUES:
            features.append(_named(name, values, range(len(labels)), labels))
        elif name == "label":
            features.append(_named(name, values[~chooses], _most_frequent(values[chooses], len(values)), labels))
        elif name == "token":
            features.append(_named(name, values[~chooses], _most_frequent(buckets, len(values)), ()))
        else:
            features.append(_ordered(name, values[chooses], values[~chooses]))
    kept = tuple(feature for feature in features if feature is not None)
    names = {feature.name for feature in kept}
    return Reference(
        output=output,
        num_rows=len(rows),
        ignored_tokens=tuple(vocabulary.ignored.tolist()),
        unknown_id=vocabulary.unknown_id,
        bucket_counts=tuple(bucket_counts.tolist()),
        features=kept,
        skipped=tuple(name for name in columns if name not in names),
    )


def _choosers(num_rows: int) -> NDArray[np.bool_]:
    """The rows that choose what of the others is counted, drawn: rows may lie in an order of their own.

    Values that are frequent among the very rows that chose them are less so in any others; so are tokens that are not
    surprising, and edges with as many rows between them. With nothing changed, that would be alarms: rows that chose
    nothing are as any served ones.
    """
    draw = random.Random(2)  # noqa: S311 - its bits are the same in every version of Python
    order = np.argsort([draw.getrandbits(32) for _ in range(num_rows)], kind="stable")
    is_first = np.zeros(num_rows, bool)
    is_first[order[: num_rows - num_counted_rows(num_rows)]] = True
    return is_first


def _buckets(row: Ints, vocabulary: _Vocabulary) -> Ints:
    return bucket_of(row[~np.isin(row, vocabulary.ignored)])


def _columns(
    rows: Sequence[Ints],
    outputs: Sequence[dict[str, float]],
    vocabulary: _Vocabulary,
    bucket_counts: Ints,
    chooses: NDArray[np.bool_],
) -> dict[str, list[float]]:
    """Values by feature. No row's surprise is taken against itself: edges would lie where no other row is."""
    logs = log_shares(bucket_counts.astype(np.float64))
    draw = random.Random(0)  # noqa: S311 - picks tokens
    columns: dict[str, list[float]] = {}
    for row, output, is_own in zip(rows, outputs, chooses.tolist(), strict=True):
        if not vocabulary.has_tokens:
            for name, value in output.items():
                columns.setdefault(name, []).append(value)
            continue
        others = logs
        if is_own:
            own = np.bincount(_buckets(row, vocabulary), minlength=NUM_BUCKETS)
            others = log_shares((bucket_counts - own).astype(np.float64))
        values = given_values(row, ignored=vocabulary.ignored, unknown_id=vocabulary.unknown_id, logs=others, draw=draw)
        for name, value in (values | output).items():
            columns.setdefault(name, []).append(value)
    return columns


def _ordered(name: str, values: Floats, counted: Floats) -> Feature | None:
    """Count a feature between edges that other rows' values give; None where these do not differ and say nothing."""
    if name == "unknown":  # even where no row has one: served rows may
        edges = np.unique(np.append(0.0, np.quantile(values, [0.5, 0.9])))
    elif name == "length" and np.ptp(values) == 0:  # all were cut to the longest; served ones may be shorter
        edges = np.array([values[0] - 1, values[0]])
    else:
        if not np.isfinite(np.concatenate([values, counted])).all() or np.ptp(values) <= _SAME * np.abs(values).max():
            return None
        num_bins = min(max(len(counted) // _ROWS_A_BIN, 2), _MAX_BINS)
        edges = np.unique(np.quantile(values, np.arange(1, num_bins) / num_bins))
    edges = np.unique([float(f"{edge:.6g}") for edge in edges])
    counts = np.bincount(np.searchsorted(edges, counted, side="left"), minlength=len(edges) + 1)
    return Feature(name=name, edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def _most_frequent(values: NDArray[Any], num_rows: int) -> list[int]:
    """The values that are counted, so many that each can have some rows."""
    found, counts = np.unique(values.astype(np.int64), return_counts=True)
    most = min(_MAX_VALUES, max(num_counted_rows(num_rows) // _ROWS_A_BIN, 1))
    return sorted(found[np.lexsort((found, -counts))][:most].tolist())


def _named(name: str, values: Floats, kept: Sequence[int], labels: tuple[str, ...]) -> Feature | None:
    """Count a feature's values by themselves; None where there are none to count."""
    if not kept:
        return None
    in_bins = [int((values == value).sum()) for value in kept]
    return Feature(
        name=name,
        values=tuple(kept),
        labels=tuple(labels[value][:200] if value < len(labels) else str(value) for value in kept) if labels else (),
        counts=(*in_bins, len(values) - sum(in_bins)),
    )
