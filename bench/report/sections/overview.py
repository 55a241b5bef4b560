"""The first page: every gate, then all targets beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bench.gates.verdict import Outcome, show
from bench.report.blocks import Block, Cell, Figure, Gates, Section, Text, keep_filled
from bench.report.data import ReleaseReport, TargetReport
from bench.report.figures import CONFIDENCE, MB, bound_change, show_bounds, show_change, show_ms, show_points, show_rate
from bench.report.plots import Spot, plot_tradeoff, short_nats
from bench.report.sections.size import show_sizes
from bench.stats.binomial import clopper_pearson

if TYPE_CHECKING:
    from bench.accuracy import Evaluation
    from bench.gates.judge import Subject
    from bench.language.evaluation import LanguageEvaluation
    from bench.language.intervals import Estimate
    from bench.scenarios.generation import Generation
    from bench.scenarios.latency import Latency
    from bench.scenarios.start import Start

__all__ = ["show_gates", "show_targets"]


def show_gates(report: ReleaseReport) -> Section | None:
    """Every gate with its plot and reason, by target."""
    if not report.verdicts:
        return None
    blocks: list[Block] = []
    for target in report.targets:
        if not target.verdicts:
            continue
        blocks.append(Gates(target.verdicts, target.name if len(report.targets) > 1 else "", target.outcome))
    return Section(title="Gates", blocks=tuple(blocks))


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One model's figures: a baseline's or a target's."""

    name: str
    outcome: Outcome | None
    subject: Subject
    download_bytes: int | None
    evaluation: Evaluation | None
    change: Cell | None
    cpu_ms: float | None
    latency: Latency | None
    speedup: Cell | None
    start: Start | None
    language: LanguageEvaluation | None = None
    reference: Estimate | None = None
    """Perplexity of a baseline that others are compared with."""
    generation: Generation | None = None
    max_mb: float | None = None
    """What the model file may have: no figure is rounded onto it."""
    is_baseline: bool = False


def show_targets(report: ReleaseReport) -> Section | None:
    """One table and one plot of all models, baselines included."""
    rows = _rows(report.targets)
    metric = next((row.evaluation.default_metric for row in rows if row.evaluation), "")
    head: tuple[str, ...] = (
        "model",
        "verdict",
        "model file, MB",
        "download, MB",
        metric,
        "change, points",
        "CPU a request",
    )
    head += ("perplexity", "perplexity ratio", "divergence, nats", "prompt tokens/s", "tokens/s")
    head += ("speed-up, CPU", "p50", "p99", "cold start", "peak memory, MB")
    cells: list[tuple[Cell | None, ...]] = [_cells(row, metric) for row in rows]
    table = keep_filled(head, cells, is_stacked=True)
    if table is None:
        return None
    blocks: list[Block] = [table, Text(_legend(rows, metric))]
    blocks += [one for one in (_tradeoff(rows, metric), *show_sizes(report)) if one is not None]
    return Section(title="Targets" if len(report.targets) > 1 else "At a glance", blocks=tuple(blocks))


def _rows(targets: Sequence[TargetReport]) -> list[_Row]:
    rows: list[_Row] = []
    seen: set[str] = set()
    for target in targets:
        baseline = target.baseline
        if baseline is not None and baseline.digest not in seen | {one.artifact.digest for one in targets}:
            seen.add(baseline.digest)
            rows.append(_baseline_row(target, baseline))
    return rows + [_target_row(target) for target in targets]


def _baseline_row(target: TargetReport, baseline: Subject) -> _Row:
    latency = _single(target.baseline_latencies)
    cpu_ms = latency.cpu_ms if latency is not None else None
    if target.duets:
        cpu_ms = float(target.duets[0].summary()["baseline_cpu_ms"])
    footprint = target.baseline_footprint
    return _Row(
        name=baseline.name,
        outcome=None,
        subject=baseline,
        download_bytes=footprint.download_bytes if footprint else None,
        evaluation=target.baseline_evaluation,
        change=None,
        cpu_ms=cpu_ms,
        latency=latency,
        speedup=None,
        start=target.baseline_starts[0] if target.baseline_starts else None,
        generation=target.baseline_generation,
        reference=_reference(target, baseline),
        is_baseline=True,
    )


def _reference(target: TargetReport, baseline: Subject) -> Estimate | None:
    """Perplexity of the model that the target's predictions were held against, where that is the baseline."""
    language = target.language
    if language is None or not language.has_reference or language.reference_artifact != baseline.digest:
        return None
    return language.reference_perplexity()


