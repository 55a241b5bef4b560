"""Hugging Face's Trainer, with gradients that are sums over a whole batch however it is split.

One step of the Trainer is one update: this process's rows of a batch come as one item, and are cut into micro-batches
here. Gradients of sums add up over micro-batches; DistributedDataParallel averages them over processes; both are then
scaled so that what remains is the gradient of the mean over all items of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

from compress.train.checkpoints import Checkpoints
from compress.train.clock import Clock
from compress.train.objective import Objective
from compress.train.order import Share
from compress.train.out_of_memory import is_out_of_memory, memory_error, training_bytes
from compress.train.processes import gather, num_processes, rank
from compress.train.start import has_batch_norm
from edgesmith.errors import TrainingError
from edgesmith.recipe.steps import TrainOptions

__all__ = ["SumTrainer", "Trainee", "UpdateReport"]

Rows = Sequence[Mapping[str, Any]]
Collate = Callable[[list[Any]], dict[str, Tensor]]


class Trainee(nn.Module):
    """A model and the objective's own modules, as one module whose output is the loss."""

    def __init__(self, model: PreTrainedModel, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.further = objective.modules() or nn.ModuleDict()
        self._held = (objective,)  # in a tuple: an objective that is a module itself is not to be trained

    @property
    def objective(self) -> Objective:
        """What is learnt."""
        return self._held[0]

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, int, dict[str, Tensor]]:
        """Compute the sum of the losses, the number of items, and the parts."""
        loss = self.objective.loss(self.model, batch)
        return loss.total, loss.num_items, dict(loss.parts)


@dataclass
class UpdateReport:
    """What all processes know of one update."""

    num_items: int = 0
    total: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    gradient_norm: float = 0.0
    learning_rate: float = 0.0
    is_time_up: bool = False
    is_save_due: bool = False

    @property
    def means(self) -> dict[str, float]:
        """The loss and its parts per item."""
        items = max(1, self.num_items)
        return {"loss": self.total / items, **{name: value / items for name, value in sorted(self.parts.items())}}


