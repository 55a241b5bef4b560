"""Options that several commands share: the same name means the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from edgesmith.errors import UsageError

__all__ = [
    "Against",
    "ArtifactPath",
    "Columns",
    "CommentFile",
    "DataFile",
    "JUnitFile",
    "Json",
    "Out",
    "RecipePath",
    "Seed",
    "Settings",
    "StoreRoot",
    "SummaryFile",
    "TaskName",
    "Threads",
    "columns_of",
    "headers",
    "pairs",
    "read_layers",
    "within",
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder to write.", show_default=False)]
StoreRoot = Annotated[
    Path | None,
    typer.Option("--store", help="Cache of finished steps. \\[default: $EDGESMITH_STORE or ~/.cache/edgesmith/store]"),
]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of the engine.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 2, help="Of every random choice.")]
ArtifactPath = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="Artifact folder, or a bare .onnx or .gguf file.")
]
RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe in YAML.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Replace one value of the recipe; may be repeated."),
]
TaskName = Annotated[
    str | None, typer.Option("--task", help="Task, such as text-classification; guessed from config.json if left out.")
]
DataFile = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Real rows: JSONL, CSV or TSV; for language models a text file, or rows with a column `text`.",
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="NAME=COLUMN", help="The file's column for one of the task's, `text=body`."),
]
Against = Annotated[
    Path | None,
    typer.Option(metavar="BASELINE", help="Artifact or earlier release that regressions are judged against."),
]
JUnitFile = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE", help="Also write the verdicts as JUnit XML.")
]
SummaryFile = Annotated[
    Path | None,
    typer.Option("--summary", metavar="FILE", help="Also write the verdicts as Markdown, for a job's summary page."),
]
CommentFile = Annotated[
    Path | None,
    typer.Option("--comment", metavar="FILE", help="Also write the verdicts as a comment for a pull request."),
]


def within(low: float, high: float = math.inf, *, unit: str = "") -> Callable[[float | None], float | None]:
    """Make an option's check: a finite number from `low`, which 0 itself is not, to `high`."""

    def check(value: float | None) -> float | None:
        if value is None or (math.isfinite(value) and low <= value <= high and value > 0):
            return value
        unit_said = f" {unit}" if unit else ""
        wanted = f"more than 0{unit_said}" if high == math.inf else f"from {low:g} to {high:g}{unit_said}"
        raise typer.BadParameter(f"{value:g} is not {wanted}")

    return check


def headers(given: list[str] | None) -> dict[str, str]:
    """Read `NAME:VALUE` options; `NAME:@FILE` takes the value from a file, which no list of processes shows.

    Raises:
        UsageError: one looks otherwise, or its file cannot be read. The value is not repeated.
    """
    found = {}
    for text in given or []:
        name, sign, value = text.partition(":")
        if not (name.strip() and sign and value.strip()):
            raise UsageError(f"--header {name.strip()}: must look like NAME:VALUE or NAME:@FILE")
        value = value.strip()
        if value.startswith("@"):
            try:
                value = Path(value[1:]).read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as error:
                raise UsageError(f"--header {name.strip()}: {value[1:]} cannot be read: {error}") from error
        found[name.strip()] = value
    return found


def columns_of(given: list[str] | None, *files: Path | None) -> dict[str, str]:
    """Read `--column` options, and look whether the files have them.

    Raises:
        UsageError: one looks otherwise.
        DataError: a file has no such column.
    """
    found = pairs(given)
    if found:
        from edgesmith.data import check_columns

        for path in files:
            if path is not None and path.is_file():  # else the command says that it is not there
                check_columns(path, found)
    return found


def pairs(given: list[str] | None, *, option: str = "--column", example: str = "text=body") -> dict[str, str]:
    """Read `NAME=VALUE` options.

    Raises:
        UsageError: one looks otherwise.
    """
    found = {}
    for text in given or []:
        name, sign, value = text.partition("=")
        if not (name.strip() and sign and value.strip()):
            raise UsageError(f"{option} {text}: must look like {example}")
        found[name.strip()] = value.strip()
    return found


def read_layers(given: str) -> str | tuple[int, ...]:
    """Read `--layers`: a name, or numbers."""
    if not given[:1].isdigit():
        return given
    try:
        return tuple(int(one) for one in given.split(","))
    except ValueError as error:
        raise UsageError(
            f"--layers {given}: must be uniform, influence, or numbers from 0", mend="Such as 0,2,5."
        ) from error
