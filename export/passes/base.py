"""What a graph pass is, and how several run one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgesmith.errors import EdgesmithError

__all__ = ["GraphPass", "PassError", "PassResult", "run_passes"]


class PassError(EdgesmithError):
    """A graph pass left a graph that is not valid: a fault of the pass, not of the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassResult:
    """What one pass changed.

    Attributes:
        name: The pass.
        num_changes: How many places it changed; 0 means that the graph is as it was.
        left_out: Places that look like the pass's business and were left alone, each with its reason.
    """

    name: str
    num_changes: int
    left_out: tuple[str, ...] = ()


class GraphPass(Protocol):
    """A rewriting of a graph that keeps what it computes."""

    def __call__(self, model: ir.Model) -> PassResult:
        """Change `model` in place and say what was changed."""


def run_passes(model: ir.Model, passes: Sequence[GraphPass]) -> tuple[PassResult, ...]:
    """Run `passes` in order on `model`, in place; after each, drop dead nodes and check that the graph holds together.

    Raises:
        PassError: After a pass, an input of a node comes from nowhere or an output is gone.
    """
    signature = [value.name for value in (*model.graph.inputs, *model.graph.outputs)]
    results = []
    for graph_pass in passes:
        result = graph_pass(model)
        RemoveUnusedNodesPass()(model)  # what was replaced must not look like a reader to the next pass
        _check(model.graph, result.name)
        if signature != (now := [value.name for value in (*model.graph.inputs, *model.graph.outputs)]):
            raise PassError(f"{result.name} changed the graph's inputs and outputs from {signature} to {now}")
        results.append(result)
    return tuple(results)


def _check(graph: ir.Graph, name: str) -> None:
    known = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in known and value.graph in (graph, None):
                raise PassError(
                    f"{name} left {node.op_type} {node.name!r} with an input {value.name!r} "
                    "that nothing computes before it"
                )
        known.update(node.outputs)
    for output in graph.outputs:
        if output not in known:
            raise PassError(f"{name} left the graph without its output {output.name!r}")
