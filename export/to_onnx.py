"""Export a checkpoint to ONNX: dynamic axes, fused for its runtime, the same bytes every time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import onnx_ir as ir
import torch
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from compress.load import load_model
from compress.quiet import quiet_libraries
from edgesmith.errors import UnsupportedError, UsageError
from edgesmith.files import storage_errors
from edgesmith.progress import SILENT, Progress
from export.inputs import BATCH, SEQUENCE, free_axes, sample_inputs
from export.passes.base import GraphPass, PassResult, run_passes
from export.passes.clean import Deduplicate, DropMetadata
from export.passes.fuse_attention import FuseAttention
from export.passes.keep_layer_norm import KeepLayerNorm
from export.passes.narrow_last_layer import NarrowLastLayer
from export.passes.rename import Rename
from export.passes.simplify_mask import SimplifyMask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgesmith.tasks.base import Task

__all__ = ["OPSETS", "ExportResult", "OptimizeFor", "export_onnx", "trace"]

OptimizeFor: TypeAlias = Literal["onnxruntime-cpu", "portable"]

OPSETS: dict[OptimizeFor, int] = {
    "onnxruntime-cpu": 20,  # the first with `Gelu`, whose kernel takes one pass
    "portable": 18,  # the lowest the exporter writes, understood by converters and older runtimes
}
"""The opset written for each target, unless another is asked for."""

_MIN_OPSET, _MAX_OPSET = 18, 23
_ONE_FILE_BYTES = 2_000_000_000  # a protobuf file ends at 2³¹ bytes, graph included
_SHORTEST = 3  # tokens; with special tokens a text of one word
_EXPORT_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError)
_SAMPLE = {BATCH: 2, SEQUENCE: 7}  # 1 would be frozen as a constant


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was exported.

    Attributes:
        path: The ONNX file.
        files: All files written: the graph and, past the limit, its weights.
        opset: Of the standard operators.
        domains: Operator sets used beside the standard one.
        input_names: In order.
        output_names: In order.
        num_nodes: Of the graph.
        weight_bytes: Of all constants together.
        passes: What each graph pass changed.
        notes: What the user should know: warnings of the libraries, places left unoptimized.
    """

    path: Path
    files: tuple[Path, ...]
    opset: int
    domains: tuple[str, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    num_nodes: int
    weight_bytes: int
    passes: tuple[PassResult, ...]
    notes: tuple[str, ...]


def export_onnx(
    checkpoint: Path,
    destination: Path,
    *,
    task: Task,
    opset: int | None = None,
    optimize_for: OptimizeFor = "onnxruntime-cpu",
    one_file_bytes: int = _ONE_FILE_BYTES,
    progress: Progress = SILENT,
) -> ExportResult:
    """Export a checkpoint's model to `model.onnx` in fp32.

    Batch and length are free, and the batch axis is one for all inputs; pictures have the height and width that the
    processor gives them. The same checkpoint gives the same bytes with the same libraries.

    Args:
        checkpoint: Hugging Face folder with safetensors weights.
        destination: Folder to write to; made if missing.
        task: Names model class, inputs and outputs.
        opset: Of the standard operators; by default as `OPSETS` says for the target.
        optimize_for: `onnxruntime-cpu` uses ONNX Runtime's own fused operators, `portable` standard ones only.
        one_file_bytes: Weights up to this size are inside `model.onnx`, bigger ones in `model.onnx.data`.
        progress: Told of each stage.

    Returns:
        What was written, and what each pass changed.

    Raises:
        CheckpointError: The checkpoint is damaged, unsafe or lacks weights of the task.
        UnsupportedError: The libraries cannot export this architecture.
        UsageError: The opset cannot be written for this target.
        StorageError: The files cannot be written.
    """
    opset = _choose_opset(opset, optimize_for)
    with progress.bar("Export to ONNX", total=4) as advance:
        model = load_model(checkpoint, task, attention="eager")
        advance(1)
        graph_model, heard = trace(model, task, opset)
        advance(1)
        _select_outputs(graph_model, task)
        _order_inputs(graph_model, task)
        passes = run_passes(graph_model, _compose(model, task, optimize_for))
        domains = _check_domains(graph_model, optimize_for)
        advance(1)
        files, weight_bytes = _save(graph_model, destination, one_file_bytes)
        advance(1)
    notes = (*heard, *(text for result in passes for text in result.left_out))
    return ExportResult(
        path=files[0],
        files=files,
        opset=opset,
        domains=domains,
        input_names=tuple(str(value.name) for value in graph_model.graph.inputs),
        output_names=tuple(str(value.name) for value in graph_model.graph.outputs),
        num_nodes=graph_model.graph.num_nodes(),
        weight_bytes=weight_bytes,
        passes=passes,
        notes=notes,
    )


def _choose_opset(opset: int | None, optimize_for: OptimizeFor) -> int:
    if opset is None:
        return OPSETS[optimize_for]
    if not _MIN_OPSET <= opset <= _MAX_OPSET:
        raise UsageError(
            f"opset {opset} cannot be written",
            mend=f"Ask for one from {_MIN_OPSET} to {_MAX_OPSET}, or for none to have {OPSETS[optimize_for]}.",
        )
    return opset


def _compose(model: PreTrainedModel, task: Task, optimize_for: OptimizeFor) -> list[GraphPass]:
    passes: list[GraphPass] = [DropMetadata(), Deduplicate(), SimplifyMask()]
    if optimize_for == "onnxruntime-cpu":
        passes.append(FuseAttention())
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    axes = tuple(axis for axis in (BATCH, SEQUENCE) if axis in free_axes(task)[task.input_names[0]].values())
    return [*passes, KeepLayerNorm(), NarrowLastLayer(), Deduplicate(), Rename(weights, axes=axes)]


def trace(model: PreTrainedModel, task: Task, opset: int) -> tuple[ir.Model, list[str]]:
    """Trace a model with free batch and length, without optimizing the graph.

    Args:
        model: From `load_model`, with the attention implementation to trace.
        task: Names the inputs.
        opset: Of the standard operators.

    Returns:
        The graph, and what the libraries warned of.

    Raises:
        UnsupportedError: The libraries cannot export this architecture.
    """
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    is_text = any(SEQUENCE in axes.values() for axes in free_axes(task).values())
    try:
        return _export(model, task, opset, shortest=None)
    except _EXPORT_ERRORS as error:  # some models pad or shift by a token, which a trace cannot tell from length 1 or 2
        if not is_text:
            raise UnsupportedError(
                f"{type(model).__name__} cannot be exported to ONNX with a free batch: {_last_cause(error)}",
                mend="ResNet, ViT and ConvNeXt are tested; report this one with its config.json.",
            ) from error
    try:
        program, notes = _export(model, task, opset, shortest=_SHORTEST)
    except _EXPORT_ERRORS as error:
        raise UnsupportedError(
            f"{type(model).__name__} cannot be exported to ONNX with a free batch and length: {_last_cause(error)}",
            mend="Architectures of the BERT family are tested; report this one with its config.json.",
        ) from error
    return program, [*notes, f"the graph was traced for texts of {_SHORTEST} tokens and more"]


def _export(model: PreTrainedModel, task: Task, opset: int, *, shortest: int | None) -> tuple[ir.Model, list[str]]:
    free = {
        BATCH: torch.export.Dim(BATCH),
        SEQUENCE: torch.export.Dim(SEQUENCE, min=shortest, max=_longest(model)),
    }
    arrays = sample_inputs(task, _SAMPLE, vocab_size=_vocabulary(model))
    sample = {name: torch.from_numpy(array) for name, array in arrays.items()}
    shapes = {name: {place: free[axis] for place, axis in axes.items()} for name, axes in free_axes(task).items()}
    with quiet_libraries() as heard:
        config = OnnxConfig(dynamic=True, dynamic_shapes=shapes, opset_version=opset)
        exported = OnnxExporter().export(model, sample, config=config)
    return exported.program, heard.notes


def _last_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip(" -") for line in str(error).strip().splitlines() if line.strip()]
    text = next(
        (line for line in lines if line.startswith(("Not all values of", "You marked"))), lines[0] if lines else ""
    )
    return f"{type(error).__name__}: {text[:300]}"


