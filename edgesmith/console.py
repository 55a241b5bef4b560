"""What a person sees: progress on standard error, tables and answers on standard output.

The only module that draws; everything else reports through `Progress` or returns values.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from edgesmith.errors import StorageError
from edgesmith.progress import Progress, Report
from edgesmith.units import format_seconds

__all__ = ["ConsoleProgress", "fail", "output_errors", "print_facts", "print_json", "print_table", "say", "write"]

_PLAIN_INTERVAL_S = 10.0
_VERDICT_STYLES = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow"}


class ConsoleProgress(Progress):
    """Bars on a terminal, plain lines elsewhere, both on standard error."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._columns: Any = None

    @contextmanager
    def bar(self, description: str, total: float | None = None) -> Iterator[Report]:
        """Show one bar, or a line at the start, every ten seconds and at the end."""
        if not self._live:
            yield from self._lines(description, total)
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
        with Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(description, total=total)

            def advance(amount: float, /, text: str = "") -> None:
                bars.update(task, advance=amount, description=f"{description} · {text}" if text else description)

            yield advance

    def _lines(self, description: str, total: float | None) -> Iterator[Report]:
        start = last = time.monotonic()
        done = 0.0

        def advance(amount: float, /, text: str = "") -> None:
            nonlocal done, last
            done += amount
            if (now := time.monotonic()) - last >= _PLAIN_INTERVAL_S:
                last = now
                of = f" of {total:g}" if total else ""
                self.note(f"{description}: {done:g}{of} after {format_seconds(now - start)}{text and f' · {text}'}")

        yield advance
        if (elapsed := time.monotonic() - start) >= 1:
            self.note(f"{description}: {format_seconds(elapsed)}")

    def note(self, text: str) -> None:
        """Print one line above the bars."""
        with suppress(OSError):  # nobody sees it, and the work goes on
            sys.stderr.write(f"  {text}\n")
            sys.stderr.flush()


@contextmanager
def output_errors() -> Iterator[None]:
    """Say what is wrong with standard output where it cannot be written; a reader that left stays what it is.

    Raises:
        StorageError: its disk is full, or it is closed.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError(f"standard output: cannot be written: {error.strerror or error}") from error


def say(text: str) -> None:
    """Print a line, with its verdict words in colour on a terminal."""
    if not sys.stdout.isatty():
        _put(text + "\n")
        return
    from rich.console import Console

    _print_rich(Console(highlight=False, soft_wrap=True), text)


def write(text: str) -> None:
    """Print a piece of a text as it comes; a terminal shows control characters that a model wrote, and obeys none."""
    if sys.stdout.isatty():
        text = "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)
    _put(text)
    with output_errors():
        sys.stdout.flush()


def _put(text: str) -> None:
    with output_errors():
        sys.stdout.write(text)


def fail(text: str) -> None:
    """Print an error to standard error."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True, highlight=False, soft_wrap=True).print(Text("error: ", style="bold red") + Text(text))
    else:
        with suppress(OSError):
            sys.stderr.write(f"error: {text}\n")


def print_json(value: Any) -> None:
    """Print one JSON object, and nothing else, on standard output."""
    _put(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Print a table; figures (cells that start with a digit or sign) are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for index, name in enumerate(columns):
        cells = [row[index] for row in rows if row[index]]
        figures = bool(cells) and all(cell[0] in "0123456789.+−-≤≥—" for cell in cells)
        table.add_column(name, justify="right" if figures else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_VERDICT_STYLES.get(cell, "")) for cell in row))
    with output_errors():
        Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)


def print_facts(facts: Mapping[str, str]) -> None:
    """Print names and values, aligned."""
    width = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        say(f"{name:<{width}}  {value}")


def _print_rich(console: Any, text: str) -> None:
    from rich.text import Text

    styled = Text(text)
    for word, style in _VERDICT_STYLES.items():
        styled.highlight_words([word], style)
    with output_errors():
        console.print(styled)
