"""Evidence on disk: which measurements belong to an artifact, found by digest and never by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml
from pydantic import ValidationError

from edgesmith.artifact import MANIFEST, Artifact, Parent, read_artifact, write_artifact
from edgesmith.errors import ArtifactError, RecipeError, UsageError
from edgesmith.files import atomic_write, storage_errors
from edgesmith.gates import Gates
from edgesmith.recipe import load_recipe, recipe_error

if TYPE_CHECKING:
    from bench.duet.duet import Duet
    from bench.gates.judge import Evidence, Subject
    from bench.gates.verdict import Verdict
    from bench.language.answers import Answers
    from bench.language.evaluation import LanguageEvaluation
    from bench.load.result import LoadResult
    from bench.machine.generation_limits import GenerationLimits
    from bench.machine.limits import Limits
    from bench.scenarios.generation import Generation
    from bench.scenarios.latency import Latency
    from bench.scenarios.start import Start
    from bench.scenarios.sweep import Sweep
    from bench.scenarios.throughput import Throughput
    from bench.sizes.footprint import Footprint
    from bench.sizes.tensors import TensorSizes

__all__ = [
    "Measured",
    "Role",
    "find_evidence",
    "judge_measured",
    "load_gates",
    "measured_duets",
    "measured_pair",
    "noted",
    "read_verification",
    "write_role",
]

T = TypeVar("T")

SUBJECT_FILE = "subject.json"
Role = Literal["baseline", "previous"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All that was measured of one artifact, as far as a folder holds it."""

    evaluations: tuple[Artifact, ...] = ()
    """Evidence folders: which of them can be compared depends on their data."""
    latencies: tuple[Latency, ...] = ()
    throughputs: tuple[Throughput, ...] = ()
    loads: tuple[LoadResult, ...] = ()
    generations: tuple[Generation, ...] = ()
    sweeps: tuple[Sweep, ...] = ()
    starts: tuple[Start, ...] = ()
    limits: tuple[Limits, ...] = ()
    generation_limits: tuple[GenerationLimits, ...] = ()
    languages: tuple[LanguageEvaluation, ...] = ()
    answers: tuple[Answers, ...] = ()
    footprint: Footprint | None = None
    tensors: TensorSizes | None = None
    verification: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, digest: str, found: Sequence[Artifact]) -> Measured:
        """Pick what names an artifact as its parent."""
        mine = [one for one in found if _parents(one).get("artifact") == digest]
        parts = {name: tuple(_load(mine, *source)) for name, source in _SOURCES.items()}
        return cls(
            evaluations=tuple(one for one in mine if one.manifest.step == "eval"),
            footprint=next(iter(_load(mine, "footprint.json", "bench.sizes.footprint", "Footprint")), None),
            tensors=next(iter(_load(mine, "tensor_sizes.json", "bench.sizes.tensors", "TensorSizes")), None),
            verification=next((read_verification(one) for one in mine if one.manifest.step == "verify"), None),
            **parts,
        )

    def summary(self) -> dict[str, Any]:
        """Every kind of figure that there is, JSON-able, by its name in the singular."""
        return {
            name: parts[0].summary() if len(parts) == 1 else [part.summary() for part in parts]
            for name, field in _NAMES.items()
            if (parts := getattr(self, field))
        }


# Field of `Measured` → the file that a measurement leaves, and the class that reads it.
_SOURCES: Mapping[str, tuple[str, str, str]] = {
    "latencies": ("latency.json", "bench.scenarios.latency", "Latency"),
    "throughputs": ("throughput.json", "bench.scenarios.throughput", "Throughput"),
    "loads": ("load.json", "bench.load.result", "LoadResult"),
    "generations": ("generation.json", "bench.scenarios.generation", "Generation"),
    "sweeps": ("sweep.json", "bench.scenarios.sweep", "Sweep"),
    "starts": ("start.json", "bench.scenarios.start", "Start"),
    "limits": ("limits.json", "bench.machine.limits", "Limits"),
    "generation_limits": ("generation_limits.json", "bench.machine.generation_limits", "GenerationLimits"),
    "languages": ("language.json", "bench.language.evaluation", "LanguageEvaluation"),
    "answers": ("answers.json", "bench.language.answers", "Answers"),
}


