"""What the processes of a load do beside Locust's own: wait for each other, begin together, report, end.

A worker asks for the plan (if it has not inherited it), gets ready and says so; when all are ready the master
tells them to begin; each says when it is done. A load without workers is both at once: Locust's local runner hands
the messages to itself.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gevent
from gevent.event import AsyncResult
from locust.env import Environment
from locust.runners import MasterRunner

from bench.load.clock import begin_message, choose_begin, clock_name
from bench.load.generator.dispatch import Dispatcher
from bench.load.job import read_job
from bench.load.plan import LoadPlan
from bench.load.recording import STORAGE_CODE, Recorder, store_report
from bench.load.schedule import arrivals
from bench.load.target import Target

__all__ = ["Master", "Worker", "leave_with_parent", "report_often"]

PLAN, READY, GO, DONE = "edgesmith_plan", "edgesmith_ready", "edgesmith_go", "edgesmith_done"
HEARD = "edgesmith_heard"
_REPORT_S = 1.0
_LOOK_S = 0.25


class Worker:
    """Sends one share of the load.

    Args:
        environment: Locust's, with its runner.
        job: Open file of the plan and the requests; None to ask the master for them.
    """

    def __init__(self, environment: Environment, job: int | None) -> None:
        self.environment = environment
        self._inherited = job
        self._job: AsyncResult[tuple[LoadPlan, Target]] = AsyncResult()
        self._go: AsyncResult[int] = AsyncResult()
        self._recorder: Recorder | None = None
        self._is_started = False
        self._runner.register_message(GO, self._on_go)
        if job is None:
            self._runner.register_message(PLAN, self._on_plan)

    @property
    def _runner(self) -> Any:
        return self.environment.runner

    def run(self) -> None:
        """Do the whole share; only once in the life of a process."""
        if self._is_started:
            return
        self._is_started = True
        plan, target = self._get_job()
        index = int(self._runner.worker_index)
        if index >= plan.num_workers:
            return  # came when all shares had an owner
        recorder = Recorder(max(1, plan.max_samples // plan.num_workers))
        fire = self.environment.events.request.fire
        dispatcher = Dispatcher(plan, target, recorder, fire, index)
        starts_ns = arrivals(plan.shape, seed=plan.seed, worker=index, num_workers=plan.num_workers)
        dispatcher.warm_up()
        self._recorder = recorder
        self._runner.send_message(READY, {"worker": index})
        is_interrupted = True
        try:
            dispatcher.run(starts_ns, self._go.get())
            is_interrupted = False
        finally:
            report = recorder.take_report(worker=index, is_done=True, is_interrupted=is_interrupted)
            self._recorder = None
            self._runner.send_message(DONE, report)

    def report(self) -> dict[str, Any] | None:
        """Give what came since the last report; None before the begin and after the end."""
        if self._recorder is None:
            return None
        return self._recorder.take_report(worker=int(self._runner.worker_index))

    def _get_job(self) -> tuple[LoadPlan, Target]:
        if self._inherited is not None:
            plan, target = read_job(self._inherited)
            return plan, Target.from_bytes(target)
        self._runner.send_message(PLAN, None)
        job: tuple[LoadPlan, Target] = self._job.get()
        return job

    def _on_plan(self, msg: Any, **_: Any) -> None:
        self._job.set((LoadPlan.from_json(json.loads(msg.data["plan"])), Target.from_bytes(msg.data["target"])))

    def _on_go(self, msg: Any, **_: Any) -> None:
        begin_ns, is_exact = choose_begin(msg.data, time.monotonic_ns(), clock_name())
        self._runner.send_message(HEARD, {"is_exact": is_exact})
        self._go.set(begin_ns)


class Master:
    """Begins the load when all workers are ready, stores their reports, and ends it.

    Args:
        environment: Locust's, with its runner.
        folder: Takes the reports.
        job: Open file of the plan and the requests.
    """

    def __init__(self, environment: Environment, folder: Path, job: int) -> None:
        self.environment = environment
        self.folder = folder
        self.plan, self._target = read_job(job)
        self._ready: dict[str, int] = {}  # node → worker
        self._done: set[str] = set()
        self._lost: dict[str, float] = {}  # node → seconds since the begin
        self._begin: float | None = None
        self._uncertain_s: dict[str, float] = {}  # node → how much later than the others it may have begun
        self._unstored: list[Mapping[str, Any]] = []  # reports in the order of their coming
        self._fault = ""
        self._is_mute = False
        runner: Any = environment.runner
        runner.register_message(READY, self._on_ready)
        runner.register_message(DONE, self._on_done)
        runner.register_message(HEARD, self._on_heard)
        if isinstance(runner, MasterRunner):
            runner.register_message(PLAN, self._on_plan)
        self._write_state(stopped="")
        gevent.spawn(self._watch)

    def store(self, report: Mapping[str, Any] | None) -> None:
        """Keep a report; one that the disk does not take is tried again with each later one."""
        if report is not None:
            self._unstored.append(report)
        try:
            while self._unstored:
                store_report(self.folder, self._unstored[0])
                self._unstored.pop(0)
        except OSError as error:
            self._fault = f"what was recorded cannot be stored: {error.filename or self.folder}: {error.strerror}"
        else:
            self._fault = ""

    def _on_plan(self, msg: Any, **_: Any) -> None:
        message = {"plan": json.dumps(self.plan.to_json()), "target": self._target}
        self._send(PLAN, message, client_id=msg.node_id)

    def _on_ready(self, msg: Any, **_: Any) -> None:
        self._ready[msg.node_id] = int(msg.data["worker"])
        if len(self._ready) == self.plan.num_workers and self._begin is None:
            self._begin = time.monotonic()
            self._write_state(stopped="")
            # Not at once: what hands a message over in one process would begin before this returns.
            gevent.spawn_later(0, self._go)

    def _go(self) -> None:
        self._begin = time.monotonic()
        self._send(GO, begin_message(time.monotonic_ns()))

    def _on_heard(self, msg: Any, **_: Any) -> None:
        if not msg.data["is_exact"] and self._begin is not None:
            self._uncertain_s[msg.node_id] = time.monotonic() - self._begin
            self._write_state(stopped="")

    def _on_done(self, msg: Any, **_: Any) -> None:
        try:
            self.store(msg.data)
        finally:
            self._done.add(msg.node_id)

    def _send(self, kind: str, data: Any, client_id: str | None = None) -> None:
        runner: Any = self.environment.runner
        runner.send_message(kind, data, client_id)

    def _watch(self) -> None:
        """End the load when nobody is left who sends, or when the process that started it is gone."""
        parent = os.getppid()
        came = time.monotonic()
        while True:
            gevent.sleep(_LOOK_S)
            self._look_for_lost()
            if self._is_mute:
                return self._end(self._fault, linger_s=0)
            if os.getppid() != parent:
                return self._end("the process that started the load is gone", linger_s=0)
            if self._begin is None:
                if time.monotonic() - came > self.plan.workers_wait_s:
                    return self._end(f"only {len(self._ready)} of {self.plan.num_workers} workers came", linger_s=0)
            elif set(self._ready) <= self._done | set(self._lost):
                return self._end("", linger_s=self.plan.web_linger_s)

    def _look_for_lost(self) -> None:
        runner: Any = self.environment.runner
        if not isinstance(runner, MasterRunner):
            return
        here = {client.id for client in runner.clients.all if client.state != "missing"}
        for node in self._ready:
            if node not in here and node not in self._done and node not in self._lost:
                self._lost[node] = 0.0 if self._begin is None else time.monotonic() - self._begin
                self._write_state(stopped="")

    def _end(self, stopped: str, *, linger_s: float) -> None:
        self.store(None)
        self._write_state(stopped=stopped or self._fault)
        environment = self.environment
        if self._fault or self._is_mute:
            environment.process_exit_code = STORAGE_CODE
        if environment.web_ui is not None:
            gevent.sleep(linger_s)
            environment.web_ui.stop()
        runner: Any = environment.runner
        runner.quit()

    def _write_state(self, *, stopped: str) -> None:
        state = {
            "is_begun": self._begin is not None,
            "stopped": stopped,
            "lost": [[self._ready[node], seconds] for node, seconds in self._lost.items()],
            "uncertain_s": max(self._uncertain_s.values(), default=0.0),
        }
        try:
            temporary = self.folder / "master.tmp"
            temporary.write_text(json.dumps(state))
            temporary.replace(self.folder / "master.json")
        except OSError as error:  # whoever started this would wait for a begin that it cannot see
            self._is_mute = True
            self._fault = f"what was recorded cannot be stored: {error.filename or self.folder}: {error.strerror}"


def leave_with_parent(environment: Environment) -> None:
    """End this worker when the process that started it is gone."""
    parent = os.getppid()
    while os.getppid() == parent:
        gevent.sleep(_LOOK_S)
    runner: Any = environment.runner
    runner.quit()


def report_often(worker: Worker, master: Master) -> None:
    """Store reports of a load without workers, for ever."""
    while True:
        gevent.sleep(_REPORT_S)
        master.store(worker.report())
