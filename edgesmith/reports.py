"""Read a release back from its folder: its targets with their evidence and verdicts, and the report of it all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.artifact import MANIFEST, Artifact, read_artifact
from edgesmith.errors import UsageError
from edgesmith.evidence import Measured, find_evidence, judge_measured, noted, read_verification
from edgesmith.gates import Gates
from edgesmith.releases import EVIDENCE, RELEASE, ReleasedTargetIndex, ReleaseIndex, read_index

if TYPE_CHECKING:
    from bench.gates.judge import Evidence, Verdict
    from bench.report import ReleaseReport, TargetReport

__all__ = ["ReleasedTarget", "build_report", "read_targets", "write_report"]


@dataclass(frozen=True, kw_only=True)
class ReleasedTarget:
    """One target: where it lies, what was measured, what was decided."""

    name: str
    artifact: Artifact
    """In the release's folder."""
    evidence: Evidence
    measured: Measured
    baseline_measured: Measured
    proofs: tuple[Artifact, ...]
    """Of the merge, and of the unquantized export."""
    verdicts: tuple[Verdict, ...]

    @property
    def is_own_baseline(self) -> bool:
        """Whether it would be compared with itself."""
        baseline = self.evidence.baseline
        return baseline is not None and baseline.digest == self.artifact.digest


def read_targets(folder: Path) -> tuple[ReleasedTarget, ...]:
    """Read and judge every target of a release, by the evidence that lies in it.

    Args:
        folder: Of a release, or of artifacts beside a folder `evidence`.

    Raises:
        UsageError: there is no artifact, or evidence for a gate is missing.
        ArtifactError: an artifact or evidence was altered.
    """
    index = _index(folder)
    return tuple(_read_target(folder, name, target.gates) for name, target in index.targets.items())


def _index(folder: Path) -> ReleaseIndex:
    """The release's own, or one made up for a folder of artifacts."""
    if (folder / RELEASE).is_file():
        return read_index(folder)
    names = [path.parent.name for path in sorted(folder.glob(f"*/{MANIFEST}"))]
    if not names:
        raise UsageError(f"{folder}: holds no release and no artifact", mend="`edgesmith run RECIPE -o DIR` makes one.")
    found = {name: ReleasedTargetIndex() for name in names if read_artifact(folder / name).kind != "evidence"}
    return ReleaseIndex(name=folder.resolve().name, command="", targets=found)


def _read_target(folder: Path, name: str, gates: Gates) -> ReleasedTarget:
    from bench.gates.judge import Subject

    artifact = read_artifact(folder / name)
    where = folder / EVIDENCE / name
    found = find_evidence([where if where.is_dir() else folder / EVIDENCE])
    baseline = noted("baseline", found, artifact.digest, where)
    previous = noted("previous", found, artifact.digest, where)
    evidence, verdicts = judge_measured(gates, Subject.of(artifact, name), baseline, previous, found, where)
    proofs = tuple(one for one in found if one.manifest.step in ("prove-merge", "prove-export"))
    return ReleasedTarget(
        name=name,
        artifact=artifact,
        evidence=evidence,
        measured=Measured.of(artifact.digest, found),
        baseline_measured=Measured() if baseline is None else Measured.of(baseline.digest, found),
        proofs=proofs,
        verdicts=tuple(verdicts),
    )


def build_report(folder: Path, targets: tuple[ReleasedTarget, ...]) -> ReleaseReport:
    """Put together what a release's report says.

    Args:
        folder: The release.
        targets: From `read_targets`.
    """
    from bench.report import LearningCurve, ModelStep, ReleaseReport

    index = _index(folder)
    machines = [one.machine for target in targets for one in target.measured.latencies]
    machines += [one.machine for target in targets for one in target.measured.generations]
    return ReleaseReport(
        title=index.name,
        targets=tuple(_target_report(target, index.targets[target.name]) for target in targets),
        machine=machines[0] if machines else None,
        versions=index.versions,
        command=index.command,
        steps=tuple(
            ModelStep(**{**dict(step), "curve": LearningCurve(**dict(step.curve)) if step.curve else None})
            for step in index.steps
        ),
    )


def _target_report(target: ReleasedTarget, index: ReleasedTargetIndex) -> TargetReport:
    from bench.report import Ancestor, TargetReport

    ours, theirs = target.measured, target.baseline_measured
    if target.is_own_baseline:
        theirs = Measured()
    return TargetReport(
        name=target.name,
        artifact=target.evidence.artifact,
        baseline=None if target.is_own_baseline else target.evidence.baseline,
        verdicts=target.verdicts,
        lineage=tuple(Ancestor(**one.model_dump()) for one in index.lineage),
        verification={
            **{name: value for proof in target.proofs for name, value in read_verification(proof).items()},
            **(ours.verification or {}),
        },
        evaluation=target.evidence.evaluation,
        baseline_evaluation=None if target.is_own_baseline else target.evidence.baseline_evaluation,
        latencies=ours.latencies,
        baseline_latencies=theirs.latencies,
        throughputs=ours.throughputs,
        baseline_throughputs=theirs.throughputs,
        loads=ours.loads,
        generation=next(iter(ours.generations), None),
        baseline_generation=next(iter(theirs.generations), None),
        generation_limits=next(iter(ours.generation_limits), None),
        language=target.evidence.language,
        answers=target.evidence.answers,
        baseline_answers=target.evidence.baseline_answers,
        sweep=next(iter(ours.sweeps), None),
        limits=next(iter(ours.limits), None),
        baseline_limits=next(iter(theirs.limits), None),
        duets=target.evidence.duets,
        starts=ours.starts,
        baseline_starts=theirs.starts,
        footprint=ours.footprint,
        baseline_footprint=theirs.footprint,
        tensors=ours.tensors,
        baseline_tensors=theirs.tensors,
        notes=index.notes,
    )


def write_report(folder: Path, report: ReleaseReport) -> None:
    """Write `report.html`, `report.md` and `report.json` into a folder.

    Raises:
        StorageError: the folder cannot be written.
    """
    from bench.report import write_report as write

    write(folder, report)
