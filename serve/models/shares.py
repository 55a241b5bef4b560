"""How models share the processor."""

from __future__ import annotations

from collections.abc import Iterable

from serve.config import ModelSpec
from serve.runtime import choose_threads

__all__ = ["share_threads"]


def share_threads(specs: Iterable[ModelSpec]) -> dict[tuple[str, str], int]:
    """Threads of each model's engine: what its specification says, else an equal part of what the others leave.

    Returns:
        (name, version) → threads, at least 1.
    """
    found = {(spec.name, spec.version): spec.threads for spec in specs}
    stated = [threads for threads in found.values() if threads is not None]
    num_open = len(found) - len(stated)
    share = max(1, (choose_threads() - sum(stated)) // num_open) if num_open else 1
    return {key: share if threads is None else threads for key, threads in found.items()}
