"""What every engine of a text-generating model does: stream what it writes, token by token, and give its logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import UsageError

__all__ = [
    "GREEDY",
    "MAX_LOGPROBS",
    "PENALTY_WINDOW",
    "FinishReason",
    "GenerationEngine",
    "LikelyToken",
    "Sampling",
    "TextChunk",
    "TokenLogprob",
    "check_request",
    "check_tokens",
]

FinishReason = Literal["stop", "length"]
PENALTY_WINDOW = 64
"""Last tokens, of prompt and answer, that `Sampling.repeat_penalty` looks at."""

MAX_LOGPROBS = 20
"""The most likely tokens that can be named beside a chosen one."""

_MAX_STOPS = 64
_MAX_SEED = 2**32 - 2  # llama.cpp takes 2**32 - 1 for "draw a seed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen: penalties, then top-k, top-p, min-p, temperature, and a draw.

    Attributes:
        temperature: Divides the logits before the draw; 0 takes the likeliest token, and the fields below down to
            `min_p` do not matter.
        top_k: Keep this many of the likeliest tokens; 0 keeps all.
        top_p: Keep the likeliest tokens that together have at least this probability, in (0, 1].
        min_p: Keep tokens at least this fraction as likely as the likeliest, in [0, 1].
        repeat_penalty: Divides positive logits, and multiplies negative ones, of tokens among the last
            `PENALTY_WINDOW`; 1 leaves them alone. It holds for a temperature of 0 too.
        seed: Of the draw; equal seeds give equal texts with one engine, as far as it computes equal logits.
        is_repeatable: Read the prompt afresh and in equal parts, even if its start is known from another text:
            quantized weights round otherwise for other parts, and another token may be drawn, or be the likeliest.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int = 0
    is_repeatable: bool = False

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, 100.0)
        _check("top_p", self.top_p, 1e-6, 1.0)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("repeat_penalty", self.repeat_penalty, 0.01, 100.0)
        _check("top_k", self.top_k, 0, 2**31 - 1)
        _check("seed", self.seed, 0, _MAX_SEED)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0


def _check(name: str, value: float, low: float, high: float) -> None:
    is_whole = name in ("top_k", "seed")
    if isinstance(value, bool) or not isinstance(value, int if is_whole else (int, float)):
        raise UsageError(f"{name} is {value!r}; it must be a {'whole ' if is_whole else ''}number")
    if not math.isfinite(value) or not low <= value <= high:
        raise UsageError(f"{name} is {value}; it must be from {low:g} to {high:g}")


GREEDY = Sampling()
"""Takes the likeliest token."""


@dataclass(frozen=True, slots=True)
class LikelyToken:
    """A token that could come next.

    Attributes:
        token: Its number in the vocabulary.
        data: Its bytes, which may be part of a character.
        logprob: Natural logarithm of its probability under the model alone: before penalties, temperature, grammar.
    """

    token: int
    data: bytes
    logprob: float

    @property
    def text(self) -> str:
        """Its bytes as text, replacement characters where they are no whole one."""
        return self.data.decode("utf-8", errors="replace")


@dataclass(frozen=True, slots=True)
class TokenLogprob(LikelyToken):
    """The token that was chosen.

    Attributes:
        likely: The likeliest ones at its place, as many as were asked for, likeliest first; it may be among them.
    """

    likely: tuple[LikelyToken, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TextChunk:
    """What one step of an engine gives.

    Attributes:
        text: What can be shown now; empty while a character of several tokens is not complete, while it may be the
            start of a stop string, and for tokens that have no text, such as the one that ends the answer.
        num_tokens: Tokens generated in this step, at least 1.
        finish_reason: In the last chunk alone: `stop` where the model ended or a stop string came, `length` where
            `max_tokens` was reached.
        logprobs: Where they were asked for, one for each token of this step but the one that ends the answer. They
            come with the step that made the token, whose text may be shown later, or never if it is a stop string's.
    """

    text: str
    num_tokens: int = 1
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class GenerationEngine(Protocol):
    """Something that continues a text."""

    @property
    def name(self) -> str:
        """Engine and version, such as `llama.cpp b7100 (CPU)`."""

    @property
    def num_vocabulary(self) -> int:
        """Width of the logits; tokens are less than it."""

    @property
    def context_length(self) -> int:
        """The most tokens that one text can have, answer included."""

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Split a text as the model reads it; special tokens that it spells out are recognized.

        Args:
            text: Any text.
            add_special: Add the tokens that the model wants before and after every text.
        """

    def count_prompt_tokens(self, prompt: str) -> int:
        """Tokens that the model reads for a prompt, special tokens included."""

    def logits(self, tokens: Sequence[int], *, first: int = 0) -> NDArray[np.float32]:
        """Read a text in one pass, forgetting what was read before.

        Args:
            tokens: At least one, at most `context_length`, each less than `num_vocabulary`.
            first: Rows are given from this position on.

        Returns:
            Logits of positions `first` and later, float32 of shape [len(tokens) - first, num_vocabulary].

        Raises:
            UsageError: Tokens or `first` are out of range.
        """

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
        """Continue a prompt until the model ends, a stop string comes or `max_tokens` are generated.

        Arguments are checked at once; the prompt is read when the first chunk is asked for. Each step gives its
        chunk before the next one starts.

        Args:
            prompt: Text as the model reads it: a chat template is the caller's matter.
            max_tokens: At least 1.
            sampling: By default the likeliest token.
            stop: The answer ends before the first of these; no part of one is ever given.
            grammar: The answer follows this grammar, in llama.cpp's notation (GBNF).
            json_schema: The answer is JSON of this schema. Not together with `grammar`.

        Raises:
            UsageError: The prompt is empty, or prompt and answer do not fit into the model's context, or a setting
                is out of range.
            UnsupportedError: The engine does not know grammars, or this one.
        """

    def close(self) -> None:
        """Free what the engine holds. Closing twice is harmless; generating with a closed engine is an error."""


