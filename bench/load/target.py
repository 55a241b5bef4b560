"""What is sent and what must come back: ready bytes of every request, made before the clock starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Address", "Target", "make_request"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server listens."""

    host: str
    port: int
    is_tls: bool

    @property
    def authority(self) -> str:
        """The value of a request's `Host`."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == (443 if self.is_tls else 80) else f"{name}:{self.port}"

    @property
    def base(self) -> str:
        """Such as `http://127.0.0.1:8000`."""
        return f"{'https' if self.is_tls else 'http'}://{self.authority}"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server's model, the requests to it, and what a right answer is."""

    protocol: str
    """`oip` or `openai`."""
    address: Address
    path: str
    """Of the requests; their name in Locust's statistics."""
    requests: tuple[bytes, ...]
    """Complete HTTP messages, headers included."""
    num_rows: tuple[int, ...]
    """Rows of the answer to each request."""
    contract: Mapping[str, Any]
    """What a right answer is, JSON-able, as the protocol's checker reads it."""
    payload: str
    """What the requests hold, in words."""
    server: Mapping[str, Any] = field(default_factory=dict)
    """What the server says of itself and its model, JSON-able."""
    notes: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """Write one line of JSON, then the requests one after the other."""
        head = {
            "protocol": self.protocol,
            "address": {"host": self.address.host, "port": self.address.port, "is_tls": self.address.is_tls},
            "path": self.path,
            "sizes": [len(request) for request in self.requests],
            "num_rows": self.num_rows,
            "contract": self.contract,
            "payload": self.payload,
            "server": self.server,
            "notes": self.notes,
        }
        return json.dumps(head).encode() + b"\n" + b"".join(self.requests)

    @classmethod
    def from_bytes(cls, content: bytes) -> Target:
        """Read what `to_bytes` gave."""
        line, _, rest = content.partition(b"\n")
        head = json.loads(line)
        requests, begin = [], 0
        for size in head["sizes"]:
            requests.append(rest[begin : begin + size])
            begin += size
        return cls(
            protocol=head["protocol"],
            address=Address(**head["address"]),
            path=head["path"],
            requests=tuple(requests),
            num_rows=tuple(head["num_rows"]),
            contract=head["contract"],
            payload=head["payload"],
            server=head["server"],
            notes=tuple(head["notes"]),
        )


def make_request(
    address: Address, path: str, body: bytes, *, content_type: str, headers: Mapping[str, str], accept: str = "*/*"
) -> bytes:
    """Write one POST request with its headers, ready to be sent on a connection that stays open.

    Source: RFC 9112, HTTP/1.1, sections 3 and 5.
    """
    given = {name.lower() for name in headers}
    lines = {
        "Host": address.authority,
        "User-Agent": "edgesmith-load",
        "Accept": accept,
        "Content-Type": content_type,
        "Content-Length": str(len(body)),
    }
    merged = {name: value for name, value in lines.items() if name.lower() not in given} | dict(headers)
    head = "".join(f"{name}: {value}\r\n" for name, value in merged.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body
