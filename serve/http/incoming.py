"""The place for a body whose length is known, filled by the system itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from serve.http.body_room import BodyRoom, Lease

__all__ = ["IncomingBody"]

_SMALL_BYTES = 64 << 10
_FIRST_BYTES = 4 << 20


class IncomingBody:
    """Memory that grows with what comes, not with what a client announces.

    Args:
        length: Bytes that are announced.
        room: Where a body that is not small takes its room from, for as long as anything looks at it.

    Attributes:
        length: Bytes that are announced.
        filled: Bytes that have come.

    Raises:
        OverloadedError: Bodies of other requests take all the memory that there is for them.
    """

    __slots__ = ("_room", "_small", "_view", "filled", "length")

    def __init__(self, length: int, room: BodyRoom) -> None:
        self.length = length
        self._room = room
        self.filled = 0
        self._small = bytearray(length) if length <= _SMALL_BYTES else None
        self._view = _allocate(min(length, _FIRST_BYTES), room) if self._small is None else memoryview(self._small)

    @property
    def is_whole(self) -> bool:
        """Whether all has come."""
        return self.filled == self.length

    def room(self) -> memoryview:
        """Where the next bytes belong; not empty while any are missing.

        Raises:
            OverloadedError: As above.
        """
        view = self._view
        if self.filled == len(view) and self.filled < self.length:
            self._view = _allocate(min(self.length, 2 * len(view)), self._room)
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


class _Leased(np.ndarray):
    """Memory that holds its lease, as does whatever is a view of it."""

    lease: Lease


def _allocate(num_bytes: int, room: BodyRoom) -> memoryview:
    """Memory that is not cleared first."""
    lease = Lease(room, num_bytes)
    empty: NDArray[np.uint8] = np.empty(num_bytes, np.uint8)
    memory = empty.view(_Leased)
    memory.lease = lease
    return memory.data
