"""Verify: an artifact against its reference on real rows; a breach is an error, so evidence of one never exists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from edgesmith.artifact import Artifact, Parent, tool_versions, write_artifact
from edgesmith.progress import SILENT, Progress
from edgesmith.stages.measure import machine_id
from edgesmith.stages.rows import Rows
from edgesmith.store import StepKey
from edgesmith.tasks import load_task

if TYPE_CHECKING:
    from export.verify import Verification

__all__ = ["VerifyStage", "verify_artifact"]

_LIBRARIES = ("numpy", "onnxruntime", "tokenizers", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class VerifyStage:
    """Compare an artifact with a checkpoint run in torch."""

    reference: Artifact
    artifact: Artifact
    rows: Rows
    task: str | None = None

    @property
    def _options(self) -> dict[str, JsonValue]:
        return {**self.rows.options, "task": self.task}

    @property
    def _inputs(self) -> dict[str, str]:
        return {"artifact": self.artifact.digest, "reference": self.reference.digest, "data": self.rows.digest}

    @property
    def key(self) -> StepKey:
        """Integer kernels differ from processor to processor, so a proof belongs to one."""
        return StepKey(
            step="verify",
            module="edgesmith.stages.verify",
            options=self._options,
            inputs={**self._inputs, "machine": machine_id()},
            libraries=_LIBRARIES,
        )

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `verification.json`."""
        verify_artifact(self.artifact, self.reference, rows=self.rows, task=self.task, progress=progress).save(folder)
        return write_artifact(
            folder,
            kind="evidence",
            step="verify",
            options=self._options,
            parents=[Parent(role=role, digest=digest) for role, digest in self._inputs.items()],
            tools=tool_versions(*_LIBRARIES),
        )


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
    batches = make_batches(loaded, rows.read(loaded))
    if reference.kind == "checkpoint":
        from export.reference import TorchEngine

        expected = TorchEngine(reference.path, loaded)
    else:
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
