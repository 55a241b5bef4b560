"""Reports: one release's verdicts and measurements, for people (HTML, Markdown) and for machines (JSON)."""

from __future__ import annotations

from bench.report.data import Ancestor, ReleaseReport, TargetReport
from bench.report.making import LearningCurve, ModelStep
from bench.report.markdown import to_markdown
from bench.report.page import to_html
from bench.report.write import write_report

__all__ = [
    "Ancestor",
    "LearningCurve",
    "ModelStep",
    "ReleaseReport",
    "TargetReport",
    "to_html",
    "to_markdown",
    "write_report",
]
