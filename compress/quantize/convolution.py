"""Convolutions with int8 weights and activations: the QDQ form, the sums and poolings between them included.

A convolution is only run in integers where its input, its weight, its bias and its output all are codes, and it is
only worth while where the next one reads those codes. So every tensor from the first convolution to the last becomes
codes: results (after a ReLU that follows), residual sums of two such, and what is pooled of them.

Source: B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", 2018, section 2; https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compress.quantize.config import LayerSelection, StaticInt8Config, WeightType
from compress.quantize.graph import Builder, constant_array, only_consumer, required
from compress.quantize.kernels import ActivationScale
from compress.quantize.result import QuantizedNode, SkippedNode
from compress.quantize.weights import code_weight

__all__ = ["Convolution", "ConvolutionRewriter", "find_convolutions", "tensors_between"]

# A bias has no more steps than this, so that the sum of products still fits in 32 bits beside it.
_MOST_BIAS_STEPS = 1 << 30


@dataclass(frozen=True)
class Convolution:
    """A `Conv` with constant weight and bias."""

    node: ir.Node
    weight: ir.Value
    kernel: NDArray[np.float32]
    """Of shape [O, I / groups, ...]."""
    bias: NDArray[np.float32] | None
    """Of shape [O]."""

    @property
    def activation(self) -> ir.Value:
        """What it reads."""
        return required(self.node.inputs[0])


def find_convolutions(graph: ir.Graph, select: LayerSelection) -> tuple[list[Convolution], list[SkippedNode]]:
    """Sort the graph's convolutions into those to quantize, in graph order, and those left in float with the reason.

    Args:
        graph: A graph in topological order. Not modified.
        select: Which sizes and names are wanted.
    """
    found: list[Convolution] = []
    skipped: list[SkippedNode] = []
    for node in graph.all_nodes():
        if node.op_type != "Conv" or node.domain != "":
            continue
        layer = _read(node) if node.graph is graph else "inside the branch of a control-flow node"
        reason = layer if isinstance(layer, str) else _reason_to_skip(layer, select)
        if reason is None and not isinstance(layer, str):
            found.append(layer)
        else:
            skipped.append(SkippedNode(node.name or "", node.op_type, reason or ""))
    return found, skipped


def _read(node: ir.Node) -> Convolution | str:
    """Return the convolution, or why it stays in float."""
    weight = required(node.inputs[1])
    kernel = constant_array(weight)
    given = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant_array(given)
    if kernel is None or (given is not None and bias is None):
        return "its weight or its bias is computed"
    if kernel.dtype != np.float32 or (bias is not None and bias.dtype != np.float32):
        return f"its weight is {kernel.dtype}, not float32"
    if not np.isfinite(kernel).all() or (bias is not None and not np.isfinite(bias).all()):
        return "its weight or its bias is not finite"
    return Convolution(
        node,
        weight,
        np.ascontiguousarray(kernel, dtype=np.float32),
        None if bias is None else np.asarray(bias, np.float32),
    )


def _reason_to_skip(layer: Convolution, select: LayerSelection) -> str | None:
    for pattern in select.exclude:
        if fnmatchcase(layer.node.name or "", pattern) or fnmatchcase(layer.weight.name or "", pattern):
            return f"excluded by {pattern!r}"
    if layer.kernel.size < select.min_weight_elements:
        return (
            f"its weight has {layer.kernel.size} elements, fewer than min_weight_elements={select.min_weight_elements}"
        )
    return None


def tensors_between(graph: ir.Graph, convolutions: Sequence[Convolution]) -> dict[ir.Value, ir.Value]:
    """The tensors that become codes, in graph order, each with the one whose range it has: itself, or what is pooled.

    Args:
        graph: Of the convolutions, in topological order. Not modified.
        convolutions: Those that are quantized.
    """
    chosen = {layer.node for layer in convolutions}
    found: dict[ir.Value, ir.Value] = {}
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if node in chosen:
            found.setdefault(inputs[0], inputs[0])
            _add(found, _after_relu(node.outputs[0]))
        elif node.op_type == "Add" and all(value in found for value in inputs):
            _add(found, _after_relu(node.outputs[0]))
        elif node.op_type == "MaxPool" and inputs[0] in found and len(node.outputs) == 1:
            found[node.outputs[0]] = found[inputs[0]]
    return found


def _after_relu(value: ir.Value) -> ir.Value:
    """What a ReLU alone makes of the value, or the value: the kernel's own clipping of codes is that ReLU."""
    reader = only_consumer(value)
    return reader.outputs[0] if reader is not None and reader.op_type == "Relu" else value


