"""Text that models write themselves: the student's, to learn from its own mistakes, and the teacher's, as data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["continue_prompts", "lot", "seed_of"]


def seed_of(*numbers: int) -> int:
    """A seed of 63 bits from any numbers, the same everywhere."""
    digest = hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def lot(*numbers: int) -> float:
    """A number in [0, 1) that looks random and is a function of its arguments."""
    return seed_of(*numbers) / 2**63


def continue_prompts(
    model: PreTrainedModel, prompts_BP: Tensor, *, num_tokens: int, seed: int, ends: Sequence[int]
) -> Tensor:
    """Continue prompts of one length, token after token drawn from the model's predictions.

    Args:
        model: In whatever mode: it is run in evaluation mode, and given back as it was.
        prompts_BP: Token ids, int64.
        num_tokens: Of each continuation.
        seed: Of the draws.
        ends: Tokens that end a text; what follows one is the same token again.

    Returns:
        int64 of shape [B, P + num_tokens].
    """
    was_training = model.training
    generator = torch.Generator(prompts_BP.device).manual_seed(seed)
    model.eval()
    try:
        with torch.no_grad():
            return _draw(model, prompts_BP, num_tokens, generator, ends)
    finally:
        model.train(was_training)


def _draw(
    model: PreTrainedModel, prompts_BP: Tensor, num_tokens: int, generator: torch.Generator, ends: Sequence[int]
) -> Tensor:
    tokens_BL, read_BN, past = prompts_BP, prompts_BP, None
    end_ids = torch.tensor(list(ends), dtype=prompts_BP.dtype, device=prompts_BP.device)
    for _ in range(num_tokens):
        output = model(input_ids=read_BN, past_key_values=past, use_cache=True)
        past = output.past_key_values
        probabilities_BV = torch.softmax(output.logits[:, -1].float(), dim=-1)
        drawn_B1 = torch.multinomial(probabilities_BV, 1, generator=generator)
        last_B1 = tokens_BL[:, -1:]
        is_over_B1 = torch.isin(last_B1, end_ids) & (tokens_BL.shape[1] > prompts_BP.shape[1])
        read_BN = torch.where(is_over_B1, last_B1, drawn_B1)
        tokens_BL = torch.cat([tokens_BL, read_BN], dim=1)
    return tokens_BL


def labels_of_continuations(tokens_BL: Tensor, prompt_length: int, ends: Sequence[int]) -> Tensor:
    """The tokens as labels: -100 for the prompts, and after the first token that ends a text."""
    labels_BL = tokens_BL.clone()
    labels_BL[:, :prompt_length] = -100
    is_end_BL = torch.isin(labels_BL, torch.tensor(list(ends), dtype=labels_BL.dtype, device=labels_BL.device))
    ended_before_BL = (is_end_BL.cumsum(dim=1) - is_end_BL.long()) > 0
    return labels_BL.masked_fill(ended_before_BL, -100)


def end_tokens(model: PreTrainedModel) -> tuple[int, ...]:
    """Tokens that end a text, as the model's configurations name them."""
    for config in (getattr(model, "generation_config", None), model.config):
        named = getattr(config, "eos_token_id", None)
        if named is not None:
            return tuple(named) if isinstance(named, list | tuple) else (int(named),)
    return ()


def write_continuations(
    model: PreTrainedModel, windows: Sequence[Sequence[int]], *, prompt_length: int, seed: int
) -> NDArray[np.int64]:
    """Replace what follows the first `prompt_length` tokens of each window by the model's own continuation.

    Returns:
        Shape [len(windows), length].
    """
    prompts = torch.tensor([list(window[:prompt_length]) for window in windows])
    length = len(windows[0]) - prompt_length
    tokens = continue_prompts(model, prompts, num_tokens=length, seed=seed, ends=end_tokens(model))
    return cast("NDArray[np.int64]", tokens.numpy())
