"""Small questions that graph passes ask of values, and the edits that they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = [
    "axis_name",
    "constant",
    "float_min",
    "ints",
    "new_constant",
    "new_node",
    "other_input",
    "perm",
    "producer",
    "scalar",
    "sole_user",
]


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that computes `value`, if it is one of these standard operators."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" and node.op_type in op_types else None


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The array that `value` always is, or None if it is computed."""
    if value is None:
        return None
    if value.const_value is not None and value.producer() is None:
        return value.const_value.numpy()
    node = producer(value, "Constant")
    if node is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The one number that `value` always is, or None."""
    array = constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def ints(value: ir.Value | None) -> list[int] | None:
    """The integers that `value` always is, or None."""
    array = constant(value)
    return None if array is None or array.dtype.kind != "i" else [int(item) for item in array.reshape(-1)]


def perm(node: ir.Node | None) -> tuple[int, ...] | None:
    """The permutation of a Transpose node, or None if it is something else."""
    if node is None or node.op_type != "Transpose" or "perm" not in node.attributes:
        return None
    return tuple(node.attributes["perm"].as_ints())


def sole_user(value: ir.Value) -> ir.Node | None:
    """The only node that reads `value`, or None if there are several or it leaves the graph."""
    readers = [use.node for use in value.uses()]
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The input of a two-armed node that is not `value`."""
    first, second = node.inputs
    return second if first is value else first


def axis_name(value: ir.Value | None, axis: int) -> str | int | None:
    """Length of an axis as a number or as the name of a free one; None if unknown."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else dim.value


def new_constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """Add an initializer, or find the equal one that an earlier call added under this name."""
    known = constant(graph.initializers.get(name))
    if known is not None and known.dtype == array.dtype and np.array_equal(known, array):
        return graph.initializers[name]
    while name in graph.initializers:
        name += "_"
    value = ir.Value(
        name=name,
        const_value=ir.tensor(array, name=name),
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
    )
    graph.register_initializer(value)
    return value


def new_node(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    *,
    like: ir.Value,
    domain: str = "",
    attributes: dict[str, Any] | None = None,
) -> ir.Value:
    """Insert a node of one output, which has the shape and type of `like`, and return that output."""
    node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=1)
    output = node.outputs[0]
    output.shape, output.type = like.shape, like.type
    graph.insert_before(before, node)
    return output


def float_min() -> float:
    """The lowest float32, which stands for minus infinity in attention masks."""
    return float(np.finfo(np.float32).min)
