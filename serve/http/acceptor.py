"""Accepts connections that the loop's own way does not do for: those with TLS, and those left over at the end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

from serve.http.connection import Connection

if TYPE_CHECKING:
    from serve.http.shared import Shared

__all__ = ["Acceptor"]

_LEAST_PENDING: Final = 16
_PENDING_SHARE: Final = 4
_MAX_AT_ONCE: Final = 64  # connections that are accepted before others get their turn
_PAUSE_S: Final = 0.5
_HANDSHAKE_S: Final = 5.0


class Acceptor:
    """Takes connections from listening sockets, and counts those whose handshake is not done.

    A connection that says nothing is no `Connection` yet, so that no limit of theirs holds it. There may be a quarter
    as many of these as connections. One more ends the oldest of them: who means to speak has spoken by then, while
    waiting for the silent ones to time out would let few of them keep everybody out.

    Args:
        shared: What the connections share.
        tls: None where they speak plainly.

    Attributes:
        pending: Connections that are being set up, the oldest first.
    """

    def __init__(self, shared: Shared, tls: ssl.SSLContext | None) -> None:
        self.pending: dict[asyncio.Task[None], None] = {}
        self._shared = shared
        self._tls = tls
        self._max_pending = max(_LEAST_PENDING, shared.limits.max_connections // _PENDING_SHARE)
        self._timeout_s = min(_HANDSHAKE_S, shared.limits.header_timeout_s) if tls is not None else None
        self._listening: list[socket.socket] = []

    def listen(self, bound: socket.socket) -> None:
        """Accept from a socket, which is this object's from now on."""
        self._listening.append(bound)
        self._shared.loop.add_reader(bound.fileno(), self._accept_some, bound)

    def stop(self, others: Iterable[socket.socket]) -> None:
        """Accept what the system has accepted for us already, for closing would throw it away; then close.

        Args:
            others: Listening sockets that somebody else accepted from so far.
        """
        for bound in self._listening:
            self._shared.loop.remove_reader(bound.fileno())
        for bound in (*self._listening, *others):
            with contextlib.suppress(OSError):
                while self._accept(bound):
                    pass
            bound.close()
        self._listening.clear()

    def abort(self) -> None:
        """Let go of those that are not set up yet."""
        for task in self.pending:
            task.cancel()

    def _accept_some(self, bound: socket.socket) -> None:
        try:
            for _ in range(_MAX_AT_ONCE):
                if not self._accept(bound):
                    return
        except OSError:  # no descriptor is left, for one
            loop = self._shared.loop
            loop.remove_reader(bound.fileno())
            loop.call_later(_PAUSE_S, self._go_on, bound)

    def _go_on(self, bound: socket.socket) -> None:
        if bound in self._listening:
            self._shared.loop.add_reader(bound.fileno(), self._accept_some, bound)

    def _accept(self, bound: socket.socket) -> bool:
        """Take one connection; whether there was one."""
        try:
            client, _ = bound.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        if len(self.pending) >= self._max_pending:
            oldest = next(iter(self.pending))
            del self.pending[oldest]
            oldest.cancel()
            self._shared.counters.count_error("handshake")
        task = self._shared.loop.create_task(self._adopt(client))
        self.pending[task] = None
        task.add_done_callback(partial(self._finish, client))
        return True

    def _finish(self, client: socket.socket, task: asyncio.Task[None]) -> None:
        self.pending.pop(task, None)
        if task.cancelled():
            client.close()

    async def _adopt(self, client: socket.socket) -> None:
        shared = self._shared
        client.setblocking(False)
        try:
            await shared.loop.connect_accepted_socket(
                lambda: Connection(shared), client, ssl=self._tls, ssl_handshake_timeout=self._timeout_s
            )
        except OSError:
            client.close()
