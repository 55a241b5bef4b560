"""Run a load test: Locust in processes of its own, so that gevent changes nothing here."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import bench
from bench.load.gather import gather
from bench.load.job import JOB, hold_job
from bench.load.plan import LoadPlan
from bench.load.protocols import prepare_target
from bench.load.recording import STORAGE_CODE, read_recordings
from bench.load.result import INTERRUPTED, LoadResult
from bench.load.target import Target
from bench.machine.conditions import Conditions, Watch
from bench.machine.machine import describe_machine
from edgesmith.errors import EdgesmithError, MissingExtraError, StorageError, UsageError
from edgesmith.files import storage_errors
from edgesmith.progress import SILENT, Progress

__all__ = ["run_load", "run_worker"]

_ENTRY = Path(__file__).parent / "generator" / "open_loop_user.py"
_LOCUST_PORT = 5557
_POLL_S = 0.1
_UNENCRYPTED = "the requests go to the workers unencrypted, headers included: {} is not the loopback address"
_GRACE_S = 15.0
_START_S = 30.0
"""Locust's own start."""


def run_load(plan: LoadPlan, *, out: Path | None = None, progress: Progress = SILENT) -> LoadResult:
    """Load a server and say what its users would have seen.

    Whatever happens after the first request, what was recorded until then is the result: a server that dies is
    failures, a lost worker or Ctrl-C a result that is not complete.

    Args:
        plan: Whom, how much, with what.
        out: Folder for the result's files; None writes none.
        progress: Shows the seconds.

    Raises:
        MissingExtraError: Locust is not installed.
        ServerError: Nobody listens, or what listens speaks no known protocol.
        UsageError: The plan cannot be obeyed, a port is taken, or the awaited workers did not come.
        StorageError: Nothing of what was recorded could be stored.
        DataError: The data file does not fit.
        EdgesmithError: The load generator died before the first request.
    """
    _require_locust()
    for port, what in ((plan.web_port, "web page"), (plan.master_port, "workers")):
        if port is not None:
            _check_port("127.0.0.1" if what == "web page" else plan.master_host, port, what)
    target = prepare_target(plan)
    if plan.is_sent_over_network:
        target = replace(target, notes=(*target.notes, _UNENCRYPTED.format(plan.master_host)))
    for note in target.notes:
        progress.note(note)
    with _scratch_folder() as folder, hold_job(plan, target) as job:
        if plan.expect_workers:
            address = f"{plan.master_host}:{plan.master_port or _LOCUST_PORT}"
            wanted = f"waiting for {plan.expect_workers} workers on {address}, for {plan.workers_wait_s:g} s at most"
            progress.note(f"{wanted}; start them with `edgesmith load {address} --worker`")
        if plan.web_port is not None:
            progress.note(f"Locust's page: http://127.0.0.1:{plan.web_port}")
        with Watch() as watch:
            stopped, code = _run_locust(plan, folder, job, progress)
        if code == STORAGE_CODE and not stopped:
            stopped = _master_state(folder).get("stopped") or "what was recorded cannot be stored"
        if code == STORAGE_CODE and not read_recordings(folder):
            raise StorageError(stopped, mend="Free disk space, or set TMPDIR to a folder that has some.")
        result = _collect(plan, target, folder, stopped, watch.conditions)
    if out is not None:
        result.save(out)
    return result


def run_worker(master_host: str, master_port: int = _LOCUST_PORT, *, progress: Progress = SILENT) -> None:
    """Be a worker of a load that another terminal or machine runs, until it is over.

    The plan and the requests come from the master.

    Args:
        master_host: Where it waits for workers.
        master_port: On which port.
        progress: Says who is waited for.

    Raises:
        MissingExtraError: Locust is not installed.
        EdgesmithError: The master did not answer, or Locust died.
    """
    _require_locust()
    arguments = ["--worker", "--master-host", master_host, "--master-port", str(master_port)]
    progress.note(f"a worker of {master_host}:{master_port}; Ctrl-C ends it")
    with _scratch_folder() as folder:
        process = _start(arguments, folder, environment={})
        try:
            code = process.wait()
        except KeyboardInterrupt:
            _stop(process)
            return
        finally:
            _kill(process)
        if code != 0:
            raise EdgesmithError(f"the worker ended with code {code}: {_last_words(folder)}")


def _require_locust() -> None:
    if find_spec("locust") is None:
        raise MissingExtraError(
            "the library `locust` is not installed; it sends the load",
            mend="Install it: pip install 'edgesmith[bench]'",
        )


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """Give a folder that is gone afterwards."""
    with storage_errors(Path(tempfile.gettempdir())):
        folder = tempfile.TemporaryDirectory(prefix="edgesmith-load-", ignore_cleanup_errors=True)
    with folder as name:
        yield Path(name)


