"""A graph that answers requests."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from edgesmith.artifact import Artifact
from edgesmith.tasks import Task
from serve.config import ModelSpec
from serve.models.job import Job
from serve.models.stats import ModelStats
from serve.runtime import Engine

__all__ = ["GraphModel"]


class GraphModel:
    """One version of a model, its engine, and the thread that runs it."""

    def __init__(
        self,
        spec: ModelSpec,
        artifact: Artifact,
        engine: Engine,
        *,
        loop: asyncio.AbstractEventLoop,
        task: Task | None = None,
    ) -> None:
        self.name = spec.name
        self.version = spec.version
        self.spec = spec
        self.artifact = artifact
        self.signature = engine.signature
        self.engine_name = engine.name
        self.task = task
        self.stats = ModelStats()
        self.max_batch_size = spec.max_batch_size or 1
        raise NotImplementedError

    def validate(self, arrays: Mapping[str, NDArray[Any]]) -> int:
        """Check a request's arrays; gives its number of rows."""
        raise NotImplementedError

    def num_rows(self, arrays: Mapping[str, NDArray[Any]]) -> int:
        """Rows of a request's arrays."""
        raise NotImplementedError

    def submit(self, job: Job) -> None:
        """Take a request."""
        raise NotImplementedError

    async def close(self, timeout_s: float | None = None) -> None:
        """Let queued requests finish, then stop."""
        raise NotImplementedError
