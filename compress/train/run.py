"""Train a model: any objective, one process or several, exactly resumed after any kill.

The result depends on the seed, the rows, the options and the machine alone, not on where a training was interrupted.
On the number of processes, and on how a batch is cut into micro-batches, it depends by rounding only where the model
has neither dropout, of which every process and every cut draws another, nor batch norm, whose statistics are those of
the rows computed at once; both are facts of the result therefore. With `max_minutes` it depends on the speed too.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from compress.memory import PeakMemory
from compress.train.checkpoints import Checkpoints, TrainingState
from compress.train.clock import Clock
from compress.train.conductor import Conductor, Plan
from compress.train.curves import Curves
from compress.train.objective import Loss, Objective
from compress.train.order import Order, Share, row_lengths
from compress.train.out_of_memory import is_out_of_memory, memory_error, training_bytes
from compress.train.processes import is_leader, num_processes, rank, tell_all
from compress.train.score import Score
from compress.train.start import CHECKPOINTS, check_training, what_differs
from compress.train.trainer import SumTrainer, Trainee
from edgesmith.files import sha256_text
from edgesmith.progress import SILENT, Progress
from edgesmith.recipe.steps import TrainOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["DEFAULT_EPOCHS", "DEFAULT_LEARNING_RATE", "Loss", "Objective", "Score", "Trained", "train"]

DEFAULT_EPOCHS, DEFAULT_LEARNING_RATE = 3.0, 5e-5
"""Where neither the user nor the kind of step says otherwise."""
_SAVE_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a training went."""

    num_updates: int
    best_update: int
    """The update whose weights the model has now; 0 where training made nothing better."""
    best_metric: float | None
    metric_name: str
    history: list[dict[str, Any]]
    """Entries with `update`, `epoch`, `learning_rate`, `gradient_norm`, `loss`, its parts, and `metric` where the
    model was evaluated; losses are means per item since the entry before."""
    stopped_because: str
    num_processes: int
    micro_batches: list[dict[str, int]]
    """How many rows each process computed at once (`rows`), from which update on (`from_update`)."""
    seconds: float
    """Over all interrupted parts."""
    cpu_seconds: float
    """Of this process, in its last part."""
    peak_memory_bytes: int

    def facts(self) -> dict[str, Any]:
        """What belongs into an artifact: the same whenever the training is repeated; no times."""
        return {
            "num_updates": self.num_updates,
            "best_update": self.best_update,
            "best_metric": self.best_metric,
            "metric_name": self.metric_name,
            "stopped_because": self.stopped_because,
            "num_processes": self.num_processes,
            "micro_batches": self.micro_batches,
            "history": self.history,
        }


def train(
    model: PreTrainedModel,
    objective: Objective,
    dataset: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], dict[str, Tensor]],
    options: TrainOptions,
    *,
    evaluate: Callable[[PreTrainedModel], float | Score] | None,
    metric_name: str,
    higher_is_better: bool,
    seed: int,
    workplace: Path,
    progress: Progress = SILENT,
    save_seconds: float = _SAVE_SECONDS,
) -> Trained:
    """Train a model, and leave the best weights in it.

    Args:
        model: What is trained, in place: the parameters that require a gradient, or all where none does.
        objective: What it learns.
        dataset: The rows. Rows with lists of `input_ids` (or a dataset with `lengths`) share batches by length.
        collate: Rows → tensors.
        options: Epochs and learning rate are 3 and 5e-5 where they are left out.
        evaluate: Measures the model, which is in evaluation mode, without gradients; called about five times or
            once an epoch, on the first process only. None: the last weights are the result.
        metric_name: Of what `evaluate` gives.
        higher_is_better: Of that figure.
        seed: Of the order of the rows, and of dropout.
        workplace: Folder that survives a kill: the same call with the same folder goes on where it was. It must
            be of this training alone; under `torchrun`, all processes must see it.
        progress: Shows how far it is.
        save_seconds: Age of the last checkpoint at which a new one is written.

    Returns:
        How it went. The model is in evaluation mode.

    Raises:
        DataError: There are fewer rows than one batch has.
        TrainingError: The loss or its gradient is no finite number, or memory does not suffice.
        StorageError: The disk cannot hold the checkpoints.
        UnsupportedError: Gradient checkpointing, of a model that has none, or rows that several processes compare.
    """
    compares_rows = bool(getattr(objective, "compares_rows", False))
    check_training(model, options, num_rows=len(dataset), compares_rows=compares_rows, workplace=workplace)
    progress = progress if is_leader() else SILENT
    memory, cpu_begin = PeakMemory(), time.process_time()
    order = Order(num_rows=len(dataset), batch_size=options.batch_size, seed=seed, lengths=row_lengths(dataset))
    plan = Plan(
        num_updates=math.ceil((options.epochs or DEFAULT_EPOCHS) * order.updates_per_epoch),
        updates_per_epoch=order.updates_per_epoch,
        evaluate=evaluate,
        metric_name=metric_name,
        higher_is_better=higher_is_better,
        patience=options.patience,
        save_seconds=save_seconds,
    )
    checkpoints = Checkpoints(workplace / CHECKPOINTS)
    with _prepared(model, options) as trainee_of:
        trainee = trainee_of(objective)
        arguments = _arguments(options, checkpoints.root, seed)
        fingerprint = _fingerprint(trainee, options, order, plan)
        state = tell_all(_open(checkpoints, trainee, fingerprint, progress) if is_leader() else None)
        assert state is not None
        if not state.stopped_because:
            _run(trainee, arguments, state, order, plan, dataset, collate, options, checkpoints, progress)
        assert state.best_update is not None
        checkpoints.restore_best_(trainee, state.best_update)
    progress.note(f"train: {state.stopped_because}; the weights are those after update {state.best_update}")
    return Trained(
        num_updates=state.update,
        best_update=state.best_update,
        best_metric=state.best_metric,
        metric_name=metric_name,
        history=state.history,
        stopped_because=state.stopped_because,
        num_processes=num_processes(),
        micro_batches=state.micro_batches,
        seconds=state.seconds,
        cpu_seconds=time.process_time() - cpu_begin,
        peak_memory_bytes=memory.peak_bytes,
    )


