"""Looking into artifacts and at the machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.errors import ArtifactError, DataError, UnsupportedError, VerificationError

if TYPE_CHECKING:
    from edgesmith.artifact import Artifact
    from serve.runtime.golden_generation import GenerationCheck

__all__ = ["check", "doctor", "inspect", "predict"]


def predict(artifact: Path, texts: Sequence[str], *, threads: int = 1) -> list[dict[str, Any]]:
    """Answer texts with an artifact, or of one that classifies pictures the pictures in the files of these names.

    Raises:
        ArtifactError: the artifact is damaged.
        DataError: there is no text, or a picture cannot be read.
    """
    from edgesmith.artifact import open_artifact
    from edgesmith.stages.engines import GENERATES
    from edgesmith.tasks import load_task
    from serve.runtime import EngineOptions, open_engine

    if not texts:
        raise DataError("no text to answer")
    opened = open_artifact(artifact, kinds=("onnx", *GENERATES))
    if opened.kind in GENERATES:
        raise UnsupportedError(f"{artifact}: writes text", mend="Let it: edgesmith generate ARTIFACT PROMPT.")
    task = load_task(opened.folder)
    engine = open_engine(opened, EngineOptions(threads=threads))
    answers = []
    try:
        for text in texts:
            given = task.read_argument(text)
            arrays = task.encode([given])
            answers += task.decode(engine.run(arrays), arrays, [given])
    finally:
        engine.close()
    return answers


def inspect(artifact: Path) -> dict[str, Any]:
    """Tell what an artifact is, from its manifest and its checked files.

    Returns:
        JSON-able; with `gguf` → what the model file says, where it is one, and with `summary` and `facts` → what the
        step wrote of its own work, where a checkpoint was trimmed, pruned or trained.

    Raises:
        ArtifactError: a file was altered, or a GGUF file is damaged.
    """
    from edgesmith.api.gguf_facts import gguf_facts
    from edgesmith.artifact import open_artifact
    from edgesmith.step_facts import read_facts

    opened = open_artifact(artifact)
    manifest = opened.manifest
    signature = manifest.signature
    models = [entry.path for entry in manifest.files if entry.path.endswith(".gguf")]
    understood, facts = read_facts(opened)
    in_gguf = opened.kind in ("gguf", "gguf-adapter") and len(models) == 1
    return {
        "path": str(artifact),
        "digest": opened.digest,
        "kind": manifest.kind,
        "task": manifest.task,
        "precision": manifest.precision,
        "made_by": manifest.step,
        **({"summary": understood.summary} if understood else {}),
        "options": manifest.options,
        "parents": [f"{parent.role} {parent.digest}" for parent in manifest.parents],
        "tools": [f"{name} {version}" for name, version in manifest.tools.items()],
        "inputs": [f"{one.name} {one.dtype}{list(one.shape)}" for one in signature.inputs] if signature else [],
        "outputs": [f"{one.name} {one.dtype}{list(one.shape)}" for one in signature.outputs] if signature else [],
        "size_bytes": opened.size_bytes,
        "model_bytes": opened.model_bytes,
        **({"gguf": gguf_facts(opened.file(models[0]))} if in_gguf else {}),
        **({"facts": facts} if facts else {}),
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
    from edgesmith.stages.engines import GENERATES

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
    elif opened.kind in GENERATES:
        answer = _check_answer(opened, threads)
        if answer is not None:
            result["golden"] = asdict(answer)
            golden_text = f"{answer.num_agreeing} of {answer.num_tokens} golden tokens the same"
            if answer.reason or not answer.is_same_machine:
                golden_text += f" ({_elsewhere(opened) if not answer.reason else answer.reason})"
    result["summary"] = f"{artifact}: {num_files} files as the manifest says; {golden_text}"
    return result


def _check_answer(artifact: Artifact, threads: int) -> GenerationCheck | None:
    """Let a model that writes text write its golden answer again."""
    from edgesmith.stages.engines import open_generator
    from serve.runtime.golden_generation import check_golden_generation

    with open_generator(artifact, threads) as engine:
        found = check_golden_generation(artifact, engine)
        here = engine.name
    if found is not None and not found.passed:
        if found.is_same_machine:
            raise VerificationError(
                f"{artifact.path}: its golden answer fails here: {found.reason}",
                mend="Engine and processor are those that it was made with, so something is broken: "
                "make the artifact again.",
            )
        raise VerificationError(
            f"{artifact.path}: its golden answer fails here: {found.reason}; it was {_elsewhere(artifact)}, "
            f"and here runs {here}",
            mend="This processor or engine computes differently: measure the artifact here with `edgesmith eval`.",
        )
    return found


def _elsewhere(artifact: Artifact) -> str:
    """Which engine and processor gave the golden answer."""
    from serve.runtime.golden_generation import read_golden_generation

    golden = read_golden_generation(artifact)
    return f"made by {golden.engine} on {golden.processor}" if golden else ""


def doctor() -> dict[str, Any]:
    """Tell what this machine can do."""
    from edgesmith.doctor import diagnose

    return {"facts": diagnose()}
