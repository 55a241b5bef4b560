"""The file that Locust is started with: one user a process, who sends the whole share of that process.

Locust puts this file's folder first on the path: no module beside it may be named like one of the standard library.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gevent
from locust import User, events, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import LocalRunner, MasterRunner

from bench.load.generator.roles import Master, Worker, leave_with_parent, report_often
from bench.load.job import JOB

_REPORTS = "edgesmith"
_roles: dict[str, Worker] = {}


class OpenLoopUser(User):  # type: ignore[misc]  # the library's types are not read
    """Sends all requests of one process; Locust's number of users is the number of processes."""

    @task  # type: ignore[untyped-decorator]
    def send_all(self) -> None:
        """Do the whole share, then go."""
        _roles["worker"].run()
        raise StopUser


@events.init.add_listener  # type: ignore[untyped-decorator]
def _on_init(environment: Environment, **_: Any) -> None:
    named = os.environ.get("EDGESMITH_LOAD_FOLDER")
    folder = Path(named) if named else None
    job = int(os.environ[JOB]) if JOB in os.environ else None
    if isinstance(environment.runner, MasterRunner):
        assert folder is not None
        assert job is not None
        master = Master(environment, folder, job)

        def store(data: dict[str, Any], **_: Any) -> None:
            master.store(data.pop(_REPORTS, None))

        environment.events.worker_report.add_listener(store)
        return
    worker = _roles["worker"] = Worker(environment, job)
    if isinstance(environment.runner, LocalRunner):
        assert folder is not None
        assert job is not None
        gevent.spawn(report_often, worker, Master(environment, folder, job))
        return

    gevent.spawn(leave_with_parent, environment)

    def report(data: dict[str, Any], **_: Any) -> None:
        data[_REPORTS] = worker.report()

    environment.events.report_to_master.add_listener(report)
