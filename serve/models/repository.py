"""The models that a server has: loaded, swapped while they answer, and unloaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from serve.config import ModelSpec, ServerConfig

if TYPE_CHECKING:
    from serve.models.graph_model import GraphModel
    from serve.models.text_model import TextModel

    Model: TypeAlias = GraphModel | TextModel

__all__ = ["IndexEntry", "Repository", "State"]

State = Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]
"""As the Open Inference Protocol's repository index names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """What is known of one version of one model.

    Attributes:
        state: Whether it answers.
        reason: Why it does not, or why the last attempt to replace it failed; empty if there is nothing to say.
    """

    name: str
    version: str
    state: State
    reason: str = ""


class Repository:
    """The models of a server. All methods are for the loop's thread."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        loop: asyncio.AbstractEventLoop,
        locate: Callable[[Path, str], Path] | None = None,
    ) -> None:
        self._config = config
        self._loop = loop

    def get(self, name: str, version: str | None = None) -> Model:
        """The model that answers."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """All names."""
        raise NotImplementedError

    def versions(self, name: str) -> list[str]:
        """Versions of one model that answer, the oldest first."""
        raise NotImplementedError

    def index(self) -> list[IndexEntry]:
        """Every version of every model, with its state."""
        raise NotImplementedError

    def spec(self, name: str, version: str) -> ModelSpec:
        """What a version was loaded with."""
        raise NotImplementedError

    async def start(self) -> None:
        """Load all models of the configuration."""

    async def load(self, name: str, version: str | None = None, path: Path | None = None) -> None:
        """Load, or load again, and replace what is there."""

    async def unload(self, name: str, version: str | None = None) -> None:
        """Take a model out."""

    async def close(self, timeout_s: float) -> None:
        """Let all models finish, and close them."""
