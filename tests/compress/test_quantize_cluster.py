from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from compress.quantize.cluster import best_levels, code_histogram, entropy_bits, share_codes
from compress.quantize.config import DynamicInt8Config, StaticInt8Config
from compress.quantize.kernels import dequantize, quantize_symmetric
from compress.quantize.stage import quantize_onnx
from tests.compress.minilm_graph import GraphWriter

SMALL_PROBLEMS = st.lists(
    st.tuples(st.integers(-127, 127), st.floats(1e-6, 1e6)), min_size=1, max_size=7, unique_by=lambda pair: pair[0]
).map(sorted)


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 1, shape) * rng.uniform(0.1, 3, shape[-1])).astype(np.float32)


def squared_error(values: np.ndarray, weights: np.ndarray, levels: np.ndarray) -> float:
    return float((weights * (values - levels) ** 2).sum())


def least_error(values: np.ndarray, weights: np.ndarray, num_levels: int) -> float:
    """By trying every way to cut the values into runs, and every integer for each."""
    best = np.inf
    for cuts in itertools.combinations_with_replacement(range(len(values) + 1), num_levels - 1):
        total = 0.0
        for first, last in itertools.pairwise([0, *cuts, len(values)]):
            run, counts = values[first:last], weights[first:last]
            if len(run):
                centers = [0] if 0 in run else range(int(run[0]), int(run[-1]) + 1)
                total += min(float((counts * (run - center) ** 2).sum()) for center in centers)
        best = min(best, total)
    return best


@settings(deadline=None, max_examples=60)
@given(SMALL_PROBLEMS, st.integers(2, 4))
def test_no_clustering_has_a_smaller_error(problem, num_levels):
    values, weights = (np.array(column) for column in zip(*problem, strict=True))
    levels = best_levels(values, weights, num_levels)
    assert len(set(levels.tolist())) <= num_levels
    np.testing.assert_array_equal(levels[values == 0], 0)
    ours, least = squared_error(values, weights, levels), least_error(values, weights, num_levels)
    assert ours <= least + 1e-9 * float((weights * values.astype(float) ** 2).sum())


def test_one_level_is_not_enough():
    with pytest.raises(ValueError, match="num_levels=1: must be at least 2"):
        best_levels(np.array([0, 1]), np.ones(2), 1)


@pytest.mark.parametrize("num_clusters", [2, 5, 16, 100])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("unsigned", [False, True])
def test_a_tensor_keeps_so_many_codes_and_every_weight_takes_the_nearest(num_clusters, axis, unsigned):
    array = quantize_symmetric(normal((96, 48)), axis, unsigned=unsigned)
    shared = share_codes(array, num_clusters)
    assert shared.codes.dtype == array.codes.dtype
    levels = np.unique(shared.codes).astype(int)
    assert len(levels) <= num_clusters
    before, after = array.codes.astype(int), shared.codes.astype(int)
    nearest = np.abs(before[..., np.newaxis] - levels).min(axis=-1)
    np.testing.assert_array_equal(np.abs(before - after), nearest)
    assert entropy_bits(shared) <= np.log2(num_clusters)


def test_what_was_zero_stays_zero():
    weight = normal((64, 64), seed=1)
    weight[np.random.default_rng(2).random(weight.shape) < 0.5] = 0
    for num_clusters in (2, 3, 16):
        shared = share_codes(quantize_symmetric(weight, axis=1), num_clusters)
        assert not shared.codes[weight == 0].any()
        assert shared.codes.any()


def test_the_error_counts_in_weights_and_not_in_codes():
    # One channel is a thousand times larger: its two values deserve the levels, whatever the many small ones lose.
    large, small = np.tile([100.0, 127.0], 8), np.tile([1.0, 64.0, 90.0, 127.0], 4) / 1000
    array = quantize_symmetric(np.stack([large, small]).astype(np.float32), axis=0)
    assert set(share_codes(array, 2).codes[0].tolist()) == {100, 127}


