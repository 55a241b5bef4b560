"""Where the bytes of a connection go: to its reader, straight to a body, or to wait for their turn.

What a client sends while it is being answered waits, and before long so does the client.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import TYPE_CHECKING, Final

from serve.errors import RequestError
from serve.http.exchange import Exchange
from serve.http.states import BODY, CHUNKED, CLOSING, HEAD, LINGER

if TYPE_CHECKING:
    from serve.http.incoming import IncomingBody
    from serve.http.router import Route
    from serve.http.shared import Shared

__all__ = ["READ_BYTES", "ByteIntake"]

READ_BYTES: Final = 128 << 10
_MAX_REST_BYTES = 64 << 10
_MAX_TURNS = 16  # requests of one connection that are answered before others get their turn


class ByteIntake(asyncio.BufferedProtocol):
    """Takes bytes from the loop and keeps those whose turn it is not.

    Attributes:
        state: One of `serve.http.states`.
        deadline: On `time.monotonic`; when the present state has lasted too long. Does not count while busy.
        exchange: The request whose body is read, or that is being answered.
    """

    __slots__ = (
        "_is_direct",
        "_is_feeding",
        "_is_paused",
        "_is_waiting_turn",
        "_num_ignored",
        "_own_buffer",
        "_rest",
        "_shared",
        "deadline",
        "exchange",
        "state",
    )

    def __init__(self, shared: Shared) -> None:
        self.state: int = HEAD
        self.deadline = 0.0
        self.exchange: Exchange | None = None
        self._shared = shared
        self._own_buffer: bytearray | None = None
        self._is_direct = False  # whether the loop reads straight to the body
        self._rest: bytearray | None = None  # what came after the request that is being answered
        self._is_paused = False
        self._is_feeding = False
        self._is_waiting_turn = False
        self._num_ignored = 0

    @property
    def has_rest(self) -> bool:
        """Whether the client has sent more than the request that is being answered."""
        return self._rest is not None

    def ignore_rest(self) -> None:
        """From now on throw away what comes."""
        self.state = LINGER
        self._rest = None
        if self._is_paused:
            self._is_paused = False
            self.go_on_reading()

    # What the loop calls.

    def get_buffer(self, _size_hint: int) -> memoryview:
        """Where to read to: the body's own place when one is coming."""
        if self.state == BODY:
            try:
                room = self._get_body().room()
            except RequestError as error:
                self.refuse(error, None if self.exchange is None else self.exchange.route)
            else:
                self._is_direct = True
                return room
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
                    start = self._read_chunks(data, view, start, end)
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

    # What the reader does.

    @abstractmethod
    def _read_head(self, data: bytearray, view: memoryview, start: int, end: int) -> int:
        """Use up bytes of a head, and tell up to where."""

    @abstractmethod
    def _read_body(self, view: memoryview, start: int, end: int) -> int:
        """Use up bytes of a body, and tell up to where."""

    @abstractmethod
    def _read_chunks(self, data: bytearray, view: memoryview, start: int, end: int) -> int:
        """Use up bytes of a body in chunks, and tell up to where."""

    @abstractmethod
    def _get_body(self) -> IncomingBody:
        """The body that is coming."""

    @abstractmethod
    def _finish_body(self, body: IncomingBody) -> None:
        """The body is whole."""

    @abstractmethod
    def _extend_deadline(self) -> None:
        """Something of a body has come."""

    # What the writer does.

    @abstractmethod
    def refuse(self, error: RequestError, route: Route | None) -> None:
        """Answer with an error and close, for the rest of what the client sends cannot be told apart."""

    @abstractmethod
    def stop_reading(self) -> None:
        """Leave what the client sends in the system's buffers."""

    @abstractmethod
    def go_on_reading(self) -> None:
        """Read again."""

    @abstractmethod
    def abort(self) -> None:
        """Close at once."""
