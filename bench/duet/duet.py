"""Compare the speed of two artifacts in one run: they take turns, so that both meet the same machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.duet.noise import NoiseFloor, certain_bias_percent
from bench.duet.turns import DuetOptions, OpenEngine, take_turns
from bench.machine.conditions import Conditions, Watch
from bench.machine.machine import Machine, describe_machine
from bench.raw import columns_to_bytes, damage_errors, pretty_json, read_columns, read_json
from bench.scenarios.inputs import Inputs
from bench.scenarios.timing import NullEngine
from bench.stats.binomial import normal_quantile
from bench.stats.resampling import Bounds, cluster_ratio
from edgesmith.files import atomic_write
from edgesmith.progress import SILENT, Progress

__all__ = ["DUET", "MIN_PAIRS", "MIN_SESSIONS", "Duet", "DuetOptions", "compare"]

DUET = "duet.json"
TURNS = "duet_ns.csv.gz"
MIN_PAIRS = 20
MIN_SESSIONS = 5
_NOISE_CONFIDENCE, _BIAS_CONFIDENCE = 0.95, 0.99
_NULL_OPTIONS = DuetOptions(min_sessions=1, max_sessions=1, session_pairs=24, max_warm_up_windows=3)

Clock = Literal["cpu", "wall"]


@dataclass(frozen=True, kw_only=True)
class Duet:
    """Times of a baseline's and an artifact's turns, and of a second session of the baseline, its twin.

    The twin shows what the comparison sees where there is no difference, and halves the baseline's share of chance.
    """

    baseline_digest: str | None
    artifact_digest: str | None
    inputs: str
    turn_requests: int
    baseline_cpu_ns: NDArray[np.int64]
    """CPU time of each of the baseline's turns, of shape [num_pairs]."""
    twin_cpu_ns: NDArray[np.int64]
    """The same of the baseline opened a second time."""
    artifact_cpu_ns: NDArray[np.int64]
    baseline_wall_ns: NDArray[np.int64]
    twin_wall_ns: NDArray[np.int64]
    artifact_wall_ns: NDArray[np.int64]
    session: NDArray[np.int64]
    """In which session each pair was timed, from 0 on: all engines were opened afresh for each."""
    overhead_cpu_ns: int
    """Median CPU time of a request to an engine that answers at once, through the same loop."""
    overhead_wall_ns: int
    is_settled: bool
    machine: Machine
    conditions: Conditions | None

    @property
    def num_pairs(self) -> int:
        """How many pairs of turns were timed."""
        return len(self.session)

    @property
    def num_sessions(self) -> int:
        """How often the engines were opened."""
        return len(np.unique(self.session))

    @property
    def waiting_share(self) -> float:
        """Share of the wall time in which no thread of this process ran, in [0, 1]: others had the processor."""
        cpu_ns = int(self.baseline_cpu_ns.sum() + self.twin_cpu_ns.sum() + self.artifact_cpu_ns.sum())
        return max(0.0, 1 - cpu_ns / 1e9 / self._timed_seconds)

    def speedup(self, confidence: float = 0.95) -> Bounds:
        """Bound baseline CPU time / artifact CPU time: 2 means that the artifact takes half."""
        return self._ratio("cpu", confidence)

    def wall_speedup(self, confidence: float = 0.95) -> Bounds:
        """Bound the same ratio of wall times."""
        return self._ratio("wall", confidence)

    def slowdown(self, confidence: float = 0.95, of: Clock = "cpu") -> Bounds:
        """Bound artifact time / baseline time − 1: 0.05 means that the artifact takes 5 % more."""
        ratio = self._ratio(of, confidence)
        return Bounds(
            estimate=1 / ratio.estimate - 1,
            lower=1 / ratio.upper - 1,
            upper=1 / ratio.lower - 1,
            confidence=confidence,
        )

    @cached_property
    def noise(self) -> NoiseFloor:
        """What the same run shows between two sessions of the baseline."""

        def ratio(of: Clock, confidence: float) -> Bounds:
            first, second = getattr(self, f"baseline_{of}_ns"), getattr(self, f"twin_{of}_ns")
            return cluster_ratio(first, second, self.session, confidence=confidence)

        return NoiseFloor(
            cpu=ratio("cpu", _NOISE_CONFIDENCE),
            wall=ratio("wall", _NOISE_CONFIDENCE),
            bias_percent=certain_bias_percent(ratio("cpu", _BIAS_CONFIDENCE)),
            wall_bias_percent=certain_bias_percent(ratio("wall", _BIAS_CONFIDENCE)),
            overhead_cpu_ns=self.overhead_cpu_ns,
            overhead_wall_ns=self.overhead_wall_ns,
        )

    def seconds_to_settle(self, max_slowdown: float, confidence: float = 0.95, of: Clock = "cpu") -> float | None:
        """Estimate how long a run must be to tell on which side of a limit the slowdown is.

        Args:
            max_slowdown: The limit, such as 0.02.
            confidence: Of the bound that decides.
            of: Which time.

        Returns:
            Seconds of wall time for `DuetOptions.seconds`, for a chance of 80 %: bounds shrink with the square root of
            the number of sessions. The time of this run where it settles it already; None where the estimate is the
            limit itself.
        """
        seconds = self.conditions.seconds if self.conditions else self._timed_seconds
        bounds = self.slowdown(confidence, of)
        distance = abs(bounds.estimate - max_slowdown)
        width = bounds.upper - bounds.estimate if bounds.estimate <= max_slowdown else bounds.estimate - bounds.lower
        if width <= distance:
            return seconds
        # A bound is z(confidence) standard errors away; z(0.8) more leave it on the right side in 8 of 10 runs.
        reach = width * (1 + normal_quantile(0.8) / normal_quantile(max(confidence, 0.8)))
        return seconds * (reach / distance) ** 2 if distance > 0 and math.isfinite(reach / distance) else None

    def summary(self) -> dict[str, Any]:
        """Give the figures without the single turns, JSON-able."""
        cpu, wall, slowdown = self.speedup(), self.wall_speedup(), self.slowdown()
        per_request = 1e6 * self.turn_requests
        return {
            "baseline_digest": self.baseline_digest,
            "artifact_digest": self.artifact_digest,
            "inputs": self.inputs,
            "num_sessions": self.num_sessions,
            "num_pairs": self.num_pairs,
            "turn_requests": self.turn_requests,
            "is_settled": self.is_settled,
            "waiting_share": round(self.waiting_share, 4),
            "confidence": cpu.confidence,
            "cpu_speedup": {"estimate": cpu.estimate, "lower": cpu.lower, "upper": cpu.upper},
            "wall_speedup": {"estimate": wall.estimate, "lower": wall.lower, "upper": wall.upper},
            "cpu_slowdown": {"estimate": slowdown.estimate, "lower": slowdown.lower, "upper": slowdown.upper},
            "baseline_cpu_ms": float(np.median(self.baseline_cpu_ns)) / per_request,
            "artifact_cpu_ms": float(np.median(self.artifact_cpu_ns)) / per_request,
            "noise": self.noise.to_json(),
            "machine": self.machine.to_json(),
            "conditions": self.conditions.to_json() if self.conditions else None,
        }

    def save(self, folder: Path) -> None:
        """Write `duet.json` and the single turns into a folder.

        Raises:
            StorageError: The folder cannot be written.
        """
        columns = {name: getattr(self, name) for name in _COLUMNS}
        atomic_write(folder / TURNS, columns_to_bytes(columns))
        atomic_write(folder / DUET, pretty_json({"schema_version": 2} | self.summary()))

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
            _check(summary, columns)
            conditions = summary["conditions"]
            return cls(
                baseline_digest=summary["baseline_digest"],
                artifact_digest=summary["artifact_digest"],
                inputs=summary["inputs"],
                turn_requests=int(summary["turn_requests"]),
                overhead_cpu_ns=int(summary["noise"]["overhead_cpu_ns"]),
                overhead_wall_ns=int(summary["noise"]["overhead_wall_ns"]),
                is_settled=summary["is_settled"],
                machine=Machine.from_json(summary["machine"]),
                conditions=None if conditions is None else Conditions.from_json(conditions),
                **{name: columns[name] for name in _COLUMNS},
            )

    @property
    def _timed_seconds(self) -> float:
        return float(self.baseline_wall_ns.sum() + self.twin_wall_ns.sum() + self.artifact_wall_ns.sum()) / 1e9

    def _ratio(self, of: Clock, confidence: float) -> Bounds:
        """Baseline, the geometric mean of its two sessions, over artifact."""
        baseline, twin, artifact = (getattr(self, f"{who}_{of}_ns") for who in ("baseline", "twin", "artifact"))
        both = np.sqrt(baseline.astype(np.float64) * twin)
        return cluster_ratio(both, artifact, self.session, confidence=confidence)


