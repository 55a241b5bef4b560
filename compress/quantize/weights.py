"""The codes of one weight as they are stored, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compress.quantize.cluster import entropy_bits, share_codes
from compress.quantize.kernels import QuantizedArray, quantize_symmetric, relative_error
from compress.quantize.result import QuantizedNode

__all__ = ["CodedWeight", "code_weight"]


@dataclass(frozen=True)
class CodedWeight:
    """Codes, and how near and how compressible they are."""

    array: QuantizedArray
    weight_error: float
    """Root mean square of the error, relative to that of the weight."""
    bits_per_weight: float
    """Order-0 entropy of the codes."""
    bits_before_sharing: float
    """The same before codes were shared."""

    def as_node(self, node: ir.Node, weight: ir.Value) -> QuantizedNode:
        """What is told of a node that reads it."""
        return QuantizedNode(
            name=node.name or node.op_type.lower(),
            op_type=node.op_type,
            weight=weight.name or "",
            shape=self.array.codes.shape,
            weight_error=self.weight_error,
            bits_per_weight=self.bits_per_weight,
            bits_before_sharing=self.bits_before_sharing,
        )


def code_weight(
    weight: NDArray[np.float32],
    axis: int,
    *,
    clusters: int | None = None,
    reduce_range: bool = False,
    unsigned: bool = False,
    least_scale: NDArray[np.float64] | None = None,
) -> CodedWeight:
    """Quantize a matrix or table, and share its codes if that is wanted.

    Args:
        weight: Finite weights, float32. Not modified.
        axis: The axis whose entries each get a scale.
        clusters: Most distinct codes; None to share none.
        reduce_range: See `quantize_symmetric`.
        unsigned: See `quantize_symmetric`.
        least_scale: See `quantize_symmetric`.

    Raises:
        ValueError: A weight is NaN or infinite.
    """
    array = quantize_symmetric(weight, axis, reduce_range=reduce_range, unsigned=unsigned, least_scale=least_scale)
    before = entropy_bits(array)
    if clusters is not None:
        array = share_codes(array, clusters)
    after = before if clusters is None else entropy_bits(array)
    return CodedWeight(array, relative_error(weight, array), after, before)
