"""Commands that judge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgesmith.cli.options import ArtifactPath, Json
from edgesmith.cli.show import EXIT_BY_VERDICT

__all__ = ["gate"]


def gate(
    artifact: ArtifactPath,
    gates: Annotated[Path, typer.Option(metavar="FILE", help="A recipe, or a YAML file with just the gates.")],
    against: Annotated[Path | None, typer.Option(metavar="BASELINE", help="Baseline artifact.")] = None,
    evidence: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Measurements. [default: the folder `evidence` beside the artifact]"),
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the verdicts as JUnit XML.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Write the verdicts as Markdown.")] = None,
    json: Json = False,
) -> None:
    """Judge an artifact by saved evidence: PASS, FAIL or INCONCLUSIVE, with the bound that decided."""
    from edgesmith import api, console

    overall, verdicts = api.gate(
        artifact, gates=gates, against=against, evidence=evidence, junit=junit, summary=summary
    )
    if json:
        console.print_json({"verdict": overall, "gates": [verdict.to_json() for verdict in verdicts]})
    else:
        for verdict in verdicts:
            console.say(f"{verdict.verdict} {verdict.gate}: {verdict.reason}")
        console.say(overall)
    raise typer.Exit(EXIT_BY_VERDICT[overall])
