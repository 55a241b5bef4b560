"""What quantization did, node by node, and its own errors."""

from __future__ import annotations

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
