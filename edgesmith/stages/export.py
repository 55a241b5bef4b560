"""Export: checkpoint → fp32 ONNX artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from edgesmith.artifact import Artifact, Parent, tool_versions, write_artifact
from edgesmith.progress import Progress
from edgesmith.recipe import OptimizeFor
from edgesmith.stages.rows import Rows
from edgesmith.stages.side_files import carry_files, close_graph
from edgesmith.store import StepKey
from edgesmith.tasks import load_task

__all__ = ["ExportStage"]

_LIBRARIES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "tokenizers", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class ExportStage:
    """Write a checkpoint's graph, fused for its runtime, with all that travels with it."""

    checkpoint: Artifact
    task: str | None
    rows: Rows
    """Golden vectors are made of some of these."""
    optimize_for: OptimizeFor = "onnxruntime-cpu"
    opset: int | None = None
    max_length: int | None = None

    @property
    def _options(self) -> dict[str, JsonValue]:
        return {
            "task": self.task,
            "rows": self.rows.options,
            "optimize_for": self.optimize_for,
            "opset": self.opset,
            "max_length": self.max_length,
        }

    @property
    def key(self) -> StepKey:
        """The graph depends on the checkpoint alone; its golden vectors on the rows."""
        return StepKey(
            step="export",
            module="edgesmith.stages.export",
            options=self._options,
            inputs={"checkpoint": self.checkpoint.digest, "rows": self.rows.digest},
            libraries=_LIBRARIES,
        )

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Export, copy the side files, make golden vectors."""
        from export.to_onnx import export_onnx

        task = load_task(self.checkpoint.folder, self.task, max_length=self.max_length, columns=self.rows.columns)
        examples = self.rows.read(task)
        result = export_onnx(
            self.checkpoint.path,
            folder,
            task=task,
            opset=self.opset,
            optimize_for=self.optimize_for,
            progress=progress,
        )
        for note in result.notes:
            progress.note(f"export: {note}")
        carry_files(self.checkpoint.folder, folder)
        signature = close_graph(folder, task=task, examples=examples, precision="fp32")
        return write_artifact(
            folder,
            kind="onnx",
            step="export",
            task=task.name,
            precision="fp32",
            options={**self._options, "opset": result.opset},
            parents=[Parent(role="checkpoint", digest=self.checkpoint.digest)],
            signature=signature,
            tools=tool_versions(*_LIBRARIES),
        )
