"""Export: checkpoint → unquantized GGUF artifact, and the proof that nothing was lost on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact, Kind
from edgesmith.errors import UnsupportedError
from edgesmith.progress import Progress
from edgesmith.recipe import FloatType
from edgesmith.stages.base import Stage
from edgesmith.stages.side_files import close_generator
from edgesmith.tasks import TEXT_GENERATION
from edgesmith.units import format_bytes

__all__ = ["GGUF_FILE", "GgufExportStage", "file_dtype", "gguf_path", "is_unquantized"]

GGUF_FILE = "model.gguf"
_LIBRARIES = ("gguf", "llama-cpp-python", "numpy", "safetensors", "tokenizers", "torch", "transformers")
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}
_STORED: dict[str, FloatType] = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


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
            from export.gguf.foreign import converter_digest

            given["converter"] = converter_digest(self.converter)
        return given

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Convert, and say what it took and what is left out."""
        dtype = self.dtype or stored_dtype(self.checkpoint.folder)
        out = folder / GGUF_FILE
        if self.converter is not None:
            from export.gguf.foreign import convert_with

            progress.note(f"export: running {self.converter}")
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
    from serve.runtime.gguf_file import most_bytes

    most = most_bytes((entry.dtype, entry.size_bytes) for entry in open_checkpoint(checkpoint).entries.values())
    if most not in _STORED:
        raise UnsupportedError(
            f"{checkpoint}: most of its weights are stored as {most}, which is no plain float type",
            mend="Start from the unquantized checkpoint.",
        )
    return _STORED[most]


def file_dtype(path: Path) -> FloatType:
    """The type that most of a file's weights are stored in.

    Raises:
        UnsupportedError: they are quantized.
    """
    from serve.runtime.gguf_file import read_gguf

    most = read_gguf(path).main_type
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


def gguf_path(artifact: Artifact) -> Path:
    """The file of a GGUF artifact, which may be a bare file."""
    return artifact.path if artifact.path.is_file() else artifact.file(GGUF_FILE)
