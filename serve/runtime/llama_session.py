"""A growing text on a llama.cpp model: what was read stays read, and a new prompt that starts alike reuses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import ArtifactError, UsageError
from serve.runtime.llama_library import LlamaModel, load_library, make_context, opened, set_adapters
from serve.runtime.llama_slots import common_length

__all__ = ["LlamaSession"]


class LlamaSession:
    """Keys and values of one text, in half precision.

    Args:
        model: It must stay open.
        num_tokens: The most tokens of the text, at most as many as the model was trained with.
        num_batch: Tokens that are read at a time.
        threads: For one step.

    Attributes:
        num_tokens: The most tokens of the text.
        held: The tokens that were read.

    Raises:
        ArtifactError: llama.cpp cannot make the context, such as for want of memory.
    """

    def __init__(self, model: LlamaModel, *, num_tokens: int, num_batch: int, threads: int) -> None:
        self._library = load_library()
        self._model = model
        self.num_tokens = num_tokens
        self.held: list[int] = []
        settings = self._library.llama_context_default_params()
        settings.n_ctx = num_tokens
        settings.n_batch = settings.n_ubatch = min(num_batch, num_tokens)
        settings.n_threads = settings.n_threads_batch = threads
        # On a CPU it makes a step some 4 % slower, and a prompt as much faster.
        settings.flash_attn_type = self._library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if hasattr(settings, "n_outputs_max"):
            settings.n_outputs_max = 1  # only the last token's logits are wanted: saves vocabulary × batch floats
        self.handle = make_context(self._library, model, settings)
        self._memory = self._library.llama_get_memory(self.handle)
        self._tokens = (self._library.llama_token * int(settings.n_batch))()
        self._width = model.num_tokens

    def read(self, tokens: Sequence[int]) -> int:
        """Make the text these tokens, and compute the last one's logits.

        Args:
            tokens: At least one.

        Returns:
            How many of them were there already and were not read again.

        Raises:
            UsageError: They are more than there is room for, or it is closed.
            ArtifactError: llama.cpp fails on them.
        """
        opened(self.handle)
        if not 1 <= len(tokens) <= self.num_tokens:
            raise UsageError(f"{len(tokens)} tokens; there is room for 1 to {self.num_tokens}")
        reused = self._keep(common_length(self.held, tokens[:-1]))
        for start in range(reused, len(tokens), len(self._tokens)):
            self._decode(tokens[start : start + len(self._tokens)])
        return reused

    def step(self, token: int) -> None:
        """Add one token, and compute its logits.

        Raises:
            UsageError: There is no more room, or it is closed.
            ArtifactError: llama.cpp fails on it.
        """
        if len(self.held) >= self.num_tokens:
            raise UsageError(f"the text has {self.num_tokens} tokens already, and there is no more room")
        self._decode((token,))

    def logits(self) -> NDArray[np.float32]:
        """Logits of the last token, float32 of shape [vocabulary]: a view that the next step overwrites."""
        values = self._library.llama_get_logits_ith(opened(self.handle), -1)
        return np.ctypeslib.as_array(values, (self._width,))

    def forget(self) -> None:
        """Make the text empty."""
        opened(self.handle)
        self.held.clear()
        self._library.llama_memory_clear(self._memory, False)

    def _keep(self, count: int) -> int:
        """Remove all but the first tokens; return how many are left, which is none where a part cannot be removed."""
        if count == len(self.held):
            return count
        is_whole = self._library.llama_memory_seq_pos_min(self._memory, 0) <= 0  # a window may have dropped the start
        if count == 0 or not is_whole or not self._library.llama_memory_seq_rm(self._memory, 0, count, -1):
            self.forget()
        del self.held[count:]
        return len(self.held)

    def _decode(self, tokens: Sequence[int]) -> None:
        count = len(tokens)
        self._tokens[:count] = tokens
        code = self._library.llama_decode(opened(self.handle), self._library.llama_batch_get_one(self._tokens, count))
        if code != 0:
            self.forget()
            raise ArtifactError(f"{self._model.path}: llama.cpp fails on {count} tokens with code {code}")
        self.held.extend(tokens)

    def set_adapters(self, adapters: Sequence[tuple[Any, float]]) -> None:
        """Add scaled adapters of the model to its weights, instead of those before; what was read is forgotten.

        Raises:
            ArtifactError: llama.cpp does not take them.
        """
        handle = opened(self.handle)
        self.forget()
        set_adapters(self._library, handle, adapters)

    def close(self) -> None:
        """Free the room. Closing twice is harmless."""
        if self.handle:
            self._library.llama_free(self.handle)
            self.handle = None
