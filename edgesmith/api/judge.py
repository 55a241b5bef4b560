"""Judging what was measured, and reporting it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.errors import UsageError

if TYPE_CHECKING:
    from bench.gates.verdict import Verdict
    from bench.report import ReleaseReport

__all__ = ["gate", "report"]


def gate(
    artifact: Path,
    *,
    gates: Path,
    against: Path | None = None,
    evidence: Path | None = None,
    junit: Path | None = None,
    summary: Path | None = None,
    comment: Path | None = None,
) -> tuple[str, list[Verdict]]:
    """Judge an artifact by saved evidence.

    Args:
        artifact: What is to ship.
        gates: A recipe, or a YAML file with just `gates:` or the gates themselves.
        against: What regressions are judged against: an artifact, or an earlier release. It is the baseline of the
            other gates too where the evidence names none.
        evidence: Folder of evidence; `evidence` beside the artifact if left out.
        junit: Write the verdicts as JUnit XML.
        summary: Write the verdicts as Markdown.
        comment: Write the verdicts as Markdown for a comment on a pull request.

    Returns:
        The overall verdict, and one verdict a limit.

    Raises:
        UsageError: there is no gate, or evidence for one is missing.
        ArtifactError: artifact or evidence was altered.
    """
    from bench.gates.judge import Subject, overall
    from edgesmith.artifact import open_artifact
    from edgesmith.evidence import find_evidence, judge_measured, load_gates, noted
    from edgesmith.releases import EVIDENCE, locate_target
    from edgesmith.verdict_files import VerdictFiles

    artifact = locate_target(artifact, artifact.resolve().name)
    limits = load_gates(gates, artifact.resolve().name)
    if not limits.are_set:
        raise UsageError(f"{gates}: sets no gate: there is nothing to judge", mend="Set accuracy, size or another one.")
    opened = open_artifact(artifact)
    folder = evidence or artifact.resolve().parent / EVIDENCE
    if evidence is not None and not evidence.is_dir():
        raise UsageError(f"{evidence}: no such folder of evidence", mend="`run`, `eval -o` and `bench -o` write them.")
    folders, previous = [folder], None
    if against is not None:
        other = open_artifact(locate_target(against, artifact.resolve().name))
        previous = Subject.of(other)
        folders.append(other.path.resolve().parent / EVIDENCE)  # an earlier release has its own
    found = find_evidence(folders)
    baseline = noted("baseline", found, opened.digest, folder) or previous
    if baseline is not None and baseline is previous and baseline.digest == opened.digest:
        raise UsageError(f"{against}: is the very artifact that is judged", mend="Compare it with another one.")
    previous = previous or noted("previous", found, opened.digest, folder)
    _, verdicts = judge_measured(limits, Subject.of(opened), baseline, previous, found, folder)
    VerdictFiles(junit=junit, summary=summary, comment=comment).write(verdicts, title=artifact.resolve().name)
    return overall(verdicts).value, verdicts


def report(folder: Path, *, out: Path | None = None) -> ReleaseReport:
    """Write the report of a release anew, from its artifacts and evidence.

    Args:
        folder: A release that `run` made, or a folder of artifacts beside a folder `evidence`.
        out: Folder to write `report.html`, `report.md` and `report.json` into; the release itself if left out.

    Returns:
        What the report says.

    Raises:
        UsageError: there is no release.
        ArtifactError: an artifact or evidence was altered.
    """
    from edgesmith.files import storage_errors
    from edgesmith.reports import build_report, read_targets, write_report

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", mend="`edgesmith run RECIPE -o DIR` makes a release.")
    built = build_report(folder, read_targets(folder))
    destination = out or folder
    with storage_errors(destination):
        destination.mkdir(parents=True, exist_ok=True)
    write_report(destination, built)
    return built
