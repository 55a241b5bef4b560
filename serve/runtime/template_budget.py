"""What one rendering of a chat template may do: it pays for its work, and for texts before they are made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
MAX_INTEGER_BITS = 256
MAX_NUMBER_CHARACTERS = 320  # of the largest one that `%f` writes

_SIZED_FILTERS = frozenset({"batch", "center", "indent", "round", "slice", "tojson", "truncate"})
_LISTING_FILTERS = frozenset({"batch", "groupby", "list", "slice", "sort", "unique"})
_LINE_ENDS = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_WORD_ENDS = re.compile(r"\s+")
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
            if kind is int and value.bit_length() > MAX_INTEGER_BITS:
                raise SecurityError("it computes with absurd numbers")
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
        _check_percent(budget, value, kwargs or args)
    elif name == "replace":
        _check_replace(budget, str(value), [*args, *(kwargs[key] for key in ("old", "new") if key in kwargs)])
    elif name == "sum" and any(isinstance(one, list | tuple | dict) for one in settings):
        raise SecurityError("it sums up lists")
    elif name == "join" and settings:
        if isinstance(value, Iterator):
            value = budget.spend_value(list(value))
        if hasattr(value, "__len__"):
            budget.spend_characters(len(value) * max(len(str(one)) for one in settings))
    if name in _LISTING_FILTERS and isinstance(value, str):
        budget.spend(len(value))
    return value


def check_text_method(budget: Budget, text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse arguments of a text's method that make much of little; gives them, a list where one was a generator."""
    if name in _PADDING and args and isinstance(args[0], int):
        _check_width(args[0])
    elif name == "replace":
        _check_replace(budget, text, args)
    elif name in ("split", "rsplit", "splitlines"):
        budget.spend(1 + _count_parts(text, name, args))
    elif name == "join" and args:
        parts: Iterable[Any] = counted(budget, args[0]) if isinstance(args[0], Iterator) else args[0]
        listed = budget.spend_value(list(parts))
        budget.spend_characters(len(listed) * len(text))
        return (listed, *args[1:])
    return args


def _check_replace(budget: Budget, text: str, args: Sequence[Any]) -> None:
    if len(args) >= 2:
        budget.spend_characters(len(text) + text.count(str(args[0])) * len(str(args[1])))


def _count_parts(text: str, name: str, args: Sequence[Any]) -> int:
    if name == "splitlines":
        return sum(1 for _ in _LINE_ENDS.finditer(text))
    if args and isinstance(args[0], str) and args[0]:
        return text.count(args[0])
    return sum(1 for _ in _WORD_ENDS.finditer(text))


def check_operands(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Refuse what an operator would make much of."""
    if operator == "%":
        if isinstance(left, str):
            _check_percent(budget, left, right if isinstance(right, tuple | dict) else (right,))
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


def _check_percent(budget: Budget, text: object, values: Mapping[Any, Any] | Sequence[Any]) -> None:
    """Pay for what `%` writes, and refuse wide paddings.

    Values by position are written once each; one that is named, as often as the text names it.
    """
    text = str(text)
    if re.search(r"%\([^)]*\(", text):
        raise SecurityError("it formats with brackets in the name of a value")
    given = list(values.values()) if isinstance(values, Mapping) else values
    widest = max((value for value in given if isinstance(value, int)), default=0)
    before = budget.left
    budget.spend_value(tuple(given))
    dearest = before - budget.left
    for found in re.finditer(r"%(\([^)]*\))?([^a-zA-Z%]*)", text):
        width = check_widths(found[2])
        if "*" in found[2]:
            _check_width(widest)
            width += 2 * max(0, widest)
        budget.spend_characters(MAX_NUMBER_CHARACTERS + width)
        if found[1]:
            value = values.get(found[1][1:-1]) if isinstance(values, Mapping) else None
            budget.spend_value(value)
        elif isinstance(values, Mapping):
            budget.spend(dearest)  # all of it is shown


def check_widths(layout: str) -> int:
    """Refuse a format with wide paddings; the characters that it fills at most."""
    widths = [int(number[:9]) for number in re.findall(r"\d+", layout)]
    for width in widths:
        _check_width(width)
    return sum(widths)


def _check_width(width: int) -> None:
    if width > MAX_WIDTH:
        raise SecurityError(f"it fills up to {width:,} characters, the limit is {MAX_WIDTH:,}")
