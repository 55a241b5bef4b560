"""A training by update: the metric that its weights were chosen by, over the losses that it learnt from."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.figures import show_significant
from bench.report.making import LearningCurve
from bench.report.plots.legend import LEGEND_LINE, break_legend, draw_legend
from bench.report.svg import Canvas, Frame, LinearScale, LogScale, Scale

__all__ = ["plot_learning"]

_METRIC = Frame(left=52.0, top=24, bottom=132)
_LOSS = Frame(left=52.0, top=168, bottom=268)
_COLOURS = ("k2", "k1", "k3", "k5", "k7", "k4", "k6")
_LOG_RATIO = 30.0
"""Between the largest value and the smallest; from it on the axis is logarithmic."""
_DECADES = 1e4


def plot_learning(curve: LearningCurve) -> str:
    """Draw the metric of every evaluation with the one whose weights were kept, and each part of the loss.

    Args:
        curve: With an evaluation at least.
    """
    end = max([*curve.updates, *curve.metric_updates, 1])
    x = LinearScale(0, end, _METRIC.left, _METRIC.right)
    names = [name for name, values in curve.losses.items() if values]
    styles = dict(zip(names, ("k0", *_COLOURS * len(names)), strict=False))
    rows = break_legend([(name if name != "loss" else "loss, weighted sum", styles[name]) for name in names])
    height = _LOSS.bottom + 46 + LEGEND_LINE * len(rows) if rows else _METRIC.bottom + 42
    canvas = Canvas(height, _spoken(curve))
    _draw_metric(canvas, curve, x, is_alone=not rows)
    if rows:
        _draw_losses(canvas, curve, x, styles)
        draw_legend(canvas, rows, _LOSS.bottom + 52)
    return canvas.to_svg()


def _draw_metric(canvas: Canvas, curve: LearningCurve, x: LinearScale, *, is_alone: bool) -> None:
    values = [*curve.metric_values, *([] if curve.teacher_metric is None else [curve.teacher_metric])]
    y = _metric_scale(min(values), max(values))
    if is_alone:
        canvas.axes(x, y, _METRIC, x_title="update", y_title=curve.metric)
    else:  # the axis below is the losses' too
        for value, name in y.ticks():
            canvas.line(_METRIC.left, y(value), _METRIC.right, y(value), "grid")
            canvas.text(_METRIC.left - 6, y(value) + 4, name, "end")
        canvas.text(2, _METRIC.top - 11, curve.metric, name="label title")
    places = [(x(update), y(value)) for update, value in _metric_points(curve)]
    if curve.teacher_metric is not None:
        ends = [(end, y(curve.teacher_metric)) for end in (_METRIC.left, _METRIC.right)]
        canvas.path(ends, "series b thin")
    canvas.path(places, "series a")
    for (update, value), (at_x, at_y) in zip(_metric_points(curve), places, strict=True):
        canvas.circle(at_x, at_y, 2.6, "dot a", f"update {update:,}: {curve.metric} {show_significant(value)}")
    best = next((one for one in _metric_points(curve) if one[0] == curve.best_update), None)
    if best is not None:
        at_x, at_y = x(best[0]), y(best[1])
        canvas.circle(at_x, at_y, 5, "ring a", f"kept: update {best[0]:,}, {show_significant(best[1])}")
        _label(canvas, f"kept {show_significant(best[1])}", _around(at_x, at_y), "label strong a")
    if curve.teacher_metric is not None:
        at_y = y(curve.teacher_metric)
        spots = [
            (at_x, at_y + shift, anchor)
            for at_x, anchor in (
                (_METRIC.right - 2, "end"),
                (_METRIC.left + 4, "start"),
                ((_METRIC.left + _METRIC.right) / 2, "middle"),
            )
            for shift in (-5, 14)
        ]
        _label(canvas, f"teacher {show_significant(curve.teacher_metric)}", spots, "label strong b")


def _metric_scale(low: float, high: float) -> Scale:
    """With room for labels above and below; logarithmic where it fell far, as a perplexity does."""
    if low > 0 and high / low > _LOG_RATIO:
        room = (high / low) ** 0.15
        return LogScale(low / room, high * room, _METRIC.bottom, _METRIC.top, num_ticks=5)
    pad = 0.18 * (high - low) or 0.05 * abs(high) or 1.0
    return LinearScale(low - pad, high + pad, _METRIC.bottom, _METRIC.top, num_ticks=4)


def _label(canvas: Canvas, text: str, places: Sequence[tuple[float, float, str]], name: str) -> None:
    canvas.label(text, places, name, _METRIC)


def _around(x: float, y: float) -> list[tuple[float, float, str]]:
    """Places for the label of a dot."""
    anchors = ((0.0, "middle"), (9.0, "start"), (-9.0, "end"))
    near = [(x + shift, y + below, anchor) for below in (-9.0, 18.0) for shift, anchor in anchors]
    return [*near, *((x + shift, y + far, anchor) for far in (-25.0, 34.0, -41.0) for shift, anchor in anchors)]


def _metric_points(curve: LearningCurve) -> list[tuple[int, float]]:
    return list(zip(curve.metric_updates, curve.metric_values, strict=True))


def _draw_losses(canvas: Canvas, curve: LearningCurve, x: LinearScale, styles: dict[str, str]) -> None:
    values = [value for name in styles for value in curve.losses[name]]
    positive = [value for value in values if value > 0]
    y: Scale
    if positive and max(positive) / min(positive) > _LOG_RATIO and min(values) >= 0:
        high = max(positive)
        y = LogScale(max(min(positive), high / _DECADES) / 1.2, high * 1.2, _LOSS.bottom, _LOSS.top, num_ticks=5)
    else:
        y = LinearScale(min([*values, 0.0]), max([*values, 1e-9]) * 1.05, _LOSS.bottom, _LOSS.top, num_ticks=4)
    canvas.axes(x, y, _LOSS, x_title="update", y_title="loss of an item")
    for name in reversed(styles):  # the sum last, above its parts
        points = [(x(update), y(value)) for update, value in zip(curve.updates, curve.losses[name], strict=True)]
        canvas.path(points, f"series {styles[name]}{'' if name == 'loss' else ' thin'}")
    if curve.best_update:
        canvas.line(x(curve.best_update), _LOSS.top, x(curve.best_update), _LOSS.bottom, "axis kept")


def _spoken(curve: LearningCurve) -> str:
    points = _metric_points(curve)
    kept = next((value for update, value in points if update == curve.best_update), points[-1][1])
    teacher = "" if curve.teacher_metric is None else f", the teacher's {show_significant(curve.teacher_metric)}"
    return (
        f"Training: {curve.metric} from {show_significant(points[0][1])} to {show_significant(kept)} "
        f"at update {curve.best_update:,} of {max(curve.metric_updates):,}{teacher}"
    )
