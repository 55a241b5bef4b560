"""Values of a row's columns, checked."""

from __future__ import annotations

import math
from contextlib import suppress

from edgesmith.data import Row
from edgesmith.errors import DataError

__all__ = ["read_number", "read_text"]


def _value(row: Row, column: str, role: str) -> object:
    if column not in row.values:
        columns = ", ".join(map(repr, row.values)) or "none"
        raise DataError(
            f"{row.place}: has no column {column!r}; it has {columns}",
            mend=f"Add the column, or map `{role}` to the column that has it.",
        )
    return row.values[column]


def read_text(row: Row, column: str, role: str) -> str:
    """The text in a column.

    Raises:
        DataError: The column is missing, is no string, or holds something that is not Unicode text.
    """
    value = _value(row, column, role)
    if not isinstance(value, str):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise DataError(f"{row.place}: {column!r} is {kind}, not a text", mend="Give a string, or leave the row out.")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise DataError(
            f"{row.place}: {column!r} holds a lone surrogate, which is no character",
            mend="The text was cut inside a character or decoded wrongly: correct its source.",
        )
    return value


def read_number(row: Row, column: str, role: str) -> float:
    """The finite number in a column.

    Raises:
        DataError: The column is missing or holds no finite number.
    """
    value = _value(row, column, role)
    number = math.nan
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise DataError(f"{row.place}: {column!r} is {value!r}, not a finite number")
    return number
