from __future__ import annotations

from collections import Counter

import pytest

from compress.distill.split import hold_out
from edgesmith.errors import DataError


def test_labels_are_held_out_in_their_proportions() -> None:
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    trained, held = hold_out(labels, 0.2, seed=3, most=1000)
    assert sorted(trained + held) == list(range(100))
    assert Counter(labels[row] for row in held) == {"a": 12, "b": 6, "c": 2}


def test_another_seed_holds_out_other_rows_and_the_same_the_same() -> None:
    groups = [0] * 100
    assert hold_out(groups, 0.1, seed=1, most=1000) == hold_out(groups, 0.1, seed=1, most=1000)
    assert hold_out(groups, 0.1, seed=1, most=1000) != hold_out(groups, 0.1, seed=2, most=1000)


def test_no_more_than_the_most_are_held_out() -> None:
    assert len(hold_out([0] * 100, 0.5, seed=0, most=7)[1]) == 7


def test_too_few_rows_are_refused_with_their_number() -> None:
    with pytest.raises(DataError, match="9 rows are too few to train on: 2 are held out"):
        hold_out([0] * 9, 0.1, seed=0, most=10)
