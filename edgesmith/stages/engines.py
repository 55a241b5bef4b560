"""Open whatever generates: an artifact through the runtime that ships, or a checkpoint through torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.artifact import Artifact, Kind
from edgesmith.errors import UsageError

if TYPE_CHECKING:
    from serve.runtime.generation import GenerationEngine

__all__ = ["GENERATES", "open_generator"]

GENERATES: tuple[Kind, ...] = ("gguf", "genai")
"""Kinds of artifacts that write text."""


@contextmanager
def open_generator(
    artifact: Artifact, threads: int, *, adapters: Sequence[tuple[Path, float]] = ()
) -> Iterator[GenerationEngine]:
    """Open an engine that generates, and close it afterwards.

    Args:
        artifact: A checkpoint, or of a kind in `GENERATES`.
        threads: Of the engine.
        adapters: LoRA files in GGUF beside the model, and their scales.

    Raises:
        UsageError: a checkpoint is given adapters.
        MissingExtraError: its library is not installed.
        ArtifactError: the artifact is damaged.
    """
    engine: GenerationEngine
    if artifact.kind == "checkpoint":
        from export.reference_generation import TorchGenerationEngine

        if adapters:
            raise UsageError("adapters in GGUF go beside a GGUF model; merge them into a checkpoint instead")
        engine = TorchGenerationEngine(artifact.folder, threads=threads)
    else:
        from serve.runtime import EngineOptions, open_generation_engine

        engine = open_generation_engine(artifact, EngineOptions(threads=threads, adapters=tuple(adapters)))
    try:
        yield engine
    finally:
        engine.close()
