"""Language models into GGUF and genai, each proven before it appears."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from edgesmith.api.texts import proof_text
from edgesmith.errors import UsageError
from edgesmith.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgesmith.artifact import Artifact
    from edgesmith.recipe import GenaiQuantizeOptions

__all__ = ["export_adapter", "export_genai", "export_gguf"]


def export_gguf(
    checkpoint: Path,
    *,
    out: Path,
    dtype: str | None = None,
    converter: Path | None = None,
    data: Path | None = None,
    columns: Mapping[str, str] | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> tuple[Artifact, dict[str, Any]]:
    """Convert a language model's checkpoint; nothing appears at `out` unless it is proven equal.

    Args:
        checkpoint: Hugging Face folder or checkpoint artifact.
        out: Folder to write.
        dtype: `f32`, `f16` or `bf16`; the checkpoint's own if left out.
        converter: A llama.cpp checkout or converter, for families that are not known here.
        data: Text to prove it on; packaged sentences if left out.
        columns: The column `text` → the file's.
        threads: Of the proof.
        progress: Shows how far it is.

    Returns:
        The artifact, and what was found equal.

    Raises:
        UnsupportedError: the family or the tokenizer has no form in GGUF.
        VerificationError: tokenizer, chat template or logits differ.
    """
    from edgesmith.artifact import open_artifact
    from edgesmith.recipe import FloatType
    from edgesmith.stages.base import make_into
    from edgesmith.stages.gguf_export import GgufExportStage
    from edgesmith.stages.prove_export import prove_export

    if dtype is not None and dtype not in get_args(FloatType):
        raise UsageError(f"--dtype {dtype}: unknown; use {', '.join(get_args(FloatType))}")
    opened = open_artifact(checkpoint, kinds=("checkpoint",))
    text = proof_text(data, columns, progress)
    stage = GgufExportStage(checkpoint=opened, dtype=dtype, converter=converter)  # type: ignore[arg-type]  # checked
    return make_into(
        stage,
        out,
        lambda made: prove_export(made, opened, text=text, threads=threads, progress=progress),
        progress,
    )


def export_adapter(
    adapter: Path,
    *,
    base: Path | None = None,
    out: Path,
    data: Path | None = None,
    columns: Mapping[str, str] | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> tuple[Artifact, dict[str, Any]]:
    """Convert a LoRA adapter to a GGUF file that is loaded and scaled beside its base.

    Args:
        adapter: PEFT folder.
        base: The checkpoint that it was trained on.
        out: Folder to write.
        data: Text to prove it on; packaged sentences if left out.
        columns: The column `text` → the file's.
        threads: Of the proof.
        progress: Shows how far it is.

    Raises:
        UsageError: the base is not named.
        UnsupportedError: the adapter's kind has no form in GGUF; merge it instead.
        MergeError: it is of another base.
        VerificationError: base + adapter in llama.cpp differ from the merged checkpoint.
    """
    from dataclasses import asdict

    from edgesmith.artifact import open_artifact
    from edgesmith.stages.base import make_into
    from edgesmith.stages.gguf_adapter import GgufAdapterStage, prove_gguf_adapter

    if base is None:
        raise UsageError(
            f"{adapter}: is an adapter, and its base is not named",
            mend="Name the checkpoint that it was trained on: --base CHECKPOINT.",
        )
    text = proof_text(data, columns, progress)
    stage = GgufAdapterStage(adapter=adapter, base=open_artifact(base, kinds=("checkpoint",)))
    return make_into(
        stage,
        out,
        lambda made: asdict(
            prove_gguf_adapter(
                made, stage, text=text, scratch=out.absolute().parent, threads=threads, progress=progress
            )
        ),
        progress,
    )


def export_genai(
    checkpoint: Path,
    *,
    out: Path,
    precision: str = "fp32",
    block_size: int | None = None,
    data: Path | None = None,
    columns: Mapping[str, str] | None = None,
    threads: int = 1,
    progress: Progress = SILENT,
) -> tuple[Artifact, dict[str, Any]]:
    """Build a language model for onnxruntime-genai; nothing appears at `out` that is not near its checkpoint.

    Args:
        checkpoint: Hugging Face folder or checkpoint artifact.
        out: Folder to write.
        precision: `fp32`, `fp16`, `int8` or `int4`.
        block_size: Weights that share a scale, of int8 and int4; 32 if left out.
        data: Text to prove it on; packaged sentences if left out.
        columns: The column `text` → the file's.
        threads: Of the proof.
        progress: Shows how far it is.

    Raises:
        UnsupportedError: the builder does not know the family.
        VerificationError: the logits are too far off.
    """
    from edgesmith.artifact import open_artifact
    from edgesmith.recipe import GenaiTarget
    from edgesmith.stages.base import make_into
    from edgesmith.stages.genai_export import GenaiExportStage
    from edgesmith.stages.prove_export import prove_export

    known = ("fp32", "fp16", "int8", "int4")
    if precision not in known:
        raise UsageError(f"--precision {precision}: unknown; use {', '.join(known)}")
    if precision.startswith("int"):
        target = GenaiTarget(format="genai", quantize=_genai_options(precision, block_size or 32))
    elif block_size is not None:
        raise UsageError(f"--block-size is for int8 and int4; {precision} has no scales that weights share")
    else:
        target = GenaiTarget.model_validate({"format": "genai", "precision": precision})
    opened = open_artifact(checkpoint, kinds=("checkpoint",))
    text = proof_text(data, columns, progress)
    stage = GenaiExportStage(checkpoint=opened, target=target)
    return make_into(
        stage,
        out,
        lambda made: prove_export(made, opened, text=text, threads=threads, progress=progress),
        progress,
    )


def _genai_options(precision: str, block_size: int) -> GenaiQuantizeOptions:
    from pydantic import ValidationError

    from edgesmith.recipe import GenaiQuantizeOptions

    try:
        return GenaiQuantizeOptions.model_validate({"method": precision, "block_size": block_size})
    except ValidationError as error:
        raise UsageError(f"--block-size {block_size}: {error.errors()[0]['msg']}") from error
