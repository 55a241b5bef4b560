"""Inputs that an engine of a task takes: their names, types and axes, and made-up ones to trace and probe with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgesmith.artifact import TensorSpec
from edgesmith.errors import UnsupportedError
from edgesmith.tasks import ImageClassification, Task

__all__ = ["BATCH", "SEQUENCE", "free_axes", "input_specs", "sample_inputs"]

BATCH, SEQUENCE = "batch", "sequence"
"""Names of the axes that are free in every graph."""


def input_specs(task: Task) -> tuple[TensorSpec, ...]:
    """What a graph of this task takes: token ids [batch, sequence], or pixels [batch, channels, height, width].

    Raises:
        UnsupportedError: The task's pictures have no common size.
    """
    if isinstance(task, ImageClassification):
        shape = (BATCH, *task.pixel_shape)
        return tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name in task.input_names)
    return tuple(TensorSpec(name=name, dtype="int64", shape=(BATCH, SEQUENCE)) for name in task.input_names)


def free_axes(task: Task) -> dict[str, dict[int, str]]:
    """Input → its free axes by place."""
    return {
        spec.name: {place: axis for place, axis in enumerate(spec.shape) if isinstance(axis, str)}
        for spec in input_specs(task)
    }


def sample_inputs(task: Task, sizes: Mapping[str, int], *, vocab_size: int = 2) -> dict[str, NDArray[np.generic]]:
    """Made-up inputs, the same every time.

    Args:
        task: Whose.
        sizes: Length of each free axis, by its name.
        vocab_size: Ids are below it.

    Returns:
        An array for each input; with more than one text, the end of the second is padding.

    Raises:
        UnsupportedError: An input is of no known kind.
    """
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[np.generic]] = {}
    for spec in input_specs(task):
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
        match spec.name:
            case _ if spec.dtype == "float32":
                arrays[spec.name] = rng.standard_normal(shape, np.float32)
            case "input_ids":
                arrays[spec.name] = rng.integers(min(5, vocab_size - 1), vocab_size, shape, dtype=np.int64)
            case "attention_mask":
                mask = np.ones(shape, np.int64)
                mask[1:2, -2:] = 0
                arrays[spec.name] = mask
            case "token_type_ids":
                arrays[spec.name] = np.zeros(shape, np.int64)
            case _:
                raise UnsupportedError(f"the input {spec.name!r} of {task.name} cannot be exported yet")
    return arrays
