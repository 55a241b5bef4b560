"""A real server in a process of its own, for tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Served", "serving", "statuses"]


@dataclass
class Served:
    """A running `python -m serve`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()


@contextmanager
def serving(folder: Path, *arguments: str, command: Sequence[str] = (sys.executable, "-m", "serve"), **settings: str):
    """Start a server on a free port, wait until it is ready, stop it at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    announced, log = folder / "address", folder / "log"
    announced.unlink(missing_ok=True)
    cwd = settings.pop("cwd", None)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, *arguments, "--port", "0", "--announce", str(announced)],
            stdout=stream,
            stderr=stream,
            env={**os.environ, **settings},
            cwd=cwd,
        )
    try:
        yield _wait(process, announced, log)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], announced: Path, log: Path) -> Served:
    deadline = time.monotonic() + 60
    while not announced.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    return Served(announced.read_text().strip(), process, log)


def statuses(url: str, paths: Sequence[str]) -> Iterator[int]:
    """What a server answers GET requests with."""
    import urllib.error
    import urllib.request

    for path in paths:
        try:
            with urllib.request.urlopen(url + path, timeout=10) as answer:
                yield answer.status
        except urllib.error.HTTPError as error:
            yield error.code
