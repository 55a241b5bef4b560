"""The families of models that can be converted: what llama.cpp calls them, and how their tensors differ."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import gguf
import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import UnsupportedError
from export.gguf.family_settings import (
    bert_settings,
    gemma2_settings,
    gemma3_settings,
    gpt2_settings,
    gpt_neox_settings,
    granite_settings,
    llama_settings,
    mixtral_settings,
    olmoe_settings,
    phi3_settings,
    qwen2_moe_settings,
    qwen3_moe_settings,
    qwen_settings,
    smollm3_settings,
    xlm_roberta_settings,
)
from export.gguf.metadata import Metadata
from export.gguf.model_config import ModelConfig
from export.gguf.rope import Rope
from export.gguf.rows import interleave_rotary, split_fused_heads

__all__ = ["FAMILIES", "Change", "Family", "family_of"]

SettingsReader: TypeAlias = Callable[[ModelConfig], tuple[Metadata, Rope, list[str]]]
RowOrder: TypeAlias = Callable[[ModelConfig], NDArray[np.intp]]


@dataclass(frozen=True, kw_only=True)
class Change:
    """What happens to the values of a tensor on the way. The steps apply in this order."""

    pattern: str
    """Matches the end of the tensor's name in the checkpoint; a regular expression."""
    transposed: bool = False
    rows: RowOrder | None = None
    offset: float = 0.0
    """Added to every value."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture of llama.cpp."""

    architecture: str
    settings: SettingsReader
    changes: tuple[Change, ...] = ()
    unused: tuple[str, ...] = ()
    """Tensors that carry nothing, or nothing that the runtime has a place for; regular expressions."""
    rename: Mapping[str, str] | None = None
    """Prefixes of tensor names, and what the name tables expect in their place."""
    is_encoder: bool = False


def _queries(config: ModelConfig) -> NDArray[np.intp]:
    return interleave_rotary(config.integer("num_attention_heads"), config.head_dim)


def _keys(config: ModelConfig) -> NDArray[np.intp]:
    return interleave_rotary(config.num_kv_heads, config.head_dim)


def _fused(config: ModelConfig) -> NDArray[np.intp]:
    return split_fused_heads(config.integer("num_attention_heads"), config.head_dim)


def _positions_after_padding(config: ModelConfig) -> NDArray[np.intp]:
    return np.arange(config.integer("pad_token_id") + 1, config.integer("max_position_embeddings"))


_ROTARY_PAIRS = (
    Change(pattern=r"\.q_proj\.(weight|bias)", rows=_queries),
    Change(pattern=r"\.k_proj\.(weight|bias)", rows=_keys),
)
_ONE_PLUS_WEIGHT = (Change(pattern=r"norm\.weight", offset=1.0),)
_BUFFERS = (r"\.rotary_emb\.inv_freq", r"\.masked_bias", r"\.(attn|attention)\.bias")
_CONV_1D = (Change(pattern=r"\.(c_attn|c_proj|c_fc)\.weight", transposed=True),)
_FUSED_HEADS = (Change(pattern=r"\.query_key_value\.(weight|bias)", rows=_fused),)
_HEADS_OF_ENCODERS = (r"pooler\..*", r"cls\..*", r"classifier\..*", r"qa_outputs\..*", r".*position_ids")

_LLAMA = Family(architecture="llama", settings=llama_settings, changes=_ROTARY_PAIRS, unused=_BUFFERS)
_ROBERTA = Family(
    architecture="bert",
    settings=xlm_roberta_settings,
    changes=(Change(pattern=r"position_embeddings\.weight", rows=_positions_after_padding),),
    unused=(*_HEADS_OF_ENCODERS, r"lm_head\..*"),
    rename={"roberta.": ""},
    is_encoder=True,
)

FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": Family(architecture="llama", settings=mixtral_settings, changes=_ROTARY_PAIRS, unused=_BUFFERS),
    "granite": Family(
        architecture="granite", settings=granite_settings, changes=_ROTARY_PAIRS, unused=_BUFFERS
    ),
    "qwen2": Family(architecture="qwen2", settings=qwen_settings, unused=_BUFFERS),
    "qwen3": Family(architecture="qwen3", settings=qwen_settings, unused=_BUFFERS),
    "qwen2_moe": Family(architecture="qwen2moe", settings=qwen2_moe_settings, unused=_BUFFERS),
    "qwen3_moe": Family(architecture="qwen3moe", settings=qwen3_moe_settings, unused=_BUFFERS),
    "olmoe": Family(architecture="olmoe", settings=olmoe_settings, unused=_BUFFERS),
    "smollm3": Family(architecture="smollm3", settings=smollm3_settings, changes=_ROTARY_PAIRS, unused=_BUFFERS),
    "gemma2": Family(architecture="gemma2", settings=gemma2_settings, changes=_ONE_PLUS_WEIGHT),
    "gemma3_text": Family(
        architecture="gemma3",
        settings=gemma3_settings,
        changes=_ONE_PLUS_WEIGHT,
        unused=(r"(model\.)?vision_tower\..*", r"(model\.)?multi_modal_projector\..*"),
        rename={"model.language_model.": "model.", "language_model.model.": "model.", "language_model.": ""},
    ),
    "phi3": Family(architecture="phi3", settings=phi3_settings, unused=_BUFFERS),
    "gpt2": Family(
        architecture="gpt2",
        settings=gpt2_settings,
        changes=_CONV_1D,
        unused=_BUFFERS,
        rename={"h.": "transformer.h.", "wte.": "transformer.wte.", "wpe.": "transformer.wpe.",
                "ln_f.": "transformer.ln_f."},
    ),
    "gpt_neox": Family(
        architecture="gptneox", settings=gpt_neox_settings, changes=_FUSED_HEADS, unused=_BUFFERS
    ),
    "bert": Family(
        architecture="bert",
        settings=bert_settings,
        unused=_HEADS_OF_ENCODERS,
        rename={"bert.": ""},
        is_encoder=True,
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}  # fmt: skip
"""By the name that transformers gives to the architecture."""


def family_of(config: ModelConfig) -> Family:
    """Find the family of a checkpoint.

    Raises:
        UnsupportedError: it is none of these.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedError(
            f"{config.path}: the architecture {config.model_type!r} cannot be converted to GGUF here{_nearest(config)}",
            mend=f"Name a converter that knows it with `converter:` in the target, such as a llama.cpp checkout. "
            f"Known here: {', '.join(sorted(FAMILIES))}.",
        )
    return family


def _nearest(config: ModelConfig) -> str:
    near = difflib.get_close_matches(config.model_type, FAMILIES, n=1, cutoff=0.5)
    known = {name.replace("-", "").replace("_", "") for name in gguf.MODEL_ARCH_NAMES.values()}
    by_runtime = re.sub("[-_]|text$", "", config.model_type) in known
    return (f"; the nearest that can is {near[0]!r}" if near else "") + (
        "; llama.cpp itself knows it" if by_runtime else ""
    )
