from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper, numpy_helper

from compress.calibrate import CalibrationError, collect_channel_peaks, collect_histograms, spool
from compress.histogram import (
    NUM_BINS,
    channel_peaks,
    entropy_range,
    min_max_range,
    mse_range,
    observe,
    percentile_range,
)
from compress.quantize.kernels import activation_scale
from tests.compress.fake_quantize import fake_quantize

VALUES = hnp.arrays(
    np.float32, st.integers(1, 60), elements=st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False)
)
RNG = np.random.default_rng(0)
OUTLIERS = np.concatenate([RNG.normal(0, 1, 100_000), [40.0, -25.0]]).astype(np.float32)


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_a_stream_counts_as_all_at_once(parts):
    seen = None
    for part in parts:
        seen = observe(part, seen)
    whole = observe(np.concatenate(parts))
    assert seen is not None
    assert (seen.limit, seen.low, seen.high) == (whole.limit, whole.low, whole.high)
    np.testing.assert_array_equal(seen.counts, whole.counts)


@given(VALUES)
def test_every_value_is_counted_within_the_limit(values):
    seen = observe(values)
    assert seen.counts.sum() == values.size
    assert np.abs(values).max() < seen.limit or seen.limit == 2.0**-100
    assert np.log2(seen.limit) == round(np.log2(seen.limit))
    expected, _ = np.histogram(values.astype(np.float64), seen.edges)
    np.testing.assert_array_equal(seen.counts, expected)


@given(VALUES)
def test_min_max_is_what_was_seen(values):
    assert min_max_range(observe(values)) == (values.min(), values.max())


@settings(max_examples=30)
@given(VALUES)
def test_every_range_is_ordered_and_within_what_was_seen(values):
    seen = observe(values)
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    for found in (percentile_range(seen, 99.0), mse_range(seen), entropy_range(seen)):
        assert low - 1e-6 * abs(low) <= found[0] <= found[1] <= high + 1e-6 * abs(high)
    first, second = mse_range(seen, symmetric=True)
    assert first == -second
    assert second <= max(-low, high)


def test_percentile_keeps_the_share_it_names():
    low, high = percentile_range(observe(OUTLIERS), 99.0)
    kept = np.mean((low <= OUTLIERS) & (high >= OUTLIERS))
    assert 0.989 < kept < 0.9915
    expected = np.percentile(OUTLIERS, [0.5, 99.5])
    bin_width = 2 * observe(OUTLIERS).limit / NUM_BINS
    np.testing.assert_allclose([low, high], expected, atol=2 * bin_width)


@pytest.mark.parametrize("signed", [False, True])
def test_mse_range_has_a_smaller_error_than_any_of_a_grid(signed):
    def error(low: float, high: float) -> float:
        rounded = fake_quantize(OUTLIERS, activation_scale(low, high, signed=signed))
        return float(((rounded - OUTLIERS) ** 2).mean())

    found = mse_range(observe(OUTLIERS), symmetric=signed)
    assert error(*found) < 0.85 * error(*min_max_range(observe(OUTLIERS)))
    for bound in np.linspace(4, 40, 37):
        # The formula takes rounding errors as uniform, and candidates are 1/192 of the range apart.
        assert error(*found) <= error(-bound, bound) * 1.03


def test_entropy_range_ignores_a_lone_outlier():
    low, high = entropy_range(observe(OUTLIERS))
    assert -25 < low < -2
    assert 2 < high < 40


def test_channel_peaks_are_over_all_but_the_last_axis():
    a, b = RNG.normal(size=(3, 4, 5)).astype(np.float32), RNG.normal(size=(2, 9, 5)).astype(np.float32)
    expected = np.abs(np.concatenate([a.reshape(-1, 5), b.reshape(-1, 5)])).max(axis=0)
    np.testing.assert_array_equal(channel_peaks(b, channel_peaks(a)), expected)


@pytest.mark.parametrize("observer", [observe, channel_peaks])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(observer, bad):
    with pytest.raises(ValueError, match="NaN or infinite"):
        observer(np.array([[0.0, bad, 1.0]], np.float32))


@pytest.fixture
def graph(tmp_path):
    """h = x @ W; g = Gelu(h); y = g @ V, with W and V in external data."""
    path = tmp_path / "graph" / "model.onnx"
    path.parent.mkdir()
    w, v = (RNG.normal(size=shape).astype(np.float32) for shape in ((8, 16), (16, 4)))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gelu", ["h"], ["g"]),
        helper.make_node("MatMul", ["g", "v"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(n, 1, ["rows", k]) for n, k in (("x", 8), ("y", 4))]
    constants = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", info[:1], info[1:], constants),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return path, w


def test_histograms_are_those_of_the_tensors_whatever_the_budget(graph):
    path, w = graph
    feeds = [{"x": RNG.normal(size=(rows, 8)).astype(np.float32)} for rows in (1, 5, 3)]
    whole = collect_histograms(path, ["x", "h", "g"], iter(feeds), memory_budget_bytes=1 << 20)
    tight = collect_histograms(path, ["x", "h", "g"], iter(feeds), memory_budget_bytes=1)
    rows = np.concatenate([feed["x"] for feed in feeds])
    assert whole["h"].low == pytest.approx((rows @ w).min(), rel=1e-5)
    assert whole["x"].counts.sum() == rows.size
    for name in whole:
        np.testing.assert_array_equal(whole[name].counts, tight[name].counts)
    peaks = collect_channel_peaks(path, ["h"], feeds, memory_budget_bytes=1 << 20)
    np.testing.assert_allclose(peaks["h"], np.abs(rows @ w).max(axis=0), rtol=1e-5)


def test_no_rows_is_an_error(graph):
    with pytest.raises(CalibrationError, match="no calibration rows"):
        collect_histograms(graph[0], ["h"], [], memory_budget_bytes=1 << 20)


def test_a_row_that_is_not_finite_is_named_with_the_tensor(graph):
    feeds = [{"x": np.full((1, 8), value, np.float32)} for value in (1.0, np.nan)]
    with pytest.raises(CalibrationError, match="calibration input 2: h: NaN or infinite values"):
        collect_histograms(graph[0], ["h"], feeds, memory_budget_bytes=1 << 20)


def test_a_row_without_an_input_is_named(graph):
    with pytest.raises(CalibrationError, match=r"calibration input 1 lacks \['x'\]; it has \['z'\]"):
        collect_histograms(graph[0], ["h"], [{"z": np.zeros(1)}], memory_budget_bytes=1 << 20)


def test_a_row_of_another_shape_is_named(graph):
    feeds = [{"x": np.zeros((1, 8), np.float32)}, {"x": np.zeros((1, 9), np.float32)}]
    with pytest.raises(CalibrationError, match="calibration input 2 does not fit the graph"):
        collect_histograms(graph[0], ["h"], feeds, memory_budget_bytes=1 << 20)


def test_spooled_rows_come_back_as_they_were_each_time(tmp_path):
    feeds = [{"ids": RNG.integers(0, 9, (2, n)), "x": RNG.normal(size=n).astype(np.float32)} for n in (1, 4)]
    kept = spool(iter(feeds), tmp_path)
    for _ in range(2):
        for feed, back in zip(feeds, kept, strict=True):
            assert set(feed) == set(back)
            for name, array in feed.items():
                np.testing.assert_array_equal(back[name], array, strict=True)
