"""The values of one tensor in the type that the file asks for, a piece at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from compress.checkpoint import Checkpoint
from edgesmith.errors import CheckpointError
from export.gguf.tensor_plan import FloatType, PlannedTensor

__all__ = ["encode", "encode_values", "read_values"]

_PIECE_BYTES = 16 << 20
_STORED: Mapping[str, str] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def encode(checkpoint: Checkpoint, tensor: PlannedTensor) -> Iterator[bytes | memoryview]:
    """Yield the bytes of one tensor of a GGUF file.

    A tensor whose rows keep their places is read in pieces; another one is held once, as it is stored.

    Raises:
        CheckpointError: a value is NaN or infinite, or too large for the type.
    """
    for part in tensor.experts or (tensor,):
        yield from _encode_one(checkpoint, part)


def _encode_one(checkpoint: Checkpoint, tensor: PlannedTensor) -> Iterator[bytes | memoryview]:
    stored = checkpoint.entries[tensor.source].dtype
    for values in _pieces(checkpoint, tensor):
        numbers = read_values(values, stored)
        if tensor.offset:
            numbers = numbers + np.float32(tensor.offset)
        if not np.isfinite(numbers).all():
            raise _not_finite(checkpoint, tensor)
        data = encode_values(numbers, tensor.dtype)
        if tensor.dtype == "f16" and not np.isfinite(data.astype(np.float16, copy=False)).all():
            raise _too_large(checkpoint, tensor, float(np.abs(numbers).max()))
        yield data.data.cast("B")


def _pieces(checkpoint: Checkpoint, tensor: PlannedTensor) -> Iterator[NDArray[np.generic]]:
    dtype = np.dtype(_STORED[checkpoint.entries[tensor.source].dtype])
    if tensor.rows is None and not tensor.transposed:
        for piece in checkpoint.chunks(tensor.source):
            yield np.frombuffer(piece, dtype)
        return
    whole = np.frombuffer(checkpoint.read(tensor.source), dtype)
    whole = whole.reshape(tensor.shape[::-1]).T if tensor.transposed else whole.reshape(-1, *tensor.shape[1:])
    rows = np.arange(tensor.shape[0]) if tensor.rows is None else tensor.rows
    step = max(1, _PIECE_BYTES // (dtype.itemsize * max(1, math.prod(tensor.shape[1:]))))
    for start in range(0, len(rows), step):
        yield np.ascontiguousarray(whole[rows[start : start + step]])


def read_values(values: NDArray[np.generic], stored: str) -> NDArray[np.float32]:
    """Widen stored values to float32, exactly.

    Args:
        values: As the checkpoint stores them; bfloat16 as uint16.
        stored: `F32`, `F16` or `BF16`.

    Returns:
        float32 of the same shape.
    """
    if stored == "BF16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32, copy=False)


def encode_values(numbers: NDArray[np.float32], dtype: FloatType) -> NDArray[np.generic]:
    """Round to nearest, ties to even.

    Args:
        numbers: Finite, float32.
        dtype: The type to be written.

    Returns:
        float32, float16, or uint16 that holds bfloat16; too large a number becomes infinite.

    >>> encode_values(np.array([1.0, 1.00390625], np.float32), "bf16").tolist()  # halfway: to the even one
    [16256, 16256]
    """
    match dtype:
        case "f32":
            return np.asarray(numbers, "<f4")
        case "f16":
            with np.errstate(over="ignore"):
                return numbers.astype(np.float16)
        case "bf16":
            bits = np.ascontiguousarray(numbers).view(np.uint32)
            rounding = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            return ((bits + rounding) >> np.uint32(16)).astype(np.uint16)


def _not_finite(checkpoint: Checkpoint, tensor: PlannedTensor) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.path_of(tensor.source)}: tensor {tensor.source!r} holds NaN or infinite values",
        mend="The weights were broken in training or on the way: take an earlier checkpoint, or train again.",
    )


def _too_large(checkpoint: Checkpoint, tensor: PlannedTensor, largest: float) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.path_of(tensor.source)}: tensor {tensor.source!r} holds {largest:g}, float16 ends at 65504",
        mend="Convert to bf16 or f32.",
    )
