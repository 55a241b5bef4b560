"""Convolutions in integers: which tensors become codes, and that nothing but rounding changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from compress.quantize.config import DynamicInt8Config, LayerSelection, StaticInt8Config
from compress.quantize.result import NothingQuantizedError
from compress.quantize.stage import quantize_onnx

RNG = np.random.default_rng(0)
SHAPE = (1, 4, 8, 8)


def save_block(path: Path, *, has_bias: bool = True, faint: float = 1.0) -> Path:
    """x → conv, ReLU → max pool → conv, ReLU → conv + (pooled) → ReLU → mean: a residual block, channels 4 → 16.

    Weights of each convolution's channel 3 are multiplied by `faint`.
    """
    inputs: list[ir.Value] = [ir.val("x", dtype=ir.DataType.FLOAT, shape=["batch", *SHAPE[1:]])]
    nodes: list[ir.Node] = []
    weights: list[ir.Value] = []

    def add(operator: str, values: list[ir.Value], **attributes: object) -> ir.Value:
        nodes.append(ir.node(operator, values, attributes or None, name=f"{operator}_{len(nodes)}"))  # type: ignore[arg-type]
        nodes[-1].outputs[0].name = f"t{len(nodes)}"
        return nodes[-1].outputs[0]

    def conv(value: ir.Value, num_in: int) -> ir.Value:
        arrays = [RNG.standard_normal((16, num_in, 3, 3), np.float32) / 6]
        arrays[0][3] *= faint
        arrays += [RNG.standard_normal(16, np.float32)] if has_bias else []
        if faint != 1 and has_bias:
            arrays[1][3] = 1.5
        made = []
        for array in arrays:
            made.append(ir.Value(name=f"w{len(weights)}", const_value=ir.tensor(array)))
            weights.append(made[-1])
        return add("Conv", [value, *made], pads=[1, 1, 1, 1])

    stem = add("Relu", [conv(inputs[0], 4)])
    pooled = add("MaxPool", [stem], kernel_shape=[2, 2], strides=[2, 2])
    inner = conv(add("Relu", [conv(pooled, 16)]), 16)
    total = add("Relu", [add("Add", [inner, pooled])])
    result = add("GlobalAveragePool", [total])
    result.shape, result.type = ir.Shape(["batch", 16, 1, 1]), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(inputs, [result], nodes=nodes, initializers=weights, opset_imports={"": 20}, name="block")
    ir.save(ir.Model(graph, ir_version=10), path)
    return path


def feeds(num: int = 16) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal(SHAPE).astype(np.float32)} for _ in range(num)]


def run(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in feeds()])


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_residual_block_is_integers_from_end_to_end(tmp_path: Path, *, has_bias: bool) -> None:
    source = save_block(tmp_path / "float.onnx", has_bias=has_bias)
    config = StaticInt8Config(select=LayerSelection(min_weight_elements=64))
    result = quantize_onnx(source, tmp_path / "int8.onnx", config, feeds())
    assert [node.op_type for node in result.quantized] == ["Conv"] * 3
    wanted, found = run(source), run(tmp_path / "int8.onnx")
    assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(wanted)
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "run.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "int8.onnx"), settings, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in ir.load(tmp_path / "run.onnx").graph.all_nodes())
    assert operators["QLinearConv"] == 3
    assert operators["QLinearAdd"] == 1
    assert not operators.keys() & {"Conv", "FusedConv", "Relu", "Add"}


@pytest.mark.parametrize("faint", [1e-6, 1e-10, 1e-36, 0.0])
def test_the_bias_of_a_channel_of_faint_weights_is_kept(faint: float, tmp_path: Path) -> None:
    # As batch norm leaves a dead channel: 1.5 is more than 2³¹ steps of weights of 10⁻⁶ and less.
    source = save_block(tmp_path / "float.onnx", faint=faint)
    config = StaticInt8Config(select=LayerSelection(min_weight_elements=64))
    quantize_onnx(source, tmp_path / "int8.onnx", config, feeds())
    wanted, found = run(source), run(tmp_path / "int8.onnx")
    assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(wanted)
    initializers = ir.load(tmp_path / "int8.onnx").graph.initializers
    [codes_O, step_O] = [
        value.const_value.numpy() for name, value in initializers.items()
        if value.const_value is not None and name.startswith("w0_bias")
    ]  # fmt: skip
    assert float(codes_O[3]) * float(step_O[3]) == pytest.approx(1.5, rel=1e-6)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    source = save_block(tmp_path / "float.onnx")
    for name in ("a", "b"):
        quantize_onnx(source, tmp_path / name, StaticInt8Config(), feeds())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_is_left_in_float_is_named_with_its_reason(tmp_path: Path) -> None:
    source = save_block(tmp_path / "float.onnx")
    select = LayerSelection(exclude=("Conv_3",))
    result = quantize_onnx(source, tmp_path / "int8.onnx", StaticInt8Config(select=select), feeds())
    reasons = {node.name: node.reason for node in result.skipped}
    assert reasons == {
        "Conv_0": "its weight has 576 elements, fewer than min_weight_elements=1024",
        "Conv_3": "excluded by 'Conv_3'",
    }
    assert len(result.quantized) == 1
    with pytest.raises(NothingQuantizedError, match="3 × a convolution becomes integers by static-int8 alone"):
        quantize_onnx(source, tmp_path / "dynamic.onnx", DynamicInt8Config())
