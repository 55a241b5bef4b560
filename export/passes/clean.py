"""Remove from a graph what does not compute: records of how it was traced, doubles and dead ends."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from export.passes.base import PassResult

__all__ = ["Deduplicate", "DropMetadata"]


class DropMetadata:
    """Drop stack traces, file paths, doc strings and the producer's name and version.

    They differ between machines, so a graph with them is not the same to the byte.
    """

    def __call__(self, model: ir.Model) -> PassResult:
        """Clear every descriptive field of the model, its graph, nodes and values."""
        cleared = 0
        model.producer_name, model.producer_version, model.domain, model.model_version = "edgesmith", None, None, None
        holders: list[ir.Model | ir.Graph | ir.Node | ir.Value] = [model, model.graph, *_values(model.graph)]
        holders.extend(model.graph.all_nodes())
        for holder in holders:
            cleared += bool(holder.doc_string) + bool(holder.metadata_props)
            holder.doc_string = None
            holder.metadata_props.clear()
        for value in model.graph.initializers.values():
            if value.const_value is not None and value.const_value.doc_string:
                value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
        return PassResult(name="drop-metadata", num_changes=cleared)


class Deduplicate:
    """Merge equal weights and equal computations, and drop what no output needs."""

    def __call__(self, model: ir.Model) -> PassResult:
        """Merge and drop until nothing is left to merge."""
        before = model.graph.num_nodes() + len(model.graph.initializers)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.IdentityEliminationPass()(model)
        common.DeduplicateInitializersPass(size_limit=1 << 40)(model)
        common.CommonSubexpressionEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
        after = model.graph.num_nodes() + len(model.graph.initializers)
        return PassResult(name="deduplicate", num_changes=before - after)


def _values(graph: ir.Graph) -> list[ir.Value]:
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        values.extend(node.outputs)
    return values
