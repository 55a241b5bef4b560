"""Pruned checkpoints are ordinary smaller ones, of the sizes asked for and within budgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from compress.load import load_model
from compress.prune.batches import main_output, outputs_of
from compress.prune.structure.cost import count_macs, count_params, one_row
from compress.prune.structure.prune import prune_structure
from compress.prune.structure.result import StructureResult
from edgesmith.errors import DataError, UnsupportedError, UsageError
from edgesmith.recipe.steps import Importance, PruneOptions

from .models import batches_for, save


def _prune(name: str, folder: Path, **options: Any) -> tuple[StructureResult, Any, Any]:
    source, kind = save(name, folder / "full")
    result = prune_structure(source, folder / "small", PruneOptions(**options), kind=kind, batches=batches_for(name))
    return result, load_model(source, kind), load_model(folder / "small", kind)


@pytest.mark.parametrize(
    ("name", "options", "settings"),
    [
        ("bert", {"keep": {"ffn": 0.5}}, {"intermediate_size": 32}),
        ("bert", {"keep": {"hidden": 0.5, "ffn": 24}}, {"hidden_size": 16, "num_attention_heads": 2}),
        ("bert-states", {"keep": {"hidden": 24}}, {"hidden_size": 24, "num_attention_heads": 3}),
        ("mpnet", {"keep": {"hidden": 0.5}}, {"hidden_size": 16, "num_attention_heads": 2}),
        ("distilbert", {"keep": {"ffn": 0.5}, "num_layers": 2}, {"hidden_dim": 32, "n_layers": 2}),
        ("gpt2", {"keep": {"ffn": 0.5, "hidden": 0.5}}, {"n_inner": 64, "n_embd": 16, "n_head": 2}),
        ("llama", {"keep": {"heads": 2, "hidden": 0.75}}, {"num_attention_heads": 2, "num_key_value_heads": 1}),
        ("qwen2", {"keep": {"heads": 0.5}, "num_layers": 2}, {"head_dim": 8, "num_attention_heads": 2}),
        ("phi3", {"keep": {"ffn": 0.25, "heads": 0.5}}, {"intermediate_size": 16, "num_key_value_heads": 1}),
        ("vit", {"keep": {"heads": 3, "ffn": 0.5}}, {"num_attention_heads": 3, "intermediate_size": 32}),
        ("resnet", {"keep": {"channels": 0.5}}, {"embedding_size": 4, "hidden_sizes": [4, 8]}),
        ("resnet-bottleneck", {"keep": {"hidden_sizes[1]": 16}}, {"hidden_sizes": [16, 16]}),
        ("convnext", {"keep": {"channels": 0.5}}, {"hidden_sizes": [4, 8]}),
    ],
)
def test_tensors_and_config_shrink_together(
    name: str, options: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    result, full, small = _prune(name, tmp_path, **options)
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert {key: config[key] for key in settings} == settings
    with safe_open(tmp_path / "small" / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(key).numel() for key in file.keys() if "running" not in key)  # noqa: SIM118
        stored -= sum(1 for key in file.keys() if "num_batches" in key)  # noqa: SIM118
    assert stored == count_params(small) == result.params_after < result.params_before == count_params(full)
    row = one_row(batches_for(name)[0])
    assert count_macs(small, row) == result.macs_after < result.macs_before


def test_pruning_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    source, kind = save("bert", tmp_path / "full")
    options = PruneOptions(keep={"ffn": 0.5, "hidden": 0.5}, importance="taylor")
    for name in ("a", "b"):
        prune_structure(source, tmp_path / name, options, kind=kind, batches=batches_for("bert"))
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "activation", "hessian"])
def test_dead_neurons_leave_first_and_nothing_is_lost(importance: Importance, tmp_path: Path) -> None:
    source, kind = save("bert", tmp_path / "full")
    model = load_model(source, kind)
    for index, layer in enumerate(model.bert.encoder.layer):
        dead = torch.arange(64) % 2 == index % 2
        layer.intermediate.dense.weight.data[dead] = 0
        layer.intermediate.dense.bias.data[dead] = 0
        layer.output.dense.weight.data[:, dead] = 0
    model.save_pretrained(str(source))
    result = prune_structure(
        source,
        tmp_path / "small",
        PruneOptions(keep={"ffn": 0.5}, importance=importance),
        kind=kind,
        batches=batches_for("bert"),
    )
    # Correcting weights is damped by a hundredth, so of it a little is seen.
    assert result.output_change < (1e-5 if importance == "hessian" else 1e-10)


def test_correcting_weights_loses_less_than_choosing_alone(tmp_path: Path) -> None:
    changes = {}
    for importance in ("magnitude", "hessian"):
        result, _, _ = _prune("llama", tmp_path / importance, keep={"ffn": 0.5}, importance=importance)
        changes[importance] = result.output_change
    assert changes["hessian"] < changes["magnitude"]


@pytest.mark.parametrize("name", ["bert", "llama", "resnet", "vit"])
def test_budgets_are_kept(name: str, tmp_path: Path) -> None:
    by_params, _, _ = _prune(name, tmp_path / "params", max_params=0.7, importance="magnitude", multiple_of=4)
    assert 0.3 * by_params.params_before < by_params.params_after <= 0.7 * by_params.params_before
    by_macs, _, _ = _prune(name, tmp_path / "macs", max_macs=0.6, importance="magnitude", multiple_of=4)
    assert 0.3 * by_macs.macs_before < by_macs.macs_after <= 0.6 * by_macs.macs_before


@pytest.mark.parametrize(("name", "is_lost"), [("llama", True), ("bert", False)])
def test_outputs_worse_than_none_are_told(name: str, is_lost: bool, tmp_path: Path) -> None:
    result, _, _ = _prune(name, tmp_path, num_layers=1, keep={"ffn": 0.5})
    assert (result.output_change > 1) is is_lost
    assert any("more than if all were zero" in note for note in result.notes) is is_lost


def test_what_is_fixed_stays_fixed_within_a_budget(tmp_path: Path) -> None:
    result, _, small = _prune("llama", tmp_path, keep={"heads": 2}, max_macs=0.7)
    assert small.config.num_attention_heads == 2
    assert result.macs_after <= 0.7 * result.macs_before


def test_a_budget_of_time_makes_the_model_smaller(tmp_path: Path) -> None:
    result, _, _ = _prune("vit", tmp_path, max_latency=0.99, num_layers=1, importance="magnitude")
    assert result.params_after < result.params_before


def test_side_files_come_along_and_pooling_learns_the_new_width(tmp_path: Path) -> None:
    source, kind = save("bert-states", tmp_path / "full")
    (source / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 32, "pooling_mode_cls_token": true}'
    )
    prune_structure(
        source, tmp_path / "small", PruneOptions(keep={"hidden": 0.5}), kind=kind, batches=batches_for("bert")
    )
    assert (tmp_path / "small" / "tokenizer_config.json").read_bytes() == b'{"model_max_length": 64}'
    pooling = json.loads((tmp_path / "small" / "1_Pooling" / "config.json").read_text())
    assert pooling == {"word_embedding_dimension": 16, "pooling_mode_cls_token": True}


def test_half_precision_stays_and_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    source, kind = save("llama", tmp_path / "full", dtype=torch.bfloat16)
    prune_structure(
        source, tmp_path / "small", PruneOptions(keep={"hidden": 0.5}), kind=kind, batches=batches_for("llama")
    )
    with safe_open(tmp_path / "small" / "model.safetensors", "pt") as file:
        assert {str(file.get_tensor(key).dtype) for key in file.keys()} == {"torch.bfloat16"}  # noqa: SIM118
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    small = load_model(tmp_path / "small", kind)
    assert torch.isfinite(main_output(outputs_of(small, batches_for("llama")[0]))).all()


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("bert", {}, UsageError, "given no size"),
        ("bert", {"keep": {"width": 0.5}}, UsageError, "no dimension 'width'"),
        ("bert", {"keep": {"ffn": 65}}, UsageError, "65 of 64"),
        ("bert", {"keep": {"ffn": 0.001}}, UsageError, "leaves nothing"),
        ("bert", {"keep": {"hidden": 20}}, UsageError, "steps of 8, the size of a head"),
        ("llama", {"keep": {"heads": 3}}, UsageError, "steps of 2, the heads of queries that share one of keys"),
        ("llama", {"keep": {"heads": 0.1}}, UsageError, "leaves nothing"),
        ("resnet", {"keep": {"channels": 4}}, UsageError, "said of 2 widths"),
        ("resnet", {"keep": {"hidden_sizes[7]": 4}}, UsageError, r"no width 'hidden_sizes\[7\]'"),
        ("bert", {"keep": {"heads": 2}}, UnsupportedError, "no head_dim"),
        ("bert", {"num_layers": 4}, UsageError, "4 of 3 layers"),
        ("albert", {"num_layers": 1}, UnsupportedError, "no list of 3 layers"),
        ("bert", {"max_params": 10}, UsageError, "budget cannot be reached"),
        ("mobilenet", {"max_macs": 0.5}, UnsupportedError, "none of its widths"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    name: str, options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    source, kind = save(name, tmp_path / "full")
    with pytest.raises(error, match=message):
        prune_structure(source, tmp_path / "small", PruneOptions(**options), kind=kind, batches=batches_for(name))
    assert not (tmp_path / "small").exists()


def test_no_rows_and_a_folder_in_use_are_refused(tmp_path: Path) -> None:
    source, kind = save("bert", tmp_path / "full")
    options = PruneOptions(keep={"ffn": 0.5})
    with pytest.raises(DataError, match="no rows"):
        prune_structure(source, tmp_path / "small", options, kind=kind, batches=[])
    with pytest.raises(UsageError, match="not empty"):
        prune_structure(source, source, options, kind=kind, batches=batches_for("bert"))
