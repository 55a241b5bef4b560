"""Server-sent events: a parser that takes bytes cut anywhere.

Source: HTML Living Standard, section 9.2.6, "Interpreting an event stream".
"""

from __future__ import annotations

__all__ = ["EventParser"]


class EventParser:
    r"""Turns a stream of bytes into the data of its events.

    >>> EventParser().feed(b"data: one\n\ndata: two\ndata: lines\n\ndata: unfinished")
    ['one', 'two\nlines']
    """

    def __init__(self) -> None:
        self._line = bytearray()  # of the bytes since the last line's end
        self._data: list[str] = []  # lines of the event that is not over yet
        self._is_after_cr = False
        self._is_first = True

    def feed(self, data: bytes) -> list[str]:
        """Take the next bytes.

        Returns:
            The data of the events that these bytes ended, in their order; comments and other fields are left out.

        Raises:
            UnicodeDecodeError: A line is not UTF-8.
        """
        if self._is_after_cr and data[:1] == b"\n":  # the second half of a line's end that was cut in two
            data = data[1:]
            self._is_after_cr = False
        if not data:
            return []
        self._is_after_cr = data[-1:] == b"\r"
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *ended, rest = data.split(b"\n")
        events: list[str] = []
        for line in ended:
            self._take_line(bytes(self._line) + line, events)
            self._line.clear()
        self._line += rest
        return events

    def _take_line(self, line: bytes, events: list[str]) -> None:
        if self._is_first:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._is_first = False
        if not line:
            if self._data:
                events.append("\n".join(self._data))
                self._data.clear()
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" ").decode())
