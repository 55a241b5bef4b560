"""Verdicts for a build server and for people: JUnit XML, a step summary, a pull request's comment, annotations.

The same verdicts give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bench.gates.verdict import Outcome, Verdict, overall, show_count
from edgesmith.files import atomic_write, storage_errors

__all__ = [
    "MARKS",
    "VerdictRow",
    "annotation_lines",
    "cell",
    "comment_markdown",
    "count_line",
    "summary_markdown",
    "verdict_rows",
    "write_comment",
    "write_junit",
    "write_summary",
]

MARKS = {Outcome.PASS: "✅", Outcome.FAIL: "❌", Outcome.INCONCLUSIVE: "⚠️"}
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MARKDOWN = re.compile(r"([\\|*`\[])")
_MAX_COMMENT = 60_000
"""Characters; GitHub refuses a comment of more than 65,536."""


@dataclass(frozen=True, kw_only=True)
class VerdictRow:
    """One verdict in words, the same in a terminal, in Markdown and on a page."""

    gate: str
    verdict: Outcome
    measured: str
    bound: str
    """What the truth is shown to be, such as `≤ 0.43 points`; `exact` for a figure without noise, `as measured` for
    one whose noise is not known."""
    limit: str
    evidence: str
    """How much the bound rests on, and what would settle an open verdict."""


def verdict_rows(verdicts: Sequence[Verdict]) -> list[VerdictRow]:
    """Give the figures of verdicts in words, in their order."""
    return [
        VerdictRow(
            gate=verdict.gate,
            verdict=verdict.verdict,
            measured=verdict.figure(verdict.estimate),
            bound=_bound(verdict),
            limit=verdict.limit,
            evidence=_evidence(verdict),
        )
        for verdict in verdicts
    ]


def _bound(verdict: Verdict) -> str:
    """The bound that was held against the limit: from the limit's far side, or, of a FAIL, from the near one."""
    if verdict.bound is None:
        return "–"
    if verdict.confidence is None:
        return "exact" if verdict.num_samples is None else "as measured"
    is_lower = verdict.at_least == (verdict.verdict is not Outcome.FAIL)
    shown = verdict.figure(verdict.bound, "down" if is_lower else "up")
    return f"{'≥' if is_lower else '≤'} {shown}"


def _evidence(verdict: Verdict) -> str:
    parts = []
    if verdict.num_samples is not None:
        parts.append(f"{verdict.num_samples:,} {verdict.samples}".rstrip())
    if verdict.confidence is not None:
        parts.append(f"{100 * verdict.confidence:g} % confidence")
    if verdict.num_needed is not None:
        parts.append(f"needs about {show_count(verdict.num_needed)}")
    return ", ".join(parts) or "–"


def count_line(verdicts: Sequence[Verdict]) -> str:
    """Count the outcomes: `2 PASS, 1 FAIL, 1 INCONCLUSIVE`; those that do not occur are left out."""
    counts = {outcome: sum(verdict.verdict is outcome for verdict in verdicts) for outcome in Outcome}
    return ", ".join(f"{count} {outcome.value}" for outcome, count in counts.items() if count) or "no gates"


def write_junit(path: Path, verdicts: Sequence[Verdict], *, suite: str = "edgesmith") -> None:
    """Write verdicts as JUnit XML: a FAIL is a failure, an INCONCLUSIVE is skipped, with its reason.

    Many build servers show what was skipped as harmless: there the exit code of the command decides.

    Args:
        path: The file to write.
        verdicts: One test case each.
        suite: Name of the test suite, such as the artifact's name.

    Raises:
        StorageError: The file cannot be written.
    """
    num_failed = sum(verdict.verdict is Outcome.FAIL for verdict in verdicts)
    num_open = sum(verdict.verdict is Outcome.INCONCLUSIVE for verdict in verdicts)
    name = _xml(suite)
    counts = f'tests="{len(verdicts)}" failures="{num_failed}" errors="0" skipped="{num_open}"'
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<testsuites name="{name}" {counts}>',
        f'  <testsuite name="{name}" {counts}>',
    ]
    for verdict in verdicts:
        lines.append(f'    <testcase classname="{name}.gates" name="{_xml(verdict.gate)}">')
        reason = _xml(verdict.reason)
        match verdict.verdict:
            case Outcome.FAIL:
                lines.append(f'      <failure type="gate" message="{reason}"/>')
            case Outcome.INCONCLUSIVE:
                lines.append(f'      <skipped message="{reason}"/>')
            case Outcome.PASS:
                lines.append(f"      <system-out>{reason}</system-out>")
        lines.append("    </testcase>")
    lines += ["  </testsuite>", "</testsuites>", ""]
    atomic_write(path, "\n".join(lines))


