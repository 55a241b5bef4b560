"""Reads requests off a connection: heads and chunks through llhttp, bodies of known length straight to their place.

llhttp cannot be stopped between two requests, so it is fed pieces that end where a request can end: after an empty
line. What follows a request that is still being answered waits, and so does the client.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from typing import TYPE_CHECKING, Final

import httptools
import numpy as np

from serve.errors import MalformedError, RequestError, TooLargeError
from serve.http.admission import Place, options_answer
from serve.http.exchange import Exchange
from serve.http.failures import ExpectationError, HeadersTooLargeError, UrlTooLongError, answer_failure
from serve.http.message import Response

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

READ_BYTES: Final = 128 << 10
_SMALL_BODY_BYTES = 64 << 10
_FIRST_BODY_BYTES = 4 << 20  # what a client may make us hold by announcing alone
_MAX_REST_BYTES = 64 << 10
_MAX_TURNS = 16  # requests of one connection that are answered before others get their turn
_END = b"\r\n\r\n"
_METHODS = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")}
_SINGLE = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-api-key", b"expect", b"origin"}
)


class RequestReader(asyncio.BufferedProtocol):
    """The reading half of a connection."""

    __slots__ = (
        "_body_deadline",
        "_chunks",
        "_filled",
        "_head_bytes",
        "_headers",
        "_is_direct",
        "_is_feeding",
        "_is_head_done",
        "_is_message_done",
        "_is_paused",
        "_is_waiting_turn",
        "_length",
        "_limit",
        "_lingered",
        "_num_headers",
        "_own_buffer",
        "_parser",
        "_rest",
        "_shared",
        "_store",
        "_tail",
        "_url",
        "_violation",
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
        self._shared = shared
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._own_buffer: bytearray | None = None
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._num_headers = 0
        self._head_bytes = 0  # of a head that is not whole, or of what a chunked body brought beside its data
        self._tail = b""  # its last three bytes
        self._is_head_done = False
        self._is_message_done = False
        self._violation: RequestError | None = None
        self._length = 0
        self._limit = 0
        self._filled = 0
        self._store: memoryview | None = None
        self._chunks = bytearray()
        self._is_direct = False
        self._body_deadline = 0.0
        self._rest: bytearray | None = None
        self._is_paused = False
        self._is_feeding = False
        self._is_waiting_turn = False
        self._lingered = 0

    # What the connection does with it.

    @property
    def is_idle(self) -> bool:
        """Whether nothing of a next request has come."""
        return self._head_bytes == 0 and self._rest is None

    @property
    def has_rest(self) -> bool:
        """Whether the client has sent more than the request that is being answered."""
        return self._rest is not None or self._is_paused

    def await_request(self) -> None:
        """Read the next request, or go on with what has come of it already."""
        self.state = HEAD
        self.deadline = time.monotonic() + self._shared.limits.idle_timeout_s
        if self._rest is not None and not self._is_feeding:
            self._call_continue()

    def drop_rest(self) -> None:
        """Forget what came after the last request, and read on, to throw it away."""
        self._rest = self._store = None
        self._chunks = bytearray()
        if self._is_paused:
            self._is_paused = False
            self.go_on_reading()

    def forget(self) -> None:
        """Break the cycles with the parser, which holds our methods."""
        self._parser = self._rest = self._store = self._own_buffer = None

    # What the loop calls.

    def get_buffer(self, _size_hint: int) -> memoryview:
        """Where to read to: the body's own place when one is coming."""
        self._is_direct = self.state == BODY
        if self._is_direct:
            store = self._room()
            return store[self._filled :]
        shared = self._shared.buffer
        if shared is None:
            self._own_buffer = shared = self._own_buffer or bytearray(READ_BYTES)
        return memoryview(shared)

    def buffer_updated(self, num_bytes: int) -> None:
        """Take what was read."""
        self._shared.counters.bytes_in += num_bytes
        if self._is_direct:
            self._is_direct = False
            if self.state == BODY:
                self._filled += num_bytes
                self._extend_deadline()
                if self._filled == self._length:
                    self._finish_body()
            return
        buffer = self._shared.buffer or self._own_buffer
        assert buffer is not None
        self._feed(buffer, memoryview(buffer), 0, num_bytes)

    # Head.

    def on_url(self, url: bytes) -> None:
        """For the parser: a part of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """For the parser: a header, or one behind the last chunk, which nobody asked for."""
        self._num_headers += 1
        if self._is_head_done:
            return
        name = name.lower()
        if name in self._headers:
            if name in _SINGLE:
                self._violation = MalformedError(f"the header {name.decode()} comes twice")
            elif name == b"connection":
                value = self._headers[name] + b"," + value
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        """For the parser."""
        self._is_head_done = True

    def on_body(self, data: bytes) -> None:
        """For the parser: a part of a chunk."""
        self._chunks += data

    def on_message_complete(self) -> None:
        """For the parser."""
        self._is_message_done = True

    def _feed(self, data: bytearray, view: memoryview, start: int, end: int) -> None:
        """Use up what was read; what cannot be used yet is kept."""
        self._is_feeding = True
        turns = 0
        if self._rest is not None and self.state != LINGER:
            self._keep(view[start:end])
            start = end
        while start < end:
            state = self.state
            if state == HEAD:
                if turns == _MAX_TURNS:
                    self._keep(view[start:end])
                    self._call_continue()
                    break
                turns += 1
                start = self._read_head(data, view, start, end)
            elif state == BODY:
                start = self._read_body(view, start, end)
            elif state == CHUNKED:
                start = self._read_chunks(data, view, start, end)
            else:
                if state == BUSY:
                    self._keep(view[start:end])
                elif state == LINGER:
                    self._lingered += end - start
                    if self._lingered > self._shared.limits.max_body_bytes:
                        self.linger_out()
                break
        self._is_feeding = False
        if self.state in (BODY, CHUNKED):
            self._extend_deadline()

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

    def _read_head(self, data: bytearray, view: memoryview, start: int, end: int) -> int:
        stop = self._segment_end(data, start, end)
        if self._head_bytes == 0:
            self.deadline = time.monotonic() + self._shared.limits.header_timeout_s
        self._head_bytes += stop - start
        is_upgrade = False
        try:
            self._get_parser().feed_data(view[start:stop])
        except httptools.HttpParserUpgrade:
            is_upgrade = True  # another protocol is offered, which need not be taken
        except httptools.HttpParserError as error:
            self.refuse(MalformedError(f"this is no acceptable HTTP request: {error}"))
            return end
        limits = self._shared.limits
        if len(self._url) > limits.max_url_bytes:
            self.refuse(UrlTooLongError(f"the URL has more than {limits.max_url_bytes:,} bytes"))
        elif self._head_bytes > limits.max_header_bytes:
            self.refuse(HeadersTooLargeError(f"the headers have more than {limits.max_header_bytes:,} bytes"))
        elif self._num_headers > limits.max_headers:
            self.refuse(HeadersTooLargeError(f"there are more than {limits.max_headers} headers"))
        elif self._is_head_done:
            self._take_head(is_upgrade=is_upgrade, is_more=stop < end)
        return stop

    def _segment_end(self, data: bytearray, start: int, end: int) -> int:
        """Where the next empty line ends, or `end`; the line may have begun in what was fed before."""
        if self._tail:
            first = data[start : min(start + 3, end)]
            at = (self._tail + first).find(_END)
            if at >= 0:
                stop = start + at + 4 - len(self._tail)
                self._tail = b""
                return stop
        at = data.find(_END, start, end)
        if at >= 0:
            self._tail = b""
            return at + 4
        self._tail = (self._tail + data[max(start, end - 3) : end])[-3:]
        return end

    def _get_parser(self) -> httptools.HttpRequestParser:
        if self._parser is None:  # the last one has not seen the body that it waits for
            self._parser = httptools.HttpRequestParser(self)
        return self._parser

    def _take_head(self, *, is_upgrade: bool, is_more: bool) -> None:
        """The head of a request is whole: find out what is to be done with it."""
        parser = self._get_parser()
        raw, headers = self._url, self._headers
        self._url, self._headers = b"", {}
        self._head_bytes = self._num_headers = 0
        self._is_head_done = False
        self.num_requests += 1
        self._shared.counters.requests += 1
        raw_method = parser.get_method()
        method = _METHODS.get(raw_method) or raw_method.decode("latin-1")
        version = parser.get_http_version()
        try:
            place = self._check_head(version, method, raw, headers, is_upgrade=is_upgrade)
        except RequestError as error:
            self._violation = None
            self.refuse(error)
            return
        if is_upgrade:
            self._parser = None
        target = place.target
        exchange = Exchange(self, method, target.path, target.query, headers)
        exchange.route = place.route
        if place.params:
            exchange.params = place.params.copy()
        if version == "1.0":
            exchange.is_http_1_0 = True
            exchange.is_keep_alive = False
        elif b"connection" in headers and b"close" in headers[b"connection"].lower():
            exchange.is_keep_alive = False
        self._length = int(headers.get(b"content-length", 0))
        self._admit(exchange, place, is_more=is_more)

    def _check_head(
        self, version: str, method: str, raw: bytes, headers: dict[bytes, bytes], *, is_upgrade: bool
    ) -> Place:
        """Refuse heads that could mean different things to different servers.

        Raises:
            RequestError: And the connection is to be closed.
        """
        if self._violation is not None:
            raise self._violation
        if version not in ("1.1", "1.0"):
            raise MalformedError(f"HTTP/{version} is not spoken here, only HTTP/1.1 and HTTP/1.0")
        coding = headers.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or version == "1.0" or is_upgrade):
            raise MalformedError("the only transfer encoding here is chunked, in HTTP/1.1")
        admission = self._shared.admission
        host = headers.get(b"host")
        if host is not None:
            admission.check_host(host)
        elif version == "1.1":
            raise MalformedError("the header Host is missing")
        place = admission.find(method, raw)
        if place.target.authority is not None:
            admission.check_host(place.target.authority)
            headers[b"host"] = place.target.authority
        return place

    def _admit(self, exchange: Exchange, place: Place, *, is_more: bool) -> None:
        """Refuse by the head alone what may be refused; else take the body, or answer at once when there is none."""
        headers, method = exchange.headers, exchange.method
        is_chunked = b"transfer-encoding" in headers
        has_body = is_chunked or self._length > 0
        expect = headers.get(b"expect")
        allow = options_answer(place, method) if method == "OPTIONS" else None
        if allow is not None:
            exchange.refusal = Response(204, b"", b"", ((b"allow", allow.encode()),))
        else:
            try:
                self._shared.admission.check(place, method, headers, self._length)
                if expect is not None and expect.lower() != b"100-continue":
                    raise ExpectationError("the only expectation that is met here is 100-continue")
            except RequestError as error:
                self._shared.counters.count_error(error.reason)
                exchange.refusal = answer_failure(error, place.route)
        if not has_body:
            self._dispatch(exchange)
            return
        if exchange.refusal is not None and (is_chunked or expect is not None or self._length > _SMALL_BODY_BYTES):
            self.refuse_with(exchange.refusal)
            return
        if expect is not None and not is_more and not exchange.is_http_1_0:
            self.ask_for_body()
        self.exchange = exchange
        self._filled = 0
        self._store = None
        self._limit = self._shared.admission.body_limit(place.route)
        self._is_message_done = False
        self._body_deadline = time.monotonic() + self._shared.limits.body_timeout_s
        self.state = CHUNKED if is_chunked else BODY

    # Body.

    def _read_body(self, view: memoryview, start: int, end: int) -> int:
        stop = min(end, start + self._length - self._filled)
        if self._filled == 0 and stop - start == self._length:
            assert self.exchange is not None
            self.exchange.body = bytes(view[start:stop])
            self._filled = self._length
            self._finish_body()
            return stop
        while start < stop:
            room = self._room()
            taken = min(stop - start, len(room) - self._filled)
            room[self._filled : self._filled + taken] = view[start : start + taken]
            self._filled += taken
            start += taken
        if self._filled == self._length:
            self._finish_body()
        return stop

    def _room(self) -> memoryview:
        """Memory for the body, with room behind what is filled: it grows with what comes, not with what is announced."""
        store = self._store
        if store is None:
            if self._length <= _SMALL_BODY_BYTES:
                store = memoryview(bytearray(self._length))
            else:  # memory that need not be cleared first
                store = memoryview(np.empty(min(self._length, _FIRST_BODY_BYTES), np.uint8)).cast("B")
            self._store = store
        elif self._filled == len(store):
            larger = memoryview(np.empty(min(self._length, 2 * len(store)), np.uint8)).cast("B")
            larger[: self._filled] = store
            self._store = store = larger
        return store

    def _finish_body(self) -> None:
        exchange, self.exchange = self.exchange, None
        assert exchange is not None
        store, self._store = self._store, None
        if store is not None:
            exchange.body = store.obj if isinstance(store.obj, bytearray) else store
        self._parser = None
        self._dispatch(exchange)

    def _read_chunks(self, data: bytearray, view: memoryview, start: int, end: int) -> int:
        stop = self._segment_end(data, start, end)
        before = len(self._chunks)
        try:
            self._get_parser().feed_data(view[start:stop])
        except httptools.HttpParserError as error:
            self.refuse(MalformedError(f"the chunks are not acceptable: {error}"), self._route())
            return end
        self._head_bytes = self._head_bytes + stop - start if len(self._chunks) == before else 0
        limits = self._shared.limits
        if len(self._chunks) > self._limit:
            self.refuse(TooLargeError(f"the body has more than {self._limit:,} bytes"), self._route())
        elif self._num_headers > limits.max_headers or self._head_bytes > limits.max_header_bytes + READ_BYTES:
            self.refuse(HeadersTooLargeError("there is too much beside the data of the chunks"), self._route())
        elif self._is_message_done:
            exchange, self.exchange = self.exchange, None
            assert exchange is not None
            exchange.body, self._chunks = self._chunks, bytearray()
            self._head_bytes = self._num_headers = 0
            self._dispatch(exchange)
        return stop

    def _route(self) -> Route | None:
        return None if self.exchange is None else self.exchange.route

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
        except Exception as error:
            exchange.fail(error)
        else:
            if awaitable is not None:
                exchange.run(awaitable)

    # What the connection gives.

    @abstractmethod
    def refuse(self, error: RequestError, route: Route | None = None) -> None:
        """Answer with an error, and close."""

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
    def linger_out(self) -> None:
        """A refused client has sent enough."""
