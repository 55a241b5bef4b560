"""Whole layers leave: which, and that what is left computes what the full model does without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest
import torch

from compress.prune.layers import LayerChoice, choose_layers, keep_layers, layer_importance
from edgesmith.errors import DataError, UnsupportedError, UsageError

from .structure.models import batches_for, build

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def pick_layers(
    model: PreTrainedModel, num: int, which: LayerChoice = "uniform", batches: Sequence[Mapping[str, Any]] = ()
) -> PreTrainedModel:
    return keep_layers(model, choose_layers(model, num, which, batches))


@pytest.mark.parametrize(
    ("total", "num", "kept"),
    [(12, 6, (0, 2, 4, 7, 9, 11)), (6, 3, (0, 3, 5)), (3, 3, (0, 1, 2)), (3, 1, (0,)), (30, 2, (0, 29))],
)
def test_uniform_layers_are_spread_from_first_to_last(total: int, num: int, kept: tuple[int, ...]) -> None:
    from compress.prune.layers import _uniform

    assert _uniform(total, num) == kept


@pytest.mark.parametrize("name", ["bert", "distilbert", "mpnet", "gpt2", "llama", "qwen3", "gemma", "vit"])
def test_a_model_of_some_layers_is_an_ordinary_one(name: str) -> None:
    model = build(name)
    smaller = pick_layers(model, 2, (0, 2))
    assert smaller.config.num_hidden_layers == 2
    assert sum(one.numel() for one in smaller.parameters()) < sum(one.numel() for one in model.parameters())
    assert model.config.num_hidden_layers == 3


def test_a_layer_that_does_nothing_is_the_first_to_go() -> None:
    model = build("llama")
    layer = model.model.layers[1]
    layer.self_attn.o_proj.weight.data.zero_()
    layer.mlp.down_proj.weight.data.zero_()
    batches = batches_for("llama")
    importance = layer_importance(model, batches)
    assert importance[1] == pytest.approx(0, abs=1e-9)
    assert choose_layers(model, 2, "influence", batches) == (0, 2)
    smaller = pick_layers(model, 2, "influence", batches)
    with torch.inference_mode():
        torch.testing.assert_close(smaller(**batches[0]).logits, model(**batches[0]).logits, rtol=1e-4, atol=1e-4)


def test_padding_has_no_part_in_the_influence() -> None:
    model = build("bert")
    [batch, *_] = batches_for("bert")
    padded = {name: value[-1:] for name, value in batch.items()}
    short = {name: value[-1:, :6] for name, value in batch.items()}
    assert layer_importance(model, [padded]) == pytest.approx(layer_importance(model, [short]), rel=1e-4)


@pytest.mark.parametrize("which", [(0, 0), (0, 3), (0,), (-1, 1)])
def test_a_list_that_does_not_fit_is_refused(which: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="not 2 different ones of 0 to 2"):
        pick_layers(build("bert"), 2, which)


def test_influence_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        pick_layers(build("bert"), 2, "influence")


@pytest.mark.parametrize("name", ["albert", "resnet"])
def test_models_without_a_stack_are_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedError, match=r"ResNetForImageClassification|AlbertModel"):
        pick_layers(build(name), 1)


def test_layers_that_depend_on_their_numbers_are_refused() -> None:
    import transformers

    from tests.compress.merge_models import quiet

    with quiet(), torch.random.fork_rng():
        torch.manual_seed(1)
        config = transformers.GPT2Config(
            vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2,
            scale_attn_by_inverse_layer_idx=True,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel._from_config(config, dtype=torch.float32).eval()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    with pytest.raises(UnsupportedError, match="depend on their numbers"):
        pick_layers(model, 2, (1, 2))
