"""Compare the speed of two engines in one run: they take turns, so that both meet the same machine."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.latency import Inputs, warm_up
from bench.machine import Machine, describe_machine
from bench.raw import columns_to_bytes, damage_errors, pretty_json, read_columns, read_json
from bench.stats.resampling import Bounds, block_bootstrap_ratio
from edgesmith.errors import UsageError
from edgesmith.files import atomic_write
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from serve.runtime import Engine

__all__ = ["DUET", "Duet", "DuetOptions", "compare"]

DUET = "duet.json"
TURNS = "duet_ns.csv.gz"
MIN_PAIRS = 20


@dataclass(frozen=True, kw_only=True)
class DuetOptions:
    """How long to compare."""

    seconds: float = 20.0
    """Wall time aimed at; the number of turns is fixed from it before the first one is timed."""
    min_pairs: int = 40
    max_pairs: int = 400
    turn_requests: int = 8
    """Requests of a turn; both engines of a pair get the same ones."""
    max_warm_up_windows: int = 40


@dataclass(frozen=True, kw_only=True)
class Duet:
    """Times of a baseline's and an artifact's turns, one pair after the other."""

    baseline_digest: str | None
    artifact_digest: str | None
    inputs: str
    turn_requests: int
    baseline_cpu_ns: NDArray[np.int64]
    """CPU time of each of the baseline's turns, of shape [num_pairs]."""
    artifact_cpu_ns: NDArray[np.int64]
    baseline_wall_ns: NDArray[np.int64]
    artifact_wall_ns: NDArray[np.int64]
    is_settled: bool
    machine: Machine

    @property
    def num_pairs(self) -> int:
        """How many pairs of turns were timed."""
        return len(self.baseline_cpu_ns)

    @property
    def waiting_share(self) -> float:
        """Share of the wall time in which no thread of this process ran, in [0, 1]: others had the processor."""
        cpu_ns = int(self.baseline_cpu_ns.sum() + self.artifact_cpu_ns.sum())
        return max(0.0, 1 - cpu_ns / int(self.baseline_wall_ns.sum() + self.artifact_wall_ns.sum()))

    def speedup(self, confidence: float = 0.95) -> Bounds:
        """Bound baseline CPU time / artifact CPU time: 2 means that the artifact takes half."""
        return block_bootstrap_ratio(self.baseline_cpu_ns, self.artifact_cpu_ns, confidence=confidence)

    def wall_speedup(self, confidence: float = 0.95) -> Bounds:
        """Bound the same ratio of wall times."""
        return block_bootstrap_ratio(self.baseline_wall_ns, self.artifact_wall_ns, confidence=confidence)

    def summary(self) -> dict[str, Any]:
        """Give the figures without the single turns, JSON-able."""
        cpu, wall = self.speedup(), self.wall_speedup()
        per_request = 1e6 * self.turn_requests
        return {
            "baseline_digest": self.baseline_digest,
            "artifact_digest": self.artifact_digest,
            "inputs": self.inputs,
            "num_pairs": self.num_pairs,
            "turn_requests": self.turn_requests,
            "is_settled": self.is_settled,
            "waiting_share": round(self.waiting_share, 4),
            "confidence": cpu.confidence,
            "cpu_speedup": {"estimate": cpu.estimate, "lower": cpu.lower, "upper": cpu.upper},
            "wall_speedup": {"estimate": wall.estimate, "lower": wall.lower, "upper": wall.upper},
            "baseline_cpu_ms": float(np.median(self.baseline_cpu_ns)) / per_request,
            "artifact_cpu_ms": float(np.median(self.artifact_cpu_ns)) / per_request,
            "machine": self.machine.to_json(),
        }

    def save(self, folder: Path) -> None:
        """Write `duet.json` and the single turns into a folder.

        Raises:
            StorageError: The folder cannot be written.
        """
        columns = {name: getattr(self, name) for name in _COLUMNS}
        atomic_write(folder / TURNS, columns_to_bytes(columns))
        atomic_write(folder / DUET, pretty_json({"schema_version": 1} | self.summary()))

    @classmethod
    def load(cls, folder: Path) -> Duet:
        """Read what `save` wrote.

        Raises:
            UsageError: The folder holds no comparison.
            ArtifactError: It is damaged.
        """
        summary = read_json(folder / DUET, mend="Make one with `edgesmith bench --against BASELINE`.")
        columns = read_columns(folder / TURNS)
        with damage_errors(folder / DUET):
            if summary["num_pairs"] != len(columns["baseline_cpu_ns"]):
                raise ValueError(f"{len(columns['baseline_cpu_ns'])} pairs instead of {summary['num_pairs']}")
            return cls(
                baseline_digest=summary["baseline_digest"],
                artifact_digest=summary["artifact_digest"],
                inputs=summary["inputs"],
                turn_requests=summary["turn_requests"],
                is_settled=summary["is_settled"],
                machine=Machine.from_json(summary["machine"]),
                **{name: columns[name] for name in _COLUMNS},
            )


