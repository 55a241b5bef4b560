"""How the model was made: what each step on the checkpoint did, how small it left it, and how training went."""

from __future__ import annotations

from collections.abc import Sequence

from bench.gates.verdict import show
from bench.report.blocks import Block, Cell, Figure, Items, Noted, Section, Table, Text, keep_filled
from bench.report.data import ReleaseReport
from bench.report.figures import MB, show_significant
from bench.report.making import LearningCurve, ModelStep
from bench.report.plots import plot_learning

__all__ = ["show_making"]

_MAX_ROWS = 12
"""Of a training's evaluations."""
_CHOSEN = (
    "Training rows that were held back chose the weights, so their figure flatters a little; "
    "the gates are judged on other rows."
)
_NEARER = " Among figures that differ by less than their noise, the weights nearer to the teacher's answers were kept."


def show_making(report: ReleaseReport) -> Section | None:
    """The steps on the checkpoint with their sizes, and a learning curve of each that trained."""
    if not report.steps:
        return None
    blocks: list[Block] = [*_steps(report.steps)]
    blocks += [Items(step.notes) for step in report.steps if step.notes]
    trained = [(step, step.curve) for step in report.steps if step.curve is not None and step.curve.metric_values]
    if trained:
        blocks.append(Text(f"{_CHOSEN}{_NEARER}" if any(_is_matched(curve) for _, curve in trained) else _CHOSEN))
    for step, curve in trained:
        caption = f"{step.name}: {curve.metric} of the model in training, and its losses, by update."
        blocks += [Figure(caption=caption, svg=plot_learning(curve)), _evaluations(curve)]
    return Section(title="How the model was made", blocks=tuple(blocks))


def _steps(steps: Sequence[ModelStep]) -> list[Block]:
    first = steps[0]
    first_macs = next((step.macs for step in steps if step.macs), None)
    rows: list[tuple[Cell | None, ...]] = [
        (
            step.name if step.name != "found" else "as it was given",
            step.summary or None,
            _of(f"{step.num_parameters:,}", step.num_parameters, first.num_parameters),
            _of(show(step.weights_bytes / MB), step.weights_bytes, first.weights_bytes),
            None if step.macs is None else _of(f"{step.macs / 1e6:,.1f}", step.macs, first_macs),
        )
        for step in steps
    ]
    head = ("step", "what it did", "parameters", "weights, MB", "million MACs a row")
    has_summary = any(step.summary for step in steps)
    table = keep_filled(head, rows, num_text=2 if has_summary else 1, is_stacked=True)
    assert table is not None  # every step has its parameters
    said = "Weights as the checkpoint stores them, before any target's format and quantization."
    if len(steps) > 1:
        said += " Small print: the share of the first figure in the column."
    counted = list(dict.fromkeys(step.macs_of for step in steps if step.macs_of))
    if counted:
        said += f" MACs: multiply-accumulates of {' and of '.join(counted)}."
    return [table, Text(said)]


def _of(text: str, value: int, first: int | None) -> Cell:
    """A figure, with its share of the first one where it is another."""
    return text if not first or value == first else Noted(text, f"{100 * value / first:.1f} %")


def _is_matched(curve: LearningCurve) -> bool:
    """Whether an earlier or better evaluation than the kept one was passed over."""
    first = (max if curve.higher_is_better else min)(curve.metric_values)
    return curve.metric_updates[curve.metric_values.index(first)] != curve.best_update


def _evaluations(curve: LearningCurve) -> Table:
    losses = {name: dict(zip(curve.updates, values, strict=True)) for name, values in curve.losses.items()}
    points = list(zip(curve.metric_updates, curve.metric_values, strict=True))
    rows: list[tuple[Cell | None, ...]] = [
        (
            Noted(f"{update:,}", "kept") if update == curve.best_update else f"{update:,}",
            show_significant(value),
            *(None if update not in found else show_significant(found[update], 3) for found in losses.values()),
        )
        for update, value in _spread(points, curve.best_update)
    ]
    table = keep_filled(("update", curve.metric, *losses), rows, num_text=0)
    assert table is not None  # every row has its metric
    return table


def _spread(points: Sequence[tuple[int, float]], best_update: int) -> list[tuple[int, float]]:
    """At most so many, evenly, with the first, the best and the last."""
    if len(points) <= _MAX_ROWS:
        return list(points)
    picked = {index * (len(points) - 1) // (_MAX_ROWS - 2) for index in range(_MAX_ROWS - 1)}
    picked |= {index for index, (update, _) in enumerate(points) if update == best_update}
    return [points[index] for index in sorted(picked)]
