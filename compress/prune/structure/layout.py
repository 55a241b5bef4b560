"""How the units of a dimension lie in the axes of tensors, and what belongs together when one of them goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["Axis", "Dimension", "Group", "Side", "Site", "slices_of"]

Side: TypeAlias = Literal["in", "out"]
"""Whether a tensor reads the units of an axis (a matrix's inputs) or makes them (its outputs, a bias, a norm)."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """An axis of a tensor that changes with a dimension."""

    tensor: str
    """Name of a parameter or buffer."""
    axis: int
    length: int
    side: Side
    module: int
    """Where its module stands in the order of all modules."""

    @property
    def description(self) -> str:
        """For messages."""
        return f"{self.tensor} (axis {self.axis}, {self.length})"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis of a tensor, and where in it each unit's entries lie.

    The axis is made of segments one after the other, each with `block` entries of every unit in the units' order:
    `(64,)` is heads of 64, `(64, 64, 64)` queries, keys and values of heads of 64 in one matrix.
    """

    site: Site
    blocks: tuple[int, ...]

    def indices(self, units: Tensor, num_units: int) -> Tensor:
        """Entries of some units, segment by segment.

        Args:
            units: int64 [kept].
            num_units: Units in the whole axis.

        Returns:
            int64 [kept × entries of a unit].
        """
        parts, start = [], 0
        for block in self.blocks:
            parts.append((start + units[:, None] * block + torch.arange(block)).flatten())
            start += num_units * block
        return torch.cat(parts)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Axes whose units are the same ones: they leave together, and independently of other groups."""

    axes: tuple[Axis, ...]
    num_units: int

    @property
    def name(self) -> str:
        """The tensor that reads the units, or makes them when none does."""
        return next((axis.site.tensor for axis in self.axes if axis.site.side == "in"), self.axes[0].site.tensor)


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A width of the model that its configuration sets.

    Attributes:
        name: `ffn`, `heads`, `hidden` or `channels`.
        settings: Values of the configuration that shrink together, the one that users speak of first.
        fixed: Values that the configuration must state so that they stay as they are: the size of a head.
        step: Sizes are multiples of it.
        is_exact: Whether what is left computes the same as the whole with the other units at zero. Where a norm
            spans the width it does not: the norm sees how many units there are.
        groups: All that shrinks with it.
    """

    name: str
    settings: Mapping[str, int]
    fixed: Mapping[str, int]
    step: int
    is_exact: bool = True
    groups: tuple[Group, ...] = ()

    @property
    def label(self) -> str:
        """Name in the configuration."""
        return next(iter(self.settings))

    @property
    def size(self) -> int:
        """How wide it is."""
        return next(iter(self.settings.values()))

    def settings_at(self, size: int) -> dict[str, int]:
        """What the configuration says at another size."""
        return dict(self.fixed) | {name: value * size // self.size for name, value in self.settings.items()}

    def units_at(self, group: Group, size: int) -> int:
        """Units that stay in a group at another size."""
        return group.num_units * size // self.size


def slices_of(dimension: Dimension, kept: Sequence[Tensor]) -> dict[str, list[tuple[int, Tensor]]]:
    """Tensor → its axes that are cut, with the entries that stay.

    Args:
        dimension: With its groups.
        kept: Units that stay, int64 [kept], one tensor a group.
    """
    found: dict[str, list[tuple[int, Tensor]]] = {}
    for group, units in zip(dimension.groups, kept, strict=True):
        for axis in group.axes:
            entries = axis.indices(units, group.num_units)
            found.setdefault(axis.site.tensor, []).append((axis.site.axis, entries))
    return found
