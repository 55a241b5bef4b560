"""Export: LoRA adapter → GGUF adapter, which llama.cpp loads and scales beside one base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact, Kind
from edgesmith.progress import SILENT, Progress
from edgesmith.stages.base import Stage
from edgesmith.stages.gguf_export import GGUF_FILE
from edgesmith.stages.merge import folder_digest
from edgesmith.stages.prove_export import parity_texts
from edgesmith.tasks import TEXT_GENERATION
from edgesmith.units import format_bytes

if TYPE_CHECKING:
    from export.gguf.adapter_check import AdapterParity

__all__ = ["ADAPTER_FILE", "GgufAdapterStage", "prove_gguf_adapter"]

ADAPTER_FILE = "adapter.gguf"


@dataclass(frozen=True, kw_only=True)
class GgufAdapterStage(Stage):
    """Write an adapter as a file of its own; several of them share one base on a device."""

    step: ClassVar[str] = "export"
    kind: ClassVar[Kind] = "gguf-adapter"
    libraries: ClassVar[tuple[str, ...]] = ("gguf", "numpy", "peft", "safetensors", "transformers")

    adapter: Path
    base: Artifact
    """The checkpoint that it was trained on."""

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return {}

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        return {"adapter": folder_digest(self.adapter), "base": self.base.digest}

    @property
    def paths(self) -> tuple[Path, ...]:
        """Adapter and base."""
        return (self.adapter, self.base.path)

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Convert, and say what was converted."""
        from export.gguf.adapter_file import to_gguf_adapter

        made = to_gguf_adapter(self.adapter, self.base.folder, folder / ADAPTER_FILE)
        ranks = ", ".join(map(str, made.ranks))
        progress.note(
            f"export: adapter of rank {ranks} on {made.num_weights} weights of {made.architecture}: "
            f"{format_bytes(made.size_bytes)}"
        )
        for note in made.notes:
            progress.note(f"  {note}")
        return self.seal(folder, task=TEXT_GENERATION, precision=made.dtype)


def prove_gguf_adapter(
    artifact: Artifact,
    stage: GgufAdapterStage,
    *,
    text: str,
    scratch: Path,
    threads: int = 1,
    progress: Progress = SILENT,
) -> AdapterParity:
    """Compare base and adapter in llama.cpp with the merged checkpoint in torch.

    Args:
        artifact: What `stage` made.
        stage: Knows adapter and base.
        text: Real text.
        scratch: Folder with room for two copies of the base, for as long as it takes.
        threads: Of both engines.
        progress: Shows how far it is.

    Raises:
        VerificationError: they are further apart than the base alone is.
    """
    from compress.adapter import AdapterSpec
    from compress.merge import merge_adapter
    from export.gguf.adapter_check import check_adapter
    from export.gguf.to_gguf import to_gguf

    with TemporaryDirectory(dir=scratch, prefix=".edgesmith-") as temporary:
        merged, base_file = Path(temporary) / "merged", Path(temporary) / GGUF_FILE
        merge_adapter(stage.base.folder, [AdapterSpec(path=stage.adapter, weight=1.0)], merged, progress=progress)
        to_gguf(stage.base.folder, base_file, dtype="f16", progress=progress)
        return check_adapter(
            base_file,
            [(artifact.file(ADAPTER_FILE), 1.0)],
            base=stage.base.folder,
            merged=merged,
            texts=parity_texts(text),
            threads=threads,
        )
