"""Text cut into the windows on which a language model is scored, exactly as llama.cpp's perplexity tool cuts it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import DataError, UnsupportedError, UsageError
from edgesmith.files import storage_errors

if TYPE_CHECKING:
    from serve.runtime.generation import GenerationEngine

__all__ = ["MIN_WINDOWS", "TEXT_SUFFIXES", "Windows", "cut_windows", "find_added", "read_text", "windows_of"]

MIN_WINDOWS = 2
"""Fewest that anything is scored on."""
TEXT_SUFFIXES = (".txt", ".md", ".text", ".raw")
_MIN_LENGTH = 8
_COLUMN = "text"


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Non-overlapping pieces of one text, of equal length; the second half of each is scored.

    The first half gives the context, so every scored token has at least length / 2 tokens before it.
    """

    tokens: NDArray[np.int32]
    """As the text has them, of shape [num_windows, length]: each is what a prediction is held against."""
    bos: int | None
    """Takes the place of each window's first token when it is read, where the model begins texts with it."""
    num_tokens: int
    """Of the whole text; what the windows leave over at its end is not scored."""

    @property
    def num_windows(self) -> int:
        """How many there are."""
        return len(self.tokens)

    @property
    def length(self) -> int:
        """Tokens of a window."""
        return int(self.tokens.shape[1])

    @property
    def first(self) -> int:
        """Position whose prediction is the first that is scored."""
        return self.length // 2

    @property
    def num_scored(self) -> int:
        """Tokens of a window that are scored: those after position `first`."""
        return self.length - self.first - 1

    @property
    def targets(self) -> NDArray[np.int32]:
        """The tokens that are scored, of shape [num_windows, num_scored]."""
        return self.tokens[:, self.first + 1 :]

    @cached_property
    def digest(self) -> str:
        """Of tokens, length and beginning: equal digests make two measurements comparable token by token."""
        hashed = hashlib.sha256(f"{self.length} {self.bos} ".encode())
        hashed.update(np.ascontiguousarray(self.tokens, dtype="<i4").tobytes())
        return f"sha256:{hashed.hexdigest()}"

    def input_of(self, window: int) -> list[int]:
        """The tokens that a model reads for a window."""
        tokens: list[int] = self.tokens[window].tolist()
        if self.bos is not None:
            tokens[0] = self.bos
        return tokens


