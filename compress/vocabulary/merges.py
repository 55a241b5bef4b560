"""Which merges of a BPE make a token, found by merging its characters as the tokenizer does.

In the tokenization of any text, no merge crosses the border between two tokens that it ends in, and merges on one
side of a border never wait for those on the other. So the merges that made a token in a text are those that make
it on its own, and a vocabulary that has them for every token of a text tokenizes that text as before: at each
step the pair of the lowest rank among all merges is one of those, hence also the lowest among the kept ones.
A superset of them changes nothing either, for the same reason.

Source: Sennrich et al., Neural Machine Translation of Rare Words with Subword Units, section 3.2.
"""

from __future__ import annotations

from itertools import pairwise

from compress.vocabulary.tokenizer_json import TokenizerJson

__all__ = ["MergeRules"]


class MergeRules:
    """The merges of a BPE, which say what a token is built from."""

    def __init__(self, tokenizer: TokenizerJson) -> None:
        self._tokenizer = tokenizer
        # The last of several equal merges counts, as in the library.
        self._ranks = {pair: rank for rank, pair in enumerate(tokenizer.merges)}
        self._parts: dict[str, frozenset[str]] = {}

    def parts_of(self, token: str) -> frozenset[str]:
        """Name the tokens that merging a token's characters passes through, itself and the characters included.

        A token that merging does not make (one that was added, a byte, a whole word under `ignore_merges`) has no
        parts but itself.
        """
        if token not in self._parts:
            self._parts[token] = self._merge(token)
        return self._parts[token]

    def _merge(self, token: str) -> frozenset[str]:
        symbols = self._symbols(token)
        passed = set(symbols)
        while len(symbols) > 1:
            ranked = [(self._ranks.get(pair), at) for at, pair in enumerate(pairwise(symbols))]
            found = min(((rank, at) for rank, at in ranked if rank is not None), default=None)
            if found is None:
                return frozenset({token})
            at = found[1]
            symbols[at : at + 2] = [self._tokenizer.join(*symbols[at : at + 2])]
            passed.add(symbols[at])
        return frozenset(passed)

    def _symbols(self, token: str) -> list[str]:
        """Cut a token into what merging starts from: characters, marked where the tokenizer marks them."""
        prefix, suffix = self._tokenizer.prefix, self._tokenizer.suffix
        continues = bool(prefix) and token.startswith(prefix) and token != prefix
        ends = bool(suffix) and token.endswith(suffix) and token != suffix
        bare = token[len(prefix) if continues else 0 : len(token) - len(suffix) if ends else None]
        symbols = [char if at == 0 and not continues else prefix + char for at, char in enumerate(bare)]
        if ends and symbols:
            symbols[-1] += suffix
        return symbols
