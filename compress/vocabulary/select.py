"""Which tokens stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.vocabulary.merges import MergeRules
from compress.vocabulary.tokenizer_json import TokenizerJson
from edgesmith.errors import UsageError

__all__ = ["Limits", "Selection", "select_tokens"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How many tokens may stay."""

    max_tokens: int | None = None
    """At most so many."""
    min_count: int = 1
    """How often the corpus must have a token."""
    multiple_of: int = 1
    """Of what their number is a multiple."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The tokens that stay."""

    kept: NDArray[np.int64]
    """Their old ids, rising: the new id of each is its place."""
    reasons: Mapping[str, int]
    """Why they stay → how many: `special`, `characters`, `corpus`, `parts` (of longer tokens) and `filled_up`."""


def select_tokens(
    tokenizer: TokenizerJson,
    counts: NDArray[np.int64],
    *,
    special: Iterable[int],
    characters: Iterable[int],
    limits: Limits,
    pipeline: Any,
) -> Selection:
    """Choose the tokens of a trimmed vocabulary.

    Tokens that must stay come first, then those of the corpus, the most frequent first, each with the tokens that
    it is merged from, as long as there is room. What is left to a round number is filled with real tokens that the
    corpus does not need: rows that no token has would only take part in a language model's softmax.

    Args:
        tokenizer: Whose tokens.
        counts: How often the corpus has each id, of shape [num_rows].
        special: Ids that anything but text refers to.
        characters: Ids of single characters and bytes.
        limits: How many may stay.
        pipeline: The tokenizer of the tokenizers library.

    Raises:
        UsageError: what must stay is more than the limit.
    """
    chooser = _Chooser(tokenizer, limits, num_tokens=len(tokenizer.tokens))
    for index in special:
        chooser.take([index], "special")
    for index in characters:
        chooser.take([index], "characters")
    if tokenizer.kind == "Unigram":  # what an unknown character costs is reckoned from the lowest score
        chooser.take([min(range(len(tokenizer.scores)), key=tokenizer.scores.__getitem__)], "special")
    if chooser.room < 0:
        raise UsageError(
            f"max_tokens is {limits.max_tokens}, but {len(chooser.reason_of)} tokens must stay: "
            f"{', '.join(f'{count} {reason}' for reason, count in chooser.reasons().items())}",
            mend=f"Set it to {chooser.round_up(len(chooser.reason_of))} or more.",
        )
    rules = MergeRules(tokenizer) if tokenizer.kind == "BPE" else None
    wanted = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index] >= limits.min_count]
    for index in wanted:
        parts = _parts(tokenizer, rules, index)
        if chooser.fits({index, *parts}):
            chooser.take([index], "corpus")
            chooser.take(parts, "parts")
    _fill_up(chooser, tokenizer, pipeline)
    return Selection(kept=np.array(sorted(chooser.reason_of), np.int64), reasons=chooser.reasons())


class _Chooser:
    """Tokens taken so far, with the reason of each."""

    def __init__(self, tokenizer: TokenizerJson, limits: Limits, *, num_tokens: int) -> None:
        self._known = tokenizer.tokens
        self._multiple = limits.multiple_of
        most = num_tokens if limits.max_tokens is None else min(limits.max_tokens, num_tokens)
        # A limit below the whole vocabulary is rounded down, so that filling up stays within it.
        self._most = most if most == num_tokens else most // limits.multiple_of * limits.multiple_of
        self.reason_of: dict[int, str] = {}

    @property
    def room(self) -> int:
        """How many more can be taken."""
        return self._most - len(self.reason_of)

    def fits(self, indices: Iterable[int]) -> bool:
        """Whether all of these can be taken."""
        return sum(index not in self.reason_of for index in indices) <= self.room

    def take(self, indices: Iterable[int], reason: str) -> None:
        """Take tokens; those taken before keep their reason.

        An id that is no token is taken only where a configuration names it.
        """
        for index in indices:
            if index in self._known or reason == "special":
                self.reason_of.setdefault(index, reason)
                if reason == "corpus" and self.reason_of[index] == "parts":
                    self.reason_of[index] = reason

    def round_up(self, count: int) -> int:
        """The next round number, or the whole vocabulary if that is fewer."""
        return min(-(-count // self._multiple) * self._multiple, len(self._known))

    def reasons(self) -> dict[str, int]:
        """Reason → how many."""
        counted = Counter(self.reason_of.values())
        order = ("special", "characters", "corpus", "parts", "filled_up")
        return {reason: counted[reason] for reason in order if counted[reason]}


def _parts(tokenizer: TokenizerJson, rules: MergeRules | None, index: int) -> list[int]:
    token = tokenizer.tokens.get(index)
    if rules is None or token is None or token in tokenizer.added_ids:
        return []
    return [tokenizer.model_ids[part] for part in rules.parts_of(token) if part in tokenizer.model_ids]


def _fill_up(chooser: _Chooser, tokenizer: TokenizerJson, pipeline: Any) -> None:
    wanted = chooser.round_up(len(chooser.reason_of))
    for index in _spare(tokenizer, chooser.reason_of, pipeline):
        if len(chooser.reason_of) >= wanted:
            return
        chooser.take([index], "filled_up")


def _spare(tokenizer: TokenizerJson, taken: Mapping[int, str], pipeline: Any) -> Iterator[int]:
    """Tokens that other text needs the soonest, each usable with what is there already."""
    match tokenizer.kind:
        case "BPE":  # merges were learnt in the order of their frequency
            for first, second in tokenizer.merges:
                made = tokenizer.model_ids.get(tokenizer.join(first, second))
                parts = (tokenizer.model_ids.get(first), tokenizer.model_ids.get(second))
                if made is not None and made not in taken and all(part in taken for part in parts):
                    yield made
        case "Unigram":
            for index in sorted(range(len(tokenizer.scores)), key=lambda index: -tokenizer.scores[index]):
                if index not in taken:
                    yield index
        case _:  # in the order of their ids, but no placeholder that no text becomes
            for index, token in sorted(tokenizer.tokens.items()):
                if index not in taken and pipeline.encode(token, add_special_tokens=False).ids == [index]:
                    yield index
