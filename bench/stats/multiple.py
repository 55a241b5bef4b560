"""Several tests at once: each further one is a further chance of a false alarm."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["holm"]


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjust p-values so that holding each against alpha raises any false alarm at all with at most alpha.

    Nothing is assumed of how the tests depend on each other.

    Args:
        p_values: Of shape [m], in [0, 1].

    Returns:
        Adjusted p-values of shape [m] in the same order, none smaller than its own.

    Raises:
        ValueError: One is no probability.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979), 65-70.

    >>> [round(float(p), 6) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    given = np.asarray(p_values, dtype=np.float64)
    if not ((given >= 0) & (given <= 1)).all():
        raise ValueError(f"p-values that are no probabilities: {given.tolist()}")
    order = np.argsort(given, kind="stable")
    stepped = np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1))
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
