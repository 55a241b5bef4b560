from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.histogram import Histogram
from bench.load import Failure, LoadResult, constant
from bench.load.clock import begin_message, choose_begin
from bench.load.recording import Recorder, read_recordings, store_report
from bench.raw import compress, read_columns
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
        {"histogram_ok": None},
        {"tokens_are_chunks": ...},
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


def test_a_load_in_which_nothing_came_due_is_kept_and_proves_nothing(tmp_path: Path) -> None:
    result = make_result(replace(PLAN, shape=constant(1e-9, 1)), is_stream=True)
    assert result.num_requests == 0
    result.save(tmp_path)
    loaded = LoadResult.load(tmp_path)
    assert same(loaded, result)
    assert "no request came due" in loaded.why_not_kept
    assert loaded.percentile(99).upper is None
    assert loaded.summary()["latency_ms"]["p99"] is None


def test_streams_of_one_piece_each_have_no_gaps_and_are_loaded(tmp_path: Path) -> None:
    result = replace(make_result(is_stream=True), itl_ns=np.empty(0, np.int64))
    result.save(tmp_path)
    assert same(LoadResult.load(tmp_path), result)


def test_columns_of_unequal_rows_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "columns.csv.gz"
    path.write_bytes(compress(b"a,b\n1,2,3,4\n"))
    with pytest.raises(ArtifactError):
        read_columns(path)


def test_any_fault_of_the_generator_breaks_the_loop() -> None:
    result = make_result(failed=(7,))
    own = replace(result, failures=(Failure(name="generator", count=1, sample="too many open files"),))
    assert result.is_open_loop_kept
    assert "too many open files" in own.why_not_kept


def test_a_begin_that_is_uncertain_by_more_than_50_ms_breaks_the_loop(tmp_path: Path) -> None:
    assert replace(make_result(), begin_uncertainty_s=0.04).is_open_loop_kept
    late = replace(make_result(), begin_uncertainty_s=0.08)
    late.save(tmp_path)
    assert "80 ms after" in LoadResult.load(tmp_path).why_not_kept


def late_sends() -> LoadResult:
    """A server that takes 5 ms, and a generator that sends 0.8 % of the requests 300 ms late."""
    result = make_result(wall_ms=np.full(PLAN_LENGTH, 5.0), num_dropped=0)
    is_late = np.arange(PLAN_LENGTH) % 125 == 7
    lag_ns = np.where(is_late, 300_000_000, 50_000)
    lags, walls = Histogram(), Histogram()
    lags.record_many(lag_ns)
    walls.record_many(5_000_000 + lag_ns)
    return replace(result, lag_ns=lag_ns, lag_histogram=lags, wall_ns=5_000_000 + lag_ns, histogram=walls)


def test_the_lag_is_judged_at_the_percentile_of_the_limit() -> None:
    result = late_sends()
    assert result.is_open_loop_kept
    assert result.lag_percentile_ns(99.0) == result.lag_p99_ns < 60_000
    assert result.lag_percentile_ns(99.9) >= 300_000_000
    strict = replace(result, limit_percentile=99.9)
    assert "0.1 % of the requests left more than 300" in strict.why_not_kept


def test_the_time_since_the_sending_lacks_the_generators_lag() -> None:
    result = late_sends()
    with_lag, without = result.percentile(99.5, 0.6), result.percentile_without_lag(99.5, 0.6)
    assert with_lag.lower is not None
    assert with_lag.lower > 300
    assert without.upper == 5.0


def test_the_stored_histogram_counts_failures_as_over_every_limit(tmp_path: Path) -> None:
    result = make_result(failed=(1, 2))
    result.save(tmp_path)
    value = json.loads((tmp_path / "load.json").read_text())
    every, right = Histogram.decode(value["histogram"]), Histogram.decode(value["histogram_ok"])
    assert every.num_samples == result.num_requests == right.num_samples + 2
    assert every.count_over(3_500_000_000_000) == 2


def report_of(recorder: Recorder, number: int) -> dict[str, Any]:
    recorder.record(start_ns=number, wall_ns=9, lag_ns=1, failure=None, token_ns=[1, 5, 6], num_tokens=4)
    return recorder.take_report(worker=0)


def test_a_report_that_could_not_be_stored_leaves_nothing_and_is_stored_later(tmp_path: Path) -> None:
    recorder = Recorder(max_samples=9)
    store_report(tmp_path, report_of(recorder, 0))
    report = report_of(recorder, 1)
    (tmp_path / "state-0.tmp").mkdir()
    with pytest.raises(OSError, match="state-0"):
        store_report(tmp_path, report)
    assert read_recordings(tmp_path)[0].rows[:, 0].tolist() == [0]
    (tmp_path / "state-0.tmp").rmdir()
    store_report(tmp_path, report)
    (recording,) = read_recordings(tmp_path)
    assert recording.rows[:, 0].tolist() == [0, 1]
    assert recording.rows[:, 5:].tolist() == [[3, 4], [3, 4]]
    assert recording.gaps.tolist() == [4, 1, 4, 1]


def test_headers_values_are_taken_out_of_what_the_server_says() -> None:
    plan = replace(PLAN, headers={"Authorization": "Bearer s3cret-key", "X-Team": "ab"})
    assert plan.hide_secrets("no key 's3cret-key' (Bearer s3cret-key) of ab") == "no key '***' (***) of ab"


@pytest.mark.parametrize(
    ("host", "is_sent"), [("127.0.0.1", False), ("localhost", False), ("::1", False), ("0.0.0.0", True), ("*", True)]
)
def test_a_plan_for_workers_of_other_machines_is_sent_over_the_network(host: str, is_sent: bool) -> None:
    assert replace(PLAN, expect_workers=2, master_host=host).is_sent_over_network is is_sent
    assert not replace(PLAN, master_host=host).is_sent_over_network


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(UsageError, match="protocol"):
        replace(PLAN, protocol="grpc")  # type: ignore[arg-type]


def test_workers_of_one_clock_begin_at_one_moment_and_others_when_they_hear_of_it() -> None:
    message = begin_message(1_000) | {"clock": "a"}
    begin_ns = message["begin_ns"]
    assert choose_begin(message, begin_ns - 150_000_000, "a") == (begin_ns, True)
    assert choose_begin(message, begin_ns + 9_000_000, "a") == (begin_ns, True)
    assert choose_begin(message, 7, "b") == (7 + 200_000_000, False)
    assert choose_begin(message, begin_ns + 3_600 * 10**9, "a")[1] is False
    assert choose_begin(message | {"clock": ""}, 7, "")[1] is False
