"""The command that prunes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgesmith.cli.options import (
    Columns,
    DataFile,
    Json,
    Out,
    Seed,
    TaskName,
    Threads,
    columns_of,
    pairs,
    read_layers,
    within,
)
from edgesmith.errors import UsageError

if TYPE_CHECKING:
    from edgesmith.artifact import Artifact

__all__ = ["prune"]


def prune(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Hugging Face folder.")],
    out: Out,
    method: Annotated[
        str,
        typer.Option(
            help="structured takes out layers, heads and channels; magnitude, wanda and sparsegpt set single weights "
            "to zero."
        ),
    ] = "structured",
    sparsity: Annotated[float | None, typer.Option(help="Single weights: share of zeros in every matrix.")] = None,
    pattern: Annotated[
        str | None, typer.Option(metavar="N:M", help="Single weights: keep N of every M in a row, such as 2:4.")
    ] = None,
    importance: Annotated[
        str | None,
        typer.Option(help="structured: magnitude, taylor, activation or hessian. \\[default: hessian]"),
    ] = None,
    num_layers: Annotated[int | None, typer.Option(min=1, help="structured: layers that stay.")] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="structured: which: influence harms least at once, uniform is what an encoder learns best from "
            "afterwards, or their numbers from 0, such as 0,2,5. \\[default: influence]"
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SIZE", help="structured: share or number that stays of ffn, heads, hidden or channels."
        ),
    ] = None,
    max_params: Annotated[
        float | None,
        typer.Option(callback=within(0), help="structured: at most so many parameters, or such a share of them."),
    ] = None,
    max_macs: Annotated[
        float | None, typer.Option(callback=within(0), help="structured: the same in multiply-accumulates of one row.")
    ] = None,
    max_latency: Annotated[
        float | None, typer.Option(callback=within(0, 1), help="structured: the same as a share of the time here.")
    ] = None,
    multiple_of: Annotated[
        int | None, typer.Option(min=1, help="structured: widths are rounded to multiples of this. \\[default: 8]")
    ] = None,
    data: DataFile = None,
    num_samples: Annotated[
        int | None,
        typer.Option(min=1, help="Rows drawn from --data, or windows of 512 tokens. \\[default: 128 rows, 40 windows]"),
    ] = None,
    task: TaskName = None,
    columns: Columns = None,
    threads: Threads = 1,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Take out what matters least, by what the layers are fed with on --data; `distill` trains what is left."""
    from edgesmith import console
    from edgesmith.api.prune import prune as run
    from edgesmith.api.prune import prune_options

    options = prune_options(
        method=method,
        sparsity=sparsity,
        pattern=pattern,
        importance=importance,
        num_layers=num_layers,
        layers=None if layers is None else read_layers(layers),
        keep={name: _size(text, f"--keep {name}") for name, text in _keep(keep).items()} or None,
        max_params=max_params,
        max_macs=max_macs,
        max_latency=max_latency,
        multiple_of=multiple_of,
    )
    artifact, facts = run(
        checkpoint,
        out=out,
        options=options,
        data=data,
        num_samples=num_samples,
        task=task,
        columns=columns_of(columns, data),
        threads=threads,
        seed=seed,
        progress=console.ConsoleProgress(),
    )
    _show(artifact, facts, json)


def _keep(given: list[str] | None) -> dict[str, str]:
    return pairs(given, option="--keep", example="ffn=0.5")


def _size(text: str, flag: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"{flag}: {text!r} is no number", mend="Give a share such as 0.5, or a number.") from error


def _show(artifact: Artifact, facts: dict[str, Any], json: bool) -> None:
    from edgesmith import console
    from edgesmith.units import format_bytes

    summary = {"path": str(artifact.path), "digest": artifact.digest, "kind": artifact.kind}
    if json:
        console.print_json({**summary, "model_bytes": artifact.model_bytes, "pruning": facts})
        return
    console.print_facts({**summary, "model_bytes": format_bytes(artifact.model_bytes)})
    if facts["method"] == "structured":
        _show_structure(facts)
    else:
        _show_weights(facts)


def _show_weights(facts: Mapping[str, Any]) -> None:
    from edgesmith import console
    from edgesmith.units import format_bytes

    console.print_table(
        ["matrices", "number", "outputs × inputs", "zeros", "of", "sparsity", "outputs moved by"],
        [_kind_row(name, group) for name, group in _by_kind(facts["matrices"]).items()],
        title=f"{facts['method']}, {facts['target']}",
    )
    shown = {
        "zeros": f"{facts['num_zeros']:,} of {facts['num_pruned']:,} pruned weights ({facts['sparsity']:.4%}), "
        f"{facts['model_sparsity']:.2%} of the model's {facts['num_weights']:,}",
    }
    for left in facts["left_dense"]:
        shown[f"left dense: {left['reason']}"] = f"{left['num_weights']:,} in {left['num_tensors']} tensors"
    if "peak_memory_added_bytes" in facts:
        shown["peak memory"] = (
            f"+{format_bytes(facts['peak_memory_added_bytes'])}; model {format_bytes(facts['model_bytes'])}, one block "
            f"{format_bytes(facts['block_bytes'])}, calibration {format_bytes(facts['calibration_bytes'])}"
        )
    console.print_facts(shown)


def _by_kind(matrices: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The same matrix of all blocks together."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for matrix in matrices:
        kinds.setdefault(re.sub(r"\.\d+\.", ".*.", matrix["name"]), []).append(matrix)
    return kinds


def _kind_row(name: str, group: Sequence[Mapping[str, Any]]) -> list[str]:
    shapes = {tuple(matrix["shape"]) for matrix in group}
    zeros = sum(matrix["num_zeros"] for matrix in group)
    total = sum(matrix["shape"][0] * matrix["shape"][1] for matrix in group)
    errors = [matrix["relative_error"] for matrix in group if matrix["relative_error"] is not None]
    return [
        name,
        str(len(group)),
        ", ".join(f"{outputs} × {inputs}" for outputs, inputs in sorted(shapes)),
        f"{zeros:,}",
        f"{total:,}",
        f"{zeros / total:.4%}",
        f"{sum(errors) / len(errors):.2%}" if errors else "—",
    ]


def _show_structure(facts: Mapping[str, Any]) -> None:
    from edgesmith import console

    rows = [
        [
            f"{width['name']} ({name})",
            f"{before:,}",
            f"{width['after'][name]:,}",
            f"{width['after'][name] / before:.1%}",
        ]
        for width in facts["widths"]
        for name, before in width["before"].items()
    ]
    if facts["kept_layers"] is not None:
        before, after = facts["num_layers_before"], len(facts["kept_layers"])
        rows.insert(0, ["layers", str(before), str(after), f"{after / before:.1%}"])
    for name, label in (("params", "parameters"), ("macs", "MACs of one row")):
        before, after = facts[f"{name}_before"], facts[f"{name}_after"]
        rows.append([label, f"{before:,}", f"{after:,}", f"{after / before:.1%}"])
    console.print_table(["", "before", "after", "left"], rows, title=f"structured, by {facts['importance']}")
    shown = {"outputs changed by": f"{facts['output_change']:.2%} of their squares, before any training"}
    if facts["kept_layers"] is not None:
        shown["kept layers"] = ", ".join(map(str, facts["kept_layers"]))
    console.print_facts(shown)
