"""Merging knows nothing of any one architecture: small models of many, with adapters where they differ most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import transformers as hf

from compress.merge import AdapterSpec, merge_adapter
from compress.verify_merge import verify_merge
from edgesmith.errors import MergeError
from tests.compress.merge_models import VOCAB, bert_config, quiet, save_adapter, save_model, token_ids

pytestmark = pytest.mark.slow

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
VISION: dict[str, Any] = {**{k: v for k, v in SIZES.items() if k != "vocab_size"}, "image_size": 32, "patch_size": 8}
SPEECH: dict[str, Any] = {
    "vocab_size": VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
}  # fmt: skip
TEXT = token_ids()
IMAGE = {"pixel_values": np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)}
SOUND = {"input_features": np.random.default_rng(0).normal(size=(2, 8, 40)).astype(np.float32)}


def lora(*targets: str, **options: Any) -> Any:
    return peft.LoraConfig(r=2, target_modules=list(targets), **options)


@quiet()
def cases() -> dict[str, tuple[str, Any, Any, dict[str, Any]]]:
    """Name → model class, configuration, adapter, inputs."""
    return {
        "a head of several layers": (
            "RobertaForSequenceClassification",
            hf.RobertaConfig(**SIZES, num_labels=3, pad_token_id=1),
            lora("query", "dense", task_type="SEQ_CLS"),
            TEXT,
        ),
        "two modules trained whole": (
            "DistilBertForSequenceClassification",
            hf.DistilBertConfig(vocab_size=VOCAB, dim=32, n_layers=2, n_heads=4, hidden_dim=64),
            lora("q_lin", modules_to_save=["pre_classifier", "classifier"], task_type="SEQ_CLS"),
            TEXT,
        ),
        "convolution of patches": (
            "ViTForImageClassification",
            hf.ViTConfig(**VISION, num_labels=4),
            lora("query", "projection", modules_to_save=["classifier"]),
            IMAGE,
        ),
        "convolutions and batch norms trained whole": (
            "ResNetForImageClassification",
            hf.ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
            ),
            lora("convolution", modules_to_save=["classifier.1", "normalization"]),
            IMAGE,
        ),
        "attention with packed projections": (
            "SiglipVisionModel",
            hf.SiglipVisionConfig(**VISION),
            lora("head.attention", "q_proj"),
            IMAGE,
        ),
        "speech": (
            "WhisperForConditionalGeneration",
            hf.WhisperConfig(
                **SPEECH, num_mel_bins=8, max_source_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                decoder_start_token_id=3,
            ),
            lora("q_proj", "v_proj"),
            SOUND,
        ),
        "stacked experts, some of them": (
            "Qwen2MoeForCausalLM",
            hf.Qwen2MoeConfig(
                **SIZES, num_key_value_heads=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
                num_experts=4, num_experts_per_tok=2,
            ),
            lora("q_proj", target_parameters=["mlp.experts.down_proj"], task_type="CAUSAL_LM"),
            TEXT,
        ),
        "fused projections": (
            "Phi3ForCausalLM",
            hf.Phi3Config(**SIZES, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2),
            peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
            TEXT,
        ),
        "scaled embeddings, tied": (
            "Gemma3ForCausalLM",
            hf.Gemma3TextConfig(**SIZES, num_key_value_heads=2, head_dim=8, sliding_window=8),
            lora("q_proj", "embed_tokens", task_type="CAUSAL_LM"),
            TEXT,
        ),
        "tied decoder with a bias": (
            "BertForMaskedLM",
            bert_config(),
            lora("query", "decoder", "word_embeddings"),
            TEXT,
        ),
        "shared layers": (
            "AlbertForSequenceClassification",
            hf.AlbertConfig(**SIZES, embedding_size=16),
            lora("query", "value", task_type="SEQ_CLS"),
            TEXT,
        ),
        "state space": (
            "MambaForCausalLM",
            hf.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4),
            lora("in_proj", "x_proj", "embeddings", task_type="CAUSAL_LM"),
            TEXT,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(cases()))
def test_merged_model_equals_base_and_adapter(name: str, tmp_path: Path) -> None:
    model_class, config, adapter_config, inputs = cases()[name]
    base = save_model(tmp_path / "base", model_class, config)
    spec = [AdapterSpec(path=save_adapter(tmp_path / "adapter", base, model_class, adapter_config))]
    result = merge_adapter(base, spec, tmp_path / "out")
    assert result.model_class == model_class
    assert verify_merge(base, spec, result.path, [inputs]).max_abs_diff <= 1e-4


def test_single_tokens_of_a_tied_layer_with_a_bias_are_refused(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "BertForMaskedLM", bert_config())
    config = lora("query", trainable_token_indices=[4, 7])
    adapter = save_adapter(tmp_path / "adapter", base, "BertForMaskedLM", config)
    with pytest.raises(MergeError, match=r"leaves out the bias of 'cls.predictions.decoder'"):
        merge_adapter(base, [AdapterSpec(path=adapter)], tmp_path / "out")
