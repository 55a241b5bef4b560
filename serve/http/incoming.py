"""The place for a body whose length is known, filled by the system itself."""

from __future__ import annotations

import numpy as np

__all__ = ["IncomingBody"]

_SMALL_BYTES = 64 << 10
_FIRST_BYTES = 4 << 20


class IncomingBody:
    """Memory that grows with what comes, not with what a client announces.

    Attributes:
        length: Bytes that are announced.
        filled: Bytes that have come.
    """

    __slots__ = ("_small", "_view", "filled", "length")

    def __init__(self, length: int) -> None:
        self.length = length
        self.filled = 0
        self._small = bytearray(length) if length <= _SMALL_BYTES else None
        self._view = _allocate(min(length, _FIRST_BYTES)) if self._small is None else memoryview(self._small)

    @property
    def is_whole(self) -> bool:
        """Whether all has come."""
        return self.filled == self.length

    def room(self) -> memoryview:
        """Where the next bytes belong; not empty while any are missing."""
        view = self._view
        if self.filled == len(view) and self.filled < self.length:
            self._view = _allocate(min(self.length, 2 * len(view)))
            self._view[: self.filled] = view
        return self._view[self.filled :]

    def add(self, piece: memoryview) -> None:
        """Copy a piece to its place."""
        while len(piece):
            room = self.room()
            taken = min(len(piece), len(room))
            room[:taken] = piece[:taken]
            self.filled += taken
            piece = piece[taken:]

    def take(self) -> bytearray | memoryview:
        """What has come."""
        return self._view if self._small is None else self._small


def _allocate(num_bytes: int) -> memoryview:
    """Memory that is not cleared first."""
    return np.empty(num_bytes, np.uint8).data
