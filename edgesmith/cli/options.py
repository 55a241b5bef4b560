"""Options that several commands share: the same name means the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgesmith.errors import UsageError

__all__ = [
    "ArtifactPath",
    "Columns",
    "DataFile",
    "Json",
    "Out",
    "RecipePath",
    "Seed",
    "Settings",
    "StoreRoot",
    "TaskName",
    "Threads",
    "pairs",
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder to write.", show_default=False)]
StoreRoot = Annotated[
    Path | None,
    typer.Option("--store", help="Cache of finished steps. [default: $EDGESMITH_STORE or ~/.cache/edgesmith/store]"),
]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of the engine.")]
Seed = Annotated[int, typer.Option("--seed", help="Of every random choice.")]
ArtifactPath = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Artifact folder, or a bare .onnx file.")]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe in YAML.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Replace one value of the recipe; may be repeated."),
]
TaskName = Annotated[
    str | None, typer.Option("--task", help="Task, such as text-classification; guessed from config.json if left out.")
]
DataFile = Annotated[Path | None, typer.Option("--data", metavar="FILE", help="Real rows: JSONL, CSV or TSV.")]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="NAME=COLUMN", help="The file's column for one of the task's, `text=body`."),
]


def pairs(given: list[str] | None) -> dict[str, str]:
    """Read `NAME=COLUMN` options."""
    found = {}
    for text in given or []:
        name, equals, column = text.partition("=")
        if not (name and equals and column):
            raise UsageError(f"--column {text}: must look like text=body")
        found[name] = column
    return found
