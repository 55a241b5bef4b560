"""Serving artifacts, and packing them up for where they are served."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.errors import UsageError
from edgesmith.progress import SILENT, Progress
from edgesmith.releases import locate_target

if TYPE_CHECKING:
    from edgesmith.bundle import Bundle
    from edgesmith.unbundle import Unpacked
    from serve.config import ServerConfig

__all__ = ["bundle", "serve", "unbundle"]


def serve(config: ServerConfig, *, on: str | None = None, replicas: int = 1) -> None:
    """Serve models until the process is told to stop by SIGTERM or SIGINT; then what is under way is finished.

    Args:
        config: Its models may be artifacts, model files of others, or releases: of those, the target of the model's
            name, or the only one.
        on: `ray` serves on Ray Serve, in the cluster that $RAY_ADDRESS names or one of this machine's own.
        replicas: Servers that run at a time there.

    Raises:
        UsageError: an address, file or flag cannot be obeyed.
        ArtifactError: a model is damaged, was altered, or fails its own golden vectors.
        MissingExtraError: a library is not installed.
    """
    from serve.places import run_at

    models = tuple(dataclasses.replace(spec, path=locate_target(spec.path, spec.name)) for spec in config.models)
    run_at(dataclasses.replace(config, models=models), on, replicas)


def bundle(
    models: Sequence[str],
    *,
    out: Path,
    runtime: bool = False,
    wheels: bool = False,
    platform: str | None = None,
    memory: bool = False,
    progress: Progress = SILENT,
) -> Bundle:
    """Pack artifacts up as one folder or archive, with the thin runtime if wanted.

    Args:
        models: Each `NAME=PATH`, `NAME:VERSION=PATH` or a path; of a release the target of that name, or the only one.
        out: Folder, or an archive by its ending `.tar.zst`, `.tar.gz` or `.tar`.
        runtime: Put in the runtime's code and a lock file, so that `python -m serve` serves the models.
        wheels: Put in the libraries too.
        platform: Of the wheels, as pip names it; this machine's if left out.
        memory: Also open each model in a fresh process here, and measure what it takes in memory.
        progress: Shows how far it is.

    Raises:
        UsageError: a model is given twice, or something else is at `out`.
        UnsupportedError: an artifact that the runtime does not serve, or there are no wheels for the platform.
        ArtifactError: a model is damaged; or with `memory`, it cannot be opened.
        VerificationError: with `memory`: a model gives other answers than its golden ones.
    """
    from edgesmith.bundle import write_bundle
    from serve.arguments import parse_model

    found: dict[str, Path] = {}
    for text in models:
        name, version, path = parse_model(text)
        label = f"{name}:{version}"
        if label in found:
            raise UsageError(f"{label} is given twice", mend=f"Give the second one a version: {name}:2=PATH.")
        found[label] = locate_target(path, name)
    peaks = {}
    if memory:
        from bench.scenarios.start import measure_start

        for label, path in progress.track(found.items(), "open each model"):
            peaks[label] = measure_start(path, num_starts=1).peak_rss_bytes
    made = write_bundle(found, out, with_runtime=runtime, with_wheels=wheels, platform=platform, progress=progress)
    return dataclasses.replace(made, memory_bytes=peaks)


def unbundle(archive: Path, *, out: Path, progress: Progress = SILENT) -> Unpacked:
    """Unpack a bundle; every byte is as its index and its manifests say, or nothing appears at `out`.

    Args:
        archive: `.tar.zst`, `.tar.gz` or `.tar`.
        out: Folder to write; one that holds a bundle is replaced.
        progress: Shows how far it is.

    Raises:
        UsageError: there is no such archive, or something else is at `out`.
        ArtifactError: it is damaged, cut short or hostile.
        StorageError: it does not fit on the disk.
    """
    from edgesmith.unbundle import unpack_bundle

    return unpack_bundle(archive, out, progress=progress)
