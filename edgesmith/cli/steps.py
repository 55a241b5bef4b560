"""Commands that do one step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgesmith.cli.options import ArtifactPath, Columns, DataFile, Json, Out, Seed, TaskName, pairs
from edgesmith.cli.show import show_proof

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
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint: Hugging Face folder.")],
    out: Out,
    format: Annotated[str, typer.Option("--format", help="What will run it: onnx.")] = "onnx",  # noqa: A002
    task: TaskName = None,
    data: DataFile = None,
    optimize_for: Annotated[str, typer.Option(help="onnxruntime-cpu, or portable (standard operators only).")] = (
        "onnxruntime-cpu"
    ),
    opset: Annotated[int | None, typer.Option(help="ONNX opset; chosen by --optimize-for if left out.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest input in tokens.")] = None,
    columns: Columns = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Export a checkpoint, and prove the result equal to it on real rows."""
    from edgesmith import api, console

    artifact, verification = api.export(
        checkpoint,
        out=out,
        format=format,
        task=task,
        data=data,
        optimize_for=optimize_for,
        opset=opset,
        max_length=max_length,
        seed=seed,
        columns=pairs(columns),
        progress=console.ConsoleProgress(),
    )
    _show_artifact(artifact, verification.to_json(), json)


def quantize(
    artifact: ArtifactPath,
    out: Out,
    method: Annotated[str, typer.Option(help="dynamic-int8 or static-int8.")] = "dynamic-int8",
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Real rows to take activation ranges from (static-int8).")
    ] = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Rows drawn from the calibration file.")] = 128,
    against: Annotated[
        Path | None, typer.Option(metavar="CHECKPOINT", help="Verify against this; the given artifact if left out.")
    ] = None,
    data: DataFile = None,
    smoothing: Annotated[
        bool | None,
        typer.Option(
            "--smoothing/--no-smoothing",
            help="Scale down outlying activation channels first: nearer to fp32, a little slower. "
            "[default: static-int8 does]",
        ),
    ] = None,
    reduce_range: Annotated[bool, typer.Option(help="7-bit weights, for x86 without VNNI.")] = False,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Nodes or weights that stay in float.")
    ] = None,
    columns: Columns = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Turn an fp32 ONNX artifact into an INT8 one, and prove how near it stays."""
    from edgesmith import api, console

    made, verification = api.quantize(
        artifact,
        method=method,
        out=out,
        calibration=calibration,
        num_samples=num_samples,
        against=against,
        data=data,
        smoothing=smoothing,
        reduce_range=reduce_range,
        exclude=exclude or (),
        columns=pairs(columns),
        seed=seed,
        progress=console.ConsoleProgress(),
    )
    _show_artifact(made, verification.to_json(), json)


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
    show_proof(proof, json=False)
