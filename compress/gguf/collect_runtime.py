"""Collect an importance matrix from a GGUF file: what llama.cpp multiplies its matrices with, on real text."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from compress.gguf.ggml_tensor import F32, TensorView, view_tensor
from compress.gguf.imatrix_data import Imatrix, ImatrixSums
from compress.gguf.windows import check_windows
from edgesmith.errors import ArtifactError, UnsupportedError
from edgesmith.progress import SILENT, Progress
from serve.runtime.llama_library import LlamaModel, load_library

__all__ = ["collect_imatrix_runtime"]


def collect_imatrix_runtime(
    gguf_file: Path,
    windows: Sequence[Sequence[int]],
    *,
    dataset: str = "",
    threads: int = 1,
    progress: Progress = SILENT,
) -> Imatrix:
    """Read windows of text with llama.cpp, adding up the squares of the inputs of its matrices.

    Works where there is no checkpoint, and for experts, whose inputs are counted expert by expert.

    Args:
        gguf_file: The model, best unquantized.
        windows: Numbers of tokens; each window is read on its own.
        dataset: What to call the text in the matrix.
        threads: Of llama.cpp.
        progress: Told of each window.

    Returns:
        Sums and counts for every matrix of the file that is multiplied with anything.

    Raises:
        ArtifactError: the file is refused by our reader or by llama.cpp.
        UnsupportedError: this version of llama.cpp cannot be listened to.
        UsageError: there is no text, a window is too long or has a token that the model lacks, or the inputs are
            not finite.
        MissingExtraError: llama-cpp-python is not installed.
    """
    with LlamaModel(gguf_file) as model:
        limit = model.file.setting("context_length")
        check_windows(
            windows, num_vocabulary=model.num_tokens, context_length=limit if isinstance(limit, int) else None
        )
        listener = _Listener({name for name, one in model.file.tensors.items() if len(one.shape) > 1})
        context = _Context(model, listener, num_tokens=max(map(len, windows)), threads=threads)
        try:
            for window in progress.track(windows, "Collect importance matrix"):
                with _interrupts_noted(listener):
                    context.read(window)
        finally:
            context.close()
    return listener.sums.result(dataset=dataset, num_windows=len(windows), window_length=max(map(len, windows)))


@contextmanager
def _interrupts_noted(listener: _Listener) -> Iterator[None]:
    """While native code runs, Ctrl-C tells the listener to stop it: an exception inside a callback would be lost."""

    def note(*_: object) -> None:
        listener.error = listener.error or KeyboardInterrupt()

    if threading.current_thread() is not threading.main_thread():  # where Python handles no signals
        yield
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Listener:
    """What llama.cpp asks about each operation, and hands over when it is done."""

    def __init__(self, names: set[str]) -> None:
        self.sums = ImatrixSums()
        self.error: BaseException | None = None
        self._names = names
        self._wanted: dict[int, bool] = {}

    def __call__(self, address: int, ask: bool, _: object) -> bool:
        """Say whether an operation is of interest; then, take in its operands.

        An exception cannot pass through the library: it is kept, and the work is stopped.
        """
        if self.error is not None:
            return False
        try:
            return self._answer(view_tensor(address), ask)
        except BaseException as error:  # noqa: BLE001 (raised again by the caller, an interrupt included)
            self.error = error
            return False

    def _answer(self, product: TensorView, ask: bool) -> bool:
        if product.operation not in ("MUL_MAT", "MUL_MAT_ID"):
            return False
        matrix, inputs = product.source(0), product.source(1)
        if matrix is None or inputs is None or matrix.name not in self._names:
            return False
        if inputs.shape[0] != matrix.shape[0] or inputs.type != F32:
            raise UnsupportedError(
                f"{matrix.name} of shape {matrix.shape} is multiplied with {inputs.shape} of type {inputs.type}"
            )
        if not ask:
            self._take(product, matrix, inputs)
        return True

    def _take(self, product: TensorView, matrix: TensorView, inputs: TensorView) -> None:
        width, num_experts = matrix.shape[0], matrix.shape[2]
        values = inputs.read()[0]  # [tokens, choices or 1, inputs] with experts, [1, tokens, inputs] without
        if product.operation == "MUL_MAT":
            self.sums.add(matrix.name, values.reshape(-1, width))
            return
        chosen = product.source(2)
        if chosen is None:
            raise UnsupportedError(f"{matrix.name} has experts, but nothing says which are chosen")
        experts = chosen.read()[0, 0]  # [tokens, choices]
        values = np.broadcast_to(values, (*experts.shape, width))
        for expert in range(num_experts):
            self.sums.add(matrix.name, values[experts == expert], expert=expert, num_experts=num_experts)


class _Context:
    """Room for one window, with a listener at every operation."""

    def __init__(self, model: LlamaModel, listener: _Listener, *, num_tokens: int, threads: int) -> None:
        self._library: Any = load_library()
        self._model = model
        self._listener = listener
        self._callback = self._library.ggml_backend_sched_eval_callback(listener)
        settings = self._library.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = num_tokens
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k = settings.type_v = self._library.GGML_TYPE_F32
        settings.flash_attn_type = self._library.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.cb_eval = self._callback
        self.handle = self._library.llama_init_from_model(model.handle, settings)
        if not self.handle:
            raise ArtifactError(f"{model.path}: llama.cpp cannot make a context of {num_tokens} tokens")

    def read(self, window: Sequence[int]) -> None:
        """Read one window; the head is computed for all of its tokens, so that it is heard too."""
        batch = self._library.llama_batch_init(len(window), 0, 1)
        try:
            batch.n_tokens = len(window)
            for index, token in enumerate(window):
                batch.token[index], batch.pos[index] = token, index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                batch.logits[index] = 1
            memory = self._library.llama_get_memory(self.handle)
            if memory:
                self._library.llama_memory_clear(memory, True)
            code = self._library.llama_decode(self.handle, batch)
        finally:
            self._library.llama_batch_free(batch)
        if self._listener.error is not None:
            raise self._listener.error
        if code != 0:
            raise ArtifactError(f"{self._model.path}: llama.cpp fails on {len(window)} tokens with code {code}")

    def close(self) -> None:
        """Free the context."""
        self._library.llama_free(self.handle)
