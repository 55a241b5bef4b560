"""Building a model of another shape from the tensors of one that is there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers.initialization import no_init_weights

from compress.skeleton import quiet_transformers
from edgesmith.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["change_config", "get_setting", "rebuild"]


def get_setting(config: Any, name: str) -> Any:
    """Read a value of a configuration by its common or its own name, with an index: `hidden_sizes[1]`."""
    base, _, index = name.partition("[")
    value = getattr(config.get_text_config(), base, None)
    return value if not index or value is None else value[int(index[:-1])]


def change_config(config: Any, changes: Mapping[str, Any]) -> Any:
    """Copy a configuration with other values, as it would be read again from its file.

    Args:
        config: Of transformers' class. Not modified.
        changes: Common (`num_hidden_layers`) or own name (`n_layer`), with an index for one value of a list
            (`hidden_sizes[1]`), → new value.

    Raises:
        ValueError: transformers refuses a value.
    """
    whole = copy.deepcopy(config.to_dict())
    text = config.get_text_config()
    part = whole
    if text is not config:
        part = next(whole[name] for name in config.sub_configs if getattr(config, name, None) is text)
    for name, value in changes.items():
        base, _, index = name.partition("[")
        own = text.attribute_map.get(base, base)
        if index:
            part[own] = list(part[own])
            part[own][int(index[:-1])] = value
        else:
            part[own] = value
    try:
        with quiet_transformers():
            changed = type(config).from_dict(whole)
    except StrictDataclassError as error:
        raise ValueError(" ".join(str(error).split())) from error
    changed._attn_implementation = config._attn_implementation
    return changed


def rebuild(model: PreTrainedModel, config: Any, tensor_of: Callable[[str], Tensor]) -> PreTrainedModel:
    """Build a model of the same class from another configuration, every weight and buffer given.

    Args:
        model: Its class, dtype, device and generation settings are taken over.
        config: What it is built from.
        tensor_of: Name of a tensor of the new model → its value; KeyError where there is none.

    Returns:
        The new model in evaluation mode, trainable, sharing no memory with `model`.

    Raises:
        UnsupportedError: the new model has a tensor that is not given, or of another shape.
    """
    first = next(model.parameters())
    with quiet_transformers(), no_init_weights():
        built: PreTrainedModel = type(model)._from_config(copy.deepcopy(config), dtype=first.dtype)
    built.tie_weights()
    with torch.no_grad():
        for name, target in built.state_dict(keep_vars=True).items():
            try:
                value = tensor_of(name)
            except KeyError:
                raise UnsupportedError(
                    f"{type(model).__name__}: with the smaller configuration it has a tensor {name} "
                    f"{list(target.shape)}, which the full model has not",
                    mend="This architecture cannot be cut there.",
                ) from None
            if value.shape != target.shape:
                raise UnsupportedError(
                    f"{type(model).__name__}: {name} would be cut to {list(value.shape)}, but the smaller "
                    f"configuration asks for {list(target.shape)}",
                    mend="This architecture cannot be cut there.",
                )
            target.copy_(value)
    built.generation_config = copy.deepcopy(getattr(model, "generation_config", None))
    return built.to(first.device).eval()
