"""Verify: an artifact against its reference on real rows; a breach is an error, so evidence of one never exists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact
from edgesmith.errors import UsageError
from edgesmith.progress import SILENT, Progress
from edgesmith.stages.base import Stage
from edgesmith.stages.rows import Rows
from edgesmith.tasks import load_task

if TYPE_CHECKING:
    from export.verify import Verification

__all__ = ["VerifyStage", "verify_artifact"]

_LIBRARIES = ("numpy", "onnxruntime", "tokenizers", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class VerifyStage(Stage):
    """Compare an artifact with a checkpoint run in torch."""

    step: ClassVar[str] = "verify"
    libraries: ClassVar[tuple[str, ...]] = _LIBRARIES
    is_of_this_machine: ClassVar[bool] = True

    reference: Artifact
    artifact: Artifact
    rows: Rows
    task: str | None = None

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return {**self.rows.options, "task": self.task}

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        return {"artifact": self.artifact.digest, "reference": self.reference.digest, "data": self.rows.digest}

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `verification.json`."""
        verify_artifact(self.artifact, self.reference, rows=self.rows, task=self.task, progress=progress).save(folder)
        return self.seal(folder)


def verify_artifact(
    artifact: Artifact,
    reference: Artifact,
    *,
    rows: Rows,
    task: str | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Verification:
    """Compare an artifact with a checkpoint (run in torch) or with another artifact.

    Raises:
        VerificationError: a tolerance of the artifact's precision is broken.
        DataError: a row does not fit the task.
    """
    from export.batches import make_batches
    from export.verify import verify_outputs
    from serve.runtime import EngineOptions, open_engine

    loaded = load_task(artifact.folder, task, columns=rows.columns)
    examples = rows.read(loaded)
    batches = make_batches(loaded, examples)
    if reference.kind == "checkpoint":
        from export.reference import TorchEngine
        from export.task_parity import check_task

        check_task(reference.folder, loaded, examples)
        expected = TorchEngine(reference.path, loaded)
    else:
        if reference.manifest.task not in (None, loaded.name):
            theirs = reference.manifest.task
            raise UsageError(f"{reference.path}: is for {theirs}, but {artifact.path} is for {loaded.name}")
        expected = open_engine(reference, EngineOptions(threads=threads))  # type: ignore[assignment]
    candidate = open_engine(artifact, EngineOptions(threads=threads))
    try:
        return verify_outputs(
            expected,
            candidate,
            batches,
            task=loaded,
            precision=artifact.manifest.precision or "fp32",
            progress=progress,
        )
    finally:
        candidate.close()
        expected.close()
