"""Results as a person reads them, or as one JSON object."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.gates.verdict import Verdict

__all__ = ["EXIT_BY_VERDICT", "plain", "show_facts", "show_proof", "show_verdicts"]

EXIT_BY_VERDICT = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}


def show_proof(proof: dict[str, Any], json: bool) -> None:
    """Show what a verification found; single rows and shapes are for machines."""
    from edgesmith import console

    if json:
        console.print_json(proof)
        return
    facts = {name: value for name, value in proof.items() if name not in ("rows", "shapes", "breaches")}
    console.print_facts({name: plain(value) for name, value in _flatten(facts).items()})


_FOR_MACHINES = ("confusion", "higher_is_better", "labels", "latency_bounds_ms", "machine")


def show_facts(facts: dict[str, Any], json: bool) -> None:
    """Show measured figures; tables and bounds are for machines."""
    from edgesmith import console

    if json:
        console.print_json(facts)
    else:
        facts = {name: value for name, value in facts.items() if name not in _FOR_MACHINES}
        console.print_facts({name: plain(value) for name, value in _flatten(facts).items()})


def _flatten(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def plain(value: Any) -> str:
    """Write a value as a cell."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        named = _flatten(value).items()
        return ", ".join(f"{name}={plain(one)}" for name, one in named if one is not None) or "—"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "—"
    return "—" if value is None else str(value)


def show_verdicts(verdicts: Sequence[Verdict], *, title: str = "") -> None:
    """Print a table of verdicts, and why for those that do not pass; on GitHub also as annotations on its pages."""
    from bench.gates.ci import annotation_lines, verdict_rows
    from edgesmith import console

    if not verdicts:
        return
    head = ("gate", "verdict", "measured", "shown to be", "limit", "evidence")
    rows = [
        (row.gate, row.verdict.value, row.measured, row.bound, row.limit, row.evidence)
        for row in verdict_rows(verdicts)
    ]
    console.print_table(head, rows, title=title)
    for verdict in verdicts:
        if verdict.verdict.value != "PASS":
            console.say(f"{verdict.verdict} {title + ' ' if title else ''}{verdict.gate}: {verdict.reason}")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in annotation_lines(verdicts, title=title):
            console.say(line)
