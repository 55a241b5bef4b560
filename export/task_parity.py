"""Prove that an artifact's task is the one that a checkpoint was trained for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgesmith.errors import VerificationError
from edgesmith.tasks import Example, Task, TextTask, load_task
from export.tokenizer_parity import check_tokenizer

__all__ = ["check_task"]

_CHOSEN_AT_EXPORT = frozenset({"text.max_length"})


def check_task(checkpoint: Path, task: Task, examples: Sequence[Example]) -> None:
    """Compare what turns texts into arrays and outputs into answers: labels, pooling, tokenizer and its settings.

    Equal outputs do not show that labels are named right: those are looked up after the model ran.

    Args:
        checkpoint: Hugging Face folder.
        task: The artifact's.
        examples: Real ones, for which both tokenizers must give the same.

    Raises:
        VerificationError: a setting differs from the checkpoint's, or a text is encoded in another way.
        ArtifactError: a file of the checkpoint is missing or damaged.
        UnsupportedError: the checkpoint is not one for this task, or transformers cannot load its tokenizer.
    """
    expected = dict(_flat(load_task(checkpoint, task.name).runtime_config()))
    found = dict(_flat(task.runtime_config()))
    for key in sorted({*expected, *found} - _CHOSEN_AT_EXPORT):
        if expected.get(key) != found.get(key):
            raise VerificationError(
                f"task.json: `{key}` is {found.get(key)!r}, but {expected.get(key)!r} in {checkpoint}",
                mend="Export the checkpoint again, or compare the artifact with the checkpoint it was made from.",
            )
    if isinstance(task, TextTask):
        check_tokenizer(checkpoint, task.encoder, task.sequences(examples))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted paths."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