_NAMES = {
    "latency": "latencies",
    "throughput": "throughputs",
    "generation": "generations",
    "sweep": "sweeps",
    "load": "loads",
    "limits": "limits",
    "generation_limits": "generation_limits",
    "language": "languages",
    "answers": "answers",
    "start": "starts",
}


def _load(found: Sequence[Artifact], file: str, module: str, name: str) -> list[Any]:
    """Read the measurements of one kind; their module is imported only where there is one."""
    folders = [one.path for one in found if (one.path / file).is_file()]
    if not folders:
        return []
    load: Callable[[Path], Any] = getattr(import_module(module), name).load
    return [load(folder) for folder in folders]


def read_verification(evidence: Artifact) -> Mapping[str, Any]:
    """Figures that a proof of equality left: name → value.

    Raises:
        ArtifactError: the file is damaged.
    """
    from bench.raw import damage_errors, read_json

    value = read_json(evidence.path / "verification.json", mend="Make one with `edgesmith verify`.")
    with damage_errors(evidence.path / "verification.json"):
        metrics: Mapping[str, Any] = value["metrics"]
        return metrics


def find_evidence(folders: Sequence[Path]) -> list[Artifact]:
    """Open all evidence in folders and up to two levels below; the same evidence twice counts once.

    Raises:
        ArtifactError: evidence was altered.
    """
    return list(_evidence_below(folders))


def _evidence_below(folders: Sequence[Path]) -> Iterator[Artifact]:
    seen = set()
    for folder in folders:
        for manifest in sorted(path for level in ("", "*/", "*/*/") for path in folder.glob(level + MANIFEST)):
            opened = read_artifact(manifest.parent)
            if opened.kind == "evidence" and opened.digest not in seen:
                seen.add(opened.digest)
                yield opened


def measured_pair(artifact: Subject, baseline: Subject | None, found: Sequence[Artifact], where: Path) -> Evidence:
    """Put together what gates are judged on.

    Args:
        artifact: What is judged.
        baseline: What it is compared with.
        found: From `find_evidence`.
        where: Named in errors.

    Raises:
        UsageError: there are several candidates where one counts.
        ArtifactError: evidence is damaged.
    """
    from bench.accuracy import Evaluation
    from bench.gates.judge import Evidence

    ours = Measured.of(artifact.digest, found)
    theirs = Measured.of(baseline.digest, found) if baseline else Measured()
    pairs = [(a, b) for a in ours.evaluations for b in theirs.evaluations if _data(a) == _data(b)]
    pair = _one(pairs, "pairs of evaluations on the same data", where)
    evaluation = pair[0] if pair else _one(ours.evaluations, "evaluations", where)
    baseline_evaluation = pair[1] if pair else _one(theirs.evaluations, "evaluations of the baseline", where)
    return Evidence(
        artifact=artifact,
        baseline=baseline,
        evaluation=Evaluation.load(evaluation.path) if evaluation else None,
        baseline_evaluation=Evaluation.load(baseline_evaluation.path) if baseline_evaluation else None,
        latencies=ours.latencies,
        throughputs=ours.throughputs,
        loads=ours.loads,
        starts=ours.starts,
        footprint=ours.footprint,
        baseline_footprint=theirs.footprint,
        duets=measured_duets(found, artifact=artifact.digest, baseline=baseline.digest) if baseline else (),
        language=_one(ours.languages, "measurements of a language model on texts", where),
        baseline_language=_one(theirs.languages, "measurements of the baseline on texts", where),
        answers=_one(ours.answers, "sets of answers", where),
        baseline_answers=_one(theirs.answers, "sets of answers of the baseline", where),
        generations=ours.generations,
    )


def measured_duets(found: Sequence[Artifact], **parents: str) -> tuple[Duet, ...]:
    """Read the comparisons of speed among evidence folders, those of given parents by role → digest."""
    mine = [one for one in found if one.manifest.step == "compare" and parents.items() <= _parents(one).items()]
    return tuple(_load(mine, "duet.json", "bench.duet.duet", "Duet"))


def _parents(evidence: Artifact) -> dict[str, str]:
    return {parent.role: parent.digest for parent in evidence.manifest.parents}


def _data(evaluation: Artifact) -> str | None:
    return _parents(evaluation).get("data")


