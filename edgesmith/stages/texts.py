"""The real text that a language model is calibrated or measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from edgesmith.data import data_digest

if TYPE_CHECKING:
    from bench.language.windows import Windows
    from serve.runtime.generation import GenerationEngine

__all__ = ["CALIBRATION_WINDOW", "NUM_CALIBRATED", "Texts"]

CALIBRATION_WINDOW = 512
"""Tokens of a window that activations are measured on."""
NUM_CALIBRATED = 40
"""How many of them, where nobody says."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Windows of tokens of a text file; part of a stage's key."""

    path: Path
    """A text file, or rows with a column `text`."""
    window: int = 512
    """Tokens that the model reads at once."""
    num_windows: int = 64
    """At most so many are taken, evenly from the whole text."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """The column `text` → the file's."""

    @property
    def digest(self) -> str:
        """Of the file's content and format."""
        return f"sha256:{data_digest(self.path)}{self.path.suffix.lower()}"

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides which windows are read."""
        return {"window": self.window, "num_windows": self.num_windows, "columns": dict(self.columns)}

    def read(self) -> str:
        """The whole text.

        Raises:
            DataError: it is empty, no UTF-8, or a row has no text.
        """
        from bench.language.windows import read_text

        return read_text(self.path, self.columns.get("text", "text"))

    def cut(self, engine: GenerationEngine) -> Windows:
        """Cut the text into windows of the engine's tokens.

        Raises:
            DataError: it is too short.
        """
        from bench.language.windows import windows_of

        return windows_of(engine, self.read(), self.window, max_windows=self.num_windows)

    def cut_by_tokenizer(self, checkpoint: Path) -> list[list[int]]:
        """Cut the text into windows of a checkpoint's tokens, without loading the model.

        Raises:
            DataError: it is too short.
        """
        from bench.language.windows import cut_windows, find_added
        from export.gguf.tokenizer_file import TokenizerFile

        tokenizer = TokenizerFile(checkpoint).tokenizer
        before, after = find_added(lambda text, special: tokenizer.encode(text, add_special_tokens=special).ids)
        tokens = tokenizer.encode(self.read()).ids
        tokens = tokens[: len(tokens) - len(after)]  # the end of a text is nowhere in its middle
        windows = cut_windows(tokens, self.window, before[0] if before else None, max_windows=self.num_windows)
        return [windows.input_of(index) for index in range(windows.num_windows)]
