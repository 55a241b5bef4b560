"""Compute only the token that is read, where a head reads one token of the last layer.

A classifier of the BERT family looks at the first token's state. All others' states of the last layer are
computed and dropped: of its attention only one query is needed, and of its feed-forward part one row. A
`Gather` of one position commutes with everything that works on each token by itself, so it is moved up to
where tokens last meet: the keys and values of the last attention.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.passes.base import PassResult
from export.passes.match import constant, ints, new_constant, new_node

__all__ = ["NarrowLastLayer"]

_EACH_ELEMENT = ("Add", "Sum", "Sub", "Mul", "Div", "Gelu", "Erf", "Tanh", "Relu", "Sigmoid", "Softplus", "Sqrt")


class NarrowLastLayer:
    """Move the selection of one token above the layers that work on tokens one by one."""

    def __call__(self, model: ir.Model) -> PassResult:
        """Rewrite every selection that saves at least one matrix product."""
        changes = sum(_narrow(model.graph, node) for node in list(model.graph) if node.op_type == "Gather")
        return PassResult(name="narrow-last-layer", num_changes=changes)


def _narrow(graph: ir.Graph, gather: ir.Node) -> int:
    """Narrow what leads to `Gather(states [B, S, H], position, axis=1)`; the number of nodes narrowed."""
    states = gather.inputs[0]
    position = ints(gather.inputs[1])
    index = constant(gather.inputs[1])
    if states is None or position is None or index is None or index.ndim != 0 or position[0] < 0:
        return 0
    if gather.attributes.get_int("axis", 0) != 1 or not _is_states(states):
        return 0
    chain = _narrowable(graph, gather, states)
    if not any(node.op_type == "MatMul" for node in chain):
        return 0
    narrowed: dict[ir.Value, ir.Value] = {}
    for node in chain:
        inputs = [_narrow_input(graph, node, at, position[0], narrowed) for at in range(len(node.inputs))]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        output = new_node(
            graph, node, node.op_type, inputs, like=node.outputs[0], domain=node.domain, attributes=attributes
        )
        output.shape = _one_token(node.outputs[0])
        narrowed[node.outputs[0]] = output
    zero = new_constant(graph, "first_position", np.array(0, np.int64))
    gather.replace_input_with(0, narrowed[states])
    gather.replace_input_with(1, zero)
    return len(chain)


def _narrowable(graph: ir.Graph, gather: ir.Node, states: ir.Value) -> list[ir.Node]:
    """Nodes above `gather` of whose output it reads all that is read, in the graph's order."""
    readers: set[ir.Node] = {gather}
    wanted: set[ir.Value] = {states}
    chain: list[ir.Node] = []
    for node in reversed(graph):
        output = node.outputs[0]
        if output not in wanted or output.is_graph_output():
            continue
        if any(use.node not in readers for use in output.uses()) or not _works_on_tokens(node):
            continue
        readers.add(node)
        chain.append(node)
        wanted.update(value for at, value in enumerate(node.inputs) if value is not None and _is_read(node, at))
    return chain[::-1]


def _works_on_tokens(node: ir.Node) -> bool:
    """Whether row s of the node's output depends on row s of its narrowed inputs alone."""
    if not _is_states(node.outputs[0]) or len(node.outputs) != 1:
        return False
    match (node.domain, node.op_type):
        case ("com.microsoft", "MultiHeadAttention"):
            return len(node.inputs) <= 5 and all(_is_states(value) for value in node.inputs[:3])
        case ("", "MatMul"):
            weight = constant(node.inputs[1])
            return weight is not None and weight.ndim == 2
        case ("", "LayerNormalization"):
            return node.attributes.get_int("axis", -1) == -1
        case ("", operator) if operator in _EACH_ELEMENT:
            return all(_is_states(value) or _is_row(value) for value in node.inputs)
    return False


def _is_read(node: ir.Node, at: int) -> bool:
    """Whether an input is narrowed with its node: the states, not weights, and of an attention only the queries."""
    if node.op_type in ("MultiHeadAttention", "MatMul", "LayerNormalization"):
        return at == 0
    return _is_states(node.inputs[at])


def _narrow_input(
    graph: ir.Graph, node: ir.Node, at: int, position: int, narrowed: dict[ir.Value, ir.Value]
) -> ir.Value | None:
    value = node.inputs[at]
    if value is None or not _is_read(node, at):
        return value
    if value not in narrowed:
        bounds = [
            new_constant(graph, f"position_{number}", np.array([number], np.int64))
            for number in (position, position + 1, 1)
        ]
        sliced = new_node(graph, node, "Slice", [value, *bounds], like=value)
        sliced.shape = _one_token(value)
        narrowed[value] = sliced
    return narrowed[value]


def _is_states(value: ir.Value | None) -> bool:
    """Whether a value is [B, S, H] with a free length."""
    if value is None or value.shape is None or len(value.shape) != 3:
        return False
    return isinstance(value.shape[2], int) and not isinstance(value.shape[1], int)


def _is_row(value: ir.Value | None) -> bool:
    """Whether a value is a constant that is the same for every token."""
    array = constant(value)
    return array is not None and (array.ndim <= 1 or array.size == 1)


def _one_token(value: ir.Value) -> ir.Shape | None:
    return None if value.shape is None else ir.Shape([value.shape[0], 1, value.shape[2]])
