"""Tags of words, and the entities that they spell: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

__all__ = ["OUTSIDE", "Span", "entity_counts", "join_tags", "kind_of", "tag_words"]

OUTSIDE = "O"
"""The tag of a word that belongs to no entity."""
Span: TypeAlias = tuple[int, int, str]
"""First character, the one after the last, and the kind of an entity."""


def kind_of(tag: str) -> tuple[str, str]:
    """Split a tag into where in an entity it stands, `B` or `I`, and the entity's kind; a plain name continues.

    >>> kind_of("B-PER"), kind_of("LOC"), kind_of("S-ORG")
    (('B', 'PER'), ('I', 'LOC'), ('B', 'ORG'))
    """
    place, dash, kind = tag.partition("-")
    if not dash or place not in ("B", "I", "E", "S", "L", "U"):
        return "I", tag
    return ("B" if place in "BSU" else "I"), kind


def join_tags(words: Sequence[tuple[int, int]], tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """The entities that tagged words spell, as ranges of words.

    IOB2, read as the CoNLL script does: a tag inside an entity that none of its kind precedes begins one.

    Args:
        words: First character and the one after the last of each; only their number matters.
        tags: One a word.

    Returns:
        First word, the one after the last, and the kind.

    >>> join_tags([(0, 1)] * 4, ["B-PER", "I-PER", "O", "I-LOC"])
    [(0, 2, 'PER'), (3, 4, 'LOC')]

    Source: https://www.clips.uantwerpen.be/conll2000/chunking/output.html
    """
    found: list[tuple[int, int, str]] = []
    open_kind, begin = None, 0
    for index, tag in enumerate([*tags[: len(words)], OUTSIDE]):
        place, kind = kind_of(tag)
        if open_kind is not None and (tag == OUTSIDE or place == "B" or kind != open_kind):
            found.append((begin, index, open_kind))
            open_kind = None
        if tag != OUTSIDE and open_kind is None:
            open_kind, begin = kind, index
    return found


def tag_words(words: Sequence[tuple[int, int]], spans: Iterable[Span]) -> list[str]:
    """The IOB2 tag of each word: what overlaps an entity is in it.

    >>> tag_words([(0, 3), (4, 7), (8, 9)], [(4, 9, "LOC")])
    ['O', 'B-LOC', 'I-LOC']
    """
    tags = [OUTSIDE] * len(words)
    for start, end, kind in spans:
        inside = [index for index, (first, last) in enumerate(words) if first < end and last > start]
        for index in inside:
            tags[index] = f"{'B' if index == inside[0] else 'I'}-{kind}"
    return tags


def entity_counts(right: Sequence[Iterable[Span]], said: Sequence[Iterable[Span]]) -> list[tuple[int, int]]:
    """Of each text, twice the entities that are right, and those that there are and that were said together.

    F1 over many texts is the sum of the first over the sum of the second. An entity is right where its characters
    and its kind are.

    >>> entity_counts([[(0, 3, "PER"), (4, 7, "LOC")]], [[(0, 3, "PER"), (4, 6, "LOC")]])
    [(2, 4)]
    """
    pairs = [(set(ours), set(theirs)) for ours, theirs in zip(right, said, strict=True)]
    return [(2 * len(ours & theirs), len(ours) + len(theirs)) for ours, theirs in pairs]
