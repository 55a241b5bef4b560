"""HTTP/1.1 server: listening sockets, the sweep that enforces time limits, and draining."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import sys
import time

from serve.access import Access
from serve.config import Limits
from serve.http.acceptor import Acceptor
from serve.http.admission import Admission
from serve.http.body_room import BodyRoom, default_room
from serve.http.connection import Connection
from serve.http.intake import READ_BYTES
from serve.http.router import Router
from serve.http.shared import Counters, Shared
from serve.http.sockets import BACKLOG, listen, raise_descriptor_limit

__all__ = ["HttpServer"]

_LOG = logging.getLogger(__name__)

_SWEEP_SHARE = 0.25
_SWEEP_S = (0.02, 1.0)
_IDLE_GRACE_S = 0.05
"""A request that is on its way while the server begins to drain is still answered."""
_FRESH_GRACE_S = 1.0
"""So is the first one of a connection that has only just been accepted."""


class HttpServer:
    """Answers the routes of a router on one port.

    Args:
        router: What is answered by whom.
        limits: The most that one client may ask for.
        access: Who may ask for what; by default everybody for everything but admin routes.
        tls: Speak TLS, with these settings (see `serve.http.tls.make_tls_context`).
        max_bodies_bytes: Memory for the bodies of all requests together; by default four of the largest, and at least
            256 MiB. Above it requests are told to come again.

    Attributes:
        counters: What has been seen so far.
    """

    def __init__(
        self,
        router: Router,
        limits: Limits | None = None,
        access: Access | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        max_bodies_bytes: int | None = None,
    ) -> None:
        self.counters = Counters()
        self._limits = limits or Limits()
        self._admission = Admission(router, self._limits, access or Access())
        self._tls = tls
        self._servers: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []
        self._address: tuple[str, int] = ("", 0)
        self._shared: Shared | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._bodies = BodyRoom(max_bodies_bytes or default_room(self._limits.max_body_bytes))
        self._acceptor: Acceptor | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen.

        Args:
            host: Name or address; IPv6 with or without brackets.
            port: 0 takes a free one, which `address` tells.

        Raises:
            UsageError: The port is taken or not allowed, or the host is no name of this machine.
        """
        sockets = listen(host, port)
        self._address = (host.strip("[]"), sockets[0].getsockname()[1])
        limit = raise_descriptor_limit(self._limits.max_connections)
        if 0 < limit < self._limits.max_connections:
            _LOG.warning(
                "this process may hold %d descriptors only, fewer than the %d connections it should take",
                limit,
                self._limits.max_connections,
            )
        loop = asyncio.get_running_loop()
        self._shared = shared = Shared(loop, self._admission, self._limits, self.counters, self._bodies)
        if sys.platform != "win32":
            shared.buffer = bytearray(READ_BYTES)
        self._acceptor = Acceptor(shared, self._tls)
        for bound in sockets:
            if self._tls is not None:
                self._acceptor.listen(bound)
                continue
            # Kept under a second descriptor, to accept what is still waiting when the first is closed.
            self._sockets.append(bound.dup())
            self._servers.append(await loop.create_server(lambda: Connection(shared), sock=bound, backlog=BACKLOG))
        self._sweep()

    @property
    def address(self) -> tuple[str, int]:
        """Host as it was given, without brackets, and the port."""
        return self._address

    @property
    def url(self) -> str:
        """Such as `http://127.0.0.1:8000`."""
        host, port = self._address
        return f"{'https' if self._tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    @property
    def is_draining(self) -> bool:
        """Whether no new connections are taken."""
        return self._shared is not None and self._shared.is_draining

    def begin_drain(self) -> None:
        """Take no new connections, close those that are idle, and the others after their answer."""
        shared = self._shared
        if shared is None or shared.is_draining:
            return
        shared.is_draining = True
        for server in self._servers:
            server.close()
        assert self._acceptor is not None
        self._acceptor.stop(self._sockets)
        shared.loop.call_later(_IDLE_GRACE_S, self._close_idle, False)
        shared.loop.call_later(_FRESH_GRACE_S, self._close_idle, True)

    async def drain(self, timeout_s: float) -> None:
        """Wait until all connections are closed, and cut those that are not after `timeout_s`."""
        self.begin_drain()
        shared = self._shared
        if shared is None:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_closed(shared), timeout_s)
        for connection in (*shared.connections, *shared.refused):
            connection.abort()
        if self._acceptor is not None:
            self._acceptor.abort()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_closed(shared), 1.0)
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def _all_closed(self, shared: Shared) -> None:
        assert self._acceptor is not None
        while shared.connections or shared.refused or self._acceptor.pending:
            shared.on_empty.clear()
            if self._acceptor.pending:
                await asyncio.wait(self._acceptor.pending)
            else:
                await shared.on_empty.wait()

    def _close_idle(self, is_fresh: bool) -> None:
        assert self._shared is not None
        for connection in tuple(self._shared.connections):
            if is_fresh or connection.num_requests:
                connection.close_if_idle()

    def _sweep(self) -> None:
        """One timer for the time limits of all connections."""
        shared = self._shared
        assert shared is not None
        now = time.monotonic()
        for connection in (*shared.connections, *shared.refused):
            connection.sweep(now)
        shared.heads.tick()
        limits = self._limits
        shortest = min(
            limits.header_timeout_s,
            limits.read_timeout_s,
            limits.body_timeout_s,
            limits.write_timeout_s,
            limits.idle_timeout_s,
        )
        pause_s = min(max(shortest * _SWEEP_SHARE, _SWEEP_S[0]), _SWEEP_S[1])
        self._sweeper = shared.loop.call_later(pause_s, self._sweep)
