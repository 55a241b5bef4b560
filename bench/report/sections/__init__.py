"""A report as headings, sentences, tables and plots, verdicts first."""

from __future__ import annotations

from bench.report.blocks import Section
from bench.report.data import ReleaseReport, TargetReport
from bench.report.sections.accuracy import show_accuracy
from bench.report.sections.language import show_answers, show_language
from bench.report.sections.load import show_loads
from bench.report.sections.making import show_making
from bench.report.sections.origin import show_environment, show_lineage, show_verification
from bench.report.sections.overview import show_gates, show_targets
from bench.report.sections.size import show_size, show_start
from bench.report.sections.speed import show_duets, show_latencies
from bench.report.sections.work import show_generation, show_limits, show_sweep, show_throughput

__all__ = ["build_sections"]


def build_sections(report: ReleaseReport) -> list[Section]:
    """Give all parts of a report that there is something to say about."""
    found: list[Section | None] = [show_gates(report), show_targets(report), show_making(report)]
    for target in report.targets:
        found += _target(target)
    return [section for section in (*found, show_environment(report)) if section is not None]


def _target(target: TargetReport) -> list[Section | None]:
    parts: list[Section | None] = [
        show_accuracy(target),
        show_language(target),
        show_answers(target),
        *show_latencies(target),
        *show_duets(target),
        show_throughput(target),
        show_generation(target),
        show_sweep(target),
        show_limits(target),
        *show_loads(target),
        show_start(target),
        show_size(target),
        show_verification(target),
        show_lineage(target),
    ]
    if all(part is None for part in parts):
        return []
    return [Section(title=target.name, outcome=target.outcome), *parts]
