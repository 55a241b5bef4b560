"""Servers of the tests' own, each a process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class RunningServer:
    """A server that listens."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.base}/v2/models/intent"

    def wait_for(self, num_requests: int) -> None:
        """Return when so many requests have come."""
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            with urllib.request.urlopen(f"{self.base}/count", timeout=10) as answer:
                if json.load(answer)["count"] >= num_requests:
                    return
            time.sleep(0.05)
        raise TimeoutError(f"{num_requests} requests did not come")


StartServer = Callable[..., RunningServer]


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Start a server with switches; it is killed after the test."""
    running: list[subprocess.Popen[bytes]] = []

    def start(**switches: Any) -> RunningServer:
        command = [sys.executable, str(Path(__file__).parent / "server.py"), json.dumps(switches)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        running.append(process)
        assert process.stdout is not None
        return RunningServer(process, int(process.stdout.readline()))

    yield start
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
