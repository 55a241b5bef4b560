"""From what was asked to the size of each dimension, with every misfit refused by its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from compress.prune.structure.layout import Dimension
from compress.prune.structure.probe import DIMENSIONS
from edgesmith.errors import UsageError

if TYPE_CHECKING:
    from edgesmith.recipe.steps import PruneOptions

__all__ = ["check_options", "name_of", "size_of", "unit_of", "wanted_for"]


def check_options(options: PruneOptions) -> None:
    """Refuse a request that asks for nothing, or for dimensions that do not exist.

    Raises:
        UsageError: it does.
    """
    if not (options.keep or options.num_layers or options.max_params or options.max_macs or options.max_latency):
        raise UsageError(
            "structured pruning was given no size to reach",
            mend="Say what stays, e.g. keep: {ffn: 0.5}, or a budget, e.g. max_macs: 0.5, or num_layers.",
        )
    for key in options.keep:
        if name_of(key) not in DIMENSIONS:
            raise UsageError(
                f"keep: there is no dimension {key!r}",
                mend=f"Use {', '.join(DIMENSIONS)}, or one stage of a CNN, such as hidden_sizes[0].",
            )


def name_of(key: str) -> str:
    """The dimension that a key of `keep` is about: `hidden_sizes[0]` and `embedding_size` are channels."""
    return "channels" if key.startswith("hidden_sizes[") or key == "embedding_size" else key


def wanted_for(dimension: Dimension, dimensions: Sequence[Dimension], keep: Mapping[str, float | int]) -> float | None:
    """What `keep` says about one dimension; None when it says nothing.

    Raises:
        UsageError: a number is given for several widths together.
    """
    for label in dimension.settings:
        if label in keep:
            return keep[label]
    wanted = keep.get(dimension.name)
    same = [other.label for other in dimensions if other.name == dimension.name]
    if isinstance(wanted, int) and len(same) > 1:
        raise UsageError(
            f"keep: {dimension.name}: {wanted} is said of {len(same)} widths ({', '.join(same)})",
            mend=f"Give a share such as 0.5, or name one: {same[0]}: {wanted}.",
        )
    return wanted


def unit_of(dimension: Dimension, multiple_of: int) -> int:
    """What sizes are rounded to: whole heads, and widths that hardware prefers where the model is wide enough."""
    if dimension.name == "heads":
        return dimension.step
    unit = math.lcm(dimension.step, multiple_of)
    return unit if unit <= dimension.size // 2 else dimension.step


def size_of(dimension: Dimension, wanted: float, multiple_of: int) -> int:
    """Turn a share or a number into the size that stays.

    Args:
        dimension: Its full size and step.
        wanted: A share below one is rounded to the nearest multiple; a whole number is taken as it is.
        multiple_of: For shares.

    Raises:
        UsageError: nothing would be left, it is larger than the model, or units would be torn apart.
    """
    label, size, step = dimension.label, dimension.size, dimension.step
    if isinstance(wanted, int):
        if wanted > size:
            raise UsageError(f"keep {dimension.name}: {wanted} of {size} ({label})", mend=f"Give at most {size}.")
        if wanted % step:
            below, above = wanted // step * step, (wanted // step + 1) * step
            raise UsageError(
                f"keep {dimension.name}: {wanted} of {size} ({label}) does not divide: it goes in steps of {step}"
                f"{_why(dimension)}",
                mend=f"Give {f'{below} or ' if below else ''}{above}.",
            )
        return wanted
    unit = unit_of(dimension, multiple_of)
    rounded = math.floor(wanted * size / unit + 0.5) * unit
    if rounded < 1:
        raise UsageError(
            f"keep {dimension.name}: {wanted:g} of {size} ({label}) leaves nothing: it goes in steps of {unit}",
            mend=f"Keep at least {unit / size:.3g}, or a number.",
        )
    return min(rounded, size)


def _why(dimension: Dimension) -> str:
    match dimension.name:
        case "heads":
            return ", the heads of queries that share one of keys"
        case "hidden":
            return ", the size of a head"
        case _:
            return ", as layers inside are that much narrower"
