"""Requests and responses, as the handlers see them whatever carries them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

__all__ = ["Buffer", "Handler", "Headers", "Request", "Response", "Stream"]

Buffer: TypeAlias = "bytes | bytearray | memoryview"
Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Response:
    """An answer that is whole.

    Attributes:
        status: Of HTTP.
        body: One buffer, or several that are written one after the other without being copied together.
        content_type: Such as `application/json`.
        headers: Further ones, names in lower case.
    """

    status: int = 200
    body: Buffer | Sequence[Buffer] = b""
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Stream(Protocol):
    """An answer that is written piece by piece, on the loop's thread."""

    @property
    def is_closed(self) -> bool:
        """Whether the client has gone, so that writing is useless."""

    def write(self, data: bytes) -> None:
        """Send a piece; after the client has gone nothing happens."""

    async def drain(self) -> None:
        """Wait while the client is slower than we are."""

    def end(self) -> None:
        """Finish the answer. Ending twice is harmless."""


class Request(Protocol):
    """A request whose headers and body have come. All methods are for the loop's thread."""

    method: str
    path: str
    """Percent-decoded, without the query."""
    query: str
    """As it came, without the question mark."""
    body: bytes | bytearray | memoryview
    params: dict[str, str]
    """What the route's pattern found in the path."""
    peer: str
    """Address of the client, without port."""
    received_ns: int
    """`time.monotonic_ns()` when the last byte was there."""

    @property
    def is_closed(self) -> bool:
        """Whether the client has gone."""

    def header(self, name: bytes) -> bytes | None:
        """A header's value by its name in lower case; of several equal ones the last."""

    def on_close(self, callback: Callable[[], None] | None) -> None:
        """Call once if the client goes before it is answered; None takes the callback back."""

    def respond(self, response: Response) -> None:
        """Answer; only once, and not after `stream`. The body's buffers must not be changed afterwards."""

    def fail(self, error: BaseException) -> None:
        """Answer with the error, in the form of the route's protocol; for failures that come to light in callbacks.

        A coroutine or handler that raises needs no call. What no client may see is logged and answered with 500.
        After `stream` the connection is cut, so that the client sees that the answer is not whole.
        """

    def stream(self, status: int, content_type: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Stream:
        """Begin an answer of unknown length."""


Handler: TypeAlias = Callable[[Request], Awaitable[None] | None]
"""Answers a request: at once, later from a callback (and then it returns None), or in a coroutine. What it raises
becomes an error answer."""
