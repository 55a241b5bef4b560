"""One adapter on a weightless model: what it changes, and its effect on one module at a time.

PEFT itself builds the adapter's layers, loads its weights and merges; here it only ever sees one module with
real weights. So the arithmetic is PEFT's own, and the memory is that of one module.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, TrainableTokensWrapper
from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
from torch import Tensor, nn

from compress.adapter import Adapter
from compress.inject import inject_layers, load_peft_config, peft_speaks_up
from compress.skeleton import INDEX_DTYPES, TORCH_DTYPES, quiet_transformers, zero_parameter
from edgesmith.errors import MergeError

if TYPE_CHECKING:
    pass

__all__ = ["Graft", "base_name_of", "read_adapter_tensor"]

_PREFIX = "base_model.model."
_NAME = "default"
_WRAPPERS = re.compile(r"\.(base_layer|original_module|token_adapter|modules_to_save(\.default)?)(?=\.)")


def base_name_of(tensor_name: str) -> str:
    """Strip what PEFT adds to the name of a parameter of the base model.

    >>> base_name_of("base_model.model.model.embed_tokens.token_adapter.base_layer.weight")
    'model.embed_tokens.weight'
    """
    return _WRAPPERS.sub("", tensor_name.removeprefix(_PREFIX))


def read_adapter_tensor(adapter: Adapter, name: str) -> Tensor:
    """Read one tensor of an adapter: as float32, or as it is when it holds indices.

    Raises:
        MergeError: it is stored in a type that holds no plain floating-point numbers.
    """
    entry = adapter.file.entries[name]
    dtype = TORCH_DTYPES.get(entry.dtype) or INDEX_DTYPES.get(entry.dtype)
    if dtype is None:
        raise MergeError(
            f"{adapter.describe()}: {name!r} is stored as {entry.dtype}, expected a floating-point type",
            mend="Save the adapter in float32, float16 or bfloat16.",
        )
    if entry.size_bytes == 0:
        return torch.empty(entry.shape, dtype=dtype)
    value = torch.frombuffer(adapter.file.read(name), dtype=dtype).reshape(entry.shape)
    return value.float() if value.is_floating_point() else value


class Graft:
    """An adapter whose layers were put into a skeleton of its base.

    Args:
        adapter: The adapter.
        skeleton: A weightless model of its own; PEFT changes it.

    Attributes:
        edited: Parameter → path of the module in which the adapter changes it.
        replaced: Parameter → tensor of the adapter that takes its place, in modules that were trained whole.
        overridden: Parameter → tensor of the adapter that is the base's value, before any edit: resized
            embeddings and trained biases.

    Raises:
        MergeError: the adapter does not fit this base; a tensor is missing or left over.
    """

    def __init__(self, adapter: Adapter, skeleton: Any) -> None:
        self.adapter = adapter
        shapes = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
        self._names = frozenset(shapes)
        whole = {name: base for name in adapter.file.entries if (base := base_name_of(name)) in shapes}
        _check_whole_shapes(adapter, whole, shapes)
        self._config, self._start = load_peft_config(adapter)
        self._model = inject_layers(adapter, self._config, skeleton)
        self._base = self._model.base_model.model
        self._load(whole)
        self.edited: dict[str, str] = {}
        self.replaced: dict[str, str] = {}
        self._find_edits(whole)
        self.overridden = {base: name for name, base in whole.items() if base not in self.replaced}
        for name in whole:
            if ".modules_to_save." in name and not self._is_repeated(name):
                raise _mismatch(adapter, f"{name!r} differs from the tensor of the module it belongs to", 1)

    def merge(self, path: str, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Compute the merged parameters of one module.

        Args:
            path: One of the values of `edited`.
            read: Gives the base's value of a parameter, float32, in memory that may be changed.

        Returns:
            Parameter name → merged value, float32, for all parameters of the module.

        Raises:
            MergeError: PEFT cannot merge this layer.
        """
        layer = self._base.get_submodule(path)
        if isinstance(layer, TrainableTokensWrapper):
            layer = layer.token_adapter
        inner = layer.get_base_layer()
        self._fill_(inner, path, read)
        try:
            with torch.no_grad(), peft_speaks_up(self.adapter):
                if self._start is not None:
                    self._rebase_(layer)
                if hasattr(layer, "unload_and_optionally_merge_module"):
                    inner = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
                else:
                    layer.merge(safe_merge=False)
                    inner = layer.get_base_layer()
        except (ValueError, NotImplementedError, RuntimeError, TypeError, AttributeError) as error:
            raise MergeError(
                f"{self.adapter.describe()}: PEFT cannot merge {path!r}: {error}",
                mend="Train without the setting that it names, or ship base and adapter side by side.",
            ) from error
        merged = {name: parameter.detach() for name, _, _, parameter in self._parameters(inner, path)}
        for _, owner, leaf, parameter in self._parameters(inner, path):
            setattr(owner, leaf, zero_parameter(parameter.shape))
        layer.merged_adapters = []
        return merged

    def _parameters(self, inner: nn.Module, path: str) -> list[tuple[str, nn.Module, str, nn.Parameter]]:
        """List the base's parameters in a layer: name in the base, module that owns it, name there, value.

        A layer can have adapters of its own inside (attention with its output projection): those are left out.
        """
        found = []
        for name, parameter in inner.named_parameters():
            base = base_name_of(f"{path}.{name}")
            if base in self._names:
                owner, _, leaf = name.rpartition(".")
                found.append((base, inner.get_submodule(owner), leaf, parameter))
        return found

    def _fill_(self, inner: nn.Module, path: str, read: Callable[[str], Tensor]) -> None:
        for base, owner, leaf, _ in self._parameters(inner, path):
            setattr(owner, leaf, nn.Parameter(read(base), requires_grad=False))

    def _rebase_(self, layer: Any) -> None:
        """Repeat the start that took the adapter's first values out of the base weight, then put A and B back."""
        trained = {name: getattr(layer, name)[_NAME].weight.data.clone() for name in ("lora_A", "lora_B")}
        config = copy.copy(self._config)
        config.init_lora_weights = self._start
        layer.update_layer(_NAME, layer.r[_NAME], lora_alpha=layer.lora_alpha[_NAME], config=config)
        for name, value in trained.items():
            getattr(layer, name)[_NAME].weight.data = value

    def _load(self, whole: Mapping[str, str]) -> None:
        wrapped = {
            f"{_PREFIX}{path}.{key}"
            for path, module in self._base.named_modules()
            if isinstance(module, ModulesToSaveWrapper)
            for key in module.adapter_state_dict_load_map(_NAME)
        }
        tensors: dict[str, Tensor] = {}
        for name, entry in self.adapter.file.entries.items():
            if name in wrapped:
                tensors[name] = torch.empty(entry.shape, device="meta")
            elif name not in whole and not self._is_repeated(name):
                tensors[name] = read_adapter_tensor(self.adapter, name)
        with warnings.catch_warnings(), quiet_transformers():
            warnings.simplefilter("ignore")  # on tensors that stay on the meta device, which is meant
            self._check_tensors(tensors, whole)
            set_peft_model_state_dict(self._model, tensors)

    def _is_repeated(self, name: str) -> bool:
        """Whether a tensor repeats another one, bit for bit.

        PEFT writes some twice when it saves embeddings or biases: what a wrapper trained, and the rows of tokens
        that a tied layer shares.
        """
        original = name.replace(".modules_to_save.", ".")
        if name.endswith(".token_adapter.trainable_tokens_delta"):
            path = base_name_of(name).rpartition(".")[0]
            wrapper = self._base.get_submodule(path)
            tied = wrapper.token_adapter.tied_adapter if isinstance(wrapper, TrainableTokensWrapper) else None
            sources = [other for other, module in self._base.named_modules() if tied is not None and module is tied]
            original = f"{_PREFIX}{sources[0]}.trainable_tokens_delta" if sources else name
        file = self.adapter.file
        return original != name and original in file.entries and file.read(original) == file.read(name)

    def _check_tensors(self, tensors: dict[str, Tensor], whole: Mapping[str, str]) -> None:
        """Every tensor that the layers need must be there, with its shape; every tensor must be needed."""
        given = convert_peft_adapter_state_dict_for_transformers(self._model, self._config, tensors, _NAME)
        expected = get_peft_model_state_dict(self._model, save_embedding_layers=False)
        if missing := sorted(set(expected) - set(given) - set(whole)):
            raise _mismatch(self.adapter, f"{missing[0]!r} is missing", len(missing))
        if extra := sorted(set(given) - set(expected)):
            raise _mismatch(self.adapter, f"{extra[0]!r} fits nothing in the base", len(extra))
        for name, value in given.items():
            if value.shape != expected[name].shape:
                found, needed = tuple(value.shape), tuple(expected[name].shape)
                raise _mismatch(self.adapter, f"{name!r} has shape {found}, the base needs {needed}", 1)

    def _find_edits(self, whole: Mapping[str, str]) -> None:
        names_of = {base: name for name, base in whole.items() if name == f"{_PREFIX}{base}"}
        done: list[str] = []
        for path, module in self._base.named_modules():
            if not isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
                continue
            if any(path.startswith(f"{outer}.") for outer in done):
                continue
            done.append(path)
            if isinstance(module, ModulesToSaveWrapper):
                self._find_replaced(path, module, names_of)
                continue
            layer = module
            if isinstance(module, TrainableTokensWrapper):
                layer = module.token_adapter
                self._check_tokens(path, layer.get_base_layer())
            for base, _, _, _ in self._parameters(layer.get_base_layer(), path):
                self.edited[base] = path

    def _check_tokens(self, path: str, inner: nn.Module) -> None:
        if isinstance(inner, nn.Linear) and inner.bias is not None:
            raise MergeError(
                f"{self.adapter.describe()}: PEFT leaves out the bias of {path!r} when it trains single tokens of a "
                "layer tied to the embeddings, so the merged model would not be the trained one",
                mend="Train with modules_to_save for the embeddings instead of trainable_token_indices.",
            )

    def _find_replaced(self, path: str, module: ModulesToSaveWrapper, names_of: Mapping[str, str]) -> None:
        copied = module.modules_to_save[_NAME]
        if any(isinstance(inner, BaseTunerLayer) for inner in copied.modules()):
            raise MergeError(
                f"{self.adapter.describe()}: {path!r} was trained whole and has adapters inside as well",
                mend="Take its inner modules out of target_modules and train again.",
            )
        for name, _ in copied.named_parameters():
            self.replaced[f"{path}.{name}"] = names_of[f"{path}.{name}"]


def _check_whole_shapes(adapter: Adapter, whole: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, base in whole.items():
        found = adapter.file.entries[name].shape
        if found != shapes[base]:
            raise _mismatch(adapter, f"{name!r} has shape {found}, the base needs {shapes[base]}", 1)


def _mismatch(adapter: Adapter, what: str, count: int) -> MergeError:
    recorded = adapter.config.get("base_model_name_or_path")
    more = f" (and {count - 1} more)" if count > 1 else ""
    return MergeError(
        f"{adapter.describe()}: does not fit this base: tensor {what}{more}",
        mend=f"Give the base that the adapter was trained on (it records {recorded!r}); "
        "if that is this one, save the adapter again.",
    )
