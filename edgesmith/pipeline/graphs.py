"""A recipe whose targets are ONNX graphs: export, quantize, verify, and measure beside the fp32 export."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edgesmith.artifact import Artifact, open_artifact
from edgesmith.data import read_rows
from edgesmith.errors import UsageError
from edgesmith.gates import Gates
from edgesmith.pipeline.base import TargetResult, Walk
from edgesmith.pipeline.checkpoints import Checkpoints
from edgesmith.pipeline.needs import NUM_VERIFIED, needed
from edgesmith.recipe import MergeStep, OnnxTarget, Scenario
from edgesmith.releases import locate_target
from edgesmith.stages.bench import BenchStage
from edgesmith.stages.compare import CompareStage
from edgesmith.stages.evaluate import EvalStage
from edgesmith.stages.export import ExportStage
from edgesmith.stages.quantize import QuantizeStage
from edgesmith.stages.rows import Rows
from edgesmith.stages.verify import VerifyStage
from edgesmith.tasks import TextTask, load_task

__all__ = ["GraphWalk"]

BASELINE_FP32 = "fp32"
NUM_TIMED = 64
NUM_BATCHED = 128
NUM_REFERENCE = 1000
NUM_CALIBRATED = 128


@dataclass(frozen=True, kw_only=True)
class GraphWalk(Walk):
    """The steps of models that answer in one run."""

    def targets(self, checkpoints: Checkpoints) -> tuple[TargetResult, ...]:
        """Make and measure every target."""
        made = []
        for name, target in self.recipe.targets.items():
            assert isinstance(target, OnnxTarget)  # as the recipe has checked
            made.append(self._target(name, target, checkpoints))
        return tuple(made)

    @cached_property
    def _all_rows(self) -> Rows:
        return self.rows(self.recipe.data.eval, None, "data.eval")

    @cached_property
    def _few_rows(self) -> Rows:
        return self.rows(self.recipe.data.eval, NUM_VERIFIED, "data.eval")

    @cached_property
    def _reference_rows(self) -> Rows:
        return self.rows(self.recipe.data.eval, NUM_REFERENCE, "data.eval")

    @cached_property
    def _timed_rows(self) -> Rows:
        return self.rows(self.recipe.data.eval, NUM_TIMED, "data.eval")

    @cached_property
    def _batched_rows(self) -> Rows:
        return self.rows(self.recipe.data.eval, NUM_BATCHED, "data.eval")

    @cached_property
    def _calibration_rows(self) -> Rows | None:
        given = self.recipe.data.calibration
        return self.rows(given.path, given.num_samples or NUM_CALIBRATED, "data.calibration") if given else None

    def check_files(self) -> None:
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
        for name in self.recipe.targets:
            self.check_gates(name)
            self._given_baseline(name)
            self.previous(name, ("onnx",))

    def _given_baseline(self, name: str) -> Artifact | None:
        """The artifact that the recipe names as baseline; None where it is the fp32 export."""
        if self.recipe.baseline == BASELINE_FP32:
            return None
        return open_artifact(locate_target(self.folder / self.recipe.baseline, name), kinds=("onnx",))

    def check_data(self, checkpoint: Artifact) -> None:
        """Read all rows once before the long steps, so that a bad one is found at once."""
        task = load_task(checkpoint.folder, self.recipe.task, columns=self.recipe.data.columns)
        length = self.recipe.measure.length
        if length is not None and not isinstance(task, TextTask):
            raise UsageError(f"measure.length is {length}, but {task.name} has no lengths", mend="Leave it out.")
        if length is not None and task.max_length is not None and length > task.max_length:
            raise UsageError(f"measure.length is {length}, but the model takes at most {task.max_length} tokens")
        self._all_rows.read(task, labelled=True)
        if self._calibration_rows is not None:
            self._calibration_rows.read(task)

    def _target(self, name: str, target: OnnxTarget, checkpoints: Checkpoints) -> TargetResult:
        checkpoint = checkpoints.final
        fp32 = self._export(f"{name}: export", target, checkpoint)
        artifact = self._quantize(name, target, fp32) if target.quantize else fp32
        evidence = {
            "verify": self.walker.step(
                f"{name}: verify",
                f"against the checkpoint on {NUM_VERIFIED} real rows",
                [("checkpoint", checkpoint), ("artifact", artifact)],
                lambda: VerifyStage(
                    reference=needed(checkpoint), artifact=needed(artifact), rows=self._few_rows, task=self.recipe.task
                ),
            )
        }
        given = self._given_baseline(name)
        # What a smaller model is compared with is the whole one, not its own export.
        baseline = given
        if given is None:
            shrinks = self._shrinks
            baseline = self._export(f"{name}: export baseline", target, checkpoints.original) if shrinks else fp32
        evidence |= self._measure(name, artifact)
        if given is not None or target.quantize is not None or self._shrinks:
            evidence |= self._measure_baseline(name, baseline)
            evidence["compare"] = self._compare(f"{name}: compare speed", "baseline", artifact, baseline)
        previous = self.previous(name, ("onnx",))
        is_unchanged = previous is not None and artifact is not None and previous.digest == artifact.digest
        if previous is not None and not is_unchanged:
            does = f"{name}: compare speed with {self.against}"
            evidence["previous-compare"] = self._compare(does, "previous", artifact, previous)
            evidence["previous-eval"] = self._evaluate(f"{name}: eval {self.against}", previous)
        return TargetResult(
            name=name, artifact=artifact, unquantized=fp32, baseline=baseline, previous=previous, evidence=evidence
        )

    @property
    def _shrinks(self) -> bool:
        """Whether the recipe makes another model of the merged one."""
        return any(not isinstance(step, MergeStep) for step in self.recipe.steps)

    def _export(self, name: str, target: OnnxTarget, checkpoint: Artifact | None) -> Artifact | None:
        return self.walker.step(
            name,
            f"ONNX fp32 for {target.optimize_for}",
            [("checkpoint", checkpoint)],
            lambda: ExportStage(
                checkpoint=needed(checkpoint),
                task=self.recipe.task,
                rows=self._few_rows,
                optimize_for=target.optimize_for,
                opset=target.opset,
                max_length=target.max_length,
                reference=None if target.quantize else self._reference_rows,
            ),
        )

    def _quantize(self, name: str, target: OnnxTarget, fp32: Artifact | None) -> Artifact | None:
        method = target.quantize
        assert method is not None
        calibration = self._calibration_rows if method.needs_calibration else None
        does = method.method + (", smoothed" if method.is_smoothed else "")
        return self.walker.step(
            f"{name}: quantize",
            does + (f", {calibration.num} calibration rows" if calibration else ""),
            [("fp32", fp32)],
            lambda: QuantizeStage(
                source=needed(fp32),
                method=method,
                calibration=calibration,
                rows=self._few_rows,
                reference=self._reference_rows,
            ),
        )

    def _measure(self, name: str, artifact: Artifact | None) -> dict[str, Artifact | None]:
        """Accuracy on all rows, sizes, and every scenario that the recipe or its gates ask for."""
        gates = self.recipe.gates_of(name)
        evidence = {
            "eval": self._evaluate(f"{name}: eval", artifact),
            "footprint": self.footprint(f"{name}: footprint", artifact),
            "bench": self._bench(f"{name}: bench", artifact, "single", None, gates),
        }
        for scenario, rate in self._further_scenarios(gates):
            which = scenario if rate is None else f"{scenario}-{rate:g}"
            evidence[f"bench-{which}"] = self._bench(f"{name}: bench {which}", artifact, scenario, rate, gates)
        return evidence | self.loads(name, artifact)

    def _measure_baseline(self, name: str, baseline: Artifact | None) -> dict[str, Artifact | None]:
        return {
            "baseline-eval": self._evaluate(f"{name}: eval baseline", baseline),
            "baseline-footprint": self.footprint(f"{name}: footprint baseline", baseline),
            "baseline-bench": self._bench(
                f"{name}: bench baseline", baseline, "single", None, self.recipe.gates_of(name)
            ),
        }

    def _further_scenarios(self, gates: Gates) -> list[tuple[Scenario, float | None]]:
        """Those beside `single`, in a fixed order."""
        measure = self.recipe.measure
        wanted: set[tuple[Scenario, float | None]] = {
            ("server", rate) for scenario, rate in gates.scenarios if scenario == "server"
        }
        if measure.rate is not None or ("server" in measure.scenarios and not wanted):
            wanted.add(("server", measure.rate))
        if "offline" in measure.scenarios or gates.needs_throughput:
            wanted.add(("offline", None))
        return sorted(wanted, key=lambda one: (one[0], one[1] or 0.0))

    def _evaluate(self, name: str, artifact: Artifact | None) -> Artifact | None:
        return self.walker.step(
            name,
            f"all of {Path(self.recipe.data.eval).name}",
            [("artifact", artifact)],
            lambda: EvalStage(artifact=needed(artifact), rows=self._all_rows),
        )

    def _bench(
        self, name: str, artifact: Artifact | None, scenario: Scenario, rate: float | None, gates: Gates
    ) -> Artifact | None:
        measure = self.recipe.measure
        does = {
            "single": "single stream",
            "server": f"random arrivals, {rate:g} a second" if rate else "random arrivals",
            "offline": "batches",
        }[scenario]
        return self.walker.step(
            name,
            f"{does}, {measure.threads} thread(s)",
            [("artifact", artifact)],
            lambda: BenchStage(
                artifact=needed(artifact),
                rows=self._batched_rows if scenario == "offline" else self._timed_rows,
                scenario=scenario,
                rate=rate,
                threads=measure.threads,
                min_requests=_needed_requests(gates, scenario, rate),
                seconds=measure.seconds,
                length=None if scenario == "offline" else measure.length,
            ),
        )

    def _compare(self, name: str, role: str, artifact: Artifact | None, baseline: Artifact | None) -> Artifact | None:
        measure = self.recipe.measure
        return self.walker.step(
            name,
            f"in turns with the {role}, {measure.threads} thread(s)",
            [("artifact", artifact), ("baseline", baseline)],
            lambda: CompareStage(
                artifact=needed(artifact),
                baseline=needed(baseline),
                rows=self._timed_rows,
                threads=measure.threads,
                length=measure.length,
                seconds=measure.seconds,
            ),
        )


def _needed_requests(gates: Gates, scenario: Scenario, rate: float | None) -> int | None:
    """Requests with which the gates' percentiles can be certified although a few are slow; None without a gate."""
    from bench.gates.latency import requests_to_plan

    asked = (gate for gate in gates.latencies if (gate.scenario, gate.rate) == (scenario, rate))
    return max((requests_to_plan(gate) for gate in asked), default=None)
