"""The rows of tokens that stay, gathered from tensors as they are read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.checkpoint import Checkpoint
from compress.checkpoint_writer import CheckpointWriter
from compress.memory import release_free_memory
from compress.tensor_file import count_nonfinite, nonfinite_error
from compress.tensor_header import DTYPE_BITS
from compress.vocabulary.axes import VocabularyAxis
from edgesmith.errors import UnsupportedError
from edgesmith.progress import Progress

__all__ = ["TrimmedTensor", "gather_rows", "write_trimmed"]


@dataclass(frozen=True, kw_only=True)
class TrimmedTensor:
    """One tensor with an axis of tokens, before and after."""

    axis: int
    shape_before: tuple[int, ...]
    shape_after: tuple[int, ...]
    bytes_before: int
    bytes_after: int


def write_trimmed(
    checkpoint: Checkpoint,
    out: Path,
    axes: Mapping[str, VocabularyAxis],
    kept: NDArray[np.int64],
    *,
    max_shard_bytes: int,
    progress: Progress,
) -> dict[str, TrimmedTensor]:
    """Write all tensors of a checkpoint, of those with an axis of tokens only the tokens that stay.

    At most a few pieces of 16 MiB are in memory.

    Args:
        checkpoint: To read.
        out: Folder to write, which has no weights yet.
        axes: Tensor → its axis of tokens; of a tensor that counts fewer tokens than others, ids beyond are left out.
        kept: Old ids, rising.
        max_shard_bytes: Above this size the weights are split into shards.
        progress: Where to report.

    Raises:
        CheckpointError: a tensor holds a NaN.
        StorageError: the disk is full.
    """
    trimmed = {name: _planned(checkpoint, axis, kept) for name, axis in axes.items()}
    specs = {
        name: (entry.dtype, trimmed[name].shape_after if name in trimmed else entry.shape)
        for name, entry in checkpoint.entries.items()
    }
    writer = CheckpointWriter(out, specs, max_shard_bytes=max_shard_bytes)
    try:
        with progress.bar("trim", sum(entry.size_bytes for entry in checkpoint.entries.values())) as advance:
            for name, entry in checkpoint.entries.items():
                pieces: Iterable[memoryview] = _checked(checkpoint, name)
                if name in trimmed:
                    axis = axes[name]
                    outer, inner = math.prod(entry.shape[: axis.axis]), math.prod(entry.shape[axis.axis + 1 :])
                    stay = kept[kept < axis.key.size]
                    rows = (np.arange(outer)[:, None] * entry.shape[axis.axis] + stay).ravel()
                    pieces = gather_rows(pieces, inner * DTYPE_BITS[entry.dtype] // 8, rows)
                writer.write(name, pieces)
                advance(entry.size_bytes)
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    release_free_memory()
    return trimmed


def gather_rows(pieces: Iterable[memoryview], row_bytes: int, rows: NDArray[np.int64]) -> Iterator[memoryview]:
    """Take some rows out of a table that comes in pieces of any size.

    Args:
        pieces: The table's bytes, row by row; each piece may be overwritten by the next.
        row_bytes: Of one row.
        rows: Numbers of the rows to take, rising.

    >>> pieces = [memoryview(b"aabb"), memoryview(b"bccc"), memoryview(b"ddd")]  # rows of 3 bytes, cut elsewhere
    >>> b"".join(gather_rows(pieces[:2] + pieces[2:], 3, np.array([0, 2])))
    b'aabccd'
    """
    start, rest = 0, b""
    for piece in pieces:
        data = rest + bytes(piece)
        count = len(data) // row_bytes
        table = np.frombuffer(data, np.uint8, count * row_bytes).reshape(count, row_bytes)
        low, high = np.searchsorted(rows, (start, start + count))
        yield memoryview(table[rows[low:high] - start].tobytes())
        rest = data[count * row_bytes :]
        start += count


def _planned(checkpoint: Checkpoint, axis: VocabularyAxis, kept: NDArray[np.int64]) -> TrimmedTensor:
    entry = checkpoint.entries[axis.tensor]
    if DTYPE_BITS[entry.dtype] % 8:
        raise UnsupportedError(f"{checkpoint.path_of(axis.tensor)}: {axis.tensor!r} is stored as {entry.dtype}")
    shape = list(entry.shape)
    shape[axis.axis] = int(np.count_nonzero(kept < axis.key.size))
    return TrimmedTensor(
        axis=axis.axis,
        shape_before=entry.shape,
        shape_after=tuple(shape),
        bytes_before=entry.size_bytes,
        bytes_after=math.prod(shape) * DTYPE_BITS[entry.dtype] // 8,
    )


def _checked(checkpoint: Checkpoint, name: str) -> Iterator[memoryview]:
    entry = checkpoint.entries[name]
    for piece in checkpoint.chunks(name):
        if count := count_nonfinite(piece, entry.dtype):
            raise nonfinite_error(checkpoint.path_of(name), name, count, math.prod(entry.shape))
        yield piece
