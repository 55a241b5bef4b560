"""A graph that answers requests: the loop's side of it; the other side is `serve.models.executor`."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

from numpy.typing import NDArray

from edgesmith.artifact import Artifact, Signature
from edgesmith.errors import EdgesmithError
from edgesmith.tasks import Task
from serve.config import ModelSpec
from serve.errors import DeadlineError, NotReadyError, OverloadedError, describe_failure
from serve.models.batching import RELEASED, Layout, read_layout
from serve.models.executor import AbandonedError, Executor, Run
from serve.models.job import Job
from serve.models.stats import ModelStats
from serve.models.validation import Validator
from serve.models.warm_up import WarmUp, warm_up
from serve.runtime import Engine

__all__ = ["GraphModel"]

_log = logging.getLogger(__name__)

_MOST_RETRY_S = 60
_BRIEF_NS = 80_000


class GraphModel:
    """One version of a model, its engine, and the thread that runs it.

    Making one warms the engine up, which takes from a tenth of a second to a few; make it on a thread of a pool, not on
    the loop's. All methods are for the loop's thread.

    Requests that wait are run together, the oldest first, up to `max_batch_size` rows and never waiting for more
    unless `max_queue_delay_us` says so. Of a model whose activations are quantized at run time with one scale for the
    whole batch (`dynamic-int8`), the other rows of a batch, and padding, move a row's outputs by about as much as
    quantization itself did; `warm.batch_effect` says how far. Every model is given the smallest batches that come
    within 2 % of the best throughput; `max_batch_size=1` leaves every row alone, so that an answer depends on its
    request only.

    Args:
        spec: How it is served; `spec.threads` has been obeyed by whoever opened the engine.
        artifact: What the engine runs.
        engine: Closed by `close`.
        loop: Where jobs are submitted and told their outcome.
        task: Makes the inputs and reads the outputs; of a text task, rows of several lengths may be padded together.
            None for a graph that takes arrays only.

    Attributes:
        name: Of the model.
        version: Of the model.
        signature: What the engine takes and gives.
        layout: Where in it the rows and tokens are.
        has_batch_axis: Whether the first axis of every input and output is that of rows.
        task: As given.
        stats: What it has done so far.
        warm: What the first runs told.
        max_batch_size: Rows that are run together at most.

    Raises:
        ArtifactError: The golden vectors are damaged.
    """

    def __init__(
        self,
        spec: ModelSpec,
        artifact: Artifact,
        engine: Engine,
        *,
        loop: asyncio.AbstractEventLoop,
        task: Task | None = None,
    ) -> None:
        self.name, self.version = spec.name, spec.version
        self.spec = spec
        self.artifact = artifact
        self.signature = engine.signature
        self.engine_name = engine.name
        self.task = task
        self.stats = ModelStats()
        self._engine = engine
        self._loop = loop
        self._validator = Validator(engine.signature, read_layout(engine.signature, self.task))
        run = cast(Run, getattr(engine, "run_checked", engine.run))
        self.layout, self.warm = _warm(run, self._validator.layout, spec, artifact, engine.signature, self.task)
        self._validator.layout = self.layout
        self.has_batch_axis = self.layout.rows != "none"
        self.max_batch_size = self.warm.limits.max_rows
        self._pending: dict[Job, None] = {}
        self._overdue: set[Job] = set()  # answered though their run goes on
        self._num_delivered = 0
        self._timeout_ns = None if spec.timeout_s is None else int(spec.timeout_s * 1e9)
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_ns = 0
        self._is_closing = False
        # Only an engine in this process: one in another may hang, and the loop with it.
        self._can_be_brief = not spec.is_isolated and not spec.max_queue_delay_us
        self._brief_size = 0
        self._ended = loop.create_future()
        self._executor = Executor(
            f"{spec.name}-{spec.version}",
            run,
            self.layout,
            self.warm.limits,
            delay_us=spec.max_queue_delay_us,
            stats=self.stats,
            deliver=self._deliver_soon,
            ended=self._end_soon,
        )

    @property
    def num_running(self) -> int:
        """Requests that the engine has begun with and whose outcome is not told yet."""
        return self._executor.num_begun - self._num_delivered

    @property
    def num_queued(self) -> int:
        """Requests that wait for the engine."""
        return max(0, len(self._pending) - (self.num_running - len(self._overdue)))

    def num_rows(self, arrays: Mapping[str, NDArray[Any]]) -> int:
        """Rows of a request's arrays: the length of their first axis, 1 where that is not an axis of rows."""
        return self._validator.num_rows(arrays)

    def validate(self, arrays: Mapping[str, NDArray[Any]]) -> int:
        """Check a request's arrays against the signature; about 2 µs.

        Returns:
            Their rows.

        Raises:
            UsageError: An array is missing, unknown, empty, or of the wrong dtype or shape.
        """
        return self._validator.check(arrays)

    def submit(self, job: Job) -> None:
        """Take a request; its `done` is called once, later (but see `Job.is_told_at_once`), on the loop's thread.

        Sets `job.num_rows`, and `job.deadline_ns` if the request states none. Its arrays must not be changed any more.

        Raises:
            UsageError: Its arrays do not fit the model.
            OverloadedError: As many requests wait as may.
            NotReadyError: The model is being unloaded.
        """
        try:
            if self._is_closing:
                raise NotReadyError(f"{self.name} {self.version} is being unloaded", mend="Try again in a moment.")
            job.num_rows = self._validator.check(job.arrays)
            pending = self._pending
            if len(pending) >= self.spec.max_queue and self.num_queued >= self.spec.max_queue:
                self._drop_gone()
                if self.num_queued >= self.spec.max_queue:
                    raise self._overloaded()
        except EdgesmithError as error:
            self.stats.count_failure(describe_failure(error)[1])
            raise
        if job.deadline_ns is None and self._timeout_ns is not None:
            job.deadline_ns = job.received_ns + self._timeout_ns
        pending[job] = None
        if job.deadline_ns is not None and (self._alarm is None or job.deadline_ns < self._alarm_ns):
            self._set_alarm(job.deadline_ns)
        if self._can_run_here(job):
            self._executor.run_here(job)
            if job.is_told_at_once:
                self._deliver((job,))
            else:
                self._loop.call_soon(self._deliver, (job,))
        else:
            self._executor.put(job)

    def _can_run_here(self, job: Job) -> bool:
        """Whether nothing else is under way, and its run is so brief that handing it over would cost as much."""
        return (
            len(self._pending) == 1
            and not self._overdue
            and self._can_be_brief
            and next(iter(job.arrays.values())).size <= self._brief_size
        )

    def _note_brevity(self, job: Job) -> None:
        """Remember up to which size a request's run is brief; another one's may be as long as it likes."""
        if job.error is None and job.batch_rows == job.num_rows and job.arrays:
            size, took_ns = next(iter(job.arrays.values())).size, job.finished_ns - job.started_ns
            if took_ns > _BRIEF_NS:
                self._brief_size = min(self._brief_size, size - 1)
            elif size > self._brief_size:
                self._brief_size = size

    async def close(self, timeout_s: float | None = None) -> None:
        """Refuse new requests, let those that wait finish, stop the thread and close the engine.

        Args:
            timeout_s: After it, requests that are not answered get a NotReadyError, and the thread ends by itself
                after the run that it is in. None waits for as long as it takes.
        """
        if not self._is_closing:
            self._is_closing = True
            self._executor.stop()
        try:
            await asyncio.wait_for(asyncio.shield(self._ended), timeout_s)
        except TimeoutError:
            error = NotReadyError(f"{self.name} {self.version} was unloaded before it could answer")
            for job in list(self._pending):
                self._finish_early(job, error)
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _overloaded(self) -> OverloadedError:
        queued = self.num_queued
        wait_s = math.ceil(queued * self._executor.job_ns / 1e9)
        return OverloadedError(
            f"{queued} requests wait for {self.name} already",
            mend="Try again later, or send fewer at a time.",
            retry_after_s=min(max(wait_s, 1), _MOST_RETRY_S),
        )

    def _deliver_soon(self, jobs: list[Job]) -> None:
        """On the executor's thread: have jobs told their outcome, all in one turn of the loop."""
        try:
            self._loop.call_soon_threadsafe(self._deliver, jobs)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            if not self._loop.is_closed():
                raise

    def _deliver(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._num_delivered += 1
            self._overdue.discard(job)
            if job in self._pending:  # else its time was over meanwhile, and it was told so
                if self._can_be_brief:
                    self._note_brevity(job)
                self._finish(job, job.error)

    def _finish(self, job: Job, error: BaseException | None) -> None:
        del self._pending[job]
        if error is None:
            self.stats.count_success(
                job.num_rows, max(0, job.started_ns - job.received_ns), job.finished_ns - job.received_ns
            )
        else:
            job.error, job.outputs = error, None
            self.stats.count_failure(describe_failure(error)[1], time.monotonic_ns() - job.received_ns)
        try:
            job.done(job)
        except Exception as fault:  # noqa: BLE001 - the other requests of the batch are still to be told
            self._loop.call_exception_handler({"message": "a request's callback failed", "exception": fault})

    def _finish_early(self, job: Job, error: BaseException) -> None:
        """Tell a request that waits or is being run; what its run still gives is dropped."""
        if job.started_ns:
            self._overdue.add(job)
        self._finish(job, error)
        # The executor meets it later, perhaps much later; nothing of the request is kept for that.
        job.arrays, job.done = RELEASED, _told

    def _drop_gone(self) -> None:
        """Give the places in the queue of clients that have gone to others."""
        for job in [job for job in self._pending if job.is_cancelled and not job.started_ns]:
            self._finish_early(job, AbandonedError("the client has gone"))

    def _set_alarm(self, deadline_ns: int) -> None:
        """Look for requests whose time is over at that time: the engine may be stuck in a run then."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_ns = deadline_ns
        self._alarm = self._loop.call_later(max(0, deadline_ns - time.monotonic_ns()) / 1e9, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        now = time.monotonic_ns()
        late = [job for job, deadline in self._deadlines() if deadline <= now]
        for job in late:
            waited_ms = (now - job.received_ns) / 1e6
            self._finish_early(job, DeadlineError(f"the request's time was over after {waited_ms:.0f} ms"))
        if not self._is_closing or self._pending:
            nearest = min((deadline for _, deadline in self._deadlines()), default=None)
            if nearest is not None:
                self._set_alarm(nearest)

    def _deadlines(self) -> list[tuple[Job, int]]:
        """Requests whose outcome is not there yet, and when each is too late."""
        return [
            (job, job.deadline_ns)
            for job in self._pending
            if job.deadline_ns is not None and not job.finished_ns and job.error is None
        ]

    def _end_soon(self) -> None:
        """On the executor's thread, which ends."""
        try:
            self._engine.close()
        except Exception:  # noqa: BLE001 - it is logged, and who closes must not wait for ever
            _log.exception("%s %s: the engine could not be closed", self.name, self.version)
        try:
            self._loop.call_soon_threadsafe(self._end)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


def _told(job: Job) -> None:
    del job


def _warm(
    run: Run, layout: Layout, spec: ModelSpec, artifact: Artifact, signature: Signature, task: Task | None
) -> tuple[Layout, WarmUp]:
    """Warm up, and take back what the layout promised and the first runs did not keep."""
    clock: Callable[[], float] = time.perf_counter if spec.is_isolated else time.thread_time
    warm = warm_up(run, signature, layout, artifact, task, max_batch_size=spec.max_batch_size, clock=clock)
    if not warm.has_rows:
        return replace(layout, rows="none", fill={}, token_axes={}), warm
    if layout.fill and not warm.can_mix_lengths:
        return replace(layout, fill={}, token_axes={}), warm
    return layout, warm
