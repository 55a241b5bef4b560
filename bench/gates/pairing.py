"""Whether two evaluations can be compared, row by row, and whether their figures are figures."""

from __future__ import annotations

import numpy as np

from bench.accuracy import Evaluation
from edgesmith.errors import ArtifactError, UsageError

__all__ = ["pick_metric", "refuse_empty", "refuse_unpaired"]


def pick_metric(evaluation: Evaluation, name: str | None) -> str:
    """The metric of that name, or the task's main one, whose figures are finite.

    Raises:
        UsageError: The task has no such metric; the message names those it has.
        ArtifactError: It is not a finite number, or it has not one score an example.
    """
    metric = name or evaluation.default_metric
    if metric not in evaluation.metrics:
        known = ", ".join(sorted(evaluation.metrics))
        raise UsageError(f"{evaluation.task} has no metric {metric!r}", mend=f"Use one of: {known}.")
    scores = evaluation.scores.get(metric)
    if scores is not None and len(scores) != evaluation.num_examples:
        raise ArtifactError(f"{metric} has {len(scores):,} scores for {evaluation.num_examples:,} examples")
    value = evaluation.metrics[metric]
    if not np.isfinite(value):
        raise ArtifactError(_broken(f"{metric} over {evaluation.num_examples:,} examples is {value}"), mend=_MEND)
    if scores is not None and not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ArtifactError(_broken(f"{metric} of line {evaluation.lines[row]} is {scores[row]}"), mend=_MEND)
    return metric


_MEND = "Verify the artifact, then evaluate it again: `edgesmith verify`, `edgesmith eval`."


def _broken(what: str) -> str:
    return f"{what}: there is nothing to judge"


def refuse_empty(evaluation: Evaluation) -> None:
    """Raise a `UsageError` if nothing was evaluated."""
    if not evaluation.num_examples:
        raise UsageError("the evaluation holds no examples", mend="Evaluate on a data file with labelled rows.")


def refuse_unpaired(artifact: Evaluation, baseline: Evaluation) -> None:
    """Raise unless both were evaluated on the same examples in the same order.

    Raises:
        UsageError: They were not; the message says how many rows differ, and where the first one is.
    """
    if artifact.task != baseline.task:
        raise UsageError(f"the artifact was evaluated as {artifact.task}, the baseline as {baseline.task}")
    refuse_empty(artifact)
    if artifact.data_digest == baseline.data_digest and artifact.num_examples == baseline.num_examples:
        return
    raise UsageError(
        f"artifact and baseline were evaluated on different examples "
        f"({artifact.num_examples:,} of {artifact.data_digest[:19]}…, "
        f"{baseline.num_examples:,} of {baseline.data_digest[:19]}…): they cannot be paired. "
        f"{_difference(artifact, baseline)}",
        mend="Evaluate both with the same --data file.",
    )


def _difference(artifact: Evaluation, baseline: Evaluation) -> str:
    """Which rows differ, as far as their lines and targets say; an evaluation does not keep its texts."""
    ours = list(zip(artifact.lines, artifact.targets, strict=True))
    theirs = list(zip(baseline.lines, baseline.targets, strict=True))
    shared = min(len(ours), len(theirs))
    differing = [row for row in range(shared) if ours[row] != theirs[row]]
    num_extra = abs(len(ours) - len(theirs))
    if not differing and num_extra:
        longer, row = ("artifact", ours[shared]) if len(ours) > shared else ("baseline", theirs[shared])
        return f"The {longer} has {num_extra:,} more, the first on line {row[0]}; the {shared:,} before it may agree."
    if not differing:
        return "Lines and labels agree, so the texts differ."
    first = differing[0]
    return (
        f"{len(differing) + num_extra:,} of {shared + num_extra:,} rows differ in line or label, the first is row "
        f"{first + 1:,}: line {ours[first][0]} labelled {ours[first][1]!r} for the artifact, line {theirs[first][0]} "
        f"labelled {theirs[first][1]!r} for the baseline."
    )
