"""A teacher with its student: made or loaded, and checked against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.distill.students import check_student, count_parameters, load_student
from compress.load import ModelKind, load_model
from compress.prune.layers import choose_layers, keep_layers
from edgesmith.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgesmith.recipe import DistillOptions

__all__ = ["Pupil", "layers_of", "prepare_pupil"]


@dataclass(kw_only=True)
class Pupil:
    """A student that can learn from its teacher."""

    student: PreTrainedModel
    teacher: PreTrainedModel | None
    """None once nobody asks it any more, so that its memory is free."""
    origin: str
    """Where the student comes from."""
    source: Path
    """Whose side files the result takes over."""
    facts: dict[str, Any] = field(init=False)
    """Layers and parameters of both."""

    def __post_init__(self) -> None:
        assert self.teacher is not None
        self.facts = {
            "student": self.origin,
            "num_layers": layers_of(self.student),
            "num_parameters": count_parameters(self.student),
            "teacher_num_layers": layers_of(self.teacher),
            "teacher_num_parameters": count_parameters(self.teacher),
        }

    @property
    def present_teacher(self) -> PreTrainedModel:
        """The teacher, as long as it is needed."""
        assert self.teacher is not None
        return self.teacher


def layers_of(model: PreTrainedModel) -> int | None:
    """Hidden layers, where the configuration counts them."""
    number = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    return number if isinstance(number, int) else None


def prepare_pupil(
    teacher: Path,
    student: Path | None,
    kind: ModelKind,
    options: DistillOptions,
    *,
    seed: int,
    batches: Sequence[Mapping[str, Any]],
) -> Pupil:
    """Load the teacher, make or load the student, and check that they fit.

    Args:
        teacher: Checkpoint.
        student: Checkpoint; made of the teacher's layers when None.
        kind: The task.
        options: Which layers.
        seed: Of a head that a student lacks.
        batches: The teacher's inputs for some rows, by which layers are judged.

    Raises:
        UsageError: the student is larger than its teacher, or its layers cannot be those asked for.
        CheckpointError: they have other tokenizers or labels, or one is damaged.
        UnsupportedError: the teacher's layers cannot be told apart.
    """
    if student is not None and (options.num_layers is not None or options.layers != "uniform"):
        raise UsageError(
            f"num_layers and layers make a student of the teacher's own layers, and {student} is given",
            mend="Give one of them.",
        )
    model = load_model(teacher, kind)
    if student is None:
        made, origin = _from_layers(model, options, batches)
        pupil = Pupil(teacher=model, student=made, origin=origin, source=teacher)
    else:
        given = load_student(student, kind, model, seed=seed)
        check_student(model, given, (teacher, student))
        pupil = Pupil(teacher=model, student=given, origin="a checkpoint of its own", source=student)
    for name, parameter in pupil.student.named_parameters():
        # What the task's outputs do not need learns nothing.
        parameter.requires_grad_(kind.output_names != ("last_hidden_state",) or "pooler." not in name)
    return pupil


def _from_layers(
    teacher: PreTrainedModel, options: DistillOptions, batches: Sequence[Mapping[str, Any]]
) -> tuple[PreTrainedModel, str]:
    total, which, number = layers_of(teacher), options.layers, options.num_layers
    if number is None:
        number = len(which) if isinstance(which, tuple) else total
    if number is None or total is None:
        raise UsageError(
            f"{type(teacher).__name__}: a student cannot be made of its layers, which its configuration does not count",
            mend="Give a smaller checkpoint as the student: prune it first.",
        )
    if number == total and isinstance(which, str):
        return keep_layers(teacher, range(number)), f"all {number} layers of the teacher"
    chosen = choose_layers(teacher, number, which, batches)
    return keep_layers(teacher, chosen), f"layers {', '.join(map(str, chosen))} of the teacher's {total}"
