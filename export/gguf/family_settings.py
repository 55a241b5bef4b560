"""The hyper-parameters of each family of models, in the words of GGUF, below the architecture's name.

A setting that llama.cpp's code for a family does not read, or fixes, is checked here: a checkpoint that needs
another value is refused instead of giving other logits.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgesmith.errors import UnsupportedError
from export.gguf.metadata import Metadata
from export.gguf.model_config import ModelConfig
from export.gguf.rope import Rope, read_rope

__all__ = [
    "bert_settings",
    "gemma2_settings",
    "gemma3_settings",
    "gpt2_settings",
    "gpt_neox_settings",
    "granite_settings",
    "llama_settings",
    "mixtral_settings",
    "olmoe_settings",
    "phi3_settings",
    "qwen2_moe_settings",
    "qwen3_moe_settings",
    "qwen_settings",
    "smollm3_settings",
    "xlm_roberta_settings",
]

_COMPUTES = "llama.cpp's code for this family computes with"


def _transformer(config: ModelConfig, *, feed_forward: int | None = None) -> Metadata:
    return {
        "vocab_size": config.integer("vocab_size"),
        "context_length": config.integer("max_position_embeddings"),
        "embedding_length": config.integer("hidden_size"),
        "block_count": config.integer("num_hidden_layers"),
        "feed_forward_length": feed_forward or config.integer("intermediate_size"),
        "attention.head_count": config.integer("num_attention_heads"),
    }


def _grouped_attention(config: ModelConfig) -> Metadata:
    return {
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.number("rms_norm_eps"),
    }


def _gated_decoder(config: ModelConfig) -> tuple[Metadata, Rope]:
    config.require("hidden_act", "silu", "swish", why=_COMPUTES)
    rope = read_rope(config)
    return _transformer(config) | _grouped_attention(config) | rope.settings, rope


def _experts(config: ModelConfig, *, count: str, feed_forward: str | None, normalizes: bool | None) -> Metadata:
    """A router with experts in every layer.

    Args:
        config: Of the model.
        count: Key of their number.
        feed_forward: Key of one expert's width; None where it is that of the model.
        normalizes: Whether the runtime makes the weights of the chosen ones add up to 1; None where the checkpoint
            cannot say otherwise.
    """
    config.require("hidden_act", "silu", "swish", why=_COMPUTES)
    if normalizes is not None:
        config.require("norm_topk_prob", normalizes, why=_COMPUTES)
    config.require("mlp_only_layers", None, [], why="llama.cpp has experts in every layer here, which is")
    config.require("decoder_sparse_step", None, 1, why="llama.cpp has experts in every layer here, which is")
    settings: Metadata = {
        "expert_count": config.integer(count),
        "expert_used_count": config.integer("num_experts_per_tok"),
    }
    if feed_forward:
        settings["expert_feed_forward_length"] = config.integer(feed_forward)
    return settings


def mixtral_settings(config: ModelConfig) -> tuple[Metadata, Rope, list[str]]:
    """Mixtral: Llama with experts."""
    settings, rope, left_out = llama_settings(config)
    return settings | _experts(config, count="num_local_experts", feed_forward=None, normalizes=None), rope, left_out


def qwen3_moe_settings(config: ModelConfig) -> tuple[Metadata, Rope, list[str]]:
    """Qwen 3 with experts."""
    settings, rope, left_out = qwen_settings(config)
    experts = _experts(config, count="num_local_experts", feed_forward="moe_intermediate_size", normalizes=True)
    return settings | experts, rope, left_out


def qwen2_moe_settings(config: ModelConfig) -> tuple[Metadata, Rope, list[str]]:
    """Qwen 1.5 and 2 with experts, one of which every token goes through."""
    settings, rope, left_out = qwen_settings(config)
    experts = _experts(config, count="num_experts", feed_forward="moe_intermediate_size", normalizes=False)
    experts["expert_shared_feed_forward_length"] = config.integer("shared_expert_intermediate_size")
    return settings | experts, rope, left_out


def olmoe_settings(config: ModelConfig) -> tuple[Metadata, Rope, list[str]]:
    """OLMoE: queries and keys are normed before they are cut into heads."""
    config.require("clip_qkv", None, why=_COMPUTES)
    if config.num_kv_heads != config.integer("num_attention_heads"):
        raise UnsupportedError(
            f"{config.path}: has {config.num_kv_heads} heads of keys for {config.get('num_attention_heads')} of "
            "queries; llama.cpp's code for this family needs as many",
            mend="Choose another format for this checkpoint, such as onnx.",
        )
    settings, rope = _gated_decoder(config)
    return settings | _experts(config, count="num_experts", feed_forward=None, normalizes=False), rope, []


def llama_settings(config: ModelConfig) -> tuple[Metadata, Rope, list[str]]:
    """Llama and Mistral."""
    settings, rope = _gated_decoder(config)
    window = config.get("sliding_window")
    if window is None or window >= config.integer("max_position_embeddings"):
        return settings, rope, []
    settings["context_length"] = config.integer("sliding_window")
    return settings, rope, [_window_note(window)]


def _window_note(window: int) -> str:
    return (
        f"attention beyond the sliding window of {window} tokens: llama.cpp computes none for this family, so the file "
        "states the window as its context, within which both are the same"
    )


def granite_settings(config: ModelConfig) -> tuple[Metadata, Rope, list[str]]:
    """Granite 3: Llama with four constant factors."""
    settings, rope, left_out = llama_settings(config)
    factors = {
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    }
    return settings | {name: config.number(key) for name, key in factors.items()}, rope, left_out


def qwen_settings(config: ModelConfig) -> tuple[Metadata, Rope, list[str]]:
    """Qwen 2, 2.5 and 3."""
    _require_full_attention(config)
    settings, rope = _gated_decoder(config)
    return settings, rope, []


def smollm3_settings(config: ModelConfig) -> tuple[Metadata, Rope, list[str]]:
    """SmolLM3, which leaves every fourth layer without positions."""
    _require_full_attention(config)
    layers = config.integer("num_hidden_layers")
    every_fourth = [int((index + 1) % 4 != 0) for index in range(layers)]
    config.require("no_rope_layers", every_fourth, why=_COMPUTES)
    settings, rope = _gated_decoder(config)
    return settings, rope, []


def _require_full_attention(config: ModelConfig) -> None:
    layer_types = config.get("layer_types") or []
    if any(kind != "full_attention" for kind in layer_types):
        raise UnsupportedError(
            f"{config.path}: has layers with a sliding window, which llama.cpp does not know for this family",
            mend="Set use_sliding_window to false if the model was not trained with it.",
        )


def gemma2_settings(config: ModelConfig) -> tuple[Metadata, Rope, list[str]]:
    """Gemma 2: every other layer looks through a window, and logits are capped."""
    _require_layer_pattern(config, period=2)
    settings, rope = _gemma(config)
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    for key in caps:
        if config.get(key) is None:
            raise UnsupportedError(
                f"{config.path}: {key} is off; llama.cpp caps the logits of this family in any case",
                mend="Choose another format for this checkpoint, such as onnx.",
            )
        settings[key] = config.number(key)
    return settings, rope, []


def gemma3_settings(config: ModelConfig) -> tuple[Metadata, Rope, list[str]]:
    """Gemma 3, text only: five layers with a window and one without."""
    _require_layer_pattern(config, period=6)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        config.require(key, None, why=_COMPUTES)
    local = config.mapping("rope_parameters").get("sliding_attention") or {}
    if local.get("rope_type", "default") != "default":
        raise UnsupportedError(
            f"{config.path}: stretches the positions of layers with a window",
            mend="Choose another format for this checkpoint, such as onnx.",
        )
    settings, rope = _gemma(config, layer_type="full_attention")
    settings["rope.freq_base_swa"] = read_rope(config, local).settings["rope.freq_base"]
    return settings, rope, []


def _gemma(config: ModelConfig, *, layer_type: str | None = None) -> tuple[Metadata, Rope]:
    config.require("hidden_activation", "gelu_pytorch_tanh", why=_COMPUTES)
    # The runtime scales by the head's width, except in the 27 B model, by the model's width per head.
    layers, heads = config.integer("num_hidden_layers"), config.integer("num_attention_heads")
    is_27b = (config.model_type, layers) in {("gemma2", 46), ("gemma3_text", 62)}
    scalar = config.integer("hidden_size") // heads if is_27b else config.head_dim
    config.require("query_pre_attn_scalar", scalar, why=_COMPUTES)
    config.require("use_bidirectional_attention", None, False, why=_COMPUTES)
    rope = read_rope(config, config.mapping("rope_parameters").get(layer_type) if layer_type else None)
    settings = _transformer(config) | _grouped_attention(config) | rope.settings
    return settings | {"attention.sliding_window": config.integer("sliding_window")}, rope


def _require_layer_pattern(config: ModelConfig, *, period: int) -> None:
    layers = config.integer("num_hidden_layers")
    expected = ["sliding_attention" if (index + 1) % period else "full_attention" for index in range(layers)]
    if list(config.get("layer_types") or []) != expected:
        raise UnsupportedError(
            f"{config.path}: layer_types is not one full layer in {period}, which llama.cpp fixes for this family",
            mend="Choose another format for this checkpoint, such as onnx.",
        )


def phi3_settings(config: ModelConfig) -> tuple[Metadata, Rope, list[str]]:
    """Phi-3 and Phi-4 mini: fused projections, and factors of their own for long contexts."""
    settings, rope = _gated_decoder(config)
    window = config.get("sliding_window")
    if window is None or window >= config.integer("max_position_embeddings"):
        return settings, rope, []
    settings["context_length"] = config.integer("sliding_window")
    return settings, rope, [_window_note(window)]


def gpt2_settings(config: ModelConfig) -> tuple[Metadata, Rope, list[str]]:
    """GPT-2: learned positions, layer norms with biases."""
    config.require("activation_function", "gelu_new", "gelu_pytorch_tanh", why=_COMPUTES)
    for key, value in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        config.require(key, value, why=_COMPUTES)
    feed_forward = config.integer("n_inner", default=4 * config.integer("hidden_size"))
    settings = _transformer(config, feed_forward=feed_forward)
    settings["attention.layer_norm_epsilon"] = config.number("layer_norm_epsilon")
    return settings, Rope(settings={}), []


def gpt_neox_settings(config: ModelConfig) -> tuple[Metadata, Rope, list[str]]:
    """GPT-NeoX and Pythia: part of each head is rotated, attention and feed-forward may run side by side."""
    left_out = _gelu_note(config, config.get("hidden_act"))
    rope = read_rope(config)
    settings = _transformer(config) | rope.settings
    settings["attention.layer_norm_epsilon"] = config.number("layer_norm_eps")
    settings["use_parallel_residual"] = bool(config.get("use_parallel_residual"))
    return settings, rope, left_out


def bert_settings(config: ModelConfig) -> tuple[Metadata, Rope, list[str]]:
    """BERT-like encoders, for embeddings."""
    config.require("position_embedding_type", None, "absolute", why=_COMPUTES)
    left_out = _gelu_note(config, config.get("hidden_act"))
    settings = _transformer(config)
    settings["attention.layer_norm_epsilon"] = config.number("layer_norm_eps")
    settings["attention.causal"] = False
    return settings, Rope(settings={}), left_out


def xlm_roberta_settings(config: ModelConfig) -> tuple[Metadata, Rope, list[str]]:
    """XLM-RoBERTa: BERT whose positions are counted from behind the padding token's number."""
    settings, rope, left_out = bert_settings(config)
    settings["context_length"] = config.integer("max_position_embeddings") - config.integer("pad_token_id") - 1
    return settings, rope, left_out


def _gelu_note(config: ModelConfig, activation: object) -> list[str]:
    tanh: Sequence[str] = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
    if activation in tanh:
        return []
    config.require("hidden_act", "gelu", *tanh, why=_COMPUTES)
    return ["the exact GELU: llama.cpp computes its approximation by tanh, at most 5e-4 apart"]
