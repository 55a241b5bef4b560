"""What the parts of a walk share."""

from __future__ import annotations

from edgesmith.artifact import Artifact

__all__ = ["NUM_VERIFIED", "needed"]

NUM_VERIFIED = 64
"""Rows that a merge or an export is proven on."""


def needed(artifact: Artifact | None) -> Artifact:
    """A stage is asked for only when everything that it needs is there."""
    assert artifact is not None
    return artifact
