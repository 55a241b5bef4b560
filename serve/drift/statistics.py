"""Two samples of one feature, counted in the same bins: how sure is it that they are of different distributions?

Pearson's statistic of a table with two rows, reference and window. Where both are of one distribution, every way of
dealing the rows out to the two is equally likely, which fixes the statistic's mean and variance whatever that
distribution is. A gamma distribution with these moments gives the tail. The reference's own size is thus part of the
threshold: a reference of few rows needs a larger difference.

Source: Lewis, Saunders & Westcott, The moments of the Pearson chi-squared statistic and the minimum expected value in
two-way tables, Biometrika 1984 (moments after Haldane 1940 and Dawson 1954); Holm 1979.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Difference", "compare_counts", "gamma_tail", "holm"]

_MIN_EXPECTED = 5.0
_TINY = 1e-300


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How different two samples are.

    Attributes:
        statistic: Pearson's.
        threshold: The statistic that is reached with a chance of `level` where nothing differs.
        p_value: The chance of this statistic or a larger one where nothing differs.
        distance: Total variation, from 0 to 1: the share of rows that are elsewhere.
    """

    statistic: float
    threshold: float
    p_value: float
    distance: float


def compare_counts(reference: Sequence[int], window: Sequence[int], *, is_ordered: bool, level: float) -> Difference:
    """Compare counts in the same bins.

    Args:
        reference: Of the calibration rows.
        window: Of served rows.
        is_ordered: Whether a bin with few rows may be joined with its neighbour; otherwise such bins are joined with
            each other.
        level: Of the threshold.

    >>> compare_counts([50, 50], [50, 50], is_ordered=True, level=0.01).p_value
    1.0
    >>> compare_counts([50, 50], [90, 10], is_ordered=True, level=0.01).p_value < 1e-8
    True
    """
    table = np.array([reference, window], np.float64)  # [2, bins]
    sizes = table.sum(axis=1)
    if not sizes.all():
        return Difference(statistic=0.0, threshold=math.inf, p_value=1.0, distance=0.0)
    shares = table / sizes[:, None]
    distance = float(np.abs(shares[0] - shares[1]).sum() / 2)
    joined = _join_rare(table, sizes, is_ordered=is_ordered)
    columns = joined.sum(axis=0)
    if len(columns) < 2:
        return Difference(statistic=0.0, threshold=math.inf, p_value=1.0, distance=distance)
    expected = sizes[:, None] * columns / sizes.sum()
    statistic = float(((joined - expected) ** 2 / expected).sum())
    mean, variance = _moments(sizes, columns)
    shape, scale = mean * mean / variance, variance / mean
    return Difference(
        statistic=statistic,
        threshold=scale * _gamma_quantile(shape, level),
        p_value=gamma_tail(shape, statistic / scale),
        distance=distance,
    )


def _join_rare(table: NDArray[np.float64], sizes: NDArray[np.float64], *, is_ordered: bool) -> NDArray[np.float64]:
    """Join bins until each has enough rows; which ones, only the two samples together decide."""
    need = _MIN_EXPECTED * sizes.sum() / sizes.min()
    together = table.sum(axis=0)
    if is_ordered:
        groups: list[NDArray[np.float64]] = []
        open_group = np.zeros(2)
        for column in table.T:
            open_group = open_group + column
            if open_group.sum() >= need:
                groups.append(open_group)
                open_group = np.zeros(2)
    else:
        groups = list(table.T[together >= need])
        open_group = table.T[together < need].sum(axis=0)
    if open_group.sum() >= need or not groups:
        groups.append(open_group)
    else:
        groups[-1 if is_ordered else int(np.argmin([group.sum() for group in groups]))] += open_group
    return np.stack(groups, axis=1)


def _moments(rows: NDArray[np.float64], columns: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and variance of Pearson's statistic over all tables with these margins, by how likely they are."""
    total = float(rows.sum())

    def parts(margin: NDArray[np.float64]) -> tuple[float, float]:
        count = len(margin)
        spread = (count - 1) * (total - count) / (total - 1)
        skew = (float((total / margin).sum()) - count * count) / (total - 2)
        return spread, skew

    (v1, w1), (v2, w2) = parts(rows), parts(columns)
    mean = total / (total - 1) * (len(rows) - 1) * (len(columns) - 1)
    variance = 2 * total / (total - 3) * (v1 - w1) * (v2 - w2) + total * total / (total - 1) * w1 * w2
    return mean, variance


def gamma_tail(shape: float, x: float) -> float:
    """The chance that a gamma variable of unit scale is above x.

    >>> round(gamma_tail(0.5, 3.841458820694124 / 2), 6)  # chi-squared with one degree of freedom
    0.05
    """
    if x <= 0:
        return 1.0
    scale = math.exp(max(-x + shape * math.log(x) - math.lgamma(shape), -700.0))
    if x < shape + 1:
        term = total = 1.0 / shape
        for step in range(1, 1000):
            term *= x / (shape + step)
            total += term
            if term < total * 1e-15:
                break
        return max(1.0 - scale * total, 0.0)
    # Lentz's continued fraction
    b = x + 1 - shape
    c, d = 1 / _TINY, 1 / b
    value = d
    for step in range(1, 1000):
        factor = -step * (step - shape)
        b += 2
        d = 1 / (factor * d + b or _TINY)
        c = b + factor / c or _TINY
        value *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return scale * value


def _gamma_quantile(shape: float, level: float) -> float:
    """What a gamma variable of unit scale is above with a chance of `level`."""
    low, high = 0.0, shape + 10.0
    while gamma_tail(shape, high) > level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gamma_tail(shape, middle) > level else (low, middle)
    return high


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: of those below alpha, one or more is wrong with a chance of alpha at most.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        largest = max(largest, min(p_values[index] * (len(p_values) - rank), 1.0))
        adjusted[index] = largest
    return adjusted
