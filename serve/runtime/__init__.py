"""Engines: what runs an artifact. Measurements, verification and the server all go through these.

An engine's module is imported when an artifact of its kind is opened, so that importing this package costs
nothing and needs no engine installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from edgesmith.artifact import Artifact, Signature
from edgesmith.errors import MissingExtraError, UnsupportedError, UsageError
from serve.runtime.cores import choose_threads
from serve.runtime.generation import GenerationEngine

__all__ = ["Engine", "EngineOptions", "choose_threads", "open_engine", "open_generation_engine"]


class Engine(Protocol):
    """Something that turns named arrays into named arrays."""

    @property
    def name(self) -> str:
        """Engine and version, such as `onnxruntime 1.31.1 (CPU)`."""

    @property
    def signature(self) -> Signature:
        """What `run` takes and gives."""

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once.

        Args:
            arrays: One array for each input of the signature, of its dtype and shape. Not modified.

        Returns:
            One array for each output of the signature.

        Raises:
            UsageError: An input is missing, unknown, or of the wrong dtype or shape; the message names it.
        """

    def close(self) -> None:
        """Free what the engine holds. Closing twice is harmless; running a closed engine is an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an engine runs.

    Attributes:
        threads: Threads for one `run`, at least 1.
        profile_to: Folder for a trace of every operator of every run, by an engine that can write one; it costs
            time. None traces nothing.
        packs_weights: Lay weights out for the processor when the model is opened. Without, a trace shows the
            shapes of the weights, and runs are slower.
        adapters: LoRA adapters beside a language model, as files of its runtime's format, each with its scale.
        num_context: The most tokens of a text that memory is kept for, by an engine that generates. None takes
            what the model was trained with, within reason.
        num_batch: Tokens of a prompt that are read at a time. None leaves it to the engine.
    """

    threads: int = 1
    profile_to: Path | None = None
    packs_weights: bool = True
    adapters: tuple[tuple[Path, float], ...] = ()
    num_context: int | None = None
    num_batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("threads", "num_context", "num_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")


# Kind of artifact → module with a function `open_engine(artifact, options)`, and the extra that installs it.
_ENGINES: Mapping[str, tuple[str, str]] = {
    "onnx": ("serve.runtime.onnx_engine", "serve"),
}
_GENERATION_ENGINES: Mapping[str, tuple[str, str]] = {
    "gguf": ("serve.runtime.gguf_engine", "gguf"),
    "genai": ("serve.runtime.genai_engine", "genai"),
}


def open_engine(artifact: Artifact, options: EngineOptions | None = None) -> Engine:
    """Open an artifact with the engine of its kind.

    Args:
        artifact: From `edgesmith.artifact.open_artifact`, which has checked its files' hashes.
        options: By default one thread.

    Raises:
        ArtifactError: The model is damaged, hostile, or not what its manifest says.
        MissingExtraError: The engine's library is not installed.
        UnsupportedError: No engine runs this kind, or the model needs operators the engine does not have.
    """
    if artifact.kind not in _ENGINES:
        raise UnsupportedError(
            f"{artifact.path}: no engine runs an artifact of kind {artifact.kind!r}; known are {', '.join(_ENGINES)}",
            mend="Export it first: edgesmith export CHECKPOINT --format onnx -o OUT"
            if artifact.kind == "checkpoint"
            else "",
        )
    module = _import_engine(artifact, *_ENGINES[artifact.kind])
    return cast(Engine, module.open_engine(artifact, options or EngineOptions()))


def open_generation_engine(artifact: Artifact, options: EngineOptions | None = None) -> GenerationEngine:
    """Open an artifact that generates text with the engine of its kind.

    Args:
        artifact: From `edgesmith.artifact.open_artifact`, which has checked its files' hashes.
        options: By default as many threads as `choose_threads` says.

    Raises:
        ArtifactError: The model is damaged, hostile, or not what its manifest says.
        MissingExtraError: The engine's library is not installed.
        UnsupportedError: No engine generates with this kind.
    """
    if artifact.kind not in _GENERATION_ENGINES:
        raise UnsupportedError(
            f"{artifact.path}: no engine generates text with an artifact of kind {artifact.kind!r}; known are "
            f"{', '.join(_GENERATION_ENGINES)}",
            mend="Export it first: edgesmith export CHECKPOINT --format gguf -o OUT"
            if artifact.kind == "checkpoint"
            else "",
        )
    module = _import_engine(artifact, *_GENERATION_ENGINES[artifact.kind])
    chosen = options or EngineOptions(threads=choose_threads())
    return cast(GenerationEngine, module.open_engine(artifact, chosen))


def _import_engine(artifact: Artifact, module_name: str, extra: str) -> ModuleType:
    try:
        return import_module(module_name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"the library `{error.name}` is not installed; it runs artifacts of kind {artifact.kind!r}",
            mend=f"Install it: pip install 'edgesmith[{extra}]'",
        ) from error
