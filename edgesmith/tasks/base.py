"""What a task is: how raw rows become arrays, how a model's outputs become predictions, and its metrics.

A task is everything about a model that is not its graph: the same object prepares the rows that calibrate,
verify, score and time an artifact, and those that the server answers, so none of them can differ. It is
loaded from a folder without torch and transformers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgesmith.data import Row, read_rows, sample_rows
from edgesmith.errors import DataError, UsageError

__all__ = ["Array", "Arrays", "Example", "Metric", "Picture", "Prediction", "Task", "TaskInput", "sample_texts"]

Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = Mapping[str, Array]
Picture: TypeAlias = bytes | bytearray | memoryview
"""A picture's whole file."""
Prediction: TypeAlias = dict[str, Any]
"""What a task says about one example, JSON-able: `{"label": …, "score": …, "scores": {…}}` of a classifier,
`{"embedding": […]}` of an encoder, with `embedding_pair` and `similarity` for a pair."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row, parsed.

    Attributes:
        text: The (first) text; of a picture, what its row calls it, for messages.
        text_pair: The second text, if the row has two.
        target: What the row says is right: a label's index, a score, or entities as JSON, `[[start, end, kind], …]`;
            None if the row was read unlabelled.
        line: Where it stood in its file; None if it came from elsewhere.
        image: Of a task on pictures: the file, or its whole content.
        words: Of a row that comes in words: these; `text` is them with spaces between.
    """

    text: str
    text_pair: str | None = None
    target: int | float | str | None = None
    line: int | None = None
    image: Path | Picture | None = None
    words: tuple[str, ...] | None = None


