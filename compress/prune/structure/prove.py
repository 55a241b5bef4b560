"""Find out what belongs together in a dimension, and prove it: permuting the units must change nothing.

Units of a width have no order: neurons, heads and channels can change places, if they do so in every tensor. If
the outputs stay the same when the entries of some axes are permuted, then these axes, laid out in this way, are the
whole of a dependency group: nothing else reads or makes these units. No rule for any architecture is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from compress.prune.batches import Batch, outputs_of
from compress.prune.structure.layout import Axis, Dimension, Group, Site
from compress.prune.structure.probe import Probed, tensors_of
from edgesmith.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["TOLERANCE", "prove_dimension", "relative_difference"]

TOLERANCE = 1e-4
"""Largest difference of an output, relative to the largest value of it, that rounding in fp32 explains."""

_VISIBLE, _TIMES = 1e-5, 20
"""What a permutation of a part of a group must change at least, and how many times as much as one of the whole
group: or the proof would have no power."""
_MOST_PRODUCERS = 4

_Signature: TypeAlias = tuple[int, int, int]
"""Producers, units, and segments of a group that held."""


def prove_dimension(model: PreTrainedModel, probed: Probed, batch: Batch) -> Dimension:
    """Divide the axes of a dimension into groups that can be cut independently, each proven.

    Args:
        model: In fp32 and evaluation mode; its weights are permuted and put back.
        probed: The dimension and its axes.
        batch: A few rows.

    Raises:
        UnsupportedError: no division leaves the outputs unchanged; the message names tensors.
    """
    return _Prover(model, probed, batch).prove()


def relative_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest absolute difference of any output, relative to the largest value of that output."""
    return max(_difference(found[name], value) for name, value in expected.items())


