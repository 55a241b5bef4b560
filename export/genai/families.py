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
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
)
_ROPES = ("default", "linear", "llama3", "yarn", "longrope")


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
        rope = config.get(key)
        kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, Mapping) else "default"
        if kind not in _ROPES:
            raise UnsupportedError(
                f"{path}: {key} is of type {kind!r}; onnxruntime-genai's builder knows {', '.join(_ROPES)}",
                mend="Use `format: gguf` for this model.",
            )
