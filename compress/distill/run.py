"""What distillations of all kinds of models have in common: the wishes' check, the training, the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.distill.pupil import Pupil
from compress.distill.result import DistillResult, result_of, write_result
from compress.distill.validate import Validation
from compress.train.run import Objective, train
from edgesmith.errors import UsageError
from edgesmith.files import sha256_text
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from edgesmith.recipe import DistillOptions, TrainOptions

__all__ = ["Work", "check_options", "run", "with_defaults"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """Where a distillation works and how it reports."""

    folder: Path
    """Survives a kill: checkpoints of the training lie there."""
    cache: Path
    """Where the teacher's outputs are kept."""
    identity: str
    """Of the teacher and all rows: kept outputs of another one are not used."""
    seed: int = 0
    save_seconds: float = 120.0
    """Age of the training's last checkpoint at which a new one is written."""
    progress: Progress = SILENT

    def cache_of(self, *parts: object) -> tuple[Path, str]:
        """Folder and name of the outputs that depend on some more."""
        name = sha256_text(self.identity, *map(str, parts))
        return self.cache / f"teacher-{name[:16]}", name


def check_options(options: DistillOptions, *, has_labels: bool, items: str) -> None:
    """Refuse wishes that contradict each other or the data.

    Args:
        options: The wishes.
        has_labels: Whether any training row has one.
        items: `rows`, `tokens`, `vectors`, or `positions` of a language model.

    Raises:
        UsageError: naming them.
    """
    if not (options.soft or options.hard or options.hidden or options.relation):
        raise UsageError("soft, hard, hidden and relation are all 0: nothing is learnt", mend="Give one a weight.")
    if options.hard and items == "vectors":
        raise UsageError("hard: an embedding model learns from its teacher; it has no labels", mend="Leave it at 0.")
    if options.hard and not has_labels:
        raise UsageError(
            "hard: the training rows have no labels", mend="Give rows with labels, or leave the weight at 0."
        )
    wishes = {
        "divergence": options.divergence != "forward-kl",
        "on_policy": options.on_policy > 0,
        "sequence_level": options.sequence_level,
    }
    if items != "positions" and (named := [name for name, is_asked in wishes.items() if is_asked]):
        raise UsageError(f"{named[0]} is for language models", mend="Leave it out.")
    if options.on_policy and not options.soft:
        raise UsageError(
            "on_policy: the student's own text is judged by the teacher's predictions, and soft is 0",
            mend="Give soft a weight, or leave on_policy out.",
        )


def with_defaults(options: TrainOptions, *, epochs: float, learning_rate: float) -> TrainOptions:
    """Fill in what is chosen by the kind of step."""
    return options.model_copy(
        update={
            "epochs": epochs if options.epochs is None else options.epochs,
            "learning_rate": learning_rate if options.learning_rate is None else options.learning_rate,
        }
    )


def run(
    pupil: Pupil,
    out: Path,
    *,
    objective: Objective,
    rows: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], dict[str, Tensor]],
    validation: Validation,
    options: TrainOptions,
    work: Work,
    **facts: Any,
) -> DistillResult:
    """Train the student, choose its best weights, and write them.

    Args:
        pupil: Student and teacher.
        out: An empty folder.
        objective: What is learnt.
        rows: What it is trained on.
        collate: Rows → a batch.
        validation: What chooses the weights.
        options: How it is trained.
        work: Where.
        facts: Further fields of the result.

    Raises:
        DataError: fewer rows than a batch.
        TrainingError: the loss is no number, or memory does not suffice.
    """
    ours, theirs = pupil.facts["num_parameters"], pupil.facts["teacher_num_parameters"]
    work.progress.note(f"student: {pupil.origin}; {ours:,} of {theirs:,} parameters; {len(rows):,} rows to train on")
    trained = train(
        pupil.student,
        objective,
        rows,
        collate,
        options,
        evaluate=validation.measure,
        metric_name=validation.name,
        higher_is_better=validation.higher_is_better,
        seed=work.seed,
        workplace=work.folder,
        progress=work.progress,
        save_seconds=work.save_seconds,
    )
    result = result_of(
        trained,
        metric=validation.name,
        higher_is_better=validation.higher_is_better,
        teacher_metric=validation.teacher,
        num_trained=len(rows),
        **pupil.facts,
        **facts,
    )
    write_result(pupil.student, pupil.source, out, result)
    return result
