from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from compress.checkpoint import open_checkpoint
from compress.prune.weights.block_model import BlockModel
from compress.prune.weights.calibration import BlockInputs, capture_inputs
from edgesmith.errors import UnsupportedError
from edgesmith.progress import SILENT
from tests.compress.merge_models import VOCAB, bert_config, llama_config, load, quiet, save_model, token_ids

SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
MODELS: dict[str, tuple[str, Callable[[], Any]]] = {
    "llama": ("LlamaForCausalLM", llama_config),
    "bert": ("BertForSequenceClassification", bert_config),
    "gpt2": ("GPT2LMHeadModel", lambda: transformers.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4)),
    "gemma3, sliding and full": (
        "Gemma3ForCausalLM",
        lambda: transformers.Gemma3TextConfig(
            **SIZES, num_key_value_heads=2, head_dim=8, intermediate_size=64, sliding_window=4,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
    ),
    "modernbert": (
        "ModernBertModel",
        lambda: transformers.ModernBertConfig(
            **SIZES, intermediate_size=64, pad_token_id=0, local_attention=4, global_attn_every_n_layers=2,
            cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2,
        ),
    ),
    "distilbert": (
        "DistilBertModel",
        lambda: transformers.DistilBertConfig(vocab_size=VOCAB, dim=32, n_layers=3, n_heads=4, hidden_dim=64),
    ),
}  # fmt: skip


def batches() -> list[dict[str, torch.Tensor]]:
    """The first has padding."""
    padded = {name: torch.from_numpy(array) for name, array in token_ids().items()}
    return [padded, {"input_ids": padded["input_ids"][:2]}]


def inputs_of_every_block(model: BlockModel, inputs: BlockInputs, batch: int) -> list[torch.Tensor]:
    found = []
    for index in range(len(model.blocks)):
        with model.loaded(index) as block, torch.inference_mode():
            found.append(inputs._states[batch].clone())
            inputs.replace(batch, inputs.run(block, index, batch))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_every_block_is_fed_as_in_the_whole_model(name: str, tmp_path: Path) -> None:
    model_class, config = MODELS[name]
    folder = save_model(tmp_path / "model", model_class, config())
    model = BlockModel(open_checkpoint(folder))
    with quiet():
        inputs = capture_inputs(model, batches(), tmp_path, SILENT)
        whole = load(folder, model_class).eval()
    for number, batch in enumerate(batches()):
        with torch.inference_mode(), quiet():
            states = whole(**batch, output_hidden_states=True).hidden_states
        for index, found in enumerate(inputs_of_every_block(model, inputs, number)):
            torch.testing.assert_close(found, states[index], rtol=1e-5, atol=1e-5)


def test_nothing_but_the_part_that_is_run_is_in_memory(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "LlamaForCausalLM", llama_config())
    model = BlockModel(open_checkpoint(folder))

    def held() -> set[str]:
        return {name for name, parameter in model.model.named_parameters() if not parameter.is_meta}

    capture_inputs(model, batches(), tmp_path, SILENT)
    assert held() == set()
    with model.loaded(1):
        assert held() == set(model.parameters_of("model.layers.1"))
    assert held() == set()


def test_padding_is_told_apart(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "BertModel", bert_config())
    inputs = capture_inputs(BlockModel(open_checkpoint(folder)), batches(), tmp_path, SILENT)
    assert inputs.tokens[0] is not None
    assert inputs.tokens[0].tolist() == batches()[0]["attention_mask"].bool().tolist()
    assert inputs.tokens[1] is None


def test_equal_masks_and_positions_are_held_once(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "LlamaForCausalLM", llama_config())
    model = BlockModel(open_checkpoint(folder))
    one = capture_inputs(model, batches()[1:], tmp_path, SILENT)
    many = capture_inputs(model, batches()[1:] * 5, tmp_path, SILENT)
    states = 2 * 12 * 32 * 4  # rows, tokens, width, bytes
    assert many.size_bytes - one.size_bytes == 4 * states


def test_states_that_memory_has_no_room_for_lie_in_a_file(tmp_path: Path) -> None:
    inputs = BlockInputs(tmp_path, in_memory_bytes=40)
    first, second = torch.arange(10.0).reshape(1, 2, 5), torch.arange(20.0).reshape(1, 4, 5)
    inputs.add(first, [], None)
    inputs.add(second, [], None)
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [80]
    inputs.replace(1, second + 1)
    torch.testing.assert_close(inputs._states[0], first)
    torch.testing.assert_close(inputs._states[1], second + 1)


@pytest.mark.parametrize(
    ("model_class", "config", "said"),
    [
        (
            "T5ForConditionalGeneration",
            lambda: transformers.T5Config(vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
            "T5ForConditionalGeneration has two lists of blocks",
        ),
        (
            "ResNetModel",
            lambda: transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
            "no repeated blocks with linear layers were found in ResNetModel",
        ),
        (
            "MixtralForCausalLM",
            lambda: transformers.MixtralConfig(
                **SIZES, num_key_value_heads=2, intermediate_size=64, num_local_experts=4
            ),
            "most weights are in no linear layers",
        ),
    ],
)
def test_models_without_a_chain_of_linear_blocks_are_refused(
    model_class: str, config: Callable[[], Any], said: str, tmp_path: Path
) -> None:
    folder = save_model(tmp_path / "model", model_class, config())
    with pytest.raises(UnsupportedError, match=said):
        BlockModel(open_checkpoint(folder))


def test_blocks_that_are_run_several_times_are_refused(tmp_path: Path) -> None:
    config = transformers.AlbertConfig(**SIZES, embedding_size=16, intermediate_size=64)
    folder = save_model(tmp_path / "model", "AlbertModel", config)
    model = BlockModel(open_checkpoint(folder))
    with pytest.raises(UnsupportedError, match="albert_layer_groups: block 0 is run again"):
        capture_inputs(model, batches(), tmp_path, SILENT)
