"""Where a model's layers are, and leaving some of them out for the length of a block."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from edgesmith.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LayerStack", "find_stack", "skipped"]


@dataclass(frozen=True, kw_only=True)
class LayerStack:
    """The layers that a model's hidden states pass one after the other."""

    name: str
    """Of the list of modules, such as `bert.encoder.layer`."""
    layers: nn.ModuleList

    @property
    def num_layers(self) -> int:
        """How many there are."""
        return len(self.layers)

    def signature(self, index: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Names and shapes of a layer's tensors: two layers with the same can stand in for each other."""
        return tuple((name, tuple(value.shape)) for name, value in self.layers[index].state_dict().items())


def find_stack(model: PreTrainedModel) -> LayerStack:
    """Find the list of layers that `num_hidden_layers` counts.

    Raises:
        UnsupportedError: there is none, as where layers share their weights or a CNN has stages; or several.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(count, int):
        raise UnsupportedError(
            f"{type(model).__name__}: its config has no num_hidden_layers, so none of its layers can be left out",
            mend="Prune its `channels` instead.",
        )
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    found = [name for name, module in lists.items() if len(module) == count]
    outer = [name for name in found if not any(name.startswith(f"{other}.") for other in lists if other != name)]
    if len(outer) != 1:
        what = f"its lists of {count} layers are {', '.join(outer)}" if outer else f"it has no list of {count} layers"
        raise UnsupportedError(
            f"{type(model).__name__}: {what}, so it is not known which layers can be left out",
            mend="Models with one stack of layers of their own can lose some: encoders, decoders, ViT.",
        )
    return LayerStack(name=outer[0], layers=lists[outer[0]])


@contextmanager
def skipped(stack: LayerStack, indices: Collection[int]) -> Iterator[None]:
    """Let hidden states pass some layers unchanged inside the block."""
    layers = [stack.layers[index] for index in indices]
    try:
        for layer in layers:
            layer.forward = _pass_through(layer.forward)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)  # the class's own shows again


def _pass_through(forward: Any) -> Any:
    def passed(hidden_states: Tensor, *args: Any, **options: Any) -> Any:
        result = forward(hidden_states, *args, **options)  # for what it gives beside hidden states
        return (hidden_states, *result[1:]) if isinstance(result, tuple) else hidden_states

    return passed
