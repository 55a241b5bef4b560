"""What is looked at of a task's answers: values for each row, whatever the graph gives."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.tasks import Task, TokenClassification
from serve.drift.features import output_values, row_tokens, tag_values

__all__ = ["answer_values"]

Arrays = Mapping[str, NDArray[Any]]


def answer_values(
    task: Task, outputs: Arrays, arrays: Arrays, *, ignored: NDArray[np.int64], draw: random.Random
) -> list[dict[str, float]]:
    """Values of each row.

    Args:
        task: Reads the outputs.
        outputs: Of the graph.
        arrays: What it was given.
        ignored: Tokens that every row has.
        draw: Picks a token of a tagger's row.
    """
    if not isinstance(task, TokenClassification):
        return [output_values(vector, task.output_kind) for vector in task.vectors(outputs, arrays)]
    logits_NT, row_N = task.compared(outputs, arrays)
    num_rows = len(next(iter(arrays.values())))
    return [
        tag_values(logits_NT[row_N == row], row_tokens(arrays, row), ignored=ignored, draw=draw)
        for row in range(num_rows)
    ]
