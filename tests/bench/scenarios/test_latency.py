from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.histogram import Histogram
from bench.machine.machine import Machine, describe_machine
from bench.scenarios.latency import LATENCY, SAMPLES, Inputs, Latency, LatencyOptions, encode_inputs, measure_latency
from bench.scenarios.start import START, Start, measure_start
from edgesmith.errors import ArtifactError, DataError, UsageError
from edgesmith.tasks import Example
from serve.runtime import open_engine
from tests.bench.conftest import News

FEW = LatencyOptions(seconds=0.1, min_requests=60, max_requests=60, max_warm_up_windows=4)


@pytest.fixture(scope="module")
def latency(news: News) -> Latency:
    inputs = encode_inputs(news.task, news.examples[:20])
    return measure_latency(open_engine(news.exact), inputs, options=FEW, artifact_digest=news.exact.digest)


def test_every_request_leaves_a_sample(latency: Latency) -> None:
    assert latency.num_requests == 60
    assert latency.wall_ns.min() > 0
    assert latency.cpu_ns.min() > 0
    assert latency.num_warm_up >= 48
    assert 0 <= latency.waiting_share < 1


def independent(latency: Latency, num_requests: int) -> Latency:
    wall_ns = np.random.default_rng(0).permutation(num_requests).astype(np.int64) * 1000 + 1_000_000
    return replace(latency, wall_ns=wall_ns, cpu_ns=wall_ns, start_ns=np.cumsum(wall_ns))


def test_a_percentile_that_the_samples_cannot_support_is_null(latency: Latency) -> None:
    summary = independent(latency, 60).summary()
    assert summary["latency_ms"]["p99"] is None
    assert summary["latency_bounds_ms"]["p99"]["num_required"] >= 459
    assert summary["latency_ms"]["p50"] is not None
    assert summary["latency_bounds_ms"]["p50"]["lower"] <= summary["latency_ms"]["p50"]


def test_slow_requests_in_a_row_support_less_than_scattered_ones(latency: Latency) -> None:
    scattered = independent(latency, 4000)
    in_a_row = replace(scattered, wall_ns=np.sort(scattered.wall_ns))
    loose, tight = in_a_row.percentile(90, 0.95), scattered.percentile(90, 0.95)
    assert loose.estimate == tight.estimate
    assert tight.upper is not None
    assert loose.upper is None or loose.upper > tight.upper


def test_saved_latency_reads_back_and_gives_the_same_bytes(latency: Latency, tmp_path: Path) -> None:
    latency.save(tmp_path / "a")
    read = Latency.load(tmp_path / "a")
    assert read.summary() == latency.summary()
    assert np.array_equal(read.wall_ns, latency.wall_ns)
    assert np.array_equal(read.start_ns, latency.start_ns)
    assert read.conditions == latency.conditions
    read.save(tmp_path / "b")
    assert (tmp_path / "a" / SAMPLES).read_bytes() == (tmp_path / "b" / SAMPLES).read_bytes()


def test_the_saved_histogram_holds_every_sample(latency: Latency, tmp_path: Path) -> None:
    latency.save(tmp_path)
    histogram = Histogram.decode(json.loads((tmp_path / LATENCY).read_text())["histogram"])
    assert histogram.num_samples == latency.num_requests
    assert histogram.count_over(2 * int(latency.wall_ns.max())) == 0
    assert histogram.percentile(50) >= np.quantile(latency.wall_ns, 0.5, method="inverted_cdf")


def test_a_closed_loop_starts_a_request_when_the_last_one_is_answered(latency: Latency) -> None:
    assert np.all(np.diff(latency.start_ns) >= latency.wall_ns[:-1])
    assert latency.rate is None
    assert latency.utilization is None
    assert not latency.is_saturated


def test_the_loop_itself_costs_less_than_any_request(latency: Latency) -> None:
    assert 0 < latency.overhead_ns < latency.wall_ns.min()


def test_damaged_samples_are_refused(latency: Latency, tmp_path: Path) -> None:
    latency.save(tmp_path)
    (tmp_path / SAMPLES).write_bytes((tmp_path / SAMPLES).read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=SAMPLES):
        Latency.load(tmp_path)
    with pytest.raises(UsageError):
        Latency.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "broken", [{"rate": "fast"}, {"rate": float("nan")}, {"threads": None}, {"machine": 3}, {"num_requests": 59}]
)
def test_damaged_figures_are_refused(broken: dict[str, object], latency: Latency, tmp_path: Path) -> None:
    latency.save(tmp_path)
    value = json.loads((tmp_path / LATENCY).read_text())
    (tmp_path / LATENCY).write_text(json.dumps(value | broken))
    with pytest.raises(ArtifactError, match=LATENCY):
        Latency.load(tmp_path)


