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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import bench
from bench.load.gather import gather
from bench.load.plan import LoadPlan
from bench.load.protocols import prepare_target
from bench.load.recording import read_recordings
from bench.load.result import LoadResult
from bench.load.target import Target
from bench.machine.conditions import Conditions, Watch
from bench.machine.machine import describe_machine
from edgesmith.errors import EdgesmithError, MissingExtraError, UsageError
from edgesmith.progress import SILENT, Progress

__all__ = ["run_load", "run_worker"]

_ENTRY = Path(__file__).parent / "generator" / "open_loop_user.py"
_LOCUST_PORT = 5557
_POLL_S = 0.1
_GRACE_S = 15.0


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
        DataError: The data file does not fit.
        EdgesmithError: The load generator died before the first request.
    """
    _require_locust()
    for port, what in ((plan.web_port, "web page"), (plan.master_port, "workers")):
        if port is not None:
            _check_port("127.0.0.1" if what == "web page" else plan.master_host, port, what)
    target = prepare_target(plan)
    for note in target.notes:
        progress.note(note)
    with tempfile.TemporaryDirectory(prefix="edgesmith-load-") as name:
        folder = Path(name)
        (folder / "plan.json").write_text(json.dumps(plan.to_json()))
        (folder / "target.bin").write_bytes(target.to_bytes())
        if plan.web_port is not None:
            progress.note(f"Locust's page: http://127.0.0.1:{plan.web_port}")
        with Watch() as watch:
            stopped = _run_locust(plan, folder, progress)
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
    with tempfile.TemporaryDirectory(prefix="edgesmith-load-") as name:
        folder = Path(name)
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


def _run_locust(plan: LoadPlan, folder: Path, progress: Progress) -> str:
    """Run until the end; give why it ended before that, or an empty string."""
    process = _start(_arguments(plan), folder, environment={"EDGESMITH_LOAD_FOLDER": str(folder)})
    stopped = ""
    try:
        with progress.bar("load", total=plan.shape.seconds) as advance:
            begun, shown = 0.0, 0.0
            while process.poll() is None:
                time.sleep(_POLL_S)
                if not begun and _master_state(folder).get("is_begun"):
                    begun = time.monotonic()
                if begun:
                    elapsed = min(plan.shape.seconds, time.monotonic() - begun)
                    advance(elapsed - shown)
                    shown = elapsed
    except KeyboardInterrupt:
        stopped = "it was interrupted"
        _stop(process)
    finally:
        _kill(process)
    return stopped


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


def _start(arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start Locust in a folder of its own, where no file of the user's can take a module's place."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("LOCUST_", "EDGESMITH_LOAD"))
    }
    root = str(Path(bench.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [inherited.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "locust", "-f", str(_ENTRY), "--loglevel", "WARNING", *arguments]
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**inherited, **environment, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
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
        replace(plan, headers={}),
        target,
        recordings,
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
