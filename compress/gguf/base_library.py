"""The part of llama.cpp's libraries that knows tensors and their formats."""

from __future__ import annotations

import ctypes
from pathlib import Path

from edgesmith.errors import MissingExtraError
from serve.runtime.llama_library import load_library

__all__ = ["open_base_library"]

_SUFFIXES = {".so", ".dylib", ".dll"}


def open_base_library() -> ctypes.CDLL:
    """Open `ggml-base` as llama-cpp-python carries it, with functions of its own to be declared.

    Raises:
        MissingExtraError: llama-cpp-python is not installed, or carries no such library.
    """
    folder = Path(load_library().__file__).parent / "lib"
    found = sorted(path for path in folder.glob("*ggml-base.*") if path.suffix in _SUFFIXES)
    if not found:
        raise MissingExtraError(
            f"{folder}: has no ggml-base library", mend="Install llama-cpp-python as the project's constraints name it."
        )
    return ctypes.CDLL(str(found[0]))
