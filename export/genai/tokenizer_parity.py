"""Count where onnxruntime-genai's own tokenizer, which its C++ users have, differs from the one of training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from edgesmith.errors import ArtifactError
from export.gguf.parity_lines import generate_lines
from export.gguf.tokenizer_file import TokenizerFile
from serve.runtime.genai_library import first_line, load_library

__all__ = ["OwnTokenizer", "compare_own_tokenizer"]

_SHOWN_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class OwnTokenizer:
    """How the runtime's own tokenizer does."""

    num_lines: int
    num_different: int
    """Lines that it splits otherwise."""
    num_invalid: int
    """Lines of which it makes a token that the model does not have: feeding them reads memory that is not there."""
    first_difference: str
    """The first such line with both results; empty if there is none."""

    @property
    def note(self) -> str:
        """What users of the runtime's own tokenizer must know; empty if it is right."""
        if not self.num_different:
            return ""
        return (
            f"onnxruntime-genai's own tokenizer splits {self.num_different} of {self.num_lines} lines otherwise, "
            f"{self.num_invalid} of them into tokens that do not exist; split text with "
            "`tokenizers` and tokenizer.json, as the engine here does"
        )


def compare_own_tokenizer(
    folder: Path, *, texts: Iterable[str] = (), num_generated: int = 1000, seed: int = 0
) -> OwnTokenizer:
    """Tokenize lines with `tokenizers` and with the runtime's own tokenizer.

    Args:
        folder: A model folder that was checked: its tokenizer files are read by native code.
        texts: Real lines, beside those that are generated.
        num_generated: Generated lines; those with special tokens come on top.
        seed: Of the generated lines.

    Returns:
        The figures; differences are no error, for the engine does not use that tokenizer.

    Raises:
        ArtifactError: The runtime cannot open its tokenizer.
        CheckpointError: The folder has no sound `tokenizer.json`.
        MissingExtraError: onnxruntime-genai is not installed.
    """
    file = TokenizerFile(folder)
    size = file.tokenizer.get_vocab_size()
    own = _open(folder)
    num_lines = num_different = num_invalid = 0
    first = ""
    added = [str(token["content"]) for token in file.added]
    for line in chain(texts, generate_lines(num_generated, special_tokens=added, seed=seed)):
        expected, found = file.tokenizer.encode(line).ids, [int(token) for token in own.encode(line)]
        num_lines += 1
        if found != expected:
            num_different += 1
            num_invalid += any(not 0 <= token < size for token in found)
            first = first or _difference(line, expected, found)
    return OwnTokenizer(
        num_lines=num_lines, num_different=num_different, num_invalid=num_invalid, first_difference=first
    )


def _open(folder: Path) -> Any:
    library = load_library()
    try:
        return library.Tokenizer(library.Model(str(folder)))
    except Exception as error:  # the library raises plain RuntimeError and others
        raise ArtifactError(f"{folder}: onnxruntime-genai cannot open its tokenizer: {first_line(error)}") from error


def _difference(line: str, expected: list[int], found: list[int]) -> str:
    pairs = zip(expected, found, strict=False)
    start = next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(expected), len(found)))
    shown = slice(start, start + _SHOWN_TOKENS)
    return f"{line[:200]!r}: from token {start} on expected {expected[shown]}, found {found[shown]}"
