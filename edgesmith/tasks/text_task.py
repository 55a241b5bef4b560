"""What all tasks on texts share: a tokenizer decides their inputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgesmith.tasks.base import Task, TaskInput
from edgesmith.tasks.tokenization import TextEncoder

__all__ = ["TextTask"]


class TextTask(Task):
    """Base of tasks whose inputs are texts.

    Attributes:
        encoder: The tokenizer and its settings.
    """

    encoder: TextEncoder

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the arrays that `encode` returns, in the model's order."""
        return self.encoder.settings.input_names

    @property
    def max_length(self) -> int | None:
        """Longest sequence in tokens; None if the model has no limit."""
        return self.encoder.settings.max_length

    @abstractmethod
    def sequences(self, examples: Sequence[TaskInput]) -> list[tuple[str, str | None]]:
        """The texts, or pairs of texts, that become one row of the arrays each."""

    def encode(self, examples: Sequence[TaskInput]) -> dict[str, NDArray[np.int64]]:
        """Turn examples into model inputs; see `Task.encode`."""
        return self.encoder.encode(self.sequences(examples))
