"""Import llama-cpp-python, and keep what llama.cpp complains of."""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgesmith.errors import MissingExtraError

__all__ = ["forget_errors", "last_error", "library_name", "load_library"]

_ERROR_LEVEL = 4  # of ggml_log_level


class _Errors(threading.local):
    """What the library complained of, in each thread of its own: it logs in the thread that calls it."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=8)


_ERRORS = _Errors()


@contextmanager
def _own_waiting() -> Iterator[None]:
    """Let the OpenMP that llama.cpp brings read no OMP_WAIT_POLICY.

    It is read once, when the library is loaded. The command line sets it to PASSIVE for torch's threads, which else
    spin; llama.cpp's wait for each other many times a token, and generate two to three times slower if they sleep.
    """
    policy = os.environ.pop("OMP_WAIT_POLICY", None)
    try:
        yield
    finally:
        if policy is not None:
            os.environ["OMP_WAIT_POLICY"] = policy


@functools.cache
def load_library() -> Any:
    """Import the library and silence what it logs.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
    """
    try:
        with _own_waiting():
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
            _ERRORS.lines.append(line)

    return library.llama_log_callback(keep)


def library_name() -> str:
    """The runtime and its version.

    Raises:
        MissingExtraError: llama-cpp-python is not installed.
    """
    library = load_library()
    version = library.llama_version().decode() if hasattr(library, "llama_version") else "of unknown version"
    return f"llama.cpp {version} of llama-cpp-python {library.__version__} (CPU)"


def forget_errors() -> None:
    """Begin anew, before a call that may fail."""
    _ERRORS.lines.clear()


def last_error() -> str:
    """What the library complained of in this thread, without its functions' names; forgotten afterwards."""
    lines = [line.partition(": ")[2] or line for line in _ERRORS.lines]
    _ERRORS.lines.clear()
    return lines[0] if lines else "it does not say why"
