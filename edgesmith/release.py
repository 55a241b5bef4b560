"""A release: a recipe's artifacts, evidence, verdicts and reports, delivered into a folder of the user's."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import TYPE_CHECKING, Any

from edgesmith.artifact import MANIFEST, Artifact, read_artifact
from edgesmith.errors import EdgesmithError, UsageError
from edgesmith.evidence import evidence_of, write_baseline
from edgesmith.files import copy_tree, hold_lock, storage_errors
from edgesmith.gates import Gates
from edgesmith.pipeline import Made, TargetResult, walk
from edgesmith.progress import Progress
from edgesmith.recipe import Recipe, load_recipe
from edgesmith.stages.base import check_replaceable
from edgesmith.store import Store, default_store_root
from edgesmith.units import format_bytes
from edgesmith.walkers import Runner, TimedStep

if TYPE_CHECKING:
    from bench.gate import Evidence, Verdict

_TAKEN = ("evidence", "reports")

__all__ = ["Release", "ReleasedTarget", "make_release"]


@dataclass(frozen=True, kw_only=True)
class ReleasedTarget:
    """One target: where it lies, what was measured, what was decided."""

    name: str
    artifact: Artifact
    """In the release's folder."""
    evidence: Evidence
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, kw_only=True)
class Release:
    """What `run` made."""

    out: Path
    steps: tuple[TimedStep, ...]
    targets: tuple[ReleasedTarget, ...]
    gates: Gates
    seconds: float

    @property
    def verdict(self) -> str:
        """PASS, FAIL or INCONCLUSIVE over all targets; PASS where the recipe has no gates, which is said.

        Gates of which none could be judged, since every target is its own baseline, are INCONCLUSIVE.
        """
        from bench.gate import overall

        verdicts = [verdict for target in self.targets for verdict in target.verdicts]
        return overall(verdicts).value if self.is_judged else "PASS"

    @property
    def is_judged(self) -> bool:
        """Whether the recipe has gates."""
        return self.gates.are_set

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Columns and rows of the final table: each artifact beside its baseline."""
        columns = ("artifact", "model size", "smaller", "metric", "value", "baseline", "CPU a request", "faster")
        return columns, [_table_row(target) for target in self.targets]

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "verdict": self.verdict if self.is_judged else None,
            "out": str(self.out),
            "seconds": round(self.seconds, 3),
            "steps": [
                {"name": step.name, "cached": step.was_cached, "seconds": round(step.seconds, 3)} for step in self.steps
            ],
            "targets": [
                {
                    "name": target.name,
                    "path": str(target.artifact.path),
                    "digest": target.artifact.digest,
                    "model_bytes": target.artifact.model_bytes,
                    "metrics": dict(target.evidence.evaluation.metrics) if target.evidence.evaluation else {},
                    "gates": [verdict.to_json() for verdict in target.verdicts],
                }
                for target in self.targets
            ],
        }


def _table_row(target: ReleasedTarget) -> tuple[str, ...]:
    evidence = target.evidence
    smaller = value = baseline = cpu = faster = metric = ""
    if evidence.baseline is not None:
        smaller = f"{evidence.baseline.model_bytes / target.artifact.model_bytes:.2f}×"
    if evidence.evaluation is not None:
        metric = evidence.evaluation.default_metric
        value = f"{evidence.evaluation.metrics[metric]:.4f}"
    if evidence.baseline_evaluation is not None and metric:
        baseline = f"{evidence.baseline_evaluation.metrics[metric]:.4f}"
    if evidence.latency is not None:
        cpu = f"{evidence.latency.cpu_ms:.2f} ms"
    if evidence.duet is not None:
        bounds = evidence.duet.speedup()
        faster = f"{bounds.estimate:.2f}× ({bounds.lower:.2f} to {bounds.upper:.2f})"
    size = format_bytes(target.artifact.model_bytes)
    return (target.name, size, smaller, metric, value, baseline, cpu, faster)


def make_release(
    path: Path,
    *,
    out: Path | None,
    settings: Sequence[str],
    store_root: Path | None,
    junit: Path | None,
    summary: Path | None,
    remeasure: bool,
    progress: Progress,
) -> Release:
    """Run a recipe and deliver what it made; see `edgesmith.api.run`."""
    start = time.monotonic()
    recipe = load_recipe(path, settings)
    destination = out or Path("out") / recipe.name
    _check_destination(destination, recipe)
    runner = Runner(store=Store(store_root or default_store_root()), progress=progress, remeasure=remeasure)
    made = walk(recipe, path.parent, runner)
    with hold_lock(destination):  # another run may be delivering into the same folder
        targets = tuple(_release_target(recipe, made, target, destination) for target in made.targets)
        for released, target in zip(targets, made.targets, strict=True):
            _report(recipe, made, target, released, destination, _command(path, settings))
    _for_ci(targets, junit, summary)
    for target in made.targets:
        if target.comparison is None and recipe.gates != recipe.gates.absolute:
            progress.note(f"{target.name}: is its own baseline; gates that compare with one were not judged for it")
    return Release(
        out=destination,
        steps=tuple(runner.steps),
        targets=targets,
        gates=recipe.gates,
        seconds=time.monotonic() - start,
    )


def _check_destination(out: Path, recipe: Recipe) -> None:
    """Find out before the work whether its results can be delivered.

    Raises:
        UsageError: something else is in the way.
        StorageError: the folder cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file", mend="Choose another folder with -o/--out.")
    for name in recipe.targets:
        if name in _TAKEN:
            raise UsageError(f"targets.{name}: a folder of that name is written beside the targets; choose another")
        check_replaceable(out / name, "onnx")
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()


