"""Measuring: parity, accuracy, speed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.api.rows import NUM_BATCHED, NUM_TIMED, proof_rows
from edgesmith.errors import UsageError
from edgesmith.progress import SILENT, Progress
from edgesmith.releases import locate_target

if TYPE_CHECKING:
    from edgesmith.artifact import Artifact
    from edgesmith.stages.base import Stage

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
) -> dict[str, Any]:
    """Compare an artifact with its reference on real rows; an unquantized language model's on a text.

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

    Returns:
        The figures, JSON-able.

    Raises:
        VerificationError: a tolerance of the artifact's precision is broken.
    """
    from edgesmith.api.language import verify_language
    from edgesmith.artifact import open_artifact
    from edgesmith.stages.engines import GENERATES
    from edgesmith.stages.verify import verify_artifact

    opened = open_artifact(artifact, kinds=("onnx", *GENERATES))
    if opened.kind != "onnx":
        if task is not None or seed:
            raise UsageError("--task and --seed are for graphs; a language model is compared on a text")
        return verify_language(opened, against=against, data=data, columns=columns, threads=threads, progress=progress)
    return verify_artifact(
        opened,
        open_artifact(against, kinds=("checkpoint", "onnx")),
        rows=proof_rows(data, num=num_samples, seed=seed, columns=columns, progress=progress),
        task=task,
        threads=threads,
        progress=progress,
    ).to_json()


def eval(  # noqa: A001
    artifact: Path,
    *,
    data: Path,
    against: Path | None = None,
    num_windows: int | None = None,
    window: int | None = None,
    max_tokens: int | None = None,
    out: Path | None = None,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure a task's metrics on a file.

    Args:
        artifact: What ships; a language model's checkpoint too.
        data: Held-out, labelled rows; of a language model see `eval_language`.
        against: Of a language model: what its predictions are compared with.
        num_windows: Of a language model: windows of text at most; 64 if left out.
        window: Of a language model: tokens of a window; 512 if left out.
        max_tokens: Of a language model: tokens of an answer; 64 if left out.
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
    from edgesmith.api.language import eval_language
    from edgesmith.artifact import open_artifact
    from edgesmith.stages.engines import GENERATES
    from edgesmith.stages.evaluate import EvalStage
    from edgesmith.stages.rows import Rows

    opened = open_artifact(artifact, kinds=("onnx", "checkpoint", *GENERATES))
    of_language = {"num_windows": num_windows, "window": window, "max_tokens": max_tokens}
    chosen = {name: value for name, value in of_language.items() if value is not None}
    if opened.kind != "onnx":
        return eval_language(
            opened, data=data, against=against, out=out, columns=columns, threads=threads, progress=progress, **chosen
        )
    if against is not None or chosen:
        flag = "against" if against is not None else next(iter(chosen)).replace("num_", "").replace("_", "-")
        raise UsageError(f"--{flag} is for language models; {artifact} is a graph that is judged on labelled rows")
    stage = EvalStage(
        artifact=opened,
        rows=Rows(path=data, columns=columns or {}),
        task=task,
        threads=threads,
    )
    folder, evidence = measure_into(stage, out, progress)
    with folder:
        return Evaluation.load(evidence.path).summary()


def bench(
    artifact: Path,
    *,
    against: Path | None = None,
    data: Path | None = None,
    scenario: str | None = None,
    rate: float | None = None,
    batch_size: int | None = None,
    max_tokens: int = 64,
    num_requests: int | None = None,
    seconds: float | None = None,
    length: int | None = None,
    out: Path | None = None,
    task: str | None = None,
    columns: Mapping[str, str] | None = None,
    threads: int = 1,
    seed: int = 0,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure an artifact's speed under a scenario, or in turns with another artifact.

    Args:
        artifact: What ships; for `generate` a language model's artifact or checkpoint.
        against: Artifact to run in turns with; the scenario is then `single`.
        data: Rows to send; packaged sentences if left out.
        scenario: `single`, `server`, `offline`, `generate` or `sweep`; by the artifact's kind if left out.
        rate: Arrivals a second of `server`; half of what the artifact can answer if left out.
        batch_size: Of `offline`.
        max_tokens: Of an answer of `generate`.
        num_requests: Timed requests of `single` or `generate`; from the time aimed at if left out.
        seconds: Wall time aimed at.
        length: Tokens of every request; each row's own if left out.
        out: Folder for the raw samples.
        task: Taken from the artifact if left out.
        columns: The task's column → the file's.
        threads: Of the engine.
        seed: Of the rows' draw and of the arrivals.
        progress: Shows how far it is.

    Returns:
        The figures, each with its sample size, JSON-able: one key for each kind, such as `latency` or `start`.

    Raises:
        UsageError: an unknown scenario, or an option that it does not have.
    """
    from edgesmith.artifact import open_artifact
    from edgesmith.evidence import Measured, measured_duets
    from edgesmith.stages.engines import GENERATES
    from edgesmith.stages.rows import Rows

    if threads > (os.cpu_count() or threads):
        progress.note(f"{threads} threads on {os.cpu_count()} CPUs: they take turns, slower than fewer would be")
    if data is None:
        progress.note("timed with packaged English sentences; give --data for rows of your own")
    opened = open_artifact(artifact, kinds=("checkpoint", *GENERATES, "onnx"))
    generates = opened.kind != "onnx"
    scenario = scenario or ("generate" if generates else "single")
    if generates != (scenario == "generate"):
        fits = "generate" if generates else "single, server, offline or sweep"
        raise UsageError(f"--scenario {scenario}: {artifact} is of kind {opened.kind!r}", mend=f"Use {fits}.")
    _check_scenario(
        scenario, against=against, rate=rate, batch_size=batch_size, num_requests=num_requests, length=length
    )
    num = NUM_BATCHED if scenario == "offline" else NUM_TIMED
    stage: Stage
    rows = Rows(path=data, num=num if data else None, seed=seed, columns=columns or {})
    if against is not None:
        from edgesmith.stages.compare import CompareStage

        baseline = open_artifact(locate_target(against, artifact.resolve().name), kinds=("onnx",))
        stage = CompareStage(
            artifact=opened, baseline=baseline, rows=rows, task=task, threads=threads, length=length, seconds=seconds
        )
        folder, evidence = measure_into(stage, out, progress)
        with folder:
            return {"comparison": measured_duets([evidence])[0].summary()}
    match scenario:
        case "generate":
            from edgesmith.stages.generate import GenerateStage

            stage = GenerateStage(
                artifact=opened,
                rows=rows,
                threads=threads,
                length=length,
                max_tokens=max_tokens,
                num_requests=num_requests,
                seconds=seconds,
            )
        case "sweep":
            from edgesmith.stages.sweep import SweepStage

            stage = SweepStage(artifact=opened, rows=rows, task=task, threads=threads)
        case _:
            from edgesmith.stages.bench import BenchStage

            stage = BenchStage(
                artifact=opened,
                rows=rows,
                task=task,
                threads=threads,
                scenario=scenario,  # type: ignore[arg-type]  # checked above
                length=length,
                num_requests=num_requests,
                seconds=seconds,
                rate=rate,
                batch_size=batch_size,
            )
    folder, evidence = measure_into(stage, out, progress)
    with folder:
        return Measured.of(opened.digest, [evidence]).summary()


