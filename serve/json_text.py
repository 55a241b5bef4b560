"""JSON in and out: bounded in depth and in the number of containers before anything is built from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from serve.errors import MalformedError
from serve.http.message import Buffer

__all__ = ["dump_json", "parse_json"]

MAX_CONTAINERS = 1 << 20
"""Lists and objects of one text: an empty one costs two bytes to send and some sixty to hold."""

_CHUNK_BYTES = 1 << 20
_NUMPY = orjson.OPT_SERIALIZE_NUMPY
_QUOTE, _OPEN, _CLOSE = 0x22, 0x7B, 0x7D
_TO_CURLY = 0x20  # this bit turns [ into { and ] into }, and makes no other byte one of them


def parse_json(data: Buffer, *, max_depth: int) -> Any:
    """Parse a JSON text as RFC 8259 has it: UTF-8, no NaN and no infinity. Of equal keys the last one counts.

    Args:
        data: The whole text.
        max_depth: Lists and objects that may lie in each other; the parser's own bound of 1024 holds as well.

    Raises:
        MalformedError: It is no JSON, too deep, or holds too many lists and objects.
    """
    if len(data) > max_depth:  # a shorter text cannot be deeper
        raw = data.tobytes() if isinstance(data, memoryview) else data
        num_open = raw.count(b"[") + raw.count(b"{")
        if num_open > max_depth:
            _check_structure(raw, max_depth)
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise MalformedError(f"the body is no JSON: {error}") from error


def dump_json(value: Any) -> bytes:
    """Write a value, NumPy arrays and scalars in it included; NaN and infinity become null.

    Raises:
        TypeError: A value, or an array that is not C-contiguous, cannot be written.
    """
    return orjson.dumps(value, option=_NUMPY)


def _check_structure(raw: bytes | bytearray, max_depth: int) -> None:
    """Refuse what is too deep, without taking brackets inside of strings for structure.

    In a valid text a backslash stands in strings only, so that taking pairs from the left finds every escaped quote.
    """
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    text = np.frombuffer(raw, np.uint8)
    depth = num_containers = 0
    is_inside = False  # whether a chunk begins in a string
    for begin in range(0, len(text), _CHUNK_BYTES):
        steps, is_inside = _steps(text[begin : begin + _CHUNK_BYTES], is_inside=is_inside)
        if len(steps) == 0:
            continue
        depths = np.cumsum(steps, dtype=np.int64) + depth
        depth = int(depths[-1])
        if (deepest := int(depths.max())) > max_depth:
            raise MalformedError(f"the JSON is at least {deepest} lists and objects deep; {max_depth} are allowed")
        num_containers += int(np.count_nonzero(steps > 0))
        if num_containers > MAX_CONTAINERS:
            raise MalformedError(
                f"the JSON holds more than {MAX_CONTAINERS} lists and objects", mend="Send tensors flat, or as binary."
            )


def _steps(chunk: NDArray[np.uint8], *, is_inside: bool) -> tuple[NDArray[np.int8], bool]:
    """Give +1 and -1 for each bracket outside of strings, in order, and whether the chunk ends in a string."""
    curly = chunk | _TO_CURLY
    marks = chunk[(curly == _OPEN) | (curly == _CLOSE) | (chunk == _QUOTE)]
    is_quote = marks == _QUOTE
    if not is_quote.any():
        outside = marks[:0] if is_inside else marks
    else:
        parity = np.logical_xor.accumulate(is_quote) ^ is_inside  # of a quote itself: after it
        outside = marks[~parity & ~is_quote]
        is_inside = bool(parity[-1])
    return np.where((outside | _TO_CURLY) == _OPEN, np.int8(1), np.int8(-1)), is_inside