def cut_windows(
    tokens: Sequence[int], length: int = 512, bos: int | None = None, *, max_windows: int | None = None
) -> Windows:
    """Cut a text's tokens into windows.

    Args:
        tokens: Of the whole text, with the token that the model begins texts with, if it does so.
        length: Tokens of a window, even, at least 8.
        bos: The token that a model begins every text with; None for a model without one.
        max_windows: Take at most so many, evenly spread over the text; all by default.

    Raises:
        DataError: The text has fewer tokens than two windows.
        UsageError: The length is odd or too small, or `max_windows` below 2.

    Source: llama.cpp, tools/perplexity/perplexity.cpp, `perplexity`: n_ctx tokens a chunk, `first = n_ctx/2`, the
    logits of positions first … n_ctx - 2 are scored, and the first token of each chunk is replaced by BOS.

    >>> windows = cut_windows(range(20), length=8, bos=1)
    >>> windows.num_windows, windows.input_of(1), windows.targets.tolist()
    (2, [1, 9, 10, 11, 12, 13, 14, 15], [[5, 6, 7], [13, 14, 15]])
    """
    if length < _MIN_LENGTH or length % 2:
        raise UsageError(f"a window of {length} tokens: it must be even and at least {_MIN_LENGTH}")
    if max_windows is not None and max_windows < MIN_WINDOWS:
        raise UsageError(f"max_windows is {max_windows}; it must be at least {MIN_WINDOWS}")
    num_windows = len(tokens) // length
    if num_windows < MIN_WINDOWS:
        raise DataError(
            f"the text has {len(tokens):,} tokens, fewer than {MIN_WINDOWS} windows of {length:,}",
            mend=f"Give a text of at least {MIN_WINDOWS * length:,} tokens, better of 30 windows, or shorter windows.",
        )
    table = np.array(tokens[: num_windows * length], dtype=np.int32).reshape(num_windows, length)
    if max_windows is not None and max_windows < num_windows:
        table = table[np.arange(max_windows) * num_windows // max_windows]
    return Windows(tokens=table, bos=bos, num_tokens=len(tokens))


def windows_of(engine: GenerationEngine, text: str, length: int = 512, *, max_windows: int | None = None) -> Windows:
    """Cut a text with an engine's own tokenizer, and find out what it begins texts with.

    Args:
        engine: Splits the text.
        text: As the model is to read it.
        length: Tokens of a window.
        max_windows: Take at most so many, evenly spread over the text; all by default.

    Raises:
        DataError: The text has fewer tokens than two windows.
        UsageError: A window does not fit into the model's context.
    """
    if length > engine.context_length:
        raise UsageError(
            f"a window of {length:,} tokens does not fit into the {engine.context_length:,} of {engine.name}",
            mend="Take shorter windows.",
        )
    before, after = find_added(lambda text, adds: engine.tokenize(text, add_special=adds))
    tokens = engine.tokenize(text, add_special=True)
    if after:  # the end of a text is nowhere in its middle
        tokens = tokens[: len(tokens) - len(after)]
    return cut_windows(tokens, length, before[0] if before else None, max_windows=max_windows)


def find_added(tokenize: Callable[[str, bool], list[int]]) -> tuple[list[int], list[int]]:
    """Find the tokens that a tokenizer adds before and after every text.

    Args:
        tokenize: Splits a text; its second argument says whether to add them.

    Raises:
        UnsupportedError: They cannot be told from those of the text.

    >>> find_added(lambda text, adds: [1] * adds + [ord(one) for one in text] + [2] * adds)
    ([1], [2])
    """
    found = {tuple(map(tuple, _added_to(text, tokenize))) for text in ("a", "7")}
    if len(found) > 1:
        raise _not_told(*(tokenize(text, True) for text in ("a", "7")))
    before, after = found.pop()
    return list(before), list(after)


def _added_to(text: str, tokenize: Callable[[str, bool], list[int]]) -> tuple[list[int], list[int]]:
    """Around the pieces of the bare text; where they change with what is added, as around no text at all."""
    bare, whole = tokenize(text, False), tokenize(text, True)
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    empty = tokenize("", True)
    before = next((at for at, pair in enumerate(zip(empty, whole, strict=False)) if pair[0] != pair[1]), len(empty))
    after = len(empty) - before
    if tokenize("", False) or len(whole) <= len(empty) or whole[len(whole) - after :] != empty[before:]:
        raise _not_told(whole, empty)
    return empty[:before], empty[before:]


def _not_told(*seen: list[int]) -> UnsupportedError:
    return UnsupportedError(
        f"the tokenizer adds tokens that cannot be told from those of a text: {' and '.join(map(str, seen))}",
        mend="Convert it again, with a tokenizer that adds the same tokens to every text.",
    )


def read_text(path: Path, column: str = _COLUMN) -> str:
    """Read the text of a file: all of a plain one, a column of a table.

    Args:
        path: UTF-8: `.txt`, `.md`, `.raw`, or rows as `edgesmith.data.read_rows` takes them.
        column: Of a table; its rows are joined by an empty line.

    Raises:
        DataError: The file is missing, empty, not UTF-8, or a row has no such text.
        StorageError: The file cannot be read.
    """
    from edgesmith.data import FORMATS, check_no_nul, encoding_mend, read_rows

    suffix = path.suffix.lower()
    if suffix not in TEXT_SUFFIXES and suffix not in FORMATS:
        known = ", ".join(sorted({*TEXT_SUFFIXES, *FORMATS}))
        raise DataError(f"{path}: {suffix or 'no extension'} is no text that is read here", mend=f"Use {known}.")
    if suffix not in TEXT_SUFFIXES:
        return "\n\n".join(_text_of(row.values, row.place, column) for row in read_rows(path))
    if not path.is_file():
        raise UsageError(f"{path}: no such text file", mend="Check the path.")
    with storage_errors(path):
        content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte 0x{content[error.start]:02x} is not UTF-8",
            mend=encoding_mend(content, path),
        ) from error
    check_no_nul(text, str(path), path)
    if not text.strip():
        raise DataError(f"{path} holds no text", mend="Give a text.")
    return text


def _text_of(values: dict[str, object], place: str, column: str) -> str:
    text = values.get(column)
    if not isinstance(text, str) or not text.strip():
        known = ", ".join(repr(name) for name in values)
        raise DataError(f"{place}: has no text in column {column!r}", mend=f"Its columns are {known}; name one.")
    return text