_OPTIONS_OF = {
    "single": {"num_requests", "length", "against"},
    "server": {"rate", "length"},
    "offline": {"batch_size"},
    "generate": {"num_requests", "length"},
    "sweep": set[str](),
}


def _check_scenario(scenario: str, **given: object) -> None:
    """Refuse an unknown scenario, and options that a scenario would have to ignore."""
    if scenario not in _OPTIONS_OF:
        raise UsageError(f"--scenario {scenario}: unknown; use one of {', '.join(_OPTIONS_OF)}")
    for name, value in given.items():
        if value is not None and name not in _OPTIONS_OF[scenario]:
            flag = "requests" if name == "num_requests" else name.replace("_", "-")
            fitting = [one for one, options in _OPTIONS_OF.items() if name in options]
            raise UsageError(
                f"--{flag} means nothing to scenario {scenario}", mend=f"Use it with --scenario {' or '.join(fitting)}."
            )


def measure_into(stage: Stage, out: Path | None, progress: Progress) -> tuple[Any, Artifact]:
    """Run a measuring stage into `out`, or into a folder that goes when its context is left."""
    from contextlib import nullcontext
    from tempfile import TemporaryDirectory

    from edgesmith.stages.base import make_into

    if out is not None:
        return nullcontext(), make_into(stage, out, lambda _: None, progress)[0]
    folder = TemporaryDirectory(prefix="edgesmith-")
    return folder, stage.make(Path(folder.name), progress)
