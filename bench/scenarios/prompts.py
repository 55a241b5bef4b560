"""Prompts of a wanted length, cut from real texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgesmith.errors import DataError, UsageError

if TYPE_CHECKING:
    from serve.runtime.generation import GenerationEngine

__all__ = ["cut_prompts"]

_WORD = re.compile(r"(?<=\s)\S")
_MAX_CHARACTERS_PER_TOKEN = 64


def cut_prompts(engine: GenerationEngine, texts: Sequence[str], *, num_tokens: int, count: int) -> list[str]:
    """Cut prompts from texts, each from another place and at the start of a word.

    Args:
        engine: Says how many tokens a prompt has, special tokens included.
        texts: Joined by empty lines.
        num_tokens: Of each prompt. One whose tokens do not end there gets as many as fit.
        count: Prompts wanted; they overlap where the texts are short.

    Raises:
        UsageError: `num_tokens` or `count` is below 1.
        DataError: The texts together have fewer tokens.
    """
    if min(num_tokens, count) < 1:
        raise UsageError(f"{count} prompts of {num_tokens} tokens; both must be at least 1")
    whole = "\n\n".join(text.strip() for text in texts if text.strip()) + "\n"
    last = _last_start(engine, whole, num_tokens)
    starts = {_next_word(whole, last * index // max(1, count - 1)) for index in range(count)}
    return [whole[start : _find_end(engine, whole, start, num_tokens)] for start in sorted(starts) if start <= last]


def _last_start(engine: GenerationEngine, whole: str, num_tokens: int) -> int:
    """The last start of a word from which there are enough tokens."""
    if (found := engine.count_prompt_tokens(whole[: num_tokens * _MAX_CHARACTERS_PER_TOKEN])) < num_tokens:
        raise DataError(
            f"the texts have {found} tokens, fewer than the {num_tokens} of a prompt", mend="Give a longer text."
        )
    low, high = 0, len(whole)  # from low there are enough, from high there are not
    while high - low > 1:
        middle = (low + high) // 2
        is_enough = engine.count_prompt_tokens(whole[middle : middle + num_tokens * _MAX_CHARACTERS_PER_TOKEN])
        low, high = (middle, high) if is_enough >= num_tokens else (low, middle)
    return max((match.start() for match in _WORD.finditer(whole, max(0, low - 200), low + 1)), default=0)


def _next_word(whole: str, place: int) -> int:
    match = _WORD.search(whole, place) if place else None
    return match.start() if match else 0


def _find_end(engine: GenerationEngine, whole: str, start: int, num_tokens: int) -> int:
    """The last character that makes no more than the wanted tokens."""
    length = 2 * num_tokens
    while start + length < len(whole) and engine.count_prompt_tokens(whole[start : start + length]) <= num_tokens:
        length *= 2
    low, high = start + 1, min(len(whole), start + length)
    while low < high:
        middle = (low + high + 1) // 2
        if engine.count_prompt_tokens(whole[start:middle]) <= num_tokens:
            low = middle
        else:
            high = middle - 1
    return low
