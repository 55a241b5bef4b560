"""Commands that do one step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgesmith.cli.figures import show_measured
from edgesmith.cli.options import ArtifactPath, Columns, DataFile, Json, Out, Seed, TaskName, Threads, pairs
from edgesmith.cli.show import show_proof
from edgesmith.errors import UsageError

if TYPE_CHECKING:
    from edgesmith.recipe import GgufQuantizeOptions

__all__ = ["export", "merge", "quantize"]


def merge(
    base: Annotated[Path, typer.Option(help="Hugging Face folder that the adapter was trained on.")],
    adapter: Annotated[
        list[str], typer.Option(metavar="PATH[:WEIGHT]", help="PEFT adapter folder; repeat to add several.")
    ],
    out: Out,
    data: DataFile = None,
    task: TaskName = None,
    dequantize: Annotated[bool, typer.Option(help="Allow a 4- or 8-bit base: turn it into floats first.")] = False,
    columns: Columns = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Fold PEFT adapters into their base, and prove the result equal to base + adapter."""
    from edgesmith import api, console

    artifact, result = api.merge(
        base,
        adapter,
        out=out,
        data=data,
        task=task,
        dequantize=dequantize,
        seed=seed,
        columns=pairs(columns),
        progress=console.ConsoleProgress(),
    )
    from dataclasses import asdict

    _show_artifact(artifact, asdict(result), json)


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint: Hugging Face folder; for gguf also a LoRA adapter.")],
    out: Out,
    format: Annotated[  # noqa: A002
        str, typer.Option("--format", help="What will run it: onnx, gguf (llama.cpp) or genai (onnxruntime-genai).")
    ] = "onnx",
    data: DataFile = None,
    task: TaskName = None,
    optimize_for: Annotated[
        str | None, typer.Option(help="onnx: onnxruntime-cpu, or portable (standard operators only).")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="onnx: opset; chosen by --optimize-for if left out.")] = None,
    max_length: Annotated[int | None, typer.Option(help="onnx: longest input in tokens.")] = None,
    dtype: Annotated[str | None, typer.Option(help="gguf: f32, f16 or bf16. [default: the checkpoint's own]")] = None,
    converter: Annotated[
        Path | None, typer.Option(help="gguf: llama.cpp checkout or converter, for a family not known here.")
    ] = None,
    base: Annotated[Path | None, typer.Option(help="gguf: the checkpoint that an adapter was trained on.")] = None,
    precision: Annotated[str | None, typer.Option(help="genai: fp32, fp16, int8 or int4. [default: fp32]")] = None,
    block_size: Annotated[int | None, typer.Option(help="genai: weights that share a scale. [default: 32]")] = None,
    columns: Columns = None,
    threads: Threads = 1,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Export a checkpoint, and prove the result equal to it on real data."""
    from edgesmith import api, console

    given: dict[str, dict[str, Any]] = {
        "onnx": {"task": task, "optimize_for": optimize_for, "opset": opset, "max_length": max_length},
        "gguf": {"dtype": dtype, "converter": converter, "base": base},
        "genai": {"precision": precision, "block_size": block_size},
    }
    options = _options_of("--format", format, given)
    progress = console.ConsoleProgress()
    proof: dict[str, Any]
    if base is not None and not (checkpoint / "adapter_config.json").is_file():
        raise UsageError(f"--base is for adapters; {checkpoint} has no adapter_config.json")
    if format == "onnx":
        artifact, verification = api.export(
            checkpoint, out=out, data=data, columns=pairs(columns), seed=seed, progress=progress, **options
        )
        proof = verification.to_json()
    elif format == "gguf" and (checkpoint / "adapter_config.json").is_file():
        artifact, proof = api.export_adapter(
            checkpoint, out=out, data=data, threads=threads, progress=progress, **options
        )
    elif format == "gguf":
        artifact, proof = api.export_gguf(checkpoint, out=out, data=data, threads=threads, progress=progress, **options)
    else:
        artifact, proof = api.export_genai(
            checkpoint, out=out, data=data, threads=threads, progress=progress, **options
        )
    _show_artifact(artifact, proof, json)


def _options_of(what: str, chosen: str, given: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The options that were given to a format; one of another format is an error, not ignored."""
    if chosen not in given:
        raise UsageError(f"{what} {chosen}: unknown; use {', '.join(given)}")
    for name, options in given.items():
        for option, value in options.items():
            if name != chosen and value is not None:
                flag = "tensor-type" if option == "tensor_types" else option.replace("_", "-")
                raise UsageError(f"--{flag} means nothing to {what} {chosen}", mend=f"It is for {name}.")
    return {option: value for option, value in given[chosen].items() if value is not None}


