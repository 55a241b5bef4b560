"""What one rendering of a chat template may do: it pays for its work, and for texts before they are made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from itertools import chain
from typing import Any

from jinja2.exceptions import SecurityError

__all__ = [
    "BUDGET", "STEPS_PER_CALL", "Budget", "check_filter", "check_operands", "check_text_method", "check_widths",
    "counted",
]  # fmt: skip

CHARACTERS_PER_STEP = 64
STEPS_PER_CALL = 16  # what one costs, compared with an element of a list
MAX_WIDTH = 1000  # of a padding or an indentation
MAX_INTEGER_BITS = 4096

_SIZED_FILTERS = frozenset({"batch", "center", "indent", "round", "slice", "tojson", "truncate"})
_PADDING = frozenset({"center", "ljust", "rjust", "zfill"})


class Budget:
    """What one rendering may do.

    Args:
        steps: One is a turn of a loop, an element of a list that is built or walked, or 64 characters; a call is 16.
    """

    def __init__(self, steps: int) -> None:
        self.steps = self.left = steps

    def spend(self, steps: int) -> None:
        """Pay, or stop the rendering.

        Raises:
            SecurityError: nothing is left.
        """
        self.left -= steps
        if self.left < 0:
            raise SecurityError(f"it does more than {self.steps:,} steps of work")

    def spend_characters(self, count: int) -> None:
        """Pay for a text, if possible before it is made."""
        self.spend(1 + count // CHARACTERS_PER_STEP)

    def spend_value(self, value: Any) -> Any:
        """Pay for all that a value holds, as often as it is held, and give it back."""
        kind = type(value)
        if kind in (bool, int, float, type(None)):
            self.spend(1)
        elif isinstance(value, str):
            self.spend_characters(len(value))
        elif isinstance(value, list | tuple | dict):
            self._spend_nested(value)
        else:
            self.spend(1 + (len(value) if isinstance(value, range) else 0))
        return value

    def _spend_nested(self, value: Any) -> None:
        stack = [value]
        while stack:
            value = stack.pop()
            if isinstance(value, list | tuple):
                self.spend(1 + len(value))
                stack.extend(one for one in value if isinstance(one, str | list | tuple | dict))
            elif isinstance(value, dict):
                self.spend(1 + 2 * len(value))
                both = chain(value.keys(), value.values())
                stack.extend(one for one in both if isinstance(one, str | list | tuple | dict))
            else:
                self.spend_characters(len(value))


BUDGET: ContextVar[Budget] = ContextVar("BUDGET")
"""Of the rendering that runs."""


def counted(budget: Budget, values: Iterator[Any]) -> Iterator[Any]:
    """Pay for each value that a generator gives."""
    for value in values:
        budget.spend(1)
        yield value


def check_filter(budget: Budget, name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Refuse arguments that make much of little; gives the value, a list where it was a generator."""
    settings = (*args, *kwargs.values())
    if name in _SIZED_FILTERS:
        longest = max((len(one) if isinstance(one, str) else one for one in settings if isinstance(one, int | str)),
                      default=0)  # fmt: skip
        _check_width(longest if name != "truncate" else 0)
        if name == "indent" and isinstance(value, str):
            budget.spend_characters((1 + value.count("\n")) * max(4, longest))
        if name == "tojson" and longest > 16:
            raise SecurityError(f"it indents by {longest}")
    elif name == "format":
        _check_percent(value, settings)
    elif name == "replace" and len(args) >= 2:
        _check_replace(budget, str(value), args)
    elif name == "sum" and any(isinstance(one, list | tuple | dict) for one in settings):
        raise SecurityError("it sums up lists")
    elif name == "join" and settings:
        if isinstance(value, Iterator):
            value = budget.spend_value(list(value))
        if hasattr(value, "__len__"):
            budget.spend_characters(len(value) * len(str(settings[0])))
    return value


def check_text_method(budget: Budget, text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse arguments of a text's method that make much of little; gives them, a list where one was a generator."""
    if name in _PADDING and args and isinstance(args[0], int):
        _check_width(args[0])
    elif name == "replace" and len(args) >= 2:
        _check_replace(budget, text, args)
    elif name == "join" and args:
        parts: Iterable[Any] = counted(budget, args[0]) if isinstance(args[0], Iterator) else args[0]
        listed = budget.spend_value(list(parts))
        budget.spend_characters(len(listed) * len(text))
        return (listed, *args[1:])
    return args


def _check_replace(budget: Budget, text: str, args: tuple[Any, ...]) -> None:
    budget.spend_characters(len(text) + text.count(str(args[0])) * len(str(args[1])))


def check_operands(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Refuse what an operator would make much of."""
    if operator == "%":
        if isinstance(left, str):
            _check_percent(left, right if isinstance(right, tuple) else (right,))
            budget.spend_value(right)
    elif operator == "+":
        budget.spend_value(left)
        budget.spend_value(right)
    elif isinstance(left, int) and isinstance(right, int):
        _check_integers(operator, left, right)
    elif operator == "*":
        for values, count in ((left, right), (right, left)):
            if isinstance(count, int) and isinstance(values, str | list | tuple):
                before = budget.left
                budget.spend_value(values)
                budget.spend((before - budget.left) * max(0, count) if len(values) * count > CHARACTERS_PER_STEP else 1)


def _check_integers(operator: str, left: int, right: int) -> None:
    bits = left.bit_length() * max(1, right) if operator == "**" else left.bit_length() + right.bit_length()
    if bits > MAX_INTEGER_BITS:
        raise SecurityError("it computes with absurd numbers")


def _check_percent(text: object, values: Iterable[Any]) -> None:
    """Refuse `%` formats with wide paddings."""
    for found in re.finditer(r"%(?:\([^)]*\))?([^a-zA-Z%]*)", str(text)):
        check_widths(found[1])
        if "*" in found[1]:
            _check_width(max((value for value in values if isinstance(value, int)), default=0))


def check_widths(layout: str) -> None:
    """Refuse a format with wide paddings."""
    for number in re.findall(r"\d+", layout):
        _check_width(int(number[:9]))


def _check_width(width: int) -> None:
    if width > MAX_WIDTH:
        raise SecurityError(f"it fills up to {width:,} characters, the limit is {MAX_WIDTH:,}")
