"""Integer codes of arrays: pure functions, no graph.

Legend of shape suffixes: K inputs of a matrix, N outputs of it, V rows of a table, H columns of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ActivationScale",
    "QuantizedArray",
    "activation_scale",
    "dequantize",
    "quantize_symmetric",
    "relative_error",
]

_FULL_RANGE = 127
# Two products of a uint8 activation and a weight code fit in 16 bits with sign: 2 · 255 · 64 < 2¹⁵.
_REDUCED_RANGE = 64


@dataclass(frozen=True)
class QuantizedArray:
    """Codes and what they stand for: `(codes - zero_point) * scale`, the scale broadcast along `axis`."""

    codes: NDArray[np.int8] | NDArray[np.uint8]
    scale: NDArray[np.float32]
    """One a channel, of shape [codes.shape[axis]]."""
    zero_point: int
    """The code of 0.0: 0 for int8, 128 for uint8."""
    axis: int
    """Which axis of `codes` the channels are on."""


@dataclass(frozen=True)
class ActivationScale:
    """One scale and zero point for a whole activation."""

    scale: np.float32
    zero_point: int
    signed: bool
    """Codes are int8 rather than uint8."""


def quantize_symmetric(
    weight: NDArray[np.float32],
    axis: int,
    *,
    reduce_range: bool = False,
    unsigned: bool = False,
    least_scale: NDArray[np.float64] | None = None,
) -> QuantizedArray:
    """Quantize each channel of a matrix or table to 8 bits around zero, rounding half to even.

    Args:
        weight: Finite weights, float32, at least one dimension. Not modified.
        axis: The axis whose entries each get a scale: N of a [K, N] matrix, V of a [V, H] table.
        reduce_range: Codes in [-64, 64] rather than [-127, 127].
        unsigned: Store codes + 128 as uint8.
        least_scale: What each channel's scale may not be below, of shape [weight.shape[axis]].

    Returns:
        Codes of the shape of `weight`; every value is within half a scale of the weight.

    Raises:
        ValueError: A weight is NaN or infinite.

    >>> quantize_symmetric(np.array([[1.0, -2.0]], np.float32), axis=0).codes
    array([[  64, -127]], dtype=int8)
    """
    if not np.isfinite(weight).all():
        raise ValueError("weights are not finite")
    limit = _REDUCED_RANGE if reduce_range else _FULL_RANGE
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    largest = np.maximum(weight.max(axis=others), -weight.min(axis=others)).astype(np.float64)
    scale = np.maximum(largest / limit, 0 if least_scale is None else least_scale).astype(np.float32)
    # An all-zero or subnormal channel has codes 0 whatever its scale.
    scale[scale < np.finfo(np.float32).tiny] = 1
    codes = weight / np.expand_dims(scale, others)
    np.rint(codes, out=codes)
    np.clip(codes, -limit, limit, out=codes)
    if unsigned:
        codes += 128
        return QuantizedArray(codes.astype(np.uint8), scale, 128, axis)
    return QuantizedArray(codes.astype(np.int8), scale, 0, axis)


def dequantize(array: QuantizedArray) -> NDArray[np.float32]:
    """Return the values that the codes stand for, float32 of the shape of the codes."""
    others = tuple(i for i in range(array.codes.ndim) if i != array.axis % array.codes.ndim)
    values = array.codes.astype(np.float32)
    values -= np.float32(array.zero_point)
    values *= np.expand_dims(array.scale, others)
    return values


def relative_error(weight: NDArray[np.float32], array: QuantizedArray) -> float:
    """Return the root mean square of the error over that of `weight`; 0 for an all-zero weight."""
    difference = dequantize(array)
    difference -= weight
    error = np.linalg.norm(difference)
    size = np.linalg.norm(weight)
    return float(error / size) if size else 0.0


def activation_scale(low: float, high: float, *, signed: bool) -> ActivationScale:
    """Choose the scale and zero point whose codes cover [low, high] and represent 0.0 exactly.

    Args:
        low: Smallest value to represent; finite.
        high: Largest value to represent; finite, not below `low`.
        signed: int8 around zero point 0 (symmetric) rather than uint8 (asymmetric).

    Raises:
        ValueError: A bound is not finite, or low is above high.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(f"no range: low={low}, high={high}")
    low, high = min(low, 0.0), max(high, 0.0)
    span = 2 * max(-low, high) / (2 * _FULL_RANGE) if signed else (high - low) / 255
    scale = np.float32(span)
    if scale < np.finfo(np.float32).tiny:
        scale = np.float32(1)
    zero_point = 0 if signed else int(np.clip(np.rint(-low / float(scale)), 0, 255))
    return ActivationScale(scale, zero_point, signed)
