"""Which rows a command proves or times something on when the user names a file, or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.progress import Progress

if TYPE_CHECKING:
    from edgesmith.stages.rows import Rows

__all__ = ["NUM_BATCHED", "NUM_REFERENCE", "NUM_TIMED", "NUM_VERIFIED", "proof_rows", "reference_rows"]

NUM_VERIFIED = 64
NUM_TIMED = 64
NUM_BATCHED = 128
NUM_REFERENCE = 1000


def proof_rows(
    data: Path | None,
    *,
    num: int = NUM_VERIFIED,
    seed: int,
    columns: Mapping[str, str] | None,
    progress: Progress,
) -> Rows:
    """Rows to prove something on: the user's, or the packaged sentences, which is said."""
    from edgesmith.stages.rows import Rows

    if data is None:
        progress.note("verified on packaged examples; give --data for rows of your own")
    return Rows(path=data, num=num if data else None, seed=seed, columns=columns or {})


def reference_rows(data: Path | None, *, seed: int, columns: Mapping[str, str] | None) -> Rows | None:
    """Rows that an artifact keeps a description of, to notice drift by; packaged sentences are nobody's requests."""
    from edgesmith.stages.rows import Rows

    return None if data is None else Rows(path=data, num=NUM_REFERENCE, seed=seed, columns=columns or {})
