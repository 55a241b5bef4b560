"""Start an artifact in a fresh process: how long until its first answer, and how much memory at the most."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.machine.conditions import Conditions, Watch
from bench.machine.machine import Machine, describe_machine
from bench.raw import damage_errors, pretty_json, read_json
from bench.strict import check_numbers
from edgesmith.errors import ArtifactError, EdgesmithError, VerificationError
from edgesmith.files import atomic_write

__all__ = ["START", "Start", "measure_start"]

START = "start.json"
_TIMEOUT_S = 600


@dataclass(frozen=True, kw_only=True)
class Start:
    """Medians over fresh processes; memory is the largest seen."""

    engine: str
    artifact_digest: str
    threads: int
    num_starts: int
    startup_cpu_ms: float
    """CPU time of the interpreter and its imports."""
    verify_ms: float
    """To hash the artifact's files."""
    load_ms: float
    """To import the engine's library and open the model."""
    first_run_ms: float
    peak_rss_bytes: int
    machine: Machine
    conditions: Conditions | None = None

    @property
    def cold_start_ms(self) -> float:
        """From the start of the process to the first answer, in milliseconds."""
        return self.startup_cpu_ms + self.verify_ms + self.load_ms + self.first_run_ms

    def summary(self) -> dict[str, Any]:
        """JSON-able form."""
        nested = {
            "machine": self.machine.to_json(),
            "conditions": self.conditions.to_json() if self.conditions else None,
        }
        return asdict(self) | nested | {"cold_start_ms": self.cold_start_ms}

    def save(self, folder: Path) -> None:
        """Write `start.json` into a folder.

        Raises:
            StorageError: The folder cannot be written.
        """
        atomic_write(folder / START, pretty_json({"schema_version": 1} | self.summary()))

    @classmethod
    def load(cls, folder: Path) -> Start:
        """Read what `save` wrote.

        Raises:
            UsageError: The folder holds no such file.
            ArtifactError: It is damaged.
        """
        value = read_json(folder / START, mend="Make one with `edgesmith bench`.")
        with damage_errors(folder / START):
            check_numbers(value, _NUMBERS)
            conditions = value["conditions"]
            plain = {name: value[name] for name in cls.__dataclass_fields__ if name not in ("machine", "conditions")}
            return cls(
                **plain,
                machine=Machine.from_json(value["machine"]),
                conditions=None if conditions is None else Conditions.from_json(conditions),
            )


_NUMBERS = (
    "threads",
    "num_starts",
    "startup_cpu_ms",
    "verify_ms",
    "load_ms",
    "first_run_ms",
    "peak_rss_bytes",
)


def measure_start(path: Path, *, threads: int = 1, num_starts: int = 3) -> Start:
    """Run the thin runtime's probe in fresh processes.

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
    with Watch() as watch:
        probes = [_probe(path, threads) for _ in range(num_starts)]

    def middle(name: str) -> float:
        return float(median(probe[name] for probe in probes))

    return Start(
        engine=probes[0]["engine"],
        artifact_digest=probes[0]["artifact"],
        threads=threads,
        num_starts=num_starts,
        startup_cpu_ms=middle("startup_cpu_ms"),
        verify_ms=middle("verify_ms"),
        load_ms=middle("load_ms"),
        first_run_ms=middle("first_run_ms"),
        peak_rss_bytes=max(probe["peak_rss_bytes"] for probe in probes),
        machine=machine,
        conditions=watch.conditions,
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
