"""Distillation of language models: windows of text in, trained student out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.distill.cache import Field, TeacherCache
from compress.distill.generation import end_tokens, labels_of_continuations, seed_of, write_continuations
from compress.distill.language import LanguageObjective
from compress.distill.losses import IGNORED
from compress.distill.objective import Insight
from compress.distill.predictions import kept_predictions, prediction_fields
from compress.distill.pupil import Pupil, prepare_pupil
from compress.distill.readout import Readout
from compress.distill.result import DistillResult
from compress.distill.run import Work, check_options, run, with_defaults
from compress.distill.split import hold_out
from compress.distill.validate import validate_language
from compress.train.start import check_training
from edgesmith.units import format_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgesmith.recipe import DistillOptions, TrainOptions

__all__ = ["LanguageKind", "WindowData", "distill_language"]

_TEMPERATURE = 1.0
_EPOCHS = 1.0
_LEARNING_RATE = 1e-4
_MOST_VALIDATED = 32
_CALIBRATION_WINDOWS = 16
_AT_ONCE = 4
"""Windows whose predictions the teacher computes at once: the logits of all tokens are large."""
_PIECE_WINDOWS = 16
_LOGITS_BYTES = 256_000_000
"""Of the windows that are trained on at once, where nobody says how many; the losses take five times as much."""
_PROMPT_SHARE = 4
"""A quarter of a window is the prompt of what the teacher writes."""
_TOKENS = "tokens"


@dataclass(frozen=True, kw_only=True)
class LanguageKind:
    """What loading asks about language models."""

    name: str = "text-generation"
    model_class: str = "AutoModelForCausalLM"
    output_names: tuple[str, ...] = ("logits",)


@dataclass(frozen=True, kw_only=True)
class WindowData:
    """Windows of one length, as training takes them."""

    tokens: NDArray[np.int64]
    """Token ids, of shape [num_windows, length]."""
    labels: NDArray[np.int64]
    """The same where the token is learnt, -100 where it is not."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """Positions of each window whose next token is learnt."""
        return np.asarray((self.labels[:, 1:] != IGNORED).sum(axis=1), np.int64)

    def rows(self, numbers: Sequence[int]) -> list[dict[str, int]]:
        """Some windows, as a training goes through them."""
        return [{"row": number} for number in numbers]

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Some windows as a batch, with their numbers."""
        numbers = [row["row"] for row in rows]
        tokens_BL = torch.from_numpy(self.tokens[numbers])
        return {
            "input_ids": tokens_BL,
            "attention_mask": torch.ones_like(tokens_BL),
            "labels": torch.from_numpy(self.labels[numbers]),
            "rows": torch.tensor(numbers),
        }


def distill_language(
    teacher: Path,
    out: Path,
    *,
    student: Path | None,
    windows: Sequence[Sequence[int]],
    options: DistillOptions,
    work: Work,
    num_from_file: int | None = None,
) -> DistillResult:
    """Train a student of a language model on windows of text and write it as a checkpoint.

    Args:
        teacher: Checkpoint.
        out: An empty folder.
        student: Checkpoint to train; made of the teacher's layers when None.
        windows: Token ids, all of one length.
        options: What is learnt, and how.
        work: Where it works.
        num_from_file: Windows of the training file, some of which are held out; all when None.

    Raises:
        UsageError: nothing is to be learnt, or the student is larger.
        CheckpointError: student and teacher do not fit.
        DataError: too little text.
        UnsupportedError: an architecture that shows no states or no attention, where they are to be learnt.
        TrainingError: the loss is no number, or memory does not suffice.
    """
    check_options(options, has_labels=True, items="positions")
    num_held_from = len(windows) if num_from_file is None else num_from_file
    groups = [None] * num_held_from
    trained, held = hold_out(
        groups, options.train.validation, seed=work.seed, most=_MOST_VALIDATED, what="windows of text"
    )
    trained += range(num_held_from, len(windows))
    tokens_NL = np.array([windows[number] for number in trained], np.int64)
    batches = _batches(tokens_NL[:_CALIBRATION_WINDOWS])
    pupil = prepare_pupil(teacher, student, LanguageKind(), options, seed=work.seed, batches=batches)
    chosen = _chosen(options.train, pupil, length=tokens_NL.shape[1], work=work)
    check_training(
        pupil.student, chosen, num_rows=len(trained), compares_rows=options.on_policy > 0, workplace=work.folder
    )
    insight = _insight(pupil, WindowData(tokens=tokens_NL, labels=tokens_NL), options, work.seed)
    validation = validate_language([windows[number] for number in held], pupil.present_teacher)
    data, written_bytes = _data(pupil.present_teacher, tokens_NL, options, work)
    temperature = options.temperature or _TEMPERATURE
    cache = None
    if options.soft and options.cache_top_k and insight is None and options.on_policy < 1:
        cache = _ask(pupil.present_teacher, data, options, temperature, work)
    if cache is not None and not options.on_policy:
        pupil.teacher = None
    objective = LanguageObjective(
        options=options,
        teacher=pupil.teacher,
        cache=cache,
        insight=insight,
        temperature=temperature,
        seed=work.seed,
    )
    return run(
        pupil,
        out,
        objective=objective,
        rows=data.rows(range(len(trained))),
        collate=data.collate,
        validation=validation,
        options=chosen,
        work=work,
        num_unlabelled=len(windows) - num_held_from,
        num_validated=len(held),
        teacher_cache_bytes=written_bytes + (cache.size_bytes if cache is not None else 0),
    )


