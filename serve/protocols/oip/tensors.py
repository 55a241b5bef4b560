"""Tensors of the Open Inference Protocol, from JSON, from bytes and back.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md ("Tensor Data Types");
triton-inference-server/server, docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.errors import MalformedError, TooLargeError
from serve.http.message import Buffer
from serve.json_text import dump_json

__all__ = [
    "DATATYPES",
    "Tensor",
    "array_from_bytes",
    "array_from_list",
    "array_from_pieces",
    "bytes_of_array",
    "check_shape",
    "check_size",
    "datatype_of",
    "dtype_of",
    "json_of_array",
    "pack_texts",
    "texts_of",
]

DATATYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(np.object_),
}
"""The protocol's name → NumPy's. BF16 is not among them: NumPy has no such type, and a model that takes it cannot be
run from NumPy arrays."""

MAX_RANK = 32
_SMALL_BYTES = 4096  # below, a copy costs less than a view
_PIECE = 1 << 16  # values that are turned into an array, or into JSON, at a time


@dataclass(frozen=True, slots=True)
class Tensor:
    """What is said of a tensor; -1 is a free axis."""

    name: str
    datatype: str
    shape: tuple[int, ...]


_BY_DTYPE: Mapping[str, str] = {dtype.name: name for name, dtype in DATATYPES.items()} | {
    "string": "BYTES",
    "object": "BYTES",
}
_INT, _FLOAT, _STR, _LIST = frozenset({int}), frozenset({float, int}), frozenset({str}), {list}
_LEAVES: Mapping[str, frozenset[type]] = {
    "BOOL": frozenset({bool, int}),
    "FP16": _FLOAT,
    "FP32": _FLOAT,
    "FP64": _FLOAT,
    "BYTES": _STR,
}


def datatype_of(dtype: str) -> str:
    """The protocol's name of a dtype of a signature.

    >>> datatype_of("int64"), datatype_of("string"), datatype_of("bfloat16")
    ('INT64', 'BYTES', 'BFLOAT16')
    """
    return _BY_DTYPE.get(dtype, dtype.upper())


def dtype_of(name: str, datatype: object) -> np.dtype[Any]:
    """The dtype of a tensor that a client sends.

    Raises:
        MalformedError: The protocol has no such datatype, or NumPy has not.
    """
    dtype = DATATYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        if datatype == "BF16":
            raise MalformedError(f"the input {name!r} is BF16, which NumPy has not", mend="Send it as FP32.")
        raise MalformedError(
            f"the input {name!r} has the datatype {str(datatype)[:40]!r}", mend=f"Known are {', '.join(DATATYPES)}."
        )
    return dtype


def check_shape(name: str, shape: object, max_rows: int) -> int:
    """Check a shape as a client sends it, and give the number of elements.

    Raises:
        MalformedError: It is no list of positive integers, or has too many axes.
        TooLargeError: Its first axis is too long.
    """
    if type(shape) is not list or len(shape) > MAX_RANK:
        raise MalformedError(f"the input {name!r} needs a shape: a list of at most {MAX_RANK} integers")
    for size in shape:
        if type(size) is not int or size < 1:
            raise MalformedError(f"the input {name!r} has the shape {str(shape)[:80]}", mend="Sizes start at 1.")
    if shape and shape[0] > max_rows:
        raise TooLargeError(f"the input {name!r} has {shape[0]} rows; {max_rows} are allowed at a time")
    return math.prod(shape)


def check_size(name: str, datatype: str, shape: Sequence[int], size: int) -> None:
    """Check the number of bytes of a tensor of numbers.

    Raises:
        MalformedError: There are more or fewer than the shape asks for.
    """
    wanted = math.prod(shape) * DATATYPES[datatype].itemsize
    if size != wanted:
        raise MalformedError(f"the input {name!r} has {size} bytes; {datatype} of shape {list(shape)} has {wanted}")


def array_from_bytes(
    name: str, datatype: str, shape: Sequence[int], body: Buffer, begin: int, size: int
) -> NDArray[Any]:
    """Take a tensor from where it lies in a body: without a copy, unless its address does not suit its dtype.

    Native code reads numbers at multiples of their size, and the JSON before them ends anywhere.

    Args:
        name: For messages.
        datatype: One of `DATATYPES`.
        shape: Checked by `check_shape`.
        body: The whole body.
        begin: Of the tensor in it.
        size: Of the tensor in bytes, not beyond the body; for numbers checked by `check_size`.

    Raises:
        MalformedError: The bytes are no texts or truth values, or texts are more or fewer than the shape asks for.
    """
    if datatype == "BYTES":
        return _unpack_texts(name, memoryview(body)[begin : begin + size], math.prod(shape)).reshape(shape)
    array: NDArray[Any] = np.ndarray(shape, DATATYPES[datatype], body, begin)
    if datatype == "BOOL" and (array.view(np.uint8) > 1).any():
        raise MalformedError(f"the input {name!r} is BOOL and holds bytes other than 0 and 1")
    return array if array.flags.aligned else array.copy()


def array_from_list(name: str, datatype: str, shape: Sequence[int], count: int, data: object) -> NDArray[Any]:
    """Make an array of JSON data, nested as its shape is, or flat in row-major order.

    Args:
        name: For messages.
        datatype: One of `DATATYPES`.
        shape: Checked by `check_shape`.
        count: Its product.
        data: As it was parsed.

    Raises:
        MalformedError: The values are of another type, out of range, too many or too few, or nested unevenly.
    """
    if type(data) is not list:
        raise MalformedError(f"the input {name!r} has no data", mend="Give `data` as a list.")
    flat: list[Any] = data
    if data and type(data[0]) is list:
        flat = _flatten(name, data, shape)
    if len(flat) != count:
        raise MalformedError(f"the input {name!r} has {len(flat)} values; its shape {list(shape)} asks for {count}")
    if count > _PIECE:  # so that other threads have their turns in between
        pieces = (flat[begin : begin + _PIECE] for begin in range(0, count, _PIECE))
        return array_from_pieces(name, datatype, shape, count, pieces)
    return _leaves(name, datatype, flat).reshape(shape)


def array_from_pieces(
    name: str, datatype: str, shape: Sequence[int], count: int, pieces: Iterable[list[Any]]
) -> NDArray[Any]:
    """Make an array of flat JSON data that come in pieces; as `array_from_list`.

    Args:
        name: For messages.
        datatype: One of `DATATYPES`.
        shape: Checked by `check_shape`.
        count: Its product.
        pieces: One after the other.

    Raises:
        MalformedError: The values are of another type, out of range, too many or too few.
    """
    arrays: list[NDArray[Any]] = []
    num_values = 0
    for piece in pieces:
        num_values += len(piece)
        if num_values <= count:
            arrays.append(_leaves(name, datatype, piece))
    if num_values != count:
        raise MalformedError(f"the input {name!r} has {num_values} values; its shape {list(shape)} asks for {count}")
    return np.concatenate(arrays).reshape(shape)


def _leaves(name: str, datatype: str, flat: list[Any]) -> NDArray[Any]:
    strange = set(map(type, flat)) - _LEAVES.get(datatype, _INT)
    if strange:
        kinds = ", ".join(sorted(_JSON_NAMES.get(kind, kind.__name__) for kind in strange))
        raise MalformedError(f"the input {name!r} is {datatype} and holds {kinds}")
    return _object_array(flat) if datatype == "BYTES" else _numbers(name, datatype, flat)


_JSON_NAMES = {str: "texts", float: "fractions", bool: "true or false", type(None): "null", dict: "objects"}


def _flatten(name: str, data: list[Any], shape: Sequence[int]) -> list[Any]:
    """Give the values of nested lists that have exactly this shape."""
    level, rank = data, len(shape)
    for axis, size in enumerate(shape):
        if axis:
            if set(map(type, level)) != _LIST:
                raise MalformedError(f"the data of {name!r} are nested unevenly")
            lengths = set(map(len, level))
            if lengths != {size}:
                raise MalformedError(f"the data of {name!r} are not nested as the shape {list(shape)} says")
            level = list(chain.from_iterable(level))
        elif len(level) != size:
            raise MalformedError(f"the data of {name!r} are not nested as the shape {list(shape)} says")
    if level and type(level[0]) is list:
        raise MalformedError(f"the data of {name!r} are nested deeper than the {rank} axes of their shape")
    return level


def _numbers(name: str, datatype: str, flat: list[Any]) -> NDArray[Any]:
    if datatype == "BOOL" and not set(flat) <= {0, 1}:
        raise MalformedError(f"the input {name!r} is BOOL and holds numbers other than 0 and 1")
    dtype = DATATYPES[datatype]
    try:
        if dtype.kind != "f":
            return np.array(flat, dtype)
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype)
    except OverflowError as error:
        raise MalformedError(f"the input {name!r} holds a number out of {datatype}'s range: {error}") from error
    if not np.isfinite(array).all():  # JSON has no infinity: it was too large
        raise MalformedError(f"the input {name!r} holds a number out of {datatype}'s range")
    return array


def _unpack_texts(name: str, data: memoryview, count: int) -> NDArray[Any]:
    """Read texts, each after its length in four bytes, little-endian."""
    texts: list[str] = []
    begin, end = 0, len(data)
    while begin < end:
        if len(texts) == count:
            raise MalformedError(f"the input {name!r} holds more than the {count} texts of its shape")
        start = begin + 4
        begin = start + int.from_bytes(data[begin:start], "little")
        if start > end or begin > end:
            raise MalformedError(f"a text of the input {name!r} goes beyond its end")
        texts.append(_decode(name, data[start:begin]))
    if len(texts) != count:
        raise MalformedError(f"the input {name!r} holds {len(texts)} texts; its shape asks for {count}")
    return _object_array(texts)


def texts_of(name: str, values: Iterable[bytes]) -> NDArray[Any]:
    """Make an array of shape [n] of texts as bytes.

    Raises:
        MalformedError: One is not UTF-8.
    """
    return _object_array([_decode(name, value) for value in values])


def _decode(name: str, value: Buffer) -> str:
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError as error:
        raise MalformedError(f"a text of the input {name!r} is not UTF-8: {error.reason}") from error


def _object_array(values: list[Any]) -> NDArray[Any]:
    array = np.empty(len(values), np.object_)
    array[:] = values
    return array


def pack_texts(array: NDArray[Any]) -> bytes:
    """Write texts, each after its length in four bytes."""
    parts: list[bytes] = []
    for value in array.ravel().tolist():
        data = value if isinstance(value, bytes) else str(value).encode()
        parts.append(len(data).to_bytes(4, "little"))
        parts.append(data)
    return b"".join(parts)


def bytes_of_array(array: NDArray[Any]) -> Buffer:
    """Give an array's bytes, row-major: a view of them where they are many and lie so already."""
    if array.dtype.kind in "OUS":
        return pack_texts(array)
    if array.nbytes <= _SMALL_BYTES:
        return array.tobytes()
    return np.ascontiguousarray(array).data.cast("B")


def json_of_array(array: NDArray[Any]) -> bytes:
    """Write an array's values as a flat JSON list. JSON has no NaN and no infinity: they become null."""
    if array.dtype.kind in "OUS":
        return dump_json([_text(value) for value in array.ravel().tolist()])
    flat = array.ravel()
    if len(flat) <= _PIECE:
        return dump_json(flat)
    pieces = (dump_json(flat[begin : begin + _PIECE])[1:-1] for begin in range(0, len(flat), _PIECE))
    return b"[%b]" % b",".join(pieces)


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
