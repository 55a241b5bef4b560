"""The parts that a report is built of: the one source of its HTML and its Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.gates.verdict import Outcome, Verdict
from bench.report.data import Ancestor

__all__ = ["Bar", "Block", "Cell", "Code", "Figure", "Gates", "Heat", "Items", "Lineage", "Mono", "Section", "Table"]
__all__ += ["Noted", "Text", "keep_filled"]


@dataclass(frozen=True)
class Heat:
    """A cell whose background says how large it is."""

    text: str
    share: float
    """Of the largest, in [0, 1]."""


@dataclass(frozen=True)
class Bar:
    """A cell with a bar behind its figure."""

    text: str
    share: float
    """Of the longest bar, in [0, 1]."""


@dataclass(frozen=True)
class Mono:
    """A cell with a digest or a name that machines read."""

    text: str


@dataclass(frozen=True)
class Noted:
    """A figure with what qualifies it, such as its bounds, in small print below it."""

    text: str
    note: str


Cell = str | Outcome | Heat | Bar | Mono | Noted


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under a head."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    num_text: int = 1
    """Columns from the left that hold text; the others hold figures."""
    caption: str = ""
    summary: str = ""
    """What is named in place of the table until a reader opens it; for many rows that few look at."""
    is_stacked: bool = False
    """On a narrow screen each row becomes a card of names and values: for rows that are models."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot; the tables beside it hold its figures, so Markdown goes without."""

    caption: str
    svg: str


@dataclass(frozen=True)
class Text:
    """A sentence or two; a warning stands out."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True)
class Items:
    """Points of a list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """A command."""

    text: str


@dataclass(frozen=True)
class Gates:
    """Verdicts, each with its plot and its reason."""

    verdicts: tuple[Verdict, ...]
    target: str = ""
    """Named where there are several."""
    outcome: Outcome | None = None
    """The target's."""


@dataclass(frozen=True)
class Lineage:
    """What an artifact was made from, as a tree."""

    ancestors: tuple[Ancestor, ...]


Block = Text | Table | Figure | Items | Code | Gates | Lineage


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with what stands below it."""

    title: str
    blocks: tuple[Block, ...] = ()
    level: int = 2
    """2 for a part of the report, 3 for a part of a target."""
    outcome: Outcome | None = None
    """Shown beside the title."""


def keep_filled(head: Sequence[str], rows: Sequence[Sequence[Cell | None]], **more: object) -> Table | None:
    """Make a table without the columns that no row fills; a single gap is a dash.

    Returns:
        None if no column but the first is left.
    """
    filled = [index for index in range(len(head)) if any(row[index] is not None for row in rows)]
    if len(filled) < 2:
        return None
    picked = tuple(tuple("–" if row[index] is None else row[index] for index in filled) for row in rows)
    table = Table(head=tuple(head[index] for index in filled), rows=picked)  # type: ignore[arg-type]
    return replace(table, **more)  # type: ignore[arg-type]
