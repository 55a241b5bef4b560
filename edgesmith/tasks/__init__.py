"""Tasks: what a model is for. One class a task, looked up by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgesmith.errors import UnsupportedError, UsageError
from edgesmith.tasks.base import Example, Metric, Prediction, Task, TaskInput, sample_texts
from edgesmith.tasks.feature_extraction import FeatureExtraction
from edgesmith.tasks.folder import read_json_object
from edgesmith.tasks.image_classification import ImageClassification
from edgesmith.tasks.suggest import nearest
from edgesmith.tasks.text_classification import TextClassification
from edgesmith.tasks.text_task import TextTask
from edgesmith.tasks.token_classification import TokenClassification

__all__ = [
    "TASKS",
    "TEXT_GENERATION",
    "Example",
    "FeatureExtraction",
    "ImageClassification",
    "Metric",
    "Prediction",
    "Task",
    "TaskInput",
    "TextClassification",
    "TextTask",
    "TokenClassification",
    "get_task",
    "guess_task",
    "load_task",
    "sample_texts",
]

TASKS: Mapping[str, type[Task]] = {
    "text-classification": TextClassification,
    "feature-extraction": FeatureExtraction,
    "image-classification": ImageClassification,
    "token-classification": TokenClassification,
}
"""Name → class, of the tasks whose rows are answered by one run of a graph."""
TEXT_GENERATION = "text-generation"
"""The task of language models, which are measured on texts and not row by row."""


def get_task(name: str) -> type[Task]:
    """The task of that name.

    Raises:
        UsageError: There is none; the message names the nearest.
        UnsupportedError: It is a language model's.
    """
    if name == TEXT_GENERATION:
        raise UnsupportedError(
            "a language model is not run row by row through a graph",
            mend="Make it into a format that generates: edgesmith export CHECKPOINT --format gguf -o OUT",
        )
    if name not in TASKS:
        known = ", ".join([*TASKS, TEXT_GENERATION])
        raise UsageError(
            f"there is no task {name!r}", mend=f"Did you mean {nearest(name, TASKS)!r}? Known are {known}."
        )
    return TASKS[name]


def guess_task(config: Mapping[str, Any]) -> str:
    """The task that a checkpoint's `config.json` was saved for, from its architecture's name.

    >>> guess_task({"architectures": ["BertForSequenceClassification"]})
    'text-classification'

    Raises:
        UnsupportedError: It names no architecture, or one for another task.
    """
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    if architecture.endswith("ForSequenceClassification"):
        return TextClassification.name
    if architecture.endswith("ForTokenClassification"):
        return TokenClassification.name
    if architecture.endswith("ForImageClassification"):
        return ImageClassification.name
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return TEXT_GENERATION
    if architecture.endswith("Model"):
        return FeatureExtraction.name
    what = f"the architecture {architecture}" if architecture else "a config.json without architectures"
    raise UnsupportedError(
        f"{what} fits no task; known are {', '.join([*TASKS, TEXT_GENERATION])}", mend="Name the task: --task NAME."
    )


def load_task(
    folder: Path,
    name: str | None = None,
    *,
    max_length: int | None = None,
    columns: Mapping[str, str] | None = None,
) -> Task:
    """Load the task of an artifact or checkpoint folder.

    Args:
        folder: See `Task.load`.
        name: The task; by default the one in `task.json`, else the guess from `config.json`.
        max_length: See `Task.load`.
        columns: See `Task.load`.

    Raises:
        ArtifactError: A file is missing or damaged.
        UnsupportedError: No task handles this model, or it is a language model.
        UsageError: There is no task of that name.
    """
    if name is None:
        stored = read_json_object(folder / "task.json", required=False)
        name = str(stored["task"]) if "task" in stored else guess_task(read_json_object(folder / "config.json"))
    return get_task(name).load(folder, max_length=max_length, columns=columns)
