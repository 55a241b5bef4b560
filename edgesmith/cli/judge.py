"""Commands that judge and report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgesmith.cli.options import Against, ArtifactPath, CommentFile, Json, JUnitFile, SummaryFile
from edgesmith.cli.show import EXIT_BY_VERDICT, show_verdicts

__all__ = ["gate", "report"]


def gate(
    artifact: ArtifactPath,
    gates: Annotated[Path, typer.Option(metavar="FILE", help="A recipe, or a YAML file with just the gates.")],
    against: Against = None,
    evidence: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Measurements. \\[default: the folder `evidence` beside the artifact]"),
    ] = None,
    junit: JUnitFile = None,
    summary: SummaryFile = None,
    comment: CommentFile = None,
    json: Json = False,
) -> None:
    """Judge an artifact by saved evidence: PASS, FAIL or INCONCLUSIVE, with the bound that decided."""
    from edgesmith import api, console

    overall, verdicts = api.gate(
        artifact, gates=gates, against=against, evidence=evidence, junit=junit, summary=summary, comment=comment
    )
    if json:
        console.print_json({"verdict": overall, "gates": [verdict.to_json() for verdict in verdicts]})
    else:
        show_verdicts(verdicts)
        console.say(overall)
    raise typer.Exit(EXIT_BY_VERDICT[overall])


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A release that `run` made.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder to write. \\[default: DIR]")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the report as Markdown too.")] = False,
    json: Json = False,
) -> None:
    """Write one self-contained HTML page (and Markdown, JSON) of a release: verdicts, figures, plots."""
    from edgesmith import api, console

    built = api.report(folder, out=out)
    if json:
        console.print_json(built.to_json())
        return
    if markdown:
        from bench.report import to_markdown

        console.say(to_markdown(built))
        return
    console.say(f"{built.headline}; wrote {(out or folder) / 'report.html'}, report.md and report.json")
