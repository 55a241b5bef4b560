"""Fuse attention into ONNX Runtime's `MultiHeadAttention`, which its CPU kernel does without transposing.

The projections before it stay `MatMul` nodes, one each for query, key and value, so that a quantizer sees
them as it sees any other linear layer. ONNX Runtime's own `Attention`, with the projections inside, is no
faster here, in float as in int8 (`QAttention`), and hides them from static quantization.
Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

from export.passes.base import PassResult
from export.passes.match import axis_name, float_min, ints, new_node, other_input, perm, producer, scalar, sole_user

__all__ = ["FuseAttention"]

CONTRIB = "com.microsoft"
_MASK_TYPES = (ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64)


@dataclass(frozen=True, slots=True)
class _Scores:
    """`scale · Q Kᵀ + bias`, read back from the nodes that compute it.

    Attributes:
        query: [B, S, H], heads not split off.
        key: [B, T, H].
        scale: What the product is multiplied by.
        padding: int64 or bool [B, T]: 0 where a key is padding; None if nothing is masked.
        position_bias: [1 or B, heads, S, T], added to the scores; None if there is none.
    """

    query: ir.Value
    key: ir.Value
    num_heads: int
    scale: float
    padding: ir.Value | None
    position_bias: ir.Value | None


class FuseAttention:
    """Replace every attention of the BERT family by one node."""

    def __call__(self, model: ir.Model) -> PassResult:
        """Fuse what matches, and name what does not."""
        fused = 0
        left_out: Counter[str] = Counter()
        casts: dict[ir.Value, ir.Value] = {}
        for node in list(model.graph):
            if node.op_type != "Softmax":
                continue
            reason = _fuse(model.graph, node, casts)
            if reason is None:
                fused += 1
            else:
                left_out[reason] += 1
        if fused:
            model.graph.opset_imports.setdefault(CONTRIB, 1)
        notes = tuple(f"{num} attentions were left as plain operators: {why}" for why, num in left_out.items())
        return PassResult(name="fuse-attention", num_changes=fused, left_out=notes)


def _fuse(graph: ir.Graph, softmax: ir.Node, casts: dict[ir.Value, ir.Value]) -> str | None:
    """Fuse the attention around a softmax; otherwise say what stands in the way."""
    if softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return "its weights are not normalized over the keys"
    product = sole_user(softmax.outputs[0])
    if product is None or product.op_type != "MatMul" or product.inputs[0] is not softmax.outputs[0]:
        return "its weights are not only multiplied with values"
    value_heads = _split_heads(product.inputs[1], (0, 2, 1, 3))
    merged = _merge_heads(product.outputs[0])
    scores = _read_scores(softmax.inputs[0])
    if value_heads is None or merged is None:
        return "values are not split into heads and merged in the plain way"
    if isinstance(scores, str):
        return scores
    value, num_heads = value_heads
    if num_heads != scores.num_heads:
        return f"{scores.num_heads} heads of queries, {num_heads} of values"
    padding = _as_int32(graph, scores.padding, casts)
    output = new_node(
        graph,
        merged.producer() or softmax,
        "MultiHeadAttention",
        [scores.query, scores.key, value, None, padding, scores.position_bias],
        like=merged,
        domain=CONTRIB,
        attributes={"num_heads": num_heads, "scale": scores.scale, "mask_filter_value": float_min()},
    )
    merged.replace_all_uses_with(output)
    return None


def _read_scores(value: ir.Value | None) -> _Scores | str:
    """Read scores from the softmax upwards: biases, scale, product of queries and keys."""
    padding = position_bias = None
    while (add := producer(value, "Add")) is not None:
        scores, bias = _scores_and_bias(add)
        if scores is None or bias is None:
            return "what is added to its scores is not understood"
        if (mask := _padding_of(bias)) is not None and padding is None:
            padding = mask
        elif position_bias is None and _is_full_bias(bias, scores):
            position_bias = bias
        else:
            return "its mask is not one of padding only"
        value = scores
    scale = 1.0
    if (scaling := producer(value, "Mul", "Div")) is not None:
        factor = scalar(scaling.inputs[1])
        if factor is None:
            return "its scale is not a constant"
        scale = 1.0 / factor if scaling.op_type == "Div" else factor
        value = scaling.inputs[0]
    product = producer(value, "MatMul")
    if product is None:
        return "its scores are not a product of queries and keys"
    query_value, query_scale = _unscaled(product.inputs[0])
    query = _split_heads(query_value, (0, 2, 1, 3))
    key = _split_heads(product.inputs[1], (0, 2, 3, 1))
    if query is None or key is None or query[1] != key[1]:
        return "queries and keys are not split into heads in the plain way"
    return _Scores(query[0], key[0], query[1], scale * query_scale, padding, position_bias)


def _scores_and_bias(add: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    """Which arm of an addition leads to the product of queries and keys."""
    for value in add.inputs:
        source = value
        while (step := producer(source, "Add", "Mul", "Div")) is not None:
            source = step.inputs[0]
        if value is not None and producer(source, "MatMul") is not None:
            return value, other_input(add, value)
    return None, None


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """The operand and factor of `x · factor`, or `value` and 1."""
    node = producer(value, "Mul", "Div")
    factor = scalar(node.inputs[1]) if node is not None else None
    if node is None or factor is None:
        return value, 1.0
    return node.inputs[0], 1.0 / factor if node.op_type == "Div" else factor


def _split_heads(value: ir.Value | None, wanted: tuple[int, ...]) -> tuple[ir.Value, int] | None:
    """States [B, S, heads · D] and the number of heads, if `value` is those split into heads, permuted as `wanted`."""
    node = producer(value, "Transpose")
    order = perm(node)
    if node is not None and order == (0, 1, 3, 2):  # of [B, heads, S, D]
        inner = producer(node.inputs[0], "Transpose")
        inner_order = perm(inner)
        if inner is None or inner_order is None:
            return None
        node, order = inner, tuple(inner_order[item] for item in order)
    if node is None or order != wanted:
        return None
    reshape = producer(node.inputs[0], "Reshape")
    heads = axis_name(node.inputs[0], 2)
    if reshape is None or reshape.inputs[0] is None or not isinstance(heads, int):
        return None
    states = reshape.inputs[0]
    return (states, heads) if states.shape is not None and len(states.shape) == 3 else None


def _merge_heads(value: ir.Value) -> ir.Value | None:
    """The [B, S, heads · D] that a context [B, heads, S, D] becomes."""
    transpose = sole_user(value)
    if perm(transpose) != (0, 2, 1, 3) or transpose is None:
        return None
    reshape = sole_user(transpose.outputs[0])
    if reshape is None or reshape.op_type != "Reshape":
        return None
    shape = reshape.outputs[0].shape
    return reshape.outputs[0] if shape is not None and len(shape) == 3 else None


def _padding_of(bias: ir.Value) -> ir.Value | None:
    """The mask [B, T], if `bias` is 0 where it is not 0 and the lowest float elsewhere, of shape [B, 1, 1, T]."""
    where = producer(bias, "Where")
    if where is None or scalar(where.inputs[1]) != 0.0:
        return None
    low = scalar(where.inputs[2])
    if low is None or low > float_min() / 2:
        return None
    spread = producer(where.inputs[0], "Unsqueeze")
    if spread is None or ints(spread.inputs[1]) != [1, 2] or spread.inputs[0] is None:
        return None
    mask = spread.inputs[0]
    cast = producer(mask, "Cast")
    source = mask if cast is None else cast.inputs[0]
    return source if source is not None and source.dtype in _MASK_TYPES else None


def _is_full_bias(bias: ir.Value, scores: ir.Value) -> bool:
    """Whether `bias` has the [1 or B, heads, S, T] that the fused node takes."""
    if bias.shape is None or len(bias.shape) != 4 or scores.shape is None:
        return False
    batch = axis_name(bias, 0)
    same = all(axis_name(bias, axis) == axis_name(scores, axis) is not None for axis in (1, 2, 3))
    return same and batch in (1, axis_name(scores, 0))


def _as_int32(graph: ir.Graph, padding: ir.Value | None, casts: dict[ir.Value, ir.Value]) -> ir.Value | None:
    """The mask in the type that the fused node takes, converted once for all layers."""
    if padding is None:
        return None
    if padding not in casts:
        node = ir.node("Cast", [padding], {"to": int(ir.DataType.INT32)})
        node.outputs[0].shape = padding.shape
        node.outputs[0].type = ir.TensorType(ir.DataType.INT32)
        if (source := padding.producer()) is not None:
            graph.insert_after(source, node)
        else:
            graph.insert_before(graph[0], node)
        casts[padding] = node.outputs[0]
    return casts[padding]
