"""Which tensors a GGUF file gets, from which tensors of the checkpoint, in which type and shape."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import gguf
import numpy as np
from numpy.typing import NDArray

from compress.checkpoint import Checkpoint
from edgesmith.errors import CheckpointError, UnsupportedError
from export.gguf.families import Change, Family
from export.gguf.model_config import ModelConfig

__all__ = ["FloatType", "PlannedTensor", "plan_tensors"]

FloatType: TypeAlias = Literal["f32", "f16", "bf16"]

_HEADS = ("lm_head.weight", "embed_out.weight")
_READABLE = ("F32", "F16", "BF16")
# Small, and read by code of the runtime that takes nothing narrower.
_ALWAYS_F32 = frozenset(
    {
        gguf.MODEL_TENSOR.POS_EMBD,
        gguf.MODEL_TENSOR.TOKEN_TYPES,
        gguf.MODEL_TENSOR.FFN_GATE_INP,
        gguf.MODEL_TENSOR.FFN_GATE_INP_SHEXP,
    }
)
_EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """One tensor to be written."""

    name: str
    source: str
    """Its name in the checkpoint."""
    dtype: FloatType
    shape: tuple[int, ...]
    """As in NumPy: the fastest axis last."""
    transposed: bool = False
    rows: NDArray[np.intp] | None = None
    """Which row of the (transposed) source goes where; None: as they are."""
    offset: float = 0.0
    experts: tuple[PlannedTensor, ...] = ()
    """What this one stacks, in their order; `source` is that of the first."""

    @property
    def num_values(self) -> int:
        """Values in the tensor."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return self.num_values * (4 if self.dtype == "f32" else 2)


def plan_tensors(
    checkpoint: Checkpoint, config: ModelConfig, family: Family, dtype: FloatType
) -> tuple[list[PlannedTensor], list[str]]:
    """Find the place of every tensor of a checkpoint.

    Args:
        checkpoint: Its header; no weights are read, except to compare a tied head.
        config: Of the model.
        family: Its architecture.
        dtype: For matrices; vectors stay in f32.

    Returns:
        The tensors in the order of the checkpoint's names, layer by layer; and what is left out.

    Raises:
        CheckpointError: a layer lacks a tensor that others have, embeddings or head are missing, or a shape does
            not fit the configuration.
        UnsupportedError: a tensor has no place in the file, or holds no floating-point values.
    """
    num_layers = config.integer("num_hidden_layers")
    names = gguf.get_tensor_name_map(_architecture(family), num_layers)
    planned: list[PlannedTensor] = []
    left_out: list[str] = []
    tied: list[str] = []
    for source in sorted(checkpoint.entries, key=_natural_order):
        if any(re.fullmatch(f"(.*?)({pattern})", source) for pattern in family.unused):
            left_out.append(source)
            continue
        if source in _HEADS and config.get("tie_word_embeddings"):
            tied.append(source)
            continue
        found = names.get_type_and_name(_canonical(source, family), try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UnsupportedError(
                f"{checkpoint.path_of(source)}: {source!r} has no place in a GGUF file of {config.model_type}",
                mend="Save the model without it, or choose another format for this checkpoint.",
            )
        kind, name = found
        planned.append(_plan(checkpoint, config, family, source, name, "f32" if kind in _ALWAYS_F32 else dtype))
    planned = _stack_experts(checkpoint, config, planned)
    _check_complete(checkpoint, config, planned, num_layers)
    for head in tied:
        _check_tied(checkpoint, head, next(one.source for one in planned if one.name == "token_embd.weight"))
    return planned, _summarize(left_out)


def _architecture(family: Family) -> gguf.MODEL_ARCH:
    return next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)


def _stack_experts(
    checkpoint: Checkpoint, config: ModelConfig, planned: Iterable[PlannedTensor]
) -> list[PlannedTensor]:
    """Make one tensor of shape [experts, rows, columns] of each kind of matrix that a layer's experts have."""
    stacked: dict[str, list[PlannedTensor]] = {}
    for tensor in planned:
        stacked.setdefault(tensor.name, []).append(tensor)
    return [
        _stack(checkpoint, config, parts) if _EXPERT.search(parts[0].source) else _only(checkpoint, parts)
        for parts in stacked.values()
    ]


def _only(checkpoint: Checkpoint, parts: Sequence[PlannedTensor]) -> PlannedTensor:
    if len(parts) > 1:
        first, second = parts[0].source, parts[1].source
        raise CheckpointError(
            f"{checkpoint.path_of(second)}: both {first!r} and {second!r} are {parts[0].name} in a GGUF file",
            mend="Save the model with save_pretrained, which gives every weight one name.",
        )
    return parts[0]


