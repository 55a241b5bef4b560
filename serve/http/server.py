"""HTTP/1.1 server: listening sockets, TLS, the sweep that enforces timeouts, and draining."""

from __future__ import annotations

import ssl

from serve.access import Access
from serve.config import Limits
from serve.http.router import Router

__all__ = ["HttpServer"]


class HttpServer:
    """Answers HTTP on one address."""

    def __init__(
        self,
        router: Router,
        limits: Limits | None = None,
        access: Access | None = None,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        raise NotImplementedError

    async def start(self, host: str, port: int) -> None:
        """Listen."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        raise NotImplementedError

    def begin_drain(self) -> None:
        """Stop accepting."""

    async def drain(self, timeout_s: float) -> None:
        """Wait."""
