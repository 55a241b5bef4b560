"""Who a request is from and what it is called, from its headers, and the headers that say so in the answer."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Protocol

from serve.http.message import Request

__all__ = ["answer_headers", "request_id", "sticky_key"]

_SANE = re.compile(rb"[\x21-\x7e]{1,128}")


_NUM_AHEAD = 256


def _draw_names() -> Iterator[str]:
    """Names that nobody can guess; asking the system for each one costs more than the name."""
    while True:
        drawn = os.urandom(12 * _NUM_AHEAD).hex()
        for start in range(0, len(drawn), 24):
            yield "req-" + drawn[start : start + 24]


_names = _draw_names()


class _Named(Protocol):
    @property
    def version(self) -> str: ...


def request_id(request: Request) -> str:
    """The client's own name for the request, or a new one where it gives none that can be shown in a log."""
    given = request.header(b"x-request-id")
    return given.decode("ascii") if given and _SANE.fullmatch(given) else next(_names)


def sticky_key(request: Request) -> str | None:
    """The key whose requests all go to one version."""
    given = request.header(b"x-edgesmith-key")
    return given.decode("latin-1")[:256] if given else None


def answer_headers(identity: str, model: _Named) -> tuple[tuple[bytes, bytes], ...]:
    """Headers that name the request and the version that answered it."""
    return ((b"x-request-id", identity.encode()), (b"x-model-version", model.version.encode()))
