"""The fields of a request, read one by one with errors that name them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from serve.protocols.openai.errors import ParameterError

__all__ = ["Fields", "kind_of"]

_KINDS: Mapping[type, str] = {
    bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "a list", dict: "an object",
    type(None): "null",
}  # fmt: skip


def kind_of(value: Any) -> str:
    """A value's type, as JSON names it."""
    return _KINDS.get(type(value), type(value).__name__)


class Fields:
    """A request's JSON object. A field that is null is as good as none, as OpenAI's reference has it.

    Args:
        body: What the body was parsed to.
        known: Fields that this route reads.
        ignored: Fields of OpenAI's reference that change nothing here.

    Raises:
        ParameterError: It is no object, or has a field that is neither known nor ignored.
    """

    def __init__(self, body: Any, *, known: Collection[str], ignored: Collection[str]) -> None:
        if not isinstance(body, dict):
            raise ParameterError(f"the body is {kind_of(body)}, not an object", param="body")
        for name in body:
            if name not in known and name not in ignored:
                raise ParameterError(
                    f"Unrecognized request argument supplied: {name[:100]}", param=name[:100], code="unknown_parameter"
                )
        self.values: dict[str, Any] = body

    def get(self, name: str) -> Any:
        """A field's value as it came; None where there is none."""
        return self.values.get(name)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number in a range, bounds included."""
        value = self.values.get(name)
        if value is None:
            return default
        if type(value) not in (int, float):
            raise wrong_type(name, value, "a number")
        if not math.isfinite(value) or not low <= value <= high:
            raise ParameterError(f"{name} is {value}; it must be from {low:g} to {high:g}", param=name)
        return float(value)

    def whole(self, name: str, low: int, high: int) -> int | None:
        """A whole number in a range, bounds included; None where there is none."""
        value = self.values.get(name)
        if value is None:
            return None
        if type(value) is not int:
            raise wrong_type(name, value, "an integer")
        if not low <= value <= high:
            raise ParameterError(f"{name} is {value}; it must be from {low} to {high}", param=name)
        return value

    def flag(self, name: str) -> bool:
        """A boolean, false where there is none."""
        value = self.values.get(name)
        if value is not None and type(value) is not bool:
            raise wrong_type(name, value, "a boolean")
        return bool(value)

    def text(self, name: str) -> str | None:
        """A string; None where there is none."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise wrong_type(name, value, "a string")
        return value

    def model(self) -> tuple[str, str | None]:
        """Name and version of the model that is asked: `name` or `name:version`."""
        given = self.text("model")
        if not given:
            raise ParameterError("you must provide a model parameter", param="model", code="missing_parameter")
        name, _, version = given.partition(":")
        return name, version or None

    def refuse(self, names: Mapping[str, Collection[Any]], why: str) -> None:
        """Refuse fields whose values would be ignored.

        Args:
            names: Field → values that ask for nothing.
            why: After the field's name.
        """
        for name, harmless in names.items():
            value = self.values.get(name)
            if value is not None and value not in harmless:
                raise ParameterError(f"{name} {why}", param=name, code="unsupported_parameter")


def wrong_type(name: str, value: Any, wanted: str) -> ParameterError:
    """The error of a field of another type."""
    return ParameterError(
        f"Invalid type for '{name}': expected {wanted}, but got {kind_of(value)} instead.",
        param=name,
        code="invalid_type",
    )