def test_unsigned_codes_are_shared_as_signed_ones_are():
    signed, unsigned = (
        dequantize(share_codes(quantize_symmetric(normal((40, 30)), 1, unsigned=choice), 9)) for choice in (False, True)
    )
    np.testing.assert_array_equal(signed, unsigned)


def test_more_clusters_than_codes_change_nothing():
    array = quantize_symmetric(np.array([[1, -1, 0.5, 0]], np.float32), axis=0)
    np.testing.assert_array_equal(share_codes(array, 4).codes, array.codes)


def test_a_histogram_taken_in_parts_counts_each_code_once(monkeypatch):
    array = quantize_symmetric(normal((50, 7)), axis=1)
    counts, weights = code_histogram(array)
    monkeypatch.setattr("compress.quantize.cluster._BLOCK_ELEMENTS", 60)
    again = code_histogram(array)
    np.testing.assert_array_equal(again[0], counts)
    np.testing.assert_allclose(again[1], weights)
    codes, expected = np.unique(array.codes, return_counts=True)
    np.testing.assert_array_equal(counts[codes.astype(int) + 128], expected)
    assert counts.sum() == array.codes.size


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    """A table that is read, and two matrices after it."""
    write = GraphWriter()
    x = write.node("Gather", write.constant("table", normal((600, 64))), "ids", name="embed")
    for index in range(2):
        x = write.node("MatMul", x, write.constant(f"w{index}", normal((64, 64), index) / 16), name=f"layer{index}")
    write.node("Identity", x, name="y")
    write.nodes[-1].output[0] = "y"
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])
    model = write.model([ids], [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", 64])])
    path: Path = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx.save(model, path)
    return path


def int8_weights(path: Path) -> dict[str, np.ndarray]:
    arrays = {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    return {name: array for name, array in arrays.items() if name.endswith("_int8")}


def feeds() -> list[dict[str, np.ndarray]]:
    return [{"ids": np.random.default_rng(seed).integers(0, 600, (2, 9))} for seed in range(4)]


@pytest.mark.parametrize("config", [DynamicInt8Config(clusters=16), StaticInt8Config(clusters=16)])
def test_every_matrix_and_table_of_a_file_shares_its_codes(config, graph, tmp_path):
    whole = quantize_onnx(graph, tmp_path / "whole.onnx", type(config)(), feeds())
    result = quantize_onnx(graph, tmp_path / "shared.onnx", config, feeds())
    arrays = int8_weights(tmp_path / "shared.onnx")
    assert len(arrays) == 3
    assert all(len(np.unique(array)) <= 16 for array in arrays.values())
    assert result.size_after_bytes == whole.size_after_bytes
    assert result.bits_before_sharing == whole.bits_per_weight == whole.bits_before_sharing
    assert result.bits_per_weight <= 4 < whole.bits_per_weight
    assert all(node.bits_per_weight <= 4 for node in result.quantized)


def test_a_download_needs_little_more_than_the_entropy(graph, tmp_path):
    result = quantize_onnx(graph, tmp_path / "shared.onnx", DynamicInt8Config(clusters=16))
    weights = int8_weights(tmp_path / "shared.onnx")
    packed = sum(len(zstandard.ZstdCompressor(level=19).compress(array.tobytes())) for array in weights.values())
    least = sum(array.size for array in weights.values()) * result.bits_per_weight / 8
    assert least * 0.97 <= packed <= least * 1.06


def test_the_same_input_gives_the_same_bytes(graph, tmp_path):
    for name in ("one.onnx", "two.onnx"):
        quantize_onnx(graph, tmp_path / name, DynamicInt8Config(clusters=7))
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


@pytest.mark.parametrize("config", [DynamicInt8Config, StaticInt8Config])
@pytest.mark.parametrize("clusters", [1, 129])
def test_a_number_of_clusters_out_of_range_is_refused(config, clusters):
    with pytest.raises(ValueError, match=f"clusters={clusters}: must be 2 to 128"):
        config(clusters=clusters)
