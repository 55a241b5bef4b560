"""Choose every tensor's type by its measured damage, within a budget."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact
from edgesmith.progress import Progress
from edgesmith.recipe import GgufQuantizeOptions
from edgesmith.stages.base import Stage
from edgesmith.stages.imatrix import ImatrixSource, imatrix_digest
from edgesmith.stages.texts import Texts

__all__ = ["ALLOCATION_FILE", "AllocateStage"]

ALLOCATION_FILE = "allocation.json"


@dataclass(frozen=True, kw_only=True)
class AllocateStage(Stage):
    """Measure what each tensor's rounding does to the model's predictions, and spend the budget where it counts."""

    step: ClassVar[str] = "allocate"
    libraries: ClassVar[tuple[str, ...]] = ("gguf", "llama-cpp-python", "numpy", "tokenizers", "torch", "transformers")
    is_of_this_machine: ClassVar[bool] = True

    checkpoint: Artifact
    source: Artifact
    """The unquantized GGUF artifact."""
    method: GgufQuantizeOptions
    texts: Texts
    """Calibration text."""
    imatrix: ImatrixSource | None = None
    threads: int = 1

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return {**self.texts.options, **self.method.model_dump(mode="json")}

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        given = {"checkpoint": self.checkpoint.digest, "source": self.source.digest, "calibration": self.texts.digest}
        return given | ({"imatrix": imatrix_digest(self.imatrix)} if self.imatrix else {})

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `allocation.json`."""
        raise NotImplementedError
