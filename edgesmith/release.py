"""A release: a recipe's artifacts, evidence, verdicts and reports, delivered into a folder of the user's."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from edgesmith.artifact import MANIFEST, Artifact, read_artifact
from edgesmith.errors import EdgesmithError, UsageError
from edgesmith.evidence import Role, find_evidence, judge_measured, write_role
from edgesmith.files import copy_tree, hold_lock, storage_errors
from edgesmith.gates import RegressionGate
from edgesmith.lineage import quantization_notes, trace_lineage, trace_steps
from edgesmith.pipeline import Made, TargetResult, walk
from edgesmith.progress import Progress
from edgesmith.recipe import Recipe, load_recipe
from edgesmith.releases import EVIDENCE, RELEASE, ModelStep, ReleasedTargetIndex, ReleaseIndex, read_index
from edgesmith.reports import ReleasedTarget, build_report, read_targets, write_report
from edgesmith.stages.base import check_replaceable
from edgesmith.store import Store, default_store_root
from edgesmith.verdict_files import VerdictFiles
from edgesmith.walkers import Runner, TimedStep

__all__ = ["Release", "make_release"]

USUAL_REGRESSION = RegressionGate(max_slowdown=0.05, max_drop=0.01, max_growth=0.05)
"""What is judged with --against where the recipe does not say."""
USUAL_LANGUAGE_REGRESSION = RegressionGate(max_growth=0.05, max_perplexity_ratio=1.01)
"""The same of language models, on the text that they are measured on."""
_TAKEN = (EVIDENCE, RELEASE, "report.html", "report.md", "report.json")


@dataclass(frozen=True, kw_only=True)
class Release:
    """What `run` made."""

    out: Path
    steps: tuple[TimedStep, ...]
    targets: tuple[ReleasedTarget, ...]
    is_judged: bool
    """Whether the recipe has gates."""
    seconds: float
    model_steps: tuple[ModelStep, ...] = ()
    """What became of the checkpoint before the targets were made of it."""

    @property
    def verdict(self) -> str:
        """PASS, FAIL or INCONCLUSIVE over all targets; PASS where the recipe has no gates, which is said.

        Gates of which none could be judged, since every target is its own baseline, are INCONCLUSIVE.
        """
        from bench.gates.judge import overall

        verdicts = [verdict for target in self.targets for verdict in target.verdicts]
        return overall(verdicts).value if self.is_judged else "PASS"

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "verdict": self.verdict if self.is_judged else None,
            "out": str(self.out),
            "seconds": round(self.seconds, 3),
            "steps": [
                {"name": step.name, "cached": step.was_cached, "seconds": round(step.seconds, 3)} for step in self.steps
            ],
            "model_steps": [step.model_dump(mode="json", exclude={"curve"}) for step in self.model_steps],
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


def make_release(
    path: Path,
    *,
    out: Path | None,
    settings: Sequence[str],
    against: Path | None,
    store_root: Path | None,
    outputs: VerdictFiles,
    remeasure: bool,
    progress: Progress,
) -> Release:
    """Run a recipe and deliver what it made; see `edgesmith.api.run`."""
    start = time.monotonic()
    recipe = load_recipe(path, settings)
    if against is not None and recipe.gates.regression is None:
        usual = USUAL_LANGUAGE_REGRESSION if recipe.generates else USUAL_REGRESSION
        recipe = recipe.model_copy(update={"gates": recipe.gates.model_copy(update={"regression": usual})})
        limits = usual.model_dump(exclude_unset=True)
        progress.note(f"gates.regression is not set, so {against} is judged by the usual one: {limits}")
    destination = out or Path("out") / recipe.name
    _check_destination(destination, recipe)
    runner = Runner(store=Store(store_root or default_store_root()), progress=progress, remeasure=remeasure)
    made = walk(recipe, path.parent, runner, against=against)
    targets = _deliver_release(recipe, made, _command(path, settings, against), destination)
    outputs.write(
        [replace(one, gate=f"{target.name}.{one.gate}") for target in targets for one in target.verdicts],
        title=recipe.name,
    )
    for released in targets:
        if released.is_own_baseline and recipe.gates_of(released.name).needs_baseline:
            progress.note(f"{released.name}: is its own baseline; gates that compare with one were not judged for it")
    return Release(
        out=destination,
        steps=tuple(runner.steps),
        targets=targets,
        is_judged=any(recipe.gates_of(name).are_set for name in recipe.targets),
        seconds=time.monotonic() - start,
        model_steps=read_index(destination).steps,
    )


def _check_destination(out: Path, recipe: Recipe) -> None:
    """Find out before the work whether its results can be delivered.

    Raises:
        UsageError: something else is in the way.
        StorageError: the folder cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file", mend="Choose another folder with -o/--out.")
    for name, target in recipe.targets.items():
        if name in _TAKEN:
            raise UsageError(f"targets.{name}: a folder of that name is written beside the targets; choose another")
        check_replaceable(out / name, target.format)
    if out.is_dir() and not (out / RELEASE).is_file():  # what a killed run left is known by its names
        ours = {*_TAKEN, *recipe.targets}
        others = [path.name for path in sorted(out.iterdir()) if path.name not in ours and path.name[0] != "."]
        if others:
            raise UsageError(
                f"{out}: holds {', '.join(others[:3])}{' …' if len(others) > 3 else ''} and no release",
                mend="Choose another folder with -o/--out.",
            )
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()


