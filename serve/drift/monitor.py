"""Drift: whether what is asked and answered still looks like what the model was calibrated on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from edgesmith.tasks import Task
from serve.drift.reference import Reference
from serve.models.job import GenerationJob, Job

__all__ = ["DriftMonitor", "drift_families"]


class DriftMonitor:
    """Compares a model's served requests with its reference, window by window."""

    def __init__(
        self, reference: Reference, task: Task | None = None, *, tokenize: Callable[[str], Sequence[int]] | None = None
    ) -> None:
        self.reference = reference

    def observe(self, job: Job | GenerationJob) -> None:
        """Look at a finished job, or not: it is a sample. On the loop's thread, from its `done`."""

    def start(self) -> None:
        """Start the thread."""

    def close(self) -> None:
        """End the thread."""

    def report(self) -> dict[str, Any]:
        """State for the page. JSON-able."""
        return {"state": "too few", "features": []}


def drift_families(monitors: Iterable[tuple[str, str, DriftMonitor]]) -> Iterable[Any]:
    """Metric families of `prometheus_client` of (model, version, monitor)."""
    return ()
