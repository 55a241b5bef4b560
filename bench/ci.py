"""Verdicts for a build server: JUnit XML, and Markdown for a step summary. The same verdicts give the same bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from bench.verdict import Outcome, Verdict, overall
from edgesmith.files import atomic_write, storage_errors

__all__ = ["MARKS", "cell", "summary_markdown", "write_junit", "write_summary"]

MARKS = {Outcome.PASS: "✅", Outcome.FAIL: "❌", Outcome.INCONCLUSIVE: "⚠️"}
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(path: Path, verdicts: Sequence[Verdict], *, suite: str = "edgesmith") -> None:
    """Write verdicts as JUnit XML: a FAIL is a failure, an INCONCLUSIVE an error: neither is ever green.

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
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<testsuites tests="{len(verdicts)}" failures="{num_failed}" errors="{num_open}">',
        f'  <testsuite name="{name}" tests="{len(verdicts)}" failures="{num_failed}" errors="{num_open}">',
    ]
    for verdict in verdicts:
        lines.append(f'    <testcase classname="{name}.gates" name="{_xml(verdict.gate)}">')
        reason = _xml(verdict.reason)
        match verdict.verdict:
            case Outcome.FAIL:
                lines.append(f'      <failure type="gate" message="{reason}"/>')
            case Outcome.INCONCLUSIVE:
                lines.append(f'      <error type="inconclusive" message="{reason}"/>')
            case Outcome.PASS:
                lines.append(f"      <system-out>{reason}</system-out>")
        lines.append("    </testcase>")
    lines += ["  </testsuite>", "</testsuites>", ""]
    atomic_write(path, "\n".join(lines))


def _xml(text: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", text))


def summary_markdown(verdicts: Sequence[Verdict], *, title: str = "Release gates") -> str:
    """Give verdicts as GitHub-flavoured Markdown: the overall verdict, then a table with the reasons."""
    outcome = overall(verdicts)
    lines = [
        f"### {MARKS[outcome]} {cell(title)}: {outcome.value}",
        "",
        "| gate | verdict | reason |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {cell(verdict.gate)} | {MARKS[verdict.verdict]} {verdict.verdict.value} | {cell(verdict.reason)} |"
        for verdict in verdicts
    ]
    return "\n".join(lines) + "\n"


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


def cell(text: str) -> str:
    """Make a text safe inside a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
