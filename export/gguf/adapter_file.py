"""Convert a PEFT LoRA adapter to a GGUF file that llama.cpp adds to a base at run time, with a scale.

Axes: O outputs, I inputs, R rank, V vocabulary, E embedding.

Source: https://github.com/ggml-org/llama.cpp/blob/master/convert_lora_to_gguf.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray

from compress.adapter import AdapterSpec, check_recorded_base, open_adapter
from compress.checkpoint import Checkpoint, open_checkpoint
from edgesmith.errors import CheckpointError, MergeError, UnsupportedError, UsageError
from edgesmith.files import storage_errors, temporary_sibling
from export.gguf.adapter_layers import LoraLayer, read_layers
from export.gguf.families import Family, family_of
from export.gguf.model_config import load_config
from export.gguf.tensor_plan import PlannedTensor, plan_tensors

__all__ = ["GgufAdapterExport", "to_gguf_adapter"]

_EMBEDDINGS = "token_embd.weight"
_MERGE = "Merge the adapter into its base (edgesmith merge), and convert the result."
_FLOATS: Mapping[str, tuple[type[np.generic], GGMLQuantizationType, gguf.LlamaFileType]] = {
    "f32": (np.float32, GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (np.float16, GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
}


@dataclass(frozen=True, kw_only=True)
class GgufAdapterExport:
    """What a conversion of an adapter wrote."""

    path: Path
    architecture: str
    """Of the base, as llama.cpp calls it."""
    dtype: str
    num_weights: int
    """Weights of the base that it changes."""
    ranks: tuple[int, ...]
    """All that occur."""
    alpha: float
    """The file's: a weight's delta is scale · alpha / rank · B A."""
    num_rescaled: int
    """Weights whose own alpha or rank made their B carry a factor."""
    num_parameters: int
    size_bytes: int
    notes: tuple[str, ...]
    """What could not be checked."""


def to_gguf_adapter(
    adapter: Path,
    base: Path,
    out_file: Path,
    *,
    dtype: Literal["f32", "f16"] = "f32",
    name: str = "",
    allow_other_base: bool = False,
) -> GgufAdapterExport:
    """Convert an adapter. The same adapter and base give the same bytes with the same libraries.

    Args:
        adapter: The folder that PEFT wrote.
        base: Checkpoint that it was trained on. Only names and shapes are read of it.
        out_file: The new file; it appears when it is complete.
        dtype: Of the matrices.
        name: The adapter's name in the file's header; empty for none.
        allow_other_base: Whether to go on when the adapter records another base.

    Raises:
        CheckpointError: Adapter or base is damaged or unsafe, or the adapter changes nothing.
        MergeError: The adapter does not fit the base.
        UnsupportedError: It is of a kind that llama.cpp cannot add at run time; the mend is to merge it.
        UsageError: The type is none of these.
        StorageError: The file cannot be written.
    """
    if dtype not in _FLOATS:
        raise UsageError(f"{dtype!r} cannot be written for an adapter", mend="Ask for f32 or f16.")
    opened = open_adapter(AdapterSpec(path=adapter))
    layers = read_layers(opened)
    checkpoint = open_checkpoint(base)
    notes = check_recorded_base(opened, checkpoint, allow_other_base=allow_other_base)
    config = load_config(base)
    family = family_of(config)
    planned, _ = plan_tensors(checkpoint, config, family, "f32")
    is_tied = bool(config.get("tie_word_embeddings"))
    shapes = {one.source: _stored_shape(checkpoint, one) for one in planned}
    tensors = _place(opened.path, layers, planned, shapes, family, is_tied)
    alpha = layers[0].scale * layers[0].rank
    num_rescaled = sum(abs(layer.scale * layer.rank / alpha - 1) > 1e-9 for layer in layers)
    size_bytes = _write(out_file, family.architecture, tensors, alpha, dtype, name)
    return GgufAdapterExport(
        path=out_file,
        architecture=family.architecture,
        dtype=dtype,
        num_weights=len(tensors),
        ranks=tuple(sorted({layer.rank for layer in layers})),
        alpha=alpha,
        num_rescaled=num_rescaled,
        num_parameters=sum(a.size + b.size for a, b in tensors.values()),
        size_bytes=size_bytes,
        notes=tuple(notes),
    )


_Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


def _place(
    path: Path,
    layers: Sequence[LoraLayer],
    planned: Sequence[PlannedTensor],
    shapes: Mapping[str, tuple[int, ...]],
    family: Family,
    is_tied: bool,
) -> dict[str, _Pair]:
    """Name of a weight in the base's file → its two matrices, in the order of the base."""
    places: dict[str, list[PlannedTensor]] = {}
    for tensor in planned:
        places.setdefault(_canonical(tensor.source, family), []).append(tensor)
    alpha = layers[0].scale * layers[0].rank
    found: dict[str, _Pair] = {}
    for layer in layers:
        wanted = places.get(_canonical(f"{layer.module}.weight", family), [])
        if not wanted:
            raise _no_place(path, layer, is_tied)
        for tensor in wanted:
            found[tensor.name] = _matrices(path, layer, tensor, shapes[tensor.source], alpha, is_tied)
    order = {tensor.name: index for index, tensor in enumerate(planned)}
    if not any(b.any() and a.any() for a, b in found.values()):
        raise CheckpointError(
            f"{path}: changes nothing: one of the two matrices is zero in every layer",
            mend="Save the adapter after training, not before.",
        )
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def _canonical(source: str, family: Family) -> str:
    """A tensor's name without the prefixes by which models of one family differ."""
    for prefix, replacement in (family.rename or {}).items():
        if source.startswith(prefix):
            return replacement + source.removeprefix(prefix)
    return source


