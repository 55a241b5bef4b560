"""Every family: a seeded small model of the real architecture gives the same logits in llama.cpp as in torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from edgesmith.errors import UnsupportedError, VerificationError
from export.gguf.logit_parity import Tolerance, check_logits, check_states
from export.gguf.tensor_plan import FloatType
from export.gguf.to_gguf import to_gguf
from serve.runtime.gguf_file import read_gguf

from .conftest import TEXTS

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
    loose = Tolerance(mean_kld=1e-2, same_top=0.8, min_cosine=0.0)  # random weights decide less than trained ones
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
        ("OPTConfig", {"head_dim": None}, "architecture 'opt' cannot be converted"),
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


def test_a_window_shorter_than_the_context_becomes_the_context(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    done = to_gguf(tiny_checkpoint("MistralConfig", sliding_window=128), tmp_path / "model.gguf", dtype="f32")
    assert read_gguf(done.path).setting("context_length") == 128
    assert any("sliding window of 128 tokens" in note for note in done.left_out)


def test_states_of_an_encoder_are_those_of_torch(
    minilm_folder: Path, tmp_path: Path, news_rows: list[dict[str, str]]
) -> None:
    done = to_gguf(minilm_folder, tmp_path / "model.gguf", dtype="f32")
    result = check_states(minilm_folder, done.path, texts=[row["text"] for row in news_rows[:4]], dtype="f32")
    assert result.min_cosine > 0.99999
    assert (done.architecture, done.tokenizer_model) == ("bert", "bert")