_COLUMNS = ("baseline_cpu_ns", "artifact_cpu_ns", "baseline_wall_ns", "artifact_wall_ns")


def compare(
    baseline: Engine,
    artifact: Engine,
    inputs: Inputs,
    *,
    options: DuetOptions | None = None,
    baseline_digest: str | None = None,
    artifact_digest: str | None = None,
    progress: Progress = SILENT,
) -> Duet:
    """Time two engines in turns: A B, B A, A B … with the same requests in both turns of a pair.

    Args:
        baseline: Opened with the same number of threads as `artifact`.
        artifact: What is compared with it.
        inputs: The requests, used in turn.
        options: How long.
        baseline_digest: Of what the baseline engine runs.
        artifact_digest: Of what the artifact's engine runs.
        progress: Shows the pairs done.

    Raises:
        UsageError: There are no inputs.

    Source: Bulej, Horký, Tůma, Farquet & Prokopec, "Duet benchmarking: improving measurement accuracy in the
    cloud", ICPE 2020.
    """
    if not inputs.arrays:
        raise UsageError("no inputs to time", mend="Give a data file with rows.")
    chosen = options or DuetOptions()
    machine = describe_machine()
    settled_a, _, seconds_a = warm_up(baseline, inputs, max_windows=chosen.max_warm_up_windows)
    settled_b, _, seconds_b = warm_up(artifact, inputs, max_windows=chosen.max_warm_up_windows)
    pair_seconds = max((seconds_a + seconds_b) * (chosen.turn_requests + 1), 1e-9)
    num_pairs = max(chosen.min_pairs, min(chosen.max_pairs, int(chosen.seconds / pair_seconds)))
    times = _take_turns(baseline, artifact, inputs, num_pairs, chosen.turn_requests, progress)
    return Duet(
        baseline_digest=baseline_digest,
        artifact_digest=artifact_digest,
        inputs=inputs.description,
        turn_requests=chosen.turn_requests,
        baseline_cpu_ns=times[0, :, 0],
        artifact_cpu_ns=times[1, :, 0],
        baseline_wall_ns=times[0, :, 1],
        artifact_wall_ns=times[1, :, 1],
        is_settled=settled_a and settled_b,
        machine=machine,
    )


def _take_turns(
    baseline: Engine, artifact: Engine, inputs: Inputs, num_pairs: int, turn_requests: int, progress: Progress
) -> NDArray[np.int64]:
    """Times of shape [engine, pair, (CPU, wall)] in nanoseconds."""
    times = np.empty((2, num_pairs, 2), dtype=np.int64)
    engines = (baseline, artifact)
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        for pair in progress.track(range(num_pairs), "compare speed"):
            first = pair * turn_requests
            requests = [inputs.arrays[(first + i) % len(inputs.arrays)] for i in range(turn_requests)]
            for which in (0, 1) if pair % 2 == 0 else (1, 0):
                engines[which].run(requests[0])  # refills the caches that the other engine took
                start_cpu, start = time.process_time_ns(), time.perf_counter_ns()
                for request in requests:
                    engines[which].run(request)
                times[which, pair, 1] = time.perf_counter_ns() - start
                times[which, pair, 0] = max(1, time.process_time_ns() - start_cpu)
    finally:
        if was_collecting:
            gc.enable()
    return times
