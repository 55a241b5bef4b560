"""The rates of wrong verdicts, by a smaller run of tools/simulate_gates.py."""

from __future__ import annotations

import pytest
from scipy.stats import binom

from bench.gates.verdict import Outcome
from tools import simulate_gates as tool

CASES = {f"{case.gate}, {case.truth}": case for family in tool.FAMILIES.values() for case in family()}
SLOW = ("accuracy, n = 1,300", "mean accuracy, n = 1,000", "divergence", "three accuracy limits, n = 1,000, worse")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name.startswith(SLOW) else pytest.param(name) for name in CASES]


@pytest.mark.parametrize("name", NAMES)
def test_wrong_verdicts_come_no_more_often_than_promised(name: str) -> None:
    num_trials = 400
    for rate in tool.simulate(CASES[name], num_trials, seed=5):
        assert rate.num_wrong <= binom.ppf(0.9995, num_trials, rate.case.promised[rate.wrong])
        assert rate.is_kept


def test_a_model_that_is_clearly_worse_fails_and_one_that_is_equal_passes() -> None:
    worse = tool.judge_classes(("accuracy",), (0.01,), 1300, tool.lost_for("accuracy", 0.05, 0.15), 0.15)
    equal = tool.judge_classes(("accuracy",), (0.03,), 1300, tool.lost_for("accuracy", 0.0, 0.15), 0.15)
    for judge, right in ((worse, Outcome.FAIL), (equal, Outcome.PASS)):
        case = tool.Case(gate="", truth="", promised={right: 1.0}, judge=judge)
        assert tool.simulate(case, 100, seed=6)[0].num_wrong >= 90


def test_a_broken_promise_is_noticed() -> None:
    case = tool.Case(gate="", truth="", promised={Outcome.PASS: 0.05}, judge=lambda _: Outcome.PASS)
    rate = tool.simulate(case, 50, seed=0)[0]
    assert not rate.is_kept
    assert "100.00%" in tool.to_row(rate)
