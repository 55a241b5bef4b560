"""What pruning asks of a model: its inputs as tensors, its outputs by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from compress.quiet import quiet_libraries
from edgesmith.errors import DataError, UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Batch", "as_batches", "main_output", "outputs_of", "sample_batch", "token_mask"]

Batch: TypeAlias = Mapping[str, Tensor]
"""Input name → tensor whose first axis is rows."""

_SAMPLE_ROWS, _SAMPLE_TOKENS = 2, 12


def as_batches(batches: Sequence[Mapping[str, Any]], model: PreTrainedModel) -> list[dict[str, Tensor]]:
    """Turn encoded rows into tensors where the model is.

    Raises:
        DataError: there are none, or a batch has no rows.
    """
    if not batches:
        raise DataError("no rows to prune by", mend="Give calibration rows: a few dozen of the training file do.")
    device = next(model.parameters()).device
    turned = [{name: torch.as_tensor(value).to(device) for name, value in batch.items()} for batch in batches]
    for index, batch in enumerate(turned):
        if not batch or any(value.shape[0] == 0 for value in batch.values()):
            raise DataError(f"calibration batch {index} has no rows", mend="Give rows that are not empty.")
    return turned


def sample_batch(model: PreTrainedModel) -> dict[str, Tensor]:
    """Make seeded inputs for a model of texts or images, for what needs some input and not real rows.

    Raises:
        UnsupportedError: the model reads neither.
    """
    config, generator = model.config, np.random.default_rng(0)
    device = next(model.parameters()).device
    if model.main_input_name == "pixel_values":
        size = getattr(config, "image_size", None) or 64
        sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
        pixels = generator.standard_normal((_SAMPLE_ROWS, getattr(config, "num_channels", 3), *sides))
        return {"pixel_values": torch.tensor(pixels, dtype=torch.float32, device=device)}
    if model.main_input_name == "input_ids" and not config.is_encoder_decoder:
        ids = generator.integers(0, config.get_text_config().vocab_size, (_SAMPLE_ROWS, _SAMPLE_TOKENS))
        tokens = torch.tensor(ids, device=device)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    raise UnsupportedError(
        f"{type(model).__name__} reads {model.main_input_name}: only models of texts and of images are pruned",
        mend="Give batches of real inputs.",
    )


def outputs_of(model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    """Run a model and return its floating-point outputs by name, without the cache of keys and values."""
    with quiet_libraries():
        result = model(**batch)
    found = {name: value for name, value in result.items() if isinstance(value, Tensor) and value.is_floating_point()}
    found.pop("loss", None)
    return found


def main_output(outputs: Mapping[str, Tensor]) -> Tensor:
    """The output that counts: logits, else the states of the last layer."""
    for name in ("logits", "last_hidden_state"):
        if name in outputs:
            return outputs[name]
    return next(iter(outputs.values()))


def token_mask(batch: Batch, states: Tensor) -> Tensor:
    """Say which positions of `states` are no padding.

    Args:
        batch: What the model was given.
        states: [rows, positions, width].

    Returns:
        bool [rows, positions]; all true where the batch has no mask of that shape.
    """
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == states.shape[:2]:
        return mask.bool()
    return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