def _add(found: dict[ir.Value, ir.Value], value: ir.Value) -> None:
    if not value.is_graph_output():
        found[value] = value


def _least_scale(bias_O: NDArray[np.float32], step: float) -> NDArray[np.float64]:
    """The scale of each channel's weights below which its bias, in codes of the same step, would not fit in int32.

    Batch norm leaves such channels where it nearly switches them off: faint weights with a bias of the usual size.

    Args:
        bias_O: In float.
        step: Of the codes of what the convolution reads.
    """
    steps_O = np.abs(bias_O.astype(np.float64)) / _MOST_BIAS_STEPS
    least: NDArray[np.float64] = np.maximum(steps_O, np.finfo(np.float32).tiny) / step
    return least


class ConvolutionRewriter:
    """conv(x, W, b) → conv(DQ(Q(x)), DQ(codes), DQ(int32 codes)), its result in codes too.

    ONNX Runtime runs it as one `QLinearConv`, a ReLU in it.
    """

    def __init__(
        self,
        builder: Builder,
        config: StaticInt8Config,
        tensors: Mapping[ir.Value, ir.Value],
        scales: Mapping[str, ActivationScale],
    ) -> None:
        self._builder = builder
        self._config = config
        self._scales = {value: scales[origin.name or ""] for value, origin in tensors.items()}

    def rewrite_(self, graph: ir.Graph, convolutions: Sequence[Convolution]) -> list[QuantizedNode]:
        """Put codes in the place of weights, biases and tensors."""
        made = [self._rewrite_weights_(layer) for layer in convolutions]
        order = {node: index for index, node in enumerate(graph)}
        for value, parameters in self._scales.items():
            self._quantize_(value, parameters, order)
        return made

    def _rewrite_weights_(self, layer: Convolution) -> QuantizedNode:
        node, name, make = layer.node, layer.weight.name or "weight", self._builder.node
        step = float(self._scales[layer.activation].scale)
        coded = code_weight(
            layer.kernel,
            axis=0,
            clusters=self._config.clusters,
            reduce_range=self._config.reduce_range,
            unsigned=self._config.weight_type is WeightType.UINT8,
            least_scale=None if layer.bias is None else _least_scale(layer.bias, step),
        )
        array = coded.array
        zeros = np.full(array.scale.shape, array.zero_point, array.codes.dtype)
        inputs = [
            self._builder.constant(f"{name}_{array.codes.dtype}", array.codes),
            self._builder.constant(f"{name}_scale", array.scale),
            self._builder.constant(f"{name}_zero_point", zeros),
        ]
        [weight] = make("DequantizeLinear", inputs, name=f"{name}_dequantize", before=node, attributes={"axis": 0})
        told = coded.as_node(node, layer.weight)
        node.replace_input_with(1, weight)
        if layer.bias is not None:
            # int32 in the step of the products that it is added to: the kernel adds it before it rescales them
            step_O = (array.scale.astype(np.float64) * step).astype(np.float32)
            codes_O = np.rint(layer.bias.astype(np.float64) / step_O).astype(np.int32)
            inputs = [
                self._builder.constant(f"{name}_bias_int32", codes_O),
                self._builder.constant(f"{name}_bias_scale", step_O),
            ]
            [bias] = make(
                "DequantizeLinear", inputs, name=f"{name}_bias_dequantize", before=node, attributes={"axis": 0}
            )
            node.replace_input_with(2, bias)
        return told

    def _quantize_(self, value: ir.Value, parameters: ActivationScale, order: Mapping[ir.Node, int]) -> None:
        """Have all readers of a tensor read what its codes stand for."""
        uses = list(value.uses())
        if not uses:
            return
        name, make = value.name or "tensor", self._builder.node
        kind = np.int8 if parameters.signed else np.uint8
        scale = self._builder.constant(f"{name}_scale", np.array(parameters.scale))
        zero = self._builder.constant(f"{name}_zero_point", np.array(parameters.zero_point, kind))
        first = min((use.node for use in uses), key=order.__getitem__)
        [codes] = make("QuantizeLinear", [value, scale, zero], name=f"{name}_quantize", before=first)
        [again] = make("DequantizeLinear", [codes, scale, zero], name=f"{name}_dequantize", before=first)
        for use in uses:
            use.node.replace_input_with(use.idx, again)
