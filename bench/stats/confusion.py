"""Metrics over classes for many confusion matrices at once: resampling asks for them a thousand times.

Definitions are those of `edgesmith.tasks.scoring`. Legend: R resamples, L classes; rows are targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["CLASS_METRICS", "class_statistic", "losses_per_row"]

_CHUNK_VALUES = 4_000_000

Floats = NDArray[np.float64]


def _macro(numerator_RL: Floats, denominator_RL: Floats, counts_RLL: Floats) -> Floats:
    """Mean of the quotients over the classes that occur as target or answer; 0 where a denominator is 0."""
    occurs = counts_RLL.sum(axis=1) + counts_RLL.sum(axis=2) > 0
    values = np.divide(numerator_RL, denominator_RL, out=np.zeros_like(numerator_RL), where=denominator_RL > 0)
    return np.asarray(values.sum(axis=1) / np.maximum(occurs.sum(axis=1), 1))


def _diagonal(counts_RLL: Floats) -> Floats:
    return np.diagonal(counts_RLL, axis1=1, axis2=2).astype(np.float64)


def _f1_macro(counts_RLL: Floats) -> Floats:
    return _macro(2 * _diagonal(counts_RLL), counts_RLL.sum(axis=1) + counts_RLL.sum(axis=2), counts_RLL)


def _precision_macro(counts_RLL: Floats) -> Floats:
    return _macro(_diagonal(counts_RLL), counts_RLL.sum(axis=1), counts_RLL)


def _recall_macro(counts_RLL: Floats) -> Floats:
    return _macro(_diagonal(counts_RLL), counts_RLL.sum(axis=2), counts_RLL)


def _matthews(counts_RLL: Floats) -> Floats:
    """Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient" (2004)."""
    true_RL, guessed_RL = counts_RLL.sum(axis=2), counts_RLL.sum(axis=1)
    num_R = true_RL.sum(axis=1)
    covariance = _diagonal(counts_RLL).sum(axis=1) * num_R - (true_RL * guessed_RL).sum(axis=1)
    spread = (num_R**2 - (guessed_RL**2).sum(axis=1)) * (num_R**2 - (true_RL**2).sum(axis=1))
    root = np.sqrt(np.maximum(spread, 0))
    return np.asarray(np.divide(covariance, root, out=np.zeros_like(covariance), where=spread > 0))


CLASS_METRICS: Mapping[str, Callable[[Floats], Floats]] = {
    "f1_macro": _f1_macro,
    "mcc": _matthews,
    "precision_macro": _precision_macro,
    "recall_macro": _recall_macro,
}
"""Metric → what computes it from counts of shape [R, L, L], target by answer, as float64 of shape [R]."""


def class_statistic(
    metric: str,
    targets: ArrayLike,
    answers: Sequence[ArrayLike],
    combine: Callable[[Sequence[Floats]], Floats],
) -> tuple[NDArray[np.int64], Callable[[Floats], Floats]]:
    """Express a figure over one or several models' metrics by how many examples of each kind there are.

    Args:
        metric: Of `CLASS_METRICS`.
        targets: Class of each example, of shape [n].
        answers: For each model, its answer for each example, of shape [n].
        combine: The models' metrics, of shape [R] each → the figure, of shape [R].

    Returns:
        Numbers of examples of each kind that occurs (same target, same answers), of shape [K], and the figure as a
        function of such numbers of shape [R, K]: what `bootstrap_counts` takes.
    """
    columns = np.stack([np.asarray(column, dtype=np.int64) for column in (targets, *answers)])
    num_classes = int(columns.max()) + 1
    kinds, counts = np.unique(columns, axis=1, return_counts=True)
    cells = [kinds[0] * num_classes + answer for answer in kinds[1:]]  # in a flattened confusion matrix
    at_once = max(1, _CHUNK_VALUES // num_classes**2)

    def of_model(numbers_RK: Floats, cells_K: NDArray[np.int64]) -> Floats:
        values = []
        for start in range(0, len(numbers_RK), at_once):
            chunk = numbers_RK[start : start + at_once]
            flat = np.zeros((num_classes**2, len(chunk)))
            np.add.at(flat, cells_K, chunk.T)
            values.append(CLASS_METRICS[metric](flat.T.reshape(-1, num_classes, num_classes)))
        return np.concatenate(values)

    return counts, lambda numbers: combine([of_model(numbers, cells_K) for cells_K in cells])


def losses_per_row(metric: str, counts_LL: ArrayLike) -> Floats:
    """How fast a metric falls when right answers become wrong ones.

    Args:
        metric: Of `CLASS_METRICS`.
        counts_LL: Numbers of examples of shape [L, L], target by answer.

    Returns:
        For each class, of shape [L], the most that one example costs which is moved from it or to it, whatever the
        other class. No changed answer costs more than the largest of these.

    Source: the derivatives of the definitions in this module.
    """
    counts = np.asarray(counts_LL, dtype=np.float64)
    true, guessed, right = counts.sum(axis=1), counts.sum(axis=0), np.diag(counts)
    num_occurring = max(1, int((true + guessed > 0).sum()))

    def over(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
        return np.asarray(np.divide(numerator, denominator, out=np.zeros(len(counts)), where=denominator > 0))

    match metric:
        case "recall_macro":
            lost, intruded = over((right > 0) * 1.0, true), np.zeros(len(counts))
        case "precision_macro":
            lost, intruded = over(guessed - right, guessed**2), over(right, guessed**2)
        case "f1_macro":
            f1 = over(2 * right, true + guessed)
            lost, intruded = over((right > 0) * (2 - f1), true + guessed), over(f1, true + guessed)
        case "mcc":
            return _matthews_losses(counts)
        case _:
            raise ValueError(f"{metric} is no metric over classes")
    partners = np.where(lost > 0, lost + intruded.max(), 0), np.where(intruded > 0, intruded + lost.max(), 0)
    return np.asarray(np.maximum(*partners) / num_occurring)


def _matthews_losses(counts_LL: Floats) -> Floats:
    """For each class, the fastest fall of Matthews' correlation by one of its examples with another answer."""
    true, guessed, num = counts_LL.sum(axis=1), counts_LL.sum(axis=0), counts_LL.sum()
    covariance = np.trace(counts_LL) * num - true @ guessed
    spread_guessed, spread_true = num**2 - guessed @ guessed, num**2 - true @ true
    if spread_guessed <= 0 or spread_true <= 0:
        return np.ones(len(counts_LL))
    slope_LL = num - true[:, None] + true[None, :]  # of the covariance, downwards
    slope_LL -= covariance * (guessed[None, :] - guessed[:, None]) / spread_guessed
    np.fill_diagonal(slope_LL, 0)
    return np.asarray(np.maximum(slope_LL, 0).max(axis=1) / np.sqrt(spread_guessed * spread_true))
