from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from compress.distill.relations import find_attentions, relation_distances, relation_heads
from edgesmith.errors import UnsupportedError
from tests.compress.distill.test_losses import kl, random, softmax

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
MODELS = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(vocab_size=40, **SIZES)),
    "distilbert": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(vocab_size=40, dim=32, n_layers=2, n_heads=4, hidden_dim=48)
    ),
    "llama": lambda: transformers.LlamaModel(
        transformers.LlamaConfig(vocab_size=40, num_key_value_heads=2, max_position_embeddings=32, **SIZES)
    ),
    "gpt2": lambda: transformers.GPT2Model(
        transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    ),
    "vit": lambda: transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=16, **SIZES)),
}


@pytest.mark.parametrize("family", sorted(MODELS))
def test_queries_keys_and_values_of_every_layer_are_heard(family: str) -> None:
    model = MODELS[family]().eval()
    attentions = find_attentions(model)
    assert len(attentions) == 2
    inputs = torch.zeros(1, 3, 32, 32) if family == "vit" else torch.arange(6)[None]
    with attentions[-1].listening() as heard, torch.no_grad():
        model(inputs)
    shapes = [part.shape[-1] for part in attentions[-1].split(heard)]
    assert shapes == ([32, 16, 16] if family == "llama" else [32, 32, 32])
    with torch.no_grad():
        model(inputs)
    assert len(attentions[-1].modules) in (1, 3)  # and nobody listens any more
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_attention_is_refused() -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    with pytest.raises(UnsupportedError, match=r"ResNetModel.*queries"):
        find_attentions(transformers.ResNetModel(config))


def test_queries_that_are_fused_with_the_rest_in_blocks_are_refused() -> None:
    config = transformers.CodeGenConfig(vocab_size=40, n_embd=32, n_layer=1, n_head=4, rotary_dim=4, n_positions=32)
    with pytest.raises(UnsupportedError, match=r"CodeGenModel.*queries"):
        find_attentions(transformers.CodeGenModel(config))


def reference(student: NDArray[np.float64], teacher: NDArray[np.float64], heads: int, causal: bool) -> list[float]:
    """Token by token, of one text without padding."""
    length, found = len(student), []
    for token in range(length):
        seen = slice(0, token + 1) if causal else slice(0, length)
        terms = []
        for head in range(heads):
            relations = []
            for vectors in (teacher, student):
                width = vectors.shape[1] // heads
                part = vectors[:, head * width : (head + 1) * width]
                relations.append(softmax(part[seen] @ part[token] / np.sqrt(width)))
            terms.append(kl(*relations))
        found.append(float(np.mean(terms)))
    return found


@pytest.mark.parametrize("causal", [False, True])
def test_relations_are_those_of_the_paper_whatever_the_widths(causal: bool) -> None:
    student, teacher = random(2, 5, 32), random(2, 5, 64, seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    found = relation_distances(student, teacher, mask, causal=causal)
    for row, length in enumerate((5, 3)):
        expected = reference(student[row, :length].numpy(), teacher[row, :length].numpy(), 2, causal)
        np.testing.assert_allclose(found[row, :length], expected, rtol=1e-8, atol=1e-12)
    assert found[1, 3:].abs().max() == 0


def test_relations_of_equal_states_are_equal() -> None:
    states, mask = random(1, 4, 32), torch.ones(1, 4)
    assert relation_distances(states, states, mask, causal=False).abs().max() < 1e-12


@pytest.mark.parametrize(("widths", "heads"), [((768, 384), 24), ((40, 24), 1), ((312, 768), 12)])
def test_relation_heads_divide_both_widths_and_are_wide_enough(widths: tuple[int, int], heads: int) -> None:
    assert relation_heads(widths) == heads
