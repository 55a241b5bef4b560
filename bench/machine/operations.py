"""Count what a model has to do for one request, from a trace of ONNX Runtime that tells every operator's shapes.

A trace is of the graph that runs, after ONNX Runtime's own fusions: what is counted is what ships. It shows the
shapes of weights only where they are not laid out for the processor beforehand, so counting opens the model
without that; times are taken with it.
"""

from __future__ import annotations

import json
import math
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.scenarios.inputs import Arrays
from edgesmith.errors import UnsupportedError
from serve.runtime import EngineOptions, open_engine

if TYPE_CHECKING:
    from edgesmith.artifact import Artifact

__all__ = ["Operations", "OperatorTime", "count_operations", "time_operators"]

Shape = tuple[int, ...]

# Reads only some rows of its table.
_LOOKUPS = frozenset({"Gather", "GatherElements", "GatherND", "GatherBlockQuantized", "EmbedLayerNormalization"})
# Its nodes are in the trace themselves.
_CONTAINERS = frozenset({"If", "Loop", "Scan"})
# Much arithmetic, but none of the kinds below.
_UNKNOWN = frozenset({"Einsum", "DeformConv", "FFT", "DFT", "STFT", "MatMulBnb4", "MoE", "QMoE", "QOrderedMatMul"})
_UNKNOWN |= {"SparseAttention", "PackedAttention", "PackedMultiHeadAttention", "LongformerAttention", "LinearAttention"}


@dataclass(frozen=True, slots=True)
class _Node:
    operator: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    parameter_bytes: int
    output_bytes: int
    micros: int


