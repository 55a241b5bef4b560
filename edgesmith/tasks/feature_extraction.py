"""Feature extraction: an embedding for each text, pooled as sentence-transformers does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from edgesmith.data import Row
from edgesmith.errors import ArtifactError, DataError
from edgesmith.tasks import scoring
from edgesmith.tasks.base import Arrays, Example, Metric, Prediction, TaskInput, as_example
from edgesmith.tasks.columns import read_number, read_text
from edgesmith.tasks.folder import checked_columns, read_task_json
from edgesmith.tasks.pooling import POOLINGS, Pooling, normalize_rows, pooling_of
from edgesmith.tasks.text_task import TextTask
from edgesmith.tasks.tokenization import TextEncoder, TextSettings

__all__ = ["FeatureExtraction"]

_EVAL_NEEDS = (
    "An embedding is scored on pairs of texts with a human similarity score: columns `text`, `text_pair` and "
    "`score`, under these names or mapped to them."
)


def _similarities(
    predictions: Sequence[Prediction], examples: Sequence[Example]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosines of the pairs and the scores they are judged by."""
    if len(predictions) != len(examples):
        raise ValueError(f"{len(predictions)} predictions for {len(examples)} examples")
    if len(examples) < 2:
        raise DataError(f"{len(examples)} example(s) to score; a correlation needs two", mend=_EVAL_NEEDS)
    if any(example.target is None for example in examples) or any("similarity" not in one for one in predictions):
        raise DataError("an example has no pair of texts with a score", mend=_EVAL_NEEDS)
    targets = np.array([example.target for example in examples], np.float64)
    if np.all(targets == targets[0]):
        raise DataError(f"all {len(targets)} scores are {targets[0]:g}: nothing to correlate with", mend=_EVAL_NEEDS)
    return np.array([one["similarity"] for one in predictions], np.float64), targets


def _metric(
    name: str,
    kernel: Callable[[scoring.Floats, scoring.Floats], float],
    terms: Callable[[scoring.Floats, scoring.Floats], scoring.Floats],
) -> Metric:
    return Metric(
        name=name,
        higher_is_better=True,
        compute=lambda predictions, examples: kernel(*_similarities(predictions, examples)),
        per_example=lambda predictions, examples: terms(*_similarities(predictions, examples)),
    )


class FeatureExtraction(TextTask):
    """One vector for each text; two texts are compared by their cosine."""

    name: ClassVar[str] = "feature-extraction"
    model_class: ClassVar[str] = "AutoModel"
    output_names: ClassVar[tuple[str, ...]] = ("last_hidden_state",)
    output_kind: ClassVar[Literal["logits", "embedding"]] = "embedding"
    column_names: ClassVar[tuple[str, ...]] = ("text", "text_pair", "score")
    default_metric: ClassVar[str] = "spearman"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "spearman": _metric("spearman", scoring.spearman, scoring.spearman_terms),
        "pearson": _metric("pearson", scoring.pearson, scoring.pearson_terms),
    }

    def __init__(
        self,
        encoder: TextEncoder,
        pooling: Pooling = "mean",
        *,
        normalize: bool = False,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self.encoder = encoder
        self.pooling = pooling
        self.normalize = normalize
        self._pair_is_asked = "text_pair" in (columns or {})
        self._columns = checked_columns(self.name, self.column_names, columns)

    @classmethod
    def load(cls, folder: Path, *, max_length: int | None = None, columns: Mapping[str, str] | None = None) -> Self:
        """Read tokenizer, pooling and normalisation; see `Task.load`. Without a word on it: mean, as is."""
        stored = read_task_json(folder, cls.name)
        if stored is None:
            pooling, is_normalized = pooling_of(folder)
            encoder = TextEncoder.load(folder, max_length=max_length)
            return cls(encoder, pooling, normalize=is_normalized, columns=columns)
        source = folder / "task.json"
        named, normalize = stored.get("pooling"), stored.get("normalize")
        if named not in POOLINGS or not isinstance(normalize, bool):
            raise ArtifactError(f"{source}: pooling {named!r} with normalize {normalize!r} is not known")
        settings = TextSettings.from_json(stored.get("text"), source)
        encoder = TextEncoder.load(folder, max_length=max_length, settings=settings)
        return cls(encoder, cast(Pooling, named), normalize=normalize, columns=columns)

    def runtime_config(self) -> dict[str, Any]:
        """The content of an artifact's `task.json`."""
        return {
            "schema_version": 1,
            "task": self.name,
            "pooling": self.pooling,
            "normalize": self.normalize,
            "text": self.encoder.settings.model_dump(mode="json"),
        }

    def parse(self, row: Row, *, labelled: bool = True) -> Example:
        """Turn a row into an example; see `Task.parse`. A labelled row has a pair of texts and a score."""
        text = read_text(row, self._columns["text"], "text")
        pair_column, score_column = self._columns["text_pair"], self._columns["score"]
        if labelled:
            for column in (pair_column, score_column):
                if column not in row.values:
                    raise DataError(f"{row.place}: has no column {column!r}", mend=_EVAL_NEEDS)
        has_pair = labelled or self._pair_is_asked or pair_column in row.values
        pair = read_text(row, pair_column, "text_pair") if has_pair else None
        target = read_number(row, score_column, "score") if labelled else None
        return Example(text, pair, target, row.line)

    def sequences(self, examples: Sequence[TaskInput]) -> list[tuple[str, str | None]]:
        """The texts; those of a pair are two rows, one after the other."""
        texts: list[tuple[str, str | None]] = []
        for given in examples:
            example = as_example(given)
            texts.append((example.text, None))
            if example.text_pair is not None:
                texts.append((example.text_pair, None))
        return texts

    def vectors(self, outputs: Arrays, arrays: Arrays) -> NDArray[np.float32]:
        """The embeddings, float32 of shape [rows, hidden], normalised if the model's folder says so."""
        hidden_NSH = np.asarray(outputs["last_hidden_state"], np.float32)
        mask_NS = np.asarray(arrays["attention_mask"])
        if hidden_NSH.ndim != 3 or hidden_NSH.shape[:2] != mask_NS.shape:
            raise ArtifactError(
                f"the model gives last_hidden_state of shape {list(hidden_NSH.shape)} "
                f"for inputs of shape {list(mask_NS.shape)}"
            )
        pooled_NH = POOLINGS[self.pooling](hidden_NSH, mask_NS)
        return normalize_rows(pooled_NH) if self.normalize else pooled_NH

    def decode(self, outputs: Arrays, arrays: Arrays, examples: Sequence[TaskInput]) -> list[Prediction]:
        """One prediction an example: `embedding` of a text, `similarity` (the cosine) of a pair of texts."""
        pairs = [as_example(given).text_pair is not None for given in examples]
        vectors = self.vectors(outputs, arrays)
        if len(vectors) != len(pairs) + sum(pairs):
            raise ValueError(f"{len(vectors)} rows of output for {len(pairs) + sum(pairs)} texts")
        rows = iter(vectors)
        predictions: list[Prediction] = []
        for is_pair in pairs:
            first = next(rows)
            if is_pair:
                units = normalize_rows(np.stack([first, next(rows)]).astype(np.float64))
                predictions.append({"similarity": float(units[0] @ units[1])})
            else:
                predictions.append({"embedding": [float(value) for value in first]})
        return predictions
