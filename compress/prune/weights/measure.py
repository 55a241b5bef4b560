"""Count the zeros of a pruned checkpoint in its file, not in what was meant to be written."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compress.checkpoint import Checkpoint
from compress.prune.weights.result import PrunedMatrix
from compress.prune.weights.selection import Pattern, Selection, Share
from compress.skeleton import TORCH_DTYPES
from edgesmith.errors import VerificationError

__all__ = ["count_zeros", "fullest_group", "measure_matrices"]


def measure_matrices(
    written: Checkpoint, names: Mapping[str, bool], selection: Selection, errors: Mapping[str, float | None]
) -> list[PrunedMatrix]:
    """Read every pruned matrix again, and count.

    Args:
        written: The result.
        names: Tensor → whether it is stored as [inputs, outputs].
        selection: What was asked for.
        errors: Tensor → how far its outputs move.

    Raises:
        VerificationError: a matrix has fewer zeros than were asked for, or a group has too many weights.
    """
    found = []
    for name, is_transposed in names.items():
        entry = written.entries[name]
        stored = torch.frombuffer(written.read(name), dtype=TORCH_DTYPES[entry.dtype]).reshape(entry.shape)
        weight_OI = stored.T if is_transposed else stored
        num_zeros = count_zeros(weight_OI)
        _check(f"{written.path_of(name)}: {name}", weight_OI, num_zeros, selection)
        shape = (weight_OI.shape[0], weight_OI.shape[1])
        found.append(PrunedMatrix(name=name, shape=shape, num_zeros=num_zeros, relative_error=errors[name]))
    return found


def count_zeros(weight: Tensor) -> int:
    """How many values are zero."""
    return weight.numel() - int(torch.count_nonzero(weight))


def fullest_group(weight_OI: Tensor, group: int) -> int:
    """The most weights that are not zero in any group of so many in a row."""
    return int((weight_OI.reshape(-1, group) != 0).sum(dim=1).max())


def _check(where: str, weight_OI: Tensor, num_zeros: int, selection: Selection) -> None:
    match selection:
        case Pattern(num_kept=num_kept, group=group):
            if (most := fullest_group(weight_OI, group)) > num_kept:
                raise _error(
                    f"{where}: a group of {group} has {most} weights that are not zero, allowed are {num_kept}"
                )
        case Share():
            num_outputs, num_inputs = weight_OI.shape
            # Some methods count in rows, whose shares are rounded down one by one.
            least = num_outputs * selection.num_zeros(num_inputs)
            if num_zeros < least:
                raise _error(f"{where}: {num_zeros} of {weight_OI.numel()} weights are zero, asked for were {least}")


def _error(what: str) -> VerificationError:
    return VerificationError(what, mend="The file is not what was computed: look at the disk, and prune again.")
