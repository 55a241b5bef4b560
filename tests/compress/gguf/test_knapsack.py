from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.gguf.knapsack import Option, solve

OPTIONS = st.builds(
    Option,
    cost=st.integers(0, 40).map(lambda value: value * 32),
    loss=st.floats(0, 10).map(lambda value: round(value, 3)),
)
ITEMS = st.lists(st.lists(OPTIONS, min_size=1, max_size=4), min_size=1, max_size=5)


def totals(items: list[list[Option]], chosen: list[int]) -> tuple[int, float]:
    options = [options[number] for options, number in zip(items, chosen, strict=True)]
    return sum(one.cost for one in options), sum(one.loss for one in options)


def brute_force(items: list[list[Option]], budget: int) -> float | None:
    combinations = (
        (sum(one.cost for one in chosen), sum(one.loss for one in chosen)) for chosen in itertools.product(*items)
    )
    return min((loss for cost, loss in combinations if cost <= budget), default=None)


@given(items=ITEMS, budget=st.integers(0, 7000))
@settings(max_examples=200, deadline=None)
def test_no_other_choice_within_the_budget_loses_less(items: list[list[Option]], budget: int) -> None:
    frontier = solve(items)
    units = frontier.units_within(budget)
    best = brute_force(items, budget)
    assert (units is None) == (best is None)
    if units is not None and best is not None:
        cost, loss = totals(items, frontier.options(units))
        assert cost <= budget
        assert abs(loss - best) < 1e-9
        assert abs(frontier.losses[units] - loss) < 1e-9


@given(items=ITEMS, budget=st.integers(0, 7000), most_units=st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_a_coarse_table_still_keeps_the_budget(items: list[list[Option]], budget: int, most_units: int) -> None:
    frontier = solve(items, most_units=most_units)
    units, chosen = frontier.units_within(budget), frontier.options_within(budget)
    assert (units is None) == (chosen is None)
    if units is not None and chosen is not None:
        cost, loss = totals(items, frontier.options(units))
        assert cost <= budget
        filled_cost, filled_loss = totals(items, chosen)
        assert filled_cost <= budget
        assert filled_loss <= loss
        for item, options in enumerate(items):  # no single change fits into what is left and gains anything
            now = options[chosen[item]]
            assert not any(one.cost - now.cost <= budget - filled_cost and one.loss < now.loss for one in options)


def test_what_rounding_leaves_of_a_budget_is_spent() -> None:
    """Every option costs a little more than one unit, and counts as two: half of the budget would stay unused."""
    items = [[Option(0, 1.0), Option(101, 0.1)] for _ in range(8)]
    items.append([Option(0, 0.0), Option(800 * 100 - 8 * 101, 0.0)])  # makes the unit large
    frontier = solve(items, most_units=800)
    assert frontier.unit == 100
    units = frontier.units_within(8 * 101)
    assert units is not None
    assert totals(items, frontier.options(units)) == (4 * 101, pytest.approx(4.4))
    chosen = frontier.options_within(8 * 101)
    assert chosen is not None
    assert totals(items, chosen) == (8 * 101, pytest.approx(0.8))


@given(items=ITEMS)
@settings(max_examples=100, deadline=None)
def test_more_budget_never_loses_more(items: list[list[Option]]) -> None:
    losses = solve(items).losses
    assert (losses[1:] <= losses[:-1]).all()


@given(items=ITEMS, loss=st.floats(0, 30))
@settings(max_examples=200, deadline=None)
def test_no_cheaper_choice_loses_as_little(items: list[list[Option]], loss: float) -> None:
    frontier = solve(items)
    units = frontier.units_for_loss(loss)
    assert (units is None) == (frontier.losses[-1] > loss)
    if units is not None:
        assert totals(items, frontier.options(units))[1] <= loss + 1e-9
        assert units == 0 or frontier.losses[units - 1] > loss
