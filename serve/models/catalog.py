"""A folder of models: which there are, and in which versions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from edgesmith.artifact import MANIFEST
from edgesmith.errors import UsageError
from edgesmith.files import storage_errors

__all__ = ["find_versions", "list_catalog", "natural_key"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_WHOLE = (MANIFEST, "genai_config.json", "release.json")
_FILES = ("model.onnx", "model.gguf")
_ONLY_VERSION = "1"


def natural_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts numbers in names by their value.

    >>> sorted(["v10", "v9", "2"], key=natural_key)
    ['2', 'v9', 'v10']
    """
    parts = re.split(r"(\d+)", version)
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part)


def find_versions(catalog: Path, name: str) -> Mapping[str, Path]:
    """Versions of one model in a folder of models, the oldest first; empty if it is not there.

    `CATALOG/NAME` is an artifact itself, of version 1, or holds folders that are artifacts, named by their versions. A
    folder with a bare `model.onnx` or `model.gguf` counts too.

    Args:
        catalog: The folder of models.
        name: As a client gave it.

    Raises:
        UsageError: The name is none, or leads out of the folder.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r:.200} is no name of a model", mend="Give the name of a folder of the repository.")
    folder = _inside(catalog, catalog / name)
    with storage_errors(folder):
        if not folder.is_dir():
            return {}
        if (model := _as_model(catalog, folder)) is not None:
            return {_ONLY_VERSION: model}
        names = sorted((path.name for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=natural_key)
        found = {name: _as_model(catalog, _inside(catalog, folder / name)) for name in names}
    return {name: path for name, path in found.items() if path is not None}


def list_catalog(catalog: Path) -> list[str]:
    """Names of the folders in a folder of models; a link out of it is left out.

    Raises:
        StorageError: It cannot be read.
    """
    root = catalog.resolve()
    with storage_errors(catalog):
        return sorted(
            path.name
            for path in catalog.iterdir()
            if _NAME.fullmatch(path.name) and path.is_dir() and path.resolve().is_relative_to(root)
        )


def _inside(catalog: Path, path: Path) -> Path:
    if not path.resolve().is_relative_to(catalog.resolve()):
        raise UsageError(f"{path}: is a link out of the repository", mend="Put a copy of the model there.")
    return path


def _as_model(catalog: Path, folder: Path) -> Path | None:
    """What to open for a folder; None if it holds no model of its own."""
    if any((folder / name).is_file() for name in _WHOLE):
        return folder
    bare = [folder / name for name in _FILES if (folder / name).is_file()]
    return _inside(catalog, bare[0]) if bare else None
