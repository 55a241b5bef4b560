"""Every family: a seeded small model of the real architecture gives the same logits in llama.cpp as in torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file

from edgesmith.errors import CheckpointError, UnsupportedError, VerificationError
from export.gguf.logit_parity import check_logits, check_states
from export.gguf.tensor_plan import FloatType
from export.gguf.to_gguf import to_gguf
from export.gguf.tokenizer_parity import check_tokenizer
from export.logit_parity import LogitTolerance
from serve.runtime.gguf_file import read_gguf

from .conftest import SPECIAL, TEXTS, TINY, save_model, save_tokenizer

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * index for index in range(8)],
    "long_factor": [1.0 + index for index in range(8)],
}
GEMMA = {
    "query_pre_attn_scalar": 16,
    "sliding_window": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "num_hidden_layers": 7,
}
GPT2 = {"n_inner": None, "head_dim": None, "num_key_value_heads": None, "intermediate_size": None}
NEOX = {"head_dim": None, "num_key_value_heads": None}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama biases": ("LlamaConfig", {"attention_bias": True}),
    "llama wide heads": ("LlamaConfig", {"head_dim": 32}),
    "llama3 rope": ("LlamaConfig", {"rope_parameters": LLAMA3_ROPE}),
    "linear rope": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {"head_dim": None}),
    "qwen2 tied": ("Qwen2Config", {"head_dim": None, "tie_word_embeddings": True}),
    "qwen2 yarn": ("Qwen2Config", {"head_dim": None, "rope_parameters": YARN}),
    "qwen3": ("Qwen3Config", {}),
    "smollm3": ("SmolLM3Config", {"head_dim": None, "num_hidden_layers": 5}),
    "gemma2": ("Gemma2Config", GEMMA),
    "gemma3": ("Gemma3TextConfig", GEMMA),
    "phi3": ("Phi3Config", {"head_dim": None}),
    "phi3 longrope": (
        "Phi3Config",
        {"head_dim": None, "rope_parameters": LONGROPE, "original_max_position_embeddings": 256},
    ),
    "phi4 partial rotary": (
        "Phi3Config",
        {"head_dim": None, "partial_rotary_factor": 0.75, "tie_word_embeddings": True},
    ),
    "granite": (
        "GraniteConfig",
        {
            "head_dim": None,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 4.0,
        },
    ),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "sliding_window": None}),
    "qwen3 moe": (
        "Qwen3MoeConfig",
        {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
    ),
    "qwen2 moe": (
        "Qwen2MoeConfig",
        {
            "head_dim": None,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 96,
        },
    ),
    "olmoe": ("OlmoeConfig", {"head_dim": None, "num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2}),
    "gpt2": ("GPT2Config", GPT2),
    "gpt_neox": ("GPTNeoXConfig", NEOX),
    "gpt_neox in turn": ("GPTNeoXConfig", {**NEOX, "use_parallel_residual": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_torch(case: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    config_class, settings = CASES[case]
    checkpoint = tiny_checkpoint(config_class, **settings)
    done = to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f32")
    result = check_logits(checkpoint, done.path, texts=TEXTS, dtype="f32")
    assert result.num_tokens > 100
    assert result.mean_kld < 1e-6


def test_logits_of_another_model_are_refused(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    done = to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f32")
    config = json.loads((checkpoint / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 5000.0
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(VerificationError, match=r"mean KLD .* \(at most 2e-05\), same top token"):
        check_logits(checkpoint, done.path, texts=TEXTS, dtype="f32")


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_precision_stays_within_its_tolerance(
    dtype: FloatType, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint("Qwen3Config")
    done = to_gguf(checkpoint, tmp_path / "model.gguf", dtype=dtype)
    loose = LogitTolerance(mean_kld=1e-2, same_top=0.8)  # random weights decide less than trained ones
    assert check_logits(checkpoint, done.path, texts=TEXTS, dtype=dtype, tolerance=loose).mean_kld > 0


@pytest.mark.parametrize(
    ("config_class", "settings", "message"),
    [
        ("LlamaConfig", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("LlamaConfig", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic'"),
        ("Gemma2Config", GEMMA | {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar is 64"),
        ("Gemma3TextConfig", GEMMA | {"layer_types": ["full_attention"] * 7}, "one full layer in 6"),
        ("SmolLM3Config", {"head_dim": None, "no_rope_layers": [1, 1, 1]}, None),
        ("SmolLM3Config", {"head_dim": None, "no_rope_layers": [1, 0, 1]}, "no_rope_layers"),
        ("OPTConfig", {"head_dim": None}, "architecture 'opt' cannot be converted(.|\n)* `converter:` in the target"),
        ("Qwen3_5TextConfig", {}, "'qwen3_5_text' cannot be converted .*nearest that can is 'qwen3_moe'"),
        ("Olmo2Config", {"head_dim": None}, "nearest that can is 'olmoe'; llama.cpp itself knows it"),
        (
            "Qwen3MoeConfig",
            {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": False},
            "norm_topk_prob is False",
        ),
        (
            "Qwen3MoeConfig",
            {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True, "mlp_only_layers": [0]},
            r"mlp_only_layers is \[0\]; llama.cpp has experts in every layer",
        ),
        (
            "OlmoeConfig",
            {"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 8.0, "head_dim": None},
            "clip_qkv is 8",
        ),
        ("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": None}, "2 heads of keys for 4 of"),
    ],
)
def test_settings_that_llama_cpp_does_not_compute_are_refused(
    config_class: str,
    settings: dict[str, Any],
    message: str | None,
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
) -> None:
    checkpoint = tiny_checkpoint(config_class, **settings)
    with pytest.raises(UnsupportedError, match=message) if message else nullcontext():
        to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f32")
    assert (tmp_path / "model.gguf").exists() == (message is None)


def test_an_expert_that_is_missing_is_found(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("MixtralConfig", num_local_experts=4, sliding_window=None)
    weights = load_file(checkpoint / "model.safetensors")
    del weights["model.layers.1.block_sparse_moe.experts.2.w1.weight"]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has 3 experts like 'model\.layers\.1\..*', config\.json asks for 4"):
        to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f32")


def test_two_weights_of_one_place_are_both_named(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint("LlamaConfig")
    weights = load_file(checkpoint / "model.safetensors")
    weights["layers.1.mlp.up_proj.weight"] = 2 * weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        to_gguf(checkpoint, tmp_path / "model.gguf", dtype="f32")
    for part in ("'layers.1.mlp.up_proj.weight'", "'model.layers.1.mlp.up_proj.weight'", "blk.1.ffn_up.weight"):
        assert part in caught.value.message


@pytest.mark.parametrize("config_class", ["MistralConfig", "MixtralConfig", "Phi3Config"])
def test_a_window_shorter_than_the_context_becomes_the_context(
    config_class: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """llama.cpp has no window for these families: within it, both are the same; beyond it they would not be."""
    settings = {"sliding_window": 128} | ({"head_dim": None} if config_class == "Phi3Config" else {})
    done = to_gguf(tiny_checkpoint(config_class, **settings), tmp_path / "model.gguf", dtype="f32")
    assert read_gguf(done.path).setting("context_length") == 128
    assert any("sliding window of 128 tokens" in note for note in done.left_out)


def test_states_of_an_encoder_are_those_of_torch(
    minilm_folder: Path, tmp_path: Path, news_rows: list[dict[str, str]]
) -> None:
    done = to_gguf(minilm_folder, tmp_path / "model.gguf", dtype="f32")
    result = check_states(minilm_folder, done.path, texts=[row["text"] for row in news_rows[:4]], dtype="f32")
    assert result.min_cosine > 0.99999
    assert (done.architecture, done.tokenizer_model) == ("bert", "bert")


def test_states_of_roberta_are_those_of_torch(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    settings = TINY | {"bos_token_id": 1, "pad_token_id": 3, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    save_model(folder, transformers.RobertaConfig(**settings), loader=transformers.AutoModel)

    def frame(content: dict[str, Any]) -> None:
        content["post_processor"] = {"type": "RobertaProcessing", "sep": [SPECIAL[2], 2], "cls": [SPECIAL[1], 1],
                                     "trim_offsets": True, "add_prefix_space": False}  # fmt: skip

    save_tokenizer(folder, change=frame)
    done = to_gguf(folder, tmp_path / "model.gguf", dtype="f32")
    assert (done.architecture, done.tokenizer_model, done.pre_tokenizer) == ("bert", "gpt2", "gpt-2")
    assert read_gguf(done.path).setting("context_length") == 512 - 3 - 1
    assert check_states(folder, done.path, texts=TEXTS, dtype="f32").min_cosine > 0.99999
    assert check_tokenizer(folder, done.path, num_generated=200).num_lines > 200
