"""Choose the next token from logits, for engines that leave the choice to us."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve.runtime.generation import PENALTY_WINDOW, Sampling

__all__ = ["choose_token"]


def choose_token(
    logits: NDArray[np.float32], sampling: Sampling, seen: Sequence[int], random: np.random.Generator
) -> int:
    """Choose as llama.cpp's chain does: penalties, top-k, top-p, min-p, temperature, draw.

    Args:
        logits: Of one position, of shape [V]. Not modified.
        sampling: The settings.
        seen: Tokens so far, of prompt and answer.
        random: Drawn from once, unless the choice is greedy.

    Source: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-sampler.cpp
    """
    values = logits.astype(np.float64)
    if sampling.repeat_penalty != 1 and seen:
        last = np.unique(np.asarray(seen[-PENALTY_WINDOW:]))
        values[last] = np.where(
            values[last] > 0, values[last] / sampling.repeat_penalty, values[last] * sampling.repeat_penalty
        )
    if sampling.is_greedy:
        return int(values.argmax())
    order = np.argsort(-values, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    likely = _softmax(values[order])
    order = order[: int(np.searchsorted(likely.cumsum(), sampling.top_p)) + 1]
    order = order[likely[: len(order)] >= sampling.min_p * likely[0]]
    chances = _softmax(values[order] / sampling.temperature)
    return int(order[min(int(np.searchsorted(chances.cumsum(), random.random(), side="right")), len(order) - 1)])


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())
