"""What a student of a classifier or an embedding model learns: predictions, labels, states and relations, weighted."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.distill import losses
from compress.distill.readout import Readout, flat_states, make_projection, token_mask
from compress.distill.relations import Attention, find_attentions, relation_distances
from compress.distill.students import uniform_map
from compress.train.objective import Loss
from edgesmith.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.distill.cache import TeacherCache
    from edgesmith.recipe import DistillOptions

__all__ = ["ANSWERS", "Insight", "RowObjective"]

ANSWERS = "answers"
"""The field of a cache that holds what a teacher says of each item."""


class Insight:
    """What of a teacher's inside is learnt beside its predictions: hidden states, and relations of the last layer.

    Args:
        teacher: Run on every batch, without gradients.
        student: Gives the widths.
        sample: One batch, to see the states' shapes on.
        readouts: The teacher's and the student's.
        options: Which of the two have a weight.
        causal: Whether tokens see earlier ones only.
        seed: Of the projections.

    Raises:
        UnsupportedError: a model does not show its states, or its attention is not known.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        *,
        sample: Mapping[str, Tensor],
        readouts: tuple[Readout, Readout],
        options: DistillOptions,
        causal: bool,
        seed: int,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.readouts = readouts
        self.options = options
        self.causal = causal
        self.pairs: list[tuple[int, int]] = []
        self.projections = nn.ModuleList()
        self._attentions: tuple[Attention, ...] = ()
        if options.relation:
            found = [find_attentions(model) for model in (teacher, student)]
            number = len(found[0]) if options.relation_layer is None else options.relation_layer + 1
            if number > len(found[0]):
                raise UnsupportedError(
                    f"relation_layer {number - 1}: the teacher's layers with attention are 0 to {len(found[0]) - 1}"
                )
            self._attentions = (found[0][number - 1], found[1][-1])
        if options.hidden:
            self._pair_states(student, sample, seed)

    def look(self, batch: Mapping[str, Tensor]) -> tuple[Any, Mapping[int, Tensor]]:
        """Run the teacher: its output, and its queries, keys and values."""
        with torch.no_grad(), ExitStack() as stack:
            heard = stack.enter_context(self._attentions[0].listening()) if self._attentions else {}
            output = self.teacher(
                **self.readouts[0].inputs(batch), output_hidden_states=bool(self.options.hidden), return_dict=True
            )
        return output, heard

    def listening(self, stack: ExitStack) -> Mapping[int, Tensor]:
        """Hear the student's queries, keys and values while the stack is open."""
        return stack.enter_context(self._attentions[1].listening()) if self._attentions else {}

    def hidden_distances(self, student: Any, teacher: Any) -> Tensor:
        """Distances of the states, averaged over the pairs of layers, of shape [B, L]."""
        distances = []
        for (ours, theirs), projection in zip(self.pairs, self.projections, strict=True):
            ours_BLH, theirs_BLH = flat_states(student[ours]), flat_states(teacher[theirs])
            distances.append(losses.hidden_distances(projection(ours_BLH), theirs_BLH))
        return torch.stack(distances).mean(dim=0)

    def relation_distances(
        self, student: Mapping[int, Tensor], teacher: Mapping[int, Tensor], mask_BL: Tensor
    ) -> Tensor:
        """Distances of the relations, averaged over queries, keys and values, of shape [B, L]."""
        pairs = zip(self._attentions[1].split(student), self._attentions[0].split(teacher), strict=True)
        distances = [relation_distances(ours, theirs, mask_BL, causal=self.causal) for ours, theirs in pairs]
        return torch.stack(distances).mean(dim=0)

    def _pair_states(self, student: PreTrainedModel, sample: Mapping[str, Tensor], seed: int) -> None:
        shapes = []
        for model, readout in zip((self.teacher, student), self.readouts, strict=True):
            with torch.no_grad():
                states = model(**readout.inputs(sample), output_hidden_states=True, return_dict=True).hidden_states
            if not states or any(state.ndim not in (3, 4) for state in states):
                raise UnsupportedError(
                    f"{type(model).__name__}: does not show its hidden states", mend="Set the weight `hidden` to 0."
                )
            shapes.append([tuple(flat_states(state).shape) for state in states])
        generator = torch.Generator().manual_seed(seed)
        for ours, theirs in enumerate(uniform_map(len(shapes[1]) - 1, len(shapes[0]) - 1), start=1):
            if shapes[1][ours][1] != shapes[0][theirs][1]:
                raise UnsupportedError(
                    f"layer {ours} of the student has {shapes[1][ours][1]} positions, layer {theirs} of the teacher "
                    f"{shapes[0][theirs][1]}: their states cannot be compared",
                    mend="Set the weight `hidden` to 0.",
                )
            self.pairs.append((ours, theirs))
            self.projections.append(make_projection(shapes[1][ours][2], shapes[0][theirs][2], generator))