class _Prover:
    def __init__(self, model: PreTrainedModel, probed: Probed, batch: Batch) -> None:
        self._model, self._probed, self._batch = model, probed, batch
        self._tensors = tensors_of(model)
        self._generator = torch.Generator().manual_seed(0)
        self._expected = self._run()
        self._known: dict[str, _Signature | None] = {}

    def prove(self) -> Dimension:
        dimension = self._probed.dimension
        sites = self._probed.sites
        groups, rest = ([], list(sites)) if self._is_one_width() else self._split()
        if rest:
            found = next((group for group in self._layouts(rest, to_end=True) if self._holds([group])), None)
            if found is None:
                raise self._refusal(rest)
            groups.append(found)
        if not self._holds(groups):
            raise self._refusal(sites)
        for group in groups:
            self._check_power(group)
        return replace(dimension, groups=tuple(groups))

    def _is_one_width(self) -> bool:
        """Whether all axes are of one stream that passes the whole model."""
        dimension = self._probed.dimension
        return dimension.name == "hidden" and len(dimension.settings) == 1

    def _check_power(self, group: Group) -> None:
        """A part of the group alone must change the outputs: else the whole would seem proven whatever it is."""
        part = tuple(axis for axis in group.axes if axis.site.side == "in") or group.axes[:1]
        if len(part) == len(group.axes):
            return
        seen = self._change([replace(group, axes=part)])
        if seen < _VISIBLE or seen < _TIMES * self._change([group]):
            raise UnsupportedError(
                f"{type(self._model).__name__}: nothing can be said about {self._probed.dimension.label}: the outputs "
                f"hardly depend on {part[0].site.description}",
                mend="Give other rows; if it stays so, the tensor is not used, and the model has dead weights.",
            )

    def _split(self) -> tuple[list[Group], list[Site]]:
        """Find groups of a reading tensor and those made right before it, such as both layers of an FFN."""
        groups: list[Group] = []
        rest = list(self._probed.sites)
        if (coupled := self._coupled(rest)) is not None:
            groups.append(coupled)
            rest = _without(rest, coupled)
        for consumer in [site for site in rest if site.side == "in"]:
            if (group := self._group_of(consumer, rest)) is not None:
                groups.append(group)
                rest = _without(rest, group)
        return groups, rest

    def _coupled(self, rest: Sequence[Site]) -> Group | None:
        """Find the heads of all layers where a table that all share, of relative positions, has a column for each."""
        counts = self._probed.unit_counts
        tables = [site for site in rest if len(counts) > 1 and site.length in counts[1:]]
        if not tables:
            return None
        roles: dict[str, list[Site]] = {}
        for site in rest:
            if site.side == "in":
                roles.setdefault(_role(site), []).append(site)
        for consumers in roles.values():
            for num in range(_MOST_PRODUCERS, 0, -1):
                sites = [site for consumer in consumers for site in self._right_before(consumer, rest, num)]
                unique = list(dict.fromkeys([*tables, *sites, *consumers]))
                for group in self._layouts(unique, to_end=True):
                    if self._holds([group]):
                        return group
        return None

    def _right_before(self, consumer: Site, rest: Sequence[Site], num: int) -> list[Site]:
        """What the last few matrices before a tensor make, and norms between them."""
        before = [site for site in rest if site.side == "out" and site.module < consumer.module]
        matrices = sorted({site.module for site in before if self._tensors[site.tensor].ndim > 1}, reverse=True)
        return [site for site in before if len(matrices) >= num and site.module >= matrices[num - 1]]

    def _group_of(self, consumer: Site, rest: Sequence[Site]) -> Group | None:
        role = _role(consumer)
        if role in self._known and self._known[role] is None:  # nothing was found in the layer before
            return None
        options = []
        for num in range(_MOST_PRODUCERS, 0, -1):  # too many at once is safe, too few is not
            if sites := self._right_before(consumer, rest, num):
                options += [(self._signature(num, group), group) for group in self._layouts([*sites, consumer])]
        if sites := self._siblings(consumer, rest):  # made by modules that are listed after the one that reads
            options += [(self._signature(0, group), group) for group in self._layouts([*sites, consumer])]
        options.sort(key=lambda option: option[0] != self._known.get(role))
        for signature, group in options:
            if self._holds([group]):
                self._known[role] = signature
                return group
        self._known.setdefault(role, None)
        return None

    @staticmethod
    def _siblings(consumer: Site, rest: Sequence[Site]) -> list[Site]:
        parent = consumer.tensor.rpartition(".")[0].rpartition(".")[0]
        return [site for site in rest if site.side == "out" and parent and site.tensor.startswith(f"{parent}.")]

    @staticmethod
    def _signature(num: int, group: Group) -> _Signature:
        return num, group.num_units, max(len(axis.blocks) for axis in group.axes)

    def _layouts(self, sites: Sequence[Site], *, to_end: bool = False) -> Iterator[Group]:
        """Yield the ways in which the same units may lie in all of these axes, the finest first."""
        narrowest = min(site.length for site in sites)
        counts = [count for count in self._probed.unit_counts if all(site.length % count == 0 for site in sites)]
        if not counts or (narrowest < counts[0] and not to_end):
            counts = [narrowest]
        for count in counts:
            blocks = [site.length // count for site in sites]
            seen: set[tuple[tuple[int, ...], ...]] = set()
            for way in (self._whole, self._halves, self._thirds, self._grouped_queries):
                divided = tuple(way(block, min(blocks)) for block in blocks)
                if divided not in seen:
                    seen.add(divided)
                    axes = [Axis(site=site, blocks=parts) for site, parts in zip(sites, divided, strict=True)]
                    yield Group(axes=tuple(axes), num_units=count)

    @staticmethod
    def _whole(block: int, _: int) -> tuple[int, ...]:
        return (block,)

    @staticmethod
    def _halves(block: int, least: int) -> tuple[int, ...]:
        return (least,) * 2 if block == 2 * least else (block,)

    @staticmethod
    def _thirds(block: int, least: int) -> tuple[int, ...]:
        return (least,) * 3 if block == 3 * least else (block,)

    def _grouped_queries(self, block: int, least: int) -> tuple[int, ...]:
        """All queries, then keys, then values, where several heads of queries share one of keys."""
        settings = self._probed.dimension.settings
        queries, keys = settings.get("num_attention_heads", 0), settings.get("num_key_value_heads", 0)
        if not keys or queries % keys or least % (queries // keys):
            return (block,)
        key = least // (queries // keys)
        return (least, key, key) if block == least + 2 * key else (block,)

    def _holds(self, groups: Sequence[Group]) -> bool:
        return self._change(groups) <= TOLERANCE

    def _change(self, groups: Sequence[Group]) -> float:
        """How much the outputs change when each group is permuted in its own way."""
        with self._permuted(groups) as orders:
            found = self._run()
        worst = 0.0
        for name, expected in self._expected.items():
            difference = _difference(found[name], expected)
            if difference > TOLERANCE:  # an output may have the units itself: hidden states of a headless model
                difference = min([difference, *_reordered(found[name], expected, groups, orders)])
            worst = max(worst, difference)
        return worst

    @contextmanager
    def _permuted(self, groups: Sequence[Group]) -> Iterator[list[Tensor]]:
        orders, saved = [], {}
        try:
            for group in groups:
                order = _derange(group.num_units, self._generator)
                orders.append(order)
                for axis in group.axes:
                    tensor = self._tensors[axis.site.tensor]
                    if axis.site.tensor not in saved:
                        saved[axis.site.tensor] = tensor.detach().clone()
                    entries = axis.indices(order, group.num_units).to(tensor.device)
                    tensor.data.copy_(tensor.data.index_select(axis.site.axis, entries))
            yield orders
        finally:
            for name, value in saved.items():
                self._tensors[name].data.copy_(value)

    def _run(self) -> dict[str, Tensor]:
        with torch.inference_mode():
            return outputs_of(self._model, self._batch)

    def _refusal(self, sites: Sequence[Site]) -> UnsupportedError:
        named = ", ".join(site.description for site in sites[:3]) + (", …" if len(sites) > 3 else "")
        dimension = self._probed.dimension
        return UnsupportedError(
            f"{type(self._model).__name__} ({self._model.config.model_type}): {dimension.name} ({dimension.label}, "
            f"{dimension.size}) cannot be pruned: permuting its units in {named} changes the outputs, so what depends "
            "on them, or how they lie in a fused tensor, is not known",
            mend="Prune another dimension (ffn, heads, hidden, channels), or whole layers with num_layers.",
        )


def _role(site: Site) -> str:
    """Name a tensor the same in every layer."""
    return re.sub(r"\d+", "#", site.tensor, count=1)


def _without(sites: Sequence[Site], group: Group) -> list[Site]:
    taken = {(axis.site.tensor, axis.site.axis) for axis in group.axes}
    return [site for site in sites if (site.tensor, site.axis) not in taken]


def _derange(count: int, generator: torch.Generator) -> Tensor:
    """A random order in which nothing stays in its place."""
    circle = torch.randperm(count, generator=generator)
    order = torch.empty_like(circle)
    order[circle] = circle.roll(1)
    return order


def _reordered(found: Tensor, expected: Tensor, groups: Sequence[Group], orders: Sequence[Tensor]) -> Iterator[float]:
    for group, order in zip(groups, orders, strict=True):
        for axis in {-1, 1}:
            if expected.shape[axis] == group.num_units:
                yield _difference(found, expected.index_select(axis, order.to(expected.device)))


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
