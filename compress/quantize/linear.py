"""Linear layers with int8 weights: the dynamic and the static (QDQ) form."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from compress.quantize.config import DynamicInt8Config, StaticInt8Config, WeightType
from compress.quantize.graph import Builder, is_constant, only_consumer
from compress.quantize.kernels import ActivationScale
from compress.quantize.layers import Linear
from compress.quantize.result import QuantizedNode
from compress.quantize.weights import CodedWeight, code_weight

__all__ = ["DynamicLinearRewriter", "StaticLinearRewriter"]


def _finish_(builder: Builder, layer: Linear, result: ir.Value, *, sum_operator: str) -> None:
    """Put `result`, with bias and addend, in the place of the layer.

    Args:
        builder: Of the graph.
        layer: What is replaced; when it is a `MatMul`, an `Add` after it may be its bias.
        result: The product.
        sum_operator: `Add`, which ONNX Runtime fuses with its neighbours, or `Sum`, which it does not.
    """
    node, name = layer.node, layer.node.name or "linear"
    reader = only_consumer(node.outputs[0])
    bias = layer.bias
    if bias is None and reader is not None and reader.op_type == "Add":
        bias = next((value for value in reader.inputs if is_constant(value)), None)
        node = node if bias is None else reader
    # A node stands in front of its reader; what is added must too, so all goes in front of the later one.
    terms = [value for value in (bias, layer.addend) if value is not None]
    for term in terms:
        [result] = builder.node(sum_operator, [result, term], name=f"{name}_{sum_operator}", before=node)
    builder.replace(node, [result])
    if node is not layer.node:
        builder.remove(layer.node)


class _Weights:
    """Writes each matrix once, however many layers share it."""

    def __init__(self, builder: Builder, config: DynamicInt8Config | StaticInt8Config) -> None:
        self._builder = builder
        self._config = config
        self._written: dict[
            tuple[ir.Value, bool, ir.Value | None], tuple[ir.Value, ir.Value, ir.Value, CodedWeight]
        ] = {}

    def write(self, layer: Linear) -> tuple[ir.Value, ir.Value, ir.Value, CodedWeight]:
        """Return codes [K, N], scale [N], zero point [N], and what they are."""
        transposed = bool(layer.node.attributes.get_int("transB", 0)) if layer.node.op_type == "Gemm" else False
        key = layer.weight, transposed, layer.scaled
        if key not in self._written:
            name = layer.weight.name or "weight"
            coded = code_weight(
                layer.matrix,
                axis=1,
                clusters=self._config.clusters,
                reduce_range=self._config.reduce_range,
                unsigned=self._config.weight_type is WeightType.UINT8,
            )
            array = coded.array
            zeros = np.full(array.scale.shape, array.zero_point, array.codes.dtype)
            self._written[key] = (
                self._builder.constant(f"{name}_{array.codes.dtype}", array.codes),
                self._builder.constant(f"{name}_scale", array.scale),
                self._builder.constant(f"{name}_zero_point", zeros),
                coded,
            )
        return self._written[key]


class DynamicLinearRewriter:
    """x @ W (+ b) → MatMulInteger(DynamicQuantizeLinear(x), codes) · (scale of x · scale of W) (+ b).

    ONNX Runtime fuses this, bias included, into `DynamicQuantizeMatMul` or `MatMulIntegerToFloat` when it loads
    the graph, whatever the processor; layers that read the same activation share its quantization.

    Source: https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html
    """

    def __init__(self, builder: Builder, config: DynamicInt8Config) -> None:
        self._builder = builder
        self._weights = _Weights(builder, config)
        self._unsigned = config.weight_type is WeightType.UINT8
        self._activations: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}

    def rewrite_(self, layer: Linear) -> QuantizedNode:
        """Replace one layer in its graph."""
        node, name, make = layer.node, layer.node.name or "linear", self._builder.node
        codes, scale, zeros, coded = self._weights.write(layer)
        x, x_scale, x_zero = self._quantized(layer)
        inputs = [x, codes, x_zero, zeros] if self._unsigned else [x, codes, x_zero]
        [product] = make("MatMulInteger", inputs, name=f"{name}_integer", before=node)
        to_float = {"to": int(ir.DataType.FLOAT)}
        [floats] = make("Cast", [product], name=f"{name}_cast", before=node, attributes=to_float)
        [step] = make("Mul", [x_scale, scale], name=f"{name}_step", before=node)
        [result] = make("Mul", [floats, step], name=f"{name}_scaled", before=node)
        _finish_(self._builder, layer, result, sum_operator="Add")
        return coded.as_node(node, layer.weight)

    def _quantized(self, layer: Linear) -> tuple[ir.Value, ir.Value, ir.Value]:
        if layer.activation not in self._activations:
            name = f"{layer.activation.name}_quantize"
            x, scale, zero = self._builder.node(
                "DynamicQuantizeLinear", [layer.activation], name=name, before=layer.node, num_outputs=3
            )
            self._activations[layer.activation] = x, scale, zero
        return self._activations[layer.activation]


class StaticLinearRewriter:
    """x @ W (+ b) → DequantizeLinear(QuantizeLinear(x)) @ DequantizeLinear(codes) (+ b): the QDQ form.

    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """

    def __init__(self, builder: Builder, config: StaticInt8Config, scales: Mapping[str, ActivationScale]) -> None:
        self._builder = builder
        self._weights = _Weights(builder, config)
        self._scales = scales
        self._activations: dict[ir.Value, ir.Value] = {}
        self._matrices: dict[ir.Value, ir.Value] = {}

    def rewrite_(self, layer: Linear) -> QuantizedNode:
        """Replace one layer in its graph."""
        node, name, make = layer.node, layer.node.name or "linear", self._builder.node
        codes, scale, zeros, coded = self._weights.write(layer)
        if codes not in self._matrices:
            [self._matrices[codes]] = make(
                "DequantizeLinear",
                [codes, scale, zeros],
                name=f"{codes.name}_dequantize",
                before=node,
                attributes={"axis": 1},
            )
        inputs = [self._quantized(layer), self._matrices[codes]]
        [result] = make("MatMul", inputs, name=f"{name}_quantized", before=node)
        # Sum: as Add the bias would be fused with a GELU after it, which is slower, or hide the product in a Gemm.
        _finish_(self._builder, layer, result, sum_operator="Sum")
        return coded.as_node(node, layer.weight)

    def _quantized(self, layer: Linear) -> ir.Value:
        x = layer.activation
        if x not in self._activations:
            parameters = self._scales[x.name or ""]
            kind = np.int8 if parameters.signed else np.uint8
            scale = self._builder.constant(f"{x.name}_scale", np.array(parameters.scale))
            zero = self._builder.constant(f"{x.name}_zero_point", np.array(parameters.zero_point, kind))
            make = self._builder.node
            [codes] = make("QuantizeLinear", [x, scale, zero], name=f"{x.name}_quantize", before=layer.node)
            [self._activations[x]] = make(
                "DequantizeLinear", [codes, scale, zero], name=f"{x.name}_dequantize", before=layer.node
            )
        return self._activations[x]
