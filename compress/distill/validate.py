"""How good a student is, on rows that it is not trained on: the figure that chooses the best weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from compress.distill.losses import divergence
from compress.train.score import Score
from edgesmith.tasks import scoring

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.distill.rows import RowData

__all__ = ["Validation", "validate_language", "validate_rows"]

_WINDOWS_AT_ONCE = 4
_SMALLEST_ERROR = 0.02
"""Share of wrong answers that noise is estimated for at least."""
_MOST_COMPARED = 400
"""Texts whose similarities are compared: their pairs are 80,000."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """A figure, and how it is computed."""

    name: str
    higher_is_better: bool
    measure: Callable[[PreTrainedModel], float | Score]
    """Of the student's kind of model."""
    teacher: float | None
    """The teacher's own; None where it is what the student is held against."""


def validate_rows(data: RowData, held: Sequence[int], theirs: NDArray[np.float32]) -> Validation:
    """The task's own metric where the held-out rows have labels, else agreement with the teacher.

    Few rows give few different figures, and a student goes on learning while its own stays: of those within a standard
    error, the nearer to the teacher's probabilities is better. For embeddings: Spearman's correlation of the
    similarities of all pairs of texts with the teacher's.

    Args:
        data: All rows.
        held: Which of them are held out.
        theirs: The teacher's answers to them.
    """
    rows = list(held)
    items = data.readouts[1].items
    if items == "vectors":
        compared = rows[:_MOST_COMPARED]
        similarities = _similarities(theirs[:_MOST_COMPARED])
        return Validation(
            name="similarity_spearman",
            higher_is_better=True,
            measure=lambda model: _correlation(data.answers(model, compared, of_teacher=False), similarities),
            teacher=None,
        )
    examples = [data.examples[row] for row in rows]
    metric = None
    if all(example.target is not None for example in examples):
        metric = data.task.metric()

    has_noise = metric is None or metric.per_example is not None or metric.ratio is not None

    def score(answers_NC: NDArray[np.float32]) -> float:
        if metric is None:
            return float((answers_NC.argmax(axis=1) == theirs.argmax(axis=1)).mean())
        return float(metric.compute(data.predictions(answers_NC, rows), examples))

    teacher = None if metric is None else score(theirs)

    def measure(model: PreTrainedModel) -> Score:
        answers_NC = data.answers(model, rows, of_teacher=False)
        found = score(answers_NC)
        error = max(_SMALLEST_ERROR, 1.0 - found)
        return Score(
            metric=found,
            noise=math.sqrt(error * (1.0 - error) / len(rows)) if has_noise else 0.0,
            distance=_mean_divergence(answers_NC, theirs),
        )

    return Validation(
        name="agreement" if metric is None else metric.name,
        higher_is_better=metric is None or metric.higher_is_better,
        measure=measure,
        teacher=teacher,
    )


def validate_language(windows: Sequence[Sequence[int]], teacher: PreTrainedModel) -> Validation:
    """Perplexity of the second halves of held-out windows, each read with its first half as context."""
    return Validation(
        name="perplexity",
        higher_is_better=False,
        measure=lambda model: perplexity(model, windows),
        teacher=perplexity(teacher, windows),
    )


def perplexity(model: PreTrainedModel, windows: Sequence[Sequence[int]]) -> float:
    """Exponential of the mean negative log-likelihood of the second half of each window."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(windows), _WINDOWS_AT_ONCE):
            tokens_BL = torch.tensor([list(window) for window in windows[start : start + _WINDOWS_AT_ONCE]]).to(device)
            first = tokens_BL.shape[1] // 2
            logits_BLV = model(input_ids=tokens_BL, use_cache=False).logits[:, first:-1]
            targets_BL = tokens_BL[:, first + 1 :]
            total += float(
                torch.nn.functional.cross_entropy(
                    logits_BLV.flatten(0, 1).float(), targets_BL.flatten(), reduction="sum"
                )
            )
            count += targets_BL.numel()
    model.train(was_training)
    mean = total / count
    return math.exp(mean) if mean < 700 else math.inf  # of a broken student: beyond what a float holds


def _mean_divergence(ours_NC: NDArray[np.float32], theirs_NC: NDArray[np.float32]) -> float:
    pair = torch.from_numpy(ours_NC), torch.from_numpy(theirs_NC)
    return float(divergence(*pair, kind="forward-kl", temperature=1.0).mean())


def _similarities(vectors_NH: NDArray[np.float32]) -> NDArray[np.float64]:
    from edgesmith.tasks.pooling import normalize_rows

    units_NH = normalize_rows(vectors_NH.astype(np.float64))
    return np.asarray((units_NH @ units_NH.T)[np.triu_indices(len(units_NH), k=1)])


def _correlation(vectors_NH: NDArray[np.float32], similarities: NDArray[np.float64]) -> float:
    return float(scoring.spearman(_similarities(vectors_NH), similarities))
