"""Start an artifact in fresh processes: how long until the first answer, and how much memory at the most."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.machine.conditions import Conditions, Watch
from bench.machine.machine import Machine, describe_machine
from bench.machine.page_cache import drop_from_cache
from bench.raw import damage_errors, pretty_json, read_json
from bench.stats.percentiles import PercentileBounds, bound_percentile
from bench.strict import check_numbers
from edgesmith.errors import ArtifactError, EdgesmithError, VerificationError
from edgesmith.files import atomic_write

__all__ = ["START", "Process", "Start", "measure_start"]

START = "start.json"
_TIMEOUT_S = 600
_NUM_STARTS = 7
"""The fewest that bound their median at 99 % confidence."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """One fresh process; wall times in milliseconds."""

    first_answer_ms: float
    """From before the process was made to its first answer."""
    startup_ms: float
    """Of that, until the interpreter had imported the runtime."""
    verify_ms: float
    """To read and hash the artifact's files."""
    load_ms: float
    """To import the engine's library and open the model."""
    first_run_ms: float
    startup_cpu_ms: float
    """CPU time of the interpreter and its imports."""
    peak_rss_bytes: int
    """Largest resident memory; pages of mapped files, such as the weights of a GGUF file, are in it as far as they
    were read, though the system takes them back when it needs the room."""
    private_bytes: int | None = None
    """Memory of the process's own after its answers, without mapped files; None where the system does not say."""


_MEASURED = tuple(name for name in Process.__dataclass_fields__ if name != "private_bytes")


@dataclass(frozen=True, kw_only=True)
class Start:
    """Fresh processes, one after the other."""

    engine: str
    artifact_digest: str
    threads: int
    processes: tuple[Process, ...]
    """At least one."""
    is_cache_cold: bool
    """Whether the artifact's files were out of the page cache before each start, so that they came from the disk.
    Interpreter and libraries were in it, since the process that measures uses them too."""
    machine: Machine
    conditions: Conditions | None = None
    request: str | None = None
    """What the first answer was one to, such as `a prompt of 6 tokens and the first token of its answer`."""

    @property
    def num_starts(self) -> int:
        """How many processes were started."""
        return len(self.processes)

    @property
    def cold_start_ms(self) -> float:
        """Median wall time from making the process to its first answer, in milliseconds; see `is_cache_cold`."""
        return self._median("first_answer_ms")

    @property
    def startup_ms(self) -> float:
        """Median time until the interpreter had imported the runtime."""
        return self._median("startup_ms")

    @property
    def verify_ms(self) -> float:
        """Median time to read and hash the artifact's files."""
        return self._median("verify_ms")

    @property
    def load_ms(self) -> float:
        """Median time to import the engine's library and open the model."""
        return self._median("load_ms")

    @property
    def first_run_ms(self) -> float:
        """Median time of the first answer alone."""
        return self._median("first_run_ms")

    @property
    def peak_rss_bytes(self) -> int:
        """Memory of the process that took most, mapped files included."""
        return max(process.peak_rss_bytes for process in self.processes)

    @property
    def private_bytes(self) -> int | None:
        """Memory without mapped files of the process that took most; None where the system does not say."""
        return max((one.private_bytes for one in self.processes if one.private_bytes is not None), default=None)

    def bounds(self, confidence: float = 0.99) -> PercentileBounds:
        """Bound the median of `first_answer_ms`: every start is a process of its own, taken as independent."""
        return bound_percentile([process.first_answer_ms for process in self.processes], 50, confidence)

    def _median(self, name: str) -> float:
        return float(median(getattr(process, name) for process in self.processes))

    def summary(self) -> dict[str, Any]:
        """JSON-able form, every process included. A bound that the starts cannot support is null."""
        bounds = self.bounds()
        return {
            "engine": self.engine,
            "artifact_digest": self.artifact_digest,
            "threads": self.threads,
            "num_starts": self.num_starts,
            "is_cache_cold": self.is_cache_cold,
            "cold_start_ms": self.cold_start_ms,
            "cold_start_bounds_ms": {
                "confidence": bounds.confidence,
                "lower": bounds.lower,
                "upper": bounds.upper,
                "num_required": bounds.num_required,
            },
            **{name: getattr(self, name) for name in ("startup_ms", "verify_ms", "load_ms", "first_run_ms")},
            "peak_rss_bytes": self.peak_rss_bytes,
            "private_bytes": self.private_bytes,
            "request": self.request,
            "processes": [asdict(process) for process in self.processes],
            "machine": self.machine.to_json(),
            "conditions": self.conditions.to_json() if self.conditions else None,
        }

    def save(self, folder: Path) -> None:
        """Write `start.json` into a folder.

        Raises:
            StorageError: The folder cannot be written.
        """
        atomic_write(folder / START, pretty_json({"schema_version": 2} | self.summary()))

    @classmethod
    def load(cls, folder: Path) -> Start:
        """Read what `save` wrote.

        Raises:
            UsageError: The folder holds no such file.
            ArtifactError: It is damaged.
        """
        value = read_json(folder / START, mend="Make one with `edgesmith bench`.")
        with damage_errors(folder / START):
            check_numbers(value, ("threads", "num_starts"))
            for process in value["processes"]:
                check_numbers({"private_bytes": None} | process, _MEASURED, optional=("private_bytes",))
            conditions = value["conditions"]
            read = cls(
                **{name: value[name] for name in ("engine", "artifact_digest", "threads", "is_cache_cold")},
                request=value.get("request"),
                processes=tuple(Process(**process) for process in value["processes"]),
                machine=Machine.from_json(value["machine"]),
                conditions=None if conditions is None else Conditions.from_json(conditions),
            )
            if not read.processes or read.num_starts != value["num_starts"]:
                raise ValueError(f"{read.num_starts} processes instead of {value['num_starts']}")
            if read.peak_rss_bytes != value["peak_rss_bytes"] or read.cold_start_ms != value["cold_start_ms"]:
                raise ValueError("other figures than those of its processes")
            return read


