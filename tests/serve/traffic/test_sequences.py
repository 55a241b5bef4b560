from __future__ import annotations

import math

import numpy as np
import pytest

from serve.traffic.sequences import Sums, difference_interval, log_winnings, mean_interval

CASES = [
    (Sums(0, 0.0), Sums(0, 0.0)),
    (Sums(5, 5.0), Sums(0, 0.0)),
    (Sums(5, 5.0), Sums(1000, 10.0)),
    (Sums(300, 0.0), Sums(300, 0.0)),
    (Sums(40, 12.0), Sums(700, 30.0)),
    (Sums(10, 0.5), Sums(3, 1.5)),
]


@pytest.mark.parametrize(("arm", "control"), CASES)
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_interval_is_the_range_of_the_pairs_of_means_that_are_not_left_out(
    arm: Sums, control: Sums, alpha: float
) -> None:
    means = np.linspace(1e-9, 1 - 1e-9, 801)
    ours, theirs = (np.array([log_winnings(sums, float(mean)) for mean in means]) for sums in (arm, control))
    is_left = ours[:, None] + theirs[None, :] < -math.log(alpha)
    differences = (means[:, None] - means[None, :])[is_left]
    low, high = difference_interval(arm, control, alpha)
    assert low <= differences.min() + 1e-6
    assert high >= differences.max() - 1e-6
    assert low >= differences.min() - 2 * (means[1] - means[0])
    assert high <= differences.max() + 2 * (means[1] - means[0])


@pytest.mark.parametrize("rates", [(0.02, 0.02), (0.3, 0.25)])
def test_interval_holds_at_every_moment(rates: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    num_trials, missed, alpha = 40, 0, 0.1
    for _ in range(num_trials):
        harm = rng.random((2, 300)) < np.array(rates)[:, None]
        sums = np.cumsum(harm, axis=1)
        difference = rates[0] - rates[1]
        intervals = (
            difference_interval(Sums(num, float(sums[0, num - 1])), Sums(num, float(sums[1, num - 1])), alpha)
            for num in range(1, 301, 7)
        )
        missed += any(not low <= difference <= high for low, high in intervals)
    # Of 40 trials with a chance of 0.1 each, more than 10 come about once in a thousand times.
    assert missed <= 10


def test_more_requests_narrow_the_interval() -> None:
    widths = []
    for num in (100, 1000, 10_000, 100_000):
        low, high = difference_interval(Sums(num, num * 0.03), Sums(num, num * 0.01), 0.05)
        assert low < 0.02 < high
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.01


def test_swapped_arms_have_the_interval_turned_around() -> None:
    one, other = Sums(400, 13.0), Sums(900, 70.0)
    low, high = difference_interval(one, other, 0.05)
    assert difference_interval(other, one, 0.05) == pytest.approx((-high, -low))


def test_harm_is_proven_sooner_than_by_an_interval_for_each_arm() -> None:
    one, other = Sums(60, 6.0), Sums(540, 5.0)
    separate = mean_interval(one, 0.025)[0] - mean_interval(other, 0.025)[1]
    assert separate < 0 < difference_interval(one, other, 0.05)[0]


def test_mean_without_requests_may_be_anything() -> None:
    assert mean_interval(Sums(), 0.05) == (0.0, 1.0)
    low, high = mean_interval(Sums(200, 20.0), 0.05)
    assert 0.04 < low < 0.1 < high < 0.2
    assert log_winnings(Sums(200, 20.0), high) == pytest.approx(-math.log(0.05))
