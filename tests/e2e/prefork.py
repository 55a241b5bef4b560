"""Commands in processes of their own that need not import torch again: forks of one that has the libraries.

A fork is a real process (exit code, streams, signals, the interpreter's end), and imports our own modules itself. All
forks have one hash seed: a test that compares bytes across seeds starts an interpreter of its own beside them.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Forked", "Parent"]

# Libraries of others that take seconds. Not onnxruntime: it starts a thread, which a fork would lack.
_PRELOADED = ("torch", "peft", "transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama")
_PRELOADED += ("onnxscript", "scipy.stats")


@dataclass(frozen=True)
class Forked:
    """A running fork, leader of a process group of its own."""

    pid: int
    _channel: socket.socket

    def wait(self, timeout: float = 300) -> int:
        """The exit code, negative for a signal, as `subprocess` gives it."""
        self._channel.settimeout(timeout)
        try:
            return _number(self._channel)
        except TimeoutError:
            os.killpg(self.pid, signal.SIGKILL)
            raise
        finally:
            self._channel.close()


class Parent:
    """The process that has the libraries and forks; it ends when this object is closed, or its process gone."""

    def __init__(self) -> None:
        self._requests, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(its.fileno())],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
                pass_fds=[its.fileno()],
            )
        assert _number(self._requests) == self._process.pid

    def start(
        self, arguments: Sequence[str], *, cwd: Path, environment: Mapping[str, str], stdout: int, stderr: int
    ) -> Forked:
        """Run `edgesmith` with these arguments in a fork; the streams are file descriptors."""
        request = json.dumps({"arguments": [*arguments], "cwd": str(cwd), "environment": {**environment}}).encode()
        ours, its = socket.socketpair()
        with its:
            head = len(request).to_bytes(4, "big")
            socket.send_fds(self._requests, [head], [its.fileno(), stdout, stderr])
            self._requests.sendall(request)
        return Forked(_number(ours), ours)

    def close(self) -> None:
        """Let it end when its forks have."""
        self._requests.close()
        self._process.wait(60)


def _number(channel: socket.socket) -> int:
    """The next number that the other side tells."""
    told = channel.recv(16, socket.MSG_WAITALL)
    assert told, "the process that forks has ended"
    return int(told)


def _tell(channel: socket.socket, number: int) -> None:
    channel.sendall(f"{number:16}".encode())


def _listen(requests: socket.socket) -> dict[str, Any]:
    """Fork for each request; only forks return, with theirs."""
    for name in _PRELOADED:
        __import__(name)
    gc.freeze()
    _tell(requests, os.getpid())
    while True:
        head, descriptors, _, _ = socket.recv_fds(requests, 4, 3)
        _reap(wait=not head)
        if not head:
            os._exit(0)
        request = requests.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
        if os.fork() == 0:
            requests.close()
            return _fork(json.loads(request), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _reap(*, wait: bool) -> None:
    """Take note of the go-betweens that have ended, or of all."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0 if wait else os.WNOHANG)[0]:
            pass


def _fork(request: dict[str, Any], answers: int, stdout: int, stderr: int) -> dict[str, Any]:
    """A go-between that tells the exit code, and the fork, which returns."""
    channel = socket.socket(fileno=answers)
    pid = os.fork()
    if pid:
        os.close(stdout)
        os.close(stderr)
        _, status = os.waitpid(pid, 0)
        _tell(channel, os.waitstatus_to_exitcode(status))
        os._exit(0)
    os.setsid()
    for target, descriptor in ((1, stdout), (2, stderr)):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _tell(channel, os.getpid())
    channel.close()
    return request


if __name__ == "__main__":
    asked = _listen(socket.socket(fileno=int(sys.argv[1])))
    sys.argv = ["-c", *asked["arguments"]]
    sys.path[0] = ""  # as `python -c` has it
    from edgesmith.cli import main

    main()
