"""Who learns: the teacher's own layers, or a checkpoint that is given; and whether it can learn from this teacher."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from compress.checkpoint import open_checkpoint, read_json
from compress.load import ModelKind, load_model
from compress.quiet import quiet_libraries
from edgesmith.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_student", "count_parameters", "labels_of", "load_student", "uniform_map"]

_TOKENIZER_PARTS = {
    "model": "the vocabulary or its merges",
    "normalizer": "the normalizer",
    "pre_tokenizer": "the pre-tokenizer",
    "post_processor": "the special tokens around a text",
    "added_tokens": "the added tokens",
}


def uniform_map(num_student: int, num_teacher: int) -> list[int]:
    """Which of the teacher's layers each of the student's learns from, from 1; the last from the last.

    Source: Jiao et al.: TinyBERT, 2020, section 3.1, the uniform layer mapping.

    >>> uniform_map(2, 6), uniform_map(4, 6), uniform_map(6, 6)
    ([3, 6], [2, 3, 5, 6], [1, 2, 3, 4, 5, 6])
    """
    return [-(-layer * num_teacher // num_student) for layer in range(1, num_student + 1)]


def load_student(folder: Path, kind: ModelKind, teacher: PreTrainedModel, *, seed: int) -> PreTrainedModel:
    """Load a given checkpoint as a student; one without a head gets one for the teacher's labels, drawn by the seed.

    Raises:
        CheckpointError: it is damaged, or its labels are not the teacher's.
        UnsupportedError: its architecture has no model for this task.
    """
    if not _lacks_head(folder, kind):
        return load_model(folder, kind)
    options: dict[str, Any] = {}
    if labels := labels_of(teacher):
        options = {"id2label": labels, "label2id": {label: index for index, label in labels.items()}}
        options["num_labels"] = len(labels)
    open_checkpoint(folder)
    with quiet_libraries(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, info = getattr(transformers, kind.model_class).from_pretrained(
            str(folder),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    body = f"{model.base_model_prefix}."
    if missing := sorted(str(key) for key in info["missing_keys"] if str(key).startswith(body) and "pooler" not in key):
        raise CheckpointError(
            f"{folder}: lacks {len(missing)} weights of its own architecture, such as {missing[0]}",
            mend="Copy the checkpoint again from its source.",
        )
    student: PreTrainedModel = model.eval()
    return student


def _lacks_head(folder: Path, kind: ModelKind) -> bool:
    """Whether a checkpoint was saved as a bare encoder, and the task needs more."""
    named = read_json(folder / "config.json").get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    ending = kind.model_class.removeprefix("AutoModel")
    return bool(ending) and not architecture.endswith((ending, "LMHeadModel"))


def check_student(teacher: PreTrainedModel, student: PreTrainedModel, folders: tuple[Path, Path]) -> None:
    """Refuse a student that cannot learn from this teacher, before anything is trained.

    Args:
        teacher: The teacher.
        student: The student.
        folders: The teacher's and the student's, for messages and tokenizers.

    Raises:
        UsageError: It is larger than its teacher.
        CheckpointError: It has another tokenizer, or other labels.
    """
    _check_size(teacher, student, folders[1])
    _check_labels(teacher, student, folders)
    _check_tokenizers(*folders)


def count_parameters(model: PreTrainedModel) -> int:
    """Numbers of the model that training can change, each counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def labels_of(model: PreTrainedModel) -> dict[int, str]:
    """Index → label, of a model that has a head for them; empty for others."""
    architecture = type(model).__name__
    if not architecture.endswith("Classification"):
        return {}
    return {int(index): str(label) for index, label in (model.config.id2label or {}).items()}


def _check_size(teacher: PreTrainedModel, student: PreTrainedModel, folder: Path) -> None:
    for name, what in (("num_hidden_layers", "layers"), ("hidden_size", "features a token")):
        ours, theirs = (getattr(model.config.get_text_config(), name, None) for model in (student, teacher))
        if isinstance(ours, int) and isinstance(theirs, int) and ours > theirs:
            raise UsageError(
                f"{folder}: the student has {ours} {what}, its teacher {theirs}",
                mend="A student is no larger than its teacher: give a smaller one, or change the two.",
            )
    ours, theirs = count_parameters(student), count_parameters(teacher)
    if ours > theirs:
        raise UsageError(
            f"{folder}: the student has {ours:,} parameters, its teacher {theirs:,}",
            mend="A student is no larger than its teacher: give a smaller one, or change the two.",
        )


def _check_labels(teacher: PreTrainedModel, student: PreTrainedModel, folders: tuple[Path, Path]) -> None:
    theirs, ours = labels_of(teacher), labels_of(student)
    if theirs == ours:
        return
    index = next(index for index in sorted({*theirs, *ours}) if theirs.get(index) != ours.get(index))
    raise CheckpointError(
        f"{folders[1]}: its label {index} is {ours.get(index)!r}, the teacher's is {theirs.get(index)!r} "
        f"({len(ours)} and {len(theirs)} labels)",
        mend=f"Give a student with the labels of {folders[0]}, in their order, or one without a head.",
    )


def _check_tokenizers(teacher: Path, student: Path) -> None:
    """Two tokenizers are one where every part that decides about ids is."""
    if teacher == student:
        return
    files = [folder / "tokenizer.json" for folder in (teacher, student)]
    there = [path.is_file() for path in files]
    if not any(there):
        return
    if not all(there):
        lacking = files[there.index(False)]
        raise CheckpointError(f"{lacking}: missing", mend="Give teacher and student with the same tokenizer.")
    theirs, ours = (read_json(path) for path in files)
    for part, what in _TOKENIZER_PARTS.items():
        if _canonical(theirs, part) != _canonical(ours, part):
            raise CheckpointError(
                f"{files[1]}: {what} ({part}) is not that of {files[0]}{_difference(theirs, ours, part)}",
                mend="A student reads the tokens that its teacher reads: give one with the same tokenizer, or trim "
                "the vocabulary after distilling.",
            )


def _canonical(tokenizer: Mapping[str, Any], part: str) -> str:
    return json.dumps(tokenizer.get(part), sort_keys=True)


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any], part: str) -> str:
    """Sizes, and the first token that the two number differently, where it is the vocabulary."""
    sizes = [_vocabulary(tokenizer) for tokenizer in (ours, theirs)]
    if part != "model" or not all(sizes):
        return ""
    mine, other = sizes
    differing = next((token for token in sorted({*mine, *other}) if mine.get(token) != other.get(token)), None)
    said = f"; {differing!r} is {mine.get(differing)} here and {other.get(differing)} there" if differing else ""
    return f": {len(mine):,} tokens against {len(other):,}{said}"


def _vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        return vocabulary
    return {str(piece[0]): index for index, piece in enumerate(vocabulary or ()) if isinstance(piece, list)}
