"""What a matrix is after it was stored in one of ggml's types: rounded by the library itself, restored by it.

Axes: O rows (outputs), I columns (inputs).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.gguf.base_library import open_base_library
from compress.gguf.types import find_tensor_type
from edgesmith.errors import UnsupportedError

__all__ = ["round_trip"]

_FLOATS = ctypes.POINTER(ctypes.c_float)


def round_trip(
    weight_OI: NDArray[np.float32], type_name: str, importance_I: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Quantize rows exactly as llama.cpp would store them, and restore them.

    Args:
        weight_OI: Finite weights, float32 of shape [O, I], contiguous. Not modified.
        type_name: A ggml type, such as `Q4_K`.
        importance_I: Mean squared input of each column, float32 of shape [I]; None: every column counts the same.

    Returns:
        What the runtime computes with, float32 of shape [O, I].

    Raises:
        UnsupportedError: I is not a multiple of the type's block.
        UsageError: there is no such type.
    """
    kind = find_tensor_type(type_name)
    num_rows, num_columns = weight_OI.shape
    if num_columns % kind.num_values:
        raise UnsupportedError(
            f"rows of {num_columns} values cannot be stored as {type_name}, which needs multiples of {kind.num_values}"
        )
    if type_name == "F16":
        return weight_OI.astype(np.float16).astype(np.float32)
    library = _library()
    source = np.ascontiguousarray(weight_OI, dtype=np.float32)
    stored = np.empty(kind.size_bytes(source.size), dtype=np.uint8)
    weights = None if importance_I is None else np.ascontiguousarray(importance_I, dtype=np.float32)
    library.ggml_quantize_init(kind.number)
    library.ggml_quantize_chunk(
        kind.number,
        source.ctypes.data_as(_FLOATS),
        stored.ctypes.data_as(ctypes.c_void_p),
        0,
        num_rows,
        num_columns,
        None if weights is None else weights.ctypes.data_as(_FLOATS),
    )
    restored = np.empty_like(source)
    _restore(type_name)(stored.ctypes.data_as(ctypes.c_void_p), restored.ctypes.data_as(_FLOATS), source.size)
    return restored


@functools.cache
def _restore(type_name: str) -> Callable[..., None]:
    function: Any = getattr(_library(), f"dequantize_row_{_c_name(type_name)}")
    function.argtypes, function.restype = (ctypes.c_void_p, _FLOATS, ctypes.c_int64), None
    return function  # type: ignore[no-any-return]


def _c_name(type_name: str) -> str:
    """As in the library's functions: q4_K, iq3_s."""
    return type_name.lower().replace("_k", "_K")


@functools.cache
def _library() -> Any:
    """The part of the runtime's library that knows the formats."""
    library = open_base_library()
    library.ggml_quantize_chunk.argtypes = (
        ctypes.c_int, _FLOATS, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, _FLOATS,
    )  # fmt: skip
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_init.argtypes = (ctypes.c_int,)
    return library
