"""Merge: base + adapters → checkpoint artifact, and the proof that the two are equal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from edgesmith.artifact import Artifact, Parent, tool_versions, write_artifact
from edgesmith.files import atomic_write, sha256_file, sha256_text
from edgesmith.progress import SILENT, Progress
from edgesmith.stages.rows import Rows
from edgesmith.store import StepKey
from edgesmith.tasks import load_task
from edgesmith.units import format_bytes

if TYPE_CHECKING:
    from compress.merge_proof import MergeProof

__all__ = ["MergeStage", "ProveMergeStage", "prove_merge"]

_LIBRARIES = ("numpy", "peft", "safetensors", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class MergeStage:
    """Fold adapters into their base, weight by weight."""

    base: Artifact
    adapters: tuple[tuple[Path, float], ...]
    """Folder and weight of each."""
    dequantize: bool = False

    @property
    def _options(self) -> dict[str, JsonValue]:
        return {"weights": [weight for _, weight in self.adapters], "dequantize": self.dequantize}

    @property
    def _inputs(self) -> dict[str, str]:
        digests = {f"adapter{index}": folder_digest(path) for index, (path, _) in enumerate(self.adapters)}
        return {"base": self.base.digest, **digests}

    @property
    def key(self) -> StepKey:
        """The adapters' files are part of it."""
        return StepKey(
            step="merge",
            module="edgesmith.stages.merge",
            options=self._options,
            inputs=self._inputs,
            libraries=_LIBRARIES,
        )

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Merge, and say what it took."""
        from compress.merge import AdapterSpec, merge_adapter

        specs = [AdapterSpec(path=path, weight=weight) for path, weight in self.adapters]
        result = merge_adapter(self.base.path, specs, folder, dequantize=self.dequantize, progress=progress)
        progress.note(
            f"merge: {' + '.join(result.kinds)}: {result.num_merged} tensors merged, {result.num_copied} copied; "
            f"peak memory +{format_bytes(result.peak_memory_added_bytes)} for {format_bytes(result.weights_bytes)} "
            f"of weights (largest tensor {format_bytes(result.largest_tensor_bytes)})"
        )
        return write_artifact(
            folder,
            kind="checkpoint",
            step="merge",
            options=self._options,
            parents=[Parent(role=role, digest=digest) for role, digest in self._inputs.items()],
            tools=tool_versions(*_LIBRARIES),
        )


@dataclass(frozen=True, kw_only=True)
class ProveMergeStage:
    """Compare a merged checkpoint with base + adapters on real rows; a breach is an error."""

    stage: MergeStage
    merged: Artifact
    rows: Rows
    task: str | None = None

    @property
    def _options(self) -> dict[str, JsonValue]:
        return {**self.rows.options, "task": self.task}

    @property
    def _inputs(self) -> dict[str, str]:
        return {"merged": self.merged.digest, "data": self.rows.digest, **self.stage._inputs}

    @property
    def key(self) -> StepKey:
        """A proof belongs to its rows."""
        return StepKey(
            step="prove-merge",
            module="edgesmith.stages.merge",
            options=self._options,
            inputs=self._inputs,
            libraries=_LIBRARIES,
        )

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `verification.json`."""
        proof = prove_merge(self.stage, self.merged, rows=self.rows, task=self.task, progress=progress)
        atomic_write(folder / "verification.json", json.dumps({"metrics": proof.to_json()}, indent=1) + "\n")
        return write_artifact(
            folder,
            kind="evidence",
            step="prove-merge",
            options=self._options,
            parents=[Parent(role=role, digest=digest) for role, digest in self._inputs.items()],
            tools=tool_versions(*_LIBRARIES),
        )


def prove_merge(
    stage: MergeStage, merged: Artifact, *, rows: Rows, task: str | None = None, progress: Progress = SILENT
) -> MergeProof:
    """Compare a merged checkpoint with base + adapters, unmerged, in fp32 on real rows.

    Raises:
        VerificationError: a logit differs by more than the tolerance.
    """
    from compress.merge_proof import prove

    inputs = _encode(merged.folder, rows, task)
    return prove(stage.base.path, stage.adapters, merged.path, inputs, progress=progress)


def _encode(folder: Path, rows: Rows, task: str | None) -> Sequence[dict[str, Any]]:
    loaded = load_task(folder, task, columns=rows.columns)
    examples = rows.read(loaded)
    return [loaded.encode(examples[start : start + 4]) for start in range(0, len(examples), 4)]


def folder_digest(folder: Path) -> str:
    """Hash the names and contents of a folder's files; links are followed."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return "sha256:" + sha256_text(*(text for path in paths for text in (path.name, sha256_file(path))))
