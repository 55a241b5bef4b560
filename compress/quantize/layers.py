"""Finding what can be quantized: layers with constant float32 weights, and why the others cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compress.quantize.config import LayerSelection
from compress.quantize.graph import constant_array, required
from compress.quantize.result import SkippedNode

__all__ = ["Embedding", "Linear", "find_layers"]

# From a layer's output to the graph's output, these only move or normalise scores.
_SCORE_OPERATORS = frozenset(
    {"Add", "Cast", "Flatten", "Identity", "LogSoftmax", "Reshape", "Sigmoid", "Slice", "Softmax", "Split"}
    | {"Squeeze", "Transpose", "Unsqueeze"}
)


@dataclass(frozen=True)
class Linear:
    """`y = x @ matrix (+ bias)`."""

    node: ir.Node
    weight: ir.Value
    matrix: NDArray[np.float32]
    """Of shape [K, N], however the weight is stored."""
    bias: ir.Value | None
    """The third input of a `Gemm`; the bias of a `MatMul` is an `Add` of its own."""
    scaled: ir.Value | None = None
    """A copy of the activation to read in its place; the rows of the matrix make up for its scale."""
    addend: ir.Value | None = None
    """A float part of the result, computed elsewhere; to be added after the bias."""

    @property
    def activation(self) -> ir.Value:
        """What is multiplied by the matrix, as the graph is now."""
        return self.scaled or required(self.node.inputs[0])


@dataclass(frozen=True)
class Embedding:
    """`y = table[ids]`."""

    node: ir.Node
    weight: ir.Value
    table: NDArray[np.float32]
    """Of shape [V, H]."""


def find_layers(graph: ir.Graph, select: LayerSelection) -> tuple[list[Linear | Embedding], list[SkippedNode]]:
    """Sort the graph's layers into those to quantize, in graph order, and those left in float with the reason.

    Args:
        graph: A graph in topological order. Not modified.
        select: Which kinds, sizes and names are wanted.
    """
    found: list[Linear | Embedding] = []
    skipped: list[SkippedNode] = []
    for node in _candidates(graph):
        layer = _read_layer(node) if node.graph is graph else "inside the branch of a control-flow node"
        reason = layer if isinstance(layer, str) else _reason_to_skip(layer, select)
        if reason is None and not isinstance(layer, str):
            found.append(layer)
        else:
            skipped.append(SkippedNode(node.name or "", node.op_type, reason or ""))
    return found, skipped


def _candidates(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph.all_nodes():
        if node.domain != "":
            if any(_is_matrix(value) for value in node.inputs):
                yield node
        elif node.op_type in {"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN"} or (
            node.op_type == "Gather" and _is_matrix(node.inputs[0])
        ):
            yield node


def _is_matrix(value: ir.Value | None) -> bool:
    array = None if value is None else value.const_value
    return array is not None and len(array.shape) == 2 and array.dtype.is_floating_point()


def _read_layer(node: ir.Node) -> Linear | Embedding | str:
    """Return the layer, or why the node is none."""
    if node.domain == "" and node.op_type == "Conv":
        return "a convolution becomes integers by static-int8 alone"
    if node.domain != "" or node.op_type not in {"MatMul", "Gemm", "Gather"}:
        return f"no integer form of {node.op_type} is written by this version"
    position = 0 if node.op_type == "Gather" else 1
    weight = required(node.inputs[position])
    array = constant_array(weight)
    if array is None:
        return "both operands are computed"
    if array.dtype != np.float32:
        return f"its weight is {array.dtype}, not float32"
    if array.ndim != 2:
        return f"its weight has {array.ndim} dimensions, not 2"
    if not np.isfinite(array).all():
        return "its weight is not finite"
    weight_array = np.ascontiguousarray(array, dtype=np.float32)
    if node.op_type == "Gather":
        if node.attributes.get_int("axis", 0) != 0:
            return "it gathers columns, not rows"
        return Embedding(node, weight, weight_array)
    return _read_linear(node, weight, weight_array)


def _read_linear(node: ir.Node, weight: ir.Value, array: NDArray[np.float32]) -> Linear | str:
    if node.op_type == "MatMul":
        return Linear(node, weight, array, None)
    if node.attributes.get_float("alpha", 1.0) != 1 or node.attributes.get_float("beta", 1.0) != 1:
        return "it scales its product (alpha or beta is not 1)"
    if node.attributes.get_int("transA", 0):
        return "it transposes its activation"
    weight_KN = np.ascontiguousarray(array.T) if node.attributes.get_int("transB", 0) else array
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return Linear(node, weight, weight_KN, bias)


def _reason_to_skip(layer: Linear | Embedding, select: LayerSelection) -> str | None:
    array = layer.matrix if isinstance(layer, Linear) else layer.table
    for pattern in select.exclude:
        if fnmatchcase(layer.node.name or "", pattern) or fnmatchcase(layer.weight.name or "", pattern):
            return f"excluded by {pattern!r}"
    if array.size < select.min_weight_elements:
        return f"its weight has {array.size} elements, fewer than min_weight_elements={select.min_weight_elements}"
    if isinstance(layer, Embedding):
        return None if select.embeddings else "embeddings are not selected"
    if not select.linear:
        return "linear layers are not selected"
    if not select.head and array.shape[1] < array.shape[0] and _writes_scores(layer.node.outputs[0]):
        return "it is the head, which stays in float unless head is selected"
    return None


def _writes_scores(value: ir.Value) -> bool:
    """Whether `value` reaches a graph output through nothing but moves, a bias and a softmax."""
    if value.is_graph_output():
        return True
    consumers = [use.node for use in value.uses()]
    return bool(consumers) and all(
        node.op_type in _SCORE_OPERATORS and any(_writes_scores(output) for output in node.outputs)
        for node in consumers
    )
