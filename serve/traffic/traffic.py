"""Traffic between the versions of models: who answers, what it was like, and whether a new version may stay."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from serve.models.job import Job
from serve.traffic.outcome import Outcome
from serve.traffic.settings import TrafficSettings

__all__ = ["Traffic"]


class Traffic:
    """Weighted splits, shadows, recording and comparison of a server's models.

    All methods are for the loop's thread; nothing in them waits. What costs time happens in a thread of its own.
    """

    def __init__(
        self,
        splits: Mapping[str, Mapping[str, float]] | None = None,
        shadows: Mapping[str, str] | None = None,
        *,
        record_to: Path | None = None,
        settings: TrafficSettings | None = None,
        seed: int | None = None,
    ) -> None:
        self.settings = settings or TrafficSettings()

    def check(self, versions_of: Callable[[str], Collection[str]]) -> None:
        """Compare with the models that there are; raises UsageError."""

    def start(self) -> None:
        """Open the recording and start the thread."""

    def close(self) -> None:
        """Write what is not written yet and end the thread."""

    def choose(self, name: str, key: str | None = None) -> str | None:
        """The version that answers a request that names none; None where the model has no split."""
        return None

    def control(self, name: str) -> str | None:
        """The version that others are compared with: the fallback while the chosen one is not ready."""
        return None

    def watches(self, name: str) -> bool:
        """Whether `observe` does anything for this model, so that outcomes need be made."""
        return False

    def observe(self, name: str, version: str, outcome: Outcome) -> None:
        """Count and record what became of a request."""

    def shadow(self, name: str) -> str | None:
        """The version that gets a copy of this model's requests, now; None for this request if none does."""
        return None

    def mirror(self, name: str, job: Job, request_id: str, submit: Callable[[Job], None]) -> None:
        """Send a copy of a job, which was submitted a moment ago, to the shadow; never raises."""

    def feedback(self, name: str, request_id: str, score: float) -> str | None:
        """Join feedback (0 bad, 1 good) with who answered; gives the version, None if the id is not known any more."""
        return None

    def set_split(self, name: str, weights: Mapping[str, float]) -> None:
        """Change a model's shares, and begin its comparison anew; raises UsageError."""

    def report(self) -> dict[str, Any]:
        """State for the page: model → split, arms, comparisons; shadows; recording. JSON-able."""
        return {"models": {}, "recording": None}

    def collect(self) -> Iterable[Any]:
        """Metric families of `prometheus_client`."""
        return ()
