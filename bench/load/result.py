"""What a load test saw: every request from when it was to be sent, failures included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.gates.verdict import show
from bench.histogram import Histogram
from bench.load.recording import GENERATOR
from bench.load.schedule import Shape
from bench.load.stored import load_result, save_result
from bench.load.summary import PERCENTILES, summarize, summarize_streams
from bench.load.timeline import Second, count_seconds
from bench.machine.conditions import Conditions
from bench.machine.machine import Machine
from bench.stats.dependence import percentile_inflation
from bench.stats.percentiles import PercentileBounds, bound_percentile

__all__ = ["INTERRUPTED", "SERVED_HERE", "Failure", "LoadResult"]

INTERRUPTED = "it was interrupted"
"""`stopped_because` of a load that its user ended."""
SERVED_HERE = "the server was started for this test, with the artifact"
"""Note of a load whose server is ours."""

_MAX_LAG_NS = 1_000_000
_MAX_LAG_SHARE = 0.05
_MAX_BEGIN_UNCERTAINTY_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Requests that failed in one way."""

    name: str
    """Such as `time-out`, `refused`, `http 503`, `wrong shape`; `generator` is none of the server's."""
    count: int
    sample: str
    """What the first of them was."""


@dataclass(frozen=True, kw_only=True)
class LoadResult:
    """Samples of one load test."""

    url: str
    protocol: str
    payload: str
    """What the requests held, in words."""
    server: Mapping[str, Any]
    """What the server said of itself and its model."""
    shape: Shape
    seed: int
    num_workers: int
    timeout_s: float
    limit_ms: float | None
    limit_percentile: float

    start_ns: NDArray[np.int64]
    """Intended start of each request since the run's begin, ascending, of shape [n]."""
    wall_ns: NDArray[np.int64]
    """From the intended start to the last byte of the answer, or to the failure; of shape [n]."""
    lag_ns: NDArray[np.int64]
    """From the intended start to the sending: what the load generator itself added; of shape [n]."""
    outcome: NDArray[np.int64]
    """0 for a right answer, else 1 + the place in `failures`; of shape [n]."""
    ttft_ns: NDArray[np.int64] | None
    """From the intended start to the first text, -1 where there was none; of shape [n]. None if nothing streamed."""
    num_tokens: NDArray[np.int64] | None
    """Tokens of each stream as the server counted them, or its pieces of text (`tokens_are_chunks`), of shape [n]."""
    itl_ns: NDArray[np.int64] | None
    """Time between successive pieces of text of all streams that ended well; a piece may hold several tokens."""
    failures: tuple[Failure, ...]
    histogram: Histogram
    """Of the right answers' `wall_ns`, merged from all workers; `histogram_all` counts the failures, too."""
    lag_histogram: Histogram
    num_requests: int
    """All that came due, those that are in the histograms only included."""
    num_not_sent: int
    """Of the failures, those that were never sent because too many requests were waiting for an answer."""
    client_cpu_us: float
    """CPU time that the load generator spent on a request, in microseconds."""
    max_in_flight: int
    """Most requests of one worker that waited for an answer at once."""
    num_connections: int
    is_complete: bool
    """Whether every planned request came due: no worker was lost and nobody stopped the load."""
    stopped_because: str
    """Why it is not complete."""
    notes: tuple[str, ...]
    machine: Machine
    """On which the load generator ran."""
    conditions: Conditions | None = None
    begin_uncertainty_s: float = 0.0
    """How much later than another a worker of another machine may have begun, in seconds."""
    tokens_are_chunks: bool = False
    """Whether `num_tokens` holds pieces of text, since the server does not say how many tokens they are."""

    @property
    def num_failed(self) -> int:
        """Requests without a right answer."""
        return sum(failure.count for failure in self.failures)

    @property
    def num_ok(self) -> int:
        """Requests with a right answer."""
        return self.num_requests - self.num_failed

    @property
    def is_sampled(self) -> bool:
        """Whether every request was kept; if not, the percentiles are the histogram's."""
        return len(self.wall_ns) == self.num_requests

    @property
    def rate(self) -> float:
        """Requests a second that were asked for, averaged over the run."""
        return self.shape.mean_rate

    @property
    def rate_sent(self) -> float:
        """Requests a second that were sent in the time asked for, averaged over the run."""
        return (self.num_requests - self.num_not_sent) / self.shape.seconds

    @property
    def duration_s(self) -> float:
        """How long requests were to be sent, in seconds."""
        return self.shape.seconds

    @property
    def num_generator_faults(self) -> int:
        """Of the failures, those for which this machine lacked files, ports or memory."""
        return sum(failure.count for failure in self.failures if failure.name == GENERATOR)

    @property
    def histogram_all(self) -> Histogram:
        """Durations of all requests; failures are in the last bucket, which is over every limit."""
        merged = Histogram()
        merged.merge(self.histogram)
        merged.counts[-1] += self.num_failed
        return merged

    @property
    def lag_p99_ns(self) -> int:
        """Delay that 99 % of the sendings did not exceed, in nanoseconds; 0 if nothing was sent."""
        return self.lag_percentile_ns(99.0)

    def lag_percentile_ns(self, percentile: float) -> int:
        """Give the delay that so many per cent of the sendings did not exceed, in nanoseconds; 0 if nothing was sent.

        A gate of a high percentile looks at the same percentile of the lag: what only a few requests in a thousand
        met can be all that makes it slow.

        Args:
            percentile: In per cent, in (0, 100).
        """
        return self.lag_histogram.percentile(percentile) if self.lag_histogram.num_samples else 0

    @property
    def lag_percentile(self) -> float:
        """Which percentile of the lag `why_not_kept` judges: the 99th or that of the limit, if that is higher."""
        return max(99.0, self.limit_percentile)

    @property
    def max_lag_ns(self) -> int:
        """What the lag may be: 1 ms, or 5 % of the limit if that is more."""
        return max(_MAX_LAG_NS, int(_MAX_LAG_SHARE * (self.limit_ms or 0.0) * 1e6))

    @property
    def is_open_loop_kept(self) -> bool:
        """Whether the server met the load that was asked for; if not, the run proves nothing."""
        return not self.why_not_kept

    @property
    def why_not_kept(self) -> str:
        """Why the server did not meet the load that was asked for; empty if it did."""
        if not self.is_complete:
            return f"the load is not complete: {self.stopped_because}"
        if not self.num_requests:
            return f"no request came due: {self.shape.description}"
        if self.num_generator_faults:
            what = next(failure.sample for failure in self.failures if failure.name == GENERATOR)
            return f"{self.num_generator_faults:,} requests failed in the load generator itself: {what}"
        if self.begin_uncertainty_s > _MAX_BEGIN_UNCERTAINTY_S:
            return f"a worker may have begun {1e3 * self.begin_uncertainty_s:.0f} ms after the others"
        if self.is_late:
            allowed_ms = self.max_lag_ns / 1e6
            late = show(self.lag_percentile_ns(self.lag_percentile) / 1e6, allowed_ms, rounding="up")
            return (
                f"{100 - self.lag_percentile:.4g} % of the requests left more than {late} ms late, and "
                f"{allowed_ms:g} ms are allowed: the load generator was too slow"
            )
        return ""

    @property
    def is_late(self) -> bool:
        """Whether more requests than may left later than allowed."""
        return self.lag_percentile_ns(self.lag_percentile) > self.max_lag_ns

    def count_over(self, limit_ms: float) -> int:
        """Requests over a limit in milliseconds, every failure included."""
        if self.is_sampled:
            return int(((self.wall_ns > limit_ms * 1e6) | (self.outcome != 0)).sum())
        return self.histogram.count_over(int(limit_ms * 1e6)) + self.num_failed

    def percentile(self, percentile: float, confidence: float = 0.99) -> PercentileBounds:
        """Bound a percentile of the latency, in milliseconds; a failure is later than any limit, so infinite.

        Requests that depend on each other, as those behind one stall, count for fewer. Of a load too long to keep
        every request, the histogram gives the percentiles and the kept requests the dependence.

        Args:
            percentile: In per cent, in (0, 100).
            confidence: Of each bound on its own.
        """
        kept_ms = self._wall_ms()
        inflation = percentile_inflation(kept_ms, percentile)
        if self.is_sampled:
            return bound_percentile(kept_ms, percentile, confidence, inflation)
        return _in_ms(self.histogram_all.bounds(percentile, confidence, inflation))

    def percentile_without_lag(self, percentile: float, confidence: float = 0.99) -> PercentileBounds:
        """Bound a percentile of the time since the sending, in milliseconds, of the requests that were kept.

        It flatters the server where the load generator waited for it, so it certifies nothing; but a server that is
        within its limit by this and over it by `percentile` is slow by the load generator's lag only.

        Args:
            percentile: In per cent, in (0, 100).
            confidence: Of each bound on its own.
        """
        sent_ms = np.where(self.outcome == 0, (self.wall_ns - self.lag_ns) / 1e6, np.inf)
        return bound_percentile(sent_ms, percentile, confidence, percentile_inflation(sent_ms, percentile))

    def percentiles(self, confidence: float = 0.99) -> tuple[PercentileBounds, ...]:
        """Bound the usual percentiles of the latency, in milliseconds."""
        return tuple(self.percentile(percentile, confidence) for percentile in PERCENTILES)

    def timeline(self) -> tuple[Second, ...]:
        """Give what happened in each second, by intended start; of the kept requests."""
        return count_seconds(self.start_ns, self.wall_ns, self.outcome, seconds=self.shape.seconds)

    def stream_summary(self) -> dict[str, Any] | None:
        """Give time to the first token and between tokens, JSON-able, in milliseconds; None if nothing streamed."""
        return summarize_streams(self)

    def _wall_ms(self) -> NDArray[np.float64]:
        return np.where(self.outcome == 0, self.wall_ns / 1e6, np.inf)

    def summary(self) -> dict[str, Any]:
        """Give the figures without the samples, JSON-able. An unsupported or infinite percentile is null."""
        return summarize(self)

    def save(self, folder: Path) -> None:
        """Write `load.json` and the samples into a folder.

        Raises:
            StorageError: The folder cannot be written.
        """
        save_result(self, folder)

    @classmethod
    def load(cls, folder: Path) -> LoadResult:
        """Read what `save` wrote.

        Raises:
            UsageError: The folder holds no load test.
            ArtifactError: It is damaged.
        """
        return load_result(folder)


def _in_ms(bounds: PercentileBounds) -> PercentileBounds:
    """Turn bounds in nanoseconds into milliseconds."""

    def scaled(value: float | None) -> float | None:
        return None if value is None else value / 1e6

    return replace(bounds, estimate=scaled(bounds.estimate), lower=scaled(bounds.lower), upper=scaled(bounds.upper))
