"""What a load test is to do: one value that goes to every worker as JSON."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from bench.load.schedule import Shape
from edgesmith.errors import UsageError

__all__ = ["LoadPlan", "ProtocolName"]

ProtocolName: TypeAlias = Literal["oip", "openai"]

_SHORTEST_SECRET = 6

_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """A load test: whom, how much, with what."""

    url: str
    """The model's URL (`…/v2/models/NAME`, `…/infer`), an OpenAI base (`…/v1`) or one of its operations."""
    shape: Shape
    data: Path | None = None
    """Rows that become requests; by default the packaged sample sentences."""
    protocol: ProtocolName | None = None
    """By default found from the URL and by asking the server."""
    model: str | None = None
    """Its name where the URL does not say it; by default the first one that an OpenAI server lists."""
    encoder: Path | None = None
    """Artifact or checkpoint whose tokenizer turns texts into a numeric model's inputs."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Where a row has what, `{"text": "headline"}`."""
    batch_size: int = 1
    """Rows in one request of the Open Inference Protocol or of embeddings."""
    binary: bool | None = None
    """Whether tensors go as bytes; by default if the server's metadata names the extension."""
    stream: bool = True
    """Whether generated tokens are asked for one by one."""
    max_tokens: int = 64
    num_payloads: int = 1000
    """Different requests at the most, drawn from the data."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further ones of each request, such as an authorization. They are in no result."""

    is_served_here: bool = False
    """Whether the server was started for this test alone, with the artifact that it is said to have."""
    seed: int = 0
    timeout_s: float = 30.0
    """A request unanswered for so long has failed."""
    limit_ms: float | None = None
    limit_percentile: float = 99.0
    confidence: float = 0.99
    warm_up_requests: int = 10
    """Sent by each worker one after the other before the clock starts; in no figure."""
    max_in_flight: int = 4096
    """Requests of one worker that may wait for an answer at once; further ones are not sent and have failed."""
    max_samples: int = 2_000_000
    """Requests kept one by one; those after them are in the histogram only."""

    processes: int = 1
    """Workers on this machine, forked by Locust."""
    expect_workers: int = 0
    """Workers of other terminals or machines to wait for instead; 0 for none."""
    master_host: str = "127.0.0.1"
    """Address on which such workers are awaited."""
    master_port: int | None = None
    """By default 5557 for other machines' workers, a free one for our own."""
    workers_wait_s: float = 60.0
    """How long such workers are awaited."""
    web_port: int | None = None
    """Port of Locust's web page, on the loopback address only; by default there is none."""
    web_linger_s: float = 0.0
    """How long the page stays after the end."""

    def __post_init__(self) -> None:
        """Refuse what cannot be obeyed."""
        for name in ("batch_size", "max_tokens", "num_payloads", "max_in_flight", "max_samples", "processes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("timeout_s", "workers_wait_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{name} is {getattr(self, name):g}; it must be above 0")
        if self.expect_workers < 0 or self.warm_up_requests < 0 or not 0 <= self.web_linger_s < float("inf"):
            raise UsageError("workers, warm-up requests and seconds must not be negative")
        if self.expect_workers and self.processes > 1:
            raise UsageError("a load has workers of its own processes or of other machines, not both")
        if self.limit_ms is not None and not 0 < self.limit_ms < float("inf"):
            raise UsageError(f"a limit of {self.limit_ms:g} ms", mend="Give a limit above 0 ms.")
        if not 0 < self.limit_percentile < 100:
            raise UsageError(f"percentile {self.limit_percentile:g} is not between 0 and 100")
        if self.protocol not in (None, "oip", "openai"):
            raise UsageError(f"protocol {self.protocol!r} is unknown", mend="Use oip or openai.")
        if not 0 < self.confidence < 1:
            raise UsageError(f"confidence {self.confidence:g} is not between 0 and 1")
        if self.seed < 0:
            raise UsageError(f"seed {self.seed} is negative")
        for name, value in self.headers.items():
            if not _HEADER.fullmatch(name) or not value.isprintable() or not value.isascii():
                raise UsageError(f"{name!r} is no header of HTTP", mend="Write it as NAME: VALUE in ASCII.")

    @property
    def num_workers(self) -> int:
        """Processes that send."""
        return self.expect_workers or self.processes

    @property
    def is_sent_over_network(self) -> bool:
        """Whether the plan with its headers goes to workers over a network, where it is not encrypted."""
        return self.expect_workers > 0 and not is_loopback(self.master_host)

    @property
    def is_distributed(self) -> bool:
        """Whether a master gathers what workers send."""
        return self.expect_workers > 0 or self.processes > 1

    def hide_secrets(self, text: str) -> str:
        """Take the headers' values out of a text, such as an error in which the server repeats them."""
        values = {part for value in self.headers.values() for part in (value, *value.split())}
        for value in sorted(values, key=len, reverse=True):
            if len(value) >= _SHORTEST_SECRET:
                text = text.replace(value, "***")
        return text

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        value = asdict(self)
        return value | {
            "shape": self.shape.to_json(),
            "data": None if self.data is None else str(self.data),
            "encoder": None if self.encoder is None else str(self.encoder),
            "columns": dict(self.columns),
            "headers": dict(self.headers),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LoadPlan:
        """Read what `to_json` gave."""
        return cls(
            **(
                dict(value)
                | {
                    "shape": Shape.from_json(value["shape"]),
                    "data": None if value["data"] is None else Path(value["data"]),
                    "encoder": None if value["encoder"] is None else Path(value["encoder"]),
                }
            )
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
