"""A report as headings, sentences and tables: the one source of its Markdown and its HTML."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from bench.accuracy import Evaluation
from bench.duet import Duet
from bench.latency import Latency
from bench.report.data import ReportData
from bench.stats.percentiles import PercentileBounds
from bench.verdict import show

__all__ = ["Section", "Table", "build_sections"]

MB = 1_000_000
_MAX_CONFUSION_LABELS = 12
_NONE = "–"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under a head; the first column is text, the others are figures."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with what stands below it."""

    title: str
    sentences: tuple[str, ...] = ()
    table: Table | None = None


def build_sections(data: ReportData) -> list[Section]:
    """Give all parts of a report that there is something to say about, verdicts first."""
    found = [
        _verdicts(data),
        _comparison(data),
        _latency(data),
        _accuracy(data),
        _verification(data),
        _lineage(data),
        _environment(data),
    ]
    return [section for section in found if section is not None]


def _verdicts(data: ReportData) -> Section | None:
    if not data.verdicts:
        return None
    rows = tuple((one.gate, one.verdict.value, one.reason) for one in data.verdicts)
    return Section(title="Gates", table=Table(head=("gate", "verdict", "reason"), rows=rows))


def _comparison(data: ReportData) -> Section:
    """Baseline beside artifact, figure by figure."""
    rows = [
        _row("model file", data.baseline, data.artifact, lambda one: one.model_bytes / MB, "MB"),
        _row("all files", data.baseline, data.artifact, lambda one: one.total_bytes / MB, "MB"),
    ]
    names = data.evaluation.metrics if data.evaluation else ()
    rows += [_metric_row(name, data.baseline_evaluation, data.evaluation) for name in names]
    if data.duet is not None:
        rows.append(_cpu_row(data.duet))
    elif data.latency is not None:
        rows.append(_row("CPU time of a request", data.baseline_latency, data.latency, lambda one: one.cpu_ms, "ms"))
    if data.latency is not None:
        rows += [_percentile_row(percentile, data.baseline_latency, data.latency) for percentile in (50.0, 99.0)]
    if data.start is not None:
        rows.append(_row("cold start", data.baseline_start, data.start, lambda one: one.cold_start_ms, "ms"))
        rows.append(_row("peak memory", data.baseline_start, data.start, lambda one: one.peak_rss_bytes / MB, "MB"))
    baseline = data.baseline.name if data.baseline else "baseline"
    head = ("figure", f"baseline ({baseline})", f"artifact ({data.artifact.name})", "change")
    return Section(title="Comparison", table=Table(head=head, rows=tuple(rows)))


def _row(
    name: str, baseline: T | None, artifact: T | None, value: Callable[[T], float | None], unit: str
) -> tuple[str, ...]:
    before = value(baseline) if baseline is not None else None
    after = value(artifact) if artifact is not None else None
    change = f"{show(before / after)}× less" if before and after and before >= after else _NONE
    if before and after and before < after:
        change = f"{show(after / before)}× more"
    return (name, _cell(before, unit), _cell(after, unit), change)


def _cell(value: float | None, unit: str) -> str:
    return _NONE if value is None else f"{show(value)} {unit}"


def _metric_row(name: str, baseline: Evaluation | None, artifact: Evaluation | None) -> tuple[str, ...]:
    before = baseline.metrics.get(name) if baseline else None
    after = artifact.metrics.get(name) if artifact else None
    change = _NONE
    if before is not None and after is not None:
        points = show(100 * (after - before))
        change = f"{'+' if after > before else ''}{points} points".replace("-", "−")
    return (name, _cell(None if before is None else 100 * before, "%"), _cell(after and 100 * after, "%"), change)


def _percentile_row(percentile: float, baseline: Latency | None, artifact: Latency) -> tuple[str, ...]:
    def estimate(latency: Latency) -> float | None:
        return latency.percentile(percentile).estimate

    return _row(f"latency p{percentile:g}", baseline, artifact, estimate, "ms")


def _cpu_row(duet: Duet) -> tuple[str, ...]:
    bounds = duet.speedup()
    summary = duet.summary()
    spread = f"{show(bounds.lower, rounding='down')} to {show(bounds.upper, rounding='up')}"
    return (
        "CPU time of a request, in turns",
        _cell(summary["baseline_cpu_ms"], "ms"),
        _cell(summary["artifact_cpu_ms"], "ms"),
        f"{show(bounds.estimate)}× less ({spread})",
    )