def _chosen(options: TrainOptions, pupil: Pupil, *, length: int, work: Work) -> TrainOptions:
    """Fill in what is left open: the windows computed at once are so many that their logits are not too large."""
    options = with_defaults(options, epochs=_EPOCHS, learning_rate=_LEARNING_RATE)
    if options.micro_batch_size is not None:
        return options
    window_bytes = 4 * length * num_tokens_of(pupil.student)
    pieces = math.ceil(options.batch_size / max(1, _LOGITS_BYTES // window_bytes))
    size = math.ceil(options.batch_size / pieces)
    if size < options.batch_size:
        work.progress.note(
            f"train: {size} windows at once, as the logits of a batch of {options.batch_size} would take "
            f"{format_bytes(options.batch_size * window_bytes)} several times over"
        )
    return options.model_copy(update={"micro_batch_size": size})


def _data(
    teacher: PreTrainedModel, tokens_NL: NDArray[np.int64], options: DistillOptions, work: Work
) -> tuple[WindowData, int]:
    """The windows to train on: the text's, or the teacher's own continuations; and the bytes kept of those."""
    if not options.sequence_level:
        return WindowData(tokens=tokens_NL, labels=tokens_NL), 0
    num_windows, length = tokens_NL.shape
    prompt_length = max(1, length // _PROMPT_SHARE)
    folder, identity = work.cache_of("continuations", length, work.seed, options.train.validation)
    fields = {_TOKENS: Field(dtype=np.int64, width=length)}
    cache = TeacherCache(folder, fields, np.ones(num_windows, np.int64), identity=identity)

    def write(rows: Sequence[int]) -> dict[str, NDArray[np.int64]]:
        seed = seed_of(work.seed, rows[0])
        windows = tokens_NL[list(rows)].tolist()
        return {_TOKENS: write_continuations(teacher, windows, prompt_length=prompt_length, seed=seed)}

    cache.fill(write, piece_rows=_PIECE_WINDOWS, progress=work.progress, description="teacher writes")
    written_NL = np.asarray(cache.read(range(num_windows))[_TOKENS], np.int64)
    labels_NL = labels_of_continuations(torch.from_numpy(written_NL), prompt_length, end_tokens(teacher))
    return WindowData(tokens=written_NL, labels=labels_NL.numpy()), cache.size_bytes


def _ask(
    teacher: PreTrainedModel, data: WindowData, options: DistillOptions, temperature: float, work: Work
) -> TeacherCache:
    """Keep the teacher's predictions on all windows."""
    fields = prediction_fields(options.cache_top_k, num_tokens_of(teacher))
    sequence = work.seed if options.sequence_level else "text"
    parts = (data.tokens.shape[1], sequence, work.seed, options.train.validation, options.cache_top_k, temperature)
    folder, identity = work.cache_of("predictions", *parts)
    cache = TeacherCache(folder, fields, data.counts, identity=identity)

    def predict(rows: Sequence[int]) -> dict[str, NDArray[np.generic]]:
        found = [
            kept_predictions(
                teacher,
                data.collate(data.rows(rows[start : start + _AT_ONCE])),
                top_k=options.cache_top_k,
                temperature=temperature,
            )
            for start in range(0, len(rows), _AT_ONCE)
        ]
        return {name: np.concatenate([one[name] for one in found]) for name in fields}

    cache.fill(predict, piece_rows=_PIECE_WINDOWS, progress=work.progress, description="teacher reads the text")
    return cache


def num_tokens_of(model: PreTrainedModel) -> int:
    """Tokens that a language model gives logits of."""
    return int(model.get_output_embeddings().weight.shape[0])


def _insight(pupil: Pupil, data: WindowData, options: DistillOptions, seed: int) -> Insight | None:
    if not (options.hidden or options.relation):
        return None
    readout = Readout(items="tokens", input_names=("input_ids", "attention_mask"))
    return Insight(
        pupil.present_teacher,
        pupil.student,
        sample=data.collate(data.rows([0])),
        readouts=(readout, readout),
        options=options,
        causal=True,
        seed=seed,
    )


def _batches(tokens_NL: NDArray[np.int64]) -> list[dict[str, NDArray[np.int64]]]:
    """The first windows as the teacher's inputs."""
    pieces = np.split(tokens_NL, range(_AT_ONCE, len(tokens_NL), _AT_ONCE))
    return [{"input_ids": piece, "attention_mask": np.ones_like(piece)} for piece in pieces]
