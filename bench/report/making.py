"""What became of a model before its targets were made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["LearningCurve", "ModelStep"]


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """How a training went, by update."""

    metric: str
    """What the weights were chosen by, on rows that were not trained on."""
    higher_is_better: bool
    best_update: int
    """Whose weights were kept; 0 is before training."""
    teacher_metric: float | None = None
    updates: tuple[int, ...] = ()
    """Of the losses, rising."""
    losses: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """`loss`, then its parts; each an item's mean over the updates since the point before."""
    metric_updates: tuple[int, ...] = ()
    """Of the evaluations, rising."""
    metric_values: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelStep:
    """A step on the checkpoint: what it did, and how large it left the model."""

    name: str
    """Such as `prune`; `found` for a checkpoint as it was given."""
    digest: str
    summary: str = ""
    """What it did, in a line."""
    num_parameters: int
    weights_bytes: int
    """Of the checkpoint as it is stored, before any target's format."""
    macs: int | None = None
    """Multiply-accumulates of one row, where they were counted."""
    macs_of: str = ""
    """The row that they were counted for, such as `128 tokens`."""
    notes: tuple[str, ...] = ()
    """What was chosen or left out, and why."""
    curve: LearningCurve | None = None
    """Of a step that trains."""