def _xml(text: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", text)).replace("\r", "&#13;").replace("\n", "&#10;")


def summary_markdown(verdicts: Sequence[Verdict], *, title: str = "Release gates") -> str:
    """Give verdicts as GitHub-flavoured Markdown: the overall verdict, a table of figures, then the reasons."""
    outcome = overall(verdicts)
    lines = [f"### {MARKS[outcome]} {cell(title)}: {outcome.value}", "", f"{count_line(verdicts)}.", ""]
    lines += [*_table(verdicts), "", *_reasons(verdicts)]
    return "\n".join(lines) + "\n"


def comment_markdown(
    verdicts: Sequence[Verdict], *, title: str = "Release gates", marker: str = "edgesmith-gates", link: str = ""
) -> str:
    """Give verdicts as a comment on a pull request: the outcome in one line, what is not PASS, the rest folded away.

    Args:
        verdicts: What was judged.
        title: Such as the release's name.
        marker: Stands in the hidden first line, `<!-- marker -->`, by which a bot finds its own comment to update.
        link: Address of the full report; none if empty.
    """
    outcome = overall(verdicts)
    not_passed = [verdict for verdict in verdicts if verdict.verdict is not Outcome.PASS]
    head = [
        f"<!-- {re.sub('[^A-Za-z0-9_.:/ ]', '-', marker).replace('--', '-')} -->",
        f"**{MARKS[outcome]} {cell(title)}: {outcome.value}** ({count_line(verdicts)})",
        "",
    ]
    if not_passed:
        head += [*_reasons(not_passed), ""]
    folded = ["<details><summary>All gates</summary>", "", *_table(verdicts), "", *_reasons(verdicts), "", "</details>"]
    if link:
        folded += ["", f"[Full report]({link.replace(')', '%29').replace(' ', '%20')})"]
    text = "\n".join(head + folded) + "\n"
    if len(text) > _MAX_COMMENT:
        text = "\n".join(head)[:_MAX_COMMENT] + "\n\nThe rest is too long for a comment: see the step summary.\n"
    return text


def _table(verdicts: Sequence[Verdict]) -> list[str]:
    lines = ["| gate | verdict | measured | bound | limit | evidence |", "| --- | --- | ---: | ---: | ---: | --- |"]
    for row in verdict_rows(verdicts):
        cells = (
            row.gate,
            f"{MARKS[row.verdict]} {row.verdict.value}",
            row.measured,
            row.bound,
            row.limit,
            row.evidence,
        )
        lines.append("| " + " | ".join(map(cell, cells)) + " |")
    return lines


def _reasons(verdicts: Sequence[Verdict]) -> list[str]:
    return [f"- {MARKS[verdict.verdict]} **{cell(verdict.gate)}**: {cell(verdict.reason)}" for verdict in verdicts]


def annotation_lines(verdicts: Sequence[Verdict], *, title: str = "") -> list[str]:
    """Give the lines that make GitHub Actions show what did not pass beside the run: errors and warnings.

    Args:
        verdicts: What was judged.
        title: Put before the gate's name, such as the release's.
    """
    commands = {Outcome.FAIL: "error", Outcome.INCONCLUSIVE: "warning"}
    return [
        f"::{commands[verdict.verdict]} title={_property(f'{title} {verdict.gate}: {verdict.verdict.value}'.strip())}"
        f"::{_message(verdict.reason)}"
        for verdict in verdicts
        if verdict.verdict in commands
    ]


def _message(text: str) -> str:
    """Source: GitHub's toolkit, `escapeData` of @actions/core."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Source: GitHub's toolkit, `escapeProperty` of @actions/core."""
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def write_summary(
    path: Path, verdicts: Sequence[Verdict], *, title: str = "Release gates", append: bool = False
) -> None:
    """Write `summary_markdown` to a file.

    Args:
        path: The file to write.
        verdicts: What was judged.
        title: Of the section, such as the artifact's name.
        append: Keep what the file holds, as a build server's summary file asks for.

    Raises:
        StorageError: The file cannot be written.
    """
    text = summary_markdown(verdicts, title=title)
    if append and path.exists():
        with storage_errors(path):
            text = path.read_text(encoding="utf-8") + "\n" + text
    atomic_write(path, text)


def write_comment(path: Path, verdicts: Sequence[Verdict], *, title: str = "Release gates", link: str = "") -> None:
    """Write `comment_markdown` to a file.

    Raises:
        StorageError: The file cannot be written.
    """
    atomic_write(path, comment_markdown(verdicts, title=title, link=link))


def cell(text: str) -> str:
    """Make a text safe inside a Markdown table."""
    safe = _MARKDOWN.sub(r"\\\1", text).replace("<", "&lt;")
    return safe.replace("\r", " ").replace("\n", " ")
