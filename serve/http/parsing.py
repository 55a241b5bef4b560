"""Heads and chunks of requests, by llhttp, with what it leaves to its users checked.

llhttp cannot be stopped between two requests, so it is fed segments that end where a request can end: after an empty
line. It never sees bodies of known length; the parser is renewed behind them.
"""

from __future__ import annotations

from dataclasses import dataclass

import httptools

from serve.config import Limits
from serve.errors import MalformedError, RequestError
from serve.http.body_room import Lease
from serve.http.failures import HeadersTooLargeError, UrlTooLongError

__all__ = ["Chunks", "RequestHead", "RequestParser"]

_END = b"\r\n\r\n"
_METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")}
_SINGLE = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-api-key", b"expect", b"origin"}
)
_MAX_BESIDE_CHUNKS = 256 << 10
"""Bytes without any data among them, such as extensions of chunks and headers behind the last one."""


@dataclass(slots=True, eq=False)
class RequestHead:
    """The first line and the headers of a request.

    Attributes:
        method: In upper case.
        target: As it came.
        headers: By names in lower case; of equal ones the last.
        length: Of the body in bytes; 0 when there is none or it comes in chunks.
        is_chunked: Whether the body comes in chunks.
        is_http_1_0: Whether the client speaks HTTP/1.0.
        is_keep_alive: Whether the client expects to send more requests.
    """

    method: str
    target: bytes
    headers: dict[bytes, bytes]
    length: int
    is_chunked: bool
    is_http_1_0: bool
    is_keep_alive: bool


class Chunks(bytearray):
    """Data of chunks, with the room that it takes once it is large."""

    lease: Lease | None = None


