"""The models that a server has: loaded, swapped while they answer, and unloaded."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from edgesmith.errors import EdgesmithError, UsageError
from serve.config import ModelSpec, ServerConfig
from serve.errors import EngineFailedError, NotReadyError
from serve.models.catalog import find_versions, list_catalog, natural_key
from serve.models.entries import Entry, IndexEntry, State, describe_entry, no_such_model, wanted_specs
from serve.models.loading import Loaded, LoadReport, load_model
from serve.models.memory import release_memory

if TYPE_CHECKING:
    from serve.models.graph_model import GraphModel
    from serve.models.text_model import TextModel

    Model: TypeAlias = GraphModel | TextModel

__all__ = ["IndexEntry", "Repository", "State"]

_LOG = logging.getLogger(__name__)
_LOADING_THREADS = 2
_PATIENCE_S = 120.0


class Repository:
    """The models of a server. All methods are for the loop's thread; loading itself is done by threads of its own.

    The last order wins: a model that is unloaded while it is being loaded stays unloaded, and its load fails. Loads of
    one name are done one after the other. A model that is replaced finishes what it has been given, and only then is
    closed; the next load of its name waits for that, so there are hardly ever more than two of one in memory.

    Replace an artifact's folder by renaming a finished one, as `edgesmith` does: weights may be mapped into memory, so
    that whoever writes into a file changes the model that is running.

    Args:
        config: The models to begin with, and the folder of those that can be loaded by name.
        loop: That the server runs on.
        locate: Finds the artifact that a path means, by the path and the model's name, for paths that are none
            themselves, such as releases.

    Raises:
        UsageError: The configuration names a version of a model twice.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        loop: asyncio.AbstractEventLoop,
        locate: Callable[[Path, str], Path] | None = None,
    ) -> None:
        self._config = config
        self._loop = loop
        self._locate = locate or (lambda path, _: path)
        self._entries: dict[str, dict[str, Entry]] = {}
        self._ready: dict[str, dict[str | None, Model]] = {}  # None: the version that answers where none is named
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._retiring: set[Model] = set()
        self._pool = ThreadPoolExecutor(_LOADING_THREADS, thread_name_prefix="loading")
        self._is_closed = False
        self.num_loads = self.num_swaps = self.num_load_failures = 0
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

    async def start(self) -> None:
        """Load all models of the configuration; others are loaded even if one fails.

        Raises:
            EdgesmithError: Of the first one that failed; each is logged, and in the index.
        """
        await self._load_all([entry.spec for entry in self._all()])

    async def _load_all(self, specs: Iterable[ModelSpec]) -> None:
        """Load each of them, whatever becomes of the others or of who asked; raises what the first failure was."""
        loads = []
        for spec in specs:
            entry = self._entries.setdefault(spec.name, {}).setdefault(spec.version, Entry(spec))
            entry.is_out = False
            loads.append(self._run(self._load(spec, entry, entry.num_unloads)))
        ends = await asyncio.shield(asyncio.gather(*loads, return_exceptions=True))
        for end in ends:
            if end is not None:
                raise end

    async def load(self, name: str, version: str | None = None, path: Path | None = None) -> None:
        """Load a model, or load it again and replace it while it answers.

        Beside the one that answers, the new one is opened, its hashes checked, compared with its golden vectors and
        warmed up. If anything fails the old one stays.

        Args:
            name: Of a model that the server has, or of one in the repository's folder.
            version: By default every version that is in use, and the newest of the repository's folder; with a path,
                the newest.
            path: Another artifact for it.

        Raises:
            ModelNotFoundError: There is no such model or version.
            NotReadyError: It was unloaded meanwhile, or the server stops.
            EdgesmithError: Why it cannot be loaded.
        """
        if self._is_closed:
            raise NotReadyError("the server is being stopped")
        specs = wanted_specs(self._entries.get(name, {}), self._config.repository, name, version, path)
        if not specs:
            raise no_such_model(name, version, self._entries)
        await self._load_all(specs)

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin it as a task that is kept until it is done."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _load(self, spec: ModelSpec, entry: Entry, num_unloads: int) -> None:
        async with self._locks[spec.name]:
            if entry.closing is not None:  # for a while: one that hangs must not keep out what replaces it
                await asyncio.wait([entry.closing], timeout=_PATIENCE_S)
            if entry.num_unloads != num_unloads:
                raise _unloaded(spec)
            if entry.loaded is None:
                entry.state, entry.reason = "LOADING", ""
            try:
                loaded = await self._open(spec)
            except EdgesmithError as error:
                self._note_failure(entry, num_unloads, spec, error)
                raise
            if entry.num_unloads != num_unloads or self._is_closed:
                await loaded.model.close(0)
                raise _unloaded(spec)
            self._replace(entry, spec, loaded)

    async def _open(self, spec: ModelSpec) -> Loaded:
        in_use = {(entry.spec.name, entry.spec.version): entry.spec for entry in self._all() if not entry.is_out}
        specs = (in_use | {(spec.name, spec.version): spec}).values()

        def open_here() -> Loaded:
            from serve.models.graph_model import share_threads

            shared = replace(spec, threads=share_threads(specs)[spec.name, spec.version])
            return load_model(shared, self._locate(spec.path, spec.name), loop=self._loop)

        try:
            return await self._loop.run_in_executor(self._pool, open_here)
        except EdgesmithError:
            raise
        except Exception as error:
            _LOG.exception("loading %s %s", spec.name, spec.version)
            message = f"{spec.path}: cannot be loaded: {type(error).__name__}: {error}"
            raise EngineFailedError(message) from error

    def _note_failure(self, entry: Entry, num_unloads: int, spec: ModelSpec, error: EdgesmithError) -> None:
        self.num_load_failures += 1
        _LOG.error("%s %s cannot be loaded: %s", spec.name, spec.version, error)
        if entry.loaded is not None:
            entry.reason = f"the one before is kept, for the load of {spec.path} failed: {error.message}"
        elif entry.num_unloads == num_unloads:
            entry.state, entry.reason = "UNAVAILABLE", error.message

    def _replace(self, entry: Entry, spec: ModelSpec, loaded: Loaded) -> None:
        """Let the new one answer from now on."""
        old, entry.loaded, entry.spec = entry.loaded, loaded, spec
        entry.state, entry.reason = "READY", ""
        self._publish(spec.name)
        self.num_loads += 1
        self.num_swaps += old is not None
        verb = "loaded" if old is None else "replaced"
        _LOG.info("%s %s %s from %s: %s", verb, spec.name, spec.version, spec.path, loaded.report)
        if old is not None:
            entry.closing = self._run(self._retire(old.model, None))

    def _publish(self, name: str) -> None:
        """Make the look-up of one name anew; readers see the old one or the new one."""
        ready: dict[str | None, Model] = {
            version: entry.loaded.model for version, entry in self._entries[name].items() if entry.loaded is not None
        }
        if ready:
            ready[None] = ready[max((version for version in ready if version is not None), key=natural_key)]
        self._ready[name] = ready

    async def _retire(self, model: Model, timeout_s: float | None) -> None:
        """Let a model finish what it was given, close it, and give its memory back."""
        self._retiring.add(model)
        try:
            await model.close(timeout_s)
        except Exception:  # noqa: BLE001 - logged; what follows must be done all the same
            _LOG.exception("closing %s %s", model.name, model.version)
        self._retiring.discard(model)
        del model
        await self._loop.run_in_executor(self._pool, release_memory)

    async def unload(self, name: str, version: str | None = None) -> None:
        """Take a model out at once, let it finish what it was given, and close it. What loads it meanwhile fails.

        Args:
            name: The model.
            version: By default all of them.

        Raises:
            ModelNotFoundError: There is no such model or version.
        """
        known = self._entries.get(name, {})
        entries = [entry for one, entry in known.items() if version in (None, one)]
        if not entries:
            raise no_such_model(name, version, self._entries)
        await asyncio.shield(asyncio.gather(*(self._run(self._unload(entry, None)) for entry in entries)))

    async def _unload(self, entry: Entry, timeout_s: float | None) -> None:
        entry.is_out = True
        entry.num_unloads += 1
        loaded, entry.loaded = entry.loaded, None
        if entry.state != "UNAVAILABLE":
            entry.state, entry.reason = "UNLOADING", ""
        self._publish(entry.spec.name)
        closings = [] if entry.closing is None else [entry.closing]
        if loaded is not None:
            entry.closing = self._run(self._retire(loaded.model, timeout_s))
            closings.append(entry.closing)
        del loaded
        if closings:
            await asyncio.wait(closings, timeout=timeout_s)
        if entry.state == "UNLOADING":
            entry.state, entry.reason = "UNAVAILABLE", "unloaded"

    async def close(self, timeout_s: float) -> None:
        """Let all models finish, and close them; a load that is under way comes to nothing.

        Args:
            timeout_s: What is not finished then fails.
        """
        self._is_closed = True
        ends = [model.close(timeout_s) for model in self._retiring]  # they were given all the time they want
        await asyncio.gather(*ends, *(self._unload(entry, timeout_s) for entry in self._all()))
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)


def _unloaded(spec: ModelSpec) -> NotReadyError:
    return NotReadyError(f"version {spec.version} of the model {spec.name} was unloaded before it was loaded")
