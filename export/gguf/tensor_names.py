"""Which GGUF tensor each parameter of a checkpoint becomes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.checkpoint import open_checkpoint
from export.gguf.families import family_of
from export.gguf.model_config import load_config
from export.gguf.tensor_plan import plan_tensors

__all__ = ["has_experts", "row_orders", "tensor_names"]

_HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDINGS = "token_embd.weight"


def has_experts(checkpoint: Path) -> bool:
    """Tell a mixture of experts, whose inputs only the runtime shows expert by expert; reads headers alone.

    Args:
        checkpoint: Hugging Face folder.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    return any(".experts." in name for name in open_checkpoint(checkpoint).entries)


def tensor_names(checkpoint: Path) -> dict[str, str]:
    """Name the tensors that `to_gguf` makes of a checkpoint's parameters.

    The columns of a tensor are the inputs of its module in their order: what conversion moves are rows.

    Args:
        checkpoint: Hugging Face folder.

    Returns:
        Parameter → GGUF tensor. A head that is also the embeddings has no tensor of its own; it is named all the
        same and leads to that of the embeddings, where the runtime reads it.

    Raises:
        CheckpointError: the checkpoint is damaged or lacks tensors.
        UnsupportedError: it cannot be converted.
    """
    opened = open_checkpoint(checkpoint)
    config = load_config(checkpoint)
    planned, _ = plan_tensors(opened, config, family_of(config), "f32")
    names = {tensor.source: tensor.name for tensor in planned}
    if config.get("tie_word_embeddings"):
        names |= dict.fromkeys(_HEADS, _EMBEDDINGS)
    return names


def row_orders(checkpoint: Path) -> dict[str, NDArray[np.intp]]:
    """Name the tensors whose rows `to_gguf` moves.

    Returns:
        GGUF tensor → which row of the parameter lies at each of its rows.

    Raises:
        CheckpointError: the checkpoint is damaged or lacks tensors.
        UnsupportedError: it cannot be converted.
    """
    config = load_config(checkpoint)
    planned, _ = plan_tensors(open_checkpoint(checkpoint), config, family_of(config), "f32")
    return {tensor.name: tensor.rows for tensor in planned if tensor.rows is not None}