def measure_start(path: Path, *, threads: int = 1, num_starts: int = _NUM_STARTS) -> Start:
    """Run the thin runtime's probe in fresh processes, each after the artifact's files left the page cache.

    Args:
        path: The artifact.
        threads: Threads for one run.
        num_starts: Processes to start, one after the other.

    Raises:
        ArtifactError: The probe refused the artifact.
        VerificationError: The artifact gave other answers than its golden ones.
        EdgesmithError: The probe died.
    """
    machine = describe_machine()
    probes: list[dict[str, Any]] = []
    processes: list[Process] = []
    is_cache_cold = True
    with Watch() as watch:
        for _ in range(num_starts):
            is_cache_cold = drop_from_cache(_files(path)) and is_cache_cold
            made_at_ns = time.monotonic_ns()
            probes.append(_probe(path, threads))
            processes.append(_process(probes[-1], made_at_ns))
    return Start(
        engine=probes[0]["engine"],
        artifact_digest=probes[0]["artifact"],
        threads=threads,
        processes=tuple(processes),
        is_cache_cold=is_cache_cold,
        request=probes[0]["request"],
        machine=machine,
        conditions=watch.conditions,
    )


def _files(path: Path) -> list[Path]:
    """The artifact's files; of a single model, also those beside it that hold its weights."""
    found = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    return sorted(file for file in found if file.is_file())


def _process(probe: dict[str, Any], made_at_ns: int) -> Process:
    """Put the probe's moments on the clock of this process: the monotonic clock is the same for all processes."""
    return Process(
        first_answer_ms=(probe["answered_at_ns"] - made_at_ns) / 1e6,
        startup_ms=(probe["began_at_ns"] - made_at_ns) / 1e6,
        **{name: probe[name] for name in _MEASURED if name in probe},
        private_bytes=probe["private_bytes"],
    )


def _probe(path: Path, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "serve.runtime.probe", str(path), "--threads", str(threads), "--runs", "1"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise EdgesmithError(f"{path}: gave no answer within {_TIMEOUT_S} s in a fresh process") from error
    if done.returncode == ArtifactError.exit_code:
        raise ArtifactError(done.stderr.strip())
    if done.returncode == VerificationError.exit_code and done.stdout.startswith("{"):
        raise VerificationError(f"{path}: its answers differ from its golden ones: {done.stdout.strip()[-500:]}")
    if done.returncode != 0:
        raise EdgesmithError(f"{path}: the probe ended with code {done.returncode}: {done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
