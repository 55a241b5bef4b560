"""What a server and the process of one of its engines say to each other: frames of a JSON header and raw arrays.

A frame is two lengths, a header of JSON, and the bytes of the arrays that the header describes, one after the other.
Nothing that is received is ever run: there is no pickle, and every length is checked before memory is taken for it.
"""

from __future__ import annotations

import functools
import json
import math
import select
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["BrokenFrameError", "Frame", "Link", "LostError"]

_LENGTHS = struct.Struct("<IQ")  # bytes of the header, bytes of all arrays together
_MAX_HEADER_BYTES = 64 << 20  # a golden answer's or a grammar's text travels in it
_MAX_PAYLOAD_BYTES = 8 << 30
_DTYPES = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"}
)
_STRING = "string"
_MAX_AXES = 32
_BUFFERS_AT_A_TIME = 64  # sendmsg takes at most 1024
_SOCKET_BUFFER_BYTES = 1 << 20
_AHEAD_BYTES = 1 << 16


class LostError(Exception):
    """The other side has gone."""


class BrokenFrameError(Exception):
    """The other side sent what is no frame."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message.

    Attributes:
        values: JSON-able.
        arrays: By name.
    """

    values: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Layout:
    """One array as a header describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


class Link:
    """One end of the connection between the two processes; for one thread at a time.

    Args:
        connection: A connected stream socket; the link owns it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        # Read ahead, so that a small frame takes one system call.
        self._ahead = memoryview(bytearray(_AHEAD_BYTES))
        self._first, self._last = 0, 0  # what of it is not used yet
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)

    def has_input(self) -> bool:
        """Whether something has come that was not received yet."""
        return self._first < self._last or bool(select.select([self._connection], [], [], 0)[0])

    def set_timeout(self, timeout_s: float | None) -> None:
        """How long one system call may wait; then `TimeoutError` is raised and the link is of no use any more."""
        # By the kernel: Python's own way asks with a further system call before each.
        whole, part = divmod(timeout_s or 0.0, 1)
        interval = struct.pack("@ll", int(whole), int(part * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._connection.setsockopt(socket.SOL_SOCKET, option, interval)

    def close(self) -> None:
        """Close; the other side's next read or write raises `LostError`."""
        self._connection.close()

    def send(self, frame: Frame) -> None:
        """Send one frame.

        Raises:
            LostError: The other side has gone.
            TimeoutError: It does not read.
        """
        arrays = [(name, *_raw(array)) for name, array in frame.arrays.items()]
        layouts = tuple([(name, dtype, shape, len(data)) for name, dtype, shape, data in arrays])
        header = _write_header(json.dumps(frame.values), layouts)
        if len(header) > _MAX_HEADER_BYTES:
            raise BrokenFrameError(f"a header of {len(header):,} bytes is above the limit of {_MAX_HEADER_BYTES:,}")
        payload = [data for *_, data in arrays if len(data)]
        self._send_all([_LENGTHS.pack(len(header), sum(map(len, payload))), header, *payload])

    def _send_all(self, buffers: Sequence[bytes | memoryview]) -> None:
        waiting = list(buffers)
        try:
            while waiting:
                sent = self._connection.sendmsg(waiting[:_BUFFERS_AT_A_TIME])
                while waiting and sent >= len(waiting[0]):
                    sent -= len(waiting.pop(0))
                if sent:
                    waiting[0] = memoryview(waiting[0])[sent:]
        except OSError as error:
            raise _explained(error) from error

    def receive(self) -> Frame:
        """Wait for one frame. Its arrays are new and may be kept.

        Raises:
            LostError: The other side has gone.
            BrokenFrameError: What came is no frame; the link is of no use any more.
            TimeoutError: Nothing came in time.
        """
        self._fill(_LENGTHS.size)
        header_bytes, payload_bytes = _LENGTHS.unpack(self._take(_LENGTHS.size))
        if header_bytes > _MAX_HEADER_BYTES or payload_bytes > _MAX_PAYLOAD_BYTES:
            raise BrokenFrameError(f"a frame of {header_bytes:,} + {payload_bytes:,} bytes is above the limits")
        values, layouts = _parse_header(self._read(header_bytes))
        if sum(layout.num_bytes for layout in layouts) != payload_bytes:
            raise BrokenFrameError(f"the header's arrays do not add up to {payload_bytes:,} bytes")
        return Frame(values, {layout.name: self._read_array(layout) for layout in layouts})

    def _read_array(self, layout: _Layout) -> NDArray[Any]:
        if layout.dtype == _STRING:
            return _texts(self._read(layout.num_bytes), layout.shape)
        array = np.empty(layout.shape, layout.dtype)
        if layout.num_bytes:
            self._read_into(_bytes_of(array))
        return array

    def _read(self, num_bytes: int) -> bytes:
        if num_bytes <= _AHEAD_BYTES:
            self._fill(num_bytes)
            return bytes(self._take(num_bytes))
        data = bytearray(num_bytes)
        self._read_into(memoryview(data))
        return bytes(data)

    def _read_into(self, buffer: memoryview) -> None:
        end = len(buffer)
        position = min(end, self._last - self._first)
        buffer[:position] = self._take(position)
        if end - position < _AHEAD_BYTES // 2 and position < end:
            self._fill(end - position)
            buffer[position:] = self._take(end - position)
            return
        while position < end:
            position += self._receive_into(buffer[position:])

    def _take(self, num_bytes: int) -> memoryview:
        """Bytes that were read ahead; good until more are read."""
        first, self._first = self._first, self._first + num_bytes
        return self._ahead[first : self._first]

    def _fill(self, num_bytes: int) -> None:
        """Read ahead until so many bytes are there."""
        if self._last - self._first >= num_bytes:
            return
        kept = self._last - self._first
        self._ahead[:kept] = bytes(self._ahead[self._first : self._last])
        self._first, self._last = 0, kept
        while self._last < num_bytes:
            self._last += self._receive_into(self._ahead[self._last :])

    def _receive_into(self, buffer: memoryview) -> int:
        try:
            count = self._connection.recv_into(buffer)
        except OSError as error:
            raise _explained(error) from error
        if count == 0:
            raise LostError("the connection was closed")
        return count


def _explained(error: OSError) -> Exception:
    if isinstance(error, BlockingIOError):  # the kernel's way to say that the time is over
        return TimeoutError("the other side is silent")
    return LostError(str(error))


def _write_header(values: str, layouts: tuple[tuple[str, str, tuple[int, ...], int], ...]) -> bytes:
    return f'{{"values":{values},"arrays":{_write_layouts(layouts)}}}'.encode()


@functools.lru_cache(maxsize=256)
def _write_layouts(layouts: tuple[tuple[str, str, tuple[int, ...], int], ...]) -> str:
    return json.dumps(layouts)


def _raw(array: NDArray[Any]) -> tuple[str, tuple[int, ...], memoryview]:
    """Dtype, shape and bytes of an array; it is copied only if it does not lie in one piece."""
    if array.dtype.kind in "OUS":
        text = json.dumps([_text(value) for value in array.reshape(-1).tolist()]).encode()
        return _STRING, array.shape, memoryview(text)
    return _name_of(array.dtype), array.shape, _bytes_of(array if array.flags.c_contiguous else array.copy())


_name_of = functools.lru_cache(maxsize=32)(lambda dtype: dtype.name)  # which NumPy works out anew each time


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The bytes of an array in one piece, not copied."""
    if array.size == 0:
        return memoryview(b"")
    return memoryview(cast(Any, array)).cast("B")


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="surrogateescape") if isinstance(value, bytes) else str(value)


def _texts(data: bytes, shape: tuple[int, ...]) -> NDArray[Any]:
    values = _parse_json(data)
    if not isinstance(values, list) or len(values) != math.prod(shape) or not all(isinstance(v, str) for v in values):
        raise BrokenFrameError(f"an array of texts is not {math.prod(shape)} texts")
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)


def _parse_json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BrokenFrameError(f"a header is no JSON: {error}") from error


def _cached_when_short(
    parse: Callable[[bytes], tuple[Mapping[str, Any], tuple[_Layout, ...]]],
) -> Callable[[bytes], tuple[Mapping[str, Any], tuple[_Layout, ...]]]:
    """Requests of one shape have one header: parsing it again and again would be half of what isolation costs."""
    cached = functools.lru_cache(maxsize=256)(parse)
    return lambda header: cached(header) if len(header) < 1024 else parse(header)


@_cached_when_short
def _parse_header(header: bytes) -> tuple[Mapping[str, Any], tuple[_Layout, ...]]:
    parsed = _parse_json(header)
    if not isinstance(parsed, dict) or not isinstance(parsed.get("values"), dict):
        raise BrokenFrameError("a header has no values")
    listed = parsed.get("arrays")
    if not isinstance(listed, list):
        raise BrokenFrameError("a header lists no arrays")
    layouts = tuple(_layout(one) for one in listed)
    if len({layout.name for layout in layouts}) != len(layouts):
        raise BrokenFrameError("a header names an array twice")
    return parsed["values"], layouts


def _layout(described: Any) -> _Layout:
    match described:
        case [str(name), str(dtype), list(shape), int(num_bytes)] if (
            (dtype in _DTYPES or dtype == _STRING)
            and len(shape) <= _MAX_AXES
            and all(type(axis) is int and axis >= 0 for axis in shape)
            and 0 <= num_bytes <= _MAX_PAYLOAD_BYTES
        ):
            size = math.prod(shape)
        case _:
            raise BrokenFrameError(f"{described!r:.100} describes no array")
    if dtype != _STRING and size * np.dtype(dtype).itemsize != num_bytes:
        raise BrokenFrameError(f"the array {name!r} of {dtype}{shape} cannot have {num_bytes:,} bytes")
    return _Layout(name, dtype, tuple(shape), num_bytes)
