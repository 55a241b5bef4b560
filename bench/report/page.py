"""A report as one HTML file that needs nothing else: no network, no scripts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from bench.gates.verdict import Outcome, Verdict
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
from bench.report.data import Ancestor, ReleaseReport
from bench.report.lineage import Branch, grow
from bench.report.plots import plot_verdict
from bench.report.sections import build_sections
from bench.report.style import STYLE

__all__ = ["to_html"]

_MARKS = {Outcome.PASS: "✓", Outcome.FAIL: "✕", Outcome.INCONCLUSIVE: "?"}
_HEAT_LEVELS = 9
_MAX_OBSTACLES = 12
_COLUMN, _CELL_PADDING, _CHARACTER, _MAX_COLUMN = 600.0, 22.0, 7.2, 40
"""Width of half a wide screen, and of a table's cells, in pixels; characters from which on a cell wraps."""
_MAX_NOTE = 20
"""Characters of small print from which on it wraps."""
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
# Whatever a name or a reason may hold, nothing is ever fetched or run.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def to_html(report: ReleaseReport, sections: Sequence[Section] | None = None) -> str:
    """Write a report: the verdict first, then the sections, with plots where there are samples.

    Args:
        report: What to say.
        sections: Its sections, where they were built before.
    """
    sections = build_sections(report) if sections is None else sections
    names = _anchors(sections)
    body = "\n".join(_section(section, name) for section, name in zip(sections, names, strict=True))
    title = _safe(report.headline)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        f"{_header(report, sections, names)}\n<main>\n{body}\n</main>\n</body></html>\n"
    )


def _safe(text: str) -> str:
    """Escape for HTML, in text and in attributes; what no browser shows becomes a mark."""
    return escape(_UNPRINTABLE.sub("\ufffd", text))


def _anchors(sections: Sequence[Section]) -> list[str]:
    return [f"s{number}" for number in range(1, len(sections) + 1)]


def _header(report: ReleaseReport, sections: Sequence[Section], names: Sequence[str]) -> str:
    links = "".join(
        f'<a href="#{name}">{_safe(section.title)}</a>'
        for section, name in zip(sections, names, strict=True)
        if section.level == 2
    )
    return f"<header><h1>{_safe(report.title)}</h1>\n{_banner(report)}\n<nav>{links}</nav></header>"


def _banner(report: ReleaseReport) -> str:
    outcome = report.outcome
    if outcome is None:
        return '<div class="banner"><div><strong>Measured</strong><span>No gates were set.</span></div></div>'
    counts = {one: sum(verdict.verdict is one for verdict in report.verdicts) for one in Outcome}
    said = ", ".join(f"{count} {one.value}" for one, count in counts.items() if count)
    num_gates = len(report.verdicts)
    meaning = {
        Outcome.PASS: "Every gate is met: this release may ship.",
        Outcome.FAIL: "A gate is not met: this release must not ship.",
        Outcome.INCONCLUSIVE: "The evidence does not settle every gate: too little is known to ship.",
    }
    gates = f"{num_gates} {'gate' if num_gates == 1 else 'gates'}"
    return (
        f'<div class="banner {outcome.value}"><div class="mark" aria-hidden="true">{_MARKS[outcome]}</div>'
        f"<div><strong>{outcome.value}</strong><span>{meaning[outcome]} {gates}: {said}.</span>"
        f"{_obstacles(report)}</div></div>"
    )


def _obstacles(report: ReleaseReport) -> str:
    """Name the gates that are not met, so that nobody has to look for them."""
    several = len(report.targets) > 1
    named = [(f"{name}: {one.gate}" if several else one.gate, one) for name, one in report.obstacles]
    items = [f"<li>{_safe(name)} {_pill(one.verdict)}</li>" for name, one in named[:_MAX_OBSTACLES]]
    if len(named) > _MAX_OBSTACLES:
        items.append(f"<li>and {len(named) - _MAX_OBSTACLES} more</li>")
    return f'<ul class="obstacles">{"".join(items)}</ul>' if items else ""


def _section(section: Section, name: str) -> str:
    tag = f"h{section.level}"
    pill = _pill(section.outcome) if section.outcome is not None else ""
    parts = [f'<{tag} id="{name}">{_safe(section.title)}{pill}</{tag}>']
    beside: list[Block] = []
    for block in section.blocks:
        if isinstance(block, Figure) or (isinstance(block, Table) and _is_narrow(block)):
            beside.append(block)
            continue
        parts += _grid(beside)
        beside = []
        parts.append(_block(block))
    return "\n".join([*parts, *_grid(beside)])


def _is_narrow(table: Table) -> bool:
    """Whether a table fits beside another one or a plot."""
    lengths = [[len(text) for text in table.head], *([_length(cell) for cell in row] for row in table.rows)]
    widths = [min(max(column), _MAX_COLUMN) for column in zip(*lengths, strict=True)]
    return sum((_CELL_PADDING + _CHARACTER * width for width in widths), 0.0) <= _COLUMN