def _run_locust(plan: LoadPlan, folder: Path, job: int, progress: Progress) -> tuple[str, int]:
    """Run until the end or a deadline; give why it ended before the end, or an empty string, and Locust's code."""
    environment = {"EDGESMITH_LOAD_FOLDER": str(folder), JOB: str(job)}
    process = _start(_arguments(plan), folder, environment, inherited=(job,))
    stopped = ""
    deadline = time.monotonic() + _START_S + plan.workers_wait_s + _GRACE_S
    try:
        with progress.bar("load", total=plan.shape.seconds) as advance:
            begun, shown = 0.0, 0.0
            while process.poll() is None:
                time.sleep(_POLL_S)
                if not begun and _master_state(folder).get("is_begun"):
                    begun = time.monotonic()
                    deadline = begun + plan.shape.seconds + plan.timeout_s + plan.web_linger_s + _GRACE_S
                if time.monotonic() > deadline:
                    stopped = "the load generator did not end in time and was stopped"
                    _stop(process)
                    break
                if begun:
                    elapsed = min(plan.shape.seconds, time.monotonic() - begun)
                    advance(elapsed - shown)
                    shown = elapsed
    except KeyboardInterrupt:
        stopped = INTERRUPTED
        _stop(process)
    finally:
        _kill(process)
    return stopped, process.returncode


def _arguments(plan: LoadPlan) -> list[str]:
    users = str(plan.num_workers)
    arguments = ["--users", users, "--spawn-rate", users, "--only-summary", "--exit-code-on-error", "0"]
    if plan.web_port is None:
        arguments += ["--headless"]
    else:
        arguments += ["--autostart", "--web-host", "127.0.0.1", "--web-port", str(plan.web_port)]
    if plan.expect_workers:
        port = str(plan.master_port or _LOCUST_PORT)
        arguments += ["--master", "--master-bind-host", plan.master_host, "--master-bind-port", port]
        arguments += ["--expect-workers", users, "--expect-workers-max-wait", str(int(plan.workers_wait_s) + 1)]
    elif plan.processes > 1:
        port = str(plan.master_port or _free_port())
        arguments += ["--processes", users, "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
        arguments += ["--master-port", port]
    return arguments


def _start(
    arguments: Sequence[str], folder: Path, environment: Mapping[str, str], inherited: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start Locust in a folder of its own, where no file of the user's can take a module's place."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("LOCUST_", "EDGESMITH_LOAD"))}
    root = str(Path(bench.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [own.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "locust", "-f", str(_ENTRY), "--loglevel", "WARNING", *arguments]
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**own, **environment, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(inherited),
            start_new_session=True,  # Ctrl-C reaches this process only, which then asks Locust to end
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask Locust to end, and wait until it has stored what it knows."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_GRACE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End Locust and its workers, if any of them is left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _collect(plan: LoadPlan, target: Target, folder: Path, stopped: str, conditions: Conditions) -> LoadResult:
    recordings = read_recordings(folder)
    state = _master_state(folder)
    if not state.get("is_begun"):
        if plan.expect_workers and not stopped:
            raise UsageError(
                state.get("stopped") or f"not all of {plan.expect_workers} workers came",
                mend="Start them with `edgesmith load HOST:PORT --worker`.",
            )
        why = stopped or state.get("stopped") or _last_words(folder)
        raise EdgesmithError(f"the load ended before the first request: {why}")
    notes = [f"worker {worker} was lost after {seconds:.1f} s" for worker, seconds in state.get("lost", [])]
    missing = plan.num_workers - sum(bool(recording.state["is_done"]) for recording in recordings)
    if not stopped:
        stopped = state.get("stopped") or "; ".join(notes)
    if not stopped and any(recording.state["is_interrupted"] for recording in recordings):
        stopped = "it was stopped before its end"
    if not stopped and missing:
        stopped = f"the load generator died: {_last_words(folder)}"
    return gather(
        plan,
        target,
        recordings,
        begin_uncertainty_s=float(state.get("uncertain_s", 0.0)),
        stopped_because=stopped,
        notes=notes,
        machine=describe_machine(),
        conditions=conditions,
    )


def _master_state(folder: Path) -> dict[str, Any]:
    path = folder / "master.json"
    state: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return state


def _last_words(folder: Path) -> str:
    lines = [line for line in (folder / "log.txt").read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-3:]) or "it said nothing"


def _check_port(host: str, port: int, what: str) -> None:
    if not 0 < port < 1 << 16:
        raise UsageError(f"port {port} for the {what} is not between 1 and 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("" if host == "*" else host, port))
        except OSError as error:
            raise UsageError(
                f"{host}:{port} for the {what}: {error.strerror}", mend="Choose another port or address."
            ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
