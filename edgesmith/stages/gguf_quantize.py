"""Quantize: unquantized GGUF artifact → smaller GGUF artifact."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact, Kind
from edgesmith.errors import ArtifactError, UsageError
from edgesmith.files import atomic_write
from edgesmith.progress import Progress
from edgesmith.recipe import GgufQuantizeOptions
from edgesmith.stages.allocate import ALLOCATION_FILE
from edgesmith.stages.base import Stage
from edgesmith.stages.gguf_export import GGUF_FILE, gguf_path
from edgesmith.stages.imatrix import ImatrixSource, imatrix_digest, imatrix_path
from edgesmith.stages.side_files import close_generator
from edgesmith.tasks import TEXT_GENERATION

if TYPE_CHECKING:
    from compress.gguf.imatrix import Imatrix
    from compress.gguf.quantize import GgufQuantConfig, GgufQuantResult

__all__ = ["GgufQuantizeStage"]


@dataclass(frozen=True, kw_only=True)
class GgufQuantizeStage(Stage):
    """Round weights to llama.cpp's block types: a preset's, or those that were chosen by measured damage."""

    step: ClassVar[str] = "quantize"
    kind: ClassVar[Kind] = "gguf"
    libraries: ClassVar[tuple[str, ...]] = ("gguf", "llama-cpp-python", "numpy")
    is_of_this_machine: ClassVar[bool] = True  # the golden answer is this processor's

    source: Artifact
    method: GgufQuantizeOptions
    imatrix: ImatrixSource | None = None
    allocation: Artifact | None = None
    """Types by tensor; needed without `method.type`."""
    threads: int = 1

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return self.method.model_dump(mode="json")

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        given = {"source": self.source.digest}
        if self.imatrix is not None:
            given["imatrix"] = imatrix_digest(self.imatrix)
        if self.allocation is not None:
            given["allocation"] = self.allocation.digest
        return given

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Quantize, check that nothing but the weights changed, and say what became of each tensor."""
        from compress.gguf.quantize import quantize_gguf

        source, out = gguf_path(self.source), folder / GGUF_FILE
        result = quantize_gguf(
            source, out, self._config(), imatrix=self._imatrix(), threads=self.threads, progress=progress
        )
        check_metadata(source, out)
        self._check_budget(out)
        _tell(result, folder, progress)
        close_generator(out, folder, self.kind)
        return self.seal(folder, task=self.source.manifest.task or TEXT_GENERATION, precision=self.method.name)

    def _config(self) -> GgufQuantConfig:
        from compress.gguf.quantize import GgufQuantConfig

        if self.method.type is not None:
            return GgufQuantConfig(type=self.method.type, tensor_types=self.method.tensor_types)
        assert self.allocation is not None  # the callers make one
        chosen = json.loads(self.allocation.file(ALLOCATION_FILE).read_bytes())
        return GgufQuantConfig(type=chosen["base_type"], tensor_types=chosen["tensor_types"])

    def _imatrix(self) -> Imatrix | None:
        from compress.gguf.imatrix import read_imatrix

        return None if self.imatrix is None else read_imatrix(imatrix_path(self.imatrix))

    def _check_budget(self, out: Path) -> None:
        """A file over its budget is not what was asked for."""
        size = out.stat().st_size
        if self.method.max_mb is not None and size > self.method.max_mb * 1e6:
            raise UsageError(
                f"the file has {size / 1e6:.2f} MB, more than max_mb {self.method.max_mb:g}",
                mend="Allow more megabytes, or take a smaller model.",
            )


def check_metadata(source: Path, quantized: Path) -> None:
    """Insist that tokenizer, template and settings are those of the source.

    Raises:
        ArtifactError: one is missing or differs.
    """
    from serve.runtime.gguf_file import read_gguf

    before, after = read_gguf(source), read_gguf(quantized)
    own = ("general.file_type", "general.quantization_version")
    for key, value in before.metadata.items():
        if key not in own and after.metadata.get(key) != value:
            raise ArtifactError(f"{quantized}: {key} is {after.metadata.get(key)!r:.80}, but was {value!r:.80}")
    if before.tensors.keys() != after.tensors.keys():
        missing = sorted(before.tensors.keys() ^ after.tensors.keys())
        raise ArtifactError(f"{quantized}: its tensors are not the source's: {', '.join(missing[:3])} …")


def _tell(result: GgufQuantResult, folder: Path, progress: Progress) -> None:
    """Say what was done, and write all of it into the artifact's `quantization.json`."""
    notes = [result.summary()]
    fallbacks = Counter((one.wanted, one.type) for one in result.fallbacks)
    notes += [
        f"{count} tensors are {got}, not {wanted}: their columns are no multiple of its blocks"
        for (wanted, got), count in fallbacks.most_common()
    ]
    for note in notes:
        progress.note(f"quantize: {note}")
    facts = {
        "type": result.type,
        "bits_per_weight": result.bits_per_weight,
        "notes": notes,
        "tensors": [asdict(one) for one in result.tensors],
    }
    atomic_write(folder / "quantization.json", json.dumps(facts, indent=1) + "\n")
