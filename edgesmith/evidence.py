"""Evidence on disk: which measurements belong to an artifact, found by digest and never by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml
from pydantic import ValidationError

from edgesmith.artifact import MANIFEST, Artifact, Parent, read_artifact, write_artifact
from edgesmith.errors import ArtifactError, RecipeError, UsageError
from edgesmith.files import atomic_write, storage_errors
from edgesmith.gates import Gates
from edgesmith.recipe import load_recipe, recipe_error

if TYPE_CHECKING:
    from bench.gate import Evidence, Subject

__all__ = ["collect_evidence", "evidence_of", "load_gates", "write_baseline"]

T = TypeVar("T")

BASELINE_FILE = "baseline.json"


def evidence_of(
    artifact: Artifact,
    *,
    baseline: Subject | None,
    evaluation: Artifact | None,
    baseline_evaluation: Artifact | None,
    latency: Artifact | None,
    comparison: Artifact | None,
    name: str = "",
) -> Evidence:
    """Read evidence folders into what gates are judged on."""
    from bench.accuracy import Evaluation
    from bench.duet import Duet
    from bench.gate import Evidence, Subject
    from bench.latency import Latency

    return Evidence(
        artifact=Subject.of(artifact, name),
        baseline=baseline,
        evaluation=Evaluation.load(evaluation.path) if evaluation else None,
        baseline_evaluation=Evaluation.load(baseline_evaluation.path) if baseline_evaluation else None,
        latency=Latency.load(latency.path) if latency else None,
        duet=Duet.load(comparison.path) if comparison else None,
    )


def collect_evidence(artifact: Artifact, folder: Path, baseline: Artifact | None) -> Evidence:
    """Find all evidence of an artifact below a folder.

    Args:
        artifact: What is judged.
        folder: Holds evidence folders, as `run`, `eval -o` and `bench -o` write them.
        baseline: What it is compared with; by default the one that `run` noted in the folder.

    Raises:
        UsageError: the folder holds several candidates.
        ArtifactError: evidence was altered.
    """
    from bench.gate import Subject

    found = list(_evidence_below(folder))
    subject = Subject.of(baseline) if baseline else _noted_baseline(found, artifact.digest, folder)
    evaluations = _of(found, "eval", artifact=artifact.digest)
    theirs = _of(found, "eval", artifact=subject.digest) if subject else []
    pairs = [(a, b) for a in evaluations for b in theirs if _parents(a)["data"] == _parents(b)["data"]]
    pair = _one(pairs, "pairs of evaluations on the same data", folder)
    comparisons = _of(found, "compare", artifact=artifact.digest, baseline=subject.digest) if subject else []
    return evidence_of(
        artifact,
        baseline=subject,
        evaluation=pair[0] if pair else _one(evaluations, "evaluations", folder),
        baseline_evaluation=pair[1] if pair else None,
        latency=_one(_of(found, "bench", artifact=artifact.digest), "benchmarks", folder),
        comparison=_one(comparisons, "comparisons of speed", folder),
    )


def _evidence_below(folder: Path) -> Iterator[Artifact]:
    """All evidence in a folder and up to two levels below; the same evidence of two targets counts once."""
    seen = set()
    for manifest in sorted(path for level in ("", "*/", "*/*/") for path in folder.glob(level + MANIFEST)):
        opened = read_artifact(manifest.parent)
        if opened.kind == "evidence" and opened.digest not in seen:
            seen.add(opened.digest)
            yield opened


def _parents(evidence: Artifact) -> dict[str, str]:
    return {parent.role: parent.digest for parent in evidence.manifest.parents}


def _of(found: Sequence[Artifact], step: str, **parents: str) -> list[Artifact]:
    return [one for one in found if one.manifest.step == step and parents.items() <= _parents(one).items()]


def _one(candidates: Sequence[T], what: str, folder: Path) -> T | None:
    if len(candidates) > 1:
        raise UsageError(
            f"{folder}: holds {len(candidates)} {what} of this artifact; which one counts is not for us to choose",
            mend="Keep the evidence that counts in a folder of its own and name it with --evidence.",
        )
    return candidates[0] if candidates else None


def write_baseline(folder: Path, artifact: Artifact, baseline: Subject) -> Artifact:
    """Note an artifact's baseline as evidence, so that `gate` needs none of the baseline's own files.

    Raises:
        StorageError: the folder cannot be written.
    """
    atomic_write(folder / BASELINE_FILE, json.dumps(asdict(baseline), indent=1) + "\n")
    parents = [Parent(role="artifact", digest=artifact.digest), Parent(role="baseline", digest=baseline.digest)]
    return write_artifact(folder, kind="evidence", step="baseline", parents=parents)


def _noted_baseline(found: Sequence[Artifact], digest: str, folder: Path) -> Subject | None:
    from bench.gate import Subject

    noted = _one(_of(found, "baseline", artifact=digest), "baselines", folder)
    if noted is None:
        return None
    path = noted.file(BASELINE_FILE)
    with storage_errors(path):
        text = path.read_bytes()
    try:
        return Subject(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: is damaged: {error}", mend="Name the baseline with --against.") from error


def load_gates(path: Path) -> Gates:
    """Read gates from a recipe, or from a YAML file with just them.

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
        return load_recipe(path).gates
    try:
        return Gates.model_validate(content.get("gates", content))
    except ValidationError as error:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        assert root is not None  # it has been read before
        raise recipe_error(error, root, path, ("gates",)) from error
