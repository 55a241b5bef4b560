"""Decides, after every update, what to log, when to evaluate, what to keep and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from compress.train.checkpoints import Checkpoints, TrainingState
from compress.train.clock import Clock
from compress.train.curves import Curves
from compress.train.processes import is_leader, tell_all
from compress.train.score import Score
from compress.train.trainer import SumTrainer, Trainee, UpdateReport
from edgesmith.errors import TrainingError
from edgesmith.progress import Report
from edgesmith.units import format_seconds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Conductor", "Plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is decided before training starts."""

    num_updates: int
    updates_per_epoch: int
    evaluate: Callable[[PreTrainedModel], float | Score] | None
    metric_name: str
    higher_is_better: bool
    patience: int
    save_seconds: float
    """A checkpoint is written when the last one is older."""

    @property
    def evaluation_updates(self) -> int:
        """Updates between evaluations: an epoch, or less where epochs are few, so that there are about five."""
        epochs = self.num_updates / self.updates_per_epoch
        return math.ceil(self.updates_per_epoch / max(1, math.ceil(5 / epochs)))

    @property
    def log_updates(self) -> int:
        """Updates between entries of the history: about 200 entries in all."""
        return max(1, self.num_updates // 200)


class Conductor(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Keeps the history, evaluates, keeps the best weights, writes checkpoints and stops the training."""

    def __init__(
        self,
        trainer: SumTrainer,
        plan: Plan,
        *,
        state: TrainingState,
        checkpoints: Checkpoints,
        clock: Clock,
        report: Report,
        curves: Curves,
    ) -> None:
        self.state = state
        self._trainer, self._plan, self._checkpoints, self._clock = trainer, plan, checkpoints, clock
        self._report, self._curves = report, curves
        self._began, self._begin_update = clock.elapsed, state.update
        self._saved = clock.elapsed
        self._evaluation_seconds = 0.0
        trainer.look_at_clock = self._look_at_clock

    @property
    def _trainee(self) -> Trainee:
        trainee: Trainee = self._trainer.model
        return trainee

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Evaluate what training starts from: it may turn out to be the best."""
        del args, state, control, others
        self._report(self.state.update)
        if self.state.update == 0 and self._plan.evaluate is not None:
            self._log({"update": 0, "epoch": 0.0, "metric": self._evaluate(0)})

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Take stock after an update."""
        del args, others
        plan, update, report = self._plan, state.global_step, self._trainer.report
        self.state.update = update
        rows = self._trainer.micro_batch_size
        if not self.state.micro_batches or self.state.micro_batches[-1]["rows"] != rows:
            self.state.micro_batches.append({"from_update": update, "rows": rows})
        self._add_pending(report)
        is_last = update == plan.num_updates or report.is_time_up
        is_evaluated = plan.evaluate is not None and (is_last or self._is_evaluation_due(update))
        if is_evaluated or is_last or update % plan.log_updates == 0:
            entry = self._entry(update, report)
            self._log(entry | ({"metric": self._evaluate(update)} if is_evaluated else {}))
        self._report(1, self._describe(report))
        self.state.stopped_because = self._reason_to_stop(update, report)
        if self.state.stopped_because:
            control.should_training_stop = True
        elif report.is_save_due and is_leader():
            self.save(state)

    def save(self, trainer_state: Any) -> None:
        """Write a checkpoint of now."""
        self.state.seconds = self._clock.elapsed
        trainer = self._trainer
        self._checkpoints.save(self._trainee, trainer.optimizer, trainer.lr_scheduler, trainer_state, self.state)
        self._saved = self._clock.elapsed

    def keep_best(self, update: int) -> None:
        """Write the weights of now as the best ones."""
        self.state.best_update = update
        if is_leader():
            self._checkpoints.save_best(self._trainee, update)

    def _look_at_clock(self) -> tuple[bool, bool]:
        """Whether the time is up, and whether a checkpoint is due, by this process's own clock."""
        now = self._clock.elapsed
        done = self._trainer.state.global_step - self._begin_update + 1
        # What still has to fit: the last evaluation, and the part of an update that is not over yet.
        reserve = self._evaluation_seconds + (now - self._began) / done
        limit = self._clock.limit_seconds
        return limit is not None and now + reserve >= limit, now - self._saved >= self._plan.save_seconds

    def _is_evaluation_due(self, update: int) -> bool:
        within = (update - 1) % self._plan.updates_per_epoch + 1
        return within % self._plan.evaluation_updates == 0 or within == self._plan.updates_per_epoch

    def _evaluate(self, update: int) -> float:
        """Measure the model as it is, and keep it if it is the best so far."""
        begin = time.monotonic()
        model = self._trainee.model
        score = Score(metric=0.0)
        if is_leader() and self._plan.evaluate is not None:
            model.eval()
            with torch.no_grad():
                found = self._plan.evaluate(model)
            score = found if isinstance(found, Score) else Score(metric=float(found))
        score = tell_all(score)
        if not math.isfinite(score.metric):
            raise TrainingError(
                f"{self._plan.metric_name} is {score.metric} after update {update} of {self._plan.num_updates}",
                mend="Train with a lower learning rate: train.learning_rate.",
            )
        if self._take(score):
            self.state.bad_evaluations = 0
            self.keep_best(update)
        else:
            self.state.bad_evaluations += 1
        self._evaluation_seconds = time.monotonic() - begin
        return score.metric

    def _take(self, score: Score) -> bool:
        """Remember a score, and say whether it is the best so far."""
        state, higher = self.state, self._plan.higher_is_better
        if state.best_metric is None or state.top_metric is None:
            is_better = True
            state.top_metric = score.metric
        else:
            kept = Score(metric=state.best_metric, distance=state.best_distance)
            is_better = score.is_better(kept, state.top_metric, higher_is_better=higher)
            state.top_metric = (max if higher else min)(state.top_metric, score.metric)
        if is_better:
            state.best_metric, state.best_distance = score.metric, score.distance
        return is_better

    def _reason_to_stop(self, update: int, report: UpdateReport) -> str:
        plan = self._plan
        if update == plan.num_updates:
            return f"all {update} updates are done"
        if report.is_time_up:
            return f"the time is up after {update} of {plan.num_updates} updates"
        if plan.evaluate is not None and self.state.bad_evaluations >= plan.patience:
            return f"no better {plan.metric_name} in {plan.patience} evaluations"
        return ""

    def _add_pending(self, report: UpdateReport) -> None:
        sums = {"num_items": report.num_items, "loss": report.total, **report.parts}
        for name, value in sums.items():
            self.state.pending[name] = self.state.pending.get(name, 0.0) + value

    def _entry(self, update: int, report: UpdateReport) -> dict[str, Any]:
        """Make an entry of the history: losses per item, over all updates since the entry before."""
        sums, self.state.pending = self.state.pending, {}
        items = max(1.0, sums.pop("num_items"))
        return {
            "update": update,
            "epoch": round(update / self._plan.updates_per_epoch, 4),
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            **{name: value / items for name, value in sums.items()},
        }

    def _log(self, entry: dict[str, Any]) -> None:
        self.state.history.append(entry)
        self._curves.add(entry)

    def _describe(self, report: UpdateReport) -> str:
        """Say where the training stands, for the bar."""
        done = self.state.update - self._begin_update
        left = (self._clock.elapsed - self._began) / done * (self._plan.num_updates - self.state.update)
        if self._clock.limit_seconds is not None:
            left = min(left, max(0.0, self._clock.limit_seconds - self._clock.elapsed))
        best = self.state.best_metric
        metric = "" if best is None else f" · {self._plan.metric_name} {best:.4g}"
        return f"loss {report.means['loss']:.4g}{metric} · {format_seconds(left)} left"
