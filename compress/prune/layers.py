"""Leaving whole layers out of a model: which, and the smaller model that is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from compress.prune.batches import Batch, as_batches, main_output, outputs_of, sample_batch, token_mask
from compress.prune.layer_stack import LayerStack, find_stack, skipped
from compress.prune.rebuild import change_config, rebuild
from edgesmith.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LayerChoice", "choose_layers", "keep_layers", "layer_importance"]

LayerChoice: TypeAlias = Literal["uniform", "influence"] | Sequence[int]

_TOLERANCE = 1e-4
"""Largest difference, relative to the largest output, between the smaller model and the full one that skips layers."""


def choose_layers(
    model: PreTrainedModel,
    num_layers: int,
    which: LayerChoice = "uniform",
    batches: Sequence[Mapping[str, Any]] = (),
) -> tuple[int, ...]:
    """Choose the layers that stay, in ascending order.

    Args:
        model: In evaluation mode.
        num_layers: Layers that stay.
        which: `uniform`: spread evenly, first and last included; `influence`: those that turn the hidden states
            most (ShortGPT's block influence); or their numbers from 0, in any order.
        batches: Encoded rows; needed for influence.

    Raises:
        UsageError: more layers than there are, fewer than one, or a list that does not fit.
        UnsupportedError: the model's layers cannot be told.
        DataError: there are no batches, and the choice needs some.
    """
    stack = find_stack(model)
    total = stack.num_layers
    if not 1 <= num_layers <= total:
        raise UsageError(
            f"num_layers: {num_layers} of {total} layers", mend=f"Give a number from 1 to {total}: it is what stays."
        )
    if which == "uniform":
        return _uniform(total, num_layers)
    if which == "influence":
        importance = layer_importance(model, batches)
        # Where one layer has tensors that the others lack, such as the table of relative positions, nothing can
        # take its place.
        needed = [index for index in range(total) if _is_singular(stack, index)]
        order = sorted(
            range(total), key=lambda index: (index not in needed, 0.0 if index in needed else -importance[index], index)
        )
        return tuple(sorted(order[:num_layers]))
    chosen = tuple(sorted(which))
    if len(set(chosen)) != num_layers or len(chosen) != num_layers or not all(0 <= index < total for index in chosen):
        raise UsageError(
            f"layers {list(which)} are not {num_layers} different ones of 0 to {total - 1}",
            mend="Number layers from 0, and give as many as num_layers says.",
        )
    return chosen


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Make a model of some of another's layers, with all else as it is.

    Args:
        model: In evaluation mode. Not modified.
        kept: Their numbers from 0, ascending.

    Returns:
        A model of the same class, in evaluation mode, trainable, which `save_pretrained` saves as an ordinary model.
        That it computes what the full model does when it skips the other layers has been checked.

    Raises:
        UnsupportedError: the model's layers cannot be told, or do not work without each other.
    """
    stack = find_stack(model)
    text = model.config.get_text_config()
    changes: dict[str, Any] = {"num_hidden_layers": len(kept)}
    for name, value in text.to_dict().items():
        if isinstance(value, list | tuple) and len(value) == stack.num_layers and _is_per_layer(name):
            changes[name] = [value[index] for index in kept]
    try:
        config = change_config(model.config, changes)
    except (ValueError, TypeError) as error:
        raise UnsupportedError(
            f"{type(model).__name__}: transformers takes no configuration of {len(kept)} layers: {error}",
            mend="Keep all layers of this model.",
        ) from error
    tensors: dict[str, Tensor] = model.state_dict()

    def tensor_of(name: str) -> Tensor:
        if name.startswith(f"{stack.name}."):
            index, _, rest = name.removeprefix(f"{stack.name}.").partition(".")
            name = f"{stack.name}.{kept[int(index)]}.{rest}"
        return tensors[name]

    smaller = rebuild(model, config, tensor_of)
    _check(model, stack, smaller, kept)
    return smaller


def layer_importance(model: PreTrainedModel, batches: Sequence[Mapping[str, Any]]) -> list[float]:
    """Measure how much each layer does, on real rows.

    Args:
        model: In evaluation mode.
        batches: Encoded rows.

    Returns:
        One figure a layer, larger for those that do more: 1 - cos(before, after), the mean over the positions that
        are no padding.

    Source: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect" (2024), eq. 1.
    """
    stack, prepared = find_stack(model), as_batches(batches, model)
    with torch.inference_mode():
        return _influence(model, stack, prepared)


def _uniform(total: int, num: int) -> tuple[int, ...]:
    if num == 1:
        return (0,)
    return tuple((2 * index * (total - 1) + num - 1) // (2 * (num - 1)) for index in range(num))


def _is_singular(stack: LayerStack, index: int) -> bool:
    signature = stack.signature(index)
    return all(stack.signature(other) != signature for other in range(stack.num_layers) if other != index)


def _is_per_layer(name: str) -> bool:
    """Whether a list of as many values as layers is one of layers: labels, or sizes of an image, are not."""
    return not any(word in name for word in ("token_id", "image_size", "patch_size", "label", "architectures"))


def _influence(model: PreTrainedModel, stack: LayerStack, batches: Sequence[Batch]) -> list[float]:
    totals, count = [0.0] * stack.num_layers, 0
    masks: list[Tensor] = []
    batch: Batch

    def hook(index: int) -> Any:
        def measure(_: Any, args: tuple[Any, ...], result: Any) -> None:
            before, after = args[0], result[0] if isinstance(result, tuple) else result
            cosines = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
            totals[index] += float((1 - cosines)[masks[-1]].sum())

        return measure

    first = stack.layers[0].register_forward_pre_hook(lambda _, args: masks.append(token_mask(batch, args[0])))
    hooks = [first, *(layer.register_forward_hook(hook(index)) for index, layer in enumerate(stack.layers))]
    try:
        for batch in batches:
            outputs_of(model, batch)
            count += int(masks[-1].sum())
    finally:
        for handle in hooks:
            handle.remove()
    return [total / count for total in totals]


def _check(model: PreTrainedModel, stack: LayerStack, smaller: PreTrainedModel, kept: Sequence[int]) -> None:
    """Hold the smaller model against the full one that skips the other layers."""
    left = find_stack(smaller)
    for index, origin in enumerate(kept):
        if left.signature(index) != stack.signature(origin):
            raise UnsupportedError(
                f"{type(model).__name__}: layer {origin} cannot take the place of layer {index}: their tensors differ",
                mend=f"Keep layer {index}: nothing can stand in for it.",
            )
    batch = sample_batch(model)
    with torch.inference_mode(), skipped(stack, set(range(stack.num_layers)) - set(kept)):
        expected = main_output(outputs_of(model, batch))
    with torch.inference_mode():
        found = main_output(outputs_of(smaller, batch))
    difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not difference <= _TOLERANCE:
        raise UnsupportedError(
            f"{type(model).__name__}: with layers {list(kept)} alone its outputs differ by {difference:.2g} (relative; "
            f"allowed {_TOLERANCE:g}) from those of the full model that skips the others: its layers depend on their "
            "numbers",
            mend="Keep all layers of this model, and prune its `ffn` or `heads`.",
        )
