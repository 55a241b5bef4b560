"""What came of a distillation, and the checkpoint that it is written as."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.save import save_model
from edgesmith.files import atomic_write

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.train.run import Trained

__all__ = ["TRAINING", "DistillResult", "result_of", "write_result"]

TRAINING = "training.json"
"""The file of a trained checkpoint that says how training went."""
_DIGITS = 5
"""Of a figure; what comes after them tells equal ones apart, see `compress.distill.validate`."""


@dataclass(frozen=True, kw_only=True)
class DistillResult:
    """What a distillation did; the same on every run, but for the last two."""

    student: str
    """Where it comes from: the teacher's layers that it was made of, or a checkpoint of its own."""
    num_layers: int | None
    num_parameters: int
    teacher_num_layers: int | None
    teacher_num_parameters: int
    metric: str
    """What the weights were chosen by, on `num_validated` rows that were not trained on."""
    higher_is_better: bool
    teacher_metric: float | None
    """None where the metric is how near the student is to its teacher."""
    first_metric: float
    """The student's before training."""
    best_metric: float
    best_update: int
    num_updates: int
    stopped_because: str
    num_processes: int
    micro_batches: tuple[dict[str, int], ...]
    """Rows, or windows, that each process computed at once (`rows`), from which update on (`from_update`)."""
    num_trained: int
    """Rows, or windows of text."""
    num_unlabelled: int
    num_validated: int
    teacher_cache_bytes: int
    history: tuple[dict[str, Any], ...]
    """Losses and figures by update."""
    seconds: float
    peak_memory_bytes: int

    @property
    def facts(self) -> dict[str, Any]:
        """What the same inputs always give, JSON-able."""
        found = asdict(self)
        del found["seconds"], found["peak_memory_bytes"]
        return {**found, "micro_batches": list(self.micro_batches), "history": list(self.history)}


def write_result(model: PreTrainedModel, source: Path, out: Path, result: DistillResult) -> None:
    """Write a trained student as an ordinary checkpoint, with `training.json`.

    Args:
        model: The student.
        source: Whose tokenizer, templates and settings it takes over.
        out: An empty folder.
        result: What to write down.

    Raises:
        StorageError: the folder cannot be written.
    """
    save_model(model, source, out)
    atomic_write(out / TRAINING, json.dumps(result.facts, indent=1) + "\n")


def result_of(trained: Trained, **facts: Any) -> DistillResult:
    """Put together what training and its surroundings say."""
    assert trained.best_metric is not None  # there is always something to choose the weights by
    history = [
        {**entry, "metric": round(entry["metric"], _DIGITS)} if "metric" in entry else entry
        for entry in trained.history
    ]
    return DistillResult(
        first_metric=history[0]["metric"],
        best_metric=round(trained.best_metric, _DIGITS),
        best_update=trained.best_update,
        num_updates=trained.num_updates,
        stopped_because=trained.stopped_because,
        num_processes=trained.num_processes,
        micro_batches=tuple(trained.micro_batches),
        history=tuple(history),
        seconds=trained.seconds,
        peak_memory_bytes=trained.peak_memory_bytes,
        **facts,
    )
