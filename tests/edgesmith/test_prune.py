from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from edgesmith.api.prune import prune, prune_options
from edgesmith.artifact import open_artifact
from edgesmith.cli.prune import prune as command
from edgesmith.errors import UsageError
from edgesmith.recipe import PruneOptions
from edgesmith.stages.prune import PruneStage
from tests.compress.merge_models import quiet
from tests.export.generators import save_generator


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_generator(tmp_path_factory.mktemp("prune") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prune") / "text.txt"
    path.write_text("Call me Ishmael. Some years ago, never mind how long precisely.\n" * 12)
    return path


def test_a_language_model_is_pruned_on_windows_of_a_text(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    options = prune_options(method="wanda", pattern="2:4", sparsity=None)
    with quiet():
        artifact, facts = prune(checkpoint, out=tmp_path / "out", options=options, data=text, num_samples=3)
    assert facts["num_calibration_tokens"] == 3 * 96  # what the model reads at most, not 512
    assert facts["sparsity"] == 0.5
    assert facts["peak_memory_bytes"] >= facts["peak_memory_added_bytes"] >= 0
    assert artifact.kind == "checkpoint"
    weight = load_file(tmp_path / "out/model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert int((weight.reshape(-1, 4) != 0).sum(dim=1).max()) == 2
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (checkpoint / "tokenizer.json").read_bytes()


def test_the_artifact_says_what_was_done_but_no_time_or_memory(checkpoint: Path, tmp_path: Path) -> None:
    with quiet():
        prune(checkpoint, out=tmp_path / "out", options=PruneOptions(method="magnitude", sparsity=0.5))
    stored = json.loads((tmp_path / "out/pruning.json").read_text())
    assert stored["method"] == "magnitude"
    assert not [name for name in stored if "peak" in name or "seconds" in name]
    assert open_artifact(tmp_path / "out").manifest.step == "prune"


def test_a_key_depends_on_options_and_data_but_not_on_who_listens(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Another text.\n")
    source = open_artifact(checkpoint, kinds=("checkpoint",))
    wanda = PruneOptions(method="wanda", sparsity=0.5)
    stage = PruneStage(source=source, prune=wanda, data=text)
    others = [
        PruneStage(source=source, prune=PruneOptions(method="wanda", sparsity=0.6), data=text),
        PruneStage(source=source, prune=wanda, data=other),
        PruneStage(source=source, prune=wanda, data=text, num_samples=8),
        PruneStage(source=source, prune=wanda, data=text, threads=2),
    ]
    keys = {one.key.digest for one in (stage, *others)}
    assert len(keys) == 5
    assert PruneStage(source=source, prune=wanda, data=text, tell=print).key.digest == stage.key.digest


def test_what_needs_data_is_refused_without(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="prune by wanda looks at what the layers are fed with"):
        prune(checkpoint, out=tmp_path / "out", options=PruneOptions(method="wanda", sparsity=0.5))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "wands"}, "method: Input should be 'structured'"),
        ({"method": "wanda", "sparsity": 1.5}, "sparsity: Input should be less than 1"),
        ({"sparsity": 0.5}, "sparsity means nothing to method structured; it is for magnitude, wanda and sparsegpt"),
    ],
)
def test_options_out_of_range_are_named(given: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        prune_options(**given)


def test_the_command_prints_one_json_object(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["edgesmith", "prune"])
    with quiet():
        command(checkpoint, tmp_path / "out", method="magnitude", sparsity=0.25, json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["pruning"]["target"] == "sparsity 0.25"
    assert found["pruning"]["num_zeros"] * 4 == found["pruning"]["num_pruned"]


def test_the_command_shows_every_kind_of_matrix_and_what_stayed(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with quiet():
        command(checkpoint, tmp_path / "out", method="magnitude", pattern="2:4")
    shown = capsys.readouterr().out
    assert "model.layers.*.mlp.down_proj.weight" in shown
    assert "left dense: embeddings" in shown


def test_sizes_of_the_command_are_shares_or_whole_numbers(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"2.5 is neither a share below 1 nor a whole number"):
        command(checkpoint, tmp_path / "out", keep=["ffn=2.5"])
    with pytest.raises(UsageError, match="--keep ffn: 'half' is no number"):
        command(checkpoint, tmp_path / "out", keep=["ffn=half"])
