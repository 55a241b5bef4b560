"""Write a report in all of its forms."""

from __future__ import annotations

from pathlib import Path

from bench.raw import pretty_json
from bench.report.data import ReportData
from bench.report.markdown import to_markdown
from bench.report.page import to_html
from edgesmith.files import atomic_write

__all__ = ["write_report"]


def write_report(out_dir: Path, data: ReportData) -> tuple[Path, ...]:
    """Write `report.md`, `report.json` and `report.html` into a folder.

    Args:
        out_dir: Made if it is not there. Other files in it are left alone.
        data: What to say.

    Returns:
        The files, the one for people first.

    Raises:
        StorageError: The folder cannot be written.
    """
    contents = {
        "report.md": to_markdown(data),
        "report.json": pretty_json(data.to_json()),
        "report.html": to_html(data),
    }
    for name, content in contents.items():
        atomic_write(out_dir / name, content)
    return tuple(out_dir / name for name in contents)
