"""A report as GitHub-flavoured Markdown: the page's sections and tables, without the plots."""

from __future__ import annotations

from collections.abc import Sequence

from bench.gates.ci import MARKS, cell, verdict_rows
from bench.gates.verdict import Outcome
from bench.report.blocks import (
    Bar,
    Block,
    Cell,
    Code,
    Figure,
    Gates,
    Heat,
    Items,
    Lineage,
    Mono,
    Noted,
    Section,
    Table,
    Text,
)
from bench.report.data import ReleaseReport
from bench.report.lineage import Branch, grow
from bench.report.sections import build_sections

__all__ = ["to_markdown"]

_SPECIAL = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]#~"})


def to_markdown(report: ReleaseReport, sections: Sequence[Section] | None = None) -> str:
    """Write a report: the verdict in one line, then the sections.

    Args:
        report: What to say.
        sections: Its sections, where they were built before.
    """
    sections = build_sections(report) if sections is None else sections
    mark = f"{MARKS[report.outcome]} " if report.outcome else ""
    named = [f"- {MARKS[one.verdict]} {_plain(f'{name}: {one.gate}')}" for name, one in report.obstacles]
    obstacles = ["\n".join(named)] if named else []
    parts = [f"# {mark}{_plain(report.headline)}", *obstacles, *(_section(section) for section in sections)]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Text that stays text: no mark of it is read as Markdown or HTML."""
    return " ".join(text.translate(_SPECIAL).replace("<", "&lt;").split())


def _section(section: Section) -> str:
    outcome = f" {MARKS[section.outcome]} {section.outcome.value}" if section.outcome else ""
    blocks = [text for block in section.blocks if (text := _block(block))]
    return "\n\n".join([f"{'#' * section.level} {_plain(section.title)}{outcome}", *blocks])


def _block(block: Block) -> str:
    match block:
        case Text():
            return f"**Note:** {_plain(block.text)}" if block.is_warning else _plain(block.text)
        case Items():
            return "\n".join(f"- {_plain(item)}" for item in block.items)
        case Code():
            fence = "`" * (3 + max((len(run) for run in _runs(block.text)), default=0))
            return f"{fence}sh\n{block.text}\n{fence}"
        case Table():
            return _table(block)
        case Figure():
            return ""
        case Gates():
            rows = tuple(
                (row.gate, row.verdict, row.measured, row.bound, row.limit, row.evidence, verdict.reason)
                for row, verdict in zip(verdict_rows(block.verdicts), block.verdicts, strict=True)
            )
            head = ("gate", "verdict", "measured", "shown", "limit", "evidence", "reason")
            name = f"### {_plain(block.target)}\n\n" if block.target else ""
            return name + _table(Table(head=head, rows=rows, num_text=len(head)))
        case Lineage():
            return "\n".join(line for one in grow(block.ancestors) for line in _branch(one, 0))


def _runs(text: str) -> Sequence[str]:
    """Runs of backticks."""
    return [run for run in "".join(one if one == "`" else " " for one in text).split() if run]


def _table(table: Table) -> str:
    rule = ["---" if index < table.num_text else "---:" for index in range(len(table.head))]
    lines = [table.head, rule, *([_cell(one) for one in row] for row in table.rows)]
    text = "\n".join("| " + " | ".join(cell(one) for one in line) + " |" for line in lines)
    return f"{_plain(table.caption)}\n\n{text}" if table.caption else text


def _cell(one: Cell) -> str:
    match one:
        case Outcome():
            return f"{MARKS[one]} {one.value}"
        case Heat() | Bar() | Mono():
            return one.text
        case Noted():
            return f"{one.text} ({one.note})"
        case str():
            return one


def _branch(branch: Branch, depth: int) -> list[str]:
    one = branch.ancestor
    made = ", ".join(part for part in (one.step, one.detail) if part)
    again = " (see above)" if branch.is_repeated else ""
    made = ": ".join(part for part in (made, one.summary) if part)
    said = f" — {_plain(made)}" if made else ""
    line = f"{'  ' * depth}- **{_plain(one.role)}**{said}{again}: {_plain(one.digest)}"
    return [line, *(below for parent in branch.parents for below in _branch(parent, depth + 1))]
