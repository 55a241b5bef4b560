"""Text classification: one label for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from edgesmith.data import Row
from edgesmith.errors import ArtifactError, DataError, UnsupportedError
from edgesmith.tasks import scoring
from edgesmith.tasks.base import Arrays, Example, Metric, Prediction, TaskInput, as_example
from edgesmith.tasks.columns import read_text
from edgesmith.tasks.folder import checked_columns, read_json_object, read_task_json
from edgesmith.tasks.suggest import nearest
from edgesmith.tasks.text_task import TextTask
from edgesmith.tasks.tokenization import TextEncoder, TextSettings

__all__ = ["TextClassification"]


def _codes(
    predictions: Sequence[Prediction], examples: Sequence[Example]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Targets and predicted labels as indices."""
    if len(predictions) != len(examples):
        raise ValueError(f"{len(predictions)} predictions for {len(examples)} examples")
    if not examples:
        raise DataError("no examples to score", mend="Give a data file with labelled rows.")
    targets = [example.target for example in examples]
    if any(target is None for target in targets):
        raise DataError("an example has no label to score against", mend="Read the rows as labelled ones.")
    return np.array(targets, np.int64), np.array([one["index"] for one in predictions], np.int64)


def _accuracy_terms(predictions: Sequence[Prediction], examples: Sequence[Example]) -> NDArray[np.float64]:
    targets, predicted = _codes(predictions, examples)
    return np.asarray(targets == predicted, np.float64)


def _accuracy(predictions: Sequence[Prediction], examples: Sequence[Example]) -> float:
    return float(_accuracy_terms(predictions, examples).mean())


def _over_codes(
    kernel: Callable[[NDArray[np.int64], NDArray[np.int64]], float],
) -> Callable[[Sequence[Prediction], Sequence[Example]], float]:
    return lambda predictions, examples: kernel(*_codes(predictions, examples))


