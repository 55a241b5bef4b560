"""The speed of two artifacts, measured in turns in one run."""

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

__all__ = ["CompareStage"]


@dataclass(frozen=True, kw_only=True)
class CompareStage(Stage):
    """Time two artifacts in turns in one run."""

    step: ClassVar[str] = "compare"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "onnxruntime", "tokenizers")
    is_timed: ClassVar[bool] = True

    artifact: Artifact
    baseline: Artifact
    rows: Rows
    task: str | None = None
    threads: int = 1
    length: int | None = None
    seconds: float | None = None
    """Wall time aimed at."""

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        names = ("task", "threads", "length", "seconds")
        return {**self.rows.options, **{name: getattr(self, name) for name in names}}

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        return {"artifact": self.artifact.digest, "baseline": self.baseline.digest, "data": self.rows.digest}

    def is_final(self, made: Artifact) -> bool:
        """Whether both engines had settled before they were timed."""
        from bench.duet.duet import Duet

        return Duet.load(made.path).is_settled

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `duet.json` and the times of every turn."""
        from bench.duet.duet import DuetOptions, compare
        from bench.scenarios.inputs import encode_inputs
        from serve.runtime import Engine, EngineOptions, open_engine

        task = load_task(self.artifact.folder, self.task, columns=self.rows.columns)
        options = EngineOptions(threads=self.threads)

        def open_baseline() -> Engine:
            return open_engine(self.baseline, options)

        def open_artifact() -> Engine:
            return open_engine(self.artifact, options)

        compare(
            open_baseline,
            open_artifact,
            encode_inputs(task, self.rows.read(task), length=self.length),
            options=DuetOptions(seconds=self.seconds or DuetOptions.seconds),
            baseline_digest=self.baseline.digest,
            artifact_digest=self.artifact.digest,
            progress=progress,
        ).save(folder)
        return self.seal(folder)
