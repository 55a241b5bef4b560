"""Token classification: a tag for every word of a text, and the entities that they spell."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from edgesmith.data import Row
from edgesmith.errors import ArtifactError, DataError
from edgesmith.tasks import scoring
from edgesmith.tasks.base import Arrays, Example, Metric, Prediction, TaskInput, as_example
from edgesmith.tasks.entities import OUTSIDE, Span, entity_counts, join_tags, kind_of, tag_words
from edgesmith.tasks.folder import checked_columns, read_json_object, read_task_json
from edgesmith.tasks.tagged_rows import read_tagged
from edgesmith.tasks.text_task import TextTask
from edgesmith.tasks.tokenization import TextEncoder, TextSettings

__all__ = ["IGNORED", "TokenClassification"]

IGNORED = -100
"""The target of a token that is not the first of its word: losses leave it out."""


def _spans(examples: Sequence[Example]) -> list[list[Span]]:
    """The right entities of each example."""
    if not examples:
        raise DataError("no examples to score", mend="Give a data file with labelled rows.")
    found: list[list[Span]] = []
    for example in examples:
        if not isinstance(example.target, str):
            raise DataError("an example has no entities to score against", mend="Read the rows as labelled ones.")
        found.append([(start, end, kind) for start, end, kind in json.loads(example.target)])
    return found


def _entity_terms(predictions: Sequence[Prediction], examples: Sequence[Example]) -> NDArray[np.float64]:
    said = [[(one["start"], one["end"], one["label"]) for one in answer["entities"]] for answer in predictions]
    return np.array(entity_counts(_spans(examples), said), np.float64)


def _token_terms(predictions: Sequence[Prediction], examples: Sequence[Example]) -> NDArray[np.float64]:
    terms = []
    for answer, spans in zip(predictions, _spans(examples), strict=True):
        tags = tag_words([(start, end) for start, end, _ in answer["words"]], spans)
        right = sum(_same(tag, said) for tag, (_, _, said) in zip(tags, answer["words"], strict=True))
        terms.append((right, len(tags)))
    return np.array(terms, np.float64)


def _metric(name: str, terms: Callable[[Sequence[Prediction], Sequence[Example]], NDArray[np.float64]]) -> Metric:
    def compute(predictions: Sequence[Prediction], examples: Sequence[Example]) -> float:
        return scoring.ratio_of_sums(terms(predictions, examples))

    return Metric(name=name, higher_is_better=True, compute=compute, ratio=terms)


def _same(tag: str, said: str) -> bool:
    """Whether two tags are the same; a model without `B-` and `I-` says the kind alone."""
    return tag == said or (said != OUTSIDE and kind_of(said)[1] == said and tag != OUTSIDE and kind_of(tag)[1] == said)


class TokenClassification(TextTask):
    """A tag for each word, from the first token of the word; entities are runs of tagged words.

    Attributes:
        tags: The model's, by index, such as `O`, `B-PER`, `I-PER`.
    """

    name: ClassVar[str] = "token-classification"
    model_class: ClassVar[str] = "AutoModelForTokenClassification"
    output_names: ClassVar[tuple[str, ...]] = ("logits",)
    output_kind: ClassVar[Literal["logits", "embedding"]] = "logits"
    column_names: ClassVar[tuple[str, ...]] = ("tokens", "labels", "text", "entities")
    default_metric: ClassVar[str] = "entity_f1"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "entity_f1": _metric("entity_f1", _entity_terms),
        "token_accuracy": _metric("token_accuracy", _token_terms),
    }

    def __init__(self, encoder: TextEncoder, tags: Sequence[str], columns: Mapping[str, str] | None = None) -> None:
        self.encoder = encoder
        self.tags = tuple(tags)
        self._columns = checked_columns(self.name, self.column_names, columns)
        self._codes = {tag: index for index, tag in enumerate(self.tags)}

    @classmethod
    def load(cls, folder: Path, *, max_length: int | None = None, columns: Mapping[str, str] | None = None) -> Self:
        """Read tokenizer and tags; see `Task.load`."""
        stored = read_task_json(folder, cls.name)
        if stored is None:
            return cls(TextEncoder.load(folder, max_length=max_length), _tags_of(folder / "config.json"), columns)
        tags = stored.get("tags")
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise ArtifactError(f"{folder / 'task.json'}: `tags` is not a list of names")
        settings = TextSettings.from_json(stored.get("text"), folder / "task.json")
        return cls(TextEncoder.load(folder, max_length=max_length, settings=settings), tags, columns)

    def runtime_config(self) -> dict[str, Any]:
        """The content of an artifact's `task.json`."""
        text = self.encoder.settings.model_dump(mode="json")
        return {"schema_version": 1, "task": self.name, "tags": list(self.tags), "text": text}

    def parse(self, row: Row, *, labelled: bool = True) -> Example:
        """Turn a row into an example; see `Task.parse`.

        A row has words and their tags, `{"tokens": ["Ada", "wrote"], "labels": ["B-PER", "O"]}`, or a text and its
        entities, `{"text": "Ada wrote", "entities": [{"start": 0, "end": 3, "label": "PER"}]}`.
        """
        text, words, spans = read_tagged(row, self._columns, self.tags, labelled=labelled)
        target = None if spans is None else json.dumps(spans, ensure_ascii=False)
        return Example(text, None, target, row.line, words=words)

    def sequences(self, examples: Sequence[TaskInput]) -> list[tuple[str, str | None]]:
        """The texts."""
        return [(one.text, None) for one in map(as_example, examples)]

    def vectors(self, outputs: Arrays, arrays: Arrays) -> NDArray[np.float32]:
        """The mean logits of each row's tokens, float32 of shape [batch, num_tags]."""
        logits_NST = self._logits(outputs, arrays)
        kept_NS1 = np.asarray(arrays["attention_mask"])[:, :, None] > 0
        sums_NT = np.where(kept_NS1, logits_NST, 0).sum(axis=1)
        return np.asarray(sums_NT / np.maximum(kept_NS1.sum(axis=1), 1), np.float32)

    def compared(self, outputs: Arrays, arrays: Arrays) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The logits of every token that is no padding, of shape [tokens, num_tags], and the row of each."""
        kept_NS = np.asarray(arrays["attention_mask"]) > 0
        return self._logits(outputs, arrays)[kept_NS], np.nonzero(kept_NS)[0]

    def _logits(self, outputs: Arrays, arrays: Arrays) -> NDArray[np.float32]:
        logits_NST = np.asarray(outputs["logits"], np.float32)
        shape = (*np.shape(arrays["attention_mask"]), len(self.tags))
        if logits_NST.shape != shape:
            raise ArtifactError(
                f"the model gives logits of shape {list(logits_NST.shape)} for inputs of shape {list(shape[:2])} "
                f"and {len(self.tags)} tags"
            )
        return logits_NST

    def targets(self, examples: Sequence[Example], arrays: Arrays) -> NDArray[np.int64]:
        """What a model is trained on: the code of each word's tag at its first token, `IGNORED` at all others.

        Args:
            examples: Labelled ones.
            arrays: `encode(examples)`.

        Returns:
            int64 of shape [batch, length].
        """
        codes_NS = np.full(np.shape(arrays["attention_mask"]), IGNORED, np.int64)
        for row, (spans, placed) in enumerate(zip(_spans(examples), self._placed(examples, arrays), strict=True)):
            tags = tag_words([word for word, _ in placed], spans)
            for tag, (_, position) in zip(tags, placed, strict=True):
                if position is not None:
                    codes_NS[row, position] = self._codes.get(tag, self._codes.get(kind_of(tag)[1], 0))
        return codes_NS

    def decode(self, outputs: Arrays, arrays: Arrays, examples: Sequence[TaskInput]) -> list[Prediction]:
        """One prediction an example: `entities`, each with its characters, kind and score, and `words` with tags."""
        logits_NST = self._logits(outputs, arrays)
        if len(logits_NST) != len(examples):
            raise ValueError(f"{len(logits_NST)} rows of output for {len(examples)} examples")
        given = [as_example(one) for one in examples]
        rows = zip(given, logits_NST, self._placed(given, arrays), strict=True)
        return [self._answer(example.text, logits_ST, placed) for example, logits_ST, placed in rows]

    def _answer(
        self, text: str, logits_ST: NDArray[np.float32], placed: list[tuple[tuple[int, int], int | None]]
    ) -> Prediction:
        scores_ST = scoring.softmax(logits_ST)
        words = [word for word, _ in placed]
        # What was cut off because the text is too long belongs to no entity.
        best = [None if place is None else int(scores_ST[place].argmax()) for _, place in placed]
        sure = [0.0 if place is None else float(scores_ST[place].max()) for _, place in placed]
        tags = [OUTSIDE if index is None else self.tags[index] for index in best]
        entities = []
        for first, last, kind in join_tags(words, tags):
            start, end = words[first][0], words[last - 1][1]
            score = sum(sure[first:last]) / (last - first)
            entities.append({"start": start, "end": end, "label": kind, "score": score, "text": text[start:end]})
        tagged = [[start, end, tag] for (start, end), tag in zip(words, tags, strict=True)]
        return {"entities": entities, "words": tagged}

    def _placed(self, examples: Sequence[Example], arrays: Arrays) -> list[list[tuple[tuple[int, int], int | None]]]:
        """Each example's words as ranges of characters, each with the position of its first token in the arrays.

        Words are the row's where it has some, else the tokenizer's.
        """
        found = []
        encoded = self.encoder.locate([example.text for example in examples])
        for example, tokens, mask_S in zip(examples, encoded, np.asarray(arrays["attention_mask"]), strict=True):
            # The tokens stand where the mask is 1, on whichever side and however wide the padding is.
            positions = np.flatnonzero(mask_S).tolist()
            real = [(*token, position) for token, position in zip(tokens, positions, strict=False)]
            found.append(_words_of_row(example, real) if example.words is not None else _words_of_tokenizer(real))
        return found


def _words_of_row(
    example: Example, tokens: Sequence[tuple[int | None, int, int, int]]
) -> list[tuple[tuple[int, int], int | None]]:
    placed: list[tuple[tuple[int, int], int | None]] = []
    start, waiting = 0, [token for token in tokens if token[0] is not None]
    for word in example.words or ():
        end = start + len(word)
        first = next((position for _, begin, stop, position in waiting if begin < end and stop > start), None)
        placed.append(((start, end), first))
        waiting = [token for token in waiting if token[1] >= end]
        start = end + 1
    return placed


def _words_of_tokenizer(
    tokens: Sequence[tuple[int | None, int, int, int]],
) -> list[tuple[tuple[int, int], int | None]]:
    words: dict[int, tuple[int, int, int]] = {}
    for word, start, end, position in tokens:
        if word is not None and end > start:
            begin, _, first = words.get(word, (start, end, position))
            words[word] = begin, end, first
    return [((begin, end), first) for begin, end, first in words.values()]


def _tags_of(path: Path) -> tuple[str, ...]:
    """The tags of a checkpoint's `config.json`, by index.

    Raises:
        ArtifactError: There are none, or their indices are not 0, 1, 2 …
    """
    named = read_json_object(path).get("id2label")
    if not isinstance(named, dict) or sorted(named) != sorted(str(index) for index in range(len(named))) or not named:
        raise ArtifactError(
            f"{path}: `id2label` does not name the tags 0, 1, 2 …",
            mend="Number the tags from 0 without gaps, as the rows of the classifier are.",
        )
    return tuple(str(named[str(index)]) for index in range(len(named)))
