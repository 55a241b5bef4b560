"""Measuring stages: each opens artifacts through the runtime that ships and leaves evidence that names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import JsonValue

from edgesmith.artifact import Artifact, Parent, write_artifact
from edgesmith.files import sha256_text
from edgesmith.progress import Progress
from edgesmith.stages.rows import Rows
from edgesmith.store import StepKey
from edgesmith.tasks import load_task

__all__ = ["CompareStage", "EvalStage", "LatencyStage", "machine_id"]

_LIBRARIES = ("numpy", "onnxruntime", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class EvalStage:
    """Score every row of a file, one row a call, as a request would be."""

    artifact: Artifact
    rows: Rows
    task: str | None = None
    threads: int = 1
    batch_size: int = 1

    @property
    def _options(self) -> dict[str, JsonValue]:
        return {**self.rows.options, "task": self.task, "batch_size": self.batch_size}

    @property
    def key(self) -> StepKey:
        """Predictions depend on the artifact, the rows and the processor's instruction sets."""
        return StepKey(
            step="eval",
            module="edgesmith.stages.measure",
            options=self._options,
            inputs={"artifact": self.artifact.digest, "data": self.rows.digest, "machine": machine_id()},
            libraries=_LIBRARIES,
        )

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
                batch_size=self.batch_size,
                artifact_digest=self.artifact.digest,
                progress=progress,
            )
        finally:
            engine.close()
        evaluation.save(folder)
        return _write_evidence(
            folder, "eval", self._options, {"artifact": self.artifact.digest, "data": self.rows.digest}
        )


@dataclass(frozen=True, kw_only=True)
class LatencyStage:
    """Time single requests of one artifact, its start in a fresh process, and its memory."""

    artifact: Artifact
    rows: Rows
    task: str | None = None
    threads: int = 1
    scenario: str = "single"
    length: int | None = None
    num_requests: int | None = None

    @property
    def _options(self) -> dict[str, JsonValue]:
        return {
            **self.rows.options,
            "task": self.task,
            "threads": self.threads,
            "scenario": self.scenario,
            "length": self.length,
            "num_requests": self.num_requests,
        }

    @property
    def key(self) -> StepKey:
        """Times belong to one machine."""
        return StepKey(
            step="bench",
            module="edgesmith.stages.measure",
            options=self._options,
            inputs={"artifact": self.artifact.digest, "data": self.rows.digest, "machine": machine_id()},
            libraries=_LIBRARIES,
        )

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
        return _write_evidence(
            folder, "bench", self._options, {"artifact": self.artifact.digest, "data": self.rows.digest}
        )


@dataclass(frozen=True, kw_only=True)
class CompareStage:
    """Time two artifacts in turns in one run."""

    artifact: Artifact
    baseline: Artifact
    rows: Rows
    task: str | None = None
    threads: int = 1
    length: int | None = None

    @property
    def _options(self) -> dict[str, JsonValue]:
        return {**self.rows.options, "task": self.task, "threads": self.threads, "length": self.length}

    @property
    def _inputs(self) -> dict[str, str]:
        return {"artifact": self.artifact.digest, "baseline": self.baseline.digest, "data": self.rows.digest}

    @property
    def key(self) -> StepKey:
        """Times belong to one machine."""
        return StepKey(
            step="compare",
            module="edgesmith.stages.measure",
            options=self._options,
            inputs={**self._inputs, "machine": machine_id()},
            libraries=_LIBRARIES,
        )

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
        return _write_evidence(folder, "compare", self._options, self._inputs)


def machine_id() -> str:
    """Name this kind of machine: processor, instruction sets and number of CPUs, not its load."""
    from bench.machine import describe_machine

    fields = asdict(describe_machine())
    return sha256_text(*(str(fields[name]) for name in ("cpu", "architecture", "num_cpus", "flags")))


def _write_evidence(folder: Path, step: str, options: Mapping[str, JsonValue], parents: Mapping[str, str]) -> Artifact:
    return write_artifact(
        folder,
        kind="evidence",
        step=step,
        options=options,
        parents=[Parent(role=role, digest=digest) for role, digest in parents.items()],
    )
