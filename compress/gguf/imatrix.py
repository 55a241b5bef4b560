"""Read and write importance matrices in llama.cpp's file formats: GGUF, and reading the older `.dat`.

A file is somebody else's bytes: every length is checked against what is left of it, every count against a limit.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/imatrix/imatrix.cpp and docs/gguf.md of ggml.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.gguf.imatrix_data import Imatrix, ImatrixEntry
from edgesmith.errors import ArtifactError, UsageError
from edgesmith.files import atomic_write, storage_errors

__all__ = ["Imatrix", "ImatrixEntry", "read_imatrix", "write_imatrix"]

MAX_ENTRIES = 1 << 16
MAX_KEYS = 1 << 10
MAX_TEXT_BYTES = 1 << 16
MAX_NAME_BYTES = 63
MAX_FILE_BYTES = 1 << 33
ALIGNMENT = 32
# The older format counts windows but not their tokens; llama.cpp's own reader takes its default length.
LEGACY_WINDOW = 512

_U32, _STRING, _ARRAY = 4, 8, 9
_SCALARS: Mapping[int, str] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", _U32: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_SUMS, _COUNTS = ".in_sum2", ".counts"
_MEND = "Collect it again, or get it again from where it was made."


def read_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix of either format.

    Raises:
        ArtifactError: it is something else, truncated, damaged or hostile.
        StorageError: it cannot be read.
    """
    with storage_errors(path):
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ArtifactError(f"{path}: has {size:,} bytes, more than any importance matrix", mend=_MEND)
        content = path.read_bytes()
    try:
        return _read_gguf(_Cursor(content)) if content[:4] == b"GGUF" else _read_legacy(_Cursor(content))
    except (_FormatError, UnicodeDecodeError, UsageError) as error:
        what = error.message if isinstance(error, UsageError) else str(error)
        raise ArtifactError(f"{path}: is no importance matrix, or is damaged: {what}", mend=_MEND) from error


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write an importance matrix as llama.cpp does; the same matrix gives the same bytes.

    Sums are stored in float32, as the format has them.

    Raises:
        UsageError: it is empty, or a name is too long for the format.
        StorageError: the file cannot be written.
    """
    if not imatrix.entries:
        raise UsageError("the importance matrix is empty", mend="Collect it on some text.")
    arrays: list[tuple[str, NDArray[np.float32]]] = []
    for name, entry in sorted(imatrix.entries.items()):
        arrays.append((name + _SUMS, entry.sums.astype("<f4")))
        arrays.append((name + _COUNTS, entry.counts.astype("<f4")[:, None]))
    keys = [
        _text("general.type") + struct.pack("<I", _STRING) + _text("imatrix"),
        _text("imatrix.datasets") + struct.pack("<IIQ", _ARRAY, _STRING, len(imatrix.datasets))
        + b"".join(map(_text, imatrix.datasets)),
        _text("imatrix.chunk_count") + struct.pack("<II", _U32, imatrix.num_windows),
        _text("imatrix.chunk_size") + struct.pack("<II", _U32, imatrix.window_length),
    ]  # fmt: skip
    infos, data = [], []
    offset = 0
    for name, array in arrays:
        if len(name.encode()) > MAX_NAME_BYTES:
            raise UsageError(f"{name!r} is longer than the {MAX_NAME_BYTES} bytes that the format has for a name")
        num_experts, width = array.shape
        infos.append(_text(name) + struct.pack("<IQQIQ", 2, width, num_experts, 0, offset))
        data.append(_padded(array.tobytes()))
        offset += len(data[-1])
    header = b"GGUF" + struct.pack("<IQQ", 3, len(arrays), len(keys)) + b"".join(keys) + b"".join(infos)
    atomic_write(path, _padded(header) + b"".join(data))


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % ALIGNMENT)


class _FormatError(Exception):
    """The bytes do not follow the format."""


class _Cursor:
    """Walks the bytes of a file."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.position = 0

    def take(self, size: int, what: str) -> bytes:
        """The next bytes."""
        if not 0 <= size <= len(self.content) - self.position:
            left = len(self.content) - self.position
            raise _FormatError(f"{what} claims {size:,} bytes where {left:,} are left")
        start, self.position = self.position, self.position + size
        return self.content[start : self.position]

    def number(self, layout: str) -> Any:
        """The next number."""
        return struct.unpack(layout, self.take(struct.calcsize(layout), "a number"))[0]

    def count(self, layout: str, what: str, limit: int) -> int:
        """A number that counts something."""
        value = int(self.number(layout))
        if not 0 <= value <= limit:
            raise _FormatError(f"it claims {value:,} {what}, the limit is {limit:,}")
        return value

    def text(self, layout: str, limit: int = MAX_TEXT_BYTES) -> str:
        """A text with its length before it."""
        return self.take(self.count(layout, "bytes of text", limit), "a text").decode()

    def floats(self, start: int, num_values: int, what: str) -> NDArray[np.float64]:
        """Values that lie somewhere, as doubles."""
        if start + 4 * num_values > len(self.content):
            raise _FormatError(f"{what} ends at byte {start + 4 * num_values:,} of {len(self.content):,}: truncated")
        return np.frombuffer(self.content, "<f4", num_values, start).astype(np.float64)


