"""The command that distills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from edgesmith.cli.options import Columns, Json, Out, Seed, TaskName, columns_of, read_layers, within
from edgesmith.errors import UsageError

__all__ = ["distill"]

_BLOCKS = "▁▂▃▄▅▆▇█"
_MOST_SHOWN = 12
"""Evaluations of a learning curve that are shown."""


def distill(
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER", help="Checkpoint that is learnt from.")],
    data: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="Training rows; for language models a text file, or rows with a column `text`."
        ),
    ],
    out: Out,
    student: Annotated[
        Path | None, typer.Option(metavar="CHECKPOINT", help="Train this; made of the teacher's layers if left out.")
    ] = None,
    num_layers: Annotated[
        int | None, typer.Option(min=1, help="Layers of the teacher that the student starts from. \\[default: all]")
    ] = None,
    layers: Annotated[
        str, typer.Option(help="Which: uniform, influence, or their numbers from 0, such as 0,2,5.")
    ] = "uniform",
    soft: Annotated[float, typer.Option(min=0, help="Weight of the teacher's predictions.")] = 1.0,
    hard: Annotated[float, typer.Option(min=0, help="Weight of the labels, or of the text's own next tokens.")] = 0.0,
    hidden: Annotated[float, typer.Option(min=0, help="Weight of the hidden states.")] = 0.0,
    relation: Annotated[
        float, typer.Option(min=0, help="Weight of the relations between queries, keys and values.")
    ] = 0.0,
    relation_layer: Annotated[
        int | None, typer.Option(min=0, help="Of the teacher, whose relations are learnt. \\[default: the last]")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(callback=within(0), help="Softens predictions. \\[default: 2; of language models 1]"),
    ] = None,
    divergence: Annotated[str, typer.Option(help="Language models: forward-kl, reverse-kl or jsd.")] = "forward-kl",
    on_policy: Annotated[
        float, typer.Option(min=0, max=1, help="Language models: share of the batches that the student writes itself.")
    ] = 0.0,
    sequence_level: Annotated[
        bool, typer.Option("--sequence-level", help="Language models: train on what the teacher writes.")
    ] = False,
    cache_top_k: Annotated[
        int, typer.Option(min=0, help="Language models: predictions a position that are kept; 0 keeps none.")
    ] = 64,
    unlabelled: Annotated[
        Path | None, typer.Option(metavar="FILE", help="More rows, without labels, to learn from the teacher on.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(callback=within(0), help="\\[default: by the kind of model]")] = None,
    max_minutes: Annotated[
        float | None, typer.Option(callback=within(0, unit="minutes"), help="Stop after so long, with the best.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows, or windows of text, of one update.")] = 16,
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rows computed at once: fewer need less memory. \\[default: the batch, fewer of large vocabularies]",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(callback=within(0), help="At its highest. \\[default: by the kind of model]")
    ] = None,
    max_length: Annotated[int | None, typer.Option(min=8, help="Tokens of a row, or of a window of text.")] = None,
    patience: Annotated[int, typer.Option(min=1, help="Evaluations without a better figure that end it.")] = 3,
    validation: Annotated[
        float, typer.Option(callback=within(0, 0.9), help="Share of the rows that chooses the best weights.")
    ] = 0.1,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute twice to need less memory.")
    ] = False,
    task: TaskName = None,
    columns: Columns = None,
    workplace: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For interrupted trainings and teachers' outputs. \\[default: in the store]"),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Train a smaller student to do as a teacher does; killed, the same command goes on from there."""
    from edgesmith import console
    from edgesmith.api.distill import distill as run

    options = _options(
        {
            "num_layers": num_layers,
            "layers": read_layers(layers),
            "soft": soft,
            "hard": hard,
            "hidden": hidden,
            "relation": relation,
            "relation_layer": relation_layer,
            "temperature": temperature,
            "divergence": divergence,
            "on_policy": on_policy,
            "sequence_level": sequence_level,
            "cache_top_k": cache_top_k,
            "train": {
                "epochs": epochs,
                "max_minutes": max_minutes,
                "batch_size": batch_size,
                "micro_batch_size": micro_batch_size,
                "learning_rate": learning_rate,
                "max_length": max_length,
                "patience": patience,
                "validation": validation,
                "gradient_checkpointing": gradient_checkpointing,
            },
        }
    )
    artifact, facts = run(
        teacher,
        data=data,
        out=out,
        options=options,
        student=student,
        unlabelled=unlabelled,
        task=task,
        columns=columns_of(columns, data, unlabelled),
        seed=seed,
        workplace=workplace,
        progress=console.ConsoleProgress(),
    )
    summary = {"path": str(artifact.path), "digest": artifact.digest, "model_bytes": artifact.model_bytes}
    if json:
        console.print_json({**summary, "training": facts})
    else:
        _show(summary, facts)


def _options(given: Mapping[str, Any]) -> Any:
    from pydantic import ValidationError

    from edgesmith.recipe import DistillOptions

    try:
        return DistillOptions.model_validate(given)
    except ValidationError as error:
        fault = error.errors()[0]
        name = str(fault["loc"][-1] if isinstance(fault["loc"][-1], str) else fault["loc"][0]).replace("_", "-")
        raise UsageError(f"--{name}: {str(fault['msg']).removeprefix('Value error, ')}") from error


def _show(summary: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    from edgesmith import console
    from edgesmith.units import format_bytes

    evaluated = [entry for entry in facts["history"] if "metric" in entry]
    teacher = "" if facts["teacher_metric"] is None else f" (teacher {facts['teacher_metric']:.4f})"
    share = facts["num_parameters"] / facts["teacher_num_parameters"]
    console.print_facts(
        {
            "path": summary["path"],
            "digest": summary["digest"],
            "model": format_bytes(summary["model_bytes"]),
            "student": facts["student"],
            "parameters": f"{facts['num_parameters']:,} of {facts['teacher_num_parameters']:,} ({share:.0%})",
            "rows": f"{facts['num_trained']:,} trained on, of them {facts['num_unlabelled']:,} unlabelled; "
            f"{facts['num_validated']:,} held out",
            facts["metric"]: f"{facts['first_metric']:.4f} → {facts['best_metric']:.4f}{teacher}, "
            f"after update {facts['best_update']} of {facts['num_updates']}",
            "ended": facts["stopped_because"],
            "curve": f"{_sparkline([entry['metric'] for entry in evaluated])}  {facts['metric']} by evaluation",
        }
    )
    shown = _spread(evaluated, _MOST_SHOWN)
    losses = [name for name in ("loss", "soft", "hard", "hidden", "relation") if any(name in one for one in shown)]
    rows = [
        [
            f"{one['update']}{' ←' if one['update'] == facts['best_update'] else ''}",
            f"{one['epoch']:.2f}",
            *(f"{one[name]:.4f}" if name in one else "" for name in losses),
            f"{one['metric']:.4f}",
        ]
        for one in shown
    ]
    console.print_table(["update", "epoch", *losses, facts["metric"]], rows)


def _sparkline(values: Sequence[float]) -> str:
    """A line of blocks, the lowest value the lowest block.

    >>> _sparkline([1.0, 2.0, 8.0])
    '▁▂█'
    """
    low, high = min(values), max(values)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in values)


def _spread(entries: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """At most so many, evenly, first and last included."""
    if len(entries) <= most:
        return list(entries)
    return [entries[index * (len(entries) - 1) // (most - 1)] for index in range(most)]
