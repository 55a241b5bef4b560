"""The thread that runs a model: takes requests from a queue, runs them in batches and hands them back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from time import monotonic_ns
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import EdgesmithError, UsageError
from serve.errors import DeadlineError, EngineFailedError, NotReadyError, RequestError
from serve.models.batching import BatchLimits, Layout, Waiting, choose_batch, cut, join, split_rows
from serve.models.job import Job
from serve.models.stats import ModelStats
from serve.models.threads import start_thread

__all__ = ["AbandonedError", "Executor", "Run"]

_log = logging.getLogger(__name__)

Run: TypeAlias = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
"""An engine's `run`: all inputs by name → all outputs by name."""


class AbandonedError(RequestError):
    """The client went away before its request was begun."""

    status: ClassVar[int] = 499
    reason: ClassVar[str] = "cancelled"


class Executor:
    """One thread that runs one engine.

    Args:
        name: Of the thread.
        run: The engine's.
        layout: Of the graph.
        limits: Of its batches.
        delay_us: How long a batch that is not full may wait for more rows, from the arrival of its oldest request.
        stats: Told of every run.
        deliver: Called on the executor's thread with requests that have their outcome, in groups.
        ended: Called on the executor's thread as the last thing it does.

    Attributes:
        num_begun: Requests whose run has begun, since the start.
        job_ns: Recent mean of a run's time divided by its requests; 0 before the first.
    """

    def __init__(
        self,
        name: str,
        run: Run,
        layout: Layout,
        limits: BatchLimits,
        *,
        delay_us: int,
        stats: ModelStats,
        deliver: Callable[[list[Job]], None],
        ended: Callable[[], None],
    ) -> None:
        self._run = run
        self._layout = layout
        self._limits = limits
        self._delay_ns = delay_us * 1000
        self._stats = stats
        self._deliver = deliver
        self._ended = ended
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._waiting: list[Waiting] = []
        self._is_stopping = False
        self.num_begun = 0
        self.job_ns = 0.0
        self.put: Callable[[Job], None] = self._queue.put
        self._name = name
        start_thread(self._work, name)

    def stop(self) -> None:
        """Let the thread end when all that was put before is done. From any thread; twice is harmless."""
        self._queue.put(None)

    def run_here(self, job: Job) -> None:
        """Run a job at once, on the thread that asks. Only while the executor's own thread has nothing to do."""
        self.num_begun += 1
        self._answer([Waiting(job, self._layout)])

    def _work(self) -> None:
        get = self._queue.get
        while self._waiting or not self._is_stopping:
            item = None if self._waiting else get()
            try:
                if not self._waiting:
                    self._take(item)
                self._take_all()
                self._step()
            except Exception as error:  # noqa: BLE001 - a fault of ours, and whoever waits must still be told
                _log.exception("%s: the executor failed", self._name)
                self._give_up(error)
        ended = self._ended
        # What it was given leads back to the model: without these the model is free to go when nobody holds it.
        self._run, self._deliver, self._ended = _no_run, _tell_nobody, _end_nothing
        ended()

    def _take(self, job: Job | None) -> None:
        if job is None:
            self._is_stopping = True
        else:
            self._waiting.append(Waiting(job, self._layout))

    def _take_all(self) -> None:
        queue = self._queue
        for _ in range(queue.qsize()):
            self._take(queue.get_nowait())

    def _step(self) -> None:
        """Run one batch of what waits."""
        if self._delay_ns and not self._is_stopping:
            self._wait_for_more()
        waiting = self._waiting
        self._drop_dead()
        if not waiting:
            return
        batch = choose_batch(waiting, self._limits, self._layout)
        if len(batch) == len(waiting):
            waiting.clear()
        else:
            waiting[:] = [item for item in waiting if not item.is_taken]
        self.num_begun += len(batch)
        self._answer(batch)
        self._deliver([item.job for item in batch])

    def _wait_for_more(self) -> None:
        """Wait until a batch is full or its oldest request has waited for as long as it may."""
        if self._layout.rows != "shared" or not self._waiting:
            return
        oldest = self._waiting[0]
        full = self._limits.rows_of(oldest.row_elements)
        until = oldest.job.received_ns + self._delay_ns
        while sum(item.rows for item in self._waiting) < full and not self._is_stopping:
            left = until - monotonic_ns()
            if left <= 0:
                return
            try:
                self._take(self._queue.get(timeout=left / 1e9))
            except Empty:
                return
            self._take_all()

    def _drop_dead(self) -> None:
        """Answer those whose client has gone or whose time is over, instead of running them."""
        now = monotonic_ns()
        dropped: list[Job] = []
        live = []
        for item in self._waiting:
            job = item.job
            if job.is_cancelled:
                job.error = job.error or AbandonedError("the client has gone")
            elif job.deadline_ns is not None and job.deadline_ns <= now:
                job.error = job.error or _too_late(job, now)
            if job.error is None:
                live.append(item)
            else:
                dropped.append(job)
        if dropped:
            self._waiting[:] = live
            self.num_begun += len(dropped)
            self._deliver(dropped)

    def _answer(self, batch: Sequence[Waiting]) -> None:
        """Run a batch and set each request's outputs or error."""
        started = monotonic_ns()
        for item in batch:
            item.job.started_ns = started
        rows = sum([item.rows for item in batch])
        try:
            if len(batch) == 1:
                batch[0].job.outputs = self._run_alone(batch[0])
            else:
                self._run_together(batch, rows)
        except UsageError as error:
            if len(batch) > 1:  # one of them does not fit the model, and the others are not to suffer for it
                for item in batch:
                    self._answer([item])
                return
            batch[0].job.error = error
        except Exception as error:  # noqa: BLE001 - whatever it is, the clients are told
            for item in batch:
                item.job.error = _as_failure(error)
        finished = monotonic_ns()
        for item in batch:
            item.job.finished_ns = finished
            item.job.batch_rows = rows
        took = (finished - started) / len(batch)
        self.job_ns = self.job_ns * 0.9 + took * 0.1 if self.job_ns else took

    def _run_together(self, batch: Sequence[Waiting], rows: int) -> None:
        layout = self._layout
        first = monotonic_ns()
        arrays = join(batch, layout)
        second = monotonic_ns()
        outputs = self._run(arrays)
        third = monotonic_ns()
        _check_rows(outputs, rows)
        for item, answer in zip(batch, cut(outputs, batch, layout), strict=True):
            item.job.outputs = answer
        self._stats.count_run(rows, len(batch), second - first, third - second, monotonic_ns() - third)
        if layout.fill:
            self._stats.elements_given += sum([item.rows * item.length for item in batch])
            self._stats.elements_run += rows * max([item.length for item in batch])

    def _run_alone(self, item: Waiting) -> dict[str, NDArray[Any]]:
        """Run one request, in pieces if it is larger than a run may be."""
        layout = self._layout
        match layout.rows:
            case "shared":
                most = self._limits.rows_of(item.row_elements)
            case "single":
                most = 1
            case "none":
                most = item.rows
        if item.rows <= most:
            first = monotonic_ns()
            outputs = self._run(item.arrays)
            self._stats.count_run(item.rows, 1, 0, monotonic_ns() - first, 0)
        else:
            outputs = self._run_pieces(item, most)
        if layout.rows != "none":
            _check_rows(outputs, item.rows)
        if layout.fill:
            self._stats.elements_given += item.rows * item.length
            self._stats.elements_run += item.rows * item.length
        return dict(outputs) if type(outputs) is not dict else outputs

    def _run_pieces(self, item: Waiting, most: int) -> dict[str, NDArray[Any]]:
        job, found = item.job, []
        for number, piece in enumerate(split_rows(item.arrays, item.rows, most)):
            if job.is_cancelled or job.error is not None:
                raise AbandonedError("the client has gone")
            first = monotonic_ns()
            found.append(self._run(piece))
            rows = min(most, item.rows - number * most)
            self._stats.count_run(rows, 1 if number == 0 else 0, 0, monotonic_ns() - first, 0)
        return {name: np.concatenate([outputs[name] for outputs in found]) for name in self._layout.output_names}

    def _give_up(self, error: Exception) -> None:
        jobs = [item.job for item in self._waiting]
        for job in jobs:
            job.error = job.error or _as_failure(error)
        self._waiting.clear()
        self.num_begun += len(jobs)
        self._deliver(jobs)


def _no_run(arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    del arrays
    raise NotReadyError("the model is closed")


def _tell_nobody(jobs: list[Job]) -> None:
    del jobs


def _end_nothing() -> None:
    pass


def _too_late(job: Job, now: int) -> DeadlineError:
    waited_ms = (now - job.received_ns) / 1e6
    return DeadlineError(
        f"the request's time was over after {waited_ms:.0f} ms of waiting",
        mend="Give it more time, or send fewer at a time.",
    )


def _as_failure(error: Exception) -> EdgesmithError:
    """A broken engine's error, as one that a client is told."""
    if isinstance(error, RequestError):
        return error
    _log.error("an engine failed", exc_info=error)
    failure = EngineFailedError(f"the engine failed: {type(error).__name__}", mend="Try again.")
    failure.__cause__ = error
    return failure


def _check_rows(outputs: Mapping[str, NDArray[Any]], rows: int) -> None:
    for name, values in outputs.items():
        if values.shape[:1] != (rows,):
            raise EngineFailedError(
                f"the output {name!r} has shape {list(values.shape)} for {rows} rows",
                mend="Set max_batch_size to 1: this model's rows are not independent.",
            )