def test_requests_of_one_length_are_real_tokens_without_padding(news: News) -> None:
    inputs = encode_inputs(news.task, news.examples[:20], length=128)
    assert {arrays["input_ids"].shape for arrays in inputs.arrays} == {(1, 128)}
    assert all(arrays["attention_mask"].all() for arrays in inputs.arrays)
    assert len({arrays["input_ids"].tobytes() for arrays in inputs.arrays}) == len(inputs.arrays)
    assert inputs.description == "1×128 tokens of real text"


def test_too_little_text_for_a_length_says_how_much_there_is(news: News) -> None:
    with pytest.raises(DataError, match="have 4 tokens in all, fewer than the 128"):
        encode_inputs(news.task, [Example("two words")], length=128)
    with pytest.raises(DataError):
        encode_inputs(news.task, [])
    with pytest.raises(UsageError):
        measure_latency(open_engine(news.exact), Inputs(arrays=(), description=""), options=FEW)


def test_the_machine_is_described_and_reads_back() -> None:
    machine = describe_machine()
    assert machine.num_cpus >= 1
    assert machine.cpu in machine.summary
    assert Machine.from_json(machine.to_json()) == machine


def test_start_is_measured_in_a_process_of_its_own(news: News, tmp_path: Path) -> None:
    start = measure_start(news.exact.path, num_starts=1)
    assert start.artifact_digest == news.exact.digest
    assert start.peak_rss_bytes > 10_000_000
    assert start.cold_start_ms > start.startup_ms + start.verify_ms + start.load_ms + start.first_run_ms
    assert start.startup_ms > 0
    start.save(tmp_path)
    assert Start.load(tmp_path) == start
    assert start.machine.num_cpus >= 1
    assert start.conditions is not None
    value = json.loads((tmp_path / START).read_text())
    (tmp_path / START).write_text(json.dumps(value | {"peak_rss_bytes": "much"}))
    with pytest.raises(ArtifactError, match=START):
        Start.load(tmp_path)


def test_the_time_of_a_start_holds_what_the_interpreter_waits_for(
    news: News, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fifth of a second of sleep before the first import takes no CPU time."""
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(0.2)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    [process] = measure_start(news.exact.path, num_starts=1).processes
    assert process.startup_ms > 200
    assert process.first_answer_ms > process.startup_ms


def test_starts_are_kept_one_by_one_and_bounded(news: News, tmp_path: Path) -> None:
    start = measure_start(news.exact.path, num_starts=2)
    assert start.num_starts == 2
    few = start.summary()["cold_start_bounds_ms"]
    assert (few["upper"], few["num_required"]) == (None, 7)
    whole = replace(start, processes=start.processes * 4)
    bounds = whole.bounds()
    assert bounds.upper == max(process.first_answer_ms for process in start.processes)
    whole.save(tmp_path)
    value = json.loads((tmp_path / START).read_text())
    assert len(value["processes"]) == 8
    value["processes"][0]["peak_rss_bytes"] += 10**9
    (tmp_path / START).write_text(json.dumps(value))
    with pytest.raises(ArtifactError, match=START):
        Start.load(tmp_path)


@pytest.mark.parametrize(("num_inputs", "num_requests"), [(1, 59), (64, 191)])
def test_drift_needs_thirds_that_hold_every_input(latency: Latency, num_inputs: int, num_requests: int) -> None:
    short = replace(
        latency, num_inputs=num_inputs, cpu_ns=np.ones(num_requests, np.int64), wall_ns=np.ones(num_requests, np.int64)
    )
    assert short.drift is None


def test_drift_compares_each_input_with_itself(latency: Latency) -> None:
    """Inputs of very different lengths, and a run that ends amid them: only the change over time counts."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(0, 1, 50)) * 1e6
    n = 50 * 7 + 31
    cpu_ns = lengths[np.arange(n) % 50]
    steady = replace(latency, num_inputs=50, wall_ns=cpu_ns.astype(np.int64), cpu_ns=cpu_ns.astype(np.int64))
    assert steady.drift == pytest.approx(0, abs=1e-6)
    slower = (cpu_ns * np.linspace(1, 1.3, n)).astype(np.int64)
    drift = replace(steady, cpu_ns=slower).drift
    assert drift is not None
    assert drift == pytest.approx(0.2, abs=0.05)
    assert replace(steady, cpu_ns=slower).summary()["drift"] == round(drift, 4)


def test_a_broken_artifact_does_not_start(news: News, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        measure_start(tmp_path / "model.onnx", num_starts=1)