class TextClassification(TextTask):
    """One of a fixed set of labels for each text."""

    name: ClassVar[str] = "text-classification"
    model_class: ClassVar[str] = "AutoModelForSequenceClassification"
    output_names: ClassVar[tuple[str, ...]] = ("logits",)
    output_kind: ClassVar[Literal["logits", "embedding"]] = "logits"
    column_names: ClassVar[tuple[str, ...]] = ("text", "label", "text_pair")
    default_metric: ClassVar[str] = "accuracy"
    metrics: ClassVar[Mapping[str, Metric]] = {
        metric.name: metric
        for metric in (
            Metric(name="accuracy", higher_is_better=True, compute=_accuracy, per_example=_accuracy_terms),
            Metric(name="f1_macro", higher_is_better=True, compute=_over_codes(scoring.f1_macro)),
            Metric(name="precision_macro", higher_is_better=True, compute=_over_codes(scoring.precision_macro)),
            Metric(name="recall_macro", higher_is_better=True, compute=_over_codes(scoring.recall_macro)),
            Metric(name="mcc", higher_is_better=True, compute=_over_codes(scoring.matthews)),
        )
    }

    def __init__(self, encoder: TextEncoder, labels: Sequence[str], columns: Mapping[str, str] | None = None) -> None:
        self.encoder = encoder
        self.labels = tuple(labels)
        self._pair_is_asked = "text_pair" in (columns or {})
        self._columns = checked_columns(self.name, self.column_names, columns)
        self._codes = {label: index for index, label in enumerate(self.labels)}

    @classmethod
    def load(cls, folder: Path, *, max_length: int | None = None, columns: Mapping[str, str] | None = None) -> Self:
        """Read tokenizer and labels; see `Task.load`."""
        stored = read_task_json(folder, cls.name)
        if stored is None:
            found = _labels_of(folder / "config.json")
            return cls(TextEncoder.load(folder, max_length=max_length), found, columns)
        labels = stored.get("labels")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ArtifactError(f"{folder / 'task.json'}: `labels` is not a list of names")
        settings = TextSettings.from_json(stored.get("text"), folder / "task.json")
        return cls(TextEncoder.load(folder, max_length=max_length, settings=settings), labels, columns)

    def runtime_config(self) -> dict[str, Any]:
        """The content of an artifact's `task.json`."""
        text = self.encoder.settings.model_dump(mode="json")
        return {"schema_version": 1, "task": self.name, "labels": list(self.labels), "text": text}

    def parse(self, row: Row, *, labelled: bool = True) -> Example:
        """Turn a row into an example; see `Task.parse`. A `text_pair` is optional unless it was mapped."""
        text = read_text(row, self._columns["text"], "text")
        pair_column = self._columns["text_pair"]
        has_pair = self._pair_is_asked or pair_column in row.values
        pair = read_text(row, pair_column, "text_pair") if has_pair else None
        return Example(text, pair, self._target(row) if labelled else None, row.line)

    def _target(self, row: Row) -> int:
        column = self._columns["label"]
        if column not in row.values:
            raise DataError(
                f"{row.place}: has no column {column!r}; it has {', '.join(map(repr, row.values)) or 'none'}",
                mend=f"Add a column {column!r} with the right label, or map `label` to the column that has it.",
            )
        given = row.values[column]
        known = _list_labels(self.labels)
        match given:
            case bool() | None | float() | list() | dict():
                raise DataError(
                    f"{row.place}: the label {given!r} is a {type(given).__name__}",
                    mend=f"Give one label by name or by its index: {known}.",
                )
            case int():
                return self._target_of_index(row, given)
        label = str(given)
        if label in self._codes:
            return self._codes[label]
        if label.strip().isascii() and label.strip().isdigit() and int(label) < len(self.labels):
            return int(label)
        raise DataError(
            f"{row.place}: the label {label!r} is unknown to the model, which has {known}",
            mend=f"Did you mean {nearest(label, self.labels)!r}? Otherwise use a model that was trained on it.",
        )

    def _target_of_index(self, row: Row, index: int) -> int:
        if self._codes.get(str(index), index) != index:
            raise DataError(
                f"{row.place}: the label {index} is both an index and the name of label {self._codes[str(index)]}",
                mend='Write names as strings: "label": "…".',
            )
        if not 0 <= index < len(self.labels):
            raise DataError(
                f"{row.place}: the label {index} is out of range: the model has the labels 0 to "
                f"{len(self.labels) - 1}, {_list_labels(self.labels)}",
                mend="Correct the label, or use a model that was trained on it.",
            )
        return index

    def sequences(self, examples: Sequence[TaskInput]) -> list[tuple[str, str | None]]:
        """The texts, each with its pair."""
        return [(one.text, one.text_pair) for one in map(as_example, examples)]

    def vectors(self, outputs: Arrays, arrays: Arrays) -> NDArray[np.float32]:
        """The logits, float32 of shape [batch, num_labels]."""
        del arrays
        logits = np.asarray(outputs["logits"], np.float32)
        if logits.ndim != 2 or logits.shape[1] != len(self.labels):
            raise ArtifactError(
                f"the model gives logits of shape {list(logits.shape)}, but there are {len(self.labels)} labels"
            )
        return logits

    def decode(self, outputs: Arrays, arrays: Arrays, examples: Sequence[TaskInput]) -> list[Prediction]:
        """One prediction an example: the likeliest label, its index, its score and all scores."""
        scores_NL = scoring.softmax(self.vectors(outputs, arrays))
        if len(scores_NL) != len(examples):
            raise ValueError(f"{len(scores_NL)} rows of output for {len(examples)} examples")
        best = scores_NL.argmax(axis=1)
        return [
            {
                "label": self.labels[index],
                "index": int(index),
                "score": float(scores[index]),
                "scores": dict(zip(self.labels, map(float, scores), strict=True)),
            }
            for index, scores in zip(best, scores_NL, strict=True)
        ]


def _list_labels(labels: Sequence[str], limit: int = 20) -> str:
    shown = ", ".join(map(repr, labels[:limit]))
    return shown if len(labels) <= limit else f"{shown} and {len(labels) - limit} more"


def _labels_of(path: Path) -> tuple[str, ...]:
    """The labels of a checkpoint's `config.json`, by index.

    Raises:
        ArtifactError: Indices are not 0, 1, 2 …, or two labels share a name.
        UnsupportedError: The model gives a score or several labels at once.
    """
    config = read_json_object(path)
    named = config.get("id2label")
    if not isinstance(named, dict) or not named:
        num_labels = config.get("num_labels", 2)
        named = {str(index): f"LABEL_{index}" for index in range(num_labels)}
    if sorted(named) != sorted(str(index) for index in range(len(named))):
        raise ArtifactError(
            f"{path}: the indices of id2label are {', '.join(sorted(named))}, not 0 to {len(named) - 1}",
            mend="Number the labels from 0 without gaps, as the rows of the classifier are.",
        )
    labels = tuple(str(named[str(index)]) for index in range(len(named)))
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ArtifactError(f"{path}: two labels are named {twice[0]!r}", mend="Give every label its own name.")
    problem = config.get("problem_type") or ("regression" if len(labels) == 1 else "single_label_classification")
    if problem != "single_label_classification":
        raise UnsupportedError(
            f"{path}: is a model for {str(problem).replace('_', ' ')} with {len(labels)} output(s); "
            "text-classification handles models that give one of two or more labels"
        )
    return labels
