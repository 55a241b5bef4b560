"""Commands that do one step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgesmith.cli.figures import show_measured
from edgesmith.cli.options import (
    ArtifactPath,
    Columns,
    DataFile,
    Json,
    Out,
    Seed,
    TaskName,
    Threads,
    columns_of,
    pairs,
    within,
)
from edgesmith.cli.serving import refuse_given, show_exported
from edgesmith.cli.show import show_proof
from edgesmith.errors import UsageError

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
        columns=columns_of(columns, data),
        progress=console.ConsoleProgress(),
    )
    from dataclasses import asdict

    _show_artifact(artifact, asdict(result), json)


def export(
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT | NAME=ARTIFACT…",
            help="Checkpoint: Hugging Face folder, for gguf also a LoRA adapter. With --for: NAME[:VERSION]=PATH of "
            "artifacts or releases, or a bare path.",
        ),
    ],
    out: Out,
    format: Annotated[  # noqa: A002
        str | None,
        typer.Option(
            "--format", help="What will run it: onnx, as by default, gguf (llama.cpp) or genai (onnxruntime-genai)."
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="SERVER",
            help="Write artifacts down for another server: triton (a model repository) or kserve (a YAML file).",
        ),
    ] = None,
    data: DataFile = None,
    task: TaskName = None,
    optimize_for: Annotated[
        str | None, typer.Option(help="onnx: onnxruntime-cpu, or portable (standard operators only).")
    ] = None,
    opset: Annotated[int | None, typer.Option(help="onnx: opset; chosen by --optimize-for if left out.")] = None,
    max_length: Annotated[int | None, typer.Option(help="onnx: longest input in tokens.")] = None,
    dtype: Annotated[str | None, typer.Option(help="gguf: f32, f16 or bf16. \\[default: the checkpoint's own]")] = None,
    converter: Annotated[
        Path | None, typer.Option(help="gguf: llama.cpp checkout or converter, for a family not known here.")
    ] = None,
    base: Annotated[Path | None, typer.Option(help="gguf: the checkpoint that an adapter was trained on.")] = None,
    precision: Annotated[str | None, typer.Option(help="genai: fp32, fp16, int8 or int4. \\[default: fp32]")] = None,
    block_size: Annotated[int | None, typer.Option(help="genai: weights that share a scale. \\[default: 32]")] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(metavar="ROWS", min=1, help="triton: rows run together; 32 if left out.")
    ] = None,
    max_queue_delay_us: Annotated[
        int | None, typer.Option(metavar="US", min=0, help="triton: how long a batch waits for more; 0 if left out.")
    ] = None,
    instances: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="triton: copies of each model; 1 if left out.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="kserve: container image that the server is in.")] = None,
    storage_uri: Annotated[
        str | None,
        typer.Option(metavar="URI", help="kserve: where the artifact will lie; {name} in it is the model's."),
    ] = None,
    columns: Columns = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Of the engine; with --for, of a run there. 1 if left out, with triton all cores."),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Export a checkpoint, and prove the result equal to it on real data; or artifacts for another server."""
    from edgesmith import api, console

    to_serve: dict[str, Any] = {
        "max_batch_size": max_batch_size,
        "max_queue_delay_us": max_queue_delay_us,
        "instances": instances,
        "image": image,
        "storage_uri": storage_uri,
    }
    if server is not None:
        of_checkpoints = {
            "format": format,
            "data": data,
            "task": task,
            "optimize_for": optimize_for,
            "opset": opset,
            "max_length": max_length,
            "dtype": dtype,
            "converter": converter,
            "base": base,
            "precision": precision,
            "block_size": block_size,
            "column": columns,
        }
        refuse_given(of_checkpoints, f"--for {server}, which takes artifacts", "Export the checkpoint first.")
        from edgesmith.api.serving import export_for

        made = export_for(
            given, server=server, out=out, threads=threads, progress=console.ConsoleProgress(), **to_serve
        )
        show_exported(made, json)
        return
    refuse_given(to_serve, "a checkpoint's export", "Add --for triton or --for kserve.")
    if len(given) != 1:
        raise UsageError(f"{len(given)} checkpoints are given; one is exported at a time")
    artifact, proof = api.export(
        Path(given[0]),
        out=out,
        format=(format or "onnx").lower(),
        data=data,
        task=task,
        optimize_for=optimize_for,
        opset=opset,
        max_length=max_length,
        dtype=dtype,
        converter=converter,
        base=base,
        precision=precision,
        block_size=block_size,
        columns=columns_of(columns, data),
        threads=threads or 1,
        seed=seed,
        progress=console.ConsoleProgress(),
    )
    _show_artifact(artifact, proof, json)


def quantize(
    artifact: ArtifactPath,
    out: Out,
    method: Annotated[
        str | None, typer.Option(help="onnx: dynamic-int8 or static-int8. \\[default: dynamic-int8]")
    ] = None,
    type: Annotated[  # noqa: A002
        str | None, typer.Option("--type", help="gguf: llama.cpp's name of a mix of types, such as Q4_K_M.")
    ] = None,
    bits_per_weight: Annotated[
        float | None,
        typer.Option(
            "--bits-per-weight",
            callback=within(1.5, 16, unit="bits"),
            help="gguf: choose each tensor's type, within this mean; needs --calibration and --against.",
        ),
    ] = None,
    max_mb: Annotated[
        float | None,
        typer.Option(
            "--max-mb",
            callback=within(0, unit="MB"),
            help="gguf: the same, within a file of so many megabytes; needs --calibration and --against.",
        ),
    ] = None,
    max_mean_kld: Annotated[
        float | None,
        typer.Option(
            "--max-mean-kld",
            callback=within(0, unit="nats"),
            help="gguf: the smallest file that stays so near; needs --calibration and --against.",
        ),
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
        typer.Option(min=1, help="Rows drawn from it, or windows of 512 tokens. \\[default: 128 rows, 40 windows]"),
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
            "\\[default: static-int8 does]",
        ),
    ] = None,
    reduce_range: Annotated[
        bool | None, typer.Option("--reduce-range", help="onnx: 7-bit weights, for x86 without VNNI.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="onnx: nodes or weights that stay in float.")
    ] = None,
    clusters: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=128,
            help="onnx: values that a tensor's weights share: as large and as fast, but a smaller download. "
            "\\[default: not shared]",
        ),
    ] = None,
    columns: Columns = None,
    threads: Threads = 1,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Make an unquantized artifact smaller: ONNX is held to a tolerance, how far GGUF moves is measured and shown."""
    from edgesmith import api, console

    made, proof = api.quantize(
        artifact,
        out=out,
        method=method,
        smoothing=smoothing,
        reduce_range=reduce_range,
        exclude=exclude,
        clusters=clusters,
        type=type,
        bits_per_weight=bits_per_weight,
        max_mb=max_mb,
        max_mean_kld=max_mean_kld,
        imatrix=imatrix,
        tensor_types=pairs(tensor_types, option="--tensor-type", example="token_embd*=Q8_0") or None,
        calibration=calibration,
        num_samples=num_samples,
        against=against,
        data=data,
        columns=columns_of(columns, calibration, data),
        threads=threads,
        seed=seed,
        progress=console.ConsoleProgress(),
    )
    _show_artifact(made, proof, json)


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
