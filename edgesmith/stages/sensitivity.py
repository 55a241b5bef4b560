"""Sensitivity: what rounding each tensor of a language model to each type does to its predictions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact
from edgesmith.progress import Progress
from edgesmith.stages.base import Stage
from edgesmith.stages.gguf_export import gguf_path
from edgesmith.stages.imatrix import ImatrixSource, imatrix_digest, imatrix_path
from edgesmith.stages.texts import Texts

__all__ = ["SENSITIVITY_FILE", "SensitivityStage"]

SENSITIVITY_FILE = "sensitivity.json"
_WINDOW = 256
_NUM_WINDOWS = 16


@dataclass(frozen=True, kw_only=True)
class SensitivityStage(Stage):
    """Run the checkpoint forward and backward over text, then round rows of every matrix to every type.

    One table serves any number of budgets.
    """

    step: ClassVar[str] = "sensitivity"
    libraries: ClassVar[tuple[str, ...]] = ("gguf", "llama-cpp-python", "numpy", "tokenizers", "torch", "transformers")
    is_of_this_machine: ClassVar[bool] = True

    checkpoint: Artifact
    source: Artifact
    """The unquantized GGUF artifact."""
    texts: Texts
    """Calibration text."""
    imatrix: ImatrixSource | None = None
    threads: int = 1

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return {**self._windows.options, "threads": self.threads}  # torch's sums run in another order on more

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        given = {"checkpoint": self.checkpoint.digest, "source": self.source.digest, "calibration": self.texts.digest}
        return given | ({"imatrix": imatrix_digest(self.imatrix)} if self.imatrix else {})

    @property
    def paths(self) -> tuple[Path, ...]:
        """Models and text."""
        return (self.checkpoint.path, self.source.path, self.texts.path)

    @property
    def _windows(self) -> Texts:
        """Fewer and shorter ones than an importance matrix takes: they are read backward too."""
        return replace(self.texts, window=min(_WINDOW, self.texts.window), num_windows=_NUM_WINDOWS)

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `sensitivity.json`."""
        from compress.gguf.fisher import collect_fisher
        from compress.gguf.imatrix import read_imatrix
        from compress.gguf.sensitivity import measure_sensitivity
        from export.gguf.tensor_names import row_orders, tensor_names
        from export.reference import torch_threads
        from export.reference_generation import load_language_model

        checkpoint = self.checkpoint.folder
        with torch_threads(self.threads):
            fisher = collect_fisher(
                load_language_model(checkpoint),
                tensor_names(checkpoint),
                self._windows.cut_by_tokenizer(checkpoint),
                row_orders=row_orders(checkpoint),
                progress=progress,
            )
        measure_sensitivity(
            gguf_path(self.source),
            fisher,
            imatrix=read_imatrix(imatrix_path(self.imatrix)) if self.imatrix else None,
            threads=self.threads,
            progress=progress,
        ).save(folder / SENSITIVITY_FILE)
        return self.seal(folder)