def _target_row(target: TargetReport) -> _Row:
    latency = _single(target.latencies)
    cpu_ms = latency.cpu_ms if latency is not None else None
    speedup = None
    if target.duets:
        cpu_ms = float(target.duets[0].summary()["artifact_cpu_ms"])
        speedup = show_bounds(target.duets[0].speedup(), unit="×")
    return _Row(
        name=target.name,
        outcome=target.outcome,
        subject=target.artifact,
        download_bytes=target.footprint.download_bytes if target.footprint else None,
        evaluation=target.evaluation,
        change=_change(target),
        cpu_ms=cpu_ms,
        latency=latency,
        speedup=speedup,
        start=target.starts[0] if target.starts else None,
        language=target.language,
        generation=target.generation,
        max_mb=next((one.threshold for one in target.verdicts if one.gate == "size.max_mb"), None),
    )


def _single(latencies: Sequence[Latency]) -> Latency | None:
    return next((one for one in latencies if one.scenario == "single"), None)


def _change(target: TargetReport) -> Cell | None:
    ours, theirs = target.evaluation, target.baseline_evaluation
    if ours is None or theirs is None or ours.default_metric not in theirs.metrics:
        return None
    metric = ours.default_metric
    bounds = bound_change(metric, ours, theirs)
    return show_change(bounds) if bounds else show_points(ours.metrics[metric] - theirs.metrics[metric])


def _cells(row: _Row, metric: str) -> tuple[Cell | None, ...]:
    value = row.evaluation.metrics.get(metric) if row.evaluation else None
    p50, p99 = (row.latency.percentile(one).estimate if row.latency else None for one in (50.0, 99.0))
    return (
        f"{row.name} (baseline)" if row.is_baseline else row.name,
        row.outcome,
        show(row.subject.model_bytes / MB, row.max_mb),
        None if row.download_bytes is None else show(row.download_bytes / MB),
        None if value is None else f"{show(100 * value)} %",
        row.change,
        show_ms(row.cpu_ms),
        *_language_cells(row),
        row.speedup,
        show_ms(p50),
        show_ms(p99),
        show_ms(row.start.cold_start_ms if row.start else None),
        None if row.start is None else show(row.start.peak_rss_bytes / MB, digits=0),
    )


def _language_cells(row: _Row) -> tuple[Cell | None, ...]:
    """Perplexity, its ratio and the divergence; tokens read and written in a second."""
    one, written = row.language, row.generation
    perplexity = ratio = divergence = None
    if row.reference is not None:
        perplexity = show(row.reference.value)
    if one is not None:
        perplexity = show(one.perplexity().value)
    if one is not None and one.has_reference:
        ratio = f"{show(one.perplexity_ratio().value, digits=4)}×"
        divergence = short_nats(one.mean_kld().value)
    if written is None:
        return perplexity, ratio, divergence, None, None
    speed = written.generated_tokens_per_second
    rates = show_rate(written.prompt_tokens_per_second), None if speed is None else show_rate(speed)
    return perplexity, ratio, divergence, *rates


def _legend(rows: Sequence[_Row], metric: str) -> str:
    parts = []
    if any(row.change for row in rows):
        parts.append(f"Change of {metric} against the baseline on the same examples, below it its 95 % interval.")
    if any(row.speedup for row in rows):
        parts.append("Speed-up: CPU time of a request, taken in turns with the baseline, each bound at 95 %.")
    if any(row.latency for row in rows):
        parts.append("p50 and p99: one client, one request after the other.")
    return " ".join(parts)


def _tradeoff(rows: Sequence[_Row], metric: str) -> Figure | None:
    placed = [row for row in rows if row.cpu_ms and row.evaluation and metric in row.evaluation.metrics]
    if not placed:
        return None
    spots = tuple(
        Spot(
            name=row.name,
            style="b" if row.is_baseline else "a",
            speed=row.cpu_ms or 0.0,
            quality=100 * row.evaluation.metrics[metric] if row.evaluation else 0.0,
            interval=_interval(row.evaluation, metric),
            size_mb=row.subject.model_bytes / MB,
        )
        for row in placed
    )
    evaluation = placed[0].evaluation
    higher = evaluation.higher_is_better.get(metric, True) if evaluation else True
    svg = plot_tradeoff(spots, speed="CPU time of a request, ms", quality=f"{metric}, %", higher_is_better=higher)
    caption = "Quality, speed and size: the area of a dot is the size of the model file"
    has_whiskers = any(spot.interval for spot in spots)
    return Figure(caption=f"{caption}; whiskers are 95 % intervals." if has_whiskers else f"{caption}.", svg=svg)


def _interval(evaluation: Evaluation | None, metric: str) -> tuple[float, float] | None:
    """Interval of a share of right answers, in per cent."""
    if evaluation is None or metric not in evaluation.scores:
        return None
    scores = evaluation.scores[metric]
    if not np.isin(scores, (0, 1)).all():
        return None
    low, high = clopper_pearson(int(scores.sum()), len(scores), 2 * CONFIDENCE - 1)
    return 100 * low, 100 * high
