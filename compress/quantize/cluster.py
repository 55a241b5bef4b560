"""Weight sharing: few distinct codes a tensor, so that the same file compresses to fewer bits a weight.

The file keeps its size, its layout and its speed: what shrinks is what is fetched, once it is entropy-coded.

Source: S. Han, H. Mao, W. Dally, "Deep Compression", 2016, section 3, https://arxiv.org/abs/1510.00149. Unlike there
the clusters are of integer codes, which hold few distinct values, so that the best clustering of all is found rather
than the nearest to a random start: H. Wang, M. Song, "Ckmeans.1d.dp", R Journal 3(2), 2011.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from compress.quantize.kernels import QuantizedArray

__all__ = ["best_levels", "code_histogram", "entropy_bits", "share_codes"]

_NUM_CODES = 256
_BLOCK_ELEMENTS = 1 << 20  # at a time in 64 bits


def best_levels(values: NDArray[np.int64], weights: NDArray[np.float64], num_levels: int) -> NDArray[np.int64]:
    """Choose the integer that stands for each value, so that the weighted squared error is the least there is.

    0 stands for itself: what is pruned stays pruned. A dynamic program over sorted values, exact.

    Args:
        values: Distinct integers, ascending, of shape [V].
        weights: How much each value's squared error counts; positive, of shape [V].
        num_levels: Most distinct integers in the result, at least 2.

    Returns:
        The integer for each value, of shape [V]; `values` itself where it has no more than `num_levels`.

    Raises:
        ValueError: There are fewer than two levels.

    >>> best_levels(np.array([-9, -8, 0, 1, 8]), np.ones(5), 3)
    array([-9, -9,  0,  0,  8])
    """
    if num_levels < 2:
        raise ValueError(f"num_levels={num_levels}: must be at least 2, one of them for 0")
    count = len(values)
    if count <= num_levels:
        return values.copy()
    cost, center = _segments(values, weights)
    # least[j]: least cost of the first j values in the levels so far; start[l, j]: where the last of l + 1 begins.
    least = np.concatenate([[0.0], cost[0]])
    start = np.zeros((num_levels, count), np.int64)
    for level in range(1, num_levels):
        totals = least[:-1, np.newaxis] + cost  # [first, last] of the last segment
        start[level] = totals.argmin(axis=0)
        least = np.concatenate([[0.0], totals.min(axis=0)])
    levels = np.empty(count, np.int64)
    end = count
    for level in range(num_levels - 1, -1, -1):
        begin = int(start[level, end - 1])
        levels[begin:end] = center[begin, end - 1]
        end = begin
        if end == 0:
            break
    return levels


def _segments(values: NDArray[np.int64], weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cost and best integer of each run of values, both of shape [first, last]; infinite where last < first."""
    count = len(values)
    cost = np.full((count, count), np.inf)
    center = np.zeros((count, count), np.int64)
    numbers = values.astype(np.float64)
    for first in range(count):
        weight = np.cumsum(weights[first:])
        moment = np.cumsum(weights[first:] * numbers[first:])
        square = np.cumsum(weights[first:] * numbers[first:] ** 2)
        middle = np.rint(moment / weight)
        middle[np.logical_or.accumulate(values[first:] == 0)] = 0
        cost[first, first:] = np.maximum(square - 2 * middle * moment + middle**2 * weight, 0)
        center[first, first:] = middle
    return cost, center


def code_histogram(array: QuantizedArray) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Count each code, and sum the squared scales of the channels where it stands.

    Returns:
        Counts and squared scales, both of shape [256]; index `code + 128`, whatever the zero point.
    """
    counts, weights = np.zeros(_NUM_CODES, np.int64), np.zeros(_NUM_CODES, np.float64)
    codes_CE = np.moveaxis(array.codes, array.axis, 0).reshape(len(array.scale), -1)  # a view of a table or matrix
    step = max(1, _BLOCK_ELEMENTS // max(codes_CE.shape[1], 1))
    for first in range(0, len(codes_CE), step):
        block = codes_CE[first : first + step].astype(np.int64) - array.zero_point + _NUM_CODES // 2
        squares = np.square(array.scale[first : first + step].astype(np.float64))
        counts += np.bincount(block.ravel(), minlength=_NUM_CODES)
        weights += np.bincount(block.ravel(), np.repeat(squares, block.shape[1]), minlength=_NUM_CODES)
    return counts, weights


def share_codes(array: QuantizedArray, num_clusters: int) -> QuantizedArray:
    """Let all weights of a tensor share a few codes, so that the squared error of the weights is least.

    Channels keep their scales: equal codes of two channels stand for different weights.

    Args:
        array: Codes of one tensor. Not modified.
        num_clusters: Most distinct codes in the result, 2 to 256; 0 is one of them where it is there.

    Returns:
        The same with shared codes, the nearest that there are; zeros stay zeros.
    """
    counts, weights = code_histogram(array)
    there = np.flatnonzero(counts)
    levels = best_levels(there - _NUM_CODES // 2, weights[there], num_clusters)
    bits = (there - _NUM_CODES // 2 + array.zero_point) % _NUM_CODES  # a code's 8 bits, whether signed or not
    table = np.zeros(_NUM_CODES, np.uint8)
    table[bits] = (levels + array.zero_point) % _NUM_CODES
    shared = table[array.codes.view(np.uint8)]
    return replace(array, codes=shared if array.codes.dtype == np.uint8 else shared.view(np.int8))


def entropy_bits(array: QuantizedArray) -> float:
    """Return the order-0 entropy of the codes, in bits a weight: what an entropy coder can come down to.

    >>> from compress.quantize.kernels import quantize_symmetric
    >>> entropy_bits(quantize_symmetric(np.array([[1, -1, 0, 0]], np.float32), axis=0))
    1.5
    """
    counts, _ = code_histogram(array)
    shares = counts[counts > 0] / max(array.codes.size, 1)
    return float(-(shares * np.log2(shares)).sum()) + 0.0
