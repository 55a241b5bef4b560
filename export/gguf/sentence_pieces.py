"""SentencePiece tokenizers, as `tokenizer.json` spells them, in the words of GGUF.

Source: https://github.com/google/sentencepiece and https://huggingface.co/docs/tokenizers/components
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from edgesmith.errors import CheckpointError, UnsupportedError
from export.gguf.metadata import Metadata
from export.gguf.tokenizer_file import TokenizerFile

__all__ = ["is_byte_token", "sentence_piece_bpe", "unigram"]

_SPACE = "\u2581"
_OTHER_FORMAT = "Choose another format for this checkpoint, such as onnx."
_NEVER = -1e9  # below every score: such a piece is chosen nowhere


def is_byte_token(token: str) -> bool:
    """Whether a token stands for one byte that no other token covers.

    >>> is_byte_token("<0x0A>")
    True
    """
    return re.fullmatch("<0x[0-9A-F]{2}>", token) is not None


def sentence_piece_bpe(file: TokenizerFile, tokens: list[str]) -> Metadata:
    """Scores and flags of a BPE with byte fallback.

    llama.cpp merges the two neighbours whose joint piece has the highest score, so the scores are the order in
    which the merges of `tokenizer.json` produce the pieces.

    Raises:
        UnsupportedError: it treats white space in a way that GGUF cannot say.
    """
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(file.model.get("merges") or []):
        ranks.setdefault("".join(pair.split(" ", 1) if isinstance(pair, str) else pair), rank)
    scores = [0.0 if len(token) == 1 else -float(ranks[token]) if token in ranks else _NEVER for token in tokens]
    return {"tokenizer.ggml.scores": scores, "tokenizer.ggml.add_space_prefix": _adds_space(file)}


def _adds_space(file: TokenizerFile) -> bool:
    """Whether a space is put before a text; refuses rules that are not SentencePiece's."""
    prepends = replaces = False
    for rule in file.flatten("normalizer", "normalizers"):
        match rule:
            case {"type": "Prepend", "prepend": "\u2581"}:
                prepends = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}:
                replaces = True
            case _:
                raise _strange(file, rule)
    splitter = file.content.get("pre_tokenizer")
    match splitter:
        case None:
            pass
        case {"type": "Metaspace", "replacement": "\u2581"}:
            replaces = True
            prepends = prepends or _metaspace_prepends(splitter)
            if splitter.get("split", True):
                raise _strange(file, splitter)
        case {"type": "Split", "pattern": {"String": " "}} if replaces:
            pass  # no space is left that it could split at
        case _:
            raise _strange(file, splitter)
    if not replaces:
        raise UnsupportedError(f"{file.path}: a BPE with byte fallback that keeps spaces", mend=_OTHER_FORMAT)
    return prepends


def _metaspace_prepends(rule: Mapping[str, Any]) -> bool:
    return str(rule.get("prepend_scheme", "always" if rule.get("add_prefix_space", True) else "never")) != "never"


def _strange(file: TokenizerFile, rule: object) -> UnsupportedError:
    return UnsupportedError(f"{file.path}: the rule {rule!r} has no form in GGUF", mend=_OTHER_FORMAT)


def unigram(file: TokenizerFile, tokens: list[str]) -> Metadata:
    """Scores and flags of a Unigram model.

    Raises:
        CheckpointError: its character map is no base64.
        UnsupportedError: it treats characters in a way that GGUF cannot say.
    """
    known = dict(file.model.get("vocab") or [])
    added = {str(token["content"]) for token in file.added}
    scores = [float(known.get(token, 0.0 if token in added else _NEVER)) for token in tokens]
    settings: Metadata = {"tokenizer.ggml.scores": scores, "tokenizer.ggml.remove_extra_whitespaces": False}
    for rule in file.flatten("normalizer", "normalizers"):
        match rule:
            case {"type": "Precompiled", "precompiled_charsmap": str() as encoded}:
                settings["tokenizer.ggml.precompiled_charsmap"] = _decode(file, encoded)
            case {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " " | "\u2581"}:
                settings["tokenizer.ggml.remove_extra_whitespaces"] = True
            case {"type": "Strip"}:
                settings["tokenizer.ggml.remove_extra_whitespaces"] = True
            case _:
                raise _strange(file, rule)
    prepends = False
    for rule in file.flatten("pre_tokenizer", "pretokenizers"):
        match rule:
            case {"type": "Metaspace", "replacement": "\u2581"}:
                prepends = _metaspace_prepends(rule)
            case {"type": "WhitespaceSplit"}:
                settings["tokenizer.ggml.remove_extra_whitespaces"] = True
            case _:
                raise _strange(file, rule)
    settings["tokenizer.ggml.add_space_prefix"] = prepends
    return settings


def _decode(file: TokenizerFile, encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise CheckpointError(
            f"{file.path}: precompiled_charsmap is not base64", mend="Get the tokenizer again from its source."
        ) from error
