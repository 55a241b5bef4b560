"""Arrays against a signature: what every engine checks before its native code runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from edgesmith.artifact import TensorSpec
from edgesmith.errors import UsageError

__all__ = ["check_inputs", "describe"]


def describe(spec: TensorSpec) -> str:
    """A tensor's dtype and shape in one word.

    >>> describe(TensorSpec(name="input_ids", dtype="int64", shape=("batch", 128)))
    'int64[batch, 128]'
    """
    return f"{spec.dtype}[{', '.join(map(str, spec.shape))}]"


def check_inputs(specs: Sequence[TensorSpec], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Check that arrays are exactly what an engine takes.

    Args:
        specs: The engine's inputs. Axes of the same name must have the same length.
        arrays: By name.

    Raises:
        UsageError: An array is missing, unknown, empty, or of the wrong dtype or shape.
    """
    if len(arrays) != len(specs):
        for name in arrays:
            if all(spec.name != name for spec in specs):
                takes = ", ".join(spec.name for spec in specs)
                raise UsageError(f"the model has no input {name!r}", mend=f"It takes {takes}.")
    lengths: dict[str, tuple[int, str]] = {}
    for spec in specs:
        if spec.name not in arrays:
            raise UsageError(f"the input {spec.name!r} is missing", mend=f"Give it as {describe(spec)}.")
        array = arrays[spec.name]
        shape = list(array.shape)
        if array.dtype.name != spec.dtype and not (spec.dtype == "string" and array.dtype.kind in "OU"):
            raise UsageError(
                f"the input {spec.name!r} is {array.dtype.name}{shape}", mend=f"Give it as {describe(spec)}."
            )
        fits = len(shape) == len(spec.shape) and all(
            isinstance(axis, str) or axis == length for axis, length in zip(spec.shape, shape, strict=True)
        )
        if not fits:
            raise UsageError(f"the input {spec.name!r} has shape {shape}", mend=f"Give it as {describe(spec)}.")
        for axis, length in zip(spec.shape, shape, strict=True):
            if length == 0:
                raise UsageError(f"the input {spec.name!r} has shape {shape}: it is empty")
            first, owner = lengths.setdefault(str(axis), (length, spec.name))
            if first != length:
                raise UsageError(
                    f"the axis {axis!r} has length {length} in {spec.name!r}, but {first} in {owner!r}",
                    mend="Pad all inputs to one shape.",
                )
