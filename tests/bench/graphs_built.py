"""Graphs of one heavy operator each, with the number of multiplications that they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgesmith.artifact import Artifact, write_artifact

FLOAT = TensorProto.FLOAT
_OUTPUTS = {"MatMulInteger": TensorProto.INT32, "ConvInteger": TensorProto.INT32} | dict.fromkeys(
    ("QLinearMatMul", "QGemm", "QLinearConv"), TensorProto.UINT8
)
RNG = np.random.default_rng(0)


def floats(*shape: int) -> NDArray[np.float32]:
    return RNG.normal(size=shape).astype(np.float32)


def int8(*shape: int) -> NDArray[np.int8]:
    return RNG.integers(-100, 100, shape).astype(np.int8)


def uint8(*shape: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 200, shape).astype(np.uint8)


SCALE, ZERO_U8, ZERO_I8 = np.float32(0.1), np.uint8(10), np.int8(0)


@dataclass(frozen=True)
class Case:
    """One operator: its inputs in order, which of them are fixed, and what it takes."""

    operator: str
    inputs: Mapping[str, NDArray[Any] | np.generic | None]
    fixed: Sequence[str]
    fp32_macs: int = 0
    int8_macs: int = 0
    domain: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1

    @property
    def weight_bytes(self) -> int:
        return sum(np.asarray(self.inputs[name]).nbytes for name in self.fixed)


def write_case(case: Case, folder: Path) -> tuple[Artifact, dict[str, NDArray[Any]]]:
    """An artifact with the operator alone, and a request for it."""
    given = {name: np.asarray(array) for name, array in case.inputs.items() if array is not None}
    free = {name: array for name, array in given.items() if name not in case.fixed}
    outputs = [f"out{index}" for index in range(case.outputs)]
    node = helper.make_node(
        case.operator,
        [name if case.inputs[name] is not None else "" for name in case.inputs],
        outputs,
        domain=case.domain,
        **case.attributes,
    )
    graph = helper.make_graph(
        [node],
        "case",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in free.items()
        ],
        [helper.make_tensor_value_info(name, _OUTPUTS.get(case.operator, FLOAT), None) for name in outputs],
        [numpy_helper.from_array(given[name], name) for name in case.fixed],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    )
    return write_artifact(folder, kind="onnx", step="test"), free


MS = "com.microsoft"
CASES = {
    "MatMul": Case("MatMul", {"x": floats(2, 5, 12), "w": floats(12, 7)}, ["w"], fp32_macs=2 * 5 * 12 * 7),
    "MatMul of two activations": Case(
        "MatMul", {"x": floats(2, 3, 5, 6), "y": floats(2, 3, 6, 9)}, [], fp32_macs=2 * 3 * 5 * 6 * 9
    ),
    "MatMul by a vector": Case("MatMul", {"x": floats(5, 12), "w": floats(12)}, ["w"], fp32_macs=60),
    "Gemm, both transposed": Case(
        "Gemm", {"x": floats(12, 5), "w": floats(7, 12), "b": floats(7)}, ["w", "b"], fp32_macs=5 * 12 * 7,
        attributes={"transA": 1, "transB": 1},
    ),
    "FusedMatMul, transposed": Case(
        "FusedMatMul", {"x": floats(2, 12, 5), "y": floats(2, 7, 12)}, [], fp32_macs=2 * 5 * 12 * 7, domain=MS,
        attributes={"transA": 1, "transB": 1, "alpha": 0.5},
    ),
    "MatMulInteger": Case(
        "MatMulInteger", {"x": uint8(5, 12), "w": int8(12, 7), "xz": ZERO_U8, "wz": ZERO_I8}, ["w", "xz", "wz"],
        int8_macs=5 * 12 * 7,
    ),
    "DynamicQuantizeMatMul": Case(
        "DynamicQuantizeMatMul", {"x": floats(5, 12), "w": int8(12, 7), "s": SCALE, "z": ZERO_I8}, ["w", "s", "z"],
        int8_macs=5 * 12 * 7, domain=MS,
    ),
    "QLinearMatMul": Case(
        "QLinearMatMul",
        {"x": uint8(5, 12), "xs": SCALE, "xz": ZERO_U8, "w": int8(12, 7), "ws": SCALE, "wz": ZERO_I8,
         "ys": np.float32(50), "yz": ZERO_U8},
        ["xs", "xz", "w", "ws", "wz", "ys", "yz"], int8_macs=5 * 12 * 7,
    ),
    "QGemm": Case(
        "QGemm",
        {"x": uint8(5, 12), "xs": SCALE, "xz": ZERO_U8, "w": int8(7, 12), "ws": SCALE, "wz": ZERO_I8, "b": None,
         "ys": np.float32(50), "yz": ZERO_U8},
        ["xs", "xz", "w", "ws", "wz", "ys", "yz"], int8_macs=5 * 12 * 7, domain=MS, attributes={"transB": 1},
    ),
    "MatMulNBits": Case(
        "MatMulNBits", {"x": floats(5, 64), "w": uint8(7, 2, 16), "s": floats(7, 2)}, ["w", "s"], int8_macs=5 * 64 * 7,
        domain=MS, attributes={"K": 64, "N": 7, "bits": 4, "block_size": 32},
    ),
    "Conv in groups": Case(
        "Conv", {"x": floats(1, 8, 9, 9), "w": floats(4, 4, 3, 3)}, ["w"], fp32_macs=4 * 7 * 7 * 4 * 9,
        attributes={"group": 2},
    ),
    "ConvTranspose": Case(
        "ConvTranspose", {"x": floats(1, 8, 5, 5), "w": floats(8, 3, 2, 2)}, ["w"], fp32_macs=8 * 25 * 3 * 4,
    ),
    "ConvInteger": Case(
        "ConvInteger", {"x": uint8(1, 8, 9, 9), "w": int8(4, 8, 3, 3), "xz": ZERO_U8}, ["w", "xz"],
        int8_macs=4 * 49 * 8 * 9,
    ),
    "QLinearConv": Case(
        "QLinearConv",
        {"x": uint8(1, 8, 9, 9), "xs": SCALE, "xz": ZERO_U8, "w": int8(4, 8, 3, 3), "ws": SCALE, "wz": ZERO_I8,
         "ys": np.float32(50), "yz": ZERO_U8},
        ["xs", "xz", "w", "ws", "wz", "ys", "yz"], int8_macs=4 * 49 * 8 * 9,
    ),
    "Attention with its projection": Case(
        "Attention", {"x": floats(2, 5, 16), "w": floats(16, 48), "b": floats(48)}, ["w", "b"], domain=MS,
        fp32_macs=2 * 5 * 16 * 48 + 2 * 2 * 5 * 5 * 16, attributes={"num_heads": 4},
    ),
    "MultiHeadAttention": Case(
        "MultiHeadAttention", {"q": floats(2, 5, 16), "k": floats(2, 9, 16), "v": floats(2, 9, 16)}, [], domain=MS,
        fp32_macs=2 * 2 * 5 * 9 * 16, attributes={"num_heads": 4},
    ),
    "MultiHeadAttention with a past": Case(
        "MultiHeadAttention",
        {"q": floats(2, 1, 16), "k": floats(2, 1, 16), "v": floats(2, 1, 16), "b": None, "m": None, "p": None,
         "pk": floats(2, 4, 9, 4), "pv": floats(2, 4, 9, 4)},
        [], domain=MS, fp32_macs=2 * 2 * 1 * 10 * 16, attributes={"num_heads": 4}, outputs=3,
    ),
    "QAttention": Case(
        "QAttention",
        {"x": uint8(2, 5, 16), "w": int8(16, 48), "b": floats(48), "xs": SCALE, "ws": SCALE, "m": None, "xz": ZERO_U8,
         "wz": ZERO_I8},
        ["w", "b", "xs", "ws", "xz", "wz"], domain=MS, int8_macs=2 * 5 * 16 * 48, fp32_macs=2 * 2 * 5 * 5 * 16,
        attributes={"num_heads": 4},
    ),
    "LSTM": Case(
        "LSTM", {"x": floats(6, 2, 8), "w": floats(1, 20, 8), "r": floats(1, 20, 5)}, ["w", "r"],
        fp32_macs=6 * 2 * 20 * (8 + 5), attributes={"hidden_size": 5},
    ),
}  # fmt: skip
