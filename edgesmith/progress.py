"""How long-running functions say where they are, without knowing whether anybody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

__all__ = ["SILENT", "Advance", "Progress", "Report"]

T = TypeVar("T")
Advance = Callable[[float], None]


class Report(Protocol):
    """Tells a bar what was done since the last call."""

    def __call__(self, amount: float, /, text: str = "") -> None:
        """Advance by `amount` units; `text` says where things stand, beside the bar."""


class Progress:
    """Takes reports and shows nothing. The command line's subclass draws bars or plain lines."""

    def bar(self, description: str, total: float | None = None) -> AbstractContextManager[Report]:
        """Open a bar of `total` units; call what it gives with the units done since the last call."""
        del description, total
        return nullcontext(_show_nothing)

    def track(self, items: Iterable[T], description: str, total: float | None = None) -> Iterator[T]:
        """Yield `items`, advancing a bar by one after each."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        with self.bar(description, total) as advance:
            for item in items:
                yield item
                advance(1)

    def note(self, text: str) -> None:
        """Say one thing that the user should know: a choice made, something left out."""
        del text


def _show_nothing(amount: float, /, text: str = "") -> None:
    del amount, text


SILENT = Progress()
