"""An artifact's line as a tree: itself, below it what it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.report.data import Ancestor

__all__ = ["Branch", "grow"]

_MAX_DEPTH = 40


@dataclass(frozen=True)
class Branch:
    """One of the line with what it was made from."""

    ancestor: Ancestor
    parents: tuple[Branch, ...]
    is_repeated: bool = False
    """Whether its own parents stand at an earlier place."""


def grow(ancestors: Sequence[Ancestor]) -> tuple[Branch, ...]:
    """Arrange a line as trees.

    Args:
        ancestors: The artifact first. One that nobody names as a parent hangs below the artifact; a digest that is
            named but not described is a leaf of its own.

    Returns:
        The artifact's tree, or nothing.
    """
    if not ancestors:
        return ()
    by_digest = {one.digest: one for one in reversed(ancestors)}
    named = {digest for one in ancestors for digest in one.parents}
    root = ancestors[0]
    loose = tuple(one.digest for one in ancestors[1:] if one.digest not in named and one.digest != root.digest)
    seen: set[str] = set()

    def branch(one: Ancestor, depth: int, extra: tuple[str, ...] = ()) -> Branch:
        if one.digest in seen or depth > _MAX_DEPTH:
            return Branch(one, (), is_repeated=bool(one.parents))
        seen.add(one.digest)
        digests = dict.fromkeys((*one.parents, *extra))
        found = (by_digest.get(digest, Ancestor(role="made from", digest=digest)) for digest in digests)
        return Branch(one, tuple(branch(parent, depth + 1) for parent in found))

    return (branch(root, 0, loose),)
