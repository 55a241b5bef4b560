"""What a server counts: its own integers on the request's path, Prometheus' text when somebody asks.

Counting costs a look-up and a bisection. The exposition is built from these counts, from each model's statistics
and from whatever `extra_collectors` tell, by `prometheus_client`, which is imported at the first reading.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["DURATION_BOUNDS_NS", "Collector", "DurationCounts", "KnownModels", "Metrics", "RequestSeries"]

DURATION_BOUNDS_NS: tuple[int, ...] = tuple(
    round(mantissa * 10.0**exponent)
    for exponent in range(5, 11)
    for mantissa in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    if mantissa * 10.0**exponent <= 6e10
)
"""Upper bounds of the buckets of durations, in nanoseconds: 100 µs to 50 s, at most a factor of 1.67 apart."""

MAX_SERIES = 4096
"""Series of requests that are kept; further ones are counted under the empty model."""

if TYPE_CHECKING:
    Collector = Callable[[], Iterable[Metric]]
else:
    Collector = Callable


class KnownModels(Protocol):
    """What the counter needs of the repository: which names are real."""

    def names(self) -> Iterable[str]:
        """Names of the models."""

    def versions(self, name: str) -> Iterable[str]:
        """Versions of a model."""


@dataclass(slots=True)
class DurationCounts:
    """A histogram of durations: `buckets[i]` counts those at most `DURATION_BOUNDS_NS[i]`, the last one the rest."""

    buckets: list[int] = field(default_factory=lambda: [0] * (len(DURATION_BOUNDS_NS) + 1))
    total_ns: int = 0

    def add(self, duration_ns: int) -> None:
        """Count one."""
        self.buckets[bisect_left(DURATION_BOUNDS_NS, duration_ns)] += 1
        self.total_ns += duration_ns


@dataclass(slots=True)
class RequestSeries:
    """Requests of one model, version and protocol that ended for one reason."""

    count: int = 0
    durations: DurationCounts = field(default_factory=DurationCounts)


class Metrics:
    """Counts requests, and writes everything that is known of the server for Prometheus.

    Args:
        repository: Says which names of models are real, so that a client cannot make series by inventing names.
        extra_collectors: Called at each reading; give further families, such as those of drift and traffic.
    """

    def __init__(self, repository: KnownModels, extra_collectors: Sequence[Collector] = ()) -> None:
        self.extra_collectors: list[Collector] = list(extra_collectors)
        self._repository = repository
        self.requests: dict[tuple[str, str, str, str], RequestSeries] = {}

    def count_request(self, model: str, version: str, protocol: str, reason: str, duration_ns: int) -> None:
        """Count a request that was answered.

        Args:
            model: Its model; unknown ones are counted under the empty name.
            version: Of the model that answered, empty if none did.
            protocol: Short and from a fixed set, such as `oip`.
            reason: `ok`, or what `describe_failure` says.
            duration_ns: From the request's last byte to its answer.
        """
        series = self.requests.get((model, version, protocol, reason))
        if series is None:
            series = self._series(model, version, protocol, reason)
        series.count += 1
        series.durations.add(duration_ns)

    def _series(self, model: str, version: str, protocol: str, reason: str) -> RequestSeries:
        if model not in self._repository.names():
            model = version = ""
        elif version and version not in self._repository.versions(model):
            version = ""
        if len(self.requests) >= MAX_SERIES:
            model = version = ""
        return self.requests.setdefault((model, version, protocol, reason), RequestSeries())

    def render(self, accept: str = "") -> bytes:
        """Write the exposition, in OpenMetrics' format where `accept` asks for it."""
        from prometheus_client.exposition import choose_encoder

        encode, _ = choose_encoder(accept)
        return encode(self)

    def content_type(self, accept: str = "") -> str:
        """The content type of what `render` writes for `accept`."""
        from prometheus_client.exposition import choose_encoder

        return choose_encoder(accept)[1]

    def collect(self) -> Iterable[Metric]:
        """Give the families, as `prometheus_client`'s collectors do."""
        for collector in self.extra_collectors:
            yield from collector()
