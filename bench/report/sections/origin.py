"""Where an artifact comes from, how it was verified, and where all of it was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.report.blocks import Block, Code, Items, Lineage, Section, Table, Text
from bench.report.data import ReleaseReport, TargetReport
from bench.report.figures import show_short

if TYPE_CHECKING:
    from bench.machine.machine import Machine

__all__ = ["show_environment", "show_lineage", "show_verification"]


def show_verification(target: TargetReport) -> Section | None:
    """The figures of the comparison with the checkpoint."""
    if not target.verification:
        return None
    rows = tuple((name.replace("_", " "), _plain(value)) for name, value in target.verification.items())
    table = Table(head=("figure", "value"), rows=rows)
    return Section(title="Verification against the checkpoint", level=3, blocks=(table,))


def _plain(value: float | int | str | bool | None) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case int():
            return f"{value:,}"
        case str():
            return value


def show_lineage(target: TargetReport) -> Section:
    """The artifact and what it was made from, with all digests; what was left out on the way."""
    blocks: list[Block] = []
    if target.lineage:
        blocks.append(Lineage(target.lineage))
    else:
        blocks.append(Text(f"{target.artifact.name}: {target.artifact.digest}"))
    if target.baseline is not None:
        blocks.append(Text(f"Compared with {target.baseline.name}: {target.baseline.digest}"))
    if target.notes:
        blocks += [Text("Chosen or left out on the way:"), Items(target.notes)]
    return Section(title="Lineage", level=3, blocks=tuple(blocks))


def show_environment(report: ReleaseReport) -> Section | None:
    """Machine, conditions, versions, the command and what was left out."""
    blocks: list[Block] = []
    machines = _machines(report)
    if machines:
        blocks.append(_machine_table(machines))
    if report.versions:
        rows = tuple((name, version) for name, version in sorted(report.versions.items()))
        blocks.append(Table(head=("tool", "version"), rows=rows, num_text=2))
    if report.command:
        blocks += [Text("This command makes the release and this report again:"), Code(report.command)]
    if report.notes:
        blocks += [Text("Left out, or chosen on the way:"), Items(report.notes)]
    return Section(title="How it was measured", blocks=tuple(blocks)) if blocks else None


def _machines(report: ReleaseReport) -> list[Machine]:
    """Every machine that something was measured on, once."""
    found: dict[str, Machine] = {report.machine.name: report.machine} if report.machine else {}
    for target in report.targets:
        machines = [one.machine for one in target.latencies]
        machines += [one.machine for one in target.throughputs]
        machines += [one.machine for one in target.duets]
        machines += [one.machine for one in target.loads]
        for machine in machines:
            found.setdefault(machine.name, machine)
    return list(found.values())


def _machine_table(machines: list[Machine]) -> Table:
    rows = tuple(
        (
            machine.name,
            machine.architecture,
            ", ".join(machine.flags) or "–",
            "–" if machine.memory_mb is None else f"{show_short(machine.memory_mb / 1000)} GB",
            machine.governor or "–",
            "–" if machine.load_1min is None else f"{machine.load_1min:g}",
            "–" if machine.cpu_pressure_10s is None else f"{machine.cpu_pressure_10s:g} %",
            machine.system,
        )
        for machine in machines
    )
    head = (
        "machine",
        "architecture",
        "vector units",
        "memory",
        "governor",
        "load before",
        "CPU pressure before",
        "system",
    )
    return Table(head=head, rows=rows, num_text=len(head))
