"""Merge: base + adapters → checkpoint artifact, and the proof that the two are equal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact, Kind
from edgesmith.data import sample_rows
from edgesmith.errors import UnsupportedError
from edgesmith.files import atomic_write, sha256_file, sha256_text
from edgesmith.progress import SILENT, Progress
from edgesmith.stages.base import Stage
from edgesmith.stages.rows import Rows
from edgesmith.tasks import load_task, sample_texts
from edgesmith.units import format_bytes

if TYPE_CHECKING:
    from compress.adapter import AdapterSpec
    from compress.verify_merge import MergeVerification

__all__ = ["MergeStage", "ProveMergeStage", "prove_merge"]

_LIBRARIES = ("numpy", "peft", "safetensors", "torch", "transformers")
_BATCH = 4
_NUM_PLAIN = 16  # a language model's logits are large: tokens × vocabulary


@dataclass(frozen=True, kw_only=True)
class MergeStage(Stage):
    """Fold adapters into their base, weight by weight."""

    step: ClassVar[str] = "merge"
    kind: ClassVar[Kind] = "checkpoint"
    libraries: ClassVar[tuple[str, ...]] = _LIBRARIES

    base: Artifact
    adapters: tuple[tuple[Path, float], ...]
    """Folder and weight of each."""
    dequantize: bool = False

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return {"weights": [weight for _, weight in self.adapters], "dequantize": self.dequantize}

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        digests = {f"adapter{index}": folder_digest(path) for index, (path, _) in enumerate(self.adapters)}
        return {"base": self.base.digest, **digests}

    @property
    def paths(self) -> tuple[Path, ...]:
        """Base and adapters."""
        return (self.base.path, *(path for path, _ in self.adapters))

    @property
    def specs(self) -> list[AdapterSpec]:
        """The adapters as merging takes them."""
        from compress.adapter import AdapterSpec

        return [AdapterSpec(path=path, weight=weight) for path, weight in self.adapters]

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Merge, and say what it took."""
        from compress.merge import merge_adapter

        result = merge_adapter(self.base.path, self.specs, folder, dequantize=self.dequantize, progress=progress)
        progress.note(
            f"merge: {' + '.join(result.kinds)}: {result.num_merged} tensors merged, {result.num_copied} copied; "
            f"peak memory +{format_bytes(result.peak_memory_added_bytes)} for {format_bytes(result.weights_bytes)} "
            f"of weights (largest tensor {format_bytes(result.largest_tensor_bytes)})"
        )
        return self.seal(folder)


@dataclass(frozen=True, kw_only=True)
class ProveMergeStage(Stage):
    """Compare a merged checkpoint with base + adapters on real rows; a breach is an error."""

    step: ClassVar[str] = "prove-merge"
    libraries: ClassVar[tuple[str, ...]] = _LIBRARIES

    stage: MergeStage
    merged: Artifact
    rows: Rows
    task: str | None = None

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        return {**self.rows.options, "task": self.task}

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        return {"merged": self.merged.digest, "data": self.rows.digest, **self.stage.inputs}

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `verification.json`."""
        proof = prove_merge(self.stage, self.merged, rows=self.rows, task=self.task, progress=progress)
        figures = {"merge_max_abs_diff": proof.max_abs_diff, "merge_num_rows": proof.num_rows}
        atomic_write(folder / "verification.json", json.dumps({"metrics": figures, **asdict(proof)}, indent=1) + "\n")
        return self.seal(folder)


def prove_merge(
    stage: MergeStage, merged: Artifact, *, rows: Rows, task: str | None = None, progress: Progress = SILENT
) -> MergeVerification:
    """Compare a merged checkpoint with base + adapters, unmerged, in fp32 on real rows.

    Raises:
        VerificationError: a logit differs by more than the tolerance.
    """
    from compress.verify_merge import verify_merge

    inputs = _encode(merged.folder, rows, task)
    proof = verify_merge(stage.base.path, stage.specs, merged.path, inputs, progress=progress)
    saved = ""
    if proof.saved_dtype != "F32":
        saved = (
            f"; {proof.max_abs_diff_saved:.2g} as saved in {proof.saved_dtype} (allowed {proof.saved_tolerance:.2g})"
        )
    found = f"{proof.max_abs_diff:.2g} in fp32"
    if proof.max_abs_diff_float64 is not None:
        found += f", {proof.max_abs_diff_float64:.2g} in fp64, which decides"
    progress.note(
        f"merge: largest difference to base + adapter on {proof.num_rows} rows: {found} "
        f"(allowed {proof.tolerance:g}){saved}"
    )
    return proof


def _encode(folder: Path, rows: Rows, task: str | None) -> list[dict[str, Any]]:
    """Encode rows by the model's task; where no task fits, such as a language model's, as plain texts one by one."""
    try:
        loaded = load_task(folder, task, columns=rows.columns)
    except UnsupportedError:
        if task is not None:
            raise
    else:
        examples = rows.read(loaded)
        return [loaded.encode(examples[start : start + _BATCH]) for start in range(0, len(examples), _BATCH)]
    from edgesmith.tasks.columns import read_text
    from edgesmith.tasks.tokenization import TextEncoder

    encoder = TextEncoder.load(folder)
    texts: Sequence[str] = sample_texts()[:_NUM_PLAIN]
    if rows.path is not None:
        column = rows.columns.get("text", "text")
        drawn = sample_rows(rows.path, _NUM_PLAIN, rows.seed)
        texts = [read_text(row, column, "text") for row in drawn]
    return [encoder.encode([(text, None)]) for text in texts]


def folder_digest(folder: Path) -> str:
    """Hash the names and contents of a folder's files; links are followed."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return "sha256:" + sha256_text(*(text for path in paths for text in (path.name, sha256_file(path))))
