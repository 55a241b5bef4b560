"""Shrink the padding mask to `[batch, 1, 1, length]`, straight from the `attention_mask` input.

Transformers builds the mask by indexing: it gathers `attention_mask[b, k]` for a grid of positions, joins
it with conditions that always hold, and spreads it over every query. Exported, that is thirty nodes and a
`[batch, 1, length, length]` array. The values are those of the input itself, broadcast.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.passes.base import PassResult
from export.passes.match import axis_name, constant, ints, new_constant, new_node, producer, scalar

__all__ = ["SimplifyMask"]

_ELEMENTWISE = ("And", "Not", "Cast", "Where", "Add", "Mul", "Or")


class SimplifyMask:
    """Replace the indexed mask by the input mask, and drop conditions that always hold."""

    def __call__(self, model: ir.Model) -> PassResult:
        """Rewrite gathers first, then the conjunctions that they enter."""
        changes = sum(_replace_gather(model.graph, node) for node in list(model.graph))
        changes += sum(_drop_always_true(node) for node in list(model.graph))
        return PassResult(name="simplify-mask", num_changes=changes)


def _replace_gather(graph: ir.Graph, node: ir.Node) -> bool:
    """`GatherND(mask, grid of (b, k))` with b and k counting up, of shape [B, 1, 1, K], is `Unsqueeze(mask)`."""
    if node.op_type != "GatherND" or node.attributes.get_int("batch_dims", 0) != 0:
        return False
    mask, grid = node.inputs
    concat = producer(grid, "Concat")
    if mask is None or concat is None or len(concat.inputs) != 2:
        return False
    for axis, column in enumerate(concat.inputs):
        counted = _counting_axis(_spread_of(column))
        if counted is None or counted[0] is None or counted != (axis_name(mask, axis), 3 * axis):
            return False
    output = node.outputs[0]
    axes = new_constant(graph, "mask_axes", np.array([1, 2], np.int64))
    spread = new_node(graph, node, "Unsqueeze", [mask, axes], like=output)
    output.replace_all_uses_with(spread)
    return True


def _spread_of(column: ir.Value | None) -> ir.Value | None:
    """Of `Unsqueeze(Expand(x, shape), [-1])`, x."""
    unsqueeze = producer(column, "Unsqueeze")
    expand = producer(unsqueeze.inputs[0], "Expand") if unsqueeze is not None else None
    return expand.inputs[0] if expand is not None else None


def _counting_axis(value: ir.Value | None) -> tuple[str | int | None, int] | None:
    """Name of the length and the axis, if `value` counts 0, 1, 2 … along one axis of four and has 1 elsewhere."""
    added: list[list[int]] = []
    while (unsqueeze := producer(value, "Unsqueeze")) is not None:
        axes = ints(unsqueeze.inputs[1])
        if axes is None:
            return None
        added.append(axes)
        value = unsqueeze.inputs[0]
    count = producer(value, "Range")
    if count is None or scalar(count.inputs[0]) != 0 or scalar(count.inputs[2]) != 1:
        return None
    axis, rank = 0, 1
    for axes in reversed(added):
        rank += len(axes)
        for new in sorted(item % rank for item in axes):
            axis += new <= axis
    return (axis_name(count.outputs[0], 0), axis) if rank == 4 else None


def _drop_always_true(node: ir.Node) -> bool:
    """`And(x, true)` is x, where all that reads it spreads it over the queries anyway."""
    if node.op_type != "And":
        return False
    for index in (0, 1):
        kept, other = node.inputs[index], node.inputs[1 - index]
        if kept is None or not _always_true(other):
            continue
        if _same_shape(kept, node.outputs[0]) or _spread_later(node.outputs[0]):
            node.outputs[0].replace_all_uses_with(kept)
            _reshape_users(kept)
            return True
    return False


def _always_true(value: ir.Value | None) -> bool:
    """Whether `value` is a constant of trues, or says that a count from 0 is at least 0."""
    array = constant(value)
    if array is not None:
        return array.dtype == np.bool_ and bool(array.all())
    node = producer(value, "And")
    if node is not None:
        return all(_always_true(item) for item in node.inputs)
    node = producer(value, "GreaterOrEqual")
    if node is None or scalar(node.inputs[1]) not in (0.0,):
        return False
    counted = node.inputs[0]
    while (unsqueeze := producer(counted, "Unsqueeze")) is not None:
        counted = unsqueeze.inputs[0]
    count = producer(counted, "Range")
    return count is not None and scalar(count.inputs[0]) == 0 and scalar(count.inputs[2]) == 1


def _same_shape(first: ir.Value, second: ir.Value) -> bool:
    return first.shape is not None and second.shape is not None and first.shape == second.shape


def _spread_later(value: ir.Value) -> bool:
    """Whether every reader of a [B, 1, Q, K] array adds it to scores [B, heads, Q, K], in the end."""
    if value.is_graph_output():
        return False
    for use in value.uses():
        node = use.node
        if node.domain != "" or node.op_type not in _ELEMENTWISE:
            return False
        others = [item for item in node.inputs if item is not None and item is not value]
        if node.op_type == "Add" and any(axis_name(item, -2) == axis_name(value, -2) for item in others):
            continue
        if not _spread_later(node.outputs[0]):
            return False
    return True


def _reshape_users(value: ir.Value) -> None:
    """Forget the shapes of what reads `value`, which now has 1 where it had the number of queries."""
    for use in value.uses():
        node = use.node
        output = node.outputs[0]
        arms = [item for item in node.inputs if item is not None]
        if node.op_type in _ELEMENTWISE and all(item.shape is not None for item in arms):
            shape = _broadcast([item.shape for item in arms if item.shape is not None])
            if output.shape is not None and shape != output.shape:
                output.shape = shape
                _reshape_users(output)


def _broadcast(shapes: list[ir.Shape]) -> ir.Shape:
    rank = max(len(shape) for shape in shapes)
    padded: list[list[int | ir.SymbolicDim]] = [[*([1] * (rank - len(shape))), *shape.dims] for shape in shapes]
    return ir.Shape([next((dim for dim in dims if dim != 1), 1) for dims in zip(*padded, strict=True)])
