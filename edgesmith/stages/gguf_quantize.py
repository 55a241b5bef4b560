"""Quantize: unquantized GGUF artifact → smaller GGUF artifact."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact, Kind, Manifest
from edgesmith.errors import ArtifactError
from edgesmith.files import atomic_write
from edgesmith.progress import Progress
from edgesmith.recipe import GgufQuantizeOptions
from edgesmith.stages.base import Stage
from edgesmith.stages.engines import open_generator
from edgesmith.stages.gguf_export import GGUF_FILE, gguf_path
from edgesmith.stages.imatrix import ImatrixSource, imatrix_digest, imatrix_path
from edgesmith.stages.sensitivity import SENSITIVITY_FILE
from edgesmith.stages.side_files import close_generator
from edgesmith.stages.texts import Texts
from edgesmith.tasks import TEXT_GENERATION

if TYPE_CHECKING:
    from compress.gguf.imatrix import Imatrix
    from compress.gguf.quantize import GgufQuantResult

__all__ = ["GgufQuantizeStage"]

_NUM_MEASURED = 16
"""Windows on which a budget of divergence is measured."""


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
    sensitivity: Artifact | None = None
    """From `SensitivityStage`; needed without `method.type`."""
    texts: Texts | None = None
    """Calibration text; needed by a budget of divergence, which is measured on it."""
    threads: int = 1

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return {**self.method.model_dump(mode="json"), "texts": self.texts.options if self.texts else None}

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        given = {"source": self.source.digest}
        if self.imatrix is not None:
            given["imatrix"] = imatrix_digest(self.imatrix)
        if self.sensitivity is not None:
            given["sensitivity"] = self.sensitivity.digest
        if self.texts is not None:
            given["calibration"] = self.texts.digest
        return given

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Quantize, check that nothing but the weights changed, and say what became of each tensor."""
        source, out = gguf_path(self.source), folder / GGUF_FILE
        result = (
            self._within_budget(source, out, progress)
            if self.method.is_allocated
            else self._as_preset(source, out, progress)
        )
        check_metadata(source, out)
        _tell(result, self.method.name, is_mixed=self.method.is_allocated, folder=folder, progress=progress)
        close_generator(out, folder, self.kind)
        return self.seal(folder, task=self.source.manifest.task or TEXT_GENERATION, precision=self.method.name)

    def _as_preset(self, source: Path, out: Path, progress: Progress) -> GgufQuantResult:
        from compress.gguf.quantize import GgufQuantConfig, quantize_gguf

        assert self.method.type is not None  # as the caller has asked
        config = GgufQuantConfig(type=self.method.type, tensor_types=self.method.tensor_types)
        return quantize_gguf(source, out, config, imatrix=self._imatrix(), threads=self.threads, progress=progress)

    def _within_budget(self, source: Path, out: Path, progress: Progress) -> GgufQuantResult:
        from compress.gguf.allocate import Budget
        from compress.gguf.fit_budget import quantize_to_budget
        from compress.gguf.sensitivity import Sensitivity

        assert self.sensitivity is not None  # the callers make one
        method = self.method
        made = quantize_to_budget(
            source,
            out,
            Sensitivity.load(self.sensitivity.file(SENSITIVITY_FILE)),
            Budget(bits_per_weight=method.bits_per_weight, max_mb=method.max_mb, max_mean_kld=method.max_mean_kld),
            imatrix=self._imatrix(),
            measure=self._measure(source, progress) if method.max_mean_kld is not None else None,
            threads=self.threads,
            progress=progress,
        )
        if made.measured_kld is not None:
            progress.note(
                f"quantize: measured mean KLD {made.measured_kld:.4g} on calibration text, "
                f"{made.allocation.predicted_kld:.4g} predicted"
            )
        return made.result

    def _measure(self, source: Path, progress: Progress) -> Callable[[Path], float]:
        """Measure the divergence of a file from the unquantized one, on calibration text."""
        from bench.language.measure import measure_language
        from bench.language.reference import record_reference

        assert self.texts is not None  # the callers give it
        texts = replace(self.texts, num_windows=_NUM_MEASURED)
        with open_generator(_bare(source), self.threads) as engine:
            reference = record_reference(engine, texts.cut(engine), progress=progress)

        def measure(path: Path) -> float:
            with open_generator(_bare(path), self.threads) as engine:
                found = measure_language(engine, reference.windows, reference=reference, progress=progress)
            return found.mean_kld().value

        return measure

    def _imatrix(self) -> Imatrix | None:
        from compress.gguf.imatrix import read_imatrix

        return None if self.imatrix is None else read_imatrix(imatrix_path(self.imatrix))


def _bare(path: Path) -> Artifact:
    """A file that was just made; its manifest is written later."""
    return Artifact(path=path, manifest=Manifest(kind="gguf", step="found", files=()))


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


def _tell(result: GgufQuantResult, name: str, *, is_mixed: bool, folder: Path, progress: Progress) -> None:
    """Say what was done, and write all of it into the artifact's `quantization.json`."""
    counts = Counter(one.type for one in result.tensors if one.is_quantized)
    types = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    notes = [f"{name}: {result.size_bytes / 1e6:.1f} MB, {result.bits_per_weight:.2f} bits per weight: {types}"]
    fallbacks = Counter((one.wanted, one.type) for one in result.fallbacks)
    notes += [
        f"{count} tensors are {got}, not {wanted}: their columns are no multiple of its blocks"
        for (wanted, got), count in fallbacks.most_common()
        if not is_mixed
    ]
    if result.without_imatrix:
        shown = ", ".join(result.without_imatrix[:3]) + (" …" if len(result.without_imatrix) > 3 else "")
        notes.append(f"without importance matrix, which has no entry for them: {shown}")
    for note in notes:
        progress.note(f"quantize: {note}")
    facts = {
        "type": "mixed" if is_mixed else result.type,
        "bits_per_weight": result.bits_per_weight,
        "notes": notes,
        "tensors": [asdict(one) for one in result.tensors],
    }
    atomic_write(folder / "quantization.json", json.dumps(facts, indent=1) + "\n")
