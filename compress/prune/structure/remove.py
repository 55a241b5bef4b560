"""Remove inputs of a linear layer so that its outputs change least, and correct what stays: pure kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Removal", "damped", "reconstruct", "removal_order"]

_DAMPING = 1e-2
_MOST_STEPS = 512
"""Where more units go than this, several go at a time: a step costs as much as the Gram matrix is large."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """In which order units go, and what that costs."""

    order: tuple[int, ...]
    """Unit numbers, the first to go first; the ones not in it stay."""
    losses: tuple[float, ...]
    """‖X·ΔWᵀ‖² that each step adds, with all that stays corrected; a step is one unit, of many several."""


def removal_order(weight_OI: Tensor, gram_II: Tensor, units_UB: Tensor, num_removed: int) -> Removal:
    """Choose greedily which units go, each time the one whose loss the others can make up for best.

    Removing the inputs S of a unit and correcting the rest costs tr(W_S (H⁻¹_SS)⁻¹ W_Sᵀ), with
    H = XᵀX; weights and H⁻¹ are then updated, and the next unit is chosen.

    Args:
        weight_OI: float64 [O, I]. Not modified.
        gram_II: H of the inputs, float64 [I, I], positive definite; see `damped`.
        units_UB: Inputs of each unit, int64 [U, B].
        num_removed: How many units go; fewer than U.

    Source: Kurtić, Frantar, Alistarh, "ZipLM: Inference-Aware Structured Pruning of Language Models" (2023), eq. 2
        and 3; Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon" (1992).
    """
    weight, inverse = weight_OI.clone(), torch.linalg.inv(gram_II)
    inverse = (inverse + inverse.T) / 2
    present = torch.ones(len(units_UB), dtype=torch.bool)
    order: list[int] = []
    losses: list[float] = []
    at_once = -(-num_removed // _MOST_STEPS)
    while len(order) < num_removed:
        scores = _scores(weight, inverse, units_UB)
        scores[~present] = torch.inf
        units = scores.argsort(stable=True)[: min(at_once, num_removed - len(order))]
        entries = units_UB[units].flatten()  # of S
        rows = inverse[entries].clone()  # [S, I]
        columns = weight[:, entries].clone()  # [O, S]
        solved = torch.linalg.solve(rows[:, entries], rows)  # (H⁻¹_SS)⁻¹ H⁻¹_S:
        change = torch.linalg.solve(rows[:, entries], columns.T)  # [S, O]
        losses.append(max(float((columns.T * change).sum()), 0.0))
        weight.addmm_(columns, solved, alpha=-1)
        inverse.addmm_(rows.T, solved, alpha=-1)
        weight[:, entries] = 0
        inverse[entries, :] = 0
        inverse[:, entries] = 0
        inverse[entries, entries] = 1  # keeps the next inversions of blocks possible
        present[units] = False
        order += units.tolist()
    return Removal(order=tuple(order), losses=tuple(losses))


def _scores(weight_OI: Tensor, inverse_II: Tensor, units_UB: Tensor) -> Tensor:
    if units_UB.shape[1] == 1:
        entries = units_UB[:, 0]
        return weight_OI[:, entries].square().sum(0) / inverse_II.diagonal()[entries]
    blocks = inverse_II[units_UB[:, :, None], units_UB[:, None, :]]  # [U, B, B]
    columns = weight_OI[:, units_UB].permute(1, 2, 0)  # [U, B, O]
    scores: Tensor = (columns * torch.linalg.solve(blocks, columns)).sum((1, 2))
    return scores


def reconstruct(weight_OI: Tensor, gram_II: Tensor, kept: Sequence[int] | Tensor) -> Tensor:
    """Find the weights of the kept inputs with which the outputs are closest to those of all: least squares.

    Args:
        weight_OI: float64 [O, I].
        gram_II: H = XᵀX of all inputs, float64 [I, I], positive definite.
        kept: Inputs that stay, int64 [K].

    Returns:
        float64 [O, K]: W H_:K (H_KK)⁻¹, which minimizes ‖X Wᵀ - X_K W'ᵀ‖.
    """
    entries = torch.as_tensor(kept)
    target = weight_OI @ gram_II[:, entries]  # [O, K]
    solution: Tensor = torch.linalg.solve(gram_II[entries][:, entries], target.T)
    return solution.T


def damped(gram_II: Tensor) -> Tensor:
    """Add a hundredth of the mean to the diagonal, so that inputs that are always zero do no harm.

    Source: Frantar and Alistarh, "SparseGPT" (2023), section 3.3.
    """
    mean = float(gram_II.diagonal().mean())
    return gram_II + torch.eye(len(gram_II), dtype=gram_II.dtype) * (_DAMPING * mean if mean > 0 else 1.0)
