"""Export: checkpoint → unquantized GGUF artifact, and the proof that nothing was lost on the way."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact, Kind
from edgesmith.errors import UnsupportedError
from edgesmith.files import atomic_write, sha256_file
from edgesmith.progress import SILENT, Progress
from edgesmith.recipe import FloatType
from edgesmith.stages.base import Stage
from edgesmith.stages.side_files import close_generator
from edgesmith.stages.texts import Texts
from edgesmith.tasks import TEXT_GENERATION
from edgesmith.units import format_bytes

if TYPE_CHECKING:
    from export.gguf.logit_parity import LogitParity
    from export.gguf.template_parity import ChatTemplateParity
    from export.gguf.tokenizer_parity import TokenizerParity

__all__ = ["GGUF_FILE", "GgufExportStage", "GgufProof", "ProveGgufStage", "gguf_path", "prove_gguf", "stored_dtype"]

GGUF_FILE = "model.gguf"
_LIBRARIES = ("gguf", "llama-cpp-python", "numpy", "safetensors", "tokenizers", "torch", "transformers")
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}
_STORED: dict[str, FloatType] = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_NUM_PARITY_TEXTS = 4
_PARITY_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class GgufExportStage(Stage):
    """Write a checkpoint as one file for llama.cpp, its weights unquantized."""

    step: ClassVar[str] = "export"
    kind: ClassVar[Kind] = "gguf"
    libraries: ClassVar[tuple[str, ...]] = _LIBRARIES
    is_of_this_machine: ClassVar[bool] = True  # the golden answer is this processor's

    checkpoint: Artifact
    dtype: FloatType | None = None
    """The checkpoint's own when None."""
    converter: Path | None = None
    """A llama.cpp checkout or converter, for families that are not known here."""

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return {"dtype": self.dtype, "converter": self.converter.name if self.converter else None}

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        given = {"checkpoint": self.checkpoint.digest}
        if self.converter is not None:
            from export.gguf.foreign import converter_script

            given["converter"] = f"sha256:{sha256_file(converter_script(self.converter))}"
        return given

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Convert, and say what it took and what is left out."""
        dtype = self.dtype or stored_dtype(self.checkpoint.folder)
        out = folder / GGUF_FILE
        if self.converter is not None:
            from export.gguf.foreign import convert_with

            convert_with(self.converter, self.checkpoint.folder, out, dtype=dtype)
        else:
            from export.gguf.to_gguf import to_gguf

            made = to_gguf(self.checkpoint.folder, out, dtype=dtype, progress=progress)
            progress.note(
                f"export: {made.architecture}, {made.num_parameters / 1e6:,.1f} M parameters, tokenizer "
                f"{made.tokenizer_model}/{made.pre_tokenizer} ({made.tokenizer_found_by}); peak memory "
                f"+{format_bytes(made.peak_added_bytes)} (largest tensor {format_bytes(made.largest_tensor_bytes)})"
            )
            for note in made.left_out:
                progress.note(f"  {note}")
        close_generator(out, folder, self.kind)
        return self.seal(folder, task=TEXT_GENERATION, precision=_PRECISIONS[dtype])


def stored_dtype(checkpoint: Path) -> FloatType:
    """The type that most of a checkpoint's weights are stored in.

    Raises:
        CheckpointError: it is damaged.
        UnsupportedError: they are no floats of 16 or 32 bits.
    """
    from compress.checkpoint import open_checkpoint

    sizes: dict[str, int] = {}
    for entry in open_checkpoint(checkpoint).entries.values():
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.size_bytes
    most = max(sizes, key=lambda dtype: sizes[dtype])
    if most not in _STORED:
        raise UnsupportedError(
            f"{checkpoint}: most of its weights are stored as {most}, which is no plain float type",
            mend="Merge into the unquantized base and convert that.",
        )
    return _STORED[most]


@dataclass(frozen=True, kw_only=True)
class GgufProof:
    """What was found equal between a checkpoint and its unquantized file."""

    tokenizer: TokenizerParity
    logits: LogitParity
    template: ChatTemplateParity

    def to_json(self) -> dict[str, JsonValue]:
        """The figures, flat."""
        figures: dict[str, JsonValue] = {
            "tokenizer_lines_equal": self.tokenizer.num_lines,
            "tokenizer_tokens_equal": self.tokenizer.num_tokens,
            "tokenizer_lines_avoided": self.tokenizer.num_avoided,
            "logits_mean_kld": self.logits.mean_kld,
            "logits_max_kld": self.logits.max_kld,
            "logits_same_top": self.logits.same_top,
            "logits_num_tokens": self.logits.num_tokens,
        }
        if self.template.templates:
            figures["chat_renderings_equal"] = self.template.num_rendered
            figures["chat_conversations_refused_by_both"] = self.template.num_refused
        return figures


@dataclass(frozen=True, kw_only=True)
class ProveGgufStage(Stage):
    """Compare a checkpoint with its unquantized file: tokenizer, chat template, logits; a breach is an error."""

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
        proof = prove_gguf(
            self.artifact, self.checkpoint, text=self.texts.read(), threads=self.threads, progress=progress
        )
        facts = {"metrics": proof.to_json(), "tokenizer_notes": list(proof.tokenizer.notes)}
        atomic_write(folder / "verification.json", json.dumps(facts, indent=1) + "\n")
        return self.seal(folder)


def prove_gguf(
    artifact: Artifact, checkpoint: Artifact, *, text: str, threads: int = 1, progress: Progress = SILENT
) -> GgufProof:
    """Compare an unquantized file with its checkpoint.

    Args:
        artifact: The file, or its folder.
        checkpoint: What it was made from.
        text: Real text.
        threads: Of both engines.
        progress: Told the figures.

    Raises:
        VerificationError: a text is tokenized differently, a conversation is written differently, or the logits are
            further apart than the type explains.
    """
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
    return GgufProof(tokenizer=tokenizer, logits=logits, template=template)


def file_dtype(path: Path) -> FloatType:
    """The type that most of a file's weights are stored in.

    Raises:
        UnsupportedError: they are quantized.
    """
    from serve.runtime.gguf_file import read_gguf

    sizes: dict[str, int] = {}
    for tensor in read_gguf(path).tensors.values():
        sizes[tensor.block_type.name] = sizes.get(tensor.block_type.name, 0) + tensor.size_bytes
    most = max(sizes, key=lambda name: sizes[name])
    if most not in _STORED:
        raise UnsupportedError(f"{path}: most of its weights are quantized ({most})")
    return _STORED[most]


def is_unquantized(artifact: Artifact) -> bool:
    """Whether a GGUF artifact's weights are floats."""
    try:
        file_dtype(gguf_path(artifact))
    except UnsupportedError:
        return False
    return True


def parity_texts(text: str) -> list[str]:
    """A few pieces of a text, from places far apart."""
    size = 8 * _PARITY_TOKENS  # characters: more than that many tokens of any tokenizer in use
    starts = [len(text) * index // _NUM_PARITY_TEXTS for index in range(_NUM_PARITY_TEXTS)]
    pieces = [text[start : start + size].strip() for start in starts]
    return [piece for piece in pieces if piece]


def gguf_path(artifact: Artifact) -> Path:
    """The file of a GGUF artifact, which may be a bare file."""
    return artifact.path if artifact.path.is_file() else artifact.file(GGUF_FILE)
