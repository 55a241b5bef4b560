"""What quantization did, node by node, and its own errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgesmith.errors import UnsupportedError

__all__ = ["NothingQuantizedError", "QuantizeResult", "QuantizedNode", "SkippedNode"]


class NothingQuantizedError(UnsupportedError):
    """The graph has no layer that the config would quantize."""


@dataclass(frozen=True)
class QuantizedNode:
    """One layer that now computes with, or stores, 8-bit integers."""

    name: str
    """The node in the source graph."""
    op_type: str
    """Its operator there."""
    weight: str
    """The name of its weight in the source graph."""
    shape: tuple[int, ...]
    """The shape of its weight."""
    weight_error: float
    """Root mean square of the weight's error, relative to that of the weight."""
    bits_per_weight: float
    """Order-0 entropy of its codes: what the file's compressed form needs at least, short of patterns in it."""
    bits_before_sharing: float
    """The same before codes were shared; equal where they were not."""


@dataclass(frozen=True)
class SkippedNode:
    """A layer with weights, or of a kind that has them elsewhere, that was left in float."""

    name: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class QuantizeResult:
    """What `quantize_onnx` wrote."""

    quantized: tuple[QuantizedNode, ...]
    skipped: tuple[SkippedNode, ...]
    float_operators: Mapping[str, int]
    """How many nodes of each operator compute in float in the written graph."""
    rewrites: Mapping[str, int]
    """How often each float rewrite was made to prepare the graph."""
    size_before_bytes: int
    """The source file, with its external data."""
    size_after_bytes: int
    """The written file, with its external data."""
    activation_ranges: Mapping[str, tuple[float, float]]
    """Calibrated range of each quantized activation; empty for dynamic quantization."""

    @property
    def ratio(self) -> float:
        """How many times smaller the file became."""
        return self.size_before_bytes / self.size_after_bytes

    @property
    def bits_per_weight(self) -> float:
        """Entropy of the codes, the mean over all quantized weights."""
        return self._mean({node.weight: (node.bits_per_weight, node.shape) for node in self.quantized})

    @property
    def bits_before_sharing(self) -> float:
        """The same before codes were shared."""
        return self._mean({node.weight: (node.bits_before_sharing, node.shape) for node in self.quantized})

    @staticmethod
    def _mean(bits: Mapping[str, tuple[float, tuple[int, ...]]]) -> float:
        """Mean over the elements of each weight; one that several nodes read counts once."""
        total = sum(math.prod(shape) for _, shape in bits.values())
        return sum(value * math.prod(shape) for value, shape in bits.values()) / max(total, 1)
