"""What an artifact weighs: files, download, and which tensors it is spent on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact
from edgesmith.progress import Progress
from edgesmith.stages.base import Stage

__all__ = ["FootprintStage"]


@dataclass(frozen=True, kw_only=True)
class FootprintStage(Stage):
    """Count an artifact's bytes, as they lie and as they are fetched."""

    step: ClassVar[str] = "footprint"
    libraries: ClassVar[tuple[str, ...]] = ("zstandard",)

    artifact: Artifact

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return {}

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        return {"artifact": self.artifact.digest}

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `footprint.json` and `tensor_sizes.json`."""
        from bench.sizes.footprint import measure_footprint
        from bench.sizes.tensors import measure_tensor_sizes

        del progress  # takes a second or two
        measure_footprint(self.artifact).save(folder)
        measure_tensor_sizes(self.artifact).save(folder)
        return self.seal(folder)
