from __future__ import annotations

import json

import pytest

from tests.bench.duet_built import built


def test_the_floor_is_the_spread_of_the_baseline_against_itself() -> None:
    quiet, noisy = built(noise=0.001).noise, built(noise=0.05, luck=0.01).noise
    assert 0 < quiet.percent < 0.1
    assert noisy.percent > 10 * quiet.percent
    assert noisy.wall_percent == pytest.approx(noisy.percent, rel=0.05)


def test_the_floor_does_not_depend_on_the_artifact() -> None:
    assert built(0.0, noise=0.01).noise == built(3.0, noise=0.01).noise


def test_luck_of_a_session_counts_even_where_its_turns_agree() -> None:
    assert built(luck=0.01).noise.percent > 0.3


def test_chance_alone_is_rarely_called_a_bias() -> None:
    called = sum(built(luck=0.01, noise=0.02, seed=seed).noise.bias_percent > 0 for seed in range(100))
    assert called <= 8  # 2 are expected


def test_a_baseline_that_differs_from_itself_is_a_bias() -> None:
    noise = built(twin=0.03, luck=0.002, noise=0.01).noise
    assert 2.0 < noise.bias_percent < 3.0
    assert noise.summary.startswith("the baseline against itself: -2.")


def test_the_floor_is_plain_json_with_units() -> None:
    noise = built(noise=0.01).noise
    read = json.loads(json.dumps(noise.to_json(), allow_nan=False))
    assert read["cpu_percent"] == noise.percent
    assert read["overhead_cpu_ns"] == 120
    assert read["cpu_ratio"]["lower"] < 1 < read["cpu_ratio"]["upper"]
