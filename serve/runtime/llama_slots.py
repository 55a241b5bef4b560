"""Several growing texts on one llama.cpp context: one step reads tokens of all of them together."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import ArtifactError, UsageError
from serve.runtime.llama_library import LlamaModel, load_library, make_context, opened, set_adapters

__all__ = ["LlamaSlots", "SlotRead", "bytes_per_token", "common_length"]


class SlotRead(NamedTuple):
    """Tokens that one slot reads in a step."""

    slot: int
    tokens: Sequence[int]
    wants_logits: bool
    """Whether the logits after the last of them are needed."""


class LlamaSlots:
    """Keys and values of several texts, in half precision, in one room that they share.

    Each text has a slot. Tokens that two texts begin with can be kept once for both, and what a slot has read stays
    there for the next text until it is removed.

    Args:
        model: It must stay open.
        num_slots: Texts at a time.
        num_tokens: The most tokens of all slots together.
        num_batch: The most tokens of a step.
        threads: For one step.

    Attributes:
        num_slots: Texts at a time.
        num_tokens: The most tokens of all slots together.
        num_batch: The most tokens of a step.
        held: Of each slot, the tokens that were read.

    Raises:
        ArtifactError: llama.cpp cannot make the context, such as for want of memory.
    """

    def __init__(self, model: LlamaModel, *, num_slots: int, num_tokens: int, num_batch: int, threads: int) -> None:
        self._library = load_library()
        self._model = model
        self.num_slots = num_slots
        self.num_tokens = num_tokens
        self.num_batch = min(num_batch, num_tokens)
        self.held: list[list[int]] = [[] for _ in range(num_slots)]
        settings = self._library.llama_context_default_params()
        settings.n_ctx = num_tokens
        settings.n_seq_max = num_slots
        settings.n_batch = settings.n_ubatch = self.num_batch
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = True  # else each slot has its own part of the room, whatever the others need
        settings.flash_attn_type = self._library.LLAMA_FLASH_ATTN_TYPE_DISABLED  # as in LlamaSession
        if hasattr(settings, "n_outputs_max"):
            settings.n_outputs_max = num_slots
        self.handle = make_context(self._library, model, settings)
        self._memory = self._library.llama_get_memory(self.handle)
        self._rows: dict[int, int] = {}
        self._width = model.num_tokens
        self._make_batch(self.num_batch)

    def _make_batch(self, size: int) -> None:
        """A batch in arrays of our own, which are filled without a call for each number."""
        self._tokens = np.zeros(size, dtype=np.int32)
        self._positions = np.zeros(size, dtype=np.int32)
        self._counts = np.ones(size, dtype=np.int32)
        self._slots = np.zeros(size, dtype=np.int32)
        self._wanted = np.zeros(size, dtype=np.int8)
        # llama.cpp takes a pointer to the slots of each token; each has one, its own cell of `_slots`.
        self._pointers = self._slots.ctypes.data + self._slots.itemsize * np.arange(size, dtype=np.uintp)
        library = self._library
        self._batch = library.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(ctypes.POINTER(library.llama_token)),
            embd=None,
            pos=self._positions.ctypes.data_as(ctypes.POINTER(library.llama_pos)),
            n_seq_id=self._counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._pointers.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(library.llama_seq_id))),
            logits=self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    @property
    def size_bytes(self) -> int:
        """Memory of keys and values."""
        return bytes_per_token(self._model) * self.num_tokens

    def read(self, reads: Sequence[SlotRead]) -> None:
        """Add tokens to slots, and compute the logits that are wanted.

        Args:
            reads: At least one, each of a slot of its own, with `num_batch` tokens together at the most.

        Raises:
            UsageError: They are more than a step or the room can have, or the context is closed.
            ArtifactError: llama.cpp fails on them; what the slots hold is then unknown: `clear` them.
        """
        handle = opened(self.handle)
        count = sum(len(read.tokens) for read in reads)
        if not 1 <= count <= self.num_batch:
            raise UsageError(f"{count} tokens; a step reads 1 to {self.num_batch}")
        start = 0
        self._rows.clear()
        self._wanted[:count] = 0
        for read in reads:
            end, past = start + len(read.tokens), len(self.held[read.slot])
            self._tokens[start:end] = read.tokens
            self._positions[start:end] = np.arange(past, past + end - start)
            self._slots[start:end] = read.slot
            if read.wants_logits:
                self._wanted[end - 1] = 1
                self._rows[read.slot] = end - 1
            start = end
        self._batch.n_tokens = count
        if (code := self._library.llama_decode(handle, self._batch)) != 0:
            raise ArtifactError(f"{self._model.path}: llama.cpp fails on {count} tokens with code {code}")
        for read in reads:
            self.held[read.slot].extend(read.tokens)

    def logits(self, slot: int) -> NDArray[np.float32]:
        """Logits of a slot's last token, float32 of shape [vocabulary]: a view that the next step overwrites."""
        values = self._library.llama_get_logits_ith(opened(self.handle), self._rows[slot])
        return np.ctypeslib.as_array(values, (self._width,))

    def keep(self, slot: int, count: int) -> int:
        """Remove all but the first tokens of a slot.

        Returns:
            How many are left; none where the model's memory cannot forget a part.
        """
        held = self.held[slot]
        if count >= len(held):
            return len(held)
        opened(self.handle)
        # A window may have dropped the start already, and what is left of it is then no prefix.
        is_whole = count > 0 and self._library.llama_memory_seq_pos_min(self._memory, slot) <= 0
        if not is_whole or not self._library.llama_memory_seq_rm(self._memory, slot, count, -1):
            count = 0
            self._library.llama_memory_seq_rm(self._memory, slot, -1, -1)
        del held[count:]
        return count

    def share(self, source: int, target: int, count: int) -> int:
        """Give a slot the first tokens of another one instead of its own; they take no more room.

        Args:
            source: A slot that holds at least so many.
            target: Another slot.
            count: Tokens.

        Returns:
            How many it has now; none where the model's memory cannot give a part away.
        """
        self.keep(target, 0)
        if count == 0 or not self.forgets_parts or self._library.llama_memory_seq_pos_min(self._memory, source) > 0:
            return 0
        self._library.llama_memory_seq_cp(self._memory, source, target, 0, count)
        self.held[target] = self.held[source][:count]
        return count

    def clear(self) -> None:
        """Make all slots empty."""
        opened(self.handle)
        for held in self.held:
            held.clear()
        self._library.llama_memory_clear(self._memory, False)

    @property
    def forgets_parts(self) -> bool:
        """Whether the end of a text can be removed, and its start given to another slot.

        A recurrent state cannot: it is that of the whole text.
        """
        handle = self._model.handle
        return not (self._library.llama_model_is_recurrent(handle) or self._library.llama_model_is_hybrid(handle))

    def set_adapters(self, adapters: Sequence[tuple[Any, float]]) -> None:
        """Add scaled adapters of the model to its weights, instead of those before; what was read is forgotten.

        Raises:
            ArtifactError: llama.cpp does not take them.
        """
        self.clear()
        set_adapters(self._library, self.handle, adapters)

    def close(self) -> None:
        """Free the room. Closing twice is harmless."""
        if self.handle:
            self._library.llama_free(self.handle)
            self.handle = None


def bytes_per_token(model: LlamaModel) -> int:
    """Memory of the keys and values of one token, in half precision."""
    library, handle = load_library(), model.handle
    width = library.llama_model_n_embd(handle) // max(1, library.llama_model_n_head(handle))
    lengths = (model.file.setting(f"attention.{kind}_length") for kind in ("key", "value"))
    of_head = sum(length if isinstance(length, int) else width for length in lengths)
    return int(library.llama_model_n_layer(handle) * library.llama_model_n_head_kv(handle) * of_head * 2)


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens at the start that are the same.

    >>> common_length([1, 2, 3], [1, 2, 4, 5])
    2
    """
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(index for index in range(length) if one[index] != other[index])
