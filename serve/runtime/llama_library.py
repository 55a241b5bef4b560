"""llama.cpp's C library through llama-cpp-python: opened only here, only after our own reader passed the file."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import ArtifactError, UsageError
from serve.runtime.generation import check_tokens
from serve.runtime.gguf_file import read_gguf
from serve.runtime.llama_loading import forget_errors, last_error, library_name, load_library

__all__ = [
    "LlamaContext", "LlamaModel", "LlamaPooling", "last_error", "library_name", "load_library", "make_context",
    "opened", "set_adapters",
]  # fmt: skip

LlamaPooling = Literal["none", "mean", "cls", "last"]
_POOLINGS: Mapping[LlamaPooling, int] = {"none": 0, "mean": 1, "cls": 2, "last": 3}

_ENCODERS = frozenset({
    "bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "nomic-bert",
    "nomic-bert-moe", "t5", "t5encoder",
})  # fmt: skip


class LlamaModel:
    """A GGUF file that llama.cpp opened.

    Args:
        path: The file.
        vocab_only: Open the tokenizer alone.

    Raises:
        ArtifactError: our reader or llama.cpp refuses it.
        UnsupportedError: see `read_gguf`.
        MissingExtraError: llama-cpp-python is not installed.
    """

    def __init__(self, path: Path, *, vocab_only: bool = False) -> None:
        self.path = path
        self.file = read_gguf(path)
        self._library = load_library()
        settings = self._library.llama_model_default_params()
        settings.vocab_only = vocab_only
        settings.n_gpu_layers = 0
        forget_errors()
        self.handle = self._library.llama_model_load_from_file(str(path).encode(), settings)
        if not self.handle:
            raise ArtifactError(
                f"{path}: llama.cpp cannot open it as {self.file.architecture!r}: {last_error()}",
                mend="Convert it again, or use a llama.cpp that knows this architecture and tokenizer.",
            )
        self._vocabulary = self._library.llama_model_get_vocab(self.handle)
        self._buffer = (self._library.llama_token * 4096)()
        self._pieces: dict[int, bytes] = {}

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""
        return int(self._library.llama_vocab_n_tokens(self._vocabulary))

    @property
    def trained_length(self) -> int:
        """The most tokens of one text; positions above it are untrained, or not there at all."""
        return int(self._library.llama_model_n_ctx_train(self.handle))

    @property
    def generates(self) -> bool:
        """Whether it is a decoder alone, with a head of logits."""
        has_encoder = bool(self._library.llama_model_has_encoder(self.handle))
        is_causal = self.file.setting("attention.causal") is not False
        return is_causal and not has_encoder and self.file.architecture not in _ENCODERS

    @property
    def width(self) -> int:
        """Length of one hidden state."""
        return int(self._library.llama_model_n_embd(self.handle))

    @property
    def pooling(self) -> LlamaPooling | None:
        """How the file makes one vector of many; None where it does not say."""
        number = self.file.setting("pooling_type")
        return next((name for name, value in _POOLINGS.items() if value == number), None)

    def piece(self, token: int) -> bytes:
        """The bytes of a token, which may be part of a character; none for a special one."""
        known = self._pieces.get(token)
        if known is None:
            room = ctypes.create_string_buffer(256)
            count = self._library.llama_token_to_piece(self._vocabulary, token, room, len(room), 0, False)
            if count < 0:
                room = ctypes.create_string_buffer(-count)
                count = self._library.llama_token_to_piece(self._vocabulary, token, room, len(room), 0, False)
            known = self._pieces[token] = room.raw[: max(count, 0)]
        return known

    @property
    def vocabulary(self) -> Any:
        """The library's handle of it."""
        return self._vocabulary

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Split a text; special tokens that it spells out are recognized.

        Args:
            text: Any text.
            add_special: Add the tokens that the model wants before and after every text.

        Raises:
            UsageError: it has half of a character, or is too long for the library.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"the text has half a character at {error.start}") from error
        for _ in range(2):
            count = self._library.llama_tokenize(
                self._vocabulary, data, len(data), self._buffer, len(self._buffer), add_special, True
            )
            if count >= 0:
                return list(self._buffer[:count])
            self._buffer = (self._library.llama_token * -count)()
        raise UsageError(f"llama.cpp cannot tokenize a text of {len(data):,} bytes")

    def text_of(self, token: int) -> str:
        """A token as the vocabulary spells it, such as `<s>`."""
        text: bytes = self._library.llama_vocab_get_text(self._vocabulary, token)
        return text.decode("utf-8", errors="replace")

    def special_text(self, role: str) -> str:
        """How the vocabulary spells a special token, such as that of the role `bos`; empty where there is none."""
        number = self.file.metadata.get(f"tokenizer.ggml.{role}_token_id")
        return self.text_of(number) if type(number) is int and 0 <= number < self.num_tokens else ""

    def is_end(self, token: int) -> bool:
        """Whether generation stops at a token."""
        return bool(self._library.llama_vocab_is_eog(self._vocabulary, token))

    def close(self) -> None:
        """Free the model. Closing twice is harmless."""
        if self.handle:
            self._library.llama_model_free(self.handle)
            self.handle = None

    def __enter__(self) -> LlamaModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def make_context(library: Any, model: LlamaModel, settings: Any) -> Any:
    """The library's handle of a new context.

    Raises:
        ArtifactError: llama.cpp cannot make it, such as for want of memory.
    """
    forget_errors()
    handle = library.llama_init_from_model(model.handle, settings)
    if not handle:
        raise ArtifactError(
            f"{model.path}: llama.cpp cannot make room for {settings.n_ctx} tokens: {last_error()}",
            mend="Ask for a shorter context.",
        )
    return handle


