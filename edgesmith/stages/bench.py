"""The speed of an artifact under one scenario, through the runtime that ships."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact
from edgesmith.progress import Progress
from edgesmith.recipe import Scenario
from edgesmith.stages.base import Stage
from edgesmith.stages.rows import Rows
from edgesmith.store import default_store_root
from edgesmith.tasks import load_task

if TYPE_CHECKING:
    from edgesmith.tasks.base import Task

__all__ = ["PEAKS", "BenchStage"]

PEAKS = "machine-peaks.json"
"""Beside the store's entries: what this machine can do at best, measured once."""


@dataclass(frozen=True, kw_only=True)
class BenchStage(Stage):
    """Time one artifact; with scenario `single` also its start in a fresh process and its share of the limit."""

    step: ClassVar[str] = "bench"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "onnxruntime", "tokenizers")
    is_timed: ClassVar[bool] = True

    artifact: Artifact
    rows: Rows
    scenario: Scenario = "single"
    task: str | None = None
    threads: int = 1
    length: int | None = None
    """Tokens of every request."""
    num_requests: int | None = None
    min_requests: int | None = None
    """Fewest requests of `single` and `server`, such as a gate's percentile needs."""
    seconds: float | None = None
    """Wall time aimed at."""
    rate: float | None = None
    """Arrivals a second, of scenario `server`."""
    batch_size: int | None = None
    """Of scenario `offline`."""

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        names = ("task", "threads", "scenario", "length", "num_requests", "min_requests", "seconds", "rate")
        return {
            **self.rows.options,
            **{name: getattr(self, name) for name in names},
            "batch_size": self.batch_size,
        }

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        return {"artifact": self.artifact.digest, "data": self.rows.digest}

    def is_final(self, made: Artifact) -> bool:
        """Whether the engine had settled before it was timed."""
        from bench.scenarios.latency import Latency
        from bench.scenarios.throughput import Throughput

        kind = Throughput if self.scenario == "offline" else Latency
        return kind.load(made.path).is_settled

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write the figures and their samples."""
        task = load_task(self.artifact.folder, self.task, columns=self.rows.columns)
        match self.scenario:
            case "single":
                self._single(folder, task, progress)
            case "server":
                self._server(folder, task, progress)
            case "offline":
                self._offline(folder, task, progress)
        return self.seal(folder)

    def _single(self, folder: Path, task: Task, progress: Progress) -> None:
        from bench.machine.limits import measure_limits
        from bench.machine.peaks import measure_peaks
        from bench.scenarios.inputs import encode_inputs
        from bench.scenarios.latency import LatencyOptions, measure_latency
        from bench.scenarios.start import measure_start
        from serve.runtime import EngineOptions, open_engine

        inputs = encode_inputs(task, self.rows.read(task), length=self.length)
        options = LatencyOptions(
            seconds=self.seconds or LatencyOptions.seconds,
            min_requests=self.num_requests or self._min_requests(LatencyOptions.min_requests),
            max_requests=self.num_requests or LatencyOptions.max_requests,
        )
        engine = open_engine(self.artifact, EngineOptions(threads=self.threads))
        try:
            latency = measure_latency(
                engine,
                inputs,
                options=options,
                artifact_digest=self.artifact.digest,
                threads=self.threads,
                progress=progress,
            )
        finally:
            engine.close()
        latency.save(folder)
        measure_start(self.artifact.path, threads=self.threads).save(folder)
        peaks = measure_peaks(threads=self.threads, cache=default_store_root() / PEAKS, progress=progress)
        measure_limits(self.artifact, inputs, latency, peaks).save(folder)

    def _min_requests(self, by_default: int) -> int:
        """What a gate needs; a time that the user gave is kept, however few requests that makes."""
        return self.min_requests or (1 if self.seconds else by_default)

    def _server(self, folder: Path, task: Task, progress: Progress) -> None:
        from bench.scenarios.inputs import encode_inputs
        from bench.scenarios.server import ServerOptions, measure_server
        from serve.runtime import EngineOptions, open_engine

        options = ServerOptions(
            rate=self.rate,
            seconds=self.seconds or ServerOptions.seconds,
            min_requests=self._min_requests(ServerOptions.min_requests),
            seed=self.rows.seed,
        )
        inputs = encode_inputs(task, self.rows.read(task), length=self.length)
        engine = open_engine(self.artifact, EngineOptions(threads=self.threads))
        try:
            measure_server(
                engine,
                inputs,
                options=options,
                artifact_digest=self.artifact.digest,
                threads=self.threads,
                progress=progress,
            ).save(folder)
        finally:
            engine.close()

    def _offline(self, folder: Path, task: Task, progress: Progress) -> None:
        from bench.scenarios.throughput import ThroughputOptions, measure_throughput
        from serve.runtime import EngineOptions, open_engine

        options = ThroughputOptions(
            batch_size=self.batch_size or ThroughputOptions.batch_size,
            seconds=self.seconds or ThroughputOptions.seconds,
        )
        engine = open_engine(self.artifact, EngineOptions(threads=self.threads))
        try:
            measure_throughput(
                engine,
                task,
                self.rows.read(task),
                options=options,
                artifact_digest=self.artifact.digest,
                threads=self.threads,
                progress=progress,
            ).save(folder)
        finally:
            engine.close()