def _length(cell: Cell) -> int:
    match cell:
        case Outcome():
            return len(cell.value) + 4
        case Noted():
            return max(len(cell.text), min(len(cell.note), _MAX_NOTE))
        case str():
            return len(cell)
        case _:
            return len(cell.text)


def _grid(beside: Sequence[Block]) -> list[str]:
    """Stand plots and narrow tables side by side where the screen is wide enough."""
    if not beside:
        return []
    if len(beside) == 1 and isinstance(beside[0], Table):
        return [_block(beside[0])]
    only_plots = all(isinstance(block, Figure) for block in beside)
    name = "beside three" if only_plots and len(beside) == 3 else "beside"
    cells = [
        _block(block) if isinstance(block, Figure) else f'<div class="cell">{_block(block)}</div>' for block in beside
    ]
    return [f'<div class="{name}">\n' + "\n".join(cells) + "\n</div>"]


def _block(block: Block) -> str:
    match block:
        case Text():
            return f"<p{' class=warning' if block.is_warning else ''}>{_safe(block.text)}</p>"
        case Items():
            return "<ul>" + "".join(f"<li>{_safe(item)}</li>" for item in block.items) + "</ul>"
        case Code():
            return f"<pre><code>{_safe(block.text)}</code></pre>"
        case Table():
            return _table(block)
        case Figure():
            return f"<figure><figcaption>{_safe(block.caption)}</figcaption>{block.svg}</figure>"
        case Gates():
            pill = _pill(block.outcome) if block.outcome is not None else ""
            name = f"<h3>{_safe(block.target)}{pill}</h3>" if block.target else ""
            return f'{name}<div class="gates">' + "\n".join(_gate(one) for one in block.verdicts) + "</div>"
        case Lineage():
            return f'<ul class="tree">{"".join(_branch(one) for one in grow(block.ancestors))}</ul>'


def _pill(outcome: Outcome) -> str:
    return f'<span class="pill {outcome.value}">{_MARKS[outcome]} {outcome.value}</span>'


def _gate(verdict: Verdict) -> str:
    name = f'<span class="name">{_safe(verdict.gate)}</span>{_pill(verdict.verdict)}'
    return f'<div class="gate"><div>{name}<p>{_safe(verdict.reason)}</p></div>{plot_verdict(verdict)}</div>'


def _table(table: Table) -> str:
    head = "".join(
        f'<th{_text_class(index, table)} scope="col">{_safe(text)}</th>' for index, text in enumerate(table.head)
    )
    rows = "\n".join(
        "<tr>"
        + "".join(_cell(cell, _text_class(i, table), _column_name(i, table)) for i, cell in enumerate(row))
        + "</tr>"
        for row in table.rows
    )
    caption = f'<p class="caption">{_safe(table.caption)}</p>' if table.caption else ""
    label = f' aria-label="{_safe(table.caption)}"' if table.caption else ""
    inner = f"<thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody>"
    # A box that scrolls must be reachable from the keyboard.
    name = "wide stacked" if table.is_stacked else "wide"
    drawn = f'{caption}<div class="{name}" tabindex="0"><table{label}>{inner}</table></div>'
    return f"<details><summary>{_safe(table.summary)}</summary>{drawn}</details>" if table.summary else drawn


def _text_class(index: int, table: Table) -> str:
    return ' class="text"' if index < table.num_text else ""


def _column_name(index: int, table: Table) -> str:
    """Stands beside the cell's value where its row is a card."""
    return f' data-name="{_safe(table.head[index])}"' if table.is_stacked and index else ""


def _cell(cell: Cell, text_class: str, name: str) -> str:
    match cell:
        case Outcome():
            return f"<td{name}>{_pill(cell)}</td>"
        case Heat():
            level = round(min(1.0, max(0.0, cell.share)) * _HEAT_LEVELS)
            return f'<td class="h{level}"{name}>{_safe(cell.text)}</td>'
        case Bar():
            width = f"{100 * min(1.0, max(0.0, cell.share)):.1f}%"
            return f'<td class="bar" style="--w:{width}"{name}>{_safe(cell.text)}</td>'
        case Mono():
            return f'<td class="text mono"{name}>{_safe(cell.text)}</td>'
        case Noted():
            return f"<td{text_class}{name}><span>{_safe(cell.text)}<small>{_safe(cell.note)}</small></span></td>"
        case str():
            return f"<td{text_class}{name}>{_safe(cell)}</td>"


def _branch(branch: Branch) -> str:
    below = f"<ul>{''.join(_branch(one) for one in branch.parents)}</ul>" if branch.parents else ""
    return f"<li>{_ancestor(branch.ancestor, is_repeated=branch.is_repeated)}{below}</li>"


def _ancestor(one: Ancestor, *, is_repeated: bool) -> str:
    made = ", ".join(part for part in (one.step, one.detail) if part)
    again = " (see above)" if is_repeated else ""
    made = ": ".join(part for part in (made, one.summary) if part)
    said = f" — {_safe(made)}" if made else ""
    return f'<b>{_safe(one.role)}</b>{said}{again}<br><span class="mono">{_safe(one.digest)}</span>'
