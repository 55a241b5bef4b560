from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from bench.machine import peaks as measured
from bench.machine.peaks import MachinePeaks, measure_peaks
from bench.machine.tiny_graphs import float_product, integer_product
from edgesmith.errors import UsageError


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_SECONDS", 0.002)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 130, 5), (20, 300, 200)])
def test_written_graphs_are_valid_and_compute_the_product(shape: tuple[int, int, int]) -> None:
    rows, depth, width = shape
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(rows, depth)).astype(np.float32), rng.normal(size=(depth, width)).astype(np.float32)
    model = float_product(w, rows)
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ w, rtol=1e-4, atol=1e-4)

    x8, w8 = rng.integers(0, 9, (rows, depth)).astype(np.uint8), rng.integers(-8, 9, (depth, width)).astype(np.int8)
    model = integer_product(w8, rows)
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, {"x": x8})[0], x8.astype(np.int32) @ w8.astype(np.int32))


@pytest.mark.usefixtures("quick")
def test_peaks_are_measured_once_a_machine_and_number_of_threads(tmp_path: Path) -> None:
    cache = tmp_path / "kept" / "peaks.json"
    first = measure_peaks(cache=cache)
    assert measure_peaks(cache=cache) == first  # no two measurements are alike
    assert first.clock == "CPU time"
    two = measure_peaks(threads=2, cache=cache)
    assert (two.threads, two.clock) == (2, "wall time")
    assert measure_peaks(cache=cache) == first
    assert len(json.loads(cache.read_text())) == 2


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("damage", ["", "{", "[]", '{"x": 1}', '{"x": {"machine": "y"}}'])
def test_a_damaged_cache_is_measured_anew(damage: str, tmp_path: Path) -> None:
    cache = tmp_path / "peaks.json"
    cache.write_text(damage)
    found = measure_peaks(cache=cache)
    assert measure_peaks(cache=cache) == found


@pytest.mark.usefixtures("quick")
def test_peaks_of_another_machine_or_library_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "peaks.json"
    first = measure_peaks(cache=cache)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.0.1")
    assert measure_peaks(cache=cache) != first


def test_a_working_set_is_read_at_the_rate_of_the_largest_measured_one_within_it() -> None:
    peaks = MachinePeaks(
        machine="m", threads=1, clock="CPU time", copy_gb_s=10, read_gb_s=12, reads=((100, 80), (400, 40), (1600, 12)),
        fp32_gflop_s=100, int8_gop_s=400, library="onnxruntime",
    )  # fmt: skip
    assert [peaks.read_rate(size) for size in (5, 100, 399, 400, 1600, 10**9)] == [80, 80, 80, 40, 12, 12]
    assert MachinePeaks.from_json(json.loads(json.dumps(peaks.to_json()))) == peaks


def test_threads_below_one_are_refused() -> None:
    with pytest.raises(UsageError, match="threads is 0"):
        measure_peaks(threads=0)