def _open(checkpoints: Checkpoints, trainee: Trainee, fingerprint: str, progress: Progress) -> TrainingState:
    """Find where an interrupted training stood, or begin a new one."""
    state = checkpoints.find_finished(fingerprint) or checkpoints.find(fingerprint)
    if state is None:
        checkpoints.clear()
        checkpoints.check_space(trainee)
        return TrainingState(fingerprint=fingerprint)
    if not state.stopped_because:
        progress.note(f"train: goes on after update {state.update}, where it was interrupted")
    return state


def _run(
    trainee: Trainee,
    arguments: TrainingArguments,
    state: TrainingState,
    order: Order,
    plan: Plan,
    rows: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], dict[str, Tensor]],
    options: TrainOptions,
    checkpoints: Checkpoints,
    progress: Progress,
) -> None:
    clock = Clock(options.max_minutes * 60 if options.max_minutes else None, state.seconds)
    share_size = math.ceil(options.batch_size / num_processes())
    before = state.micro_batches[-1]["rows"] if state.micro_batches else share_size
    micro_batch_size = min(before, options.micro_batch_size or share_size, share_size)
    compares_rows = bool(getattr(trainee.objective, "compares_rows", False))
    is_resumed = state.update > 0
    with progress.bar("train", plan.num_updates) as report:
        trainer = SumTrainer(
            trainee,
            arguments,
            rows=rows,
            collate=collate,
            share=Share(order, plan.num_updates, rank=rank(), num_processes=num_processes()),
            options=options,
            seed=order.seed,
            clock=clock,
            checkpoints=checkpoints,
            micro_batch_size=micro_batch_size,
            may_halve=not compares_rows,
            differing=what_differs(trainee.model, compares_rows=compares_rows),
            note=progress.note,
        )
        trainer.remove_callback(PrinterCallback)
        curves = Curves(checkpoints.root / "tensorboard" if is_leader() else None, state.update, progress)
        conductor = Conductor(
            trainer, plan, state=state, checkpoints=checkpoints, clock=clock, report=report, curves=curves
        )
        trainer.add_callback(conductor)
        try:
            trainer.train(resume_from_checkpoint=str(checkpoints.last) if is_resumed else None)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            state_bytes = training_bytes(trainee.parameters())
            raise memory_error(
                error, num_rows=None, longest=None, state_bytes=state_bytes, is_checkpointed=False
            ) from error
        finally:
            curves.close()
        if plan.evaluate is None:
            conductor.keep_best(state.update)
        state.seconds = clock.elapsed
        if is_leader():
            checkpoints.finish(state)
        tell_all(None)  # nobody reads the best weights before they are there


def _arguments(options: TrainOptions, folder: Path, seed: int) -> TrainingArguments:
    """Trainer does one pass over all updates of all epochs; what it would do beside that is done by `Conductor`."""
    is_on_cpu = not torch.accelerator.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        learning_rate=options.learning_rate or DEFAULT_LEARNING_RATE,
        weight_decay=options.weight_decay,
        max_grad_norm=0,  # clipped with the scaling of the sums, in one go
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,  # refused, not smoothed over
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        seed=seed,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=is_on_cpu,
        ddp_backend="gloo" if is_on_cpu and num_processes() > 1 else None,
    )
    assert arguments.world_size == num_processes()  # which also connects the processes, and counts the GPUs
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs are for several processes
    return arguments


def _fingerprint(trainee: Trainee, options: TrainOptions, order: Order, plan: Plan) -> str:
    """Hash what decides the result; how a batch is computed does not."""
    decisive = options.model_dump_json(exclude={"micro_batch_size", "gradient_checkpointing"})
    shapes = [(name, list(parameter.shape), parameter.requires_grad) for name, parameter in trainee.named_parameters()]
    rest = (order.num_rows, order.seed, order.lengths is None, plan.num_updates, plan.metric_name)
    return sha256_text(decisive, repr(shapes), repr(rest))


@contextmanager
def _prepared(model: PreTrainedModel, options: TrainOptions) -> Iterator[Callable[[Objective], Trainee]]:
    """Turn gradients on, keep libraries silent, and leave everything but the weights as it was."""
    needed = [parameter.requires_grad for parameter in model.parameters()]
    device, verbosity = next(model.parameters()).device, transformers_logging.get_verbosity()
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            if not any(needed):
                model.requires_grad_(True)
            if options.gradient_checkpointing:
                model.activation_checkpointing_enable({"use_reentrant": False})
            yield lambda objective: Trainee(model, objective)
        finally:
            if options.gradient_checkpointing:
                model.activation_checkpointing_disable()
            model.zero_grad(set_to_none=True)
            for parameter, was_needed in zip(model.parameters(), needed, strict=True):
                parameter.requires_grad_(was_needed)
            model.to(device).eval()
            random.setstate(states[0])
            np.random.set_state(states[1])
            transformers_logging.set_verbosity(verbosity)
