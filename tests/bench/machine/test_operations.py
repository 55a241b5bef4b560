"""Operations are counted as an analysis on paper counts them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.machine.operations import Operations, count_operations, time_operators
from bench.scenarios.inputs import encode_inputs
from compress.quantize.config import DynamicInt8Config
from compress.quantize.stage import quantize_onnx
from edgesmith.artifact import open_artifact, write_artifact
from edgesmith.errors import UnsupportedError
from tests.bench.conftest import News
from tests.bench.graphs_built import CASES, write_case
from tests.compress.minilm_graph import minilm_graph


@pytest.mark.parametrize("name", CASES)
def test_each_heavy_operator_is_counted_exactly(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    artifact, request = write_case(case, tmp_path)
    [counted] = count_operations(artifact, [request])
    assert (counted.fp32_macs, counted.int8_macs) == (case.fp32_macs, case.int8_macs)
    assert counted.weight_bytes == case.weight_bytes
    assert counted.not_counted == ()
    assert counted.io_bytes > sum(array.nbytes for array in request.values())


def test_every_request_is_counted_by_itself(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "rows",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 7])],
        [numpy_helper.from_array(np.ones((12, 7), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    artifact = write_artifact(tmp_path, kind="onnx", step="test")
    counted = count_operations(artifact, [{"x": np.ones((rows, 12), np.float32)} for rows in (1, 30, 4)])
    assert [one.fp32_macs for one in counted] == [84, 30 * 84, 4 * 84]
    assert [one.io_bytes for one in counted] == [4 * 19 * rows for rows in (1, 30, 4)]


def test_only_the_rows_looked_up_in_a_table_are_moved(news: News) -> None:
    inputs = encode_inputs(news.task, news.examples, num_inputs=1, length=64)
    [counted] = count_operations(news.exact, inputs.arrays)
    num_labels = len({example.target for example in news.examples})
    assert 64 * num_labels * 4 <= counted.weight_bytes < 64 * num_labels * 4 + 100
    assert counted.fp32_macs == counted.int8_macs == 0


def test_an_operator_that_cannot_be_counted_is_named(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Einsum", ["x", "x"], ["y"], equation="ij,kj->ik")],
        "einsum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    artifact = write_artifact(tmp_path, kind="onnx", step="test")
    [counted] = count_operations(artifact, [{"x": np.ones((4, 6), np.float32)}])
    assert counted.not_counted == ("Einsum",)


def test_times_of_operators_add_up_and_come_largest_first(news: News) -> None:
    inputs = encode_inputs(news.task, news.examples[:5])
    times = time_operators(news.exact, inputs.arrays, num_runs=4)
    assert {one.operator for one in times} >= {"Gather", "Mul", "ReduceSum"}
    assert sum(one.share for one in times) == pytest.approx(1)
    assert [one.share for one in times] == sorted((one.share for one in times), reverse=True)
    assert {one.num_nodes for one in times} == {1}


def test_minilm_is_counted_as_on_paper_in_floats_and_in_integers(minilm_folder: Path, tmp_path: Path) -> None:
    layers, width, inner, batch, length = 6, 384, 1536, 2, 50
    dense = layers * batch * length * (4 * width * width + 2 * width * inner)
    attention = layers * batch * 2 * length * length * width
    ids = np.random.default_rng(0).integers(1000, 20_000, (batch, length))
    request = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    (tmp_path / "fp32").mkdir()
    (tmp_path / "int8").mkdir()
    onnx.save(minilm_graph(minilm_folder), tmp_path / "fp32" / "model.onnx")
    quantize_onnx(tmp_path / "fp32" / "model.onnx", tmp_path / "int8" / "model.onnx", DynamicInt8Config())
    [floats] = count_operations(write_artifact(tmp_path / "fp32", kind="onnx", step="test"), [request])
    [integers] = count_operations(write_artifact(tmp_path / "int8", kind="onnx", step="test"), [request])
    assert (floats.fp32_macs, floats.int8_macs) == (dense + attention, 0)
    assert (integers.fp32_macs, integers.int8_macs) == (attention, dense)
    weights = layers * (4 * width * width + 2 * width * inner)
    rows = batch * length * width * 4
    assert floats.weight_bytes == pytest.approx(4 * weights + rows, rel=0.03)  # the rest: biases, positions
    assert integers.weight_bytes == pytest.approx(weights, rel=0.05)


def test_what_has_no_engine_is_not_counted(minilm_folder: Path) -> None:
    with pytest.raises(UnsupportedError):
        count_operations(open_artifact(minilm_folder), [])


def test_counts_read_back() -> None:
    counted = Operations(fp32_macs=1, int8_macs=2, weight_bytes=3, io_bytes=4, not_counted=("Einsum",))
    assert Operations.from_json(counted.to_json()) == counted
    assert counted.num_bytes == 7
