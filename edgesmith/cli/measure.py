"""Commands that measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgesmith.cli.answers import show_answers
from edgesmith.cli.figures import show_measured
from edgesmith.cli.options import ArtifactPath, Columns, DataFile, Json, Seed, TaskName, Threads, columns_of
from edgesmith.cli.show import show_facts, show_proof

__all__ = ["bench", "eval_command", "verify"]


def verify(
    artifact: ArtifactPath,
    against: Annotated[Path, typer.Option(metavar="CHECKPOINT", help="Reference: checkpoint or another artifact.")],
    data: DataFile = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows drawn from the data file.")] = 64,
    task: TaskName = None,
    columns: Columns = None,
    seed: Seed = 0,
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Compare an artifact's outputs with its reference on real rows; a breach is an error."""
    from edgesmith import api, console

    result = api.verify(
        artifact,
        against=against,
        data=data,
        num_samples=rows,
        task=task,
        columns=columns_of(columns, data),
        seed=seed,
        threads=threads,
        progress=console.ConsoleProgress(),
    )
    show_proof(result, json)


def eval_command(
    artifact: ArtifactPath,
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Held-out rows: JSONL, CSV or TSV. Of a language model a text, or rows with prompt and reference.",
        ),
    ],
    against: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="Language model: compare predictions with a checkpoint or artifact."),
    ] = None,
    windows: Annotated[
        int | None, typer.Option(min=2, help="Language model: windows of text at most. \\[default: 64]")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=16, help="Language model: tokens of a window. \\[default: 512]")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Language model: tokens of an answer. \\[default: 64]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Save metrics and per-example predictions here.")
    ] = None,
    task: TaskName = None,
    columns: Columns = None,
    threads: Threads = 1,
    json: Json = False,
) -> None:
    """Measure the task's metrics; every single prediction is saved, so that artifacts can be compared in pairs."""
    from tempfile import TemporaryDirectory

    from edgesmith import api, console

    with TemporaryDirectory(prefix="edgesmith-") as kept:
        folder = out or Path(kept) / "evidence"  # answers are shown, not only their figures
        result = api.eval(
            artifact,
            data=data,
            against=against,
            num_windows=windows,
            window=window,
            max_tokens=max_tokens,
            out=folder,
            task=task,
            columns=columns_of(columns, data),
            threads=threads,
            progress=console.ConsoleProgress(),
        )
        if json:
            console.print_json(result)
        elif "answers" in result:
            show_answers(folder)
        elif "language" in result:
            show_measured(result, json)
        else:
            show_facts(result, json)


def bench(
    artifact: ArtifactPath,
    against: Annotated[
        Path | None,
        typer.Option(metavar="OTHER", help="Artifact or release to run in turns with, in one run; gives the ratio."),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            help="single: one request after another. server: requests arrive at random, open loop. offline: batches. "
            "generate: a language model's tokens. sweep: a grid of batch sizes and lengths. "
            "\\[default: single, or generate for a language model]"
        ),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0, help="server: arrivals a second. \\[default: half of the capacity]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="offline: rows of a batch. \\[default: 32]")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="generate: tokens of an answer.")] = 64,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Time to measure for, roughly.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help="Timed requests, instead of --seconds.")] = None,
    length: Annotated[
        int | None, typer.Option(min=2, help="Tokens of every request or prompt. \\[default: each row's own]")
    ] = None,
    data: DataFile = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Save the raw samples here.")] = None,
    task: TaskName = None,
    columns: Columns = None,
    threads: Threads = 1,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure latency, throughput, CPU time, memory, start-up and the share of the machine's limit."""
    from edgesmith import api, console

    result = api.bench(
        artifact,
        against=against,
        data=data,
        scenario=scenario,
        rate=rate,
        batch_size=batch_size,
        max_tokens=max_tokens,
        num_requests=requests,
        seconds=seconds,
        length=length,
        out=out,
        task=task,
        columns=columns_of(columns, data),
        threads=threads,
        seed=seed,
        progress=console.ConsoleProgress(),
    )
    show_measured(result, json)
