"""The open loop: a request leaves at its time whatever the earlier ones are waiting for."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gevent
import numpy as np
from gevent.pool import Group
from numpy.typing import NDArray

from bench.load.generator.timer import Alarm
from bench.load.generator.wire import Connections, exchange
from bench.load.plan import LoadPlan
from bench.load.protocols import AnswerError, open_checker
from bench.load.recording import Recorder
from bench.load.target import Target

__all__ = ["Dispatcher"]

_CLOCK = time.monotonic_ns

Fire = Callable[..., Any]


class _Reply(NamedTuple):
    """A right answer."""

    finish_ns: int
    """Moment of the last byte."""
    num_bytes: int
    """Of the body; 0 of a stream."""
    token_ns: list[int]
    """Moments of a stream's pieces of text."""
    num_tokens: int | None


class Dispatcher:
    """Sends one worker's share of a load.

    Args:
        plan: The load.
        target: Its requests.
        recorder: Notes them.
        fire: Locust's request event, so that its statistics and page show them.
        worker: Which share, in [0, plan.num_workers).
    """

    def __init__(self, plan: LoadPlan, target: Target, recorder: Recorder, fire: Fire, worker: int) -> None:
        self.plan = plan
        self.target = target
        self.recorder = recorder
        self.fire = fire
        self.worker = worker
        self._checker = open_checker(target)
        self._connections = Connections(target.address)
        self._group = Group()
        self._begin_ns = 0

    def warm_up(self) -> None:
        """Send the first requests one after the other; they are in no figure.

        Objects made until then, Locust's own many among them, are of no interest to the garbage collector any more:
        looking at them takes milliseconds.
        """
        self._ask_a_few()
        gc.collect()
        gc.freeze()

    def _ask_a_few(self) -> None:
        for number in range(self.plan.warm_up_requests):
            index = number % len(self.target.requests)
            try:
                self._ask(index)
            except AnswerError as error:
                self.recorder.notes.append(f"a warm-up request failed: {error}")
                return

    def run(self, starts_ns: NDArray[np.int64], begin_ns: int) -> None:
        """Send every request at its time, then wait for the last answer or its time-out.

        Args:
            starts_ns: Since the begin, ascending.
            begin_ns: On `time.monotonic_ns`.
        """
        self._begin_ns = begin_ns
        alarm = Alarm()
        self.recorder.begin()
        group, recorder = self._group, self.recorder
        num_payloads, stride = len(self.target.requests), self.plan.num_workers
        try:
            for number, start_ns in enumerate(starts_ns.tolist()):
                alarm.sleep_until(begin_ns + start_ns)
                in_flight = len(group.greenlets)
                if in_flight >= self.plan.max_in_flight:
                    self._refuse(start_ns, in_flight)
                    continue
                group.spawn(self._send, (self.worker + number * stride) % num_payloads, start_ns)
                recorder.max_in_flight = max(recorder.max_in_flight, in_flight + 1)
            group.join()
        finally:
            group.kill()
            recorder.num_connections = self._connections.num_opened
            alarm.close()
            self._connections.close()

    def _send(self, index: int, start_ns: int) -> None:
        """Send one request and note what became of it."""
        intended_ns = self._begin_ns + start_ns
        lag_ns = _CLOCK() - intended_ns
        failure: AnswerError | None = None
        reply: _Reply | None = None
        try:
            reply = self._ask(index)
        except AnswerError as error:
            failure = error
        except gevent.GreenletExit:
            failure = AnswerError("interrupted", "the load was stopped before the answer")
        wall_ns = (_CLOCK() if reply is None else reply.finish_ns) - intended_ns
        self._note(start_ns, wall_ns, lag_ns, failure, reply)

    def _ask(self, index: int) -> _Reply:
        """Exchange one request.

        Raises:
            AnswerError: There is no right answer.
        """
        stream = self._checker.open_stream(index)
        reply = exchange(
            self._connections, self.target.requests[index], timeout_s=self.plan.timeout_s, stream=stream, clock=_CLOCK
        )
        finish_ns = _CLOCK()
        status = reply.get_code()
        if stream is not None and status == 200:
            stream.finish()
            return _Reply(finish_ns, 0, stream.token_ns, stream.num_tokens)
        body = bytes(reply.body)
        self._checker.check(index, status, reply.get, body)
        return _Reply(finish_ns, len(body), [], None)

    def _refuse(self, start_ns: int, in_flight: int) -> None:
        self.recorder.num_not_sent += 1
        lag_ns = _CLOCK() - self._begin_ns - start_ns
        failure = AnswerError("not sent", f"{in_flight} requests were already waiting for an answer")
        self._note(start_ns, lag_ns, lag_ns, failure, None)

    def _note(
        self, start_ns: int, wall_ns: int, lag_ns: int, failure: AnswerError | None, reply: _Reply | None
    ) -> None:
        intended_ns = self._begin_ns + start_ns
        self.recorder.record(
            start_ns=start_ns,
            wall_ns=wall_ns,
            lag_ns=lag_ns,
            failure=None if failure is None else (failure.name, failure.detail),
            token_ns=[] if reply is None else [moment - intended_ns for moment in reply.token_ns],
            num_tokens=None if reply is None else reply.num_tokens,
        )
        self.fire(
            request_type="POST",
            name=self.target.path,
            response_time=wall_ns / 1e6,
            response_length=0 if reply is None else reply.num_bytes,
            exception=None if failure is None else failure.name,
            context={},
        )
