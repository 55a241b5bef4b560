from __future__ import annotations

import pytest

from compress.train.score import Score


@pytest.mark.parametrize("sign", [1, -1])
def test_without_noise_only_a_better_figure_is_kept(sign: int) -> None:
    kept = Score(metric=sign * 0.9)
    for metric, expected in ((0.91, True), (0.9, False), (0.89, False)):
        found = Score(metric=sign * metric).is_better(kept, sign * 0.9, higher_is_better=sign > 0)
        assert found is expected


def test_within_the_noise_the_nearer_one_is_kept() -> None:
    kept = Score(metric=59 / 60, distance=0.08)
    later = Score(metric=58 / 60, noise=0.02, distance=0.03)
    assert later.is_better(kept, 59 / 60, higher_is_better=True)
    farther = Score(metric=58 / 60, noise=0.02, distance=0.09)
    assert not farther.is_better(kept, 59 / 60, higher_is_better=True)


def test_steps_within_the_noise_never_add_up_to_a_worse_model() -> None:
    top = 0.98
    kept = Score(metric=0.97, distance=0.05)
    assert not Score(metric=0.955, noise=0.02, distance=0.01).is_better(kept, top, higher_is_better=True)


def test_beyond_the_noise_the_better_figure_is_kept_whatever_its_distance() -> None:
    kept = Score(metric=0.90, distance=0.01)
    assert Score(metric=0.95, noise=0.02, distance=0.5).is_better(kept, 0.90, higher_is_better=True)
