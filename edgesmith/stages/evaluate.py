"""The accuracy of an artifact, measured through the runtime that ships."""

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

__all__ = ["EvalStage"]


@dataclass(frozen=True, kw_only=True)
class EvalStage(Stage):
    """Score every row of a file, one row a call, as a request would be."""

    step: ClassVar[str] = "eval"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "onnxruntime", "tokenizers")
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
