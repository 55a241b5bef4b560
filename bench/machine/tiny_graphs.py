"""ONNX graphs of one matrix product, written byte by byte: what a processor can do at the most is measured with them.

Only the protobuf fields that ONNX Runtime asks for are written, so that measuring needs no `onnx` package.

Source: https://protobuf.dev/programming-guides/encoding/ and
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["float_product", "integer_product"]

_FLOAT, _UINT8, _INT8, _INT32 = 1, 2, 3, 6  # TensorProto.DataType
_IR_VERSION, _OPSET = 8, 13


def float_product(weight_KN: NDArray[np.float32], num_rows: int) -> bytes:
    """A model of `y = MatMul(x, weight)` with `x` float32 of shape [num_rows, K]."""
    return _product("MatMul", weight_KN, _FLOAT, _FLOAT, _FLOAT, num_rows)


def integer_product(weight_KN: NDArray[np.int8], num_rows: int) -> bytes:
    """A model of `y = MatMulInteger(x, weight)` with `x` uint8 of shape [num_rows, K]; `y` is int32."""
    return _product("MatMulInteger", weight_KN, _UINT8, _INT8, _INT32, num_rows)


def _product(
    operator: str, weight_KN: NDArray[np.float32] | NDArray[np.int8], x: int, weight: int, y: int, num_rows: int
) -> bytes:
    depth, width = weight_KN.shape
    node = _text(1, "x") + _text(1, "weight") + _text(2, "y") + _text(3, "product") + _text(4, operator)
    tensor = b"".join(_number(1, size) for size in weight_KN.shape) + _number(2, weight) + _text(8, "weight")
    tensor += _bytes(9, np.ascontiguousarray(weight_KN).tobytes())
    graph = _bytes(1, node) + _text(2, operator) + _bytes(5, tensor)
    graph += _bytes(11, _value("x", x, (num_rows, depth))) + _bytes(12, _value("y", y, (num_rows, width)))
    return _number(1, _IR_VERSION) + _bytes(7, graph) + _bytes(8, _text(1, "") + _number(2, _OPSET))


def _value(name: str, element: int, shape: Sequence[int]) -> bytes:
    """ValueInfoProto: name and type, of a tensor with fixed axes."""
    axes = b"".join(_bytes(1, _number(1, size)) for size in shape)
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, element) + _bytes(2, axes)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
