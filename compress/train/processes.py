"""The processes of one training: what they tell each other. With one process, nothing is sent.

Torch is imported where something is sent: the command line asks for its rank before anything else.
"""

from __future__ import annotations

import os
from typing import TypeVar

__all__ = ["gather", "is_leader", "leave_group", "num_processes", "rank", "tell_all"]

T = TypeVar("T")


def rank() -> int:
    """Number of this process, from 0, as `torchrun` started it."""
    return int(os.environ.get("RANK", "0")) if num_processes() > 1 else 0


def num_processes() -> int:
    """Processes that `torchrun` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_leader() -> bool:
    """Whether this process writes files and speaks to the user."""
    return rank() == 0


def gather(value: T) -> list[T]:
    """Give every process the small values of all, by rank."""
    if num_processes() == 1:
        return [value]
    import torch.distributed

    values: list[T | None] = [None] * num_processes()
    torch.distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # every place is filled now


def tell_all(value: T) -> T:
    """Give every process the value of the first."""
    if num_processes() == 1:
        return value
    import torch.distributed

    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def leave_group() -> None:
    """Close the connections to the other processes, after which each goes its own way."""
    if num_processes() == 1:
        return
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
