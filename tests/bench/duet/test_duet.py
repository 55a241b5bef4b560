from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.duet.duet import DUET, TURNS, Duet, DuetOptions, compare
from bench.gates.speed import judge_regression
from bench.gates.verdict import Outcome
from bench.raw import columns_to_bytes, read_columns
from bench.scenarios.inputs import Inputs, encode_inputs
from edgesmith.artifact import open_artifact
from edgesmith.errors import ArtifactError, UsageError
from edgesmith.gates import RegressionGate
from serve.runtime import Engine, open_engine
from tests.bench.conftest import News
from tests.bench.duet_built import built
from tools.measure_duet import HIDDEN, NUM_LAYERS, NUM_TOKENS, build_mlp, run

FEW = DuetOptions(
    seconds=0.1, min_sessions=5, max_sessions=5, session_pairs=4, turn_requests=2, max_warm_up_windows=4
)  # fmt: skip


@pytest.fixture(scope="module")
def duet(news: News) -> Duet:
    return compare(
        lambda: open_engine(news.exact),
        lambda: open_engine(news.coarse),
        encode_inputs(news.task, news.examples[:20]),
        options=FEW,
        baseline_digest=news.exact.digest,
        artifact_digest=news.coarse.digest,
    )


def test_every_pair_of_every_session_is_kept(duet: Duet) -> None:
    assert duet.num_pairs == 20
    assert duet.num_sessions == 5
    assert duet.session.tolist() == np.repeat(np.arange(5), 4).tolist()
    assert min(duet.baseline_cpu_ns.min(), duet.twin_cpu_ns.min(), duet.artifact_wall_ns.min()) > 0
    bounds = duet.speedup()
    assert bounds.lower <= bounds.estimate <= bounds.upper
    assert duet.noise.percent > 0
    assert duet.noise.overhead_cpu_ns > 0
    assert duet.conditions is not None
    assert duet.conditions.seconds > 0


def test_a_saved_comparison_reads_back_and_gives_the_same_bytes(duet: Duet, tmp_path: Path) -> None:
    duet.save(tmp_path / "a")
    read = Duet.load(tmp_path / "a")
    assert read.summary() == duet.summary()
    assert read.seconds_to_settle(0.5) == duet.seconds_to_settle(0.5)
    read.save(tmp_path / "b")
    for name in (DUET, TURNS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    "damage",
    [{"num_pairs": 19}, {"turn_requests": 0}, {"turn_requests": "two"}, {"is_settled": "yes"}, {"machine": {}},
     {"conditions": {"seconds": -1}}, {"conditions": 3}, {"noise": {}}, {"noise": None}],
)  # fmt: skip
def test_a_damaged_summary_is_refused(damage: dict[str, object], tmp_path: Path) -> None:
    built(session_pairs=2).save(tmp_path)
    summary = json.loads((tmp_path / DUET).read_text())
    (tmp_path / DUET).write_text(json.dumps(summary | damage))
    with pytest.raises(ArtifactError, match=r"duet\.json"):
        Duet.load(tmp_path)


def _without(name: str) -> Callable[[dict[str, NDArray[np.int64]]], dict[str, NDArray[np.int64]]]:
    return lambda columns: {key: values for key, values in columns.items() if key != name}


@pytest.mark.parametrize(
    "damage",
    [
        _without("session"),
        _without("twin_cpu_ns"),
        lambda columns: columns | {"artifact_cpu_ns": columns["artifact_cpu_ns"] * 0},
        lambda columns: columns | {"session": columns["session"] - 1},
        lambda columns: {name: values[:-1] for name, values in columns.items()},
        lambda columns: {name: values[:1] for name, values in columns.items()},
    ],
)
def test_damaged_turns_are_refused(
    damage: Callable[[dict[str, NDArray[np.int64]]], dict[str, NDArray[np.int64]]], tmp_path: Path
) -> None:
    built().save(tmp_path)
    (tmp_path / TURNS).write_bytes(columns_to_bytes(damage(read_columns(tmp_path / TURNS))))
    with pytest.raises(ArtifactError):
        Duet.load(tmp_path)


def test_a_comparison_of_an_older_version_is_refused_by_name(tmp_path: Path) -> None:
    built().save(tmp_path)
    (tmp_path / TURNS).write_bytes(gzip.compress(b"baseline_cpu_ns,artifact_cpu_ns\n1,2\n"))
    with pytest.raises(ArtifactError, match=r"duet\.json"):
        Duet.load(tmp_path)
    with pytest.raises(UsageError, match="--against"):
        Duet.load(tmp_path / "nowhere")


def test_the_slowdown_is_the_inverse_of_the_speedup() -> None:
    duet = built(0.25, luck=0.01, noise=0.02)
    slowdown, speedup = duet.slowdown(0.9), duet.speedup(0.9)
    assert slowdown.estimate == pytest.approx(0.25, abs=0.02)
    assert 1 + slowdown.lower == pytest.approx(1 / speedup.upper)
    assert 1 + slowdown.upper == pytest.approx(1 / speedup.lower)
    assert duet.slowdown(0.9, "wall") == pytest.approx(slowdown)


