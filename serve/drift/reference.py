"""The reference that drift is measured against: how an artifact's own calibration rows look to it."""

from __future__ import annotations

from edgesmith.artifact import Artifact

__all__ = ["REFERENCE_FILE", "Reference", "read_reference"]

REFERENCE_FILE = "reference.json"


class Reference:
    """Histograms of what a model is given and gives."""


def read_reference(artifact: Artifact) -> Reference | None:
    """The reference of an artifact; None if it has none. Raises ArtifactError if it is damaged."""
    return None
