from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from compress.checkpoint import open_checkpoint
from compress.prune.weights.result import SparsityResult
from compress.prune.weights.run import prune_weights
from edgesmith.errors import CheckpointError, DataError, UnsupportedError, UsageError
from edgesmith.recipe import PruneOptions
from tests.compress.merge_models import VOCAB, bert_config, llama_config, load, logits, quiet, save_model, token_ids

METHODS = ("magnitude", "wanda", "sparsegpt")


def rows(num: int = 6, *, length: int = 24, vocab: int = VOCAB) -> list[dict[str, Any]]:
    """Texts that repeat themselves, so that layers are fed with something that has structure."""
    draw = np.random.default_rng(5)
    return [{"input_ids": np.tile(draw.integers(3, vocab, size=length // 4), 4)[None]} for _ in range(num)]


def prune(folder: Path, out: Path, method: str, batches: Sequence[Any] | None = None, **options: Any) -> SparsityResult:
    chosen = PruneOptions(method=method, **(options or {"sparsity": 0.5}))
    with quiet():
        return prune_weights(folder, out, chosen, rows() if batches is None else batches)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("prune") / "llama", "LlamaForCausalLM", llama_config())


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("prune") / "bert", "BertForSequenceClassification", bert_config())


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return save_model(tmp_path_factory.mktemp("prune") / "gpt2", "GPT2LMHeadModel", config)


def linear_names(folder: Path) -> set[str]:
    """Matrices of the blocks, by their names alone."""
    tensors = load_file(folder / "model.safetensors")
    ends = ("proj.weight", "dense.weight", "query.weight", "key.weight", "value.weight", "c_attn.weight", "c_fc.weight")
    return {name for name in tensors if name.endswith((*ends, "c_proj.weight")) and any(c.isdigit() for c in name)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["llama", "bert", "gpt2"])
def test_every_matrix_of_every_block_has_half_its_weights_and_nothing_else_changes(
    model: str, method: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    result = prune(folder, tmp_path / "out", method)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert {matrix.name for matrix in result.matrices} == linear_names(folder)
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        if name in linear_names(folder):
            assert int((tensor == 0).sum()) == tensor.numel() // 2, name
        else:
            assert torch.equal(tensor, before[name]), name
    assert result.sparsity == 0.5
    assert sum(left.num_weights for left in result.left_dense) + result.num_pruned == result.num_weights
    assert result.num_weights == sum(tensor.numel() for tensor in before.values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_pattern_is_exact_in_every_group_along_the_inputs(
    model: str, method: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    result = prune(request.getfixturevalue(model), tmp_path / "out", method, pattern="2:4")
    tensors = load_file(tmp_path / "out/model.safetensors")
    for matrix in result.matrices:
        weight = tensors[matrix.name].T if model == "gpt2" else tensors[matrix.name]
        assert tuple(weight.shape) == matrix.shape
        assert set((weight.reshape(-1, 4) == 0).sum(dim=1).tolist()) == {2}, matrix.name


def squares_of_inputs(model: Any, block: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Sum of the squares of what each linear layer of a block is fed with, in the whole model."""
    squares: dict[str, torch.Tensor] = {}

    def hear(name: str) -> Any:
        def add(_: Any, given: tuple[torch.Tensor, ...]) -> None:
            squares[name] = squares.get(name, 0) + given[0].flatten(0, 1).double().square().sum(0)

        return add

    linear = [pair for pair in block.named_modules() if isinstance(pair[1], torch.nn.Linear)]
    handles = [module.register_forward_pre_hook(hear(name)) for name, module in linear]
    with torch.inference_mode(), quiet():
        for batch in rows():
            model(input_ids=torch.from_numpy(batch["input_ids"]))
    for handle in handles:
        handle.remove()
    return squares


def test_the_blocks_see_what_the_pruned_ones_before_them_compute(llama: Path, tmp_path: Path) -> None:
    """Repeated with the whole model in memory, by hooks on its own layers."""
    prune(llama, tmp_path / "out", "wanda", pattern="2:4")
    model = load(llama, "LlamaForCausalLM").eval()
    found = load_file(tmp_path / "out/model.safetensors")
    for index, block in enumerate(model.model.layers):
        for name, square in squares_of_inputs(model, block).items():
            weight = block.get_submodule(name).weight
            score = (weight.abs() * square.sqrt().float()).reshape(-1, 4)
            order = score.argsort(dim=1, stable=True)
            gone = torch.zeros_like(score, dtype=torch.bool).scatter_(1, order[:, :2], True)
            weight.data[gone.reshape(weight.shape)] = 0
            torch.testing.assert_close(found[f"model.layers.{index}.{name}.weight"], weight.data, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": "2:4"}], ids=str)
def test_outputs_move_less_than_with_wanda_and_that_less_than_by_magnitude(
    options: dict[str, Any], tmp_path: Path
) -> None:
    # Inputs of very different size, as real models have them: norms that do not treat all alike.
    folder = save_model(tmp_path / "model", "LlamaForCausalLM", llama_config())
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if "layernorm" in name:
            tensor *= torch.linspace(0.05, 3, len(tensor))[torch.randperm(len(tensor))]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    errors = [prune(folder, tmp_path / method, method, **options).mean_relative_error for method in METHODS]
    assert None not in errors
    assert errors == sorted(errors, reverse=True), errors
    assert errors[2] < errors[0] / 1.3


@pytest.mark.parametrize("method", METHODS)
def test_the_same_inputs_give_the_same_bytes(method: str, llama: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        prune(llama, tmp_path / name, method)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_the_result_loads_as_an_ordinary_model_and_says_what_was_done(bert: Path, tmp_path: Path) -> None:
    result = prune(bert, tmp_path / "out", "sparsegpt")
    pruned = logits(load(tmp_path / "out", "BertForSequenceClassification"))
    assert bool(torch.isfinite(pruned).all())
    assert not torch.equal(pruned, logits(load(bert, "BertForSequenceClassification")))
    facts = json.loads((tmp_path / "out/pruning.json").read_text())
    assert facts["target"] == "sparsity 0.5"
    assert facts["sparsity"] == 0.5
    assert {left["reason"] for left in facts["left_dense"]} == {
        "embeddings", "norms and biases of the blocks", "before or after the blocks",
    }  # fmt: skip
    assert not any("peak" in name or "path" in name for name in facts)
    assert result.peak_memory_bytes > 0


def test_narrow_types_stay_narrow_and_exactly_sparse(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "LlamaForCausalLM", llama_config(), dtype=torch.bfloat16)
    result = prune(folder, tmp_path / "out", "sparsegpt", pattern="2:4")
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert result.sparsity == 0.5


def test_pruning_what_is_pruned_changes_nothing(llama: Path, tmp_path: Path) -> None:
    prune(llama, tmp_path / "one", "magnitude", pattern="2:4")
    prune(tmp_path / "one", tmp_path / "two", "magnitude", pattern="2:4")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_magnitude_needs_no_data_and_says_then_that_it_does_not_know_the_error(llama: Path, tmp_path: Path) -> None:
    result = prune(llama, tmp_path / "out", "magnitude", [])
    assert result.mean_relative_error is None
    assert result.num_calibration_tokens == result.calibration_bytes == 0
    assert result.sparsity == 0.5


def test_padding_has_no_say(bert: Path, tmp_path: Path) -> None:
    batch = token_ids()
    short = {name: array[-1:, :6] for name, array in batch.items()}
    padded = {name: array[-1:] for name, array in batch.items()}
    for name, given in (("short", short), ("padded", padded)):
        prune(bert, tmp_path / name, "wanda", [given])
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("short", "padded"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_side_files_come_along(bert: Path, tmp_path: Path) -> None:
    (bert / "tokenizer.json").write_text("{}")
    prune(bert, tmp_path / "out", "magnitude", [])
    assert (tmp_path / "out/tokenizer.json").read_text() == "{}"
    assert json.loads((tmp_path / "out/config.json").read_text()) == open_checkpoint(bert).config


@pytest.mark.parametrize(
    ("method", "options", "batches", "error", "said"),
    [
        ("wanda", {}, [], UsageError, "wanda looks at what the layers are fed with"),
        ("wanda", {"pattern": "3:7"}, None, UsageError, "q_proj.weight: its 32 inputs do not divide into groups of 7"),
        ("magnitude", {"sparsity": 0.99}, None, UsageError, "leaves 11 of 1024 weights, fewer than its 32 rows"),
        ("wanda", {}, rows(length=68), UsageError, "rows of 68 tokens, the model reads at most 64"),
        ("wanda", {}, rows(vocab=400), UsageError, "calibration batch 0 has tokens .* the model has 96"),
        ("wanda", {}, [{"input_ids": np.zeros((1, 0), np.int64)}], UsageError, "batch 0 is empty"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    method: str, options: dict[str, Any], batches: Any, error: type[Exception], said: str, llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        prune(llama, tmp_path / "out", method, batches, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_in_use_is_left_alone(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not empty"):
        prune(llama, tmp_path / "out", "magnitude")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_quantized_weights_are_refused(llama: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "LlamaForCausalLM", llama_config())
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="quantized \\(gptq 4-bit\\)"):
        prune(folder, tmp_path / "out", "magnitude")


def test_weights_that_layers_share_are_refused_by_name(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "LlamaForCausalLM", llama_config())
    from compress.prune.weights.block_model import BlockModel
    from compress.prune.weights.plan import plan_pruning

    model = BlockModel(open_checkpoint(folder))
    first, second = (block.mlp.up_proj for block in model.blocks)
    second._parameters["weight"] = first._parameters["weight"]
    with pytest.raises(
        UnsupportedError, match=r"layers\.1\.mlp\.up_proj.*layers\.0\.mlp\.up_proj.* share their weights"
    ):
        plan_pruning(model, PruneOptions(method="wanda", sparsity=0.5))


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"), CheckpointError, "lacks .*up_proj"),
        (
            lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].fill_(float("nan")),
            CheckpointError,
            "up_proj.*2048 NaN",
        ),
        (lambda tensors: tensors["model.layers.0.input_layernorm.weight"].mul_(1e30), DataError, "q_proj.*not finite"),
    ],
    ids=["missing", "no number", "overflow"],
)
def test_broken_weights_are_refused_and_leave_nothing_behind(
    change: Any, error: type[Exception], said: str, tmp_path: Path
) -> None:
    folder = save_model(tmp_path / "model", "LlamaForCausalLM", llama_config())
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(error, match=said):
        prune(folder, tmp_path / "out", "sparsegpt")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
