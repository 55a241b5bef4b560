"""Look into ggml's tensors in memory, after proving that they lie there as expected.

The library gives functions for names, sizes and data, but none for the operands of an operation. Where these lie is
not part of its interface, so it is tried on tensors of our own, whose every field is known, before anything else.

Source: https://github.com/ggml-org/ggml/blob/master/include/ggml.h (struct ggml_tensor).
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.gguf.base_library import open_base_library
from edgesmith.errors import UnsupportedError

__all__ = ["TensorView", "view_tensor"]

F32, I32 = 0, 26  # of ggml_type
_NUM_SOURCES = 10


class _Tensor(ctypes.Structure):
    """`struct ggml_tensor`."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * _NUM_SOURCES),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


class _InitSettings(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class TensorView:
    """One tensor of a graph.

    Args:
        address: Where it lies; it must stay there as long as this is used.
        library: ggml.
    """

    def __init__(self, address: int, library: ctypes.CDLL) -> None:
        self._address = address
        self._library = library
        self._tensor = _Tensor.from_address(address)

    @property
    def name(self) -> str:
        """Its name."""
        return bytes(self._tensor.name).decode("utf-8", errors="replace")

    @property
    def type(self) -> int:
        """Number of its `ggml_type`."""
        return int(self._tensor.type)

    @property
    def shape(self) -> tuple[int, ...]:
        """Four sizes, the fastest axis first."""
        return tuple(self._tensor.ne)

    @property
    def operation(self) -> str:
        """What computes it, such as `MUL_MAT`."""
        return str(self._library.ggml_op_desc(self._address).decode())

    def source(self, index: int) -> TensorView | None:
        """An operand; None where there is none."""
        address = self._tensor.src[index]
        return TensorView(address, self._library) if address else None

    def read(self) -> NDArray[Any]:
        """Copy its values, float32 or int32, of its shape with the fastest axis last.

        Raises:
            UnsupportedError: it is of another type.
        """
        if self.type not in (F32, I32):
            raise UnsupportedError(f"{self.name} is of the type {self.type}, expected float32 or int32")
        size = int(self._library.ggml_nbytes(self._address))
        content = ctypes.create_string_buffer(size)
        self._library.ggml_backend_tensor_get(self._address, content, 0, size)
        values = np.ndarray(
            self.shape[::-1],
            np.float32 if self.type == F32 else np.int32,
            memoryview(content),
            strides=tuple(self._tensor.nb)[::-1],
        )
        return np.ascontiguousarray(values)


def view_tensor(address: int) -> TensorView:
    """Look at a tensor that the library handed over.

    Raises:
        UnsupportedError: this version of the library lays its tensors out in another way.
    """
    return TensorView(address, _proven_library())


@functools.cache
def _proven_library() -> ctypes.CDLL:
    library = open_base_library()
    _declare(library)
    _prove(library)
    return library


def _declare(library: ctypes.CDLL) -> None:
    address, size = ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in (
        ("ggml_init", address, [_InitSettings]),
        ("ggml_free", None, [address]),
        ("ggml_new_tensor_3d", address, [address, ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64]),
        ("ggml_mul_mat", address, [address, address, address]),
        ("ggml_set_name", address, [address, ctypes.c_char_p]),
        ("ggml_get_name", address, [address]),
        ("ggml_get_data", address, [address]),
        ("ggml_nbytes", size, [address]),
        ("ggml_tensor_overhead", size, []),
        ("ggml_op_desc", ctypes.c_char_p, [address]),
        ("ggml_backend_tensor_get", None, [address, address, size, size]),
    ):
        function = getattr(library, name, None)
        if function is None:
            raise _unexpected(f"it has no function {name}")
        function.restype, function.argtypes = result, arguments


def _prove(library: ctypes.CDLL) -> None:
    """Make a product of two tensors, and find every field of it where it should be."""
    if library.ggml_tensor_overhead() < ctypes.sizeof(_Tensor):
        raise _unexpected(f"a tensor has at most {library.ggml_tensor_overhead()} bytes")
    context = library.ggml_init(_InitSettings(1 << 16, None, False))
    try:
        left = library.ggml_new_tensor_3d(context, F32, 5, 7, 2)
        right = library.ggml_new_tensor_3d(context, F32, 5, 3, 2)
        product = library.ggml_mul_mat(context, left, right)
        library.ggml_set_name(product, b"edgesmith.product")
        view, raw = TensorView(product, library), _Tensor.from_address(product)
        facts = {
            "type": raw.type == F32
            and _Tensor.from_address(library.ggml_new_tensor_3d(context, I32, 1, 1, 1)).type == I32,
            "shape": view.shape == (7, 3, 2, 1) and _Tensor.from_address(left).ne[0] == 5,
            "strides": tuple(raw.nb) == (4, 28, 84, 168),
            "operation": view.operation == "MUL_MAT" and raw.op != 0,
            "operands": list(raw.src) == [left, right] + [None] * (_NUM_SOURCES - 2),
            "view": raw.view_src is None and raw.view_offs == 0,
            "data": raw.data == library.ggml_get_data(product),
            "name": view.name == "edgesmith.product"
            and library.ggml_get_name(product) == product + _Tensor.name.offset,
        }
    finally:
        library.ggml_free(context)
    if wrong := [name for name, holds in facts.items() if not holds]:
        raise _unexpected(f"not found where expected: {', '.join(wrong)}")


def _unexpected(why: str) -> UnsupportedError:
    return UnsupportedError(
        f"this version of ggml lays its tensors out in another way: {why}",
        mend="Collect the importance matrix from the checkpoint, or install the llama-cpp-python that is supported.",
    )
