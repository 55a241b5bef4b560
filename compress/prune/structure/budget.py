"""Choose the sizes of several dimensions within a budget, where the outputs change least."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from compress.prune.batches import Batch
from compress.prune.structure.cost import count_macs, count_matrix_macs, count_params
from compress.prune.structure.layout import Dimension
from compress.prune.structure.probe import tensors_of
from compress.prune.structure.sizes import unit_of
from edgesmith.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Budget", "CostModel", "Sizes", "choose_sizes", "levels_of"]

Sizes = tuple[int, ...]
"""One size a dimension."""

_NUM_LEVELS = 8
_MOST_COMBINATIONS = 50_000


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the smaller model may cost; None where it does not matter."""

    max_params: int | None = None
    max_macs: int | None = None
    max_latency: float | None = None
    """Share of the full model's time."""

    def allows(self, costs: CostModel, sizes: Sizes) -> bool:
        """Whether a model of these sizes is within it."""
        return (
            (self.max_params is None or costs.params(sizes) <= self.max_params)
            and (self.max_macs is None or costs.macs(sizes) <= self.max_macs)
            and (self.max_latency is None or costs.latency(sizes) <= self.max_latency)
        )


class CostModel:
    """Exact parameters and multiply-accumulates, and estimated time, for any sizes of the dimensions.

    Args:
        model: The full model.
        dimensions: Proven.
        row: Inputs of one row, which multiply-accumulates are counted for.
        latencies: For each dimension size → share of the full model's time with only that changed; shares of
            several are multiplied.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        dimensions: Sequence[Dimension],
        row: Batch,
        latencies: Sequence[Mapping[int, float]] = (),
    ) -> None:
        self._latencies = latencies
        self._dimensions = dimensions
        tensors = tensors_of(model)
        names = {id(value): name for name, value in tensors.items()}
        state = model.state_dict(keep_vars=True)
        owners: dict[str, tuple[int, ...]] = dict.fromkeys(tensors, ())
        for index, dimension in enumerate(dimensions):
            for axis in (axis for group in dimension.groups for axis in group.axes):
                owners[axis.site.tensor] = (*owners[axis.site.tensor], index)
        self._params: dict[tuple[int, ...], int] = {}
        for name, value in tensors.items():
            if isinstance(value, nn.Parameter):
                self._params[owners[name]] = self._params.get(owners[name], 0) + value.numel()
        self._macs: dict[tuple[int, ...], int] = {}
        matrices = count_matrix_macs(model, row)
        for alias, macs in matrices.items():
            key = owners[names[id(state[alias])]]
            self._macs[key] = self._macs.get(key, 0) + macs
        # What is left are attention's products, which grow with the number of heads.
        heads = tuple(i for i, one in enumerate(dimensions) if "num_attention_heads" in one.settings)
        self._macs[heads] = self._macs.get(heads, 0) + count_macs(model, row) - sum(matrices.values())
        assert self.params(self.full) == count_params(model)

    @property
    def full(self) -> Sizes:
        """The sizes as they are."""
        return tuple(dimension.size for dimension in self._dimensions)

    def params(self, sizes: Sizes) -> int:
        """Parameters of a model of these sizes."""
        return self._total(self._params, sizes)

    def macs(self, sizes: Sizes) -> int:
        """Multiply-accumulates of one row in a model of these sizes."""
        return self._total(self._macs, sizes)

    def latency(self, sizes: Sizes) -> float:
        """Estimated share of the full model's time."""
        return math.prod(table[size] for table, size in zip(self._latencies, sizes, strict=True))

    def _total(self, parts: Mapping[tuple[int, ...], int], sizes: Sizes) -> int:
        total = 0
        for owners, count in parts.items():
            for index in owners:  # divides without rest: `size_of` keeps to the dimension's step
                count = count * sizes[index] // self._dimensions[index].size
            total += count
        return total


def levels_of(dimension: Dimension, multiple_of: int, num_dimensions: int) -> list[int]:
    """The sizes that are tried, the full one first, evenly down to about an eighth."""
    count = min(_NUM_LEVELS, int(_MOST_COMBINATIONS ** (1 / num_dimensions)))
    unit = unit_of(dimension, multiple_of)
    sizes = [math.ceil(dimension.size * level / count / unit) * unit for level in range(count, 0, -1)]
    return list(dict.fromkeys([dimension.size, *(size for size in sizes if size < dimension.size)]))


def choose_sizes(
    budget: Budget,
    costs: CostModel,
    levels: Sequence[Sequence[int]],
    loss_of: Callable[[int, int], float],
) -> Sizes:
    """Find the sizes within the budget whose losses add up to least, by trying all combinations.

    Args:
        budget: What it may cost.
        costs: Of any sizes.
        levels: For each dimension the sizes to try.
        loss_of: Index of a dimension and a size → how much the outputs change when only that shrinks; asked once
            for each.

    Raises:
        UsageError: no combination is within the budget; the message says how small it gets.
    """
    combinations = [sizes for sizes in itertools.product(*levels) if budget.allows(costs, sizes)]
    if not combinations:
        raise _unreachable(budget, costs, tuple(min(sizes) for sizes in levels))
    losses = [{size: loss_of(index, size) for size in sizes} for index, sizes in enumerate(levels)]
    return min(
        combinations,
        key=lambda sizes: (sum(table[size] for table, size in zip(losses, sizes, strict=True)), costs.macs(sizes)),
    )


def _unreachable(budget: Budget, costs: CostModel, smallest: Sizes) -> UsageError:
    reached = []
    if budget.max_params is not None:
        reached.append(f"{costs.params(smallest):,} parameters (allowed {budget.max_params:,})")
    if budget.max_macs is not None:
        reached.append(f"{costs.macs(smallest):,} MACs (allowed {budget.max_macs:,})")
    if budget.max_latency is not None:
        reached.append(f"{costs.latency(smallest):.2f} of the time (allowed {budget.max_latency:g})")
    return UsageError(
        f"the budget cannot be reached: with every width at its smallest there are {', '.join(reached)}",
        mend="Allow more, leave out layers with num_layers, or trim the vocabulary first.",
    )
