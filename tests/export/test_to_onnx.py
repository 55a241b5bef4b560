"""Exports of the real MiniLM: shapes, bytes, files, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from edgesmith.artifact import open_artifact
from edgesmith.errors import CheckpointError, StorageError, UnsupportedError, UsageError
from edgesmith.tasks import Task, load_task
from export.reference import TorchEngine
from export.to_onnx import OPSETS, ExportResult, OptimizeFor, export_onnx
from serve.runtime import Engine, open_engine


@pytest.fixture(scope="module")
def engine(classifier_export: ExportResult) -> Engine:
    return open_engine(open_artifact(classifier_export.path))


@pytest.fixture(scope="module")
def reference(classifier_folder: Path, classifier_task: Task) -> TorchEngine:
    return TorchEngine(classifier_folder, classifier_task)


def encode(task: Task, texts: list[str]) -> dict[str, NDArray[Any]]:
    return dict(task.encode(texts))


def test_inputs_and_outputs_are_the_tasks_own(classifier_export: ExportResult, engine: Engine) -> None:
    assert classifier_export.input_names == ("input_ids", "attention_mask", "token_type_ids")
    assert classifier_export.output_names == ("logits",)
    assert {spec.shape for spec in engine.signature.inputs} == {("batch", "sequence")}
    assert engine.signature.outputs[0].shape == ("batch", 5)
    assert classifier_export.notes == ()


@pytest.mark.parametrize("length", [1, 2, 3, 7, 17, 128, 511, 512])
def test_single_rows_of_any_length_agree_with_torch(length: int, engine: Engine, reference: TorchEngine) -> None:
    rng = np.random.default_rng(length)
    arrays = {
        "input_ids": rng.integers(1000, 30000, (1, length)),
        "attention_mask": np.ones((1, length), np.int64),
        "token_type_ids": rng.integers(0, 2, (1, length)),
    }
    assert np.abs(engine.run(arrays)["logits"] - reference.run(arrays)["logits"]).max() <= 1e-5


def test_padding_and_neighbours_do_not_change_a_row(engine: Engine, classifier_task: Task) -> None:
    texts = [one.text for one in classifier_task.sample_examples()]
    short, long = min(texts, key=len), max(texts, key=len)
    alone = engine.run(encode(classifier_task, [short]))["logits"]
    together = engine.run(encode(classifier_task, [long, short, long]))["logits"]
    assert np.abs(together[1] - alone[0]).max() <= 1e-5
    assert np.abs(together[0] - together[2]).max() <= 1e-6


def test_what_stands_in_padding_does_not_matter(engine: Engine, classifier_task: Task) -> None:
    arrays = encode(classifier_task, ["A short one.", "A sentence that goes on for quite a while longer than that."])
    expected = engine.run(arrays)["logits"]
    arrays["input_ids"][arrays["attention_mask"] == 0] = 2054
    assert np.array_equal(engine.run(arrays)["logits"], expected)


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(
    classifier_export: ExportResult, classifier_folder: Path, tmp_path: Path
) -> None:
    script = (
        "import sys; from pathlib import Path; from edgesmith.tasks import load_task; "
        "from export.to_onnx import export_onnx; source = Path(sys.argv[1]); "
        "export_onnx(source, Path(sys.argv[2]), task=load_task(source, 'text-classification'))"
    )
    copy = tmp_path / "elsewhere" / "checkpoint"
    shutil.copytree(classifier_folder, copy)
    done = subprocess.run(
        [sys.executable, "-c", script, str(copy), str(tmp_path / "again")],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "", "PYTHONHASHSEED": "7", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), "an export is silent"
    assert sha256(tmp_path / "again" / "model.onnx") == sha256(classifier_export.path)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_no_path_or_version_of_the_exporter_is_in_the_file(classifier_export: ExportResult) -> None:
    content = classifier_export.path.read_bytes()
    for word in (b"site-packages", b"stack_trace", b"pytorch", b"pkg.torch", str(Path.home()).encode()):
        assert word not in content, word


def test_weights_past_the_limit_go_beside_the_graph(
    classifier_folder: Path, classifier_task: Task, classifier_export: ExportResult, engine: Engine, tmp_path: Path
) -> None:
    result = export_onnx(classifier_folder, tmp_path, task=classifier_task, one_file_bytes=1_000_000)
    assert [path.name for path in result.files] == ["model.onnx", "model.onnx.data"]
    assert result.path.stat().st_size < 1_000_000
    assert result.files[1].stat().st_size > 90_000_000
    assert [path.name for path in classifier_export.files] == ["model.onnx"]
    arrays = encode(classifier_task, ["One text.", "Another text, longer."])
    outside = open_engine(open_artifact(result.path)).run(arrays)["logits"]
    assert np.array_equal(outside, engine.run(arrays)["logits"])


@pytest.mark.parametrize(("optimize_for", "opset"), [("portable", None), ("portable", 20), ("onnxruntime-cpu", 18)])
def test_opset_and_domains_are_the_targets(
    optimize_for: OptimizeFor, opset: int | None, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(
        "BertConfig",
        token_types=True,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    task = load_task(checkpoint, "text-classification")
    result = export_onnx(checkpoint, tmp_path / "out", task=task, optimize_for=optimize_for, opset=opset)
    model = onnx.load(result.path)
    onnx.checker.check_model(model)
    imports = {entry.domain: entry.version for entry in model.opset_import}
    assert imports[""] == result.opset == (opset or OPSETS[optimize_for])
    expected = {""} if optimize_for == "portable" else {"", "com.microsoft"}
    assert {node.domain for node in model.graph.node} == imports.keys() == expected
    arrays = encode(task, [one.text for one in task.sample_examples()[:5]])
    got = open_engine(open_artifact(result.path)).run(arrays)["logits"]
    assert np.abs(got - TorchEngine(checkpoint, task).run(arrays)["logits"]).max() <= 1e-5


def test_hidden_states_of_the_encoder_agree_with_torch(minilm_folder: Path, tmp_path: Path) -> None:
    task = load_task(minilm_folder, "feature-extraction")
    result = export_onnx(minilm_folder, tmp_path, task=task)
    assert result.output_names == ("last_hidden_state",), "the pooler's output is dropped"
    names = {value.name for value in onnx.load(result.path).graph.initializer}
    assert not any("pooler" in name for name in names)
    arrays = encode(task, [one.text for one in task.sample_examples()[:5]])
    got, want = open_engine(open_artifact(result.path)).run(arrays), TorchEngine(minilm_folder, task).run(arrays)
    kept = arrays["attention_mask"] > 0
    assert np.abs(got["last_hidden_state"] - want["last_hidden_state"])[kept].max() <= 1e-5


@pytest.mark.parametrize("opset", [7, 17, 99])
def test_an_opset_that_cannot_be_written_is_refused(
    opset: int, classifier_folder: Path, classifier_task: Task, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"opset {opset}.*\n.*18 to"):
        export_onnx(classifier_folder, tmp_path, task=classifier_task, opset=opset)


def altered(source: Path, destination: Path, **weights: NDArray[Any] | None) -> Path:
    """A copy of a checkpoint with some weights replaced, or left out."""
    shutil.copytree(source, destination)
    tensors = load_file(destination / "model.safetensors")
    for name, array in weights.items():
        if array is None:
            del tensors[name.replace("__", ".")]
        else:
            tensors[name.replace("__", ".")] = array
    save_file(tensors, destination / "model.safetensors", metadata={"format": "pt"})
    return destination


def test_a_missing_weight_is_not_made_up(classifier_folder: Path, classifier_task: Task, tmp_path: Path) -> None:
    folder = altered(classifier_folder, tmp_path / "ck", classifier__weight=None)
    with pytest.raises(CheckpointError, match=r"lacks 1 weights .*classifier\.weight"):
        export_onnx(folder, tmp_path / "out", task=classifier_task)
    assert not (tmp_path / "out").exists()


def test_an_encoder_without_a_head_is_not_a_classifier(minilm_folder: Path, tmp_path: Path) -> None:
    task = load_task(minilm_folder, "text-classification")
    with pytest.raises(CheckpointError, match=r"classifier\.(bias|weight)"):
        export_onnx(minilm_folder, tmp_path, task=task)


def test_a_weight_of_another_shape_is_refused(classifier_folder: Path, classifier_task: Task, tmp_path: Path) -> None:
    folder = altered(classifier_folder, tmp_path / "ck", classifier__weight=np.zeros((5, 7), np.float32))
    with pytest.raises(CheckpointError, match=r"classifier\.weight has shape \[5, 7\].*\[5, 384\]"):
        export_onnx(folder, tmp_path / "out", task=classifier_task)


def test_truncated_weights_are_refused(classifier_folder: Path, classifier_task: Task, tmp_path: Path) -> None:
    folder = tmp_path / "ck"
    shutil.copytree(classifier_folder, folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1_000_000)
    with pytest.raises(CheckpointError, match=r"cannot be (read|loaded)"):
        export_onnx(folder, tmp_path / "out", task=classifier_task)


def test_pickled_weights_are_refused(classifier_folder: Path, classifier_task: Task, tmp_path: Path) -> None:
    folder = tmp_path / "ck"
    shutil.copytree(classifier_folder, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled"):
        export_onnx(folder, tmp_path / "out", task=classifier_task)


def test_code_in_a_checkpoint_is_never_run(classifier_folder: Path, classifier_task: Task, tmp_path: Path) -> None:
    folder = tmp_path / "ck"
    shutil.copytree(classifier_folder, folder)
    classes = {"AutoConfig": "code.C", "AutoModelForSequenceClassification": "code.M"}
    (folder / "config.json").write_text(json.dumps({"model_type": "homemade", "auto_map": classes}))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UnsupportedError, match="never run"):
        export_onnx(folder, tmp_path / "out", task=classifier_task)
    assert not (tmp_path / "ran").exists()


def test_a_place_that_cannot_be_written_is_named(
    classifier_folder: Path, classifier_task: Task, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        export_onnx(classifier_folder, tmp_path / "file" / "out", task=classifier_task)
