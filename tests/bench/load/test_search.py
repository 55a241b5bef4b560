from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.gates.verdict import Outcome
from bench.load import LoadPlan, LoadResult, SearchOptions, find_rate
from bench.load.schedule import arrivals, ramp
from edgesmith.errors import ServerError, UsageError
from tests.bench.load.conftest import StartServer
from tests.bench.load.results import PLAN, make_result

SERVICE_MS = 5.0  # one server of 200 requests/s


def run_queue(plan: LoadPlan) -> LoadResult:
    return make_result(plan, service_ms=SERVICE_MS)


def test_search_encloses_the_rate_at_which_a_queue_breaks_its_limit() -> None:
    found = find_rate(replace(PLAN, limit_ms=60.0), options=SearchOptions(start_rate=20), run=run_queue)
    assert found.highest_pass is not None
    assert found.lowest_fail is not None
    # M/D/1: p99 of the wait exceeds 55 ms from a utilisation of about 0.81 on.
    assert 110 < found.highest_pass < found.lowest_fail < 200
    assert found.lowest_fail <= found.highest_pass * 1.35
    assert [step.rate for step in found.steps[:4]] == [20, 40, 80, 160]


def test_search_goes_down_from_a_rate_that_is_too_high() -> None:
    found = find_rate(replace(PLAN, limit_ms=60.0), options=SearchOptions(start_rate=3000), run=run_queue)
    assert found.steps[0].outcome is Outcome.FAIL
    assert found.highest_pass is not None
    assert 100 < found.highest_pass < 200


def test_search_says_when_no_rate_holds() -> None:
    found = find_rate(replace(PLAN, limit_ms=1.0), options=SearchOptions(start_rate=100), run=run_queue)
    assert found.highest_pass is None
    assert "every rate" in found.stopped_because


def test_search_ends_at_the_most_that_may_be_tried() -> None:
    found = find_rate(PLAN, options=SearchOptions(start_rate=20, max_rate=70), run=run_queue)
    assert found.highest_pass == 70
    assert found.lowest_fail is None


def test_search_ends_where_the_generator_is_too_slow() -> None:
    def run(plan: LoadPlan) -> LoadResult:
        return make_result(plan, service_ms=0.1, lag_ms=9.0 if plan.shape.mean_rate > 100 else 0.1)

    found = find_rate(PLAN, options=SearchOptions(start_rate=50), run=run)
    assert found.highest_pass == 100
    assert found.steps[-1].outcome is Outcome.INCONCLUSIVE
    assert "generator" in found.stopped_because


def test_search_keeps_its_steps(tmp_path: Path) -> None:
    found = find_rate(PLAN, options=SearchOptions(start_rate=50, max_rate=100), out=tmp_path, run=run_queue)
    value = json.loads((tmp_path / "search.json").read_text())
    assert value["highest_pass"] == found.highest_pass
    assert [step["rate"] for step in value["steps"]] == [50, 100]
    assert LoadResult.load(tmp_path / "step-02").shape.mean_rate == 100


def test_search_needs_a_limit() -> None:
    with pytest.raises(UsageError, match="limit"):
        find_rate(replace(PLAN, limit_ms=None), run=run_queue)


def test_a_search_refuses_what_it_would_pass_over() -> None:
    for change in [{"shape": ramp(1, 10, 5)}, {"expect_workers": 2}]:
        with pytest.raises(UsageError, match="a search"):
            find_rate(replace(PLAN, **change), run=run_queue)  # type: ignore[arg-type]


def test_a_server_that_dies_ends_the_search_and_every_step_before_is_kept(tmp_path: Path) -> None:
    is_kept: list[bool] = []

    def run(plan: LoadPlan) -> LoadResult:
        if plan.shape.mean_rate > 60:
            is_kept.append((tmp_path / "step-01" / "load.json").is_file())
            raise ServerError("nobody listens")
        return run_queue(plan)

    with pytest.raises(ServerError):
        find_rate(PLAN, options=SearchOptions(start_rate=100), out=tmp_path, run=run)
    found = find_rate(PLAN, options=SearchOptions(start_rate=50), out=tmp_path, run=run)
    assert found.highest_pass == 50
    assert is_kept == [False, True]
    assert found.stopped_because == "before 100 requests/s: nobody listens"
    assert json.loads((tmp_path / "search.json").read_text())["stopped_because"] == found.stopped_because


def test_a_step_that_was_sent_late_once_is_repeated() -> None:
    lags = iter([0.1, 9.0, 0.1])

    def run(plan: LoadPlan) -> LoadResult:
        return make_result(plan, service_ms=0.1, lag_ms=next(lags))

    found = find_rate(PLAN, options=SearchOptions(start_rate=50, max_rate=100), run=run)
    assert found.highest_pass == 100
    assert len(found.steps) == 2


def test_an_earlier_searchs_steps_are_removed_and_nothing_else(tmp_path: Path) -> None:
    find_rate(PLAN, options=SearchOptions(start_rate=20, max_rate=80), out=tmp_path, run=run_queue)
    (tmp_path / "step-03" / "mine.txt").write_text("mine")
    (tmp_path / "step-99").mkdir()
    find_rate(PLAN, options=SearchOptions(start_rate=80, max_rate=80), out=tmp_path, run=run_queue)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["search.json", "step-01", "step-03", "step-99"]
    assert [path.name for path in (tmp_path / "step-03").iterdir()] == ["mine.txt"]


def test_a_rate_just_over_the_limit_passes_as_seldom_as_promised() -> None:
    """Two looks at a server of which 1 % of the requests are too slow: p99 is not below the limit."""
    rng = np.random.default_rng(0)

    def run(plan: LoadPlan) -> LoadResult:
        n = make_length(plan)
        return make_result(plan, wall_ms=np.where(rng.random(n) < 0.05, 60.0, 4.0))

    plan = replace(PLAN, limit_percentile=95.0, confidence=0.95)
    options = SearchOptions(start_rate=100, max_rate=100, min_step_s=0.1)
    passed = [find_rate(plan, options=options, run=run).highest_pass is not None for _ in range(300)]
    assert np.mean(passed) < 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


def make_length(plan: LoadPlan) -> int:
    return len(arrivals(plan.shape, seed=plan.seed))


def test_the_sentence_says_that_the_rate_is_the_best_of_several() -> None:
    found = find_rate(PLAN, options=SearchOptions(start_rate=20, max_rate=80), run=run_queue)
    assert "best of 3 rates tried" in found.sentence


@pytest.mark.slow
def test_search_finds_the_capacity_of_a_real_server(start_server: StartServer) -> None:
    # One request after the other, 10 ms and a little each: somewhat below 100 requests/s.
    server = start_server(delay_ms=10, concurrency=1)
    plan = replace(PLAN, url=server.url, limit_ms=200.0, limit_percentile=90.0, timeout_s=5.0)
    options = SearchOptions(start_rate=20, min_step_s=3, max_step_s=6, max_steps=6, precision=0.3)
    found = find_rate(plan, options=options)
    assert found.highest_pass is not None
    assert 20 <= found.highest_pass < 100
    assert max(step.rate for step in found.steps) > 100
    assert all(step.outcome is not Outcome.PASS for step in found.steps if step.rate > 110)
    # A queue that only grows is one burst, which may leave a step inconclusive.
    assert found.lowest_fail is None or found.lowest_fail > 60
