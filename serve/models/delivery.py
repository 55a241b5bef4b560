"""The way of chunks from a writer's thread to the loop's: one call for all that came of a step."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass

from edgesmith.errors import EdgesmithError
from serve.errors import DeadlineError, describe_failure
from serve.models.job import GenerationJob
from serve.models.stats import ModelStats
from serve.runtime.generation import TextChunk

__all__ = ["CANCELLED", "Delivery", "Event"]

CANCELLED = "cancelled"
"""What metrics count a job by whose client has gone."""

_GRACE_S = 0.1
"""The writer itself ends what is late, between two steps; only if it is stuck in one, the loop does."""


@dataclass(slots=True, eq=False)
class Event:
    """Something that a job is to be told.

    Attributes:
        job: Which one.
        chunk: A piece of its answer.
        error: Why there is no more.
        is_last: Whether it is over.
    """

    job: GenerationJob
    chunk: TextChunk | None = None
    error: EdgesmithError | None = None
    is_last: bool = False


class Delivery:
    """Collects events on one thread, and tells the jobs on the loop's.

    Args:
        loop: Whose thread it is.
        stats: Outcomes are counted there.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, stats: ModelStats) -> None:
        self._loop = loop
        self._stats = stats
        self._events: list[Event] = []
        self._alarms: dict[GenerationJob, asyncio.TimerHandle] = {}

    def expect(self, job: GenerationJob, begin_by_ns: int | None) -> None:
        """See to it that a job is answered soon after its deadline, or after `begin_by_ns` if it was not begun."""
        if begin_by_ns is not None:
            left_s = max(0, begin_by_ns - time.monotonic_ns()) / 1e9
            self._alarms[job] = self._loop.call_later(left_s + _GRACE_S, self._ring, job)

    def _ring(self, job: GenerationJob) -> None:
        self._alarms.pop(job, None)
        if not job.started_ns or job.deadline_ns is not None:
            what = "complete" if job.started_ns else "begun"
            error = DeadlineError(f"the time was over before the answer was {what}", mend="Try again later.")
            self._end(Event(job, error=error, is_last=True))

    def add(self, event: Event) -> None:
        """Keep an event until `flush`."""
        self._events.append(event)

    def flush(self) -> None:
        """Send what was added."""
        if self._events:
            events, self._events = self._events, []
            with suppress(RuntimeError):  # the loop is closed, and nobody listens
                self._loop.call_soon_threadsafe(self._tell, events)

    def _tell(self, events: list[Event]) -> None:
        """On the loop's thread."""
        for event in events:
            job = event.job
            if job.finished_ns:  # its time was over, and it was told so
                continue
            try:
                if event.chunk is not None and not job.is_cancelled:
                    job.on_chunk(event.chunk)
            except Exception as error:  # noqa: BLE001 - one listener's failure is not the others'
                job.is_cancelled = True
                self._loop.call_exception_handler({"message": "a listener failed on a chunk", "exception": error})
            if event.is_last:
                self._end(event)

    def _end(self, event: Event) -> None:
        job = event.job
        if (alarm := self._alarms.pop(job, None)) is not None:
            alarm.cancel()
        job.finished_ns = time.monotonic_ns()
        job.error = event.error
        if event.chunk is not None:
            job.finish_reason = event.chunk.finish_reason
        self._count(job)
        try:
            job.done(job)
        except Exception as error:  # noqa: BLE001 - as above
            self._loop.call_exception_handler({"message": "a listener failed on an end", "exception": error})

    def _count(self, job: GenerationJob) -> None:
        total_ns = job.finished_ns - job.received_ns
        if job.error is not None:
            self._stats.count_failure(describe_failure(job.error)[1], total_ns)
        elif job.finish_reason is None:
            self._stats.count_failure(CANCELLED, total_ns)
        else:
            self._stats.count_success(1, job.started_ns - job.received_ns, total_ns)