class SumTrainer(Trainer):  # type: ignore[misc]  # transformers has no types here
    """Trains a `Trainee` on rows, update by update.

    Args:
        trainee: What is trained.
        args: Trainer's own arguments.
        rows: The training rows.
        collate: Rows → tensors of a micro-batch.
        share: Which rows this process computes of every update.
        options: How weights are trained.
        seed: Of dropout, and of whatever else the objective draws.
        clock: Time that the training took, and may take.
        checkpoints: Where Trainer finds the weights when it resumes.
        micro_batch_size: Rows computed at once.
        may_halve: Whether fewer rows may be computed at once where memory is short.
        differing: What is another then, as `what_differs` says it.
        note: Tells the user something.

    Attributes:
        report: What the last update was.
        look_at_clock: Says whether the time is up, and whether a checkpoint is due.
    """

    def __init__(
        self,
        trainee: Trainee,
        args: TrainingArguments,
        *,
        rows: Rows,
        collate: Collate,
        share: Share,
        options: TrainOptions,
        seed: int,
        clock: Clock,
        checkpoints: Checkpoints,
        micro_batch_size: int,
        may_halve: bool,
        differing: str,
        note: Callable[[str], None],
    ) -> None:
        super().__init__(model=trainee, args=args, train_dataset=rows)
        self._rows, self._collate, self._share = rows, collate, share
        self._options, self._seed, self._clock = options, seed, clock
        self._checkpoints, self._note = checkpoints, note
        self._may_halve = may_halve and num_processes() == 1
        self._differing = differing
        self._last_loss: float | None = None
        self._num_tokens: int | None = None  # of the longest row of the last micro-batch
        self.lr_scheduler: LRScheduler
        self.look_at_clock: Callable[[], tuple[bool, bool]] = lambda: (False, False)
        self.micro_batch_size = micro_batch_size
        self.report = UpdateReport()

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Give this process's rows, one update an item; accelerate has nothing to split."""
        rows: Dataset[Any] = self._rows  # type: ignore[assignment]  # DataLoader asks for no more than a sequence
        return DataLoader(rows, batch_sampler=self._share, collate_fn=list)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices decay; norms and biases, which have one dimension, do not."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LRScheduler:
        """Warm up, then fall to zero by the last update or the end of the time, whichever is nearer."""
        warmup, is_cosine = self._options.warmup, self._options.schedule == "cosine"

        def factor(update: int) -> float:
            one = 1 / num_training_steps
            done = min(1.0, max(update * one, self._clock.fraction))
            if done < warmup:
                return (done + one) / (warmup + one)  # not from zero: the first update would do nothing
            left = (1 - done) / (1 - warmup)
            return (1 - math.cos(math.pi * left)) / 2 if is_cosine else left

        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Compute the gradient of one update: scaled, clipped and known to be finite."""
        del num_items_in_batch
        update = self.state.global_step + 1
        model.train()
        self.report = self._backward(model, inputs, update)
        items = max(1, self.report.num_items)
        self._check_finite(update, self.report.total / items, "loss")
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        scale = num_processes() / items
        norm = get_total_norm(gradients) * scale if gradients else torch.zeros(())
        self.report.gradient_norm = float(norm)
        self.report.learning_rate = float(self.lr_scheduler.get_last_lr()[0])
        self._check_finite(update, self.report.gradient_norm, "gradient's norm")
        longest = self._options.max_gradient_norm
        torch._foreach_mul_(gradients, scale * min(1.0, longest / (self.report.gradient_norm + 1e-6)))
        self._last_loss = self.report.total / items
        return torch.tensor(self._last_loss, device=self.args.device)

    def _backward(self, model: nn.Module, rows: list[Any], update: int) -> UpdateReport:
        while True:
            # What an update draws depends on its number alone: a resumed training draws the same.
            torch.manual_seed(int(np.random.SeedSequence([self._seed, update, rank()]).generate_state(1)[0]))
            size, failure = self.micro_batch_size, None
            try:
                return self._share_report(self._backward_once(model, rows, size))
            except (RuntimeError, MemoryError, OSError) as error:
                if not is_out_of_memory(error):
                    raise
                if not (self._may_halve and size > 1 and len(rows) > 1):
                    raise self._memory_error(error, rows) from error
                failure = str(error)
            # Outside of the handler, whose traceback holds on to the tensors.
            del failure
            model.zero_grad()
            self.micro_batch_size = math.ceil(min(size, len(rows)) / 2)
            self._note(
                f"memory is short: going on with {self.micro_batch_size} rows at once instead of {min(size, len(rows))}"
                + (f"; not quite the same result: {self._differing}" if self._differing else "; the result is the same")
            )

    def _backward_once(self, model: nn.Module, rows: list[Any], size: int) -> UpdateReport:
        """Add up gradients of sums over this process's rows."""
        is_idle = not rows  # the last processes of a batch with fewer rows than processes
        rows = rows or [self._rows[0]]
        report = UpdateReport()
        starts = range(0, len(rows), size)
        for start in starts:
            is_last = start == starts[-1]
            batch = self._prepare_inputs(self._collate(rows[start : start + size]))
            self._num_tokens = batch["input_ids"].shape[-1] if "input_ids" in batch else None
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                total, num_items, parts = model(batch)
                self.accelerator.backward(total * 0 if is_idle else total)
            report.num_items += 0 if is_idle else num_items
            report.total += 0.0 if is_idle else float(total.detach())
            for name, value in parts.items():
                report.parts[name] = report.parts.get(name, 0.0) + (0.0 if is_idle else float(value.detach()))
        return report

    def _share_report(self, report: UpdateReport) -> UpdateReport:
        """Add up what the processes found; the first one's clock goes for all."""
        shared = gather((report, self._clock.elapsed, *self.look_at_clock()))
        result = UpdateReport()
        for other, *_ in shared:
            result.num_items += other.num_items
            result.total += other.total
            for name, value in other.parts.items():
                result.parts[name] = result.parts.get(name, 0.0) + value
        _, elapsed, result.is_time_up, result.is_save_due = shared[0]
        self._clock.agree(elapsed)
        return result

    def _check_finite(self, update: int, value: float, name: str) -> None:
        if math.isfinite(value):
            return
        before = "" if self._last_loss is None else f", after a loss of {self._last_loss:.4g} in the update before"
        rate = self.lr_scheduler.get_last_lr()[0]
        raise TrainingError(
            f"the {name} is {value} in update {update} of {self.state.max_steps}, at a learning rate of {rate:.3g}"
            f"{before}",
            mend="Train with a lower learning rate: train.learning_rate, a third of what it is, say.",
        )

    def _memory_error(self, error: BaseException, rows: list[Any]) -> TrainingError:
        return memory_error(
            error,
            num_rows=min(self.micro_batch_size, len(rows)),
            longest=self._num_tokens,
            state_bytes=training_bytes(self.model.parameters()),
            is_checkpointed=self._options.gradient_checkpointing,
            differing=self._differing,
            has_batch_norm=has_batch_norm(self.model.model),
        )

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        """Known already; Trainer would compute it again."""
        del model, grad_norm
        return self.report.gradient_norm

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights; Trainer's own way stumbles over tied ones in a module that is no PreTrainedModel."""
        del resume_from_checkpoint
        self._checkpoints.restore_last_(model or self.model)
