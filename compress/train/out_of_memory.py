"""Tell a lack of memory from other failures, and say what helps."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from edgesmith.errors import TrainingError
from edgesmith.units import format_bytes

__all__ = ["is_out_of_memory", "memory_error", "training_bytes"]

_SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "Cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the CPU or on a GPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(sign in str(error) for sign in _SIGNS)


def training_bytes(parameters: Iterable[nn.Parameter]) -> int:
    """Memory of the weights, their gradients and AdamW's two moments; activations come on top."""
    return sum(
        parameter.nbytes + (parameter.nbytes + 8 * parameter.numel() if parameter.requires_grad else 0)
        for parameter in parameters
    )


def memory_error(
    error: BaseException,
    *,
    num_rows: int | None,
    longest: int | None,
    state_bytes: int,
    is_checkpointed: bool,
    differing: str = "",
    has_batch_norm: bool = False,
) -> TrainingError:
    """Turn a lack of memory into an error that names the sizes and the mends.

    Args:
        error: What torch raised.
        num_rows: Rows that were computed at once; None outside of a batch, where the state itself did not fit.
        longest: Tokens of the longest of them, where rows have tokens.
        state_bytes: What `training_bytes` says.
        is_checkpointed: Whether `gradient_checkpointing` is on already.
        differing: What is another with fewer rows at once, as `compress.train.start.what_differs` says it.
        has_batch_norm: Whether there is batch norm, whose statistics gradient checkpointing takes twice.
    """
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    state = f"weights, gradients and AdamW's moments alone take {format_bytes(state_bytes)}"
    if num_rows is None:
        return TrainingError(
            f"training does not fit into memory: {state} ({first})",
            mend="Train a smaller model, or use a machine with more memory.",
        )
    fewer = f"not quite the same result: {differing}" if differing else "the same result"
    twice = (
        "not quite the same result: batch norm's statistics are taken twice" if has_batch_norm else "the same result"
    )
    mends = [f"train.micro_batch_size below {num_rows} ({fewer})"] if num_rows > 1 else []
    mends += [] if is_checkpointed else [f"train.gradient_checkpointing: true ({twice})"]
    mends += ["a smaller train.max_length"] if longest else []
    tokens = f" of up to {longest} tokens" if longest else ""
    return TrainingError(
        f"training does not fit into memory: {num_rows} row{'s' if num_rows > 1 else ''}{tokens} at once; {state} "
        f"({first})",
        mend=f"Try {', or '.join(mends)}." if mends else "Train a smaller model, or use a machine with more memory.",
    )
