"""A report as GitHub-flavoured Markdown."""

from __future__ import annotations

from bench.ci import MARKS, cell
from bench.report.data import ReportData
from bench.report.sections import Section, Table, build_sections

__all__ = ["to_markdown"]


def to_markdown(data: ReportData) -> str:
    """Write a report: the verdict in one line, then the sections."""
    mark = f"{MARKS[data.outcome]} " if data.outcome else ""
    parts = [f"# {mark}{cell(data.headline)}", *(_section(section) for section in build_sections(data))]
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> str:
    parts = [f"## {section.title}", *section.sentences]
    if section.table is not None:
        parts.append(_table(section.table))
    return "\n\n".join(parts)


def _table(table: Table) -> str:
    is_text = table.head[0] in ("gate", "")
    rule = ["---", *("---" if is_text else "---:" for _ in table.head[1:])]
    lines = [table.head, rule, *table.rows]
    return "\n".join("| " + " | ".join(cell(text) for text in line) + " |" for line in lines)
