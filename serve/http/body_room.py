"""How much memory the bodies of all requests together may take, until the last of those who look at one lets go."""

from __future__ import annotations

import gc
import time
from collections import deque
from typing import Final

from serve.errors import OverloadedError

__all__ = ["BodyRoom", "Lease", "default_room"]

_LEAST_BYTES: Final = 256 << 20
_LARGEST_AT_ONCE: Final = 4
_COLLECT_EVERY_S: Final = 1.0


def default_room(max_body_bytes: int) -> int:
    """Room in bytes for a server that takes bodies of at most `max_body_bytes`."""
    return max(_LARGEST_AT_ONCE * max_body_bytes, _LEAST_BYTES)


class BodyRoom:
    """Gives room for bodies, and refuses when there is none: nobody waits for room, so that nobody waits for ever.

    Args:
        limit: In bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._returned: deque[int] = deque()  # what is let go of on any thread; an append needs no lock
        self._collected_s = 0.0

    @property
    def taken(self) -> int:
        """Bytes that are taken now."""
        while self._returned:
            self._taken -= self._returned.popleft()
        return self._taken

    def take(self, num_bytes: int) -> None:
        """Take room, on the loop's thread.

        Raises:
            OverloadedError: There is not enough.
        """
        if self.taken + num_bytes > self.limit:
            self._collect()
            if self.taken + num_bytes > self.limit:
                raise OverloadedError(
                    f"bodies of other requests take {self._taken >> 20} MB of memory", mend="Try again in a second."
                )
        self._taken += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Return room, on any thread."""
        self._returned.append(num_bytes)

    def _collect(self) -> None:
        """Free bodies that only reference cycles still hold, before anybody is refused for them."""
        now = time.monotonic()
        if now - self._collected_s > _COLLECT_EVERY_S:
            self._collected_s = now
            gc.collect()


class Lease:
    """Room that is given back when this object goes; what holds the memory holds it too."""

    __slots__ = ("_num_bytes", "_room")

    def __init__(self, room: BodyRoom, num_bytes: int = 0) -> None:
        self._room = room
        self._num_bytes = 0
        self.grow(num_bytes)

    def grow(self, num_bytes: int) -> None:
        """Have at least so many bytes.

        Raises:
            OverloadedError: There is not enough room.
        """
        if num_bytes > self._num_bytes:
            self._room.take(num_bytes - self._num_bytes)
            self._num_bytes = num_bytes

    def __del__(self) -> None:
        self._room.give_back(self._num_bytes)
