"""Scaling down the few channels that are much larger than the rest, before the activation is quantized.

One scale serves a whole activation, so one channel ten times larger than the others costs them three bits. Dividing
it by ten and multiplying the matching row of each matrix by ten computes the same product, and both quantize well.

A channel too large even for that is multiplied apart, in float: one or two of them are enough to matter.

Sources: G. Xiao et al., "SmoothQuant", 2023, https://arxiv.org/abs/2211.10438; unlike there only outlying channels
are scaled, which measured better: rows of the matrix grow only where they must. T. Dettmers et al., "LLM.int8()",
2022, https://arxiv.org/abs/2208.07339, for the channels in float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compress.quantize.config import SmoothingConfig
from compress.quantize.graph import Builder, constant_array, only_consumer, required
from compress.quantize.layers import Embedding, Linear

__all__ = ["channel_divisors", "fold_scales_", "outlying_channels", "smooth_"]


def channel_divisors(peaks_K: NDArray[np.float32], threshold: float) -> NDArray[np.float32] | None:
    """Return what to divide each channel by so that no peak is above `threshold` times the median peak.

    Args:
        peaks_K: The largest absolute value of each channel.
        threshold: In units of the median peak; at least 1.

    Returns:
        Divisors of shape [K], 1 where nothing is to be done; `None` when that is everywhere.

    >>> channel_divisors(np.array([1.0, 1.0, 6.0], np.float32), 1.5)
    array([1., 1., 4.], dtype=float32)
    """
    limit = threshold * float(np.median(peaks_K))
    if limit <= 0 or not (peaks_K > limit).any():
        return None
    return np.asarray(np.maximum(peaks_K / limit, 1), dtype=np.float32)


def outlying_channels(peaks_K: NDArray[np.float32], threshold: float, limit: int) -> NDArray[np.int64]:
    """Return which channels have peaks above `threshold` times the median peak, at most the `limit` highest.

    >>> outlying_channels(np.array([1, 9, 1, 8], np.float32), 1.5, 8)
    array([1, 3])
    """
    highest = np.argsort(-peaks_K, kind="stable")[:limit]
    return np.sort(highest[peaks_K[highest] > threshold * np.median(peaks_K)])


def smooth_(
    builder: Builder,
    layers: Sequence[Linear | Embedding],
    peaks: Mapping[str, NDArray[np.float32]],
    config: SmoothingConfig,
) -> list[Linear | Embedding]:
    """Add a scaled copy of each activation that has outlying channels, for the layers to read.

    Args:
        builder: Of the graph, which gets new nodes that nothing reads yet.
        layers: What will be quantized, in graph order.
        peaks: Peaks of the channels of each activation, by its name.
        config: What counts as an outlier.

    Returns:
        The layers, those of smoothed activations with the new activation and a matrix that makes up for it.
    """
    copies: dict[ir.Value, _Copy] = {}
    result: list[Linear | Embedding] = []
    for layer in layers:
        if isinstance(layer, Embedding):
            result.append(layer)
            continue
        x = layer.activation
        if x not in copies:
            copies[x] = _copy(builder, layer, peaks[x.name or ""], config)
        result.append(_read_copy(builder, layer, copies[x]))
    return result


@dataclass(frozen=True)
class _Copy:
    """An activation with its outliers scaled down, and the worst of them apart."""

    scaled: ir.Value
    divisors: NDArray[np.float32]
    """Infinite where the channel is computed apart."""
    outliers: NDArray[np.int64]
    apart: ir.Value | None
    """The activation's channels `outliers`."""


def _copy(builder: Builder, layer: Linear, peaks_K: NDArray[np.float32], config: SmoothingConfig) -> _Copy:
    x = layer.activation
    outliers = outlying_channels(peaks_K, config.float_threshold, config.max_float_channels)
    rest = peaks_K.copy()
    rest[outliers] = 0
    divisors = channel_divisors(rest, config.threshold)
    if divisors is None and not len(outliers):
        return _Copy(x, np.ones_like(peaks_K), outliers, None)
    divisors = np.ones_like(peaks_K) if divisors is None else divisors
    divisors[outliers] = np.inf
    factors = builder.constant(f"{x.name}_smoothing", 1 / divisors)
    [scaled] = builder.node("Mul", [x, factors], name=f"{x.name}_smooth", before=layer.node)
    apart = None
    if len(outliers):
        index = builder.constant(f"{x.name}_outlier_channels", outliers)
        [apart] = builder.node(
            "Gather", [x, index], name=f"{x.name}_outliers", before=layer.node, attributes={"axis": -1}
        )
    return _Copy(scaled, divisors, outliers, apart)


def _read_copy(builder: Builder, layer: Linear, copy: _Copy) -> Linear:
    if copy.scaled is layer.activation:
        return layer
    factors = np.where(np.isinf(copy.divisors), 0, copy.divisors).astype(np.float32)
    matrix_KN = layer.matrix * factors[:, np.newaxis]
    addend = None
    if copy.apart is not None:
        rows = builder.constant(f"{layer.weight.name}_outlier_rows", layer.matrix[copy.outliers])  # [M, N]
        name = f"{layer.node.name}_outlier_product"
        [addend] = builder.node("MatMul", [copy.apart, rows], name=name, before=layer.node)
    return replace(layer, scaled=copy.scaled, matrix=matrix_KN, addend=addend)


def fold_scales_(builder: Builder, graph: ir.Graph) -> int:
    """Fold Mul(LayerNormalization(x, γ, β), c) into γ and β where nothing else reads the normalised value.

    Returns:
        How many were folded.
    """
    count = 0
    for node in list(graph):
        if node.op_type != "LayerNormalization":
            continue
        mul = only_consumer(node.outputs[0])
        if mul is None or mul.op_type != "Mul" or mul.inputs[0] is not node.outputs[0]:
            continue
        factors = constant_array(mul.inputs[1])
        parameters = [constant_array(value) for value in node.inputs[1:]]
        if factors is None or any(array is None or array.shape != factors.shape for array in parameters):
            continue
        for index, array in enumerate(parameters, 1):
            name = f"{required(node.inputs[index]).name}_smoothed"
            node.replace_input_with(index, builder.constant(name, np.asarray(array) * factors))
        builder.replace(mul, [node.outputs[0]])
        count += 1
    return count
