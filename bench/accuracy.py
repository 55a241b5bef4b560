"""Evaluate an engine on a data file: every prediction is kept, so that any two artifacts can be compared later."""

from __future__ import annotations

import gzip
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.raw import compress, damage_errors, pretty_json, read_json
from edgesmith.artifact import canonical_json
from edgesmith.errors import DataError, VerificationError
from edgesmith.files import atomic_write, sha256_file, storage_errors
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgesmith.tasks.base import Example, Metric, Picture, Prediction, Task
    from serve.runtime import Engine

__all__ = ["EVALUATION", "PREDICTIONS", "Evaluation", "digest_examples", "evaluate"]

EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.jsonl.gz"
_UNKEPT = frozenset({"embedding", "embedding_pair"})


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a model said about every example, and the figures over all of them."""

    task: str
    engine: str
    artifact_digest: str | None
    """Of what was evaluated; None for an engine that is no artifact."""
    data_digest: str
    """Of the examples in their order: equal digests make two evaluations comparable example by example."""
    batch_size: int
    """Recorded because dynamic quantization takes its ranges from a whole batch."""
    metrics: Mapping[str, float]
    default_metric: str
    higher_is_better: Mapping[str, bool]
    labels: tuple[str, ...]
    """Names of the classes; empty for a task without any."""
    lines: tuple[int | None, ...]
    """Where each example stands in the data file, of shape [n]."""
    targets: tuple[int | float | str | None, ...]
    predictions: tuple[Prediction, ...]
    """In the data file's order; embeddings are left out for their size."""
    scores: Mapping[str, NDArray[np.float64]]
    """Metric → one value an example, of shape [n], whose mean is the metric. Not every metric has such values."""
    seconds: float

    @property
    def num_examples(self) -> int:
        """How many examples were scored."""
        return len(self.predictions)

    @property
    def confusion(self) -> NDArray[np.int64] | None:
        """Counts of shape [L, L], target by prediction; None for a task without classes."""
        if not self.labels:
            return None
        counts = np.zeros((len(self.labels), len(self.labels)), dtype=np.int64)
        for target, prediction in zip(self.targets, self.predictions, strict=True):
            counts[int(target or 0), int(prediction["index"])] += 1
        return counts

    def summary(self) -> dict[str, Any]:
        """Give the figures without the single predictions, JSON-able."""
        confusion = self.confusion
        return {
            "task": self.task,
            "engine": self.engine,
            "artifact_digest": self.artifact_digest,
            "data_digest": self.data_digest,
            "num_examples": self.num_examples,
            "batch_size": self.batch_size,
            "metrics": dict(self.metrics),
            "default_metric": self.default_metric,
            "higher_is_better": dict(self.higher_is_better),
            "labels": list(self.labels),
            "confusion": None if confusion is None else confusion.tolist(),
            "seconds": round(self.seconds, 3),
        }

    def save(self, folder: Path) -> None:
        """Write `evaluation.json` and `predictions.jsonl.gz` into a folder; the latter is reproducible to the byte.

        Raises:
            StorageError: The folder cannot be written.
        """
        rows = (
            {
                "line": self.lines[index],
                "target": self.targets[index],
                "prediction": self.predictions[index],
                "scores": {name: float(values[index]) for name, values in self.scores.items()},
            }
            for index in range(self.num_examples)
        )
        text = "".join(canonical_json(row) + "\n" for row in rows)
        atomic_write(folder / PREDICTIONS, compress(text.encode()))
        atomic_write(folder / EVALUATION, pretty_json({"schema_version": 1} | self.summary()))

    @classmethod
    def load(cls, folder: Path) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            UsageError: The folder holds no evaluation.
            ArtifactError: The evaluation is damaged.
        """
        summary = read_json(folder / EVALUATION, mend="Make one with `edgesmith eval`.")
        source = folder / PREDICTIONS
        with damage_errors(source):
            with storage_errors(source):
                compressed = source.read_bytes()
            rows = [json.loads(line) for line in gzip.decompress(compressed).splitlines()]
            return _from_json(summary, rows)


def _from_json(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Evaluation:
    if len(rows) != summary["num_examples"]:
        raise ValueError(f"{len(rows)} predictions, but the summary says {summary['num_examples']}")
    names = rows[0]["scores"].keys() if rows else ()
    return Evaluation(
        task=summary["task"],
        engine=summary["engine"],
        artifact_digest=summary["artifact_digest"],
        data_digest=summary["data_digest"],
        batch_size=summary["batch_size"],
        metrics=summary["metrics"],
        default_metric=summary["default_metric"],
        higher_is_better=summary["higher_is_better"],
        labels=tuple(summary["labels"]),
        lines=tuple(row["line"] for row in rows),
        targets=tuple(row["target"] for row in rows),
        predictions=tuple(row["prediction"] for row in rows),
        scores={name: np.array([row["scores"][name] for row in rows], dtype=np.float64) for name in names},
        seconds=summary["seconds"],
    )


def evaluate(
    engine: Engine,
    task: Task,
    examples: Sequence[Example],
    *,
    batch_size: int = 8,
    artifact_digest: str | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Predict every example and compute all of the task's metrics.

    Args:
        engine: Any engine, the torch reference included.
        task: Prepares the inputs and reads the outputs.
        examples: Labelled, in the order in which the results are wanted.
        batch_size: Examples a call. Texts of like length go together, so little is padded.
        artifact_digest: Of what the engine runs.
        progress: Shows the examples done.

    Raises:
        DataError: There are no examples, or one has no label.
        VerificationError: An output is not finite.
    """
    if not examples:
        raise DataError("no examples to evaluate", mend="Give a data file with labelled rows.")
    start = time.perf_counter()
    predictions = _predict(engine, task, examples, batch_size, progress)
    metrics = {name: metric.compute(predictions, examples) for name, metric in task.metrics.items()}
    if broken := sorted(name for name, value in metrics.items() if not np.isfinite(value)):
        raise VerificationError(f"{broken[0]} over {len(examples)} examples is {metrics[broken[0]]}")
    return Evaluation(
        task=task.name,
        engine=engine.name,
        artifact_digest=artifact_digest,
        data_digest=digest_examples(examples),
        batch_size=batch_size,
        metrics=metrics,
        default_metric=task.default_metric,
        higher_is_better={name: metric.higher_is_better for name, metric in task.metrics.items()},
        labels=tuple(getattr(task, "labels", ())),
        lines=tuple(example.line for example in examples),
        targets=tuple(example.target for example in examples),
        predictions=tuple({key: one[key] for key in one if key not in _UNKEPT} for one in predictions),
        scores=_scores(task.metrics, predictions, examples),
        seconds=time.perf_counter() - start,
    )