def _latency(data: ReportData) -> Section | None:
    if data.latency is None:
        return None
    rows = [("artifact", *(_percentile(bounds) for bounds in data.latency.percentiles()))]
    if data.baseline_latency is not None:
        rows.insert(0, ("baseline", *(_percentile(bounds) for bounds in data.baseline_latency.percentiles())))
    head = ("single stream, ms", *(f"p{bounds.percentile:g}" for bounds in data.latency.percentiles()))
    return Section(title="Latency", sentences=(_latency_note(data.latency),), table=Table(head=head, rows=tuple(rows)))


def _latency_note(latency: Latency) -> str:
    waited = f" Requests waited {latency.waiting_share:.0%} of the time for a processor."
    settled = "" if latency.is_settled else " The engine never settled during warm-up: take these with care."
    return (
        f"{latency.engine}; {latency.num_requests:,} requests after {latency.num_warm_up:,} to warm up; "
        f"{latency.inputs}. In brackets: distribution-free bounds, each at 99 % confidence.{waited}{settled}"
    )


def _percentile(bounds: PercentileBounds) -> str:
    if bounds.estimate is None or bounds.upper is None:
        return f"n too small, needs ≥ {bounds.num_required:,}"
    lower = _NONE if bounds.lower is None else show(bounds.lower, rounding="down")
    return f"{show(bounds.estimate)} ({lower} to {show(bounds.upper, rounding='up')})"


def _accuracy(data: ReportData) -> Section | None:
    evaluation = data.evaluation
    if evaluation is None:
        return None
    sentences = [f"{evaluation.num_examples:,} examples, {evaluation.batch_size} a call, {evaluation.engine}."]
    confusion = evaluation.confusion
    if confusion is None or len(evaluation.labels) > _MAX_CONFUSION_LABELS:
        return Section(title="Evaluation", sentences=tuple(sentences))
    sentences.append("Rows are what is right, columns what the artifact said.")
    rows = tuple(
        (label, *(f"{count:,}" for count in counts))
        for label, counts in zip(evaluation.labels, confusion.tolist(), strict=True)
    )
    return Section(
        title="Evaluation", sentences=tuple(sentences), table=Table(head=("label", *evaluation.labels), rows=rows)
    )


def _verification(data: ReportData) -> Section | None:
    if not data.verification:
        return None
    rows = tuple((name, _plain(value)) for name, value in data.verification.items())
    return Section(title="Verification against the checkpoint", table=Table(head=("figure", "value"), rows=rows))


def _plain(value: float | int | str | bool | None) -> str:
    match value:
        case None:
            return _NONE
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case int():
            return f"{value:,}"
        case str():
            return value


def _lineage(data: ReportData) -> Section:
    rows = [("artifact", data.artifact.name, data.artifact.digest)]
    if data.baseline is not None:
        rows.append(("baseline", data.baseline.name, data.baseline.digest))
    rows += [("made from", parent.role, parent.digest) for parent in data.lineage]
    return Section(title="Lineage", table=Table(head=("", "name", "digest"), rows=tuple(rows)))


def _environment(data: ReportData) -> Section | None:
    sentences = []
    machine = data.machine or (data.latency.machine if data.latency else None)
    if machine is not None:
        sentences.append(f"Machine: {machine.summary}.")
        busy = [f"load {machine.load_1min:g}"] if machine.load_1min is not None else []
        busy += [f"governor {machine.governor}"] if machine.governor else []
        busy += [f"CPU pressure {machine.cpu_pressure_10s:g} %"] if machine.cpu_pressure_10s is not None else []
        sentences += [f"When measuring began: {', '.join(busy)}."] if busy else []
    if data.versions:
        named = ", ".join(f"{name} {version}" for name, version in sorted(data.versions.items()))
        sentences.append(f"Versions: {named}.")
    sentences += [f"Command: `{data.command}`"] if data.command else []
    sentences += [f"Note: {note}" for note in data.notes]
    return Section(title="Environment", sentences=tuple(sentences)) if sentences else None
