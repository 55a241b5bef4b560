"""Engines: what runs an artifact. Measurements, verification and the server all go through these.

An engine's module is imported when an artifact of its kind is opened, so that importing this package costs
nothing and needs no engine installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from numpy.typing import NDArray

from edgesmith.artifact import Artifact, Signature
from edgesmith.errors import MissingExtraError, UnsupportedError, UsageError

__all__ = ["Engine", "EngineOptions", "open_engine"]


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
    """

    threads: int = 1
    profile_to: Path | None = None
    packs_weights: bool = True

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UsageError(f"threads is {self.threads}; it must be at least 1")


# Kind of artifact → module with a function `open_engine(artifact, options)`, and the extra that installs it.
_ENGINES: Mapping[str, tuple[str, str]] = {
    "onnx": ("serve.runtime.onnx_engine", "serve"),
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
    module_name, extra = _ENGINES[artifact.kind]
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"the library `{error.name}` is not installed; it runs artifacts of kind {artifact.kind!r}",
            mend=f"Install it: pip install 'edgesmith[{extra}]'",
        ) from error
    return cast(Engine, module.open_engine(artifact, options or EngineOptions()))
