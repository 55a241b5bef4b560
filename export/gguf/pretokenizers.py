"""Find llama.cpp's name for the way a byte-level tokenizer splits a text into words.

The rules of `tokenizer.json` are compared, not what they do to a sample: tokens that a fine-tune added do not
matter, and rules that llama.cpp does not have are never taken for similar ones.

Source: https://huggingface.co/docs/tokenizers/api/pre-tokenizers; the names are those that `llama-vocab.cpp` of
https://github.com/ggml-org/llama.cpp reads from `tokenizer.ggml.pre`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from edgesmith.errors import UnsupportedError

__all__ = ["find_pre_tokenizer", "split_rules"]

Rules: TypeAlias = tuple[str, ...]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PUNCTUATION_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASHES_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCTUATION_AND_SPACE}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCTUATION_AND_SPACE}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS_BY_CASE = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_TEKKEN = rf"{_WORDS_BY_CASE[0]}|{_WORDS_BY_CASE[1]}|\p{{N}}|{_SLASHES_AND_SPACE}"
_GPT4O = rf"{_WORDS_BY_CASE[0]}{_CONTRACTIONS}?|{_WORDS_BY_CASE[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_SLASHES_AND_SPACE}"
_BYTES = "bytes"

# Spellings of one rule that match the same text: a possessive quantifier changes nothing where what follows it
# cannot match what it took, and digits one by one are digits.
_SAME: Mapping[str, str] = {
    r"'(?i:[sdmt]|ll|ve|re)": _CONTRACTIONS,
    r"[^\r\n\p{L}\p{N}]?+": r"[^\r\n\p{L}\p{N}]?",
    r"[^\s\p{L}\p{N}]++": r"[^\s\p{L}\p{N}]+",
    r"\p{N}{1}": r"\p{N}",
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])": _CONTRACTIONS,
}

# Rules, and whether a word that is a token as a whole is taken without merging → name.
_KNOWN: Mapping[tuple[Rules, bool], str] = {
    ((_GPT2, _BYTES), False): "gpt-2",
    ((r"\p{N}", _GPT2, _BYTES), False): "smollm",
    ((_LLAMA3, _BYTES), True): "llama-bpe",
    ((_LLAMA3, _BYTES), False): "dbrx",
    ((_QWEN2, _BYTES), False): "qwen2",
    ((_QWEN35, _BYTES), False): "qwen35",
    ((_TEKKEN, _BYTES), True): "tekken",
    ((_GPT4O, _BYTES), False): "gpt-4o",
}


def find_pre_tokenizer(pre_tokenizer: Mapping[str, Any] | None, *, ignore_merges: bool, path: Path) -> str:
    """Name the pre-tokenizer that has the rules of a tokenizer.

    Args:
        pre_tokenizer: What `tokenizer.json` says below this key.
        ignore_merges: Whether the model takes a word that is one token without merging.
        path: For messages.

    Raises:
        UnsupportedError: llama.cpp has none with these rules, as far as known here; the message shows them.
    """
    rules = tuple(split_rules(pre_tokenizer))
    name = _KNOWN.get((rules, ignore_merges))
    if name is None:
        shown = "\n".join(f"    {rule}" for rule in rules) or "    (none)"
        raise UnsupportedError(
            f"{path}: no pre-tokenizer of llama.cpp is known to split as this tokenizer does (ignore_merges "
            f"{str(ignore_merges).lower()}):\n{shown}",
            mend="If llama.cpp has it, name its converter with `converter:` in the target; a similar one would change "
            "tokens unnoticed.",
        )
    return name


def split_rules(pre_tokenizer: Mapping[str, Any] | None) -> Iterator[str]:
    r"""Yield the rules by which a text is split, in one spelling, in their order.

    Args:
        pre_tokenizer: As in `tokenizer.json`; sequences may be nested.

    >>> list(split_rules({"type": "Digits", "individual_digits": True}))
    ['\\p{N}']
    """
    rule = pre_tokenizer or {}
    match rule.get("type"):
        case None:
            return
        case "Sequence":
            for part in rule.get("pretokenizers") or ():
                yield from split_rules(part)
        case "ByteLevel" if not rule.get("add_prefix_space"):
            if rule.get("use_regex", True):
                yield _GPT2
            yield _BYTES
        case "Digits":
            yield r"\p{N}" if rule.get("individual_digits") else r"\p{N}+"
        case "Split" if _keeps_all(rule):
            yield _spell(rule["pattern"]["Regex"])
        case _:
            yield str(dict(rule))


def _keeps_all(rule: Mapping[str, Any]) -> bool:
    """Whether matches become words of their own. Removing all that does not match is the same for these rules."""
    pattern = rule.get("pattern")
    ways = {("Isolated", False), ("Removed", True)}
    return isinstance(pattern, Mapping) and "Regex" in pattern and (rule.get("behavior"), rule.get("invert")) in ways


def _spell(regex: str) -> str:
    for spelling, ours in _SAME.items():
        regex = regex.replace(spelling, ours)
    return regex
