"""Start the process of an engine, pass on what it complains of, and see how it ends."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import edgesmith.errors
import serve.errors
from edgesmith.errors import EdgesmithError
from serve.errors import EngineFailedError
from serve.runtime import EngineOptions
from serve.runtime.child_frames import BrokenFrameError, Frame, Link, LostError

__all__ = ["StartedChild", "checked"]

_LOG = logging.getLogger(__name__)
_MAX_LINE_BYTES = 4096
_END_S = 5.0


class StartedChild:
    """A process, just started. It must be ended.

    Args:
        label: What logs and errors call its engine.

    Attributes:
        link: To it.
        pid: Of it.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = _spawn(theirs)
        self.link = Link(ours)
        self.pid = self._process.pid
        # Read to its end even if the process is given up: a full pipe would stop it.
        threading.Thread(target=self._pass_on, name=f"stderr of {label}", daemon=True).start()

    def open(
        self, path: Path, options: EngineOptions, digest: str | None, *, timeout_s: float | None
    ) -> dict[str, Any]:
        """Let it open an artifact; gives what it says of it.

        Args:
            path: The artifact.
            options: Of the engine.
            digest: The artifact's, if it must be a certain one.
            timeout_s: After which it is taken for hung.

        Raises:
            EdgesmithError: What the child says, or that it died; it is ended then.
        """
        try:
            self.link.set_timeout(timeout_s)
            self.link.send(Frame({"path": str(path.absolute()), "digest": digest, "options": _wire(options)}))
            return dict(checked(self.link.receive()).values)
        except (LostError, BrokenFrameError) as error:
            end = self.end(wait_s=_END_S)
            raise EngineFailedError(f"the engine of {self._label} {end} while it opened {path}") from error
        except TimeoutError as error:
            self.end(wait_s=0)
            raise EngineFailedError(
                f"the engine of {self._label} did not open {path} within {timeout_s:g} s; its process was killed"
            ) from error
        except BaseException:
            self.end(wait_s=_END_S)
            raise

    def wait(self) -> str:
        """Wait for its end; says how it was. Only one thread waits, and others may end it meanwhile."""
        return _describe_end(self._process.wait())

    def end(self, *, wait_s: float) -> str:
        """Close the link, give the process so long to end by itself, then kill it; says how it ended."""
        self.link.close()
        try:
            self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        return _describe_end(self._process.returncode)

    def _pass_on(self) -> None:
        """Log what the process writes."""
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            while line := stream.readline(_MAX_LINE_BYTES):
                _LOG.warning("[%s, process %d] %s", self._label, self.pid, line.decode(errors="replace").rstrip())


def _spawn(theirs: socket.socket) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    root = Path(__file__).resolve().parents[2]  # the child takes this very package, wherever the server was started
    if root.name not in ("site-packages", "dist-packages"):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), environment.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "serve.runtime.child", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        process_group=0,
    )


def _wire(options: EngineOptions) -> dict[str, Any]:
    return {
        "threads": options.threads,
        "packs_weights": options.packs_weights,
        "adapters": [[str(path.absolute()), scale] for path, scale in options.adapters],
        "num_context": options.num_context,
        "num_batch": options.num_batch,
    }


def _describe_end(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in {int(one) for one in signal.Signals} else f"signal {-code}"
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"ended with code {code}"


def checked(frame: Frame) -> Frame:
    """The frame itself, unless it tells of an error: then that is raised, of the same class where it is one of ours.

    Raises:
        EdgesmithError: What the child says.
    """
    described = frame.values.get("error")
    if described is None:
        return frame
    name, message, mend = (str(described.get(key, "")) for key in ("type", "message", "mend"))
    for module in (edgesmith.errors, serve.errors):
        found = getattr(module, name) if name in module.__all__ else None
        if isinstance(found, type) and issubclass(found, EdgesmithError):
            raise found(message, mend=mend)
    raise EngineFailedError(message)
