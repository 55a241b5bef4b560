"""A language model that is being served."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.artifact import Artifact
from serve.config import ModelSpec
from serve.models.job import GenerationJob
from serve.runtime.generation import GenerationEngine

__all__ = ["TextModel"]


class TextModel:
    """A language model with its engine, its queue and the thread that it writes on.

    Args:
        spec: Slots, queue, context, deadlines.
        artifact: Of kind `gguf` or `genai`.
        loop: On whose thread jobs come, and their chunks go.
        engine: Opened from the artifact before; None opens it here, which takes a while.

    Attributes:
        name: Of the spec.
        version: Of the spec.
        artifact: What is served.
        engine_name: Engine and version.
        context_length: The most tokens of one text, prompt and answer together.
        num_slots: Texts that are written at a time.
        total_tokens: The most tokens of all texts that are written at a time together.
    """

    name: str
    version: str
    artifact: Artifact
    engine_name: str
    context_length: int
    num_slots: int
    total_tokens: int

    def __init__(
        self,
        spec: ModelSpec,
        artifact: Artifact,
        *,
        loop: asyncio.AbstractEventLoop,
        engine: GenerationEngine | None = None,
    ) -> None:
        raise NotImplementedError

    @property
    def can_generate(self) -> bool:
        """Whether it continues texts."""
        raise NotImplementedError

    @property
    def can_embed(self) -> bool:
        """Whether it makes vectors of texts."""
        raise NotImplementedError

    def submit(self, job: GenerationJob) -> None:
        """Take a job, on the loop's thread; its `done` is called exactly once, later, on the loop's thread.

        Raises:
            UsageError: A setting is out of range. What only the tokenizer can tell comes as the job's error.
            OverloadedError: The queue is full.
            NotReadyError: The model is being closed.
        """
        raise NotImplementedError

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Write a conversation down as the model reads it. Any thread; long conversations take milliseconds."""
        raise NotImplementedError

    def count_tokens(self, text: str) -> int:
        """Tokens that the model reads for a text, special tokens included. Any thread."""
        raise NotImplementedError

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Make one vector of each text, float32 of shape [texts, width], as the file says that they are pooled.

        Raises:
            UsageError: A text has no tokens, or too many; the message says which.
            UnsupportedError: The model makes no vectors.
            OverloadedError: The queue is full.
        """
        raise NotImplementedError

    async def close(self, timeout_s: float | None = None) -> None:
        """Take no more jobs, finish those that there are, and free the engine. Closing twice is harmless.

        Args:
            timeout_s: What is not finished then fails. None waits.
        """
        raise NotImplementedError
