"""JSON in and out: bounded in depth and in the number of containers before anything is built from it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from serve.errors import MalformedError
from serve.http.message import Buffer

__all__ = ["LongLists", "dump_json", "parse_json", "parse_long_json"]

MAX_CONTAINERS = 1 << 20
"""Lists and objects of one text: an empty one costs two bytes to send and some sixty to hold."""

_CHUNK_BYTES = 1 << 20
_LONG_BYTES = 1 << 18  # of a list that is parsed piece by piece
_PIECE_BYTES = 1 << 16
_NUMPY = orjson.OPT_SERIALIZE_NUMPY
_QUOTE, _OPEN, _CLOSE, _LIST_OPEN, _LIST_CLOSE = 0x22, 0x7B, 0x7D, 0x5B, 0x5D
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
    return _loads(data)


def _loads(data: Buffer) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise MalformedError(f"the body is no JSON: {error}") from error


class LongLists:
    """Lists of numbers that were cut out of a text before the rest of it was parsed.

    The parser holds Python's lock until it is done, so that on whatever thread a text of 60 MB is parsed, every other
    thread waits for half a second. Pieces let the others in between.

    Args:
        raw: The whole text.
        spans: Begin and end in it of what is between a list's brackets.
    """

    def __init__(self, raw: bytes | bytearray, spans: list[tuple[int, int]]) -> None:
        self._raw = raw
        self._spans = spans
        self._unread = set(range(len(spans)))
        self._token = secrets.token_hex(16)  # nobody outside can name one of these lists

    def rest(self) -> bytes:
        """The text with a short list in each one's place."""
        parts: list[Buffer] = []
        begin = 0
        for number, (start, end) in enumerate(self._spans):
            parts += [memoryview(self._raw)[begin:start], b'"%b",%d' % (self._token.encode(), number)]
            begin = end
        return b"".join((*parts, memoryview(self._raw)[begin:]))

    def pieces(self, value: object) -> Iterator[list[Any]] | None:
        """Give the list that a value of the rest stands for, piece by piece; None if it stands for none.

        Raises:
            MalformedError: It is no JSON; raised between pieces.
        """
        if not self._spans or type(value) is not list or len(value) != 2 or value[0] != self._token:
            return None
        self._unread.discard(value[1])
        return self._parse(*self._spans[value[1]])

    def check(self) -> None:
        """Parse what nobody asked for: a text is JSON as a whole or not at all.

        Raises:
            MalformedError: It is not.
        """
        for number in self._unread:
            for _ in self._parse(*self._spans[number]):
                pass

    def _parse(self, begin: int, end: int) -> Iterator[list[Any]]:
        view = memoryview(self._raw)
        first = begin
        while begin <= end:
            stop = self._raw.find(b",", begin + _PIECE_BYTES, end)
            stop = end if stop < 0 else stop
            piece: list[Any] = _loads(b"".join((b"[", view[begin:stop], b"]")))
            if not piece and (begin > first or stop < end):  # nothing but spaces is an empty list
                raise MalformedError("the body is no JSON: a list has a comma that no value follows")
            yield piece
            begin = stop + 1


def parse_long_json(data: Buffer, *, max_depth: int) -> tuple[Any, LongLists]:
    """Parse as `parse_json`, but for long lists of numbers; for threads beside the loop's.

    Returns:
        The value, and what gives the lists that were left out of it.

    Raises:
        MalformedError: As `parse_json`; of a list that was left out, when it is read.
    """
    raw = data.tobytes() if isinstance(data, memoryview) else data
    lists = LongLists(raw, _find_long_lists(raw))
    return parse_json(lists.rest(), max_depth=max_depth), lists


def _find_long_lists(raw: bytes | bytearray) -> list[tuple[int, int]]:
    """Begin and end of what is between the brackets of long lists without strings, lists and objects in them."""
    if b"\\" in raw:  # as many bytes as before, so that places stay what they are
        raw = raw.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    text = np.frombuffer(raw, np.uint8)
    spans: list[tuple[int, int]] = []
    last, last_mark, is_inside = -1, 0, False
    for begin in range(0, len(text), _CHUNK_BYTES):
        chunk = text[begin : begin + _CHUNK_BYTES]
        curly = chunk | _TO_CURLY
        places = np.flatnonzero((curly == _OPEN) | (curly == _CLOSE) | (chunk == _QUOTE))
        if len(places) == 0:
            continue
        marks = chunk[places]
        inside = np.logical_xor.accumulate(marks == _QUOTE) ^ is_inside  # after each mark
        starts, openers = np.append(last - begin, places[:-1]), np.append(np.uint8(last_mark), marks[:-1])
        before = np.append(is_inside, inside[:-1])
        is_long = (places - starts > _LONG_BYTES) & (openers == _LIST_OPEN) & (marks == _LIST_CLOSE) & ~before
        spans += [(begin + int(starts[at]) + 1, begin + int(places[at])) for at in np.flatnonzero(is_long)]
        last, last_mark, is_inside = begin + int(places[-1]), int(marks[-1]), bool(inside[-1])
    return spans


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
