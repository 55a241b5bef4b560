"""Distill: teacher, and a student or how to make one → a smaller checkpoint that was trained to do as the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact, tool_versions
from edgesmith.data import read_rows
from edgesmith.files import sha256_text
from edgesmith.progress import Progress
from edgesmith.recipe import DistillOptions
from edgesmith.stages.rows import Rows
from edgesmith.stages.texts import Texts
from edgesmith.stages.trained import TrainedStage, save_seconds
from edgesmith.store import code_digest
from edgesmith.tasks import TEXT_GENERATION, Example, FeatureExtraction, Task, TextTask, guess_task, load_task
from edgesmith.tasks.folder import read_json_object
from edgesmith.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from compress.distill.result import DistillResult
    from compress.distill.run import Work

__all__ = ["DistillStage"]

_WINDOW = 256
"""Tokens of a window, where nobody says."""
_ALL_WINDOWS = 1 << 30
_READERS = {
    False: ("compress.distill.rows",),
    True: ("compress.distill.run_language", "edgesmith.stages.texts"),
}
"""Whether it is a language model → the modules that decide what its teacher reads, and what of its words is kept."""
_LABEL_COLUMNS = ("label", "labels", "entities")


@dataclass(frozen=True, kw_only=True)
class DistillStage(TrainedStage):
    """Train a student to do as its teacher does; what the teacher said is kept beside the workplaces."""

    step: ClassVar[str] = "distill"

    teacher: Artifact
    data: Path
    """Training rows; of a language model a text file, or rows with a column `text`."""
    distill: DistillOptions
    """`student` in it is not looked at."""
    student: Artifact | None = None
    """The checkpoint to train; made of the teacher's layers when None."""
    unlabelled: Path | None = None
    """More rows, or text, on which only the teacher is learnt from."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The task's column → the file's."""
    task: str | None = None
    """Guessed from config.json when None."""
    seed: int = 0

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        options = self.distill.model_dump(mode="json", exclude={"student"})
        return {**options, "columns": dict(self.columns), "task": self.task, "seed": self.seed}

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        found = {"teacher": self.teacher.digest, "data": self._rows(self.data).digest}
        if self.student is not None:
            found["student"] = self.student.digest
        if self.unlabelled is not None:
            found["unlabelled"] = self._rows(self.unlabelled).digest
        return found

    @property
    def task_name(self) -> str:
        """Of the teacher."""
        return self.task or guess_task(read_json_object(self.teacher.path / "config.json"))

    def make_trained(self, folder: Path, workplace: Path, progress: Progress) -> Artifact:
        """Train, and write the student with `training.json`."""
        work = self._work(workplace, progress)
        if self.task_name == TEXT_GENERATION:
            result = self._distill_language(folder, work)
        else:
            result = self._distill_rows(folder, work)
        self.leave_to_leader()
        _say(result, progress)
        return self.seal(folder)

    def _work(self, workplace: Path, progress: Progress) -> Work:
        from compress.distill.run import Work

        digests = [digest for role, digest in self.inputs.items() if role != "student"]
        tools = [f"{name} {version}" for name, version in tool_versions(*self.libraries).items()]
        columns = [f"{name}={column}" for name, column in sorted(self.columns.items())]
        code = [code_digest(module) for module in _READERS[self.task_name == TEXT_GENERATION]]
        identity = sha256_text(*digests, *tools, *columns, self.task_name, *code)
        return Work(
            folder=workplace,
            cache=self.workplace,
            identity=identity,
            seed=self.seed,
            progress=progress,
            save_seconds=save_seconds(),
        )

    def _distill_rows(self, folder: Path, work: Work) -> DistillResult:
        from compress.distill.rows import RowData
        from compress.distill.run_rows import distill_rows, single_texts

        student = self.student or self.teacher
        limit = self.distill.train.max_length
        teacher_task = load_task(self.teacher.path, self.task_name, columns=self.columns, max_length=limit)
        task = self._task_of(student.path, teacher_task)
        examples = self._read(task)
        num_from_file = len(examples)
        if self.unlabelled is not None:
            examples += task.read_examples(self.unlabelled, labelled=False)
        if task.output_kind == "embedding":
            num_from_file = len(single_texts(examples[:num_from_file]))
            examples = single_texts(examples)
        return distill_rows(
            self.teacher.path,
            folder,
            student=None if self.student is None else self.student.path,
            data=RowData(task=task, teacher_task=teacher_task, examples=examples),
            num_from_file=num_from_file,
            options=self.distill,
            work=work,
        )

    def _task_of(self, student: Path, teacher: Task) -> Task:
        """The student's own; where it has no head, and so no labels, the teacher's at the length that it can read."""
        limit = self.distill.train.max_length
        is_headless = teacher.output_kind == "logits" and not read_json_object(student / "config.json").get("id2label")
        if not is_headless:
            return load_task(student, self.task_name, columns=self.columns, max_length=limit)
        if isinstance(teacher, TextTask):
            lengths = (teacher.max_length, load_task(student, FeatureExtraction.name, max_length=limit).max_length)
            limit = min((length for length in lengths if length is not None), default=None)
        return load_task(self.teacher.path, self.task_name, columns=self.columns, max_length=limit)

    def _read(self, task: Task) -> list[Example]:
        """The training rows, with their labels where they have some."""
        columns = [self.columns.get(name, name) for name in _LABEL_COLUMNS if name in task.column_names]
        first = next(read_rows(self.data))
        return task.read_examples(self.data, labelled=any(name in first.values for name in columns))

    def _distill_language(self, folder: Path, work: Work) -> DistillResult:
        from compress.distill.run_language import distill_language

        files = [self.data] if self.unlabelled is None else [self.data, self.unlabelled]
        windows = [self._texts(path).cut_by_tokenizer(self.teacher.path) for path in files]
        return distill_language(
            self.teacher.path,
            folder,
            student=None if self.student is None else self.student.path,
            windows=[window for one in windows for window in one],
            num_from_file=len(windows[0]),
            options=self.distill,
            work=work,
        )

    def _texts(self, path: Path) -> Texts:
        window = self.distill.train.max_length or _WINDOW
        return Texts(path=path, window=window, num_windows=_ALL_WINDOWS, columns=self.columns)

    def _rows(self, path: Path) -> Rows:
        return Rows(path=path, columns=self.columns)


def _say(result: DistillResult, progress: Progress) -> None:
    teacher = "" if result.teacher_metric is None else f" (teacher {result.teacher_metric:.4g})"
    progress.note(
        f"distill: {result.student}: {result.num_parameters:,} of {result.teacher_num_parameters:,} parameters; "
        f"{result.metric} {result.first_metric:.4g} → {result.best_metric:.4g}{teacher} after update "
        f"{result.best_update} of {result.num_updates}; {format_seconds(result.seconds)}, "
        f"peak memory {format_bytes(result.peak_memory_bytes)}"
    )
