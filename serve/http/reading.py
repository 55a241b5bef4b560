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
