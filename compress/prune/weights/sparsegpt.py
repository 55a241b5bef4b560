"""SparseGPT: take weights out column by column, and let those to the right make up for what is lost.

Shapes: O outputs (rows), I inputs (columns), B columns of one block.

Source: Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot" (2023),
algorithm 1 and section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.prune.weights.masks import choose_in_groups, choose_lowest
from compress.prune.weights.selection import Pattern, Selection
from edgesmith.errors import DataError

__all__ = ["InverseFactor", "factor_inverse", "prune_sparsegpt"]

DAMPING = 0.01
"""Added to the diagonal, as a share of its mean."""
_DAMPINGS = (DAMPING, 0.1, 1.0)
_BLOCK = 128


@dataclass(frozen=True)
class InverseFactor:
    """What SparseGPT asks about the inputs of a layer."""

    upper: Tensor
    """float32 of shape [I, I], upper triangular U with Uᵀ U = (XᵀX / mean + damping)⁻¹."""
    dead: Tensor
    """Bool of shape [I]: inputs that are always zero, whose weights change nothing."""
    damping: float
    """What was added to the diagonal, as a share of its mean."""


def factor_inverse(gram_II: Tensor, *, name: str = "the layer") -> InverseFactor:
    """Compute the Cholesky factor of the inverse of XᵀX, damped, in float64.

    Args:
        gram_II: XᵀX of shape [I, I], at any scale. Not modified.
        name: Of the layer, for messages.

    Raises:
        DataError: it is not finite, or has no inverse even with strong damping.
    """
    scaled_II = gram_II.double()
    diagonal_I = scaled_II.diagonal().clone()
    if not bool(torch.isfinite(scaled_II).all()):
        raise DataError(
            f"{name}: its inputs on the calibration data are not finite",
            mend="Look at the calibration data, and whether the checkpoint works at all.",
        )
    dead_I = diagonal_I <= 0
    mean = float(diagonal_I[~dead_I].mean()) if not bool(dead_I.all()) else 1.0
    scaled_II = scaled_II / mean
    scaled_II.diagonal()[dead_I] = 1.0
    for damping in _DAMPINGS:
        damped_II = scaled_II.clone()
        damped_II.diagonal().add_(damping)
        lower_II, failed = torch.linalg.cholesky_ex(damped_II)
        if failed:
            continue
        inverse_II = torch.cholesky_inverse(lower_II)
        upper_II, failed = torch.linalg.cholesky_ex(inverse_II, upper=True)
        if not failed and bool(torch.isfinite(upper_II).all()):
            return InverseFactor(upper_II.float(), dead_I, damping)
    raise DataError(
        f"{name}: the covariance of its inputs has no inverse, even damped by {_DAMPINGS[-1]:g} times its mean",
        mend="Calibrate on more and more varied data.",
    )


def prune_sparsegpt(weight_OI: Tensor, factor: InverseFactor, selection: Selection) -> Tensor:
    """Prune a matrix and update what stays, so that its outputs on the calibration inputs change least.

    Which weights of a block of 128 columns go is decided when the blocks to its left have been pruned, over all
    rows together; a pattern is decided group by group.

    Args:
        weight_OI: Finite float32 weights of shape [O, I]. Not modified.
        factor: Of the layer's inputs.
        selection: How many weights go.

    Returns:
        The pruned weights, float32 of shape [O, I].
    """
    weight_OI = weight_OI.clone()
    num_outputs, num_inputs = weight_OI.shape
    size = _BLOCK
    if isinstance(selection, Pattern):  # a group is never cut in two
        size = max(selection.group, _BLOCK // selection.group * selection.group)
    for start in range(0, num_inputs, size):
        stop = min(start + size, num_inputs)
        mask_OB = None
        if not isinstance(selection, Pattern):
            scores_OB = _scores(weight_OI, factor, start, stop)
            count = selection.num_zeros(num_outputs * stop) - selection.num_zeros(num_outputs * start)
            mask_OB = choose_lowest(scores_OB.reshape(1, -1), count).reshape(scores_OB.shape)
        errors_OB = torch.zeros_like(weight_OI[:, start:stop])
        for column in range(start, stop):
            if isinstance(selection, Pattern) and column % selection.group == 0:
                group = _scores(weight_OI, factor, column, column + selection.group)
                mask_OG = choose_in_groups(group, selection)
                mask_OB = mask_OG if mask_OB is None else torch.cat([mask_OB, mask_OG], dim=1)
            assert mask_OB is not None
            _prune_column_(weight_OI, errors_OB, factor.upper, mask_OB[:, column - start], (start, column, stop))
        weight_OI[:, stop:] -= errors_OB @ factor.upper[start:stop, stop:]
    return weight_OI


def _scores(weight_OI: Tensor, factor: InverseFactor, start: int, stop: int) -> Tensor:
    """What it costs to take each weight out, the weights to its right making up for it; shape [O, stop - start]."""
    scores = (weight_OI[:, start:stop] / factor.upper.diagonal()[start:stop]).square_()
    scores[:, factor.dead[start:stop]] = 0.0
    return scores


def _prune_column_(
    weight_OI: Tensor, errors_OB: Tensor, upper_II: Tensor, mask_O: Tensor, place: tuple[int, int, int]
) -> None:
    """Set the marked weights of one column to zero, and update the columns of its block to its right."""
    start, column, stop = place
    kept_O = weight_OI[:, column].masked_fill(mask_O, 0.0)
    error_O = (weight_OI[:, column] - kept_O) / upper_II[column, column]
    weight_OI[:, column] = kept_O
    weight_OI[:, column + 1 : stop] -= torch.outer(error_O, upper_II[column, column + 1 : stop])
    errors_OB[:, column - start] = error_O
