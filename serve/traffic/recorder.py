"""A file with a line of JSON for each request.

It is never in the way: too many lines at once, or a full disk, cost lines and no request. Once there is room again the
recording goes on, with a line that says what is missing.
"""

from __future__ import annotations

import logging
import os
import stat
import time
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
        retry_s: After an error, until the next try.

    Attributes:
        num_lines: Written.
        num_dropped: Lines that came while too many waited or nothing could be written, or that could not be made.
        num_gaps: How often nothing could be written for a while.
        failure: Why nothing is recorded now; empty while all is well.

    Raises:
        StorageError: The file cannot be opened or written to.
    """

    def __init__(self, path: Path, *, max_bytes: int, retry_s: float = 30.0) -> None:
        self.path, self.max_bytes = path, max_bytes
        self.num_lines = self.num_dropped = self.num_gaps = 0
        self.failure = ""
        self._retry_s, self._retry_at_s = retry_s, 0.0
        self._dropped_before = 0
        self._is_closed = self._has_broken_lines = False
        self._waiting: deque[Line] = deque()
        self._descriptor = -1
        with storage_errors(path):
            self._open()

    def put(self, line: Line) -> None:
        """Have a line written soon."""
        if self.failure or self._is_closed or len(self._waiting) >= _MAX_WAITING:
            self.num_dropped += 1
        else:
            self._waiting.append(line)

    def flush(self) -> None:
        """Write what waits; in the background's thread."""
        if self.failure and time.monotonic() >= self._retry_at_s and not self._is_closed:
            self._go_on()
        while self._waiting and not self.failure:
            lines = [self._waiting.popleft() for _ in range(min(len(self._waiting), _CHUNK_LINES))]
            made = [text for line in lines if (text := self._make(line)) is not None]
            try:
                self._append(b"".join(made))
            except OSError as error:
                self._fail(error, len(made))
            else:
                self.num_lines += len(made)

    def close(self) -> None:
        """Write what waits and close the file; closing twice is harmless."""
        self.flush()
        self._is_closed = True
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def report(self) -> dict[str, Any]:
        """State for the page."""
        return {
            "file": self.path.name,
            "lines": self.num_lines,
            "dropped": self.num_dropped,
            "gaps": self.num_gaps,
            "failure": self.failure or None,
        }

    def _open(self) -> None:
        # A link in its place could lead the lines elsewhere.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        # Nobody waits for somebody to read a pipe.
        self._descriptor = os.open(self.path, flags | getattr(os, "O_NONBLOCK", 0), 0o600)
        os.set_blocking(self._descriptor, True)
        found = os.fstat(self._descriptor)
        self._is_file, self._size = stat.S_ISREG(found.st_mode), found.st_size
        if self._is_file:  # and no pipe or terminal, which is not ours to change or rename
            os.fchmod(self._descriptor, 0o600)

    def _make(self, line: Line) -> bytes | None:
        """The line's text; None, and counted, where its content breaks the making: the others are written."""
        try:
            return dump_json(line()) + b"\n"
        except Exception:  # noqa: BLE001 - the other lines are to be written all the same
            self.num_dropped += 1
            if not self._has_broken_lines:
                self._has_broken_lines = True
                _LOG.exception("a line could not be recorded; further ones are counted and not reported")
            return None

    def _go_on(self) -> None:
        """Try to write again, beginning with a line that says what is missing."""
        missing = self.num_dropped - self._dropped_before
        line = {"kind": "gap", "time": round(time.time(), 6), "lost": missing, "reason": self.failure}
        try:
            if self._descriptor < 0:
                self._open()
            self._append(dump_json(line) + b"\n")
        except OSError as error:
            self._abandon(error)
        else:
            self.failure = ""
            _LOG.warning("recording goes on; %d lines are missing", missing)

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
        self._dropped_before = self.num_dropped
        self._abandon(error)  # no further line is put
        self.num_gaps += 1
        self.num_dropped += num_lost + len(self._waiting)
        self._waiting.clear()
        _LOG.warning("recording has stopped, answering goes on: %s", self.failure)

    def _abandon(self, error: OSError) -> None:
        """Close the file until the next try."""
        self.failure = f"{self.path}: {error.strerror or error}"
        self._retry_at_s = time.monotonic() + self._retry_s
        if self._descriptor >= 0:
            try:
                os.ftruncate(self._descriptor, self._size)  # no half a line
            except OSError:
                _LOG.debug("the last line of %s may be cut", self.path)
            os.close(self._descriptor)
            self._descriptor = -1
