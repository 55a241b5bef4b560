"""What all connections of a server share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from serve.config import Limits
from serve.http.admission import Admission
from serve.http.body_room import BodyRoom
from serve.http.heads import HeadWriter

if TYPE_CHECKING:
    from serve.http.connection import Connection

__all__ = ["Counters", "Shared"]


@dataclass(slots=True, eq=False)
class Counters:
    """What a server has seen, for metrics. Written by the loop's thread alone.

    Attributes:
        connections: Open now.
        connections_total: Accepted since the start, refused ones included.
        connections_refused: Turned away because too many were open.
        requests: Whose headers were read.
        bytes_in: Of requests, heads included; with TLS what was inside.
        bytes_out: Of answers, heads included, as handed to the system.
        client_gone: Requests whose client left before the answer.
        errors: Requests that no handler saw, by reason.
    """

    connections: int = 0
    connections_total: int = 0
    connections_refused: int = 0
    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    client_gone: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    def count_error(self, reason: str) -> None:
        """Count a request that no handler saw."""
        self.errors[reason] = self.errors.get(reason, 0) + 1


@dataclass(slots=True, eq=False)
class Shared:
    """What all connections of a server share.

    Attributes:
        buffer: Where every connection reads to: what has come is used up before the loop reads again. None where
            the loop reads ahead (Windows), so that each connection needs its own.
        bodies: The memory that all bodies share.
        is_draining: No connection is kept after its answer.
        refused: Connections that were too many, until they have read so.
    """

    loop: asyncio.AbstractEventLoop
    admission: Admission
    limits: Limits
    counters: Counters
    bodies: BodyRoom
    heads: HeadWriter = field(default_factory=HeadWriter)
    connections: set[Connection] = field(default_factory=set)
    refused: set[Connection] = field(default_factory=set)
    buffer: bytearray | None = None
    is_draining: bool = False
    on_empty: asyncio.Event = field(default_factory=asyncio.Event)
