"""Refuse figures of a damaged file before anything computes with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["check_numbers"]


def check_numbers(value: Mapping[str, Any], names: Iterable[str], *, optional: Iterable[str] = ()) -> None:
    """Look whether entries are finite numbers of at least 0.

    Args:
        value: As read from JSON, which may hold NaN.
        names: Entries that must be there.
        optional: Entries that must be there, and may be null.

    Raises:
        KeyError: An entry is missing.
        TypeError: It is not a number.
        ValueError: It is negative or not finite.
    """
    may_be_null = set(optional)
    for name in (*names, *may_be_null):
        figure = value[name]
        if figure is None and name in may_be_null:
            continue
        if not isinstance(figure, int | float) or isinstance(figure, bool):
            raise TypeError(f"{name} is {figure!r}")
        if not 0 <= figure < math.inf:
            raise ValueError(f"{name} is {figure!r}")
