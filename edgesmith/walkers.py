"""What happens at each step of a walk: a planner looks into the store, a runner does the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgesmith.artifact import Artifact
from edgesmith.errors import StorageError
from edgesmith.progress import Progress
from edgesmith.stages.base import Stage
from edgesmith.store import Store

__all__ = ["Needs", "PlannedStep", "Planner", "Runner", "TimedStep", "Walker"]

Needs = Sequence[tuple[str, Artifact | None]]
"""Role → artifact that a step needs; None while it is not known yet."""


class Walker(Protocol):
    """Decides what happens at each step."""

    store: Store

    def step(self, name: str, does: str, needs: Needs, stage: Callable[[], Stage]) -> Artifact | None:
        """Handle one step; `stage` may be called only when all that it needs is there."""


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """A step, and whether its result is in the store."""

    name: str
    does: str
    state: str
    """`cached`, or `to do`."""
    needs: tuple[str, ...]
    key: str | None
    """In the store; None while something it needs is still to do."""

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "name": self.name,
            "does": self.does,
            "state": self.state,
            "needs": list(self.needs),
            "key": self.key,
        }


@dataclass(kw_only=True)
class Planner:
    """Looks at what is in the store and does nothing."""

    store: Store
    steps: list[PlannedStep] = field(default_factory=list)

    def step(self, name: str, does: str, needs: Needs, stage: Callable[[], Stage]) -> Artifact | None:
        """Say whether the step is done."""
        work = stage() if all(artifact is not None for _, artifact in needs) else None
        key = work.key if work else None
        found = self.store.find(key) if key else None
        if work and found and not work.is_final(found):
            found = None
        self.steps.append(
            PlannedStep(
                name=name,
                does=does,
                state="cached" if found else "to do",
                needs=tuple(role for role, _ in needs),
                key=key.digest if key else None,
            )
        )
        return found


@dataclass(frozen=True, kw_only=True)
class TimedStep:
    """A step that was run or found."""

    name: str
    does: str
    was_cached: bool
    seconds: float
    artifact: Artifact


@dataclass(kw_only=True)
class Runner:
    """Does every step that is not in the store."""

    store: Store
    progress: Progress
    remeasure: bool = False
    """Take times anew that the store has."""
    steps: list[TimedStep] = field(default_factory=list)

    def step(self, name: str, does: str, needs: Needs, stage: Callable[[], Stage]) -> Artifact | None:
        """Find the step's result or make it."""
        del needs  # a runner has made them all
        work, start, was_cached = stage(), time.monotonic(), True
        key = work.key

        def make(folder: Path) -> Artifact:
            nonlocal was_cached
            was_cached = False
            self.progress.note(f"{name}: {does}")
            made = work.make(folder, self.progress)
            if work.key.digest != key.digest:
                raise StorageError(f"{name}: a file that it reads was changed while it ran", mend="Run it again.")
            return made

        found = self.store.find(key)
        if found is not None and (not work.is_final(found) or (self.remeasure and work.is_timed)):
            self.store.forget(key)

        artifact = self.store.build(key, make)
        work.published()
        self.steps.append(
            TimedStep(name=name, does=does, was_cached=was_cached, seconds=time.monotonic() - start, artifact=artifact)
        )
        return artifact
