"""Single characters that stay whatever the corpus has, so that other text still encodes."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable

from compress.vocabulary.tokenizer_json import TokenizerJson, is_byte_token

__all__ = ["byte_alphabet", "single_characters"]

_MIN_SHARE = 0.001
"""Of the corpus' letters that a script must have before all its characters stay: one foreign name is no reason to
keep thousands of ideographs."""
_SPACE = "\u2581"
_GENERAL = frozenset({"Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sc"})
"""Punctuation and currencies, which belong to no script."""


def byte_alphabet() -> frozenset[str]:
    """The 256 characters that stand for bytes in a byte-level tokenizer.

    Source: openai/gpt-2, encoder.py, `bytes_to_unicode`.

    >>> len(byte_alphabet())
    256
    """
    from tokenizers.pre_tokenizers import ByteLevel

    return frozenset(ByteLevel.alphabet())


def single_characters(tokenizer: TokenizerJson, texts: Iterable[str]) -> set[int]:
    """Find the tokens of one character or byte that any text of the corpus' kind may need.

    Args:
        tokenizer: Whose tokens.
        texts: The corpus.

    Returns:
        Of a byte-level tokenizer: its 256 bytes. Of others: bytes that stand in for unknown characters, printable
        ASCII, punctuation, the characters of the corpus, and those of its scripts; each also where it continues or
        ends a word.
    """
    alphabet = byte_alphabet()
    is_byte_level = tokenizer.is_byte_level
    seen: Counter[str] = Counter()
    if not is_byte_level:
        for text in texts:
            seen.update(text)
    scripts = _scripts(seen)

    def stays(char: str) -> bool:
        if is_byte_level:
            return char in alphabet
        if char in seen or " " <= char <= "~" or unicodedata.category(char) in _GENERAL:
            return True
        return _script(char) in scripts

    return {
        index
        for token, index in tokenizer.model_ids.items()
        if token == _SPACE
        or is_byte_token(token)
        or any(len(bare) == 1 and stays(bare) for bare in _bare(tokenizer, token))
    }


def _bare(tokenizer: TokenizerJson, token: str) -> set[str]:
    """A token without the marks of its place in a word."""
    ended = token.removesuffix(tokenizer.suffix) if tokenizer.suffix else token
    return {token, ended, ended.removeprefix(tokenizer.prefix or _SPACE)}


def _scripts(seen: Counter[str]) -> set[str]:
    counts: Counter[str] = Counter()
    for char, count in seen.items():
        if script := _script(char):
            counts[script] += count
    total = counts.total()
    return {script for script, count in counts.items() if count >= _MIN_SHARE * total}


def _script(char: str) -> str:
    """The script of a letter or mark by its Unicode name, such as `LATIN` or `CJK`; empty for other characters.

    >>> _script("é"), _script("ж"), _script("1")
    ('LATIN', 'CYRILLIC', '')
    """
    return unicodedata.name(char, "").partition(" ")[0] if unicodedata.category(char)[0] in "LM" else ""
