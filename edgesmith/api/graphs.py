"""A graph, a step at a time: checkpoint → ONNX → INT8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from edgesmith.api.rows import proof_rows, reference_rows
from edgesmith.errors import UsageError
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgesmith.artifact import Artifact
    from export.verify import Verification

__all__ = ["export_onnx", "quantize_onnx"]


def export_onnx(
    checkpoint: Path,
    *,
    out: Path,
    task: str | None = None,
    data: Path | None = None,
    optimize_for: str = "onnxruntime-cpu",
    opset: int | None = None,
    max_length: int | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[Artifact, Verification]:
    """Export a checkpoint to ONNX; nothing appears at `out` unless its outputs equal the checkpoint's.

    Args:
        checkpoint: Hugging Face folder or checkpoint artifact.
        out: Folder to write.
        task: Guessed from config.json if left out.
        data: Rows to verify on; packaged sentences if left out.
        optimize_for: `onnxruntime-cpu` or `portable`.
        opset: Chosen by `optimize_for` if left out.
        max_length: Longest input in tokens.
        columns: The task's column → the file's.
        seed: Of the rows' draw.
        progress: Shows how far it is.

    Raises:
        UsageError: an option is unknown.
        UnsupportedError: the model cannot be exported.
        VerificationError: the export differs from the checkpoint.
    """
    from edgesmith.artifact import open_artifact
    from edgesmith.recipe import OptimizeFor
    from edgesmith.stages.base import make_into
    from edgesmith.stages.export import ExportStage
    from edgesmith.stages.verify import verify_artifact

    if optimize_for not in get_args(OptimizeFor):
        raise UsageError(f"--optimize-for {optimize_for}: unknown; use {' or '.join(get_args(OptimizeFor))}")
    reference = open_artifact(checkpoint, kinds=("checkpoint",))
    rows = proof_rows(data, seed=seed, columns=columns, progress=progress)
    stage = ExportStage(
        checkpoint=reference,
        task=task,
        rows=rows,
        optimize_for=optimize_for,  # type: ignore[arg-type]  # checked above
        opset=opset,
        max_length=max_length,
        reference=reference_rows(data, seed=seed, columns=columns),
    )
    return make_into(
        stage, out, lambda made: verify_artifact(made, reference, rows=rows, task=task, progress=progress), progress
    )


def quantize_onnx(
    artifact: Path,
    *,
    method: str,
    out: Path,
    calibration: Path | None = None,
    num_samples: int = 128,
    against: Path | None = None,
    data: Path | None = None,
    smoothing: bool | None = None,
    reduce_range: bool = False,
    exclude: Sequence[str] = (),
    clusters: int | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[Artifact, Verification]:
    """Quantize an fp32 artifact; nothing appears at `out` unless its outputs stay near the reference's.

    Args:
        artifact: fp32 ONNX artifact.
        method: `dynamic-int8` or `static-int8`.
        out: Folder to write.
        calibration: Real rows for activation ranges; `static-int8` needs it.
        num_samples: Rows drawn from the calibration file.
        against: Checkpoint to verify against; `artifact` itself if left out.
        data: Rows to verify on; packaged sentences if left out.
        smoothing: Scale down outlying activation channels first, on the calibration rows; by default static does.
        reduce_range: 7-bit weights, for x86 without VNNI.
        exclude: Shell patterns of node and weight names that stay in float.
        clusters: Most distinct values of each weight tensor, 2 to 128, for a smaller download.
        columns: The task's column → the file's.
        seed: Of every draw.
        progress: Shows how far it is.

    Raises:
        UsageError: an option is unknown, or static-int8 was given no rows.
        VerificationError: the quantized model is too far off.
    """
    from edgesmith.artifact import open_artifact
    from edgesmith.recipe import QuantizeMethod, QuantizeOptions
    from edgesmith.stages.base import make_into
    from edgesmith.stages.quantize import QuantizeStage
    from edgesmith.stages.rows import Rows
    from edgesmith.stages.verify import verify_artifact

    if method not in get_args(QuantizeMethod):
        raise UsageError(f"--method {method}: unknown; use {' or '.join(get_args(QuantizeMethod))}")
    source = open_artifact(artifact, kinds=("onnx",))
    reference = open_artifact(against, kinds=("checkpoint", "onnx")) if against else source
    rows = proof_rows(data, seed=seed, columns=columns, progress=progress)
    stage = QuantizeStage(
        source=source,
        method=QuantizeOptions(
            method=method,
            smoothing=smoothing,
            reduce_range=reduce_range,
            exclude=tuple(exclude),
            clusters=clusters,
        ),
        rows=rows,
        calibration=Rows(path=calibration, num=num_samples, seed=seed, columns=columns or {}) if calibration else None,
        reference=reference_rows(data, seed=seed, columns=columns),
    )
    return make_into(stage, out, lambda made: verify_artifact(made, reference, rows=rows, progress=progress), progress)
