"""What pruning single weights did, measured in the file that was written."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgesmith.files import atomic_write

__all__ = ["PRUNING_FILE", "LeftDense", "PrunedMatrix", "SparsityResult"]

PRUNING_FILE = "pruning.json"


@dataclass(frozen=True, kw_only=True)
class PrunedMatrix:
    """One matrix of the result, as it lies in its file."""

    name: str
    """Of the tensor."""
    shape: tuple[int, int]
    """Outputs, inputs."""
    num_zeros: int
    relative_error: float | None
    """How far its outputs on calibration tokens move: ‖X (W - Ŵ)ᵀ‖ / ‖X Wᵀ‖. None without calibration data."""

    @property
    def num_weights(self) -> int:
        """How many weights it has."""
        return self.shape[0] * self.shape[1]

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.num_zeros / self.num_weights


@dataclass(frozen=True, kw_only=True)
class LeftDense:
    """Tensors that stayed as they were."""

    reason: str
    num_tensors: int
    num_weights: int
    examples: tuple[str, ...]
    """Names of up to three."""


@dataclass(frozen=True, kw_only=True)
class SparsityResult:
    """What pruning single weights did."""

    path: Path
    """The pruned checkpoint."""
    model_class: str
    """Class of transformers that loads it."""
    method: str
    target: str
    """What was asked for: `sparsity 0.5` or `pattern 2:4`."""
    num_blocks: int
    matrices: tuple[PrunedMatrix, ...]
    left_dense: tuple[LeftDense, ...]
    num_calibration_tokens: int
    """Positions of all batches, padding included; 0 without calibration data."""
    block_bytes: int
    """The largest block's weights in float32."""
    calibration_bytes: int
    """Hidden states, masks and position embeddings of all batches."""
    model_bytes: int
    """All weights, as stored."""
    peak_memory_bytes: int
    """Peak of resident memory while pruning, libraries included."""
    peak_memory_added_bytes: int
    """Peak above what was resident when pruning began."""
    notes: tuple[str, ...] = ()
    """What was chosen or could not be done as usual."""

    @property
    def num_zeros(self) -> int:
        """Zeros of all pruned matrices."""
        return sum(matrix.num_zeros for matrix in self.matrices)

    @property
    def num_pruned(self) -> int:
        """Weights of all pruned matrices, zeros included."""
        return sum(matrix.num_weights for matrix in self.matrices)

    @property
    def sparsity(self) -> float:
        """Share of zeros in the pruned matrices."""
        return self.num_zeros / self.num_pruned

    @property
    def num_weights(self) -> int:
        """Weights of the whole model."""
        return self.num_pruned + sum(left.num_weights for left in self.left_dense)

    @property
    def model_sparsity(self) -> float:
        """Zeros of the pruned matrices as a share of all weights of the model."""
        return self.num_zeros / self.num_weights

    @property
    def mean_relative_error(self) -> float | None:
        """Mean over the matrices; None without calibration data."""
        errors = [matrix.relative_error for matrix in self.matrices if matrix.relative_error is not None]
        return sum(errors) / len(errors) if errors else None

    def facts(self) -> dict[str, Any]:
        """All that depends on nothing but the inputs, JSON-able: no memory, no paths."""
        machine = ("path", "peak_memory_bytes", "peak_memory_added_bytes")
        facts = {name: value for name, value in asdict(self).items() if name not in machine}
        matrices = [asdict(one) | {"sparsity": one.sparsity} for one in self.matrices]
        totals = {name: getattr(self, name) for name in ("num_zeros", "num_pruned", "num_weights")}
        shares = {name: getattr(self, name) for name in ("sparsity", "model_sparsity", "mean_relative_error")}
        return {**facts, **totals, **shares, "matrices": matrices}

    def save(self, folder: Path) -> None:
        """Write `pruning.json`."""
        atomic_write(folder / PRUNING_FILE, json.dumps(self.facts(), indent=1) + "\n")