def check_request(*, num_prompt: int, max_tokens: int, context_length: int | None, stop: Sequence[str] = ()) -> None:
    """Check what every engine checks before it generates.

    Args:
        num_prompt: Tokens of the prompt.
        max_tokens: Asked for.
        context_length: Of the model; None where it has no limit.
        stop: Stop strings.

    Raises:
        UsageError: One of them cannot be obeyed; the message has the numbers.
    """
    if max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}; it must be at least 1")
    if isinstance(stop, str) or len(stop) > _MAX_STOPS or not all(isinstance(text, str) and text for text in stop):
        raise UsageError(f"stop is {stop!r:.100}; it must be a list of at most {_MAX_STOPS} texts, none of them empty")
    if num_prompt < 1:
        raise UsageError("the prompt has no tokens", mend="Give a text.")
    if context_length is not None and num_prompt + max_tokens > context_length:
        raise UsageError(
            f"the prompt has {num_prompt} tokens and the answer {max_tokens} at the most, more together than the "
            f"{context_length} that the model takes",
            mend="Shorten the prompt, or ask for fewer tokens.",
        )


def check_tokens(tokens: Sequence[int], *, first: int, num_vocabulary: int, context_length: int | None) -> None:
    """Check what `GenerationEngine.logits` is given.

    Raises:
        UsageError: Tokens or `first` are out of range; the message has the numbers.
    """
    if not 0 <= first < len(tokens):
        raise UsageError(f"first is {first}; with {len(tokens)} tokens it must be from 0 to {len(tokens) - 1}")
    if context_length is not None and len(tokens) > context_length:
        raise UsageError(f"{len(tokens)} tokens are more than the {context_length} that the model takes")
    lowest, highest = min(tokens), max(tokens)
    if lowest < 0 or highest >= num_vocabulary:
        wrong = lowest if lowest < 0 else highest
        raise UsageError(f"token {wrong} is not in the model's vocabulary of {num_vocabulary}")
