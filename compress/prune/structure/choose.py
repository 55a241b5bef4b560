"""Choose which units of each group stay, and correct the weights that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compress.prune.batches import Batch
from compress.prune.structure.layout import Axis, Dimension, Group
from compress.prune.structure.probe import tensors_of
from compress.prune.structure.remove import damped, reconstruct, removal_order
from compress.prune.structure.statistics import (
    activation_scores,
    collect_grams,
    magnitude_scores,
    reader_of,
    taylor_scores,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgesmith.recipe.steps import Importance

__all__ = ["Choice", "Chooser"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What stays of a group."""

    kept: Tensor
    """Units, ascending, int64."""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensor name → new value in its full shape, zero where units left; empty where weights stay as they are."""


class Chooser:
    """Scores the units of dimensions once, and says for any size which stay.

    Args:
        model: In fp32 and evaluation mode. Not modified.
        dimensions: Proven.
        importance: `hessian` is for groups that one linear or convolution layer reads; the others are scored by
            `taylor`, and `notes` says so.
        batches: Calibration rows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        dimensions: Sequence[Dimension],
        importance: Importance,
        batches: Sequence[Batch],
    ) -> None:
        self._model = model
        self._tensors = tensors_of(model)
        self._solvers: dict[int, _Solver] = {}
        self.notes: list[str] = []
        scored: list[Group] = []
        for dimension in dimensions:
            readers = [reader_of(model, group) for group in dimension.groups]
            if importance != "hessian":
                readers = [None] * len(readers)
            left = [group for group, reader in zip(dimension.groups, readers, strict=True) if reader is None]
            scored += left
            if left and importance == "hessian":
                self.notes.append(
                    f"{dimension.name} ({dimension.label}): {len(left)} of {len(dimension.groups)} groups are read by "
                    "several layers or by none, where there is no one Hessian: scored by taylor"
                )
            for group, reader in zip(dimension.groups, readers, strict=True):
                if reader is not None:
                    self._solvers[id(group)] = _Solver(group, reader)
        grams = collect_grams(model, [solver.reader for solver in self._solvers.values()], batches)
        for solver in self._solvers.values():
            solver.prepare(model, grams.pop(solver.reader.site.tensor))
        self._scores = dict(zip(map(id, scored), self._score(scored, importance, batches), strict=True))

    def _score(self, groups: Sequence[Group], importance: Importance, batches: Sequence[Batch]) -> list[Tensor]:
        if not groups:
            return []
        match importance:
            case "magnitude":
                return magnitude_scores(self._model, groups)
            case "activation":
                return activation_scores(self._model, groups, batches)
            case _:
                return taylor_scores(self._model, groups, batches)

    def choose(self, dimension: Dimension, size: int) -> list[Choice]:
        """Say what stays of each group when a dimension gets another size."""
        return [self._choose(group, dimension.units_at(group, size)) for group in dimension.groups]

    def _choose(self, group: Group, num_kept: int) -> Choice:
        if num_kept == group.num_units:
            return Choice(kept=torch.arange(num_kept))
        if solver := self._solvers.get(id(group)):
            return solver.solve(num_kept)
        order = torch.sort(self._scores[id(group)], descending=True, stable=True).indices
        return Choice(kept=order[:num_kept].sort().values)


class _Solver:
    """Removes units from what one layer reads, and corrects the weights that stay."""

    def __init__(self, group: Group, reader: Axis) -> None:
        self.group, self.reader = group, reader
        self._order: list[int] = []

    def prepare(self, model: PreTrainedModel, gram: Tensor) -> None:
        self._name = self.reader.site.tensor
        owner = self._name.rpartition(".")[0]
        module = model.get_submodule(owner)
        weight = module.get_parameter("weight")
        self._shape, self._dtype, self._device = (
            weight.movedim(self.reader.site.axis, 1).shape,
            weight.dtype,
            weight.device,
        )
        self._weight = weight.detach().movedim(self.reader.site.axis, 1).flatten(1).double().cpu()  # [O, I]
        self._bias = f"{owner}.bias" if module.bias is not None else None
        if self._bias is not None:  # the last input is always one
            bias = module.get_parameter("bias").detach().double().cpu()
            self._weight = torch.cat([self._weight, bias[:, None]], dim=1)
        self._gram = damped(gram)
        entries = [
            self.reader.indices(torch.tensor([unit]), self.group.num_units) for unit in range(self.group.num_units)
        ]
        positions = (self._weight.shape[1] - (self._bias is not None)) // self.reader.site.length  # of the kernel
        inputs = torch.stack(entries)[:, :, None] * positions + torch.arange(positions)
        self._units = inputs.flatten(1)  # [U, B]

    def solve(self, num_kept: int) -> Choice:
        num_removed = self.group.num_units - num_kept
        if len(self._order) < num_removed:
            self._order = list(removal_order(self._weight, self._gram, self._units, num_removed).order)
        gone = set(self._order[:num_removed])
        kept = torch.tensor([unit for unit in range(self.group.num_units) if unit not in gone])
        inputs = self._units[kept].flatten()
        if self._bias is not None:
            inputs = torch.cat([inputs, torch.tensor([self._weight.shape[1] - 1])])
        changed = torch.zeros_like(self._weight)
        changed[:, inputs] = reconstruct(self._weight, self._gram, inputs)
        weights: dict[str, Tensor] = {}
        if self._bias is not None:
            weights[self._bias] = changed[:, -1].to(self._dtype).to(self._device)
            changed = changed[:, :-1]
        shaped = changed.reshape(self._shape).movedim(1, self.reader.site.axis)
        return Choice(kept=kept, weights={self._name: shaped.to(self._dtype).to(self._device), **weights})
