"""How good the answers are, against the baseline's on the same examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bench.gates.verdict import show
from bench.report.blocks import Block, Cell, Figure, Heat, Section, Table, Text, keep_filled
from bench.report.data import TargetReport
from bench.report.figures import bound_change, count, show_change, show_points
from bench.report.plots import Change, Part, plot_changes, plot_shifts, plot_stacks
from bench.stats.proportions import mcnemar_p_value

if TYPE_CHECKING:
    from bench.accuracy import Evaluation

__all__ = ["show_accuracy"]

_MAX_CLASSES = 12
_MAX_LINES = 20


def show_accuracy(target: TargetReport) -> Section | None:
    """Metrics with intervals, flips, classes and the confusion matrix."""
    evaluation, baseline = target.evaluation, target.baseline_evaluation
    if evaluation is None:
        return None
    said = f"{count(evaluation.num_examples, 'example')}, {evaluation.batch_size} a call, {evaluation.engine}."
    blocks: list[Block] = [Text(said)]
    is_paired = baseline is not None and baseline.data_digest == evaluation.data_digest
    if baseline is not None and not is_paired:
        blocks.append(Text("The baseline was evaluated on other examples: the two cannot be paired.", is_warning=True))
    blocks += _metrics(target, evaluation, baseline)
    if baseline is not None and is_paired:
        blocks += _flips(evaluation, baseline)
    blocks += _classes(evaluation, baseline if is_paired else None)
    blocks += _confusion(evaluation)
    return Section(title="Accuracy", level=3, blocks=tuple(blocks))


def _metrics(target: TargetReport, evaluation: Evaluation, baseline: Evaluation | None) -> list[Block]:
    rows: list[tuple[Cell | None, ...]] = []
    changes = []
    for name, value in evaluation.metrics.items():
        before = baseline.metrics.get(name) if baseline else None
        bounds = bound_change(name, evaluation, baseline) if baseline and before is not None else None
        shown: Cell | None = None
        if before is not None:
            shown = show_change(bounds) if bounds else show_points(value - before)
            worst = _worst_change(target, name, is_higher_better=evaluation.higher_is_better.get(name, True))
            interval = (bounds.lower, bounds.upper) if bounds else None
            changes.append(Change(name=name, estimate=value - before, interval=interval, worst=worst))
        rows.append((name, None if before is None else f"{show(100 * before)} %", f"{show(100 * value)} %", shown))
    head = ("metric", "baseline", "artifact", "change, points (95 % interval)")
    table = keep_filled(head, rows)
    blocks: list[Block] = [table] if table else []
    if changes:
        blocks.append(Figure(caption="Change of each metric, with its 95 % interval.", svg=plot_changes(changes)))
    return blocks


def _worst_change(target: TargetReport, metric: str, *, is_higher_better: bool) -> float | None:
    """The accuracy gate's margin, as a change of the metric."""
    found = (
        one.threshold
        for one in target.verdicts
        if one.gate.startswith("accuracy") and one.unit == metric and not one.at_least
    )
    margin = next(found, None)
    return None if margin is None else -margin if is_higher_better else margin


def _flips(evaluation: Evaluation, baseline: Evaluation) -> list[Block]:
    """How many answers changed, and to what."""
    if not evaluation.labels:
        return []
    targets = np.array([int(target or 0) for target in evaluation.targets])
    ours, theirs = _answers(evaluation), _answers(baseline)
    lost, gained = (theirs == targets) & (ours != targets), (theirs != targets) & (ours == targets)
    other = (theirs != ours) & ~lost & ~gained
    both_right, both_wrong = (theirs == targets) & (ours == targets), (theirs == ours) & (ours != targets)
    named = [
        ("right in both", both_right, 1),
        ("lost", lost, 2),
        ("gained", gained, 0),
        ("wrong in another way", other, 3),
        ("wrong in both", both_wrong, 6),
    ]
    n = len(targets)
    rows = tuple(
        (name, _lines(evaluation, which, name), f"{int(which.sum()):,}", f"{show(100 * which.mean())} %")
        for name, which, _ in named
        if which.any()
    )
    num_flips = int((lost | gained | other).sum())
    p_value = mcnemar_p_value(int(lost.sum()), int(gained.sum()))
    said = (
        f"{num_flips:,} of {n:,} answers changed ({show(100 * num_flips / n)} %): {int(lost.sum()):,} lost, "
        f"{int(gained.sum()):,} gained. An imbalance like this one arises by chance with probability "
        f"{p_value:.2g} (McNemar, exact, two-sided)."
    )
    parts = [
        Part(name=name, value=float(which.sum()), colour=colour) for name, which, colour in named[1:4] if which.any()
    ]
    table = Table(head=("answer", "lines of the data file", "examples", "share"), rows=rows, num_text=2)
    blocks: list[Block] = [Text(said), table]
    if num_flips:
        svg = plot_stacks("Answers that changed", [("changed answers", parts)], lambda v: f"{v:,.0f}", axis="examples")
        blocks.append(Figure(caption="Answers that changed against the baseline.", svg=svg))
    return blocks


