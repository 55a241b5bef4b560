"""The thread that a served language model writes on, and the way of jobs there and of their chunks back."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from edgesmith.errors import EdgesmithError
from serve.errors import DeadlineError, EngineFailedError, NotReadyError, OverloadedError
from serve.models.delivery import Delivery, Event
from serve.models.job import GenerationJob
from serve.models.scheduling import answer_call, known_error, request_of
from serve.models.stats import ModelStats
from serve.models.threads import start_thread
from serve.runtime.generation import TextChunk
from serve.runtime.text_writer import Text, TextWriter

__all__ = ["Scheduler"]

Result = TypeVar("Result")

_LOG = logging.getLogger(__name__)
_HANG_S = 5.0


_MOST_GONE = 8
"""Times the length of the queue that jobs of clients that have gone may be kept beside it."""


@dataclass(slots=True, eq=False)
class _Entry:
    """A job on its way.

    Attributes:
        job: What was asked.
        begin_by_ns: On `time.monotonic_ns`; after it, a job that was not begun is given up.
        text: Its prompt, split; None before, and where that failed.
        error: Why it failed.
        last_ns: When its last token was there.
    """

    job: GenerationJob
    begin_by_ns: int | None
    text: Text | None = None
    error: EdgesmithError | None = None
    last_ns: int = 0


class Scheduler:
    """Runs a writer on a thread of its own.

    Prompts are split on a second thread, so that a long one does not hold up the answers of others. A job without a
    deadline of its own must be begun within `timeout_s`, and may then take as long as it needs; a deadline of its own
    holds for the whole answer.

    Args:
        writer: It belongs to the scheduler from now on.
        name: For messages and the thread.
        stats: The writer's part is kept up to date here.
        max_queue: Jobs that may wait.
        timeout_s: See above. None lets jobs wait for ever.
        loop: On whose thread jobs come, and their chunks go.
    """

    def __init__(
        self,
        writer: TextWriter[Any],
        *,
        name: str,
        stats: ModelStats,
        max_queue: int,
        timeout_s: float | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._writer = writer
        self._name = name
        self._stats = stats
        self._max_queue = max_queue
        self._timeout_ns = None if timeout_s is None else int(timeout_s * 1e9)
        self._delivery = Delivery(loop, stats)
        self._preparer = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"prompts-{name}")
        self._wake = threading.Condition()
        self._arrived: deque[_Entry] = deque()  # guarded by _wake, as are the two below
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._num_preparing = 0
        self._waiting: deque[_Entry] = deque()  # the rest is the thread's own
        self._running: dict[Text, _Entry] = {}
        self._num_submitted = self._num_left = 0  # the queue's length is their difference
        self._queued: set[GenerationJob] = set()  # added to by the loop, taken from by the thread
        self._is_closing = self._is_hurried = False
        self._ended = threading.Event()
        self._thread = start_thread(self._run, f"writer-{name}")

    @property
    def num_running(self) -> int:
        """Texts that are being written."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Jobs that wait for a slot."""
        return self._num_submitted - self._num_left

    def submit(self, job: GenerationJob) -> None:
        """Take a job, on the loop's thread.

        Raises:
            OverloadedError: The queue is full.
            NotReadyError: It is being closed.
        """
        if self.num_waiting >= self._max_queue and self._is_full():
            raise OverloadedError(
                f"{self.num_waiting} requests wait for {self._name} already", mend="Try again a little later."
            )
        begin_by = job.deadline_ns
        if begin_by is None and self._timeout_ns is not None:
            begin_by = job.received_ns + self._timeout_ns
        with self._wake:
            self._check_open()
            self._num_preparing += 1
            self._preparer.submit(self._prepare, _Entry(job, begin_by))
            self._queued.add(job)
        self._num_submitted += 1
        self._delivery.expect(job, begin_by)

    def _is_full(self) -> bool:
        """Whether as many wait as may, without those whose client has gone; they keep a place until the next step."""
        gone = sum(job.is_cancelled or job.finished_ns > 0 for job in list(self._queued))
        return not gone or self.num_waiting - gone >= self._max_queue or gone >= _MOST_GONE * self._max_queue

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Call a function on the writer's thread, when the engine may be asked other things.

        Raises:
            NotReadyError: It is being closed.
        """
        future: Future[Result] = Future()
        with self._wake:
            self._check_open()
            self._calls.append((function, future))
            self._wake.notify()
        return future

    def _check_open(self) -> None:
        if self._is_closing:
            raise NotReadyError(f"{self._name} is being unloaded", mend="Try again a little later.")

    def _prepare(self, entry: _Entry) -> None:
        """Split a prompt, on the preparer's thread."""
        try:
            if not (entry.job.is_cancelled or self._is_hurried):
                entry.text = self._writer.prepare(request_of(entry.job))
        except BaseException as error:  # noqa: BLE001 - told to whoever asked, whatever it is
            entry.error = known_error(error)
        with self._wake:
            self._num_preparing -= 1
            self._arrived.append(entry)
            self._wake.notify()

    def _run(self) -> None:
        """The thread."""
        try:
            while self._wait_for_work():
                now_ns = time.monotonic_ns()
                self._drop_stale(now_ns)
                self._begin_waiting()
                if self._running:
                    self._step()
                self._delivery.flush()
        finally:
            self._writer.close()
            self._delivery.flush()
            self._ended.set()

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False when all is done and nothing more will come."""
        with self._wake:
            while not (self._arrived or self._calls or self._waiting or self._running):
                if self._is_closing and not self._num_preparing:
                    return False
                self._wake.wait()
            self._waiting.extend(self._arrived)
            self._arrived.clear()
            is_free = self._writer.is_engine_free or not self._running
            call = self._calls.popleft() if self._calls and is_free else None  # one a step: it may take long
        if call is not None:
            answer_call(*call)
        return True

    def _drop_stale(self, now_ns: int) -> None:
        """Give up what nobody waits for any more."""
        for entry in [entry for entry in self._waiting if self._is_stale(entry, entry.begin_by_ns, now_ns)]:
            self._waiting.remove(entry)
            self._leave(entry)
        for text, entry in [*self._running.items()]:
            if self._is_stale(entry, entry.job.deadline_ns, now_ns):
                del self._running[text]
                self._writer.drop(text)

    def _is_stale(self, entry: _Entry, deadline_ns: int | None, now_ns: int) -> bool:
        """Whether a job has failed or is to be ended; if so, it is told."""
        error = entry.error
        if error is None and self._is_hurried:
            error = NotReadyError(f"{self._name} was unloaded before the answer was complete", mend="Try again.")
        if error is None and deadline_ns is not None and now_ns > deadline_ns:
            what = "begun" if entry.text not in self._running else "complete"
            error = DeadlineError(f"the time was over before the answer was {what}", mend="Try again later.")
        if error is None and not entry.job.is_cancelled:
            return False
        self._delivery.add(Event(entry.job, error=error, is_last=True))
        return True

    def _begin_waiting(self) -> None:
        """Begin jobs in the order in which they came, as long as there is room."""
        while self._waiting:
            entry = self._waiting[0]
            assert entry.text is not None  # else it has an error, and is gone
            try:
                if not self._writer.begin(entry.text):
                    return
            except BaseException as error:  # noqa: BLE001 - the others go on
                self._delivery.add(Event(entry.job, error=known_error(error), is_last=True))
            else:
                entry.job.started_ns = time.monotonic_ns()
                entry.job.num_prompt_tokens = entry.text.num_prompt_tokens
                self._stats.prompt_tokens += entry.text.num_prompt_tokens
                self._running[entry.text] = entry
            self._waiting.popleft()
            self._leave(entry)

    def _leave(self, entry: _Entry) -> None:
        self._num_left += 1
        self._queued.discard(entry.job)

    def _step(self) -> None:
        """Let the writer make one step, and send what came of it."""
        started_ns = time.monotonic_ns()
        num_running = len(self._running)
        try:
            found = self._writer.step()
        except BaseException as error:  # noqa: BLE001 - nothing may end this thread
            self._fail_all(error)
            return
        now_ns = time.monotonic_ns()
        num_tokens = 0
        for text, result in found:
            entry = self._running[text]
            if isinstance(result, TextChunk):
                num_tokens += result.num_tokens
                self._note(entry, text, result, now_ns)
                is_last = result.finish_reason is not None
                self._delivery.add(Event(entry.job, chunk=result, is_last=is_last))
            else:
                is_last = True
                self._delivery.add(Event(entry.job, error=result, is_last=True))
            if is_last:
                del self._running[text]
        self._stats.count_run(num_running, len(found), 0, now_ns - started_ns, 0)
        self._stats.generated_tokens += num_tokens

    def _note(self, entry: _Entry, text: Text, chunk: TextChunk, now_ns: int) -> None:
        """Keep account of one chunk."""
        job = entry.job
        if not job.first_ns:
            job.first_ns = now_ns
            job.num_reused_tokens = text.num_reused_tokens
            self._stats.reused_tokens += text.num_reused_tokens
            self._stats.first_token_ns.add(now_ns - job.received_ns)
        else:
            self._stats.between_tokens_ns.add(now_ns - entry.last_ns)
        entry.last_ns = now_ns
        job.num_tokens += chunk.num_tokens

    def _fail_all(self, error: BaseException) -> None:
        """Fail the texts that the engine failed on, and go on with the next ones."""
        known = known_error(error)
        for entry in self._running.values():
            self._delivery.add(Event(entry.job, error=EngineFailedError(known.message, mend=known.mend), is_last=True))
        self._running.clear()
        try:
            self._writer.renew()
        except BaseException as again:  # noqa: BLE001 - the next text asks for it again, and is told if that fails
            _LOG.error("%s: cannot begin anew: %s", self._name, again)

    def close(self, timeout_s: float | None = None) -> None:
        """Take no more jobs, finish those that there are, and close the writer. Blocks; closing twice is harmless.

        Args:
            timeout_s: What is not finished then fails. None waits.
        """
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        if not self._ended.wait(timeout_s):
            self._is_hurried = True
            with self._wake:
                self._wake.notify()
            if not self._ended.wait(_HANG_S):  # the thread is stuck in the engine, and ends when that lets it go
                self._preparer.shutdown(wait=False)
                return
        self._preparer.shutdown()
        self._thread.join()
