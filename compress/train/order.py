"""Which rows an update sees: decided by the seed alone, whatever the number of processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Sampler

__all__ = ["Order", "Share", "row_lengths"]

_POOL = 50
"""Batches' worth of shuffled rows that are sorted by length together: little padding, and still well mixed."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """The batches of every epoch. Their sizes differ by one row at most, and none is larger than `batch_size`."""

    num_rows: int
    batch_size: int
    seed: int
    lengths: Sequence[int] | None = None
    """Tokens of each row; rows of similar lengths then share a batch, which saves padding."""

    @property
    def updates_per_epoch(self) -> int:
        """Batches that the rows make."""
        return math.ceil(self.num_rows / self.batch_size)

    def epoch(self, number: int) -> list[list[int]]:
        """Row numbers of each batch of an epoch, counted from 0."""
        generator = np.random.default_rng([self.seed, number])
        rows = generator.permutation(self.num_rows)
        if self.lengths is not None:
            lengths = np.asarray(self.lengths)[rows]
            pools = np.arange(self.num_rows) // (_POOL * self.batch_size)
            rows = rows[np.lexsort((lengths, pools))]  # stable: rows of one length keep their shuffled order
        batches = np.array_split(rows, self.updates_per_epoch)
        return [batches[index].tolist() for index in generator.permutation(len(batches))]


class Share(Sampler[list[int]]):
    """What one of several processes computes of each update, epoch after epoch."""

    def __init__(self, order: Order, num_updates: int, *, rank: int = 0, num_processes: int = 1) -> None:
        self._order = order
        self._num_updates = num_updates
        self._slice = slice(rank, None, num_processes)

    def __len__(self) -> int:
        return self._num_updates

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, self._num_updates, self._order.updates_per_epoch):
            batches = self._order.epoch(start // self._order.updates_per_epoch)
            yield from (batch[self._slice] for batch in batches[: self._num_updates - start])


def row_lengths(rows: Sequence[Mapping[str, Any]]) -> Sequence[int] | None:
    """Tokens of each row, where they are to be had without work: an attribute `lengths`, or lists of `input_ids`."""
    given: Sequence[int] | None = getattr(rows, "lengths", None)
    if given is not None:
        return given
    if not isinstance(rows, list | tuple) or not all("input_ids" in row for row in rows):
        return None
    return [len(row["input_ids"]) for row in rows]
