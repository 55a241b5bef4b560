"""Export: checkpoint → onnxruntime-genai artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact, Kind
from edgesmith.errors import UnsupportedError
from edgesmith.progress import Progress
from edgesmith.recipe import GenaiTarget
from edgesmith.stages.base import Stage
from edgesmith.stages.side_files import close_generator
from edgesmith.tasks import TEXT_GENERATION
from edgesmith.tasks.folder import read_json_object
from edgesmith.units import format_bytes

if TYPE_CHECKING:
    from export.genai.quant_config import Precision

__all__ = ["GenaiExportStage"]


_LIBRARIES = (
    "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai", "tokenizers", "torch", "transformers",
)  # fmt: skip


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

        self._check_tokenizer()
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

    def _check_tokenizer(self) -> None:
        """Refuse before the build what could not be used after it.

        Raises:
            ArtifactError: a chat template is hostile or damaged.
            UnsupportedError: the tokenizer has tokens that the embeddings have not.
        """
        from export.gguf.special_tokens import read_templates
        from export.gguf.tokenizer_file import TokenizerFile
        from serve.runtime.chat_template import check_template

        tokenizer = TokenizerFile(self.checkpoint.folder)
        for template in read_templates(tokenizer).values():
            check_template(template)
        num_rows = read_json_object(self.checkpoint.folder / "config.json").get("vocab_size")
        num_tokens = tokenizer.tokenizer.get_vocab_size()
        if isinstance(num_rows, int) and num_tokens > num_rows:
            raise UnsupportedError(
                f"{self.checkpoint.path}: its tokenizer has {num_tokens:,} tokens, its embeddings {num_rows:,} rows",
                mend="Take the tokenizer that the model was trained with.",
            )

    @property
    def precision(self) -> Precision:
        """Of the weights."""
        return self.target.quantize.method if self.target.quantize else self.target.precision
