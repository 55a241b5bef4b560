"""An artifact behind the server, for as long as something is measured: what is measured is what serves."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from edgesmith.artifact import Artifact
from edgesmith.errors import ServerError

__all__ = ["served", "served_route"]

_START_S = 300.0
_STOP_S = 40.0


def served_route(artifact: Artifact, name: str) -> str:
    """The path below a server's address that a load test of this artifact goes to."""
    return f"/v2/models/{name}" if artifact.kind == "onnx" else "/v1"


@contextmanager
def served(artifact: Artifact, *, name: str = "model", options: Sequence[str] = ()) -> Iterator[str]:
    """Start `python -m serve` on a free port of loopback, and stop it at the end.

    Args:
        artifact: What it serves.
        name: What it calls it.
        options: Further flags, such as `--threads 2`.

    Yields:
        The server's address, such as `http://127.0.0.1:41234`.

    Raises:
        ServerError: It ended, or was not ready in time; its own words are in the message.
    """
    with TemporaryDirectory(prefix="edgesmith-serve-") as temporary:
        folder = Path(temporary)
        announced, log = folder / "address", folder / "log"
        command = [sys.executable, "-m", "serve", f"{name}={artifact.path}", "--port", "0"]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*command, "--announce", str(announced), "--no-page", *options],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"},
            )
            try:
                yield _wait(process, announced, log)
            finally:
                process.terminate()
                try:
                    process.wait(_STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _wait(process: subprocess.Popen[bytes], announced: Path, log: Path) -> str:
    deadline = time.monotonic() + _START_S
    while not announced.exists():
        code = process.poll()
        if code is not None or time.monotonic() > deadline:
            said = log.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
            what = f"ended with code {code}" if code is not None else f"was not ready within {_START_S:g} s"
            raise ServerError(f"the server {what}: {said}")
        time.sleep(0.02)
    return announced.read_text(encoding="ascii").strip()
