"""What each tensor of a merged checkpoint is made of, computed and written one at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.adapter import Adapter
from compress.carry import Fit
from compress.checkpoint import Checkpoint
from compress.checkpoint_writer import CheckpointWriter
from compress.memory import release_free_memory
from compress.merged_values import MergedValues, encode
from compress.parameter_map import ParameterGroup
from compress.skeleton import TORCH_DTYPES, build_skeleton, embeddings_of, load_config, resolve_model_class
from compress.tensor_file import count_nonfinite, nonfinite_error
from compress.tensor_header import DTYPE_BITS
from edgesmith.errors import UnsupportedError
from edgesmith.progress import Progress

__all__ = ["MergedWeights"]

_RELEASE_BYTES = 16 << 20


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
        self._values = MergedValues(checkpoint, adapters, config=config, model_class=found)
        self._map = self._values.map
        self.fit: Fit = self._values.fit
        skeleton = self._values.skeleton
        self.architecture = type(skeleton).__name__
        self.num_embeddings: int | None = getattr(embeddings_of(skeleton)[0], "num_embeddings", None)
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
        since_release = 0
        try:
            with progress.bar("merge", self.size_bytes) as advance:
                for name, planned in self._plan.items():
                    if name not in written:
                        for done, pieces in self._produce(name, planned):
                            writer.write(done, pieces)
                            written.add(done)
                            advance(self._plan[done].size_bytes)
                            since_release += self._plan[done].size_bytes
                    if since_release >= _RELEASE_BYTES:
                        release_free_memory()
                        since_release = 0
            writer.close()
        except BaseException:
            writer.abandon()
            raise

    def _produce(self, name: str, planned: _Planned) -> Iterator[tuple[str, Iterator[memoryview] | list[memoryview]]]:
        if planned.source is not None:
            yield name, self._copy(planned.source, planned.dtype)
        elif planned.parameter is not None:
            yield name, [encode(self._values.value(planned.parameter), planned.dtype, name)]
        elif planned.group is not None:
            for source, value in self._revert(planned.group).items():
                yield source, [encode(value, self._plan[source].dtype, source)]

    def _copy(self, source: str, dtype: str) -> Iterator[memoryview]:
        entry = self._checkpoint.entries[source]
        if entry.dtype != dtype:
            raw = torch.frombuffer(self._checkpoint.read(source), dtype=TORCH_DTYPES[entry.dtype])
            yield encode(raw, dtype, source)
            return
        for piece in self._checkpoint.chunks(source):
            if count := count_nonfinite(piece, dtype):
                raise nonfinite_error(self._checkpoint.path_of(source), source, count, math.prod(entry.shape))
            yield piece

    def _must_untie(self) -> bool:
        """Whether adapters make parameters differ that share their values in the base."""
        for source in sorted(set(self._map.tied.values())):
            names = self._map.aliases(source)
            if any(self._values.is_touched(name) for name in names):
                digests = {self._digest(name) for name in names}
                if len(digests) > 1:
                    return True
        return False

    def _digest(self, name: str) -> bytes:
        return self._values.digest(name, self._dtype_of(name))

    def _untied_ties(self, model_class: type[Any]) -> dict[str, str]:
        """Ties that transformers keeps when the configuration says that embeddings are not tied."""
        config = copy.deepcopy(self.fit.config)
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = False
        ties: dict[str, str] = dict(build_skeleton(config, model_class).all_tied_weights_keys)
        for target, source in ties.items():
            if (self._values.is_touched(target) or self._values.is_touched(source)) and self._digest(
                target
            ) != self._digest(source):
                raise UnsupportedError(
                    f"{self.architecture} always ties {target!r} to {source!r}, and the adapter makes them differ",
                    mend="Train with both targeted and ensure_weight_tying=True, or without them.",
                )
        return ties

    def _dtype_of(self, name: str) -> str:
        stored = self._map.dtype_of(name)
        return self._dtype if self._dtype and stored in TORCH_DTYPES else stored

    def _make_plan(self) -> dict[str, _Planned]:
        plan: dict[str, _Planned] = {}
        for group in self._map.groups:
            plan |= self._plan_group(group)
        for name in self._map.shapes:
            if name not in self._map.group_of and name not in self._ties and name not in self._map.optional:
                self._values.check_provided(name)
                plan[self._map.save_name(name)] = _Planned(
                    dtype=self._dtype_of(name), shape=self._map.shapes[name], parameter=name
                )
        return plan

    def _plan_group(self, group: ParameterGroup) -> dict[str, _Planned]:
        touched = any(self._values.is_touched(name) for name in group.targets)
        if touched and group.converter is None:
            name = group.targets[0]
            self._values.check_provided(name)
            planned = _Planned(dtype=self._dtype_of(name), shape=self._map.shapes[name], parameter=name)
            return {self._save_name(group, name): planned}
        for name in group.targets:
            self._values.check_provided(name)
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

    def _revert(self, group: ParameterGroup) -> dict[str, Tensor]:
        """Turn merged parameters back into the tensors of the base that they are made of."""
        reverted = self._map.revert({name: self._values.value(name) for name in group.targets})
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
