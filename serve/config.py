"""What a server is told to do: its models, limits, keys and traffic. Values only; nothing is opened here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgesmith.errors import UsageError

__all__ = ["Limits", "ModelSpec", "ServerConfig"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that one client may ask for."""

    max_body_bytes: int = 64 << 20
    max_header_bytes: int = 32 << 10
    max_headers: int = 100
    max_url_bytes: int = 8 << 10
    max_json_depth: int = 100
    max_rows: int = 1024
    """Rows of one request's batch."""
    max_tokens: int = 4096
    """Tokens of one answer."""
    max_connections: int = 1024
    header_timeout_s: float = 10.0
    """From a request's first byte to the end of its headers."""
    read_timeout_s: float = 10.0
    """Between two reads of a body that is still coming."""
    body_timeout_s: float = 60.0
    """From the end of the headers to the end of the body."""
    write_timeout_s: float = 30.0
    """How long a client may leave an answer unread."""
    idle_timeout_s: float = 75.0
    """How long a connection may wait for its next request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One version of one model."""

    name: str
    path: Path
    version: str = "1"
    threads: int | None = None
    """Of one run; by default what the machine and its control group leave to this model."""
    max_batch_size: int | None = None
    """Rows that are run together; None measures at warm-up what is fastest, 1 runs each request alone."""
    max_queue_delay_us: int = 0
    """How long a batch that is not full may wait for more rows; 0 takes what is there."""
    max_queue: int = 128
    """Requests that may wait."""
    timeout_s: float | None = 60.0
    """Deadline of requests that state none; None lets them wait for ever."""
    adapters: tuple[tuple[Path, float], ...] = ()
    num_context: int | None = None
    num_slots: int = 4
    """Texts that a language model writes at a time."""
    is_isolated: bool = False
    """Whether the engine runs in a process of its own, so that its crash is not the server's."""
    engine_timeout_s: float | None = 120.0
    """Of an isolated engine: one that has not answered by then hangs, and its process is killed; None never does."""
    allow_golden_mismatch: bool = False
    """Serve a model that fails its own golden vectors, with a warning, instead of refusing it."""

    def __post_init__(self) -> None:
        for what, value in (("model's name", self.name), ("version", self.version)):
            if not _NAME.fullmatch(value):
                raise UsageError(
                    f"{value!r} is no {what}", mend="Use letters, digits, '.', '_' and '-', a letter or digit first."
                )
        for label in ("threads", "max_batch_size", "max_queue", "num_slots", "num_context"):
            number = getattr(self, label)
            if number is not None and number < 1:
                raise UsageError(f"{label} of {self.name} is {number}; it must be at least 1")
        if self.engine_timeout_s is not None and self.engine_timeout_s <= 0:
            raise UsageError(f"engine_timeout_s of {self.name} is {self.engine_timeout_s}; it must be above 0")
        if self.max_queue_delay_us < 0:
            raise UsageError(f"max_queue_delay_us of {self.name} is {self.max_queue_delay_us}; it must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """A whole server."""

    models: tuple[ModelSpec, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    grpc_port: int | None = None
    limits: Limits = field(default_factory=Limits)
    repository: Path | None = None
    """Folder whose subfolders are models that an admin may load by name."""
    admin_token: str | None = None
    """Without it, routes that change the server are off."""
    api_keys: tuple[str, ...] = ()
    """With any, every route but health asks for one of them."""
    allowed_hosts: tuple[str, ...] = ()
    """Names beside localhost that clients may call a server on loopback by; others are refused (DNS rebinding)."""
    allowed_origins: tuple[str, ...] = ()
    """Web pages, such as `https://example.org`, whose scripts may send requests."""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    drain_s: float = 30.0
    """How long requests may take that are under way when the server is told to stop."""
    splits: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Model → version → share of its requests that name no version."""
    shadows: Mapping[str, str] = field(default_factory=dict)
    """Model → version that gets a copy of its requests, its answers thrown away after comparison."""
    slo_ms: float | None = None
    """An answer later than this counts against a version that is compared; None compares failures and feedback."""
    record_to: Path | None = None
    """JSONL file that gets a line for each request: what was answered by whom, without texts."""
    has_page: bool = True
    announce_to: Path | None = None
    """File that gets the server's address once all models are ready."""
