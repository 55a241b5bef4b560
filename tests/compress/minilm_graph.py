"""MiniLM as an ONNX graph, written from its safetensors weights with standard operators only: no torch, no tracing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

NUM_LAYERS, NUM_HEADS, WIDTH = 6, 12, 384


class GraphWriter:
    """Collects nodes and constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, array: NDArray[np.generic]) -> str:
        self.constants.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def node(self, op_type: str, *inputs: str, name: str, domain: str = "", **attributes: object) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}:0"], name=name, domain=domain, **attributes))
        return f"{name}:0"

    def model(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "graph", inputs, outputs, self.constants)
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        onnx.checker.check_model(model)
        return model


def minilm_graph(folder: Path) -> onnx.ModelProto:
    """Return the encoder of a BERT checkpoint: token ids to hidden states."""
    weights = load_file(folder / "model.safetensors")
    weights = {name.removeprefix("bert."): array for name, array in weights.items()}
    write = GraphWriter()

    def linear(x: str, name: str) -> str:
        w = write.constant(f"{name}.weight", weights[f"{name}.weight"].T)
        b = write.constant(f"{name}.bias", weights[f"{name}.bias"])
        return write.node("Add", write.node("MatMul", x, w, name=f"{name}/MatMul"), b, name=f"{name}/Add")

    def normalize(x: str, name: str) -> str:
        gamma = write.constant(f"{name}.weight", weights[f"{name}.weight"])
        beta = write.constant(f"{name}.bias", weights[f"{name}.bias"])
        return write.node("LayerNormalization", x, gamma, beta, name=name, axis=-1, epsilon=1e-12)

    def table(name: str, ids: str) -> str:
        rows = write.constant(f"embeddings.{name}.weight", weights[f"embeddings.{name}.weight"])
        return write.node("Gather", rows, ids, name=f"embeddings.{name}/Gather")

    zero, one = write.constant("zero", np.array(0)), write.constant("one", np.array(1))
    length = write.node("Gather", write.node("Shape", "input_ids", name="shape"), one, name="length")
    positions = write.node("Range", zero, length, one, name="positions")
    x = write.node(
        "Add", table("word_embeddings", "input_ids"), table("token_type_embeddings", "token_type_ids"), name="a0"
    )
    x = normalize(write.node("Add", x, table("position_embeddings", positions), name="a1"), "embeddings.LayerNorm")
    padding = write.node(
        "Sub", write.node("Cast", "attention_mask", name="mask", to=1), write.constant("f1", np.float32(1)), name="pad"
    )
    bias = write.node("Mul", padding, write.constant("large", np.float32(1e9)), name="bias")
    bias = write.node("Unsqueeze", bias, write.constant("axes", np.array([1, 2])), name="bias4")
    split = write.constant("split", np.array([0, 0, NUM_HEADS, WIDTH // NUM_HEADS]))
    join = write.constant("join", np.array([0, 0, WIDTH]))
    scale = write.constant("scale", np.float32((WIDTH // NUM_HEADS) ** -0.5))
    for index in range(NUM_LAYERS):
        layer = f"encoder.layer.{index}"
        heads = {}
        for part, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
            name = f"{layer}.attention.self.{part}"
            y = write.node("Reshape", linear(x, name), split, name=f"{name}/Reshape")
            heads[part] = write.node("Transpose", y, name=f"{name}/Transpose", perm=order)
        name = f"{layer}.attention.self"
        scores = write.node("MatMul", heads["query"], heads["key"], name=f"{name}/scores")
        scores = write.node("Add", write.node("Mul", scores, scale, name=f"{name}/Mul"), bias, name=f"{name}/mask")
        scores = write.node("Softmax", scores, name=f"{name}/Softmax", axis=-1)
        y = write.node("MatMul", scores, heads["value"], name=f"{name}/values")
        y = write.node("Transpose", y, name=f"{name}/Transpose", perm=[0, 2, 1, 3])
        y = linear(write.node("Reshape", y, join, name=f"{name}/Reshape"), f"{layer}.attention.output.dense")
        x = normalize(write.node("Add", y, x, name=f"{layer}/residual"), f"{layer}.attention.output.LayerNorm")
        y = write.node("Gelu", linear(x, f"{layer}.intermediate.dense"), name=f"{layer}/Gelu")
        y = write.node("Add", linear(y, f"{layer}.output.dense"), x, name=f"{layer}/residual2")
        x = normalize(y, f"{layer}.output.LayerNorm")
    write.node("Identity", x, name="last_hidden_state")
    write.nodes[-1].output[0] = "last_hidden_state"
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names]
    outputs = [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", WIDTH])]
    return write.model(inputs, outputs)
