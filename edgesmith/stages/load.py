"""A load test of a running server, or of our own that runs an artifact for as long as it takes; kept as evidence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact
from edgesmith.progress import Progress
from edgesmith.stages.base import Stage
from edgesmith.stages.rows import Rows
from edgesmith.stages.served import served, served_route

if TYPE_CHECKING:
    from bench.load import LoadPlan

__all__ = ["LoadStage", "ServedLoadStage"]


@dataclass(frozen=True, kw_only=True)
class LoadStage(Stage):
    """Send a load; the evidence belongs to the artifact that the user says the server runs."""

    step: ClassVar[str] = "load"
    libraries: ClassVar[tuple[str, ...]] = ("gevent", "geventhttpclient", "locust", "numpy")
    is_timed: ClassVar[bool] = True

    plan: LoadPlan
    artifact: Artifact | None = None

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result; headers may be secrets and stay out."""
        plan: dict[str, JsonValue] = self.plan.to_json()
        return {name: value for name, value in plan.items() if name not in ("headers", "data", "encoder")}

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        data = {"data": Rows(path=self.plan.data, columns=self.plan.columns).digest}
        return data if self.artifact is None else {"artifact": self.artifact.digest, **data}

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `load.json` and its samples."""
        from bench.load import run_load

        run_load(self.plan, progress=progress).save(folder)
        return self.seal(folder)


_NAME = "model"


@dataclass(frozen=True, kw_only=True)
class ServedLoadStage(LoadStage):
    """Serve an artifact as it ships, by `python -m serve` on loopback, and send the load to it.

    The plan's address is put in when the server is ready.
    """

    threads: int = 1

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result; the port is another one each time."""
        return {**super().options, "url": "served", "server_threads": self.threads}

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `load.json` and its samples."""
        from bench.load import run_load

        artifact = self.artifact
        assert artifact is not None  # as those who make this stage see to
        encoder = artifact.path if artifact.kind == "onnx" else None
        with served(artifact, name=_NAME, options=["--threads", str(self.threads)]) as url:
            plan = replace(
                self.plan, url=url + served_route(artifact, _NAME), encoder=encoder, model=_NAME, is_served_here=True
            )
            run_load(plan, progress=progress).save(folder)
        return self.seal(folder)
