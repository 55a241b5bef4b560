from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.prune.weights.masks import choose_lowest, magnitude_mask, wanda_mask
from compress.prune.weights.selection import Pattern, Share, check_fits, selection_of
from edgesmith.errors import UsageError
from edgesmith.recipe import PruneOptions


def weights(num_outputs: int = 12, num_inputs: int = 24, *, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(num_outputs, num_inputs)).astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(
    # Few different values, so that most are tied.
    st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), min_size=1, max_size=4),
    st.integers(0, 7),
)
def test_the_lowest_go_and_of_equal_ones_the_first(rows: list[list[int]], count: int) -> None:
    found = choose_lowest(torch.tensor(rows, dtype=torch.float32), count)
    for row, marked in zip(rows, found.tolist(), strict=True):
        expected = sorted(range(7), key=lambda place: (row[place], place))[:count]
        assert [place for place in range(7) if marked[place]] == sorted(expected)


@pytest.mark.parametrize(("sparsity", "size", "zeros"), [("0.29", 100, 29), ("0.7", 10, 7), ("0.5", 7, 3)])
def test_a_share_is_counted_as_it_is_written(sparsity: str, size: int, zeros: int) -> None:
    assert Share(Fraction(sparsity)).num_zeros(size) == zeros


def test_magnitude_counts_over_the_whole_matrix() -> None:
    weight = weights()
    mask = magnitude_mask(weight, Share(Fraction("0.4")))
    assert int(mask.sum()) == int(0.4 * weight.numel())
    assert weight.abs()[mask].max() <= weight.abs()[~mask].min()


def test_wanda_counts_in_every_row_and_weighs_by_inputs() -> None:
    weight, norms = weights(), torch.linspace(0.01, 9, 24)
    mask = wanda_mask(weight, norms, Share(Fraction("0.5")))
    assert mask.sum(dim=1).tolist() == [12] * 12
    for row, marked in zip((weight.abs() * norms).numpy(), mask.numpy(), strict=True):
        np.testing.assert_array_equal(np.sort(np.argsort(row, kind="stable")[:12]), np.flatnonzero(marked))


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (1, 4), (4, 8), (1, 3)])
def test_a_pattern_holds_in_every_group_of_a_row(kept: int, group: int) -> None:
    for mask in (
        magnitude_mask(weights(), Pattern(kept, group)),
        wanda_mask(weights(), torch.ones(24), Pattern(kept, group)),
    ):
        assert set(mask.reshape(-1, group).sum(dim=1).tolist()) == {group - kept}


def test_weights_that_are_zero_already_count() -> None:
    weight = weights()
    weight[:, ::2] = 0
    for mask in (
        magnitude_mask(weight, Share(Fraction("0.5"))),
        wanda_mask(weight, torch.ones(24), Share(Fraction("0.5"))),
    ):
        torch.testing.assert_close(mask, weight == 0)


@pytest.mark.parametrize(
    ("selection", "size", "said"),
    [
        (Pattern(2, 4), (8, 30), "its 30 inputs do not divide into groups of 4"),
        (Share(Fraction("0.999")), (8, 24), "leaves 1 of 192 weights, fewer than its 8 rows"),
        (Share(Fraction("0.01")), (8, 24), "0.01 of its 24 inputs is no whole weight"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(selection: Pattern | Share, size: tuple[int, int], said: str) -> None:
    with pytest.raises(UsageError, match=rf"model\.layers\.3\.up.*{said}"):
        check_fits("model.layers.3.up", *size, selection)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "wanda"}, "needs a sparsity"),
        ({"method": "wanda", "sparsity": 0.5, "pattern": "2:4"}, "both were given"),
        ({"method": "wanda", "pattern": "4:2"}, "pattern 4:2: N:M keeps N of every M"),
        ({"method": "magnitude", "pattern": "4:4"}, "0 < N < M"),
        ({"method": "sparsegpt", "pattern": "0:4"}, "0 < N < M"),
        ({"method": "wanda", "sparsity": 1.0}, "less than 1"),
        ({"method": "wanda", "sparsity": 0.5, "num_layers": 3}, "num_layers means nothing to method wanda"),
        ({"method": "structured", "sparsity": 0.5}, "sparsity means nothing to method structured"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PruneOptions.model_validate(options)


def test_options_name_a_selection() -> None:
    assert selection_of(PruneOptions(method="wanda", pattern="2:4")) == Pattern(2, 4)
    assert selection_of(PruneOptions(method="wanda", sparsity=0.29)) == Share(Fraction(29, 100))
