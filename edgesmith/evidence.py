"""Evidence on disk: which measurements belong to an artifact, found by digest and never by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from edgesmith.artifact import MANIFEST, Artifact, open_artifact
from edgesmith.errors import ArtifactError, RecipeError, UsageError
from edgesmith.files import storage_errors
from edgesmith.gates import Gates
from edgesmith.recipe import load_recipe

if TYPE_CHECKING:
    from bench.gate import Evidence, Subject

__all__ = ["BASELINE_FILE", "collect_evidence", "evidence_of", "load_gates"]

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
        UsageError: the folder is missing.
        ArtifactError: evidence was altered.
    """
    from bench.gate import Subject

    if not folder.is_dir():
        raise UsageError(
            f"{folder}: no such folder of evidence",
            mend="Name one with --evidence; `edgesmith run`, `eval -o` and `bench -o` write them.",
        )
    found = list(_evidence_below(folder))
    subject = Subject.of(baseline) if baseline else _noted_baseline(folder, artifact.digest)
    evaluations = _of(found, "eval", artifact=artifact.digest)
    theirs = _of(found, "eval", artifact=subject.digest) if subject else []
    pairs = [(a, b) for a in evaluations for b in theirs if _parents(a)["data"] == _parents(b)["data"]]
    evaluation, baseline_evaluation = (
        _one(pairs, "pairs of evaluations on the same data", folder) if pairs else (None, None)
    )
    comparison = _of(found, "compare", artifact=artifact.digest, baseline=subject.digest) if subject else []
    return evidence_of(
        artifact,
        baseline=subject,
        evaluation=evaluation or (_one(evaluations, "evaluations", folder) if evaluations else None),
        baseline_evaluation=baseline_evaluation,
        latency=next(iter(_of(found, "bench", artifact=artifact.digest)), None),
        comparison=next(iter(comparison), None),
    )


def _evidence_below(folder: Path) -> Iterator[Artifact]:
    for manifest in sorted(folder.glob(f"*/{MANIFEST}")) + sorted(folder.glob(MANIFEST)):
        opened = open_artifact(manifest.parent)
        if opened.kind == "evidence":
            yield opened


def _parents(evidence: Artifact) -> dict[str, str]:
    return {parent.role: parent.digest for parent in evidence.manifest.parents}


def _of(found: Sequence[Artifact], step: str, **parents: str) -> list[Artifact]:
    return [one for one in found if one.manifest.step == step and parents.items() <= _parents(one).items()]


def _one(candidates: Sequence[Any], what: str, folder: Path) -> Any:
    if len(candidates) > 1:
        raise UsageError(
            f"{folder}: holds {len(candidates)} {what} of this artifact; which one counts is not for us to choose",
            mend="Keep one data file's evidence in a folder of its own and name it with --evidence.",
        )
    return candidates[0]


def _noted_baseline(folder: Path, digest: str) -> Subject | None:
    from bench.gate import Subject

    path = folder / BASELINE_FILE
    if not path.is_file():
        return None
    with storage_errors(path):
        text = path.read_bytes()
    try:
        noted = json.loads(text).get(digest)
        return Subject(**noted) if noted else None
    except (ValueError, TypeError, AttributeError) as error:
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
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: must be a mapping of gates")
    if "targets" in content:
        return load_recipe(path).gates
    try:
        return Gates.model_validate(content.get("gates", content))
    except ValidationError as error:
        faults = [f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise RecipeError("\n".join(faults), mend="`edgesmith schema` prints all gates with their meaning.") from error
