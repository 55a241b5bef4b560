"""The page's live figures: what happened in the last minute, from the counts that `/metrics` shows since the start."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from serve.metrics import REQUEST_BOUNDS_NS
from serve.models.stats import Buckets
from serve.models.text_model import TextModel
from serve.process_figures import read_process

if TYPE_CHECKING:
    from serve.models.repository import IndexEntry, Model
    from serve.service import Service

__all__ = ["LiveFigures", "percentile_ns"]

WINDOW_S = 60.0
_ALL = ("", "")
_APART_S = 0.5
"""Readings nearer to each other than this share one moment, so that many readers cost no memory."""


def percentile_ns(counts: Sequence[int], share: float, bounds: Sequence[int] = REQUEST_BOUNDS_NS) -> float | None:
    """Estimate a percentile from buckets, evenly spread within each as Prometheus' `histogram_quantile` does.

    Args:
        counts: Of each bucket, not cumulative, one more than `bounds`.
        share: In (0, 1).
        bounds: Upper bounds.

    Returns:
        None where nothing was counted; the last bound where the percentile is above it.

    >>> percentile_ns([0, 10, 0], 0.5, (100, 200))
    150.0
    """
    rank = share * sum(counts)
    if not rank:
        return None
    below, low = 0.0, 0
    for count, bound in zip(counts, bounds, strict=False):
        if below + count >= rank and count:
            return low + (bound - low) * (rank - below) / count
        below, low = below + count, bound
    return float(bounds[-1])


@dataclass(slots=True)
class _Tally:
    """What one version of one model, or all together, had done by a moment."""

    answered: list[int] = field(default_factory=lambda: [0] * (len(REQUEST_BOUNDS_NS) + 1))
    failures: dict[str, int] = field(default_factory=dict)
    num_tokens: int = 0

    def add(self, reason: str, count: int, durations: Sequence[int]) -> None:
        if reason == "ok":
            self.answered = [a + b for a, b in zip(self.answered, durations, strict=True)]
        else:
            self.failures[reason] = self.failures.get(reason, 0) + count


@dataclass(slots=True)
class _Moment:
    at_s: float
    tallies: dict[tuple[str, str], _Tally]


class LiveFigures:
    """Reads a server's counts and says what is new in them.

    Nothing is done between readings: the last minute begins with the first of them, or with the server.

    Args:
        service: Whose figures.
        clock: Seconds that only grow.
    """

    def __init__(self, service: Service, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._service = service
        self._clock = clock
        self._past: deque[_Moment] = deque([_Moment(clock(), {})])

    def read(self) -> dict[str, Any]:
        """Take the figures; JSON-able. Times in milliseconds, sizes in bytes."""
        now = _Moment(self._clock(), self._tally())
        then = self._begin(now)
        window_s = now.at_s - then.at_s
        process, metrics = read_process(), self._service.metrics
        transport = metrics.transport
        return {
            "now_s": round(now.at_s, 3),
            "window_s": round(window_s, 3),
            "is_draining": self._service.is_draining,
            "uptime_s": round(max(0.0, time.time() - process.started_s), 1),
            "process": {
                "cpu_s": process.cpu_s,
                "resident_bytes": process.resident_bytes,
                "private_bytes": process.private_bytes,
                "descriptors": process.num_descriptors,
                "connections": transport.connections if transport is not None else None,
            },
            "all": _describe(now, then, _ALL, window_s),
            "models": [self._describe(entry, now, then, window_s) for entry in self._service.repository.index()],
        }

    def _tally(self) -> dict[tuple[str, str], _Tally]:
        tallies: dict[tuple[str, str], _Tally] = {_ALL: _Tally()}
        for (model, version, _, reason), counts in self._service.metrics.requests.items():
            # What failed before a version was chosen is shown with each of them.
            versions = [version] if version or not model else self._service.repository.versions(model)
            for name in {_ALL, *((model, one) for one in versions)}:
                tallies.setdefault(name, _Tally()).add(reason, counts.count, counts.durations.counts)
        for one in self._service.repository.models():
            tallies.setdefault((one.name, one.version), _Tally()).num_tokens = one.stats.generated_tokens
            tallies[_ALL].num_tokens += one.stats.generated_tokens
        return tallies

    def _begin(self, now: _Moment) -> _Moment:
        """The moment that the window begins with; remembers `now` for later readings."""
        past = self._past
        while len(past) > 1 and now.at_s - past[1].at_s >= WINDOW_S:
            past.popleft()
        if now.at_s - past[0].at_s > 1.5 * WINDOW_S:  # nobody has looked for a while
            past.popleft()
        if not past or now.at_s - past[-1].at_s >= _APART_S:
            past.append(now)
        return past[0]

    def _describe(self, entry: IndexEntry, now: _Moment, then: _Moment, window_s: float) -> dict[str, Any]:
        name, service = (entry.name, entry.version), self._service
        said: dict[str, Any] = {"name": name[0], "version": name[1], "state": entry.state, "reason": entry.reason}
        said |= _describe(now, then, name, window_s)
        if entry.state == "READY":
            said |= _stats(service.repository.get(*name))
        if (traffic := service.traffic.report(*name)) is not None:
            said["traffic"] = traffic
        if (drift := service.drift.get(name)) is not None:
            said["drift"] = drift.report()
        return said


def _describe(now: _Moment, then: _Moment, name: tuple[str, str], window_s: float) -> dict[str, Any]:
    """Totals since the start, and rates and percentiles of the window."""
    new, old = now.tallies.get(name) or _Tally(), then.tallies.get(name) or _Tally()
    # A model that was loaded again begins to count tokens anew.
    answered = [max(0, a - b) for a, b in zip(new.answered, old.answered, strict=True)]
    num_tokens = max(0, new.num_tokens - old.num_tokens)
    p50, p99 = percentile_ns(answered, 0.5), percentile_ns(answered, 0.99)
    return {
        "answered": sum(new.answered),
        "failures": new.failures,
        "answered_per_s": round(sum(answered) / window_s, 3) if window_s > 0 else None,
        "p50_ms": None if p50 is None else round(p50 / 1e6, 3),
        "p99_ms": None if p99 is None else round(p99 / 1e6, 3),
        "durations": answered,
        "tokens": new.num_tokens,
        "tokens_per_s": round(num_tokens / window_s, 3) if window_s > 0 else None,
    }


def _stats(model: Model) -> dict[str, Any]:
    """What a model's own statistics say, since it was loaded."""
    stats = model.stats

    def middle_ms(counts: Buckets) -> float | None:
        found = percentile_ns(counts.counts, 0.5, counts.bounds)
        return None if found is None else round(found / 1e6, 3)

    bounds = [*stats.batch_rows.bounds, None]
    return {
        "queued": model.num_waiting if isinstance(model, TextModel) else model.num_queued,
        "running": model.num_running,
        "batch_rows": [[bound, count] for bound, count in zip(bounds, stats.batch_rows.counts, strict=True)],
        "padding_share": round(stats.padding_share, 4),
        "queue_p50_ms": middle_ms(stats.queue_ns),
        "compute_p50_ms": middle_ms(stats.compute_ns),
        "first_token_p50_ms": middle_ms(stats.first_token_ns),
        "between_tokens_p50_ms": middle_ms(stats.between_tokens_ns),
        "prompt_tokens": stats.prompt_tokens,
        "reused_tokens": stats.reused_tokens,
    }