def _read_gguf(cursor: _Cursor) -> Imatrix:
    cursor.take(4, "the magic number")
    if (version := cursor.number("<I")) not in (2, 3):
        raise _FormatError(f"it is of GGUF version {version}, not 2 or 3")
    num_tensors = cursor.count("<Q", "tensors", 3 * MAX_ENTRIES)
    keys: dict[str, Any] = {}
    for _ in range(cursor.count("<Q", "keys", MAX_KEYS)):
        key = cursor.text("<Q")
        if key in keys:
            raise _FormatError(f"the key {key!r} appears twice")
        keys[key] = _value(cursor, key)
    if keys.get("general.type") != "imatrix":
        raise _FormatError(f"general.type is {keys.get('general.type')!r}, not 'imatrix'")
    windows, length, datasets = (keys.get(f"imatrix.{key}") for key in ("chunk_count", "chunk_size", "datasets"))
    if type(windows) is not int or type(length) is not int or not isinstance(datasets, list):
        raise _FormatError("imatrix.chunk_count, imatrix.chunk_size or imatrix.datasets is missing or no such value")
    places = _read_places(cursor, num_tensors)
    alignment = keys.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise _FormatError(f"the alignment is {alignment!r}, not a power of two")
    start = cursor.position + -cursor.position % alignment
    return Imatrix(
        entries=_read_entries(cursor, places, start),
        datasets=tuple(map(str, datasets)),
        num_windows=max(0, windows),
        window_length=max(0, length),
    )


def _value(cursor: _Cursor, key: str) -> Any:
    kind = cursor.number("<I")
    if kind == _STRING:
        return cursor.text("<Q")
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    inner = int(cursor.number("<I")) if kind == _ARRAY else -1
    if inner == _STRING:
        return [cursor.text("<Q") for _ in range(cursor.count("<Q", f"texts in {key!r}", MAX_ENTRIES))]
    if inner in _SCALARS:
        length = cursor.count("<Q", f"values in {key!r}", MAX_FILE_BYTES)
        cursor.take(length * struct.calcsize(_SCALARS[inner]), f"the array {key!r}")
        return None
    raise _FormatError(f"{key!r} has the unknown type {inner if kind == _ARRAY else kind}")


def _read_places(cursor: _Cursor, num_tensors: int) -> dict[str, tuple[tuple[int, int], int]]:
    """Shape (as [E, I]) and offset of each tensor."""
    places: dict[str, tuple[tuple[int, int], int]] = {}
    for _ in range(num_tensors):
        name = cursor.text("<Q", MAX_NAME_BYTES)
        if name in places:
            raise _FormatError(f"the tensor {name!r} appears twice")
        shape = [int(cursor.number("<Q")) for _ in range(cursor.count("<I", "dimensions", 4))]
        kind, offset = cursor.number("<I"), int(cursor.number("<Q"))
        if kind != 0 or not shape or min(shape) < 1 or math.prod(shape) > MAX_FILE_BYTES or math.prod(shape[2:]) != 1:
            raise _FormatError(f"{name!r} is of type {kind} and shape {shape}, expected a table of float32")
        places[name] = (shape[1] if len(shape) > 1 else 1, shape[0]), offset
    return places


def _read_entries(
    cursor: _Cursor, places: Mapping[str, tuple[tuple[int, int], int]], start: int
) -> Mapping[str, ImatrixEntry]:
    entries = {}
    for name in sorted(places):
        if not name.endswith(_SUMS):
            continue
        base = name.removesuffix(_SUMS)
        (num_experts, width), offset = places[name]
        counted, counts_offset = places.get(base + _COUNTS, ((0, 0), 0))
        if counted != (num_experts, 1):
            raise _FormatError(f"{base!r} has sums of shape {[num_experts, width]} and counts of shape {list(counted)}")
        sums = cursor.floats(start + offset, num_experts * width, name).reshape(num_experts, width)
        entries[base] = ImatrixEntry(sums, cursor.floats(start + counts_offset, num_experts, base + _COUNTS))
    if not entries:
        raise _FormatError("it has no entries")
    return MappingProxyType(entries)


def _read_legacy(cursor: _Cursor) -> Imatrix:
    entries: dict[str, ImatrixEntry] = {}
    num_entries = cursor.count("<i", "entries", MAX_ENTRIES)
    if num_entries == 0:
        raise _FormatError("it has no entries")
    for _ in range(num_entries):
        name = cursor.text("<i", MAX_NAME_BYTES)
        num_windows = cursor.count("<i", "windows", 1 << 30)
        num_values = cursor.count("<i", "values", MAX_FILE_BYTES)
        if name in entries or not name or num_values == 0:
            raise _FormatError(f"the entry {name!r} is empty or appears twice")
        values = np.frombuffer(cursor.take(4 * num_values, f"the entry {name!r}"), "<f4").astype(np.float64)
        # What is stored is the mean times the number of windows.
        entries[name] = ImatrixEntry(
            values[None, :] * LEGACY_WINDOW, np.array([max(1, num_windows) * LEGACY_WINDOW], np.float64)
        )
    left = len(cursor.content) - cursor.position
    last_window = cursor.count("<i", "windows", 1 << 30) if left else 0
    dataset = cursor.text("<i") if left > 4 else ""
    if cursor.position != len(cursor.content):
        raise _FormatError(f"{len(cursor.content) - cursor.position:,} bytes are left over at its end")
    return Imatrix(
        entries=MappingProxyType(dict(sorted(entries.items()))),
        datasets=(dataset,) if dataset else (),
        num_windows=last_window,
        window_length=LEGACY_WINDOW,
    )