@dataclass(frozen=True, kw_only=True)
class Operations:
    """The least that one request takes, whatever computes it."""

    fp32_macs: int
    """Multiplications with addition of floats."""
    int8_macs: int
    """Multiplications with addition of integers of 8 or 4 bits."""
    weight_bytes: int
    """Weights, each read once; of a table only the rows looked up."""
    io_bytes: int
    """Inputs and outputs of the model."""
    not_counted: tuple[str, ...] = ()
    """Operators of much arithmetic that could not be counted."""

    @property
    def num_bytes(self) -> int:
        """Bytes that must be moved; what stays in the processor's caches between two operators is not in it."""
        return self.weight_bytes + self.io_bytes

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self) | {"not_counted": list(self.not_counted)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Operations:
        """Read what `to_json` gave."""
        return cls(**(dict(value) | {"not_counted": tuple(value["not_counted"])}))


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """Time of all nodes of one operator."""

    operator: str
    share: float
    """Of the time of all operators, in [0, 1]."""
    ms: float
    """Wall time in one request."""
    num_nodes: int


def count_operations(artifact: Artifact, requests: Sequence[Arrays]) -> tuple[Operations, ...]:
    """Count multiplications and bytes of each request by running it once.

    Counted are matrix products, convolutions, attention and recurrent layers; all else is left out as small, and
    `not_counted` names what is not.

    Args:
        artifact: An ONNX model.
        requests: What it is given, one after the other.

    Raises:
        UnsupportedError: The artifact's engine writes no trace.
        UsageError: The model does not take a request.
    """
    runs, io_bytes = _trace(artifact, requests, threads=1, packs_weights=False)
    return tuple(_count(nodes, moved) for nodes, moved in zip(runs, io_bytes, strict=True))


def time_operators(
    artifact: Artifact, requests: Sequence[Arrays], *, threads: int = 1, num_runs: int = 30
) -> tuple[OperatorTime, ...]:
    """Find out which operators take the time, most first.

    Args:
        artifact: An ONNX model.
        requests: What it is given, in turn.
        threads: For one run.
        num_runs: Runs that count, after a few that do not.

    Raises:
        UnsupportedError: The artifact's engine writes no trace.
    """
    warm_up_runs = 5
    taken = [requests[index % len(requests)] for index in range(warm_up_runs + num_runs)]
    runs = _trace(artifact, taken, threads=threads, packs_weights=True)[0][warm_up_runs:]
    micros: dict[str, int] = {}
    counts: dict[str, int] = {}
    for node in (node for nodes in runs for node in nodes if node.operator not in _CONTAINERS):
        micros[node.operator] = micros.get(node.operator, 0) + node.micros
        counts[node.operator] = counts.get(node.operator, 0) + 1
    total = max(1, sum(micros.values()))
    return tuple(
        OperatorTime(
            operator=operator,
            share=micros[operator] / total,
            ms=micros[operator] / 1000 / len(runs),
            num_nodes=counts[operator] // len(runs),
        )
        for operator in sorted(micros, key=lambda name: (-micros[name], name))
    )


def _trace(
    artifact: Artifact, requests: Sequence[Arrays], *, threads: int, packs_weights: bool
) -> tuple[list[list[_Node]], list[int]]:
    """The nodes of each run, and the bytes of its inputs and outputs."""
    with tempfile.TemporaryDirectory(prefix="edgesmith-trace-") as folder:
        options = EngineOptions(threads=threads, profile_to=Path(folder), packs_weights=packs_weights)
        engine = open_engine(artifact, options)
        end_profile: Callable[[], Path] | None = getattr(engine, "end_profile", None)
        if end_profile is None:
            engine.close()
            raise UnsupportedError(f"{engine.name} writes no trace of its operators, so they cannot be counted")
        io_bytes = []
        for request in requests:
            outputs = engine.run(request)
            io_bytes.append(sum(array.nbytes for arrays in (request, outputs) for array in arrays.values()))
        events = json.loads(end_profile().read_bytes())
        engine.close()
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    if len(starts) != len(requests):  # the library ends a trace at a million events
        raise UnsupportedError(f"the trace holds {len(starts)} of {len(requests)} runs: the model has too many nodes")
    runs: list[list[_Node]] = [[] for _ in starts]
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            runs[max(0, bisect_right(starts, event["ts"]) - 1)].append(_read_node(event))
    return runs, io_bytes


def _read_node(event: Mapping[str, Any]) -> _Node:
    given = event["args"]
    return _Node(
        operator=given["op_name"],
        inputs=_shapes(given["input_type_shape"]),
        outputs=_shapes(given["output_type_shape"]),
        parameter_bytes=int(given["parameter_size"]),
        output_bytes=int(given["output_size"]),
        micros=int(event["dur"]),
    )


def _shapes(tensors: Sequence[Mapping[str, Sequence[int]]]) -> tuple[Shape, ...]:
    return tuple(tuple(shape) for tensor in tensors for shape in tensor.values())


def _count(nodes: Sequence[_Node], io_bytes: int) -> Operations:
    fp32_macs = int8_macs = weight_bytes = 0
    unknown: set[str] = set()
    for node in nodes:
        if node.operator in _LOOKUPS and node.parameter_bytes:
            weight_bytes += min(node.parameter_bytes, node.output_bytes)
        elif node.operator not in _CONTAINERS:
            weight_bytes += node.parameter_bytes
        floats, integers = _macs(node)
        fp32_macs += floats
        int8_macs += integers
        if node.operator in _UNKNOWN:
            unknown.add(node.operator)
    return Operations(
        fp32_macs=fp32_macs,
        int8_macs=int8_macs,
        weight_bytes=weight_bytes,
        io_bytes=io_bytes,
        not_counted=tuple(sorted(unknown)),
    )


def _macs(node: _Node) -> tuple[int, int]:
    """Multiplications with addition of floats, and of integers."""
    match node.operator:
        case "MatMul" | "FusedMatMul" | "Gemm" | "FusedGemm" | "TransposeMatMul" | "GemmFloat8":
            return _product(node), 0
        case "MatMulInteger" | "MatMulInteger16" | "MatMulIntegerToFloat" | "DynamicQuantizeMatMul":
            return 0, _product(node)
        case "QLinearMatMul" | "QGemm" | "MatMulNBits":  # the last one's quickest form multiplies integers
            return 0, _product(node)
        case "Conv" | "FusedConv":
            return _convolution(node, 1), 0
        case "ConvTranspose":
            return math.prod(node.inputs[0]) * math.prod(node.inputs[1][1:]), 0
        case "ConvInteger":
            return 0, _convolution(node, 1)
        case "QLinearConv":
            return 0, _convolution(node, 3)
        case "Attention" if len(node.inputs[1]) == 2:  # the one with the projection's weights
            return _projection(node) + _attention(node), 0
        case "QAttention":
            return _attention(node), _projection(node)
        case "Attention" | "MultiHeadAttention" | "GroupQueryAttention" | "DecoderMaskedMultiHeadAttention":
            return _attention(node), 0
        case "LSTM" | "GRU" | "RNN":
            return _recurrent(node), 0
        case "DynamicQuantizeLSTM":
            return 0, _recurrent(node)
        case _:
            return 0, 0


def _product(node: _Node) -> int:
    """The input [..., M, K] by [..., K, N], either side transposed: the depth follows from input and output."""
    x, out = node.inputs[0], node.outputs[0]
    if len(x) == 1 or not out:
        return max(math.prod(shape) for shape in node.inputs[:2])
    second = node.inputs[1] if len(node.inputs) > 1 else (0, 0)
    if len(second) == 1 and node.operator == "MatMul":
        return math.prod(x)
    return math.prod(out) * (x[-2] * x[-1] // max(1, out[-2]))


def _convolution(node: _Node, weight: int) -> int:
    """Each output element is a sum over [C / groups, kernel…] of the weight [O, C / groups, kernel…]."""
    return math.prod(node.outputs[0]) * math.prod(node.inputs[weight][1:])


def _projection(node: _Node) -> int:
    batch, length = node.inputs[0][:2]
    return batch * length * math.prod(node.inputs[1])


def _attention(node: _Node) -> int:
    """Scores and weighted values: twice the output's elements by the number of positions looked at."""
    out = node.outputs[0]
    if len(node.outputs) > 1 and len(node.outputs[1]) >= 4:  # present keys, [.., length, head]
        length = node.outputs[1][-2]
    elif len(node.inputs) > 1 and len(node.inputs[1]) >= 3:  # keys, [batch, length, hidden]
        length = node.inputs[1][-2]
    else:
        length = node.inputs[0][1]
    return 2 * math.prod(out) * length


def _recurrent(node: _Node) -> int:
    """The input [length, batch, input], weights [directions, gates × hidden, input] and [.., hidden]."""
    length, batch, _ = node.inputs[0]
    return length * batch * (math.prod(node.inputs[1]) + math.prod(node.inputs[2]))
