"""What a worker notes of its requests, and how that gets to the process that makes the result.

A report holds the rows since the last one and the counts since the begin, so that a report that is never followed by
another still stands for all that was seen until then.
"""

from __future__ import annotations

import json
import os
import time
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.histogram import Histogram

__all__ = [
    "COLUMNS",
    "GENERATOR",
    "STORAGE_CODE",
    "Failures",
    "Recorder",
    "Recording",
    "read_recordings",
    "store_report",
]

GENERATOR = "generator"
"""Name of the failures that are the load generator's own, not the server's."""
STORAGE_CODE = 74
"""With what a process ends that could not store what it knows; EX_IOERR of sysexits(3)."""

COLUMNS = ("start_ns", "wall_ns", "lag_ns", "outcome", "ttft_ns", "num_chunks", "num_tokens")
"""Of a row: intended start since the run's begin, time from it to the end, delay of the sending, code of the outcome
(0 is a right answer), and of a stream the time to its first piece of text, the number of pieces and that of tokens
as the server counts them, -1 where it does not say."""
_ROW_BYTES = 8 * len(COLUMNS)


class Failures:
    """Names of failures with their codes from 1 on, counts and one sample message each."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.counts: list[int] = []
        self.samples: list[str] = []

    def add(self, name: str, detail: str) -> int:
        """Count one; give its code."""
        if name not in self.names:
            self.names.append(name)
            self.counts.append(0)
            self.samples.append(detail)
        index = self.names.index(name)
        self.counts[index] += 1
        return index + 1


class Recorder:
    """Notes requests, at about two microseconds each.

    Args:
        max_samples: Rows kept; further requests are only counted and put into the histograms.
    """

    def __init__(self, max_samples: int) -> None:
        self.max_samples = max_samples
        self.num_requests = 0
        self.failures = Failures()
        self.wall = Histogram()
        self.lag = Histogram()
        self.max_in_flight = 0
        self.num_connections = 0
        self.num_not_sent = 0
        self.notes: list[str] = []
        self._rows = array("q")
        self._gaps = array("q")
        self._begin_cpu_ns: int | None = None

    @property
    def is_sampled(self) -> bool:
        """Whether every request has a row."""
        return self.num_requests <= self.max_samples

    def begin(self) -> None:
        """Count this process's CPU time from now on."""
        self._begin_cpu_ns = time.process_time_ns()

    @property
    def cpu_ns(self) -> int:
        """CPU time of this process, all threads, since `begin`: asking for it at each request would cost as much."""
        return 0 if self._begin_cpu_ns is None else time.process_time_ns() - self._begin_cpu_ns

    def record(
        self,
        *,
        start_ns: int,
        wall_ns: int,
        lag_ns: int,
        failure: tuple[str, str] | None,
        token_ns: Sequence[int],
        num_tokens: int | None = None,
    ) -> None:
        """Note one request.

        Args:
            start_ns: Intended start, since the run's begin.
            wall_ns: From the intended start to the last byte or the failure.
            lag_ns: From the intended start to the sending.
            failure: Name and detail; None if the answer was right.
            token_ns: When each piece of text came, since the intended start.
            num_tokens: How many tokens they hold, if the server says so.
        """
        self.num_requests += 1
        self.lag.record(lag_ns)
        outcome = 0
        if failure is None:
            self.wall.record(wall_ns)
        else:
            outcome = self.failures.add(*failure)
        if not self.is_sampled:
            return
        ttft_ns = token_ns[0] if token_ns else -1
        counted = -1 if num_tokens is None else num_tokens
        self._rows.extend((start_ns, wall_ns, lag_ns, outcome, ttft_ns, len(token_ns), counted))
        if len(token_ns) > 1 and failure is None:
            self._gaps.extend(later - earlier for earlier, later in pairwise(token_ns))

    def take_report(self, *, worker: int, is_done: bool = False, is_interrupted: bool = False) -> dict[str, Any]:
        """Give all that `store_report` needs; the rows are handed over: whoever takes them keeps them until stored."""
        rows, gaps = self._rows.tobytes(), self._gaps.tobytes()
        self._rows, self._gaps = array("q"), array("q")
        return {
            "worker": worker,
            "rows": rows,
            "gaps": gaps,
            "state": {
                "num_requests": self.num_requests,
                "failures": [list(entry) for entry in zip(*_columns(self.failures), strict=True)],
                # Encoding takes milliseconds, in which nothing is sent; as long as every row is there, they say it all.
                "histograms": [self.wall.encode(), self.lag.encode()] if is_done or not self.is_sampled else None,
                "cpu_ns": self.cpu_ns,
                "max_in_flight": self.max_in_flight,
                "num_connections": self.num_connections,
                "num_not_sent": self.num_not_sent,
                "notes": list(self.notes),
                "is_done": is_done,
                "is_interrupted": is_interrupted,
            },
        }


def _columns(failures: Failures) -> tuple[list[str], list[int], list[str]]:
    return failures.names, failures.counts, failures.samples


def store_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Add a report to a folder; a kill or a full disk at any moment leaves what was there before.

    Raises:
        OSError: It could not be written; nothing of it is there, and the same report can be tried again.
    """
    worker = int(report["worker"])
    sizes: dict[Path, int] = {}
    try:
        for name in ("rows", "gaps"):
            if report[name]:
                path = folder / f"{name}-{worker}.bin"
                sizes[path] = path.stat().st_size if path.exists() else 0
                with path.open("ab") as file:
                    file.write(report[name])
        temporary = folder / f"state-{worker}.tmp"
        temporary.write_text(json.dumps(report["state"]))
        temporary.replace(folder / f"state-{worker}.json")
    except OSError:
        for path, size in sizes.items():
            with suppress(OSError):
                os.truncate(path, size)
        raise


@dataclass(frozen=True, kw_only=True)
class Recording:
    """All that came from one worker."""

    worker: int
    rows: NDArray[np.int64]
    """Of shape [n, 7], see `COLUMNS`."""
    gaps: NDArray[np.int64]
    """Nanoseconds between tokens of the streams that ended well."""
    state: Mapping[str, Any]

    def histograms(self) -> tuple[Histogram, Histogram]:
        """Give those of the right answers' durations and of the lags, from the rows where none were reported."""
        if self.state["histograms"] is not None:
            wall, lag = self.state["histograms"]
            return Histogram.decode(wall), Histogram.decode(lag)
        _, wall_ns, lag_ns, outcome = self.rows.T[:4]
        counted = Histogram(), Histogram()
        counted[0].record_many(wall_ns[outcome == 0])
        counted[1].record_many(lag_ns)
        return counted


def read_recordings(folder: Path) -> list[Recording]:
    """Read what `store_report` wrote, of all workers, as far as it is whole."""
    recordings = []
    for path in sorted(folder.glob("state-*.json"), key=lambda path: int(path.stem.split("-")[1])):
        worker = int(path.stem.split("-")[1])
        state = json.loads(path.read_text())
        # Rows that a killed process wrote without their counts are left out.
        rows = _read(folder / f"rows-{worker}.bin", _ROW_BYTES).reshape(-1, len(COLUMNS))[: state["num_requests"]]
        gaps = _read(folder / f"gaps-{worker}.bin", 8)
        recordings.append(Recording(worker=worker, rows=rows, gaps=gaps, state=state))
    return recordings


def _read(path: Path, item_bytes: int) -> NDArray[np.int64]:
    content = path.read_bytes() if path.exists() else b""
    whole = len(content) // item_bytes * item_bytes
    return np.frombuffer(content[:whole], dtype=np.int64)