def _longest(model: PreTrainedModel) -> int | None:
    """Longest sequence that the position embeddings have room for; None if the model has no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return int(limit) if isinstance(limit, int) and limit > 0 else None


def _vocabulary(model: PreTrainedModel) -> int:
    return int(getattr(model.config, "vocab_size", 32))


def _select_outputs(model: ir.Model, task: Task) -> None:
    """Keep the outputs that the task needs, in its order."""
    outputs = {value.name: value for value in model.graph.outputs}
    missing = [name for name in task.output_names if name not in outputs]
    if missing:
        raise UnsupportedError(f"the model gives {sorted(map(str, outputs))}, but {task.name} needs {missing}")
    model.graph.outputs.clear()
    model.graph.outputs.extend(outputs[name] for name in task.output_names)


def _order_inputs(model: ir.Model, task: Task) -> None:
    """Put the inputs in the task's order; one that the model does not read is refused."""
    inputs = {value.name: value for value in model.graph.inputs}
    missing = [name for name in task.input_names if name not in inputs]
    if missing:
        raise UnsupportedError(f"the traced model takes {sorted(map(str, inputs))} and ignores {missing}")
    model.graph.inputs.clear()
    model.graph.inputs.extend(inputs[name] for name in task.input_names)


def _check_domains(model: ir.Model, optimize_for: OptimizeFor) -> tuple[str, ...]:
    """The operator sets in use beside the standard one; the imports are cut down to them."""
    used = {node.domain for node in model.graph.all_nodes()}
    for domain in [*model.graph.opset_imports]:
        if domain not in used | {""}:
            del model.graph.opset_imports[domain]
    foreign = tuple(sorted(used - {""}))
    if foreign and optimize_for == "portable":
        raise UnsupportedError(
            f"the graph needs operators of {', '.join(foreign)}, which a portable model must not have",
            mend="Export it for `onnxruntime-cpu`.",
        )
    return foreign


def _save(model: ir.Model, destination: Path, one_file_bytes: int) -> tuple[tuple[Path, ...], int]:
    """Write the graph, and its weights beside it if they are too big for one file."""
    weight_bytes = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    path = destination / "model.onnx"
    data = destination / "model.onnx.data"
    with storage_errors(destination):
        destination.mkdir(parents=True, exist_ok=True)
        data.unlink(missing_ok=True)
        if weight_bytes > one_file_bytes:
            ir.save(model, path, external_data=data.name, size_threshold_bytes=1024)
            return (path, data), weight_bytes
        ir.save(model, path)
    return (path,), weight_bytes