def _deliver_release(recipe: Recipe, made: Made, command: str, out: Path) -> tuple[ReleasedTarget, ...]:
    """Put artifacts, evidence, verdicts and reports into place; what cannot be judged leaves all as it was."""
    with hold_lock(out):  # another run may be delivering into the same folder
        index = _index(recipe, made, command)
        for target in made.targets:
            _judge_ahead(recipe, made, target, out)
        _remove_outdated(out, index)
        for target in made.targets:
            _deliver_target(recipe, made, target, out)
        index.save(out)
        targets = read_targets(out)
        write_report(out, build_report(out, targets))
    return targets


def _judge_ahead(recipe: Recipe, made: Made, target: TargetResult, out: Path) -> None:
    """Judge a target on what will lie in the release: what was measured, and the evidence that a user put there.

    Raises:
        UsageError: evidence for a gate is missing, or cannot be compared.
        ArtifactError: evidence is damaged, or of something else.
    """
    from bench.gates.judge import Subject

    assert target.artifact is not None
    where = out / EVIDENCE / target.name
    parts, others = _parts(made, target), _others(target)
    replaced = {*parts, *others, *_written_before(out).get(target.name, ())}
    kept = [folder for folder in sorted(where.glob("*/")) if folder.name not in replaced]
    found = {one.digest: one for one in (*parts.values(), *find_evidence(kept))}
    subjects = {role: Subject.of(other, _name(recipe, role)) for role, other in others.items()}
    judge_measured(
        recipe.gates_of(target.name),
        Subject.of(target.artifact, target.name),
        subjects.get("baseline"),
        subjects.get("previous"),
        list(found.values()),
        where,
    )


def _name(recipe: Recipe, role: Role) -> str:
    """What a target is compared with, for people."""
    if role == "previous":
        return "the previous release"
    ours = "the checkpoint" if recipe.generates else "the fp32 export"
    return ours if recipe.baseline == "fp32" else recipe.baseline


def _written_before(out: Path) -> dict[str, tuple[str, ...]]:
    """Target → folders of evidence that an earlier run wrote for it."""
    try:
        older = read_index(out)
    except EdgesmithError:
        return {}  # there is none, or none that can be read
    return {name: target.parts for name, target in older.targets.items()}


def _remove_outdated(out: Path, index: ReleaseIndex) -> None:
    """Remove evidence that an earlier run left here and this one does not make: it would be judged and reported."""
    for name, parts in _written_before(out).items():
        kept = index.targets[name].parts if name in index.targets else ()
        for part in set(parts) - set(kept):
            shutil.rmtree(out / EVIDENCE / name / part, ignore_errors=True)


def _parts(made: Made, target: TargetResult) -> dict[str, Artifact]:
    """Folder of evidence → what was measured for a target."""
    found = {**target.evidence, "merge": made.checkpoints.merge_proof}
    return {part: evidence for part, evidence in found.items() if evidence is not None}


def _others(target: TargetResult) -> dict[Role, Artifact]:
    """What a target is compared with."""
    others: dict[Role, Artifact | None] = {"baseline": target.baseline, "previous": target.previous}
    return {role: other for role, other in others.items() if other is not None}


def _deliver_target(recipe: Recipe, made: Made, target: TargetResult, out: Path) -> None:
    """Copy one target and all of its evidence into the release."""
    from bench.gates.judge import Subject

    assert target.artifact is not None
    artifact = _deliver(target.artifact, out / target.name)
    folder = out / EVIDENCE / target.name
    for part, evidence in _parts(made, target).items():
        _deliver(evidence, folder / part)
    for role, other in _others(target).items():
        subject = Subject.of(other, _name(recipe, role))
        with TemporaryDirectory(prefix="edgesmith-") as temporary:
            note = Path(temporary) / role  # of ordinary access rights, unlike the temporary folder itself
            note.mkdir()
            _deliver(write_role(note, role, artifact, subject), folder / role)


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


def _index(recipe: Recipe, made: Made, command: str) -> ReleaseIndex:
    """What a report says that neither artifacts nor evidence hold."""
    versions: dict[str, str] = {}
    targets = {}
    steps = trace_steps(made.checkpoints.chain)
    for target in made.targets:
        assert target.artifact is not None
        versions |= target.artifact.manifest.tools
        targets[target.name] = ReleasedTargetIndex(
            parts=tuple(sorted({*_parts(made, target), *_others(target)})),
            lineage=trace_lineage(made, target, steps),
            gates=recipe.gates_of(target.name),
            notes=quantization_notes(target.artifact),
        )
    return ReleaseIndex(name=recipe.name, command=command, versions=versions, steps=steps, targets=targets)


def _command(path: Path, settings: Sequence[str], against: Path | None) -> str:
    given = [part for one in settings for part in ("--set", one)]
    given += ["--against", str(against)] if against else []
    return shlex.join(["edgesmith", "run", str(path), *given])
