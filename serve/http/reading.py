"""The reading half of a connection: takes one request after the other, each as soon as the last one is answered."""

from __future__ import annotations

import time
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serve.errors import RequestError, TooLargeError
from serve.http.admission import Place
from serve.http.body_room import Lease
from serve.http.exchange import Exchange
from serve.http.failures import ExpectationError, answer_failure
from serve.http.incoming import IncomingBody
from serve.http.intake import ByteIntake
from serve.http.message import Response
from serve.http.parsing import RequestHead, RequestParser
from serve.http.states import BODY, BUSY, CHUNKED, HEAD

if TYPE_CHECKING:
    from serve.http.shared import Shared

__all__ = ["RequestReader"]

_MAX_IGNORED_BODY_BYTES = 64 << 10  # of a refused request whose connection is kept
_MAX_LAST_BYTES = 4 << 10
_SMALL_BYTES = 64 << 10  # of chunks that are not counted
_LEASE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _LastHead:
    """A head that was admitted. Clients send the same one again and again, and what was found out of it still holds."""

    raw: bytes
    head: RequestHead
    place: Place


class RequestReader(ByteIntake):
    """Reads requests and gives them to their handlers.

    Attributes:
        peer: The client's address.
        num_requests: Heads that were read.
    """

    __slots__ = (
        "_body",
        "_body_deadline",
        "_body_length",
        "_body_limit",
        "_last",
        "_parser",
        "num_requests",
        "peer",
    )

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.peer = ""
        self.num_requests = 0
        self._parser = RequestParser(shared.limits)
        self._last: _LastHead | None = None
        self._body: IncomingBody | None = None
        self._body_deadline = 0.0  # 0 until the first piece has come
        self._body_length = 0
        self._body_limit = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing of a next request has come."""
        return self._parser.head_bytes == 0 and self._rest is None

    def await_request(self) -> None:
        """Read the next request, or go on with what has come of it already."""
        self.state = HEAD
        self.deadline = time.monotonic() + self._shared.limits.idle_timeout_s
        if self._rest is not None and not self._is_feeding:
            self._call_continue()

    def ignore_rest(self) -> None:
        """From now on throw away what comes."""
        super().ignore_rest()
        self._body = None
        self._parser.forget()

    def forget(self) -> None:
        """Let go of all memory."""
        self._parser.forget()
        self._rest = self._body = self._own_buffer = self._last = None

    # Heads.

    def _read_head(self, data: bytearray, view: memoryview, start: int, end: int) -> int:
        parser = self._parser
        is_begin = parser.head_bytes == 0
        if is_begin:
            last = self._last
            if last is not None and data.startswith(last.raw, start, end):
                self._count_request()
                self._take(self._open(last.head, last.place), last.head)
                return start + len(last.raw)
            self.deadline = time.monotonic() + self._shared.limits.header_timeout_s
        stop = parser.feed_head(data, view, start, end)
        if parser.is_head_done:
            self._count_request()
            head = parser.take_head()
            place = self._admit(head, is_more=stop < end)
            if place is not None and is_begin and stop - start <= _MAX_LAST_BYTES:
                self._last = _LastHead(bytes(view[start:stop]), head, place)
        return stop

    def _count_request(self) -> None:
        self.num_requests += 1
        self._shared.counters.requests += 1

    def _open(self, head: RequestHead, place: Place) -> Exchange:
        exchange = self.new_exchange(head, place.target.path, place.target.query)
        exchange.route = place.route
        if self._shared.admission.has_origins:
            exchange.extra = self._shared.admission.cross_origin(head.headers)
        if place.params:
            exchange.params = place.params.copy()
        return exchange

    def _admit(self, head: RequestHead, *, is_more: bool) -> Place | None:
        """Refuse what may be refused by the head alone; else take the body, or answer at once when there is none.

        Returns:
            Where the request goes, if the next one with the same head may go there without being looked at.

        Raises:
            MalformedError: And the connection is to be closed.
        """
        place = self._shared.admission.place(head.method, head.target, head.headers)
        exchange = self._open(head, place)
        expect = head.headers.get(b"expect")
        exchange.refusal = refusal = self._find_refusal(head, place, expect)
        has_body = head.is_chunked or head.length > 0
        if refusal is not None and has_body:
            if head.is_chunked or expect is not None or head.length > _MAX_IGNORED_BODY_BYTES:
                self.refuse_with(refusal, exchange)
                return None
        elif expect is not None and has_body and not is_more and not head.is_http_1_0:
            self.ask_for_body()
        self._take(exchange, head)
        return place if refusal is None and expect is None and not head.is_chunked else None

    def _find_refusal(self, head: RequestHead, place: Place, expect: bytes | None) -> Response | None:
        if head.method == "OPTIONS":
            answer = self._shared.admission.answer_options(place, head.method, head.headers)
            if answer is not None:
                return answer
        try:
            self._shared.admission.check(place, head.method, head.headers, head.length)
            if expect is not None and expect.lower() != b"100-continue":
                raise ExpectationError("the only expectation that is met here is 100-continue")
        except RequestError as error:
            self._shared.counters.count_error(error.reason)
            return answer_failure(error, place.route)
        return None

    def _take(self, exchange: Exchange, head: RequestHead) -> None:
        """Wait for the body, or give the request to its handler when there is none."""
        if head.length:
            self.exchange = exchange
            self._body_length = head.length
            self._body_deadline = 0.0
            self.state = BODY
        elif head.is_chunked:
            self.exchange = exchange
            self._body_limit = self._shared.admission.body_limit(exchange.route)
            self._body_deadline = 0.0
            self.state = CHUNKED
        else:
            self._dispatch(exchange)

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
            self._body = IncomingBody(self._body_length, self._shared.bodies)
        return self._body

    def _finish_body(self, body: IncomingBody) -> None:
        assert self.exchange is not None
        self._body = None
        self.exchange.body = body.take()
        self._dispatch(self.exchange)

    def _read_chunks(self, data: bytearray, view: memoryview, start: int, end: int) -> int:
        stop = self._parser.feed_chunks(data, view, start, end)
        chunks = self._parser.chunks
        if len(chunks) > self._body_limit:
            raise TooLargeError(f"the body has more than {self._body_limit:,} bytes")
        if len(chunks) > _SMALL_BYTES:
            if chunks.lease is None:
                chunks.lease = Lease(self._shared.bodies)
            chunks.lease.grow(-(-len(chunks) // _LEASE_BYTES) * _LEASE_BYTES)
        if self._parser.is_message_done:
            exchange = self.exchange
            assert exchange is not None
            exchange.body = memoryview(self._parser.take_chunks())
            self._dispatch(exchange)
        return stop

    def _extend_deadline(self) -> None:
        now, limits = time.monotonic(), self._shared.limits
        if not self._body_deadline:
            self._body_deadline = now + limits.body_timeout_s
        self.deadline = min(now + limits.read_timeout_s, self._body_deadline)

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

    # What the writer does.

    @abstractmethod
    def new_exchange(self, head: RequestHead, path: str, query: str) -> Exchange:
        """A request of this connection."""

    @abstractmethod
    def refuse_with(self, response: Response, exchange: Exchange | None) -> None:
        """Answer, and close."""

    @abstractmethod
    def ask_for_body(self) -> None:
        """Tell the client that its body is welcome."""
