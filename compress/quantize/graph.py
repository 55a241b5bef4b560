"""Reading and extending a graph: constants, new values, insertion. Knows nothing of quantization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["Builder", "constant_array", "is_constant", "only_consumer", "required"]


def required(value: ir.Value | None) -> ir.Value:
    """Return an input that the operator's definition says is always there."""
    assert value is not None
    return value


def constant_array(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return the array of an initializer, also through one `Transpose` of it; `None` when it is computed."""
    if value is None:
        return None
    node = value.producer()
    if node is None:
        # An initializer that is also an input may be overridden by the caller: not a constant.
        return None if value.const_value is None or value.is_graph_input() else value.const_value.numpy()
    if node.op_type == "Transpose" and node.domain == "":
        array = constant_array(node.inputs[0])
        permutation = node.attributes.get("perm")
        return None if array is None else array.transpose(permutation.as_ints() if permutation else None)
    return None


def is_constant(value: ir.Value | None) -> bool:
    """Whether the value is stored in the graph."""
    return value is not None and value.const_value is not None


def only_consumer(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads `value`; `None` when there are more, or when it is a graph output."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


class Builder:
    """Makes nodes and initializers with names that are new, and the same on every run."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._names = {v.name for v in (*graph.inputs, *graph.initializers.values())}
        self._names |= {name for node in graph.all_nodes() for name in (node.name, *(v.name for v in node.outputs))}

    def name(self, wanted: str) -> str:
        """Return `wanted`, or it with a number when it is taken, and take it."""
        name, count = wanted, 1
        while name in self._names:
            count += 1
            name = f"{wanted}_{count}"
        self._names.add(name)
        return name

    def constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """Add an initializer."""
        value = ir.Value(name=self.name(name), const_value=ir.tensor(array))
        value.const_value.name = value.name  # type: ignore[union-attr]
        self._graph.register_initializer(value)
        return value

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        name: str,
        before: ir.Node,
        attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
        num_outputs: int = 1,
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """Insert a node in front of another and return its outputs."""
        name = self.name(name)
        outputs = [ir.Value(name=self.name(f"{name}_out{i or ''}")) for i in range(num_outputs)]
        node = ir.node(op_type, inputs, attributes, domain=domain, outputs=outputs, name=name)
        self._graph.insert_before(before, node)
        return node.outputs

    def remove(self, node: ir.Node) -> None:
        """Remove a node that nothing reads."""
        self._graph.remove(node, safe=True)

    def replace(self, node: ir.Node, outputs: Sequence[ir.Value]) -> None:
        """Remove `node`; its readers read `outputs` instead, under the names that its own had."""
        for old, new in zip(node.outputs, outputs, strict=True):
            if not old.name or old is new:
                continue  # an optional output that nothing reads
            new.shape, new.type = old.shape, old.type
            old.name, new.name = self.name(f"{old.name}_replaced"), old.name
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)
