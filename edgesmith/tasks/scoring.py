"""Metric kernels: arrays → figures, in NumPy. Definitions are scikit-learn's and SciPy's; tests compare."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "confusion",
    "f1_macro",
    "matthews",
    "pearson",
    "pearson_terms",
    "precision_macro",
    "rank",
    "ratio_of_sums",
    "recall_macro",
    "softmax",
    "spearman",
    "spearman_terms",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def softmax(logits_NL: NDArray[np.floating]) -> Floats:
    """Probabilities, float64 of shape [N, L]."""
    shifted = logits_NL.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    exponentials: Floats = np.exp(shifted)
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials


def confusion(targets: Ints, predicted: Ints) -> Floats:
    """Counts of shape [C, C], target by prediction, over the labels that occur in either."""
    labels, codes = np.unique(np.concatenate([targets, predicted]), return_inverse=True)
    rows, columns = codes[: len(targets)], codes[len(targets) :]
    counts = np.zeros((len(labels), len(labels)))
    np.add.at(counts, (rows, columns), 1.0)
    return counts


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """Element-wise quotient, 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def precision_macro(targets: Ints, predicted: Ints) -> float:
    """Mean over the occurring labels of the precision; 0 for a label never predicted."""
    counts = confusion(targets, predicted)
    return float(_divide(np.diag(counts), counts.sum(axis=0)).mean())


def recall_macro(targets: Ints, predicted: Ints) -> float:
    """Mean over the occurring labels of the recall; 0 for a label that no row has."""
    counts = confusion(targets, predicted)
    return float(_divide(np.diag(counts), counts.sum(axis=1)).mean())


def f1_macro(targets: Ints, predicted: Ints) -> float:
    """Mean over the occurring labels of the F1."""
    counts = confusion(targets, predicted)
    return float(_divide(2 * np.diag(counts), counts.sum(axis=0) + counts.sum(axis=1)).mean())


def matthews(targets: Ints, predicted: Ints) -> float:
    """Matthews' correlation coefficient for any number of labels; 0 where it is undefined.

    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004.
    """
    counts = confusion(targets, predicted)
    true, guessed, num = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    covariance = np.trace(counts) * num - true @ guessed
    spread = (num**2 - guessed @ guessed) * (num**2 - true @ true)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(x: Floats, y: Floats) -> float:
    """Pearson's correlation; 0 where one side is constant and says nothing about the other."""
    centred_x, centred_y = x - x.mean(), y - y.mean()
    norms = float(np.linalg.norm(centred_x) * np.linalg.norm(centred_y))
    return float(np.clip(centred_x @ centred_y / norms, -1.0, 1.0)) if norms > 0 else 0.0


def rank(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2.0)[codes]
    return ranks


def spearman(x: Floats, y: Floats) -> float:
    """Spearman's rank correlation."""
    return pearson(rank(x), rank(y))


def pearson_terms(x: Floats, y: Floats) -> Floats:
    """One value a row whose mean is Pearson's correlation r, and whose spread is the spread of r.

    They are r plus the influence of each row on r: z_x z_y - r (z_x² + z_y²) / 2.
    Source: Devlin, Gnanadesikan and Kettenring, "Robust estimation and outlier detection with correlation
    coefficients", Biometrika 1975.
    """
    r = pearson(x, y)
    if x.std() == 0 or y.std() == 0:
        return np.full(len(x), r)
    z_x, z_y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    return _centred(r + z_x * z_y - r * (z_x**2 + z_y**2) / 2, r)


def spearman_terms(x: Floats, y: Floats) -> Floats:
    """One value a row whose mean is Spearman's correlation, and whose spread is its spread.

    Source: Croux and Dehon, "Influence functions of the Spearman and Kendall correlation measures", 2010.
    """
    rho, num = spearman(x, y), len(x)
    if num < 2 or x.std() == 0 or y.std() == 0:
        return np.full(num, rho)
    grade_x, grade_y = (rank(x) - 0.5) / num, (rank(y) - 0.5) / num
    influence = 12 * (grade_x * grade_y + _mean_above(x, grade_y) + _mean_above(y, grade_x))
    return _centred(influence, rho)


def _mean_above(x: Floats, weights: Floats) -> Floats:
    """For every row, the mean over all rows of `weights` where x is larger (half where it is equal)."""
    _, codes = np.unique(x, return_inverse=True)
    sums = np.bincount(codes, weights=weights)
    above = sums[::-1].cumsum()[::-1] - sums / 2
    means: Floats = (above / len(x))[codes]
    return means


def _centred(terms: Floats, mean: float) -> Floats:
    return np.asarray(terms - terms.mean() + mean, np.float64)


def ratio_of_sums(terms_N2: Floats) -> float:
    """Sum of the first column over that of the second; 1 where there is nothing to get right.

    >>> ratio_of_sums(np.array([[1, 2], [2, 2]])), ratio_of_sums(np.array([[0, 0]]))
    (0.75, 1.0)
    """
    got, possible = terms_N2.sum(axis=0).tolist()
    return float(got / possible) if possible else 1.0