def opened(handle: Any) -> Any:
    """A handle that may be given to the library, which ends the process on one that is not there.

    Raises:
        UsageError: What it stands for was closed.
    """
    if not handle:
        raise UsageError("the context is closed", mend="Make a new one.")
    return handle


def set_adapters(library: Any, context: Any, adapters: Sequence[tuple[Any, float]]) -> None:
    """Add scaled adapters to the weights that a context computes with, instead of those before.

    Raises:
        ArtifactError: llama.cpp does not take them.
    """
    handles = (library.llama_adapter_lora_p_ctypes * len(adapters))(
        *(ctypes.cast(handle, library.llama_adapter_lora_p_ctypes) for handle, _ in adapters)
    )
    scales = (ctypes.c_float * len(adapters))(*(scale for _, scale in adapters))
    if (code := library.llama_set_adapters_lora(context, handles, len(adapters), scales)) != 0:
        raise ArtifactError(f"llama.cpp cannot set {len(adapters)} adapters: code {code}")


class LlamaContext:
    """Room for one text on a model, computed as exactly as the runtime can.

    Args:
        model: Not vocabulary alone; it must stay open.
        num_tokens: Longest text.
        threads: For one step.
        states: Give the hidden states of all tokens instead of logits, or with a pooling one vector a text.
        pooling: Of states.

    Raises:
        ArtifactError: llama.cpp cannot make the context.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        num_tokens: int,
        threads: int = 1,
        states: bool = False,
        pooling: LlamaPooling = "none",
    ) -> None:
        self._library = load_library()
        self._model = model
        self._states = states
        self._pooling = pooling
        self.num_tokens = num_tokens
        settings = self._library.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = num_tokens
        settings.n_threads = settings.n_threads_batch = threads
        settings.embeddings = states
        settings.pooling_type = _POOLINGS[pooling] if states else settings.pooling_type
        # Keys and values as wide as they can be, and attention without approximation.
        settings.type_k = settings.type_v = self._library.GGML_TYPE_F32
        settings.flash_attn_type = self._library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.handle = make_context(self._library, model, settings)

    def run(self, tokens: Sequence[int], *, first: int = 0) -> NDArray[np.float32]:
        """Read a text in one step, forgetting what was read before.

        Args:
            tokens: Numbers of tokens, at most as many as the context holds.
            first: Rows are given from this position on; with a pooling it must be 0.

        Returns:
            Logits (or hidden states), float32 of shape [tokens - first, vocabulary (or width)]; with a pooling one
            vector of shape [width].

        Raises:
            UsageError: there are no tokens, too many, or such as the vocabulary does not have; or it is closed.
            ArtifactError: llama.cpp fails on it.
        """
        length = len(tokens)
        # The library aborts the process on some of these.
        handle = opened(self.handle)
        check_tokens(tokens, first=first, num_vocabulary=self._model.num_tokens, context_length=self.num_tokens)
        batch = self._library.llama_batch_init(length, 0, 1)
        try:
            batch.n_tokens = length
            for index, token in enumerate(tokens):
                batch.token[index], batch.pos[index] = token, index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                batch.logits[index] = index >= first
            memory = self._library.llama_get_memory(handle)
            if memory:
                self._library.llama_memory_clear(memory, True)
            if (code := self._library.llama_decode(handle, batch)) != 0:
                raise ArtifactError(f"{self._model.path}: llama.cpp fails on {length} tokens with code {code}")
        finally:
            self._library.llama_batch_free(batch)
        return self._collect(first, length)

    def set_adapters(self, adapters: Sequence[tuple[Any, float]]) -> None:
        """Add scaled adapters of the model to its weights, instead of those before.

        Raises:
            ArtifactError: llama.cpp does not take them.
        """
        set_adapters(self._library, opened(self.handle), adapters)

    def _collect(self, first: int, length: int) -> NDArray[np.float32]:
        width = self._model.width
        if self._states and self._pooling != "none":
            vector = self._library.llama_get_embeddings_seq(self.handle, 0)
            return np.ctypeslib.as_array(vector, (width,)).astype(np.float32, copy=True)
        if self._states:
            rows = [self._library.llama_get_embeddings_ith(self.handle, index) for index in range(first, length)]
            return np.stack([np.ctypeslib.as_array(row, (width,)) for row in rows]).astype(np.float32)
        values = self._library.llama_get_logits(self.handle)
        if not values:
            raise ArtifactError(f"{self._model.path}: gives no logits", mend="Its states can be had, but no text.")
        return np.ctypeslib.as_array(values, (length - first, self._model.num_tokens)).astype(np.float32, copy=True)

    def close(self) -> None:
        """Free the context. Closing twice is harmless."""
        if self.handle:
            self._library.llama_free(self.handle)
            self.handle = None

    def __enter__(self) -> LlamaContext:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
