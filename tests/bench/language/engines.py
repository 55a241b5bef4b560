"""Engines whose logits are known in full: seeded, each window's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.language.windows import Windows, cut_windows
from serve.runtime.generation import GREEDY, Sampling, TextChunk

NUM_TOKENS = 400
LENGTH = 32


class KnownEngine:
    """Logits drawn from the tokens, so that two of the same seed agree, and `noise` apart from them.

    It begins texts with token 1, splits them by characters, and answers every prompt with the prompt in reverse.
    """

    def __init__(
        self, *, noise: float = 0.0, width: int = NUM_TOKENS, padding: int = 0, context_length: int = 64
    ) -> None:
        self.name = f"known, noise {noise:g}"
        self.noise = noise
        self.width = width
        self.num_vocabulary = width + padding
        self.context_length = context_length

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        return [1] * add_special + [2 + ord(one) % 100 for one in text]

    def count_prompt_tokens(self, prompt: str) -> int:
        return 1 + len(prompt)

    def logits(self, tokens: Sequence[int], *, first: int = 0) -> NDArray[np.float32]:
        shape = (len(tokens), self.width)
        common = np.random.default_rng(list(tokens)).normal(0, 2.5, shape)
        moved = self.noise * np.random.default_rng([7, *tokens]).normal(0, 1, shape)
        padding = np.full((len(tokens), self.num_vocabulary - self.width), 5.0)
        return np.concatenate([common + moved, padding], axis=1).astype(np.float32)[first:]

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        grammar: str | None = None,
        json_schema: Mapping[str, Any] | None = None,
    ) -> Iterator[TextChunk]:
        answer = prompt[::-1]
        for index, one in enumerate(answer[:max_tokens], start=1):
            ends = "stop" if index == len(answer) else "length" if index == max_tokens else None
            yield TextChunk(text=one, finish_reason=ends)  # type: ignore[arg-type]

    def close(self) -> None:
        pass


def windows(num: int = 12, length: int = LENGTH, vocabulary: int = NUM_TOKENS) -> Windows:
    tokens = np.random.default_rng(0).integers(0, vocabulary, num * length).tolist()
    return cut_windows(tokens, length, bos=1)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=1, keepdims=True)))


def all_logs(engine: KnownEngine, of: Windows) -> NDArray[np.float64]:
    """ln of every probability after every scored position, of shape [W, S, V]."""
    rows = [engine.logits(of.input_of(window), first=of.first)[:-1, : engine.width] for window in range(of.num_windows)]
    return np.stack([log_softmax(one) for one in rows])
