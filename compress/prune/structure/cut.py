"""Cut units out of a model: the smaller model, and the full one with the same units at zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compress.prune.rebuild import change_config, rebuild
from compress.prune.structure.choose import Choice
from compress.prune.structure.layout import Dimension, slices_of
from compress.prune.structure.probe import tensors_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Cut", "cut_model", "masked"]

Cut = tuple[Dimension, int, Sequence[Choice]]
"""A dimension, its new size, and what stays of each of its groups."""


def cut_model(model: PreTrainedModel, cuts: Sequence[Cut]) -> PreTrainedModel:
    """Build the smaller model, with config and all tensors cut.

    Raises:
        UnsupportedError: transformers builds tensors of other shapes from the smaller configuration.
    """
    settings: dict[str, int] = {}
    slices: dict[str, list[tuple[int, Tensor]]] = {}
    replaced: dict[str, Tensor] = {}
    for dimension, size, choices in cuts:
        settings |= dimension.settings_at(size)
        for name, parts in slices_of(dimension, [choice.kept for choice in choices]).items():
            slices.setdefault(name, []).extend(parts)
        for choice in choices:
            replaced |= choice.weights
    tensors = tensors_of(model)
    names = {id(value): name for name, value in tensors.items()}
    aliases = {alias: names[id(value)] for alias, value in model.state_dict(keep_vars=True).items()}

    def tensor_of(alias: str) -> Tensor:
        name = aliases[alias]
        value: Tensor = replaced.get(name, tensors[name].detach())
        for axis, entries in slices.get(name, ()):
            value = value.index_select(axis, entries.to(value.device))
        return value

    return rebuild(model, change_config(model.config, settings), tensor_of)


@contextmanager
def masked(model: PreTrainedModel, cuts: Sequence[Cut]) -> Iterator[None]:
    """Set what would be cut to zero, and correct what would be corrected, inside the block."""
    tensors = tensors_of(model)
    saved: dict[str, Tensor] = {}

    def change(name: str) -> Tensor:
        if name not in saved:
            saved[name] = tensors[name].detach().clone()
        data: Tensor = tensors[name].data
        return data

    try:
        for dimension, _, choices in cuts:
            for choice in choices:
                for name, value in choice.weights.items():
                    change(name).copy_(value)
            for name, parts in slices_of(dimension, [choice.kept for choice in choices]).items():
                data = change(name)
                for axis, entries in parts:
                    gone = torch.ones(data.shape[axis], dtype=torch.bool)
                    gone[entries] = False
                    data.index_fill_(axis, gone.nonzero()[:, 0].to(data.device), 0)
        yield
    finally:
        for name, value in saved.items():
            tensors[name].data.copy_(value)
