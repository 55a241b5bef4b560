"""The models that a server has, as one looks them up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from edgesmith.errors import EdgesmithError, UsageError
from serve.config import ServerConfig
from serve.errors import NotReadyError
from serve.models.catalog import find_versions, list_catalog, natural_key
from serve.models.entries import Entry, IndexEntry, describe_entry, no_such_model
from serve.models.loading import LoadReport

if TYPE_CHECKING:
    from serve.models.graph_model import GraphModel
    from serve.models.text_model import TextModel

    Model: TypeAlias = GraphModel | TextModel

__all__ = ["Register"]


class Register:
    """What can be asked of a repository; see `serve.models.repository.Repository`, which changes it.

    Args:
        config: The models to begin with, and the folder of those that can be loaded by name.

    Raises:
        UsageError: The configuration names a version of a model twice.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._entries: dict[str, dict[str, Entry]] = {}
        self._ready: dict[str, dict[str | None, Model]] = {}  # None: the version that answers where none is named
        for spec in config.models:
            if spec.version in self._entries.setdefault(spec.name, {}):
                raise UsageError(f"version {spec.version} of the model {spec.name} is given twice")
            self._entries[spec.name][spec.version] = Entry(spec)

    def get(self, name: str, version: str | None = None) -> Model:
        """The model that answers; without a version the newest that is ready, by natural order.

        Raises:
            ModelNotFoundError: There is none of that name or version.
            NotReadyError: It is being loaded or unloaded, or has failed.
        """
        try:
            return self._ready[name][version]
        except KeyError:
            raise self._why_not(name, version) from None

    def _why_not(self, name: str, version: str | None) -> EdgesmithError:
        versions = self._entries.get(name)
        if not versions or (version is not None and version not in versions):
            return no_such_model(name, version, self._entries)
        entry = versions[max(versions, key=natural_key) if version is None else version]
        reason = f": {entry.reason}" if entry.reason else ""
        return NotReadyError(f"the model {name} is {entry.state}{reason}")

    def names(self) -> list[str]:
        """Names of all models, ready or not."""
        return list(self._entries)

    def versions(self, name: str) -> list[str]:
        """Versions of one model that are ready, the oldest first; none of an unknown one."""
        return sorted((version for version in self._ready.get(name, {}) if version is not None), key=natural_key)

    def is_ready(self, name: str, version: str | None = None) -> bool:
        """Whether a version answers now; without one, the one that answers where none is named. False if unknown."""
        model = self._ready.get(name, {}).get(version)
        return model is not None and describe_entry(self._entries[name][model.version]).state == "READY"

    def has(self, name: str, version: str) -> bool:
        """Whether `get` gives a version, be its isolated engine up or not."""
        return version in self._ready.get(name, {})

    def all_ready(self) -> bool:
        """Whether every version that the server was started with answers now, but for those unloaded by order."""
        wanted = (self._entries[spec.name][spec.version] for spec in self._config.models)
        return all(entry.is_out or describe_entry(entry).state == "READY" for entry in wanted)

    def models(self) -> list[Model]:
        """All that are ready."""
        return [entry.loaded.model for entry in self._all() if entry.loaded is not None]

    def report(self, name: str, version: str) -> LoadReport | None:
        """How the version that answers was loaded; None if none does."""
        entry = self._entries.get(name, {}).get(version)
        return entry.loaded.report if entry is not None and entry.loaded is not None else None

    def child_pids(self) -> list[int]:
        """Processes of engines that run isolated."""
        children = [entry.loaded.child for entry in self._all() if entry.loaded is not None]
        pids = [child.process.pid for child in children if child is not None]
        return [pid for pid in pids if pid is not None]

    @property
    def num_restarts(self) -> int:
        """Crashes of the isolated engines that answer now."""
        children = [entry.loaded.child for entry in self._all() if entry.loaded is not None]
        return sum(child.process.num_crashes for child in children if child is not None)

    def index(self) -> list[IndexEntry]:
        """Every version of every model with its state."""
        return [describe_entry(entry) for entry in self._all()]

    def not_loaded(self) -> list[IndexEntry]:
        """What else the repository's folder holds and could be loaded; reads the folder.

        Raises:
            StorageError: The folder cannot be read.
        """
        catalog = self._config.repository
        return [
            IndexEntry(name=name, version=version, state="UNAVAILABLE", reason="not loaded")
            for name in (list_catalog(catalog) if catalog is not None else [])
            for version in find_versions(cast(Path, catalog), name)
            if version not in self._entries.get(name, {})
        ]

    def _all(self) -> list[Entry]:
        return [entry for versions in self._entries.values() for entry in versions.values()]
