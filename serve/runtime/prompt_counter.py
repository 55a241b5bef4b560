"""Tokens of prompts, counted without an engine: by an artifact's tokenizer alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edgesmith.artifact import Artifact
from edgesmith.errors import ArtifactError

__all__ = ["PromptCounter"]


class PromptCounter:
    """Counts as the artifact's engine would. Any thread.

    Args:
        artifact: Of kind `gguf` or `genai`.

    Raises:
        ArtifactError: The tokenizer is damaged.
        MissingExtraError: The library that reads it is not installed.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._lock = threading.Lock()
        self._count = _of_gguf(artifact) if artifact.kind == "gguf" else _of_tokenizer(artifact)

    def count_prompt_tokens(self, prompt: str) -> int:
        """Tokens that the model reads for a prompt, special tokens included."""
        with self._lock:
            return self._count(prompt)


def _of_gguf(artifact: Artifact) -> Callable[[str], int]:
    from serve.runtime.llama_library import LlamaModel

    path = artifact.path if artifact.path.is_file() else artifact.file("model.gguf")
    model = LlamaModel(path, vocab_only=True)
    return lambda prompt: len(model.tokenize(prompt, add_special=True))


def _of_tokenizer(artifact: Artifact) -> Callable[[str], int]:
    from serve.runtime.text_stream import load_tokenizer

    tokenizer = load_tokenizer(artifact.file("tokenizer.json"), failure=ArtifactError)
    return lambda prompt: len(tokenizer.encode(prompt).ids)
