"""The speed of an artifact over batch sizes and lengths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact
from edgesmith.progress import Progress
from edgesmith.stages.base import Stage
from edgesmith.stages.bench import PEAKS
from edgesmith.stages.rows import Rows
from edgesmith.store import default_store_root
from edgesmith.tasks import load_task

__all__ = ["SweepStage"]


@dataclass(frozen=True, kw_only=True)
class SweepStage(Stage):
    """Time every batch size at every length, each beside the machine's limit."""

    step: ClassVar[str] = "sweep"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "onnxruntime", "tokenizers")
    is_timed: ClassVar[bool] = True

    artifact: Artifact
    rows: Rows
    task: str | None = None
    threads: int = 1
    batch_sizes: tuple[int, ...] | None = None
    lengths: tuple[int | None, ...] | None = None

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        grid: dict[str, JsonValue] = {
            "batch_sizes": list(self.batch_sizes) if self.batch_sizes else None,
            "lengths": list(self.lengths) if self.lengths else None,
        }
        return {**self.rows.options, **grid, "task": self.task, "threads": self.threads}

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        return {"artifact": self.artifact.digest, "data": self.rows.digest}

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `sweep.json`."""
        from bench.machine.peaks import measure_peaks
        from bench.scenarios.sweep import SweepOptions, measure_sweep
        from serve.runtime import EngineOptions, open_engine

        task = load_task(self.artifact.folder, self.task, columns=self.rows.columns)
        options = SweepOptions(
            batch_sizes=self.batch_sizes or SweepOptions.batch_sizes, lengths=self.lengths or SweepOptions.lengths
        )
        engine = open_engine(self.artifact, EngineOptions(threads=self.threads))
        try:
            measure_sweep(
                engine,
                task,
                self.rows.read(task),
                options=options,
                artifact=self.artifact,
                peaks=measure_peaks(threads=self.threads, cache=default_store_root() / PEAKS, progress=progress),
                threads=self.threads,
                progress=progress,
            ).save(folder)
        finally:
            engine.close()
        return self.seal(folder)
