"""Text classification: one label for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from edgesmith.data import Row
from edgesmith.errors import ArtifactError
from edgesmith.tasks.base import Arrays, Example, Metric, Prediction, TaskInput, as_example
from edgesmith.tasks.classes import CLASS_METRICS, class_logits, class_predictions, read_class, read_class_names
from edgesmith.tasks.columns import read_text
from edgesmith.tasks.folder import checked_columns, read_task_json
from edgesmith.tasks.text_task import TextTask
from edgesmith.tasks.tokenization import TextEncoder, TextSettings

__all__ = ["TextClassification"]


class TextClassification(TextTask):
    """One of a fixed set of labels for each text."""

    name: ClassVar[str] = "text-classification"
    model_class: ClassVar[str] = "AutoModelForSequenceClassification"
    output_names: ClassVar[tuple[str, ...]] = ("logits",)
    output_kind: ClassVar[Literal["logits", "embedding"]] = "logits"
    column_names: ClassVar[tuple[str, ...]] = ("text", "label", "text_pair")
    default_metric: ClassVar[str] = "accuracy"
    metrics: ClassVar[Mapping[str, Metric]] = CLASS_METRICS

    def __init__(self, encoder: TextEncoder, labels: Sequence[str], columns: Mapping[str, str] | None = None) -> None:
        self.encoder = encoder
        self.labels = tuple(labels)
        self._pair_is_asked = "text_pair" in (columns or {})
        self._columns = checked_columns(self.name, self.column_names, columns)

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
        target = read_class(row, self._columns["label"], self.labels) if labelled else None
        return Example(text, pair, target, row.line)

    def sequences(self, examples: Sequence[TaskInput]) -> list[tuple[str, str | None]]:
        """The texts, each with its pair."""
        return [(one.text, one.text_pair) for one in map(as_example, examples)]

    def vectors(self, outputs: Arrays, arrays: Arrays) -> NDArray[np.float32]:
        """The logits, float32 of shape [batch, num_labels]."""
        del arrays
        return class_logits(outputs, self.labels)

    def decode(self, outputs: Arrays, arrays: Arrays, examples: Sequence[TaskInput]) -> list[Prediction]:
        """One prediction an example: the likeliest label, its index, its score and all scores."""
        return class_predictions(self.vectors(outputs, arrays), self.labels, len(examples))


def _labels_of(path: Path) -> tuple[str, ...]:
    """The labels of a checkpoint's `config.json`, by index; see `read_class_names`.

    Raises:
        ArtifactError: Two labels share a name.
    """
    labels = tuple(read_class_names(path, TextClassification.name))
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ArtifactError(f"{path}: two labels are named {twice[0]!r}", mend="Give every label its own name.")
    return labels
