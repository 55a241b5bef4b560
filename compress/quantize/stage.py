"""Quantizing an ONNX file: load, prepare, calibrate, rewrite, write, and check what was written."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import onnx_ir as ir

from compress.calibrate import collect_channel_peaks, collect_histograms, spool
from compress.histogram import Histogram, entropy_range, min_max_range, mse_range, percentile_range
from compress.quantize.config import (
    ActivationType,
    CalibrationMethod,
    DynamicInt8Config,
    Feed,
    StaticInt8Config,
)
from compress.quantize.convolution import Convolution, ConvolutionRewriter, find_convolutions, tensors_between
from compress.quantize.embedding import EmbeddingRewriter
from compress.quantize.finish import LARGEST_SINGLE_FILE_BYTES, clean_, model_size_bytes, write_model
from compress.quantize.graph import Builder
from compress.quantize.kernels import ActivationScale, activation_scale
from compress.quantize.layers import Embedding, Linear, find_layers
from compress.quantize.linear import DynamicLinearRewriter, StaticLinearRewriter
from compress.quantize.prepare import prepare_
from compress.quantize.result import NothingQuantizedError, QuantizedNode, QuantizeResult, SkippedNode
from compress.quantize.smooth import fold_scales_, smooth_
from edgesmith.errors import UsageError, VerificationError
from edgesmith.files import storage_errors
from edgesmith.progress import SILENT, Progress

__all__ = ["quantize_onnx"]

T = TypeVar("T")

# These hold integers or only move data: not listed among the operators that compute in float.
_NOT_FLOAT = frozenset(
    {"Cast", "Concat", "DequantizeLinear", "DynamicQuantizeLinear", "Expand", "Gather", "Identity", "MatMulInteger"}
    | {"QuantizeLinear", "Reshape", "Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)


def quantize_onnx(
    source: Path,
    destination: Path,
    config: DynamicInt8Config | StaticInt8Config,
    calibration: Iterable[Feed] | None = None,
    *,
    single_file_bytes: int = LARGEST_SINGLE_FILE_BYTES,
    progress: Progress = SILENT,
) -> QuantizeResult:
    """Write an int8 version of a float32 ONNX file; the same input gives the same bytes.

    Args:
        source: A float32 graph. Not modified.
        destination: The file to write; past 2 GB its weights go to `destination`.data.
        config: The method and what it is applied to.
        calibration: Real inputs, streamed; needed by `StaticInt8Config` and by smoothing, else not read.
        single_file_bytes: Weights of more bytes are written beside the graph.
        progress: Where to report.

    Returns:
        What was quantized, what was left in float and why, and the sizes.

    Raises:
        UsageError: Calibration inputs are needed and there are none.
        CalibrationError: The calibration inputs are empty, do not fit, or give values that are not finite.
        NothingQuantizedError: No layer fits the config.
        VerificationError: The written file is not smaller, or holds no 8-bit weights.
        StorageError: The disk is full or the folder cannot be written.
    """
    needs_rows = isinstance(config, StaticInt8Config) or config.smoothing is not None
    if needs_rows and calibration is None:
        raise UsageError(
            "static-int8 and smoothing need calibration rows",
            mend="Give real rows, or use dynamic-int8 without smoothing, which needs none.",
        )
    with storage_errors(source):
        model = ir.load(source)
        size_before = model_size_bytes(model, source)
    rewrites = prepare_(model)
    layers, skipped = find_layers(model.graph, config.select)
    convolutions: list[Convolution] = []
    if isinstance(config, StaticInt8Config):
        convolutions, left = find_convolutions(model.graph, config.select)
        skipped = [node for node in skipped if node.op_type != "Conv"] + left
    if not layers and not convolutions:
        raise NothingQuantizedError(
            f"{source}: no layer can be quantized: {_summary(skipped)}",
            mend="Leave quantize out; a model of convolutions takes static-int8.",
        )
    tensors = tensors_between(model.graph, convolutions)
    builder = Builder(model.graph)
    with _calibration(calibration if needs_rows else None) as feeds:
        if config.smoothing:
            peaks = _collect(collect_channel_peaks, model, _activations(layers), feeds, config, progress)
            layers = smooth_(builder, layers, peaks, config.smoothing)
        ranges: dict[str, tuple[float, float]] = {}
        if isinstance(config, StaticInt8Config):
            names = [*_activations(layers), *(str(value.name) for value in tensors.values())]
            histograms = _collect(collect_histograms, model, list(dict.fromkeys(names)), feeds, config, progress)
            ranges = {name: _range(seen, config) for name, seen in histograms.items()}
    quantized = _rewrite_(builder, layers, config, ranges, progress)
    if isinstance(config, StaticInt8Config) and convolutions:
        rewriter = ConvolutionRewriter(builder, config, tensors, _scales(ranges, config))
        quantized = (*quantized, *rewriter.rewrite_(model.graph, convolutions))
    rewrites["scale folded into LayerNormalization"] = fold_scales_(builder, model.graph)
    clean_(model)
    check = partial(_check_written, destination=destination, size_before=size_before)
    size_after = write_model(model, destination, check, single_file_bytes=single_file_bytes)
    floats = Counter(node.op_type for node in model.graph.all_nodes() if node.op_type not in _NOT_FLOAT)
    return QuantizeResult(
        quantized=quantized,
        skipped=tuple(skipped),
        float_operators=dict(sorted(floats.items())),
        rewrites=rewrites,
        size_before_bytes=size_before,
        size_after_bytes=size_after,
        activation_ranges=ranges,
    )


def _summary(skipped: Sequence[SkippedNode]) -> str:
    reasons = Counter(node.reason for node in skipped)
    return "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(4)) or "it has no weights"


@contextmanager
def _calibration(feeds: Iterable[Feed] | None) -> Iterator[Iterable[Feed]]:
    """Give feeds that can be iterated twice: those of a stream go through a temporary folder."""
    if not isinstance(feeds, Iterator):
        yield feeds or ()
        return
    with tempfile.TemporaryDirectory(prefix="edgesmith-feeds-") as folder:
        yield spool(feeds, Path(folder))


def _collect(
    collect: Callable[..., dict[str, T]],
    model: ir.Model,
    names: Sequence[str],
    feeds: Iterable[Feed],
    config: DynamicInt8Config | StaticInt8Config,
    progress: Progress,
) -> dict[str, T]:
    """Observe the tensors of these names."""
    if not names:
        return {}
    with tempfile.TemporaryDirectory(prefix="edgesmith-quantize-") as folder:
        path = Path(folder, "float.onnx")
        with storage_errors(path):
            ir.save(model, path, external_data="float.onnx.data", size_threshold_bytes=1024)
        budget = config.memory_budget_mb << 20
        return collect(path, names, feeds, memory_budget_bytes=budget, progress=progress)


def _activations(layers: Sequence[Linear | Embedding]) -> list[str]:
    """What the linear layers read, each once."""
    return list(dict.fromkeys(str(layer.activation.name) for layer in layers if isinstance(layer, Linear)))


def _rewrite_(
    builder: Builder,
    layers: Sequence[Linear | Embedding],
    config: DynamicInt8Config | StaticInt8Config,
    ranges: Mapping[str, tuple[float, float]],
    progress: Progress,
) -> tuple[QuantizedNode, ...]:
    embedding = EmbeddingRewriter(builder, config.clusters)
    linear: DynamicLinearRewriter | StaticLinearRewriter
    if isinstance(config, StaticInt8Config):
        linear = StaticLinearRewriter(builder, config, _scales(ranges, config))
    else:
        linear = DynamicLinearRewriter(builder, config)
    return tuple(
        embedding.rewrite_(layer) if isinstance(layer, Embedding) else linear.rewrite_(layer)
        for layer in progress.track(layers, "quantize")
    )


def _range(seen: Histogram, config: StaticInt8Config) -> tuple[float, float]:
    symmetric = config.activation_type is ActivationType.INT8
    match config.calibration:
        case CalibrationMethod.MIN_MAX:
            return min_max_range(seen)
        case CalibrationMethod.PERCENTILE:
            return percentile_range(seen, config.percentile)
        case CalibrationMethod.MSE:
            return mse_range(seen, symmetric=symmetric)
        case CalibrationMethod.ENTROPY:
            return entropy_range(seen)


def _scales(ranges: Mapping[str, tuple[float, float]], config: StaticInt8Config) -> dict[str, ActivationScale]:
    signed = config.activation_type is ActivationType.INT8
    return {name: activation_scale(low, high, signed=signed) for name, (low, high) in ranges.items()}


def _check_written(path: Path, *, destination: Path, size_before: int) -> int:
    """Read the written file back and return its size.

    Raises:
        VerificationError: It is not smaller than the source, or holds no 8-bit weights.
    """
    written = ir.load(path)
    if not any(value.dtype in {ir.DataType.INT8, ir.DataType.UINT8} for value in written.graph.initializers.values()):
        raise VerificationError(f"{destination}: holds no 8-bit weights after quantization")
    size = model_size_bytes(written, path)
    if size >= size_before:
        raise VerificationError(f"{destination}: {size} bytes after quantization, {size_before} before")
    return size
