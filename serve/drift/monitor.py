"""Drift: whether what is asked and answered still looks like what the model was calibrated on."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import EdgesmithError
from edgesmith.tasks import Task
from serve.drift.answers import answer_values
from serve.drift.features import (
    given_values,
    holds_pictures,
    log_shares,
    picture_values,
    row_tokens,
)
from serve.drift.reference import Reference
from serve.drift.windows import DriftSettings, FeatureState, Look, Window, look_at
from serve.models.job import GenerationJob, Job
from serve.traffic.background import Background

if TYPE_CHECKING:
    from prometheus_client import Metric

__all__ = ["DriftMonitor", "Tokenize", "drift_families"]

_LOG = logging.getLogger(__name__)
_SPACING_NS = 5_000_000
"""At most 200 requests a second are looked at, however short a window is."""
_MAX_WAITING = 64
_MAX_WAITING_BYTES = 64 << 20

Arrays = Mapping[str, NDArray[Any]]
Tokenize = Callable[[str], Sequence[int]]
_Seen = tuple[Arrays, Arrays] | str
"""One row's inputs and outputs, or a prompt."""


class DriftMonitor:
    """Compares a version's served requests with its reference, window by window.

    `observe` is for the loop's thread and only keeps a few requests for later; `work`, in a thread of its own, does the
    arithmetic.

    Args:
        reference: Of the version's artifact.
        task: Reads the outputs of a graph; None where the model writes text.
        tokenize: Splits a prompt as the reference's prompts were split; without it prompts are not looked at.
        settings: How often one looks.
        clock_ns: As `time.monotonic_ns`, by which jobs are timed.

    Attributes:
        looks: Of the last whole window, one for each feature; empty before there was any.
        num_windows: Whole windows.
        num_alarms: Of them, those with an alarm.
        num_rows: Rows looked at.
        num_unread: Requests that could not be looked at, such as those with other inputs.
        alarm_since_s: Unix time at which the first of the last windows in a row with an alarm ended; None without.
    """

    def __init__(
        self,
        reference: Reference,
        task: Task | None = None,
        *,
        tokenize: Tokenize | None = None,
        settings: DriftSettings | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.reference, self.settings = reference, settings or DriftSettings()
        self.looks: tuple[Look, ...] = ()
        self.num_windows = self.num_alarms = self.num_rows = self.num_unread = 0
        self.alarm_since_s: float | None = None
        self._task, self._tokenize = task, tokenize
        self._clock_ns = clock_ns
        self._background = Background(self.work, "drift")
        self._ignored = reference.ignored
        self._logs = log_shares(reference.bucket_counts)
        self._draw = random.Random(1)  # noqa: S311 - picks tokens
        self._seen: deque[tuple[_Seen, int]] = deque()
        # Two sums, each of one thread: what waits is their difference.
        self._put_bytes = self._taken_bytes = 0
        self._turn = 0
        self._next_ns = 0
        self._looked_rows = 0
        self._ended_s: float | None = None
        self._begin(clock_ns())

    def start(self) -> None:
        """Start the thread."""
        self._background.start()

    def close(self, timeout_s: float = 0.0) -> None:
        """Have the thread end; closing twice is harmless.

        Args:
            timeout_s: How long to wait for it. The loop does not: the thread ends by itself, after what it is at.
        """
        self._background.close(timeout_s)

    def observe(self, job: Job | GenerationJob, *, request_id: str = "", is_chosen: bool = True) -> None:
        """Look at a finished job, or not: it is a sample. On the loop's thread, from its `done`.

        Of a request of several rows one is taken: rows that came together are alike.
        """
        del request_id, is_chosen
        if job.finished_ns < self._next_ns or job.error is not None or len(self._seen) >= _MAX_WAITING:
            return
        if isinstance(job, Job):
            if job.outputs is None or not job.num_rows:
                return
            self._turn += 1
            self._keep_row(job, job.outputs, self._turn % job.num_rows)
        elif self._tokenize is not None and self._has_room(size := 4 * len(job.prompt)):
            self._keep(job.prompt, size)
        self._next_ns = job.finished_ns + self._spacing_ns
        self._background.wake()

    def work(self) -> None:
        """Count what was seen since, and compare if a window is whole; called by the thread."""
        while self._seen:
            seen, size = self._seen.popleft()
            self._taken_bytes += size
            try:
                values = self._values(seen)
            except (EdgesmithError, KeyError, IndexError, TypeError, ValueError):  # raw tensors of another making
                self.num_unread += 1
            else:
                self.num_rows += 1
                if self._window.num_rows < self.settings.max_window_rows:
                    self._window.add(values)
        now_ns = self._clock_ns()
        if self._window.num_rows >= self.settings.window_rows and now_ns - self._begun_ns >= self._shortest_ns:
            self._end(now_ns)

    def report(self) -> dict[str, Any]:
        """State for the page, JSON-able. Any thread.

        `window` is the one that is being filled, `looked_at` the one that the features' figures are of.
        """
        return {
            "state": self.state,
            "since": self.alarm_since_s,
            "alpha_per_day": self.settings.alpha_per_day,
            "alpha_per_window": self.settings.alpha_per_window,
            "reference_rows": self.reference.num_rows,
            "window": {
                "rows": self._window.num_rows,
                "needed": self.settings.window_rows,
                "shortest_s": self._shortest_ns / 1e9,
            },
            "looked_at": {"rows": self._looked_rows, "ended": self._ended_s},
            "windows": self.num_windows,
            "alarms": self.num_alarms,
            "unread": self.num_unread,
            "skipped": list(self.reference.skipped),
            "features": [_describe(look, self._looked_rows) for look in self.looks],
        }

    @property
    def state(self) -> FeatureState:
        """`alarm` if any feature of the last window has one, `too few` before there was a window."""
        if not self.looks:
            return "too few"
        return "alarm" if any(look.state == "alarm" for look in self.looks) else "ok"

    def _keep_row(self, job: Job, outputs: Arrays, row: int) -> None:
        """Keep a copy of one row: a view of it would hold its whole request, and the batch that it was run in."""
        if "input_ids" not in job.arrays and not holds_pictures(
            job.arrays
        ):  # nothing is known of such tensors: the thread counts them as unread
            self._keep(({}, {}), 0)
            return
        given, answered = (_row_of(arrays, row, job.num_rows) for arrays in (job.arrays, outputs))
        size = sum(array.nbytes for arrays in (given, answered) for array in arrays.values())
        if self._has_room(size):
            self._keep(({name: one.copy() for name, one in given.items()},
                        {name: one.copy() for name, one in answered.items()}), size)  # fmt: skip

    def _has_room(self, size: int) -> bool:
        return self._put_bytes - self._taken_bytes + size <= _MAX_WAITING_BYTES

    def _keep(self, seen: _Seen, size: int) -> None:
        self._put_bytes += size
        self._seen.append((seen, size))

    def _begin(self, now_ns: int) -> None:
        shortest_s = self.settings.shortest_s(self.num_windows)
        self._window = Window(self.reference)
        self._begun_ns, self._shortest_ns = now_ns, int(shortest_s * 1e9)
        # Taken evenly from a window's whole time, and not from a burst at its beginning.
        self._spacing_ns = max(_SPACING_NS, self._shortest_ns // self.settings.max_window_rows)

    def _end(self, now_ns: int) -> None:
        looks = look_at(self._window, self.reference, self.settings)
        alarms = [look.feature.name for look in looks if look.state == "alarm"]
        self._ended_s = time.time()
        if alarms and self.alarm_since_s is None:
            _LOG.warning("what is asked or answered has changed: %s", ", ".join(alarms))
        self.alarm_since_s = (self.alarm_since_s or self._ended_s) if alarms else None
        self.looks, self._looked_rows = looks, self._window.num_rows
        self.num_alarms += bool(alarms)
        self.num_windows += 1
        self._begin(now_ns)

    def _values(self, seen: _Seen) -> dict[str, float]:
        if isinstance(seen, str):
            assert self._tokenize is not None
            return self._given(np.array(self._tokenize(seen), np.int64))
        arrays, outputs = seen
        values = picture_values(arrays, 0) if holds_pictures(arrays) else self._given(row_tokens(arrays, 0))
        if self._task is not None:
            compared, _ = self._task.compared(outputs, arrays)
            if not np.isfinite(compared).all():
                raise ValueError("an output is not finite")
            [answer] = answer_values(self._task, outputs, arrays, ignored=self._ignored, draw=self._draw)
            values |= answer
        return values

    def _given(self, tokens: NDArray[np.int64]) -> dict[str, float]:
        return given_values(
            tokens,
            ignored=self._ignored,
            unknown_id=self.reference.unknown_id,
            logs=self._logs,
            draw=self._draw,
        )


def drift_families(monitors: Iterable[tuple[str, str, DriftMonitor]]) -> Iterable[Metric]:
    """Families of metrics of (model, version, monitor), as `prometheus_client` has them. Any thread."""
    from serve.drift.families import families_of

    return families_of(monitors)


def _row_of(arrays: Arrays, row: int, num_rows: int) -> dict[str, NDArray[Any]]:
    return {name: array[row : row + 1] for name, array in arrays.items() if array.ndim and len(array) == num_rows}


def _describe(look: Look, num_window: int) -> dict[str, Any]:
    difference = look.difference
    return {
        "name": look.feature.name,
        "state": look.state,
        "statistic": difference.statistic,
        "threshold": difference.threshold,
        "p_value": difference.p_value,
        "p_adjusted": look.p_adjusted,
        "distance": difference.distance,
        "bins": look.feature.bin_names,
        "reference": [count / sum(look.feature.counts) for count in look.feature.counts],
        "window": [count / num_window for count in look.counts],
    }
