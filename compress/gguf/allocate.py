"""Choose the type of every tensor for a budget, so that the predicted damage is least."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compress.gguf.knapsack import Frontier, Option, solve
from compress.gguf.sensitivity import FixedTensor, Sensitivity
from compress.gguf.types import FILE_TYPES
from edgesmith.errors import UsageError

__all__ = ["Allocation", "Allocator", "Budget", "ChosenTensor"]

# What the quantizer adds to the header: versions, its own type, where the importance matrix is from.
_HEADER_GROWTH_BYTES = 512
# Bytes that a budget may lose where its decimal fraction has no exact binary one.
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What must not be exceeded: one of the three.

    Raises:
        UsageError: none or several are given, or one is not above zero.
    """

    bits_per_weight: float | None = None
    """Of all tensors together, vectors included."""
    max_mb: float | None = None
    """Size of the file, in 10⁶ bytes."""
    max_mean_kld: float | None = None
    """Mean KL divergence per token from the unquantized model, in nats."""

    def __post_init__(self) -> None:
        given = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            raise UsageError(
                f"a budget is one figure, not {' and '.join(given) or 'none'}",
                mend="Give bits_per_weight, max_mb or max_mean_kld.",
            )
        for name, value in given.items():
            if not 0 < value < float("inf"):
                raise UsageError(f"{name} is {value:g}", mend="Give a number above zero.")

    def limit_bytes(self, num_values: int) -> int | None:
        """Bytes of the file (`max_mb`) or of its tensors (`bits_per_weight`); None for a budget of divergence.

        Args:
            num_values: Of the whole model.
        """
        if self.max_mb is not None:
            return math.floor(self.max_mb * 1e6 + _ROUNDING)
        if self.bits_per_weight is not None:
            return math.floor(self.bits_per_weight * num_values / 8 + _ROUNDING)
        return None

    def __str__(self) -> str:
        if self.bits_per_weight is not None:
            return f"{self.bits_per_weight:g} bits per weight"
        return f"{self.max_mb:g} MB" if self.max_mb is not None else f"mean KLD {self.max_mean_kld:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenTensor:
    """What a tensor gets."""

    name: str
    type: str
    num_values: int
    size_bytes: int
    damage: float | None
    """Predicted mean KL divergence per token, in nats; None: there was no choice."""
    why: str = "chosen"
    """Or why there was no choice; see `FixedTensor`."""
    is_measured: bool = True
    """Or the damage is estimated from that of other tensors; see `TensorSensitivity`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The types, and what is expected of them."""

    budget: Budget
    tensors: tuple[ChosenTensor, ...]
    size_bytes: int
    """Predicted size of the file, a few hundred bytes too high at most."""
    predicted_kld: float
    """Mean per token, in nats."""

    @property
    def tensor_types(self) -> dict[str, str]:
        """Type by tensor, for `GgufQuantConfig`: of every tensor that can be quantized."""
        return {one.name: one.type for one in self.tensors if one.why not in ("vector", "never quantized")}

    @property
    def file_type(self) -> str:
        """The preset whose types take nearest as many bits, for the file's header."""
        bits = self.chosen_bits_per_weight
        presets = (one for one in FILE_TYPES.values() if not one.needs_imatrix and one.name.startswith("Q"))
        return min(presets, key=lambda one: abs(one.bits_per_weight - bits)).name

    @property
    def bits_per_weight(self) -> float:
        """Of all tensors together."""
        return _bits(self.tensors)

    @property
    def chosen_bits_per_weight(self) -> float:
        """Of the tensors that were chosen for."""
        return _bits(one for one in self.tensors if one.why == "chosen")

    @property
    def not_measured(self) -> tuple[str, ...]:
        """Matrices that no gradient is known for: chosen for by an estimate, or kept at eight bits."""
        return tuple(one.name for one in self.tensors if one.why == "not measured" or not one.is_measured)

    def summary(self) -> str:
        """One line."""
        counts = Counter(one.type for one in self.tensors if one.why != "vector")
        types = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        return (
            f"{self.budget}: {self.size_bytes / 1e6:.1f} MB, {self.bits_per_weight:.2f} bits per weight, "
            f"predicted mean KLD {self.predicted_kld:.4f} ({types})"
        )


