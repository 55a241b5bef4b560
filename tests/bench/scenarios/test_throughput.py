from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.scenarios.inputs import num_tokens
from bench.scenarios.throughput import THROUGHPUT, Throughput, ThroughputOptions, encode_batches, measure_throughput
from edgesmith.errors import ArtifactError, DataError, UsageError
from serve.runtime import open_engine
from tests.bench.conftest import News

FEW = ThroughputOptions(batch_size=8, seconds=4, min_rounds=25, max_rounds=40, max_warm_up_windows=3)


@pytest.fixture(scope="module")
def throughput(news: News) -> Throughput:
    return measure_throughput(
        open_engine(news.exact), news.task, news.examples[:50], options=FEW, artifact_digest=news.exact.digest
    )


def test_every_example_is_in_one_batch_and_padding_is_less_than_unsorted(news: News) -> None:
    examples = news.examples[:50]
    batches = encode_batches(news.task, examples, batch_size=8).arrays
    alone = sorted(news.task.encode([example])["input_ids"][0].tobytes() for example in examples)
    found = sorted(
        row[mask > 0].tobytes()
        for arrays in batches
        for row, mask in zip(arrays["input_ids"], arrays["attention_mask"], strict=True)
    )
    assert found == alone
    assert [num_tokens(arrays) for arrays in batches] == sorted(num_tokens(arrays) for arrays in batches)
    unsorted = [news.task.encode(examples[start : start + 8]) for start in range(0, 50, 8)]
    assert sum(a["input_ids"].size for a in batches) < sum(a["input_ids"].size for a in unsorted)


def test_whole_rounds_are_timed_and_bounded(throughput: Throughput) -> None:
    assert 25 <= throughput.rounds <= 40
    assert throughput.num_examples == 50
    assert throughput.cpu_ms > 0
    times = np.random.default_rng(0).uniform(1, 2, 40)
    bounds = replace(throughput, round_seconds=tuple(times.tolist())).examples_per_second()
    assert 0 < bounds.lower <= bounds.estimate <= bounds.upper < float("inf")


def test_too_few_rounds_have_no_bounds(throughput: Throughput) -> None:
    few = replace(throughput, round_seconds=(1.0, 2.0), round_cpu_seconds=(1.0, 2.0))
    bounds = few.examples_per_second()
    assert (bounds.lower, bounds.upper) == (0.0, float("inf"))
    assert few.summary()["examples_per_second_bounds"] == {"confidence": 0.99, "lower": None, "upper": None}


def test_bounds_of_the_median_round_hold_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    over = 0
    for _ in range(400):
        seconds = tuple(float(value) for value in np.exp(rng.normal(0, 0.3, 20)))  # median 1
        few = Throughput(
            engine="", artifact_digest=None, inputs="", batch_size=1, num_examples=10, round_seconds=seconds,
            round_cpu_seconds=seconds, is_settled=True, threads=1, machine=None,  # type: ignore[arg-type]
        )  # fmt: skip
        over += few.examples_per_second(0.95).lower > 10
    assert over <= 0.05 * 400 + 3 * np.sqrt(0.05 * 0.95 * 400)


@pytest.mark.parametrize("rho", [0.5, 0.8])
def test_bounds_hold_of_rounds_whose_speed_wanders(rho: float) -> None:
    """Successive rounds are correlated, as on a machine that others use; the median is 1."""
    rng = np.random.default_rng(1)
    over = 0
    for _ in range(300):
        noise = rng.normal(0, 0.1, 90)
        for index in range(1, len(noise)):
            noise[index] = rho * noise[index - 1] + np.sqrt(1 - rho**2) * noise[index]
        seconds = tuple(np.exp(noise[50:]).tolist())
        rounds = Throughput(
            engine="", artifact_digest=None, inputs="", batch_size=1, num_examples=10, round_seconds=seconds,
            round_cpu_seconds=seconds, is_settled=True, threads=1, machine=None,  # type: ignore[arg-type]
        )  # fmt: skip
        over += rounds.examples_per_second(0.95).lower > 10
    assert over <= 0.05 * 300 + 2 * np.sqrt(0.05 * 0.95 * 300)


def test_a_round_is_a_small_part_of_the_time(news: News) -> None:
    options = replace(FEW, batch_size=2, seconds=0.02, min_rounds=2, max_rounds=2)
    made = measure_throughput(open_engine(news.exact), news.task, news.examples[:50], options=options)
    assert made.num_examples < 50
    assert made.num_examples >= 4 * 2
    assert made.inputs.endswith("(of 50)")


def test_what_was_left_out_is_said(news: News) -> None:
    options = replace(FEW, max_examples=16)
    made = measure_throughput(open_engine(news.exact), news.task, news.examples[:50], options=options)
    assert made.num_examples == 16
    assert made.inputs.endswith("(of 50)")


def test_what_was_measured_reads_back(throughput: Throughput, tmp_path: Path) -> None:
    throughput.save(tmp_path)
    assert Throughput.load(tmp_path) == throughput


def test_damage_is_refused(throughput: Throughput, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no throughput\.json"):
        Throughput.load(tmp_path)
    throughput.save(tmp_path)
    value = json.loads((tmp_path / THROUGHPUT).read_text())
    damages: tuple[dict[str, object], ...] = (
        {"round_seconds": []},
        {"rounds": 3},
        {"num_examples": 0},
        {"round_seconds": ["x"]},
    )
    for broken in damages:
        (tmp_path / THROUGHPUT).write_text(json.dumps(value | broken))
        with pytest.raises(ArtifactError, match=THROUGHPUT):
            Throughput.load(tmp_path)


def test_no_examples_and_no_batch_are_refused(news: News) -> None:
    with pytest.raises(DataError):
        measure_throughput(open_engine(news.exact), news.task, [], options=FEW)
    with pytest.raises(UsageError, match="batch_size"):
        ThroughputOptions(batch_size=0)
