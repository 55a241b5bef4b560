"""Heads of answers as bytes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus

from serve.http.message import Buffer

__all__ = ["HeadWriter", "as_parts"]

_MAX_REMEMBERED = 256


class HeadWriter:
    """Writes status lines and headers; what repeats is kept ready.

    Args:
        has_date: Whether answers carry a `date`, which is renewed by `tick`.
    """

    def __init__(self, *, has_date: bool = True) -> None:
        self._starts: dict[tuple[int, bytes], bytes] = {}
        self._has_date = has_date
        self._date = b""
        self._second = 0
        self.tick()

    def tick(self) -> None:
        """Renew the date; to be called about once a second."""
        second = int(time.time())
        if self._has_date and second != self._second:
            self._second = second
            self._date = b"date: " + formatdate(second, usegmt=True).encode() + b"\r\n"

    def write(
        self, status: int, content_type: bytes, headers: Sequence[tuple[bytes, bytes]], framing: bytes, *, is_last: bool
    ) -> bytes:
        r"""Head of an answer, up to the empty line that ends it.

        Args:
            status: Of HTTP.
            content_type: Empty for none.
            headers: Further ones.
            framing: Line that says where the body ends, with its line break; empty for none.
            is_last: Whether the connection is closed after the answer.

        Raises:
            ValueError: A header holds a line break or NUL.
        """
        key = (status, content_type)
        start = self._starts.get(key)
        if start is None:
            start = self._start(status, content_type)
        end = b"connection: close\r\n\r\n" if is_last else b"\r\n"
        if not headers:
            return b"%b%b%b%b" % (start, self._date, framing, end)
        lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers) or b"\0" in lines:
            raise ValueError("a header of the answer holds a line break or NUL")
        return b"%b%b%b%b%b" % (start, self._date, lines, framing, end)

    def _start(self, status: int, content_type: bytes) -> bytes:
        if any(character in content_type for character in b"\r\n\0"):
            raise ValueError("the content type of the answer holds a line break or NUL")
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
        start = b"HTTP/1.1 %d %b\r\nserver: edgesmith\r\n" % (status, phrase.encode())
        if content_type:
            start += b"content-type: %b\r\n" % content_type
        if len(self._starts) < _MAX_REMEMBERED:
            self._starts[(status, content_type)] = start
        return start


def as_parts(body: Buffer | Sequence[Buffer]) -> tuple[list[Buffer], int]:
    """The buffers of a body that hold something, none of them copied, and how many bytes they have together."""
    if isinstance(body, (bytes, bytearray)):
        return ([body], len(body)) if body else ([], 0)
    if isinstance(body, memoryview):
        body = (body,)
    parts: list[Buffer] = []
    size = 0
    for part in body:
        if isinstance(part, memoryview):
            length = part.nbytes
            if length and (part.ndim != 1 or part.itemsize != 1):
                part = part.cast("B")  # transports count in items
        else:
            length = len(part)
        if length:
            parts.append(part)
            size += length
    return parts, size
