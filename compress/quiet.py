"""Keep what the libraries say while they trace off the screen, and hand back the part that matters."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from transformers.utils import logging as transformers_logging

__all__ = ["Heard", "quiet_libraries"]

_CHATTER = re.compile(
    "|".join(
        (
            r"isinstance\(treespec, LeafSpec\)",
            r"is experimental and patches many backend internals",
            r"torchvision is not installed",
            r"Failed to infer the signature for function",
            r"# 'dynamic_axes' is not recommended",
            r"Exporting aten::",
            r"`torch_dtype` is deprecated",
            r"torch\.jit\.|TorchScript",
            r"copyreg|__module__ attribute",
            r"builtin type .* has no __module__",
            r"Setting `?(pad_token_id|use_cache)",
        )
    )
)
_LOGGERS = ("torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnx_ir", "transformers")


class Heard(logging.Handler):
    """Collects warnings, whether logged or raised through `warnings`, without the known chatter."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.notes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one logged warning."""
        self.add(record.getMessage())

    def add(self, text: str) -> None:
        """Keep a text's first line, once, unless it is chatter."""
        line = text.strip().splitlines()[0] if text.strip() else ""
        if line and not _CHATTER.search(text) and line not in self.notes:
            self.notes.append(line)


@contextmanager
def quiet_libraries() -> Iterator[Heard]:
    """Silence loggers, progress bars, printing and warnings of the exporting libraries inside the block.

    Yields:
        What was heard: filled as the block runs, its `warnings` when it ends.
    """
    heard = Heard()
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for logger in loggers:
        logger.handlers, logger.propagate, logger.level = [heard], False, logging.WARNING
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield heard
        for warning in caught:
            heard.add(str(warning.message))
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate, logger.level = handlers, propagate, level
        if bars:
            transformers_logging.enable_progress_bar()
