"""Reports: one release's verdicts and measurements, for people (Markdown, HTML) and for machines (JSON)."""

from __future__ import annotations

from bench.report.data import ReportData
from bench.report.write import write_report

__all__ = ["ReportData", "write_report"]
