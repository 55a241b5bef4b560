"""Arrays in little room, restored bit for bit: differences along the last axis, bytes of equal weight together."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from gzip import GzipFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.raw import compress

__all__ = ["describe", "pack", "unpack"]

_DTYPES = ("<u2", "<u4", "<i4", "<f4", "|b1")
_MAX_BYTES = 1 << 32


def describe(arrays: Mapping[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """Names, types and shapes, JSON-able: what `unpack` needs."""
    return [{"name": name, "dtype": _little(one).str, "shape": list(one.shape)} for name, one in arrays.items()]


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Compress arrays; the same arrays give the same bytes."""
    return compress(b"".join(_shuffle(one) for one in arrays.values()))


def unpack(content: bytes, columns: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    """Restore what `pack` was given.

    Args:
        content: Its result.
        columns: What `describe` says of the arrays.

    Raises:
        ValueError: The content is not of these arrays.
        zlib.error, EOFError, OSError: It is damaged.
    """
    shapes = [tuple(int(size) for size in one["shape"]) for one in columns]
    if any(
        one["dtype"] not in _DTYPES or min(shape, default=0) < 0 for one, shape in zip(columns, shapes, strict=True)
    ):
        raise ValueError("a column of an unknown kind")
    types = [np.dtype(one["dtype"]) for one in columns]
    sizes = [math.prod(shape) * kind.itemsize for shape, kind in zip(shapes, types, strict=True)]
    whole = sum(sizes)
    if whole > _MAX_BYTES:
        raise ValueError(f"{whole:,} bytes are more than any measurement has")
    with GzipFile(fileobj=io.BytesIO(content)) as file:
        data = file.read(whole + 1)
    if len(data) != whole:
        raise ValueError(f"{len(data):,} bytes or more instead of {whole:,}")
    found, start = {}, 0
    for one, shape, kind, size in zip(columns, shapes, types, sizes, strict=True):
        found[str(one["name"])] = _restore(data[start : start + size], shape, kind)
        start += size
    return found


def _little(array: NDArray[Any]) -> np.dtype[Any]:
    return array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype


def _bits(kind: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"<u{kind.itemsize}" if kind.itemsize > 1 else "u1")


def _shuffle(array: NDArray[Any]) -> bytes:
    kind = _little(array)
    bits = np.ascontiguousarray(array, dtype=kind).view(_bits(kind))
    steps = bits.copy()
    if bits.ndim:
        steps[..., 1:] -= bits[..., :-1]  # unsigned: wraps around
    return steps.view(np.uint8).reshape(-1, kind.itemsize).T.tobytes()


def _restore(data: bytes, shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    planes = np.frombuffer(data, dtype=np.uint8).reshape(kind.itemsize, -1)
    steps = np.ascontiguousarray(planes.T).view(_bits(kind)).reshape(shape)
    bits = np.cumsum(steps, axis=-1, dtype=_bits(kind)) if steps.ndim else steps
    return np.ascontiguousarray(bits).view(kind)
