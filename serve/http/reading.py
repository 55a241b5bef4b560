"""The reading half of a connection: takes one request after the other, each as soon as the last one is answered.

What a client sends while it is being answered waits, and before long so does the client.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from typing import TYPE_CHECKING, Final

from serve.errors import RequestError, TooLargeError
from serve.http.admission import options_answer
from serve.http.exchange import Exchange
from serve.http.failures import ExpectationError, answer_failure
from serve.http.incoming import IncomingBody
from serve.http.message import Response
from serve.http.parsing import RequestHead, RequestParser

if TYPE_CHECKING:
    from serve.http.router import Route
    from serve.http.shared import Shared

__all__ = ["BODY", "BUSY", "CHUNKED", "CLOSING", "HEAD", "LINGER", "READ_BYTES", "RequestReader"]

HEAD: Final = 0
"""Waits for a request, or reads its head."""
BODY: Final = 1
"""Reads a body whose length is known."""
CHUNKED: Final = 2
"""Reads a body that comes in chunks."""
BUSY: Final = 3
"""A request is being answered."""
LINGER: Final = 4
"""Was refused; what it still sends is thrown away."""
CLOSING: Final = 5
"""Closes, or is closed."""

READ_BYTES: Final = 128 << 10
_MAX_REST_BYTES = 64 << 10
_MAX_IGNORED_BODY_BYTES = 64 << 10  # of a refused request whose connection is kept
_MAX_TURNS = 16  # requests of one connection that are answered before others get their turn


class RequestReader(asyncio.BufferedProtocol):
    """Reads requests and gives them to their handlers.

    Attributes:
        state: One of those above.
        deadline: On `time.monotonic`; when the present state has lasted too long. Does not count while busy.
        exchange: The request whose body is read, or that is being answered.
        peer: The client's address.
        num_requests: Heads that were read.
    """

    __slots__ = (
        "_body",
        "_body_deadline",
        "_body_length",
        "_body_limit",
        "_is_direct",
        "_is_feeding",
        "_is_paused",
        "_is_waiting_turn",
        "_num_ignored",
        "_own_buffer",
        "_parser",
        "_rest",
        "_shared",
        "deadline",
        "exchange",
        "num_requests",
        "peer",
        "state",
    )

    def __init__(self, shared: Shared) -> None:
        self.state: int = HEAD
        self.deadline = 0.0
        self.exchange: Exchange | None = None
        self.peer = ""
        self.num_requests = 0
        self._shared = shared
        self._parser = RequestParser(shared.limits)
        self._own_buffer: bytearray | None = None
        self._body: IncomingBody | None = None
        self._body_deadline = 0.0
        self._body_length = 0
        self._body_limit = 0
        self._is_direct = False  # whether the loop reads straight to the body
        self._rest: bytearray | None = None  # what came after the request that is being answered
        self._is_paused = False
        self._is_feeding = False
        self._is_waiting_turn = False
        self._num_ignored = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing of a next request has come."""
        return self._parser.head_bytes == 0 and self._rest is None

    @property
    def has_rest(self) -> bool:
        """Whether the client has sent more than the request that is being answered."""
        return self._rest is not None

    def await_request(self) -> None:
        """Read the next request, or go on with what has come of it already."""
        self.state = HEAD
        self.deadline = time.monotonic() + self._shared.limits.idle_timeout_s
        if self._rest is not None and not self._is_feeding:
            self._call_continue()

    def ignore_rest(self) -> None:
        """From now on throw away what comes."""
        self.state = LINGER
        self._rest = self._body = None
        self._parser.forget()
        if self._is_paused:
            self._is_paused = False
            self.go_on_reading()

    def forget(self) -> None:
        """Let go of all memory."""
        self._parser.forget()
        self._rest = self._body = self._own_buffer = None

    # What the loop calls.

    def get_buffer(self, _size_hint: int) -> memoryview:
        """Where to read to: the body's own place when one is coming."""
        if self.state == BODY:
            self._is_direct = True
            return self._get_body().room()
        buffer = self._shared.buffer
        if buffer is None:
            self._own_buffer = buffer = self._own_buffer or bytearray(READ_BYTES)
        return memoryview(buffer)

    def buffer_updated(self, num_bytes: int) -> None:
        """Take what was read."""
        self._shared.counters.bytes_in += num_bytes
        if not self._is_direct:
            buffer = self._shared.buffer or self._own_buffer
            assert buffer is not None
            self._feed(buffer, memoryview(buffer), 0, num_bytes)
            return
        self._is_direct = False
        if self.state == BODY:
            body = self._get_body()
            body.filled += num_bytes
            if body.is_whole:
                self._finish_body(body)
            else:
                self._extend_deadline()

    # The way of the bytes.

    def _feed(self, data: bytearray, view: memoryview, start: int, end: int) -> None:
        """Use up what was read; what cannot be used yet is kept."""
        if self._rest is not None and self.state != LINGER:
            self._keep(view[start:end])  # it is not its turn yet
            return
        self._is_feeding = True
        turns = 0
        try:
            while start < end:
                state = self.state
                if state == HEAD and turns < _MAX_TURNS:
                    turns += 1
                    start = self._read_head(data, view, start, end)
                elif state == BODY:
                    start = self._read_body(view, start, end)
                elif state == CHUNKED:
                    start = self._parser.feed_chunks(data, view, start, end)
                    self._look_at_chunks()
                else:
                    self._leave_over(view[start:end])
                    break
        except RequestError as error:
            self.refuse(error, None if self.exchange is None else self.exchange.route)
        finally:
            self._is_feeding = False
        if self.state in (BODY, CHUNKED):
            self._extend_deadline()

    def _leave_over(self, piece: memoryview) -> None:
        if self.state == LINGER:
            self._num_ignored += len(piece)
            if self._num_ignored > self._shared.limits.max_body_bytes:
                self.abort()
        elif self.state != CLOSING:
            self._keep(piece)
            if self.state == HEAD:
                self._call_continue()

    def _keep(self, piece: memoryview) -> None:
        if self._rest is None:
            self._rest = bytearray(piece)
        else:
            self._rest += piece
        if len(self._rest) > _MAX_REST_BYTES and not self._is_paused:
            self._is_paused = True
            self.stop_reading()

    def _call_continue(self) -> None:
        if not self._is_waiting_turn:
            self._is_waiting_turn = True
            self._shared.loop.call_soon(self._continue)

    def _continue(self) -> None:
        """Go on with what came while a request was being answered."""
        self._is_waiting_turn = False
        rest = self._rest
        if rest is None or self.state != HEAD:
            return
        self._rest = None
        self._feed(rest, memoryview(rest), 0, len(rest))
        if self._is_paused and self._rest is None and self.state != CLOSING:
            self._is_paused = False
            self.go_on_reading()

    # Heads.

    def _read_head(self, data: bytearray, view: memoryview, start: int, end: int) -> int:
        parser = self._parser
        if parser.head_bytes == 0:
            self.deadline = time.monotonic() + self._shared.limits.header_timeout_s
        stop = parser.feed_head(data, view, start, end)
        if parser.is_head_done:
            self.num_requests += 1
            self._shared.counters.requests += 1
            self._admit(parser.take_head(), is_more=stop < end)
        return stop

    def _admit(self, head: RequestHead, *, is_more: bool) -> None:
        """Refuse what may be refused by the head alone; else take the body, or answer at once when there is none.

        Raises:
            MalformedError: And the connection is to be closed.
        """
        admission, headers, method = self._shared.admission, head.headers, head.method
        place = admission.place(method, head.target, headers)
        exchange = self.new_exchange(head, place.target.path, place.target.query)
        exchange.route = place.route
        if place.params:
            exchange.params = place.params.copy()
        expect = headers.get(b"expect")
        allow = options_answer(place, method) if method == "OPTIONS" else None
        if allow is not None:
            exchange.refusal = Response(204, b"", b"", ((b"allow", allow.encode()),))
        else:
            try:
                admission.check(place, method, headers, head.length)
                if expect is not None and expect.lower() != b"100-continue":
                    raise ExpectationError("the only expectation that is met here is 100-continue")
            except RequestError as error:
                self._shared.counters.count_error(error.reason)
                exchange.refusal = answer_failure(error, place.route)
        if head.length == 0 and not head.is_chunked:
            self._dispatch(exchange)
            return
        if exchange.refusal is not None and (
            head.is_chunked or expect is not None or head.length > _MAX_IGNORED_BODY_BYTES
        ):
            self.refuse_with(exchange.refusal)
            return
        if expect is not None and not is_more and not head.is_http_1_0:
            self.ask_for_body()
        self._await_body(exchange, head)

    def _await_body(self, exchange: Exchange, head: RequestHead) -> None:
        self.exchange = exchange
        self._body_deadline = time.monotonic() + self._shared.limits.body_timeout_s
        if head.is_chunked:
            self._body_limit = self._shared.admission.body_limit(exchange.route)
            self.state = CHUNKED
        else:
            self._body_length = head.length
            self.state = BODY

    # Bodies.

    def _read_body(self, view: memoryview, start: int, end: int) -> int:
        stop = start + self._body_length
        if self._body is None and stop <= end:  # it came with its head
            assert self.exchange is not None
            self.exchange.body = bytes(view[start:stop])
            self._dispatch(self.exchange)
            return stop
        body = self._get_body()
        stop = min(end, stop - body.filled)
        body.add(view[start:stop])
        if body.is_whole:
            self._finish_body(body)
        return stop

    def _get_body(self) -> IncomingBody:
        if self._body is None:
            self._body = IncomingBody(self._body_length)
        return self._body

    def _finish_body(self, body: IncomingBody) -> None:
        assert self.exchange is not None
        self._body = None
        self.exchange.body = body.take()
        self._dispatch(self.exchange)

    def _look_at_chunks(self) -> None:
        if len(self._parser.chunks) > self._body_limit:
            raise TooLargeError(f"the body has more than {self._body_limit:,} bytes")
        if self._parser.is_message_done:
            exchange = self.exchange
            assert exchange is not None
            exchange.body = self._parser.take_chunks()
            self._dispatch(exchange)

    def _extend_deadline(self) -> None:
        self.deadline = min(time.monotonic() + self._shared.limits.read_timeout_s, self._body_deadline)

    def _dispatch(self, exchange: Exchange) -> None:
        """Give the request to its handler."""
        self.state = BUSY
        self.exchange = exchange
        exchange.received_ns = time.monotonic_ns()
        if exchange.refusal is not None:
            exchange.respond(exchange.refusal)
            return
        assert exchange.route is not None
        try:
            awaitable = exchange.route.handler(exchange)
        except Exception as error:  # noqa: BLE001  a handler's bug is answered with 500 and logged
            exchange.fail(error)
        else:
            if awaitable is not None:
                exchange.run(awaitable)

    # What the other half does.

    @abstractmethod
    def new_exchange(self, head: RequestHead, path: str, query: str) -> Exchange:
        """A request of this connection."""

    @abstractmethod
    def refuse(self, error: RequestError, route: Route | None) -> None:
        """Answer with an error and close, for the rest of what the client sends cannot be told apart."""

    @abstractmethod
    def refuse_with(self, response: Response) -> None:
        """Answer, and close."""

    @abstractmethod
    def ask_for_body(self) -> None:
        """Tell the client that its body is welcome."""

    @abstractmethod
    def stop_reading(self) -> None:
        """Leave what the client sends in the system's buffers."""

    @abstractmethod
    def go_on_reading(self) -> None:
        """Read again."""

    @abstractmethod
    def abort(self) -> None:
        """Close at once."""
