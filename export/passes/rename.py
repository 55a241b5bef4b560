"""Name weights, nodes and axes after what they are, the same on every export.

The exporter numbers its values in the order of tracing and names transposed weights `val_17`. Here a weight
is found again by its content, so `bert.encoder.layer.0.output.dense.weight` keeps its name (with
`.transposed` where it was), and the node that reads it is named after its module.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.passes.base import PassResult
from export.passes.match import axis_name

__all__ = ["Rename"]

_MIN_NAMED = 16  # elements; smaller arrays are axes and shapes


class Rename:
    """Give every weight, node, value and free axis a stable name that says what it is."""

    def __init__(self, weights: Mapping[str, NDArray[Any]], axes: tuple[str, ...]) -> None:
        """Remember the checkpoint's weights by content.

        Args:
            weights: The checkpoint's arrays by name.
            axes: Names for the axes of the graph's first input, such as `("batch", "sequence")`.
        """
        self._axes = axes
        self._names: dict[str, str] = {}
        for name, array in weights.items():
            if array.size >= _MIN_NAMED:
                self._names.setdefault(_fingerprint(array), name)
                if array.ndim == 2:
                    self._names.setdefault(_fingerprint(array.T), f"{name}.transposed")

    def __call__(self, model: ir.Model) -> PassResult:
        """Rename all that has a better name."""
        graph = model.graph
        graph.name = "main"
        changes = self._rename_axes(graph) + self._rename_weights(graph) + _rename_nodes(graph)
        return PassResult(name="rename", num_changes=changes)

    def _rename_axes(self, graph: ir.Graph) -> int:
        symbols = {
            symbol: name
            for axis, name in enumerate(self._axes)
            if isinstance(symbol := axis_name(graph.inputs[0], axis), str)
        }
        if not symbols:
            return 0
        pattern = re.compile(r"\b(" + "|".join(map(re.escape, symbols)) + r")\b")
        values = [*graph.inputs, *(output for node in graph.all_nodes() for output in node.outputs)]
        for value in values:
            if value.shape is not None:
                value.shape = _with_names(value.shape, pattern, symbols)
        return len(values)

    def _rename_weights(self, graph: ir.Graph) -> int:
        taken: Counter[str] = Counter()
        renamed: dict[str, ir.Value] = {}
        for value in list(graph.initializers.values()):
            array = value.const_value.numpy() if value.const_value is not None else np.zeros(0)
            name = self._names.get(_fingerprint(array)) if array.size >= _MIN_NAMED else None
            name = name or "constant"
            taken[name] += 1
            if name == "constant" or taken[name] > 1:
                name = f"{name}.{taken[name] - 1}"
            renamed[name] = value
        graph.initializers.clear()
        for name, value in renamed.items():
            value.name = name
            if value.const_value is not None:
                value.const_value.name = name
            graph.register_initializer(value)
        return len(renamed)


def _rename_nodes(graph: ir.Graph) -> int:
    taken: Counter[str] = Counter()
    fixed = {*graph.inputs, *graph.outputs}
    for node in graph:
        name = f"{module}/{node.op_type}" if (module := _module_of(node)) else node.op_type
        taken[name] += 1
        node.name = f"{name}.{taken[name] - 1}" if taken[name] > 1 or not module else name
        for index, output in enumerate(node.outputs):
            if output not in fixed:
                output.name = f"{node.name}:{index}"
    return graph.num_nodes()


def _module_of(node: ir.Node) -> str | None:
    """The module whose weight the node reads."""
    for value in node.inputs:
        if value is not None and value.is_initializer() and value.name and not value.name.startswith("constant."):
            return re.sub(r"\.(weight|bias)(\.transposed)?(\.\d+)?$", "", value.name)
    return None


def _with_names(shape: ir.Shape, pattern: re.Pattern[str], symbols: Mapping[str, str]) -> ir.Shape | None:
    dims: list[int | str | None] = []
    for dim in shape:
        if isinstance(dim, int):
            dims.append(dim)
        elif dim.value is None:
            return None  # half-known shapes contradict what a runtime infers by itself
        else:
            dims.append(pattern.sub(lambda match: symbols[match[1]], dim.value))
    return ir.Shape(dims)


def _fingerprint(array: NDArray[Any]) -> str:
    data = np.ascontiguousarray(array)
    return f"{array.shape}{array.dtype}{hashlib.sha256(data.data).hexdigest()}"
