"""Hold back text that may be the start of a stop string, so that no part of one is ever shown."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopFilter"]


class StopFilter:
    r"""Passes a growing text on, up to the first stop string.

    Args:
        stops: None of them empty.

    Attributes:
        found: The stop string that came; None before.

    >>> held = StopFilter(["\n\n"])
    >>> held.push("one\n"), held.push("two\n"), held.push("\nthree"), held.flush()
    ('one', '\ntwo', '', '')
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Take more text; give what can be shown now."""
        if not self._stops:
            return text
        if self.found is not None or not text:
            return ""
        self._held += text
        ends = [(at, -len(stop), stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            at, _, self.found = min(ends)
            shown, self._held = self._held[:at], ""
            return shown
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """Give what was held back: the text ended, and it was no stop string."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of a text that starts a stop string."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
