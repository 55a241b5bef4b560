"""The wire format of protobuf, read from bytes with bounds checks of ours.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

__all__ = ["Value", "WireError", "WireReader", "as_integer", "as_message", "as_text", "read_varint"]

MAX_FIELDS = 4_000_000

Value: TypeAlias = int | memoryview
"""An integer, or the bytes of a string or message."""


class WireError(Exception):
    """The bytes do not follow the wire format."""


class WireReader:
    """Walks the messages of one file, and counts what it walks."""

    def __init__(self) -> None:
        self.num_fields = 0

    def fields(self, view: memoryview) -> Iterator[tuple[int, Value]]:
        """Walk the fields of a message.

        Yields:
            Field numbers with their values.

        Raises:
            WireError: A length reaches beyond the message, or the file has too many fields.
        """
        position, end = 0, len(view)
        while position < end:
            self.num_fields += 1
            if self.num_fields > MAX_FIELDS:
                raise WireError(f"more than {MAX_FIELDS:,} fields")
            key, position = read_varint(view, position)
            number, wire_type = key >> 3, key & 7
            value: Value
            match wire_type:
                case 0:
                    value, position = read_varint(view, position)
                case 1 | 5:  # of eight bytes, and of four
                    size = 8 if wire_type == 1 else 4
                    if size > end - position:
                        raise WireError(f"field {number} is cut off")
                    value = int.from_bytes(view[position : position + size], "little")
                    position += size
                case 2:  # with its length before it
                    size, position = read_varint(view, position)
                    if size > end - position:
                        raise WireError(f"field {number} claims {size:,} bytes where {end - position:,} are left")
                    value = view[position : position + size]
                    position += size
                case _:
                    raise WireError(f"field {number} has wire type {wire_type}")
            if number == 0:
                raise WireError("field number 0")
            yield number, value


def read_varint(view: memoryview, position: int) -> tuple[int, int]:
    """A base-128 integer of at most 10 bytes, and the position after it."""
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(view):
            raise WireError("it ends inside a number")
        byte = view[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise WireError("a number has more than 10 bytes")


def as_message(value: Value) -> memoryview:
    """The bytes of a message."""
    if isinstance(value, int):
        raise WireError("a number where a message belongs")
    return value


def as_text(value: Value) -> str:
    """A text in UTF-8."""
    return bytes(as_message(value)).decode("utf-8")


def as_integer(value: Value) -> int:
    """An int64: negative numbers are ten-byte varints."""
    if not isinstance(value, int):
        raise WireError("a message where a number belongs")
    return value - (1 << 64) if value >= 1 << 63 else value