def test_more_turns_do_not_buy_off_the_luck_of_a_session() -> None:
    widths = []
    for seed in range(30):
        bounds = [built(luck=0.02, session_pairs=pairs, seed=seed).speedup() for pairs in (4, 64)]
        widths.append([bound.upper - bound.lower for bound in bounds])
    few, many = np.mean(widths, axis=0)
    assert many == pytest.approx(few, rel=0.15)


def test_more_sessions_make_the_bounds_narrower() -> None:
    half_width = [
        (duet.speedup().upper - duet.speedup().lower) / 2
        for duet in (built(luck=0.02, num_sessions=5), built(luck=0.02, num_sessions=40))
    ]
    assert half_width[1] < half_width[0] / 2


def test_the_twin_makes_the_bounds_narrower_than_one_session_of_the_baseline() -> None:
    """The variance is that of the artifact and half the baseline's, not that of both."""
    widths = []
    for seed in range(30):
        duet = built(luck=0.02, seed=seed)
        alone = replace(duet, twin_cpu_ns=duet.baseline_cpu_ns)
        widths.append([one.speedup().upper - one.speedup().lower for one in (duet, alone)])
    both, single = np.mean(widths, axis=0)
    assert both / single == pytest.approx(math.sqrt(1.5 / 2), rel=0.08)


def test_a_limit_that_the_bounds_are_clear_of_needs_no_longer_run() -> None:
    duet = built(0.05, luck=0.005, noise=0.01)
    assert duet.seconds_to_settle(0.0) == 20.0
    assert duet.seconds_to_settle(0.5) == 20.0


def test_the_nearer_the_limit_the_longer_the_run_that_settles_it() -> None:
    duet = built(0.05, luck=0.02)
    estimate = duet.slowdown().estimate
    needed = [duet.seconds_to_settle(estimate + distance) for distance in (0.005, 0.0025, 0.00125)]
    assert all(seconds is not None and seconds > 20 for seconds in needed)
    assert needed == sorted(needed, key=lambda seconds: seconds or 0)
    assert duet.seconds_to_settle(estimate) is None


def test_a_run_as_long_as_was_said_settles_it_most_of_the_time() -> None:
    short = built(0.01, luck=0.02, num_sessions=10, seed=4)
    truth = short.slowdown().estimate  # what the short run saw, taken for the truth
    needed = short.seconds_to_settle(0.0)
    assert truth > 0
    assert needed is not None
    assert needed > 20
    sessions = math.ceil(10 * needed / 20)
    settled = [built(truth, luck=0.02, num_sessions=sessions, seed=seed).slowdown().lower > 0 for seed in range(40)]
    assert np.mean(settled) >= 0.6


def test_ten_times_the_layers_are_found_slower_and_the_same_file_is_not(tmp_path: Path) -> None:
    small = open_artifact(build_mlp(tmp_path / "small.onnx", 4))
    large = open_artifact(build_mlp(tmp_path / "large.onnx", 40))
    x = np.ones((8, HIDDEN), np.float32)
    inputs = Inputs(arrays=({"x": x}, {"x": x[:4]}), description="rows")

    def against_small(artifact: Callable[[], Engine]) -> Duet:
        return compare(lambda: open_engine(small), artifact, inputs, options=replace(FEW, max_warm_up_windows=8))

    slower, faster = against_small(lambda: open_engine(large)).slowdown(), compare(
        lambda: open_engine(large), lambda: open_engine(small), inputs, options=FEW
    ).slowdown()  # fmt: skip
    assert slower.lower > 1
    assert faster.upper < -0.5
    same = against_small(lambda: open_engine(small)).slowdown(0.9999)
    assert same.lower < slower.lower


@pytest.mark.slow
def test_five_per_cent_more_layers_of_a_4_ms_model_never_pass_and_the_same_file_never_fails(tmp_path: Path) -> None:
    gate = RegressionGate(max_slowdown=0.02)
    x = np.random.default_rng(0).normal(size=(NUM_TOKENS, HIDDEN)).astype(np.float32)
    inputs = Inputs(arrays=({"x": x},), description="rows")
    baseline = build_mlp(tmp_path / "baseline.onnx", NUM_LAYERS)
    slower = build_mlp(tmp_path / "slower.onnx", NUM_LAYERS + 5)
    found = [run(baseline, artifact, inputs, DuetOptions(seconds=20)) for artifact in (baseline, slower)]
    same, planted = (judge_regression(gate, duet) for duet in found)
    assert same.verdict is not Outcome.FAIL, same.reason
    assert planted.verdict is not Outcome.PASS, planted.reason
    assert all(duet.conditions is not None and duet.conditions.seconds < 60 for duet in found)


def test_without_inputs_nothing_is_opened(news: News) -> None:
    opened: list[Engine] = []

    def opener() -> Engine:
        opened.append(open_engine(news.exact))
        return opened[-1]

    with pytest.raises(UsageError, match="no inputs"):
        compare(opener, opener, Inputs(arrays=(), description=""))
    assert not opened
