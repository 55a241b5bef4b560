"""A report as one HTML file that needs nothing else: no network, no scripts."""

from __future__ import annotations

from html import escape

from bench.report.data import ReportData
from bench.report.plots import plot_bounds, plot_ecdf
from bench.report.sections import Section, Table, build_sections
from bench.verdict import Outcome

__all__ = ["to_html"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --paper: #ffffff; --card: #f6f8fa;
  --rule: #d1d9e0; --pass: #1a7f37; --fail: #cf222e; --open: #9a6700; --a: #0969da; --b: #8250df; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --paper: #0d1117; --card: #161b22;
  --rule: #30363d; --pass: #3fb950; --fail: #f85149; --open: #d29922; --a: #4493f8; --b: #ab7df8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; border-left: .4rem solid var(--soft); padding-left: .8rem; overflow-wrap: anywhere; }
h1.PASS { border-color: var(--pass); } h1.FAIL { border-color: var(--fail); }
h1.INCONCLUSIVE { border-color: var(--open); }
h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .4rem .7rem; border-bottom: 1px solid var(--rule); vertical-align: top; }
.figures td + td, .figures th + th { text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; font-size: .85rem; }
td.PASS { color: var(--pass); font-weight: 700; } td.FAIL { color: var(--fail); font-weight: 700; }
td.INCONCLUSIVE { color: var(--open); font-weight: 700; }
td.digest { font: 12px ui-monospace, monospace; overflow-wrap: anywhere; }
p { color: var(--soft); overflow-wrap: anywhere; }
svg { width: 100%; height: auto; background: var(--card); border-radius: .5rem; margin: .5rem 0; }
svg .grid { stroke: var(--rule); } svg .axis { stroke: var(--soft); }
svg .label { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .limit { stroke: var(--fail); stroke-dasharray: 5 4; stroke-width: 1.5; }
svg .series { fill: none; stroke-width: 2; } svg .series.s0 { stroke: var(--a); } svg .series.s1 { stroke: var(--b); }
svg .label.s0 { fill: var(--a); } svg .label.s1 { fill: var(--b); }
svg .span, svg .bound { stroke: var(--a); stroke-width: 3; } svg .point { fill: var(--a); }
"""


def to_html(data: ReportData) -> str:
    """Write a report: the verdict in one line, then the sections, with plots where there are samples."""
    outcome = data.outcome.value if data.outcome else ""
    body = "\n".join(_section(section, data) for section in build_sections(data))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(data.headline)}</title><style>{_STYLE}</style></head>\n"
        f'<body><h1 class="{outcome}">{escape(data.headline)}</h1>\n{body}\n</body></html>\n'
    )


def _section(section: Section, data: ReportData) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>", *(f"<p>{escape(text)}</p>" for text in section.sentences)]
    if section.table is not None:
        parts.append(_table(section.table))
    match section.title:
        case "Gates":
            parts += [f"<p>{escape(one.gate)}</p>{plot}" for one in data.verdicts if (plot := plot_bounds(one))]
        case "Latency":
            parts.append(_latency_plot(data))
    return "\n".join(parts)


def _latency_plot(data: ReportData) -> str:
    found = (("artifact", data.latency), ("baseline", data.baseline_latency))
    series = [(name, latency.wall_ns / 1e6) for name, latency in found if latency is not None]
    limit = next((one.threshold for one in data.verdicts if one.gate == "latency"), None)
    return plot_ecdf(series, unit="ms", limit=limit)


def _table(table: Table) -> str:
    name = "" if table.head[0] in ("gate", "") else ' class="figures"'
    head = "".join(f"<th>{escape(text)}</th>" for text in table.head)
    rows = "\n".join("<tr>" + "".join(_cell(text) for text in row) + "</tr>" for row in table.rows)
    return f'<div class="wide"><table{name}><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'


def _cell(text: str) -> str:
    name = text if text in Outcome.__members__ else "digest" if text.startswith("sha256:") else ""
    return f'<td class="{name}">{escape(text)}</td>' if name else f"<td>{escape(text)}</td>"