class RequestParser:
    """Parses one connection's requests.

    Attributes:
        is_head_done: The head is whole: `take_head` gives it.
        is_message_done: The last chunk has come, too.
        head_bytes: Of a head that is not whole.
        chunks: Data of the chunks so far.
    """

    __slots__ = (
        "_beside_bytes",
        "_headers",
        "_is_upgrade",
        "_limits",
        "_num_repeated",
        "_parser",
        "_tail",
        "_url",
        "_violation",
        "chunks",
        "head_bytes",
        "is_head_done",
        "is_message_done",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parser: httptools.HttpRequestParser | None = None
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._num_repeated = 0  # headers whose name came before
        self._tail = b""  # the last three bytes that were fed, unless they ended a segment
        self._is_upgrade = False
        self._violation: RequestError | None = None
        self._beside_bytes = 0
        self.head_bytes = 0
        self.is_head_done = False
        self.is_message_done = False
        self.chunks = Chunks()

    def feed_head(self, data: bytearray, view: memoryview, start: int, end: int) -> int:
        """Parse on in the head of a request.

        Args:
            data: What was read.
            view: Of `data`.
            start: Where to begin.
            end: Where what was read ends.

        Returns:
            Up to where it was used: `end`, or where the head ends.

        Raises:
            RequestError: What the client is told; the connection must then be closed.
        """
        stop = self._segment_end(data, start, end)
        self.head_bytes += stop - start
        parser = self._parser
        if parser is None:
            self._parser = parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(view[start:stop])
        except httptools.HttpParserUpgrade:
            self._is_upgrade = True  # another protocol is offered, which need not be taken
        except httptools.HttpParserError as error:
            raise MalformedError(f"this is no acceptable HTTP request: {error}") from error
        limits = self._limits
        if len(self._url) > limits.max_url_bytes:
            raise UrlTooLongError(f"the URL has more than {limits.max_url_bytes:,} bytes")
        if self.head_bytes > limits.max_header_bytes:
            raise HeadersTooLargeError(f"the headers have more than {limits.max_header_bytes:,} bytes")
        if len(self._headers) + self._num_repeated > limits.max_headers:
            raise HeadersTooLargeError(f"there are more than {limits.max_headers} headers")
        return stop

    def take_head(self) -> RequestHead:
        """The head that is whole.

        Raises:
            MalformedError: It could mean different things to different servers.
        """
        parser, headers, target = self._parser, self._headers, self._url
        assert parser is not None
        is_upgrade, violation = self._is_upgrade, self._violation
        self._url, self._headers, self._violation = b"", {}, None
        self.head_bytes = self._num_repeated = self._beside_bytes = 0
        self.is_head_done = self.is_message_done = self._is_upgrade = False
        if violation is not None:
            raise violation
        version = parser.get_http_version()
        is_http_1_0 = version == "1.0"
        if version != "1.1" and not is_http_1_0:
            raise MalformedError(f"HTTP/{version} is not spoken here, only HTTP/1.1 and HTTP/1.0")
        is_chunked = b"transfer-encoding" in headers
        if is_chunked and (headers[b"transfer-encoding"].lower() != b"chunked" or is_http_1_0 or is_upgrade):
            raise MalformedError("the only transfer encoding here is chunked, in HTTP/1.1")
        if not is_http_1_0 and b"host" not in headers:
            raise MalformedError("the header Host is missing")
        length = int(headers[b"content-length"]) if b"content-length" in headers else 0
        method = parser.get_method()
        is_closing = b"connection" in headers and b"close" in headers[b"connection"].lower()
        if length or is_upgrade:
            self._parser = None
        return RequestHead(
            _METHODS.get(method) or method.decode("latin-1"),
            target,
            headers,
            length,
            is_chunked,
            is_http_1_0,
            not is_http_1_0 and not is_closing,
        )

    def feed_chunks(self, data: bytearray, view: memoryview, start: int, end: int) -> int:
        """Parse on in the chunks of a body; arguments and result as of `feed_head`.

        Raises:
            RequestError: What the client is told; the connection must then be closed.
        """
        stop = self._segment_end(data, start, end)
        before = len(self.chunks)
        assert self._parser is not None
        try:
            self._parser.feed_data(view[start:stop])
        except httptools.HttpParserError as error:
            raise MalformedError(f"the body's chunks are not acceptable: {error}") from error
        self._beside_bytes = self._beside_bytes + stop - start if len(self.chunks) == before else 0
        num_trailers = len(self._headers) + self._num_repeated
        if num_trailers > self._limits.max_headers or self._beside_bytes > _MAX_BESIDE_CHUNKS:
            raise HeadersTooLargeError("there is too much beside the data of the chunks")
        return stop

    def take_chunks(self) -> Chunks:
        """The body that came in chunks."""
        chunks, self.chunks = self.chunks, Chunks()
        self._headers, self._violation = {}, None
        self._num_repeated = 0
        self.is_head_done = self.is_message_done = False
        return chunks

    def forget(self) -> None:
        """Break the cycle with llhttp's wrapper, which holds our methods."""
        self._parser = None
        self.chunks = Chunks()

    def _segment_end(self, data: bytearray, start: int, end: int) -> int:
        """Where the next empty line ends, or `end`; the line may have begun in what was fed before."""
        tail = self._tail
        if tail:
            at = (tail + data[start : min(start + 3, end)]).find(_END)
            if at >= 0:
                self._tail = b""
                return start + at + 4 - len(tail)
        at = data.find(_END, start, end)
        if at >= 0:
            self._tail = b""
            return at + 4
        self._tail = bytes(tail + data[max(start, end - 3) : end])[-3:]
        return end

    # What httptools calls.

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; or one behind the last chunk, which nobody asked for."""
        name = name.lower()
        headers = self._headers
        if name in headers:
            self._num_repeated += 1
            if name in _SINGLE:
                self._violation = MalformedError(f"the header {name.decode()} comes twice")
            elif name == b"connection":
                value = headers[name] + b"," + value
        headers[name] = value

    def on_headers_complete(self) -> None:
        """The empty line."""
        self.is_head_done = True

    def on_body(self, data: bytes) -> None:
        """A part of a chunk."""
        self.chunks += data

    def on_message_complete(self) -> None:
        """The last chunk."""
        self.is_message_done = True
