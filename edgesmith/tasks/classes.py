"""What all classifiers share: a row's label, the metrics, and from logits to a label with its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgesmith.data import Row
from edgesmith.errors import ArtifactError, DataError, UnsupportedError
from edgesmith.tasks import scoring
from edgesmith.tasks.base import Arrays, Example, Metric, Prediction
from edgesmith.tasks.folder import read_json_object
from edgesmith.tasks.suggest import nearest

__all__ = ["CLASS_METRICS", "class_logits", "class_predictions", "read_class", "read_class_names"]


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


_MOST_CLASSES = 1 << 20

CLASS_METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="accuracy", higher_is_better=True, compute=_accuracy, per_example=_accuracy_terms),
        Metric(name="f1_macro", higher_is_better=True, compute=_over_codes(scoring.f1_macro)),
        Metric(name="precision_macro", higher_is_better=True, compute=_over_codes(scoring.precision_macro)),
        Metric(name="recall_macro", higher_is_better=True, compute=_over_codes(scoring.recall_macro)),
        Metric(name="mcc", higher_is_better=True, compute=_over_codes(scoring.matthews)),
    )
}
"""Of a task that gives one of a fixed set of labels."""


def read_class_names(path: Path, task: str) -> list[str]:
    """What a checkpoint's `config.json` calls the classes, by index; two may share a name.

    Args:
        path: Of the file.
        task: Name of the task that the model is loaded for.

    Raises:
        ArtifactError: Indices are not 0, 1, 2 …, or there is no such number of classes.
        UnsupportedError: The model gives a score or several labels at once.
    """
    config = read_json_object(path)
    named = config.get("id2label")
    if not isinstance(named, dict) or not named:
        num_labels = config.get("num_labels", 2)
        if type(num_labels) is not int or not 1 <= num_labels <= _MOST_CLASSES:
            raise ArtifactError(f"{path}: num_labels is {num_labels!r}", mend="Name the labels in id2label.")
        named = {str(index): f"LABEL_{index}" for index in range(num_labels)}
    if sorted(named) != sorted(map(str, range(len(named)))):
        raise ArtifactError(
            f"{path}: the indices of id2label are {_list_labels(sorted(named))}, not 0 to {len(named) - 1}",
            mend="Number the labels from 0 without gaps, as the rows of the classifier are.",
        )
    problem = config.get("problem_type") or ("regression" if len(named) == 1 else "single_label_classification")
    if problem != "single_label_classification":
        raise UnsupportedError(
            f"{path}: is a model for {str(problem).replace('_', ' ')} with {len(named)} output(s); "
            f"{task} handles models that give one of two or more labels"
        )
    return [str(named[str(index)]) for index in range(len(named))]


def read_class(row: Row, column: str, labels: Sequence[str]) -> int:
    """The index of the label that a row's column names.

    Args:
        row: Of a data file.
        column: Holds a label by its name or its index.
        labels: The model's, by index, each name once.

    Raises:
        DataError: There is no such column, or it holds no label that the model has.
    """
    if column not in row.values:
        raise DataError(
            f"{row.place}: has no column {column!r}; it has {', '.join(map(repr, row.values)) or 'none'}",
            mend=f"Add a column {column!r} with the right label, or map `label` to the column that has it.",
        )
    given = row.values[column]
    codes = {label: index for index, label in enumerate(labels)}
    match given:
        case bool() | None | float() | list() | dict():
            raise DataError(
                f"{row.place}: the label {given!r} is a {type(given).__name__}",
                mend=f"Give one label by name or by its index: {_list_labels(labels)}.",
            )
        case int():
            return _class_of_index(row, given, labels, codes)
    label = str(given)
    if label in codes:
        return codes[label]
    if label.strip().isascii() and label.strip().isdigit() and int(label) < len(labels):
        return int(label)
    raise DataError(
        f"{row.place}: the label {label!r} is unknown to the model, which has {_list_labels(labels)}",
        mend=f"Did you mean {nearest(label, labels)!r}? Otherwise use a model that was trained on it.",
    )


def _class_of_index(row: Row, index: int, labels: Sequence[str], codes: Mapping[str, int]) -> int:
    if codes.get(str(index), index) != index:
        raise DataError(
            f"{row.place}: the label {index} is both an index and the name of label {codes[str(index)]}",
            mend='Write names as strings: "label": "…".',
        )
    if not 0 <= index < len(labels):
        raise DataError(
            f"{row.place}: the label {index} is out of range: the model has the labels 0 to "
            f"{len(labels) - 1}, {_list_labels(labels)}",
            mend="Correct the label, or use a model that was trained on it.",
        )
    return index


def _list_labels(labels: Sequence[str], limit: int = 20) -> str:
    shown = ", ".join(map(repr, labels[:limit]))
    return shown if len(labels) <= limit else f"{shown} and {len(labels) - limit} more"


def class_logits(outputs: Arrays, labels: Sequence[str]) -> NDArray[np.float32]:
    """The logits, float32 of shape [batch, num_labels].

    Raises:
        ArtifactError: They are not one for each label.
    """
    logits = np.asarray(outputs["logits"], np.float32)
    if logits.ndim != 2 or logits.shape[1] != len(labels):
        raise ArtifactError(f"the model gives logits of shape {list(logits.shape)}, but there are {len(labels)} labels")
    return logits


def class_predictions(logits_NL: NDArray[np.float32], labels: Sequence[str], num_examples: int) -> list[Prediction]:
    """One prediction an example: the likeliest label, its index, its score and all scores."""
    scores_NL = scoring.softmax(logits_NL)
    if len(scores_NL) != num_examples:
        raise ValueError(f"{len(scores_NL)} rows of output for {num_examples} examples")
    best = scores_NL.argmax(axis=1)
    return [
        {
            "label": labels[index],
            "index": int(index),
            "score": float(scores[index]),
            "scores": dict(zip(labels, map(float, scores), strict=True)),
        }
        for index, scores in zip(best, scores_NL, strict=True)
    ]
