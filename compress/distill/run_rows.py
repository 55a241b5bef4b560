"""Distillation of classifiers, token classifiers, embedding and vision models: teacher in, trained student out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress.distill.objective import ANSWERS, Insight, RowObjective
from compress.distill.pupil import Pupil, prepare_pupil
from compress.distill.result import DistillResult
from compress.distill.rows import NumberedRows, RowData
from compress.distill.run import Work, check_options, run, with_defaults
from compress.distill.split import hold_out
from compress.distill.validate import validate_rows
from compress.train.start import check_training
from edgesmith.errors import DataError, UsageError

if TYPE_CHECKING:
    from edgesmith.recipe import DistillOptions
    from edgesmith.tasks import Example, Task

__all__ = ["check_tasks", "distill_rows", "single_texts"]

_TEMPERATURE = 2.0
_EPOCHS = 10.0
_LEARNING_RATE = 1e-4
_MOST_VALIDATED = 1000
_CALIBRATION_ROWS = 64
"""Rows that tell which layers matter."""
_CALIBRATION_BATCH = 8


def distill_rows(
    teacher: Path,
    out: Path,
    *,
    student: Path | None,
    data: RowData,
    num_from_file: int,
    options: DistillOptions,
    work: Work,
) -> DistillResult:
    """Train a student on rows and write it as a checkpoint.

    Args:
        teacher: Checkpoint.
        out: An empty folder.
        student: Checkpoint to train; made of the teacher's layers when None.
        data: All rows; those after the first `num_from_file` are unlabelled and never held out.
        num_from_file: Rows of the training file.
        options: What is learnt, and how.
        work: Where it works.

    Raises:
        UsageError: nothing is to be learnt, labels are that are not there, or the student is larger.
        CheckpointError: student and teacher do not fit.
        DataError: too few rows, or all of one class.
        UnsupportedError: an architecture that shows no states or no attention, where they are to be learnt; or several
            processes, where rows are compared.
        TrainingError: the loss is no number, or memory does not suffice.
    """
    targets = [one.target for one in data.examples[:num_from_file]]
    check_options(options, has_labels=any(one is not None for one in targets), items=data.readouts[1].items)
    check_tasks(data.teacher_task, data.task)
    _check_classes(targets)
    labels = [one if isinstance(one, int) else None for one in targets]  # tags of tokens are no groups
    rows, held = hold_out(labels, options.train.validation, seed=work.seed, most=_MOST_VALIDATED)
    rows += range(num_from_file, len(data.examples))
    batches = [
        data.readouts[0].inputs(data.collate([{"row": row} for row in rows[start : start + _CALIBRATION_BATCH]]))
        for start in range(0, min(_CALIBRATION_ROWS, len(rows)), _CALIBRATION_BATCH)
    ]
    pupil = prepare_pupil(teacher, student, data.task, options, seed=work.seed, batches=batches)
    is_compared = data.readouts[1].items == "vectors" and options.soft > 0
    check_training(pupil.student, options.train, num_rows=len(rows), compares_rows=is_compared, workplace=work.folder)
    insight = _insight(pupil, data, options, work.seed)
    cache = None
    if options.soft and insight is None:
        folder, identity = work.cache_of(data.teacher_task.max_length, data.encoding)
        cache = data.ask(pupil.present_teacher, folder, identity=identity, progress=work.progress)
        theirs = np.asarray(cache.read(held)[ANSWERS], np.float32)
    else:  # of the other rows nothing is to be kept
        theirs = data.answers(pupil.present_teacher, held, of_teacher=True)
    if insight is None:
        pupil.teacher = None
    objective = RowObjective(
        options=options,
        readout=data.readouts[1],
        cache=cache,
        insight=insight,
        temperature=options.temperature or _TEMPERATURE,
    )
    return run(
        pupil,
        out,
        objective=objective,
        rows=NumberedRows(rows, data.lengths),
        collate=data.collate,
        validation=validate_rows(data, held, theirs),
        options=with_defaults(options.train, epochs=_EPOCHS, learning_rate=_LEARNING_RATE),
        work=work,
        num_unlabelled=len(data.examples) - num_from_file,
        num_validated=len(held),
        teacher_cache_bytes=0 if cache is None else cache.size_bytes,
    )


def _check_classes(targets: Sequence[object]) -> None:
    """Refuse rows of one class: a student would learn to say nothing else, and its accuracy would be perfect."""
    known = {target for target in targets if isinstance(target, int)}
    if len(known) == 1 and len(targets) > 1 and all(isinstance(target, int) for target in targets):
        raise DataError(
            f"all {len(targets):,} training rows have the same label, number {known.pop()}",
            mend="Give rows of all classes; a file that is sorted by class may have been cut.",
        )


def check_tasks(teacher: Task, student: Task) -> None:
    """Refuse a student that sees other pictures than its teacher.

    Raises:
        UsageError: naming how their preparation differs.
    """
    theirs, ours = (task.runtime_config().get("image") or {} for task in (teacher, student))
    if differing := [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]:
        said = ", ".join(f"{name} is {ours.get(name)} and {theirs.get(name)}" for name in differing)
        raise UsageError(
            f"student and teacher see different pictures: {said}",
            mend="Give a student whose preprocessor_config.json is the teacher's.",
        )


def single_texts(examples: Sequence[Example]) -> list[Example]:
    """Each text once, for a model that embeds texts one by one: pairs are taken apart."""
    from edgesmith.tasks import Example as Single

    texts = dict.fromkeys(text for one in examples for text in (one.text, one.text_pair) if text is not None)
    return [Single(text) for text in texts]


def _insight(pupil: Pupil, data: RowData, options: DistillOptions, seed: int) -> Insight | None:
    if not (options.hidden or options.relation):
        return None
    return Insight(
        pupil.present_teacher,
        pupil.student,
        sample=data.collate([{"row": 0}]),
        readouts=data.readouts,
        options=options,
        causal=False,
        seed=seed,
    )
