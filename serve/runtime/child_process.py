"""The server's side of an engine in a process of its own: starting it, watching it, and starting it again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesmith.artifact import Artifact, Manifest
from edgesmith.errors import EdgesmithError
from serve.errors import EngineFailedError, NotReadyError
from serve.runtime import EngineOptions
from serve.runtime.child_frames import BrokenFrameError, Frame, Link, LostError
from serve.runtime.child_start import StartedChild, checked

__all__ = ["ChildProcess", "ChildSettings", "ask"]

_LOG = logging.getLogger(__name__)
_AGAIN = "Send the request again in a moment."
_END_S = 5.0
_REAP_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSettings:
    """How a child is treated.

    Attributes:
        timeout_s: A run, or the next piece of a text, that takes longer is a hang: the process is killed. None waits
            for ever.
        open_timeout_s: The same for opening the artifact.
        first_delay_s: Before the first restart after a crash; doubled for each further one.
        max_delay_s: Of which it never gets more.
        well_s: A process that lived this long was well: the next delay is the first again.
    """

    timeout_s: float | None = 300.0
    open_timeout_s: float | None = 600.0
    first_delay_s: float = 0.1
    max_delay_s: float = 30.0
    well_s: float = 30.0


class ChildProcess:
    """A process that holds an engine, and its successors after crashes.

    Args:
        path: The artifact; opened, and its hashes checked, by the child.
        options: Of the engine.
        label: What logs and errors call it.
        settings: Deadlines and delays.

    Attributes:
        artifact: As the child opened it. A successor opens the same one or none.
        hello: What the child said of its engine.
        num_crashes: So far; a hang is one.

    Raises:
        EdgesmithError: The child could not open the artifact; the error is the child's.
    """

    def __init__(
        self,
        path: Path,
        options: EngineOptions,
        *,
        label: str,
        settings: ChildSettings | None = None,
    ) -> None:
        self._path, self._options, self._label = path, options, label
        self._settings = settings or ChildSettings()
        self._lock = threading.Lock()  # of the link: one exchange at a time
        self._link: Link | None = None
        self._child: StartedChild | None = None
        self._why = "it is being started"
        self._closing, self._is_settled = threading.Event(), threading.Event()
        self._first_error: Exception | None = None
        self._digest: str | None = None
        self.hello: Mapping[str, Any] = {}
        self.num_crashes = 0
        # The kernel kills a child when the thread that started it ends, so one thread starts and outlives them all.
        self._watcher = threading.Thread(target=self._watch, name=f"watcher of {label}", daemon=True)
        self._watcher.start()
        self._is_settled.wait()
        if self._first_error is not None:
            raise self._first_error
        self.artifact = Artifact(path=path, manifest=Manifest.model_validate_json(self.hello["manifest"]))

    @property
    def pid(self) -> int | None:
        """Of the process that answers now; None while there is none."""
        child = self._child
        return child.pid if child is not None and self._link is not None else None

    @contextmanager
    def talk(self) -> Iterator[Link]:
        """The link, for one exchange; an exchange that breaks costs the process.

        Raises:
            NotReadyError: The process has crashed and is not back yet, or was closed.
            EngineFailedError: It crashed or hung during the exchange.
        """
        with self._lock:
            link = self._link
            if link is None:
                raise NotReadyError(f"the engine of {self._label} does not run: {self._why}", mend=_AGAIN)
            try:
                yield link
            except EdgesmithError:
                raise  # told by the child, which goes on
            except LostError as error:
                raise EngineFailedError(self._lose(is_dead=True), mend=_AGAIN) from error
            except TimeoutError as error:
                self._lose()
                limit = self._settings.timeout_s
                raise EngineFailedError(
                    f"the engine of {self._label} did not answer within {limit:g} s; its process was killed"
                ) from error
            except BrokenFrameError as error:
                self._lose()
                raise EngineFailedError(f"the engine of {self._label} answered nonsense: {error}") from error
            except BaseException:  # half an exchange: the next answer would be this one's
                self._lose()
                raise

    def _lose(self, *, is_dead: bool = False) -> str:
        """Give the process up; says how it ended."""
        self._link = None
        assert self._child is not None
        end = self._child.end(wait_s=_REAP_S if is_dead else 0.0)
        self._why = f"it {end} and is being started again"
        return f"the engine of {self._label} {end}"

    def close(self) -> None:
        """End the process. Closing twice is harmless."""
        self._closing.set()
        is_idle = self._lock.acquire(timeout=_END_S)  # else a run hangs, and is ended by the end of its process
        try:
            self._link, self._why = None, "it is closed"
            if self._child is not None:
                self._child.end(wait_s=_END_S if is_idle else 0.0)
        finally:
            if is_idle:
                self._lock.release()
        self._watcher.join()

    def _watch(self) -> None:
        """Start the process, and again whenever it ends, until closed."""
        settings = self._settings
        delay_s = settings.first_delay_s
        while not self._closing.is_set():
            began = time.monotonic()
            try:
                self._start()
            except Exception as error:  # noqa: BLE001 - whoever waits is told
                if not self._is_settled.is_set():
                    self._first_error = error
                    self._is_settled.set()
                    return
                self._why = f"it cannot be started again: {error}"
                _LOG.error("the engine of %s does not run: %s", self._label, self._why)
            else:
                self._wait()
            if time.monotonic() - began >= settings.well_s:
                delay_s = settings.first_delay_s
            self._closing.wait(delay_s)
            delay_s = min(2 * delay_s, settings.max_delay_s)

    def _start(self) -> None:
        child = StartedChild(self._label)
        with self._lock:
            self._child = child
        if self._closing.is_set():
            child.end(wait_s=0)
            return
        hello = child.open(self._path, self._options, self._digest, timeout_s=self._settings.open_timeout_s)
        child.link.set_timeout(self._settings.timeout_s)
        if self._digest is None:
            self.hello = hello
            self._digest = Manifest.model_validate_json(hello["manifest"]).digest
        else:
            _LOG.warning("the engine of %s runs again, as process %d", self._label, child.pid)
        with self._lock:
            self._link = None if self._closing.is_set() else child.link
        self._is_settled.set()

    def _wait(self) -> None:
        """Until the process ends, by itself or because it was given up."""
        child = self._child
        assert child is not None
        end = child.wait()
        if self._closing.is_set():
            return
        self.num_crashes += 1
        with self._lock:
            self._link, self._why = None, f"it {end} and is being started again"
            child.link.close()
        _LOG.error("the engine of %s %s; it is being started again", self._label, end)


def ask(process: ChildProcess, frame: Frame) -> Frame:
    """Send one frame and wait for its answer.

    Raises:
        EdgesmithError: As the child says, or see `ChildProcess.talk`.
    """
    with process.talk() as link:
        link.send(frame)
        return checked(link.receive())
