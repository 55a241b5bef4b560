"""What to quantize and how: one frozen config type a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ActivationType",
    "CalibrationMethod",
    "DynamicInt8Config",
    "Feed",
    "LayerSelection",
    "SmoothingConfig",
    "StaticInt8Config",
    "WeightType",
]

Feed = Mapping[str, NDArray[np.generic]]
"""One run's inputs by name."""


class WeightType(Enum):
    """How the codes of a matrix are stored; the values they stand for are the same."""

    INT8 = "int8"
    """Codes around 0: the fastest kernels everywhere. On x86 without VNNI two products of a full-range code
    and an 8-bit activation can saturate a 16-bit sum: combine with `reduce_range` there."""
    UINT8 = "uint8"
    """Codes around 128: never saturates, at twice the time of the matrix products on some x86 kernels."""


class ActivationType(Enum):
    """The integer type of statically quantized activations."""

    UINT8 = "uint8"
    """Asymmetric: the whole of an uneven range is used. What ONNX Runtime's CPU kernels are fastest with."""
    INT8 = "int8"
    """Symmetric, zero point 0: what TensorRT and most phone accelerators ask for."""


class CalibrationMethod(Enum):
    """How a range is chosen from what a tensor was seen to hold."""

    MIN_MAX = "min-max"
    """Everything seen is representable; one outlier coarsens the rest."""
    PERCENTILE = "percentile"
    """Cut a fixed share of the values at either end."""
    MSE = "mse"
    """Cut where the sum of squared rounding and clipping errors is smallest."""
    ENTROPY = "entropy"
    """Cut where the Kullback-Leibler divergence of the quantized distribution is smallest."""


@dataclass(frozen=True, kw_only=True)
class LayerSelection:
    """Which nodes become integer. All others stay in float: softmax, normalisation, GELU, residual sums, masks."""

    linear: bool = True
    """`MatMul` and `Gemm` with a constant float32 matrix."""
    embeddings: bool = True
    """`Gather` of rows of a constant float32 table."""
    head: bool = False
    """The layer that writes the scores, when it has fewer outputs than inputs: it is small and decides the answer."""
    min_weight_elements: int = 1024
    """Matrices with fewer elements stay in float: nothing is gained."""
    exclude: tuple[str, ...] = ()
    """Shell patterns (`*`, `?`) of node names and weight names that stay in float."""

    def __post_init__(self) -> None:
        if not (self.linear or self.embeddings):
            raise ValueError("linear and embeddings are both off: nothing is left to quantize")
        if self.min_weight_elements < 1:
            raise ValueError(f"min_weight_elements={self.min_weight_elements}: must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SmoothingConfig:
    """Which channels of an activation are outliers, in units of the median channel's peak."""

    threshold: float = 1.5
    """Channels that peak above this are scaled down to it, and their weights up: exact but for rounding."""
    float_threshold: float = 6.0
    """Channels that peak above this are multiplied in float, apart; infinity for none."""
    max_float_channels: int = 4
    """At most so many of them for each activation."""

    def __post_init__(self) -> None:
        if not 1 <= self.threshold <= self.float_threshold:
            raise ValueError(
                f"threshold={self.threshold}, float_threshold={self.float_threshold}: must be 1 ≤ first ≤ second"
            )


@dataclass(frozen=True, kw_only=True)
class DynamicInt8Config:
    """Weights to int8 once, activations to uint8 with the range of each input at run time."""

    select: LayerSelection = field(default_factory=LayerSelection)
    """Which nodes become integer."""
    weight_type: WeightType = WeightType.INT8
    """How matrices are stored."""
    reduce_range: bool = False
    """7-bit weight codes (±64): right on x86 without VNNI, at twice the weight error."""
    smoothing: SmoothingConfig | None = None
    """How outlying channels of activations are treated; needs calibration rows."""
    clusters: int | None = None
    """Most distinct codes of a tensor; `None` for all that its type has."""
    memory_budget_mb: int = 256
    """Calibration observes as many tensors at once as fit, and runs the rows again for the others."""

    def __post_init__(self) -> None:
        _check_clusters(self.clusters)
        _check_budget(self.memory_budget_mb)


@dataclass(frozen=True, kw_only=True)
class StaticInt8Config:
    """Weights and activations to int8 with ranges measured on calibration rows, written as QDQ."""

    select: LayerSelection = field(default_factory=LayerSelection)
    """Which nodes become integer."""
    weight_type: WeightType = WeightType.INT8
    """How matrices are stored."""
    reduce_range: bool = False
    """7-bit weight codes (±64): right on x86 without VNNI, at twice the weight error."""
    activation_type: ActivationType = ActivationType.UINT8
    """Integer type of activations."""
    smoothing: SmoothingConfig | None = field(default_factory=SmoothingConfig)
    """How outlying channels of activations are treated; `None` leaves them as they are."""
    clusters: int | None = None
    """Most distinct codes of a tensor; `None` for all that its type has."""
    calibration: CalibrationMethod = CalibrationMethod.MIN_MAX
    """How ranges are chosen."""
    percentile: float = 99.99
    """Share of the values kept, in percent; for `CalibrationMethod.PERCENTILE`."""
    memory_budget_mb: int = 256
    """Calibration observes as many tensors at once as fit, and runs the rows again for the others."""

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile={self.percentile}: must be in (50, 100]")
        _check_clusters(self.clusters)
        _check_budget(self.memory_budget_mb)


def _check_clusters(clusters: int | None) -> None:
    if clusters is not None and not 2 <= clusters <= 128:
        raise ValueError(f"clusters={clusters}: must be 2 to 128, or left out")


def _check_budget(memory_budget_mb: int) -> None:
    if memory_budget_mb < 1:
        raise ValueError(f"memory_budget_mb={memory_budget_mb}: must be at least 1")
