"""onnxruntime-genai's native library: opened only here, without what it would send home."""

from __future__ import annotations

import functools
import os
from typing import Any

from edgesmith.errors import MissingExtraError

__all__ = ["first_line", "load_library"]

# Read by the library when it is loaded; without it, its release builds report every model that is opened.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@functools.cache
def load_library() -> Any:
    """Import the library, and silence what it logs and sends.

    Raises:
        MissingExtraError: onnxruntime-genai is not installed.
    """
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise MissingExtraError(
            "onnxruntime-genai is not installed", mend="Install it with `pip install 'edgesmith[genai]'`."
        ) from error
    if hasattr(onnxruntime_genai, "disable_telemetry_events"):
        onnxruntime_genai.disable_telemetry_events()
    return onnxruntime_genai


def first_line(error: BaseException) -> str:
    """What a native error says first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
