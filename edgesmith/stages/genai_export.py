"""Export: checkpoint → onnxruntime-genai artifact."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import JsonValue

from edgesmith.artifact import Artifact, Kind
from edgesmith.files import atomic_write
from edgesmith.progress import SILENT, Progress
from edgesmith.recipe import GenaiTarget
from edgesmith.stages.base import Stage
from edgesmith.stages.gguf_export import parity_texts
from edgesmith.stages.side_files import close_generator
from edgesmith.stages.texts import Texts
from edgesmith.tasks import TEXT_GENERATION
from edgesmith.units import format_bytes

if TYPE_CHECKING:
    from export.genai.quant_config import Precision

__all__ = ["GenaiExportStage", "ProveGenaiStage", "prove_genai"]


_LIBRARIES = (
    "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai", "tokenizers", "torch", "transformers",
)  # fmt: skip
_PARITY_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class GenaiExportStage(Stage):
    """Write a checkpoint as ONNX for onnxruntime-genai, quantized on the way where that is asked."""

    step: ClassVar[str] = "export"
    kind: ClassVar[Kind] = "genai"
    libraries: ClassVar[tuple[str, ...]] = _LIBRARIES

    is_of_this_machine: ClassVar[bool] = True  # the golden answer is this processor's

    checkpoint: Artifact
    target: GenaiTarget
    threads: int = 1

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return self.target.model_dump(mode="json")

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        return {"checkpoint": self.checkpoint.digest}

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Build, and say what it took."""
        from export.genai.quant_config import GenaiQuantConfig
        from export.genai.to_genai import to_genai

        quantize = self.target.quantize
        made = to_genai(
            self.checkpoint.folder,
            folder,
            precision=self.precision,
            quantize=GenaiQuantConfig(**quantize.model_dump()) if quantize else None,
            threads=self.threads,
            progress=progress,
        )
        progress.note(
            f"export: {made.architecture} {self.precision}: {format_bytes(made.model_bytes)}; peak memory "
            f"{format_bytes(made.peak_bytes)}"
        )
        for note in (*made.notes, *made.left_out):
            progress.note(f"  {note}")
        close_generator(folder, folder, self.kind)
        return self.seal(folder, task=TEXT_GENERATION, precision=self.precision)

    @property
    def precision(self) -> Precision:
        """Of the weights."""
        return self.target.quantize.method if self.target.quantize else self.target.precision


@dataclass(frozen=True, kw_only=True)
class ProveGenaiStage(Stage):
    """Compare a checkpoint with its onnxruntime-genai folder: logits, and the runtime's own tokenizer."""

    step: ClassVar[str] = "prove-export"
    libraries: ClassVar[tuple[str, ...]] = _LIBRARIES
    is_of_this_machine: ClassVar[bool] = True

    checkpoint: Artifact
    artifact: Artifact
    texts: Texts
    threads: int = 1

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return self.texts.options

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        return {"artifact": self.artifact.digest, "checkpoint": self.checkpoint.digest, "data": self.texts.digest}

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `verification.json`."""
        proof = prove_genai(
            self.artifact, self.checkpoint, text=self.texts.read(), threads=self.threads, progress=progress
        )
        atomic_write(folder / "verification.json", json.dumps({"metrics": proof}, indent=1) + "\n")
        return self.seal(folder)


def prove_genai(
    artifact: Artifact, checkpoint: Artifact, *, text: str, threads: int = 1, progress: Progress = SILENT
) -> dict[str, JsonValue]:
    """Compare an onnxruntime-genai folder with its checkpoint.

    Args:
        artifact: The folder.
        checkpoint: What it was made from.
        text: Real text.
        threads: Of both engines.
        progress: Told the figures, and what users of the runtime's own tokenizer must know.

    Raises:
        VerificationError: the logits are further apart than the precision explains.
    """
    from export.genai.parity import check_logits
    from export.genai.tokenizer_parity import compare_own_tokenizer

    logits = check_logits(
        checkpoint.folder,
        artifact.folder,
        texts=parity_texts(text),
        precision=cast("Precision", artifact.manifest.precision or "fp32"),
        max_tokens=_PARITY_TOKENS,
        threads=threads,
    )
    progress.note(
        f"verify: logits of {logits.num_tokens:,} tokens: mean KLD {logits.mean_kld:.2g} nats, same top token "
        f"{logits.same_top:.2%}"
    )
    own = compare_own_tokenizer(artifact.folder, texts=text.splitlines())
    if own.note:
        progress.note(f"  {own.note}")
    return {
        "logits_mean_kld": logits.mean_kld,
        "logits_max_kld": logits.max_kld,
        "logits_same_top": logits.same_top,
        "logits_num_tokens": logits.num_tokens,
        "runtime_tokenizer_lines": own.num_lines,
        "runtime_tokenizer_lines_different": own.num_different,
    }
