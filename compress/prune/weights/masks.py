"""Which weights of a matrix go, by their size alone or by their size times that of their inputs.

Shapes: O outputs (rows), I inputs (columns). A mask is true where a weight goes. The lowest scores go; of equal
ones, those with the lower index.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.prune.weights.selection import Pattern, Selection, Share

__all__ = ["choose_in_groups", "choose_lowest", "magnitude_mask", "wanda_mask"]


def choose_lowest(scores_RN: Tensor, count: int) -> Tensor:
    """Mark the lowest scores of each row.

    Args:
        scores_RN: Finite, of shape [R, N].
        count: How many of each row, 0 ≤ count ≤ N.

    Returns:
        Bool of shape [R, N], true at exactly `count` places of each row.
    """
    if count == 0:
        return torch.zeros_like(scores_RN, dtype=torch.bool)
    threshold_R1 = torch.kthvalue(scores_RN, count, dim=1, keepdim=True).values
    below_RN = scores_RN < threshold_R1
    equal_RN = scores_RN == threshold_R1
    left_R1 = count - below_RN.sum(dim=1, keepdim=True, dtype=torch.int32)
    return below_RN | (equal_RN & (equal_RN.cumsum(dim=1, dtype=torch.int32) <= left_R1))


def choose_in_groups(scores_OI: Tensor, pattern: Pattern) -> Tensor:
    """Mark the lowest scores of every group of columns, in each row.

    Args:
        scores_OI: Finite, of shape [O, I] with I a multiple of the pattern's group.
        pattern: How many of each group stay.

    Returns:
        Bool of shape [O, I].
    """
    groups_RM = scores_OI.reshape(-1, pattern.group)
    return choose_lowest(groups_RM, pattern.num_zeros).reshape(scores_OI.shape)


def magnitude_mask(weight_OI: Tensor, selection: Selection) -> Tensor:
    """Mark the smallest weights: of the whole matrix, or of every group.

    Args:
        weight_OI: Finite weights of shape [O, I]. Not modified.
        selection: How many.

    Returns:
        Bool of shape [O, I].
    """
    scores_OI = weight_OI.abs()
    match selection:
        case Pattern():
            return choose_in_groups(scores_OI, selection)
        case Share():
            return choose_lowest(scores_OI.reshape(1, -1), selection.num_zeros(scores_OI.numel())).reshape(
                scores_OI.shape
            )


def wanda_mask(weight_OI: Tensor, norms_I: Tensor, selection: Selection) -> Tensor:
    """Mark the weights that matter least to the output: the smallest |weight| · ‖input‖ of every row, or group.

    Args:
        weight_OI: Finite weights of shape [O, I]. Not modified.
        norms_I: Euclidean norm of each input over the calibration tokens, of shape [I].
        selection: How many; a share is taken out of every row.

    Returns:
        Bool of shape [O, I].

    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (2023), section 3.
    """
    scores_OI = weight_OI.abs() * norms_I.to(weight_OI.dtype)
    match selection:
        case Pattern():
            return choose_in_groups(scores_OI, selection)
        case Share():
            return choose_lowest(scores_OI, selection.num_zeros(scores_OI.shape[1]))
