from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.load import LoadResult
from bench.load.recording import Recorder, read_recordings, store_report
from edgesmith.errors import ArtifactError, UsageError
from tests.bench.load.results import PLAN, make_result, same


def test_failures_are_later_than_any_limit() -> None:
    few, many = make_result(), make_result(failed=tuple(range(0, 1000, 20)))
    assert few.percentile(99).estimate is not None
    assert few.percentile(99).estimate < 50
    bounds = many.percentile(99)
    assert bounds.estimate == math.inf
    assert bounds.lower == math.inf
    assert many.count_over(1e9) == 50 == many.num_failed
    assert many.summary()["latency_ms"]["p99"] is None


def test_requests_behind_one_stall_count_for_fewer() -> None:
    independent = np.full(PLAN_LENGTH, 4.0)
    independent[::50] = 100.0
    stall = np.full(PLAN_LENGTH, 4.0)
    stall[100 : 100 + len(independent[::50])] = 100.0
    assert make_result(wall_ms=stall).percentile(90).inflation > 5
    assert make_result(wall_ms=independent).percentile(90).inflation < 2


PLAN_LENGTH = make_result().num_requests


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"failed": (0, 5, 17)},
        {"is_stream": True},
        {"num_dropped": 100, "failed": (3,)},
        {"stopped_because": "it was interrupted"},
    ],
)
def test_what_is_saved_is_loaded(tmp_path: Path, options: dict[str, Any]) -> None:
    result = make_result(**options)
    result.save(tmp_path)
    assert same(LoadResult.load(tmp_path), result)


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    result = make_result(is_stream=True)
    for name in ("one", "two"):
        result.save(tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"num_requests": 3},
        {"num_samples": 3},
        {"failures": []},
        {"failures": [{"name": "time-out", "count": 2, "sample": ""}]},
        {"failures": [{"name": "time-out", "count": 1}]},
        {"histogram": "AAAA"},
        {"histogram": None},
        {"shape": {"name": "wave", "segments": [[1, 1, 1]]}},
        {"machine": {}},
        {"conditions": {"seconds": -1}},
        {"url": ...},
    ],
)
def test_damaged_results_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    make_result(failed=(4,)).save(tmp_path)
    path = tmp_path / "load.json"
    value = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: part for key, part in value.items() if part is not ...}))
    with pytest.raises(ArtifactError, match=r"load\.json"):
        LoadResult.load(tmp_path)


def test_a_folder_without_a_load_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="edgesmith load"):
        LoadResult.load(tmp_path)


def test_percentiles_of_a_histogram_never_flatter_and_are_within_its_step() -> None:
    whole = make_result(failed=(1, 2))
    counted = make_result(failed=(1, 2), num_dropped=1)
    assert not counted.is_sampled
    for percentile in (50, 90, 95):
        exact, coarse = whole.percentile(percentile).estimate, counted.percentile(percentile).estimate
        assert exact is not None
        assert coarse is not None
        assert exact <= coarse <= exact * 1.001 + 1e-6
    assert counted.percentile(90).upper == pytest.approx(whole.percentile(90).upper, rel=0.002)
    assert counted.count_over(4.1) >= whole.count_over(4.1)


@pytest.mark.parametrize(
    ("lag_ms", "limit_ms", "is_kept"),
    [(0.9, None, True), (1.1, None, False), (1.1, 10.0, False), (1.1, 50.0, True), (2.6, 50.0, False)],
)
def test_lag_of_more_than_a_millisecond_or_5_per_cent_of_the_limit_breaks_the_loop(
    lag_ms: float, limit_ms: float | None, is_kept: bool
) -> None:
    from dataclasses import replace

    result = replace(make_result(lag_ms=lag_ms), limit_ms=limit_ms)
    assert result.is_open_loop_kept is is_kept
    assert ("late" in result.why_not_kept) is not is_kept


def test_an_incomplete_load_proves_nothing() -> None:
    result = make_result(stopped_because="worker 1 was lost after 3.0 s")
    assert not result.is_open_loop_kept
    assert "worker 1" in result.why_not_kept


def test_timeline_counts_every_request_once_and_those_in_flight() -> None:
    wall_ms = np.full(PLAN_LENGTH, 5.0)
    result = make_result(wall_ms=wall_ms, failed=(0, 1))
    wall_ms[(result.start_ns >= 3e9) & (result.start_ns < 4e9)] = 2500.0
    seconds = make_result(wall_ms=wall_ms, failed=(0, 1)).timeline()
    assert len(seconds) == 10
    assert sum(second.num_sent for second in seconds) == PLAN_LENGTH
    assert sum(second.num_failed for second in seconds) == 2
    assert seconds[3].p50_ms == 2500.0
    assert seconds[4].p99_ms == 5.0
    assert seconds[3].num_in_flight >= seconds[3].num_sent
    assert seconds[4].num_in_flight >= seconds[3].num_sent
    assert seconds[8].num_in_flight < 5


def test_time_to_the_first_token_counts_failures_as_never() -> None:
    summary = make_result(is_stream=True, failed=tuple(range(100))).stream_summary()
    assert summary is not None
    assert summary["ttft_ms"]["p95"]["estimate"] is None
    assert summary["itl_ms"]["p50"]["estimate"] == 1.0
    assert make_result().stream_summary() is None


def test_reports_add_up_and_a_cut_file_keeps_whole_rows(tmp_path: Path) -> None:
    recorder = Recorder(max_samples=5)
    for number in range(8):
        failure = ("http 503", "busy") if number % 3 == 2 else None
        recorder.record(start_ns=number, wall_ns=1000 + number, lag_ns=10, failure=failure, token_ns=[5, 9, 20])
        if number in (2, 7):
            store_report(tmp_path, recorder.take_report(worker=1, is_done=number == 7))
    with (tmp_path / "rows-1.bin").open("ab") as file:
        file.write(b"cut")
    (recording,) = read_recordings(tmp_path)
    assert recording.rows[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert recording.rows[:, 3].tolist() == [0, 0, 1, 0, 0]
    assert recording.gaps.tolist() == [4, 11] * 4
    assert recording.state["num_requests"] == 8
    assert recording.state["failures"] == [["http 503", 2, "busy"]]
    assert recording.state["is_done"]
    assert recorder.wall.num_samples == 6


def test_limit_and_shape_of_the_plan_are_checked() -> None:
    from dataclasses import replace

    for change in [
        {"limit_ms": 0.0},
        {"limit_percentile": 100.0},
        {"confidence": 1.0},
        {"timeout_s": 0.0},
        {"processes": 0},
        {"processes": 2, "expect_workers": 2},
        {"headers": {"X": "a\r\nY: b"}},
        {"headers": {"X Y": "a"}},
        {"seed": -1},
        {"batch_size": 0},
    ]:
        with pytest.raises(UsageError):
            replace(PLAN, **change)  # type: ignore[arg-type]
    assert type(PLAN).from_json(json.loads(json.dumps(PLAN.to_json()))) == PLAN
