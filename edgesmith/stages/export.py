"""Export: checkpoint → fp32 ONNX artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact, Kind
from edgesmith.progress import Progress
from edgesmith.recipe import OptimizeFor
from edgesmith.stages.base import Stage
from edgesmith.stages.rows import Rows
from edgesmith.stages.side_files import add_reference, carry_files, close_graph
from edgesmith.tasks import TextTask, load_task

__all__ = ["ExportStage"]

_LIBRARIES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "tokenizers", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class ExportStage(Stage):
    """Write a checkpoint's graph, fused for its runtime, with all that travels with it."""

    step: ClassVar[str] = "export"
    kind: ClassVar[Kind] = "onnx"
    libraries: ClassVar[tuple[str, ...]] = _LIBRARIES
    is_of_this_machine: ClassVar[bool] = True  # the golden vectors are this processor's

    checkpoint: Artifact
    task: str | None
    rows: Rows
    """Golden vectors are made of some of these."""
    optimize_for: OptimizeFor = "onnxruntime-cpu"
    opset: int | None = None
    max_length: int | None = None
    reference: Rows | None = None
    """Held-out rows that the artifact keeps a description of, which a server compares its requests with."""

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return {
            "task": self.task,
            "rows": self.rows.options,
            "optimize_for": self.optimize_for,
            "opset": self.opset,
            "max_length": self.max_length,
            "reference": self.reference.options if self.reference else None,
        }

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        reference = {"reference": self.reference.digest} if self.reference else {}
        return {"checkpoint": self.checkpoint.digest, "rows": self.rows.digest, **reference}

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Export, copy the side files, make golden vectors."""
        from export.to_onnx import export_onnx
        from export.tokenizer_parity import check_tokenizer

        task = load_task(self.checkpoint.folder, self.task, max_length=self.max_length, columns=self.rows.columns)
        examples = self.rows.read(task)
        if isinstance(task, TextTask):
            check_tokenizer(self.checkpoint.folder, task.encoder, task.sequences(examples))
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
        if self.reference is not None:
            add_reference(folder, task=task, rows=self.reference, progress=progress)
        return self.seal(folder, task=task.name, precision="fp32", signature=signature)
