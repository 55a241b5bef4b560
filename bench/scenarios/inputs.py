"""Encode real examples as the requests that an engine is timed with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import DataError, UsageError
from edgesmith.tasks import TextTask

if TYPE_CHECKING:
    from edgesmith.tasks.base import Example, Task

__all__ = ["Arrays", "Inputs", "encode_inputs", "num_tokens"]

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Encoded requests."""

    arrays: tuple[Arrays, ...]
    description: str
    """Such as `1×128 tokens of real text`."""


def num_tokens(arrays: Arrays) -> int:
    """Length of a request's rows in tokens, padding included; 0 of pictures."""
    first = next(iter(arrays.values()))
    return int(first.shape[1]) if first.ndim == 2 else 0


def encode_inputs(
    task: Task,
    examples: Sequence[Example],
    *,
    num_inputs: int = 64,
    length: int | None = None,
    batch_size: int = 1,
) -> Inputs:
    """Encode real examples as requests of `batch_size` examples each.

    Args:
        task: Encodes them.
        examples: Real ones, at least one.
        num_inputs: How many different requests at the most, taken evenly from the examples.
        length: Exact number of tokens of every row: short texts are continued with the next ones, long ones
            are cut, nothing is padded. By default each request is padded to its longest text. Pictures have none.
        batch_size: Rows of a request. Where the examples are too few, they are used again.

    Raises:
        DataError: There are no examples, or all of their tokens are fewer than `length`.
        UsageError: A length was asked for pictures.
    """
    if not examples:
        raise DataError("no examples to time", mend="Give a data file with rows.")
    wanted = num_inputs * batch_size
    step = max(1, len(examples) // wanted)
    if length is not None and not isinstance(task, TextTask):
        raise UsageError(f"requests of {length} tokens were asked for, but {task.name} has none", mend="Ask for none.")
    if length is not None:
        in_turn = (example for first in range(step) for example in examples[first::step])
        return _of_length(task, in_turn, length, batch_size=batch_size, num_inputs=num_inputs)
    chosen = examples[::step][:wanted]
    count = max(1, len(chosen) // batch_size)
    groups = [[chosen[(start + row * count) % len(chosen)] for row in range(batch_size)] for start in range(count)]
    encoded = tuple(task.encode(group) for group in groups)
    return Inputs(arrays=encoded, description=_describe(encoded, batch_size))


def _describe(encoded: Sequence[Arrays], batch_size: int) -> str:
    first = next(iter(encoded[0].values()))
    if first.ndim == 4:
        what = "real pictures" if batch_size == 1 else f"batches of {batch_size} real pictures"
        return f"{len(encoded)} {what} of {'×'.join(map(str, first.shape[1:]))}"
    tokens = [num_tokens(arrays) for arrays in encoded]
    what = "real texts" if batch_size == 1 else f"batches of {batch_size} real texts"
    spread = f"{min(tokens)} to {max(tokens)} tokens, median {int(np.median(tokens))}"
    if min(tokens) == max(tokens):
        spread = f"{min(tokens)} tokens each"
    return f"{len(encoded)} {what} of {spread}"


def _of_length(task: Task, examples: Iterable[Example], length: int, *, batch_size: int, num_inputs: int) -> Inputs:
    """Requests of rows that are cut from the tokens of as many examples in a row as it takes."""
    texts: list[dict[str, NDArray[Any]]] = []
    total = 0
    for example in examples:
        arrays = task.encode([example])
        texts.append({name: _in_a_row(arrays, name) for name in arrays})
        total += len(next(iter(texts[-1].values())))
        if total >= num_inputs * batch_size * length:
            break
    if total < length:
        raise DataError(f"the examples have {total} tokens in all, fewer than the {length} of one request")
    num_rows = total // length
    rows_NL = {
        name: np.concatenate([text[name] for text in texts])[: num_rows * length].reshape(num_rows, length)
        for name in texts[0]
    }
    count = max(1, min(num_inputs, num_rows // batch_size))
    cut = [
        {
            name: np.ascontiguousarray(rows[np.arange(start * batch_size, (start + 1) * batch_size) % num_rows])
            for name, rows in rows_NL.items()
        }
        for start in range(count)
    ]
    return Inputs(arrays=tuple(cut), description=f"{batch_size}×{length} tokens of real text")


def _in_a_row(arrays: Arrays, name: str) -> NDArray[Any]:
    """One input's values of all rows (both texts of a pair are rows of their own), without padding."""
    mask = arrays.get("attention_mask")
    values = arrays[name]
    return values.reshape(-1) if mask is None else values[mask > 0]
