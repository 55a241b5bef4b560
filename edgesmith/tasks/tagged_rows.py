"""Rows of texts with tags: words with one each, or a text with entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

from edgesmith.data import Row
from edgesmith.errors import DataError
from edgesmith.tasks.columns import read_text
from edgesmith.tasks.entities import OUTSIDE, Span, join_tags, kind_of
from edgesmith.tasks.suggest import nearest

__all__ = ["Tagged", "read_tagged"]

Tagged: TypeAlias = tuple[str, tuple[str, ...] | None, list[Span] | None]
"""The text, its words where the row has some, and the entities where they were asked for."""
_MEND = (
    'Write {"tokens": ["Ada", "wrote"], "labels": ["B-PER", "O"]}, or '
    '{"text": "Ada wrote", "entities": [{"start": 0, "end": 3, "label": "PER"}]}, in JSONL.'
)


def read_tagged(row: Row, columns: Mapping[str, str], tags: Sequence[str], *, labelled: bool) -> Tagged:
    """Read a row.

    Args:
        row: Of a data file.
        columns: Where `tokens` and `labels`, or `text` and `entities`, stand.
        tags: The model's.
        labelled: Whether tags or entities are asked for.

    Raises:
        DataError: A column is missing or holds something else; file and line are named.
    """
    if columns["tokens"] in row.values:
        words = _words(row, columns["tokens"])
        spans = _tagged_spans(row, columns["labels"], words, tags) if labelled else None
        return " ".join(words), words, spans
    if columns["text"] not in row.values:
        given = ", ".join(map(repr, row.values)) or "none"
        raise DataError(
            f"{row.place}: has no column {columns['tokens']!r} and no {columns['text']!r}; it has {given}", mend=_MEND
        )
    text = read_text(row, columns["text"], "text")
    return text, None, _entities(row, columns["entities"], text, tags) if labelled else None


def _words(row: Row, column: str) -> tuple[str, ...]:
    given = row.values[column]
    if not isinstance(given, list) or not all(isinstance(word, str) for word in given):
        raise DataError(f"{row.place}: {column!r} is not a list of words", mend=_MEND)
    for word in given:
        if not word or any(char.isspace() or "\ud800" <= char <= "\udfff" for char in word):
            raise DataError(f"{row.place}: {word!r} in {column!r} is empty, or no single word of characters")
    return tuple(given)


def _tagged_spans(row: Row, column: str, words: Sequence[str], tags: Sequence[str]) -> list[Span]:
    given = row.values.get(column)
    if not isinstance(given, list):
        raise DataError(f"{row.place}: {column!r} is not a list of tags", mend=_MEND)
    if len(given) != len(words):
        raise DataError(f"{row.place}: {len(given)} tags in {column!r} for {len(words)} words")
    named = [_tag(row, one, tags) for one in given]
    places, start = [], 0
    for word in words:
        places.append((start, start + len(word)))
        start += len(word) + 1
    return [(places[first][0], places[last - 1][1], kind) for first, last, kind in join_tags(places, named)]


def _tag(row: Row, given: Any, tags: Sequence[str]) -> str:
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(tags):
        return tags[given]
    if isinstance(given, str) and (given in tags or given == OUTSIDE):
        return given
    raise DataError(
        f"{row.place}: the tag {given!r} is unknown to the model, which has {', '.join(tags)}",
        mend=f"Did you mean {nearest(str(given), tags)!r}? Otherwise use a model that was trained on it.",
    )


def _entities(row: Row, column: str, text: str, tags: Sequence[str]) -> list[Span]:
    given = row.values.get(column)
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise DataError(f"{row.place}: {column!r} is not a list of entities", mend=_MEND)
    kinds = sorted({kind_of(tag)[1] for tag in tags if tag != OUTSIDE})
    spans: list[Span] = []
    for one in given:
        start, end, kind = (one.get(name) for name in ("start", "end", "label"))
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
            raise DataError(
                f"{row.place}: an entity from {start!r} to {end!r} is not inside a text of {len(text)} characters",
                mend=_MEND,
            )
        if kind not in kinds:
            raise DataError(
                f"{row.place}: the entity {text[start:end]!r} is {kind!r}; the model knows {', '.join(kinds)}",
                mend=f"Did you mean {nearest(str(kind), kinds)!r}?" if kinds else "",
            )
        spans.append((start, end, str(kind)))
    spans.sort()
    for (_, end, _), (start, _, _) in pairwise(spans):
        if start < end:
            raise DataError(f"{row.place}: two entities overlap at character {start}", mend="Keep one of them.")
    return spans
