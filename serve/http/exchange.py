"""One request and its answer on a connection of our own server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from serve.http.failures import answer_failure
from serve.http.message import Headers, Response
from serve.http.router import Route

if TYPE_CHECKING:
    from serve.http.connection import Connection
    from serve.http.parsing import RequestHead

__all__ = ["Exchange", "ExchangeStream"]

_LOG = logging.getLogger(__name__)

_JOIN_BYTES = 16 << 10  # below, copying a piece costs less than a further buffer


class Exchange:
    """A `serve.http.message.Request`."""

    __slots__ = (
        "_connection",
        "_is_gone",
        "_on_close",
        "_stream",
        "_task",
        "body",
        "extra",
        "headers",
        "is_head",
        "is_http_1_0",
        "is_keep_alive",
        "method",
        "params",
        "path",
        "peer",
        "query",
        "received_ns",
        "refusal",
        "route",
    )

    def __init__(self, connection: Connection, head: RequestHead, path: str, query: str) -> None:
        self.method = head.method
        self.path = path
        self.query = query
        self.headers = head.headers
        self.body: bytes | bytearray | memoryview = b""
        self.params: dict[str, str] = {}
        self.peer = connection.peer
        self.received_ns = 0
        self.route: Route | None = None
        self.refusal: Response | None = None
        self.extra: Headers = ()
        self.is_head = head.method == "HEAD"
        self.is_http_1_0 = head.is_http_1_0
        self.is_keep_alive = head.is_keep_alive
        self._connection: Connection | None = connection
        self._is_gone = False
        self._on_close: Callable[[], None] | None = None
        self._stream: ExchangeStream | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the client has gone."""
        return self._is_gone

    def header(self, name: bytes) -> bytes | None:
        """A header's value by its name in lower case; of several equal ones the last."""
        return self.headers.get(name)

    def on_close(self, callback: Callable[[], None] | None) -> None:
        """Call once if the client goes before it is answered; None takes the callback back."""
        self._on_close = callback

    def respond(self, response: Response) -> None:
        """Answer; only once, and not after `stream`.

        Raises:
            RuntimeError: It was answered before.
        """
        connection = self._connection
        if connection is None or self._stream is not None:
            if self._is_gone:
                return
            raise RuntimeError(f"{self.method} {self.path} was answered twice")
        self._connection = self._on_close = None
        connection.send(self, response)

    def fail(self, error: BaseException) -> None:
        """Answer with the error; a stream that has begun is cut."""
        connection = self._connection
        if self._is_gone:
            return
        response = answer_failure(error, self.route)  # logs what must be
        if connection is None:
            return
        if self._stream is None:
            self.respond(response)
        else:
            self.finish()
            connection.cut()

    def stream(self, status: int, content_type: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> ExchangeStream:
        """Begin an answer of unknown length.

        Raises:
            RuntimeError: It was answered before.
        """
        if self._stream is not None or (self._connection is None and not self._is_gone):
            raise RuntimeError(f"{self.method} {self.path} was answered twice")
        if self._connection is not None:
            self._connection.send_stream_head(self, Response(status, b"", content_type, headers))
        self._stream = ExchangeStream(self, self._connection)
        return self._stream

    def run(self, awaitable: Awaitable[None]) -> None:
        """Run a handler that is a coroutine, until the client goes."""
        self._task = asyncio.ensure_future(self._wait_for(awaitable))

    async def _wait_for(self, awaitable: Awaitable[None]) -> None:
        try:
            await awaitable
        except asyncio.CancelledError:
            if not self._is_gone:
                raise
        except Exception as error:  # noqa: BLE001  a handler's bug is answered with 500 and logged
            self.fail(error)
        finally:
            self._task = None

    def finish(self) -> None:
        """Let go of the connection, and of the stream that holds this request: the answer is whole, or cut."""
        self._connection = self._on_close = self._stream = None

    def go(self) -> None:
        """The client has gone before the answer was whole."""
        if self._is_gone or self._connection is None:
            return
        self._is_gone = True
        self._connection = self._stream = None
        callback, self._on_close = self._on_close, None
        if self._task is not None:
            self._task.cancel()
        if callback is not None:
            try:
                callback()
            except Exception:  # noqa: BLE001  the connection must be let go of whatever happens
                _LOG.exception("what %s %s does when its client goes failed", self.method, self.path)


class ExchangeStream:
    """A `serve.http.message.Stream`: pieces of an answer, as chunks or, for HTTP/1.0, up to the connection's end."""

    __slots__ = ("_connection", "_exchange", "_is_chunked", "_is_silent")

    def __init__(self, exchange: Exchange, connection: Connection | None) -> None:
        self._exchange = exchange
        self._connection = connection
        self._is_chunked = not exchange.is_http_1_0
        self._is_silent = exchange.is_head

    @property
    def is_closed(self) -> bool:
        """Whether the client has gone, so that writing is useless."""
        return self._exchange.is_closed

    def write(self, data: bytes) -> None:
        """Send a piece; after the client has gone, or the end, nothing happens."""
        connection = self._connection
        if connection is None or not data or self._is_silent or self._exchange.is_closed:
            return
        if not self._is_chunked:
            connection.write_piece([data], len(data))
        elif len(data) < _JOIN_BYTES:
            piece = b"%x\r\n%b\r\n" % (len(data), data)
            connection.write_piece([piece], len(piece))
        else:
            size = b"%x\r\n" % len(data)
            connection.write_piece([size, data, b"\r\n"], len(size) + len(data) + 2)

    async def drain(self) -> None:
        """Wait while the client is slower than we are."""
        connection = self._connection
        if connection is not None and not self._exchange.is_closed:
            await connection.wait_for_room()

    def end(self) -> None:
        """Finish the answer. Ending twice is harmless."""
        connection, self._connection = self._connection, None
        if connection is None or self._exchange.is_closed:
            return
        self._exchange.finish()
        connection.end_stream(self._exchange, b"0\r\n\r\n" if self._is_chunked and not self._is_silent else b"")
