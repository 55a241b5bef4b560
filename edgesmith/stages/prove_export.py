"""Proof of an export: what is equal between a checkpoint and the unquantized artifact made from it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from pydantic import JsonValue

from edgesmith.artifact import Artifact
from edgesmith.files import atomic_write
from edgesmith.progress import SILENT, Progress
from edgesmith.stages.base import Stage
from edgesmith.stages.gguf_export import file_dtype, gguf_path
from edgesmith.stages.texts import Texts

if TYPE_CHECKING:
    from export.genai.quant_config import Precision
    from export.logit_parity import LogitParity

__all__ = ["ProveExportStage", "parity_texts", "prove_export"]

_NUM_PARITY_TEXTS = 4
_PARITY_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class ProveExportStage(Stage):
    """Compare a checkpoint with its export: tokenizer, chat template, logits; a breach is an error."""

    step: ClassVar[str] = "prove-export"
    libraries: ClassVar[tuple[str, ...]] = (
        "gguf", "llama-cpp-python", "numpy", "onnxruntime", "onnxruntime-genai", "tokenizers", "torch", "transformers",
    )  # fmt: skip
    is_of_this_machine: ClassVar[bool] = True

    checkpoint: Artifact
    artifact: Artifact
    """Of kind gguf, unquantized, or genai."""
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
        figures = prove_export(
            self.artifact, self.checkpoint, text=self.texts.read(), threads=self.threads, progress=progress
        )
        atomic_write(folder / "verification.json", json.dumps({"metrics": figures}, indent=1) + "\n")
        return self.seal(folder)


def prove_export(
    artifact: Artifact, checkpoint: Artifact, *, text: str, threads: int = 1, progress: Progress = SILENT
) -> dict[str, JsonValue]:
    """Compare a language model's export with its checkpoint.

    Args:
        artifact: Of kind gguf, unquantized, or genai.
        checkpoint: What it was made from.
        text: Real text.
        threads: Of both engines.
        progress: Told the figures.

    Returns:
        The figures, flat.

    Raises:
        VerificationError: a text is tokenized differently, a conversation is written differently, or the logits are
            further apart than the precision explains.
        UnsupportedError: a GGUF artifact is quantized.
    """
    prove = _prove_genai if artifact.kind == "genai" else _prove_gguf
    return prove(artifact, checkpoint, text, threads, progress)


def _prove_gguf(
    artifact: Artifact, checkpoint: Artifact, text: str, threads: int, progress: Progress
) -> dict[str, JsonValue]:
    from export.gguf.logit_parity import check_logits
    from export.gguf.template_parity import check_chat_template
    from export.gguf.tokenizer_parity import check_tokenizer

    file = gguf_path(artifact)
    dtype = file_dtype(file)
    tokenizer = check_tokenizer(checkpoint.folder, file, texts=text.splitlines())
    progress.note(
        f"verify: tokenizer equal on {tokenizer.num_lines:,} lines ({tokenizer.num_tokens:,} tokens, "
        f"{tokenizer.num_special_tokens} special ones)"
    )
    for note in tokenizer.notes:
        progress.note(f"  {note}")
    template = check_chat_template(checkpoint.folder, file)
    if template.templates:
        progress.note(
            f"verify: chat template equal on {template.num_rendered} renderings; llama.cpp's built-in one: "
            f"{template.builtin}"
        )
    logits = check_logits(
        checkpoint.folder,
        file,
        texts=parity_texts(text),
        dtype=dtype,
        max_tokens=_PARITY_TOKENS,
        threads=threads,
    )
    progress.note(
        f"verify: logits of {logits.num_tokens:,} tokens: mean KLD {logits.mean_kld:.2g} nats, same top token "
        f"{logits.same_top:.2%}"
    )
    figures: dict[str, JsonValue] = {
        "tokenizer_lines_equal": tokenizer.num_lines,
        "tokenizer_tokens_equal": tokenizer.num_tokens,
        "tokenizer_lines_avoided": tokenizer.num_avoided,
        **_logit_figures(logits),
    }
    if template.templates:
        figures["chat_renderings_equal"] = template.num_rendered
        figures["chat_conversations_refused_by_both"] = template.num_refused
    return figures


def _prove_genai(
    artifact: Artifact, checkpoint: Artifact, text: str, threads: int, progress: Progress
) -> dict[str, JsonValue]:
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
        **_logit_figures(logits),
        "runtime_tokenizer_lines": own.num_lines,
        "runtime_tokenizer_lines_different": own.num_different,
    }


def _logit_figures(logits: LogitParity) -> dict[str, JsonValue]:
    return {f"logits_{name}": value for name, value in asdict(logits).items()}


def parity_texts(text: str) -> list[str]:
    """A few pieces of a text, from places far apart."""
    size = 8 * _PARITY_TOKENS  # characters: more than that many tokens of any tokenizer in use
    starts = [len(text) * index // _NUM_PARITY_TEXTS for index in range(_NUM_PARITY_TEXTS)]
    pieces = [text[start : start + size].strip() for start in starts]
    return [piece for piece in pieces if piece]
