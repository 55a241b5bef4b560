from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper
from tokenizers import Tokenizer

from compress.calibrate import CalibrationError
from compress.quantize.config import (
    ActivationType,
    CalibrationMethod,
    DynamicInt8Config,
    LayerSelection,
    SmoothingConfig,
    StaticInt8Config,
    WeightType,
)
from compress.quantize.result import NothingQuantizedError
from compress.quantize.stage import quantize_onnx
from edgesmith.errors import StorageError, UsageError, VerificationError
from tests.compress.minilm_graph import GraphWriter, minilm_graph

Feed = dict[str, NDArray[np.int64]]
NUM_LINEAR = 36  # 6 layers of query, key, value, output and two of the feed-forward network
SMOOTH = SmoothingConfig()


def open_session(path: Path, optimized: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def embeddings(path: Path, feeds: list[Feed]) -> NDArray[np.float32]:
    """Mean of the hidden states of each text's tokens."""
    session = open_session(path)
    result = []
    for feed in feeds:
        [hidden] = session.run(None, feed)
        mask = feed["attention_mask"][..., np.newaxis]
        result.append((hidden * mask).sum(1) / mask.sum(1))
    return np.concatenate(result)


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.fixture(scope="module")
def minilm(minilm_folder, tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("float") / "model.onnx"
    onnx.save(minilm_graph(minilm_folder), path)
    return path


@pytest.fixture(scope="module")
def feeds(minilm_folder, news_rows) -> tuple[list[Feed], list[Feed]]:
    """Batches of 8 to compare on, and single rows to calibrate with, of other articles."""
    tokenizer = Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    tokenizer.enable_truncation(96)
    tokenizer.enable_padding()

    def encode(rows: list[dict[str, str]]) -> Feed:
        encoded = tokenizer.encode_batch([row["text"] for row in rows])
        return {
            "input_ids": np.array([one.ids for one in encoded]),
            "attention_mask": np.array([one.attention_mask for one in encoded]),
            "token_type_ids": np.array([one.type_ids for one in encoded]),
        }

    return [encode(news_rows[i : i + 8]) for i in range(0, 64, 8)], [encode([row]) for row in news_rows[100:148]]


@pytest.fixture(scope="module")
def reference(minilm, feeds) -> NDArray[np.float32]:
    return embeddings(minilm, feeds[0])


METHODS = {
    # config, smallest cosine, mean cosine: about twice as far from 1 as measured
    "dynamic": (DynamicInt8Config(), 0.97, 0.991),
    "dynamic-uint8": (DynamicInt8Config(weight_type=WeightType.UINT8), 0.97, 0.991),
    "dynamic-smooth": (DynamicInt8Config(smoothing=SMOOTH), 0.996, 0.998),
    "dynamic-smooth-7-bit": (DynamicInt8Config(smoothing=SMOOTH, reduce_range=True), 0.992, 0.996),
    "static": (StaticInt8Config(), 0.996, 0.998),
    "static-mse": (StaticInt8Config(calibration=CalibrationMethod.MSE), 0.99, 0.996),
    "static-signed": (StaticInt8Config(activation_type=ActivationType.INT8), 0.99, 0.997),
}


@pytest.mark.parametrize("name", METHODS)
def test_embeddings_of_real_texts_stay_near_the_float_ones(name, minilm, feeds, reference, tmp_path):
    config, smallest, mean = METHODS[name]
    quantize_onnx(minilm, tmp_path / "int8.onnx", config, iter(feeds[1]))
    found = cosines(reference, embeddings(tmp_path / "int8.onnx", feeds[0]))
    assert found.min() >= smallest
    assert found.mean() >= mean


@pytest.mark.parametrize("config", [DynamicInt8Config(), DynamicInt8Config(smoothing=SMOOTH), StaticInt8Config()])
def test_the_file_is_3_9_times_smaller_than_the_checkpoint(config, minilm, minilm_folder, feeds, tmp_path):
    result = quantize_onnx(minilm, tmp_path / "int8.onnx", config, feeds[1][:4])
    checkpoint = (minilm_folder / "model.safetensors").stat().st_size
    # The pooler, 0.6 MB of the checkpoint, is not in this graph.
    assert (checkpoint - 590_000) / (tmp_path / "int8.onnx").stat().st_size >= 3.9
    assert result.size_after_bytes == (tmp_path / "int8.onnx").stat().st_size
    assert result.size_before_bytes == minilm.stat().st_size


def test_only_linear_layers_and_tables_are_quantized(minilm, tmp_path):
    result = quantize_onnx(minilm, tmp_path / "int8.onnx", DynamicInt8Config())
    before, after = operators(minilm), operators(tmp_path / "int8.onnx")
    assert Counter(node.op_type for node in result.quantized) == {"MatMul": NUM_LINEAR, "Gather": 2}
    assert after["MatMulInteger"] == NUM_LINEAR
    for kept in ("Softmax", "LayerNormalization", "Gelu"):
        assert after[kept] == before[kept] == result.float_operators[kept]
    assert after["MatMul"] == before["MatMul"] - NUM_LINEAR == result.float_operators["MatMul"]
    assert {(node.op_type, node.reason) for node in result.skipped} == {
        ("MatMul", "both operands are computed"),
        ("Gather", "its weight has 768 elements, fewer than min_weight_elements=1024"),
    }
    assert all(0 < node.weight_error < 0.03 for node in result.quantized)


@pytest.mark.parametrize("config", [DynamicInt8Config(), DynamicInt8Config(smoothing=SMOOTH), StaticInt8Config()])
def test_onnxruntime_computes_every_linear_layer_in_integers(config, minilm, feeds, tmp_path):
    """Its optimizer knows only certain patterns: what it misses runs slowly, or in float."""
    quantize_onnx(minilm, tmp_path / "int8.onnx", config, feeds[1][:4])
    open_session(tmp_path / "int8.onnx", optimized=tmp_path / "optimized.onnx")
    optimized = operators(tmp_path / "optimized.onnx")
    assert optimized["DynamicQuantizeMatMul"] + optimized["MatMulIntegerToFloat"] == NUM_LINEAR
    assert optimized["MatMulInteger"] == optimized["DequantizeLinear"] == optimized["SkipLayerNormalization"] == 0


@pytest.mark.parametrize("config", [DynamicInt8Config(smoothing=SMOOTH), StaticInt8Config()])
def test_the_same_input_gives_the_same_bytes_from_a_list_or_a_stream(config, minilm, feeds, tmp_path):
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    quantize_onnx(minilm, a, config, feeds[1][:3])
    quantize_onnx(minilm, b, config, iter(feeds[1][:3]))
    assert a.read_bytes() == b.read_bytes()


def test_static_ranges_are_listed_and_cover_what_was_seen(minilm, feeds, tmp_path):
    result = quantize_onnx(minilm, tmp_path / "int8.onnx", StaticInt8Config(smoothing=None), feeds[1][:2])
    assert len(result.activation_ranges) == 4 * 6
    gelu_low, gelu_high = result.activation_ranges["encoder.layer.0/Gelu:0"]
    assert -0.17 <= gelu_low < -0.1  # the smallest value of GELU
    assert gelu_high > 3


def small_graph(path: Path, writer: GraphWriter, width: int = 64, outputs: int = 64) -> Path:
    shapes = (("x", ["rows", width]), ("y", ["rows", outputs]))
    infos = [helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes]
    writer.nodes[-1].output[0] = "y"
    onnx.save(writer.model(infos[:1], infos[1:]), path)
    return path


RNG = np.random.default_rng(0)


def weight(*shape: int) -> NDArray[np.float32]:
    return RNG.normal(0, 0.1, shape).astype(np.float32)


def run(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    [y] = open_session(path).run(None, {"x": x})
    return np.asarray(y)


def relative(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def test_fused_float_nodes_are_taken_apart_and_compute_the_same(tmp_path):
    write = GraphWriter()
    h = write.node("MatMul", "x", write.constant("w", weight(64, 64)), name="m")
    h = write.node("BiasGelu", h, write.constant("b", weight(64)), name="bias_gelu", domain="com.microsoft")
    names = [write.constant(name, weight(64)) for name in ("gamma", "beta", "b2")]
    write.node("SkipLayerNormalization", h, "x", *names, name="skip", domain="com.microsoft", epsilon=1e-12)
    source = small_graph(tmp_path / "float.onnx", write)
    result = quantize_onnx(source, tmp_path / "int8.onnx", DynamicInt8Config())
    assert result.rewrites["split BiasGelu"] == result.rewrites["split SkipLayerNormalization"] == 1
    x = weight(9, 64)
    assert relative(run(source, x), run(tmp_path / "int8.onnx", x)) < 0.02


@pytest.mark.parametrize("config", [DynamicInt8Config(), StaticInt8Config(smoothing=None)])
@pytest.mark.parametrize("transposed", [False, True])
def test_gemm_with_bias_is_a_linear_layer(config, transposed, tmp_path):
    write = GraphWriter()
    w = write.constant("w", weight(96, 64) if transposed else weight(64, 96))
    h = write.node("Gemm", "x", w, write.constant("b", weight(96)), name="g", transB=int(transposed))
    write.node("Tanh", h, name="t")
    source = small_graph(tmp_path / "float.onnx", write, outputs=96)
    x = weight(9, 64)
    result = quantize_onnx(source, tmp_path / "int8.onnx", config, [{"x": x}])
    assert [node.shape for node in result.quantized] == [(64, 96)]
    assert relative(run(source, x), run(tmp_path / "int8.onnx", x)) < 0.02


@pytest.mark.parametrize("config", [DynamicInt8Config(), DynamicInt8Config(smoothing=SMOOTH), StaticInt8Config()])
@pytest.mark.parametrize("bias", [False, True])
def test_layers_that_follow_each_other_read_each_other(bias, config, tmp_path):
    write = GraphWriter()
    h = "x"
    for index in range(3):
        h = write.node("MatMul", h, write.constant(f"w{index}", weight(64, 64)), name=f"m{index}")
        if bias:
            h = write.node("Add", h, write.constant(f"b{index}", weight(64)), name=f"a{index}")
    write.node("Tanh", h, name="t")
    source = small_graph(tmp_path / "float.onnx", write)
    x = weight(50, 64)
    result = quantize_onnx(source, tmp_path / "int8.onnx", config, [{"x": x}])
    assert [node.name for node in result.quantized] == ["m0", "m1", "m2"]
    assert relative(run(source, x), run(tmp_path / "int8.onnx", x)) < 0.03


def test_a_shared_matrix_is_stored_once(tmp_path):
    write = GraphWriter()
    w = write.constant("w", weight(64, 64))
    write.node("MatMul", write.node("Tanh", write.node("MatMul", "x", w, name="a"), name="t"), w, name="b")
    source = small_graph(tmp_path / "float.onnx", write)
    quantize_onnx(source, tmp_path / "int8.onnx", DynamicInt8Config())
    integers = [i for i in onnx.load(tmp_path / "int8.onnx").graph.initializer if i.data_type == onnx.TensorProto.INT8]
    assert len(integers) == 1
    x = weight(9, 64)
    assert relative(run(source, x), run(tmp_path / "int8.onnx", x)) < 0.03


@pytest.mark.parametrize("config", [DynamicInt8Config(smoothing=SMOOTH), StaticInt8Config()])
def test_outlying_channels_cost_nothing_when_smoothed(config, tmp_path):
    """One channel fifty times the others, one three times; two layers share a matrix and read different values."""
    write = GraphWriter()
    channels = np.ones(64, np.float32)
    channels[[5, 9]] = 50, 3
    w = write.constant("w", weight(64, 64))
    first = write.node("MatMul", write.node("Mul", "x", write.constant("c", channels), name="s"), w, name="a")
    second = write.node("MatMul", "x", w, name="b")
    write.node("Sub", write.node("Tanh", first, name="t"), write.node("Tanh", second, name="u"), name="d")
    source = small_graph(tmp_path / "float.onnx", write)
    x = RNG.normal(size=(200, 64)).astype(np.float32)
    quantize_onnx(source, tmp_path / "int8.onnx", config, [{"x": x[:100]}])
    plain = StaticInt8Config(smoothing=None) if isinstance(config, StaticInt8Config) else DynamicInt8Config()
    quantize_onnx(source, tmp_path / "plain.onnx", plain, [{"x": x[:100]}])
    error, without = (relative(run(source, x), run(tmp_path / f"{name}.onnx", x)) for name in ("int8", "plain"))
    assert error < 0.02
    assert error < without / 2


def test_a_scale_is_folded_into_a_normalization_that_only_the_layer_reads(tmp_path):
    write = GraphWriter()
    gamma = np.ones(64, np.float32)
    gamma[7] = 4
    constants = [write.constant("gamma", gamma), write.constant("beta", weight(64))]
    h = write.node("LayerNormalization", "x", *constants, name="n", axis=-1)
    write.node("Tanh", write.node("MatMul", h, write.constant("w", weight(64, 64)), name="m"), name="t")
    source = small_graph(tmp_path / "float.onnx", write)
    x = RNG.normal(size=(50, 64)).astype(np.float32)
    result = quantize_onnx(source, tmp_path / "int8.onnx", DynamicInt8Config(smoothing=SMOOTH), [{"x": x}])
    assert result.rewrites["scale folded into LayerNormalization"] == 1
    assert operators(tmp_path / "int8.onnx")["Mul"] == 2  # the two of the dynamic form
    assert relative(run(source, x), run(tmp_path / "int8.onnx", x)) < 0.02


def test_the_head_stays_in_float_unless_selected(tmp_path):
    write = GraphWriter()
    h = write.node("Tanh", write.node("MatMul", "x", write.constant("w", weight(64, 64)), name="body"), name="t")
    head = write.node("MatMul", h, write.constant("v", weight(64, 32)), name="head")
    write.node("Add", head, write.constant("b", weight(32)), name="bias")
    source = small_graph(tmp_path / "float.onnx", write, outputs=32)
    result = quantize_onnx(source, tmp_path / "int8.onnx", DynamicInt8Config())
    assert [node.name for node in result.quantized] == ["body"]
    assert [node.name for node in result.skipped] == ["head"]
    config = DynamicInt8Config(select=LayerSelection(head=True))
    result = quantize_onnx(source, tmp_path / "int8.onnx", config)
    assert [node.name for node in result.quantized] == ["body", "head"]


def test_excluded_names_stay_in_float_and_are_listed(tmp_path):
    write = GraphWriter()
    h = write.node("Tanh", write.node("MatMul", "x", write.constant("w", weight(64, 64)), name="one"), name="t")
    write.node("MatMul", h, write.constant("v", weight(64, 64)), name="two")
    source = small_graph(tmp_path / "float.onnx", write)
    config = DynamicInt8Config(select=LayerSelection(exclude=("o*", "nothing")))
    result = quantize_onnx(source, tmp_path / "int8.onnx", config)
    assert [(node.name, node.reason) for node in result.skipped] == [("one", "excluded by 'o*'")]
    with pytest.raises(NothingQuantizedError, match=r"1 × excluded by 'o\*'; 1 × excluded by 'two'"):
        quantize_onnx(source, tmp_path / "none.onnx", DynamicInt8Config(select=LayerSelection(exclude=("o*", "two"))))


def test_a_graph_without_weights_is_an_error_and_leaves_nothing(tmp_path):
    write = GraphWriter()
    write.node("Tanh", "x", name="t")
    source = small_graph(tmp_path / "float.onnx", write)
    with pytest.raises(NothingQuantizedError, match="no layer can be quantized: it has no weights"):
        quantize_onnx(source, tmp_path / "int8.onnx", DynamicInt8Config())
    assert [path.name for path in tmp_path.iterdir()] == ["float.onnx"]


def test_weights_that_are_not_finite_are_not_quantized(tmp_path):
    write = GraphWriter()
    bad = weight(64, 64)
    bad[3, 4] = np.nan
    write.node("MatMul", "x", write.constant("w", bad), name="m")
    source = small_graph(tmp_path / "float.onnx", write)
    with pytest.raises(NothingQuantizedError, match="1 × its weight is not finite"):
        quantize_onnx(source, tmp_path / "int8.onnx", DynamicInt8Config())


def endless() -> Iterator[Feed]:
    raise AssertionError("must not be read")
    yield {}


@pytest.mark.parametrize("config", [StaticInt8Config(), DynamicInt8Config(smoothing=SMOOTH)])
def test_what_needs_calibration_rows_says_so(config, minilm, tmp_path):
    with pytest.raises(UsageError, match="need calibration rows"):
        quantize_onnx(minilm, tmp_path / "int8.onnx", config)


def test_plain_dynamic_quantization_reads_no_calibration_rows(tmp_path):
    write = GraphWriter()
    write.node("MatMul", "x", write.constant("w", weight(64, 64)), name="m")
    quantize_onnx(small_graph(tmp_path / "float.onnx", write), tmp_path / "int8.onnx", DynamicInt8Config(), endless())


@pytest.mark.parametrize("rows", [[], [{"x": np.full((1, 64), np.nan, np.float32)}]])
def test_useless_calibration_rows_are_an_error_and_leave_nothing(rows, tmp_path):
    write = GraphWriter()
    write.node("MatMul", "x", write.constant("w", weight(64, 64)), name="m")
    source = small_graph(tmp_path / "float.onnx", write)
    with pytest.raises(CalibrationError):
        quantize_onnx(source, tmp_path / "int8.onnx", StaticInt8Config(), rows)
    assert [path.name for path in tmp_path.iterdir()] == ["float.onnx"]


def test_weights_past_the_limit_of_one_file_go_beside_it(minilm, feeds, reference, tmp_path):
    external = tmp_path / "float" / "model.onnx"
    external.parent.mkdir()
    onnx.save(onnx.load(minilm), external, save_as_external_data=True, location="weights", size_threshold=1024)
    target = tmp_path / "int8" / "model.onnx"
    result = quantize_onnx(external, target, DynamicInt8Config(), single_file_bytes=1 << 20)
    assert sorted(path.name for path in target.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert result.size_before_bytes == sum(path.stat().st_size for path in external.parent.iterdir())
    assert result.size_after_bytes == sum(path.stat().st_size for path in target.parent.iterdir())
    assert cosines(reference, embeddings(target, feeds[0])).min() > 0.97


def test_a_missing_source_is_a_storage_error_that_names_it(tmp_path):
    with pytest.raises(StorageError, match=r"missing\.onnx"):
        quantize_onnx(tmp_path / "missing.onnx", tmp_path / "int8.onnx", DynamicInt8Config())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayerSelection(linear=False, embeddings=False), "nothing is left to quantize"),
        (lambda: StaticInt8Config(percentile=20), r"percentile=20: must be in \(50, 100\]"),
        (lambda: StaticInt8Config(memory_budget_mb=0), "memory_budget_mb=0: must be at least 1"),
        (lambda: SmoothingConfig(threshold=0.5), "threshold=0.5, float_threshold=6.0: must be"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_file_that_did_not_get_smaller_does_not_appear(tmp_path):
    """Matrices of 16 weights: the nodes that are added outweigh the bytes that are saved."""
    write = GraphWriter()
    h = "x"
    for index in range(30):
        h = write.node("MatMul", h, write.constant(f"w{index}", weight(4, 4)), name=f"m{index}")
    write.node("Tanh", h, name="t")
    source = small_graph(tmp_path / "float.onnx", write, width=4, outputs=4)
    config = DynamicInt8Config(select=LayerSelection(min_weight_elements=1))
    with pytest.raises(VerificationError, match=r"int8.onnx: \d+ bytes after quantization, \d+ before"):
        quantize_onnx(source, tmp_path / "int8.onnx", config)
    assert [path.name for path in tmp_path.iterdir()] == ["float.onnx"]


def test_tables_alone_need_no_ranges(minilm, feeds, tmp_path):
    config = StaticInt8Config(select=LayerSelection(linear=False))
    result = quantize_onnx(minilm, tmp_path / "int8.onnx", config, feeds[1][:1])
    assert Counter(node.op_type for node in result.quantized) == {"Gather": 2}
    assert not result.activation_ranges
