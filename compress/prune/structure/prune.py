"""Structured pruning of a checkpoint: an ordinary smaller model, of the sizes asked for or within a budget."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compress.checkpoint import open_checkpoint, quantization_of, read_json
from compress.load import ModelKind, load_model
from compress.prune.batches import Batch, as_batches
from compress.prune.layer_stack import find_stack
from compress.prune.layers import choose_layers, keep_layers
from compress.prune.structure.carve import Carver
from compress.prune.structure.cost import count_macs, count_params, one_row
from compress.prune.structure.probe import probe_dimension
from compress.prune.structure.result import StructureResult, Width, write_result
from compress.prune.structure.sizes import check_options, name_of, size_of, wanted_for
from compress.save import save_model
from compress.skeleton import TORCH_DTYPES
from edgesmith.errors import CheckpointError, UnsupportedError, UsageError, VerificationError
from edgesmith.files import atomic_write, storage_errors
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgesmith.recipe.steps import PruneOptions

__all__ = ["prune_structure"]


def prune_structure(
    checkpoint: Path,
    out: Path,
    options: PruneOptions,
    *,
    kind: ModelKind,
    batches: Sequence[Mapping[str, Any]],
    progress: Progress = SILENT,
) -> StructureResult:
    """Make a smaller model of a checkpoint: layers, widths, heads or channels leave tensors and configuration.

    That nothing else depends on what leaves is proven on the model itself, before anything is cut, and the
    smaller model is held against the full one with the same units at zero. Training afterwards is the caller's.

    Args:
        checkpoint: Hugging Face folder with safetensors weights.
        out: Empty or missing; gets weights, `config.json`, all other files of `checkpoint`, and `pruning.json`.
        options: `keep`, `num_layers`, `max_params`, `max_macs`, `max_latency`, `multiple_of`, `importance`.
        kind: The task, or what else `compress.load.load_model` takes.
        batches: Encoded calibration rows, arrays or tensors by input name. The first row of the first is what
            multiply-accumulates are counted for.
        progress: Where to report.

    Raises:
        UsageError: a size that leaves nothing, that tears heads apart, or larger than the model; a budget out of
            reach; `out` is in use. All before any calibration.
        UnsupportedError: the architecture cannot be cut there; the message names dimension and tensors.
        CheckpointError: the checkpoint is damaged, unsafe or quantized.
        DataError: there are no rows.
        VerificationError: the smaller model does not compute what it should.
    """
    check_options(options)
    _check_folders(checkpoint, out)
    full = load_model(checkpoint, kind)
    prepared = as_batches(batches, full)
    _check_sizes(full, options)
    row = one_row(prepared[0])
    model, kept_layers = _keep_layers(full, options, prepared, progress)
    carver = Carver(model, full, options, prepared, progress)
    smaller = carver.carve()
    change = carver.change_of(smaller)
    result = StructureResult(
        path=out,
        importance=options.importance,
        num_layers_before=None if kept_layers is None else find_stack(full).num_layers,
        kept_layers=kept_layers,
        widths=tuple(carver.widths),
        params_before=count_params(full),
        params_after=count_params(smaller),
        macs_before=count_macs(full, row),
        macs_after=count_macs(smaller, row),
        row_shape={name: tuple(value.shape) for name, value in sorted(row.items())},
        output_change=change,
        notes=(*carver.notes, *_warnings(change)),
    )
    _save(smaller, checkpoint, out, kind, result.widths)
    write_result(result, out)
    progress.note(f"prune: {result.summary}")
    for note in result.notes:
        progress.note(f"prune: {note}")
    return result


def _check_folders(checkpoint: Path, out: Path) -> None:
    with storage_errors(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out}: exists and is not empty", mend="Give a new folder.")
    if quantization := quantization_of(read_json(checkpoint / "config.json")):
        raise CheckpointError(
            f"{checkpoint}: the weights are quantized ({quantization}): widths of them cannot be cut",
            mend="Prune the full-precision model, and quantize the smaller one.",
        )


def _check_sizes(model: PreTrainedModel, options: PruneOptions) -> None:
    """Refuse sizes that cannot be, before anything is measured."""
    names = dict.fromkeys(name_of(key) for key in options.keep)
    dimensions = [probed.dimension for name in names for probed in probe_dimension(model, name)]
    known = {label for dimension in dimensions for label in dimension.settings} | {one.name for one in dimensions}
    for key in options.keep:
        if key not in known:
            raise UsageError(
                f"keep: {type(model).__name__} has no width {key!r}", mend=f"It has: {', '.join(sorted(known))}."
            )
    for dimension in dimensions:
        wanted = wanted_for(dimension, dimensions, options.keep)
        if wanted is not None:
            size_of(dimension, wanted, options.multiple_of)


def _keep_layers(
    model: PreTrainedModel, options: PruneOptions, batches: Sequence[Batch], progress: Progress
) -> tuple[PreTrainedModel, tuple[int, ...] | None]:
    if options.num_layers is None or options.num_layers == find_stack(model).num_layers:
        return model, None
    with progress.bar("measuring layers"):
        kept = choose_layers(model, options.num_layers, options.layers, batches)
    return keep_layers(model, kept), kept


def _warnings(output_change: float) -> tuple[str, ...]:
    if output_change < 1:
        return ()
    return (
        f"outputs changed by {output_change:.0%}, more than if all were zero: before it is trained the model answers "
        "nothing; other layers (uniform) or larger sizes may leave more to start from",
    )


def _save(model: PreTrainedModel, source: Path, out: Path, kind: ModelKind, widths: Sequence[Width]) -> None:
    """Write the smaller model, and read it back as everybody else will."""
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    save_model(model, source, out)
    _fit_side_files(out, widths)
    again = load_model(out, kind).state_dict()
    written = model.state_dict()
    dtype = TORCH_DTYPES[open_checkpoint(source).dtype]
    for name, value in again.items():
        expected = written[name].to(dtype).to(value.dtype) if value.is_floating_point() else written[name]
        if not torch.equal(value, expected):
            raise VerificationError(f"{out}: {name} is not what was written when it is read again")


def _fit_side_files(out: Path, widths: Sequence[Width]) -> None:
    """Tell the pooling of an embedding model how wide its vectors are now."""
    hidden = next((width for width in widths if width.name == "hidden"), None)
    if hidden is None:
        return
    before, after = hidden.before["hidden_size"], hidden.after["hidden_size"]
    for path in sorted(out.glob("[0-9]_*/config.json")):
        settings = read_json(path)
        if settings.get("word_embedding_dimension") == before:
            atomic_write(path, json.dumps(settings | {"word_embedding_dimension": after}, indent=2) + "\n")
        elif before in settings.values():
            raise UnsupportedError(
                f"{path}: {path.parent.name} reads vectors of width {before}, and is not part of the model that is cut",
                mend="Keep the hidden width of this checkpoint.",
            )
