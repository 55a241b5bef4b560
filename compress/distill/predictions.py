"""What a language model's teacher predicts: the likeliest tokens of each position and the sum of all others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.distill.cache import Field
from compress.distill.losses import bucketed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["IDS", "LOG_PROBS", "kept_predictions", "prediction_fields", "scored_logits", "scored_mask"]

IDS = "ids"
LOG_PROBS = "log_probs"


def prediction_fields(top_k: int, num_vocabulary: int) -> dict[str, Field]:
    """What is kept of a position: ids of the likeliest tokens, their log-probabilities, and that of all others."""
    kept = min(top_k, num_vocabulary)
    id_dtype = np.uint16 if num_vocabulary <= 1 << 16 else np.uint32
    has_rest = kept < num_vocabulary
    return {
        IDS: Field(dtype=id_dtype, width=kept),
        LOG_PROBS: Field(dtype=np.float32, width=kept + has_rest),
    }


def scored_mask(batch: Mapping[str, Tensor]) -> Tensor:
    """Positions whose next token is learnt, bool of shape [B, L - 1]: those with a label other than -100."""
    return batch["labels"][:, 1:] != -100


def scored_logits(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits of the scored positions, of shape [N, V]."""
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    logits: Tensor = output.logits[:, :-1][scored_mask(batch)]
    return logits


def kept_predictions(
    model: PreTrainedModel, batch: Mapping[str, Tensor], *, top_k: int, temperature: float
) -> dict[str, NDArray[np.generic]]:
    """Run a teacher on a batch and keep what `prediction_fields` says of every scored position.

    The log-probabilities are those at the temperature: the sum of all others at one says nothing about another.
    """
    with torch.no_grad():
        logits_NV = scored_logits(model, batch)
        ids_NK = logits_NV.topk(min(top_k, logits_NV.shape[-1]), dim=-1).indices
        log_probs = bucketed(logits_NV, ids_NK, temperature=temperature)
    return {IDS: ids_NK.cpu().numpy(), LOG_PROBS: log_probs.cpu().numpy()}
