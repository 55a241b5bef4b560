"""Measuring: parity, accuracy, speed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.api.rows import NUM_TIMED, proof_rows
from edgesmith.errors import UsageError
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgesmith.artifact import Artifact
    from export.verify import Verification

__all__ = ["bench", "eval", "verify"]


def verify(
    artifact: Path,
    *,
    against: Path,
    data: Path | None = None,
    num_samples: int = 64,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Verification:
    """Compare an artifact with its reference on real rows.

    Args:
        artifact: What ships.
        against: Checkpoint (run in torch) or another artifact.
        data: Rows; packaged sentences if left out.
        num_samples: Rows drawn from `data`.
        task: Taken from the artifact if left out.
        columns: The task's column → the file's.
        seed: Of the draw.
        threads: Of the artifact's engine.
        progress: Shows how far it is.

    Raises:
        VerificationError: a tolerance of the artifact's precision is broken.
    """
    from edgesmith.artifact import open_artifact
    from edgesmith.stages.verify import verify_artifact

    return verify_artifact(
        open_artifact(artifact, kinds=("onnx",)),
        open_artifact(against, kinds=("checkpoint", "onnx")),
        rows=proof_rows(data, num=num_samples, seed=seed, columns=columns, progress=progress),
        task=task,
        threads=threads,
        progress=progress,
    )


def eval(  # noqa: A001
    artifact: Path,
    *,
    data: Path,
    out: Path | None = None,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure a task's metrics on a file.

    Args:
        artifact: What ships.
        data: Held-out, labelled rows.
        out: Folder for the metrics and every prediction.
        task: Taken from the artifact if left out.
        columns: The task's column → the file's.
        threads: Of the engine.
        progress: Shows how far it is.

    Returns:
        The metrics and what they were measured on, JSON-able.

    Raises:
        DataError: a row does not fit the task.
    """
    from bench.accuracy import Evaluation
    from edgesmith.artifact import open_artifact
    from edgesmith.stages.measure import EvalStage
    from edgesmith.stages.rows import Rows

    stage = EvalStage(
        artifact=open_artifact(artifact, kinds=("onnx",)),
        rows=Rows(path=data, columns=columns or {}),
        task=task,
        threads=threads,
    )
    folder, evidence = _measure(stage, out, progress)
    with folder:
        return Evaluation.load(evidence.path).summary()


def bench(
    artifact: Path,
    *,
    against: Path | None = None,
    data: Path | None = None,
    scenario: str = "single",
    num_requests: int | None = None,
    length: int | None = None,
    out: Path | None = None,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    threads: int = 1,
    seed: int = 0,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure an artifact's latency, or its speed in turns with a baseline.

    Args:
        artifact: What ships.
        against: Baseline to run in turns with.
        data: Rows to send; packaged sentences if left out.
        scenario: `single`.
        num_requests: Timed requests; from the time aimed at if left out.
        length: Tokens of every request; each row's own if left out.
        out: Folder for the raw samples.
        task: Taken from the artifact if left out.
        columns: The task's column → the file's.
        threads: Of the engine.
        seed: Of the rows' draw.
        progress: Shows how far it is.

    Returns:
        The figures, each with its sample size, JSON-able.

    Raises:
        UsageError: an unknown scenario.
    """
    from bench.duet import Duet
    from bench.latency import Latency
    from bench.start import Start
    from edgesmith.artifact import open_artifact
    from edgesmith.stages.measure import CompareStage, LatencyStage
    from edgesmith.stages.rows import Rows

    if scenario != "single":
        raise UsageError(f"--scenario {scenario}: unknown; this version measures single")
    opened = open_artifact(artifact, kinds=("onnx",))
    rows = Rows(path=data, num=NUM_TIMED if data else None, seed=seed, columns=columns or {})
    if against is not None:
        compare = CompareStage(
            artifact=opened,
            baseline=open_artifact(against, kinds=("onnx",)),
            rows=rows,
            task=task,
            threads=threads,
            length=length,
        )
        folder, evidence = _measure(compare, out, progress)
        with folder:
            return Duet.load(evidence.path).summary()
    stage = LatencyStage(
        artifact=opened,
        rows=rows,
        task=task,
        threads=threads,
        scenario=scenario,
        length=length,
        num_requests=num_requests,
    )
    folder, evidence = _measure(stage, out, progress)
    with folder:
        return Latency.load(evidence.path).summary() | {"start": Start.load(evidence.path).summary()}


def _measure(stage: Any, out: Path | None, progress: Progress) -> tuple[Any, Artifact]:
    """Run a measuring stage into `out`, or into a folder that goes when its context is left."""
    from contextlib import nullcontext
    from tempfile import TemporaryDirectory

    from edgesmith.stages.base import make_into

    if out is not None:
        return nullcontext(), make_into(stage, out, lambda _: None, progress)[0]
    folder = TemporaryDirectory(prefix="edgesmith-")
    return folder, stage.make(Path(folder.name), progress)
