"""The speed of a model that writes text, token by token."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact
from edgesmith.data import sample_rows
from edgesmith.errors import DataError
from edgesmith.progress import Progress
from edgesmith.stages.base import Stage
from edgesmith.stages.rows import Rows
from edgesmith.tasks.base import sample_texts

__all__ = ["GenerateStage"]


@dataclass(frozen=True, kw_only=True)
class GenerateStage(Stage):
    """Time the answers of a checkpoint, run by torch."""

    step: ClassVar[str] = "bench"
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "tokenizers", "torch", "transformers")
    is_timed: ClassVar[bool] = True

    artifact: Artifact
    rows: Rows
    """Their column `prompt` is continued, or `text` where there is none."""
    threads: int = 1
    max_tokens: int = 64
    num_requests: int | None = None
    seconds: float | None = None

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        names = ("threads", "max_tokens", "num_requests", "seconds")
        return {**self.rows.options, "scenario": "generate", **{name: getattr(self, name) for name in names}}

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        return {"artifact": self.artifact.digest, "data": self.rows.digest}

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `generation.json` and the moment of every chunk."""
        from bench.scenarios.generate import GenerationOptions, measure_generation
        from export.reference_generation import TorchGenerationEngine

        options = GenerationOptions(
            max_tokens=self.max_tokens,
            seconds=self.seconds or GenerationOptions.seconds,
            min_requests=self.num_requests or GenerationOptions.min_requests,
            max_requests=self.num_requests or GenerationOptions.max_requests,
        )
        engine = TorchGenerationEngine(self.artifact.folder, threads=self.threads)
        try:
            measure_generation(
                engine,
                self._prompts(),
                options=options,
                artifact_digest=self.artifact.digest,
                threads=self.threads,
                progress=progress,
            ).save(folder)
        finally:
            engine.close()
        return self.seal(folder)

    def _prompts(self) -> list[str]:
        if self.rows.path is None:
            return list(sample_texts())
        prompts = []
        for row in sample_rows(self.rows.path, num=self.rows.num or sys.maxsize, seed=self.rows.seed):
            names = [self.rows.columns.get(name, name) for name in ("prompt", "text")]
            text = next((row.values[name] for name in names if name in row.values), None)
            if not isinstance(text, str) or not text.strip():
                raise DataError(
                    f"{row.path}:{row.line}: has no text in {' or '.join(map(repr, names))}",
                    mend="Name the column with --column prompt=NAME.",
                )
            prompts.append(text)
        return prompts
