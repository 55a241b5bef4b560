from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.machine.limits import LIMITS, Limits, ideal_of, measure_limits
from bench.machine.operations import Operations
from bench.machine.peaks import MachinePeaks
from bench.scenarios.inputs import Inputs, encode_inputs
from bench.scenarios.latency import Latency, LatencyOptions, measure_latency
from bench.scenarios.sweep import SWEEP, Sweep, SweepOptions, measure_sweep
from edgesmith.errors import ArtifactError, DataError, UsageError
from serve.runtime import open_engine
from tests.bench.conftest import News

PEAKS = MachinePeaks(
    machine="a machine", threads=1, clock="CPU time", copy_gb_s=10, read_gb_s=10, reads=((1, 100), (1_000_000, 10)),
    fp32_gflop_s=100, int8_gop_s=400, library="onnxruntime",
)  # fmt: skip
FEW = SweepOptions(batch_sizes=(1, 4), lengths=(None, 32), seconds=0.02, max_requests=20, num_inputs=3)


def operations(fp32: float = 0, int8: float = 0, num_bytes: int = 0) -> Operations:
    return Operations(fp32_macs=int(fp32), int8_macs=int(int8), weight_bytes=num_bytes, io_bytes=0)


@pytest.mark.parametrize(
    ("counted", "ms", "bound_by"),
    [
        (operations(fp32=1e9), 20, "fp32 arithmetic"),  # two operations each, 100 a nanosecond
        (operations(int8=1e9), 5, "int8 arithmetic"),
        (operations(fp32=1e9, int8=1e9), 25, "fp32 arithmetic"),
        (operations(fp32=1e8, int8=1e9), 7, "int8 arithmetic"),
        (operations(num_bytes=100_000_000), 10, "memory"),
        (operations(num_bytes=500_000), 0.005, "memory"),  # from a cache
        (operations(fp32=1e8, num_bytes=100_000_000), 10, "memory"),
    ],
)
def test_the_ideal_time_is_that_of_the_slower_of_memory_and_arithmetic(
    counted: Operations, ms: float, bound_by: str
) -> None:
    ideal = ideal_of(counted, PEAKS)
    assert ideal.ms == pytest.approx(ms)
    assert ideal.bound_by == bound_by


@pytest.fixture(scope="module")
def inputs(news: News) -> Inputs:
    return encode_inputs(news.task, news.examples[:20])


@pytest.fixture(scope="module")
def latency(news: News, inputs: Inputs) -> Latency:
    few = LatencyOptions(seconds=0.1, min_requests=60, max_requests=60, max_warm_up_windows=4)
    return measure_latency(open_engine(news.exact), inputs, options=few, artifact_digest=news.exact.digest)


@pytest.fixture(scope="module")
def limits(news: News, inputs: Inputs, latency: Latency) -> Limits:
    return measure_limits(news.exact, inputs, latency, PEAKS)


def test_the_share_is_the_ideal_over_the_cpu_time(limits: Limits, latency: Latency) -> None:
    assert limits.measured_ms == latency.cpu_ms
    assert limits.share == pytest.approx(ideal_of(limits.operations, PEAKS).ms / latency.cpu_ms)
    assert limits.bound_by == "memory"
    assert limits.sentence == f"{100 * limits.share:.0f} % of this machine's limit, bound by memory"
    assert limits.operators


def test_what_could_not_be_counted_is_in_the_sentence(limits: Limits) -> None:
    partly = replace(limits, operations=replace(limits.operations, not_counted=("Einsum", "MoE")))
    assert partly.sentence.endswith("bound by memory (Einsum, MoE not counted)")


def test_limits_read_back_and_damage_is_refused(limits: Limits, tmp_path: Path) -> None:
    limits.save(tmp_path)
    assert Limits.load(tmp_path) == limits
    value = json.loads((tmp_path / LIMITS).read_text())
    damages: tuple[dict[str, object], ...] = (
        {"measured_ms": 0},
        {"operations": {}},
        {"peaks": None},
        {"operators": [1]},
    )
    for broken in damages:
        (tmp_path / LIMITS).write_text(json.dumps(value | broken))
        with pytest.raises(ArtifactError, match=LIMITS):
            Limits.load(tmp_path)


def test_times_and_peaks_of_other_threads_are_not_compared(news: News, inputs: Inputs, latency: Latency) -> None:
    with pytest.raises(UsageError, match="times of 1 threads cannot be held against peaks of 2"):
        measure_limits(news.exact, inputs, latency, replace(PEAKS, threads=2))


def test_a_sweep_times_every_cell_of_its_grid(news: News, tmp_path: Path) -> None:
    sweep = measure_sweep(
        open_engine(news.exact), news.task, news.examples, options=FEW, artifact=news.exact, peaks=PEAKS
    )
    assert [(row.batch_size, row.length) for row in sweep.rows] == [(1, None), (1, 32), (4, None), (4, 32)]
    assert all(row.median_tokens == 32 for row in sweep.rows if row.length)
    assert all(row.num_requests >= 7 and row.cpu_ms > 0 and row.examples_per_second > 0 for row in sweep.rows)
    assert all(row.share is not None and row.bound_by == "memory" for row in sweep.rows)
    assert sweep.left_out == ()
    sweep.save(tmp_path)
    assert Sweep.load(tmp_path) == sweep
    (tmp_path / SWEEP).write_text("{}")
    with pytest.raises(ArtifactError, match=SWEEP):
        Sweep.load(tmp_path)


def test_lengths_that_cannot_be_are_left_out_by_name(news: News) -> None:
    options = replace(FEW, batch_sizes=(1,), lengths=(32, 512, 100_000))
    sweep = measure_sweep(open_engine(news.exact), news.task, news.examples[:1], options=options)
    assert [row.length for row in sweep.rows] == [32]
    assert [text.split(" ")[0] for text in sweep.left_out] == ["512", "100000"]
    assert sweep.rows[0].share is None


def test_an_empty_sweep_is_refused(news: News) -> None:
    with pytest.raises(UsageError):
        SweepOptions(batch_sizes=(0,))
    with pytest.raises(DataError):
        measure_sweep(open_engine(news.exact), news.task, [])


def test_a_share_above_the_limit_says_that_the_limit_was_measured_badly(limits: Limits) -> None:
    above = replace(limits, ideal_ms=2.0, measured_ms=1.0)
    assert above.sentence.startswith("200 % of this machine's limit")
    assert "measured while it was busy" in above.sentence