def _scores(
    metrics: Mapping[str, Metric], predictions: Sequence[Prediction], examples: Sequence[Example]
) -> dict[str, NDArray[np.float64]]:
    return {
        name: metric.per_example(predictions, examples)
        for name, metric in metrics.items()
        if metric.per_example is not None
    }


def _predict(
    engine: Engine, task: Task, examples: Sequence[Example], batch_size: int, progress: Progress
) -> list[Prediction]:
    """Predict in batches of like length, longest first; results are in the examples' order."""
    lengths = [len(example.text) + len(example.text_pair or "") for example in examples]
    order = sorted(range(len(examples)), key=lambda index: -lengths[index])
    found: dict[int, Prediction] = {}
    with progress.bar("evaluate", total=len(examples)) as advance:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = [examples[index] for index in indices]
            arrays = task.encode(batch)
            outputs = engine.run(arrays)
            _refuse_not_finite(task.vectors(outputs, arrays), batch, engine)
            found.update(zip(indices, task.decode(outputs, arrays, batch), strict=True))
            advance(len(batch))
    return [found[index] for index in range(len(examples))]


def _refuse_not_finite(vectors: NDArray[np.float32], batch: Sequence[Example], engine: Engine) -> None:
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=tuple(range(1, vectors.ndim))))
    if len(broken):
        example = batch[min(int(broken[0]) * len(batch) // len(vectors), len(batch) - 1)]
        raise VerificationError(
            f"{engine.name}: the output for line {example.line} ({example.text[:60]!r}) is not finite",
            mend="The artifact is broken: verify it, and quantize fewer layers or use another precision.",
        )


def digest_examples(examples: Sequence[Example]) -> str:
    """Hash texts, pictures and targets in their order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(canonical_json([example.text, example.text_pair, example.target]).encode() + b"\n")
        if example.image is not None:
            digest.update(_hash_of(example.image).encode())
    return f"sha256:{digest.hexdigest()}"


def _hash_of(picture: Path | Picture) -> str:
    return sha256_file(picture) if isinstance(picture, Path) else hashlib.sha256(picture).hexdigest()
