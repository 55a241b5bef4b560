"""Importance matrices: how large each input of each matrix is, on average over real text.

llama.cpp's quantizer weighs the error of a column by the mean square of what it is multiplied with.

Shapes: E experts (1 for plain matrices), I inputs (columns).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import UsageError

__all__ = ["Imatrix", "ImatrixEntry", "ImatrixSums"]


@dataclass(frozen=True, slots=True, eq=False)
class ImatrixEntry:
    """What was seen before one matrix."""

    sums: NDArray[np.float64]
    """Sums of squares over the tokens, of shape [E, I]."""
    counts: NDArray[np.float64]
    """Tokens that each expert saw, of shape [E]."""

    def __post_init__(self) -> None:
        sums, counts = self.sums, self.counts
        if sums.ndim != 2 or counts.shape != sums.shape[:1] or sums.size == 0:
            raise UsageError(f"sums of shape {sums.shape} and counts of shape {counts.shape} are no importance matrix")
        if not (np.isfinite(sums).all() and np.isfinite(counts).all()):
            raise UsageError("an importance matrix holds infinities or NaN", mend="Collect it again.")
        if sums.min() < 0 or counts.min() < 0:
            raise UsageError("an importance matrix holds negative sums of squares", mend="Collect it again.")

    def means(self) -> NDArray[np.float32]:
        """Mean squares, flattened: float32 of shape [E · I]; ones for an expert that saw no token."""
        counts = self.counts[:, None]
        means = np.where(counts > 0, self.sums / np.where(counts > 0, counts, 1), 1)
        return means.astype(np.float32).reshape(-1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Imatrix:
    """Entries by the names of GGUF tensors, and where they come from."""

    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...] = ()
    """Names of the texts."""
    num_windows: int = 0
    """Windows of text that were read; llama.cpp calls them chunks."""
    window_length: int = 0
    """Tokens of a window."""

    @property
    def num_tokens(self) -> int:
        """The most tokens that any matrix saw."""
        return int(max((entry.counts.max() for entry in self.entries.values()), default=0))


class ImatrixSums:
    """Adds up squares as windows of text go by, in double precision."""

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._counts: dict[str, NDArray[np.float64]] = {}

    def add(self, name: str, inputs_TI: NDArray[np.float32], *, expert: int = 0, num_experts: int = 1) -> None:
        """Take in what one matrix is multiplied with.

        Args:
            name: GGUF tensor.
            inputs_TI: Its inputs, of shape [tokens, inputs].
            expert: The one that these tokens went to.
            num_experts: Of the matrix.

        Raises:
            UsageError: they hold infinities or NaN.
        """
        squares_I = np.square(inputs_TI, dtype=np.float64).sum(axis=0)  # squares of float32 are exact in double
        self.add_squares(name, squares_I, len(inputs_TI), expert=expert, num_experts=num_experts)

    def add_squares(
        self, name: str, squares_I: NDArray[np.float64], num_tokens: int, *, expert: int = 0, num_experts: int = 1
    ) -> None:
        """Take in sums of squares over tokens; see `add`."""
        if not np.isfinite(squares_I).all():
            raise UsageError(
                f"the inputs of {name} are not finite on this text", mend="The model is broken, or overflows its type."
            )
        sums = self._sums.setdefault(name, np.zeros((num_experts, len(squares_I))))
        counts = self._counts.setdefault(name, np.zeros(num_experts))
        sums[expert] += squares_I
        counts[expert] += num_tokens

    def result(self, *, dataset: str = "", num_windows: int, window_length: int) -> Imatrix:
        """What was added up."""
        entries = {name: ImatrixEntry(self._sums[name], self._counts[name]) for name in sorted(self._sums)}
        return Imatrix(
            entries=MappingProxyType(entries),
            datasets=(dataset,) if dataset else (),
            num_windows=num_windows,
            window_length=window_length,
        )
