"""Merge adapters into their base, one module at a time.

What is written is the same that PEFT's `merge_and_unload` computes in float32, then rounded once to the type
in which the base is stored. Tensors that no adapter touches are copied byte for byte.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.adapter import AdapterSpec, check_combination, check_recorded_base, open_adapter
from compress.carry import carry_files, check_vocabulary, merged_config, write_config
from compress.checkpoint import Checkpoint, open_checkpoint, quantization_of
from compress.dequantize import dequantize_checkpoint
from compress.memory import PeakMemory
from compress.merged_weights import MergedWeights
from edgesmith.errors import MergeError, UsageError
from edgesmith.files import publish_folder, storage_errors, temporary_sibling
from edgesmith.progress import SILENT, Progress

__all__ = ["AdapterSpec", "MergeResult", "merge_adapter"]

_DTYPE_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, kw_only=True)
class MergeResult:
    """What a merge did."""

    path: Path
    """The merged checkpoint."""
    model_class: str
    """Class of transformers that loads it."""
    kinds: tuple[str, ...]
    """PEFT's names of the methods, in the order of the adapters."""
    num_merged: int
    """Tensors that differ from the base's, or that the base does not have."""
    num_copied: int
    """Tensors copied byte for byte."""
    dtype: str
    """The type that most weights are stored in, as safetensors spells it."""
    weights_bytes: int
    """Bytes of all tensors written."""
    largest_tensor: str
    largest_tensor_bytes: int
    """The largest tensor as stored."""
    peak_memory_bytes: int
    """Peak of resident memory while merging, libraries included."""
    peak_memory_added_bytes: int
    """Peak above what was resident when merging began."""
    notes: tuple[str, ...]
    """What was chosen, left out or could not be checked."""


def merge_adapter(
    base: Path,
    adapters: Sequence[AdapterSpec],
    out: Path,
    *,
    model_class: str | None = None,
    labels: Sequence[str] | None = None,
    dtype: str | None = None,
    dequantize: bool = False,
    allow_other_base: bool = False,
    max_shard_bytes: int = 5_000_000_000,
    progress: Progress = SILENT,
) -> MergeResult:
    """Merge one or more PEFT adapters into their base and write the result as a checkpoint of its own.

    Args:
        base: A Hugging Face checkpoint folder with safetensors weights.
        adapters: What to merge. Several are summed, each delta scaled by its weight, all computed on the
            base as it is: W + Σ weight · ΔW.
        out: The new checkpoint; must not exist or be empty. It appears whole or not at all.
        model_class: Class of transformers that the adapters were trained with; found out when None.
        labels: Names of the labels; from the adapter or the base when None.
        dtype: `float32`, `float16` or `bfloat16` for all weights; as the base has them when None.
        dequantize: Whether a quantized base may be turned back into floating point first.
        allow_other_base: Whether to go on when the adapter records another base.
        max_shard_bytes: Above this size the weights are split into shards.
        progress: Where to report.

    Raises:
        UsageError: no adapter, an unusable weight, `out` is in use.
        CheckpointError: base or adapter is damaged, unsafe, or holds a NaN.
        MergeError: an adapter does not fit the base, or cannot be merged exactly.
        StorageError: the disk is full or a folder cannot be written.
    """
    memory = PeakMemory()
    _check_request(adapters, out, dtype)
    temporary = temporary_sibling(out)
    with storage_errors(out):
        temporary.mkdir(parents=True)
    try:
        original = open_checkpoint(base)
        checkpoint, notes = _in_floating_point(original, temporary, dequantize=dequantize)
        opened = [open_adapter(spec) for spec in adapters]
        check_combination(opened)
        for adapter in opened:
            notes += check_recorded_base(adapter, original, allow_other_base=allow_other_base)
        weights = MergedWeights(checkpoint, opened, model_class=model_class, dtype=_DTYPE_NAMES.get(dtype or ""))
        weights.write(temporary, max_shard_bytes, progress)
        config, config_notes = merged_config(checkpoint, opened, weights, dtype=dtype, labels=labels)
        write_config(temporary, config)
        notes += weights.notes + config_notes + carry_files(base, opened, temporary)
        if weights.num_embeddings is not None:
            check_vocabulary(temporary, weights.num_embeddings)
        shutil.rmtree(temporary / _DEQUANTIZED, ignore_errors=True)
        publish_folder(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for note in notes:
        progress.note(note)
    largest, largest_bytes = weights.largest
    return MergeResult(
        path=out,
        model_class=weights.architecture,
        kinds=tuple(adapter.kind for adapter in opened),
        num_merged=weights.num_merged,
        num_copied=weights.num_copied,
        dtype=weights.dtype,
        weights_bytes=weights.size_bytes,
        largest_tensor=largest,
        largest_tensor_bytes=largest_bytes,
        peak_memory_bytes=memory.peak_bytes,
        peak_memory_added_bytes=memory.added_bytes,
        notes=tuple(notes),
    )


_DEQUANTIZED = "dequantized"


def _check_request(adapters: Sequence[AdapterSpec], out: Path, dtype: str | None) -> None:
    if not adapters:
        raise UsageError("no adapter to merge", mend="Give at least one, e.g. --adapter DIR.")
    if dtype is not None and dtype not in _DTYPE_NAMES:
        raise UsageError(f"dtype {dtype!r}", mend=f"Choose one of {', '.join(_DTYPE_NAMES)}.")
    with storage_errors(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"{out}: exists and is not empty", mend="Give a new folder.")


def _in_floating_point(checkpoint: Checkpoint, temporary: Path, *, dequantize: bool) -> tuple[Checkpoint, list[str]]:
    quantization = quantization_of(checkpoint.config)
    if quantization is None:
        return checkpoint, []
    if not dequantize:
        raise MergeError(
            f"{checkpoint.folder}: the weights are quantized ({quantization}); merging into them would round the "
            "adapter away",
            mend="Merge into the full-precision base that was quantized; or, if there is none, ask for "
            "--dequantize, which computes floating-point weights from the quantized ones first.",
        )
    dequantized = dequantize_checkpoint(checkpoint, temporary / _DEQUANTIZED, quantization)
    return dequantized, [f"base: {quantization} weights were dequantized first; their rounding errors stay"]
