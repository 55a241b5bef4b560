"""Reading and writing one safetensors file, distrustfully and a piece at a time.

The header is checked here before any library sees the file: a hostile or truncated file ends in a
`CheckpointError` with the numbers, never in a crash or a huge allocation. Tensors are read one at a time into
memory of their own, so that what is dropped is freed, and copied in pieces, so that a tensor that nobody
changes is never held whole.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from compress.tensor_header import DTYPE_BITS, TensorEntry, check_entries, pop_metadata, read_header
from edgesmith.errors import CheckpointError
from edgesmith.files import storage_errors

__all__ = [
    "TensorFile",
    "TensorFileWriter",
    "count_nonfinite",
]

CHUNK_BYTES = 16 << 20
_SCAN_BYTES = 1 << 20


class TensorFile:
    """A safetensors file whose header was found to be sound.

    Args:
        path: The file. Only its header is read now.

    Raises:
        CheckpointError: the header is damaged or hostile, or the file is shorter or longer than it says.
        StorageError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage_errors(path), path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            header, data_start = read_header(path, file, size_bytes)
        self.metadata = pop_metadata(path, header)
        self.entries = check_entries(path, header, data_start, size_bytes)

    def read(self, name: str) -> bytearray:
        """Read the bytes of one tensor into memory of their own.

        Raises:
            CheckpointError: the file became shorter since it was opened.
        """
        entry = self.entries[name]
        data = bytearray(entry.size_bytes)
        with storage_errors(self.path), self.path.open("rb") as file:
            file.seek(entry.start)
            _read_exactly(file, memoryview(data), entry, self.path)
        return data

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield the bytes of one tensor in pieces of at most 16 MiB; each is overwritten by the next.

        Raises:
            CheckpointError: the file became shorter since it was opened.
        """
        entry = self.entries[name]
        buffer = memoryview(bytearray(min(CHUNK_BYTES, entry.size_bytes)))
        with storage_errors(self.path), self.path.open("rb") as file:
            file.seek(entry.start)
            for done in range(0, entry.size_bytes, CHUNK_BYTES):
                piece = buffer[: min(CHUNK_BYTES, entry.size_bytes - done)]
                _read_exactly(file, piece, entry, self.path)
                yield piece

    def check_finite(self) -> None:
        """Look at every floating-point value.

        Raises:
            CheckpointError: a tensor holds a NaN or an infinity; the message names it and counts them.
        """
        for name, entry in self.entries.items():
            if not entry.is_floating:
                continue
            if count := sum(count_nonfinite(piece, entry.dtype) for piece in self.chunks(name)):
                raise nonfinite_error(self.path, name, count, math.prod(entry.shape))


def nonfinite_error(path: Path, name: str, count: int, num_values: int) -> CheckpointError:
    """Describe a tensor that holds values which are no numbers."""
    return CheckpointError(
        f"{path}: tensor {name!r} holds {count} NaN or infinite values out of {num_values}",
        mend="The weights were broken in training or on the way: take an earlier checkpoint, or train again.",
    )


def count_nonfinite(data: memoryview | bytearray, dtype: str) -> int:
    """Count the values that are NaN or infinite.

    Args:
        data: Raw little-endian values.
        dtype: As the format spells it; types without such values count 0.

    >>> count_nonfinite(bytearray(np.array([1, np.nan, np.inf], "<f4").tobytes()), "F32")
    2
    """
    view = memoryview(data)
    pieces = (view[start : start + _SCAN_BYTES] for start in range(0, len(view), _SCAN_BYTES))
    return sum(int(np.count_nonzero(_nonfinite(piece, dtype))) for piece in pieces)


def _nonfinite(data: memoryview, dtype: str) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = np.zeros(0, np.bool_)
    match dtype:
        case "F16" | "F32" | "F64":
            flags = ~np.isfinite(np.frombuffer(data, f"<f{DTYPE_BITS[dtype] // 8}"))
        case "C64":
            flags = ~np.isfinite(np.frombuffer(data, "<c8"))
        case "BF16":
            flags = (np.frombuffer(data, "<u2") & 0x7F80) == 0x7F80
        case "F8_E4M3":
            flags = (np.frombuffer(data, "u1") & 0x7F) == 0x7F
        case "F8_E5M2":
            flags = (np.frombuffer(data, "u1") & 0x7C) == 0x7C
        case "F8_E4M3FNUZ" | "F8_E5M2FNUZ":
            flags = np.frombuffer(data, "u1") == 0x80
    return flags


class TensorFileWriter:
    """Writes a safetensors file whose tensors arrive in any order, each once, each in pieces.

    Args:
        path: The new file.
        tensors: Name → (dtype, shape) of all tensors that will come. The layout depends on nothing else.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        self.path = path
        header, self._offsets = _lay_out(tensors)
        self._left = set(tensors)
        self.size_bytes = len(header) + sum(size for _, size in self._offsets.values())
        with storage_errors(path):
            self._file = path.open("wb", buffering=0)
            try:
                _write_all(self._file, header)
                # Reserving the place now makes a full disk known before the work, not after it.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(self._file.fileno(), 0, self.size_bytes)
            except OSError:
                self._file.close()
                raise

    def write(self, name: str, pieces: Iterable[memoryview | bytes | bytearray]) -> None:
        """Write one tensor.

        Raises:
            ValueError: it was written before, or the number of bytes is not the announced one.
            StorageError: the disk is full.
        """
        if name not in self._left:
            raise ValueError(f"{self.path}: {name!r} is unknown or was written before")
        start, size_bytes = self._offsets[name]
        written = 0
        with storage_errors(self.path):
            self._file.seek(start)
            for piece in pieces:
                written += _write_all(self._file, piece)
        if written != size_bytes:
            raise ValueError(f"{self.path}: {name!r} has {written} bytes, announced were {size_bytes}")
        self._left.remove(name)

    def close(self) -> None:
        """Flush the file to the disk.

        Raises:
            ValueError: a tensor was announced and not written.
            StorageError: the disk is full.
        """
        with storage_errors(self.path), self._file as file:
            os.fsync(file.fileno())
        if self._left:
            raise ValueError(f"{self.path}: never written: {sorted(self._left)}")

    def __enter__(self) -> TensorFileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


def _write_all(file: FileIO, piece: memoryview | bytes | bytearray) -> int:
    view = memoryview(piece).cast("B")
    written = 0
    while written < len(view):
        written += file.write(view[written:])
    return written


def _lay_out(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Lay tensors out as the reference writer does: wide elements first (so all are aligned), then by name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    sizes: dict[str, int] = {}
    position = 0
    for name in sorted(tensors, key=lambda name: (-DTYPE_BITS[tensors[name][0]], name)):
        dtype, shape = tensors[name]
        sizes[name] = math.prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [position, position + sizes[name]],
        }
        position += sizes[name]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data_start = 8 + len(text)
    offsets = {name: (data_start + header[name]["data_offsets"][0], size) for name, size in sizes.items()}
    return struct.pack("<Q", len(text)) + text, offsets


def _read_exactly(file: BinaryIO, target: memoryview, entry: TensorEntry, path: Path) -> None:
    got = file.readinto(target)  # type: ignore[attr-defined]
    if got != len(target):
        raise CheckpointError(
            f"{path}: became shorter while {entry.name!r} was read ({got} of {len(target)} bytes)",
            mend="Let nothing write to the checkpoint while it is being read.",
        )
