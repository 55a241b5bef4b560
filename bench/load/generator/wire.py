"""Requests over connections that stay open, at the least CPU time: ready bytes out, llhttp's parser in.

The sockets are gevent's: whoever waits for an answer leaves the process to the others.
"""

from __future__ import annotations

import errno
import socket as blocking
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Any, TypeAlias

import gevent
from gevent import socket, ssl
from geventhttpclient.response import HTTPParseError, HTTPResponse

from bench.load.protocols import AnswerError, StreamReader
from bench.load.recording import GENERATOR
from bench.load.target import Address

__all__ = ["Connections", "Reply", "exchange"]

_RECEIVE_BYTES = 1 << 16
_CONNECT_S = 5.0
_OWN_FAULTS = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})
"""What this machine lacks, whatever the server does: files, ports, memory."""

_Place: TypeAlias = tuple[tuple[int, int, int], Any]
"""Family, type and protocol of a socket, and where it connects to."""


class Reply(HTTPResponse):  # type: ignore[misc]  # the library has no types here
    """One answer, parsed as it comes."""

    def __init__(self) -> None:
        super().__init__(method="POST")
        self.body = bytearray()

    def _on_body(self, buf: bytearray) -> None:
        self.body += buf

    @property
    def is_whole(self) -> bool:
        """Whether the last byte is there; answers with a status below 200 only announce another."""
        return bool(self.message_complete and self.get_code() >= 200)


class Connections:
    """Open connections to one server; the one used last is used first.

    Args:
        address: Its name is looked up once, so that no request waits for it; of several places behind the name the
            first one that answers is used, as the probe did.
    """

    def __init__(self, address: Address) -> None:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        places = [((family, kind, protocol), place) for family, kind, protocol, _, place in found]
        self._arguments, self._place = _first_that_answers(places)
        self._host = address.host
        self._context = _tls_context() if address.is_tls else None
        self._idle: list[socket.socket] = []
        self.num_opened = 0

    def take(self) -> socket.socket:
        """Give an open connection that nobody uses, a new one if need be."""
        while self._idle:
            connection = self._idle.pop()
            if _is_open(connection):
                return connection
            connection.close()
        self.num_opened += 1
        connection = socket.socket(*self._arguments)
        try:
            connection.connect(self._place)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_hostname=self._host)
        except BaseException:
            connection.close()
            raise
        return connection

    def give_back(self, connection: socket.socket) -> None:
        """Keep a connection for the next request."""
        self._idle.append(connection)

    def close(self) -> None:
        """Close those that nobody uses."""
        while self._idle:
            self._idle.pop().close()


def _tls_context() -> ssl.SSLContext:
    """Check certificates and names, by gevent's own sockets whether the standard library's are replaced or not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_default_certs()
    return context


def _first_that_answers(places: Sequence[_Place]) -> _Place:
    """Connect to each place in turn, once; give the first one where that works, else the first."""
    if len(places) > 1:
        for arguments, place in places:
            with closing(socket.socket(*arguments)) as connection:
                connection.settimeout(_CONNECT_S)
                with suppress(OSError):
                    connection.connect(place)
                    return arguments, place
    return places[0]


def _is_open(connection: socket.socket) -> bool:
    """Whether a connection that should be silent is: one that can be read was closed by the other side."""
    if isinstance(connection, ssl.SSLSocket):
        return _is_tls_open(connection)
    try:
        connection._sock.recv(1, blocking.MSG_PEEK | blocking.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _is_tls_open(connection: ssl.SSLSocket) -> bool:
    """Take what lies there unread: session tickets belong to an open connection, an alert or an end to a closed one."""
    try:
        connection._sslobj.read(1)
    except ssl.SSLWantReadError:
        return True
    except (OSError, ValueError, AttributeError):
        return False
    return False


def exchange(
    connections: Connections,
    request: bytes,
    *,
    timeout_s: float,
    stream: StreamReader | None,
    clock: Callable[[], int] = time.monotonic_ns,
) -> Reply:
    """Send a request and wait for the whole answer. A request is never sent twice.

    Args:
        connections: To its server.
        request: Ready bytes.
        timeout_s: From now until the last byte.
        stream: Takes the body as it comes, if the status is 200.
        clock: Gives nanoseconds.

    Raises:
        AnswerError: There is no whole answer: `time-out`, `refused`, `reset`, `closed`, `unreachable`, `not HTTP`,
            or, of this machine's own making, `generator`.
    """
    connection: socket.socket | None = None
    is_reusable = False
    timer = gevent.Timeout(timeout_s)
    timer.start()
    try:
        connection = connections.take()
        connection.sendall(request)
        reply = _receive(connection, stream, clock)
        is_reusable = not reply.should_close()
    except gevent.Timeout as error:
        if error is not timer:
            raise
        raise AnswerError("time-out", f"no whole answer within {timeout_s:g} s") from None
    except ConnectionRefusedError as error:
        raise AnswerError("refused", "nobody listens any more") from error
    except (ConnectionResetError, BrokenPipeError) as error:
        raise AnswerError("reset", str(error)) from error
    except HTTPParseError as error:
        raise AnswerError("not HTTP", str(error) or "the answer cannot be parsed") from error
    except OSError as error:
        name = GENERATOR if error.errno in _OWN_FAULTS else "unreachable"
        raise AnswerError(name, str(error)) from error
    finally:
        timer.close()
        if connection is not None:
            if is_reusable:
                connections.give_back(connection)
            else:
                connection.close()
    return reply


def _receive(connection: socket.socket, stream: StreamReader | None, clock: Callable[[], int]) -> Reply:
    reply = Reply()
    is_begun = False
    while not reply.is_whole:
        data = connection.recv(_RECEIVE_BYTES)
        now_ns = clock()
        if data or is_begun:
            reply.feed(data)
        if stream is not None and reply.body and reply.get_code() == 200:
            stream.feed(bytes(reply.body), now_ns)
            reply.body.clear()
        if not data and not reply.is_whole:
            what = "in the middle of its answer" if is_begun else "without an answer"
            raise AnswerError("closed", f"the server closed the connection {what}")
        is_begun = True
    return reply
