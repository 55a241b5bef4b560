"""Rows of a task as training takes them: numbered, encoded for teacher and student, with labels where there are any."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.distill.cache import Field, TeacherCache
from compress.distill.losses import IGNORED
from compress.distill.objective import ANSWERS
from compress.distill.readout import Readout, readout_of
from edgesmith.files import sha256_text
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from edgesmith.tasks import Example, Prediction, Task

__all__ = ["NumberedRows", "RowData"]

_BATCH = 16
_PIECE_ROWS = 256
"""Rows whose answers are written at once."""


class NumberedRows(Sequence[Mapping[str, Any]]):
    """Some of the rows, as training goes through them: their numbers, and their lengths in tokens."""

    def __init__(self, rows: Sequence[int], lengths: Sequence[int] | None) -> None:
        self.rows = list(rows)
        if lengths is not None:
            self.lengths = [lengths[row] for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return {"row": self.rows[index]}


@dataclass(kw_only=True)
class RowData:
    """All rows: those of the training file, and those without labels."""

    task: Task
    """The student's."""
    teacher_task: Task
    examples: Sequence[Example]
    """A target of None is no label."""

    @cached_property
    def readouts(self) -> tuple[Readout, Readout]:
        """The teacher's and the student's."""
        return readout_of(self.teacher_task), readout_of(self.task)

    @property
    def lengths(self) -> list[int] | None:
        """Tokens of each row; None for pictures."""
        return self._encoded[0]

    @property
    def encoding(self) -> str:
        """A hash of what the models read: another tokenizer, or another limit, encodes the same rows otherwise."""
        return self._encoded[1]

    @cached_property
    def _encoded(self) -> tuple[list[int] | None, str]:
        settings = json.dumps([task.runtime_config() for task in (self.teacher_task, self.task)], sort_keys=True)
        if "attention_mask" not in self.task.input_names:  # pictures, whose preparation the settings describe
            return None, sha256_text(settings)
        lengths: list[int] = []
        read = hashlib.sha256(settings.encode())
        for start in range(0, len(self.examples), _PIECE_ROWS):
            arrays = self.task.encode(self.examples[start : start + _PIECE_ROWS])
            lengths += np.asarray(arrays["attention_mask"]).sum(axis=1).tolist()
            for name, array in sorted(arrays.items()):
                read.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return lengths, read.hexdigest()

    @property
    def counts(self) -> NDArray[np.int64]:
        """Items of each row."""
        if self.readouts[0].items == "tokens":
            assert self.lengths is not None
            return np.array(self.lengths, np.int64)
        return np.ones(len(self.examples), np.int64)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Encode some rows for both models, with their numbers and labels."""
        numbers = [row["row"] for row in rows]
        examples = [self.examples[number] for number in numbers]
        arrays = dict(self.task.encode(examples))
        if set(self.teacher_task.input_names) - arrays.keys():
            arrays = {**self.teacher_task.encode(examples), **arrays}
        batch = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        batch["rows"] = torch.tensor(numbers)
        batch["labels"] = self._labels(examples, batch)
        return batch

    def _labels(self, examples: Sequence[Example], batch: Mapping[str, Tensor]) -> Tensor:
        if self.readouts[1].items == "tokens":
            targets_of = getattr(self.task, "targets", None)
            is_labelled_B = np.array([one.target is not None for one in examples])
            labels_BL = np.full(batch["input_ids"].shape, IGNORED, np.int64)
            if targets_of is not None and is_labelled_B.any():
                arrays = {name: batch[name].numpy()[is_labelled_B] for name in self.task.input_names}
                labels_BL[is_labelled_B] = targets_of([one for one in examples if one.target is not None], arrays)
            return torch.from_numpy(labels_BL)
        targets = [one.target if isinstance(one.target, int) else IGNORED for one in examples]
        return torch.tensor(targets, dtype=torch.int64)

    def predictions(self, items: NDArray[np.float32], rows: Sequence[int]) -> list[Prediction]:
        """What the task says of some rows, given a classifier's answers to them."""
        if self.readouts[1].items == "rows":
            return self.task.decode({"logits": items}, {}, [self.examples[row] for row in rows])
        found: list[Prediction] = []
        for start in range(0, len(rows), _BATCH):
            examples = [self.examples[row] for row in rows[start : start + _BATCH]]
            arrays = self.task.encode(examples)
            mask_BL = np.asarray(arrays["attention_mask"]).astype(bool)
            logits_BLC = np.zeros((*mask_BL.shape, items.shape[1]), np.float32)
            logits_BLC[mask_BL], items = items[: mask_BL.sum()], items[mask_BL.sum() :]
            found += self.task.decode({"logits": logits_BLC}, arrays, examples)
        return found

    def answers(self, model: PreTrainedModel, rows: Sequence[int], *, of_teacher: bool) -> NDArray[np.float32]:
        """Run a model, in evaluation mode: float32 of shape [num_items, width], in the order of `rows`."""
        readout = self.readouts[0 if of_teacher else 1]
        lengths = self.lengths
        order = sorted(range(len(rows)), key=lambda index: (lengths[rows[index]] if lengths else 0, index))
        found: dict[int, NDArray[np.float32]] = {}
        counts = self.counts
        was_training = model.training
        model.eval()
        with torch.no_grad():
            for start in range(0, len(order), _BATCH):
                places = order[start : start + _BATCH]
                batch = self.collate([{"row": rows[place]} for place in places])
                batch = {name: value.to(next(model.parameters()).device) for name, value in batch.items()}
                items = readout.read(model(**readout.inputs(batch), return_dict=True), batch).float().cpu().numpy()
                ends = np.cumsum([counts[rows[place]] for place in places])
                found |= dict(zip(places, np.split(items, ends[:-1]), strict=True))
        model.train(was_training)
        return np.concatenate([found[place] for place in range(len(rows))])

    def ask(
        self, teacher: PreTrainedModel, folder: Path, *, identity: str, progress: Progress = SILENT
    ) -> TeacherCache:
        """Keep what the teacher says of every row; what is there already is not asked again."""
        width = self.answers(teacher, [0], of_teacher=True).shape[1]
        fields = {ANSWERS: Field(dtype=np.float32, width=width)}
        cache = TeacherCache(folder, fields, self.counts, identity=identity)
        cache.fill(
            lambda rows: {ANSWERS: self.answers(teacher, rows, of_teacher=True)},
            piece_rows=_PIECE_ROWS,
            progress=progress,
            description="teacher reads the rows",
        )
        return cache