def _no_place(path: Path, layer: LoraLayer, is_tied: bool) -> MergeError | UnsupportedError:
    if is_tied and layer.module in ("lm_head", "embed_out"):
        return UnsupportedError(
            f"{path}: changes the head, which is tied to the embeddings: the file of the base has no weight for it",
            mend=_MERGE,
        )
    return MergeError(
        f"{path}: changes {layer.module!r}, which the base does not have as a weight of its own",
        mend=f"Use the base that the adapter was trained on. If it is the right one: {_MERGE}",
    )


def _stored_shape(checkpoint: Checkpoint, tensor: PlannedTensor) -> tuple[int, ...]:
    """Of the base's weight as [O, I]."""
    shape = checkpoint.entries[tensor.source].shape
    return shape[::-1] if tensor.transposed else shape


def _matrices(
    path: Path, layer: LoraLayer, tensor: PlannedTensor, stored: tuple[int, ...], alpha: float, is_tied: bool
) -> _Pair:
    """A and B as llama.cpp wants them, with a layer's own scale in B."""
    a_RI, b_OR = layer.read()
    if layer.is_embedding and is_tied:
        raise UnsupportedError(
            f"{path}: changes the embeddings, which are tied to the head: at run time both would change",
            mend=_MERGE,
        )
    shape = (a_RI.shape[1], b_OR.shape[0]) if layer.is_embedding else (b_OR.shape[0], a_RI.shape[1])
    if shape != stored or (layer.is_embedding and shape != tensor.shape):
        raise MergeError(
            f"{path}: its change of {layer.module!r} has shape {list(shape)}, the weight of the base {list(stored)}",
            mend="Use the base that the adapter was trained on.",
        )
    if tensor.rows is not None:
        b_OR = b_OR[tensor.rows]
    factor = layer.scale * layer.rank / alpha
    if abs(factor - 1) > 1e-9:
        b_OR = b_OR * np.float32(factor)
    if tensor.name == _EMBEDDINGS and layer.is_embedding:
        a_RI = a_RI.T  # looked up by rows, a row for each token
    return np.ascontiguousarray(a_RI), np.ascontiguousarray(b_OR)


def _write(path: Path, architecture: str, tensors: Mapping[str, _Pair], alpha: float, dtype: str, name: str) -> int:
    """Write the whole file or nothing; return its size in bytes."""
    kind, number, file_type = _FLOATS[dtype]
    temporary = temporary_sibling(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = GGUFWriter(temporary, architecture)
        try:
            writer.add_type(gguf.GGUFType.ADAPTER)
            writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
            writer.add_file_type(int(file_type))
            if name:
                writer.add_name(name)
            for weight, pair in tensors.items():
                for side, values in zip(("lora_a", "lora_b"), pair, strict=True):
                    stored = values.astype(kind)
                    if not np.isfinite(stored).all():
                        raise CheckpointError(
                            f"{weight}.{side}: holds values too large for {dtype}", mend="Convert it to f32."
                        )
                    writer.add_tensor(f"{weight}.{side}", stored, raw_dtype=number)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            size_bytes = temporary.stat().st_size
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return size_bytes
