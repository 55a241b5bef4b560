"""The commands as Python functions: same names, same meaning, typed results instead of text.

Each imports what it needs when it is called, so that importing this module costs next to nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from edgesmith.errors import ArtifactError, DataError, UsageError, VerificationError
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from bench.verdict import Verdict
    from compress.verify_merge import MergeVerification
    from edgesmith.artifact import Artifact
    from edgesmith.release import Release
    from edgesmith.stages.rows import Rows
    from edgesmith.walkers import PlannedStep
    from export.verify import Verification

__all__ = [
    "bench",
    "check",
    "doctor",
    "eval",
    "export",
    "gate",
    "init",
    "inspect",
    "merge",
    "plan",
    "predict",
    "quantize",
    "run",
    "schema",
    "verify",
]


def init(
    checkpoint: Path, *, adapter: Path | None = None, data: Path | None = None, out: Path = Path("recipe.yaml")
) -> dict[str, Any]:
    """Write a starter recipe.

    Returns:
        `path` of the recipe, and `guesses`: what was guessed and what is left to fill in.

    Raises:
        UsageError: the checkpoint is missing, or `out` is there already.
        UnsupportedError: no task fits the checkpoint.
    """
    from edgesmith.starter import write_starter

    guesses, path = write_starter(checkpoint, adapter=adapter, data=data, out=out)
    return {"path": str(path), "guesses": guesses}


def plan(recipe: Path, *, settings: Sequence[str] = (), store: Path | None = None) -> list[PlannedStep]:
    """List a recipe's steps, and which of them the store has.

    Raises:
        RecipeError: the recipe breaks the schema.
        UsageError: a file that it names is missing.
    """
    from edgesmith.pipeline import walk
    from edgesmith.recipe import load_recipe
    from edgesmith.store import Store, default_store_root
    from edgesmith.walkers import Planner

    planner = Planner(store=Store(store or default_store_root()))
    walk(load_recipe(recipe, settings), recipe.parent, planner)
    return planner.steps


def run(
    recipe: Path,
    *,
    out: Path | None = None,
    settings: Sequence[str] = (),
    store: Path | None = None,
    junit: Path | None = None,
    summary: Path | None = None,
    remeasure: bool = False,
    progress: Progress = SILENT,
) -> Release:
    """Do everything that a recipe says; steps that the store has are not done again.

    Args:
        recipe: YAML file.
        out: Folder for artifacts, evidence and report; `out/NAME` if left out.
        settings: `a.b=c` strings that replace single values.
        store: Cache of finished steps.
        junit: Also write the verdicts as JUnit XML.
        summary: Also write the verdicts as Markdown.
        remeasure: Take times anew that the store has.
        progress: Shows how far it is.

    Returns:
        Artifacts, steps, verdicts. A FAIL is a result, not an exception.

    Raises:
        EdgesmithError: a step could not be done, or an artifact breaks its tolerance.
    """
    from edgesmith.release import make_release

    return make_release(
        recipe,
        out=out,
        settings=settings,
        store_root=store,
        junit=junit,
        summary=summary,
        remeasure=remeasure,
        progress=progress,
    )


def merge(
    base: Path,
    adapter: Sequence[str | Path],
    *,
    out: Path,
    data: Path | None = None,
    task: str | None = None,
    dequantize: bool = False,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[Artifact, MergeVerification]:
    """Fold adapters into their base; nothing appears at `out` unless it equals base + adapter.

    Args:
        base: Checkpoint that the adapters were trained on.
        adapter: Folders, or `folder:weight`.
        out: Folder to write.
        data: Rows to prove it on; packaged sentences if left out.
        task: Guessed from config.json if left out.
        dequantize: Allow a 4- or 8-bit base.
        columns: The task's column → the file's.
        seed: Of the rows' draw.
        progress: Shows how far it is.

    Raises:
        MergeError: an adapter does not fit, or cannot be merged.
        CheckpointError: base or adapter is damaged or unsafe.
        VerificationError: the merged model differs.
    """
    from edgesmith.artifact import open_artifact
    from edgesmith.stages.base import make_into
    from edgesmith.stages.merge import MergeStage, prove_merge

    adapters = tuple(_weighted(one) for one in adapter)
    rows = _proof_rows(data, _NUM_VERIFIED, seed, columns, progress)
    opened = open_artifact(base, kinds=("checkpoint",))
    stage = MergeStage(base=opened, adapters=adapters, dequantize=dequantize)
    return make_into(
        stage, out, lambda merged: prove_merge(stage, merged, rows=rows, task=task, progress=progress), progress
    )


def export(
    checkpoint: Path,
    *,
    out: Path,
    format: str = "onnx",  # noqa: A002
    task: str | None = None,
    data: Path | None = None,
    optimize_for: str = "onnxruntime-cpu",
    opset: int | None = None,
    max_length: int | None = None,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[Artifact, Verification]:
    """Export a checkpoint; nothing appears at `out` unless its outputs equal the checkpoint's.

    Args:
        checkpoint: Hugging Face folder or checkpoint artifact.
        out: Folder to write.
        format: `onnx`.
        task: Guessed from config.json if left out.
        data: Rows to verify on; packaged sentences if left out.
        optimize_for: `onnxruntime-cpu` or `portable`.
        opset: Chosen by `optimize_for` if left out.
        max_length: Longest input in tokens.
        columns: The task's column → the file's.
        seed: Of the rows' draw.
        progress: Shows how far it is.

    Raises:
        UsageError: an option is unknown.
        UnsupportedError: the model cannot be exported.
        VerificationError: the export differs from the checkpoint.
    """
    from edgesmith.artifact import open_artifact
    from edgesmith.recipe import OptimizeFor
    from edgesmith.stages.base import make_into
    from edgesmith.stages.export import ExportStage
    from edgesmith.stages.verify import verify_artifact

    if format != "onnx":
        raise UsageError(f"--format {format}: unknown; this version exports onnx")
    if optimize_for not in get_args(OptimizeFor):
        raise UsageError(f"--optimize-for {optimize_for}: unknown; use {' or '.join(get_args(OptimizeFor))}")
    reference = open_artifact(checkpoint, kinds=("checkpoint",))
    rows = _proof_rows(data, _NUM_VERIFIED, seed, columns, progress)
    stage = ExportStage(
        checkpoint=reference,
        task=task,
        rows=rows,
        optimize_for=optimize_for,  # type: ignore[arg-type]  # checked above
        opset=opset,
        max_length=max_length,
    )
    return make_into(
        stage, out, lambda made: verify_artifact(made, reference, rows=rows, task=task, progress=progress), progress
    )


def quantize(
    artifact: Path,
    *,
    method: str,
    out: Path,
    calibration: Path | None = None,
    num_samples: int = 128,
    against: Path | None = None,
    data: Path | None = None,
    smoothing: bool | None = None,
    reduce_range: bool = False,
    exclude: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> tuple[Artifact, Verification]:
    """Quantize an fp32 artifact; nothing appears at `out` unless its outputs stay near the reference's.

    Args:
        artifact: fp32 ONNX artifact.
        method: `dynamic-int8` or `static-int8`.
        out: Folder to write.
        calibration: Real rows for activation ranges; `static-int8` needs it.
        num_samples: Rows drawn from the calibration file.
        against: Checkpoint to verify against; `artifact` itself if left out.
        data: Rows to verify on; packaged sentences if left out.
        smoothing: Scale down outlying activation channels first, on the calibration rows; by default static does.
        reduce_range: 7-bit weights, for x86 without VNNI.
        exclude: Shell patterns of node and weight names that stay in float.
        columns: The task's column → the file's.
        seed: Of every draw.
        progress: Shows how far it is.

    Raises:
        UsageError: an option is unknown, or static-int8 was given no rows.
        VerificationError: the quantized model is too far off.
    """
    from edgesmith.artifact import open_artifact
    from edgesmith.recipe import QuantizeMethod, QuantizeOptions
    from edgesmith.stages.base import make_into
    from edgesmith.stages.quantize import QuantizeStage
    from edgesmith.stages.rows import Rows
    from edgesmith.stages.verify import verify_artifact

    if method not in get_args(QuantizeMethod):
        raise UsageError(f"--method {method}: unknown; use {' or '.join(get_args(QuantizeMethod))}")
    source = open_artifact(artifact, kinds=("onnx",))
    reference = open_artifact(against, kinds=("checkpoint", "onnx")) if against else source
    rows = _proof_rows(data, _NUM_VERIFIED, seed, columns, progress)
    stage = QuantizeStage(
        source=source,
        method=QuantizeOptions(
            method=method,
            smoothing=smoothing,
            reduce_range=reduce_range,
            exclude=tuple(exclude),
        ),
        rows=rows,
        calibration=Rows(path=calibration, num=num_samples, seed=seed, columns=columns or {}) if calibration else None,
    )
    return make_into(stage, out, lambda made: verify_artifact(made, reference, rows=rows, progress=progress), progress)


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
        rows=_proof_rows(data, num_samples, seed, columns, progress),
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
    rows = Rows(path=data, num=_NUM_TIMED if data else None, seed=seed, columns=columns or {})
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


def gate(
    artifact: Path,
    *,
    gates: Path,
    against: Path | None = None,
    evidence: Path | None = None,
    junit: Path | None = None,
    summary: Path | None = None,
) -> tuple[str, list[Verdict]]:
    """Judge an artifact by saved evidence.

    Args:
        artifact: What is to ship.
        gates: A recipe, or a YAML file with just `gates:` or the gates themselves.
        against: Baseline; the one that the evidence names if left out.
        evidence: Folder of evidence; `evidence` beside the artifact if left out.
        junit: Write the verdicts as JUnit XML.
        summary: Write the verdicts as Markdown.

    Returns:
        The overall verdict, and one verdict a limit.

    Raises:
        UsageError: there is no gate, or evidence for one is missing.
        ArtifactError: artifact or evidence was altered.
    """
    from bench.ci import write_junit, write_summary
    from bench.gate import judge, overall
    from edgesmith.artifact import open_artifact
    from edgesmith.evidence import collect_evidence, load_gates

    opened = open_artifact(artifact)
    folder = evidence or artifact.resolve().parent / "evidence"
    if evidence is not None and not evidence.is_dir():
        raise UsageError(f"{evidence}: no such folder of evidence", mend="`run`, `eval -o` and `bench -o` write them.")
    baseline = open_artifact(against) if against else None
    verdicts = judge(load_gates(gates), collect_evidence(opened, folder, baseline))
    if junit is not None:
        write_junit(junit, verdicts, suite=artifact.name)
    if summary is not None:
        write_summary(summary, verdicts)
    return overall(verdicts).value, verdicts


def predict(artifact: Path, texts: Sequence[str], *, threads: int = 1) -> list[dict[str, Any]]:
    """Answer texts with an artifact.

    Raises:
        ArtifactError: the artifact is damaged.
        DataError: there is no text.
    """
    from edgesmith.artifact import open_artifact
    from edgesmith.tasks import load_task
    from serve.runtime import EngineOptions, open_engine

    if not texts:
        raise DataError("no text to answer")
    opened = open_artifact(artifact, kinds=("onnx",))
    task = load_task(opened.folder)
    engine = open_engine(opened, EngineOptions(threads=threads))
    answers = []
    try:
        for text in texts:
            arrays = task.encode([text])
            answers += task.decode(engine.run(arrays), arrays, [text])
    finally:
        engine.close()
    return answers


def inspect(artifact: Path) -> dict[str, Any]:
    """Tell what an artifact is, from its manifest and its checked files.

    Raises:
        ArtifactError: a file was altered.
    """
    from edgesmith.artifact import open_artifact

    opened = open_artifact(artifact)
    manifest = opened.manifest
    signature = manifest.signature
    return {
        "path": str(artifact),
        "digest": opened.digest,
        "kind": manifest.kind,
        "task": manifest.task,
        "precision": manifest.precision,
        "made_by": manifest.step,
        "options": manifest.options,
        "parents": [f"{parent.role} {parent.digest}" for parent in manifest.parents],
        "tools": [f"{name} {version}" for name, version in manifest.tools.items()],
        "inputs": [f"{one.name} {one.dtype}{list(one.shape)}" for one in signature.inputs] if signature else [],
        "outputs": [f"{one.name} {one.dtype}{list(one.shape)}" for one in signature.outputs] if signature else [],
        "size_bytes": opened.size_bytes,
        "model_bytes": opened.model_bytes,
        "files": [entry.model_dump() for entry in manifest.files],
    }


def check(artifact: Path, *, threads: int = 1) -> dict[str, Any]:
    """Check an artifact's hashes, and its golden vectors on this machine.

    Returns:
        `digest`, `num_files`, `golden` (None where it has none) and a `summary` sentence.

    Raises:
        ArtifactError: a file was altered, is missing or was added.
        VerificationError: this machine's outputs are further from the recorded ones than the tolerance.
    """
    from dataclasses import asdict

    from edgesmith.artifact import open_artifact

    opened = open_artifact(artifact)
    if opened.manifest.step == "found":
        raise ArtifactError(f"{artifact}: has no manifest, so there is nothing to check it against")
    num_files = len(opened.manifest.files)
    result: dict[str, Any] = {"digest": opened.digest, "num_files": num_files, "golden": None}
    golden_text = "no golden vectors to run"
    if opened.kind == "onnx":
        from serve.runtime import EngineOptions, open_engine
        from serve.runtime.golden import check_golden

        engine = open_engine(opened, EngineOptions(threads=threads))
        try:
            golden = check_golden(opened, engine)
        finally:
            engine.close()
        if golden is not None:
            if not golden.passed:
                raise VerificationError(
                    f"{artifact}: its golden vectors fail here: {golden.reason}",
                    mend="This processor rounds differently; x86 without VNNI needs quantize.reduce_range.",
                )
            result["golden"] = asdict(golden)
            golden_text = (
                f"{golden.num_rows} golden rows within {golden.max_abs_difference:.2g} (allowed {golden.tolerance:.2g})"
            )
    result["summary"] = f"{artifact}: {num_files} files as the manifest says; {golden_text}"
    return result


def doctor() -> dict[str, Any]:
    """Tell what this machine can do."""
    from edgesmith.doctor import diagnose

    return {"facts": diagnose()}


def schema() -> dict[str, Any]:
    """Give the JSON Schema of recipes."""
    from edgesmith.recipe import Recipe

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}


def _proof_rows(data: Path | None, num: int, seed: int, columns: Mapping[str, str] | None, progress: Progress) -> Rows:
    """Rows to prove something on: the user's, or the packaged sentences, which is said."""
    from edgesmith.stages.rows import Rows

    if data is None:
        progress.note("verified on packaged English sentences; give --data for rows of your own")
    return Rows(path=data, num=num if data else None, seed=seed, columns=columns or {})


_NUM_VERIFIED = 64
_NUM_TIMED = 64


def _weighted(given: str | Path) -> tuple[Path, float]:
    """Split `folder:weight`; a path that exists is never split."""
    text = os.fspath(given)
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        return Path(path), float(weight)
    except ValueError as error:
        raise UsageError(f"--adapter {text}: {weight!r} is no number", mend="Write PATH or PATH:WEIGHT.") from error


def _measure(stage: Any, out: Path | None, progress: Progress) -> tuple[Any, Artifact]:
    """Run a measuring stage into `out`, or into a folder that goes when its context is left."""
    from contextlib import nullcontext
    from tempfile import TemporaryDirectory

    from edgesmith.stages.base import make_into

    if out is not None:
        return nullcontext(), make_into(stage, out, lambda _: None, progress)[0]
    folder = TemporaryDirectory(prefix="edgesmith-")
    return folder, stage.make(Path(folder.name), progress)