def quantize(
    artifact: ArtifactPath,
    out: Out,
    method: Annotated[
        str | None, typer.Option(help="onnx: dynamic-int8 or static-int8. [default: dynamic-int8]")
    ] = None,
    type: Annotated[  # noqa: A002
        str | None, typer.Option("--type", help="gguf: llama.cpp's name of a mix of types, such as Q4_K_M.")
    ] = None,
    bits_per_weight: Annotated[
        float | None, typer.Option("--bits-per-weight", help="gguf: choose each tensor's type, within this mean.")
    ] = None,
    max_mb: Annotated[
        float | None, typer.Option("--max-mb", help="gguf: the same, within a file of so many megabytes.")
    ] = None,
    max_mean_kld: Annotated[
        float | None, typer.Option("--max-mean-kld", help="gguf: the smallest file that stays so near, in nats.")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="gguf: importance matrix, from `edgesmith imatrix`.")
    ] = None,
    tensor_types: Annotated[
        list[str] | None,
        typer.Option("--tensor-type", metavar="PATTERN=TYPE", help="gguf: another type for some tensors."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Real rows for activation ranges, or text for an importance matrix."),
    ] = None,
    num_samples: Annotated[
        int | None,
        typer.Option(min=1, help="Rows drawn from it, or windows of 512 tokens. [default: 128 rows, 40 windows]"),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="Compare with this; with the given artifact if left out."),
    ] = None,
    data: DataFile = None,
    smoothing: Annotated[
        bool | None,
        typer.Option(
            "--smoothing/--no-smoothing",
            help="onnx: scale down outlying activation channels first: nearer to fp32, a little slower. "
            "[default: static-int8 does]",
        ),
    ] = None,
    reduce_range: Annotated[
        bool | None, typer.Option("--reduce-range", help="onnx: 7-bit weights, for x86 without VNNI.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="onnx: nodes or weights that stay in float.")
    ] = None,
    columns: Columns = None,
    threads: Threads = 1,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Make an unquantized artifact smaller, and prove how near it stays."""
    from edgesmith import api, console
    from edgesmith.artifact import open_artifact

    given: dict[str, dict[str, Any]] = {
        "onnx": {"method": method, "smoothing": smoothing, "reduce_range": reduce_range, "exclude": exclude},
        "gguf": {
            "type": type,
            "bits_per_weight": bits_per_weight,
            "max_mb": max_mb,
            "max_mean_kld": max_mean_kld,
            "imatrix": imatrix,
            "tensor_types": tensor_types,
        },
    }
    kind = open_artifact(artifact, kinds=("onnx", "gguf")).kind
    options = _options_of("a file of format", kind, given)
    progress = console.ConsoleProgress()
    proof: dict[str, Any]
    if kind == "onnx":
        made, verification = api.quantize(
            artifact,
            out=out,
            calibration=calibration,
            num_samples=num_samples or 128,
            against=against,
            data=data,
            columns=pairs(columns),
            seed=seed,
            progress=progress,
            **{"method": "dynamic-int8", **options},
        )
        proof = verification.to_json()
    else:
        made, proof = api.quantize_gguf(
            artifact,
            out=out,
            options=_gguf_options(options),
            calibration=calibration,
            num_windows=num_samples or 40,
            checkpoint=against,
            data=data,
            columns=pairs(columns),
            threads=threads,
            progress=progress,
        )
    _show_artifact(made, proof, json)


def _gguf_options(options: dict[str, Any]) -> GgufQuantizeOptions:
    from pydantic import ValidationError

    from edgesmith.recipe import GgufQuantizeOptions

    if "imatrix" in options:
        options["imatrix"] = str(options["imatrix"])
    if "tensor_types" in options:
        options["tensor_types"] = pairs(options["tensor_types"], option="--tensor-type", example="token_embd*=Q8_0")
    if not {"type", "bits_per_weight", "max_mb", "max_mean_kld"} & options.keys():
        raise UsageError(
            "a GGUF file needs a type or a budget",
            mend="Give --type Q4_K_M, or one of --bits-per-weight, --max-mb, --max-mean-kld.",
        )
    try:
        return GgufQuantizeOptions(**options)
    except ValidationError as error:
        raise UsageError(
            "; ".join(str(fault["msg"]).removeprefix("Value error, ") for fault in error.errors())
        ) from error


def _show_artifact(artifact: Any, proof: dict[str, Any], json: bool) -> None:
    from edgesmith import console
    from edgesmith.units import format_bytes

    summary = {
        "path": str(artifact.path),
        "digest": artifact.digest,
        "kind": artifact.kind,
        "model_bytes": artifact.model_bytes,
    }
    if json:
        console.print_json({**summary, "verification": proof})
        return
    summary["model_bytes"] = format_bytes(artifact.model_bytes)
    console.print_facts({name: str(value) for name, value in summary.items()})
    if "language" in proof:
        show_measured(proof, json=False)
    else:
        show_proof(proof, json=False)
