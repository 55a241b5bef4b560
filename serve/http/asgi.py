"""The same routes under any ASGI server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from serve.access import Access
from serve.config import Limits
from serve.http.router import Router

__all__ = ["asgi_app"]


def asgi_app(
    router: Router,
    limits: Limits | None = None,
    access: Access | None = None,
    *,
    on_startup: Callable[[], Awaitable[None]] | None = None,
    on_shutdown: Callable[[], Awaitable[None]] | None = None,
) -> Callable[..., Awaitable[Any]]:
    """An ASGI 3 application."""
    raise NotImplementedError
