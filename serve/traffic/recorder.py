"""A file with a line of JSON for each request.

It is never in the way: too many lines at once, or a full disk, cost lines and no request.
"""

from __future__ import annotations

import logging
import os
import stat
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from edgesmith.files import storage_errors
from serve.json_text import dump_json

__all__ = ["Line", "Recorder"]

_LOG = logging.getLogger(__name__)
_MAX_WAITING = 16_384
_CHUNK_LINES = 1024

Line: TypeAlias = "Callable[[], dict[str, Any]]"
"""Makes a line's content, in the background."""


class Recorder:
    """Appends lines to a file that only its owner may read.

    Lines are put on the loop's thread and written by another one. A file that has grown to `max_bytes` is renamed to
    `NAME.1`, over an older one, and a new one is begun: the two never take more than twice that.

    Args:
        path: The file; its folder must be there.
        max_bytes: Of one file.

    Attributes:
        num_lines: Written.
        num_dropped: Lines that came while too many waited, or after the recording had failed.
        failure: Why nothing is recorded any more; empty while all is well.

    Raises:
        StorageError: The file cannot be opened or written to.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self.path, self.max_bytes = path, max_bytes
        self.num_lines = self.num_dropped = 0
        self.failure = ""
        self._waiting: deque[Line] = deque()
        self._descriptor = -1
        with storage_errors(path):
            self._open()

    def put(self, line: Line) -> None:
        """Have a line written soon."""
        if self.failure or len(self._waiting) >= _MAX_WAITING:
            self.num_dropped += 1
        else:
            self._waiting.append(line)

    def flush(self) -> None:
        """Write what waits; in the background's thread."""
        while self._waiting and not self.failure:
            lines = [self._waiting.popleft() for _ in range(min(len(self._waiting), _CHUNK_LINES))]
            try:
                self._append(b"".join([dump_json(line()) + b"\n" for line in lines]))
            except OSError as error:
                self._fail(error, len(lines))
            else:
                self.num_lines += len(lines)

    def close(self) -> None:
        """Write what waits and close the file; closing twice is harmless."""
        self.flush()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def report(self) -> dict[str, Any]:
        """State for the page."""
        return {
            "file": self.path.name,
            "lines": self.num_lines,
            "dropped": self.num_dropped,
            "failure": self.failure or None,
        }

    def _open(self) -> None:
        # A link in its place could lead the lines elsewhere.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        self._descriptor = os.open(self.path, flags, 0o600)
        found = os.fstat(self._descriptor)
        self._is_file, self._size = stat.S_ISREG(found.st_mode), found.st_size
        if self._is_file:  # and no pipe or terminal, which is not ours to change or rename
            os.fchmod(self._descriptor, 0o600)

    def _append(self, data: bytes) -> None:
        if self._is_file and self._size and self._size + len(data) > self.max_bytes:
            os.close(self._descriptor)
            self._descriptor = -1
            self.path.replace(self.path.with_name(self.path.name + ".1"))
            self._open()
        written = 0
        while written < len(data):
            written += os.write(self._descriptor, data[written:])
        self._size += written

    def _fail(self, error: OSError, num_lost: int) -> None:
        self.failure = f"{self.path}: {error.strerror or error}"
        self.num_dropped += num_lost + len(self._waiting)
        self._waiting.clear()
        _LOG.warning("recording has stopped, answering goes on: %s", self.failure)
        if self._descriptor >= 0:
            try:
                os.ftruncate(self._descriptor, self._size)  # no half a line
            except OSError:
                _LOG.debug("the last line of %s may be cut", self.path)
            os.close(self._descriptor)
            self._descriptor = -1
