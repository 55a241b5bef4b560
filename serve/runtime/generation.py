"""What every engine of a text-generating model does: stream what it writes, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

__all__ = ["GenerationEngine", "TextChunk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextChunk:
    """What one step of an engine gives.

    Attributes:
        text: What can be shown now; empty while a character of several tokens is not complete, and for tokens
            that have no text, such as the one that ends the answer.
        num_tokens: Tokens generated in this step, at least 1.
    """

    text: str
    num_tokens: int = 1


class GenerationEngine(Protocol):
    """Something that continues a text."""

    @property
    def name(self) -> str:
        """Engine and version, such as `llama.cpp b7100 (CPU)`."""

    def count_prompt_tokens(self, prompt: str) -> int:
        """Tokens that the model reads for a prompt, special tokens included."""

    def generate(self, prompt: str, *, max_tokens: int) -> Iterator[TextChunk]:
        """Continue a prompt greedily, until the model ends or `max_tokens` are generated.

        The prompt is read when the first chunk is asked for. Each step gives its chunk before the next one starts.

        Args:
            prompt: Text as the model reads it: a chat template is the caller's matter.
            max_tokens: At least 1.

        Raises:
            UsageError: The prompt is empty, or prompt and answer do not fit into the model's context.
        """

    def close(self) -> None:
        """Free what the engine holds. Closing twice is harmless; generating with a closed engine is an error."""
