"""Importance matrix: how strongly real text uses each column of each weight."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from pydantic import JsonValue

from edgesmith.artifact import Artifact
from edgesmith.data import data_digest
from edgesmith.progress import Progress
from edgesmith.recipe import GgufQuantizeOptions
from edgesmith.stages.base import Stage
from edgesmith.stages.gguf_export import gguf_path
from edgesmith.stages.texts import Texts

if TYPE_CHECKING:
    from compress.gguf.imatrix import Imatrix

__all__ = ["ImatrixSource", "ImatrixStage", "imatrix_digest", "imatrix_model", "imatrix_path", "wants_imatrix"]

IMATRIX_FILE = "imatrix.gguf"
ImatrixSource: TypeAlias = Artifact | Path
"""Measured by us, or a file of the user's in llama.cpp's format."""


def imatrix_model(checkpoint: Artifact, source: Artifact) -> Artifact:
    """What an importance matrix is measured on: the checkpoint; the GGUF file where torch fuses a model's experts."""
    from export.gguf.tensor_names import has_experts

    return source if has_experts(checkpoint.folder) else checkpoint


def wants_imatrix(options: GgufQuantizeOptions, *, has_text: bool) -> bool:
    """Whether a quantization takes an importance matrix.

    Where nobody says, it does if there is text to measure it on, and a type that it changes.
    """
    from compress.gguf.types import TENSOR_TYPES, find_file_type

    if options.imatrix is not None:
        return bool(options.imatrix)
    matters = options.type is None or TENSOR_TYPES[find_file_type(options.type).tensor_type].uses_imatrix
    return matters and has_text


def imatrix_path(source: ImatrixSource) -> Path:
    """The file."""
    return source.file(IMATRIX_FILE) if isinstance(source, Artifact) else source


def imatrix_digest(source: ImatrixSource) -> str:
    """What a key holds of it."""
    return source.digest if isinstance(source, Artifact) else f"sha256:{data_digest(source)}"


@dataclass(frozen=True, kw_only=True)
class ImatrixStage(Stage):
    """Measure mean squared activations on calibration text: of a checkpoint in torch, or of a GGUF file itself."""

    step: ClassVar[str] = "imatrix"
    libraries: ClassVar[tuple[str, ...]] = ("gguf", "llama-cpp-python", "numpy", "tokenizers", "torch", "transformers")
    is_of_this_machine: ClassVar[bool] = True

    model: Artifact
    """A checkpoint, or an unquantized GGUF artifact."""
    texts: Texts
    threads: int = 1

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return {**self.texts.options, "threads": self.threads}  # torch's sums run in another order on more

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        return {"model": self.model.digest, "calibration": self.texts.digest}

    @property
    def paths(self) -> tuple[Path, ...]:
        """Model and text."""
        return (self.model.path, self.texts.path)

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `imatrix.gguf`, in llama.cpp's format."""
        from compress.gguf.imatrix import write_imatrix

        write_imatrix(folder / IMATRIX_FILE, self.collect(progress))
        return self.seal(folder)

    def collect(self, progress: Progress) -> Imatrix:
        """Run the model over the text."""
        if self.model.kind == "checkpoint":
            return self._from_torch(progress)
        from compress.gguf.collect_runtime import collect_imatrix_runtime
        from serve.runtime import EngineOptions, open_generation_engine

        engine = open_generation_engine(self.model, EngineOptions(threads=self.threads))
        try:
            cut = self.texts.cut(engine)
        finally:
            engine.close()
        windows = [cut.input_of(index) for index in range(cut.num_windows)]
        return collect_imatrix_runtime(gguf_path(self.model), windows, threads=self.threads, progress=progress)

    def _from_torch(self, progress: Progress) -> Imatrix:
        from compress.gguf.collect_torch import collect_imatrix_torch
        from export.gguf.tensor_names import tensor_names

        names = tensor_names(self.model.folder)
        windows = self.texts.cut_by_tokenizer(self.model.folder)
        return collect_imatrix_torch(self.model.folder, names, windows, threads=self.threads, progress=progress)
