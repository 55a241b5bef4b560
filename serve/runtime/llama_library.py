"""llama.cpp's C library through llama-cpp-python: opened only here, only after our own reader passed the file."""

from __future__ import annotations

import ctypes
import functools
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import ArtifactError, MissingExtraError, UsageError
from serve.runtime.gguf_file import read_gguf

__all__ = ["LlamaContext", "LlamaModel", "load_library"]

_ERROR_LEVEL = 4  # of ggml_log_level
_ERRORS: deque[str] = deque(maxlen=8)


@functools.cache
def load_library() -> Any:
    """Import the library and silence what it logs.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
    """
    try:
        import llama_cpp
    except ImportError as error:
        raise MissingExtraError(
            "llama-cpp-python is not installed", mend="Install it with `pip install 'edgesmith[gguf]'`."
        ) from error
    llama_cpp.llama_log_set(_keep_errors(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@functools.cache
def _keep_errors(library: Any) -> Any:
    """A callback that keeps the last errors; itself kept here, for the library calls it as long as it is loaded."""

    def keep(level: int, text: bytes, _: object) -> None:
        if level == _ERROR_LEVEL and (line := text.decode("utf-8", errors="replace").strip()):
            _ERRORS.append(line)

    return library.llama_log_callback(keep)


def _last_error() -> str:
    """What the library complained of, without the names of its functions; forgotten afterwards."""
    lines = [line.partition(": ")[2] or line for line in _ERRORS]
    _ERRORS.clear()
    return lines[0] if lines else "it does not say why"


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
        _ERRORS.clear()
        self.handle = self._library.llama_model_load_from_file(str(path).encode(), settings)
        if not self.handle:
            raise ArtifactError(
                f"{path}: llama.cpp cannot open it as {self.file.architecture!r}: {_last_error()}",
                mend="Convert it again, or use a llama.cpp that knows this architecture and tokenizer.",
            )
        self._vocabulary = self._library.llama_model_get_vocab(self.handle)
        self._buffer = (self._library.llama_token * 4096)()

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""
        return int(self._library.llama_vocab_n_tokens(self._vocabulary))

    @property
    def width(self) -> int:
        """Length of one hidden state."""
        return int(self._library.llama_model_n_embd(self.handle))

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Split a text; special tokens that it spells out are recognized.

        Args:
            text: Any text.
            add_special: Add the tokens that the model wants before and after every text.
        """
        data = text.encode()
        for _ in range(2):
            count = self._library.llama_tokenize(
                self._vocabulary, data, len(data), self._buffer, len(self._buffer), add_special, True
            )
            if count >= 0:
                return list(self._buffer[:count])
            self._buffer = (self._library.llama_token * -count)()
        raise UsageError(f"llama.cpp cannot tokenize a text of {len(data):,} bytes")

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


class LlamaContext:
    """Room for one text on a model.

    Args:
        model: Not vocabulary alone; it must stay open.
        num_tokens: Longest text.
        threads: For one step.
        states: Give the hidden states of all tokens instead of logits.

    Raises:
        ArtifactError: llama.cpp cannot make the context.
    """

    def __init__(self, model: LlamaModel, *, num_tokens: int, threads: int = 1, states: bool = False) -> None:
        self._library = load_library()
        self._model = model
        self._states = states
        settings = self._library.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = num_tokens
        settings.n_threads = settings.n_threads_batch = threads
        settings.embeddings = states
        settings.pooling_type = self._library.LLAMA_POOLING_TYPE_NONE if states else settings.pooling_type
        # Keys and values as wide as they can be, and attention without approximation.
        settings.type_k = settings.type_v = self._library.GGML_TYPE_F32
        settings.flash_attn_type = self._library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.handle = self._library.llama_init_from_model(model.handle, settings)
        if not self.handle:
            raise ArtifactError(f"{model.path}: llama.cpp cannot make a context of {num_tokens} tokens")

    def run(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read a text in one step, forgetting what was read before.

        Args:
            tokens: Numbers of tokens, at most as many as the context holds.

        Returns:
            Logits (or hidden states) of all positions, float32 of shape [tokens, vocabulary (or width)].

        Raises:
            ArtifactError: llama.cpp fails on it.
        """
        length = len(tokens)
        batch = self._library.llama_batch_init(length, 0, 1)
        try:
            batch.n_tokens = length
            for index, token in enumerate(tokens):
                batch.token[index], batch.pos[index] = token, index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                batch.logits[index] = 1
            memory = self._library.llama_get_memory(self.handle)
            if memory:
                self._library.llama_memory_clear(memory, True)
            if (code := self._library.llama_decode(self.handle, batch)) != 0:
                raise ArtifactError(f"{self._model.path}: llama.cpp fails on {length} tokens with code {code}")
        finally:
            self._library.llama_batch_free(batch)
        return self._collect(length)

    def _collect(self, length: int) -> NDArray[np.float32]:
        if self._states:
            rows = [self._library.llama_get_embeddings_ith(self.handle, index) for index in range(length)]
            width = self._model.width
            return np.stack([np.ctypeslib.as_array(row, (width,)) for row in rows]).astype(np.float32)
        values = self._library.llama_get_logits(self.handle)
        return np.ctypeslib.as_array(values, (length, self._model.num_tokens)).astype(np.float32, copy=True)

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
