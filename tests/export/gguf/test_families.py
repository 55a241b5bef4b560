"""Every family: a seeded small model of the real architecture gives the same logits in llama.cpp as in torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.gguf.logit_parity import check_logits
from export.gguf.to_gguf import to_gguf

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
    print(case, result)
    assert result.num_tokens > 100
