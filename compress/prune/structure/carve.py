"""From a model and the sizes asked for to the smaller model, proven on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compress.prune.batches import Batch, main_output, outputs_of, token_mask
from compress.prune.structure.budget import Budget, CostModel, choose_sizes, levels_of
from compress.prune.structure.choose import Choice, Chooser
from compress.prune.structure.cost import count_macs, count_params, one_row, time_model
from compress.prune.structure.cut import Cut, cut_model, masked
from compress.prune.structure.layout import Dimension
from compress.prune.structure.probe import probe_dimension
from compress.prune.structure.prove import TOLERANCE, prove_dimension, relative_difference
from compress.prune.structure.result import Width
from compress.prune.structure.sizes import name_of, size_of, wanted_for
from edgesmith.errors import UnsupportedError, UsageError, VerificationError
from edgesmith.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgesmith.recipe.steps import PruneOptions

__all__ = ["Carver"]

_EXACT = ("ffn", "heads", "channels")
_PROOF_ROWS = 2
_MEASURED_POSITIONS = 2048
"""Positions (rows × tokens; of images, rows × 64) on which candidates within a budget are compared."""


class Carver:
    """Makes the smaller model.

    Args:
        model: What is cut: in fp32 and evaluation mode, whole layers already left out. Weights are as before
            afterwards.
        full: The model before any layer left, which shares are of.
        options: What was asked for.
        batches: Calibration rows.
        progress: Where to report.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        full: PreTrainedModel,
        options: PruneOptions,
        batches: Sequence[Batch],
        progress: Progress,
    ) -> None:
        self._model, self._full, self._options, self._batches = model, full, options, batches
        self._progress = progress
        self._row = one_row(batches[0])
        self._proof = {name: value[:_PROOF_ROWS] for name, value in batches[0].items()}
        self._measured = _first_positions(batches)
        self._cuts: list[Cut] = []
        self.widths: list[Width] = []
        self.notes: list[str] = []

    def carve(self) -> PreTrainedModel:
        """Prove, choose and cut.

        Raises:
            UsageError: the budget is out of reach.
            UnsupportedError: a dimension is not proven.
            VerificationError: the smaller model does not compute what the full one does with the same units at zero.
        """
        names = dict.fromkeys(name_of(key) for key in self._options.keep)
        dimensions = [proven for name in names for proven in self._prove(self._model, name)]
        sizes: dict[str, int] = {}
        for dimension in dimensions:
            wanted = wanted_for(dimension, dimensions, self._options.keep)
            if wanted is not None:
                sizes[dimension.label] = size_of(dimension, wanted, self._options.multiple_of)
        if self._has_budget:
            sizes, dimensions = self._within_budget(dimensions, sizes)
        smaller = self._model
        exact = [one for one in dimensions if one.is_exact and sizes.get(one.label, one.size) < one.size]
        if exact:
            smaller = self._cut(smaller, exact, sizes)
        for other in dimensions:
            if not other.is_exact and sizes.get(other.label, other.size) < other.size:
                # Proven and scored anew: what is left of the layers decides which of their outputs matter.
                again = [one for one in self._prove(smaller, other.name) if one.label == other.label]
                smaller = self._cut(smaller, again, sizes)
        return smaller

    def change_of(self, smaller: PreTrainedModel) -> float:
        """‖difference of the outputs‖² / ‖outputs‖² on calibration rows, to the model before any layer left."""
        return _change(self._full, smaller, self._cuts, self._measured)

    def _prove(self, model: PreTrainedModel, name: str) -> list[Dimension]:
        with self._progress.bar(f"proving {name}"):
            return [prove_dimension(model, probed, self._proof) for probed in probe_dimension(model, name)]

    def _cut(
        self, model: PreTrainedModel, dimensions: Sequence[Dimension], sizes: Mapping[str, int]
    ) -> PreTrainedModel:
        with self._progress.bar("measuring units"):
            chooser = Chooser(model, dimensions, self._options.importance, self._batches)
        cuts: list[Cut] = []
        for dimension in self._progress.track(dimensions, "choosing units"):
            size = sizes[dimension.label]
            cuts.append((dimension, size, chooser.choose(dimension, size)))
            after = dimension.settings_at(size)
            self.widths.append(
                Width(
                    name=dimension.name,
                    before=dict(dimension.settings),
                    after={name: after[name] for name in dimension.settings},
                )
            )
        smaller = cut_model(model, cuts)
        if all(dimension.is_exact for dimension in dimensions):
            self._check(model, smaller, cuts)
        self._cuts += cuts
        self.notes += chooser.notes
        return smaller

    def _check(self, model: PreTrainedModel, smaller: PreTrainedModel, cuts: Sequence[Cut]) -> None:
        with torch.inference_mode(), masked(model, cuts):
            expected = outputs_of(model, self._proof)
        with torch.inference_mode():
            found = outputs_of(smaller, self._proof)
        aligned = {name: _aligned(value, found[name], cuts) for name, value in expected.items()}
        difference = relative_difference(found, aligned)
        if not difference <= TOLERANCE:
            raise VerificationError(
                f"{type(model).__name__}: the smaller model differs from the full one with the same units at zero by "
                f"{difference:.2g} (relative; allowed {TOLERANCE:g})",
                mend="This is a fault of the pruner: report it with the model's config.json.",
            )

    @property
    def _has_budget(self) -> bool:
        return any(
            value is not None for value in (self._options.max_params, self._options.max_macs, self._options.max_latency)
        )

    def _within_budget(
        self, given: Sequence[Dimension], fixed: Mapping[str, int]
    ) -> tuple[dict[str, int], list[Dimension]]:
        """Choose the sizes of all exact dimensions within the budget; the hidden width only where they do not do."""
        dimensions = list(given)
        for name in _EXACT:
            if all(one.name != name for one in given):
                dimensions += self._if_supported(name)
        try:
            return self._fit(dimensions, fixed), dimensions
        except UsageError:
            if any(one.name == "hidden" for one in given) or not (hidden := self._if_supported("hidden")):
                raise
        self.notes.append("the budget needs the hidden width to shrink too")
        # Where whole heads leave with the hidden width, `heads` by themselves would be counted twice.
        dimensions = [one for one in dimensions if not set(one.settings) & set(hidden[0].settings)] + hidden
        return self._fit(dimensions, fixed), dimensions

    def _if_supported(self, name: str) -> list[Dimension]:
        try:
            return self._prove(self._model, name)
        except UnsupportedError:
            return []

    def _fit(self, dimensions: Sequence[Dimension], fixed: Mapping[str, int]) -> dict[str, int]:
        if not dimensions:
            raise UnsupportedError(
                f"{type(self._model).__name__}: none of its widths can be pruned, so no budget can be kept",
                mend="Leave out whole layers with num_layers.",
            )
        multiple_of = self._options.multiple_of
        levels = [
            [fixed[one.label]] if one.label in fixed else levels_of(one, multiple_of, len(dimensions))
            for one in dimensions
        ]
        budget = self._budget()
        latencies = self._latencies(dimensions, levels) if budget.max_latency is not None else ()
        costs = CostModel(self._model, dimensions, self._row, latencies)
        losses = _Losses(self._model, dimensions, self._options, self._batches, self._measured)
        chosen = choose_sizes(budget, costs, levels, losses.of)
        if budget.max_latency is not None:
            share = time_model(_narrow(self._model, dimensions, chosen), self._row) / time_model(self._full, self._row)
            self._progress.note(
                f"prune: measured time {share:.2f} of the full model's (allowed {budget.max_latency:g})"
            )
        return {one.label: size for one, size in zip(dimensions, chosen, strict=True)}

    def _budget(self) -> Budget:
        params, macs, options = count_params(self._full), count_macs(self._full, self._row), self._options
        return Budget(
            max_params=_absolute(options.max_params, params),
            max_macs=_absolute(options.max_macs, macs),
            max_latency=options.max_latency,
        )

    def _latencies(self, dimensions: Sequence[Dimension], levels: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """Time the model with one dimension changed at a time; of several, the shares are multiplied."""
        full = time_model(self._full, self._row)
        # What left with whole layers counts too: the first dimension carries it.
        scale = 1.0 if self._model is self._full else time_model(self._model, self._row) / full
        tables: list[dict[int, float]] = []
        with self._progress.bar("timing widths", sum(map(len, levels))) as advance:
            for dimension, sizes in zip(dimensions, levels, strict=True):
                table = {}
                for size in sizes:
                    narrow = _narrow(self._model, [dimension], [size])
                    table[size] = 1.0 if size == dimension.size else time_model(narrow, self._row) / (full * scale)
                    advance(1)
                tables.append(table)
        tables[0] = {size: share * scale for size, share in tables[0].items()}
        return tables


class _Losses:
    """How much the outputs change when one dimension shrinks, measured on rows."""

    def __init__(
        self,
        model: PreTrainedModel,
        dimensions: Sequence[Dimension],
        options: PruneOptions,
        batches: Sequence[Batch],
        measured: Sequence[Batch],
    ) -> None:
        self._model, self._dimensions, self._measured = model, dimensions, measured
        self._chooser = Chooser(model, dimensions, options.importance, batches)

    def of(self, index: int, size: int) -> float:
        dimension = self._dimensions[index]
        if size == dimension.size:
            return 0.0
        cuts: list[Cut] = [(dimension, size, self._chooser.choose(dimension, size))]
        return _change(self._model, cut_model(self._model, cuts), cuts, self._measured)


def _narrow(model: PreTrainedModel, dimensions: Sequence[Dimension], sizes: Sequence[int]) -> PreTrainedModel:
    """Cut to some sizes, whichever units: for timing."""
    cuts: list[Cut] = []
    for dimension, size in zip(dimensions, sizes, strict=True):
        kept = [torch.arange(dimension.units_at(group, size)) for group in dimension.groups]
        cuts.append((dimension, size, [Choice(kept=units) for units in kept]))
    return cut_model(model, cuts)


def _absolute(wanted: float | int | None, whole: int) -> int | None:
    if wanted is None or isinstance(wanted, int):
        return wanted
    return int(wanted * whole)


def _first_positions(batches: Sequence[Batch]) -> list[Batch]:
    found: list[Batch] = []
    total = 0
    for batch in batches:
        if total >= _MEASURED_POSITIONS:
            break
        shape = next(iter(batch.values())).shape
        total += shape[0] * (shape[1] if len(shape) == 2 else 64)
        found.append(batch)
    return found


def _change(full: PreTrainedModel, smaller: PreTrainedModel, cuts: Sequence[Cut], batches: Sequence[Batch]) -> float:
    change = size = 0.0
    with torch.inference_mode():
        for batch in batches:
            found = main_output(outputs_of(smaller, batch))
            whole = main_output(outputs_of(full, batch))
            expected = _aligned(whole, found, cuts)
            if expected.ndim == 3:
                mask = token_mask(batch, expected)
                expected, found = expected[mask], found[mask]
            change += float((found - expected).double().square().sum())
            size += float(expected.double().square().sum())
    return change / size


def _aligned(expected: Tensor, found: Tensor, cuts: Sequence[Cut]) -> Tensor:
    """Pick from a full output what the smaller model still has, where the output itself lost units."""
    for axis, (length, left) in enumerate(zip(expected.shape, found.shape, strict=True)):
        if length != left:
            kept = next(
                choice.kept
                for dimension, _, choices in reversed(cuts)
                for group, choice in reversed(list(zip(dimension.groups, choices, strict=True)))
                if group.num_units == length and len(choice.kept) == left
            )
            expected = expected.index_select(axis, kept.to(expected.device))
    return expected
