"""One client's connection: reads requests, hands them over, writes answers, one after the other."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

from serve.http.exchange import Exchange
from serve.http.failures import RequestTimeoutError, TooManyConnectionsError, answer_failure
from serve.http.heads import as_parts
from serve.http.message import Buffer, Headers, Response
from serve.http.reading import RequestReader
from serve.http.states import BODY, BUSY, CHUNKED, CLOSING, HEAD, LINGER

if TYPE_CHECKING:
    from serve.errors import RequestError
    from serve.http.parsing import RequestHead
    from serve.http.router import Route
    from serve.http.shared import Shared

__all__ = ["Connection"]

_JOIN_BYTES = 16 << 10  # below, joining head and body costs less than a second buffer
_MAX_UNREAD_BYTES = 16 << 20  # of a stream whose writer does not wait
_LINGER_S = 2.0
"""How long a client that is still sending may take to read why it was refused: closing at once would make its system
throw the answer away."""
_MAX_REFUSED = 128
_BODILESS = frozenset({204, 304})


class Connection(RequestReader):
    """A protocol of asyncio. Its states and the reading of requests are in `serve.http.reading`."""

    __slots__ = ("_is_write_paused", "_transport", "_unread_bytes", "_unread_deadline", "_waiters")

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._is_write_paused = False
        self._waiters: list[asyncio.Future[None]] = []
        self._unread_bytes = 0
        self._unread_deadline = 0.0

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or turn it away when there are too many."""
        self._transport = cast(asyncio.Transport, transport)
        shared = self._shared
        address = transport.get_extra_info("peername")
        self.peer = address[0] if isinstance(address, tuple) else ""
        shared.counters.connections_total += 1
        if len(shared.connections) >= shared.limits.max_connections:
            self._turn_away()
            return
        shared.connections.add(self)
        shared.counters.connections = len(shared.connections)
        self.deadline = time.monotonic() + shared.limits.idle_timeout_s

    def connection_lost(self, _error: Exception | None) -> None:
        """Let go of everything."""
        self.state = CLOSING
        shared = self._shared
        shared.connections.discard(self)
        shared.refused.discard(self)
        shared.counters.connections = len(shared.connections)
        self._leave()
        self.forget()
        if not shared.connections and not shared.refused:
            shared.on_empty.set()

    def eof_received(self) -> bool:
        """A client that ends its side is one that has gone.

        HTTP lets a client end its side after its request and still read the answer. On the wire that looks as one
        that has been closed altogether; it would be told apart only by writing to it, that is after the work has been
        done for nobody. Dropping the work of clients that have gone is worth more here.
        """
        self._leave()
        if self.state != LINGER:
            self.state = CLOSING
        return False

    def pause_writing(self) -> None:
        """The client is slower than we are."""
        self._is_write_paused = True

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._is_write_paused = False
        self._wake()

    # What exchanges call.

    def send(self, exchange: Exchange, response: Response) -> None:
        """Write a whole answer."""
        shared = self._shared
        is_last = not exchange.is_keep_alive or shared.is_draining
        try:
            self._write_whole(response, is_last=is_last, is_head=exchange.is_head, extra=exchange.extra)
        except (ValueError, TypeError) as error:
            failure = answer_failure(error, None)
            self._write_whole(failure, is_last=is_last, is_head=exchange.is_head, extra=exchange.extra)
        self._next(is_last=is_last)

    def send_stream_head(self, exchange: Exchange, response: Response) -> None:
        """Write the head of a stream."""
        if exchange.is_http_1_0:
            exchange.is_keep_alive = False
        if self._shared.is_draining:
            exchange.is_keep_alive = False
        framing = b"" if exchange.is_http_1_0 else b"transfer-encoding: chunked\r\n"
        head = self._shared.heads.write(
            response.status,
            response.content_type,
            response.headers + exchange.extra,
            framing,
            is_last=not exchange.is_keep_alive,
        )
        self.write([head], len(head))

    def end_stream(self, exchange: Exchange, last: bytes) -> None:
        """Write the end of a stream."""
        if last:
            self.write([last], len(last))
        self._next(is_last=not exchange.is_keep_alive)

    def write(self, parts: list[Buffer], size: int) -> None:
        """Write buffers, of `size` bytes together."""
        if self._transport.is_closing():  # the client has gone, which we are about to be told
            return
        self._shared.counters.bytes_out += size
        if len(parts) == 1:
            self._transport.write(parts[0])
        else:
            self._transport.writelines(parts)

    def write_piece(self, parts: list[Buffer], size: int) -> None:
        """Write a piece of a stream, unless its client has left too many unread."""
        if self._is_write_paused and self._transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
            if self.state != CLOSING:
                self.state = CLOSING
                self._shared.counters.count_error("answer_unread")
                self._transport.abort()
            return
        self.write(parts, size)

    async def wait_for_room(self) -> None:
        """Wait until the client has read most of what was written, or has gone."""
        while self._is_write_paused and self.state != CLOSING:
            waiter: asyncio.Future[None] = self._shared.loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def cut(self) -> None:
        """Close in the middle of an answer, so that the client sees that it is not whole."""
        self.exchange = None
        self._close()

    # What the server calls.

    def sweep(self, now: float) -> None:
        """Close if a time limit has passed.

        Args:
            now: `time.monotonic()`.
        """
        unread = self._transport.get_write_buffer_size()
        if unread:
            if not self._unread_bytes or unread < self._unread_bytes:
                self._unread_deadline = now + self._shared.limits.write_timeout_s
            elif now > self._unread_deadline:
                self._shared.counters.count_error("write_timeout")
                self._transport.abort()
            self._unread_bytes = unread
            return
        self._unread_bytes = 0
        if now <= self.deadline or self.state == BUSY:
            return
        if self.state in (HEAD, BODY, CHUNKED):
            if self.state == HEAD and self.is_idle:
                self._close()
                return
            what = "headers" if self.state == HEAD else "body"
            route = None if self.exchange is None else self.exchange.route
            self.refuse(RequestTimeoutError(f"the request's {what} came too slowly"), route)
        elif self.state == LINGER:
            self._transport.abort()

    def close_if_idle(self) -> None:
        """Close unless a request is coming or being answered."""
        if self.state == HEAD and self.is_idle:
            self._close()

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self._transport.abort()

    # What the reader calls.

    def refuse(self, error: RequestError, route: Route | None = None) -> None:
        """Answer with an error and close, for the rest of what the client sends cannot be told apart."""
        self._shared.counters.count_error(error.reason)
        self.refuse_with(answer_failure(error, route), self.exchange)

    def refuse_with(self, response: Response, exchange: Exchange | None) -> None:
        """Answer and close while the client is still sending."""
        self.exchange = None
        self._write_whole(response, is_last=True, is_head=False, extra=exchange.extra if exchange is not None else ())
        self._linger()

    def ask_for_body(self) -> None:
        """Tell the client that its body is welcome."""
        self.write([b"HTTP/1.1 100 Continue\r\n\r\n"], 25)

    def stop_reading(self) -> None:
        """Leave what the client sends in the system's buffers."""
        self._transport.pause_reading()

    def go_on_reading(self) -> None:
        """Read again."""
        self._transport.resume_reading()

    def new_exchange(self, head: RequestHead, path: str, query: str) -> Exchange:
        """A request of this connection."""
        return Exchange(self, head, path, query)

    def _write_whole(self, response: Response, *, is_last: bool, is_head: bool, extra: Headers) -> None:
        parts, size = as_parts(response.body)
        if response.status in _BODILESS:
            framing, parts, size = b"", [], 0
        else:
            framing = b"content-length: %d\r\n" % size
        head = self._shared.heads.write(
            response.status,
            response.content_type,
            response.headers + extra if extra else response.headers,
            framing,
            is_last=is_last,
        )
        if is_head:
            parts, size = [], 0
        if not parts:
            self.write([head], len(head))
        elif size < _JOIN_BYTES:
            self.write([b"".join((head, *parts))], len(head) + size)
        else:
            self.write([head, *parts], len(head) + size)

    def _next(self, *, is_last: bool) -> None:
        """After an answer: wait for the next request, or close."""
        self.exchange = None
        if not is_last:
            self.await_request()
        elif self.has_rest:
            self._linger()
        else:
            self._close()

    def _close(self) -> None:
        self.state = CLOSING
        self._transport.close()
        self._wake()

    def _linger(self) -> None:
        self.ignore_rest()
        self.deadline = time.monotonic() + _LINGER_S
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _turn_away(self) -> None:
        shared = self._shared
        shared.counters.connections_refused += 1
        if len(shared.refused) >= _MAX_REFUSED:
            self.state = CLOSING
            self._transport.abort()
            return
        shared.refused.add(self)
        self.refuse(
            TooManyConnectionsError(f"{shared.limits.max_connections} connections are open, and no more are taken")
        )

    def _leave(self) -> None:
        """Tell the request that is being answered that its client has gone."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            self._shared.counters.client_gone += 1
            exchange.go()
        self._wake()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
