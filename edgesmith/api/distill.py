"""Distillation: a smaller model that does as a larger one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgesmith.artifact import Artifact
    from edgesmith.recipe import DistillOptions

__all__ = ["distill", "training_folder"]


def distill(
    teacher: Path,
    *,
    data: Path,
    out: Path,
    options: DistillOptions | None = None,
    student: Path | None = None,
    unlabelled: Path | None = None,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    workplace: Path | None = None,
    progress: Progress = SILENT,
) -> tuple[Artifact, dict[str, Any]]:
    """Train a student to do as its teacher does; killed at any moment, the same call goes on from there.

    Args:
        teacher: Checkpoint.
        data: Training rows; of a language model a text file, or rows with a column `text`. A share of them is held
            out to choose the best weights.
        out: Folder to write.
        options: What the student is and learns; `options.student` is the same as `student`.
        student: Checkpoint to train; made of the teacher's own layers if left out.
        unlabelled: More rows, on which only the teacher is learnt from.
        task: Guessed from config.json if left out.
        columns: The task's column → the file's.
        seed: Of every random choice.
        workplace: Folder for interrupted trainings and teachers' outputs; beside the store if left out.
        progress: Shows how far it is.

    Returns:
        The checkpoint, and what its `training.json` says.

    Raises:
        UsageError: wishes that contradict each other, or a student larger than its teacher.
        CheckpointError: teacher and student have other tokenizers or labels, or one is damaged.
        DataError: rows that do not fit the task, or too few of them.
        UnsupportedError: an architecture that cannot be distilled in this way.
        TrainingError: the loss is no number, or memory does not suffice.
        StorageError: too little disk.
    """
    from edgesmith.artifact import open_artifact
    from edgesmith.recipe import DistillOptions
    from edgesmith.stages.base import make_into
    from edgesmith.stages.distill import DistillStage
    from edgesmith.stages.trained import TRAINING_FILE

    options = options or DistillOptions()
    given = student or (None if options.student is None else Path(options.student))
    stage = DistillStage(
        workplace=workplace or training_folder(),
        teacher=open_artifact(teacher, kinds=("checkpoint",)),
        student=None if given is None else open_artifact(given, kinds=("checkpoint",)),
        data=data,
        unlabelled=unlabelled,
        distill=options,
        columns=columns or {},
        task=task,
        seed=seed,
    )
    return make_into(stage, out, lambda made: _read(made.path / TRAINING_FILE), progress)


def training_folder() -> Path:
    """Where trainings work, so that an interrupted one is found again."""
    from edgesmith.store import default_store_root

    return default_store_root() / "training"


def _read(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts
