"""How many weights of a matrix go: a share of all, or a number out of every few in a row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from edgesmith.errors import UsageError
from edgesmith.recipe import PruneOptions

__all__ = ["Pattern", "Selection", "Share", "check_fits", "selection_of"]


@dataclass(frozen=True)
class Share:
    """A share of the weights becomes zero: the integer part of share × number of weights.

    >>> Share(Fraction("0.29")).num_zeros(100), Share(Fraction("0.5")).num_zeros(7)
    (29, 3)
    """

    sparsity: Fraction
    """As the decimal number that was written, so that 0.29 of 100 is 29 and not 28."""

    def num_zeros(self, num_weights: int) -> int:
        """How many of so many weights become zero."""
        return math.floor(self.sparsity * num_weights)

    def __str__(self) -> str:
        return f"sparsity {float(self.sparsity):g}"


@dataclass(frozen=True)
class Pattern:
    """Of every `group` weights in a row of a matrix, `num_kept` stay."""

    num_kept: int
    group: int

    @property
    def num_zeros(self) -> int:
        """How many of every group become zero."""
        return self.group - self.num_kept

    def __str__(self) -> str:
        return f"pattern {self.num_kept}:{self.group}"


Selection: TypeAlias = Share | Pattern


def selection_of(options: PruneOptions) -> Selection:
    """Read what a step that prunes single weights asks for."""
    if options.pattern is None:
        assert options.sparsity is not None  # as the options have checked
        return Share(Fraction(repr(options.sparsity)))
    num_kept, group = map(int, options.pattern.split(":"))
    return Pattern(num_kept, group)


def check_fits(name: str, num_outputs: int, num_inputs: int, selection: Selection) -> None:
    """Check that a matrix can be pruned as asked: something goes, and something stays in every row.

    Args:
        name: For messages.
        num_outputs: Rows: outputs of the layer.
        num_inputs: Columns.
        selection: What is asked for.

    Raises:
        UsageError: its inputs do not divide into groups, nothing would go, or rows would be left empty.
    """
    total = num_outputs * num_inputs
    match selection:
        case Pattern(group=group) if num_inputs % group:
            raise UsageError(
                f"{name}: its {num_inputs} inputs do not divide into groups of {group}",
                mend=f"Choose another pattern than {selection.num_kept}:{group}, or a sparsity.",
            )
        case Share() if selection.num_zeros(num_inputs) == 0:
            raise UsageError(
                f"{name}: {selection} of its {num_inputs} inputs is no whole weight, so nothing would go",
                mend=f"Ask for at least {1 / num_inputs:.2g}.",
            )
        case Share() if (left := total - selection.num_zeros(total)) < num_outputs:
            raise UsageError(
                f"{name}: {selection} leaves {left} of {total} weights, fewer than its {num_outputs} rows, so rows "
                "would be empty",
                mend=f"Ask for at most {math.floor(1000 * (1 - 1 / num_inputs)) / 1000:g}.",
            )
