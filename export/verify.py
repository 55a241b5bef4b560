"""Compare an artifact with its torch reference on real rows; a breach of the tolerance is an error."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import DataError, VerificationError
from edgesmith.files import atomic_write
from edgesmith.progress import SILENT, Progress
from edgesmith.tasks.base import Task
from export.batches import Batch
from export.divergence import cosine, kl_divergence, max_abs_difference, same_top_label
from export.tolerance import Tolerance, tolerance_for
from serve.runtime import Engine

__all__ = ["Breach", "Verification", "compare_outputs", "verify_outputs"]

_SHOWN_TEXT = 80  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """A figure beyond its limit.

    Attributes:
        metric: Name of the figure.
        value: What was measured.
        limit: What is allowed.
        row: Index of the worst row, in the order of the batches.
        text: The start of its text.
    """

    metric: str
    value: float
    limit: float
    row: int
    text: str

    def __str__(self) -> str:
        way = "below" if self.metric.startswith(("cosine", "top1")) else "above"
        return (
            f"{self.metric} is {self.value:.6g}, {way} the limit {self.limit:g}; worst in row {self.row}: {self.text!r}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How far a candidate is from its reference.

    Attributes:
        reference: Name of the reference engine.
        candidate: Name of the candidate's.
        task: Name of the task.
        precision: Whose limits were applied.
        num_rows: Rows compared.
        shapes: Of every call's inputs: batch and length, or batch, channels, height and width.
        metrics: Figures over all rows.
        rows: Figures of each row, in order.
        limits: What the figures were held against.
        breaches: Figures beyond their limits; none if the artifact is verified.
    """

    reference: str
    candidate: str
    task: str
    precision: str
    num_rows: int
    shapes: tuple[tuple[int, ...], ...]
    metrics: Mapping[str, float]
    rows: Mapping[str, tuple[float, ...]]
    limits: Tolerance
    breaches: tuple[Breach, ...]

    @property
    def passed(self) -> bool:
        """Whether no figure is beyond its limit."""
        return not self.breaches

    def to_json(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return {
            "verdict": "PASS" if self.passed else "FAIL",
            **asdict(self),
            "metrics": dict(self.metrics),
            "rows": {name: list(values) for name, values in self.rows.items()},
            "limits": {name: limit for name, limit in asdict(self.limits).items() if limit is not None},
        }

    def save(self, folder: Path) -> Path:
        """Write `verification.json` into `folder` and return its path."""
        path = folder / "verification.json"
        atomic_write(path, json.dumps(self.to_json(), indent=1, ensure_ascii=False, sort_keys=True) + "\n")
        return path


def verify_outputs(
    reference: Engine,
    candidate: Engine,
    batches: Iterable[Batch],
    *,
    task: Task,
    precision: str,
    tolerance: Tolerance | None = None,
    progress: Progress = SILENT,
) -> Verification:
    """Compare two engines on real rows and insist on the tolerance.

    Args:
        reference: The torch model.
        candidate: The artifact, opened as it will be served.
        batches: From `export.batches.make_batches`.
        task: Reduces outputs to one vector a row, without padding.
        precision: Of the candidate; chooses the limits.
        tolerance: Limits to apply instead.
        progress: Advanced once a batch.

    Returns:
        The figures, all within their limits.

    Raises:
        VerificationError: A figure is beyond its limit, or an output is not finite, missing or misshapen; the
            message names figure, value, limit and the worst row.
        DataError: There are no batches.
    """
    found = compare_outputs(
        reference, candidate, batches, task=task, precision=precision, tolerance=tolerance, progress=progress
    )
    if found.breaches:
        first, *more = found.breaches
        rest = "".join(f"\n  also {breach}" for breach in more)
        raise VerificationError(
            f"{found.candidate} differs from {found.reference} by more than {precision} explains: {first}{rest}",
            mend=_mend(precision),
        )
    return found


def compare_outputs(
    reference: Engine,
    candidate: Engine,
    batches: Iterable[Batch],
    *,
    task: Task,
    precision: str,
    tolerance: Tolerance | None = None,
    progress: Progress = SILENT,
) -> Verification:
    """Compare two engines and report; like `verify_outputs`, but figures beyond limits are only listed.

    Raises:
        VerificationError: An output is not finite, missing or misshapen, so that there are no figures.
        DataError: There are no batches.
    """
    limits = tolerance_for(precision) if tolerance is None else tolerance
    rows = _Rows(logits=task.output_kind == "logits", tie=limits.tie)
    for batch in progress.track(batches, "Verify"):
        _compare_batch(rows, task, batch, reference.run(batch.arrays), candidate.run(batch.arrays))
    if not rows.texts:
        raise DataError("there are no rows to verify on", mend="Give a data file with at least one row.")
    metrics = rows.summarize()
    return Verification(
        reference=reference.name,
        candidate=candidate.name,
        task=task.name,
        precision=precision,
        num_rows=len(rows.texts),
        shapes=tuple(rows.shapes),
        metrics=metrics,
        rows={name: tuple(np.concatenate(parts).tolist()) for name, parts in rows.figures.items()},
        limits=limits,
        breaches=tuple(_breaches(rows, metrics, limits)),
    )


class _Rows:
    """Figures of rows, gathered batch by batch."""

    def __init__(self, *, logits: bool, tie: float) -> None:
        self.tie = tie
        names = ("kl", "top1", "top1_decided") if logits else ("cosine",)
        self.figures: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ("max_abs", *names)}
        self.texts: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        self.total_abs = 0.0
        self.num_elements = 0
        self.largest = 0.0
        self.squared_gap = 0.0
        self.squared_reference = 0.0

    def summarize(self) -> dict[str, float]:
        """Reduce rows to one figure for each metric."""
        rows = {name: np.concatenate(parts) for name, parts in self.figures.items()}
        metrics = {
            "max_abs": float(rows["max_abs"].max()),
            "mean_abs": self.total_abs / max(self.num_elements, 1),
            "max_abs_scaled": float(rows["max_abs"].max()) / max(self.largest, 1.0),
            "relative_error": (self.squared_gap / self.squared_reference) ** 0.5 if self.squared_reference else 0.0,
        }
        if "kl" in rows:
            metrics |= {"kl_mean": float(rows["kl"].mean()), "kl_max": float(rows["kl"].max())}
            metrics["top1_agreement"] = float(rows["top1"].mean())
            metrics["top1_agreement_decided"] = float(rows["top1_decided"].mean())
        else:
            metrics |= {"cosine_mean": float(rows["cosine"].mean()), "cosine_min": float(rows["cosine"].min())}
        return metrics


