from __future__ import annotations

from pathlib import Path

import pytest
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from edgesmith.recipe import DistillStep, MergeStep, PruneStep, TrimVocabularyStep, load_recipe
from edgesmith.starter import write_starter

TINY = {"hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 32}
MODELS: dict[str, PreTrainedModel] = {
    "classifier": BertForSequenceClassification(BertConfig(vocab_size=64, **TINY)),
    "embeddings": BertModel(BertConfig(vocab_size=64, **TINY)),
    "vit": ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **TINY)),
    "resnet": ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ),
    "llama": LlamaForCausalLM(LlamaConfig(vocab_size=64, **TINY)),
}
EXPECTED = {
    "classifier": [TrimVocabularyStep, PruneStep, DistillStep],
    "embeddings": [TrimVocabularyStep, PruneStep, DistillStep],
    "vit": [PruneStep, DistillStep],
    "resnet": [PruneStep, DistillStep],
    "llama": [TrimVocabularyStep],
}


@pytest.mark.parametrize("has_adapter", [False, True])
@pytest.mark.parametrize("has_train", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_every_starter_is_a_recipe_with_the_steps_that_it_says(
    name: str, has_train: bool, has_adapter: bool, tmp_path: Path
) -> None:
    MODELS[name].save_pretrained(tmp_path / "base")
    guesses, path = write_starter(
        tmp_path / "base",
        adapter=tmp_path / "lora" if has_adapter else None,
        train=tmp_path / "train.jsonl" if has_train else None,
        out=tmp_path / "recipe.yaml",
    )
    recipe = load_recipe(path)
    expected = [MergeStep] * has_adapter + EXPECTED[name] * has_train
    assert [type(step) for step in recipe.steps] == expected
    assert (recipe.data.train is not None) is has_train
    assert any(one.startswith("steps: none") for one in guesses) is not has_train


@pytest.mark.parametrize("name", ["classifier", "embeddings"])
def test_labels_are_learnt_from_only_where_rows_have_some(name: str, tmp_path: Path) -> None:
    MODELS[name].save_pretrained(tmp_path / "base")
    _, path = write_starter(tmp_path / "base", train=tmp_path / "train.jsonl", out=tmp_path / "recipe.yaml")
    [distill] = [step for step in load_recipe(path).steps if isinstance(step, DistillStep)]
    assert (distill.distill.hard > 0) is (name == "classifier")
