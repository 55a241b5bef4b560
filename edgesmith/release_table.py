"""A release's final tables: what the steps made of the checkpoint, and each artifact beside its baseline."""

from __future__ import annotations

from collections.abc import Sequence

from edgesmith.releases import ModelStep
from edgesmith.reports import ReleasedTarget
from edgesmith.units import format_bytes

__all__ = ["release_table", "steps_table"]

_STEP_COLUMNS = ("checkpoint", "parameters", "weights", "MACs a row")
_GRAPH_COLUMNS = ("artifact", "model size", "smaller", "metric", "value", "baseline", "CPU a request", "faster")
_LANGUAGE_COLUMNS = ("artifact", "model size", "smaller", "perplexity", "ratio", "mean KLD", "same top", "tokens/s")


def steps_table(steps: Sequence[ModelStep]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows: parameters and weights of the checkpoint before and after each step; none without a step."""
    rows: list[tuple[str, ...]] = []
    for index, step in enumerate(steps):
        before = steps[index - 1] if index else step
        rows.append(
            (
                step.name if step.name != "found" else "as it was given",
                _change(f"{before.num_parameters:,}", f"{step.num_parameters:,}"),
                _change(format_bytes(before.weights_bytes), format_bytes(step.weights_bytes)),
                "" if step.macs is None else f"{step.macs / 1e6:,.1f} M",
            )
        )
    return _STEP_COLUMNS, rows


def _change(before: str, after: str) -> str:
    return after if before == after else f"{before} → {after}"


def release_table(targets: Sequence[ReleasedTarget]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows."""
    if any(target.evidence.language is not None for target in targets):
        return _LANGUAGE_COLUMNS, [_language_row(target) for target in targets]
    return _GRAPH_COLUMNS, [_graph_row(target) for target in targets]


def _smaller(target: ReleasedTarget) -> str:
    baseline = target.evidence.baseline
    return f"{baseline.model_bytes / target.artifact.model_bytes:.2f}×" if baseline is not None else ""


def _language_row(target: ReleasedTarget) -> tuple[str, ...]:
    perplexity = ratio = kld = same = speed = ""
    language = target.evidence.language
    if language is not None:
        perplexity = f"{language.perplexity().value:.2f}"
        if language.has_reference:
            ratio = f"{language.perplexity_ratio().value:.4f}"
            kld = f"{language.mean_kld().value:.4g}"
            same = f"{language.same_top_rate().value:.1%}"
    if target.evidence.generations:
        rate = target.evidence.generations[0].generated_tokens_per_second
        speed = "" if rate is None else f"{rate:.1f}"
    size = format_bytes(target.artifact.model_bytes)
    return (target.name, size, _smaller(target), perplexity, ratio, kld, same, speed)


def _graph_row(target: ReleasedTarget) -> tuple[str, ...]:
    evidence = target.evidence
    value = baseline = cpu = faster = metric = ""
    if evidence.evaluation is not None:
        metric = evidence.evaluation.default_metric
        value = f"{evidence.evaluation.metrics[metric]:.4f}"
    if evidence.baseline_evaluation is not None and metric:
        baseline = f"{evidence.baseline_evaluation.metrics[metric]:.4f}"
    single = next((one for one in evidence.latencies if one.scenario == "single"), None)
    if single is not None:
        cpu = f"{single.cpu_ms:.2f} ms"
    if evidence.duets:
        bounds = evidence.duets[0].speedup()
        faster = f"{bounds.estimate:.2f}× ({bounds.lower:.2f} to {bounds.upper:.2f})"
    size = format_bytes(target.artifact.model_bytes)
    return (target.name, size, _smaller(target), metric, value, baseline, cpu, faster)
