"""How far two sets of outputs are apart, row by row. Pure array functions, in float64.

Axes: N rows, L labels, H hidden.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["cosine", "kl_divergence", "max_abs_difference", "same_top_label"]

Float: TypeAlias = NDArray[np.float64]


def kl_divergence(reference_NL: NDArray[Any], candidate_NL: NDArray[Any]) -> Float:
    """Kullback–Leibler divergence of the candidate's label probabilities from the reference's, in nats.

    Args:
        reference_NL: Logits, of shape [N, L].
        candidate_NL: Logits of the same shape.

    Returns:
        float64 of shape [N], at least 0.

    >>> kl_divergence(np.array([[0.0, 0.0]]), np.array([[0.0, 0.0]]))
    array([0.])
    """
    log_p, log_q = _log_softmax(reference_NL), _log_softmax(candidate_NL)
    return np.asarray(np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0.0), np.float64)


def same_top_label(reference_NL: NDArray[Any], candidate_NL: NDArray[Any], *, tie: float = 0.0) -> NDArray[np.bool_]:
    """Whether both prefer the same label in each row.

    Args:
        reference_NL: Logits, of shape [N, L].
        candidate_NL: Logits of the same shape.
        tie: A label is as good as the reference's best if the reference gives it at most this much less
            probability.

    Returns:
        bool of shape [N].

    >>> same_top_label(np.array([[0.01, 0.0]]), np.array([[0.0, 0.01]]))
    array([False])
    >>> same_top_label(np.array([[0.01, 0.0]]), np.array([[0.0, 0.01]]), tie=0.02)
    array([ True])
    """
    chosen = candidate_NL.argmax(axis=1)[:, None]
    probability = np.exp(_log_softmax(reference_NL))
    return np.asarray(np.take_along_axis(probability, chosen, axis=1)[:, 0] >= probability.max(axis=1) - tie)


def cosine(reference_NH: NDArray[Any], candidate_NH: NDArray[Any]) -> Float:
    """Cosine of the angle between the rows of two arrays; two rows of zeros count as equal.

    Returns:
        float64 of shape [N] in [-1, 1].
    """
    a, b = reference_NH.astype(np.float64), candidate_NH.astype(np.float64)
    lengths_a, lengths_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    product = lengths_a * lengths_b
    with np.errstate(invalid="ignore", divide="ignore"):
        angles = (a * b).sum(axis=1) / product
    angles = np.where(product > 0, angles, (lengths_a == lengths_b).astype(np.float64))
    return np.asarray(np.clip(angles, -1.0, 1.0), np.float64)


def max_abs_difference(reference: NDArray[Any], candidate: NDArray[Any]) -> Float:
    """Largest difference of any element in each row (first axis); 0 for rows without elements."""
    gap = np.abs(reference.astype(np.float64) - candidate.astype(np.float64))
    return np.asarray(gap.reshape(len(gap), -1).max(axis=1, initial=0.0), np.float64)


def _log_softmax(logits_NL: NDArray[Any]) -> Float:
    shifted = logits_NL.astype(np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), np.float64)
