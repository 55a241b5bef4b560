"""The layers of a PEFT LoRA adapter, where it is one that adds a plain B A to weights and does nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.adapter import Adapter
from compress.tensor_file import TensorFile
from edgesmith.errors import CheckpointError, UnsupportedError
from export.gguf.encode import read_values

__all__ = ["LoraLayer", "read_layers"]

_MERGE = "Merge the adapter into its base (edgesmith merge), and convert the result."
# Settings of PEFT under which a layer computes something else than W x + scale · B A x.
_VARIANTS = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "lora_bias", "monteclora_config", "target_parameters",
    "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora",
)  # fmt: skip
_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.(?:lora_(?P<side>[AB])\.weight|lora_embedding_(?P<of>[AB]))"
)
_STORED: Mapping[str, str] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True, kw_only=True)
class LoraLayer:
    """One changed weight."""

    module: str
    """Name in the base model."""
    names: tuple[str, str]
    """Of A and B in the adapter's file."""
    rank: int
    scale: float
    """On B A, in PEFT."""
    is_embedding: bool
    file: TensorFile

    def read(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A of shape [R, I] and B of shape [O, R]; of embeddings [R, V] and [E, R]."""
        a, b = (self._read(name) for name in self.names)
        return a, b

    def _read(self, name: str) -> NDArray[np.float32]:
        entry = self.file.entries[name]
        stored = np.frombuffer(self.file.read(name), np.dtype(_STORED[entry.dtype])).reshape(entry.shape)
        return read_values(stored, entry.dtype)


def read_layers(adapter: Adapter) -> list[LoraLayer]:
    """Find all layers, in the order of their names.

    Raises:
        UnsupportedError: The adapter does more than to add B A to weights.
        CheckpointError: A half of a layer is missing, or its two matrices do not fit each other.
    """
    _check_kind(adapter)
    halves: dict[tuple[str, bool], dict[str, str]] = {}
    for name, entry in adapter.file.entries.items():
        found = _NAME.fullmatch(name)
        if found is None:
            what = "trained copies of whole modules" if adapter.config.get("modules_to_save") else repr(name)
            raise _refuse(adapter, f"holds {what}, which are no LoRA matrices")
        if len(entry.shape) != 2 or entry.dtype not in _STORED:
            raise _refuse(adapter, f"{name!r} is {entry.dtype} of shape {list(entry.shape)}, no plain matrix")
        key = (found["module"], found["of"] is not None)
        halves.setdefault(key, {})[found["side"] or found["of"]] = name
    return [_layer(adapter, module, is_embedding, names) for (module, is_embedding), names in sorted(halves.items())]


def _refuse(adapter: Adapter, what: str) -> UnsupportedError:
    return UnsupportedError(f"{adapter.describe()}: {what}; llama.cpp cannot add that at run time", mend=_MERGE)


def _check_kind(adapter: Adapter) -> None:
    config = adapter.config
    if adapter.kind != "LORA":
        raise _refuse(adapter, f"is of kind {adapter.kind}")
    if named := [name for name in _VARIANTS if config.get(name)]:
        raise _refuse(adapter, f"was trained with {', '.join(named)}")
    if modules := config.get("modules_to_save"):
        raise _refuse(adapter, f"brings modules of its own: modules_to_save={modules!r:.80}")
    if config.get("bias", "none") != "none":
        raise _refuse(adapter, f"changes biases too: bias={config['bias']!r:.20}")
    if adapter.rebased_start is not None:
        raise _refuse(adapter, f"changed its base before training: init_lora_weights={adapter.rebased_start!r}")


def _layer(adapter: Adapter, module: str, is_embedding: bool, names: Mapping[str, str]) -> LoraLayer:
    if set(names) != {"A", "B"}:
        raise CheckpointError(
            f"{adapter.file.path}: {module!r} has only its matrix {', '.join(names)}",
            mend="The file is incomplete: save or copy the adapter again.",
        )
    shapes = [adapter.file.entries[names[side]].shape for side in "AB"]
    rank = shapes[0][0]
    if rank < 1 or shapes[1][1] != rank:
        raise CheckpointError(
            f"{adapter.file.path}: the matrices of {module!r} have shapes {list(shapes[0])} and {list(shapes[1])}, "
            "which do not fit each other",
            mend="Save or copy the adapter again.",
        )
    return LoraLayer(
        module=module,
        names=(names["A"], names["B"]),
        rank=rank,
        scale=_scale(adapter, module, rank),
        is_embedding=is_embedding,
        file=adapter.file,
    )


def _scale(adapter: Adapter, module: str, rank: int) -> float:
    """PEFT's factor on B A.

    Source: peft/tuners/lora/layer.py, `update_layer`.
    """
    config = adapter.config
    stated = _by_pattern(config.get("rank_pattern"), module, config.get("r"))
    if stated != rank:
        raise CheckpointError(
            f"{adapter.path}: {module!r} has rank {rank}, adapter_config.json says {stated!r}",
            mend="Configuration and weights are of two adapters: copy the adapter again.",
        )
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha) or alpha == 0:
        raise CheckpointError(
            f"{adapter.path}: lora_alpha of {module!r} is {alpha!r}", mend="Give the number that was trained with."
        )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Any, module: str, default: Any) -> Any:
    """The value of the first pattern that is the end of a module's name."""
    items: Iterable[tuple[str, Any]] = patterns.items() if isinstance(patterns, dict) else ()
    return next((value for pattern, value in items if _ends_with(module, pattern)), default)


def _ends_with(module: str, pattern: str) -> bool:
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error:
        return False
