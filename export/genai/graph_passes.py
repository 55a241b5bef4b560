"""What is changed in a graph that the builder wrote: halves of floats on disk, embeddings shared with an 8-bit head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

__all__ = ["finish_graph", "halve_weights", "share_head"]

_MODEL = "model.onnx"
_SMALL_VALUES = 16_384
_HALF_MAX = float(np.finfo(np.float16).max)


def finish_graph(folder: Path, *, precision: str, is_tied: bool) -> list[str]:
    """Change the builder's graph to what was asked for, and write it anew.

    Args:
        folder: Holds `model.onnx` and its weights.
        precision: `int4`, `int8`, `fp16` or `fp32`.
        is_tied: The checkpoint has one matrix for embeddings and head.

    Returns:
        Notes on what was changed.
    """
    notes: list[str] = []
    path = folder / _MODEL
    model = ir.load(path)
    if precision == "fp16":
        notes.append(halve_weights(model))
    if precision == "int8" and is_tied and share_head(model):
        notes.append("the embeddings are those of the 8-bit head, as the checkpoint ties them")
    if not notes:
        return notes
    fresh = folder / "fresh"
    fresh.mkdir()
    ir.save(model, fresh / _MODEL, external_data=f"{_MODEL}.data", size_threshold_bytes=0)
    for file in sorted(fresh.iterdir()):
        file.replace(folder / file.name)
    fresh.rmdir()
    return notes


def halve_weights(model: ir.Model) -> str:
    """Store large float32 tensors as float16, cast back where they are read: half the file, the same arithmetic.

    The runtime computes the cast once, when it opens the model.

    Returns:
        A note with the number of tensors.

    Raises:
        ValueError: A weight is larger than float16 can hold.
    """
    graph, count = model.graph, 0
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _SMALL_VALUES or len(tensor.shape) < 2:
            continue
        array = tensor.numpy()
        if float(np.abs(array).max()) > _HALF_MAX:
            raise ValueError(f"{value.name} holds {np.abs(array).max():g}, more than float16 can hold")
        name = str(value.name)
        half = ir.Value(name=f"{name}.fp16", const_value=ir.tensor(array.astype(np.float16), name=f"{name}.fp16"))
        half.type, half.shape = ir.TensorType(ir.DataType.FLOAT16), value.shape
        cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT.value}, name=f"{name}.to_fp32")
        cast.outputs[0].name = f"{name}.fp32"
        cast.outputs[0].type, cast.outputs[0].shape = value.type, value.shape
        value.replace_all_uses_with(cast.outputs[0])
        del graph.initializers[name]
        graph.initializers[f"{name}.fp16"] = half
        graph.insert_before(graph[0], cast)
        count += 1
    return f"{count} matrices are stored as float16 and computed with in float32"


def share_head(model: ir.Model) -> bool:
    """Read the embeddings out of the head's 8-bit weights, instead of a float copy of their own.

    Returns:
        Whether the graph has both in the form that this knows.
    """
    graph = model.graph
    gather = _find(graph, "Gather", "/model/embed_tokens/Gather")
    head = next((node for node in graph if node.op_type == "MatMulNBits" and "lm_head" in str(node.name)), None)
    if gather is None or head is None or head.attributes["bits"].as_int() != 8:
        return False
    embedding, (weight, scales, *rest) = gather.inputs[0], head.inputs[1:]
    zero_points = rest[0] if rest else None
    width, rows, block = (head.attributes[key].as_int() for key in ("K", "N", "block_size"))
    if (
        embedding is None
        or weight is None
        or scales is None
        or width % block
        or list(embedding.shape or ()) != [rows, width]
    ):
        return False  # fmt: skip
    blocks = width // block
    shaped = [_reshape(graph, weight, (rows, width)), gather.inputs[1], _reshape(graph, scales, (rows, blocks))]
    if zero_points is not None:
        shaped.append(_reshape(graph, zero_points, (rows, blocks)))
    lookup = ir.node(
        "GatherBlockQuantized",
        shaped,
        {"bits": 8, "block_size": block, "gather_axis": 0, "quantize_axis": 1},
        domain="com.microsoft",
        name=f"{gather.name}BlockQuantized",
    )
    found, wanted = lookup.outputs[0], gather.outputs[0]
    found.name, found.type, found.shape = f"{wanted.name}.shared", wanted.type, wanted.shape
    graph.insert_before(gather, lookup)
    wanted.replace_all_uses_with(found)
    graph.remove(gather, safe=True)
    if not list(embedding.uses()):
        del graph.initializers[str(embedding.name)]
    return True


def _find(graph: ir.Graph, op_type: str, name: str) -> ir.Node | None:
    return next((node for node in graph if node.op_type == op_type and node.name == name), None)


def _reshape(graph: ir.Graph, value: ir.Value, shape: Sequence[int]) -> ir.Value:
    """The value itself if it has the shape, else the output of a new node at the graph's start."""
    if list(value.shape or ()) == list(shape):
        return value
    # A constant in the graph: the runtime's shape inference reads no file of weights.
    target = ir.node("Constant", [], {"value": ir.tensor(np.array(shape, np.int64))}, name=f"{value.name}.shape")
    target.outputs[0].name = f"{value.name}.shape"
    node = ir.node("Reshape", [value, target.outputs[0]], name=f"{value.name}.reshape")
    node.outputs[0].name = f"{value.name}.reshaped"
    node.outputs[0].type, node.outputs[0].shape = value.type, ir.Shape(shape)
    graph.insert_before(graph[0], [target, node])
    return node.outputs[0]
