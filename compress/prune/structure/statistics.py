"""What calibration rows say about the units of a group: activations, gradients, and the inputs' Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from compress.prune.batches import Batch, main_output, outputs_of, token_mask
from compress.prune.structure.layout import Axis, Group
from compress.prune.structure.probe import tensors_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "activation_scores", "collect_grams", "magnitude_scores", "reader_of", "readers_of", "sum_by_unit", "taylor_scores",
]  # fmt: skip


def sum_by_unit(values: Tensor, axis: Axis, num_units: int) -> Tensor:
    """Add up the values of the entries of each unit.

    Args:
        values: One a entry of the axis.
        axis: Where the units lie.
        num_units: How many there are.

    Returns:
        float64 [num_units].
    """
    total = torch.zeros(num_units, dtype=torch.float64)
    start = 0
    for block in axis.blocks:
        part = values[start : start + num_units * block].double().cpu()
        total += part.reshape(num_units, block).sum(1)
        start += num_units * block
    return total


def magnitude_scores(model: PreTrainedModel, groups: Sequence[Group]) -> list[Tensor]:
    """Sum of the squared weights of each unit over all tensors of its group."""
    tensors = tensors_of(model)
    scores = []
    for group in groups:
        score = torch.zeros(group.num_units, dtype=torch.float64)
        for axis in group.axes:
            if isinstance(tensors[axis.site.tensor], nn.Parameter):  # running statistics are no weights
                squares = tensors[axis.site.tensor].detach().double().square()
                score += sum_by_unit(_over_axis(squares, axis.site.axis), axis, group.num_units)
        scores.append(score)
    return scores


def taylor_scores(
    model: PreTrainedModel, groups: Sequence[Group], batches: Sequence[Batch], *, seed: int = 0
) -> list[Tensor]:
    """How much removing each unit changes the outputs, to first order: (Σ w · ∂/∂w)² over its weights.

    Nothing is known of right answers here, and the gradient of a distance to the model's own outputs is zero, so
    the derivative is that of a random direction of the outputs; of a language model, of the log-likelihood of
    tokens drawn from its own predictions (the Fisher information).

    Returns:
        The mean over the batches, float64 [units] for each group.

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning" (2019), eq. 8.
    """
    tensors = tensors_of(model)
    names = {axis.site.tensor for group in groups for axis in group.axes}
    wanted = {name: tensors[name] for name in sorted(names) if isinstance(tensors[name], nn.Parameter)}
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.zeros(group.num_units, dtype=torch.float64) for group in groups]
    with _trainable(list(wanted.values())):
        for batch in batches:
            found = torch.autograd.grad(_direction(model, batch, generator), list(wanted.values()), allow_unused=True)
            products = {
                name: weight.detach() * gradient
                for (name, weight), gradient in zip(wanted.items(), found, strict=True)
                if gradient is not None
            }
            for score, group in zip(scores, groups, strict=True):
                total = torch.zeros_like(score)
                for axis in group.axes:
                    if axis.site.tensor in products:
                        values = _over_axis(products[axis.site.tensor], axis.site.axis)
                        total += sum_by_unit(values, axis, group.num_units)
                score += total.square() / len(batches)
    return scores


def activation_scores(model: PreTrainedModel, groups: Sequence[Group], batches: Sequence[Batch]) -> list[Tensor]:
    """Mean |activation| of each unit times the norm of the weights that read it, summed over all that do.

    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (2023), for the product.
    """
    tensors = tensors_of(model)
    modules = {reader.site.tensor: _owner(model, reader) for group in groups for reader in readers_of(group)}
    means: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def collect(name: str, inputs_NI: Tensor) -> None:
        means[name] = means.get(name, 0) + inputs_NI.abs().sum(0, dtype=torch.float64).cpu()
        counts[name] = counts.get(name, 0) + len(inputs_NI)

    with _observed(modules, collect) as observe, torch.inference_mode():
        for batch in batches:
            observe(batch)
            outputs_of(model, batch)
    scores = []
    for group in groups:
        score = torch.zeros(group.num_units, dtype=torch.float64)
        for reader in readers_of(group):
            name, weight = reader.site.tensor, tensors[reader.site.tensor].detach()
            if name not in means:  # a part that this input does not reach
                continue
            norms = _over_axis(weight.double().square(), reader.site.axis).sqrt().cpu()
            activity = means[name].reshape(len(norms), -1).sum(1) / counts[name]
            score += sum_by_unit(activity * norms, reader, group.num_units)
        scores.append(score)
    return scores


def collect_grams(model: PreTrainedModel, readers: Sequence[Axis], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Add up XᵀX of what some linear or convolution layers read; padding is left out.

    Returns:
        Weight name → float64 [I, I]; [I+1, I+1] with a last input of ones where the layer has a bias. I are the
        inputs of a linear layer, of a convolution channels times positions of the kernel.
    """
    modules = {reader.site.tensor: _owner(model, reader) for reader in readers}
    grams: dict[str, Tensor] = {}

    def collect(name: str, inputs_NI: Tensor) -> None:
        if modules[name].bias is not None:
            inputs_NI = functional.pad(inputs_NI, (0, 1), value=1.0)
        grams[name] = grams.get(name, 0) + (inputs_NI.T @ inputs_NI).double().cpu()

    with _observed(modules, collect) as observe, torch.inference_mode():
        for batch in batches:
            observe(batch)
            outputs_of(model, batch)
    return grams


