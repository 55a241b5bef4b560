from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.duet import Duet, DuetOptions, compare
from bench.latency import SAMPLES, Inputs, Latency, LatencyOptions, encode_inputs, measure_latency
from bench.machine import Machine, describe_machine
from bench.start import Start, measure_start
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


def test_a_percentile_that_the_samples_cannot_support_is_null(latency: Latency) -> None:
    summary = latency.summary()
    assert summary["latency_ms"]["p99"] is None
    assert summary["latency_bounds_ms"]["p99"]["num_required"] == 459
    assert summary["latency_ms"]["p50"] is not None
    assert summary["latency_bounds_ms"]["p50"]["lower"] <= summary["latency_ms"]["p50"]


def test_saved_latency_reads_back_and_gives_the_same_bytes(latency: Latency, tmp_path: Path) -> None:
    latency.save(tmp_path / "a")
    read = Latency.load(tmp_path / "a")
    assert read.summary() == latency.summary()
    assert np.array_equal(read.wall_ns, latency.wall_ns)
    read.save(tmp_path / "b")
    assert (tmp_path / "a" / SAMPLES).read_bytes() == (tmp_path / "b" / SAMPLES).read_bytes()


def test_damaged_samples_are_refused(latency: Latency, tmp_path: Path) -> None:
    latency.save(tmp_path)
    (tmp_path / SAMPLES).write_bytes((tmp_path / SAMPLES).read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=SAMPLES):
        Latency.load(tmp_path)
    with pytest.raises(UsageError):
        Latency.load(tmp_path / "nowhere")


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


def test_a_duet_gives_both_engines_the_same_requests_and_reads_back(news: News, tmp_path: Path) -> None:
    inputs = encode_inputs(news.task, news.examples[:20])
    options = DuetOptions(seconds=0.1, min_pairs=24, max_pairs=24, turn_requests=2, max_warm_up_windows=4)
    duet = compare(
        open_engine(news.exact), open_engine(news.coarse), inputs, options=options, artifact_digest=news.coarse.digest
    )
    bounds = duet.speedup()
    assert duet.num_pairs == 24
    assert bounds.lower <= bounds.estimate <= bounds.upper
    duet.save(tmp_path)
    read = Duet.load(tmp_path)
    assert read.summary() == duet.summary()
    assert np.array_equal(read.artifact_wall_ns, duet.artifact_wall_ns)


def test_the_machine_is_described_and_reads_back() -> None:
    machine = describe_machine()
    assert machine.num_cpus >= 1
    assert machine.cpu in machine.summary
    assert Machine.from_json(machine.to_json()) == machine


def test_start_is_measured_in_a_process_of_its_own(news: News, tmp_path: Path) -> None:
    start = measure_start(news.exact.path, num_starts=1)
    assert start.artifact_digest == news.exact.digest
    assert start.peak_rss_bytes > 10_000_000
    assert start.cold_start_ms > start.load_ms > 0
    start.save(tmp_path)
    assert Start.load(tmp_path) == start


def test_a_broken_artifact_does_not_start(news: News, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        measure_start(tmp_path / "model.onnx", num_starts=1)
