"""The speed of a model that writes text, token by token."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import JsonValue

from edgesmith.artifact import Artifact
from edgesmith.data import sample_rows
from edgesmith.errors import DataError
from edgesmith.progress import Progress
from edgesmith.stages.base import Stage
from edgesmith.stages.bench import PEAKS
from edgesmith.stages.engines import GENERATES, open_generator
from edgesmith.stages.rows import Rows
from edgesmith.store import default_store_root
from edgesmith.tasks.base import sample_texts

if TYPE_CHECKING:
    from bench.scenarios.generate import GenerationOptions
    from bench.scenarios.generation import Generation

__all__ = ["GenerateStage"]


@dataclass(frozen=True, kw_only=True)
class GenerateStage(Stage):
    """Time the answers of an artifact, through the runtime that ships; a checkpoint's by torch."""

    step: ClassVar[str] = "bench"
    libraries: ClassVar[tuple[str, ...]] = (
        "llama-cpp-python", "numpy", "onnxruntime-genai", "tokenizers", "torch", "transformers",
    )  # fmt: skip
    is_timed: ClassVar[bool] = True

    artifact: Artifact
    rows: Rows
    """Their column `prompt` is continued, or `text` where there is none."""
    threads: int = 1
    length: int | None = None
    """Cut prompts of so many tokens from the rows; each row is a prompt when None."""
    max_tokens: int = 64
    num_requests: int | None = None
    seconds: float | None = None

    @property
    def options(self) -> dict[str, JsonValue]:
        """What decides the result."""
        names = ("threads", "length", "max_tokens", "num_requests", "seconds")
        return {**self.rows.options, "scenario": "generate", **{name: getattr(self, name) for name in names}}

    @property
    def inputs(self) -> dict[str, str]:
        """Role → digest."""
        return {"artifact": self.artifact.digest, "data": self.rows.digest}

    def make(self, folder: Path, progress: Progress) -> Artifact:
        """Write `generation.json` and the moment of every chunk."""
        from bench.machine.generation_limits import measure_generation_limits
        from bench.machine.peaks import measure_peaks
        from bench.scenarios.generate import GenerationOptions
        from bench.scenarios.start import measure_start

        options = GenerationOptions(
            max_tokens=self.max_tokens,
            prompt_tokens=self.length,
            is_fixed_length=self.length is not None,
            seconds=self.seconds or GenerationOptions.seconds,
            min_requests=self.num_requests or (1 if self.seconds else GenerationOptions.min_requests),
            max_requests=self.num_requests or GenerationOptions.max_requests,
        )
        generates = self.artifact.kind in GENERATES
        generation = self._time_apart(options) if generates else self._time_torch(options, progress)
        generation.save(folder)
        if generates:
            measure_start(self.artifact.path, threads=self.threads).save(folder)
            peaks = measure_peaks(threads=self.threads, cache=default_store_root() / PEAKS, progress=progress)
            measure_generation_limits(self.artifact, generation, peaks).save(folder)
        return self.seal(folder)

    def _time_apart(self, options: GenerationOptions) -> Generation:
        from edgesmith.stages.generate_apart import time_apart

        return time_apart(self.artifact, self._prompts(), options, threads=self.threads)

    def _time_torch(self, options: GenerationOptions, progress: Progress) -> Generation:
        from bench.scenarios.generate import measure_generation

        with open_generator(self.artifact, self.threads) as engine:
            return measure_generation(
                engine,
                self._prompts(),
                options=options,
                artifact_digest=self.artifact.digest,
                threads=self.threads,
                progress=progress,
            )

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
