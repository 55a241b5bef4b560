"""Small models of real architectures with seeded weights, and rows for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.compress.merge_models import quiet, save_model

__all__ = ["CONFIGS", "Kind", "batches_for", "build", "save"]

_TEXT = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_TEXT |= {"intermediate_size": 64, "max_position_embeddings": 64}
_DECODER = {**_TEXT, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_RESNET = {"embedding_size": 8, "depths": [2, 2], "layer_type": "basic", "image_size": 16}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", _TEXT),
    "bert-states": ("BertModel", _TEXT),
    "roberta": ("RobertaForSequenceClassification", _TEXT),
    "mpnet": ("MPNetModel", _TEXT),
    "albert": ("AlbertModel", {**_TEXT, "embedding_size": 16}),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {"vocab_size": 96, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
         "eos_token_id": 2},
    ),
    "llama": ("LlamaForCausalLM", {**_DECODER, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2ForCausalLM", _DECODER),
    "qwen3": ("Qwen3ForCausalLM", {**_DECODER, "head_dim": 8}),
    "gemma": ("GemmaForCausalLM", {**_DECODER, "num_key_value_heads": 1, "head_dim": 8}),
    "phi3": ("Phi3ForCausalLM", _DECODER),
    "vit": (
        "ViTForImageClassification",
        {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
         "image_size": 16, "patch_size": 8},
    ),
    "resnet": ("ResNetForImageClassification", {**_RESNET, "hidden_sizes": [8, 16]}),
    "resnet-bottleneck": (
        "ResNetForImageClassification", {**_RESNET, "hidden_sizes": [16, 32], "layer_type": "bottleneck"},
    ),
    "convnext": ("ConvNextForImageClassification", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}),
    "mobilenet": ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.25}),
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What loading asks about a task."""

    model_class: str
    name: str = "test"
    output_names: tuple[str, ...] = ("logits",)


def _config(name: str) -> tuple[str, Any]:
    class_name, settings = CONFIGS[name]
    config_class = getattr(transformers, class_name).config_class
    return class_name, config_class(**settings)


def build(name: str) -> Any:
    """A model in evaluation mode, every weight away from its initial zeros and ones."""
    class_name, config = _config(name)
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(5)
        model = getattr(transformers, class_name)._from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def save(name: str, folder: Path, **options: Any) -> tuple[Path, Kind]:
    """A checkpoint and what loads it."""
    class_name, config = _config(name)
    return save_model(folder, class_name, config, **options), Kind(class_name)


def batches_for(name: str) -> list[dict[str, torch.Tensor]]:
    """Three batches of rows; of texts, one row of each is padded."""
    generator = torch.Generator().manual_seed(3)
    if "Image" in CONFIGS[name][0]:
        return [{"pixel_values": torch.randn(4, 3, 16, 16, generator=generator)} for _ in range(3)]
    mask = torch.ones(4, 12, dtype=torch.long)
    mask[-1, 6:] = 0
    ids = [torch.randint(3, 96, (4, 12), generator=generator) for _ in range(3)]
    return [{"input_ids": one, "attention_mask": mask} for one in ids]
