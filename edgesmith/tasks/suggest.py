"""The nearest of some known names, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["nearest"]


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that looks most like `name`.

    >>> nearest("text-clasification", ["text-classification", "feature-extraction"])
    'text-classification'
    """
    candidates = list(known)
    folded = name.casefold()
    return max(
        candidates, key=lambda other: difflib.SequenceMatcher(None, folded, other.casefold()).ratio(), default=""
    )