def _stack(checkpoint: Checkpoint, config: ModelConfig, parts: Sequence[PlannedTensor]) -> PlannedTensor:
    key = "num_local_experts" if config.get("num_local_experts") is not None else "num_experts"
    expected = [_EXPERT.sub(f".experts.{index}.", parts[0].source) for index in range(config.integer(key))]
    if [part.source for part in parts] != expected or len({part.shape for part in parts}) > 1:
        raise CheckpointError(
            f"{checkpoint.path_of(parts[0].source)}: has {len(parts)} experts like {parts[0].source!r}, config.json "
            f"asks for {len(expected)} of one shape",
            mend="The weights and config.json are not of one model: get both from one source.",
        )
    return replace(parts[0], shape=(len(parts), *parts[0].shape), experts=tuple(parts))


def _canonical(source: str, family: Family) -> str:
    source = _EXPERT.sub(".experts.", source)
    for prefix, replacement in (family.rename or {}).items():
        if source.startswith(prefix):
            return replacement + source.removeprefix(prefix)
    return source


def _natural_order(name: str) -> list[tuple[int, str]]:
    """Sort layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _plan(
    checkpoint: Checkpoint, config: ModelConfig, family: Family, source: str, name: str, dtype: FloatType
) -> PlannedTensor:
    entry = checkpoint.entries[source]
    if entry.dtype not in _READABLE:
        raise UnsupportedError(
            f"{checkpoint.path_of(source)}: {source!r} is of type {entry.dtype}, expected {', '.join(_READABLE)}",
            mend="Save the checkpoint in float32, float16 or bfloat16; a quantized one must be dequantized first.",
        )
    change = _change_of(source, family)
    shape = entry.shape[::-1] if change.transposed else entry.shape
    rows = change.rows(config) if change.rows else None
    if rows is not None:
        if not shape or shape[0] != rows.max() + 1:
            raise CheckpointError(
                f"{checkpoint.path_of(source)}: {source!r} has {shape[:1]} rows, config.json asks for {rows.max() + 1}",
                mend="The weights and config.json are not of one model: get both from one source.",
            )
        shape = (len(rows), *shape[1:])
    return PlannedTensor(
        name=name,
        source=source,
        dtype=dtype if len(shape) > 1 else "f32",
        shape=shape,
        transposed=change.transposed,
        rows=rows,
        offset=change.offset,
    )


def _change_of(source: str, family: Family) -> Change:
    found = (change for change in family.changes if re.search(f"{change.pattern}$", source))
    return next(found, Change(pattern=""))


def _check_complete(
    checkpoint: Checkpoint, config: ModelConfig, planned: Iterable[PlannedTensor], num_layers: int
) -> None:
    """All layers must be there and alike; so must the embeddings, and the head if it has weights of its own."""
    shapes = {tensor.name: tensor.shape for tensor in planned}
    wanted = {"token_embd.weight"}
    if not config.get("tie_word_embeddings") and _generates(checkpoint):
        wanted.add("output.weight")
    layers: Mapping[int, set[str]] = {index: set() for index in range(num_layers)}
    for name in shapes:
        if found := re.fullmatch(r"blk\.(\d+)\.(.+)", name):
            layers[int(found[1])].add(found[2])
    every_kind = set().union(*layers.values())
    wanted |= {f"blk.{index}.{kind}" for index in layers for kind in every_kind}
    if missing := sorted(wanted - shapes.keys(), key=_natural_order):
        raise CheckpointError(
            f"{checkpoint.folder}: lacks {len(missing)} tensors of the model: {', '.join(missing[:5])}",
            mend="Save the whole model with save_pretrained; an adapter alone is merged first.",
        )
    expected = (config.integer("vocab_size"), config.integer("hidden_size"))
    if shapes["token_embd.weight"] != expected:
        raise CheckpointError(
            f"{checkpoint.folder}: the embeddings have shape {list(shapes['token_embd.weight'])}, config.json asks "
            f"for {list(expected)}",
            mend="The weights and config.json are not of one model: get both from one source.",
        )


def _check_tied(checkpoint: Checkpoint, head: str, embeddings: str) -> None:
    """A head that was stored although it is the embeddings: it must be them."""
    first, second = checkpoint.entries[head], checkpoint.entries[embeddings]
    same = (first.dtype, first.shape) == (second.dtype, second.shape)
    pieces = zip(checkpoint.chunks(head), checkpoint.chunks(embeddings), strict=True) if same else ()
    if not same or not all(one == other for one, other in pieces):
        raise CheckpointError(
            f"{checkpoint.folder}: {head} differs from the embeddings, but config.json says that they are tied",
            mend="Set tie_word_embeddings to false if the head was trained, or remove it from the weights.",
        )


def _generates(checkpoint: Checkpoint) -> bool:
    architectures = checkpoint.config.get("architectures") or []
    return any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)


def _summarize(sources: list[str]) -> list[str]:
    """One line for tensors of the same kind in several layers."""
    kinds: dict[str, int] = {}
    for source in sources:
        kind = re.sub(r"\.\d+\.", ".*.", source)
        kinds[kind] = kinds.get(kind, 0) + 1
    return [f"the tensor {kind}" if count == 1 else f"{count} tensors {kind}" for kind, count in kinds.items()]
