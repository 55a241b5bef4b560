"""Which tensors of a checkpoint make up which parameters of a model, by transformers' own rules for loading."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)

from compress.checkpoint import Checkpoint
from compress.skeleton import TORCH_DTYPES, zero_parameter
from compress.tensor_file import count_nonfinite, nonfinite_error
from edgesmith.errors import UnsupportedError

__all__ = ["ParameterGroup", "ParameterMap"]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of the model and the checkpoint's tensors that they are made of."""

    sources: tuple[str, ...]
    """Names in the checkpoint."""
    targets: tuple[str, ...]
    """Names in the model."""
    converter: WeightConverter | None = None
    """How transformers makes targets from sources; None when one source is one target as it is."""
    pattern_of: tuple[str, ...] = ()
    """For each source the converter's pattern that it matched."""


class ParameterMap:
    """Which tensors of a checkpoint make up which parameters of a model, by transformers' own loading rules.

    Attributes:
        groups: All groups, in the checkpoint's natural order.
        group_of: Parameter name → its group.
        tied: Parameter name → the parameter that it is tied to by the configuration.
        optional: Parameters that may be missing: the model makes them itself.
        unused: Tensors of the checkpoint that the model does not have.
    """

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        self.checkpoint = checkpoint
        self.model = model
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(value.shape) for name, value in model.state_dict().items()
        }
        self.tied: dict[str, str] = dict(model.all_tied_weights_keys)
        self.groups, self.unused = self._match()
        self.group_of = {name: group for group in self.groups for name in group.targets}
        self.optional = {
            name
            for name in self.shapes
            for pattern in model._keys_to_ignore_on_load_missing or ()
            if re.search(pattern, name)
        }
        self._reverse = [
            transform
            for transform in get_model_conversion_mapping(model, add_legacy=False)
            if not isinstance(transform, PrefixChange)
        ]

    def read(self, name: str) -> Tensor:
        """Read one parameter of the base as float32.

        Raises:
            CheckpointError: it holds a NaN or an infinity.
            UnsupportedError: it is stored in a type that holds no plain numbers.
        """
        group = self._group(name)
        if group is None:
            raise KeyError(name)
        if group.converter is None:
            return self._read_tensor(group.sources[0])
        converted = self._convert(group, [self._read_tensor(source) for source in group.sources])
        known = name if name in converted else self._known_alias(name, converted)
        return converted[known]

    def dtype_of(self, name: str) -> str:
        """Name the dtype in which a parameter is stored; one that the base lacks gets the base's main dtype."""
        group = self._group(name)
        return self.checkpoint.entries[group.sources[0]].dtype if group else self.checkpoint.dtype

    def base_shape(self, name: str) -> tuple[int, ...] | None:
        """Shape that the checkpoint's tensors give a parameter; None when they do not provide it."""
        group = self._group(name)
        if group is None:
            return None
        if group.converter is None:
            return self.checkpoint.entries[group.sources[0]].shape
        shapes = [self.checkpoint.entries[source].shape for source in group.sources]
        converted = self._convert(group, [torch.empty(shape, device="meta") for shape in shapes])
        return tuple(converted[self._known_alias(name, converted)].shape)

    def save_name(self, name: str) -> str:
        """Name under which transformers' save_pretrained writes a parameter of this model."""
        if not self._reverse:
            return name
        renamed = self.revert({name: zero_parameter(self.shapes[name])})
        return next(iter(renamed)) if len(renamed) == 1 else name

    def revert(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn parameters back into the tensors that a checkpoint holds."""
        self.model._weight_conversions = copy.deepcopy(self._reverse) or None
        reverted: dict[str, Tensor] = revert_weight_conversion(self.model, dict(parameters))
        return reverted

    def _group(self, name: str) -> ParameterGroup | None:
        if group := self.group_of.get(name):
            return group
        for alias in self.aliases(name):
            if group := self.group_of.get(alias):
                return group
        return None

    def aliases(self, name: str) -> list[str]:
        """Name all parameters that share their values with this one by a tie, itself first."""
        source = self.tied.get(name, name)
        others = [source, *(target for target, origin in self.tied.items() if origin == source)]
        return [name, *(other for other in others if other != name)]

    def _known_alias(self, name: str, found: Mapping[str, Tensor]) -> str:
        return next(alias for alias in self.aliases(name) if alias in found)

    def _read_tensor(self, source: str) -> Tensor:
        entry = self.checkpoint.entries[source]
        if entry.dtype not in TORCH_DTYPES:
            raise UnsupportedError(
                f"{self.checkpoint.path_of(source)}: {source!r} is stored as {entry.dtype}; an adapter can be merged "
                f"into {', '.join(TORCH_DTYPES)}",
                mend="Give the base in a plain floating-point type.",
            )
        if entry.size_bytes == 0:
            return torch.empty(entry.shape, dtype=torch.float32)
        data = self.checkpoint.read(source)
        if count := count_nonfinite(data, entry.dtype):
            raise nonfinite_error(self.checkpoint.path_of(source), source, count, math.prod(entry.shape))
        raw = torch.frombuffer(data, dtype=TORCH_DTYPES[entry.dtype])
        return raw.reshape(entry.shape).to(torch.float32)

    def _convert(self, group: ParameterGroup, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        assert group.converter is not None
        converter = copy.deepcopy(group.converter)
        for source, pattern, tensor in zip(group.sources, group.pattern_of, tensors, strict=True):
            converter.add_tensor(group.targets[0], source, pattern, tensor)
        converted = converter.convert(group.targets[0], model=self.model, config=self.model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}

    def _match(self) -> tuple[list[ParameterGroup], list[str]]:
        """Follow `convert_and_load_state_dict_in_model` of transformers, without loading."""
        transforms = get_model_conversion_mapping(self.model)
        renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
        converter_of = {pattern: entry for entry in converters for pattern in entry.source_patterns}
        prefix, wanted = self.model.base_model_prefix, self.model.state_dict()
        collected: dict[str, tuple[list[str], list[str]]] = {}
        groups: list[ParameterGroup] = []
        unused: list[str] = []
        for source in sorted(self.checkpoint.entries, key=dot_natural_key):
            name, pattern = rename_source_key(source, renamings, converters, prefix, wanted)
            if name not in wanted and source in wanted:
                name, pattern = rename_source_key(source, [], [], prefix, wanted)
            if name not in wanted:
                unused.append(source)
            elif pattern is None:
                groups.append(ParameterGroup((source,), (name,)))
            else:
                sources, patterns = collected.setdefault(name, ([], []))
                sources.append(source)
                patterns.append(pattern)
        for name, (sources, patterns) in collected.items():
            first = ParameterGroup(tuple(sources), (name,), converter_of[patterns[0]], tuple(patterns))
            shapes = [self.checkpoint.entries[source].shape for source in sources]
            made = self._convert(first, [torch.empty(shape, device="meta") for shape in shapes])
            groups.append(ParameterGroup(first.sources, tuple(made), first.converter, first.pattern_of))
        ignored = self.model._keys_to_ignore_on_load_unexpected or ()
        return groups, [name for name in unused if not any(re.search(pattern, name) for pattern in ignored)]