def readers_of(group: Group) -> list[Axis]:
    """The axes of a group that read its units."""
    return [axis for axis in group.axes if axis.site.side == "in"]


def reader_of(model: PreTrainedModel, group: Group) -> Axis | None:
    """The one layer that reads a group's units; None where several do, or where it is of another kind."""
    readers = readers_of(group)
    if len(readers) != 1:
        return None
    module = _owner(model, readers[0])
    if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
        return None
    if isinstance(module, nn.Conv2d) and isinstance(module.padding, str):
        return None
    return readers[0] if isinstance(module, nn.Linear | Conv1D | nn.Conv2d) else None


def _owner(model: PreTrainedModel, axis: Axis) -> Any:
    return model.get_submodule(axis.site.tensor.rpartition(".")[0])


def _over_axis(values: Tensor, axis: int) -> Tensor:
    return values.movedim(axis, 0).reshape(values.shape[axis], -1).sum(1)


def _direction(model: PreTrainedModel, batch: Batch, generator: torch.Generator) -> Tensor:
    output = main_output(outputs_of(model, batch))
    if output.ndim == 3:  # [rows, positions, width]
        values = output[token_mask(batch, output)]  # [N, width]
        if output.shape[-1] == getattr(model.config.get_text_config(), "vocab_size", None):
            drawn = torch.multinomial(values.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
            return functional.cross_entropy(values, drawn.to(values.device), reduction="sum")
    else:
        values = output.flatten(1)
    directions = torch.randn(values.shape, generator=generator).to(values.device)
    return (values * directions).sum()


@contextmanager
def _trainable(parameters: Sequence[Tensor]) -> Iterator[None]:
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.requires_grad_(value)


@contextmanager
def _observed(modules: Mapping[str, Any], collect: Any) -> Iterator[Any]:
    """Hand every input of some layers to `collect` as rows [N, I], without padding."""
    current: list[Batch] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            collect(name, _rows_of(module, args[0], current[-1]))

        return hook

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in modules.items()]
    try:
        yield current.append
    finally:
        for handle in handles:
            handle.remove()


def _rows_of(module: nn.Module, inputs: Tensor, batch: Batch) -> Tensor:
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)  # `reader_of` names no other
        patches = functional.unfold(  # [rows, I, positions]
            inputs, module.kernel_size, dilation=module.dilation, padding=module.padding, stride=module.stride
        )
        return patches.transpose(1, 2).flatten(0, 1)
    if inputs.ndim == 3:
        return inputs[token_mask(batch, inputs)]
    return inputs.flatten(0, -2)
