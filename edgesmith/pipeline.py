"""A recipe's steps, in their order: one walk over them plans, and the same walk runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edgesmith.artifact import Artifact, open_artifact
from edgesmith.data import read_rows
from edgesmith.errors import UsageError
from edgesmith.hub import locate_checkpoint
from edgesmith.recipe import Recipe, Target
from edgesmith.stages.export import ExportStage
from edgesmith.stages.measure import CompareStage, EvalStage, LatencyStage
from edgesmith.stages.merge import MergeStage, ProveMergeStage
from edgesmith.stages.quantize import QuantizeStage
from edgesmith.stages.rows import Rows
from edgesmith.stages.verify import VerifyStage
from edgesmith.tasks import get_task, load_task
from edgesmith.walkers import Walker

__all__ = ["Made", "TargetResult", "walk"]

BASELINE_FP32 = "fp32"
NUM_VERIFIED = 64
NUM_TIMED = 64


@dataclass(frozen=True, kw_only=True)
class TargetResult:
    """What a walk made for one target; None where a planner could not know it yet."""

    name: str
    artifact: Artifact | None
    baseline: Artifact | None
    verification: Artifact | None
    evaluation: Artifact | None
    baseline_evaluation: Artifact | None
    latency: Artifact | None
    baseline_latency: Artifact | None
    comparison: Artifact | None


@dataclass(frozen=True, kw_only=True)
class Made:
    """Everything that a walk made."""

    checkpoint: Artifact | None
    merge_proof: Artifact | None
    """Evidence that base + adapters equal the checkpoint."""
    targets: tuple[TargetResult, ...]


def walk(recipe: Recipe, folder: Path, walker: Walker) -> Made:
    """Go through a recipe's steps in their order.

    Args:
        recipe: What to do.
        folder: The recipe's folder, which its paths are relative to.
        walker: A `Planner` or a `Runner`.

    Returns:
        What the walker gave for each step.

    Raises:
        UsageError: a file that the recipe names is missing.
        DataError: a row does not fit the task; found before anything is exported.
    """
    return _Walk(recipe=recipe, folder=folder, walker=walker).go()


@dataclass(frozen=True, kw_only=True)
class _Walk:
    recipe: Recipe
    folder: Path
    walker: Walker

    def go(self) -> Made:
        """Checkpoint first, then every target from it."""
        base = open_artifact(
            locate_checkpoint(self.recipe.model.base, self.folder, self.recipe.model.revision), kinds=("checkpoint",)
        )
        self._check_files()
        checkpoint, proof = self._merge(base) if self.recipe.steps else (base, None)
        self._check_rows(checkpoint)
        targets = tuple(self._target(name, target, checkpoint) for name, target in self.recipe.targets.items())
        return Made(checkpoint=checkpoint, merge_proof=proof, targets=targets)

    @cached_property
    def _all_rows(self) -> Rows:
        return self._rows(self.recipe.data.eval, None, "data.eval")

    @cached_property
    def _few_rows(self) -> Rows:
        return self._rows(self.recipe.data.eval, NUM_VERIFIED, "data.eval")

    @cached_property
    def _timed_rows(self) -> Rows:
        return self._rows(self.recipe.data.eval, NUM_TIMED, "data.eval")

    @cached_property
    def _calibration_rows(self) -> Rows | None:
        given = self.recipe.data.calibration
        return self._rows(given.path, given.num_samples, "data.calibration") if given else None

    def _rows(self, path: str, num: int | None, key: str) -> Rows:
        rows = Rows(path=self.folder / path, num=num, seed=self.recipe.seed, columns=self.recipe.data.columns)
        if not (self.folder / path).is_file():
            raise UsageError(f"{self.folder / path}: no such data file", mend=f"{key} is relative to the recipe.")
        return rows

    def _check_files(self) -> None:
        """Find before any work what would stop it at the end."""
        assert self._all_rows.path is not None
        for _ in read_rows(self._all_rows.path):
            pass
        calibration = self._calibration_rows
        if calibration is not None and calibration.digest == self._all_rows.digest:
            raise UsageError(
                f"{calibration.path}: holds the held-out rows; gates would be judged on rows it was tuned to",
                mend="Calibrate on training rows.",
            )
        if self.recipe.gates.accuracy is not None:
            get_task(self.recipe.task).metric(self.recipe.gates.accuracy.metric)
        if self.recipe.baseline != BASELINE_FP32:
            open_artifact(self.folder / self.recipe.baseline, kinds=("onnx",))

    def _check_rows(self, checkpoint: Artifact | None) -> None:
        """Read all rows once before the long steps, so that a bad one is found at once."""
        if checkpoint is None:
            return
        task = load_task(checkpoint.folder, self.recipe.task, columns=self.recipe.data.columns)
        length = self.recipe.measure.length
        if length is not None and task.max_length is not None and length > task.max_length:
            raise UsageError(f"measure.length is {length}, but the model takes at most {task.max_length} tokens")
        self._all_rows.read(task, labelled=True)
        if self._calibration_rows is not None:
            self._calibration_rows.read(task)

    def _merge(self, base: Artifact) -> tuple[Artifact | None, Artifact | None]:
        """The merged checkpoint, and the proof that it equals base + adapters."""
        adapters = tuple((self.folder / adapter.path, adapter.weight) for adapter in self.recipe.model.adapter)
        for path, _ in adapters:
            if not path.is_dir():
                raise UsageError(f"{path}: no such adapter folder", mend="model.adapter is relative to the recipe.")
        stage = MergeStage(base=base, adapters=adapters, dequantize=self.recipe.steps[0].merge.dequantize)
        rows = self._few_rows
        names = " + ".join(path.name for path, _ in adapters)
        merged = self.walker.step("merge", f"{base.path.name} + {names}", [("base", base)], lambda: stage)
        proof = self.walker.step(
            "merge: verify",
            f"against base + adapter on {rows.num} real rows",
            [("checkpoint", merged)],
            lambda: ProveMergeStage(stage=stage, merged=_need(merged), rows=rows, task=self.recipe.task),
        )
        return merged, proof

    def _target(self, name: str, target: Target, checkpoint: Artifact | None) -> TargetResult:
        fp32 = self._export(name, target, checkpoint)
        artifact = self._quantize(name, target, fp32) if target.quantize else fp32
        verification = self.walker.step(
            f"{name}: verify",
            f"against the checkpoint on {NUM_VERIFIED} real rows",
            [("checkpoint", checkpoint), ("artifact", artifact)],
            lambda: VerifyStage(
                reference=_need(checkpoint), artifact=_need(artifact), rows=self._few_rows, task=self.recipe.task
            ),
        )
        baseline = fp32
        if self.recipe.baseline != BASELINE_FP32:
            baseline = open_artifact(self.folder / self.recipe.baseline, kinds=("onnx",))
        is_baseline = target.quantize is None and self.recipe.baseline == BASELINE_FP32
        evaluation, latency = self._measure(name, "", artifact)
        theirs = (evaluation, None) if is_baseline else self._measure(name, " baseline", baseline)
        return TargetResult(
            name=name,
            artifact=artifact,
            baseline=baseline,
            verification=verification,
            evaluation=evaluation,
            baseline_evaluation=theirs[0],
            latency=latency,
            baseline_latency=theirs[1],
            comparison=None if is_baseline else self._compare(name, artifact, baseline),
        )

    def _export(self, name: str, target: Target, checkpoint: Artifact | None) -> Artifact | None:
        return self.walker.step(
            f"{name}: export",
            f"ONNX fp32 for {target.optimize_for}",
            [("checkpoint", checkpoint)],
            lambda: ExportStage(
                checkpoint=_need(checkpoint),
                task=self.recipe.task,
                rows=self._few_rows,
                optimize_for=target.optimize_for,
                opset=target.opset,
                max_length=target.max_length,
            ),
        )

    def _quantize(self, name: str, target: Target, fp32: Artifact | None) -> Artifact | None:
        method = target.quantize
        assert method is not None
        calibration = self._calibration_rows if method.needs_calibration else None
        does = method.method + (", smoothed" if method.is_smoothed else "")
        return self.walker.step(
            f"{name}: quantize",
            does + (f", {calibration.num} calibration rows" if calibration else ""),
            [("fp32", fp32)],
            lambda: QuantizeStage(source=_need(fp32), method=method, calibration=calibration, rows=self._few_rows),
        )

    def _measure(self, name: str, which: str, artifact: Artifact | None) -> tuple[Artifact | None, Artifact | None]:
        """Accuracy on all rows, and the latency of single requests."""
        measure = self.recipe.measure
        evaluation = self.walker.step(
            f"{name}: eval{which}",
            f"all of {Path(self.recipe.data.eval).name}",
            [("artifact", artifact)],
            lambda: EvalStage(artifact=_need(artifact), rows=self._all_rows),
        )
        latency = self.walker.step(
            f"{name}: bench{which}",
            f"single stream, {measure.threads} thread(s)",
            [("artifact", artifact)],
            lambda: LatencyStage(
                artifact=_need(artifact), rows=self._timed_rows, threads=measure.threads, length=measure.length
            ),
        )
        return evaluation, latency

    def _compare(self, name: str, artifact: Artifact | None, baseline: Artifact | None) -> Artifact | None:
        measure = self.recipe.measure
        return self.walker.step(
            f"{name}: compare speed",
            f"in turns with the baseline, {measure.threads} thread(s)",
            [("artifact", artifact), ("baseline", baseline)],
            lambda: CompareStage(
                artifact=_need(artifact),
                baseline=_need(baseline),
                rows=self._timed_rows,
                threads=measure.threads,
                length=measure.length,
            ),
        )


def _need(artifact: Artifact | None) -> Artifact:
    """A stage is asked for only when everything that it needs is there."""
    assert artifact is not None
    return artifact
