from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.sizes.model_parts import part_of_gguf
from bench.sizes.tensors import TensorSizes, measure_tensor_sizes
from edgesmith.artifact import Artifact, write_artifact
from edgesmith.errors import ArtifactError, UsageError
from tests.bench.conftest import News
from tests.bench.gguf_built import build_gguf


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


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_gguf_file_is_told_apart_by_part_and_type(tmp_path: Path, is_tied: bool) -> None:
    artifact = build_gguf(tmp_path, tie_word_embeddings=is_tied)
    sizes = measure_tensor_sizes(artifact)
    assert sizes.total_bytes == artifact.size_bytes
    assert sizes.kinds["embeddings, F16"] == 2 * 1000 * 64
    assert sizes.kinds.get("output layer, F16", 0) == (0 if is_tied else 2 * 1000 * 64)
    assert sizes.kinds["attention, F16"] == 3 * 2 * (2 * 64 * 64 + 2 * 64 * 32)
    assert sizes.kinds["feed-forward, F16"] == 3 * 2 * 3 * 64 * 128
    assert sizes.kinds["norms, F32"] == 4 * 64 * 7
    assert "other weights, F16" not in sizes.kinds
    assert [kind.split(",")[0] for kind in sizes.kinds if kind != "output layer, F16"] == [
        "embeddings",
        "attention",
        "feed-forward",
        "norms",
        "metadata and vocabulary",
    ]
    assert (sizes.largest[0].name, sizes.largest[0].shape) == ("token_embd.weight" if is_tied else ANY, (1000, 64))


def test_packed_matrices_of_a_language_model_are_named_by_their_bits(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    settings = {"block_size": 32, "domain": "com.microsoft", "K": 32, "N": 64}
    tensors, nodes, state = [], [], "x"
    for name, bits in (("model.layers.0.attn.q_proj.MatMul.weight", 4), ("model.layers.0.mlp.up_proj.weight", 8)):
        tensors.append(numpy_helper.from_array(np.zeros((64, 1, 4 * bits), np.uint8), name))
        tensors.append(numpy_helper.from_array(np.ones((64, 1), np.float32), f"{name}_s"))
        nodes.append(helper.make_node("MatMulNBits", [state, name, f"{name}_s"], [f"{name}_y"], bits=bits, **settings))
        state = f"{name}_y"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])
    y = helper.make_tensor_value_info(state, TensorProto.FLOAT, ["n", 64])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", [x], [y], tensors), opset_imports=opsets), folder / "model.onnx"
    )
    sizes = measure_tensor_sizes(write_artifact(folder, kind="genai", step="test"))
    assert sizes.kinds["attention, int4"] == 64 * 16
    assert sizes.kinds["feed-forward, int8"] == 64 * 32
    assert sizes.kinds["scales and zero points"] == 2 * 64 * 4
    assert sizes.total_bytes == (folder / "model.onnx").stat().st_size


def test_a_table_that_also_multiplies_is_no_table_of_embeddings(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "table"], ["y"]),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])
    table = numpy_helper.from_array(np.zeros((64, 64), np.float32), "table")
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [ids], [y], [table])), folder / "model.onnx")
    assert measure_tensor_sizes(write_artifact(folder, kind="onnx", step="test")).kinds["fp32 weights"] == 64 * 64 * 4


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("token_embd.weight", "embeddings"),
        ("position_embd.weight", "embeddings"),
        ("token_embd_norm.weight", "norms"),
        ("output_norm.weight", "norms"),
        ("output.weight", "output layer"),
        ("blk.3.attn_norm.weight", "norms"),
        ("blk.3.attn_q_norm.weight", "norms"),
        ("blk.3.attn_output.weight", "attention"),
        ("blk.3.attn_qkv.bias", "attention"),
        ("blk.3.ffn_gate_exps.weight", "feed-forward"),
        ("blk.3.ffn_gate_inp.weight", "feed-forward"),
        ("rope_freqs.weight", "attention"),
        ("strange.weight", "other weights"),
    ],
)
def test_parts_follow_from_the_names_of_the_format(name: str, part: str) -> None:
    assert part_of_gguf(name) == part
