"""What of a model's output is learnt: the logits of a row, of each of its tokens, or a text's vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from edgesmith.tasks import Task

__all__ = ["Readout", "flat_states", "make_projection", "readout_of", "token_mask"]

Items = Literal["rows", "tokens", "vectors"]


@dataclass(frozen=True, kw_only=True)
class Readout:
    """How one model is read; teacher and student may differ in inputs and pooling."""

    items: Items
    """What one prediction is of: a row, a token of it, or a text's place among others."""
    input_names: tuple[str, ...]
    pooling: str = "mean"
    """Of vectors."""

    def inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The model's inputs among a batch's tensors."""
        return {name: batch[name] for name in self.input_names}

    def read(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """What the model says of each item, of shape [num_items, width]; gradients flow through it."""
        match self.items:
            case "rows":
                logits: Tensor = output.logits
                return logits
            case "tokens":
                tokens: Tensor = output.logits[batch["attention_mask"].bool()]
                return tokens
            case "vectors":
                return _POOLINGS[self.pooling](output.last_hidden_state, batch["attention_mask"])


def readout_of(task: Task) -> Readout:
    """How a model of a task is read."""
    items: Items = "rows"
    if task.output_kind == "embedding":
        items = "vectors"
    elif task.model_class.endswith("ForTokenClassification"):
        items = "tokens"
    return Readout(items=items, input_names=task.input_names, pooling=getattr(task, "pooling", "mean"))


def token_mask(states_BLH: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """1 at tokens, 0 at padding, of shape [B, L]; pictures have no padding."""
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == states_BLH.shape[:2]:
        return mask.to(states_BLH.dtype)
    return torch.ones(states_BLH.shape[:2], dtype=states_BLH.dtype, device=states_BLH.device)


def _pool_mean(states_BLH: Tensor, mask_BL: Tensor) -> Tensor:
    weights_BL1 = mask_BL[:, :, None].to(states_BLH.dtype)
    return (states_BLH * weights_BL1).sum(dim=1) / weights_BL1.sum(dim=1).clamp_min(1e-9)


def _pool_max(states_BLH: Tensor, mask_BL: Tensor) -> Tensor:
    return states_BLH.masked_fill(mask_BL[:, :, None] == 0, torch.finfo(states_BLH.dtype).min).amax(dim=1)


def _pool_cls(states_BLH: Tensor, mask_BL: Tensor) -> Tensor:
    first_B = (mask_BL > 0).int().argmax(dim=1)
    return states_BLH[torch.arange(len(states_BLH), device=states_BLH.device), first_B]


def _pool_last(states_BLH: Tensor, mask_BL: Tensor) -> Tensor:
    last_B = mask_BL.shape[1] - 1 - (mask_BL.flip(1) > 0).int().argmax(dim=1)
    return states_BLH[torch.arange(len(states_BLH), device=states_BLH.device), last_B]


_POOLINGS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _pool_mean,
    "max": _pool_max,
    "cls": _pool_cls,
    "lasttoken": _pool_last,
}
"""As `edgesmith.tasks.pooling`, for tensors."""


def flat_states(states: Tensor) -> Tensor:
    """Hidden states as [B, L, H]; those of a convolution, [B, C, height, width], have a position for each point."""
    return states.flatten(2).transpose(1, 2) if states.ndim == 4 else states


def make_projection(student_width: int, teacher_width: int, generator: torch.Generator) -> nn.Module:
    """A learned map from the student's width to the teacher's; none where they agree."""
    if student_width == teacher_width:
        return nn.Identity()
    projection = nn.Linear(student_width, teacher_width, bias=False)
    nn.init.orthogonal_(projection.weight, generator=generator)
    return projection