_COLUMNS = (
    "session",
    "baseline_cpu_ns",
    "twin_cpu_ns",
    "artifact_cpu_ns",
    "baseline_wall_ns",
    "twin_wall_ns",
    "artifact_wall_ns",
)


def _check(summary: dict[str, Any], columns: dict[str, NDArray[np.int64]]) -> None:
    """Refuse turns that cannot have been measured.

    Raises:
        ValueError: Their number is not the summary's, or a time is not positive.
        KeyError: A column is missing.
    """
    if summary["num_pairs"] != len(columns["session"]) or summary["num_pairs"] < 2:
        raise ValueError(f"{len(columns['session'])} pairs instead of {summary['num_pairs']}")
    steps = np.diff(columns["session"], prepend=0)
    if int(columns["session"][0]) != 0 or not set(steps.tolist()) <= {0, 1}:
        raise ValueError("sessions that do not follow one another")
    if min(int(columns[name].min()) for name in _COLUMNS[1:]) < 1:
        raise ValueError("a turn that took no time")
    if int(summary["turn_requests"]) < 1 or not isinstance(summary["is_settled"], bool):
        raise ValueError("turns without requests, or of unknown warm-up")


def compare(
    open_baseline: OpenEngine,
    open_artifact: OpenEngine,
    inputs: Inputs,
    *,
    options: DuetOptions | None = None,
    baseline_digest: str | None = None,
    artifact_digest: str | None = None,
    progress: Progress = SILENT,
) -> Duet:
    """Time two artifacts in turns, the baseline twice, each opened afresh several times.

    Args:
        open_baseline: Opens the baseline's engine, with the same number of threads as `open_artifact`.
        open_artifact: Opens the engine of what is compared with it. Three engines are open at once.
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
    machine = describe_machine()
    with Watch() as watch:
        turns = take_turns((open_baseline, open_artifact, open_baseline), inputs, options or DuetOptions(), progress)
        null = take_turns((NullEngine,), inputs, _NULL_OPTIONS)
    return Duet(
        baseline_digest=baseline_digest,
        artifact_digest=artifact_digest,
        inputs=inputs.description,
        turn_requests=turns.turn_requests,
        baseline_cpu_ns=turns.cpu_ns[0],
        artifact_cpu_ns=turns.cpu_ns[1],
        twin_cpu_ns=turns.cpu_ns[2],
        baseline_wall_ns=turns.wall_ns[0],
        artifact_wall_ns=turns.wall_ns[1],
        twin_wall_ns=turns.wall_ns[2],
        session=turns.session,
        overhead_cpu_ns=round(float(np.median(null.cpu_ns)) / null.turn_requests),
        overhead_wall_ns=round(float(np.median(null.wall_ns)) / null.turn_requests),
        is_settled=turns.is_settled,
        machine=machine,
        conditions=watch.conditions,
    )
