"""A recipe's steps: one walk over them plans, and the same walk runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgesmith.artifact import Artifact, open_artifact
from edgesmith.errors import UsageError
from edgesmith.hub import locate_checkpoint
from edgesmith.progress import Progress
from edgesmith.recipe import Recipe, Target
from edgesmith.stages.base import Stage
from edgesmith.stages.rows import Rows
from edgesmith.store import Store

__all__ = ["Made", "PlannedStep", "Planner", "Runner", "TargetResult", "TimedStep", "walk"]

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


class Walker(Protocol):
    """Decides what happens at each step."""

    def step(
        self, name: str, does: str, needs: Sequence[tuple[str, Artifact | None]], stage: Callable[[], Stage]
    ) -> Artifact | None:
        """Handle one step; `stage` may be called only when all that it needs is there."""


def walk(recipe: Recipe, folder: Path, walker: Walker) -> Made:
    """Go through a recipe's steps in their order.

    Args:
        recipe: What to do.
        folder: The recipe's folder, which its paths are relative to.
        walker: A `Planner` or a `Runner`.

    Returns:
        What the walker gave for each step.
    """
    base = open_artifact(locate_checkpoint(recipe.model.base, folder), kinds=("checkpoint",))
    eval_rows = Rows(path=folder / recipe.data.eval, seed=recipe.seed, columns=recipe.data.columns)
    if eval_rows.path is not None and not eval_rows.path.is_file():
        raise UsageError(f"{eval_rows.path}: no such data file", mend="data.eval is relative to the recipe's folder.")
    few = Rows(path=eval_rows.path, num=NUM_VERIFIED, seed=recipe.seed, columns=recipe.data.columns)
    checkpoint, proof = _merge(recipe, folder, base, few, walker) if recipe.steps else (base, None)
    targets = tuple(
        _target(name, target, recipe, folder, checkpoint, eval_rows, few, walker)
        for name, target in recipe.targets.items()
    )
    return Made(checkpoint=checkpoint, merge_proof=proof, targets=targets)


def _merge(
    recipe: Recipe, folder: Path, base: Artifact, rows: Rows, walker: Walker
) -> tuple[Artifact | None, Artifact | None]:
    """The merged checkpoint, and the proof that it equals base + adapters."""
    from edgesmith.stages.merge import MergeStage, ProveMergeStage

    adapters = tuple((folder / adapter.path, adapter.weight) for adapter in recipe.model.adapter)
    for path, _ in adapters:
        if not path.is_dir():
            raise UsageError(f"{path}: no such adapter folder", mend="model.adapter is relative to the recipe.")
    stage = MergeStage(base=base, adapters=adapters, dequantize=recipe.steps[0].merge.dequantize)
    names = " + ".join(path.name for path, _ in adapters)
    merged = walker.step("merge", f"{base.path.name} + {names}", [("base", base)], lambda: stage)
    proof = walker.step(
        "merge: verify",
        f"against base + adapter on {rows.num} real rows",
        [("checkpoint", merged)],
        lambda: ProveMergeStage(stage=stage, merged=_need(merged), rows=rows, task=recipe.task),
    )
    return merged, proof


def _target(
    name: str,
    target: Target,
    recipe: Recipe,
    folder: Path,
    checkpoint: Artifact | None,
    eval_rows: Rows,
    few: Rows,
    walker: Walker,
) -> TargetResult:
    fp32 = _export(name, target, recipe.task, checkpoint, few, walker)
    artifact = _quantize(name, target, recipe, folder, fp32, few, walker) if target.quantize else fp32
    verification = _verify(name, recipe, checkpoint, artifact, few, walker)
    own_baseline = recipe.baseline == BASELINE_FP32
    baseline = fp32 if own_baseline else open_artifact(folder / recipe.baseline, kinds=("onnx",))
    threads = recipe.measure.threads
    timed = Rows(path=eval_rows.path, num=NUM_TIMED, seed=recipe.seed, columns=eval_rows.columns)

    def evaluate(which: Artifact) -> Stage:
        from edgesmith.stages.measure import EvalStage

        return EvalStage(artifact=which, rows=eval_rows)

    def latency(which: Artifact) -> Stage:
        from edgesmith.stages.measure import LatencyStage

        return LatencyStage(artifact=which, rows=timed, threads=threads, length=recipe.measure.length)

    def compare() -> Stage:
        from edgesmith.stages.measure import CompareStage

        assert artifact is not None
        assert baseline is not None
        return CompareStage(
            artifact=artifact, baseline=baseline, rows=timed, threads=threads, length=recipe.measure.length
        )

    data = eval_rows.path.name if eval_rows.path else ""
    evaluation = walker.step(
        f"{name}: eval", f"all of {data}", [("artifact", artifact)], lambda: evaluate(_need(artifact))
    )
    baseline_evaluation = evaluation
    if target.quantize or not own_baseline:
        baseline_evaluation = walker.step(
            f"{name}: eval baseline", f"all of {data}", [("baseline", baseline)], lambda: evaluate(_need(baseline))
        )
    comparison = baseline_timing = None
    single = f"single stream, {threads} thread(s)"
    timing = walker.step(f"{name}: bench", single, [("artifact", artifact)], lambda: latency(_need(artifact)))
    if target.quantize or not own_baseline:
        baseline_timing = walker.step(
            f"{name}: bench baseline", single, [("baseline", baseline)], lambda: latency(_need(baseline))
        )
        both = [("artifact", artifact), ("baseline", baseline)]
        comparison = walker.step(f"{name}: compare speed", f"in turns, {threads} thread(s)", both, compare)
    return TargetResult(
        name=name,
        artifact=artifact,
        baseline=baseline,
        verification=verification,
        evaluation=evaluation,
        baseline_evaluation=baseline_evaluation,
        latency=timing,
        baseline_latency=baseline_timing,
        comparison=comparison,
    )


def _export(
    name: str, target: Target, task: str, checkpoint: Artifact | None, rows: Rows, walker: Walker
) -> Artifact | None:
    def stage() -> Stage:
        from edgesmith.stages.export import ExportStage

        return ExportStage(
            checkpoint=_need(checkpoint),
            task=task,
            rows=rows,
            optimize_for=target.optimize_for,
            opset=target.opset,
            max_length=target.max_length,
        )

    return walker.step(f"{name}: export", f"ONNX fp32 for {target.optimize_for}", [("checkpoint", checkpoint)], stage)


def _quantize(
    name: str, target: Target, recipe: Recipe, folder: Path, fp32: Artifact | None, rows: Rows, walker: Walker
) -> Artifact | None:
    options = target.quantize
    assert options is not None
    calibration = None
    if options.method == "static-int8":
        assert recipe.data.calibration is not None
        calibration = Rows(
            path=folder / recipe.data.calibration.path,
            num=recipe.data.calibration.num_samples,
            seed=recipe.seed,
            columns=recipe.data.columns,
        )

    def stage() -> Stage:
        from edgesmith.stages.quantize import QuantizeStage

        return QuantizeStage(source=_need(fp32), method=options, calibration=calibration, rows=rows)

    detail = options.method + (f", {calibration.num} calibration rows" if calibration else "")
    return walker.step(f"{name}: quantize", detail, [("fp32", fp32)], stage)


def _verify(
    name: str, recipe: Recipe, checkpoint: Artifact | None, artifact: Artifact | None, rows: Rows, walker: Walker
) -> Artifact | None:
    def stage() -> Stage:
        from edgesmith.stages.verify import VerifyStage

        return VerifyStage(reference=_need(checkpoint), artifact=_need(artifact), rows=rows, task=recipe.task)

    needs = [("checkpoint", checkpoint), ("artifact", artifact)]
    return walker.step(f"{name}: verify", f"against the checkpoint on {rows.num} real rows", needs, stage)


def _need(artifact: Artifact | None) -> Artifact:
    """A stage is asked for only when everything that it needs is there."""
    assert artifact is not None
    return artifact


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """A step, and whether its result is in the store."""

    name: str
    does: str
    state: str
    """`cached`, or `to do`."""
    needs: tuple[str, ...]
    key: str | None
    """In the store; None while something it needs is still to do."""

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "name": self.name,
            "does": self.does,
            "state": self.state,
            "needs": list(self.needs),
            "key": self.key,
        }


@dataclass(kw_only=True)
class Planner:
    """Looks at what is in the store and does nothing."""

    store: Store
    steps: list[PlannedStep] = field(default_factory=list)

    def step(
        self, name: str, does: str, needs: Sequence[tuple[str, Artifact | None]], stage: Callable[[], Stage]
    ) -> Artifact | None:
        """Say whether the step is done."""
        key = stage().key if all(artifact is not None for _, artifact in needs) else None
        found = self.store.find(key) if key else None
        self.steps.append(
            PlannedStep(
                name=name,
                does=does,
                state="cached" if found else "to do",
                needs=tuple(role for role, _ in needs),
                key=key.digest if key else None,
            )
        )
        return found


@dataclass(frozen=True, kw_only=True)
class TimedStep:
    """A step that was run or found."""

    name: str
    does: str
    was_cached: bool
    seconds: float
    artifact: Artifact


@dataclass(kw_only=True)
class Runner:
    """Does every step that is not in the store."""

    store: Store
    progress: Progress
    steps: list[TimedStep] = field(default_factory=list)

    def step(
        self, name: str, does: str, needs: Sequence[tuple[str, Artifact | None]], stage: Callable[[], Stage]
    ) -> Artifact | None:
        """Find the step's result or make it."""
        del needs  # a runner has made them all
        work, start, was_cached = stage(), time.monotonic(), True

        def make(folder: Path) -> Artifact:
            nonlocal was_cached
            was_cached = False
            with self._told(name, does):
                return work.make(folder, self.progress)

        artifact = self.store.build(work.key, make)
        self.steps.append(
            TimedStep(name=name, does=does, was_cached=was_cached, seconds=time.monotonic() - start, artifact=artifact)
        )
        return artifact

    @contextmanager
    def _told(self, name: str, does: str) -> Iterator[None]:
        self.progress.note(f"{name}: {does}")
        yield
