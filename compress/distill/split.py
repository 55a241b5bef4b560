"""Which rows are held out to choose the best weights."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from compress.distill.generation import lot
from edgesmith.errors import DataError

__all__ = ["MIN_TRAINED", "MIN_VALIDATED", "hold_out"]

MIN_TRAINED = 8
MIN_VALIDATED = 2


def hold_out(
    groups: Sequence[Hashable], share: float, *, seed: int, most: int, what: str = "rows"
) -> tuple[list[int], list[int]]:
    """Split rows into those that are trained on and those that are held out, each group alike.

    Args:
        groups: The group of each row, such as its label; rows of None are never held out by preference, but form a
            group as others do.
        share: Of the rows that are held out.
        seed: Of the choice.
        most: Rows held out at most.
        what: The rows are, for messages.

    Returns:
        Numbers of the trained and of the held-out rows, both ascending.

    Raises:
        DataError: too few rows for either.

    >>> hold_out(["a", "a", "b", "b"] * 4, 0.25, seed=0, most=100)[1]
    [4, 6, 9, 15]
    """
    num = min(most, max(MIN_VALIDATED, round(share * len(groups))))
    if len(groups) - num < MIN_TRAINED:
        raise DataError(
            f"{len(groups)} {what} are too few to train on: {num} are held out to choose the best weights, and at "
            f"least {MIN_TRAINED} are trained on",
            mend=f"Give at least {MIN_TRAINED + MIN_VALIDATED} {what}; thousands are better.",
        )
    names = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    order = sorted(range(len(groups)), key=lambda row: (names[groups[row]], lot(seed, row)))
    held = {order[(2 * index + 1) * len(groups) // (2 * num)] for index in range(num)}  # evenly over the groups
    return [row for row in range(len(groups)) if row not in held], sorted(held)
