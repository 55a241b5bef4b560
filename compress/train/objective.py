"""What is learnt: the one thing that differs between distillation, recovery and fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Loss", "Objective"]


@dataclass(frozen=True)
class Loss:
    """The loss of one micro-batch, as a sum.

    Sums over items and numbers of items add up over micro-batches and processes; means of means do not.
    """

    total: Tensor
    """Scalar with a gradient: the sum over the items."""
    num_items: int
    """Rows, or tokens, that the sum goes over. An update's gradient is divided by their number in the whole batch."""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """Name → scalar sum over the same items, for the logs."""


class Objective(Protocol):
    """What is learnt.

    An objective that compares the rows of a batch with each other (similarities between embeddings) sees those of
    one micro-batch only. It says so with an attribute `compares_rows = True`: its micro-batches are then never
    halved when memory runs short, because that would change what is learnt, and there is one process only.
    """

    def loss(self, model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Loss:
        """Compute the loss of a collated micro-batch, which lies on the model's device."""

    def modules(self) -> nn.ModuleDict | None:
        """Further modules that are trained with the model, such as projections; None where there are none."""
