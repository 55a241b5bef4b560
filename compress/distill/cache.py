"""What a teacher said, kept on disk: written once, piece by piece, and read as if it were in memory.

    FOLDER/FIELD.bin       one row of numbers for each item, all rows' items one after the other
    FOLDER/progress.json   how many rows are there; written after their numbers are on the disk

A killed process leaves whole pieces and at most one half of another, which is written again. Whoever comes second
waits, and finds it finished.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edgesmith.errors import StorageError
from edgesmith.files import atomic_write, hold_lock, storage_errors
from edgesmith.progress import SILENT, Progress
from edgesmith.units import format_bytes

__all__ = ["Field", "TeacherCache"]

_PROGRESS = "progress.json"
_SPARE_BYTES = 256 << 20
"""Disk that is left alone: checkpoints and the result need some."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One kind of number that is kept of every item."""

    dtype: DTypeLike
    width: int
    """Numbers of an item."""

    @property
    def item_bytes(self) -> int:
        """Of one item."""
        return np.dtype(self.dtype).itemsize * self.width


class TeacherCache:
    """A teacher's outputs for numbered rows, each of one or several items.

    Args:
        folder: Where they lie; made when filled.
        fields: What is kept, by name.
        counts: Items of each row, int64 of shape [num_rows].
        identity: Names teacher, rows and options: what lies there under another name is written anew.
    """

    def __init__(self, folder: Path, fields: Mapping[str, Field], counts: NDArray[np.int64], *, identity: str) -> None:
        self.folder = folder
        self.fields = dict(fields)
        self.identity = identity
        self._offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._arrays: dict[str, NDArray[np.generic]] = {}

    @property
    def num_rows(self) -> int:
        """Rows that it is for."""
        return len(self._offsets) - 1

    @property
    def size_bytes(self) -> int:
        """Of all files together, when it is full."""
        return int(self._offsets[-1]) * sum(field.item_bytes for field in self.fields.values())

    def fill(
        self,
        compute: Callable[[Sequence[int]], Mapping[str, NDArray[np.generic]]],
        *,
        piece_rows: int,
        progress: Progress = SILENT,
        description: str = "teacher",
    ) -> int:
        """Write what is missing.

        Args:
            compute: Row numbers → field → the rows' items, one after the other, of shape [num_items, width].
            piece_rows: Rows that are computed and written at once; a kill loses so many.
            progress: Told the size before anything is written, and how far it is.
            description: Of the bar.

        Returns:
            How many rows were computed now.

        Raises:
            StorageError: the disk has too little room, or cannot be written.
        """
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(self.folder):
            os.utime(self.folder)  # it is in use: what is old is removed some day
            done = self._num_done()
            if done < self.num_rows:
                self._announce(done, progress)
                self._write_from(done, compute, piece_rows, progress, description)
        return self.num_rows - done

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        """Read the items of some rows, one after the other: field → shape [num_items, width]."""
        spans = [slice(int(self._offsets[row]), int(self._offsets[row + 1])) for row in rows]
        found = {}
        for name in self.fields:
            array = self._open(name)
            found[name] = np.concatenate([array[span] for span in spans])
        return found

    def _announce(self, done: int, progress: Progress) -> None:
        missing = self.size_bytes - int(self._offsets[done]) * self.size_bytes // max(int(self._offsets[-1]), 1)
        kept = ", ".join(f"{field.width} {np.dtype(field.dtype)} {name}" for name, field in self.fields.items())
        resumed = f"; {done:,} rows are there" if done else ""
        progress.note(
            f"teacher's outputs: {format_bytes(self.size_bytes)} on disk for {int(self._offsets[-1]):,} items "
            f"({kept} each){resumed}"
        )
        free = shutil.disk_usage(self.folder).free
        if missing + _SPARE_BYTES > free:
            raise StorageError(
                f"{self.folder}: the teacher's outputs need {format_bytes(missing)}, and {format_bytes(free)} are free",
                mend="Free disk space, put the work elsewhere, or keep fewer predictions (cache_top_k).",
            )

    def _num_done(self) -> int:
        """Rows that lie there under this identity, in files of the right size."""
        try:
            state = json.loads((self.folder / _PROGRESS).read_text(encoding="utf-8"))
            done = int(state["num_rows"]) if state["identity"] == self.identity else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        sizes = {name: self._path(name).stat().st_size if self._path(name).is_file() else -1 for name in self.fields}
        is_whole = all(sizes[name] == self._offsets[-1] * field.item_bytes for name, field in self.fields.items())
        return done if is_whole and 0 <= done <= self.num_rows else 0

    def _write_from(
        self,
        done: int,
        compute: Callable[[Sequence[int]], Mapping[str, NDArray[np.generic]]],
        piece_rows: int,
        progress: Progress,
        description: str,
    ) -> None:
        with storage_errors(self.folder):
            for name, field in self.fields.items():
                self._path(name).touch()
                os.truncate(self._path(name), int(self._offsets[-1]) * field.item_bytes)
            with progress.bar(description, self.num_rows) as advance:
                advance(done)
                for start in range(done, self.num_rows, piece_rows):
                    rows = range(start, min(start + piece_rows, self.num_rows))
                    self._write_piece(rows, compute(rows))
                    state = {"identity": self.identity, "num_rows": rows.stop}
                    atomic_write(self.folder / _PROGRESS, json.dumps(state) + "\n")
                    advance(len(rows))

    def _write_piece(self, rows: range, found: Mapping[str, NDArray[np.generic]]) -> None:
        num_items = int(self._offsets[rows.stop] - self._offsets[rows.start])
        for name, field in self.fields.items():
            values = np.ascontiguousarray(found[name], field.dtype)
            assert values.shape == (num_items, field.width), (name, values.shape, num_items)
            with self._path(name).open("r+b") as file:
                file.seek(int(self._offsets[rows.start]) * field.item_bytes)
                file.write(values.tobytes())
                file.flush()
                os.fsync(file.fileno())

    def _open(self, name: str) -> NDArray[np.generic]:
        if name not in self._arrays:
            field = self.fields[name]
            shape = (int(self._offsets[-1]), field.width)
            self._arrays[name] = np.memmap(self._path(name), field.dtype, mode="r", shape=shape)
        return self._arrays[name]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.bin"