TaskInput: TypeAlias = Example | str | tuple[str, str] | Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One figure over many predictions.

    Attributes:
        name: As written in recipes.
        higher_is_better: Which way is good.
        compute: Predictions and examples, in the same order → the figure.
        per_example: Predictions and examples → float64 of shape [num_examples] whose mean is the figure, for
            paired comparison of two artifacts; None where no such decomposition exists.
        ratio: Predictions and examples → float64 of shape [num_examples, 2]: the figure is the sum of the first
            column over that of the second, 1 where that is 0; None where no such decomposition exists.
    """

    name: str
    higher_is_better: bool
    compute: Callable[[Sequence[Prediction], Sequence[Example]], float]
    per_example: Callable[[Sequence[Prediction], Sequence[Example]], NDArray[np.float64]] | None = None
    ratio: Callable[[Sequence[Prediction], Sequence[Example]], NDArray[np.float64]] | None = None


class Task(ABC):
    """Base of all tasks.

    Attributes:
        name: As in recipes and on the model hub, such as `text-classification`.
        model_class: The transformers auto class that loads a checkpoint of this task, as a string.
        output_names: The model outputs that the task needs; an exported graph has these, in this order.
        output_kind: `logits` are compared by top-1 agreement and divergence, an `embedding` by cosine.
        column_names: The columns a row of an evaluation file has, required ones first.
        default_metric: Key of `metrics`.
        metrics: All that `compute` on this task's predictions.
    """

    name: ClassVar[str]
    model_class: ClassVar[str]
    output_names: ClassVar[tuple[str, ...]]
    output_kind: ClassVar[Literal["logits", "embedding"]]
    column_names: ClassVar[tuple[str, ...]]
    default_metric: ClassVar[str]
    metrics: ClassVar[Mapping[str, Metric]]

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, *, max_length: int | None = None, columns: Mapping[str, str] | None = None) -> Self:
        """Read the task's settings from an artifact or a Hugging Face checkpoint folder.

        Args:
            folder: Holds `tokenizer.json`, `tokenizer_config.json`, `config.json` and, in an artifact,
                `task.json`, which then decides.
            max_length: Longest sequence in tokens, special tokens included; by default the smallest of the
                limits that the folder states. Pictures have none.
            columns: Where a row has what, `{"text": "headline"}`; an unnamed column keeps its own name.

        Raises:
            ArtifactError: A file is missing or unreadable, or it was made for another task.
            UnsupportedError: A kind of model that this task does not handle.
            UsageError: `max_length` is above the model's limit, or `columns` names an unknown column.
        """

    @property
    @abstractmethod
    def input_names(self) -> tuple[str, ...]:
        """Names of the arrays that `encode` returns, in the model's order."""

    @property
    @abstractmethod
    def max_length(self) -> int | None:
        """Longest sequence in tokens; None if the model has no limit, or no sequences."""

    @abstractmethod
    def runtime_config(self) -> dict[str, Any]:
        """The content of an artifact's `task.json`: all that `load` needs beside the tokenizer's files."""

    @abstractmethod
    def parse(self, row: Row, *, labelled: bool = True) -> Example:
        """Turn a row of a data file into an example.

        Args:
            row: As read by `edgesmith.data`.
            labelled: Whether the row must say what is right. With False (calibration, verification,
                prediction) the label is neither asked for nor looked at.

        Raises:
            DataError: A column is missing or has the wrong type, or the label is unknown to the model; the
                message names the file and the line.
        """

    @abstractmethod
    def encode(self, examples: Sequence[TaskInput]) -> dict[str, Array]:
        """Turn examples into model inputs: texts padded to the longest and truncated to `max_length`.

        Args:
            examples: Examples, plain texts or pairs of texts, or pictures' files.

        Returns:
            An array for every one of `input_names`: of texts int64 of shape [batch, length], of pictures float32 of
            shape [batch, channels, height, width]. An embedding task given pairs has two rows for each.
        """

    @abstractmethod
    def vectors(self, outputs: Arrays, arrays: Arrays) -> NDArray[np.float32]:
        """Reduce a model's outputs to one vector for each encoded row: its logits, or its embedding.

        Positions of padding have no part in it.

        Args:
            outputs: What the engine returned, by name.
            arrays: What it was given, from `encode`.

        Returns:
            float32 of shape [batch, num_labels] or [batch, hidden].
        """

    def compared(self, outputs: Arrays, arrays: Arrays) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """What two engines are compared on: `vectors`, or finer ones where a row has several answers.

        Args:
            outputs: What the engine returned, by name.
            arrays: What it was given, from `encode`.

        Returns:
            float32 of shape [n, num_labels] or [n, hidden], and the encoded row that each is of, [n] and ascending.
        """
        vectors = self.vectors(outputs, arrays)
        return vectors, np.arange(len(vectors))

    @abstractmethod
    def decode(self, outputs: Arrays, arrays: Arrays, examples: Sequence[TaskInput]) -> list[Prediction]:
        """Turn a model's outputs into one prediction for each example.

        Args:
            outputs: What the engine returned, by name.
            arrays: What it was given: `encode(examples)`.
            examples: What was encoded.
        """

    def read_examples(
        self, path: Path, *, num: int | None = None, seed: int = 0, labelled: bool = True
    ) -> list[Example]:
        """Read and parse a data file, whole or a seeded sample of it.

        Raises:
            DataError: The file is empty, damaged, or has a row that does not fit the task.
        """
        rows: Iterable[Row] = read_rows(path) if num is None else sample_rows(path, num, seed)
        examples = [self.parse(row, labelled=labelled) for row in rows]
        if not examples:
            raise DataError(f"{path} holds no rows", mend="Give a JSONL, CSV or TSV file with rows in it.")
        return examples

    def sample_examples(self) -> list[Example]:
        """Real English sentences of varied length (or pictures), for verification where the user gives no data."""
        return [Example(text) for text in sample_texts()]

    def read_argument(self, argument: str) -> TaskInput:
        """What somebody typed, as an input: a text, or of a task on pictures the path of one.

        Raises:
            UsageError: There is no such file.
        """
        return argument

    @classmethod
    def metric(cls, name: str | None = None) -> Metric:
        """The metric of that name, or the default one.

        Raises:
            UsageError: The task has no such metric.
        """
        wanted = cls.default_metric if name is None else name
        if wanted not in cls.metrics:
            known = ", ".join(sorted(cls.metrics))
            raise UsageError(f"{cls.name} has no metric {wanted!r}", mend=f"Use one of: {known}.")
        return cls.metrics[wanted]


def as_example(given: TaskInput) -> Example:
    """A plain text or a pair of texts as an unlabelled example.

    Raises:
        UsageError: It is a picture.
    """
    match given:
        case Example() if given.image is None:
            return given
        case str():
            return Example(given)
        case (str(first), str(second)):
            return Example(first, second)
        case _:
            raise UsageError("a picture was given to a task on texts", mend="Give a text.")


@cache
def sample_texts() -> tuple[str, ...]:
    """The packaged sample sentences, in order."""
    text = resources.files("edgesmith.tasks").joinpath("sample_texts.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line)
