"""Which shapes an artifact is verified on: single rows, odd lengths, padded batches, the longest sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import DataError
from edgesmith.tasks.base import Example, Task
from edgesmith.tasks.text_task import TextTask

__all__ = ["Batch", "make_batches"]

_NUM_SINGLE = 4
_LONGEST = 512  # tokens; a longer limit is not run to its end


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Encoded rows and the texts that they came from.

    Attributes:
        arrays: What an engine is given, each of shape [batch, length] or [batch, channels, height, width].
        texts: One for each row; of a picture its name.
    """

    arrays: dict[str, NDArray[Any]]
    texts: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Batch and length, or batch, channels, height and width."""
        return tuple(map(int, next(iter(self.arrays.values())).shape))


def make_batches(task: Task, examples: Sequence[Example], *, batch_size: int = 8) -> list[Batch]:
    """Encode every example once in padded batches, and some again in the shapes that exports get wrong.

    Args:
        task: Encodes.
        examples: Real ones.
        batch_size: Of the padded batches; short and long texts are mixed in each.

    Returns:
        Padded batches of mixed lengths, then single rows of odd and of even length, then one row as long as the
        model takes (512 tokens at most), made of the texts in a row. Of pictures, batches and single rows.

    Raises:
        DataError: There are no examples.
    """
    if not examples:
        raise DataError("there are no rows to verify on", mend="Give a data file with at least one row.")
    by_length = sorted(examples, key=lambda example: len(example.text))
    num_batches = -(-len(by_length) // batch_size)
    mixed = [by_length[start::num_batches] for start in range(num_batches)]
    singles = [by_length[index * (len(by_length) - 1) // _NUM_SINGLE] for index in range(1, _NUM_SINGLE + 1)]
    batches = [_encode(task, rows) for rows in mixed]
    if not isinstance(task, TextTask):
        return [*batches, *(_encode(task, [row]) for row in singles)]
    batches += [_cropped(_encode(task, [row]), odd=index % 2 == 0) for index, row in enumerate(singles)]
    return [*batches, _longest(task, examples)]


def _encode(task: Task, rows: Sequence[Example]) -> Batch:
    arrays: dict[str, NDArray[Any]] = dict(task.encode(rows))
    texts = [row.text for row in rows]
    num_rows = len(next(iter(arrays.values())))
    if num_rows != len(rows):  # both texts of a pair are rows of their own
        texts = [text for row in rows for text in (row.text, row.text_pair) if text is not None]
    return Batch(arrays=arrays, texts=tuple(texts))


def _cropped(batch: Batch, *, odd: bool) -> Batch:
    """Cut the last token off where that makes the length odd, or even."""
    length = batch.shape[1]
    keep = length - 1 if length > 1 and (length % 2 == 1) != odd else length
    return Batch(arrays={name: _cut(array, keep) for name, array in batch.arrays.items()}, texts=batch.texts)


def _longest(task: Task, examples: Sequence[Example]) -> Batch:
    limit = min(task.max_length or _LONGEST, _LONGEST)
    texts: list[str] = []
    while sum(map(len, texts)) < 12 * limit:
        texts.extend(example.text for example in examples)
    text = " ".join(texts)[: 24 * limit]
    arrays = task.encode([Example(text)])
    cut = {name: _cut(array, limit) for name, array in arrays.items()}
    return Batch(arrays=cut, texts=(text,))


def _cut(array: NDArray[Any], length: int) -> NDArray[Any]:
    return np.ascontiguousarray(array[:, :length])