def _answers(evaluation: Evaluation) -> NDArray[np.int64]:
    return np.array([int(prediction["index"]) for prediction in evaluation.predictions])


def _lines(evaluation: Evaluation, which: NDArray[np.bool_], name: str) -> str:
    """Where to look: the first lines of what changed."""
    if name.endswith("in both"):
        return ""
    lines = [evaluation.lines[index] for index in np.flatnonzero(which).tolist()]
    shown = ", ".join(str(line) for line in lines[:_MAX_LINES] if line is not None)
    return f"{shown}, …" if len(lines) > _MAX_LINES else shown


def _classes(evaluation: Evaluation, baseline: Evaluation | None) -> list[Block]:
    """Recall and precision by class; of many classes those that changed most."""
    confusion = evaluation.confusion
    if confusion is None:
        return []
    ours = _rates(confusion)
    theirs = _rates(baseline.confusion) if baseline is not None and baseline.confusion is not None else None
    present = np.flatnonzero(confusion.sum(axis=1)).tolist()
    change = np.abs(ours[0] - theirs[0]) if theirs is not None else ours[0]
    picked = sorted(sorted(present, key=lambda index: -float(change[index]))[:_MAX_CLASSES])
    rows: list[tuple[Cell | None, ...]] = [
        (
            evaluation.labels[index],
            f"{int(confusion[index].sum()):,}",
            None if theirs is None else f"{show(100 * theirs[0][index])} %",
            f"{show(100 * ours[0][index])} %",
            None if theirs is None else show_points(float(ours[0][index] - theirs[0][index])),
            None if theirs is None else f"{show(100 * theirs[1][index])} %",
            f"{show(100 * ours[1][index])} %",
        )
        for index in picked
    ]
    names = ("recall, baseline", "recall", "change, points", "precision, baseline", "precision")
    table = keep_filled(("class", "examples", *names), rows)
    few = (
        f" The {len(picked)} of {len(present)} classes whose recall changed most." if len(picked) < len(present) else ""
    )
    shifts = [
        (evaluation.labels[index], None if theirs is None else float(theirs[0][index]), float(ours[0][index]))
        for index in picked
    ]
    figure = Figure(caption=f"Recall by class.{few}", svg=plot_shifts(shifts, quantity="recall"))
    return [table, figure] if table else [figure]


def _rates(confusion: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall and precision of each class, of shape [L]; 0 where a class does not occur."""
    right = np.diag(confusion).astype(np.float64)
    return right / np.maximum(confusion.sum(axis=1), 1), right / np.maximum(confusion.sum(axis=0), 1)


def _confusion(evaluation: Evaluation) -> list[Block]:
    """The matrix, or of many classes the most frequent confusions."""
    confusion = evaluation.confusion
    if confusion is None:
        return []
    if len(evaluation.labels) > _MAX_CLASSES:
        return _top_confusions(evaluation, confusion)
    totals = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    shares = (confusion / totals).tolist()
    rows: list[tuple[Cell, ...]] = []
    for label, counts, row in zip(evaluation.labels, confusion.tolist(), shares, strict=True):
        rows.append((label, *(Heat(f"{count:,}", share) for count, share in zip(counts, row, strict=True))))
    caption = "Confusion matrix: rows are what is right, columns what the artifact said."
    return [Table(head=("right \\ said", *evaluation.labels), rows=tuple(rows), caption=caption)]


def _top_confusions(evaluation: Evaluation, confusion: NDArray[np.int64]) -> list[Block]:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MAX_CLASSES]
    pairs = [np.unravel_index(int(place), wrong.shape) for place in order]
    rows = tuple(
        (evaluation.labels[int(right)], evaluation.labels[int(said)], f"{int(wrong[right, said]):,}")
        for right, said in pairs
        if wrong[right, said]
    )
    if not rows:
        return []
    return [Table(head=("right", "said", "examples"), rows=rows, num_text=2, caption="The most frequent confusions.")]
