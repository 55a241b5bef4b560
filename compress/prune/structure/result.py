"""What a structured pruning did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from edgesmith.files import atomic_write

__all__ = ["StructureResult", "Width", "write_result"]


@dataclass(frozen=True, kw_only=True)
class Width:
    """A dimension that became smaller."""

    name: str
    """`ffn`, `heads`, `hidden` or `channels`."""
    before: Mapping[str, int]
    """Setting of the configuration → its value in the full model."""
    after: Mapping[str, int]

    @property
    def description(self) -> str:
        """Such as `ffn 1536 → 768`."""
        label = next(iter(self.before))
        return f"{self.name} ({label}) {self.before[label]} → {self.after[label]}"


@dataclass(frozen=True, kw_only=True)
class StructureResult:
    """What became smaller, and what it did to the outputs."""

    path: Path
    """The smaller checkpoint."""
    importance: str
    num_layers_before: int | None
    kept_layers: tuple[int, ...] | None
    """Numbers of the layers that stayed; None when all did."""
    widths: tuple[Width, ...]
    params_before: int
    params_after: int
    """Parameters, tied ones once."""
    macs_before: int
    macs_after: int
    """Multiply-accumulates of one row, attention's included."""
    row_shape: Mapping[str, tuple[int, ...]]
    """Of the inputs that they were counted for."""
    output_change: float
    """‖difference of the outputs‖² / ‖outputs‖² on calibration rows, before any training."""
    notes: tuple[str, ...]
    """What was chosen or left out, and why."""

    @property
    def summary(self) -> str:
        """One line: what left, and what that saves."""
        layers = f"layers {self.num_layers_before} → {len(self.kept_layers)}" if self.kept_layers is not None else ""
        parts = [part for part in (layers, *(width.description for width in self.widths)) if part]
        return (
            f"{', '.join(parts)}: parameters {self.params_before:,} → {self.params_after:,} "
            f"({self.params_after / self.params_before:.1%}), MACs {self.macs_before:,} → {self.macs_after:,} "
            f"({self.macs_after / self.macs_before:.1%}), outputs changed by {self.output_change:.2%}"
        )


def write_result(result: StructureResult, folder: Path) -> None:
    """Write `pruning.json`, without paths and times.

    Raises:
        StorageError: it cannot be written.
    """
    facts = {"method": "structured", **{key: value for key, value in asdict(result).items() if key != "path"}}
    facts["output_change"] = float(f"{result.output_change:.4g}")
    atomic_write(folder / "pruning.json", json.dumps(facts, indent=1, sort_keys=True) + "\n")
