"""Tensors of the Open Inference Protocol, as JSON and as bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.load.protocols.base import AnswerError

__all__ = ["DTYPES", "TensorSpec", "check_tensor_bytes", "check_tensor_json", "tensor_bytes", "tensor_list"]

DTYPES: Mapping[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}
"""The protocol's name → NumPy's."""

_LEAVES: Mapping[str, frozenset[type]] = {
    "BOOL": frozenset({bool}),
    "BYTES": frozenset({str}),
    "FP16": frozenset({float, int}),
    "FP32": frozenset({float, int}),
    "FP64": frozenset({float, int}),
}
_INTEGERS = frozenset({int})


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as the model's metadata has it; -1 is a size that may vary."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def summary(self) -> str:
        """Such as `input_ids INT64 [-1, -1]`."""
        return f"{self.name} {self.datatype} {list(self.shape)}"

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a shape is one of those that this tensor may have."""
        return len(shape) == len(self.shape) and all(
            wanted in (-1, size) for wanted, size in zip(self.shape, shape, strict=True)
        )


def tensor_list(array: NDArray[Any]) -> list[Any]:
    """Flatten an array for JSON, row-major."""
    flat: list[Any] = array.ravel().tolist()
    return flat


def tensor_bytes(array: NDArray[Any]) -> bytes:
    """Write an array as little-endian bytes, row-major; each text after its length in four bytes.

    Source: Open Inference Protocol, binary tensor data extension.
    """
    if array.dtype == np.object_:
        texts = [str(text).encode() for text in array.ravel()]
        return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()


def check_tensor_json(spec: TensorSpec, num_rows: int, output: Mapping[str, Any]) -> None:
    """Check one output of an answer in JSON.

    Raises:
        AnswerError: Its type, shape or data are not what the metadata and the request ask for.
    """
    size = _check_shape(spec, num_rows, output)
    data = output.get("data")
    if not isinstance(data, list):
        raise AnswerError("wrong answer", f"the output {spec.name!r} has no data")
    leaves = _flatten(data)
    if len(leaves) != size:
        raise AnswerError(
            "wrong shape", f"{spec.name!r} has {len(leaves)} values, and its shape {output['shape']} asks for {size}"
        )
    strange = set(map(type, leaves)) - _LEAVES.get(spec.datatype, _INTEGERS)
    if strange:
        kinds = ", ".join(sorted(kind.__name__ for kind in strange))
        raise AnswerError("wrong answer", f"{spec.name!r} is {spec.datatype} and holds {kinds}")


def check_tensor_bytes(spec: TensorSpec, num_rows: int, output: Mapping[str, Any], data: bytes) -> None:
    """Check one output whose data came as bytes.

    Raises:
        AnswerError: Its type, shape or data are not what the metadata and the request ask for.
    """
    size = _check_shape(spec, num_rows, output)
    if spec.datatype == "BYTES":
        count = begin = 0
        while begin + 4 <= len(data):
            begin += 4 + int.from_bytes(data[begin : begin + 4], "little")
            count += 1
        if begin != len(data) or count != size:
            raise AnswerError("wrong shape", f"{spec.name!r} holds {count} texts in {len(data)} bytes, not {size}")
        return
    dtype = np.dtype(DTYPES[spec.datatype]).newbyteorder("<")
    if len(data) != size * dtype.itemsize:
        raise AnswerError(
            "wrong shape",
            f"{spec.name!r} has {len(data)} bytes; {output['shape']} {spec.datatype} asks for {size * dtype.itemsize}",
        )
    if dtype.kind == "f" and not np.isfinite(np.frombuffer(data, dtype)).all():
        raise AnswerError("wrong answer", f"{spec.name!r} holds NaN or infinity")


def _check_shape(spec: TensorSpec, num_rows: int, output: Mapping[str, Any]) -> int:
    """Check type and shape; give the number of values."""
    if output.get("datatype") != spec.datatype:
        raise AnswerError("wrong answer", f"{spec.name!r} is {output.get('datatype')} instead of {spec.datatype}")
    shape = output.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise AnswerError("wrong shape", f"{spec.name!r} has the shape {shape!r}")
    if not spec.fits(shape):
        raise AnswerError("wrong shape", f"{spec.name!r} has the shape {shape} instead of {list(spec.shape)}")
    if spec.shape and spec.shape[0] == -1 and shape[0] != num_rows:
        raise AnswerError("wrong shape", f"{spec.name!r} has {shape[0]} rows for a request of {num_rows}")
    size = 1
    for length in shape:
        size *= length
    return size


def _flatten(data: list[Any]) -> list[Any]:
    """Give the innermost values of nested lists; most servers send a flat one."""
    while data and type(data[0]) is list:
        if not all(type(part) is list for part in data):
            raise AnswerError("wrong shape", "the data are nested unevenly")
        data = [value for part in data for value in part]
    return data
