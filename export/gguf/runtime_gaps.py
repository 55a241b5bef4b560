"""What llama.cpp's tokenizers are known not to do: said in every result, and kept out of the lines compared.

Each was found by comparing every character of Unicode, and holds whatever file is made.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from export.gguf.tokenizer_file import TokenizerFile

__all__ = ["RuntimeGap", "runtime_gaps"]

_HANGUL = re.compile("[\uac00-\ud7a3]")
_ODD_SPACES = re.compile("[\v\f\x85]")


@dataclass(frozen=True, kw_only=True)
class RuntimeGap:
    """One thing that the runtime does otherwise than the tokenizer of the checkpoint."""

    note: str
    avoid: Callable[[str], str]
    """Changes a text so that it does not matter."""


def runtime_gaps(file: TokenizerFile) -> list[RuntimeGap]:
    """Find what applies to a tokenizer."""
    gaps: list[RuntimeGap] = []
    if any(rule.get("type") == "NFC" for rule in file.flatten("normalizer", "normalizers")):
        gaps.append(
            RuntimeGap(
                note="normalization to NFC: llama.cpp must be given texts that are composed already",
                avoid=lambda text: unicodedata.normalize("NFC", text),
            )
        )
    if file.kind == "WordPiece":
        gaps.append(
            RuntimeGap(
                note="vertical tab, form feed and U+0085: llama.cpp's WordPiece splits words there",
                avoid=lambda text: _ODD_SPACES.sub(" ", text),
            )
        )
        if file.strips_accents:
            gaps.append(
                RuntimeGap(
                    note="Hangul syllables and spacing marks (vowel signs of Indic scripts): llama.cpp's WordPiece "
                    "keeps the first whole and drops the second",
                    avoid=_without_hangul_and_marks,
                )
            )
    return gaps + _trimmed_tokens(file)


def _without_hangul_and_marks(text: str) -> str:
    kept = (char for char in _HANGUL.sub("", text) if unicodedata.category(char) not in ("Mc", "Me"))
    return "".join(kept)


def _trimmed_tokens(file: TokenizerFile) -> list[RuntimeGap]:
    """Tokens that take the white space beside them along."""
    if file.kind == "WordPiece":
        return []  # drops white space in any case
    gaps = []
    for token in file.added:
        content = re.escape(str(token["content"]))
        for flag, pattern in (("lstrip", rf"\s+(?={content})"), ("rstrip", rf"(?<={content})\s+")):
            if token.get(flag):
                note = f"white space beside {token['content']!r}, dropped by the tokenizer ({flag}): llama.cpp keeps it"
                gaps.append(RuntimeGap(note=note, avoid=_remover(pattern)))
    return gaps


def _remover(pattern: str) -> Callable[[str], str]:
    compiled = re.compile(pattern)
    return lambda text: compiled.sub("", text)