@dataclass
class RowObjective:
    """The objective of tasks whose rows are answered by one run of a graph.

    An item is a row, or a token where each has a prediction of its own.
    """

    options: DistillOptions
    readout: Readout
    """The student's."""
    cache: TeacherCache | None
    """What the teacher says of each row; None where it is not learnt, or `insight` runs the teacher anyway."""
    insight: Insight | None = None
    temperature: float = 2.0

    @property
    def compares_rows(self) -> bool:
        """Whether a row's loss depends on the others of its micro-batch."""
        return self.readout.items == "vectors" and self.options.soft > 0

    def modules(self) -> nn.ModuleDict | None:
        """The projections, if there are any with weights."""
        if self.insight is None or not list(self.insight.projections.parameters()):
            return None
        return nn.ModuleDict({"projections": self.insight.projections})

    def loss(self, model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Loss:
        """Sum of the weighted losses over the items; `batch` has `rows`, their numbers, and `labels`."""
        with ExitStack() as stack:
            heard = self.insight.listening(stack) if self.insight else {}
            output = model(
                **self.readout.inputs(batch), output_hidden_states=bool(self.options.hidden), return_dict=True
            )
        items_NW = self.readout.read(output, batch)
        theirs, heard_theirs = self.insight.look(batch) if self.insight else (None, {})
        parts: dict[str, Tensor] = {}
        if self.options.soft:
            parts["soft"] = self._soft(items_NW, self._taught(theirs, batch)).sum()
        if self.options.hard:
            parts["hard"] = losses.hard_labels(items_NW, self._labels(batch)).sum()
        if self.insight is not None:
            parts |= self._inside(output, heard, theirs, heard_theirs, batch)
        total = torch.stack([getattr(self.options, name) * part for name, part in parts.items()]).sum()
        return Loss(total, len(items_NW), {name: part.detach() for name, part in parts.items()})

    def _taught(self, theirs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """What the teacher says of the items: kept, or just heard."""
        if self.cache is None:
            assert self.insight is not None
            heard_NW: Tensor = self.insight.readouts[0].read(theirs, batch).float()
            return heard_NW
        kept = np.asarray(self.cache.read(batch["rows"].tolist())[ANSWERS], np.float32)
        return torch.from_numpy(kept).to(batch["rows"].device)

    def _soft(self, items_NW: Tensor, theirs_NW: Tensor) -> Tensor:
        if self.readout.items != "vectors":
            return losses.divergence(items_NW, theirs_NW, kind="forward-kl", temperature=self.temperature)
        distances = losses.similarity_distances(items_NW, theirs_NW)
        if items_NW.shape[-1] == theirs_NW.shape[-1]:
            distances = distances + losses.cosine_distances(items_NW, theirs_NW)
        return distances

    def _labels(self, batch: Mapping[str, Tensor]) -> Tensor:
        labels = batch["labels"]
        return labels[batch["attention_mask"].bool()] if self.readout.items == "tokens" else labels

    def _inside(
        self,
        output: Any,
        heard: Mapping[int, Tensor],
        theirs: Any,
        heard_theirs: Mapping[int, Tensor],
        batch: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        assert self.insight is not None
        parts = {}
        if self.options.hidden:
            distances_BL = self.insight.hidden_distances(output.hidden_states, theirs.hidden_states)
            parts["hidden"] = self._over_items(distances_BL, token_mask(distances_BL[:, :, None], batch))
        if self.options.relation:
            mask_BL = token_mask(heard[0], batch)
            distances_BL = self.insight.relation_distances(heard, heard_theirs, mask_BL)
            parts["relation"] = self._over_items(distances_BL, mask_BL)
        return parts

    def _over_items(self, distances_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Sum over tokens, or over rows the mean of their tokens: whichever the items are."""
        if self.readout.items == "tokens":
            return (distances_BL * mask_BL).sum()
        return ((distances_BL * mask_BL).sum(dim=1) / mask_BL.sum(dim=1).clamp_min(1)).sum()
