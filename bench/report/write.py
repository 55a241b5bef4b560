"""Write a report in all of its forms."""

from __future__ import annotations

from pathlib import Path

from bench.raw import pretty_json
from bench.report.data import ReleaseReport
from bench.report.markdown import to_markdown
from bench.report.page import to_html
from bench.report.sections import build_sections
from edgesmith.files import atomic_write

__all__ = ["write_report"]


def write_report(folder: Path, report: ReleaseReport) -> tuple[Path, ...]:
    """Write `report.html`, `report.md` and `report.json` into a folder: the same data give the same bytes.

    Args:
        folder: Made if it is not there. Other files in it are left alone.
        report: What to say.

    Returns:
        The files, in this order.

    Raises:
        StorageError: The folder cannot be written.
    """
    sections = build_sections(report)
    contents = {
        "report.html": to_html(report, sections),
        "report.md": to_markdown(report, sections),
        "report.json": pretty_json(report.to_json()),
    }
    for name, content in contents.items():
        atomic_write(folder / name, content)
    return tuple(folder / name for name in contents)