def _release_target(recipe: Recipe, made: Made, target: TargetResult, out: Path) -> ReleasedTarget:
    from bench.gate import Subject, judge

    assert target.artifact is not None
    artifact = _deliver(target.artifact, out / target.name)
    parts = {
        "verify": target.verification,
        "eval": target.evaluation,
        "baseline-eval": target.baseline_evaluation,
        "bench": target.latency,
        "baseline-bench": target.baseline_latency,
        "compare": target.comparison,
        "merge": made.merge_proof,
    }
    folder = out / "evidence" / target.name
    for part, made_evidence in parts.items():
        if made_evidence is not None:
            _deliver(made_evidence, folder / part)
    baseline_name = "the fp32 export" if recipe.baseline == "fp32" else recipe.baseline
    baseline = Subject.of(target.baseline, baseline_name) if target.baseline else None
    if baseline is not None:
        with TemporaryDirectory(prefix="edgesmith-") as temporary:
            _deliver(write_baseline(Path(temporary), artifact, baseline), folder / "baseline")
    evidence = evidence_of(
        artifact,
        baseline=baseline,
        evaluation=target.evaluation,
        baseline_evaluation=target.baseline_evaluation,
        latency=target.latency,
        comparison=target.comparison,
        name=target.name,
    )
    gates = recipe.gates if target.comparison is not None else recipe.gates.absolute
    verdicts = judge(gates, evidence) if gates.are_set else []
    return ReleasedTarget(name=target.name, artifact=artifact, evidence=evidence, verdicts=tuple(verdicts))


def _deliver(made: Artifact, destination: Path) -> Artifact:
    """Copy an artifact out of the store, unless the very same one is there and whole."""
    if (destination / MANIFEST).is_file():
        try:
            there = read_artifact(destination)
        except EdgesmithError:
            there = None  # damaged: replaced
        if there is not None and there.digest == made.digest:
            return there
    copy_tree(made.path, destination)
    return read_artifact(destination)


def _report(
    recipe: Recipe,
    made: Made,
    target: TargetResult,
    released: ReleasedTarget,
    out: Path,
    command: str,
) -> None:
    from bench.latency import Latency
    from bench.machine import describe_machine
    from bench.report import ReportData, write_report
    from bench.start import Start

    facts: dict[str, Any] = {}
    for proof in (made.merge_proof, target.verification):
        if proof is not None:
            facts |= json.loads((proof.path / "verification.json").read_text())["metrics"]
    data = ReportData(
        title=f"{recipe.name}: {target.name}",
        artifact=released.evidence.artifact,
        baseline=released.evidence.baseline,
        verdicts=released.verdicts,
        lineage=released.artifact.manifest.parents,
        verification=facts,
        evaluation=released.evidence.evaluation,
        baseline_evaluation=released.evidence.baseline_evaluation,
        latency=released.evidence.latency,
        baseline_latency=Latency.load(target.baseline_latency.path) if target.baseline_latency else None,
        baseline_start=Start.load(target.baseline_latency.path) if target.baseline_latency else None,
        duet=released.evidence.duet,
        start=Start.load(target.latency.path) if target.latency else None,
        machine=released.evidence.latency.machine if released.evidence.latency else describe_machine(),
        versions=released.artifact.manifest.tools,
        command=command,
        notes=_notes(released.artifact),
    )
    write_report(out / "reports" / target.name, data)


def _notes(artifact: Artifact) -> tuple[str, ...]:
    """What quantization left in float, by reason."""
    path = artifact.path / "quantization.json"
    if not path.is_file():
        return ()
    facts = json.loads(path.read_bytes())
    reasons = Counter(node["reason"] for node in facts["in_float"])
    in_float = tuple(f"{count} layer(s) left in float: {reason}" for reason, count in reasons.most_common())
    return (f"{len(facts['quantized'])} layers are int8", *in_float)


def _command(path: Path, settings: Sequence[str]) -> str:
    return shlex.join(["edgesmith", "run", str(path), *(part for one in settings for part in ("--set", one))])


def _for_ci(targets: Sequence[ReleasedTarget], junit: Path | None, summary: Path | None) -> None:
    from dataclasses import replace

    from bench.ci import write_junit, write_summary

    verdicts = [replace(one, gate=f"{target.name}.{one.gate}") for target in targets for one in target.verdicts]
    if junit is not None:
        write_junit(junit, verdicts)
    if summary is not None:
        # A step summary of GitHub's belongs to several commands: each adds to it.
        write_summary(summary, verdicts, append=os.fspath(summary) == os.environ.get("GITHUB_STEP_SUMMARY"))
