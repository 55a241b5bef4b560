from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.sizes.tensors import TensorSizes, measure_tensor_sizes
from edgesmith.artifact import Artifact, write_artifact
from edgesmith.errors import ArtifactError, UsageError
from tests.bench.conftest import News


def _artifact(folder: Path, *, is_external: bool = False) -> Artifact:
    """Quantized embeddings of 400 × 16, a float matrix of 16 × 64 and a vector of 64."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(rng.integers(-9, 9, (400, 16)).astype(np.int8), "words"),
        numpy_helper.from_array(np.array(0.1, dtype=np.float32), "step"),
        numpy_helper.from_array(np.array(0, dtype=np.int8), "zero"),
        numpy_helper.from_array(rng.normal(size=(16, 64)).astype(np.float32), "matrix"),
        helper.make_tensor("vector", TensorProto.FLOAT, [64], rng.normal(size=64).tolist()),
        numpy_helper.from_array(np.arange(4), "axes"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["words", "step", "zero"], ["table"]),
        helper.make_node("Gather", ["table", "ids"], ["found"]),
        helper.make_node("MatMul", ["found", "matrix"], ["product"]),
        helper.make_node("Add", ["product", "vector"], ["out"]),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 64])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [ids], [out], tensors), opset_imports=[helper.make_opsetid("", 18)]
    )
    extra = (
        {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 1000} if is_external else {}
    )
    onnx.save(model, folder / "model.onnx", **extra)
    (folder / "tokenizer.json").write_text("{}" * 50)
    (folder / "labels.txt").write_text("a\nb\n")
    (folder / "golden").mkdir()
    (folder / "golden" / "0.onnx").write_bytes(b"x" * 70)
    return write_artifact(folder, kind="onnx", step="test")


@pytest.mark.parametrize("is_external", [False, True], ids=["inside", "external"])
def test_every_byte_is_counted_once_and_under_its_kind(tmp_path: Path, is_external: bool) -> None:
    artifact = _artifact(tmp_path / "a", is_external=is_external)
    sizes = measure_tensor_sizes(artifact)
    assert sizes.total_bytes == artifact.size_bytes
    assert sizes.kinds["embeddings, int8"] == 400 * 16
    assert sizes.kinds["fp32 weights"] == 4 * (16 * 64 + 64)
    assert sizes.kinds["scales and zero points"] == 4 + 1
    assert sizes.kinds["constants"] == 32
    assert sizes.kinds["tokenizer"] == 100
    assert sizes.kinds["golden vectors"] == 70
    assert sizes.kinds["other files"] == 4
    assert [(one.name, one.shape) for one in sizes.largest] == [("words", (400, 16)), ("matrix", (16, 64))]


def test_the_sum_is_right_for_a_real_model(news: News) -> None:
    sizes = measure_tensor_sizes(news.exact)
    assert sizes.total_bytes == news.exact.size_bytes
    assert sizes.kinds["embeddings, fp32"] == 30522 * 4 * len(news.task.labels)


def test_saved_sizes_are_read_back(tmp_path: Path) -> None:
    sizes = measure_tensor_sizes(_artifact(tmp_path / "a"))
    sizes.save(tmp_path)
    assert TensorSizes.load(tmp_path) == sizes
    assert list(TensorSizes.load(tmp_path).kinds) == list(sizes.kinds)


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value["kinds"].update(tokenizer=1),
        lambda value: value.update(kinds={"a": -1, "b": value["total_bytes"] + 1}),
        lambda value: value.pop("largest"),
        lambda value: value.update(kinds=[1, 2]),
        lambda value: value["largest"][0].update(shape=3),
    ],
)
def test_damaged_sizes_are_refused(tmp_path: Path, damage: object) -> None:
    measure_tensor_sizes(_artifact(tmp_path / "a")).save(tmp_path)
    path = tmp_path / "tensor_sizes.json"
    value = json.loads(path.read_text())
    damage(value)  # type: ignore[operator]
    path.write_text(json.dumps(value))
    with pytest.raises(ArtifactError, match=r"tensor_sizes\.json: is damaged"):
        TensorSizes.load(tmp_path)


def test_missing_sizes_and_damaged_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no tensor_sizes\.json"):
        TensorSizes.load(tmp_path)
    artifact = _artifact(tmp_path / "a")
    path = tmp_path / "a" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ArtifactError, match=r"model\.onnx: is no ONNX model, or is damaged"):
        measure_tensor_sizes(artifact)
