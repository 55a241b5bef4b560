"""What a student of a language model learns: its teacher's next-token predictions, on text or on what it writes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.distill import losses
from compress.distill.generation import continue_prompts, end_tokens, labels_of_continuations, lot, seed_of
from compress.distill.losses import DIVERGENCES, bucketed
from compress.distill.predictions import IDS, LOG_PROBS, scored_mask
from compress.train.objective import Loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from compress.distill.cache import TeacherCache
    from compress.distill.objective import Insight
    from edgesmith.recipe import DistillOptions

__all__ = ["LanguageObjective"]


@dataclass
class LanguageObjective:
    """The objective of language models; an item is a position whose next token is learnt.

    Which batches the student writes itself is decided by the rows that are in them, so that it is the same after a
    kill, and another choice in another epoch.

    Source: Agarwal et al.: On-Policy Distillation of Language Models, 2024, algorithm 1.
    """

    options: DistillOptions
    teacher: PreTrainedModel | None
    """Run on the student's own text, and on all where nothing is kept; None where it is never run."""
    cache: TeacherCache | None
    """The teacher's predictions on the text; None to run it anew."""
    insight: Insight | None = None
    temperature: float = 1.0
    seed: int = 0

    @property
    def compares_rows(self) -> bool:
        """Whether a row's loss depends on the others of its micro-batch: they decide who writes."""
        return self.options.on_policy > 0

    def modules(self) -> nn.ModuleDict | None:
        """The projections, if there are any with weights."""
        if self.insight is None or not list(self.insight.projections.parameters()):
            return None
        return nn.ModuleDict({"projections": self.insight.projections})

    def loss(self, model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Loss:
        """Sum of the weighted losses over the positions; `batch` has `rows`, their numbers, and `labels`."""
        rows = sorted(batch["rows"].tolist())
        is_own = self.options.on_policy > 0 and lot(self.seed, *rows) < self.options.on_policy
        if is_own:
            batch = self._written_by(model, batch, seed_of(self.seed, 1, *rows))
        mask_BL = scored_mask(batch)
        with ExitStack() as stack:
            heard = self.insight.listening(stack) if self.insight else {}
            output = self._run(model, batch)
        logits_NV = output.logits[:, :-1][mask_BL]
        seen, heard_theirs = self._run_teacher(batch, is_own=is_own)
        parts: dict[str, Tensor] = {}
        if self.options.soft:
            theirs_NV = None if seen is None or self._is_kept(is_own) else seen.logits[:, :-1][mask_BL]
            parts["soft"] = self._soft(logits_NV, theirs_NV, batch["rows"]).sum()
        if self.options.hard and not is_own:  # the student's own words are no labels
            parts["hard"] = losses.hard_labels(logits_NV, batch["labels"][:, 1:][mask_BL]).sum()
        if self.insight is not None:
            if self.options.hidden:
                distances_BL = self.insight.hidden_distances(output.hidden_states, seen.hidden_states)
                parts["hidden"] = (distances_BL[:, :-1] * mask_BL).sum()
            if self.options.relation:
                distances_BL = self.insight.relation_distances(heard, heard_theirs, batch["attention_mask"])
                parts["relation"] = (distances_BL[:, :-1] * mask_BL).sum()
        weighted = [getattr(self.options, name) * part for name, part in parts.items()]
        total = torch.stack(weighted).sum() if weighted else logits_NV.sum() * 0
        return Loss(total, int(mask_BL.sum()), {name: part.detach() for name, part in parts.items()})

    def _run(self, model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Any:
        return model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_hidden_states=bool(self.options.hidden),
            use_cache=False,
            return_dict=True,
        )

    def _run_teacher(self, batch: Mapping[str, Tensor], *, is_own: bool) -> tuple[Any, Mapping[int, Tensor]]:
        """The teacher's output where it is needed: None where all is kept."""
        if self.insight is not None:
            return self.insight.look(batch)
        if not self.options.soft or self._is_kept(is_own):
            return None, {}
        assert self.teacher is not None
        with torch.no_grad():
            return self._run(self.teacher, batch), {}

    def _is_kept(self, is_own: bool) -> bool:
        return self.cache is not None and not is_own

    def _soft(self, logits_NV: Tensor, theirs_NV: Tensor | None, rows: Tensor) -> Tensor:
        kind = self.options.divergence
        if theirs_NV is not None:
            return losses.divergence(logits_NV, theirs_NV, kind=kind, temperature=self.temperature)
        assert self.cache is not None
        kept = self.cache.read(rows.tolist())
        ids_NK = torch.from_numpy(kept[IDS].astype(np.int64)).to(logits_NV.device)
        theirs_NK = torch.from_numpy(np.asarray(kept[LOG_PROBS], np.float32)).to(logits_NV.device)
        ours_NK = bucketed(logits_NV, ids_NK, temperature=self.temperature)
        return DIVERGENCES[kind](ours_NK, theirs_NK) * self.temperature**2

    def _written_by(self, model: PreTrainedModel, batch: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
        """The batch with its second half written by the student."""
        tokens_BL = batch["input_ids"]
        prompt_length = tokens_BL.shape[1] // 2
        ends = end_tokens(model)
        written_BL = continue_prompts(
            model,
            tokens_BL[:, :prompt_length],
            num_tokens=tokens_BL.shape[1] - prompt_length,
            seed=seed,
            ends=ends,
        )
        labels_BL = labels_of_continuations(written_BL, prompt_length, ends)
        return {
            **batch,
            "input_ids": written_BL,
            "labels": labels_BL,
            "attention_mask": torch.ones_like(written_BL),
        }