def _compare_batch(
    rows: _Rows,
    task: Task,
    batch: Batch,
    expected: Mapping[str, NDArray[Any]],
    actual: Mapping[str, NDArray[Any]],
) -> None:
    """Add one batch's rows."""
    gaps = np.zeros(len(batch.texts))
    for name in task.output_names:
        want, have = _comparable(name, batch, expected[name], actual.get(name))
        gaps = np.maximum(gaps, max_abs_difference(want, have))
        kept = np.ones(want.shape, bool) if want.ndim != 3 else _tokens(batch, want)
        rows.total_abs += float(np.abs(want.astype(np.float64) - have)[kept].sum())
        rows.num_elements += int(kept.sum())
        rows.largest = max(rows.largest, float(np.abs(want).max(initial=0.0)))
    reference, owners = task.compared(expected, batch.arrays)
    candidate, _ = task.compared(actual, batch.arrays)
    _insist_finite(candidate, "the vector that the task makes of the outputs", batch)
    rows.squared_gap += float(((reference.astype(np.float64) - candidate) ** 2).sum())
    rows.squared_reference += float((reference.astype(np.float64) ** 2).sum())
    rows.figures["max_abs"].append(gaps)
    if "kl" in rows.figures:
        rows.figures["kl"].append(_means(kl_divergence(reference, candidate), owners))
        for name, tie in (("top1", 0.0), ("top1_decided", rows.tie)):
            rows.figures[name].append(_means(same_top_label(reference, candidate, tie=tie), owners))
    else:
        rows.figures["cosine"].append(_means(cosine(reference, candidate), owners))
    rows.texts.extend(batch.texts)
    rows.shapes.append(batch.shape)


