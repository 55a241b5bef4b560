"""The values of a merged model's parameters, each computed when it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from compress.adapter import Adapter
from compress.carry import Fit, fit_to_adapters
from compress.checkpoint import Checkpoint
from compress.graft import Graft, read_adapter_tensor
from compress.parameter_map import ParameterMap
from compress.skeleton import INDEX_DTYPES, TORCH_DTYPES, build_skeleton
from compress.tensor_file import count_nonfinite
from edgesmith.errors import CheckpointError, MergeError

__all__ = ["MergedValues", "encode"]


class MergedValues:
    """What the adapters make of each parameter of the base.

    Args:
        checkpoint: The base.
        adapters: What to merge, scaled by their weights and summed.
        config: The base's configuration, of transformers' class.
        model_class: The class that the adapters were trained with.

    Attributes:
        fit: The configuration that the result needs.
        map: Where the base's values come from.

    Raises:
        MergeError: an adapter does not fit the base, or adapters contradict each other.
    """

    def __init__(
        self, checkpoint: Checkpoint, adapters: Sequence[Adapter], *, config: Any, model_class: type[Any]
    ) -> None:
        self.fit: Fit = fit_to_adapters(config, build_skeleton(config, model_class), adapters)
        self.skeleton = build_skeleton(self.fit.config, model_class)
        self.map = ParameterMap(checkpoint, self.skeleton)
        self._grafts = [Graft(adapter, build_skeleton(self.fit.config, model_class)) for adapter in adapters]
        self._merged: dict[str, Tensor] = {}
        self._check_claims()

    def value(self, name: str, *, keep: bool = True) -> Tensor:
        """Compute one parameter of the merged model, float32.

        Args:
            name: The parameter.
            keep: Whether the other parameters of its module, which are computed with it, will be asked for too.
        """
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
        return self.map.read(name)

    def _override_of(self, name: str) -> tuple[Graft, str] | None:
        for alias in self.map.aliases(name):
            for graft in self._grafts:
                if alias in graft.overridden:
                    return graft, graft.overridden[alias]
        return None

    def is_touched(self, name: str) -> bool:
        """Whether an adapter changes a parameter."""
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

    def digest(self, name: str, dtype: str) -> bytes:
        """Hash a parameter's merged value as it will be stored."""
        return hashlib.sha256(encode(self.value(name, keep=False), dtype, name)).digest()

    def check_provided(self, name: str) -> None:
        """Check that a parameter has a value of its shape: from the adapters, or else from the base.

        Raises:
            CheckpointError: it has none, or the base's weights do not fit its configuration.
            MergeError: the adapter was trained with another vocabulary and does not bring it.
        """
        needed = self.map.shapes[name]
        if any(name in graft.replaced for graft in self._grafts) or self._override_of(name) is not None:
            return  # shapes were checked when the adapter was grafted
        found = self.map.base_shape(name)
        if found == needed:
            return
        if found is None:
            raise CheckpointError(
                f"{self.map.checkpoint.folder}: {type(self.skeleton).__name__} needs {name!r}, and neither "
                "the base nor an adapter has it; it would be random",
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
            f"{self.map.checkpoint.folder}: {name!r} has shape {found}, its config.json says {needed}",
            mend="config.json and weights are of two models: copy the checkpoint again.",
        )


def encode(value: Tensor, dtype: str, name: str) -> memoryview:
    """Round to the type in which a tensor is stored; what does not fit must not become infinite."""
    rounded = value.detach().to(TORCH_DTYPES.get(dtype) or INDEX_DTYPES[dtype]).contiguous().reshape(-1)
    data = rounded.view(torch.uint8).numpy().data
    if count := count_nonfinite(data, dtype):
        raise MergeError(
            f"merged tensor {name!r} holds {count} values that {dtype} cannot represent",
            mend="Save in a wider type, e.g. float32 or bfloat16.",
        )
    return data
