"""The header of a safetensors file, checked entry by entry before anything believes it.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edgesmith.errors import CheckpointError

__all__ = ["DTYPE_BITS", "TensorEntry", "check_entries", "pop_metadata", "read_header"]

_HEADER_LIMIT_BYTES = 100_000_000
_MAX_DIMENSIONS = 16
_COPY_AGAIN = "Copy or download the file again, or have it saved again from its source."

# dtype → bits an element, and the NumPy type whose buffer carries the bytes.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Where a tensor's bytes lie in its file."""

    name: str
    dtype: str
    """As the format spells it: `F32`, `BF16`, …"""
    shape: tuple[int, ...]
    start: int
    """Offset of the first byte, from the start of the file."""
    size_bytes: int

    @property
    def is_floating(self) -> bool:
        """Whether its values can be NaN or infinite."""
        return self.dtype.startswith(("F", "BF", "C"))


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: not a sound safetensors file: {what}", mend=_COPY_AGAIN)


def read_header(path: Path, file: BinaryIO, size_bytes: int) -> tuple[dict[str, Any], int]:
    """Read and parse the header.

    Returns:
        The header, and the position at which the data begins.

    Raises:
        CheckpointError: it is longer than the file or than 100 MB, or no JSON object in UTF-8.
    """
    prefix = file.read(8)
    if len(prefix) < 8:
        raise _damaged(path, f"{size_bytes} bytes long, the header alone needs at least 10")
    (length,) = struct.unpack("<Q", prefix)
    if length > _HEADER_LIMIT_BYTES:
        raise _damaged(path, f"header of {length} bytes, the limit is {_HEADER_LIMIT_BYTES}")
    if 8 + length > size_bytes:
        raise _damaged(path, f"truncated inside the header: expected {8 + length} bytes, the file has {size_bytes}")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise _damaged(path, "the header does not start with '{'")
    try:
        header = json.loads(text.decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"the header is not JSON in UTF-8 ({error})") from error
    return header, 8 + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} appears twice")
    return result


def pop_metadata(path: Path, header: dict[str, Any]) -> dict[str, str]:
    """Take the metadata out of a header.

    Raises:
        CheckpointError: it does not map strings to strings.
    """
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "__metadata__ must map strings to strings")
    return metadata


def check_entries(path: Path, header: dict[str, Any], data_start: int, size_bytes: int) -> dict[str, TensorEntry]:
    """Check all tensors of a header: they must fill the file without holes and without overlap.

    Args:
        path: For messages.
        header: Without metadata.
        data_start: Position at which the data begins.
        size_bytes: Of the file.

    Raises:
        CheckpointError: an entry is malformed, or the file is shorter or longer than its entries.
    """
    entries = [_check_entry(path, name, value, data_start) for name, value in header.items()]
    position = data_start
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.size_bytes)):
        if entry.start != position:
            raise _damaged(path, f"{entry.name!r} starts at byte {entry.start}, expected {position}: hole or overlap")
        position += entry.size_bytes
    if position != size_bytes:
        word = "truncated" if size_bytes < position else "too long"
        raise _damaged(path, f"{word}: expected {position} bytes, the file has {size_bytes}")
    return {entry.name: entry for entry in sorted(entries, key=lambda entry: entry.start)}


def _check_entry(path: Path, name: str, value: Any, data_start: int) -> TensorEntry:
    if not name.isprintable():
        raise _damaged(path, f"{name!r} is no tensor name")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"{name!r} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _damaged(path, f"{name!r} has the unknown dtype {dtype!r}")
    if not _are_sizes(shape):
        raise _damaged(path, f"{name!r} has the impossible shape {shape!r}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, f"{name!r} has the impossible offsets {offsets!r}")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise _damaged(path, f"{name!r} takes {offsets[1] - offsets[0]} bytes, {dtype} of {shape} needs {bits / 8:g}")
    return TensorEntry(name=name, dtype=dtype, shape=tuple(shape), start=data_start + offsets[0], size_bytes=bits // 8)


def _are_sizes(values: Any) -> bool:
    return (
        isinstance(values, list)
        and len(values) <= _MAX_DIMENSIONS
        and all(type(value) is int and 0 <= value < 1 << 62 for value in values)
    )
