"""The part of a model that repeats: a list of blocks that are run one after the other, and their matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from edgesmith.errors import UnsupportedError

__all__ = ["Matrix", "find_blocks", "matrices_of"]

_MEND = "Single weights are pruned in models of repeated blocks; prune structures instead: method structured."


@dataclass(frozen=True)
class Matrix:
    """One linear layer."""

    name: str
    """Of its weight, in the model."""
    module: nn.Module
    is_transposed: bool
    """Whether the weight is stored as [inputs, outputs]."""

    def weight(self) -> Tensor:
        """The weight as [outputs, inputs]; a view."""
        weight: Tensor = self.module._parameters["weight"]  # type: ignore[assignment]
        return weight.T if self.is_transposed else weight

    def stored(self, weight_OI: Tensor) -> Tensor:
        """The same weight as the layer and the checkpoint hold it."""
        return (weight_OI.T if self.is_transposed else weight_OI).contiguous()


def find_blocks(model: nn.Module, where: str) -> tuple[str, nn.ModuleList]:
    """Find the list of blocks that holds most of the model's linear layers.

    Args:
        model: Its parameters may be on the meta device.
        where: For messages.

    Returns:
        Name of the list, and the list.

    Raises:
        UnsupportedError: there is none; there is one for an encoder and one for a decoder; or most of its weights
            are in no linear layers.
    """
    kind = type(model).__name__
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedError(
            f"{where}: {kind} has two lists of blocks, of an encoder and of a decoder that reads its states; one list "
            "that is run in sequence is known here",
            mend=_MEND,
        )
    sizes = {
        path: size
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and (size := _linear_size(module))
    }
    # Of nested lists the outermost counts: the experts of a block are part of it.
    outermost = {path: size for path, size in sizes.items() if not any(path.startswith(f"{one}.") for one in sizes)}
    if not outermost:
        raise UnsupportedError(f"{where}: no repeated blocks with linear layers were found in {kind}", mend=_MEND)
    path = max(outermost, key=lambda path: outermost[path])
    found = model.get_submodule(path)
    assert isinstance(found, nn.ModuleList)
    _check_linear(found, f"{where}: {kind}: {path}")
    return path, found


def matrices_of(block: nn.Module, path: str) -> Iterator[Matrix]:
    """Yield the linear layers of a block, in the order in which it holds them.

    Args:
        block: The block.
        path: Its name in the model.
    """
    for name, module in block.named_modules(prefix=path):
        if isinstance(module, nn.Linear | Conv1D):
            yield Matrix(f"{name}.weight", module, isinstance(module, Conv1D))


def _linear_size(module: nn.Module) -> int:
    return sum(math.prod(matrix.weight().shape) for matrix in matrices_of(module, ""))


def _check_linear(blocks: nn.ModuleList, where: str) -> None:
    """Refuse blocks most of whose weights would stay as they are."""
    linear = {id(matrix.module) for matrix in matrices_of(blocks, "")}
    others = {
        f"{path}.{name}": math.prod(parameter.shape)
        for path, module in blocks.named_modules()
        if id(module) not in linear
        for name, parameter in module._parameters.items()
        if parameter is not None
    }
    if sum(others.values()) > _linear_size(blocks):
        largest = max(others, key=lambda name: others[name])
        raise UnsupportedError(
            f"{where}: most weights are in no linear layers ({largest} has {others[largest]:,}), and those alone are "
            "pruned",
            mend=_MEND,
        )
