"""The architectures that onnxruntime-genai's builder takes, of those that were proven equal to torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesmith.errors import CheckpointError, UnsupportedError

__all__ = ["ARCHITECTURES", "check_architecture"]

ARCHITECTURES = (
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GemmaForCausalLM",
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
# The builder takes `linear` too, and gives wrong logits; others end it.
_ROPES = ("default", "llama3", "longrope")


def check_architecture(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what the builder cannot build before it is started.

    Args:
        folder: The checkpoint's, for messages.
        config: What its `config.json` holds.

    Raises:
        CheckpointError: The file names no architecture.
        UnsupportedError: The architecture, or its kind of rotary positions, is none of those known.
    """
    path = folder / "config.json"
    named = config.get("architectures")
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise CheckpointError(
            f"{path}: architectures is {named!r}, expected a list of one name",
            mend="Save the checkpoint with `save_pretrained` of its own class.",
        )
    if named[0] not in ARCHITECTURES:
        raise UnsupportedError(
            f"{path}: the architecture {named[0]} cannot be built for onnxruntime-genai here; "
            f"these can: {', '.join(ARCHITECTURES)}",
            mend="Use `format: gguf` for this model.",
        )
    for key in ("rope_scaling", "rope_parameters"):
        for kind in _rope_kinds(config.get(key)):
            if kind not in _ROPES:
                raise UnsupportedError(
                    f"{path}: {key} is of type {kind!r}; onnxruntime-genai's builder is right for {', '.join(_ROPES)}",
                    mend="Use `format: gguf` for this model.",
                )


def _rope_kinds(rope: Any) -> list[Any]:
    """Kinds of rotary positions that a configuration names, for all layers or by kind of layer."""
    if not isinstance(rope, Mapping):
        return []
    nested = [part for part in rope.values() if isinstance(part, Mapping)]
    return [part.get("rope_type", part.get("type", "default")) for part in nested or [rope]]
