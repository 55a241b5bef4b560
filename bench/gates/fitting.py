"""Which gates a task can be judged by."""

from __future__ import annotations

from collections.abc import Mapping

from edgesmith.errors import UsageError
from edgesmith.gates import Gates, MachineGates

__all__ = ["check_task_gates"]

_TEXT_GENERATION = "text-generation"
_ANY = frozenset({"accuracy", "size", "download", "memory", "start", "latency", "regression"})
_TIMED = _ANY | {"throughput", "cpu", "speed"}

# Task → gates that it can have, and metrics of its answers where they are not the task's own.
_KINDS: Mapping[str, frozenset[str]] = {
    "text-classification": _TIMED | {"flips", "divergence"},
    "image-classification": _TIMED | {"flips", "divergence"},
    "feature-extraction": _TIMED,
    _TEXT_GENERATION: _ANY | {"flips", "divergence", "perplexity", "generation"},
}
_MENDS = {
    "throughput": "Set a generation gate: min_tokens_per_second.",
    "cpu": "Set a generation gate: min_tokens_per_second.",
    "speed": "Set a generation gate: min_tokens_per_second, max_ttft_ms.",
    "latency": "Set a generation gate, max_ttft_ms, or a latency gate of scenario load.",
    "regression": "Leave max_slowdown out, and set a generation gate: min_tokens_per_second.",
    "perplexity": "Set an accuracy gate.",
    "generation": "Set a latency or a throughput gate.",
}
_WHY = {
    "throughput": "counts examples in batches",
    "cpu": "times one run of a graph",
    "speed": "compares single runs of a graph",
    "latency": "times one run of a graph in this process",
    "regression": "limits with max_slowdown the time of single runs of a graph",
    "perplexity": "limits how well a text is predicted",
    "generation": "limits how fast a text is written",
    "flips": "compares predicted classes",
    "divergence": "compares predicted classes",
}


def check_task_gates(gates: Gates, task: str) -> None:
    """Find what a task cannot be judged by.

    Raises:
        UsageError: There is such a gate or metric, or no such task; the mend names what can be set instead.
    """
    _check_metrics(gates, task)
    regression = gates.regression
    if task != _TEXT_GENERATION and regression is not None and regression.max_perplexity_ratio is not None:
        raise UsageError(
            f"the regression gate's max_perplexity_ratio limits how well a text is predicted, and {task} has no "
            "such thing",
            mend="Set max_drop.",
        )
    kinds = _KINDS.get(task, _TIMED)
    limits: dict[str, MachineGates] = {"": gates} | {f"devices.{name}.": one for name, one in gates.devices.items()}
    for place, one in limits.items():
        for name in type(one).model_fields:
            if name != "devices" and getattr(one, name) and not _fits(name, one, task, kinds):
                known = ", ".join(sorted(kinds))
                raise UsageError(
                    f"the {place}{name} gate {_WHY[name]}, and {task} has no such thing",
                    mend=_MENDS.get(name) or f"Gates of {task} are {known}.",
                )


def _fits(name: str, limits: MachineGates, task: str, kinds: frozenset[str]) -> bool:
    if name not in kinds:
        return False
    if task != _TEXT_GENERATION:
        return True
    if name == "latency":
        return all(one.scenario == "load" for one in limits.latency)
    return name != "regression" or limits.regression is None or limits.regression.max_slowdown is None


def _check_metrics(gates: Gates, task: str) -> None:
    if task == _TEXT_GENERATION:
        _check_answer_metrics(gates)
        return
    from edgesmith.tasks import get_task

    found = get_task(task)
    for name in gates.metrics:
        found.metric(name)
    for gate in gates.accuracy:
        metric = found.metric(gate.metric)
        if gate.min is not None and not metric.higher_is_better:
            raise UsageError(
                f"the accuracy gate's min cannot limit {metric.name}: lower is better for it", mend="Set max_drop."
            )
    if gates.needs_classes and found.output_kind != "logits":
        known = ", ".join(sorted(found.metrics))
        name = "flips" if gates.flips is not None else "divergence"
        raise UsageError(
            f"the {name} gate compares predicted classes, and {task} has none: it has {known}",
            mend=f"Set an accuracy gate on one of: {known}.",
        )


def _check_answer_metrics(gates: Gates) -> None:
    from bench.language.metrics import METRICS

    for name in gates.metrics:
        if name is not None and name not in METRICS:
            raise UsageError(
                f"{_TEXT_GENERATION} has no metric {name!r}", mend=f"Use one of: {', '.join(sorted(METRICS))}."
            )
