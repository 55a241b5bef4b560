"""How a model stretches its rotary positions, in the words of GGUF.

Source: https://huggingface.co/docs/transformers/internal/rope_utils and Peng et al., "YaRN: Efficient Context
Window Extension of Large Language Models" (arXiv:2309.00071), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import CheckpointError, UnsupportedError
from export.gguf.metadata import Metadata
from export.gguf.model_config import ModelConfig, as_number

__all__ = ["Rope", "read_rope"]


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Settings below the architecture's name, and tensors that the checkpoint itself does not hold."""

    settings: Metadata
    tensors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


def read_rope(config: ModelConfig, parameters: Mapping[str, Any] | None = None) -> Rope:
    """Translate base frequency, rotated width and scaling.

    Args:
        config: Of the model.
        parameters: Of one kind of layer; by default those of all layers.

    Raises:
        CheckpointError: a parameter is missing or no number.
        UnsupportedError: a scaling that depends on the length of the text, or an unknown one.
    """
    parameters = config.mapping("rope_parameters") if parameters is None else parameters
    width = int(config.head_dim * float(parameters.get("partial_rotary_factor") or 1.0))
    settings: Metadata = {
        "rope.dimension_count": width,
        "rope.freq_base": _number(config, parameters, "rope_theta"),
    }
    match parameters.get("rope_type", "default"):
        case "default":
            return Rope(settings=settings)
        case "linear":
            return Rope(settings=settings | _scaling("linear", _number(config, parameters, "factor")))
        case "llama3":
            return Rope(settings=settings, tensors={"rope_freqs.weight": _llama3_factors(config, parameters, width)})
        case "yarn":
            return Rope(settings=settings | _yarn(config, parameters))
        case "longrope":
            more, tensors = _longrope(config, parameters, width)
            return Rope(settings=settings | more, tensors=tensors)
        case other:
            raise UnsupportedError(
                f"{config.path}: the rope scaling {other!r} has no form in GGUF",
                mend="default, linear, llama3, yarn and longrope can be converted.",
            )


def _number(config: ModelConfig, parameters: Mapping[str, Any], key: str) -> float:
    return as_number(parameters.get(key), f"rope_parameters.{key}", config.path)


def _scaling(kind: str, factor: float) -> Metadata:
    return {"rope.scaling.type": kind, "rope.scaling.factor": factor}


def _llama3_factors(config: ModelConfig, parameters: Mapping[str, Any], width: int) -> NDArray[np.float32]:
    """By how much each frequency is divided: long waves by the factor, short ones not at all, others in between.

    Returns:
        float32 of shape [width / 2].
    """
    factor, low, high, original = (
        _number(config, parameters, key)
        for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    base = _number(config, parameters, "rope_theta")
    wavelengths = 2 * math.pi * base ** (np.arange(0, width, 2, dtype=np.float64) / width)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)


def _yarn(config: ModelConfig, parameters: Mapping[str, Any]) -> Metadata:
    factor = _number(config, parameters, "factor")
    if parameters.get("mscale") or parameters.get("truncate") is False:
        raise UnsupportedError(
            f"{config.path}: yarn with mscale, or without rounding, has no form in GGUF",
            mend="Choose another format for this checkpoint, such as onnx.",
        )
    original = parameters.get("original_max_position_embeddings") or config.get("max_position_embeddings")
    settings = _scaling("yarn", factor) | {"rope.scaling.original_context_length": int(original)}
    for key in ("beta_fast", "beta_slow"):
        if parameters.get(key) is not None:
            settings[f"rope.scaling.yarn_{key}"] = _number(config, parameters, key)
    if parameters.get("attention_factor") is not None:
        # The runtime multiplies by its own default, which is the paper's.
        default = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
        settings["rope.scaling.yarn_attn_factor"] = _number(config, parameters, "attention_factor") / default
    return settings


def _longrope(
    config: ModelConfig, parameters: Mapping[str, Any], width: int
) -> tuple[Metadata, Mapping[str, NDArray[np.float32]]]:
    """Two sets of divisors, for texts within the original context and for longer ones."""
    original = config.integer("original_max_position_embeddings")
    longest = config.integer("max_position_embeddings")
    scale = longest / original
    attention = parameters.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
    tensors = {}
    for kind in ("long", "short"):
        values = parameters.get(f"{kind}_factor")
        if not isinstance(values, list) or len(values) != width // 2:
            raise CheckpointError(
                f"{config.path}: rope_parameters.{kind}_factor must list {width // 2} numbers",
                mend="Get config.json again from the model's source.",
            )
        tensors[f"rope_factors_{kind}.weight"] = np.asarray(values, np.float32)
    settings: Metadata = {
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": float(attention),
    }
    return settings, tensors
