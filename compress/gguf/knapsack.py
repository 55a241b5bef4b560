"""Choose one option of each item so that the costs fit and the losses are least, for every budget at once.

The solution is exact where the costs have a divisor in common that is large enough for a table of 65,536 columns.
Elsewhere they are rounded up to multiples of a unit: a file of 3 GB may stay 1.5 MB below its budget, and what
rounding left over is spent step by step, each time on the best bargain, which need not be the best of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Frontier", "Option", "solve"]

_MOST_UNITS = 1 << 16


@dataclass(frozen=True, slots=True)
class Option:
    """One way to do something."""

    cost: int
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frontier:
    """The least loss of every budget, and the options that give it.

    Costs are counted in units. Where costs have a divisor in common that is large enough, it is the unit and the
    solution exact; otherwise costs are rounded up to a multiple of it, so that a budget is never exceeded.
    """

    items: Sequence[Sequence[Option]]
    unit: int
    least_cost: int
    """Of the cheapest options together."""
    losses: NDArray[np.float64]
    """Least loss for so many units beyond `least_cost`, of shape [U]; never rising."""
    units: tuple[tuple[int, ...], ...]
    """Units of each item's options beyond its cheapest."""
    chosen: NDArray[np.uint8]
    """Option of an item when so many units are left for it and those before it; of shape [N, U]."""

    def units_within(self, budget: int) -> int | None:
        """Units that a budget has room for; None if it is too small for the cheapest options."""
        if budget < self.least_cost:
            return None
        return min((budget - self.least_cost) // self.unit, len(self.losses) - 1)

    def options_within(self, budget: int) -> list[int] | None:
        """Number of the option that each item gets for a budget; None if it is too small."""
        units = self.units_within(budget)
        if units is None:
            return None
        chosen = self.options(units)
        left = budget - sum(options[number].cost for options, number in zip(self.items, chosen, strict=True))
        while (step := self._best_step(chosen, left)) is not None:
            item, number = step
            left -= self.items[item][number].cost - self.items[item][chosen[item]].cost
            chosen[item] = number
        return chosen

    def _best_step(self, chosen: Sequence[int], left: int) -> tuple[int, int] | None:
        """The change of one item that gains most for what it costs, of those that cost no more than is left."""
        best, best_rate = None, 0.0
        for item, options in enumerate(self.items):
            now = options[chosen[item]]
            for number, option in enumerate(options):
                cost, gain = option.cost - now.cost, now.loss - option.loss
                if cost <= left and gain > 0 and (rate := gain / max(cost, 1)) > best_rate:
                    best, best_rate = (item, number), rate
        return best

    def units_for_loss(self, loss: float) -> int | None:
        """Fewest units whose loss is no greater; None if even the best options lose more."""
        units = int(np.searchsorted(-self.losses, -loss))
        return units if units < len(self.losses) else None

    def options(self, units: int) -> list[int]:
        """Number of the option that each item gets."""
        chosen = []
        for row_U, costs_K in zip(self.chosen[::-1], self.units[::-1], strict=True):
            chosen.append(int(row_U[units]))
            units -= costs_K[chosen[-1]]
        return chosen[::-1]


def solve(items: Sequence[Sequence[Option]], *, most_units: int = _MOST_UNITS) -> Frontier:
    """Solve for all budgets by dynamic programming.

    Args:
        items: The options of each: 1 to 256, in any order, with costs of zero or more.
        most_units: Width of the table.
    """
    cheapest = [min(option.cost for option in options) for options in items]
    beyond = [[option.cost - least for option in options] for options, least in zip(items, cheapest, strict=True)]
    most = sum(max(costs) for costs in beyond)
    unit = max(math.gcd(*(cost for costs in beyond for cost in costs)), 1)
    unit *= max(-(-most // (unit * most_units)), 1)
    units = tuple(tuple(-(-cost // unit) for cost in costs) for costs in beyond)
    width = sum(max(costs) for costs in units) + 1
    losses_U = np.zeros(width)
    chosen_NU = np.zeros((len(items), width), dtype=np.uint8)
    for options, costs, chosen_U in zip(items, units, chosen_NU, strict=True):
        before_U, losses_U = losses_U, np.full(width, np.inf)
        for number, (option, cost) in enumerate(zip(options, costs, strict=True)):
            reached_U = before_U[: width - cost] + option.loss
            better_U = reached_U < losses_U[cost:]
            losses_U[cost:][better_U] = reached_U[better_U]
            chosen_U[cost:][better_U] = number
    return Frontier(items=items, unit=unit, least_cost=sum(cheapest), losses=losses_U, units=units, chosen=chosen_NU)
