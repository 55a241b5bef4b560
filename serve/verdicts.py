"""What a release's gates said of an artifact, read from the report beside it; for the page, never for a decision."""

from __future__ import annotations

import json
from typing import Any

from edgesmith.artifact import Artifact

__all__ = ["read_verdicts"]

_MAX_BYTES = 32 << 20


def read_verdicts(artifact: Artifact) -> dict[str, Any] | None:
    """Find an artifact's verdicts in its release's `report.json`.

    Args:
        artifact: Served out of the release's folder.

    Returns:
        `release`, `verdict` and `gates` as the report has them; None where there is no report, or it is of other files.
    """
    path = artifact.path.resolve().parent / "report.json"
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        report = json.loads(path.read_bytes())
        found = next(target for target in report["targets"] if target["artifact"]["digest"] == artifact.digest)
        return {"release": report.get("title", ""), "verdict": found.get("verdict"), "gates": found.get("gates", [])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError):
        return None