def _means(values: NDArray[Any], owners: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean over the vectors of each row: of most tasks a row has one."""
    return np.asarray(np.bincount(owners, values) / np.bincount(owners), np.float64)


def _comparable(
    name: str, batch: Batch, expected: NDArray[Any], actual: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both arrays with padding positions set to 0.

    Raises:
        VerificationError: The candidate's is missing, misshapen or not finite.
    """
    where = f"on a batch of {_size(batch)}"
    if actual is None:
        raise VerificationError(f"the output {name!r} is missing")
    if actual.shape != expected.shape:
        raise VerificationError(
            f"the output {name!r} has shape {list(actual.shape)} {where}, the reference's {list(expected.shape)}",
            mend="An axis was frozen when the model was exported: export it again with free axes.",
        )
    if expected.ndim == 3:
        kept = _tokens(batch, expected)
        expected, actual = np.where(kept, expected, 0), np.where(kept, actual, 0)
    _insist_finite(expected, f"the reference's output {name!r}", batch)
    _insist_finite(actual, f"the output {name!r}", batch)
    return expected, actual


def _insist_finite(array: NDArray[Any], what: str, batch: Batch) -> None:
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise VerificationError(
            f"{what} is NaN or infinite on a batch of {_size(batch)}, first in row {row}: {_shown(batch.texts[row])!r}",
            mend="A weight is not finite or a range overflows; check the checkpoint and the calibration.",
        )


def _size(batch: Batch) -> str:
    return " × ".join(map(str, batch.shape)) + (" tokens" if len(batch.shape) == 2 else " values")


def _tokens(batch: Batch, like: NDArray[Any]) -> NDArray[np.bool_]:
    """True at the elements of real tokens in an array [batch, length, hidden]."""
    mask = batch.arrays.get("attention_mask")
    if mask is None or mask.shape != like.shape[:2]:
        return np.ones(like.shape, bool)
    return np.broadcast_to(mask[:, :, None] > 0, like.shape)


def _breaches(rows: _Rows, metrics: Mapping[str, float], limits: Tolerance) -> Iterable[Breach]:
    # metric → limit, the rows' figure that shows the worst row, whether more is worse
    judged: dict[str, tuple[float | None, str, bool]] = {
        "max_abs_scaled": (limits.max_abs_scaled, "max_abs", True),
        "relative_error": (limits.relative_error, "max_abs", True),
        "kl_mean": (limits.max_mean_kl, "kl", True),
        "kl_max": (limits.max_kl, "kl", True),
        "top1_agreement_decided": (limits.min_top1_agreement_decided, "top1_decided", False),
        "cosine_min": (limits.min_cosine, "cosine", False),
        "cosine_mean": (limits.min_mean_cosine, "cosine", False),
    }
    for metric, (limit, figure, more_is_worse) in judged.items():
        if limit is None or metric not in metrics:
            continue
        value = metrics[metric]
        if not (value <= limit if more_is_worse else value >= limit):  # so that NaN is a breach
            values = np.concatenate(rows.figures[figure])
            row = int(values.argmax() if more_is_worse else values.argmin())
            yield Breach(metric=metric, value=value, limit=limit, row=row, text=_shown(rows.texts[row]))


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_TEXT else text[: _SHOWN_TEXT - 1] + "…"


def _mend(precision: str) -> str:
    if precision == "fp32":
        return "The export is wrong for this model: do not ship it; report it with the checkpoint's config.json."
    return (
        "Set `smoothing: true`, raise `clusters` where they are set, keep layers in float with `exclude`, or calibrate "
        "on more real rows."
    )