class Allocator:
    """Solves once, and allocates for any number of budgets.

    Args:
        sensitivity: What each tensor costs in each type.
    """

    def __init__(self, sensitivity: Sensitivity) -> None:
        self._table = sensitivity
        items = [[Option(self._padded(one.size_bytes), one.damage) for one in tensor.choices]
                 for tensor in sensitivity.tensors]  # fmt: skip
        self._frontier: Frontier = solve(items)
        self._rest = (
            sensitivity.header_bytes
            + _HEADER_GROWTH_BYTES
            + sum(self._padded(one.size_bytes) for one in sensitivity.fixed)
        )

    def allocate(self, budget: Budget, *, scale: float = 1.0, reserve_bytes: int = 0) -> Allocation:
        """Choose for a budget.

        Args:
            budget: What must not be exceeded.
            scale: Measured over predicted divergence of an earlier choice, for a budget of divergence.
            reserve_bytes: To stay below a budget of bytes by.

        Raises:
            UsageError: the budget is too small; the message says what is the least.
        """
        limit_bytes = budget.limit_bytes(self._table.num_values)
        if budget.max_mean_kld is not None:
            units = self._frontier.units_for_loss(budget.max_mean_kld / scale)
            options = None if units is None else self._frontier.options(units)
            least = f"{self._frontier.losses[-1] * scale:.2g}, with {self._size(len(self._frontier.losses) - 1)}"
        else:
            assert limit_bytes is not None
            header_bytes = 0 if budget.max_mb is not None else self._table.header_bytes + _HEADER_GROWTH_BYTES
            options = self._frontier.options_within(limit_bytes + header_bytes - self._rest - reserve_bytes)
            least = self._size(0)
        if options is None:
            raise UsageError(
                f"{budget} is less than these types can reach: {least} is the least",
                mend="Allow more, or name more types to choose from.",
            )
        return self._describe(budget, options, scale)

    def _size(self, units: int) -> str:
        size_bytes = self._rest + self._frontier.least_cost + units * self._frontier.unit
        return f"{size_bytes / 1e6:.3f} MB"

    def _describe(self, budget: Budget, options: Sequence[int], scale: float) -> Allocation:
        tensors = [_not_chosen(one) for one in self._table.fixed]
        size_bytes, damage = self._rest, 0.0
        for tensor, number in zip(self._table.tensors, options, strict=True):
            choice = tensor.choices[number]
            size_bytes += self._padded(choice.size_bytes)
            damage += choice.damage
            tensors.append(
                ChosenTensor(
                    name=tensor.name,
                    type=choice.type,
                    num_values=tensor.num_values,
                    size_bytes=choice.size_bytes,
                    damage=choice.damage * scale,
                    is_measured=tensor.is_measured,
                )
            )
        return Allocation(
            budget=budget,
            tensors=tuple(tensors),
            size_bytes=size_bytes,
            predicted_kld=damage * scale,
        )

    def _padded(self, size_bytes: int) -> int:
        return size_bytes + -size_bytes % self._table.alignment


def _bits(tensors: Iterable[ChosenTensor]) -> float:
    pairs = [(one.size_bytes, one.num_values) for one in tensors]
    return sum(size for size, _ in pairs) * 8 / max(1, sum(values for _, values in pairs))


def _not_chosen(fixed: FixedTensor) -> ChosenTensor:
    return ChosenTensor(
        name=fixed.name,
        type=fixed.type,
        num_values=fixed.num_values,
        size_bytes=fixed.size_bytes,
        damage=None,
        why=fixed.why,
    )
