"""Which tensors have one row for each token: those that grow when the configuration's vocabulary grows by one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from compress.checkpoint import Checkpoint
from compress.parameter_map import ParameterMap
from compress.skeleton import build_skeleton, embeddings_of, load_config, resolve_model_class
from edgesmith.errors import CheckpointError, UnsupportedError

__all__ = ["Architecture", "VocabularyAxis", "VocabularyKey", "configs_of", "find_axes"]

_KEYS = ("vocab_size", "vocab_size_per_layer_input")
_LEAVE_OUT = "Leave the step trim-vocabulary out for this checkpoint."


@dataclass(frozen=True, kw_only=True)
class VocabularyKey:
    """One place of the configuration that says how many tokens there are."""

    path: tuple[str, ...]
    """Of the nested configuration, from the top; empty for the top itself."""
    name: str
    """As `config.json` spells it, such as `vocab_size` or `n_words`."""
    size: int

    def __str__(self) -> str:
        return ".".join((*self.path, self.name))


@dataclass(frozen=True, kw_only=True)
class VocabularyAxis:
    """One tensor of a checkpoint with an axis of tokens."""

    tensor: str
    axis: int
    key: VocabularyKey


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What a vocabulary touches of a model."""

    config: Any
    """Of transformers' class."""
    model_class: type[Any]
    keys: tuple[VocabularyKey, ...]
    axes: dict[str, VocabularyAxis]
    """Tensor of the checkpoint → its axis of tokens."""
    num_rows: int
    """Of the input embeddings."""


def find_axes(checkpoint: Checkpoint) -> Architecture:
    """Build the model without weights, once as it is and once for each key with a larger vocabulary, and compare.

    Raises:
        CheckpointError: configuration and weights do not fit together.
        UnsupportedError: the model has no tokens, or something of it follows the vocabulary in another way.
    """
    config = load_config(checkpoint)
    model_class = resolve_model_class(config, requested=None, task_types=())
    skeleton = build_skeleton(config, model_class)
    num_rows = getattr(embeddings_of(skeleton)[0], "num_embeddings", None)
    if num_rows is None or skeleton.main_input_name != "input_ids":
        raise UnsupportedError(
            f"{checkpoint.folder}: {model_class.__name__} reads {skeleton.main_input_name}, no tokens", mend=_LEAVE_OUT
        )
    names = ParameterMap(checkpoint, skeleton)
    shapes = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
    axes: dict[str, VocabularyAxis] = {}
    keys = [key for key in _keys_of(config) if key.name == "vocab_size_per_layer_input" or key.size >= num_rows]
    for key in keys:
        grown = build_skeleton(_with_size(config, key, key.size + 1), model_class).state_dict()
        for name, shape in shapes.items():
            axis = _changed_axis(name, shape, tuple(grown[name].shape), key)
            if axis is None:
                continue
            for tensor in _tensors_of(names, name):
                if tensor in axes:
                    raise UnsupportedError(
                        f"{tensor} follows both {axes[tensor].key} and {key} of config.json", mend=_LEAVE_OUT
                    )
                _check_shape(checkpoint, tensor, shape)
                axes[tensor] = VocabularyAxis(tensor=tensor, axis=axis, key=key)
    used = tuple(key for key in keys if any(axis.key == key for axis in axes.values()) or key.size == num_rows)
    if not axes:
        raise UnsupportedError(
            f"{checkpoint.folder}: no tensor of {model_class.__name__} follows the vocabulary's size in config.json",
            mend=_LEAVE_OUT,
        )
    return Architecture(config=config, model_class=model_class, keys=used, axes=axes, num_rows=num_rows)


def configs_of(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield a configuration and all that are nested in it, with the path to each."""
    from transformers import PreTrainedConfig

    yield path, config
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from configs_of(value, (*path, name))


def _keys_of(config: Any) -> Iterator[VocabularyKey]:
    for path, part in configs_of(config):
        if getattr(part, "vocab_offset", None) is not None:
            raise UnsupportedError(
                f"config.json: {'.'.join((*path, 'vocab_offset'))} numbers tokens of pictures or sounds after those of "
                "text, so the text's ids cannot change",
                mend="Save the text model alone, or leave the step trim-vocabulary out.",
            )
        for name in _KEYS:
            size = getattr(part, name, None)
            if type(size) is int:
                yield VocabularyKey(path=path, name=part.attribute_map.get(name, name), size=size)


def _with_size(config: Any, key: VocabularyKey, size: int) -> Any:
    changed = part = copy.deepcopy(config)
    for name in key.path:
        part = getattr(part, name)
    setattr(part, key.name, size)
    return changed


def _changed_axis(name: str, shape: tuple[int, ...], grown: tuple[int, ...], key: VocabularyKey) -> int | None:
    changed = [axis for axis, sizes in enumerate(zip(shape, grown, strict=True)) if sizes[0] != sizes[1]]
    if not changed:
        return None
    if len(changed) > 1 or (shape[changed[0]], grown[changed[0]]) != (key.size, key.size + 1):
        raise UnsupportedError(
            f"{name} has the shape {list(shape)}, and {list(grown)} for {key} = {key.size + 1} instead of {key.size}: "
            "it has no one row for each token",
            mend=_LEAVE_OUT,
        )
    return changed[0]


def _tensors_of(names: ParameterMap, parameter: str) -> tuple[str, ...]:
    group = names.group_of.get(parameter)
    if group is None:  # tied, or left to be missing
        return ()
    if group.converter is not None:
        raise UnsupportedError(
            f"{parameter} is stored as {', '.join(group.sources)}, which transformers rearranges on loading",
            mend="Save the model again with save_pretrained(..., save_original_format=False).",
        )
    return group.sources


def _check_shape(checkpoint: Checkpoint, tensor: str, shape: tuple[int, ...]) -> None:
    found = checkpoint.entries[tensor].shape
    if found != shape:
        raise CheckpointError(
            f"{checkpoint.folder}: the tensor {tensor} has shape {list(found)}, config.json asks for {list(shape)}",
            mend="The weights and config.json are not of one model: get both from one source.",
        )
