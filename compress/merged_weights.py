"""What each tensor of a merged checkpoint is made of, computed and written one at a time."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.adapter import Adapter
from compress.carry import Fit, fit_to_adapters
from compress.checkpoint import Checkpoint, CheckpointWriter
from compress.graft import Graft, read_adapter_tensor
from compress.skeleton import (
    TORCH_DTYPES,
    ParameterGroup,
    ParameterMap,
    build_skeleton,
    load_config,
    resolve_model_class,
)
from compress.tensor_file import DTYPE_BITS, count_nonfinite, nonfinite_error
from edgesmith.errors import CheckpointError, MergeError, UnsupportedError
from edgesmith.progress import Progress

__all__ = ["MergedWeights"]


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """One tensor of the result: copied from `source`, or computed from `parameter` or `group`."""

    dtype: str
    shape: tuple[int, ...]
    source: str | None = None
    parameter: str | None = None
    group: ParameterGroup | None = None

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


class MergedWeights:
    """The weights that result from merging adapters into a base, planned and checked but not yet computed.

    Args:
        checkpoint: The base.
        adapters: What to merge, scaled by their weights and summed.
        model_class: Name of transformers' class; found out when None.
        dtype: For all floating-point tensors, as safetensors spells it; as the base has them when None.

    Attributes:
        architecture: Name of the model class.
        fit: The configuration that the result needs.
        untied: Whether parameters that share their values in the base no longer do.
        notes: What was left out.

    Raises:
        CheckpointError: the base lacks tensors or does not fit its own configuration.
        MergeError: an adapter does not fit the base, or adapters contradict each other.
    """

    def __init__(
        self, checkpoint: Checkpoint, adapters: Sequence[Adapter], *, model_class: str | None, dtype: str | None
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        config = load_config(checkpoint)
        task_types = [adapter.config.get("task_type") for adapter in adapters]
        found = resolve_model_class(config, requested=model_class, task_types=task_types)
        self.fit: Fit = fit_to_adapters(config, build_skeleton(config, found), adapters)
        skeleton = build_skeleton(self.fit.config, found)
        self.architecture = type(skeleton).__name__
        self.num_embeddings: int | None = getattr(skeleton.get_input_embeddings(), "num_embeddings", None)
        self._map = ParameterMap(checkpoint, skeleton)
        self._grafts = [Graft(adapter, build_skeleton(self.fit.config, found)) for adapter in adapters]
        self._check_claims()
        self._merged: dict[str, Tensor] = {}
        self.untied = self._must_untie()
        self._ties = self._untied_ties(found) if self.untied else self._map.tied
        self._plan = self._make_plan()
        self.notes = self._make_notes()

    @property
    def dtype(self) -> str:
        """The type that most weights get."""
        return self._dtype or self._checkpoint.dtype

    @property
    def num_copied(self) -> int:
        """Tensors that are the base's."""
        return sum(planned.source is not None for planned in self._plan.values())

    @property
    def num_merged(self) -> int:
        """Tensors that the adapters change or bring."""
        return len(self._plan) - self.num_copied

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(planned.size_bytes for planned in self._plan.values())

    @property
    def largest(self) -> tuple[str, int]:
        """Name and bytes of the largest tensor."""
        name = max(self._plan, key=lambda name: self._plan[name].size_bytes)
        return name, self._plan[name].size_bytes

    def write(self, folder: Path, max_shard_bytes: int, progress: Progress) -> None:
        """Compute and write all weights.

        Raises:
            CheckpointError: the base holds a NaN.
            MergeError: PEFT cannot merge a layer, or a merged value does not fit the type it is stored in.
            StorageError: the disk is full.
        """
        specs = {name: (planned.dtype, planned.shape) for name, planned in self._plan.items()}
        writer = CheckpointWriter(folder, specs, max_shard_bytes=max_shard_bytes)
        written: set[str] = set()
        try:
            with progress.bar("merge", self.size_bytes) as advance:
                for name, planned in self._plan.items():
                    if name not in written:
                        for done, pieces in self._produce(name, planned):
                            writer.write(done, pieces)
                            written.add(done)
                            advance(self._plan[done].size_bytes)
            writer.close()
        except BaseException:
            writer.abandon()
            raise

    def _produce(self, name: str, planned: _Planned) -> Iterator[tuple[str, Iterator[memoryview] | list[memoryview]]]:
        if planned.source is not None:
            yield name, self._copy(planned.source, planned.dtype)
        elif planned.parameter is not None:
            yield name, [_encode(self._value(planned.parameter), planned.dtype, name)]
        elif planned.group is not None:
            for source, value in self._revert(planned.group).items():
                yield source, [_encode(value, self._plan[source].dtype, source)]

    def _copy(self, source: str, dtype: str) -> Iterator[memoryview]:
        entry = self._checkpoint.entries[source]
        if entry.dtype != dtype:
            raw = torch.frombuffer(self._checkpoint.read(source), dtype=TORCH_DTYPES[entry.dtype])
            yield _encode(raw, dtype, source)
            return
        for piece in self._checkpoint.chunks(source):
            if count := count_nonfinite(piece, dtype):
                raise nonfinite_error(self._checkpoint.path_of(source), source, count, math.prod(entry.shape))
            yield piece

    def _value(self, name: str, *, keep: bool = True) -> Tensor:
        """Compute one parameter of the merged model, float32."""
        for graft in self._grafts:
            if name in graft.replaced:
                return read_adapter_tensor(graft.adapter, graft.replaced[name])
        grafts = [graft for graft in self._grafts if name in graft.edited]
        if not grafts:
            return self._base_value(name)
        if name not in self._merged:
            self._merged |= self._merge_module(name, grafts)
        value = self._merged.pop(name)
        if not keep:
            self._merged.clear()
        return value

    def _merge_module(self, name: str, grafts: Sequence[Graft]) -> dict[str, Tensor]:
        """Compute all parameters of the module that a parameter belongs to."""
        if len(grafts) == 1 and grafts[0].adapter.weight == 1:
            return grafts[0].merge(grafts[0].edited[name], self._base_value)
        total: dict[str, Tensor] = {}
        for graft in grafts:
            for key, merged in graft.merge(graft.edited[name], self._base_value).items():
                base = self._base_value(key)
                delta = (merged - base) * graft.adapter.weight
                total[key] = total.get(key, base) + delta
        return total

    def _base_value(self, name: str) -> Tensor:
        """Read a parameter as it was when training began, float32."""
        override = self._override_of(name)
        if override is not None:
            return read_adapter_tensor(override[0].adapter, override[1])
        value = self._map.read(name)
        if not torch.isfinite(value).all():
            count = int((~torch.isfinite(value)).sum())
            raise nonfinite_error(self._checkpoint.folder, name, count, value.numel())
        return value

    def _override_of(self, name: str) -> tuple[Graft, str] | None:
        for alias in self._map.aliases(name):
            for graft in self._grafts:
                if alias in graft.overridden:
                    return graft, graft.overridden[alias]
        return None

    def _is_touched(self, name: str) -> bool:
        claimed = any(name in graft.edited or name in graft.replaced for graft in self._grafts)
        return claimed or self._override_of(name) is not None

    def _check_claims(self) -> None:
        """A parameter that is replaced whole can be replaced by one adapter only, and not by a part of it."""
        for graft in self._grafts:
            whole = sorted({*graft.replaced, *graft.overridden})
            if whole and graft.adapter.weight != 1:
                raise MergeError(
                    f"{graft.adapter.describe()}: weight {graft.adapter.weight:g}, but {whole[0]!r} was trained whole "
                    "and has no delta to be scaled",
                    mend="Give this adapter weight 1, or train it without modules_to_save.",
                )
            for other in self._grafts:
                claimed = {*other.replaced, *other.overridden, *other.edited}
                if other is not graft and (shared := [name for name in whole if name in claimed]):
                    raise MergeError(
                        f"{graft.adapter.describe()} and {other.adapter.describe()} both change {shared[0]!r}, "
                        "and at least one of them was trained with it whole",
                        mend="Merge one of them only, or train one of them without modules_to_save.",
                    )

    def _must_untie(self) -> bool:
        """Whether adapters make parameters differ that share their values in the base."""
        for source in sorted(set(self._map.tied.values())):
            names = self._map.aliases(source)
            if any(self._is_touched(name) for name in names):
                digests = {self._digest(name) for name in names}
                if len(digests) > 1:
                    return True
        return False

    def _digest(self, name: str) -> bytes:
        value = self._value(name, keep=False)
        return hashlib.sha256(_encode(value, self._dtype_of(name), name)).digest()

    def _untied_ties(self, model_class: type[Any]) -> dict[str, str]:
        """Ties that transformers keeps when the configuration says that embeddings are not tied."""
        config = copy.deepcopy(self.fit.config)
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = False
        ties: dict[str, str] = dict(build_skeleton(config, model_class).all_tied_weights_keys)
        for target, source in ties.items():
            if (self._is_touched(target) or self._is_touched(source)) and self._digest(target) != self._digest(source):
                raise UnsupportedError(
                    f"{self.architecture} always ties {target!r} to {source!r}, and the adapter makes them differ",
                    mend="Train with both targeted and ensure_weight_tying=True, or without them.",
                )
        return ties

    def _dtype_of(self, name: str) -> str:
        return self._dtype or self._map.dtype_of(name)

    def _make_plan(self) -> dict[str, _Planned]:
        plan: dict[str, _Planned] = {}
        for group in self._map.groups:
            plan |= self._plan_group(group)
        for name in self._map.shapes:
            if name not in self._map.group_of and name not in self._ties and name not in self._map.optional:
                self._check_provided(name)
                plan[self._map.save_name(name)] = _Planned(
                    dtype=self._dtype_of(name), shape=self._map.shapes[name], parameter=name
                )
        return plan

    def _plan_group(self, group: ParameterGroup) -> dict[str, _Planned]:
        touched = any(self._is_touched(name) for name in group.targets)
        if touched and group.converter is None:
            name = group.targets[0]
            self._check_provided(name)
            planned = _Planned(dtype=self._dtype_of(name), shape=self._map.shapes[name], parameter=name)
            return {self._save_name(group, name): planned}
        for name in group.targets:
            self._check_provided(name)
        plan: dict[str, _Planned] = {}
        for source in group.sources:
            entry = self._checkpoint.entries[source]
            dtype = self._dtype if self._dtype and entry.dtype in TORCH_DTYPES else entry.dtype
            name = source if group.converter else self._save_name(group, group.targets[0])
            plan[name] = _Planned(
                dtype=dtype, shape=entry.shape, source=None if touched else source, group=group if touched else None
            )
        return plan

    def _save_name(self, group: ParameterGroup, name: str) -> str:
        """A checkpoint keeps its own names; one that gets a head around it gets the names of the new class."""
        same = self.architecture in (self._checkpoint.config.get("architectures") or [])
        return group.sources[0] if same else self._map.save_name(name)

    def _check_provided(self, name: str) -> None:
        """Every parameter needs a value of its shape: from the adapters, or else from the base."""
        needed = self._map.shapes[name]
        if any(name in graft.replaced for graft in self._grafts) or self._override_of(name) is not None:
            return  # shapes were checked when the adapter was grafted
        found = self._map.base_shape(name)
        if found == needed:
            return
        if found is None:
            raise CheckpointError(
                f"{self._checkpoint.folder}: {self.architecture} needs {name!r}, and neither the base nor an adapter "
                "has it; it would be random",
                mend="Give the base with this head, or an adapter that was trained with it in modules_to_save; or "
                "choose the model class that the base really has.",
            )
        if self.fit.vocab_size is not None and needed[:1] == (self.fit.vocab_size,):
            raise MergeError(
                f"the adapter was trained with a vocabulary of {self.fit.vocab_size}; {name!r} has shape {found} in "
                f"the base, needed is {needed}, and the adapter does not bring it",
                mend="Save the adapter with save_embedding_layers=True.",
            )
        raise CheckpointError(
            f"{self._checkpoint.folder}: {name!r} has shape {found}, its config.json says {needed}",
            mend="config.json and weights are of two models: copy the checkpoint again.",
        )

    def _revert(self, group: ParameterGroup) -> dict[str, Tensor]:
        """Turn merged parameters back into the tensors of the base that they are made of."""
        reverted = self._map.revert({name: self._value(name) for name in group.targets})
        result: dict[str, Tensor] = {}
        for source in group.sources:
            names = [name for name in reverted if source == name or source.endswith(f".{name}")]
            names += [name for name in reverted if name.endswith(f".{source}")]
            if len(names) != 1 or reverted[names[0]].shape != self._checkpoint.entries[source].shape:
                raise UnsupportedError(
                    f"{source!r} is stored in a form that transformers cannot write back after merging",
                    mend="Load the base with transformers, save it again with save_pretrained, and merge into that.",
                )
            result[source] = reverted[names[0]]
        return result

    def _make_notes(self) -> list[str]:
        unused = self._map.unused
        if not unused:
            return []
        more = ", …" if len(unused) > 3 else ""
        named = ", ".join(unused[:3])
        return [f"base: {len(unused)} tensors are no part of {self.architecture} and are left out ({named}{more})"]


def _encode(value: Tensor, dtype: str, name: str) -> memoryview:
    """Round to the type in which a tensor is stored; what does not fit must not become infinite."""
    rounded = value.detach().to(TORCH_DTYPES[dtype]).contiguous().reshape(-1)
    data = rounded.view(torch.uint8).numpy().data
    if count := count_nonfinite(data, dtype):
        raise MergeError(
            f"merged tensor {name!r} holds {count} values that {dtype} cannot represent",
            mend="Save in a wider type, e.g. float32 or bfloat16.",
        )
    return data
