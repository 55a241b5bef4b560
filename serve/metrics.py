"""What a server counts: its own integers on the request's path, Prometheus' text when somebody asks.

Counting costs a look-up and a bisection. The exposition is built from these counts, from each model's statistics
and from whatever `extra_collectors` tell, by `prometheus_client`, which is imported at the first reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast

from serve.models.stats import Buckets

if TYPE_CHECKING:
    from prometheus_client import Metric

    from serve.http.shared import Counters
    from serve.models.repository import Repository

__all__ = [
    "REQUEST_BOUNDS_NS",
    "Collector",
    "Metrics",
    "RequestCounts",
    "RequestLabels",
    "content_type",
]

REQUEST_BOUNDS_NS: tuple[int, ...] = tuple(
    round(mantissa * 10**exponent)
    for exponent in range(5, 11)
    for mantissa in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    if mantissa * 10**exponent <= 5e10
)
"""Upper bounds of the durations of requests: 100 µs to 50 s, at most a factor of 1.67 apart."""

MAX_SERIES = 2048
"""Series of requests that are kept; further ones are counted under the empty model."""

Collector: TypeAlias = "Callable[[], Iterable[Metric]]"
"""Gives families of metrics, as `prometheus_client` has them."""


class RequestLabels(NamedTuple):
    """What requests are told apart by."""

    model: str
    version: str
    protocol: str
    reason: str


class RequestCounts:
    """Requests with the same labels.

    Attributes:
        count: How many.
        durations: From a request's last byte to its answer, in nanoseconds.
    """

    __slots__ = ("count", "durations")

    def __init__(self) -> None:
        self.count = 0
        self.durations = Buckets(REQUEST_BOUNDS_NS)


class Metrics:
    """Counts requests, and writes everything that is known of the server for Prometheus.

    Args:
        repository: Its models' statistics are shown. It also says which names are real, so that a client cannot
            make series by inventing names.
        extra_collectors: Called at each reading; give further families, such as those of drift and traffic.

    Attributes:
        requests: Labels → counts.
        extra_collectors: As above; may be added to.
        transport: Counts of the HTTP server, once there is one.
    """

    def __init__(self, repository: Repository, extra_collectors: Sequence[Collector] = ()) -> None:
        self.requests: dict[tuple[str, str, str, str], RequestCounts] = {}
        self.extra_collectors = list(extra_collectors)
        self.transport: Counters | None = None
        self._repository = repository

    def count_request(self, model: str, version: str, protocol: str, reason: str, duration_ns: int) -> None:
        """Count a request that was answered; on the loop's thread.

        Args:
            model: Its model; unknown ones are counted under the empty name.
            version: Of the model that answered, empty if none did.
            protocol: From a fixed set, such as `oip`.
            reason: `ok`, or what `serve.errors.describe_failure` says.
            duration_ns: From the request's last byte to its answer.
        """
        counts = self.requests.get((model, version, protocol, reason))
        if counts is None:
            counts = self._admit(model, version, protocol, reason)
        counts.count += 1
        counts.durations.add(duration_ns)

    def _admit(self, model: str, version: str, protocol: str, reason: str) -> RequestCounts:
        """The counts of labels that are not among the series yet, or that are no series of their own."""
        if len(self.requests) >= MAX_SERIES or model not in self._repository.names():
            model = version = ""
        elif version and all((one.name, one.version) != (model, version) for one in self._repository.index()):
            version = ""
        return self.requests.setdefault(RequestLabels(model, version, protocol, reason), RequestCounts())

    def render(self, accept: str = "") -> bytes:
        """Write the exposition: OpenMetrics where the header `accept` asks for it, else Prometheus' text."""
        from prometheus_client.exposition import choose_encoder

        return cast(bytes, choose_encoder(accept)[0](self))

    def collect(self) -> Iterable[Metric]:
        """Give all families, as a collector of `prometheus_client`."""
        from serve.metric_families import model_families, process_families, request_families, transport_families

        yield from request_families(self.requests)
        yield from model_families(self._repository)
        if self.transport is not None:
            yield from transport_families(self.transport)
        yield from process_families()
        for collector in self.extra_collectors:
            yield from collector()


def content_type(accept: str = "") -> str:
    """Content type of what `Metrics.render` writes for the same `accept`."""
    from prometheus_client.exposition import choose_encoder

    return cast(str, choose_encoder(accept)[1])
