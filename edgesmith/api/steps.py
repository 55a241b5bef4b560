"""Single steps: artifact or checkpoint in, proven artifact out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.api.rows import proof_rows
from edgesmith.errors import UnsupportedError, UsageError
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from compress.verify_merge import MergeVerification
    from edgesmith.artifact import Artifact
    from edgesmith.recipe import GgufQuantizeOptions

__all__ = ["export", "merge", "options_of", "quantize"]


def merge(
    base: Path,
    adapter: Sequence[str | Path],
    *,
    out: Path,
    data: Path | None = None,
    task: str | None = None,
    dequantize: bool = False,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[Artifact, MergeVerification]:
    """Fold adapters into their base; nothing appears at `out` unless it equals base + adapter.

    Args:
        base: Checkpoint that the adapters were trained on.
        adapter: Folders, or `folder:weight`.
        out: Folder to write.
        data: Rows to prove it on; packaged sentences if left out.
        task: Guessed from config.json if left out.
        dequantize: Allow a 4- or 8-bit base.
        columns: The task's column → the file's.
        seed: Of the rows' draw.
        progress: Shows how far it is.

    Raises:
        MergeError: an adapter does not fit, or cannot be merged.
        CheckpointError: base or adapter is damaged or unsafe.
        VerificationError: the merged model differs.
    """
    from edgesmith.artifact import open_artifact
    from edgesmith.stages.base import make_into
    from edgesmith.stages.merge import MergeStage, prove_merge

    adapters = tuple(weighted(one) for one in adapter)
    rows = proof_rows(data, seed=seed, columns=columns, progress=progress)
    opened = open_artifact(base, kinds=("checkpoint",))
    stage = MergeStage(base=opened, adapters=adapters, dequantize=dequantize)
    return make_into(
        stage, out, lambda merged: prove_merge(stage, merged, rows=rows, task=task, progress=progress), progress
    )


def export(
    checkpoint: Path,
    *,
    out: Path,
    format: str = "onnx",  # noqa: A002
    data: Path | None = None,
    task: str | None = None,
    optimize_for: str | None = None,
    opset: int | None = None,
    max_length: int | None = None,
    dtype: str | None = None,
    converter: Path | None = None,
    base: Path | None = None,
    precision: str | None = None,
    block_size: int | None = None,
    columns: Mapping[str, str] | None = None,
    threads: int = 1,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[Artifact, dict[str, Any]]:
    """Export a checkpoint; nothing appears at `out` unless it is proven equal, or as near as its precision is.

    Artifacts for another server, `edgesmith export --for`, are `edgesmith.api.serving.export_for`'s.

    Args:
        checkpoint: Hugging Face folder or checkpoint artifact; for gguf also a LoRA adapter.
        out: Folder to write.
        format: `onnx`, `gguf` or `genai`.
        data: Rows (of a language model: a text) to prove it on; packaged sentences if left out.
        task: onnx: guessed from config.json if left out.
        optimize_for: onnx: `onnxruntime-cpu`, the default, or `portable`.
        opset: onnx: chosen by `optimize_for` if left out.
        max_length: onnx: longest input in tokens.
        dtype: gguf: `f32`, `f16` or `bf16`; the checkpoint's own if left out.
        converter: gguf: a llama.cpp checkout or converter, for families that are not known here.
        base: gguf: the checkpoint that an adapter was trained on.
        precision: genai: `fp32`, the default, `fp16`, `int8` or `int4`.
        block_size: genai: weights that share a scale; 32 if left out.
        columns: The task's column → the file's.
        threads: Of the proof.
        seed: Of the rows' draw.
        progress: Shows how far it is.

    Returns:
        The artifact, and what was found, JSON-able.

    Raises:
        UsageError: an option is unknown, or of another format.
        UnsupportedError: the model cannot be exported.
        VerificationError: the export differs from the checkpoint.
    """
    from edgesmith.api import exports
    from edgesmith.api.graphs import export_onnx

    given: dict[str, dict[str, Any]] = {
        "onnx": {"task": task, "optimize_for": optimize_for, "opset": opset, "max_length": max_length},
        "gguf": {"dtype": dtype, "converter": converter, "base": base},
        "genai": {"precision": precision, "block_size": block_size},
    }
    format = format.lower()  # noqa: A001
    options = options_of("--format", format, given)
    if format == "onnx":
        _refuse_language_model(checkpoint)
        artifact, proof = export_onnx(
            checkpoint, out=out, data=data, columns=columns, seed=seed, progress=progress, **options
        )
        return artifact, proof.to_json()
    is_adapter = (checkpoint / "adapter_config.json").is_file() and not (checkpoint / "config.json").is_file()
    if format == "genai":
        make: Callable[..., tuple[Artifact, dict[str, Any]]] = exports.export_genai
    else:
        make = exports.export_adapter if is_adapter else exports.export_gguf
    if base is not None and not is_adapter:
        raise UsageError(f"--base is for adapters; {checkpoint} is none")
    if is_adapter and "dtype" in options:
        raise UsageError("--dtype is for checkpoints; an adapter's file is f32")
    return make(checkpoint, out=out, data=data, columns=columns, threads=threads, progress=progress, **options)


def quantize(
    artifact: Path,
    *,
    out: Path,
    method: str | None = None,
    smoothing: bool | None = None,
    reduce_range: bool | None = None,
    exclude: Sequence[str] | None = None,
    clusters: int | None = None,
    type: str | None = None,  # noqa: A002
    bits_per_weight: float | None = None,
    max_mb: float | None = None,
    max_mean_kld: float | None = None,
    imatrix: Path | None = None,
    tensor_types: Mapping[str, str] | None = None,
    calibration: Path | None = None,
    num_samples: int | None = None,
    against: Path | None = None,
    data: Path | None = None,
    columns: Mapping[str, str] | None = None,
    threads: int = 1,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[Artifact, dict[str, Any]]:
    """Make an unquantized artifact smaller, and prove (or, of a language model, measure) how near it stays.

    Args:
        artifact: fp32 ONNX artifact, or f32, f16 or bf16 GGUF artifact.
        out: Folder to write.
        method: onnx: `dynamic-int8`, the default, or `static-int8`.
        smoothing: onnx: scale down outlying activation channels first; by default static does.
        reduce_range: onnx: 7-bit weights, for x86 without VNNI.
        exclude: onnx: shell patterns of node and weight names that stay in float.
        clusters: onnx: most distinct values of each weight tensor, 2 to 128, for a smaller download.
        type: gguf: llama.cpp's name of a mix of types.
        bits_per_weight: gguf: choose each tensor's type within this mean.
        max_mb: gguf: the same within a file of so many megabytes.
        max_mean_kld: gguf: the smallest file that stays so near, in nats a token.
        imatrix: gguf: an importance matrix, from `imatrix`.
        tensor_types: gguf: shell pattern of tensor names → type.
        calibration: Rows for activation ranges, or text for an importance matrix.
        num_samples: Rows of it, 128 if left out, or windows of 512 tokens, 40 if left out.
        against: Checkpoint to compare with; `artifact` itself if left out.
        data: Rows (of a language model: a text) to compare on; packaged sentences if left out.
        columns: The task's column → the file's.
        threads: Of the engines.
        seed: Of every draw.
        progress: Shows how far it is.

    Returns:
        The artifact, and what was found, JSON-able.

    Raises:
        UsageError: an option is unknown or of another format, or something that is needed was not given.
        VerificationError: the quantized model is too far off.
    """
    from edgesmith.api.gguf import quantize_gguf
    from edgesmith.api.graphs import quantize_onnx
    from edgesmith.artifact import open_artifact

    given: dict[str, dict[str, Any]] = {
        "onnx": {
            "method": method,
            "smoothing": smoothing,
            "reduce_range": reduce_range,
            "exclude": exclude,
            "clusters": clusters,
        },
        "gguf": {
            "type": type,
            "bits_per_weight": bits_per_weight,
            "max_mb": max_mb,
            "max_mean_kld": max_mean_kld,
            "imatrix": imatrix,
            "tensor_types": tensor_types,
        },
    }
    kind = open_artifact(artifact).kind
    if kind not in ("onnx", "gguf"):
        mends = {
            "genai": "Export the checkpoint again: edgesmith export CHECKPOINT --format genai --precision int4 -o OUT",
            "checkpoint": f"Export it first: edgesmith export {artifact} --format onnx (or gguf) -o OUT",
        }
        raise UnsupportedError(
            f"{artifact}: is of kind {kind!r}; onnx and gguf are quantized", mend=mends.get(kind, "")
        )
    options = options_of("an artifact of kind", kind, given)
    if kind == "onnx":
        made, proof = quantize_onnx(
            artifact,
            out=out,
            calibration=calibration,
            num_samples=num_samples or 128,
            against=against,
            data=data,
            columns=columns,
            seed=seed,
            progress=progress,
            **{"method": "dynamic-int8", **options},
        )
        return made, proof.to_json()
    return quantize_gguf(
        artifact,
        out=out,
        options=_gguf_options(options),
        calibration=calibration,
        num_windows=num_samples,
        checkpoint=against,
        data=data,
        columns=columns,
        threads=threads,
        progress=progress,
    )


def _refuse_language_model(checkpoint: Path) -> None:
    """Say at once that a graph is not what a language model becomes."""
    from edgesmith.tasks import TEXT_GENERATION, get_task, guess_task
    from edgesmith.tasks.folder import read_json_object

    if (checkpoint / "config.json").is_file():
        try:
            task = guess_task(read_json_object(checkpoint / "config.json"))
        except UnsupportedError:
            return  # the export says it
        if task == TEXT_GENERATION:
            get_task(task)  # which has no graph


def options_of(what: str, chosen: str, given: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The options that were given to a format; one of another format is an error, not ignored.

    Args:
        what: The flag that chooses, for messages.
        chosen: What it chooses.
        given: Choice → its options' names and values, None for one that was not given.

    Raises:
        UsageError: There is no such choice, or an option of another one was given.
    """
    if chosen not in given:
        raise UsageError(f"{what} {chosen}: unknown; use {', '.join(given)}")
    for name, options in given.items():
        for option, value in options.items():
            if name != chosen and value is not None:
                flag = "tensor-type" if option == "tensor_types" else option.replace("_", "-")
                raise UsageError(f"--{flag} means nothing to {what} {chosen}", mend=f"It is for {name}.")
    return {option: value for option, value in given[chosen].items() if value is not None}


def _gguf_options(options: dict[str, Any]) -> GgufQuantizeOptions:
    from pydantic import ValidationError

    from edgesmith.recipe import GgufQuantizeOptions

    if "imatrix" in options:
        options["imatrix"] = str(options["imatrix"])
    if not {"type", "bits_per_weight", "max_mb", "max_mean_kld"} & options.keys():
        raise UsageError(
            "a GGUF file needs a type or a budget",
            mend="Give --type Q4_K_M, or one of --bits-per-weight, --max-mb, --max-mean-kld.",
        )
    try:
        return GgufQuantizeOptions(**options)
    except ValidationError as error:
        faults = [str(fault["msg"]).removeprefix("Value error, ") for fault in error.errors()]
        raise UsageError("; ".join(faults)) from error


def weighted(given: str | Path) -> tuple[Path, float]:
    """Split `folder:weight`; a path that exists is never split."""
    text = os.fspath(given)
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        return Path(path), float(weight)
    except ValueError as error:
        raise UsageError(f"--adapter {text}: {weight!r} is no number", mend="Write PATH or PATH:WEIGHT.") from error
