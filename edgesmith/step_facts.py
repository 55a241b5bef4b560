"""What a step on a checkpoint wrote of its own work, in a line and as a learning curve."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from edgesmith.artifact import Artifact
from edgesmith.files import storage_errors
from edgesmith.releases import LearningCurve
from edgesmith.units import format_bytes

__all__ = ["CHECKPOINT_STEPS", "StepFacts", "read_facts"]

_FILES = {"trim-vocabulary": "vocabulary.json", "prune": "pruning.json", "distill": "training.json"}
CHECKPOINT_STEPS = ("merge", *_FILES)
_MAX_POINTS = 200
"""Of a learning curve's losses."""
_NO_LOSSES = frozenset({"update", "epoch", "learning_rate", "gradient_norm", "metric", "distance"})
_DIGITS = 5

Change = tuple[int | None, int | None]
"""Before and after, where they are known."""


class StepFacts(BaseModel):
    """What a step wrote of its own work; older and newer versions may say less or more."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    notes: tuple[str, ...] = ()
    """What was chosen or left out, and why."""

    @property
    def summary(self) -> str:
        """What the step did, in a line."""
        return ""

    @property
    def params(self) -> Change:
        """Parameters."""
        return (None, None)

    @property
    def macs(self) -> Change:
        """Multiply-accumulates of one row."""
        return (None, None)

    @property
    def curve(self) -> LearningCurve | None:
        """Of a training."""
        return None

    @property
    def macs_of(self) -> str:
        """The row that multiply-accumulates were counted for."""
        return ""


class _Merge(StepFacts):
    weights: tuple[float, ...]

    @property
    def summary(self) -> str:
        weighted = [f"{weight:g}" for weight in self.weights] if set(self.weights) != {1.0} else []
        folded = f"{len(self.weights)} adapters" if len(self.weights) > 1 else "the adapter"
        return f"{folded} folded into the base" + (f", weights {', '.join(weighted)}" if weighted else "")


class _Vocabulary(StepFacts):
    num_tokens_before: int
    num_tokens_after: int
    num_parameters_before: int
    num_parameters_after: int
    weights_bytes_before: int
    weights_bytes_after: int

    @property
    def params(self) -> Change:
        return self.num_parameters_before, self.num_parameters_after

    @property
    def summary(self) -> str:
        return (
            f"{self.num_tokens_before:,} → {self.num_tokens_after:,} tokens, "
            f"{format_bytes(self.weights_bytes_before)} → {format_bytes(self.weights_bytes_after)}"
        )


class _Width(BaseModel):
    name: str
    before: dict[str, int]
    after: dict[str, int]

    @property
    def described(self) -> str:
        label = next(iter(self.before), "")
        return f"{self.name} {self.before[label]:,} → {self.after[label]:,}" if label in self.after else self.name


class _Structure(StepFacts):
    importance: str
    num_layers_before: int | None
    kept_layers: tuple[int, ...] | None
    widths: tuple[_Width, ...]
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    row_shape: dict[str, tuple[int, ...]]
    output_change: float

    @property
    def params(self) -> Change:
        return self.params_before, self.params_after

    @property
    def macs(self) -> Change:
        return self.macs_before, self.macs_after

    @property
    def summary(self) -> str:
        parts = [width.described for width in self.widths]
        if self.kept_layers is not None:
            parts.insert(0, f"layers {self.num_layers_before} → {len(self.kept_layers)}")
        return (
            f"{', '.join(parts)} (by {self.importance}): {_count(self.params_before)} → {_count(self.params_after)} "
            f"parameters, MACs {_percent(self.macs_after / max(1, self.macs_before))}; outputs changed by "
            f"{_percent(self.output_change)} before any training"
        )

    @property
    def macs_of(self) -> str:
        shape = self.row_shape.get("pixel_values")
        if shape is not None:
            return f"a picture of {shape[-2]} × {shape[-1]}"
        shape = self.row_shape.get("input_ids", ())
        return f"{shape[-1]:,} tokens" if shape else ""


class _Sparsity(StepFacts):
    method: str
    target: str
    num_zeros: int
    num_weights: int
    model_sparsity: float
    mean_relative_error: float | None

    @property
    def summary(self) -> str:
        said = (
            f"{self.method}, {self.target}: {_count(self.num_zeros)} of {_count(self.num_weights)} weights are zero "
            f"({_percent(self.model_sparsity)})"
        )
        error = self.mean_relative_error
        return (
            said if error is None else f"{said}; outputs of the pruned matrices moved by {_percent(error)} on average"
        )


class _Training(StepFacts):
    student: str
    num_parameters: int
    metric: str
    higher_is_better: bool
    teacher_metric: float | None
    first_metric: float
    best_metric: float
    best_update: int
    num_updates: int
    stopped_because: str
    num_trained: int
    num_unlabelled: int
    num_validated: int
    history: tuple[dict[str, float], ...]

    @property
    def items(self) -> str:
        """What it was trained on."""
        return "windows of text" if self.metric == "perplexity" else "rows"

    @property
    def params(self) -> Change:
        return None, self.num_parameters

    @property
    def summary(self) -> str:
        teacher = "" if self.teacher_metric is None else f" (teacher {self.teacher_metric:.4g})"
        unlabelled = f", {self.num_unlabelled:,} of them without labels" if self.num_unlabelled else ""
        kept = "no update"
        if self.best_update:
            kept = f"the weights after update {self.best_update:,} of {self.num_updates:,}"
        made_of = f"{self.student}: " if "layers" in self.student else ""
        return (
            f"{made_of}{self.metric} on {self.num_validated:,} held-out {self.items} {self.first_metric:.4g} → "
            f"{self.best_metric:.4g}{teacher}, kept {kept}; trained on {self.num_trained:,} {self.items}{unlabelled}; "
            f"ended: {self.stopped_because}"
        )

    @property
    def curve(self) -> LearningCurve:
        with_loss = [entry for entry in self.history if "loss" in entry]
        names = [name for name in (with_loss or [{}])[-1] if name not in _NO_LOSSES]
        whole = [one for one in with_loss if all(math.isfinite(one.get(name, math.nan)) for name in names)]
        shown = _thin(whole)
        evaluated = [entry for entry in self.history if "metric" in entry]
        return LearningCurve(
            metric=self.metric,
            higher_is_better=self.higher_is_better,
            best_update=self.best_update,
            teacher_metric=None if self.teacher_metric is None else _rounded(self.teacher_metric),
            updates=tuple(int(entry["update"]) for entry in shown),
            losses={name: tuple(_rounded(entry[name]) for entry in shown) for name in names},
            metric_updates=tuple(int(entry["update"]) for entry in evaluated),
            metric_values=tuple(_rounded(entry["metric"]) for entry in evaluated),
        )


def _thin(entries: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Points of losses: those of the evaluations where they fit, the others evenly, first and last included."""
    if len(entries) <= _MAX_POINTS:
        return list(entries)
    evaluated = [index for index, entry in enumerate(entries) if "metric" in entry]
    picked = set(evaluated if len(evaluated) <= _MAX_POINTS // 2 else ())
    others = [index for index in range(len(entries)) if index not in picked]
    room = _MAX_POINTS - len(picked)
    picked |= {others[place * (len(others) - 1) // (room - 1)] for place in range(room)}
    return [entries[index] for index in sorted(picked)]


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _count(number: int) -> str:
    """Write a large number in a few characters.

    >>> _count(14_066_693), _count(210_882), _count(1_234_567_890)
    ('14.1 M', '210.9 k', '1.23 G')
    """
    for limit, unit, digits in ((1e9, "G", 2), (1e6, "M", 1), (1e3, "k", 1)):
        if number >= limit:
            return f"{number / limit:.{digits}f} {unit}"
    return str(number)


def read_facts(artifact: Artifact) -> tuple[StepFacts | None, dict[str, Any]]:
    """Read what the step that made a checkpoint wrote of its work.

    Returns:
        What this version understands of it, and all that its file holds; None and nothing where there is none.

    Raises:
        StorageError: the file cannot be read.
    """
    step = artifact.manifest.step
    if artifact.kind != "checkpoint" or step not in CHECKPOINT_STEPS:
        return None, {}
    found: dict[str, Any] = dict(artifact.manifest.options)
    if step != "merge":
        path = artifact.folder / _FILES[step]
        if not path.is_file():
            return None, {}
        with storage_errors(path):
            found = json.loads(path.read_bytes())
    match step:
        case "merge":
            kind: type[StepFacts] = _Merge
        case "trim-vocabulary":
            kind = _Vocabulary
        case "prune":
            kind = _Structure if found.get("method") == "structured" else _Sparsity
        case _:
            kind = _Training
    try:
        return kind.model_validate(found), found if step != "merge" else {}
    except ValidationError:
        return None, found  # another version's
