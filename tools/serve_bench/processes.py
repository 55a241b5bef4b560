"""Processes that are measured: started on a core of their own, asked of the kernel what they cost."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Running", "awake", "cores", "cpu_ns", "descriptors", "free_port", "get", "launch", "resident_mb", "tree"]


_START_S = 120.0


@dataclass
class Running:
    """A server that has said that it is ready."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    ready_s: float
    """From the start of its process to its first 200."""

    @property
    def pid(self) -> int:
        """Of its first process."""
        return self.process.pid


def cores() -> tuple[int, int]:
    """The server's core and the client's: the first and the last of those that this process may use."""
    found = sorted(os.sched_getaffinity(0))
    return found[0], found[-1]


def tree(pid: int) -> list[int]:
    """A process and all that it has started."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def cpu_ns(pid: int) -> int:
    """Processor time of a process and its children, all threads, from the kernel's own clocks, in nanoseconds."""
    total = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            total += time.clock_gettime_ns((~one << 3) | 2)  # CPUCLOCK_SCHED of a process: clock_getcpuclockid(3)
    return total


def resident_mb(pid: int) -> float:
    """Resident memory of a process and its children, in MB; pages that they share count for each."""
    pages = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{one}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def descriptors(pid: int) -> int:
    """Open file descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 (names only)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def get(port: int, path: str, timeout_s: float = 10.0) -> tuple[int, bytes]:
    """Ask with GET; status 0 if there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


@contextmanager
def awake() -> Iterator[None]:
    """Keep both cores from halting, by loops that run only when nothing else does.

    In a virtual machine waking a core that has halted costs more than a request, and how much, the neighbours decide.
    """
    spinners = [
        subprocess.Popen(["taskset", "-c", str(core), "chrt", "--idle", "0", sys.executable, "-c", "while True: pass"])
        for core in cores()
    ]
    try:
        yield
    finally:
        for one in spinners:
            one.kill()
            one.wait()


@contextmanager
def launch(
    name: str,
    command: Sequence[str],
    *,
    port: int,
    ready: str,
    core: int,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[Running]:
    """Start a server, wait until `ready` is answered with 200, end it and what it started."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        began = time.monotonic()
        with log.open("wb") as stream:
            process = subprocess.Popen(
                ["taskset", "-c", str(core), *command],
                stdout=stream,
                stderr=stream,
                env={**os.environ, **(environment or {})},
                cwd=cwd,
            )
        try:
            while get(port, ready)[0] != 200:
                if process.poll() is not None or time.monotonic() - began > _START_S:
                    raise SystemExit(f"{name} does not start:\n{log.read_text()[-3000:]}")
                time.sleep(0.002)
            yield Running(name, port, process, log, time.monotonic() - began)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    started = tree(process.pid)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for one in started[1:]:
        with contextlib.suppress(OSError):
            os.kill(one, signal.SIGKILL)
