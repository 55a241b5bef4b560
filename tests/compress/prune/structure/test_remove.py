"""The kernels that remove inputs of a linear layer, against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.prune.structure.remove import damped, reconstruct, removal_order


def _problem(seed: int, inputs: int, outputs: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(inputs, inputs, dtype=torch.float64, generator=generator)
    rows = torch.randn(40, inputs, dtype=torch.float64, generator=generator) @ mixed
    weight = torch.randn(outputs, inputs, dtype=torch.float64, generator=generator)
    return weight, rows, rows.T @ rows


def _loss(weight: torch.Tensor, rows: torch.Tensor, kept: list[int]) -> float:
    """What is left of ‖X Wᵀ - X_K W'ᵀ‖² for the best W', by a solver that knows nothing of Gram matrices."""
    target = rows @ weight.T
    best = torch.linalg.lstsq(rows[:, kept], target, driver="gelsd").solution
    return float((target - rows[:, kept] @ best).square().sum())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), inputs=st.integers(3, 9), gone=st.integers(1, 2))
def test_losses_of_removed_units_add_up_to_the_error_of_least_squares(seed: int, inputs: int, gone: int) -> None:
    weight, rows, gram = _problem(seed, inputs)
    removal = removal_order(weight, gram, torch.arange(inputs)[:, None], gone)
    kept = [unit for unit in range(inputs) if unit not in removal.order]
    assert sum(removal.losses) == pytest.approx(_loss(weight, rows, kept), rel=1e-5, abs=1e-7)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), units=st.integers(2, 5), size=st.integers(1, 3))
def test_the_first_unit_to_go_is_the_one_that_brute_force_finds(seed: int, units: int, size: int) -> None:
    weight, rows, gram = _problem(seed, units * size)
    blocks = torch.arange(units * size).reshape(units, size)
    losses = []
    for unit in range(units):
        kept = [entry for other in range(units) if other != unit for entry in blocks[other].tolist()]
        losses.append(_loss(weight, rows, kept))
    removal = removal_order(weight, gram, blocks, 1)
    assert removal.losses[0] == pytest.approx(min(losses), rel=1e-5, abs=1e-7)
    assert losses[removal.order[0]] == pytest.approx(min(losses), rel=1e-5, abs=1e-7)


def test_corrected_weights_are_those_of_least_squares() -> None:
    weight, rows, gram = _problem(1, 8)
    for kept in itertools.combinations(range(8), 5):
        best = torch.linalg.lstsq(rows[:, list(kept)], rows @ weight.T, driver="gelsd").solution.T
        torch.testing.assert_close(reconstruct(weight, gram, kept), best, rtol=1e-6, atol=1e-8)


def test_an_input_that_is_always_zero_goes_first_and_costs_nothing() -> None:
    weight, rows, _ = _problem(2, 6)
    rows[:, 4] = 0
    gram = rows.T @ rows + 1e-9 * torch.eye(6, dtype=torch.float64)
    removal = removal_order(weight, gram, torch.arange(6)[:, None], 1)
    assert removal.order == (4,)
    assert removal.losses[0] < 1e-7


def test_damping_makes_inputs_that_are_always_zero_invertible() -> None:
    _, rows, _ = _problem(2, 6)
    rows[:, 4] = 0
    gram = rows.T @ rows
    assert torch.linalg.matrix_rank(gram) == 5
    assert torch.linalg.matrix_rank(damped(gram)) == torch.linalg.matrix_rank(damped(torch.zeros_like(gram))) == 6


def test_many_units_go_several_at_a_time_and_their_losses_still_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.prune.structure.remove._MOST_STEPS", 2)
    weight, rows, gram = _problem(4, 9)
    removal = removal_order(weight, gram, torch.arange(9)[:, None], 5)
    assert len(removal.losses) == 2
    kept = [unit for unit in range(9) if unit not in removal.order]
    assert len(kept) == 4
    assert sum(removal.losses) == pytest.approx(_loss(weight, rows, kept), rel=1e-6)


def test_a_copied_input_costs_nothing_once_weights_are_corrected() -> None:
    weight, rows, _ = _problem(3, 6)
    rows[:, 5] = rows[:, 0]
    gram = rows.T @ rows + 1e-9 * torch.eye(6, dtype=torch.float64)
    removal = removal_order(weight, gram, torch.arange(6)[:, None], 1)
    assert removal.order[0] in (0, 5)
    assert removal.losses[0] < 1e-5
