"""Serving artifacts."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edgesmith.releases import locate_target

if TYPE_CHECKING:
    from serve.config import ServerConfig

__all__ = ["serve"]


def serve(config: ServerConfig) -> None:
    """Serve models until the process is told to stop by SIGTERM or SIGINT; then what is under way is finished.

    Args:
        config: Its models may be artifacts, model files of others, or releases: of those, the target of the model's
            name, or the only one.

    Raises:
        UsageError: an address, file or flag cannot be obeyed.
        ArtifactError: a model is damaged, was altered, or fails its own golden vectors.
        MissingExtraError: a library is not installed.
    """
    from serve.app import run_server

    models = tuple(dataclasses.replace(spec, path=locate_target(spec.path, spec.name)) for spec in config.models)
    run_server(dataclasses.replace(config, models=models))
