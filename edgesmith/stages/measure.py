"""Measuring stages: each opens artifacts through the runtime that ships and leaves evidence that names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact
from edgesmith.progress import Progress
from edgesmith.stages.base import Stage
from edgesmith.stages.rows import Rows
from edgesmith.tasks import load_task

__all__ = ["CompareStage", "EvalStage", "LatencyStage"]

_LIBRARIES = ("numpy", "onnxruntime", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class EvalStage(Stage):
    """Score every row of a file, one row a call, as a request would be."""

    step: ClassVar[str] = "eval"
    libraries: ClassVar[tuple[str, ...]] = _LIBRARIES
    is_of_this_machine: ClassVar[bool] = True

    artifact: Artifact
    rows: Rows
    task: str | None = None
    threads: int = 1

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return {**self.rows.options, "task": self.task, "threads": self.threads}

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        return {"artifact": self.artifact.digest, "data": self.rows.digest}

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `evaluation.json` and every prediction."""
        from bench.accuracy import evaluate
        from serve.runtime import EngineOptions, open_engine

        task = load_task(self.artifact.folder, self.task, columns=self.rows.columns)
        examples = self.rows.read(task, labelled=True)
        engine = open_engine(self.artifact, EngineOptions(threads=self.threads))
        try:
            evaluation = evaluate(
                engine,
                task,
                examples,
                batch_size=1,
                artifact_digest=self.artifact.digest,
                progress=progress,
            )
        finally:
            engine.close()
        evaluation.save(folder)
        return self.seal(folder)


@dataclass(frozen=True, kw_only=True)
class LatencyStage(Stage):
    """Time single requests of one artifact, its start in a fresh process, and its memory."""

    step: ClassVar[str] = "bench"
    libraries: ClassVar[tuple[str, ...]] = _LIBRARIES
    is_timed: ClassVar[bool] = True

    artifact: Artifact
    rows: Rows
    task: str | None = None
    threads: int = 1
    scenario: str = "single"
    length: int | None = None
    num_requests: int | None = None

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return {
            **self.rows.options,
            "task": self.task,
            "threads": self.threads,
            "scenario": self.scenario,
            "length": self.length,
            "num_requests": self.num_requests,
        }

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        return {"artifact": self.artifact.digest, "data": self.rows.digest}

    def is_final(self, made: Artifact) -> bool:
        """Whether the engine had settled before it was timed."""
        from bench.latency import Latency

        return Latency.load(made.path).is_settled

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `latency.json`, its samples and `start.json`."""
        from bench.latency import LatencyOptions, encode_inputs, measure_latency
        from bench.start import measure_start
        from serve.runtime import EngineOptions, open_engine

        task = load_task(self.artifact.folder, self.task, columns=self.rows.columns)
        inputs = encode_inputs(task, self.rows.read(task), length=self.length)
        options = LatencyOptions()
        if self.num_requests is not None:
            options = LatencyOptions(min_requests=self.num_requests, max_requests=self.num_requests)
        engine = open_engine(self.artifact, EngineOptions(threads=self.threads))
        try:
            latency = measure_latency(
                engine, inputs, options=options, artifact_digest=self.artifact.digest, progress=progress
            )
        finally:
            engine.close()
        latency.save(folder)
        measure_start(self.artifact.path, threads=self.threads).save(folder)
        return self.seal(folder)


@dataclass(frozen=True, kw_only=True)
class CompareStage(Stage):
    """Time two artifacts in turns in one run."""

    step: ClassVar[str] = "compare"
    libraries: ClassVar[tuple[str, ...]] = _LIBRARIES
    is_timed: ClassVar[bool] = True

    artifact: Artifact
    baseline: Artifact
    rows: Rows
    task: str | None = None
    threads: int = 1
    length: int | None = None

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return {**self.rows.options, "task": self.task, "threads": self.threads, "length": self.length}

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        return {"artifact": self.artifact.digest, "baseline": self.baseline.digest, "data": self.rows.digest}

    def is_final(self, made: Artifact) -> bool:
        """Whether both engines had settled before they were timed."""
        from bench.duet import Duet

        return Duet.load(made.path).is_settled

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `duet.json` and the times of every turn."""
        from bench.duet import compare
        from bench.latency import encode_inputs
        from serve.runtime import EngineOptions, open_engine

        task = load_task(self.artifact.folder, self.task, columns=self.rows.columns)
        inputs = encode_inputs(task, self.rows.read(task), length=self.length)
        options = EngineOptions(threads=self.threads)
        baseline, artifact = open_engine(self.baseline, options), open_engine(self.artifact, options)
        try:
            duet = compare(
                baseline,
                artifact,
                inputs,
                baseline_digest=self.baseline.digest,
                artifact_digest=self.artifact.digest,
                progress=progress,
            )
        finally:
            artifact.close()
            baseline.close()
        duet.save(folder)
        return self.seal(folder)