def _one(candidates: Sequence[T], what: str, folder: Path) -> T | None:
    if len(candidates) > 1:
        raise UsageError(
            f"{folder}: holds {len(candidates)} {what} of this artifact; which one counts is not for us to choose",
            mend="Keep the evidence that counts in a folder of its own and name it with --evidence.",
        )
    return candidates[0] if candidates else None


def write_role(folder: Path, role: Role, artifact: Artifact, other: Subject) -> Artifact:
    """Note what an artifact is compared with as evidence, so that `gate` needs none of the other's own files.

    Raises:
        StorageError: the folder cannot be written.
    """
    atomic_write(folder / SUBJECT_FILE, json.dumps(asdict(other), indent=1) + "\n")
    parents = [Parent(role="artifact", digest=artifact.digest), Parent(role=role, digest=other.digest)]
    return write_artifact(folder, kind="evidence", step=role, parents=parents)


def noted(role: Role, found: Sequence[Artifact], digest: str, where: Path) -> Subject | None:
    """What `run` noted that an artifact is compared with.

    Raises:
        UsageError: there are several.
        ArtifactError: the note is damaged.
    """
    from bench.gates.judge import Subject

    notes = [one for one in found if one.manifest.step == role and _parents(one).get("artifact") == digest]
    note = _one(notes, f"notes of a {role}", where)
    if note is None:
        return None
    path = note.file(SUBJECT_FILE)
    with storage_errors(path):
        text = path.read_bytes()
    try:
        return Subject(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: is damaged: {error}", mend="Name what to compare with: --against.") from error


def judge_measured(
    gates: Gates,
    artifact: Subject,
    baseline: Subject | None,
    previous: Subject | None,
    found: Sequence[Artifact],
    where: Path,
) -> tuple[Evidence, list[Verdict]]:
    """Judge by what was found: regressions against `previous` where there is one, all else against the baseline.

    An artifact that is its own baseline is judged by the gates that compare with none.

    Args:
        gates: The limits.
        artifact: What is to ship.
        baseline: What it is compared with.
        previous: An earlier release.
        found: From `find_evidence`.
        where: Named in errors.

    Returns:
        What it was judged on (against the baseline), and a verdict a limit; none if no gate is left to judge.

    Raises:
        UsageError: evidence for a gate is missing.
        ArtifactError: evidence is damaged, or of something else.
    """
    from bench.gates.judge import judge

    evidence = measured_pair(artifact, baseline, found, where)
    verdicts: list[Verdict] = []
    regression = gates.regression
    if previous is not None and regression is not None:
        gates = gates.model_copy(update={"regression": None})
        if previous.digest == artifact.digest:
            verdicts = [_unchanged(artifact)]
        else:
            verdicts = judge(Gates(regression=regression), measured_pair(artifact, previous, found, where))
            verdicts = [replace(one, reason=one.reason.replace("the baseline", previous.name)) for one in verdicts]
    if baseline is not None and baseline.digest == artifact.digest:
        gates = gates.absolute
    if gates.are_set:
        verdicts = judge(gates, evidence) + verdicts
    return evidence, verdicts


def _unchanged(artifact: Subject) -> Verdict:
    """The verdict on regressions against a release that has the very same artifact."""
    from bench.gates.verdict import Outcome, Verdict

    return Verdict(
        gate="regression",
        verdict=Outcome.PASS,
        reason=f"the artifact is the previous release's own, byte for byte ({artifact.digest[:19]}…).",
        unit="",
        threshold=0.0,
        estimate=0.0,
        bound=0.0,
    )


def load_gates(path: Path, target: str) -> Gates:
    """Read gates from a recipe, or from a YAML file with just them.

    Args:
        path: The file.
        target: Whose gates they are, in a recipe that has a target of that name.

    Raises:
        RecipeError: the file is missing, not YAML, or breaks the schema.
    """
    if not path.is_file():
        raise RecipeError(f"{path}: no such file")
    with storage_errors(path):
        text = path.read_bytes()
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{path}: is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: must be a mapping of gates")
    if "targets" in content:
        recipe = load_recipe(path)
        return recipe.gates_of(target) if target in recipe.targets else recipe.gates
    try:
        return Gates.model_validate(content.get("gates", content))
    except ValidationError as error:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        assert root is not None  # it has been read before
        raise recipe_error(error, root, path, ("gates",)) from error
