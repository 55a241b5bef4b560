"""Check that a checkpoint saved in a narrow type is its float32 original, rounded once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from compress.checkpoint import Checkpoint
from compress.skeleton import TORCH_DTYPES
from compress.tensor_header import TensorEntry
from edgesmith.errors import VerificationError

__all__ = ["check_rounding"]


def check_rounding(saved: Checkpoint, exact: Checkpoint) -> None:
    """Check that every saved tensor is the exact one, rounded to the type that it is saved in, bit for bit.

    Tensors are read one at a time. A type wider than float32 must hold what float32 holds.

    Args:
        saved: The checkpoint to check.
        exact: The same model, all floating-point tensors in float32.

    Raises:
        VerificationError: a tensor differs, or is none of the model's; the message names it.
    """
    for name, entry in saved.entries.items():
        original = exact.entries.get(name)
        if original is None or original.shape != entry.shape:
            what = "is not there" if original is None else f"has shape {original.shape}, not {entry.shape}"
            raise _error(saved, name, f"{what} when the merge is repeated")
        if not entry.size_bytes:
            continue
        if count := _count_different(saved.read(name), entry, exact.read(name), original):
            raise _error(saved, name, f"{count} values are not the merged ones rounded to {entry.dtype}")


def _count_different(saved: bytearray, entry: TensorEntry, exact: bytearray, original: TensorEntry) -> int:
    """How many values differ in at least one bit."""
    if entry.dtype not in TORCH_DTYPES or original.dtype not in TORCH_DTYPES:
        return int(saved != exact)
    found = torch.frombuffer(saved, dtype=TORCH_DTYPES[entry.dtype])
    expected = torch.frombuffer(exact, dtype=TORCH_DTYPES[original.dtype])
    if entry.size_bytes > original.size_bytes:
        found = found.to(expected.dtype)
    return sum(
        int(np.count_nonzero(_bits(found_part) != _bits(expected_part.to(found.dtype))))
        for found_part, expected_part in zip(_parts(found), _parts(expected), strict=True)
    )


def _parts(values: torch.Tensor) -> Iterator[torch.Tensor]:
    return iter(torch.split(values, 1 << 22))


def _bits(values: torch.Tensor) -> NDArray[np.integer]:
    """The values as integers of the same size, because 0 equals -0 and a NaN does not equal itself."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    array: NDArray[np.integer] = values.contiguous().view(integers).numpy()
    return array


def _error(saved: Checkpoint, name: str, what: str) -> VerificationError:
    return VerificationError(
        f"{saved.path_of(name)}: tensor {name!r}: {what}",
        mend="Do not use this checkpoint: it was changed after merging, or merged from something else. Merge again.",
    )
