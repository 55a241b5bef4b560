from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from compress.prune.weights.masks import magnitude_mask, wanda_mask
from compress.prune.weights.selection import Pattern, Selection, Share
from compress.prune.weights.sparsegpt import factor_inverse, prune_sparsegpt
from edgesmith.errors import DataError

HALF = Share(Fraction(1, 2))
SELECTIONS = [HALF, Share(Fraction("0.29")), Pattern(2, 4), Pattern(1, 3)]


def problem(num_outputs: int, num_inputs: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, and 400 inputs that are strongly correlated and of very different size."""
    draw = np.random.default_rng(seed)
    mixed = draw.normal(size=(400, num_inputs // 3)) @ draw.normal(size=(num_inputs // 3, num_inputs))
    inputs = (mixed + 0.3 * draw.normal(size=mixed.shape)) * draw.lognormal(size=num_inputs)
    weight = draw.normal(size=(num_outputs, num_inputs))
    return torch.from_numpy(weight).float(), torch.from_numpy(inputs).float()


def prune(weight: torch.Tensor, inputs: torch.Tensor, selection: Selection) -> torch.Tensor:
    return prune_sparsegpt(weight, factor_inverse(inputs.T @ inputs), selection)


def reference(
    weight: NDArray[np.float64], gram: NDArray[np.float64], selection: Selection, damping: float = 0.01
) -> NDArray[np.float64]:
    """The same by the definition: the optimal-brain-surgeon step with the inverse of what is left, column by column."""
    weight, (rows, columns) = weight.copy(), weight.shape
    hessian = gram + damping * np.mean(np.diag(gram)) * np.eye(columns)
    inverses = [np.linalg.inv(hessian[column:, column:]) for column in range(columns)]
    cost = np.array([inverse[0, 0] for inverse in inverses])
    gone = np.zeros_like(weight, dtype=bool)
    for column in range(columns):
        if isinstance(selection, Pattern):
            if column % selection.group == 0:
                part = slice(column, column + selection.group)
                order = np.argsort(weight[:, part] ** 2 / cost[part], axis=1, kind="stable")
                np.put_along_axis(gone[:, part], order[:, : selection.num_zeros], True, axis=1)
        elif column % 128 == 0:
            part = slice(column, column + 128)
            stop = min(column + 128, columns)
            count = int(selection.sparsity * rows * stop) - int(selection.sparsity * rows * column)
            order = np.argsort((weight[:, part] ** 2 / cost[part]).ravel(), kind="stable")
            chosen = np.zeros(rows * (stop - column), dtype=bool)
            chosen[order[:count]] = True
            gone[:, part] = chosen.reshape(rows, -1)
        for row in np.flatnonzero(gone[:, column]):
            inverse = inverses[column]
            weight[row, column:] -= weight[row, column] / inverse[0, 0] * inverse[0]
            weight[row, column] = 0
    return weight


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_equals_the_surgeon_s_steps_one_by_one(selection: Selection) -> None:
    weight, inputs = problem(6, 156)
    gram = inputs.double().T @ inputs.double()
    expected = reference(weight.double().numpy(), gram.numpy(), selection)
    found = prune_sparsegpt(weight, factor_inverse(gram), selection).numpy()
    np.testing.assert_array_equal(found == 0, expected == 0)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_outputs_move_less_than_with_wanda_and_that_less_than_by_magnitude(selection: Selection, seed: int) -> None:
    weight, inputs = problem(32, 96, seed=seed)
    norms = inputs.norm(dim=0)

    def moved(pruned: torch.Tensor) -> float:
        return float((inputs @ (weight - pruned).T).norm() / (inputs @ weight.T).norm())

    by_magnitude = moved(weight.masked_fill(magnitude_mask(weight, selection), 0))
    by_wanda = moved(weight.masked_fill(wanda_mask(weight, norms, selection), 0))
    assert moved(prune(weight, inputs, selection)) < by_wanda < by_magnitude


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_counts_are_exact(selection: Selection) -> None:
    weight, inputs = problem(7, 300)
    zeros = prune(weight, inputs, selection) == 0
    if isinstance(selection, Pattern):
        assert set(zeros.reshape(-1, selection.group).sum(dim=1).tolist()) == {selection.num_zeros}
    else:
        assert int(zeros.sum()) == selection.num_zeros(weight.numel())


def test_independent_inputs_leave_the_other_weights_alone_and_the_least_important_go() -> None:
    weight, _ = problem(16, 64)
    sizes = torch.linspace(0.1, 5, 64)
    pruned = prune_sparsegpt(weight, factor_inverse(torch.diag(sizes**2)), Pattern(2, 4))
    kept = pruned != 0
    torch.testing.assert_close(pruned[kept], weight[kept])
    # With a diagonal Hessian the best mask is the one of the smallest w² · (h + damping).
    damped = (sizes**2 + 0.01 * (sizes**2).mean()).sqrt()
    torch.testing.assert_close(~kept, wanda_mask(weight, damped, Pattern(2, 4)))


def test_a_weight_that_an_equal_input_can_replace_costs_nothing() -> None:
    inputs = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, dim=1)
    weight = torch.tensor([[1.0, 2.0, -3.0, 0.5]])
    pruned = prune_sparsegpt(weight, factor_inverse(inputs.T @ inputs), Pattern(1, 2))
    moved = (inputs @ (weight - pruned).T).norm() / (inputs @ weight.T).norm()
    assert moved < 0.02
    assert pruned.count_nonzero() == 2


def test_weights_of_inputs_that_are_always_zero_go_first() -> None:
    weight, inputs = problem(5, 40)
    inputs[:, 10:20] = 0
    zeros = prune(weight, inputs, HALF) == 0
    assert bool(zeros[:, 10:20].all())
    assert int(zeros.sum()) == 100


def test_inputs_that_are_all_zero_prune_without_an_error() -> None:
    weight, _ = problem(4, 16)
    pruned = prune_sparsegpt(weight, factor_inverse(torch.zeros(16, 16)), Pattern(2, 4))
    assert int((pruned == 0).sum()) == 32


def test_a_covariance_of_fewer_tokens_than_inputs_is_damped_until_it_has_an_inverse() -> None:
    weight, inputs = problem(4, 60)
    few = inputs[:3]
    factor = factor_inverse(few.T @ few)
    assert factor.damping == 0.01
    assert bool(torch.isfinite(prune_sparsegpt(weight, factor, HALF)).all())


def test_damping_is_raised_for_a_matrix_with_a_negative_eigenvalue() -> None:
    assert factor_inverse(torch.tensor([[1.0, 1.05], [1.05, 1.0]])).damping == 0.1


@pytest.mark.parametrize(
    ("gram", "said"),
    [
        (torch.tensor([[1.0, float("nan")], [float("nan"), 1.0]]), "not finite"),
        (torch.tensor([[1.0, 3.0], [3.0, 1.0]]), "no inverse, even damped by 1 times"),
    ],
)
def test_a_hopeless_covariance_is_refused_by_the_layer_s_name(gram: torch.Tensor, said: str) -> None:
    with pytest.raises(DataError, match=f"layers.0.up.*{said}"):
        factor_inverse(gram, name="layers.0.up")
